"""What a run leaves to look at: metrics.jsonl, W&B's own files, lineage, and one HTML page."""

import io
import json
from datetime import datetime

import pytest
from rich.console import Console

from cluster.run.monitor import Monitor
from cluster.run.report import write_report
from cluster.run.summary import evaluation_table
from common.files import write_json


@pytest.fixture
def root(tmp_path, monkeypatch):
    for name in ("WANDB_API_KEY", "WANDB_MODE"):
        monkeypatch.delenv(name, raising=False)
    (tmp_path / "config.yaml").write_text("name: x\n")
    return tmp_path


def rows(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_continued_stage_has_every_step_once(root):
    with Monitor(root, "ppo", "x", {"seed": 0}) as monitor:
        for step in (1, 2, 3):
            monitor.log(step, {"objective/kl": step / 10, "loss/policy_avg": float("nan")})
            monitor.samples(step, [{"prompt": "p", "text": "t"}])
    with Monitor(root, "ppo", "x", {"seed": 0}) as monitor:
        earlier = monitor.truncate_after(2)  # the checkpoint was at step 2
        monitor.log(3, {"objective/kl": 9.0})
        model = root / "ppo" / "model"
        model.mkdir()
        monitor.lineage([root / "config.yaml"], [model])
    metrics = rows(root / "metrics.jsonl")
    assert [(row["step"], row["objective/kl"]) for row in metrics] == [(1, 0.1), (2, 0.2), (3, 9.0)]
    assert metrics[0]["loss/policy_avg"] is None
    assert earlier == metrics[:2]
    assert [row["step"] for row in rows(root / "ppo" / "samples.jsonl")] == [1, 2]
    assert rows(root / "lineage.jsonl")[0]["produced"] == [str(model)]
    assert len(list((root / "wandb").glob("offline-run-*/run-*.wandb"))) == 2


def test_samples_of_prompts_in_every_form(root):
    talk = [{"role": "user", "content": "x"}]
    named = [{"role": "user", "content": "x", "name": "n", "when": datetime(2024, 1, 2)}]
    with Monitor(root, "ppo", "x", {}) as monitor:
        monitor.samples(1, [{"prompt": p, "text": "t", "score": 1.0} for p in ("x", talk, named)])
        monitor.samples(1, [{"score": 1.0}, {"score": None, "right": True}])
    prompts = [row["prompt"] for row in rows(root / "ppo" / "samples.jsonl")[:3]]
    assert prompts == ["x", talk, [{**named[0], "when": "2024-01-02 00:00:00"}]]


def test_lineage_takes_any_name_of_a_run_or_file(root):
    model = root / ("a long name " * 12) / "models of *"
    model.mkdir(parents=True)
    with Monitor(root, "ppo", "my run: ü", {}) as monitor:
        monitor.lineage([root / "books" / "*.txt"], [model])
    assert rows(root / "lineage.jsonl")[0]["produced"] == [str(model)]


def test_report_holds_curves_evaluation_and_escaped_answers(root):
    with Monitor(root, "ppo", "x", {}) as monitor:
        for step in range(1, 1001):
            watched = {"rewards/model": 1.0, "rewards/other/model": 0.5, "rewards/quarantined": 0.0}
            monitor.log(step, {"objective/kl": step / 1000, **watched})
    (root / "evaluate").mkdir()
    rates = {"factual": 0.5, "rude": 0.1, "coherent": 0.9, "reward": 0.3, "length": 9.0, "count": 2.0}
    wins = {"rate": 0.7, "low": 0.6, "high": 0.8, "count": 2}
    write_json(root / "evaluate" / "results.json", {"stages": {"sft": {"greedy": rates}}, "win_rate": wins})
    answer = {"prompt": "p", "task": "t", "answers": {"sft": {"text": "</script><b>boo", "rude": True}}}
    turns = [("user", "hello"), ("assistant", "hi"), ("user", "how?")]
    talk = {**answer, "prompt": [{"role": role, "content": content} for role, content in turns]}
    (root / "evaluate" / "answers.jsonl").write_text(json.dumps(answer) + "\n" + json.dumps(talk) + "\n")
    page = write_report(root).read_text()
    assert page.count("</script>") == 1
    data = json.loads(page.split("const data = ", 1)[1].split(";\n", 1)[0])
    assert data["answers"][0]["answers"]["sft"]["text"] == "</script><b>boo"
    assert [line["prompt"] for line in data["answers"]] == ["p", "user: hello\nassistant: hi\nuser: how?"]
    chart, sources = data["charts"]
    assert list(sources["curves"]) == ["rewards/model", "rewards/other/model"]
    assert len(chart["curves"]["objective/kl"]) <= 300
    assert chart["curves"]["objective/kl"][-1][0] == 1000
    assert "http" not in page.replace("http://www.w3.org/2000/svg", "")


def test_rows_of_other_stages_and_cut_lines_survive_a_restart(root):
    for stage, last in (("sft", 9), ("ppo", 3)):
        with Monitor(root, stage, "x", {}) as monitor:
            for step in range(1, last + 1):
                monitor.log(step, {"loss/train": 1.0})
                monitor.batch(step, [step], "digest")
                monitor.alarm(step, "kl", "12 nats")
    with open(root / "metrics.jsonl", "a") as file:
        file.write('{"stage": "ppo", "st')  # as a crash leaves it
    with Monitor(root, "ppo", "x", {}) as monitor:
        assert [row["step"] for row in monitor.truncate_after(1)] == [1]
        monitor.log(2, {"loss/train": 2.0})
    steps = [(row["stage"], row["step"]) for row in rows(root / "metrics.jsonl")]
    assert steps == [("sft", step) for step in range(1, 10)] + [("ppo", 1), ("ppo", 2)]
    assert [row["step"] for row in rows(root / "ppo" / "batches.jsonl")] == [1]
    assert [row["step"] for row in rows(root / "ppo" / "alarms.jsonl")] == [1]
    assert len(rows(root / "sft" / "batches.jsonl")) == 9


def test_over_optimization_is_drawn_over_the_root_of_the_kl(root):
    with Monitor(root, "ppo", "x", {}) as monitor:
        monitor.log(1, {"eval/kl": 4.0, "eval/reward": 1.5})
        monitor.log(2, {"eval/kl": -0.1, "eval/reward": 1.0})
    write_json(root / "ppo" / "best_of_n.json", [{"n": 4, "kl": 0.25, "reward": 0.75}])
    page = write_report(root).read_text()
    data = json.loads(page.split("const data = ", 1)[1].split(";\n", 1)[0])
    (chart,) = [chart for chart in data["charts"] if chart.get("x")]
    assert chart["curves"] == {"PPO": [[2.0, 1.5], [0.0, 1.0]], "best of n": [[0.5, 0.75]]}


def test_report_lists_finished_stages_in_order(root):
    for stage in ("sft", "pretrain"):
        write_json(root / stage / "done.json", {"seconds": 1.0, "results": {"loss/validation": 2.0}})
    page = write_report(root).read_text()
    data = json.loads(page.split("const data = ", 1)[1].split(";\n", 1)[0])
    assert [stage["name"] for stage in data["stages"]] == ["pretrain", "sft"]
    assert data["stages"][0]["results"] == {"loss/validation": 2.0}


def test_the_table_of_a_run_with_an_environment_shows_whole_numbers_in_80_columns():
    measures = dict.fromkeys(("reward", "tool_calls", "tool_errors", "graded", "score", "right"), 12.34)
    measures |= dict.fromkeys(("episode/turns", "episode/return", "episode/failed", "length"), 123.45)
    console = Console(width=80, record=True, file=io.StringIO())
    console.print(evaluation_table({"stages": {"pretrain": {"greedy": measures, "sampled": measures}}}))
    row = next(line for line in console.export_text().splitlines() if "sampled" in line)
    assert row.split() == ["pretrain", "sampled", *["12.34"] * 6, *["123.45"] * 2]
