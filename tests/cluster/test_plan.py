"""`hero plan`: its arithmetic is that of the run, and what cannot work is refused before anything starts."""

from types import SimpleNamespace

import psutil
import pytest
from rich.console import Console

from cluster.config import load_config
from cluster.plan import batch_arithmetic, check_feasible, parameters, placement, print_plan, total_memory
from common.errors import UserError
from learners.data.tokenizer import train_tokenizer
from learners.models import build_policy


@pytest.fixture(autouse=True)
def machine(monkeypatch):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(psutil, "cpu_count", lambda: 2)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=16 * 2**30))


def tiny(*overrides):
    return load_config("configs/tiny.yaml", list(overrides))


@pytest.mark.parametrize("tied", ["true", "false"])
def test_parameters_are_those_of_the_model(tied):
    config = tiny("model.vocab_size=320", "model.layers=3", f"model.tie_embeddings={tied}")
    tokenizer = train_tokenizer(["abc abd" * 50], 320)
    model = build_policy(config.model, tokenizer, seed=0)
    missing = config.model.vocab_size - len(tokenizer)  # a short text has fewer merges than asked for
    assert parameters(config) == model.num_parameters() + missing * config.model.width * (
        1 if tied == "true" else 2
    )


def test_the_arithmetic_is_right():
    found = dict(batch_arithmetic(tiny("ppo.minibatches=2", "ppo.epochs=3")))
    assert found["PPO batch"] == "8 prompts x 2 responses = 16 sequences"
    assert found["  minibatch"] == "16 / 2 = 8 sequences, 4 a rank"
    assert found["PPO optimizer steps"] == "4 x 3 epochs x 2 = 24"


def test_a_bigger_model_takes_more_memory():
    assert total_memory(tiny("model.layers=40", "model.width=2048")) > total_memory(tiny()) + 5


def test_without_a_critic_a_learner_holds_one_model():
    big = ("model.layers=40", "model.width=2048")
    both, policy = placement(tiny(*big))[0], placement(tiny(*big, "ppo.advantage=grpo"))[0]
    assert (both.holds, policy.holds) == ("policy and critic, ZeRO-2, float32", "policy, ZeRO-2, float32")
    assert policy.memory_gib < both.memory_gib - 5


@pytest.mark.parametrize(
    ("overrides", "told"),
    [
        (["learners.ranks=3"], "learners.ranks=3 x learners.threads=1 = 3 cores, but this run has 2"),
        (["cluster.cpus=1"], "but this run has 1"),
        (["model.width=96", "model.heads=2"], "needs a multiple of 32"),
        (["rollout.gpus=1"], "the rollout fleet|rollout asks for 1 GPUs but cluster.device is cpu"),
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
def test_what_cannot_work_is_refused(overrides, told):
    with pytest.raises(UserError, match=told):
        check_feasible(tiny(*overrides))


def test_the_plan_shows_config_arithmetic_placement_and_memory():
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


def test_another_vocabulary_of_the_reward_model_is_refused(tmp_path):
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
