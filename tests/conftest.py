"""What tests of several modules share."""

import signal

import pytest

from tests.runs import OVERRIDES, finished, reach, start


@pytest.fixture(scope="session")
def run(tmp_path_factory):
    """A finished run of all stages that was stopped in SFT by Ctrl-C and killed outright in PPO."""
    root = tmp_path_factory.mktemp("e2e") / "run"
    process = start(root, *OVERRIDES)
    for stage, step, how in (("sft", 6, signal.SIGINT), ("ppo", 2, signal.SIGKILL)):
        reach(process, root, stage, step)
        process.send_signal(how)
        assert process.wait(timeout=90) == {signal.SIGINT: 130, signal.SIGKILL: -signal.SIGKILL}[how]
        process = start(root, *OVERRIDES)
    return finished(process, root)
