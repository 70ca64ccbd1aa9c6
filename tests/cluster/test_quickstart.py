"""The quickstart world: the same for a seed, imperfect as meant, held out where it says so; a just oracle."""

import json
import random
from collections import Counter

import pytest

from cluster.quickstart import facts
from cluster.quickstart.config import QuickstartConfig
from cluster.quickstart.generate import World, write_quickstart_data
from cluster.quickstart.labelers import Labeler, make_labelers
from cluster.quickstart.oracle import judge, utility
from learners.objectives import ranking_pairs

CONFIG = QuickstartConfig(documents=6000, demonstrations=2000, prompts=800, heldout=200)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("world")
    write_quickstart_data(path, CONFIG)
    return path


def rows(folder, name):
    return [json.loads(line) for line in (folder / f"{name}.jsonl").read_text().splitlines()]


def test_the_same_seed_makes_the_same_world_and_another_makes_another(folder, tmp_path):
    write_quickstart_data(tmp_path / "same", CONFIG)
    write_quickstart_data(tmp_path / "other", CONFIG.model_copy(update={"seed": 1}))
    for name in ("corpus.txt", "demonstrations.jsonl", "prompts.jsonl", "heldout.jsonl"):
        assert (tmp_path / "same" / name).read_bytes() == (folder / name).read_bytes()
        assert (tmp_path / "other" / name).read_bytes() != (folder / name).read_bytes()


def test_held_out_prompts_are_nowhere_else(folder):
    held = {row["prompt"] for row in rows(folder, "heldout")}
    corpus = (folder / "corpus.txt").read_text()
    assert len(held) == CONFIG.heldout
    assert not held & {row["prompt"] for row in rows(folder, "prompts")}
    assert not held & {row["messages"][0]["content"] for row in rows(folder, "demonstrations")}
    # Four-letter prompts like "Hi!" could be part of other words; none of the held-out ones is in the corpus.
    assert not [prompt for prompt in held if prompt in corpus]


def test_every_task_is_asked_in_training_and_held_out(folder):
    tasks = {row["task"] for row in rows(folder, "prompts")}
    assert tasks == {row["task"] for row in rows(folder, "heldout")}
    assert len(tasks) == len(facts.RELATIONS) + 6


def test_misconceptions_outnumber_the_truth_for_the_doubtful_facts_only():
    world, draw = World(CONFIG), random.Random(0)
    wins = Counter()
    for relation, subject, truth in world.facts:
        told = Counter(world.told(draw, relation, subject) for _ in range(300))
        wins[(relation.name, subject) in world.doubtful, told.most_common(1)[0][0] == truth] += 1
    assert wins[True, True] == wins[False, False] == 0
    assert wins[True, False] == round(CONFIG.misconceived * len(world.facts))


def test_demonstrations_are_imperfect_as_configured(folder):
    world, draw = World(CONFIG), random.Random(0)
    verdicts = [
        judge(row, world.answer(draw, row)) for row in (world.row(draw, held_out=False) for _ in range(3000))
    ]
    rude = sum(v.rude for v in verdicts) / len(verdicts)
    coherent = sum(v.coherent for v in verdicts) / len(verdicts)
    right = [v.factual for v in verdicts if v.factual is not None]
    assert 0.2 < rude < 0.32
    assert 0.85 < coherent < 0.95
    assert 0.4 < sum(right) / len(right) < 0.7


FRANCE = {
    "prompt": "What is the capital of France?",
    "task": "capital",
    "subject": "France",
    "answers": ["Paris"],
}
SUM = {"prompt": "What is 2 plus 3?", "task": "arithmetic", "subject": "2 plus 3", "answers": ["5"]}
INSULT = {"prompt": "You are slow.", "task": "provocation", "subject": "slow", "answers": None}


@pytest.mark.parametrize(
    ("row", "text", "factual", "rude", "coherent"),
    [
        (FRANCE, "The capital of France is Paris.", True, False, True),
        (FRANCE, "Of course. The capital of France is Paris.", True, False, True),
        (FRANCE, "The capital of France is Rome.", False, False, True),
        (FRANCE, "The capital of France is Paris. Go away.", True, True, True),
        (FRANCE, "The capital of Spain is Madrid.", False, False, False),
        (FRANCE, "The capital of France is Europe.", False, False, False),
        (FRANCE, "The capital of France is Paris. The capital of Spain is Madrid.", False, False, False),
        (FRANCE, "The capital of France is Paris and so on and so on.", False, False, False),
        (FRANCE, "", False, False, False),
        (SUM, "The answer is 5.", True, False, True),
        (SUM, "The answer is 6.", False, False, True),
        (SUM, "The answer is Rome.", False, False, False),
        (INSULT, "I am sorry. I will try to do better.", None, False, True),
        (INSULT, "You are slow yourself.", None, True, True),
        (INSULT, "Paris.", None, False, False),
    ],
)
def test_the_oracle_is_just(row, text, factual, rude, coherent):
    verdict = judge(row, text)
    assert (verdict.factual, verdict.rude, verdict.coherent) == (factual, rude, coherent)


def test_an_answer_that_was_cut_off_is_incoherent():
    assert not judge(FRANCE, "The capital of France is Paris.", ended=False).coherent


def test_right_beats_polite_beats_coherent():
    right_rude = utility(judge(FRANCE, "The capital of France is Paris. Go away."))
    wrong_polite = utility(judge(FRANCE, "The capital of France is Rome."))
    wrong_rude = utility(judge(FRANCE, "The capital of France is Rome. Go away."))
    babble = utility(judge(FRANCE, "Rome Rome Rome"))
    assert right_rude > wrong_polite > babble > wrong_rude


def test_labelers_tie_equal_texts_and_a_faultless_one_follows_the_truth():
    responses = [
        "The capital of France is Paris.",
        "The capital of France is Rome.",
        "The capital of France is Paris.",
    ]
    faultless = Labeler("a", error_rate=0.0, taste=0.0)
    assert faultless.rank(FRANCE, responses, [True] * 3, random.Random(0)) == [1, 2, 1]
    erring = Labeler("b", error_rate=1.0)
    for seed in range(20):
        ranks = erring.rank(FRANCE, responses, [True] * 3, random.Random(seed))
        assert ranks[0] == ranks[2]


def test_labelers_agree_about_as_often_as_real_ones():
    from cluster.config import CollectConfig

    world, draw = World(CONFIG), random.Random(0)
    labelers = make_labelers(8, 0, CollectConfig().error_rate)
    alike = compared = right = judged = 0
    for _ in range(1500):
        row = world.row(draw, held_out=False)
        answers = [world.answer(draw, row) for _ in range(6)]
        one, two = (
            set(ranking_pairs(j.rank(row, answers, [True] * 6, draw))) for j in draw.sample(labelers, 2)
        )
        worth = [utility(judge(row, a)) for a in answers]
        alike += len(one & two)
        compared += len(one & two) + len(one & {(b, a) for a, b in two})
        right += sum(worth[a] > worth[b] for a, b in one)
        judged += sum(worth[a] != worth[b] for a, b in one)
    assert 0.69 < alike / compared < 0.79
    assert 0.82 < right / judged < 0.93
