"""How groups get from the prompt stream into batches, on real Ray actors with scripted results."""

import inspect
import random
import time
from collections import Counter

import numpy as np
import pytest
import ray

from actors.config import Decoding
from actors.prompt_group import GroupStatus, PromptGroup, RolloutEngine
from actors.reward_config import RewardsConfig
from actors.rollout import RolloutActor
from actors.scoring import Scores
from cluster.fleets.learner_fleet import LearnerFleet
from cluster.fleets.rollout_fleet import RolloutFleet
from cluster.fleets.scoring_fleet import ScoringFleet
from cluster.rl.dynamic_sampling import DynamicSampler
from cluster.rl.group_table import GroupState
from cluster.rl.prompt_stream import PromptStream
from cluster.rl.reward_aggregator import RewardAggregator
from cluster.rl.rollout_scheduler import RolloutScheduler
from common.ray_session import start_ray
from learners.data.samples import Samples, offsets_of
from learners.rl.config import PPOConfig
from learners.rl.scored_parts import unflatten_parts

SIZE = 6
DECODING = Decoding(temperature=1.0, max_tokens=4)
# A source that reads rows of the prompt file, so that these come along; the scoring double stands for it.
REWARDS = RewardsConfig(sources=[{"kind": "function", "path": "nowhere:reward"}])
HERE = "tests.cluster.test_rollout_scheduler"


class Engine(RolloutEngine):
    """Finishes a random third of its groups in each call or, with `ready_at`, each group once the
    engine has loaded the version given there. Hosted by the rollout actors."""

    def __init__(self, number, ready_at=None):
        self.rng, self.ready_at = random.Random(number), ready_at
        self.version = 0
        self.cancel_groups()

    def run_groups(self, new, decoding, end_token, max_groups, min_version, seconds=None):
        for group in new:
            self.groups[group.index] = (self.version, group)
            self.received.append(group.index)
        ready = [index for index in self.groups if self._is_ready(index, seconds)]
        stale = [index for index in ready if self.groups[index][0] < min_version]
        finished = sorted([index for index in ready if index not in stale][:max_groups])
        responses = []
        for index in finished:
            version, group = self.groups.pop(index)
            responses += [(group.prompt_id, version)] * len(group.seeds)
        for index in stale:
            del self.groups[index]
        status = GroupStatus(finished, [*self.dropped, *stale])
        self.dropped = []
        time.sleep(0.01)
        return status, one_token_samples(responses) if responses else None

    def _is_ready(self, index, seconds):
        if self.ready_at is not None:
            return self.ready_at.get(index, 0) <= self.version
        return seconds is None or self.rng.random() < 0.3

    def update_weights(self, payload, version, min_version=0, arrays=None):
        stale = [index for index, (begun, _) in self.groups.items() if begun < min_version]
        for index in stale:
            del self.groups[index]
        self.dropped += stale
        self.version = version

    def cancel_groups(self):
        self.groups, self.dropped, self.received = {}, [], []

    def indices_received(self):
        return self.received


class Scorer:
    """Scores each response with its prompt's number."""

    def score(self, samples, temperature, rows):
        assert all(rows[prompt_id] == {"row": prompt_id} for prompt_id in samples.prompt_ids_B.tolist())
        raw_CB = samples.prompt_ids_B[None].astype(np.float32)
        return Scores(raw_CB, np.ones_like(raw_CB, dtype=bool), []), np.zeros(samples.offsets[-1], np.float32)


class Learner:
    """Takes its time; says that every `signal_every`-th prompt has responses whose scores differ."""

    def __init__(self, signal_every=2):
        self.signal_every = signal_every

    def learn(self, seconds):
        time.sleep(seconds)

    def count_groups_with_signal(self, *flat_parts):
        parts = unflatten_parts(flat_parts)
        prompt_ids = {prompt_id for part in parts for prompt_id in part.samples.prompt_ids_B.tolist()}
        return sum(prompt_id % self.signal_every == 0 for prompt_id in prompt_ids)


class InOrder(PromptStream):
    """Group i answers prompt i. Prompts and numbers of seeds repeat the lengths and counts given."""

    def __init__(self, lengths=(1, 2, 3), num_seeds=(2,)):
        self.rows = [{"row": index} for index in range(200)]
        self.lengths, self.num_seeds = lengths, num_seeds

    def __getitem__(self, index):
        tokens = [1] * self.lengths[index % len(self.lengths)]
        seeds = [index] * self.num_seeds[index % len(self.num_seeds)]
        return PromptGroup(index, index, tokens, seeds)


def one_token_samples(responses):
    """Samples of one token each, from pairs (prompt id, version)."""
    prompt_ids, versions = (np.array(column) for column in zip(*responses, strict=True))
    ones, zeros = np.ones(len(responses)), np.zeros(len(responses))
    return Samples(
        tokens_N=ones.astype(np.int32),
        offsets=offsets_of(ones),
        prompt_lengths_B=zeros.astype(np.int32),
        logprobs_N=ones.astype(np.float32),
        versions_N=versions.astype(np.int32),
        prompt_ids_B=prompt_ids.astype(np.int64),
        ended_B=ones.astype(bool),
    )


@pytest.fixture(scope="module")
def logs(tmp_path_factory):
    start_ray(None, 2, 0.1)
    yield tmp_path_factory.mktemp("logs")
    ray.shutdown()


def start_fleet(fleet_class, kind, target, arguments, logs):
    return fleet_class(kind, f"{HERE}:{target}", arguments, {"num_cpus": 0}, logs)


def start_engines(logs, *arguments):
    arguments = [{"number": number, **more} for number, more in enumerate(arguments)]
    return start_fleet(RolloutFleet, "rollout", "Engine", arguments, logs)


@pytest.fixture(scope="module")
def engines(logs):
    return start_engines(logs, {}, {})


@pytest.fixture(scope="module")
def scorers(logs):
    return start_fleet(ScoringFleet, "scoring", "Scorer", [{}], logs)


@pytest.fixture(scope="module")
def learners(logs):
    return start_fleet(LearnerFleet, "learner", "Learner", [{}], logs)


@pytest.fixture
def make_scheduler(engines, scorers, tmp_path):
    def make(staleness=0, iterations=1, state=None, rollouts=engines, prompts=None, batch=SIZE):
        config = PPOConfig(prompts=batch, responses=2, staleness=staleness, iterations=iterations)
        rewards = RewardAggregator(REWARDS, scorers, tmp_path / "quarantine.jsonl")
        prompts = prompts or InOrder()
        return RolloutScheduler(rollouts, rewards, prompts, config, DECODING, 0, state)

    return make


def load_version(scheduler, version):
    scheduler.rollouts.all("update_weights", None, version, version - scheduler.config.staleness)


def iterate(scheduler, learners, version, seconds=0.1):
    """One iteration: (prompts learned from, staleness of each response)."""
    batch = scheduler.next_batch(version)
    refs = [learners.submit(0, "learn", seconds)]
    scheduler.wait_while_rolling(learners, refs, "learn")
    load_version(scheduler, version + 1)
    samples = Samples.concat([ray.get(part.samples) for part in batch.parts])
    # Every score is with its own sample, and every group is complete.
    scores_B = np.concatenate([part.scores_B for part in batch.parts])
    assert np.array_equal(scores_B, samples.prompt_ids_B)
    assert Counter(samples.prompt_ids_B.tolist()) == dict.fromkeys(batch.prompt_ids, 2)
    return batch.prompt_ids, (version - samples.versions_N).tolist()


@pytest.mark.parametrize("staleness", [0, 1, 3])
def test_each_group_is_learned_from_once_and_none_is_stale(make_scheduler, learners, staleness):
    scheduler = make_scheduler(staleness, iterations=12)
    load_version(scheduler, 0)
    learned, ages = [], []
    for version in range(12):
        prompt_ids, batch_ages = iterate(scheduler, learners, version)
        learned += prompt_ids
        ages += batch_ages
    assert len(set(learned)) == len(learned) == 12 * SIZE
    assert 0 <= min(ages) <= max(ages) <= staleness
    # No engine was asked for more than the run needs.
    assert scheduler.state["next_index"] == 12 * SIZE
    assert scheduler.state["requeued"] == []
    if staleness:
        assert np.mean(ages) > 0  # they did run ahead
    else:
        assert learned == list(range(12 * SIZE))
        assert scheduler.num_stale == 0


def test_a_checkpoint_samples_outstanding_groups_again(make_scheduler, learners):
    first = make_scheduler(staleness=2, iterations=8)
    load_version(first, 0)
    learned = []
    for version in range(3):
        learned += iterate(first, learners, version)[0]
    state = first.state
    assert 0 < len(state["requeued"]) <= 3 * SIZE
    assert sorted([*learned, *state["requeued"]]) == list(range(state["next_index"]))
    second = make_scheduler(staleness=2, iterations=8, state=state)
    assert second.state == state
    for version in range(3, 8):
        learned += iterate(second, learners, version)[0]
    assert len(set(learned)) == len(learned) == 8 * SIZE
    assert set(state["requeued"]) <= set(learned)


@pytest.mark.parametrize(
    ("lengths", "num_seeds", "expected"),
    [
        # Equal costs: three groups for each engine.
        ((1,), (2,), [[0, 2, 4], [1, 3, 5]]),
        # Group 0 costs 2 x 104 tokens, the others 2 x 5 each: a count of groups would give each engine three.
        ((100, 1, 1, 1, 1, 1), (2,), [[0], [1, 2, 3, 4, 5]]),
        # Group 0 has 20 responses of 5 tokens, the others 2.
        ((1,), (20, 2, 2, 2, 2, 2), [[0], [1, 2, 3, 4, 5]]),
        # 2 x 8 tokens beside 2 x 5: the longest response counts too.
        ((4, 1, 1, 1, 1, 1), (2,), [[0, 3, 5], [1, 2, 4]]),
    ],
)
def test_engines_get_equal_loads_in_tokens(make_scheduler, engines, lengths, num_seeds, expected):
    scheduler = make_scheduler(prompts=InOrder(lengths, num_seeds))
    load_version(scheduler, 0)
    batch = scheduler.next_batch(version=0)
    assert batch.prompt_ids == [0, 1, 2, 3, 4, 5]
    assert engines.all("indices_received") == expected


def test_a_slow_group_is_dropped_as_stale_and_sampled_again(make_scheduler, learners, logs):
    """The worked example of the scheduler: S = 1, batch = 2, group 1 slower than two weight updates."""
    rollouts = start_engines(logs, {"ready_at": {1: 2, 4: 1, 5: 2, 6: 2, 7: 2}})
    scheduler = make_scheduler(staleness=1, iterations=9, rollouts=rollouts, prompts=InOrder((1,)), batch=2)
    assert iterate(scheduler, learners, 0)[0] == [0, 2]
    assert scheduler.table.num_outstanding == 2  # 1 and 3: (S + 1 - 1) x batch while the learners work
    assert iterate(scheduler, learners, 1)[0] == [3, 4]
    assert scheduler.table.state_of(5) is GroupState.IN_FLIGHT
    batch = scheduler.next_batch(version=2)
    assert batch.prompt_ids == [5, 6]
    assert scheduler.table.state_of(1) is GroupState.QUEUED
    assert scheduler.state == {"next_index": 8, "requeued": [1, 7], "num_stale": 1}
    assert batch.metrics["flow/dropped"] == 1
    assert batch.metrics["flow/dropped_share"] == 1 / 9
    rollouts.stop()


def test_groups_of_an_engine_that_leaves_are_sampled_again(make_scheduler, learners, logs):
    rollouts = start_engines(logs, {}, {})
    scheduler = make_scheduler(staleness=2, iterations=6, rollouts=rollouts)
    learned = []
    for version in range(3):
        learned += iterate(scheduler, learners, version)[0]
    scheduler.requeue_engines(first=1)
    rollouts.remove(1)
    for version in range(3, 6):
        learned += iterate(scheduler, learners, version)[0]
    assert len(set(learned)) == len(learned) == 6 * SIZE
    assert scheduler.state["next_index"] == 6 * SIZE
    assert scheduler.state["requeued"] == []
    rollouts.stop()


@pytest.mark.parametrize(
    ("signal_every", "limit", "batches"),
    [
        (1, 3, 1),  # all groups of the first batch teach something
        (2, 3, 2),  # every second one does: 12 groups have 6 that do
        (100, 1, 2),  # nearly none does, but the limit is one more batch
        (100, 0, 1),  # off
    ],
)
def test_dynamic_sampling_adds_batches_up_to_its_limit(make_scheduler, logs, signal_every, limit, batches):
    learners = start_fleet(LearnerFleet, "learner", "Learner", [{"signal_every": signal_every}], logs)
    scheduler = make_scheduler(iterations=3)
    load_version(scheduler, 0)
    config = scheduler.config.model_copy(update={"dynamic_sampling": limit})
    sampler = DynamicSampler(scheduler, learners, config)
    batch = sampler.next_batch(version=0)
    groups = batches * SIZE
    assert batch.prompt_ids == list(range(groups))
    assert sum(len(part.scores_B) for part in batch.parts) == 2 * groups
    # What was added is not sampled again, by the next iteration or after a restart.
    assert scheduler.state == {"next_index": groups, "requeued": [], "num_stale": 0}
    load_version(scheduler, 1)
    assert sampler.next_batch(version=1).prompt_ids[0] == groups
    learners.stop()


def test_dynamic_sampling_adds_up_the_waiting_time(make_scheduler, learners):
    scheduler = make_scheduler(iterations=2)
    load_version(scheduler, 0)
    waits = []
    next_batch = scheduler.next_batch

    def recorded(version):
        batch = next_batch(version)
        waits.append(batch.generation_s)
        return batch

    scheduler.next_batch = recorded
    config = scheduler.config.model_copy(update={"dynamic_sampling": 1})
    batch = DynamicSampler(scheduler, learners, config).next_batch(version=0)
    assert len(waits) == 2
    assert batch.generation_s == pytest.approx(sum(waits))


@pytest.mark.parametrize("method", ["run_groups", "update_weights", "cancel_groups"])
def test_the_double_takes_what_a_real_engine_takes(method):
    expected = list(inspect.signature(getattr(RolloutEngine, method)).parameters)
    for engine in (Engine, RolloutActor):
        assert list(inspect.signature(getattr(engine, method)).parameters) == expected
