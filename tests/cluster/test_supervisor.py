"""`hero run --retries`: a failed driver is started again where that can help, and signals reach it."""

import os
import signal
import subprocess
import sys
import time

import pytest

from cluster.supervisor import Supervisor, is_retried

SUPERVISE = (
    "import sys; from cluster.supervisor import Supervisor\n"
    "sys.exit(Supervisor(sys.argv[2:], int(sys.argv[1]), lambda line: print(line, flush=True)).run())"
)
COUNTED = (
    "import os, pathlib, sys\n"
    "log = pathlib.Path(sys.argv[1]); starts = len(log.read_text()) if log.exists() else 0\n"
    "log.write_text('x' * (starts + 1))\n"
)


def driver(tmp_path, ending):
    """A command that counts its starts in a file and then runs `ending`."""
    return [sys.executable, "-c", COUNTED + ending, str(tmp_path / "starts")]


def starts(tmp_path):
    return len((tmp_path / "starts").read_text())


def supervise(retries, command):
    lines = []
    try:
        return Supervisor(command, retries, lines.append).run(), lines
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.mark.parametrize("code", [1, 4, 5, 137, 139, 143])
def test_failures_that_may_pass_are_retried(tmp_path, code):
    assert is_retried(code)
    assert supervise(2, driver(tmp_path, f"sys.exit({code})"))[0] == code
    assert starts(tmp_path) == 3


@pytest.mark.parametrize("code", [0, 2, 3, 130])
def test_success_wrong_input_rules_and_stops_are_final(tmp_path, code):
    assert not is_retried(code)
    assert supervise(2, driver(tmp_path, f"sys.exit({code})"))[0] == code
    assert starts(tmp_path) == 1


def test_killed_driver_is_started_again_until_it_ends(tmp_path):
    ending = f"starts < 2 and os.kill(os.getpid(), {int(signal.SIGKILL)})"
    code, lines = supervise(3, driver(tmp_path, ending))
    assert code == 0
    assert lines == [
        "the driver ended with exit code 137; retry 1 of 3",
        "the driver ended with exit code 137; retry 2 of 3",
    ]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signals_reach_the_driver_and_end_the_retries(tmp_path, number):
    wait = (
        "import signal, time\n"
        "def end(number, frame): pathlib.Path(sys.argv[1] + '.signal').write_text(str(number)); sys.exit(1)\n"
        "signal.signal(signal.SIGTERM, end); signal.signal(signal.SIGINT, end)\n"
        "pathlib.Path(sys.argv[1] + '.ready').write_text('')\n"
        "time.sleep(60)"
    )
    command = [sys.executable, "-c", SUPERVISE, "5", *driver(tmp_path, wait)]
    process = subprocess.Popen(
        command, preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler)
    )
    deadline = time.monotonic() + 30
    while not (tmp_path / "starts.ready").exists():
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(number)
    assert process.wait(timeout=30) == 1  # a code that is retried, if nobody asked to stop
    assert (tmp_path / "starts.signal").read_text() == str(int(number))
    assert starts(tmp_path) == 1


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_repeated_signal_does_not_interrupt_the_shutdown(number):
    code = (
        "import os, signal, time; from cluster.supervisor import interrupt_on_signals\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "interrupt_on_signals()\n"
        f"try: os.kill(os.getpid(), {int(number)}); time.sleep(30)\n"
        f"except KeyboardInterrupt: os.kill(os.getpid(), {int(number)}); time.sleep(0.1); print('closed')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=os.environ)
    assert (done.returncode, done.stdout) == (0, "closed\n"), done.stderr
