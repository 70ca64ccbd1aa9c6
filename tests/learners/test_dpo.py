"""Direct preference optimization: the loss against TRL's, the task against separate sequences, and what it
learns."""

import numpy as np
import pytest
import torch

from learners import objectives
from learners.config import LearnerConfig
from learners.data.datasets import RankingData
from learners.supervised.config import DPOConfig
from tests.learners import fixtures

ONE = LearnerConfig(ranks=1, zero_stage=0, micro_batch_tokens=512, dtype="float32")
TWO = LearnerConfig(ranks=2, zero_stage=2, micro_batch_tokens=512, dtype="float32")

# Two pairs of responses: rows 0 and 1 are chosen, 2 and 3 rejected, in this order.
TOKENS = torch.arange(24).reshape(4, 6) * 5 % 7
RESPONSES = torch.tensor(
    [[0, 0, 1, 1, 1, 0], [0, 0, 1, 1, 0, 0], [0, 0, 1, 1, 1, 1], [0, 0, 1, 0, 0, 0]]
).bool()

# What DPOTrainer._compute_loss of TRL 1.16.0 gives for these logits, with loss_type "sigmoid": the loss, the
# norm of its gradient by the policy's logits, and four entries of that gradient.
TRL = {
    0.1: (0.652886748, 0.077515972, (0.000643187, -0.018638991, -0.000558517, -0.001270765)),
    0.5: (0.522228003, 0.309008832, (0.002179018, -0.091472030, -0.001892169, -0.006236358)),
}
ENTRIES = ((0, 1, 0), (1, 2, 3), (2, 4, 5), (3, 1, 6))


def logits(phase):
    """(4, 5, 7): before each token but the first of four sequences."""
    steps = torch.arange(4 * 5 * 7, dtype=torch.float64).reshape(4, 5, 7)
    return (2 * torch.sin(1.7 * steps + phase)).float()


def response_logprobs(logits_BTV):
    targets = RESPONSES[:, 1:]
    logprobs_N, _ = objectives.token_logprobs(logits_BTV[targets], TOKENS[:, 1:][targets])
    return torch.stack([part.sum() for part in logprobs_N.split(targets.sum(1).tolist())])


def loss_of_pairs(policy, reference, beta, label_smoothing=0.0):
    """Mean over the pairs, as the task computes it from prompts with two responses each."""
    rewards = objectives.implicit_rewards(response_logprobs(policy), response_logprobs(reference), beta)
    pairs = [
        objectives.ranking_loss(rewards[[i, i + 2]], [1, 2], label_smoothing=label_smoothing) for i in (0, 1)
    ]
    return torch.stack(pairs).mean()


@pytest.mark.parametrize("beta", TRL)
def test_loss_and_gradient_are_those_of_trl(beta):
    policy = logits(0.3).requires_grad_()
    loss = loss_of_pairs(policy, logits(1.1), beta)
    loss.backward()
    expected, norm, entries = TRL[beta]
    assert loss.item() == pytest.approx(expected, abs=1e-6)
    assert policy.grad.double().norm().item() == pytest.approx(norm, abs=1e-6)
    assert [policy.grad[entry].item() for entry in ENTRIES] == pytest.approx(entries, abs=1e-6)


def test_label_smoothing_weighs_both_orders_of_a_pair():
    """Conservative DPO, computed by tokens in float64."""
    smoothed = loss_of_pairs(logits(0.3), logits(1.1), 0.5, label_smoothing=0.2)
    ratio_B = np.zeros(4)
    for sign, phase in ((1, 0.3), (-1, 1.1)):
        scores = logits(phase).double().numpy()
        logprobs = scores - np.log(np.exp(scores).sum(-1, keepdims=True))
        for b, t in zip(*np.nonzero(RESPONSES[:, 1:].numpy()), strict=True):
            ratio_B[b] += sign * logprobs[b, t, TOKENS[b, t + 1]]
    gap_P = 0.5 * (ratio_B[:2] - ratio_B[2:])
    expected = np.mean(0.8 * np.log1p(np.exp(-gap_P)) + 0.2 * np.log1p(np.exp(gap_P)))
    assert smoothed.item() == pytest.approx(expected, abs=1e-6)


def config(**changes):
    return DPOConfig(batch_size=4, optimizer=fixtures.optimizer(), **changes)


def trained(actor, folder, steps=2):
    """Weights after some steps, the stored reference, and the metrics of the steps."""
    actor.start_dpo(folder / "policy", config(), folder, 0)
    actor.measure_reference(folder / "reference.npy")
    metrics = actor.train(steps)
    return fixtures.weights(actor), np.load(folder / "reference.npy"), metrics


def resumed(actor, folder):
    """Weights after two steps, of which the second follows a save, a new task and a load."""
    trained(actor, folder, steps=1)
    actor.save(folder / "resume", "state")
    actor.start_dpo(folder / "policy", config(), folder, 0)
    actor.load_reference(folder / "reference.npy")
    actor.load(folder / "resume", "state")
    actor.train(1)
    return fixtures.weights(actor)


def on_one(actor, folder):
    """What one rank does: in one go, resumed, and with rows of one sequence each."""
    whole, again = trained(actor, folder), resumed(actor, folder)
    actor.config = ONE.model_copy(update={"packing": False})
    padded = trained(actor, folder)
    actor.config = ONE
    return whole, again, padded, learning(actor, folder)


@pytest.fixture(scope="module")
def on_one_rank(folder):
    return fixtures.run_ranks(on_one, folder, ONE)


def assert_same_update(one, other):
    assert np.abs(one[1] - other[1]).max() < 1e-4
    for name, value in one[0].items():
        assert np.abs(value - other[0][name]).max() < 1e-6 * max(1, np.abs(value).max()), name


@pytest.mark.parametrize(
    "changes",
    [{}, pytest.param({"zero_stage": 3, "micro_batch_tokens": 96}, marks=pytest.mark.slow)],
)
def test_update_is_that_of_one_rank(folder, on_one_rank, changes):
    whole = on_one_rank[0]
    # Before the first step the policy is the reference.
    assert whole[2][0]["loss/train"] == pytest.approx(np.log(2), abs=1e-6)
    assert_same_update(whole, fixtures.run_ranks(trained, folder, TWO.model_copy(update=changes)))


def test_update_is_that_of_padded_rows_and_of_a_restored_task(on_one_rank):
    whole, again, padded, _ = on_one_rank
    assert_same_update(whole, padded)
    assert all(np.array_equal(value, again[name]) for name, value in whole[0].items())


def test_reference_is_the_sum_of_the_log_probabilities_of_a_response(folder, on_one_rank):
    from learners.models import PolicyModule, load_policy

    data = RankingData.load(folder / "rankings.npz")
    policy = PolicyModule(load_policy(folder / "policy"))
    for s in (0, 7, 39):
        tokens = torch.from_numpy(data.tokens_N[data.offsets[s] : data.offsets[s + 1]]).long()[None]
        mask = (torch.arange(tokens.shape[1]) >= 2)[None]  # a prompt of two tokens
        with torch.no_grad():
            logprobs_N, _ = policy(tokens, mask)
        assert on_one_rank[0][1][s] == pytest.approx(float(logprobs_N.sum()), abs=1e-4)


def learning(actor, folder):
    data = fixtures.counting_rankings([0, 1, 3, 4])
    scratch = folder / "learning"
    scratch.mkdir()
    data.save(scratch / "rankings.npz")
    steps = actor.start_dpo(folder / "policy", config(epochs=4), scratch, 0)
    actor.measure_reference(scratch / "reference.npy")
    before = actor.validate()
    actor.train(steps)
    return before, actor.validate()


def test_policy_learns_the_order_of_the_responses(on_one_rank):
    before, after = on_one_rank[3]
    assert before["loss/validation"] == pytest.approx(np.log(2), abs=1e-6)
    assert abs(before["rewards/margin"]) < 1e-5
    assert after["accuracy/truth"] > 0.95
    assert after["pairs"] == 12 * 6
    assert after["loss/validation"] < before["loss/validation"] - 0.05
    assert after["rewards/margin"] == pytest.approx(after["rewards/better"] - after["rewards/worse"])
    assert after["rewards/margin"] > 0.1
