"""What the actors of these tests host, apart from the tests, since each actor imports this module."""

import errno
import os
import time
from pathlib import Path

import ray
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from cluster.fleets import heartbeat
from common.errors import DiskFullError, FleetError, UserError, WeightSyncError

WORKER = "tests.cluster.hosted:Worker"
WHERE = "tests.cluster.hosted:Where"
ERRORS = {error.__name__: error for error in (UserError, DiskFullError, WeightSyncError, FleetError)}


class Worker:
    def __init__(self, number=0, error_name=None, marker=None):
        """Raises an error if one is named, and if the marker is there already."""
        if error_name and (marker is None or os.path.exists(marker)):
            raise ERRORS.get(error_name, ZeroDivisionError)("model/config.json:\nno layers")
        if marker:
            Path(marker).touch()
        self.number = number

    def pid(self):
        return os.getpid()

    def double(self, value):
        return 2 * value + self.number

    def refuse(self, error_name):
        raise ERRORS[error_name]("row 3 of data.jsonl has no prompt")

    def fail_if(self, number):
        if number == self.number:
            raise ZeroDivisionError("no tokens")
        time.sleep(60)

    def fill_the_disk(self):
        raise OSError(errno.ENOSPC, "No space left on device", "/dev/shm/weights")

    def sleep(self):
        time.sleep(60)

    def break_the_store(self, times):
        """The next `times` reports to Ray's store fail, as while the network does."""
        put = heartbeat._internal_kv_put

        def failing(key, value):
            nonlocal times
            times -= 1
            if times >= 0:
                raise ConnectionError("failed to connect to GCS")
            put(key, value)

        heartbeat._internal_kv_put = failing

    def exit(self):
        raise SystemExit("half of the weights are new")


class Where:
    """Hosted by the actors of these tests: says which GPUs Ray shows it."""

    def see(self):
        node = ray.get_runtime_context().get_node_id()
        return node, os.environ.get("CUDA_VISIBLE_DEVICES"), os.environ.get("VLLM_RAY_BUNDLE_INDICES")

    def offload(self, *what):
        """As the learners and scoring actors of a layout that takes turns; so are the next three."""

    def reload(self, *what):
        pass

    def sleep(self, level):
        pass

    def wake(self, tags):
        pass

    def see_as_workers(self):
        """Of Ray actors that it starts as vLLM's ray executor does: by the variables of its process."""
        workers = []
        for bundle in os.environ["VLLM_RAY_BUNDLE_INDICES"].split(","):
            strategy = PlacementGroupSchedulingStrategy(
                ray.util.get_current_placement_group(), placement_group_bundle_index=int(bundle)
            )
            gpus = float(os.environ["VLLM_RAY_PER_WORKER_GPUS"])
            worker = (
                ray.remote(Where).options(num_cpus=0, num_gpus=gpus, scheduling_strategy=strategy).remote()
            )
            workers.append(worker)
        return ray.get([worker.see.remote() for worker in workers])
