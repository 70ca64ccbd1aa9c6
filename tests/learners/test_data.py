"""From rows to tokens: masks, packing, groups of rankings, splits, overlong rows."""

import numpy as np
import pytest

from common.errors import UserError
from learners.data.datasets import hold_out
from learners.data.encoding import encode_demonstrations, encode_prompts, encode_rankings, pack_corpus
from learners.data.records import FORMS
from learners.data.sources import SourceRow
from learners.data.tokenizer import document_separator, encode_prompt, end_token, train_tokenizer
from tests.learners.fixtures import reader, talk

TEXTS = ["The capital of France is Paris.", "What is 12 plus 7?"] * 10


def located(kind, *rows):
    return [SourceRow(f"here, row {n}", FORMS[kind].read(row)) for n, row in enumerate(rows, 1)]


def demonstrations(tokenizer, rows, context=128, **config):
    given = reader("demonstrations", **config)
    return encode_demonstrations(located("demonstrations", *rows), tokenizer, context, given), given


def rankings(tokenizer, rows, context=64, **config):
    given = reader("rankings", **config)
    return encode_rankings(located("rankings", *rows), tokenizer, context, given, validation_share=0.4), given


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(TEXTS, 320)


def test_pad_end_of_turn_and_end_of_text_are_three_tokens(tokenizer):
    assert len({tokenizer.pad_token_id, end_token(tokenizer), document_separator(tokenizer)}) == 3


def test_any_text_survives_and_digits_stand_alone(tokenizer):
    for text in ("Paris 1234", "naïve Füße", "日本語 🙂", "a\n\tb"):
        assert tokenizer.decode(tokenizer.encode(text)) == text
    assert len(tokenizer.encode("1234")) == 4


def test_a_tokenizer_whose_pad_is_its_end_is_refused(tokenizer):
    other = train_tokenizer(TEXTS, 320)
    other.pad_token = other.eos_token
    with pytest.raises(UserError, match="would never learn to stop"):
        end_token(other)


def test_only_what_the_assistant_writes_is_learned(tokenizer):
    data, _ = demonstrations(tokenizer, [talk("Hi there.", "Hello.", "Why?", "So."), talk("a", "b")])
    learned = tokenizer.decode(data.tokens_N[data.loss_mask_N])
    assert learned == "Hello.<|end|>So.<|end|>b<|end|>"


def test_a_template_without_generation_marks_gives_the_same_mask(tokenizer):
    bare = train_tokenizer(TEXTS, 320)
    bare.chat_template = bare.chat_template.replace("{% generation %}", "").replace("{% endgeneration %}", "")
    rows = [talk("Hi there.", "Hello.", "Why?", "So."), talk("a", "b")]
    one, two = (demonstrations(t, rows)[0] for t in (tokenizer, bare))
    assert one.tokens_N.tolist() == two.tokens_N.tolist()
    assert one.loss_mask_N.tolist() == two.loss_mask_N.tolist()


def test_a_template_that_rewrites_what_came_before_is_refused(tokenizer):
    fickle = train_tokenizer(TEXTS, 320)
    fickle.chat_template = "{{ messages | length }}{% for m in messages %}{{ m.content }}{% endfor %}"
    with pytest.raises(UserError, match="differently once it goes on"):
        demonstrations(fickle, [talk("a", "b", "c", "d"), talk("a", "b")])


def test_a_prompt_ends_where_the_assistant_begins(tokenizer):
    assert tokenizer.decode(encode_prompt(tokenizer, "Hi")) == "<|user|>Hi<|end|><|assistant|>"
    talked = encode_prompt(tokenizer, talk("Hi", "Ho", "Why?")["messages"])
    assert (
        tokenizer.decode(talked) == "<|user|>Hi<|end|><|assistant|>Ho<|end|><|user|>Why?<|end|><|assistant|>"
    )


def test_packing_keeps_every_token_but_the_last_rest(tokenizer):
    data = pack_corpus(TEXTS, tokenizer, 16)
    whole = "<|endoftext|>".join([*TEXTS, ""])
    assert whole.startswith(tokenizer.decode(data.tokens_N))
    assert set(data.lengths_S.tolist()) == {16}
    assert not data.loss_mask_N[::16].any()


def test_the_validation_part_of_a_single_document_is_its_end(tokenizer):
    data = pack_corpus([" ".join(TEXTS)], tokenizer, 16, validation_share=0.25)
    assert data.is_validation_S.any()
    assert data.is_validation_S.tolist() == sorted(data.is_validation_S.tolist())


def test_a_character_tokenizer_has_one_token_a_character_and_one_for_all_others():
    tokenizer = train_tokenizer(["To be,\nor not\n\n"], "characters")
    ids = tokenizer.encode("not to be\n\n", add_special_tokens=False)
    assert len(ids) == 11
    assert tokenizer.decode(ids) == "not to be\n\n"
    assert len(tokenizer) == 7 + len(set("To be,\nor not\n\n"))
    assert tokenizer.encode("xyz", add_special_tokens=False) == [tokenizer.unk_token_id] * 3
    assert encode_prompt(tokenizer, "to")[0] == tokenizer.convert_tokens_to_ids("<|user|>")


def test_all_rankings_and_pairs_of_a_prompt_are_one_group_whose_responses_run_once(tokenizer):
    row = {
        "prompt": "p",
        "responses": ["a", "b", "c", "a"],
        "ranks": [1, 2, 2, 3],
        "ended": [True, True, False, True],
    }
    pair = {"prompt": "p", "chosen": "b", "rejected": "d"}
    data, _ = rankings(tokenizer, [row, {**row, "prompt": "q"}, {**row, "ranks": [2, 1, 1, 1]}, pair])
    assert data.rankings() == [
        [([0, 1, 2, 0], [1, 2, 2, 3]), ([0, 1, 2, 0], [2, 1, 1, 1]), ([1, 3], [1, 2])],
        [([0, 1, 2, 0], [1, 2, 2, 3])],
    ]
    assert np.diff(data.groups).tolist() == [4, 3]
    closed, _, cut, _ = data.group(0)
    assert closed[-1] == end_token(tokenizer)
    assert cut[-1] != end_token(tokenizer)


def test_a_prompt_answered_again_and_again_makes_elements_of_nine_responses_on_one_side(tokenizer):
    often = [
        {"prompt": "q", "responses": [f"{i} {k}" for k in "abcd"], "ranks": [1, 2, 3, 3]} for i in range(5)
    ]
    rows = [*often, often[0], *({"prompt": f"p{i}", "chosen": "a", "rejected": "b"} for i in range(4))]
    data, _ = rankings(tokenizer, rows)
    assert np.diff(data.groups).tolist() == [8, 8, 8, 2, 2, 2, 2]
    assert len(set(data.is_validation_G[:3].tolist())) == 1
    assert len(set(data.owner_G[:3].tolist())) == 1


def test_rows_of_one_user_are_on_one_side_of_the_split(tokenizer):
    users = [f"u{i % 7}" for i in range(40)]
    data, _ = demonstrations(
        tokenizer, [{**talk(f"q{i}", "a"), "user": u} for i, u in enumerate(users)], split_key="user"
    )
    held = {u for u, h in zip(users, data.is_validation_S, strict=True) if h}
    assert held
    assert not held & {u for u, h in zip(users, data.is_validation_S, strict=True) if not h}
    # q0 and q1 share a user, q1 and q2 share another: all three prompts must stay together.
    pairs = [("q0", "u"), ("q1", "u"), ("q1", "v"), ("q2", "v"), *((f"q{i}", f"w{i}") for i in range(3, 8))]
    rows = [{"prompt": q, "chosen": "a", "rejected": "b", "user": u} for q, u in pairs]
    for seed in range(5):
        given = reader("rankings", split_key="user")
        found = encode_rankings(
            located("rankings", *rows), tokenizer, 64, given, validation_share=0.3, seed=seed
        )
        assert len(set(found.is_validation_G[:3].tolist())) == 1


def test_folds_hold_every_item_out_once_and_leave_no_owner_on_both_sides():
    owners = [i // 3 for i in range(50)]
    folds = [hold_out(owners, 1 / 5, seed=3, fold=f) for f in range(5)]
    assert (np.sum(folds, axis=0) == 1).all()
    assert all(4 <= fold.sum() <= 16 for fold in folds)
    for fold in folds:
        sides = [{bool(h) for o, h in zip(owners, fold, strict=True) if o == owner} for owner in set(owners)]
        assert all(len(side) == 1 for side in sides)


LONG = "One two. Three four! Five six? Seven eight nine ten eleven twelve"


def test_an_overlong_row_is_refused_left_out_or_cut_after_a_sentence(tokenizer):
    rows = [talk("a", "b"), talk("a", LONG), talk("word " * 50, "b"), talk("c", "d")]
    with pytest.raises(UserError, match=r"here, row 2: \d+ tokens, but there is room for 40"):
        demonstrations(tokenizer, rows, context=40)
    data, given = demonstrations(tokenizer, rows, context=40, overlong="drop")
    assert (len(data.lengths_S), given.counts["overlong"]) == (2, 2)
    data, given = demonstrations(tokenizer, rows, context=40, overlong="truncate")
    assert (len(data.lengths_S), given.counts["overlong"], given.counts["truncated"]) == (3, 1, 1)
    learned = tokenizer.decode(data.sequence(1)[data.loss_mask(1)])
    assert learned == "One two. Three four! Five six?<|end|>"
    assert data.lengths_S.max() <= 40

    given = reader("prompts", overlong="truncate")
    kept, tokens = encode_prompts(
        located("prompts", {"prompt": LONG}, {"prompt": "x" * 99}), tokenizer, 30, given
    )
    assert [row["prompt"] for row in kept] == ["One two. Three four!"]
    assert len(tokens[0]) <= 30

    pairs = [{"prompt": p, "chosen": LONG, "rejected": "no"} for p in ("p", "q", "word " * 30)]
    data, given = rankings(tokenizer, pairs, context=40, overlong="truncate")
    assert (len(data.groups) - 1, given.counts["truncated"], given.counts["overlong"]) == (2, 2, 1)
