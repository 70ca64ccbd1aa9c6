"""`hero logs RUN [ACTOR]` prints what actors have printed, and follows a run at work."""

import fcntl
import os
import subprocess
import threading
import time

import pytest
from rich.console import Console

from cluster.run.logs import list_logs, print_log
from common.errors import UserError
from common.run_paths import RunPaths
from tests.runs import HERO, environment


@pytest.fixture
def root(tmp_path):
    logs = RunPaths(tmp_path).logs
    logs.mkdir()
    (logs / "learner-0.log").write_text("learner-0: host a (10.0.0.1), process 7\nloss [bold]\n")
    (logs / "rollout-0.log").write_text("rollout-0: host b (10.0.0.2), process 9\n")
    return tmp_path


def test_a_list_of_the_logs_and_one_of_them(root):
    done = subprocess.run(
        [*HERO, "logs", str(root)], capture_output=True, text=True, env=environment(), check=True
    )
    first, second = done.stdout.splitlines()
    assert first.startswith("learner-0 ")
    assert first.rstrip().endswith("loss [bold]")
    assert "host b (10.0.0.2)" in second
    console = Console(record=True)
    print_log(root, "learner-0", False, console)
    assert console.export_text().endswith("process 7\nloss [bold]\n")
    with pytest.raises(UserError, match=r"scoring-9: no log of this name in .* \(learner-0, rollout-0\)"):
        print_log(root, "scoring-9", False, console)


def test_a_log_is_followed_until_the_run_ends(root):
    console, log = Console(record=True), RunPaths(root).logs / "rollout-0.log"
    with open(RunPaths(root).lock, "a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        reader = threading.Thread(target=print_log, args=(root, "rollout-0", True, console))
        reader.start()
        time.sleep(1)
        with open(log, "a") as file:
            file.write("and more\n")
        assert reader.is_alive()
    reader.join(60)
    assert console.export_text().endswith("and more\n")


def test_a_run_on_a_file_system_whose_clock_is_ahead_has_no_negative_ages(root, capsys):
    ahead = time.time() + 500
    os.utime(RunPaths(root).logs / "rollout-0.log", (ahead, ahead))
    list_logs(root, Console(width=200))
    assert "       0 s ago" in capsys.readouterr().out
