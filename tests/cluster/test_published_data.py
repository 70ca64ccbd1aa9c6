"""The published data sets as the configs read them; skipped where the files are not at hand."""

from pathlib import Path

import pytest

from cluster.config_loader import load_config
from cluster.context import Context
from cluster.recipes import gsm8k
from cluster.recipes.qa_feedback import answers, comparisons, weak_order
from cluster.run.directory import RunDirectory
from common.errors import UserError
from learners.objectives import ranking_pairs

DATA = Path(__file__).parents[3] / "shared" / "data"
needs_data = pytest.mark.skipif(not DATA.is_dir(), reason=f"the data sets are not in {DATA}")


def read(config, kind, tmp_path):
    loaded = load_config(f"configs/{config}.yaml", [f"data.root={DATA}", f"run_dir={tmp_path}"])
    rows, reader = Context(loaded, RunDirectory(loaded), None).read(kind)  # type: ignore[arg-type]
    return [record for _, record in rows], reader


def test_a_weak_order_agrees_with_all_comparisons_or_is_none():
    assert weak_order([1, 1, 1, 1, 1, 1]) == [1, 2, 3, 4]
    assert weak_order([0, 2, 1, 2, 1, 1]) == [2, 2, 1, 4]
    assert weak_order([0] * 6) == [1, 1, 1, 1]
    assert weak_order([1, 2, 0, 1, 0, 0]) is None  # 1 over 2 over 3 over 1
    row = {f"prediction {i}": str(i) for i in range(1, 5)} | {
        "question": "q",
        "passages": [],
        "preference": [1, 2, 0, 1, 0, 0],
    }
    rankings = [(r["responses"], r["ranks"]) for r in comparisons(row)]
    assert rankings[:3] == [(["*1", "*2"], [1, 2]), (["*1", "*3"], [2, 1]), (["*1", "*4"], [1, 1])]


def test_words_that_no_passage_has_are_marked():
    row = {
        "passages": [["Moon", "The Moon is far.", "It is round."]],
        "prediction 1": "It is, round!",
        "prediction 2": "is far",
    }
    row |= {"prediction 3": "Round - It is far", "prediction 4": ""}
    assert answers(row) == ["It is, round!", "is far", "Round - *It is far", ""]


def test_a_user_in_prompts_and_in_heldout_is_refused(tmp_path):
    for name, users in (("prompts", "abc"), ("heldout", "cde")):
        (tmp_path / f"{name}.jsonl").write_text("".join(f'{{"prompt": "p", "user": "{u}"}}\n' for u in users))
    files = [
        f"data.root={tmp_path}",
        "data.prompts=prompts.jsonl",
        "data.heldout=heldout.jsonl",
        "data.split_key=user",
    ]
    config = load_config("configs/tiny.yaml", [*files, f"run_dir={tmp_path}"])
    context = Context(config, RunDirectory(config), None)  # type: ignore[arg-type]
    context.read("prompts")
    with pytest.raises(UserError, match=r"user 'c' \(one of 1\) is in data.prompts and in data.heldout"):
        context.read("heldout")


@needs_data
def test_smollm2_learns_from_pairs_and_is_asked_other_questions(tmp_path):
    pairs, reader = read("smollm2", "rankings", tmp_path)
    others, _ = read("smollm2_judge", "rankings", tmp_path)
    assert (len(pairs), len(others)) == (1176, 1176)
    assert not {record.split_text for record in pairs} & {record.split_text for record in others}
    assert not reader.stats["invalid"]
    asked = {record.split_text for record in read("smollm2", "prompts", tmp_path)[0]}
    heldout = {record.split_text for record in read("smollm2", "heldout", tmp_path)[0]}
    assert (len(asked), len(heldout)) == (1176, 235)
    assert not asked & heldout


@needs_data
def test_qa_feedback_keeps_every_comparison(tmp_path):
    rows, reader = read("qa_feedback", "rankings", tmp_path)
    assert reader.stats["read"] == 500
    assert len(rows) == 478 + 22 * 6
    assert sum(len(ranking_pairs(record.ranks)) for record in rows) == 2616  # 3,000 less 384 ties


@pytest.mark.parametrize(
    ("solution", "answer"),
    [
        ("… #### 1,234", "1234"),
        ("#### 5.50 dollars", "5.5"),
        ("#### -3", "-3"),
        ("#### 1\n#### 2", "2"),
        ("12", None),
    ],
)
def test_the_final_answer_is_the_number_after_the_marks(solution, answer):
    assert gsm8k.final_answer(solution) == answer
    assert gsm8k.exact_match({"answer": "1234"}, solution, True) == (answer == "1234")


@needs_data
def test_gsm8k_rewards_human_solutions_without_annotations(tmp_path):
    problems, _ = read("gsm8k", "prompts", tmp_path)
    solutions, _ = read("gsm8k", "demonstrations", tmp_path)
    assert len(problems) == len(solutions) == 7473
    for problem, solution in zip(problems, solutions, strict=True):
        text = solution.messages[1]["content"]
        assert gsm8k.exact_match(problem.user_row(), text, True) == 1
        assert "<<" not in text
