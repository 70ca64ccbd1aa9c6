"""What prompts are used for: by their text, for ever, and never for training what was kept from it."""

import pytest

from cluster.config import RunConfig
from cluster.rounds.evidence import prompt_text
from cluster.rounds.items import expanded, shown
from cluster.rounds.labelling import public_rankings
from cluster.rounds.planning import TEXT, USE, plan_round, read_prompts
from cluster.rounds.prompts import by_use, use_of
from cluster.rounds.state import RoundState
from common.errors import UserError
from common.files import read_jsonl, write_jsonl
from common.run_paths import RunPaths
from learners.data.split import held_out, split_position


def config_of(root, texts, **rounds):
    file = root / "prompts.jsonl"
    write_jsonl(file, [{"prompt": text} for text in texts])
    values = {"comparison_share": 0.2, "gate": {"comparisons": 20, "flag_rise": 0.2, "anchor": 5}}
    return RunConfig.model_validate(
        {
            "stages": ["sft"],
            "run_dir": str(root / "run"),
            "data": {"prompts": str(file)},
            "rounds": {**values, **rounds},
        }
    )


def test_new_prompts_and_another_order_move_no_prompt(tmp_path):
    prompts = [f"Question {i}?" for i in range(600)]
    small = by_use(read_prompts(config_of(tmp_path, prompts)), config_of(tmp_path, prompts))
    more = config_of(tmp_path, [f"Other {i}?" for i in range(900)] + prompts[::-1])
    large = by_use(read_prompts(more), more)
    for use, kept in small.items():
        there = [one.text for one in large[use]]
        assert {one.text for one in kept} <= set(there)
        # In the same order among themselves, too.
        assert [text for text in there if text in {one.text for one in kept}] == [one.text for one in kept]
    assert 0.05 < len(small["heldout"]) / 600 < 0.15
    assert 0.15 < len(small["comparison"]) / 600 < 0.25


def test_held_out_prompts_are_those_that_the_reward_stage_holds_out(tmp_path):
    config = config_of(tmp_path, [f"Question {i}?" for i in range(300)])
    kinds = by_use(read_prompts(config), config)
    used = [one.text for use in ("heldout", "training") for one in kinds[use]]
    held = held_out([split_position(text) for text in used], config.reward_model.validation_share)
    assert {text for text, is_held in zip(used, held, strict=True) if is_held} == {
        one.text for one in kinds["heldout"]
    }


def test_what_is_held_out_in_round_1_is_never_trained_on_until_round_5(tmp_path):
    prompts = [f"Question {i}?" for i in range(400)]
    config = config_of(tmp_path, prompts, prompts=60, calibration=5)
    run = RunPaths(config.directory)
    kept: set[str] = set()
    asked: list[str] = []
    for number in range(1, 6):
        # New prompts come in with every round.
        write_jsonl(
            tmp_path / "prompts.jsonl",
            [{"prompt": prompt} for prompt in prompts + [f"New {number} {i}?" for i in range(50 * number)]],
        )
        state = RoundState(run, number)
        state.advance("planned", {}, plan_round(config, state))
        rows = read_jsonl(state.paths.candidates)
        training = {row["prompt"] for row in read_jsonl(state.paths.training_prompts)}
        training |= {row["prompt"] for row in rows if row[USE] == "training"}
        kept |= {row["prompt"] for row in rows if row[USE] != "training"}
        kept |= {row["prompt"] for row in read_jsonl(state.paths.comparison_prompts)}
        assert not kept & training
        asked += [row["prompt"] for row in rows if row[USE] == "training"]
        write_jsonl(state.paths.items, [{TEXT: prompt_text(row["prompt"])} for row in rows])
    assert len(kept) > 60
    # 60 prompts of a round, and more than 250 to learn from: none is asked twice before all were asked once.
    assert len(set(asked[:240])) == 240


def test_too_few_prompts_for_the_gate_are_refused(tmp_path):
    config = config_of(tmp_path, [f"Question {i}?" for i in range(50)])
    with pytest.raises(UserError, match="are for comparison, and a round needs 20; give more prompts"):
        plan_round(config, RoundState(RunPaths(config.directory), 1))


def test_equal_responses_are_shown_once_and_ranked_alike():
    record = {
        "prompt": "Name a fruit.",
        "responses": ["Apple.", "Stone.", "Apple.", "Apple."],
        "ended": [True, True, True, False],
        "policy": [{"model": "m", "version": f"v{i}"} for i in range(4)],
        "decoding": [{"temperature": 1.0}] * 4,
    }
    item = shown(record)
    assert item["responses"] == ["Apple.", "Stone.", "Apple."]
    assert item["ended"] == [True, True, False]
    ranking = {**item, "ranks": [1, 3, 2], "likert": [7, 1, 4], "labeler": "Ada", "order": [2, 0, 1]}
    row = expanded(ranking, record)
    assert row["responses"] == record["responses"]
    assert row["ranks"] == [1, 3, 1, 2]
    assert row["likert"] == [7, 1, 7, 4]
    assert [one["version"] for one in row["policy"]] == ["v0", "v1", "v2", "v3"]
    assert shown({**record, "responses": ["Apple."] * 4, "ended": [True] * 4}) is None


def test_feedback_from_the_endpoint_trains_only_if_told_and_never_on_compared_prompts(tmp_path):
    config = config_of(tmp_path, ["Question?"], public=True)
    run = RunPaths(config.directory)
    state = RoundState(run, 1)
    row = {"responses": ["a", "b"], "ranks": [1, 2], "consent": True, "labeler": "Ada", "group": "public"}
    rows = [{**row, "prompt": f"Asked {i}?"} for i in range(400)]
    write_jsonl(run.feedback_rankings, [*rows, {**row, "prompt": "No consent?", "consent": False}])
    kept = public_rankings(config, state)
    assert len(kept) == 200
    uses = {use_of(prompt_text(one["prompt"]), config) for one in kept}
    assert uses == {"training", "heldout"}
    assert {one["group"] for one in kept} == {"public"}
    assert public_rankings(config_of(tmp_path, ["Question?"]), state) == []
