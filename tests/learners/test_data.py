"""From records to tokens: masks, packing, groups of rankings, held-out data, overlong rows."""

import numpy as np
import pytest

from common.errors import UserError
from learners.data.encoding import encode_demonstrations, encode_prompts, pack_corpus
from learners.data.ranking_groups import encode_rankings
from learners.data.records import SCHEMAS
from learners.data.sources import SourceRow
from learners.data.tokenizer import document_separator, end_token, train_tokenizer
from learners.data.turn_tokens import encode_prompt
from tests.learners.fixtures import reader, talk

TEXTS = ["The capital of France is Paris.", "What is 12 plus 7?"] * 10


def source_rows(kind, *rows):
    return [SourceRow(f"here, row {n}", SCHEMAS[kind].parse(row)) for n, row in enumerate(rows, 1)]


def demonstrations(tokenizer, rows, context=128, share=0.1, **config):
    dataset = reader("demonstrations", **config)
    rows = source_rows("demonstrations", *rows)
    return encode_demonstrations(rows, tokenizer, context, dataset, share), dataset


def rankings(tokenizer, rows, context=64, share=0.4, oracle_score=None, **config):
    dataset = reader("rankings", **config)
    rows = source_rows("rankings", *rows)
    return encode_rankings(rows, tokenizer, context, dataset, share, oracle_score), dataset


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(TEXTS, 320)


def test_pad_end_of_turn_and_end_of_text_are_three_tokens(tokenizer):
    assert len({tokenizer.pad_token_id, end_token(tokenizer), document_separator(tokenizer)}) == 3


def test_any_text_survives_and_digits_are_single_tokens(tokenizer):
    for text in ("Paris 1234", "naïve Füße", "日本語 🙂", "a\n\tb"):
        assert tokenizer.decode(tokenizer.encode(text)) == text
    assert len(tokenizer.encode("1234")) == 4


def test_a_tokenizer_whose_pad_is_its_end_is_refused(tokenizer):
    other = train_tokenizer(TEXTS, 320)
    other.pad_token = other.eos_token
    with pytest.raises(UserError, match="would never learn to stop"):
        end_token(other)


def test_only_tokens_of_the_assistant_are_learned(tokenizer):
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


def test_a_template_that_rewrites_the_start_gives_the_right_mask_or_is_refused(tokenizer):
    fickle = train_tokenizer(TEXTS, 320)
    fickle.chat_template = "{{ messages | length }}{% for m in messages %}{{ m.content }}{% endfor %}"
    data, _ = demonstrations(fickle, [talk("a", "b", "c", "d"), talk("a", "b")])
    assert tokenizer.decode(data.tokens_N[data.loss_mask_N]) == "bd<|end|>b<|end|>"
    fickle.chat_template = "{{ messages[-1].content }}" + fickle.chat_template
    with pytest.raises(UserError, match="differently once it goes on"):
        demonstrations(fickle, [talk("a", "b", "c", "d"), talk("a", "b")])


def test_a_prompt_ends_where_the_assistant_begins(tokenizer):
    assert tokenizer.decode(encode_prompt(tokenizer, "Hi")) == "<|user|>Hi<|end|><|assistant|>"
    talked = encode_prompt(tokenizer, talk("Hi", "Ho", "Why?")["messages"])
    assert (
        tokenizer.decode(talked) == "<|user|>Hi<|end|><|assistant|>Ho<|end|><|user|>Why?<|end|><|assistant|>"
    )


NUMBERED = [f"What is {n} plus {m}?" for n in range(20) for m in range(20)]


def text_of(data, tokenizer, validation):
    chosen = [data.sequence(s) for s in np.flatnonzero(data.is_validation_S == validation)]
    return tokenizer.decode(np.concatenate(chosen))


def test_packing_keeps_all_tokens_but_the_rest_of_each_side(tokenizer):
    data = pack_corpus(NUMBERED, tokenizer, 16)
    assert set(data.lengths_S.tolist()) == {16}
    assert not data.loss_mask_N[::16].any()
    assert data.loss_mask_N.sum() == 15 * len(data.lengths_S)
    documents = 0
    for validation in (False, True):
        text = text_of(data, tokenizer, validation)
        whole = text.split("<|endoftext|>")[:-1]  # the last document may be cut
        assert set(whole) <= set(NUMBERED)
        assert whole == [t for t in NUMBERED if t in whole]  # in their order
        documents += len(whole)
    assert documents >= len(NUMBERED) - 2 * 3  # of each side at most one sequence is dropped


def test_documents_stay_on_their_side_when_the_corpus_grows(tokenizer):
    before = pack_corpus(NUMBERED[:200], tokenizer, 16)
    after = pack_corpus(NUMBERED[::-1], tokenizer, 16)
    held_out_before = set(text_of(before, tokenizer, True).split("<|endoftext|>")[:-1])
    assert len(held_out_before) > 5
    assert not held_out_before & set(text_of(after, tokenizer, False).split("<|endoftext|>"))


def test_the_validation_part_of_a_single_document_is_its_end(tokenizer):
    data = pack_corpus([" ".join(TEXTS)], tokenizer, 16, validation_share=0.25)
    assert data.is_validation_S.any()
    assert data.is_validation_S.tolist() == sorted(data.is_validation_S.tolist())
    whole = " ".join(TEXTS)
    assert whole.startswith(tokenizer.decode(data.tokens_N))  # nothing between the two is lost


def test_every_long_document_keeps_its_end_for_validation(tokenizer):
    books = [" ".join(NUMBERED[:200]), " ".join(NUMBERED[200:])]
    data = pack_corpus(books, tokenizer, 16, validation_share=0.25)
    assert 0.2 < data.is_validation_S.mean() < 0.3
    for book in books:
        assert book[-40:] in text_of(data, tokenizer, True)
        assert book[:40] in text_of(data, tokenizer, False)


def test_a_small_corpus_has_a_sequence_on_either_side(tokenizer):
    data = pack_corpus(NUMBERED[:4], tokenizer, 10, validation_share=0.02)
    assert 0 < data.is_validation_S.sum() < len(data.is_validation_S)
    with pytest.raises(UserError, match=r"has \d+ tokens, too few .*sequence_length=64"):
        pack_corpus(NUMBERED[:4], tokenizer, 64)


def test_a_character_tokenizer_has_one_token_for_each_character():
    tokenizer = train_tokenizer(["To be,\nor not\n\n"], "characters")
    ids = tokenizer.encode("not to be\n\n", add_special_tokens=False)
    assert len(ids) == 11
    assert tokenizer.decode(ids) == "not to be\n\n"
    assert len(tokenizer) == 7 + len(set("To be,\nor not\n\n"))
    assert tokenizer.encode("xyz", add_special_tokens=False) == [tokenizer.unk_token_id] * 3
    assert encode_prompt(tokenizer, "to")[0] == tokenizer.convert_tokens_to_ids("<|user|>")


def test_rankings_and_pairs_of_a_prompt_share_their_responses(tokenizer):
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


def test_groups_have_nine_responses_at_most_and_share_a_side(tokenizer):
    often = [
        {"prompt": "q", "responses": [f"{i} {k}" for k in "abcd"], "ranks": [1, 2, 3, 3]} for i in range(5)
    ]
    rows = [*often, often[0], *({"prompt": f"p{i}", "chosen": "a", "rejected": "b"} for i in range(4))]
    data, _ = rankings(tokenizer, rows)
    assert np.diff(data.groups).tolist() == [8, 8, 8, 2, 2, 2, 2]
    assert len(set(data.is_validation_G[:3].tolist())) == 1
    assert len(set(data.fold_position_G[:3].tolist())) == 1


def test_rows_with_one_split_value_are_on_one_side(tokenizer):
    users = [f"u{i % 7}" for i in range(40)]
    rows = [{**talk(f"q{i}", "a"), "user": u} for i, u in enumerate(users)]
    data, _ = demonstrations(tokenizer, rows, split_key="user")
    held = {u for u, h in zip(users, data.is_validation_S, strict=True) if h}
    assert held
    assert not held & {u for u, h in zip(users, data.is_validation_S, strict=True) if not h}


def test_prompts_that_differ_in_case_are_two_groups_of_one_side(tokenizer):
    prompts = ["Why?", "WHY? ", *(f"q{i}" for i in range(6))]
    rows = [{"prompt": p, "chosen": "a", "rejected": "b"} for p in prompts]
    data, _ = rankings(tokenizer, rows)
    assert len(data.groups) - 1 == 8
    assert data.fold_position_G[0] == data.fold_position_G[1]
    assert len(set(data.fold_position_G.tolist())) == 7


def test_an_empty_split_value_is_none(tokenizer):
    rows = [{"prompt": p, "chosen": "a", "rejected": "b", "user": ""} for p in "pqr"]
    data, _ = rankings(tokenizer, rows, split_key="user")
    assert len(set(data.fold_position_G.tolist())) == 3


def test_fewer_than_two_prompts_to_divide_are_refused(tokenizer):
    pair = {"prompt": "p", "chosen": "a", "rejected": "b", "user": "u"}
    with pytest.raises(UserError, match=r"at least two prompts with rankings are needed.* there is 1 "):
        rankings(tokenizer, [pair, pair])
    with pytest.raises(
        UserError, match=r"at least two prompts with rankings of different user.* there is 1 "
    ):
        rankings(tokenizer, [pair, {**pair, "prompt": "q"}], split_key="user")
    everything = [{**pair, "prompt": p, "user": u} for p in "pq" for u in "uv"]
    with pytest.raises(UserError, match=r"leave data.split_key out if one user has rows of all prompts"):
        rankings(tokenizer, everything, split_key="user")
    with pytest.raises(UserError, match=r"there is 0 \(2 too long"):
        rankings(tokenizer, [{**pair, "chosen": "long " * 99}] * 2, overlong="drop")
    with pytest.raises(UserError, match=r"at least two demonstrations are needed.* there is 1 "):
        demonstrations(tokenizer, [talk("a", "b"), talk("A", "c")])


def test_rankings_without_a_preference_are_left_out_and_counted(tokenizer):
    pairs = [{"prompt": p, "chosen": "a", "rejected": "b"} for p in "pq"]
    same = {"prompt": "r", "chosen": "yes", "rejected": "yes"}
    tied = {"prompt": "s", "responses": ["a", "b", "c"], "ranks": [1, 1, 1]}
    alike = {"prompt": "t", "chosen": "Word. " + "x" * 99 + ".", "rejected": "Word. " + "y" * 99 + "."}
    data, dataset = rankings(tokenizer, [*pairs, same, tied, alike], overlong="truncate")
    assert len(data.groups) - 1 == 2
    assert dataset.stats["no_preference"] == 3
    with pytest.raises(UserError, match=r"there is 0 \(.*3 no preference"):
        rankings(tokenizer, [same, tied, alike], overlong="truncate")
    # The same words, once cut: the reward model sees the difference.
    cut = {**same, "ended": [True, False]}
    partly = {"prompt": "s", "responses": ["a", "a", "b"], "ranks": [1, 2, 2]}
    data, dataset = rankings(tokenizer, [cut, partly])
    assert dataset.stats["no_preference"] == 0


def test_demonstrations_of_one_prompt_are_held_out_together(tokenizer):
    rows = [talk(f"Q{i // 2}?" if i % 2 else f" q{i // 2}?\n", f"answer {i}") for i in range(100)]
    data, _ = demonstrations(tokenizer, rows)
    held = data.is_validation_S.reshape(50, 2)
    assert (held[:, 0] == held[:, 1]).all()
    assert 0 < held.sum() < 25
    more, _ = demonstrations(tokenizer, [talk("new", "a"), *rows])
    assert more.is_validation_S[1:].tolist() == data.is_validation_S.tolist()


def test_an_oracle_ranks_the_responses_whose_truth_it_knows(tokenizer):
    def score(record, response, ended):
        return {"a": 2.0, "b": 1.0}[response] if record.row else None

    known = {"responses": ["b", "a"], "ranks": [1, 2], "row": {"answers": ["a"]}}
    unknown = {"prompt": "r", "responses": ["c", "d"], "ranks": [1, 2]}
    both = [{"prompt": "p", "responses": ["a", "c"], "ranks": [1, 2]}, {**known, "prompt": "p"}]
    data, _ = rankings(tokenizer, [{**known, "prompt": "q"}, unknown, *both], oracle_score=score)
    assert data.oracle_ranks.tolist() == [2, 1, 0, 0, 1, 0, 2]
    assert data.oracle_ranking(0) == ([0, 1], [2, 1])
    assert data.oracle_ranking(1) == ([], [])
    assert data.oracle_ranking(2) == ([0, 2], [1, 2])


LONG = "One two. Three four! Five six? Seven eight nine ten eleven twelve"


def test_a_row_that_is_too_long_is_refused_dropped_or_truncated(tokenizer):
    rows = [talk("a", "b"), talk("a", LONG), talk("word " * 50, "b"), talk("c", "d")]
    with pytest.raises(UserError, match=r"here, row 2: \d+ tokens, but there is room for 40"):
        demonstrations(tokenizer, rows, context=40)
    data, dataset = demonstrations(tokenizer, rows, context=40, overlong="drop")
    assert (len(data.lengths_S), dataset.stats["too_long"]) == (2, 2)
    data, dataset = demonstrations(tokenizer, rows, context=40, overlong="truncate")
    assert (len(data.lengths_S), dataset.stats["too_long"], dataset.stats["truncated"]) == (3, 1, 1)
    learned = tokenizer.decode(data.sequence(1)[data.loss_mask(1)])
    assert learned == "One two. Three four! Five six?<|end|>"
    assert data.lengths_S.max() <= 40

    rows = source_rows("prompts", {"prompt": LONG, "id": 7}, {"prompt": "x" * 99})
    kept, tokens = encode_prompts(rows, tokenizer, 30, reader("prompts", overlong="truncate"))
    assert kept == [{"prompt": "One two. Three four!", "id": 7}]
    assert len(tokens[0]) <= 30

    pairs = [{"prompt": p, "chosen": LONG, "rejected": "no"} for p in ("p", "q", "word " * 30)]
    data, dataset = rankings(tokenizer, pairs, context=40, overlong="truncate")
    assert (len(data.groups) - 1, dataset.stats["truncated"], dataset.stats["too_long"]) == (2, 2, 1)
