"""What tests of several modules share."""

import signal

import pytest

from tests.runs import OVERRIDES, finished, reach, start


@pytest.fixture(scope="session")
def run(tmp_path_factory):
    """A finished run of all stages that was stopped in SFT by Ctrl-C, and that nobody disturbed in PPO."""
    root = tmp_path_factory.mktemp("e2e") / "run"
    process = start(root, *OVERRIDES)
    reach(process, root, "sft", 6)
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=90) == 130
    return finished(start(root, *OVERRIDES), root)
