"""`hero plan`: its arithmetic is that of the run, and what cannot work is refused before anything starts."""

import subprocess
import sys
from types import SimpleNamespace

import psutil
import pytest
from rich.console import Console

from cluster import layout_checks, memory_estimate
from cluster.config_loader import load_config
from cluster.memory_estimate import (
    GIB,
    Memory,
    largest_task,
    learner_memory,
    rollout_memory,
    scoring_memory,
    training_task,
)
from cluster.model_shape import new_model_shape, policy_shape
from cluster.placement import memory_by_process, placement, total_memory_gib
from cluster.plan import batch_arithmetic, check_feasible, print_plan
from cluster.precision import resolve
from common.errors import UserError
from learners.data.tokenizer import train_tokenizer
from learners.logprobs import CHUNK_ENTRIES
from learners.models import build_policy

PARAMETERS = 87_808
"""Of configs/tiny.yaml by hand. Embeddings 600 x 64 = 38400. One layer: queries and output
2 x 64 x 64 = 8192, keys and values 2 x 64 x 32 = 4096, norms of the heads 2 x 32 = 64,
MLP 3 x 64 x 192 = 36864, norms 2 x 64 = 128. Last norm 64."""


@pytest.fixture(autouse=True)
def machine(monkeypatch):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(psutil, "cpu_count", lambda: 2)
    monkeypatch.setattr(layout_checks, "count_gpus", lambda: 1)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=16 * 2**30))


def tiny(*overrides):
    """As the driver has it: with every dtype resolved, here to float32 where the test sets no other."""
    dtypes = ("learners.dtype=float32", "ppo.dtype=float32")
    return resolve(load_config("configs/tiny.yaml", [*dtypes, *overrides]))[0]


def ppo_memory(*overrides):
    """Of a learner rank in the ppo stage."""
    config = tiny(*overrides)
    return learner_memory(config, training_task(config, "ppo"))


@pytest.mark.parametrize("tied", ["true", "false"])
def test_parameter_count_is_that_of_the_built_model(tied):
    config = tiny("model.vocab_size=320", "model.layers=3", f"model.tie_embeddings={tied}")
    tokenizer = train_tokenizer(["abc abd" * 50], 320)
    model = build_policy(config.model, tokenizer, seed=0)
    missing = config.model.vocab_size - len(tokenizer)  # a short text has fewer merges than requested
    embeddings = 1 if tied == "true" else 2
    assert (
        new_model_shape(config.model).parameters
        == model.num_parameters() + missing * config.model.width * embeddings
    )


def test_parameter_count_by_hand():
    assert policy_shape(tiny()).parameters == PARAMETERS


def test_batch_arithmetic_by_hand():
    values = dict(batch_arithmetic(tiny("ppo.minibatches=2", "ppo.epochs=3")))
    assert values["PPO batch"] == "8 prompts x 2 responses = 16 sequences"
    assert values["  minibatch"] == "16 / 2 = 8 sequences, 4 a rank"
    assert values["PPO optimizer steps"] == "4 x 3 epochs x 2 = 24"


CRITIC = PARAMETERS + 64
"""The embedding is the head as well, so that the critic keeps it and has a head of one output beside."""
TRAINED = 0.02
"""Share of the weights that adapters are about."""


@pytest.mark.parametrize(
    ("overrides", "weights", "optimizer", "gradients"),
    [
        # Bytes for each parameter; the two models have all but one number. DeepSpeed keeps 12 for the
        # optimizer (two moments and a copy of the weight in float32), divided over two ranks from stage
        # 1 on. Gradients: those of one model after the other, in a buffer before they are reduced, then
        # as this rank reduced them (whole in stage 1, its shard from stage 2 on), and flat for the step.
        # Without ZeRO a float32 weight needs no copy, and both models keep their gradients.
        (["learners.zero_stage=0"], 4 + 4, 8 + 8, 4 + 4 + 4),
        (["learners.zero_stage=0", "ppo.dtype=bfloat16"], 2 + 2, 12 + 12, 6 + 6 + 2),
        (["learners.zero_stage=1"], 4 + 4, 6 + 6, 4 + 4 + 2),
        (["learners.zero_stage=2"], 4 + 4, 6 + 6, 4 + 2 + 2),
        (["learners.zero_stage=2", "ppo.dtype=bfloat16"], 2 + 2, 6 + 6, 2 + 2 + 2),
        (["learners.zero_stage=3"], 6 + 6, 6 + 6, 4 + 2 + 2),
        (["learners.zero_stage=2", "ppo.advantage=grpo"], 4, 6, 4 + 2 + 2),
        (["learners.zero_stage=2", "learners.ranks=1"], 4 + 4, 12 + 12, 4 + 4 + 4),
        (["learners.zero_stage=2", "model.lora={rank: 4}"], 4 + 4, TRAINED * 12, TRAINED * 8),
    ],
)
def test_learner_memory_by_hand(overrides, weights, optimizer, gradients):
    memory = ppo_memory(*overrides)
    assert memory.weights == pytest.approx(weights * PARAMETERS, rel=1e-3)
    assert memory.optimizer == pytest.approx(optimizer * PARAMETERS, rel=1e-3)
    assert memory.gradients == pytest.approx(gradients * PARAMETERS, rel=1e-3)


def test_the_critic_is_as_large_as_a_scalar_model_of_the_policy():
    assert policy_shape(tiny()).scalar_parameters == CRITIC
    untied = policy_shape(tiny("model.tie_embeddings=false"))
    assert untied.scalar_parameters == CRITIC


def test_learner_activations_by_hand():
    # 1000 tokens x (12 x 64 units + 3 x 192 units of the MLP) x 1 layer x 4 bytes; 14 bytes for 600 logits
    by_layer, logits = 1000 * (12 * 64 + 3 * 192) * 4, 1000 * 600 * 14
    assert ppo_memory("learners.micro_batch_tokens=1000").activations == by_layer + logits
    assert ppo_memory("learners.micro_batch_tokens=1000", "model.layers=3").activations == (
        3 * by_layer + logits
    )
    in_bfloat16 = ppo_memory("learners.micro_batch_tokens=1000", "ppo.dtype=bfloat16")
    assert in_bfloat16.activations == by_layer / 2 + logits
    # Only the inputs of the three layers, and one layer at a time.
    checkpointed = ppo_memory(
        "learners.micro_batch_tokens=1000", "model.layers=3", "model.gradient_checkpointing=true"
    )
    assert checkpointed.activations == by_layer + 3 * 1000 * 64 * 4 + logits


def test_ranks_that_share_rows_have_slices_of_the_activations():
    # 500 of 1000 tokens in each rank, and the 64 outputs of the last layer for all of them.
    by_layer, logits = 500 * (12 * 64 + 3 * 192) * 4, 500 * 600 * 14
    overrides = ["learners.micro_batch_tokens=1000", "learners.sequence_parallel=2"]
    assert ppo_memory(*overrides).activations == by_layer + logits + 1000 * 64 * 4
    figures = dict(batch_arithmetic(tiny(*overrides)))
    assert figures["ranks that share rows"] == "2 ranks = 1 groups x 2"
    assert figures["  tokens of a micro-batch, a rank"] == "1000 / 2 = 500"
    assert figures["  attention heads, a rank"] == "2 / 2 = 1"


def test_logits_are_bounded_by_a_chunk():
    assert memory_estimate.CHUNK_ENTRIES == CHUNK_ENTRIES
    overrides = ["learners.micro_batch_tokens=1000", "model.vocab_size=150000"]
    by_layer = 1000 * (12 * 64 + 3 * 192) * 4
    assert ppo_memory(*overrides).activations == by_layer + CHUNK_ENTRIES * 14
    # A reward model has no logits.
    config = tiny(*overrides)
    assert learner_memory(config, training_task(config, "reward")).activations == by_layer


def test_rollout_and_scoring_memory_by_hand():
    # The embedding is the head as well, and vLLM keeps a packed copy of the head on CPU.
    weights = PARAMETERS + 600 * 64
    assert rollout_memory(tiny()).weights == 4 * weights
    assert rollout_memory(tiny("model.tie_embeddings=false")).weights == 4 * weights
    assert rollout_memory(tiny("rollout.dtype=bfloat16")).weights == 2 * weights
    assert rollout_memory(tiny()).kv_cache == 0.1 * GIB
    # A token of 16 sequences at a time: 8 prompts x 2 responses.
    assert rollout_memory(tiny()).activations == 16 * 600 * 12
    assert rollout_memory(tiny("rollout.max_sequences=5")).activations == 5 * 600 * 12
    # Reward model and reference policy, and one layer of them at a time.
    assert scoring_memory(tiny()).weights == 4 * (PARAMETERS + CRITIC)
    assert scoring_memory(tiny("scoring.batch_tokens=1000")).activations == (
        1000 * (12 * 64 + 3 * 192) * 4 + 1000 * 600 * 12
    )
    function = "rewards.sources=[{kind: function, path: 'cluster.quickstart.oracle:judge'}]"
    assert scoring_memory(tiny(function)).weights == 4 * PARAMETERS


def test_memory_is_the_sum_of_its_uses():
    uses = Memory(process=1, weights=2, gradients=4, optimizer=8, activations=16, kv_cache=32)
    assert uses.gib == 63 / GIB
    assert uses.held_gib == 47 / GIB


def test_total_memory_counts_every_process_and_one_computing_fleet():
    config = tiny("rollout.actors=3")
    learner, rollout, scoring = placement(config)
    assert (learner.actors, rollout.actors, scoring.actors) == (2, 3, 1)
    held = 2 * learner.memory.held_gib + 3 * rollout.memory.held_gib + scoring.memory.held_gib
    fixed = 0.5 + 0.4 + 0.4  # driver, Ray, libraries
    files = 2 * 4 * PARAMETERS / GIB  # the weights of two versions
    # Learning needs most activations, and the phases take turns.
    learning = 2 * learner.memory.activations / GIB
    assert total_memory_gib(config) == pytest.approx(held + learning + fixed + 0.1 + files)
    # With staleness engines sample while the learners learn.
    overlapping = total_memory_gib(tiny("rollout.actors=3", "ppo.staleness=1"))
    others = (3 * rollout.memory.activations + scoring.memory.activations) / GIB
    assert overlapping == pytest.approx(total_memory_gib(config) + others)


def test_learners_are_planned_for_the_stage_that_needs_most():
    assert largest_task(tiny()).models == "policy and critic"
    assert largest_task(tiny("stages=[sft]")).models == "policy"
    assert largest_task(tiny("stages=[reward]")).models == "reward model"
    assert largest_task(tiny("stages=[evaluate]")) is None
    # The same model in both stages, in PPO with weights and activations of half the size.
    mixed = ["stages=[sft,ppo]", "ppo.dtype=bfloat16", "ppo.advantage=grpo"]
    assert largest_task(tiny(*mixed)).dtype == "float32"


def test_best_of_n_and_dpo_are_planned():
    config = tiny("stages=[best_of_n,dpo]", "best_of_n.prompts=100", "best_of_n.responses=4")
    values = dict(batch_arithmetic(config))
    assert values["best of n: responses"] == "100 prompts x 4 = 400"
    assert values["DPO batch"] == "16 prompts, each with all its pairs"
    # The reference's log-probabilities are computed before, so there is one model.
    assert largest_task(tiny("stages=[dpo]")).models == "policy"
    assert [fleet.fleet for fleet in placement(tiny("stages=[dpo]"))] == ["learner"]
    assert [fleet.fleet for fleet in placement(config)] == ["learner", "rollout", "scoring"]


def test_only_fleets_that_the_stages_start_are_planned():
    assert [fleet.fleet for fleet in placement(tiny("stages=[pretrain,sft]"))] == ["learner"]
    assert [fleet.fleet for fleet in placement(tiny("stages=[evaluate]"))] == ["rollout", "scoring"]
    assert "weight files" not in memory_by_process(tiny("stages=[sft]"))


SCORE = "{kind: function, path: 'tests.cluster.test_reward_aggregator:quality'}"


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["learners.ranks=3"], "learners.ranks=3 x learners.threads=1 = 3 cores, but this run has 2"),
        (["cluster.cpus=1"], "but this run has 1"),
        (["model.width=96", "model.heads=2"], "needs a multiple of 32"),
        (["rollout.gpus=1"], "rollout.gpus=1, but cluster.device is cpu"),
        (["learners.sequence_parallel=2", "model.attention=eager"], "with model.attention=eager: ranks that"),
        (
            ["learners.ranks=3", "learners.sequence_parallel=3"],
            "learners.sequence_parallel=3: the policy has 2 attention heads and 1 of keys and values",
        ),
        (["cluster.device=cuda"], r"learners needs 2 x {GPU: 1, CPU: 1}; the hosts have: this host"),
        (["data.demonstrations=/nowhere/d.jsonl"], "^data.demonstrations=/nowhere/d.jsonl: no such file"),
        (["model.layers=60", "model.width=4096"], "GiB are free"),
        (["stages=[reward]", "run_dir=/nowhere/at/all"], "there is nothing to learn from"),
        (["stages=[dpo]", "run_dir=/nowhere/at/all"], "stages has dpo but not collect"),
        (["stages=[ppo]", "run_dir=/nowhere/at/all"], "no such model; run the reward stage first"),
        (["stages=[best_of_n]", "run_dir=/nowhere/at/all"], "no such model; run the reward stage first"),
        (["rewards.sources=[{kind: function, path: 'nowhere:f'}]"], "nowhere:f"),
        (
            ["rewards.sources=[{kind: judge, base_url: 'http://h/v1', model: m, api_key_env: NO_SUCH_KEY}]"],
            "rewards.sources.api_key_env=NO_SUCH_KEY: no such environment variable is set",
        ),
        (["evaluate.judge=nowhere:f"], "evaluate.judge=nowhere:f"),
        (
            ["stages=[sft,ppo]", "ppo.ptx_coef=0.5", "run_dir=/nowhere", f"rewards.sources=[{SCORE}]"],
            "ppo.ptx_coef=0.5 needs text: give data.c",
        ),
        (
            ["evaluate.judge=reward/b"],
            "no source of rewards beside the reward itself; there is none",
        ),
        # The stages of rounds are not among `stages`, and `hero submit --rounds` carries their modules.
        (["stages=[pretrain]", "rounds.count=1", "evaluate.judge=nowhere:f"], "evaluate.judge=nowhere:f"),
        (
            ["stages=[pretrain]", "rounds.count=1", "rewards.sources=[{kind: function, path: 'nowhere:f'}]"],
            "nowhere:f",
        ),
        (["model.chat_template=/nowhere.jinja"], "model.chat_template=/nowhere.jinja: no such file"),
        (["data.prompts=configs/p.jsonl", "stages=[ppo]"], "data.heldout is not"),
        (["data.heldout=configs/p.jsonl", "stages=[ppo]"], "data.prompts is not"),
        (["data.prompts=configs/p.jsonl", "stages=[collect]"], "labelers of stage collect know"),
        (["stages=[collect]", "data.corpus={path: configs/tiny.yaml}"], "unknown kind of file"),
        (["data.corpus=[{path: configs, convert: 'cluster.recipes.gsm8k:f'}]"], "has no attribute 'f'"),
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


HEAVY = ("ray", "torch", "transformers", "tokenizers", "vllm", "deepspeed", "wandb", "datasets")
IMPORT_PLAN = "import cluster.plan"
PRINT_PLAN = """
from rich.console import Console
from cluster.config_loader import load_config
from cluster.plan import print_plan
# With the precisions set, since auto multiplies a few matrices to choose one.
dtypes = [f"{section}.dtype=float32" for section in ("learners", "ppo", "serve")]
print_plan(load_config("configs/tiny.yaml", ["learners.ranks=1", *dtypes]), Console(stderr=True))
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


def test_stages_that_are_not_run_refuse_nothing():
    """Neither engines nor learners are asked about where no stage uses them."""
    check_feasible(
        tiny("stages=[pretrain]", "model.heads=4", "rewards.sources=[{kind: function, path: 'no:no'}]")
    )
    check_feasible(tiny("stages=[collect]", "learners.ranks=512"))
