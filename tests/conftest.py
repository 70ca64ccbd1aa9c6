"""Fixtures of several test modules."""

import os
import re
import signal
from pathlib import Path

import hypothesis
import pytest

from tests.runs import OVERRIDES, start, wait_for_step, wait_until_finished

# Ray starts workers at priority 15, which starves them beside another process of these tests.
os.environ["RAY_worker_niceness"] = "0"  # noqa: SIM112 (Ray's spelling)
# A call of Ray's before `ray.init` would start a cluster, which other tests would find.
os.environ["RAY_ENABLE_AUTO_CONNECT"] = "0"
# The same examples in every run, however busy the machine; `--hypothesis-profile=default` draws others.
hypothesis.settings.register_profile("repeatable", derandomize=True, deadline=None)
hypothesis.settings.load_profile("repeatable")


@pytest.fixture(scope="session")
def run(tmp_path_factory):
    """A finished run of all stages, interrupted by Ctrl-C in SFT and undisturbed in PPO."""
    root = tmp_path_factory.mktemp("e2e") / "run"
    process = start(root, *OVERRIDES)
    wait_for_step(process, root, "sft", 6)
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=90) == 130
    return wait_until_finished(start(root, *OVERRIDES), root)


TESTS = Path(__file__).parent
SHARED_FIXTURE = re.compile(r"def test_\w+\([^)]*\b(run|endpoint)\b")
"""Fixtures of several modules, of this folder and of tests/serve, that take a minute to make."""


def group_of(file: str) -> str:
    """The tests that one process runs under `-n 2`: those of a module, or of all modules that share an
    expensive fixture."""
    path = TESTS.parent / file
    if path.parent not in (TESTS, TESTS / "serve"):
        return file
    shared = SHARED_FIXTURE.search(path.read_text(encoding="utf-8"))
    return f"{path.parent.name}: {shared[1]}" if shared else file


def pytest_xdist_make_scheduler(config, log):
    from xdist.scheduler import LoadScopeScheduling

    class ByGroup(LoadScopeScheduling):
        def _split_scope(self, nodeid):
            return group_of(nodeid.partition("::")[0])

    config.option.loadscopereorder = False
    return ByGroup(config, log)


def pytest_collection_modifyitems(items):
    """Long tests first, so that both processes end at about the same time."""
    long_groups = (TESTS, TESTS / "serve")
    items.sort(key=lambda item: item.path.parent not in long_groups)
