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
