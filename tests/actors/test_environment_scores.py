"""Episodes in a scoring actor: the environment's rewards as a source, failed episodes, and what functions of
the user get to see."""

import numpy as np
import pytest

from actors.config import ScoringConfig
from actors.environments.messages import StepResult
from actors.environments.record import EpisodeRecord, Turn, samples_of
from actors.reward_config import EnvironmentReward, FunctionReward, RewardsConfig
from actors.scoring import ScoringActor
from learners.config import ModelConfig
from learners.data.environment_turns import EnvironmentTurns
from learners.data.episodes import EpisodeStatus
from learners.data.tokenizer import train_tokenizer
from learners.data.transcripts import answer_texts, transcript
from tests.learners.fixtures import TEXTS

TOKENIZER = train_tokenizer(TEXTS, 320)


def played(*turns, status=EpisodeStatus.DONE, reason=""):
    """An episode of (policy's words, environment's words, reward)."""
    renderer = EnvironmentTurns(TOKENIZER)
    words = renderer.first_prompt([{"role": "user", "content": "Guess."}], [])
    record = EpisodeRecord(prompt_id=0, prompt=words)
    record.episode.add_env_reset("Guess.", {})
    for number, (said, answer, reward) in enumerate(turns, 1):
        tokens = [*TOKENIZER.encode(said, add_special_tokens=False), TOKENIZER.eos_token_id]
        turn = Turn(words, tokens, np.full(len(tokens), -1.0), np.zeros(len(tokens)), ended=True)
        record.add_turn(turn, said, StepResult(answer, reward, number == len(turns)))
        words = renderer.words([{"role": "user", "content": answer}], ended=True)
    record.end(status, reason)
    return record


RIGHT = (("five", "No.", 0.25), ("six", "Yes.", 1.0))


def seen_turns(row, response, ended):
    """A reward that checks what it gets."""
    assert response == row["episode"][-1]["text"]
    return len(row["episode"])


@pytest.fixture
def actor(tmp_path):
    TOKENIZER.save_pretrained(tmp_path)

    def make(*sources):
        rewards = RewardsConfig(sources=list(sources))
        model = ModelConfig()
        return ScoringActor(str(tmp_path), None, ScoringConfig(), rewards, model, uses_reference=False)

    return make


def test_turns_of_both_sides_are_told_apart():
    samples = samples_of([played(*RIGHT)])
    assert transcript(TOKENIZER, samples, 0) == [
        {"by": "prompt", "text": "<|user|>Guess.<|end|><|assistant|>"},
        {"by": "policy", "text": "five", "reward": 0.25},
        {"by": "environment", "text": "<|user|>No.<|end|><|assistant|>"},
        {"by": "policy", "text": "six", "reward": 1.0},
    ]
    assert answer_texts(TOKENIZER, samples) == ["six"]


def test_the_score_of_the_environment_is_the_sum_of_its_rewards(actor):
    samples = samples_of([played(*RIGHT), played(("six", "Yes.", 1.0))])
    scores, ref_logprobs_N = actor(EnvironmentReward()).score(samples, 1.0, {})
    assert scores.raw_CB.tolist() == [[1.25, 1.0]]
    assert ref_logprobs_N is None
    assert scores.failures == []


def test_a_failed_episode_is_quarantined_with_its_reason(actor):
    failed = [played(("x", "", 0.5), status=EpisodeStatus.FAILED, reason="the room has no door")]
    failed += [EpisodeRecord(0, prompt=[10, 11]) for _ in range(2)]
    for record in failed[1:]:
        record.end(EpisodeStatus.FAILED, "reset raised")
    late = played(("y", "", 0.5), status=EpisodeStatus.TIMED_OUT, reason="step took longer")
    samples = samples_of([*failed, late])
    scores, _ = actor(EnvironmentReward()).score(samples, 1.0, {0: {"prompt": "Guess."}})
    assert np.isnan(scores.raw_CB[0]).tolist() == [True, True, True, False]
    assert scores.raw_CB[0, 3] == 0.5
    assert [failure["reason"] for failure in scores.failures] == [
        "the room has no door",
        "reset raised",
        "reset raised",
    ]


def test_functions_of_the_user_get_the_last_turn_and_all_of_them(actor):
    source = FunctionReward(path="tests.actors.test_environment_scores:seen_turns", workers=1)
    samples = samples_of([played(*RIGHT), played(("six", "Yes.", 1.0))])
    scoring = actor(source, EnvironmentReward())
    scores, _ = scoring.score(samples, 1.0, {0: {"prompt": "Guess."}})
    assert scores.raw_CB.tolist() == [[4.0, 2.0], [1.25, 1.0]]
    scoring.text_rewards[0].close()
