"""The typed fleets call methods that their actors have, with arguments that these take."""

import inspect
from pathlib import Path

import numpy as np
import pytest

from actors.episode_rollout import EpisodeRolloutActor
from actors.learner import LearnerActor
from actors.reward_features import Features
from actors.scoring import ScoringActor
from actors.weights.transport import FileTransport
from cluster.fleets.learner_fleet import LearnerFleet
from cluster.fleets.rollout_fleet import RolloutFleet
from cluster.fleets.scoring_fleet import ScoringFleet
from learners.rl.scored_parts import ScoredPart

ACTORS = {LearnerFleet: LearnerActor, RolloutFleet: EpisodeRolloutActor, ScoringFleet: ScoringActor}
FOLDER, REF, REWARDS = Path("folder"), object(), np.zeros((1, 2))
PART = ScoredPart(REF, np.zeros(2), REF)

CALLS = [
    (LearnerFleet, "start_pretrain", (None, FOLDER, 0)),
    (LearnerFleet, "start_sft", (FOLDER, None, FOLDER, 0)),
    (LearnerFleet, "start_reward_model", (FOLDER, None, FOLDER, 0)),
    (LearnerFleet, "start_dpo", (FOLDER, None, FOLDER, 0)),
    (LearnerFleet, "measure_reference", (FOLDER,)),
    (LearnerFleet, "load_reference", (FOLDER,)),
    (LearnerFleet, "submit_start_ppo", (FOLDER, None, None, None, 0)),
    (LearnerFleet, "train", (5,)),
    (LearnerFleet, "validate", ()),
    (LearnerFleet, "pair_agreement", ()),
    (LearnerFleet, "center_rewards", (FOLDER,)),
    (LearnerFleet, "submit_ppo_update", (1, 0.1, [PART, PART])),
    (LearnerFleet, "count_groups_with_signal", ([PART, PART],)),
    (LearnerFleet, "pretrain_loss", ()),
    (LearnerFleet, "send_bucket", (FileTransport(FOLDER), 3, 0)),
    (LearnerFleet, "free_buffers", ()),
    (LearnerFleet, "open_links", ({"rollout-0": 1}, 5.0)),
    (LearnerFleet, "submit_accept_links", (["rollout-0"],)),
    (LearnerFleet, "submit_broadcast", (["rollout-0"], 1 << 20)),
    (LearnerFleet, "submit_probe_logprobs", ([np.zeros(3)],)),
    (LearnerFleet, "offload", ("states",)),
    (LearnerFleet, "reload", ("all",)),
    (LearnerFleet, "memory", ()),
    (LearnerFleet, "save", (FOLDER,)),
    (LearnerFleet, "load", (FOLDER,)),
    (LearnerFleet, "export", (FOLDER, True)),
    (LearnerFleet, "flops_per_token", ()),
    (LearnerFleet, "join", ()),
    (RolloutFleet, "ready", ()),
    (RolloutFleet, "generate", ([[1, 2]], [0], None, 0)),
    (RolloutFleet, "run_episodes", ([None], None, 0)),
    (RolloutFleet, "submit_run_groups", (0, [], None, 0, 4, 0, 0.25)),
    (RolloutFleet, "submit_update", (0, None, 2, 1, REF)),
    (RolloutFleet, "submit_join_link", (0, ("127.0.0.1", 1), 5.0)),
    (RolloutFleet, "prompt_logprobs", ([[1, 2]],)),
    (RolloutFleet, "cancel_groups", ()),
    (RolloutFleet, "sleep", (2,)),
    (RolloutFleet, "wake", ()),
    (ScoringFleet, "submit_score", (0, REF, 1.0, {})),
    (ScoringFleet, "features", ([{}, {}],)),
    (ScoringFleet, "submit_select", (0, REF, REF, [1])),
    (ScoringFleet, "offload", ()),
    (ScoringFleet, "reload", ()),
]


def recording(fleet_class):
    """A fleet of two actors that are not there: it binds each call to the signature of the actor's method."""
    calls = []

    class Recording(fleet_class):
        def __init__(self):
            pass

        def __len__(self):
            return 2

        def submit(self, index, method, *args, **kwargs):
            bound = inspect.signature(getattr(ACTORS[fleet_class], method)).bind(self, *args, **kwargs)
            calls.append((index, method, bound.arguments))
            return len(calls)

        def submit_split(self, index, count, method, *args, **kwargs):
            return [self.submit(index, method, *args, **kwargs)] * count

        def wait(self, refs, doing):
            if doing == "features":
                return [Features(REWARDS, REWARDS) for _ in refs]
            # The sizes of files, or an address and a port.
            return [{"rank.pt": ref} if doing == "save" else ("127.0.0.1", ref) for ref in refs]

    return Recording(), calls


@pytest.mark.parametrize(
    ("fleet_class", "method", "arguments"), CALLS, ids=lambda value: value if isinstance(value, str) else ""
)
def test_call_fits_the_method_of_the_actor(fleet_class, method, arguments):
    fleet, calls = recording(fleet_class)
    getattr(fleet, method)(*arguments)
    assert calls


def test_every_method_of_a_typed_fleet_is_checked():
    for fleet_class in ACTORS:
        methods = {name for name, value in vars(fleet_class).items() if inspect.isfunction(value)}
        checked = {method for checked_class, method, _ in CALLS if checked_class is fleet_class}
        assert {name for name in methods if not name.startswith("_")} - {"utilization"} == checked


def test_generate_splits_prompts_ids_and_seeds_over_the_engines():
    fleet, calls = recording(RolloutFleet)
    prompts = [[1], [2], [3]]
    assert len(fleet.generate(prompts, [7, 8, 9], None, 0, n=2, seeds=[10, 11, 20, 21, 30, 31])) == 2
    (first, _, one), (second, _, other) = calls
    assert (first, second) == (0, 1)
    assert (one["prompts"], one["prompt_ids"], one["seeds"]) == ([[1], [2]], [7, 8], [10, 11, 20, 21])
    assert (other["prompts"], other["prompt_ids"], other["seeds"]) == ([[3]], [9], [30, 31])


@pytest.mark.parametrize(("peak", "expected"), [(100.0, {"perf/mfu": 0.15}), (None, {})])
def test_utilization_counts_all_ranks_and_needs_a_known_peak(peak, expected):
    fleet, _ = recording(LearnerFleet)
    fleet.flops_per_token = lambda: (6.0, peak)
    assert fleet.utilization(5.0) == pytest.approx(expected)
