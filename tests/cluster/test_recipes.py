"""Recipes' own functions: trivia answers."""

from cluster.recipes.trivia import judge, question


def test_trivia_answers_are_compared_as_people_would():
    row = question({"question": "Who?", "answer": "The Beatles", "options": []})[0]
    assert row["prompt"].endswith("\n\nWho?")
    assert judge(row, " the beatles. ", True) == {"score": 1.0, "exact": 1.0, "contains": 1.0}
    assert judge(row, "It was The Beatles!", True)["exact"] == 0.0
    assert judge(row, "It was The Beatles!", True)["contains"] == 1.0
    assert judge(row, "Beatlesque", True)["contains"] == 0.0
    assert judge(row, "", True)["score"] == 0.0
