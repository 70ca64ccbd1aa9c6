"""The command line: bad input ends in one message on stderr and exit code 2, and leaves nothing behind."""

import pytest

from cluster import cli


def hero(monkeypatch, capsys, *args):
    monkeypatch.setattr("sys.argv", ["hero", *map(str, args)])
    try:
        cli.main()
        code = 0
    except SystemExit as stop:
        code = stop.code
    captured = capsys.readouterr()
    return code, captured.out, " ".join(captured.err.split())


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (("run", "nowhere.yaml"), "nowhere.yaml: no such config file"),
        (("run", "configs/tiny.yaml", "ppo.kl=1"), "unknown key ppo.kl"),
        (("run", "configs/tiny.yaml", "learners.ranks=64"), "learners.ranks=64"),
        (("run", "configs/tiny.yaml", "--from", "nothing"), "--from nothing: not one of the config's stages"),
        (("plan", "configs/tiny.yaml", "data.corpus=/nowhere"), "data.corpus=/nowhere: no such file"),
        (("report", "/nowhere"), "not a run directory"),
        (("serve", "/nowhere"), "/nowhere: no such directory"),
        (("chat", "http://127.0.0.1:9/v1"), "nothing answers there"),
        (("status", "--address", "http://127.0.0.1:9"), "no Ray job server answers there"),
        (("nonsense",), "No such command"),
    ],
)
def test_bad_input_is_one_message(monkeypatch, capsys, tmp_path, args, message):
    monkeypatch.setenv("RAY_ADDRESS", "")
    before = set(tmp_path.parent.iterdir())
    if args[0] == "run" and len(args) > 2:
        args = (*args, f"run_dir={tmp_path / 'run'}")
    code, _, err = hero(monkeypatch, capsys, *args)
    assert code == 2
    assert message in err
    assert "Traceback" not in err
    assert not (tmp_path / "run").exists()
    assert set(tmp_path.parent.iterdir()) == before


@pytest.mark.parametrize(
    "command",
    [
        ("report",),
        ("serve",),
        ("scale", "rollout=2"),
        ("promote",),
        ("rollback",),
        ("run", "configs/tiny.yaml"),
        ("plan", "configs/tiny.yaml"),
    ],
    ids=lambda command: command[0],
)
def test_run_of_an_older_layout_is_refused(monkeypatch, capsys, tmp_path, command):
    (tmp_path / "config.yaml").write_text("name: old\nppo: {save_every: 10}\n")
    name, *rest = command
    args = (name, *rest, f"run_dir={tmp_path}") if name in ("run", "plan") else (name, tmp_path, *rest)
    code, _, err = hero(monkeypatch, capsys, *args)
    assert code == 2
    assert "this run directory has the layout of an older version" in err
    assert [path.name for path in tmp_path.iterdir()] == ["config.yaml"]


def test_plan_starts_nothing(monkeypatch, capsys, tmp_path):
    code, out, _ = hero(monkeypatch, capsys, "plan", "configs/tiny.yaml", f"run_dir={tmp_path / 'run'}")
    assert code == 0
    assert "memory over all processes" in out
    assert not (tmp_path / "run").exists()
