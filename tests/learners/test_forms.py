"""Published forms by name (`convert: hh` and others): ten rows of each, what such files really hold, and what
cannot be right."""

import json
from pathlib import Path

import pytest

from common.errors import UserError
from learners.data.config import SourceConfig
from learners.data.forms.registry import FORMS, load_converter
from tests.learners.fixtures import reader

SHARED = Path(__file__).parents[3] / "shared" / "data"
NUMBERS = range(10)


def read(folder, form, kind, rows, **config):
    file = folder / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    dataset = reader(kind, **config)
    records = [record for _, record in dataset.read([SourceConfig(path=str(file), convert=form)])]
    return records, dataset


def user(text):
    return {"role": "user", "content": text}


def assistant(text):
    return {"role": "assistant", "content": text}


def hh_row(n):
    before = f"\n\nHuman: Question {n}?\n\nAssistant: Which one?\n\nHuman: That one.\n\nAssistant:"
    # Some answers are empty, and some lines end in spaces.
    return {"chosen": f"{before} Good {n}. ", "rejected": before + (f" Bad {n}." if n else "")}


def webgpt_row(n):
    score = [0.5, 0.0, -1.0][n % 3]
    return {
        "question": {"dataset": "eli5", "id": str(n), "full_text": f"Why {n}?"},
        "answer_0": f"Because [1] {n}",
        "answer_1": f"Since {n}",
        "score_0": score,
        "score_1": -score,
        "tokens_0": None,
    }


def ultrafeedback_row(n):
    def completion(model, rating, overall):
        aspects = ("helpfulness", "honesty", "instruction_following", "truthfulness")
        annotations = {aspect: {"Rating": rating, "Rationale": "…"} for aspect in aspects}
        return {
            "model": model,
            "response": f"{model} {n}",
            "overall_score": overall,
            "annotations": annotations,
        }

    # One was not rated, and one has an overall score that its ratings contradict.
    completions = [completion("a", "4", 7.5), completion("b", "1", 10.0), completion("c", "N/A", "N/A")]
    return {"source": "x", "instruction": f"Do {n}", "models": ["a", "b", "c"], "completions": completions}


def nectar_row(n):
    answers = [{"answer": f"second {n}", "model": "m2", "rank": 2.0}]
    answers.append({"answer": f"first {n}", "model": "m1", "rank": 1.0})
    return {"prompt": f"\n\nHuman: Ask {n}\n\nAssistant: ", "answers": answers, "turns": 1}


def summarize_row(n):
    summaries = [{"text": f" one {n}", "policy": "sup1", "note": None}, {"text": " two", "policy": "ref"}]
    info = {"id": f"t3_{n}", "post": f"A long post {n}", "title": "T", "subreddit": "AskReddit"}
    return {"info": info, "summaries": summaries, "choice": n % 2, "worker": f"w{n % 3}", "extra": {}}


def prism_row(n):
    def turn(number, role, content, **more):
        return {"turn": number, "role": role, "content": content, **more}

    history = [
        turn(0, "user", f"Hi {n}"),
        turn(0, "model", "good", model_name="x", score=90, if_chosen=True, within_turn_id=0),
        turn(0, "model", "poor", model_name="y", score=20, if_chosen=False, within_turn_id=1),
        turn(1, "user", "And?"),
        turn(1, "model", "more", model_name="x", score=50, if_chosen=True, within_turn_id=0),
        turn(1, "model", "same", model_name="x", score=50, if_chosen=False, within_turn_id=1),
    ]
    return {"conversation_id": f"c{n}", "user_id": f"user{n}", "conversation_history": history}


def oasst_row(n):
    def message(role, text, replies=(), **more):
        return {"message_id": text, "role": role, "text": text, "replies": list(replies), **more}

    later = message(
        "prompter", "More?", [message("assistant", "Yes.", rank=0), message("assistant", "No.", rank=1)]
    )
    best = message("assistant", "Best.", [later], rank=0, synthetic=True, model_name="m")
    gone = message("assistant", "Spam.", rank=2, deleted=True)
    other = message("assistant", "Other.", rank=1, synthetic=True, model_name="m")
    return {"message_tree_id": str(n), "prompt": message("prompter", f"Ask {n}", [other, best, gone])}


def shp_row(n):
    return {
        "history": f"Post {n}",
        "human_ref_A": "A",
        "human_ref_B": f"B {n}",
        "labels": n % 2,
        "score_A": 3,
    }


def alpaca_row(n):
    return {
        "instruction": f"Do {n}",
        "input": ["", "<noinput>", "this"][n % 3],
        "output": f"Done {n}",
        "text": "…",
    }


def sharegpt_row(n):
    turns = [{"from": "gpt", "value": "Welcome!"}, {"from": "human", "value": f"Ask {n}"}]
    turns += [{"from": "gpt", "value": "Part one."}, {"from": "chatgpt", "value": "Part two."}]
    return {"id": str(n), "conversations": [*turns, {"from": "human", "value": "Thanks"}]}


def openai_row(n):
    parts = [{"type": "text", "text": "Ask "}, {"type": "text", "text": str(n)}]
    return {"messages": [{"role": "developer", "content": "Be brief."}, user(parts), assistant(f"Done {n}")]}


RANKINGS = {
    "hh": (hh_row, "Good 3.", "Bad 3."),
    "webgpt": (webgpt_row, "Because [1] 3", "Since 3"),
    "ultrafeedback": (ultrafeedback_row, "a 3", "b 3"),
    "nectar": (nectar_row, "first 3", "second 3"),
    "openai_summarize": (summarize_row, " two", " one 3"),
    "prism": (prism_row, "good", "poor"),
    "oasst": (oasst_row, "Best.", "Other."),
    "shp": (shp_row, "A", "B 3"),
}


@pytest.mark.parametrize("form", RANKINGS)
def test_ten_rows_of_rankings(tmp_path, form):
    make, best, worst = RANKINGS[form]
    records, _ = read(tmp_path, form, "rankings", [make(n) for n in NUMBERS])
    assert len(records) == 10 * (2 if form in ("prism", "oasst") else 1)
    record = next(record for record in records if "3" in json.dumps(record.prompt))
    responses = dict(zip(record.responses, record.ranks, strict=True))
    assert responses == {best: 1, worst: 2}


DEMONSTRATIONS = {
    "alpaca": (alpaca_row, [user("Do 3"), assistant("Done 3")]),
    "sharegpt": (sharegpt_row, [user("Ask 3"), assistant("Part one.\n\nPart two.")]),
    "openai": (
        openai_row,
        [{"role": "system", "content": "Be brief."}, user("Ask 3"), assistant("Done 3")],
    ),
    "oasst": (oasst_row, [user("Ask 3"), assistant("Best."), user("More?"), assistant("Yes.")]),
    "hh": (
        hh_row,
        [user("Question 3?"), assistant("Which one?"), user("That one."), assistant("Good 3.")],
    ),
}


@pytest.mark.parametrize("form", DEMONSTRATIONS)
def test_ten_rows_of_demonstrations(tmp_path, form):
    make, messages = DEMONSTRATIONS[form]
    records, _ = read(tmp_path, form, "demonstrations", [make(n) for n in NUMBERS])
    assert len(records) == 10
    assert records[3].messages == messages


MAKERS = {name: maker for name, (maker, *_) in (RANKINGS | DEMONSTRATIONS).items()}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_gives_prompts(tmp_path, form):
    records, _ = read(tmp_path, form, "prompts", [MAKERS[form](n) for n in NUMBERS])
    assert any("3" in json.dumps(record.prompt) for record in records)


def test_ties_and_later_turns_are_kept(tmp_path):
    records, _ = read(tmp_path, "webgpt", "rankings", [webgpt_row(1)])
    assert records[0].ranks == [1, 1]
    records, _ = read(tmp_path, "prism", "rankings", [prism_row(1)])
    assert records[1].prompt == [user("Hi 1"), assistant("good"), user("And?")]
    assert (records[1].ranks, records[1].labeler) == ([1, 1], "user1")
    assert read(tmp_path, "openai_summarize", "rankings", [summarize_row(1)])[0][0].labeler == "w1"


def test_transcripts_are_recognised_by_either_mark(tmp_path):
    row = {side: f"## Human:\nWhy?\n\n\n\n## Assistant:\n{side} [2]" for side in ("chosen", "rejected")}
    records, _ = read(tmp_path, "webgpt", "rankings", [row])
    assert (records[0].prompt, records[0].responses) == ("Why?", ["chosen [2]", "rejected [2]"])


def test_pairs_of_conversations_in_other_forms(tmp_path):
    row = {"conversations": [{"from": "human", "value": "Q"}], "chosen": {"from": "gpt", "value": "good"}}
    row["rejected"] = {"from": "gpt", "value": "bad"}
    records, _ = read(tmp_path, "sharegpt", "rankings", [row])
    assert (records[0].prompt, records[0].responses) == ("Q", ["good", "bad"])
    outputs = {"preferred_output": [assistant("good")], "non_preferred_output": [assistant("bad")]}
    row = {"input": {"messages": [user("Q")], "tools": []}, **outputs}
    records, _ = read(tmp_path, "openai", "rankings", [row])
    assert (records[0].prompt, records[0].responses) == ("Q", ["good", "bad"])
    pair = {
        "prompt": "Q",
        "chosen": [user("Q"), assistant("good")],
        "rejected": [user("Q"), assistant("bad")],
    }
    records, _ = read(tmp_path, "ultrafeedback", "rankings", [pair])
    assert records[0].responses == ["good", "bad"]


WRONG = [
    ("hh", "rankings", {"chosen": "no marks", "rejected": "none"}, "key 'chosen': expected a transcript"),
    ("hh", "rankings", {"chosen": "\n\nHuman: a\n\nAssistant: b"}, "key 'rejected'"),
    (
        "hh",
        "rankings",
        {"chosen": "\n\nHuman: a\n\nAssistant: b", "rejected": "\n\nHuman: c\n\nAssistant: b"},
        "differ in the assistant's last turn",
    ),
    ("webgpt", "rankings", webgpt_row(0) | {"score_1": None}, "expected two numbers"),
    ("ultrafeedback", "rankings", {"instruction": "x", "completions": "none"}, "expected a list of objects"),
    ("nectar", "rankings", nectar_row(0) | {"answers": [{"answer": "x", "rank": 1}]}, "at least two"),
    ("openai_summarize", "rankings", summarize_row(0) | {"choice": 2}, "key 'choice'"),
    ("openai_summarize", "rankings", {"info": {}, "summary": {"axes": {}}}, "the set comparisons instead"),
    ("oasst", "rankings", {"message_id": "a", "parent_id": None, "text": "b"}, "flat form"),
    ("shp", "rankings", shp_row(0) | {"labels": 2}, "key 'labels'"),
    ("alpaca", "demonstrations", {"instruction": 3, "output": "x"}, "key 'instruction'"),
    ("sharegpt", "demonstrations", {"conversations": [{"from": "alien", "value": "x"}]}, "'alien' speaks"),
    ("sharegpt", "demonstrations", {"turns": []}, "no key of messages"),
    (
        "openai",
        "demonstrations",
        {"messages": [user([{"type": "image_url", "image_url": {}}]), assistant("x")]},
        "type text",
    ),
]


@pytest.mark.parametrize(("form", "kind", "row", "message"), WRONG)
def test_what_cannot_be_right_is_named_with_its_line(tmp_path, form, kind, row, message):
    good = MAKERS[form](3)
    with pytest.raises(UserError, match=r"rows.jsonl, line 2: ") as error:
        read(tmp_path, form, kind, [good, row])
    assert message in str(error.value)
    records, dataset = read(tmp_path, form, kind, [good, row], max_invalid_rows=1)
    assert records
    assert dataset.stats["invalid"] == 1


def test_rows_that_compare_or_teach_nothing_are_left_out(tmp_path):
    silent = ultrafeedback_row(0) | {"completions": ultrafeedback_row(0)["completions"][1:]}
    assert len(read(tmp_path, "ultrafeedback", "rankings", [silent, ultrafeedback_row(1)])[0]) == 1
    empty = alpaca_row(0) | {"output": ""}
    assert len(read(tmp_path, "alpaca", "demonstrations", [empty, alpaca_row(1)])[0]) == 1
    greeting = {"conversations": [{"from": "gpt", "value": "Welcome!"}]}
    assert len(read(tmp_path, "sharegpt", "demonstrations", [greeting, sharegpt_row(1)])[0]) == 1


def test_a_form_is_named_or_refused_before_anything_is_read():
    with pytest.raises(UserError, match=r"did you mean webgpt\?"):
        load_converter("web_gpt", "data.rankings.convert", "rankings")
    with pytest.raises(UserError, match="that form has no rankings; it has demonstrations, prompts, heldout"):
        load_converter("alpaca", "data.rankings.convert", "rankings")
    with pytest.raises(UserError, match="has no corpus"):
        load_converter("hh", "data.corpus.convert", "corpus")


@pytest.mark.parametrize(
    ("file", "form", "count"),
    [
        ("preferences/helpful.jsonl", "hh", 2352),
        ("preferences/harmless.jsonl", "hh", 1168),
        ("preferences/webgpt.jsonl", "webgpt", 656),
        ("oasst-rankings/en_100_tree.jsonl", "oasst", 212),
    ],
)
def test_published_files_are_read_whole(file, form, count):
    path = SHARED / file
    if not path.exists():
        pytest.skip(f"{path} is not there; docs/data.md says where it is published")
    dataset = reader("rankings")
    assert len(dataset.read([SourceConfig(path=str(path), convert=form)])) == count
    assert not dataset.stats["invalid"]
