"""Every dtype of a run is resolved once, and a continued run keeps what it began with."""

import ast
from pathlib import Path

import pytest
import yaml

from cluster import jobs, plan
from cluster.config_loader import load_config
from cluster.precision import resolve
from cluster.rl.weight_sync import sync_tolerance
from cluster.run.directory import RunDirectory
from common import hardware
from common.hardware import fast_dtype

SECTIONS = ("learners", "ppo", "rollout", "scoring")


@pytest.fixture
def set_factor(monkeypatch):
    """Gives the probe a result."""

    def replace(factor):
        monkeypatch.setattr(hardware, "bfloat16_factor", lambda: factor)
        fast_dtype.cache_clear()

    yield replace
    fast_dtype.cache_clear()


def configured(folder, *overrides):
    return load_config(None, [f"run_dir={folder}", *overrides])


def dtypes(config):
    return {name: getattr(config, name).dtype for name in SECTIONS}


def test_auto_becomes_what_the_machine_multiplies_fast(tmp_path, set_factor):
    set_factor(0.02)
    config, lines = resolve(configured(tmp_path), serving=True)
    assert dtypes(config) == dict.fromkeys(SECTIONS, "float32")
    assert config.serve.dtype == "float32"
    reason = "this CPU multiplies bfloat16 0.02 times as fast as float32"
    assert lines == [
        f"dtype: learners, ppo, serve float32 ({reason}); rollout, scoring float32 (as ppo.dtype)"
    ]
    set_factor(4.0)
    assert dtypes(resolve(configured(tmp_path))[0]) == dict.fromkeys(SECTIONS, "bfloat16")


def test_engines_and_scorers_follow_ppo_unless_they_are_set(tmp_path, set_factor):
    set_factor(4.0)
    config, _ = resolve(configured(tmp_path, "ppo.dtype=float32", "rollout.dtype=bfloat16"))
    expected = {"learners": "bfloat16", "ppo": "float32", "rollout": "bfloat16", "scoring": "float32"}
    assert dtypes(config) == expected


def test_emulated_bfloat16_is_one_warning(tmp_path, set_factor):
    set_factor(0.02)
    _, lines = resolve(configured(tmp_path, "learners.dtype=bfloat16", "ppo.dtype=bfloat16"))
    assert len(lines) == 2
    assert lines[1].startswith("warning: learners.dtype and ppo.dtype: bfloat16, but this CPU multiplies")
    assert "0.02 times" in lines[1]


def test_continued_run_keeps_its_precision(tmp_path, set_factor):
    set_factor(4.0)
    first, _ = resolve(configured(tmp_path))
    run = RunDirectory(first)
    run.open()
    run.stage("ppo")
    run.begin("ppo")
    run.finish("ppo", 1.0, {})
    run.close()
    assert yaml.safe_load(run.paths.config.read_text())["ppo"]["dtype"] == "bfloat16"
    set_factor(0.02)
    again, lines = resolve(configured(tmp_path))
    assert dtypes(again) == dict.fromkeys(SECTIONS, "bfloat16")
    assert (
        "ppo.dtype stays bfloat16, with which this run began; this machine would choose float32" in lines[2]
    )
    # The finished stage is not refused.
    RunDirectory(again).open()
    anew, _ = resolve(configured(tmp_path), redo="pretrain")
    assert dtypes(anew) == dict.fromkeys(SECTIONS, "float32")


def test_plan_shows_the_resolved_values(tmp_path, set_factor, capsys):
    from rich.console import Console

    set_factor(0.02)
    config = load_config("configs/tiny.yaml", [f"run_dir={tmp_path}", "ppo.dtype=", "learners.ranks=1"])
    plan.print_plan(config, Console(width=200))
    printed = capsys.readouterr().out
    assert "dtype: auto" not in printed
    assert printed.count("dtype: float32") == 5
    assert "dtype: learners, ppo, serve float32 (this CPU multiplies bfloat16 0.02" in printed


def test_job_resolves_where_it_runs(tmp_path, monkeypatch):
    # The modules that this process has loaded are those of the tests.
    monkeypatch.setattr(jobs, "carry_modules", lambda folder: None)
    jobs._write_working_dir(tmp_path, configured(tmp_path / "run"))
    shipped = yaml.safe_load((tmp_path / "config.yaml").read_text())
    assert {shipped[name]["dtype"] for name in (*SECTIONS, "serve")} == {"auto"}


OTHER_AUTO = ("address", "executor", "init", "requested")
"""Names that are compared with an "auto" that is no dtype: addresses of Ray, and keys of that name."""


def test_no_other_module_knows_auto():
    """Where a dtype is used it is resolved: only the module that resolves it compares with "auto"."""
    allowed = {"common/config.py", "common/hardware.py"}
    for package in ("common", "learners", "actors", "serve", "cluster"):
        for path in Path(package).rglob("*.py"):
            compared = []
            for node in ast.walk(ast.parse(path.read_text())):
                if not isinstance(node, ast.Compare) or "auto" not in ast.unparse(node).split("'"):
                    continue
                if ast.unparse(node.left).rpartition(".")[2] not in OTHER_AUTO:
                    compared.append(node.lineno)
            assert not compared or str(path) in allowed, f"{path}: {compared}"


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["ppo.dtype=float32"], 1e-5),
        (["ppo.dtype=float32", "rollout.dtype=bfloat16"], 0.05),
        (["ppo.dtype=float32", "cluster.device=cuda"], 5e-3),
        (["ppo.dtype=float32", "cluster.device=cuda", "ppo.max_logprob_error=1e-4"], 1e-4),
    ],
)
def test_tolerance_of_a_weight_sync_is_that_of_dtype_and_device(overrides, expected):
    config, _ = resolve(load_config("configs/tiny.yaml", overrides))
    assert sync_tolerance(config) == expected
