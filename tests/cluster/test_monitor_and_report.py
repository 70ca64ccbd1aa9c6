"""What a run leaves to look at: metrics.jsonl, W&B's own files, lineage, and one HTML page."""

import json

import pytest

from cluster.run.directory import write_json
from cluster.run.monitor import Monitor
from cluster.run.report import write_report
from common.errors import UserError


@pytest.fixture
def root(tmp_path, monkeypatch):
    for name in ("WANDB_API_KEY", "WANDB_MODE"):
        monkeypatch.delenv(name, raising=False)
    (tmp_path / "config.yaml").write_text("name: x\n")
    return tmp_path


def rows(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_stage_that_goes_on_has_every_step_once(root):
    with Monitor(root, "ppo", "x", {"seed": 0}) as monitor:
        for step in (1, 2, 3):
            monitor.log(step, {"objective/kl": step / 10, "loss/policy_avg": float("nan")})
            monitor.samples(step, [{"prompt": "p", "text": "t"}])
    with Monitor(root, "ppo", "x", {"seed": 0}) as monitor:
        monitor.truncate("ppo", 2)  # the checkpoint was at step 2
        monitor.log(3, {"objective/kl": 9.0})
        model = root / "ppo" / "model"
        model.mkdir()
        monitor.lineage([root / "config.yaml"], [model])
    found = rows(root / "metrics.jsonl")
    assert [(r["step"], r["objective/kl"]) for r in found] == [(1, 0.1), (2, 0.2), (3, 9.0)]
    assert found[0]["loss/policy_avg"] is None
    assert [r["step"] for r in rows(root / "ppo" / "samples.jsonl")] == [1, 2]
    assert rows(root / "lineage.jsonl")[0]["produced"] == [str(model)]
    assert len(list((root / "wandb").glob("offline-run-*/run-*.wandb"))) == 2


def test_the_report_holds_curves_evaluation_and_answers_and_cannot_be_broken_out_of(root):
    with Monitor(root, "ppo", "x", {}) as monitor:
        for step in range(1, 1001):
            monitor.log(step, {"objective/kl": step / 1000})
    (root / "evaluate").mkdir()
    rates = {"factual": 0.5, "rude": 0.1, "coherent": 0.9, "reward": 0.3, "length": 9.0, "count": 2.0}
    won = {"rate": 0.7, "low": 0.6, "high": 0.8, "count": 2}
    write_json(root / "evaluate" / "results.json", {"stages": {"sft": {"greedy": rates}}, "win_rate": won})
    answer = {"prompt": "p", "task": "t", "answers": {"sft": {"text": "</script><b>boo", "rude": True}}}
    (root / "evaluate" / "answers.jsonl").write_text(json.dumps(answer) + "\n")
    page = write_report(root).read_text()
    assert page.count("</script>") == 1
    data = json.loads(page.split("const data = ", 1)[1].split(";\n", 1)[0])
    assert data["answers"][0]["answers"]["sft"]["text"] == "</script><b>boo"
    (chart,) = data["charts"]
    assert len(chart["curves"]["objective/kl"]) <= 300
    assert chart["curves"]["objective/kl"][-1][0] == 1000
    assert "http" not in page.replace("http://www.w3.org/2000/svg", "")


def test_a_folder_that_is_no_run_is_refused(tmp_path):
    with pytest.raises(UserError, match="not a run directory"):
        write_report(tmp_path)
