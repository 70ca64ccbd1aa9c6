"""What the terminal shows at the end of a run can be copied."""

import shlex

from rich.console import Console

from cluster.run.summary import print_summary
from common.files import write_json
from common.run_paths import RunPaths


def test_printed_command_is_quoted(tmp_path, capsys):
    root = tmp_path / "mit Leerzeichen [ü]" / "run"
    root.mkdir(parents=True)
    write_json(RunPaths(root).current, {"path": "versions/ppo-1"})
    print_summary(root, Console(width=40))
    line = capsys.readouterr().out.splitlines()[-1]
    command = line.removeprefix("talk to it: ").partition(", then")[0]
    assert shlex.split(command) == ["hero", "serve", str(root)]
