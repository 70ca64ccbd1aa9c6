"""One optimizer step a batch: the policy of the step is the proximal policy itself."""

from dataclasses import replace

import numpy as np
import pytest

from learners.config import LearnerConfig
from learners.rl.config import PPOConfig
from tests.learners import fixtures

ONE = LearnerConfig(ranks=1, zero_stage=0, micro_batch_tokens=512, dtype="float32")


def one_step_with_and_without_a_pass_before(actor, folder):
    """(metrics, weights, forward passes of the policy) of one GRPO step whose samples are of another
    policy: as configured, and with the log-probabilities computed before."""
    results = []
    options = {"epochs": 1, "minibatches": 1, "kl_coef": 0.0, "responses": 2, "prompts": 6}
    options |= {"advantage": "grpo", "correction": "tis", "missing_eos_penalty": 0.0}
    for passes in (False, True):
        fixtures.ppo(actor, folder, iterations=0, **options)
        assert actor.task.config.learns_in_one_step
        part, counted = fixtures.make_batch(responses=2), []
        part.samples.logprobs_N[:] = actor_logprobs(actor, part) - 0.1 * part.samples.response_mask_N
        part = replace(part, ref_logprobs_N=None)
        actor.task.models.policy.module.register_forward_hook(lambda *_, counted=counted: counted.append(1))
        with pytest.MonkeyPatch.context() as patch:
            if passes:
                patch.setattr(PPOConfig, "learns_in_one_step", False)
            metrics = fixtures.ppo_update(actor, 0, part, kl_coef=0.0)
        results.append((metrics, fixtures.weights(actor), len(counted)))
    return results


def actor_logprobs(actor, part):
    """The policy's log-probabilities of the response tokens, 0 on prompts."""
    logprobs_N = np.zeros(part.samples.offsets[-1], dtype=np.float32)
    sequences = [part.samples.sequence(b) for b in range(part.samples.size)]
    for start, of_sequence in zip(part.samples.offsets, actor.probe_logprobs(sequences), strict=False):
        logprobs_N[start + 1 : start + 1 + len(of_sequence)] = of_sequence
    return logprobs_N * part.samples.response_mask_N


def test_a_single_step_needs_no_forward_pass_before_it(folder):
    once, twice = fixtures.run_ranks(one_step_with_and_without_a_pass_before, folder, ONE)
    assert (once[2], twice[2]) == (1, 2)
    for name, expected in twice[1].items():
        assert np.abs(once[1][name] - expected).max() < 1e-6
    for name in ("loss/policy_avg", "val/ratio", "policy/clipfrac_avg", "objective/entropy", "mismatch/mean"):
        assert once[0][name] == pytest.approx(twice[0][name], rel=1e-4, abs=1e-6)
    assert once[0]["mismatch/mean"] == pytest.approx(0.1, rel=1e-3)
