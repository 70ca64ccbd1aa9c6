"""What learner tasks do beyond being the same on any number of ranks: learn, resume, PTX, EMA,
metrics of an update."""

import numpy as np
import pytest
import torch
import torch.distributed as dist

from actors.learner import LearnerActor
from common.errors import DiskFullError
from learners.config import LearnerConfig
from learners.data.datasets import TokenData
from learners.deepspeed_engine import scheduled_lr
from learners.models import load_scalar
from learners.rl.config import PPOConfig
from learners.rl.experience import Experience
from tests.learners import fixtures

ONE = LearnerConfig(ranks=1, zero_stage=0, micro_batch_tokens=512, dtype="float32")
TWO = LearnerConfig(ranks=2, zero_stage=2, micro_batch_tokens=512, dtype="float32")


def whole_and_resumed(actor, folder):
    """Weights after four iterations in one go, and after two, a save, a fresh task, a load and
    two more."""
    scratch = folder / "resume"
    _, whole = fixtures.ppo(actor, folder, iterations=4, ema=0.9)
    fixtures.ppo(actor, folder, iterations=2, ema=0.9)
    actor.save(scratch, "state")
    fixtures.ppo(actor, folder, iterations=0, ema=0.9)
    steps = actor.load(scratch, "state")
    for iteration in (2, 3):
        fixtures.ppo_update(actor, iteration, fixtures.make_batch(seed=iteration))
    return whole, fixtures.weights(actor), steps


def test_a_restored_learner_goes_on_as_if_it_had_not_stopped(folder):
    whole, resumed, steps = fixtures.run_ranks(whole_and_resumed, folder, TWO)
    assert steps == 2 * 2 * 3
    for name, value in whole.items():
        assert np.abs(value - resumed[name]).max() < 1e-6, name


def ptx_and_average(actor, folder):
    plain = fixtures.ppo(actor, folder, iterations=1)[1]
    metrics, mixed = fixtures.ppo(actor, folder, iterations=1, ptx_coef=5.0, ptx_tokens=64, ema=0.5)
    actor.export(folder / "last")
    actor.export(folder / "averaged", use_ema=True)
    corpus = TokenData.load(folder / "tokens.npz")
    validation = [corpus.sequence(s) for s in np.flatnonzero(corpus.is_validation_S)]
    validation_loss = -np.concatenate(actor.probe_logprobs(validation)).mean()
    return plain, mixed, metrics, (actor.pretrain_loss(), validation_loss)


def test_ptx_and_ema_change_the_policy_alone(folder):
    plain, mixed, metrics, losses = fixtures.run_ranks(ptx_and_average, folder, ONE)
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)  # on validation sequences alone
    assert 0 < metrics[0]["loss/ptx"] < 10
    policy = [n for n in plain if n.startswith("policy.")]
    critic = [n for n in plain if n.startswith("critic.")]
    assert any(np.abs(plain[n] - mixed[n]).max() > 1e-4 for n in policy)
    assert all(np.array_equal(plain[n], mixed[n]) for n in critic)
    last, averaged = (fixtures.load(folder / name) for name in ("last", "averaged"))
    moved = [n for n in last if not torch.equal(last[n], averaged[n])]
    assert len(moved) == len(last)


def proximal(actor, folder):
    """Weights and metrics of one iteration for each proximal policy, over tokens of the present
    version and older ones."""
    results = {}
    for name, version in (("behaviour", 0), ("log_linear", 0), ("log_linear", 3)):
        fixtures.ppo(actor, folder, iterations=0, proximal=name)
        metrics = fixtures.ppo_update(actor, version, fixtures.make_batch(), kl_coef=0.0)
        results[name, version] = metrics, fixtures.weights(actor)
    return results, bootstrap_values(actor, folder)


def bootstrap_values(actor, folder):
    """(value after each response by the task, the critic's last scalar of each sequence run
    alone)."""
    fixtures.ppo(actor, folder, iterations=0, bootstrap_truncated=True)
    part = fixtures.make_batch()
    experience = Experience.from_parts([part], actor.task.config)
    actor.task.compute_token_stats(experience)
    alone = []
    with torch.no_grad():
        for b in range(part.samples.size):
            tokens = torch.tensor(part.samples.sequence(b)[None]).long()
            alone.append(actor.task.models.critic(tokens)[0, -1])
    return experience.bootstrap_values_B.numpy(), torch.stack(alone).numpy()


def test_log_linear_proximal_of_fresh_tokens_is_the_engines(folder):
    results, (bootstrap_B, alone_B) = fixtures.run_ranks(proximal, folder, TWO)
    assert np.abs(bootstrap_B - alone_B).max() < 1e-5
    assert np.abs(bootstrap_B).min() > 0
    (behaviour, first), (linear, second), (_, older) = results.values()
    assert all(np.array_equal(first[name], second[name]) for name in first if name.startswith("policy."))
    assert any(np.abs(first[name] - older[name]).max() > 1e-6 for name in first)
    assert abs(behaviour["objective/entropy"] - linear["objective/entropy"]) < 0.01  # seen in the first epoch
    assert 0 < linear["mismatch/mean"] < 100


def metrics_of_one_step(actor, folder):
    """Metrics of updates of one step, and what they are made of: by token, before the step."""
    results = []
    part = fixtures.make_batch()
    one_step = {"epochs": 1, "minibatches": 1, "temperature": 0.7, "missing_eos_penalty": 0.0}
    for changes in (
        {"proximal": "behaviour", "gamma": 1.0, "lam": 1.0},
        {"advantage": "grpo", "responses": 2, "prompts": 6, "kl_in": "loss", "kl_estimator": "k3"},
    ):
        fixtures.ppo(actor, folder, iterations=0, **one_step, **changes)
        experience = Experience.from_parts([part], actor.task.config)
        with pytest.MonkeyPatch.context() as patch:
            # Log-probabilities before the step, which GRPO's single step here does without.
            patch.setattr(PPOConfig, "learns_in_one_step", False)
            actor.task.compute_token_stats(experience)
        mask_BT = experience.response_mask_BT
        tensors = {
            "old": experience.old_logprobs_BT[mask_BT],
            "behaviour": experience.behaviour_logprobs_BT[mask_BT],
            "reference": experience.ref_logprobs_BT[mask_BT],
            "values": experience.values_BT[mask_BT],
            "scores": experience.scores_B[:, None].expand(mask_BT.shape)[mask_BT],
        }
        by_token = {name: tensor.double().numpy() for name, tensor in tensors.items()}
        results.append((fixtures.ppo_update(actor, 0, part, kl_coef=0.25), by_token))
    return results


def test_metrics_of_an_update_equal_a_computation_by_token(folder):
    (ppo, tokens), (grpo, grpo_tokens) = fixtures.run_ranks(metrics_of_one_step, folder, TWO)
    # Ratios to the engine's policy, before the only step.
    ratio = np.exp(tokens["old"] - tokens["behaviour"])
    assert ppo["val/ratio"] == pytest.approx(ratio.mean(), rel=1e-4)
    assert ppo["val/ratio_var"] == pytest.approx(ratio.var(), rel=1e-3)
    assert ppo["val/ratio_var"] > 0.1
    # With gamma and lambda of 1 the return of a token is the sum of the rewards from it on.
    penalty = 0.25 * (tokens["old"] - tokens["reference"])
    lengths = fixtures.make_batch().samples.response_lengths_B
    returns = []
    for rewards in np.split(penalty, np.cumsum(lengths)[:-1]):
        returns.append(-np.cumsum(rewards[::-1])[::-1])
    expected = np.concatenate(returns) + tokens["scores"]
    error = ((tokens["values"] - expected) ** 2).mean() ** 0.5
    assert ppo["val/error"] == pytest.approx(error, rel=1e-4)
    assert "loss/kl" not in ppo
    # k3 of the KL to the reference (Schulman): exp(-d) - 1 + d
    distance = grpo_tokens["old"] - grpo_tokens["reference"]
    k3 = np.exp(-distance) - 1 + distance
    assert grpo["loss/kl"] == pytest.approx(0.25 * k3.mean(), rel=1e-4)
    assert "val/error" not in grpo


def short_batches(actor, folder):
    """Metrics of iterations over 11, 2 and 1 responses where the config speaks of 12 in 3
    minibatches."""
    results = []
    for advantage in ("gae", "grpo"):
        fixtures.ppo(actor, folder, iterations=0, advantage=advantage, responses=2, prompts=6)
        for size in (11, 2, 1):
            results.append(fixtures.ppo_update(actor, 0, fixtures.make_batch(size, responses=2)))
        assert (actor.task.models.critic is None) == (advantage == "grpo")
    return results


def test_minibatches_are_cut_from_any_number_of_responses(folder):
    for metrics in fixtures.run_ranks(short_batches, folder, TWO):
        assert all(np.isfinite(value) for value in metrics.values()), metrics


def ranking(actor, folder):
    data = fixtures.counting_rankings([0, 1, 3, 3])  # two of the responses are equally good
    tokens, offsets = data.tokens_N, data.offsets
    demos = TokenData(tokens, offsets, np.ones(len(tokens), bool), np.arange(240) < 24)
    if actor.rank == 0:
        data.save(folder / "rankings.npz")
        demos.save(folder / "demos.npz")
    dist.barrier()
    config = fixtures.reward_config().model_copy(update={"epochs": 6})
    steps = actor.start_reward_model(folder / "policy", config, folder, 0)
    losses = [m["loss/train"] for m in actor.train(steps)]
    after = actor.validate()
    actor.center_rewards(folder / "demos.npz")
    actor.export(folder / "trained")
    return after, losses, actor.center_rewards(folder / "demos.npz")


def test_the_reward_model_learns_an_order_and_is_centered(folder):
    after, losses, centered = fixtures.run_ranks(ranking, folder, TWO)
    assert after["accuracy/truth"] > 0.95
    assert after["pairs"] == 12 * 5  # four responses, one tie
    assert losses[-1] < losses[0] / 2
    assert abs(centered) < 1e-5
    assert load_scalar(folder / "trained").config.reward_bias != 0


def test_the_schedule_warms_up_and_falls():
    config = fixtures.optimizer().model_copy(
        update={"lr": 1.0, "warmup_steps": 4, "schedule": "linear", "final_ratio": 0.2}
    )
    rates = [scheduled_lr(config, step, 24) for step in range(25)]
    assert rates[:4] == [0.25, 0.5, 0.75, 1.0]
    assert rates[14] == pytest.approx(0.6)
    assert rates[24] == pytest.approx(0.2)


def onto_a_full_disk(actor, folder):
    fixtures.ppo(actor, folder, iterations=1)
    actor.save(folder / "empty", "state")
    names = [p.relative_to(folder / "empty") for p in (folder / "empty").rglob("*") if p.is_file()]
    messages = []
    for name in names:
        full = folder / f"full-{len(messages)}"
        (full / name).parent.mkdir(parents=True)
        (full / name).symlink_to("/dev/full")
        try:
            actor.save(full, "state")
        except DiskFullError as error:
            messages.append(str(error))
    return names, messages


def test_a_checkpoint_on_a_full_disk_is_a_disk_full_error(folder):
    names, messages = fixtures.run_ranks(onto_a_full_disk, folder, ONE)
    assert len(messages) == len(names) >= 2
    for message in messages:
        assert "could not be written" in message
        assert "MiB left" in message


def test_a_call_for_another_task_is_an_error():
    with pytest.raises(RuntimeError, match="this call needs a PPOTask"):
        LearnerActor(0, ONE, fixtures.MODEL).pretrain_loss()
