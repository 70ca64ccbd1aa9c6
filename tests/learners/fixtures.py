"""Small inputs for learner tests, and a way to run a LearnerActor on several ranks without Ray."""

import multiprocessing
from pathlib import Path
from queue import Empty

import numpy as np
import torch.distributed

from learners.config import (
    LearnerConfig,
    ModelConfig,
    OptimizerConfig,
    PretrainConfig,
    RewardModelConfig,
    SFTConfig,
)
from learners.data.config import DataConfig
from learners.data.datasets import RankingData
from learners.data.encoding import pack_corpus
from learners.data.samples import Samples, offsets_of
from learners.data.sources import DatasetReader
from learners.data.tokenizer import train_tokenizer
from learners.models import build_policy, scalar_from_policy
from learners.rl.config import PPOConfig
from learners.rl.scored_parts import ScoredPart, flatten_parts
from tests.runs import free_port

TEXTS = [
    f"The capital of {a} is {b}."
    for a in ["France", "Spain", "Peru", "Chad", "Iran"]
    for b in ["Paris", "Lima", "Oslo"]
]
DATA = DataConfig()
IMPORTED_ONCE = [
    "actors.learner",
    "learners.deepspeed_engine",
    "deepspeed.runtime.zero.muon.muon_optimizer",
    "transformers.models.llama.modeling_llama",
]
"""For the ranks of all tests: imports take longer than most updates of a tiny model."""
MODEL = ModelConfig(layers=2, width=64, heads=2, kv_heads=1, vocab_size=320, context=64)


def make_files(folder: Path) -> None:
    """tokenizer, tokens.npz, policy and reward model folders."""
    tokenizer = train_tokenizer(TEXTS, MODEL.vocab_size)
    tokenizer.save_pretrained(folder / "tokenizer")
    pack_corpus(TEXTS * 4, tokenizer, 16).save(folder / "tokens.npz")
    build_policy(MODEL, tokenizer, seed=1).save_pretrained(folder / "policy")
    tokenizer.save_pretrained(folder / "policy")
    scalar_from_policy(folder / "policy", seed=2).save_pretrained(folder / "reward")
    make_rankings(folder)


def make_batch(size: int = 12, seed: int = 0, responses: int = 1) -> ScoredPart:
    """Random samples with scores and reference log-probabilities."""
    rng = np.random.default_rng(seed)
    prompt_ids_B = np.arange(size) // responses
    prompts = rng.integers(2, 9, size)[prompt_ids_B]
    lengths = rng.integers(3, 20, size)
    total = int((prompts + lengths).sum())
    offsets, tokens_N = offsets_of(prompts + lengths), rng.integers(8, 300, total).astype(np.int32)
    for b, prompt_id in enumerate(prompt_ids_B):
        first = offsets[prompt_id * responses]
        tokens_N[offsets[b] : offsets[b] + prompts[b]] = tokens_N[first : first + prompts[b]]
    samples = Samples(
        tokens_N=tokens_N,
        offsets=offsets,
        prompt_lengths_B=prompts.astype(np.int32),
        logprobs_N=rng.normal(-5, 1, total).astype(np.float32),
        versions_N=np.zeros(total, dtype=np.int32),
        prompt_ids_B=prompt_ids_B,
        ended_B=rng.random(size) > 0.3,
    )
    scores_B = rng.normal(size=size).astype(np.float32)
    ref_logprobs_N = samples.response_mask_N * rng.normal(-5, 0.5, total)
    return ScoredPart(samples, scores_B, ref_logprobs_N.astype(np.float32))


def optimizer() -> OptimizerConfig:
    # A large epsilon keeps Adam's first steps from turning rounding noise into whole steps.
    return OptimizerConfig(lr=1e-3, warmup_steps=0, schedule="constant", eps=1e-3)


def run_ranks(scenario, folder: Path, config: LearnerConfig, *args, model: ModelConfig = MODEL):
    """Runs scenario(actor, folder, *args) on every rank in a process of its own; returns rank 0's
    result."""
    port = free_port()
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(IMPORTED_ONCE)
    queue = context.Queue()
    ranks = [
        context.Process(target=_rank, args=(queue, port, rank, config, model, scenario, (folder, *args)))
        for rank in range(config.ranks)
    ]
    for process in ranks:
        process.start()
    while True:
        try:
            result = queue.get(timeout=1)
            break
        except Empty:
            assert all(p.is_alive() or p.exitcode == 0 for p in ranks), "a rank died"
    for process in ranks:
        process.join(60)
        assert process.exitcode == 0
    return result


def _rank(queue, port, rank, config, model, scenario, args):
    from actors.learner import LearnerActor

    actor = LearnerActor(rank, config, model)
    actor.join("127.0.0.1", port)
    result = scenario(actor, *args)
    if rank == 0:
        queue.put(result)
    # Threads of a process group that is left to the interpreter's end may abort the process.
    torch.distributed.destroy_process_group()


def weights(actor) -> dict[str, np.ndarray]:
    """Weights of all models of the current task, under the engine's name and the tensor's."""
    by_name = {}
    for engine_name, engine in actor.task.engines.items():
        for name, tensor in engine.named_weights():
            by_name[f"{engine_name}.{name}"] = tensor.float().numpy().copy()
    return by_name


def pretrain(actor, folder, steps=2):
    config = PretrainConfig(steps=8, batch_tokens=160, sequence_length=16, optimizer=optimizer())
    actor.start_pretrain(config, folder, 0)
    metrics = actor.train(steps)
    return metrics, weights(actor), actor.validate()


def make_rankings(folder: Path, seed: int = 0) -> None:
    """rankings.npz: ten prompts with four random responses each, one of them there twice, some
    tied."""
    rng = np.random.default_rng(seed)
    sequences = [rng.integers(8, 300, rng.integers(3, 13)).astype(np.int32) for _ in range(40)]
    for s, sequence in enumerate(sequences):
        sequence[:2] = sequences[s // 4 * 4][:2]  # the prompt of its group
    members = np.tile(np.arange(4, dtype=np.int32), 10)
    members[1] = 0
    RankingData(
        np.concatenate(sequences),
        offsets_of([len(s) for s in sequences]),
        offsets_of([4] * 10),
        members_M=members,
        ranks_M=rng.integers(1, 5, 40).astype(np.int32),
        ranking_offsets=offsets_of([4] * 10),
        ranking_groups_Q=np.arange(10, dtype=np.int32),
        levels_M=np.full(40, np.nan, dtype=np.float32),
        weights_Q=np.ones(10, dtype=np.float32),
        tags_G=np.full(10, ""),
        oracle_ranks=np.zeros(40, dtype=np.int32),
        fold_position_G=np.arange(10) / 10,
        is_validation_G=np.arange(10) < 1,
        prompt_lengths_G=np.full(10, 2, dtype=np.int32),
    ).save(folder / "rankings.npz")


def counting_rankings(counts: list[int]) -> RankingData:
    """60 prompts with four responses each: one is better the more tokens 20 it has, and `counts` are how
    many the four have. The first twelve prompts validate."""
    rng, places = np.random.default_rng(0), sorted(set(counts), reverse=True)
    sequences, ranks = [], []
    for _ in range(60):
        for count in rng.permutation(counts):
            response = [20] * count + [21] * (4 - count)
            sequences.append(np.array([9, 10, *response, 5], dtype=np.int32))
            ranks.append(1 + places.index(count))
    return RankingData(
        np.concatenate(sequences),
        offsets_of([len(s) for s in sequences]),
        offsets_of([4] * 60),
        members_M=np.tile(np.arange(4, dtype=np.int32), 60),
        ranks_M=np.array(ranks, dtype=np.int32),
        ranking_offsets=offsets_of([4] * 60),
        ranking_groups_Q=np.arange(60, dtype=np.int32),
        levels_M=np.full(240, np.nan, dtype=np.float32),
        weights_Q=np.ones(60, dtype=np.float32),
        tags_G=np.full(60, ""),
        oracle_ranks=np.array(ranks, dtype=np.int32),
        fold_position_G=np.arange(60) / 60,
        is_validation_G=np.arange(60) < 12,
        prompt_lengths_G=np.full(60, 2, dtype=np.int32),
    )


def reward(actor, folder, steps=2):
    actor.start_reward_model(folder / "policy", reward_config(), folder, 0)
    actor.train(steps)
    return weights(actor)


def ppo_config(**changes) -> PPOConfig:
    plain = {
        "dtype": "float32",
        "prompts": 12,
        "responses": 1,
        "minibatches": 3,
        "epochs": 2,
        "optimizer": optimizer(),
    }
    critic = {} if changes.get("advantage", "gae") != "gae" else {"critic_optimizer": optimizer()}
    return PPOConfig(**(plain | critic | changes))


def ppo(actor, folder, iterations=2, **changes):
    config = ppo_config(**changes)
    corpus = folder / "tokens.npz" if config.ptx_coef else None
    actor.start_ppo(folder / "policy", folder / "reward", config, corpus, 0)
    metrics = []
    for iteration in range(iterations):
        part = make_batch(seed=iteration, responses=config.responses)
        metrics.append(ppo_update(actor, iteration, part))
    return metrics, weights(actor)


def ppo_update(actor, version: int, part: ScoredPart, kl_coef: float = 0.05) -> dict[str, float]:
    """Metrics of one PPO iteration on one part."""
    return actor.ppo_update(version, kl_coef, *flatten_parts([part]))[0]


def sft_config() -> SFTConfig:
    return SFTConfig(epochs=6, batch_size=4, optimizer=optimizer())


def reward_config() -> RewardModelConfig:
    return RewardModelConfig(batch_size=4, optimizer=optimizer())


def load(folder: Path):
    """Named tensors of an exported policy."""
    from safetensors.torch import load_file

    return load_file(folder / "model.safetensors")


def reader(kind, **config):
    return DatasetReader(kind, DataConfig(**config), seed=0)


def talk(*turns):
    return {
        "messages": [
            {"role": "user" if i % 2 == 0 else "assistant", "content": t} for i, t in enumerate(turns)
        ]
    }
