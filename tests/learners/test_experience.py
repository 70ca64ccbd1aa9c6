"""What an iteration computes from a scored batch before any update."""

import numpy as np
import pytest
import torch

from common.errors import RunStoppedError
from learners.data.samples import Samples, offsets_of
from learners.rl.config import PPOConfig
from learners.rl.experience import Experience
from learners.rl.scored_parts import ScoredPart


def batch(responses, scores, prompts, ended=None):
    """One prompt token each, the given numbers of response tokens; engine and reference logprobs
    -1 and -2."""
    lengths = np.array(responses) + 1
    total = int(lengths.sum())
    samples = Samples(
        np.arange(total, dtype=np.int32),
        offsets_of(lengths),
        np.ones(len(lengths), np.int32),
        np.full(total, -1, np.float32),
        np.zeros(total, np.int32),
        np.array(prompts),
        np.array(ended or [True] * len(lengths)),
    )
    return ScoredPart(samples, np.array(scores, dtype=np.float32), np.full(total, -2, np.float32))


def config(**changes):
    return PPOConfig(
        **{"advantage": "reinforce", "prompts": 2, "minibatches": 1, "missing_eos_penalty": 0.0} | changes
    )


def with_advantages(settings, *args, kl_coef=0.0):
    """Experience and metrics where the learner's log-probabilities are the engine's."""
    experience = Experience.from_parts([batch(*args)], settings)
    experience.old_logprobs_BT = experience.behaviour_logprobs_BT
    experience.compute_advantages(kl_coef)
    return experience, experience.batch_metrics()


def test_dynamic_sampling_keeps_the_first_prompts_with_signal():
    first = batch([1, 2, 3, 1], [1, 1, 0, 1], [5, 5, 8, 8])
    second = batch([2, 2, 4, 1], [0, 1, 3, 4], [1, 1, 2, 2])
    settings = config(dynamic_sampling=1, advantage="rloo")
    experience = Experience.from_parts([first, second], settings)
    assert experience.samples.prompt_ids_B.tolist() == [8, 8, 1, 1]
    assert experience.scores_B.tolist() == [0, 1, 0, 1]
    assert experience.lengths_B.tolist() == [3, 1, 2, 2]
    assert torch.equal(experience.ref_logprobs_BT, -2 * experience.loss_mask_BT)


def test_without_any_signal_no_response_is_dropped():
    part = batch([1, 2], [1, 1], [5, 5])
    assert Experience.from_parts([part], config(dynamic_sampling=3)).samples.size == 2


def test_an_iteration_without_responses_stops_the_run():
    part = batch([1], [1], [0])
    empty = ScoredPart(part.samples.select([]), part.scores_B[:0], part.ref_logprobs_N[:0])
    with pytest.raises(RunStoppedError, match="not a single scored response"):
        Experience.from_parts([empty], config())


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, [[5.0, 0, 0, 0], [1.0, 1, 1, 1]]),
        ({"missing_eos_penalty": 3.0}, [[5.0, 0, 0, 0], [-2.0, -2, -2, -2]]),
        (
            {"overlong_buffer": 2, "max_response_tokens": 5, "overlong_penalty": 4.0},
            [[5.0, 0, 0, 0], [-1.0, -1, -1, -1]],
        ),
    ],
)
def test_scores_are_penalized_before_they_become_advantages(changes, expected):
    experience, _ = with_advantages(config(**changes), [1, 4], [5.0, 1.0], [0, 1], [True, False])
    torch.testing.assert_close(experience.advantages_BT, torch.tensor(expected))


@pytest.mark.parametrize(
    ("bootstrap", "returns"), [(False, [[2.0, 0.0], [1.0, 1.0]]), (True, [[2.0, 0.0], [8.0, 8.0]])]
)
def test_bootstrapping_adds_the_value_after_a_truncated_response(bootstrap, returns):
    settings = config(advantage="gae", lam=1.0, bootstrap_truncated=bootstrap)
    part = batch([1, 2], [2.0, 1.0], [0, 1], [True, False])
    experience = Experience.from_parts([part], settings)
    experience.old_logprobs_BT = experience.behaviour_logprobs_BT
    experience.bootstrap_values_B = torch.tensor([5.0, 7.0])
    experience.compute_advantages(0.0)
    torch.testing.assert_close(experience.returns_BT, torch.tensor(returns))


@pytest.mark.parametrize(("kl_in", "expected"), [("reward", 1 - 0.5 * 3), ("loss", 1.0)])
def test_the_kl_penalty_is_in_the_reward_or_left_to_the_loss(kl_in, expected):
    experience, metrics = with_advantages(config(kl_in=kl_in), [3], [1.0], [0], kl_coef=0.5)
    assert experience.advantages_BT[0, 0] == expected
    assert metrics["objective/kl"] == 3
    assert metrics["objective/non_score_reward"] == -1.5


def test_a_correction_gives_importance_weights():
    plain, metrics = with_advantages(config(), [2], [1.0], [0])
    assert plain.is_weights_BT is None
    assert metrics["mismatch/kl"] == 0  # the mismatch is logged without a correction too
    stale = Experience.from_parts([batch([2], [1.0], [0])], config(correction="tis", correction_high=1.5))
    stale.old_logprobs_BT = torch.tensor([[0.0, -3.0]])
    stale.compute_advantages(0.0)
    metrics = stale.batch_metrics()
    torch.testing.assert_close(stale.is_weights_BT, torch.tensor([[1.5, np.exp(-2.0)]]), check_dtype=False)
    assert metrics["mismatch/max"] == 2
    assert metrics["mismatch/weight"] == pytest.approx((1.5 + np.exp(-2)) / 2)


def test_batch_metrics_equal_a_hand_computation():
    # Old log-probabilities -1, reference -2: a KL of 1 nat a token, so 1 and 3 nats a response.
    settings = config(missing_eos_penalty=2.0)
    _, metrics = with_advantages(settings, [1, 3], [4.0, 1.0], [0, 1], [True, False], kl_coef=0.5)
    assert metrics["objective/scores"] == 2.5
    assert metrics["objective/scores_std"] == 1.5  # of 4 and 1, biased, before the penalty
    assert metrics["objective/kl"] == 2
    assert metrics["objective/kl_max"] == 3
    assert metrics["objective/non_score_reward"] == -1
    # 4 - 0.5 * 1 and 1 - 2 - 0.5 * 3
    assert metrics["objective/rlhf_reward"] == (3.5 - 2.5) / 2
    assert metrics["val/num_eos_tokens"] == 1
    assert metrics["response/ended"] == 0.5
    assert metrics["response/length"] == 2
    assert metrics["tokens"] == 2 + 4


def test_without_the_reference_there_is_no_kl():
    part = batch([1, 3], [4.0, 1.0], [0, 1], [True, False])
    without = ScoredPart(part.samples, part.scores_B, None)
    settings = config(missing_eos_penalty=2.0, kl_coef=0)
    advantages = []
    for parts in ([part], [without]):
        experience = Experience.from_parts(parts, settings)
        experience.old_logprobs_BT = experience.behaviour_logprobs_BT
        experience.compute_advantages(0.0)
        advantages.append(experience.advantages_BT)
    assert torch.equal(*advantages)
    metrics = experience.batch_metrics()
    assert not {name for name in metrics if name.startswith("objective/kl") or "non_score" in name}
    assert metrics["objective/rlhf_reward"] == (4 - 1) / 2
