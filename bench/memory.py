"""The memory estimate of `hero plan` beside what a run really takes, for three models of different shape.

    python -m bench.memory [quickstart vocabulary llama] [--folder DIR]

Each run is short (a few steps of every stage) and a process of its own, whose tree is sampled every second.
Pages that processes share count once: object store, weight files in shared memory, and what is mapped from
files, mostly libraries. The proportional set size would leave out what other programs of the machine share.
"""

from __future__ import annotations

import itertools
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

import psutil
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, PreTrainedTokenizerFast, Qwen3Config
from transformers.models.auto.modeling_auto import AutoModelForCausalLM

from actors.weights.transport import weights_directory
from bench.common import print_header, print_row, start_parser
from cluster.config_loader import load_config
from cluster.memory_estimate import GIB, PROCESS_GIB
from cluster.placement import memory_by_process
from cluster.precision import resolve
from learners.data.tokenizer import CHAT_TEMPLATE, END_OF_TEXT, END_OF_TURN, PAD, ROLES, SPECIAL_TOKENS

SHORT = [
    "quickstart={documents: 4000, demonstrations: 300, prompts: 100, heldout: 16}",
    "pretrain.steps=4",
    "sft.epochs=1",
    "collect.prompts=32",
    "ppo.iterations=2",
    "ppo.prompts=24",
    "ppo.epochs=1",
    "ppo.minibatches=1",
    "ppo.best_of=1",
    "ppo.evaluate_prompts=16",
    "evaluate.prompts=16",
    # What so short a run fills: micro-batches, and the object store.
    "learners.micro_batch_tokens=1024",
    "scoring.batch_tokens=2048",
    "cluster.object_store_gib=0.1",
]
"""Of all three runs: every process does all that it does in a long run, a few times."""
FROM_PATH = [
    "stages=[sft,ppo]",
    "rewards.sources=[{kind: function, path: 'bench.memory:shorter'}]",
]
INTERVAL_S = 1.0


def shorter(row: dict[str, object], response: str, ended: bool) -> float:
    """A reward that costs nothing."""
    return -float(len(response))


@dataclass
class Peak:
    """Largest memory of the run, and of each kind of process at that moment, GiB."""

    total: float = 0.0
    by_kind: dict[str, float] = field(default_factory=dict)


def synthetic_tokenizer(size: int) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer of exactly `size` entries: after the bytes come the pairs of letters, and
    then the pairs of these pairs."""
    entries = [*SPECIAL_TOKENS, *sorted(pre_tokenizers.ByteLevel.alphabet())]
    letters = "etaoinshrdlucmfwypvbgkjqxz"
    pairs = ["".join(pair) for pair in itertools.product(letters, repeat=2)]
    merges = [(pair[0], pair[1]) for pair in pairs]
    merges += itertools.product(pairs, repeat=2)
    merges = merges[: size - len(entries)]
    vocabulary = {}
    for entry in [*entries, *(first + second for first, second in merges)]:
        vocabulary[entry] = len(vocabulary)
    core = Tokenizer(models.BPE(vocabulary, merges))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        pad_token=PAD,
        eos_token=END_OF_TURN,
        additional_special_tokens=[END_OF_TEXT, *ROLES],
        chat_template=CHAT_TEMPLATE,
    )


def save_model(folder: Path, config: Qwen3Config | LlamaConfig) -> None:
    """A model with random weights and its tokenizer."""
    tokenizer = synthetic_tokenizer(config.vocab_size)
    config.pad_token_id, config.eos_token_id = tokenizer.pad_token_id, tokenizer.eos_token_id
    config.bos_token_id = None
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def overrides_of(name: str, folder: Path) -> list[str]:
    """Overrides of configs/quickstart.yaml for one of the three models, which is made in `folder`."""
    dtype = "float32" if name == "llama" else "bfloat16"
    short = [*SHORT, f"learners.dtype={dtype}", f"ppo.dtype={dtype}"]
    if name == "quickstart":
        return short
    common = {"max_position_embeddings": 256, "dtype": "float32"}
    shapes = {
        # Nearly all of it is the embedding, which is tied to the head.
        "vocabulary": Qwen3Config(
            vocab_size=151_936,
            hidden_size=128,
            intermediate_size=384,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            head_dim=32,
            tie_word_embeddings=True,
            **common,
        ),
        # Another architecture, of 43 million parameters: grouped queries, a head of its own.
        "llama": LlamaConfig(
            vocab_size=8_000,
            hidden_size=512,
            intermediate_size=1536,
            num_hidden_layers=10,
            num_attention_heads=8,
            num_key_value_heads=2,
            tie_word_embeddings=False,
            **common,
        ),
    }
    save_model(folder / name, shapes[name])
    return [*short, *FROM_PATH, f"model={{path: {folder / name}, context: 256}}"]


def run_and_sample(arguments: list[str], run_dir: Path) -> Peak:
    """Runs `hero run` and returns the peak of its process tree. Raises RuntimeError if the run fails."""
    peak, weights = Peak(), weights_directory(run_dir, None)
    with open(f"{run_dir}.log", "w") as log:
        run = subprocess.Popen(
            [sys.executable, "-m", "cluster.cli", "run", *arguments], stdout=log, stderr=log
        )
        while run.poll() is None:
            by_kind = memory_by_kind(psutil.Process(run.pid), weights)
            if sum(by_kind.values()) > peak.total:
                peak = Peak(sum(by_kind.values()), by_kind)
            time.sleep(INTERVAL_S)
    if run.returncode:
        raise RuntimeError(f"the run failed:\n{Path(f'{run_dir}.log').read_text()[-2000:]}")
    return peak


def memory_by_kind(root: psutil.Process, weights: Path) -> dict[str, float]:
    """GiB of a run's processes now, by kind. `weights` is the folder of the files between learners and
    engines."""
    by_kind: dict[str, float] = {}
    mapped: dict[str, int] = {}
    try:
        processes = [root, *root.children(recursive=True)]
    except psutil.NoSuchProcess:
        return by_kind
    for process in processes:
        try:
            own, files = memory_of(process.pid)
        except (FileNotFoundError, ProcessLookupError, PermissionError):
            continue  # it ended after the list was made
        kind = kind_of(process, root)
        by_kind[kind] = by_kind.get(kind, 0.0) + own / GIB
        for file, size in files.items():
            mapped[file] = max(mapped.get(file, 0), size)
    by_kind["libraries"] = sum(mapped.values()) / GIB
    by_kind["weight files"] = sum(file.stat().st_size for file in weights.glob("*.safetensors")) / GIB
    return by_kind


def memory_of(pid: int) -> tuple[int, dict[str, int]]:
    """Bytes in memory that are not mapped from a file (its share of what processes share), and those of
    each mapped file."""
    own, files, file = 0, {}, ""
    sizes: dict[str, int] = {}
    for line in Path(f"/proc/{pid}/smaps").read_text().splitlines():
        fields = line.split(maxsplit=5)
        if not fields[0].endswith(":"):  # the first line of a mapping
            is_file = len(fields) == 6 and fields[5].startswith("/") and not fields[5].startswith("/dev/shm")
            file = fields[5] if is_file else ""
            continue
        if fields[0] in ("Rss:", "Pss:", "Anonymous:"):
            sizes[fields[0]] = int(fields[1]) * 1024
        if fields[0] == "VmFlags:":  # the last one
            if file:
                own += sizes["Anonymous:"]  # its pages of the file that it has changed
                files[file] = files.get(file, 0) + sizes["Rss:"] - sizes["Anonymous:"]
            else:
                own += sizes["Pss:"]
    return own, files


def kind_of(process: psutil.Process, root: psutil.Process) -> str:
    if process.pid == root.pid:
        return "driver"
    # All actors have one title; the log that an actor writes to has its name.
    log = Path(f"/proc/{process.pid}/fd/1").resolve()
    kind = log.stem.partition("-")[0]
    return kind if kind in PROCESS_GIB else "ray"


def main() -> None:
    parser = start_parser(__doc__)
    parser.add_argument("models", nargs="*", default=["quickstart", "vocabulary", "llama"])
    parser.add_argument("--folder", type=Path)
    options = parser.parse_args()
    folder = options.folder or Path(tempfile.mkdtemp())
    print_header(("model", "part", "estimate, GiB", "measured, GiB", "ratio"))
    for name in options.models:
        run_dir = folder / f"run-{name}"
        overrides = [*overrides_of(name, folder), f"run_dir={run_dir}"]
        config, _ = resolve(load_config("configs/quickstart.yaml", overrides))
        peak = run_and_sample(["configs/quickstart.yaml", *overrides], run_dir)
        estimates = memory_by_process(config)
        for part in sorted(estimates.keys() | peak.by_kind.keys()):
            estimate, measured = estimates.get(part, 0.0), peak.by_kind.get(part, 0.0)
            print_row((name, part, f"{estimate:.2f}", f"{measured:.2f}", ""))
        total = sum(estimates.values())
        print_row((name, "all", f"{total:.2f}", f"{peak.total:.2f}", f"{total / peak.total:.2f}"))


if __name__ == "__main__":
    main()
