"""Rankings of prompts that have several owners (`data.split_key`): which are held out, trained on
or left out."""

from dataclasses import replace

import numpy as np
import pytest

from learners.data.ranking_groups import encode_rankings
from learners.data.records import PromptRecord, RankingRecord
from learners.data.sources import SourceRow
from learners.data.split import assign_folds, split_position
from learners.data.tokenizer import train_tokenizer
from tests.learners.fixtures import reader


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(["The capital of France is Paris.", "What is 12 plus 7?"], 320)


def rankings(tokenizer, rows, share, **config):
    dataset = reader("rankings", **config)
    dataset.stats["kept"] = len(rows)  # as after reading a file
    records = [SourceRow(f"row {n}", RankingRecord.parse(row)) for n, row in enumerate(rows)]
    return encode_rankings(records, tokenizer, 64, dataset, share), dataset


def ranked_by(*links):
    """A ranking for each (prompt, labeler); its responses name the labeler."""
    rows = []
    for prompt, labeler in links:
        pair = {"chosen": f"{labeler}: a", "rejected": f"{labeler}: b"}
        rows.append({"prompt": prompt, **pair, "labeler": labeler})
    return rows


def links_of_side(data, tokenizer, validation):
    """(prompt, labeler) of each ranking on one side."""
    links = []
    by_group = data.rankings()
    for g in np.flatnonzero(data.is_validation_G == validation):
        texts = [tokenizer.decode(tokens).split("<|end|>") for tokens in data.group(g)]
        for members, _ in by_group[g]:
            prompt, response = texts[members[0]][:2]
            links.append((prompt.removeprefix("<|user|>"), response[len("<|assistant|>") :].split(":")[0]))
    return links


def prompt_position(prompt):
    return split_position(PromptRecord.parse({"prompt": prompt}).split_text)


def parts_of_sides(data, tokenizer):
    """Held-out prompts, held-out labelers, prompts and labelers to train on."""
    parts = []
    for validation in (True, False):
        links = links_of_side(data, tokenizer, validation)
        parts += [{prompt for prompt, _ in links}, {labeler for _, labeler in links}]
    return parts


@pytest.mark.parametrize("names", ["uvw", "abc", "xyz", "123", "pqr"])
def test_prompts_that_share_users_are_divided_between_users(tokenizer, names):
    # q0 and q1 share a user, q1 and q2 share another: q1 is held out if either of them is.
    u, v, w = names
    links = [("q0", u), ("q1", u), ("q1", v), ("q2", v), *((f"q{i}", f"{w}{i}") for i in range(3, 12))]
    data, dataset = rankings(tokenizer, ranked_by(*links), share=0.3, split_key="labeler")
    assert any(split_position(labeler) < 0.3 for _, labeler in links)  # not the rule for tiny data sets
    held, trained, dropped = [], [], 0
    for prompt, labeler in links:
        labelers = [other for p, other in links if p == prompt]
        if split_position(labeler) < 0.3:
            held.append((prompt, labeler))
        elif min(split_position(other) for other in labelers) >= 0.3:
            trained.append((prompt, labeler))
        else:
            dropped += 1
    assert links_of_side(data, tokenizer, True) == held
    assert links_of_side(data, tokenizer, False) == trained
    assert dataset.stats["dropped_by_split"] == dropped
    assert len(data.offsets) - 1 == 2 * (len(held) + len(trained))  # nothing of what was dropped


def test_about_a_tenth_of_labelers_who_share_prompts_is_held_out(tokenizer):
    held, trained, dropped = [], [], 0
    for team in range(5):
        rng = np.random.default_rng(team)
        links = []
        for p in range(60):
            links += [(f"prompt {p}", f"{team}-{k}") for k in rng.choice(40, 3, replace=False)]
        data, dataset = rankings(tokenizer, ranked_by(*links), share=0.1, split_key="labeler")
        held_prompts, held_labelers, trained_prompts, trained_labelers = parts_of_sides(data, tokenizer)
        assert held_labelers == {labeler for _, labeler in links if split_position(labeler) < 0.1}
        assert not held_labelers & trained_labelers
        assert not held_prompts & trained_prompts
        held += links_of_side(data, tokenizer, True)
        trained += links_of_side(data, tokenizer, False)
        dropped += dataset.stats["dropped_by_split"]
        assert dataset.stats["kept"] + dataset.stats["dropped_by_split"] == len(links)
    assert len({labeler for _, labeler in held}) == pytest.approx(0.1 * 200, abs=8)
    assert len(held) + len(trained) + dropped == 5 * 60 * 3
    assert len(trained) > 0.6 * 5 * 60 * 3
    assert 0 < dropped < 0.25 * 5 * 60 * 3


def test_folds_keep_prompts_and_labelers_apart(tokenizer):
    # Teams of three labelers who rank three prompts of their own.
    links = [(f"q{i // 3}", f"l{i // 9}{(i + i // 3) % 3}") for i in range(180) if i % 3]
    data, _ = rankings(tokenizer, ranked_by(*links), share=0.2, split_key="labeler")
    fold_G = assign_folds(data.fold_position_G, 3)
    for fold in range(3):
        fold_data = replace(data, is_validation_G=fold_G == fold)
        prompts, labelers, other_prompts, other_labelers = parts_of_sides(fold_data, tokenizer)
        assert prompts
        assert not prompts & other_prompts
        assert not labelers & other_labelers


def test_a_ranking_without_a_labeler_goes_with_its_prompt(tokenizer):
    links = [(f"q{i}", f"l{i}") for i in range(30)]
    unnamed = [{"prompt": f"q{i}", "chosen": "none: a", "rejected": "none: b"} for i in range(30)]
    data, dataset = rankings(tokenizer, [*ranked_by(*links), *unnamed], share=0.3, split_key="labeler")
    held = links_of_side(data, tokenizer, True)
    trained = links_of_side(data, tokenizer, False)
    assert {prompt for prompt, labeler in held + trained if labeler == "none"} == {p for p, _ in links}
    assert not {prompt for prompt, _ in held} & {prompt for prompt, _ in trained}
    # A prompt without a labeler has its own position; labelers on the other side lose their ranking.
    dropped = set(links) - set(held) - set(trained)
    assert dropped
    assert all(prompt_position(p) < 0.3 <= split_position(labeler) for p, labeler in dropped)
    assert dataset.stats["dropped_by_split"] == len(dropped)


def test_without_a_split_key_no_ranking_is_dropped(tokenizer):
    rows = ranked_by(*((f"q{i % 20}", f"l{i % 7}") for i in range(70)))
    data, dataset = rankings(tokenizer, rows, share=0.2)
    assert len(data.ranking_groups_Q) == 70
    assert dataset.stats == {"kept": 70}
    held_prompts, _, trained_prompts, _ = parts_of_sides(data, tokenizer)
    assert held_prompts == {f"q{i}" for i in range(20) if prompt_position(f"q{i}") < 0.2}
    assert not held_prompts & trained_prompts


def test_a_labeler_who_holds_most_prompts_out_is_warned_of(tokenizer, caplog):
    first = min("abcdefgh", key=split_position)
    links = [(f"q{i}", name) for i in range(8) for name in "abcdefgh" if name != first or i < 7]
    data, dataset = rankings(tokenizer, ranked_by(*links), share=0.1, split_key="labeler")
    assert parts_of_sides(data, tokenizer)[2] == {"q7"}
    assert dataset.stats["dropped_by_split"] == 7 * 7
    assert "89% of the rows are not trained on" in caplog.text


def held_out_prompts(data, tokenizer):
    held = [data.group(g)[0] for g in np.flatnonzero(data.is_validation_G)]
    return {tokenizer.decode(tokens).split("<|end|>")[0] for tokens in held}


def test_more_rankings_never_move_a_prompt_to_training(tokenizer):
    rows = [{"prompt": f"q{i}", "chosen": "a", "rejected": "b", "user": f"u{i // 2}"} for i in range(200)]
    for config in ({}, {"split_key": "user"}):
        first, _ = rankings(tokenizer, rows[:100], share=0.2, **config)
        second, _ = rankings(tokenizer, [*rows[100:], *rows[99::-1]], share=0.2, **config)
        held = held_out_prompts(first, tokenizer)
        assert 5 < len(held) < 40
        assert held < held_out_prompts(second, tokenizer)
        assert 0.1 < second.is_validation_G.mean() < 0.3
    # Rankings by new users join prompts to each other, and a held-out one stays held out.
    linking = [{**row, "user": f"new{i % 9}"} for i, row in enumerate(rows[:100:9])]
    third, _ = rankings(tokenizer, [*rows[:100], *linking], share=0.2, split_key="user")
    first, _ = rankings(tokenizer, rows[:100], share=0.2, split_key="user")
    assert held_out_prompts(first, tokenizer) <= held_out_prompts(third, tokenizer)


@pytest.mark.parametrize("seed", range(10))
def test_more_labelers_of_a_prompt_never_move_it_to_training(tokenizer, seed):
    rng = np.random.default_rng(seed)
    links = list(dict.fromkeys((f"q{rng.integers(30)}", f"l{rng.integers(40)}") for _ in range(120)))
    assert any(split_position(labeler) < 0.2 for _, labeler in links[:40])  # not the rule for tiny data sets
    before, _ = rankings(tokenizer, ranked_by(*links[:40]), share=0.2, split_key="labeler")
    after, _ = rankings(tokenizer, ranked_by(*links[::-1]), share=0.2, split_key="labeler")
    held_prompts, held_labelers, _, trained_labelers = parts_of_sides(before, tokenizer)
    held_prompts_after, held_labelers_after, *_ = parts_of_sides(after, tokenizer)
    assert held_prompts < held_prompts_after
    assert held_labelers <= held_labelers_after
    assert not trained_labelers & held_labelers_after
