"""Recipes' own functions: trivia answers."""

from cluster.recipes.trivia import documents, is_held_out, judge, question


def test_trivia_answers_are_compared_as_people_would():
    row = question({"question": "Who?", "answer": "The Beatles", "options": []})[0]
    assert row["prompt"].endswith("\n\nWho?")
    assert judge(row, " the beatles. ", True) == {"score": 1.0, "exact": 1.0, "contains": 1.0}
    assert judge(row, "It was The Beatles!", True)["exact"] == 0.0
    assert judge(row, "It was The Beatles!", True)["contains"] == 1.0
    assert judge(row, "Beatlesque", True)["contains"] == 0.0
    assert judge(row, "", True)["score"] == 0.0


def test_text_to_learn_from_has_no_question_that_is_asked():
    rows = [{"question": f"Who was number {n}?", "answer": "Ann"} for n in range(200)]
    asked = [row for row in rows if is_held_out(row)]
    assert 5 < len(asked) < 50
    assert not [text for row in asked for text in documents(row)]
    learned = [text for row in rows if not is_held_out(row) for text in documents(row)]
    assert len(learned) == len(rows) - len(asked)
    assert learned[0]["text"].endswith("? Ann.")
