"""Episodes of a real vLLM engine with environments in worker processes.

The engine runs in a process of its own (`exercise_engine`), which puts everything that the tests look at into
one dict, as in test_rollout.py."""

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from actors.config import Decoding, RolloutConfig
from actors.environments.config import EnvironmentConfig, EnvironmentSetup
from actors.prompt_group import GroupStatus, PromptGroup
from actors.weights.transport import FileTransport
from learners.data.episodes import EpisodeStatus
from learners.data.samples import Samples
from learners.data.tokenizer import train_tokenizer
from learners.data.turn_tokens import encode_prompt
from learners.models import build_policy
from tests.actors.own_process import in_own_process
from tests.actors.test_rollout import send
from tests.actors.updates import perturb
from tests.learners.fixtures import MODEL, TEXTS

CONTEXT = 160
DECODING = Decoding(max_tokens=8)
FAULTS = ["", "raise in step", "die in step", "hang in step", "no tuple", "raise in reset"]


def setup(**keys):
    settings = {"name": "tests.actors.environments:Countdown", "turns": 8, "tokens": 140, "workers": 1}
    return EnvironmentSetup(EnvironmentConfig(**(settings | keys)), MODEL)


def groups_of(count, rows=None, seeds=2):
    groups = []
    for index in range(count):
        row = {} if rows is None else rows[index]
        own = [10 * index + sample for sample in range(seeds)]
        groups.append(PromptGroup(index, index, [10, 11, 12], own, row, environment_seed=500 + index))
    return groups


def forced_to_end(actor, end_token):
    """Random weights hardly ever write the end token, which a turn needs for another to follow it."""
    take = actor.engine.take

    def ending(request_ids):
        outputs = take(request_ids)
        for output in outputs:
            completion = output.outputs[0]
            completion.token_ids = [*completion.token_ids[:-1], end_token]
        return outputs

    actor.engine.take = ending
    return take


def exercise_engine(folder, queue):
    from actors.environments.pool import EnvironmentPool
    from actors.environments.runner import EpisodeRunner
    from actors.episode_rollout import EpisodeRolloutActor

    config = RolloutConfig(dtype="float32", kv_cache_gib=0.05, max_sequences=64, max_model_len=CONTEXT)
    actor = EpisodeRolloutActor("rollout-0", str(folder / "model"), config, setup(), version=3)
    model = AutoModelForCausalLM.from_pretrained(folder / "model", dtype=torch.float32)
    end_token = model.config.eos_token_id
    tokenizer = actor.runner._tokenizer

    def use(**keys):
        actor.pool.close()
        actor.pool = EnvironmentPool(setup(**keys).config)
        actor.pool.wait_ready()
        actor.runner = EpisodeRunner(actor.engine, actor.pool, tokenizer, setup(**keys).config, 3)

    results = {}
    # As it is: turns without an end token are cut, and end the episode.
    cut = actor.run_episodes(groups_of(2), DECODING, end_token)
    prompt = encode_prompt(tokenizer, "seed 500, 3 left")
    single = actor.generate([prompt], [0], DECODING, end_token, n=2, seeds=[0, 1])
    results["cut"] = cut
    results["single"] = single

    take = forced_to_end(actor, end_token)
    add, prompts = actor.engine.add_responses, []
    actor.engine.add_responses = lambda prompt, *rest: prompts.append(list(prompt)) or add(prompt, *rest)
    whole = actor.run_episodes(groups_of(4), DECODING, end_token)
    actor.engine.add_responses = add
    results["prompts"] = prompts
    results["whole"] = whole
    results["texts"] = [tokenizer.decode(whole.sequence(b).tolist()) for b in range(whole.size)]
    use(workers=3, kwargs={"step_s": 0.05})
    results["other workers"] = actor.run_episodes(groups_of(4), DECODING, end_token)
    use(turns=2)
    results["few turns"] = actor.run_episodes(groups_of(1), DECODING, end_token)
    use(tokens=30)
    results["few tokens"] = actor.run_episodes(groups_of(1), DECODING, end_token)
    use(step_timeout_s=2.0)
    rows = [{"fault": fault} for fault in FAULTS]
    results["faults"] = actor.run_episodes(groups_of(len(rows), rows, seeds=1), DECODING, end_token)

    use(kwargs={"step_s": 0.3})
    status, _ = actor.run_groups(groups_of(2), DECODING, end_token, 2, min_version=0, seconds=0.5)
    results["nothing yet"] = status
    perturb(model, seed=7)
    actor.update_weights(send(FileTransport(folder / "weights"), model, 4), 4)
    results["over an update"] = actor.run_groups([], DECODING, end_token, 2, min_version=3)
    status, _ = actor.run_groups(groups_of(2), DECODING, end_token, 2, min_version=0, seconds=0)
    actor.cancel_groups()
    results["cancelled"] = (actor.pool.num_busy, actor.engine.count_requests())
    # What was sampled, with the log-probabilities of the tokens that were written and not replaced.
    actor.engine.take = take
    results["end token"] = end_token
    queue.put(results)


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    folder = tmp_path_factory.mktemp("episodes")
    tokenizer = train_tokenizer(TEXTS, MODEL.vocab_size)
    build_policy(MODEL.model_copy(update={"context": CONTEXT}), tokenizer, seed=1).save_pretrained(
        folder / "model"
    )
    tokenizer.save_pretrained(folder / "model")
    return in_own_process(exercise_engine, folder)


def same(one: Samples, other: Samples) -> bool:
    return all(
        np.array_equal(getattr(one, name), getattr(other, name))
        for name in ("tokens_N", "offsets", "logprobs_N", "versions_N")
    ) and np.array_equal(one.episodes.rewards_N, other.episodes.rewards_N)


def test_the_first_turn_is_what_a_single_response_would_be(results):
    episodes, single = results["cut"], results["single"]
    for b in range(single.size):
        start, count = int(episodes.offsets[b]), int(single.lengths_B[b])
        own = slice(int(single.offsets[b]), int(single.offsets[b]) + count)
        assert episodes.sequence(b)[:count].tolist() == single.sequence(b).tolist()
        assert episodes.logprobs_N[start : start + count].tolist() == single.logprobs_N[own].tolist()


def test_a_turn_that_is_cut_ends_the_episode(results):
    samples = results["cut"]
    assert samples.episodes.status_B.tolist() == [EpisodeStatus.TRUNCATED] * 4
    assert not samples.ended_B.any()
    # The environment has seen every turn, and given its reward for it.
    assert samples.episodes.returns_B(samples.offsets).tolist() == samples.episodes.turns_B.tolist()


def test_an_episode_has_the_turns_of_both(results):
    samples = results["whole"]
    assert samples.episodes.turns_B.tolist() == [3] * 8
    assert samples.episodes.status_B.tolist() == [EpisodeStatus.DONE] * 8
    assert samples.ended_B.all()
    text = results["texts"][0]
    assert text.startswith("<|user|>seed 500, 3 left<|end|><|assistant|>")
    assert text.count("<|end|><|user|>") == 2
    assert "characters, 1 left<|end|><|assistant|>" in text
    assert [info["left"] for info in samples.episodes.infos_B] == [0.0] * 8


def test_every_prompt_of_the_engine_is_the_beginning_of_what_is_learned_from(results):
    samples, prompts = results["whole"], results["prompts"]
    assert len(prompts) == 3 * samples.size
    for b in range(samples.size):
        sequence = samples.sequence(b).tolist()
        beginnings = [prompt for prompt in prompts if sequence[: len(prompt)] == prompt]
        # Each turn begins where the policy's mask does.
        starts = np.flatnonzero(np.diff(samples.targets(b).astype(int)) == 1) + 1
        assert set(starts) <= {len(prompt) for prompt in beginnings}


def test_rewards_are_on_the_last_tokens_of_turns(results):
    samples = results["whole"]
    rewarded = np.flatnonzero(samples.episodes.rewards_N)
    assert len(rewarded) == 3 * samples.size
    assert (samples.tokens_N[rewarded] == results["end token"]).all()
    assert samples.response_mask_N[rewarded].all()


def test_what_the_policy_did_not_write_has_no_logprob_and_no_version(results):
    samples = results["whole"]
    assert (samples.logprobs_N[~samples.response_mask_N] == 0).all()
    assert (samples.versions_N[~samples.response_mask_N] == -1).all()
    assert set(samples.versions_N[samples.response_mask_N]) == {3}
    assert (samples.logprobs_N[samples.response_mask_N] < 0).all()


def test_episodes_do_not_depend_on_how_fast_their_environments_are(results):
    assert same(results["whole"], results["other workers"])


def test_turns_and_tokens_are_limited(results):
    few_turns, few_tokens = results["few turns"], results["few tokens"]
    assert few_turns.episodes.turns_B.tolist() == [2, 2]
    assert few_turns.episodes.status_B.tolist() == [EpisodeStatus.TRUNCATED] * 2
    assert few_tokens.episodes.status_B.tolist() == [EpisodeStatus.TRUNCATED] * 2
    assert (few_tokens.lengths_B - few_tokens.prompt_lengths_B <= 30).all()


def test_a_faulty_environment_costs_its_own_episode(results):
    episodes = results["faults"].episodes
    done, failed, late = EpisodeStatus.DONE, EpisodeStatus.FAILED, EpisodeStatus.TIMED_OUT
    assert episodes.status_B.tolist() == [done, failed, failed, late, failed, failed]
    assert episodes.turns_B.tolist() == [3, 1, 1, 2, 1, 0]
    assert "the room has no door" in episodes.reasons_B[1]
    assert "its process ended (exit code 7)" in episodes.reasons_B[2]
    assert "step took longer" in episodes.reasons_B[3]
    assert "step gave 'nonsense'" in episodes.reasons_B[4]


def test_weights_may_change_between_turns(results):
    assert results["nothing yet"] == GroupStatus()
    status, samples = results["over an update"]
    assert status == GroupStatus(finished=[0, 1])
    for b in range(samples.size):
        versions = samples.versions_N[samples.offsets[b] : samples.offsets[b + 1]][samples.targets(b)]
        assert set(versions.tolist()) == {3, 4}
        assert (np.diff(versions) >= 0).all()


def test_cancelled_episodes_leave_nothing(results):
    assert results["cancelled"] == (0, 0)
