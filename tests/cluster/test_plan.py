"""`hero plan`: its arithmetic is that of the run, and what cannot work is refused before anything starts."""

import subprocess
import sys
from types import SimpleNamespace

import psutil
import pytest
from rich.console import Console

from cluster.config_loader import load_config
from cluster.placement import (
    GIB,
    Memory,
    activation_bytes,
    learner_memory,
    parameters,
    placement,
    rollout_memory,
    scoring_memory,
    total_memory_gib,
)
from cluster.plan import batch_arithmetic, check_feasible, print_plan
from common.errors import UserError
from learners.data.tokenizer import train_tokenizer
from learners.models import build_policy

PARAMETERS = 87_808
"""Of configs/tiny.yaml by hand. Embeddings 600 x 64 = 38400. One layer: queries and output
2 x 64 x 64 = 8192, keys and values 2 x 64 x 32 = 4096, norms of the heads 2 x 32 = 64,
MLP 3 x 64 x 192 = 36864, norms 2 x 64 = 128. Last norm 64."""


@pytest.fixture(autouse=True)
def machine(monkeypatch):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(psutil, "cpu_count", lambda: 2)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=16 * 2**30))


def tiny(*overrides):
    return load_config("configs/tiny.yaml", list(overrides))


@pytest.mark.parametrize("tied", ["true", "false"])
def test_parameter_count_is_that_of_the_built_model(tied):
    config = tiny("model.vocab_size=320", "model.layers=3", f"model.tie_embeddings={tied}")
    tokenizer = train_tokenizer(["abc abd" * 50], 320)
    model = build_policy(config.model, tokenizer, seed=0)
    missing = config.model.vocab_size - len(tokenizer)  # a short text has fewer merges than requested
    embeddings = 1 if tied == "true" else 2
    assert parameters(config) == model.num_parameters() + missing * config.model.width * embeddings


def test_parameter_count_by_hand():
    assert parameters(tiny()) == PARAMETERS


def test_batch_arithmetic_by_hand():
    values = dict(batch_arithmetic(tiny("ppo.minibatches=2", "ppo.epochs=3")))
    assert values["PPO batch"] == "8 prompts x 2 responses = 16 sequences"
    assert values["  minibatch"] == "16 / 2 = 8 sequences, 4 a rank"
    assert values["PPO optimizer steps"] == "4 x 3 epochs x 2 = 24"


@pytest.mark.parametrize(
    ("overrides", "weights", "gradients", "optimizer"),
    [
        # Bytes for each parameter of the policy. Adam keeps 8 in float32 and 12 beside bfloat16 (two
        # moments of 4 bytes, and a master copy of 4); the policy and its critic are two models; there
        # are two ranks.
        (["learners.zero_stage=0"], 8, 8, 16),
        (["learners.zero_stage=1"], 8, 8, 8),
        (["learners.zero_stage=2"], 8, 4, 8),
        (["learners.zero_stage=3"], 4, 4, 8),
        (["learners.zero_stage=2", "ppo.dtype=bfloat16"], 4, 2, 12),
        (["learners.zero_stage=3", "ppo.dtype=bfloat16"], 2, 2, 12),
        (["learners.zero_stage=2", "ppo.advantage=grpo"], 4, 2, 4),
        (["learners.zero_stage=2", "learners.ranks=1"], 8, 8, 16),
        (["learners.zero_stage=2", "model.lora={rank: 4}"], 8, 0.02 * 4, 0.02 * 8),
    ],
)
def test_learner_memory_by_hand(overrides, weights, gradients, optimizer):
    memory = learner_memory(tiny(*overrides))
    assert memory.weights == pytest.approx(weights * PARAMETERS)
    assert memory.gradients == pytest.approx(gradients * PARAMETERS)
    assert memory.optimizer == pytest.approx(optimizer * PARAMETERS)


def test_activation_bytes_by_hand():
    # 1000 tokens x (600 entries x 12 + 64 units x 1 layer x 100) bytes
    config = tiny("learners.micro_batch_tokens=1000")
    assert activation_bytes(config) == 13_600_000
    assert learner_memory(config).activations == 13_600_000
    assert scoring_memory(config).activations == pytest.approx(13_600_000 / 3)


def test_rollout_and_scoring_memory_by_hand():
    assert rollout_memory(tiny()).weights == 4 * PARAMETERS
    assert rollout_memory(tiny("ppo.dtype=bfloat16")).weights == 2 * PARAMETERS
    assert rollout_memory(tiny()).kv_cache == 0.1 * GIB
    assert scoring_memory(tiny()).weights == 8 * PARAMETERS  # reward model and reference policy
    function = "rewards.sources=[{kind: function, path: 'cluster.quickstart.oracle:judge'}]"
    assert scoring_memory(tiny(function)).weights == 4 * PARAMETERS


def test_memory_is_the_sum_of_its_uses():
    uses = Memory(process=1, weights=2, gradients=4, optimizer=8, activations=16, kv_cache=32)
    assert uses.gib == 63 / GIB


def test_total_memory_counts_every_actor_the_driver_and_ray():
    config = tiny("rollout.actors=3")
    learner, rollout, scoring = placement(config)
    assert (learner.actors, rollout.actors, scoring.actors) == (2, 3, 1)
    fleets = 2 * learner.memory.gib + 3 * rollout.memory.gib + scoring.memory.gib
    assert total_memory_gib(config) == pytest.approx(fleets + 0.9 + 0.9 + 0.1)
    processes = [fleet.memory.process / GIB for fleet in placement(config)]
    assert processes == pytest.approx([0.75, 1.0, 0.6])


def test_without_a_critic_a_learner_holds_one_model():
    with_critic, without = placement(tiny())[0], placement(tiny("ppo.advantage=grpo"))[0]
    assert with_critic.holds == "policy and critic, ZeRO-2, float32"
    assert without.holds == "policy, ZeRO-2, float32"


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["learners.ranks=3"], "learners.ranks=3 x learners.threads=1 = 3 cores, but this run has 2"),
        (["cluster.cpus=1"], "but this run has 1"),
        (["model.width=96", "model.heads=2"], "needs a multiple of 32"),
        (["rollout.gpus=1"], "rollout asks for 1 GPUs but cluster.device is cpu"),
        (["cluster.device=cuda"], "asks for no GPU"),
        (["data.demonstrations=/nowhere/d.jsonl"], "^data.demonstrations=/nowhere/d.jsonl: no such file"),
        (["model.layers=60", "model.width=4096"], "GiB are free"),
        (["stages=[reward]", "run_dir=/nowhere/at/all"], "there is nothing to learn from"),
        (["stages=[ppo]", "run_dir=/nowhere/at/all"], "no such model; run the reward stage first"),
        (["rewards.sources=[{kind: function, path: 'nowhere:f'}]"], "nowhere:f: cannot be loaded"),
        (["data.prompts={path: configs/tiny.yaml}"], "unknown kind of file"),
        (["data.prompts=[{path: configs, convert: 'cluster.recipes.gsm8k:f'}]"], "has no attribute 'f'"),
    ],
)
def test_what_cannot_work_is_refused(overrides, message):
    with pytest.raises(UserError, match=message):
        check_feasible(tiny(*overrides))


@pytest.mark.parametrize("overrides", [["learners.ranks=3"], ["model.layers=60", "model.width=4096"]])
def test_another_cluster_is_not_held_to_this_machine(monkeypatch, overrides):
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    check_feasible(tiny(*overrides))


def test_plan_shows_config_arithmetic_placement_and_memory():
    console = Console(record=True, width=160, file=open("/dev/null", "w"))  # noqa: SIM115
    print_plan(tiny(), console)
    text = console.export_text()
    for part in (
        "kl_coef: 0.35",
        "PPO batch",
        "Placement",
        "policy and critic, ZeRO-2, float32",
        "memory over all",
    ):
        assert part in text


def test_reward_model_of_another_vocabulary_is_refused(tmp_path):
    for name, size in (("policy", 10), ("reward", 11)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text(f'{{"vocab_size": {size}}}')
    with pytest.raises(UserError, match="one tokenizer"):
        check_feasible(
            tiny(
                f"model={{path: {tmp_path / 'policy'}, context: 128}}",
                f"reward_model.path={tmp_path / 'reward'}",
            )
        )


HEAVY = ("ray", "torch", "transformers", "tokenizers", "vllm", "deepspeed", "wandb", "datasets")
IMPORT_PLAN = "import cluster.plan"
PRINT_PLAN = """
from rich.console import Console
from cluster.config_loader import load_config
from cluster.plan import print_plan
print_plan(load_config("configs/tiny.yaml", ["learners.ranks=1"]), Console(stderr=True))
"""
HELP = """
from typer.testing import CliRunner
from cluster.cli import app
assert CliRunner().invoke(app, ["--help"]).exit_code == 0
"""


@pytest.mark.parametrize("code", [IMPORT_PLAN, PRINT_PLAN, HELP], ids=["import", "plan", "help"])
def test_plan_and_help_load_neither_ray_nor_torch(code):
    code += f"\nimport sys; print([name for name in {HEAVY} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
