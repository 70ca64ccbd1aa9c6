"""How groups flow, on real Ray actors that answer what they are told to: who may run ahead, what is dropped, what is kept."""

import random
import time
from collections import Counter

import numpy as np
import pytest
import ray

from actors.config import Decoding, RewardsConfig
from actors.prompt_group import GroupStatus
from actors.scoring import Scores
from cluster.fleets.fleet import Fleet
from cluster.rl.reward_aggregator import RewardAggregator
from cluster.rl.rollout_scheduler import PromptGroup, RolloutScheduler
from common.ray_session import start_ray
from learners.data.samples import Samples, offsets_of

SIZE = 6
DECODING = Decoding(temperature=1.0, max_tokens=4)


class Engine:
    """Answers groups one after the other, each as soon as its turn has come; some take long. Hosted by the rollout actors."""

    def __init__(self, number):
        self.draw, self.groups, self.version, self.dropped, self.most = random.Random(number), {}, 0, [], 0

    def run_groups(self, new, decoding, end_token, max_groups, min_version, seconds=None):
        for group in new:
            self.groups[group.index] = (self.version, group.prompt_id, group.seeds)
        self.most = max(self.most, len(self.groups))
        finished = [p for p in self.groups if seconds is None or self.draw.random() < 0.3]
        late = [p for p in finished if self.groups[p][0] < min_version]
        done = sorted([p for p in finished if p not in late][:max_groups])
        taken = [self.groups.pop(p) for p in done]
        status = GroupStatus(finished=done, dropped=[*self.dropped, *late])
        for place in late:
            del self.groups[place]
        self.dropped = []
        time.sleep(0.01)
        return status, made([(i, v) for v, i, seeds in taken for _ in seeds]) if taken else None

    def update_weights(self, version, min_version):
        late = [p for p, (v, *_) in self.groups.items() if v < min_version]
        for place in late:
            del self.groups[place]
        self.dropped += late
        self.version = version

    def cancel_groups(self):
        self.groups, self.dropped = {}, []

    def crowd(self):
        return self.most


class Scorer:
    def score(self, samples, temperature, rows):
        return Scores(samples.prompt_ids_B[None].astype(np.float32), []), np.zeros(
            samples.offsets[-1], np.float32
        )


class Learner:
    def learn(self, seconds):
        time.sleep(seconds)


def made(responses):
    """Samples of one token each: (prompt id, version)."""
    ids, versions = (np.array(x) for x in zip(*responses, strict=True))
    ones, size = np.ones(len(ids)), len(ids)
    return Samples(
        ones.astype(np.int32),
        offsets_of(ones),
        np.zeros(size, np.int32),
        ones.astype(np.float32),
        versions.astype(np.int32),
        ids.astype(np.int64),
        ones.astype(bool),
    )


@pytest.fixture(scope="module")
def fleets(tmp_path_factory):
    start_ray(None, 2, 0.1)
    folder, here = tmp_path_factory.mktemp("flow"), "tests.cluster.test_rollout_scheduler"
    made_of = lambda kind, target, n: Fleet(kind, f"{here}:{target}", n, {"num_cpus": 0}, folder)  # noqa: E731
    yield (
        made_of("rollout", "Engine", [{"number": i} for i in range(2)]),
        made_of("scoring", "Scorer", [{}]),
        made_of("learner", "Learner", [{}]),
    )
    ray.shutdown()


def asked(place):
    return PromptGroup(place, {"place": place}, [1] * (1 + place % 3), [place, place + 1])


def flow_of(fleets, tmp_path, staleness, last, state=None):
    rewards = RewardAggregator(RewardsConfig(), fleets[1], tmp_path)
    return RolloutScheduler(fleets[0], rewards, asked, SIZE, staleness, DECODING, 0, last, state)


def iterate(flow, fleets, version, seconds=0.1):
    """One iteration: (places learned from, staleness of each response)."""
    flow.version = flow.due = version
    batch, places, _, _ = flow.take(version + 1)
    flow.due = version + 1
    flow.until(fleets[2], [fleets[2].submit(0, "learn", seconds)], "learn")
    fleets[0].all("update_weights", version + 1, version + 1 - flow.staleness)
    samples = Samples.concat([ray.get(ref) for ref in batch[0::3]])
    assert np.array_equal(
        np.concatenate(batch[1::3]), samples.prompt_ids_B
    )  # every score is with its own sample
    assert Counter(samples.prompt_ids_B.tolist()) == dict.fromkeys(places, 2)
    return places, (version - samples.versions_N).tolist()


@pytest.mark.parametrize("staleness", [0, 1, 3])
def test_nothing_is_learned_from_twice_or_never_and_nothing_is_older_than_allowed(
    fleets, tmp_path, staleness
):
    flow = flow_of(fleets, tmp_path, staleness, 12)
    learned, ages = [], []
    for version in range(12):
        fleets[0].all("update_weights", version, version - staleness)
        places, found = iterate(flow, fleets, version)
        learned += places
        ages += found
    assert len(set(learned)) == len(learned) == 12 * SIZE
    assert 0 <= min(ages) <= max(ages) <= staleness
    assert flow.state == {"next": 12 * SIZE, "again": []}  # nobody was asked for more than the run needs
    if staleness:
        assert np.mean(ages) > 0  # they did run ahead
    else:
        assert learned == list(range(12 * SIZE))


def test_who_goes_on_from_a_checkpoint_asks_again_what_was_on_its_way(fleets, tmp_path):
    first = flow_of(fleets, tmp_path, 2, 8)
    learned = [place for version in range(3) for place in iterate(first, fleets, version)[0]]
    state = first.state
    assert 0 < len(state["again"]) <= 3 * SIZE
    assert sorted([*learned, *state["again"]]) == list(range(state["next"]))
    second = flow_of(fleets, tmp_path, 2, 8, state)
    learned += [place for version in range(3, 8) for place in iterate(second, fleets, version)[0]]
    assert len(set(learned)) == len(learned) == 8 * SIZE
    assert set(state["again"]) <= set(learned)


def test_work_is_shared_by_what_it_may_take(fleets, tmp_path):
    flow = flow_of(fleets, tmp_path, 0, 1)
    iterate(flow, fleets, 0)
    assert min(fleets[0].all("crowd")) > 0


def test_what_an_engine_that_leaves_was_at_is_asked_again(fleets, tmp_path):
    flow = flow_of(fleets, tmp_path, 2, 6)
    learned = [place for version in range(3) for place in iterate(flow, fleets, version)[0]]
    there = len(fleets[0])
    try:
        flow.release(1)
        leaving = fleets[0]._members.pop()  # what `Fleet.shrink` does, but for the end of the process
        learned += [place for version in range(3, 6) for place in iterate(flow, fleets, version)[0]]
    finally:
        fleets[0]._members.append(leaving)
    assert len(fleets[0]) == there
    assert len(set(learned)) == len(learned) == 6 * SIZE
    assert flow.state == {"next": 6 * SIZE, "again": []}
