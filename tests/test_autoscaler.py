"""Ray's autoscaler with its fake provider follows `hero scale`: a host is added for an engine that has no
room, and removed after the engine has left.

The provider starts further Ray nodes as processes of the same host and ends them by their names, so all of
it is in a host of its own (`tests.hosts`).
"""

import json
import os
import sys
import time
from pathlib import Path

import pytest
import ray

from cluster.config_loader import load_config
from cluster.fleets.fleet import Fleet
from cluster.fleets.manager import FleetManager
from cluster.fleets.scale import request_scale
from common.files import try_lock
from tests.hosts import PORT, RAY, Hosts, reason_to_skip

REASON = reason_to_skip()
pytestmark = pytest.mark.skipif(REASON is not None, reason=REASON or "")

HEAD = f"10.77.0.1:{PORT}"
COMMANDS = ("initialization", "setup", "head_setup", "worker_setup", "head_start_ray", "worker_start_ray")
AUTOSCALER = {
    "cluster_name": "fake",
    "max_workers": 1,
    "idle_timeout_minutes": 0.1,
    "upscaling_speed": 1.0,
    "provider": {
        "type": "fake_multinode",
        "gcs_address": HEAD,
        "use_node_id_as_ip": True,  # all its nodes have the address of this host
        "disable_node_updaters": True,
        "disable_launch_config_check": True,
    },
    "auth": {},
    "docker": {},
    "file_mounts": {},
    "cluster_synced_files": [],
    "file_mounts_sync_continuously": False,
    "rsync_exclude": [],
    "rsync_filter": [],
    **{f"{name}_commands": [] for name in COMMANDS},
    "head_node_type": "ray.head.default",
    "available_node_types": {
        "ray.head.default": {"resources": {"CPU": 1, "GPU": 1}, "node_config": {}, "max_workers": 0},
        # Ray only counts its GPU.
        "worker": {"resources": {"CPU": 1, "GPU": 1}, "node_config": {}, "min_workers": 0, "max_workers": 1},
    },
}


class Engine:
    """Hosted by the actors of this test."""

    def node(self):
        return ray.get_runtime_context().get_node_id()


def follow(root: Path) -> None:
    """The driver's side, on the host: an engine, a second one by request, and one again."""
    config = load_config(
        "configs/tiny.yaml", ["cluster.device=cuda", f"cluster.address={HEAD}", f"run_dir={root}"]
    )
    manager = FleetManager(config, root)
    manager.paths.config.parent.mkdir(parents=True)
    manager.paths.config.touch()
    manager.start(["collect"])
    fleet = Fleet("rollout", "tests.test_autoscaler:Engine", [{}], *manager._how_to_start("rollout"))
    manager.adopt(fleet, lambda index: {})
    (first,) = fleet.all("node")
    with try_lock(manager.paths.lock, "at work"):
        request_scale(root, ["rollout=2"])
        started, messages = time.monotonic(), manager.apply_scale_requests()
        while "rollout-1 has joined" not in messages:
            assert time.monotonic() < started + 150, (messages, ray.nodes())
            time.sleep(0.2)
            messages += manager.apply_scale_requests()
        print(f"joined after {time.monotonic() - started:.1f} s", flush=True)
        assert len({first, *fleet.all("node")}) == 2
        request_scale(root, ["rollout=1"])
        started = time.monotonic()
        while sum(node["Alive"] for node in ray.nodes()) > 1:
            assert time.monotonic() < started + 150, ray.nodes()
            time.sleep(0.2)
            manager.apply_scale_requests()
        print(f"the host was removed after {time.monotonic() - started:.1f} s", flush=True)
        assert fleet.all("node") == [first]
    manager.close()


@pytest.mark.slow
@pytest.mark.timeout(500)
def test_a_host_is_added_for_a_requested_engine_and_removed_after_it(capsys):
    cluster = Hosts(Path(f"/var/tmp/hero-hosts-{os.getpid()}-autoscaler"))
    try:
        host = cluster.add()
        # The provider finds the address of its nodes by the route to the rest of the world.
        assert host.run("ip", "route", "add", "default", "dev", "eth0") == 0, host.output()
        settings = cluster.shared / "autoscaler.json"
        settings.write_text(json.dumps(AUTOSCALER))
        head = [RAY, "start", "--head", f"--port={PORT}", "--node-ip-address=10.77.0.1", "--num-cpus=1"]
        options = ["--num-gpus=1", "--include-dashboard=false", "--disable-usage-stats"]
        variables = {
            "RAY_AUTH_MODE": "token",
            "RAY_FAKE_CLUSTER": "1",
            "RAY_enable_autoscaler_v2": "0",
            "AUTOSCALER_UPDATE_INTERVAL_S": "1",
        }
        memory = "--object-store-memory=100000000"
        started = host.run(*head, *options, memory, f"--autoscaling-config={settings}", **variables)
        assert started == 0, host.output()
        code = "import sys, pathlib, tests.test_autoscaler as t; t.follow(pathlib.Path(sys.argv[1]))"
        followed = host.run(sys.executable, "-c", code, str(cluster.shared / "run"), timeout=400)
        with capsys.disabled():
            print("\n" + "\n".join(line for line in host.output().splitlines() if " after " in line))
        assert followed == 0, host.output()
    finally:
        cluster.end()
