"""Rankings on their way from the collect stage, and from people, to the reward stage."""

import json
from types import SimpleNamespace

import numpy as np
import pytest

from actors.config import Decoding
from cluster.context import Context
from cluster.sampling_config import CollectConfig, EvaluateConfig
from cluster.stages.collect import SampledPrompts, count_same_and_opposite, label
from cluster.stages.reward import cross_validate, oracle_score
from common.errors import UserError
from common.files import read_jsonl, write_jsonl
from common.run_paths import RunPaths
from learners.config import RewardModelConfig
from learners.data.config import DataConfig, SourceConfig
from learners.data.ranking_groups import encode_rankings
from learners.data.records import RankingRecord, ResponsesRecord
from learners.data.samples import Samples, offsets_of
from learners.data.sources import DatasetReader
from learners.data.tokenizer import train_tokenizer
from serve.feedback import Feedback, store

ROWS = [
    {"prompt": f"What is the capital of {a}?", "task": "capital", "subject": a, "answers": [b]}
    for a, b in (("France", "Paris"), ("Peru", "Lima"), ("Japan", "Tokyo"), ("Kenya", "Nairobi"))
]


def context(folder, **collect):
    config = SimpleNamespace(
        seed=3,
        collect=CollectConfig(**collect),
        evaluate=EvaluateConfig(),
        reward_model=RewardModelConfig(folds=3),
    )
    run = SimpleNamespace(paths=RunPaths(folder))
    fleets = SimpleNamespace(learners=lambda: None)
    return Context(config, run, fleets)  # type: ignore[arg-type]


def collected(rows=ROWS):
    """Four responses to each prompt, of which the second is right."""
    records = []
    for row in rows:
        subject, answer = row["subject"], row["answers"][0]
        texts = ["No idea.", f"The capital of {subject} is {answer}.", "Find out yourself.", "Rome"]
        entry = {"prompt": row["prompt"], "row": row, "responses": texts}
        entry |= {
            "policy": [{"model": "run", "version": "sft-0"}] * 4,
            "decoding": [{"temperature": 1.0}] * 4,
        }
        records.append(ResponsesRecord.parse(entry))
    return records


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer([row["prompt"] for row in ROWS], 300)


def test_every_response_has_its_policy_and_decoding_settings(tokenizer):
    ids = [[1, 2], [9, 10, 11], [3], [4, 5]]
    samples = Samples(
        tokens_N=np.concatenate([np.array([7, *tokens], dtype=np.int32) for tokens in ids]),
        offsets=offsets_of([1 + len(tokens) for tokens in ids]),
        prompt_lengths_B=np.ones(4, dtype=np.int32),
        logprobs_N=np.zeros(12, dtype=np.float32),
        versions_N=np.zeros(12, dtype=np.int32),
        prompt_ids_B=np.array([2, 2, 0, 0]),
        ended_B=np.array([True, False, True, True]),
    )
    source, decoding = {"model": "run", "version": "sft-0"}, Decoding(temperature=1.0, max_tokens=8)
    records = list(SampledPrompts(ROWS, tokenizer, source, decoding, 2).records(samples))
    assert [record.row for record in records] == [ROWS[2], ROWS[0]]
    assert [record.ended for record in records] == [[True, False], [True, True]]
    for record in records:
        stored = json.loads(json.dumps(record.stored_row()))
        assert stored["policy"] == [source] * 2
        assert stored["decoding"] == [decoding.model_dump()] * 2
        assert ResponsesRecord.parse(stored).responses == record.responses


def test_labelers_rank_every_prompt_and_some_twice(tmp_path):
    (tmp_path / "collect").mkdir()
    results = label(context(tmp_path, labelers=3, error_rate=0.0, overlap=1.0), collected())
    rows = [json.loads(line) for line in (tmp_path / "collect" / "rankings.jsonl").read_text().splitlines()]
    assert results["prompts"] == 4
    assert results["rankings"] == len(rows) == 8
    assert results["agreement/pairs"] > 0
    assert results["agreement/labelers"] > 0.5
    for first, second in zip(rows[::2], rows[1::2], strict=True):
        assert first["labeler"] != second["labeler"]
        assert RankingRecord.parse(first).ranks[1] == 1  # without errors the right response is best
    again = label(context(tmp_path, labelers=3, error_rate=0.0, overlap=1.0), collected())
    assert again == results
    once = label(context(tmp_path, labelers=3, overlap=0.0), collected())
    assert (once["rankings"], once["agreement/pairs"]) == (4, 0)


def test_labelers_rank_in_the_workplace_as_people_do(tmp_path):
    stage = context(tmp_path, labelers=3, error_rate=0.0, overlap=1.0, workplace=True)
    stage.run.root = tmp_path
    rows = [{**row, "prompt": f"{row['prompt']} ({i})"} for i in range(5) for row in ROWS]
    records = collected(rows)
    write_jsonl(stage.run.paths.responses, [record.stored_row() for record in records])
    results = label(stage, records)
    assert (results["prompts"], results["rankings"]) == (20, 40)
    assert results["agreement/labelers"] > 0.9
    written = [RankingRecord.parse(row) for row in read_jsonl(stage.run.paths.rankings)]
    assert {record.prompt for record in written} == {row["prompt"] for row in rows}
    assert all(record.ranks[1] == 1 for record in written)  # without errors the right response is best
    # Again, as after an interruption: the labels are there, and nobody is asked for more.
    assert label(stage, records) == results


def test_pairs_that_two_rankings_order_alike_are_counted():
    assert count_same_and_opposite([1, 2, 3], [1, 2, 3]) == (3, 0)
    assert count_same_and_opposite([1, 2, 3], [2, 1, 3]) == (2, 1)
    assert count_same_and_opposite([1, 1, 2], [1, 2, 1]) == (0, 1)  # a tie in either is neither


def test_rankings_of_people_leave_the_accuracy_against_truth_on(tmp_path, tokenizer):
    paths = RunPaths(tmp_path)
    (tmp_path / "collect").mkdir()
    stage = context(tmp_path, labelers=3, overlap=0.0)
    label(stage, collected())
    answers = [{"text": text, "version": "ppo-1", "model": "hero"} for text in ("one", "two")]
    messages = [{"role": "user", "content": "What do people like?"}]
    store(paths, Feedback(messages=messages, answers=answers, ranks=[1, 2], consent=True))

    reader = DatasetReader("rankings", DataConfig(), 0)
    files = (paths.rankings, paths.feedback_rankings)
    rows = reader.read([SourceConfig(path=str(path)) for path in files])
    data = encode_rankings(rows, tokenizer, 128, reader, oracle_score=oracle_score(stage))
    for g in range(4):
        members, ranks = data.oracle_ranking(g)
        assert members == [0, 1, 2, 3]
        assert ranks[1] == 1
    assert data.oracle_ranking(4) == ([], [])


def test_more_folds_than_prompts_are_refused(tmp_path, tokenizer):
    file = tmp_path / "rankings.jsonl"
    refusal = "reward_model.folds=3: 2 different items cannot be divided"
    # Three prompts of two users, or two prompts.
    pairs = [{"prompt": p, "chosen": "a", "rejected": "b", "user": u} for p, u in ("pu", "qv", "rv")]
    for config, kept in ((DataConfig(split_key="user"), pairs), (DataConfig(), pairs[:2])):
        reader = DatasetReader("rankings", config, 0)
        file.write_text("".join(json.dumps(pair) + "\n" for pair in kept))
        data = encode_rankings(reader.read([SourceConfig(path=str(file))]), tokenizer, 64, reader)
        with pytest.raises(UserError, match=rf"{refusal}.* data.split_key"):
            cross_validate(context(tmp_path), tmp_path, data)
