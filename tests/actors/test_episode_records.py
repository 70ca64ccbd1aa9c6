"""RLlib's record of an episode, and the samples that it becomes."""

import numpy as np

from actors.environments.messages import StepResult
from actors.environments.record import EpisodeRecord, Turn, samples_of
from learners.data.episodes import EpisodeStatus


def turn(words, tokens, version=0, ended=True):
    count = len(tokens)
    return Turn(words, tokens, np.full(count, -0.5), np.full(count, version), ended)


def two_turns():
    record = EpisodeRecord(prompt_id=4, prompt=[1, 2, 3])
    record.episode.add_env_reset("Guess.", {})
    record.add_turn(turn([1, 2, 3], [10, 11]), "five", StepResult("No.", 0.25, info={"found": 0.0}))
    record.add_turn(turn([20, 21], [12], 1), "six", StepResult("Yes.", 1.0, True, info={"found": 1.0}))
    record.end(EpisodeStatus.DONE)
    return record


def failed():
    record = EpisodeRecord(prompt_id=5, prompt=[1, 2])
    record.end(EpisodeStatus.FAILED, "broken")
    return record


def test_the_record_is_rllibs_with_what_learners_need_as_extra_outputs():
    episode = two_turns().episode
    assert episode.is_terminated
    assert episode.get_return() == 1.25
    assert list(episode.get_actions()) == ["five", "six"]
    assert list(episode.get_observations()) == ["Guess.", "No.", "Yes."]
    assert episode.get_extra_model_outputs("loss_mask", -1).tolist() == [False, False, True]
    assert episode.get_extra_model_outputs("weight_version", -1).tolist() == [-1, -1, 1]


def test_turns_become_one_sequence():
    samples = samples_of([two_turns()])
    assert samples.tokens_N.tolist() == [1, 2, 3, 10, 11, 20, 21, 12]
    assert samples.prompt_lengths_B.tolist() == [3]
    assert samples.response_mask_N.tolist() == [False] * 3 + [True, True, False, False, True]
    assert samples.logprobs_N.tolist() == [0, 0, 0, -0.5, -0.5, 0, 0, -0.5]
    assert samples.versions_N.tolist() == [-1, -1, -1, 0, 0, -1, -1, 1]
    assert samples.episodes.rewards_N.tolist() == [0, 0, 0, 0, 0.25, 0, 0, 1.0]
    assert samples.episodes.turns_B.tolist() == [2]
    assert samples.episodes.infos_B == ({"found": 1.0},)
    assert samples.ended_B.tolist() == [True]


def test_a_failed_episode_is_a_sequence_that_nobody_wrote():
    samples = samples_of([two_turns(), failed(), failed()])
    assert samples.lengths_B.tolist() == [8, 3, 3]
    assert samples.prompt_lengths_B.tolist() == [3, 2, 2]
    assert samples.response_lengths_B.tolist() == [3, 0, 0]
    assert samples.episodes.status_B.tolist() == [0, 3, 3]
    assert samples.episodes.reasons_B[1] == "broken"
