"""Token in, token out: the tokens of a conversation with an environment only ever grow."""

from functools import cache

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common.errors import UserError
from learners.data.conversations import InvalidRow
from learners.data.environment_turns import EnvironmentTurns
from learners.data.turn_tokens import encode_conversation
from tests.learners.template_families import FAMILIES

WORDS = st.text(alphabet="aeiou stnr.\n{}=47", min_size=1, max_size=20)
FAMILY = pytest.mark.parametrize("family", FAMILIES.values(), ids=FAMILIES)


@cache
def tokenizer_of(family):
    return family.tokenizer()


def user(content):
    return {"role": "user", "content": content}


def tool_result(content):
    return {"role": "tool", "content": content, "tool_call_id": "call00000", "name": "probe"}


def as_written(tokenizer, text):
    """Tokens of a turn that encoding its text would not give: one for each byte."""
    ids = [tokenizer.encode(character, add_special_tokens=False) for character in text]
    return [token for part in ids for token in part]


@FAMILY
@given(turns=st.lists(st.tuples(WORDS, WORDS), min_size=1, max_size=4), split=st.booleans())
@settings(max_examples=25)
def test_each_prompt_begins_with_the_tokens_before_it(family, turns, split):
    tokenizer = tokenizer_of(family)
    renderer = EnvironmentTurns(tokenizer)
    prompt = renderer.first_prompt([user("Question")], [])
    for words, observation in turns:
        turn = as_written(tokenizer, words) if split else tokenizer.encode(words, add_special_tokens=False)
        turn = [*turn, tokenizer.eos_token_id]
        added = renderer.words([user(observation)], ended=True)
        longer = [*prompt, *turn, *added]
        assert longer[: len(prompt) + len(turn)] == prompt + turn
        # The environment's words depend neither on what the policy wrote nor on the turns before.
        assert added == renderer.words([user(observation)], ended=True)
        assert observation.strip() in tokenizer.decode(added)
        # Nothing of the policy's is written a second time.
        assert tokenizer.eos_token_id not in added[:1]
        prompt = longer


@FAMILY
def test_a_conversation_is_encoded_as_its_template_writes_it(family):
    """Where a policy writes what encoding its text gives, and the template changes nothing afterwards."""
    if family.rewrites:
        pytest.skip("its template writes earlier turns differently")
    tokenizer = tokenizer_of(family)
    renderer = EnvironmentTurns(tokenizer)
    messages = [user("2 + 3 + 4?"), *answers("It is 5.", "And now?", "It is 9.")]
    ids, mask = list(renderer.first_prompt(messages[:1], [])), []
    mask = [False] * len(ids)
    for message in messages[1:]:
        policy = message["role"] == "assistant"
        if policy:
            words = family.opening + message["content"]
            added = [*tokenizer.encode(words, add_special_tokens=False), tokenizer.eos_token_id]
        else:
            added = renderer.words([message], ended=True)
        ids += added
        mask += [policy] * len(added)
    assert tokenizer.decode(ids) == tokenizer.decode(encode_conversation(tokenizer, messages)[0])
    assert (ids, mask) == encode_conversation(tokenizer, messages)


def answers(*texts):
    roles = ("assistant", "user")
    return [{"role": roles[number % 2], "content": text} for number, text in enumerate(texts)]


@FAMILY
def test_results_of_tools_stand_in_the_markers_of_the_template(family):
    tokenizer = tokenizer_of(family)
    renderer = EnvironmentTurns(tokenizer)
    if not family.results:
        with pytest.raises(InvalidRow, match="roles must alternate"):
            renderer.words([tool_result("42")], ended=True)
        return
    text = tokenizer.decode(renderer.words([tool_result("42")], ended=True))
    opening = tokenizer.apply_chat_template([user("x")], tokenize=False, add_generation_prompt=True)
    opening = opening.partition("x")[2].partition(family.end)[2].lstrip("\n")
    assert "42" in text
    assert text.endswith(opening)
    assert "probe" not in text
    assert "First-answer" not in text


def test_a_turn_that_was_cut_gets_its_end_from_the_environment():
    tokenizer = tokenizer_of(FAMILIES["qwen 2.5"])
    renderer = EnvironmentTurns(tokenizer)
    ended, cut = (renderer.words([user("Go on")], ended=ended) for ended in (True, False))
    assert cut == [tokenizer.eos_token_id, *ended]


def test_reasoning_that_a_template_drops_later_stays_what_was_written():
    tokenizer = tokenizer_of(FAMILIES["qwen 3"])
    renderer = EnvironmentTurns(tokenizer)
    turn = tokenizer.encode("Hm.\n</think>\n\nIt is 5.", add_special_tokens=False)
    ids = [*renderer.first_prompt([user("2 + 3?")], []), *turn, tokenizer.eos_token_id]
    ids += renderer.words([user("Sure?")], ended=True)
    text = tokenizer.decode(ids)
    assert "Hm.\n</think>\n\nIt is 5.<|im_end|>\n<|im_start|>user\nSure?" in text
    again = tokenizer.apply_chat_template(
        [user("2 + 3?"), {"role": "assistant", "content": "Hm.\n</think>\n\nIt is 5."}, user("Sure?")],
        tokenize=False,
        add_generation_prompt=True,
    )
    assert "Hm." not in again


TOOL = {
    "type": "function",
    "function": {
        "name": "add",
        "description": "The sum.",
        "parameters": {"type": "object", "properties": {}},
    },
}


def test_tools_are_offered_by_the_template_or_refused():
    offered = EnvironmentTurns(tokenizer_of(FAMILIES["qwen 2.5"]))
    text = tokenizer_of(FAMILIES["qwen 2.5"]).decode(offered.first_prompt([user("2 + 3?")], [TOOL]))
    assert '"name": "add"' in text
    without = EnvironmentTurns(tokenizer_of(FAMILIES["phi 3"]))
    with pytest.raises(UserError, match=r"does not offer the tool add.*set model\.chat_template"):
        without.first_prompt([user("2 + 3?")], [TOOL])
