"""What other processes print is kept; the terminal gets errors alone."""

import pytest

from common.logs import keep_output


@pytest.mark.parametrize(
    ("source", "line", "is_shown"),
    [
        (
            "LearnerActor 12",
            "Setting accelerator to CPU. If you have GPU, we were unable …",
            False,
        ),
        (
            "ServeController 7",
            "WARNING 2026-01-01 controller 7 -- 1 replicas have taken 30s",
            False,
        ),
        ("ServeController 7", "ERROR 2026-01-01 controller 7 -- Exception in Replica(id='a')", True),
        ("RolloutActor 3", "rollout-0: ERROR engine died", True),
        ("RolloutActor 3", "rollout-0: ERROR Setting accelerator to CPU", False),
        ("RolloutActor 3", "an ERROR is spoken of", False),
        ("raylet", "Memory on the node is over the threshold; killed a worker", True),
        ("raylet", "Task ServeController.graceful_shutdown failed. There are infinite retries", False),
    ],
)
def test_errors_reach_the_terminal_and_everything_the_file(tmp_path, capsys, source, line, is_shown):
    log = tmp_path / "logs" / "ray.log"
    keep_output(log, source, [line], is_message=source == "raylet")
    assert log.read_text() == f"({source}) {line}\n"
    assert capsys.readouterr().err == (f"{line}\n" if is_shown else "")
