"""The scoring actor against a plain forward pass of the same models."""

import numpy as np
import pytest
import torch

from actors.config import ScoringConfig
from actors.scoring import ScoringActor
from learners.errors import UserError
from learners.models import build_policy, load_policy, load_scalar, scalar_from_policy
from learners.tokenizer import train_tokenizer
from tests.learners import worlds


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("scoring")
    worlds.make_files(path)
    return path


def actor(folder, reward="reward", tokens=128):
    return ScoringActor(
        str(folder / "policy"), str(folder / reward) if reward else None, ScoringConfig(batch_tokens=tokens)
    )


def test_scores_are_the_scalar_at_the_last_token_and_logprobs_those_of_the_reference(folder):
    samples, _ = worlds.make_batch(size=9)
    scores_B, ref_N = actor(folder).score(samples, temperature=0.7)
    policy, reward = load_policy(folder / "policy"), load_scalar(folder / "reward")
    for b in range(samples.size):
        tokens = torch.tensor(samples.sequence(b).astype(np.int64))[None]
        start = int(samples.prompt_lengths_B[b])
        with torch.no_grad():
            logprobs = (policy(tokens).logits[0, start - 1 : -1] / 0.7).log_softmax(-1)
            hidden = reward.base_model(tokens).last_hidden_state[0, -1]
            expected_score = float(reward.score(hidden))
        expected = logprobs.gather(1, tokens[0, start:, None]).squeeze(1).numpy()
        span = slice(samples.offsets[b] + start, samples.offsets[b + 1])
        assert np.abs(ref_N[span] - expected).max() < 1e-5
        assert not ref_N[samples.offsets[b] : samples.offsets[b] + start].any()
        assert abs(scores_B[b] - expected_score) < 1e-5


def test_results_do_not_depend_on_micro_batches_and_the_bias_is_taken_off(folder):
    samples, _ = worlds.make_batch(size=9)
    many, one = actor(folder, tokens=64), actor(folder, tokens=4096)
    for a, b in zip(many.score(samples, 1.0), one.score(samples, 1.0), strict=True):
        assert np.abs(a - b).max() < 1e-5
    plain = one.score(samples, 1.0)[0]
    one.reward.model.config.reward_bias = 2.5
    assert np.allclose(one.score(samples, 1.0)[0], plain - 2.5, atol=1e-5)


def test_without_a_reward_model_scores_are_zero(folder):
    samples, _ = worlds.make_batch()
    assert not actor(folder, reward=None).score(samples, 1.0)[0].any()


def test_another_vocabulary_is_refused(folder):
    other = build_policy(worlds.MODEL, train_tokenizer(worlds.TEXTS, 300), seed=1)
    other.save_pretrained(folder / "other")
    scalar_from_policy(folder / "other", seed=0).save_pretrained(folder / "other-reward")
    with pytest.raises(UserError, match="both must come from one tokenizer"):
        actor(folder, reward="other-reward")
