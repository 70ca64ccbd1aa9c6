"""The accuracy of reward models by parts of the rankings."""

import numpy as np

from cluster.rounds.flags import flagged_accuracy, mark_flagged
from cluster.stages.reward_accuracy import cells, columns, tag_of
from learners.data.records import RankingRecord
from learners.supervised.agreement import PairAgreement, PairCounts

KEYS = ["round", "group", "flagged"]


def tags(*rows):
    ranking = {"prompt": "?", "responses": ["a", "b"], "ranks": [1, 2]}
    records = [RankingRecord.parse({**ranking, **dict(zip(KEYS, row, strict=True))}) for row in rows]
    return np.array([tag_of(KEYS, record) for record in records])


def counts(agreeing, total):
    return PairCounts(np.array(agreeing, float), np.array(total, float))


def test_columns_are_parts_of_the_first_key_where_these_are_finer():
    assert columns(tags((1, "training", "no"), (2, "training", "no"))) == ["round 1", "round 2"]
    found = columns(tags((1, "training", "no"), (2, "training", "no"), (2, "training", "yes")))
    assert found == [
        "round 1",
        "round 2",
        "round 1, flagged no",
        "round 2, flagged no",
        "round 2, flagged yes",
    ]
    both = columns(tags((1, "training", "yes"), (1, "public, all", "no")))
    assert both == ["round 1", *["round 1, group public all", "round 1, group training"], *both[3:]]
    assert both[3:] == ["round 1, flagged no", "round 1, flagged yes"]


def test_a_cell_counts_the_pairs_of_its_part_only():
    tags_P = tags((1, "training", "no"), (1, "simulated", "yes"), (10, "training", "yes"))
    labelers = counts([3, 1, 0], [4, 3, 1])
    agreement = PairAgreement(labelers, counts([0, 0, 0], [4, 3, 1]), counts([0, 0, 0], [0, 0, 0]))
    names, row = columns(tags_P), cells(agreement, tags_P)
    found = {name: (cell["value"], cell["pairs"]) for name, cell in zip(names, row, strict=True)}
    assert found["round 1"] == (4 / 7, 7)
    assert found["round 1, group simulated"] == (1 / 3, 3)
    assert found["round 1, flagged no"] == (3 / 4, 4)
    assert found["round 10, flagged yes"] == (0, 1)
    matrix = {"columns": names, "rows": [{"name": "reward-1", "cells": row}]}
    assert flagged_accuracy(matrix) == {"value": 1 / 4, "pairs": 4}
    assert flagged_accuracy({"columns": ["round 1"], "rows": [{"cells": row[:1]}]}) is None
    assert flagged_accuracy(None) is None


def test_an_item_is_flagged_for_all_if_one_person_objects():
    rows = [
        {"item": "a", "flags": [[], ["hallucination"]]},
        {"item": "a", "flags": [[], []]},
        {"item": "b", "flags": [["constraint_satisfied"], []], "prompt_flags": ["closed_domain"]},
        {"item": "c", "prompt_flags": ["unclear_intent"]},
    ]
    assert [row["flagged"] for row in mark_flagged(rows)] == ["yes", "yes", "no", "yes"]
