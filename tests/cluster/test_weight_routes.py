"""Real learners (ZeRO-3, two ranks) and real engines over every transport that CPU has: engines end with
the learners' weights, also after one of them died inside a sync."""

import os
import threading
import time

import numpy as np
import psutil
import pytest
import ray
import torch
from transformers import AutoModelForCausalLM

from actors.config import RolloutConfig, SyncConfig
from actors.weights.transport import FileTransport, ObjectStoreTransport
from cluster.config import ClusterConfig
from cluster.fleets.learner_fleet import LearnerFleet
from cluster.fleets.manager import QUIET
from cluster.fleets.rollout_fleet import RolloutFleet
from cluster.rl.weight_routes import BroadcastRoute, BucketRoute, push_folder
from common.errors import FleetError
from common.ray_session import start_ray
from learners.config import LearnerConfig, ModelConfig
from learners.data.tokenizer import train_tokenizer
from learners.models import build_policy
from learners.rl.config import PPOConfig
from tests.learners.fixtures import MODEL, TEXTS

BUCKET_BYTES = 1 << 20
SEQUENCES = [list(range(8, 40)), list(range(100, 120))]
CONFIG = PPOConfig(advantage="grpo", dtype="float32")

pytestmark = pytest.mark.timeout(900)


def save_model(folder, seed):
    """About 5 MB in float32, so that a sync has several buckets of 1 MiB."""
    tokenizer = train_tokenizer(TEXTS, MODEL.vocab_size)
    larger = MODEL.model_copy(update={"layers": 5, "width": 128})
    model = build_policy(larger, tokenizer, seed)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def logprobs_of(folder):
    """Log-probabilities of SEQUENCES by transformers."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    results = []
    with torch.no_grad():
        for sequence in SEQUENCES:
            log_softmax = model(torch.tensor([sequence])).logits[0, :-1].log_softmax(-1)
            results.append(log_softmax.gather(1, torch.tensor(sequence[1:])[:, None]).squeeze(1).numpy())
    return np.concatenate(results)


class System:
    """Two learner ranks and two engines; the engines start with weights that no learner ever has."""

    def __init__(self, folder):
        self.folder = folder
        self.models = [save_model(folder / f"model-{seed}", seed) for seed in range(3)]
        variables = {**QUIET, "OMP_NUM_THREADS": "1", "VLLM_ENABLE_V1_MULTIPROCESSING": "0"}
        options = {"num_cpus": 0, "runtime_env": {"env_vars": variables}}
        settings = RolloutConfig(
            dtype="float32", threads=1, kv_cache_gib=0.05, max_sequences=16, max_model_len=64
        )
        arguments = []
        for index in range(2):
            arguments.append(
                {"name": f"rollout-{index}", "model_path": str(self.models[0]), "config": settings}
            )
        limits, target = ClusterConfig(), "actors.rollout:RolloutActor"
        self.rollouts = RolloutFleet("rollout", target, arguments, options, folder / "logs", limits)
        learner = LearnerConfig(ranks=2, zero_stage=3, dtype="float32")
        model = ModelConfig(path=str(self.models[0]))
        arguments = [{"rank": rank, "config": learner, "model": model} for rank in range(2)]
        target = "actors.learner:LearnerActor"
        self.learners = LearnerFleet("learner", target, arguments, options, folder / "logs", limits)
        self.learners.join()
        self.rollouts.ready()
        self.broadcast = BroadcastRoute(self.learners, self.rollouts, SyncConfig(bucket_mib=1, timeout_s=60))

    def learn(self, index):
        """The learners now hold model `index`."""
        self.learners.wait(
            self.learners.submit_start_ppo(self.models[index], None, CONFIG, None, 0), "start_ppo"
        )

    def errors(self, index):
        """For each engine: largest difference of a log-probability from model `index`."""
        expected = logprobs_of(self.models[index])
        engines = self.rollouts.prompt_logprobs(SEQUENCES)
        return [float(np.abs(np.concatenate(engine) - expected).max()) for engine in engines]


@pytest.fixture(scope="module")
def system(tmp_path_factory):
    folder = tmp_path_factory.mktemp("routes")
    start_ray(object_store_gib=0.2, logs=folder / "logs")
    try:
        yield System(folder)
    finally:
        ray.shutdown()


def test_engines_hold_the_learners_weights_after_a_sync_by_files_in_several_buckets(system, tmp_path):
    system.learn(1)
    transport = FileTransport(tmp_path / "weights", BUCKET_BYTES)
    BucketRoute(system.learners, system.rollouts, transport).push(1, 0)
    assert max(system.errors(1)) < 1e-5
    assert min(system.errors(2)) > 1e-2  # the models differ
    # The last two of several: what engines have loaded is deleted meanwhile.
    names = sorted(path.name for path in transport.directory.iterdir())
    assert len(names) == 2
    assert int(names[-1][9:14]) >= 3
    transport.close()


def test_the_object_store_moves_weights_without_a_folder_and_the_driver_holds_references(system, monkeypatch):
    system.learn(2)
    fetched = []
    get = ray.get
    monkeypatch.setattr(
        ray, "get", lambda *args, **kwargs: fetched.append(get(*args, **kwargs)) or fetched[-1]
    )
    BucketRoute(system.learners, system.rollouts, ObjectStoreTransport(BUCKET_BYTES)).push(2, 0)
    monkeypatch.undo()
    assert max(system.errors(2)) < 1e-5
    # What the driver fetched: payloads and seconds, no arrays.
    assert any(getattr(value, "kind", None) == "object_store" for value in fetched)
    assert not any(isinstance(value, (dict, np.ndarray)) for value in fetched)


def test_broadcast_reaches_every_engine_and_links_are_used_again(system):
    for version, index in ((3, 1), (4, 2)):
        system.learn(index)
        system.broadcast.push(version, 0)
        assert max(system.errors(index)) < 1e-5
        assert [engine["version"] for engine in system.rollouts.ready()] == [version] * 2


def test_a_folder_reaches_engines_through_the_object_store(system):
    push_folder(system.rollouts, system.models[1], 5, ObjectStoreTransport(BUCKET_BYTES))
    assert max(system.errors(1)) < 1e-5


def test_an_engine_that_dies_inside_a_broadcast_is_named_and_the_other_one_is_updated(system):
    system.learn(1)
    stopped = psutil.Process(system.rollouts.ready()[1]["pid"])
    # Stopped first, so that the broadcast is under way when it dies.
    stopped.suspend()
    threading.Timer(1.0, stopped.kill).start()
    started = time.monotonic()
    with pytest.raises(FleetError, match="rollout-1 died during update_weights"):
        system.broadcast.push(6, 0)
    print(f"\nan engine killed inside a broadcast: known {time.monotonic() - started - 1:.1f} s later")
    assert system.rollouts.dead_or_hung() == [1]
    assert system.rollouts.wait([system.rollouts.submit(0, "ready")], "ready")[0]["version"] == 6
    system.rollouts.restart(1)
    system.broadcast.push(7, 0)
    assert max(system.errors(1)) < 1e-5


def test_a_learner_that_dies_inside_a_sync_ends_the_engines_that_had_begun(system):
    system.learn(2)
    actor = system.learners._members[1].actor
    process = psutil.Process(ray.get(actor.__ray_call__.remote(lambda host: os.getpid())))
    process.suspend()
    threading.Timer(1.0, process.kill).start()
    with pytest.raises(FleetError, match=r"learner-\d (died during|failed in) broadcast_weights"):
        system.broadcast.push(8, 0)
    assert system.rollouts.dead_or_hung() == [0, 1]
