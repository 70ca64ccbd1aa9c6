"""The data of the quickstart: equal for equal seeds, as imperfect as configured, with prompts held out.
Its oracle and its simulated labelers."""

import hashlib
import json
import random
from collections import Counter

import pytest
from pydantic import ValidationError

from cluster.quickstart.config import QuickstartConfig
from cluster.quickstart.generate import QuickstartWorld, write_quickstart_data
from cluster.quickstart.grammar import GRAMMAR, Relation
from cluster.quickstart.labelers import Labeler, make_labelers
from cluster.quickstart.oracle import BEST_UTILITY, judge, utility
from cluster.sampling_config import CollectConfig
from common.errors import UserError
from common.run_paths import RunPaths
from learners.objectives import ranking_pairs

CONFIG = QuickstartConfig(documents=6000, demonstrations=2000, prompts=800, heldout=200)
TINY = QuickstartConfig(documents=3000, demonstrations=400, prompts=60, heldout=24)
KINDS = ("corpus", "demonstrations", "prompts", "heldout")
# SHA-256 of the data of TINY, as the first version of the generator wrote it. Published figures rest on it.
DIGESTS = {
    "corpus": "04b25f44a64d9b1faa4b8dd1c4e64ff794cda176d30fc944b96b364b6669c067",
    "demonstrations": "0b31a13faa4f3d1df3a3efc3c4c559f6b9c4620f2148e2eccd78fa59a2b743d0",
    "prompts": "228ca537bd681f9ca1fdb1147ddb7e39656ac28a20bbdc799abae45d57252022",
    "heldout": "23a5b89732761a28f05e33d34cc4946b94506ae9b42a3e723f208dbb6b20e879",
}


@pytest.fixture(scope="module")
def paths(tmp_path_factory):
    paths = RunPaths(tmp_path_factory.mktemp("quickstart"))
    write_quickstart_data(paths, CONFIG)
    return paths


def rows(paths, kind):
    return [json.loads(line) for line in paths.data(kind).read_text().splitlines()]


def test_data_differs_between_seeds_and_not_within_one(paths, tmp_path):
    same, other = RunPaths(tmp_path / "same"), RunPaths(tmp_path / "other")
    write_quickstart_data(same, CONFIG)
    write_quickstart_data(other, CONFIG.model_copy(update={"seed": 1}))
    for kind in KINDS:
        assert same.data(kind).read_bytes() == paths.data(kind).read_bytes()
        assert other.data(kind).read_bytes() != paths.data(kind).read_bytes()


def test_data_of_the_tiny_config_has_its_published_digests(tmp_path):
    counts = write_quickstart_data(RunPaths(tmp_path), TINY)
    digests = {}
    for kind in KINDS:
        digests[kind] = hashlib.sha256(RunPaths(tmp_path).data(kind).read_bytes()).hexdigest()
    assert digests == DIGESTS
    assert counts == {"documents": 3000, "demonstrations": 400, "prompts": 60, "heldout": 24}


def test_held_out_prompts_are_in_no_training_data(paths):
    held_out = {row["prompt"] for row in rows(paths, "heldout")}
    corpus = paths.data("corpus").read_text()
    assert len(held_out) == CONFIG.heldout
    assert not held_out & {row["prompt"] for row in rows(paths, "prompts")}
    assert not held_out & {row["messages"][0]["content"] for row in rows(paths, "demonstrations")}
    # Four-letter prompts like "Hi!" could be part of other words; none of the held-out ones is in the corpus.
    assert not [prompt for prompt in held_out if prompt in corpus]


def test_every_task_is_in_the_training_and_held_out_prompts(paths):
    tasks = {row["task"] for row in rows(paths, "prompts")}
    assert tasks == {row["task"] for row in rows(paths, "heldout")}
    assert len(tasks) == len(GRAMMAR.relations) + 6


def test_misconceptions_outnumber_the_truth_only_where_meant():
    answers, rng = QuickstartWorld(CONFIG).answers, random.Random(0)
    counts = Counter()
    for fact in answers.facts:
        beliefs = Counter(answers.sample_belief(rng, fact.relation, fact.subject) for _ in range(300))
        is_misconceived = (fact.relation.name, fact.subject) in answers.misconceived
        counts[is_misconceived, beliefs.most_common(1)[0][0] == fact.value] += 1
    assert counts[True, True] == counts[False, False] == 0
    assert counts[True, False] == round(CONFIG.misconceived * len(answers.facts))


def test_demonstrations_are_imperfect_as_configured():
    world, rng = QuickstartWorld(CONFIG), random.Random(0)
    verdicts = []
    for _ in range(3000):
        row = world.prompts.sample(rng, held_out=False)
        verdicts.append(judge(row, world.answers.sample(rng, row)))
    rude = sum(verdict.rude for verdict in verdicts) / len(verdicts)
    coherent = sum(verdict.coherent for verdict in verdicts) / len(verdicts)
    factual = [verdict.factual for verdict in verdicts if verdict.factual is not None]
    assert 0.2 < rude < 0.32
    assert 0.85 < coherent < 0.95
    assert 0.4 < sum(factual) / len(factual) < 0.7


def test_a_statement_parses_back_to_its_value():
    for fact in QuickstartWorld(CONFIG).facts:
        for value in fact.relation.values():
            assert fact.relation.parse(fact.subject, fact.relation.state(fact.subject, value)) == value
    assert GRAMMAR.spelling.parse("cat", "The word cat is spelled c a t.") == "c a t"
    assert GRAMMAR.spelling.parse("cat", "The word dog is spelled d o g.") is None
    assert GRAMMAR.sorting.parse("pear, apple", "In order: pear, apple.") == "pear, apple"
    assert GRAMMAR.sorting.parse("pear, apple", "In order: plum, apple.") is None


def test_a_statement_that_starts_with_its_value_is_refused():
    relation = {"name": "x", "questions": [], "paraphrases": [], "facts": {}}
    with pytest.raises(ValidationError, match="not at its start"):
        Relation(**relation, statement="{value} is the capital of {subject}.")


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
def test_the_oracle_judges_by_the_grammar(row, text, factual, rude, coherent):
    verdict = judge(row, text)
    assert (verdict.factual, verdict.rude, verdict.coherent) == (factual, rude, coherent)


def test_a_truncated_response_is_incoherent():
    assert not judge(FRANCE, "The capital of France is Paris.", ended=False).coherent


def test_a_row_that_is_not_the_quickstarts_is_refused():
    with pytest.raises(UserError, match=r"the quickstart's prompts only, and not 'What is 1\+1\?'"):
        judge({"prompt": "What is 1+1?"}, "2.")


def test_utility_orders_right_then_polite_then_coherent():
    right_polite = utility(judge(FRANCE, "The capital of France is Paris."))
    right_rude = utility(judge(FRANCE, "The capital of France is Paris. Go away."))
    wrong_polite = utility(judge(FRANCE, "The capital of France is Rome."))
    wrong_rude = utility(judge(FRANCE, "The capital of France is Rome. Go away."))
    incoherent = utility(judge(FRANCE, "Rome Rome Rome"))
    assert BEST_UTILITY == right_polite == 6.0
    assert right_polite > right_rude > wrong_polite > incoherent > wrong_rude


def test_labelers_tie_equal_texts_and_follow_the_truth():
    responses = [
        "The capital of France is Paris.",
        "The capital of France is Rome.",
        "The capital of France is Paris.",
    ]
    faultless = Labeler("a", error_rate=0.0, preference=0.0)
    assert faultless.rank(FRANCE, responses, [True] * 3, random.Random(0)) == [1, 2, 1]
    erring = Labeler("b", error_rate=1.0)
    for seed in range(20):
        ranks = erring.rank(FRANCE, responses, [True] * 3, random.Random(seed))
        assert ranks[0] == ranks[2]


def test_labelers_agree_about_as_often_as_people():
    world, rng = QuickstartWorld(CONFIG), random.Random(0)
    labelers = make_labelers(8, 0, CollectConfig().error_rate)
    agreeing = compared = right = judged = 0
    for _ in range(1500):
        row = world.prompts.sample(rng, held_out=False)
        responses = [world.answers.sample(rng, row) for _ in range(6)]
        pairs = []
        for labeler in rng.sample(labelers, 2):
            pairs.append(set(ranking_pairs(labeler.rank(row, responses, [True] * 6, rng))))
        one, two = pairs
        utilities = [utility(judge(row, response)) for response in responses]
        agreeing += len(one & two)
        compared += len(one & two) + len(one & {(worse, better) for better, worse in two})
        right += sum(utilities[better] > utilities[worse] for better, worse in one)
        judged += sum(utilities[better] != utilities[worse] for better, worse in one)
    assert 0.69 < agreeing / compared < 0.79
    assert 0.82 < right / judged < 0.93


def test_labelers_of_different_runs_have_different_errors():
    assert make_labelers(4, 0, 0.2) == make_labelers(4, 0, 0.2)
    assert make_labelers(4, 0, 0.2) != make_labelers(4, 1, 0.2)
