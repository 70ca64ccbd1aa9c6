"""Fixtures of several test modules."""

import signal

import pytest

from tests.runs import OVERRIDES, start, wait_for_step, wait_until_finished


@pytest.fixture(scope="session")
def run(tmp_path_factory):
    """A finished run of all stages, interrupted by Ctrl-C in SFT and undisturbed in PPO."""
    root = tmp_path_factory.mktemp("e2e") / "run"
    process = start(root, *OVERRIDES)
    wait_for_step(process, root, "sft", 6)
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=90) == 130
    return wait_until_finished(start(root, *OVERRIDES), root)


EXPENSIVE = ("run", "endpoint")
"""Fixtures that several modules share and that take a minute to make."""


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    """Under `--dist loadgroup` one process runs all tests of a module, and one all modules that share an
    expensive fixture."""
    shared = {}
    for item in items:
        for name, definitions in item._fixtureinfo.name2fixturedefs.items():
            if name in EXPENSIVE and definitions[-1].scope in ("session", "package"):
                shared[item.path] = name
    for item in items:
        item.add_marker(pytest.mark.xdist_group(shared.get(item.path, str(item.path))))
