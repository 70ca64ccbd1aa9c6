"""The shipped environments, played by hand, and the data that their recipes start from."""

import json
import random

import pytest

from actors.environments.tools import ToolEnvironment
from cluster.quickstart.prompts import all_facts, fact_row
from cluster.recipes import sums, twenty_questions
from cluster.recipes.repair import RepairDialogue
from cluster.recipes.twenty_questions import TwentyQuestions
from learners.data.environment_turns import EnvironmentTurns
from learners.data.tokenizer import train_tokenizer
from learners.data.turn_tokens import encode_conversation

ROW = {"prompt": "What is 17 + tin + 35?", "answer": "62"}


def call(name, **arguments):
    return {"id": "call00000", "type": "function", "function": {"name": name, "arguments": arguments}}


def calls(*several):
    return {"role": "assistant", "content": "", "tool_calls": list(several)}


def say(text):
    return {"role": "assistant", "content": text}


@pytest.fixture
def tools():
    return ToolEnvironment(
        ["cluster.recipes.sums:add", "cluster.recipes.sums:price"], "cluster.recipes.sums:grade"
    )


def test_a_chain_of_sums_is_solved_by_tools(tools):
    messages, info = tools.reset(seed=0, options={"row": ROW})
    assert messages == [{"role": "user", "content": ROW["prompt"]}]
    assert [tool["function"]["name"] for tool in info["tools"]] == ["add", "price"]
    observation, reward, terminated, _, _ = tools.step(
        calls(call("price", item="tin"), call("add", a=17, b=35))
    )
    assert [message["content"] for message in observation] == ["10", "52"]
    assert (reward, terminated) == (0.0, False)
    tools.step(calls(call("add", a=52, b=10)))
    _, reward, terminated, _, info = tools.step(say("62"))
    assert (reward, terminated) == (1.0, True)
    assert info == {"tool_calls": 3, "tool_errors": 0, "graded": 1.0}


@pytest.mark.parametrize(
    ("made", "answer"),
    [
        (call("divide", a=1), "error: there is no tool divide; there are add, price"),
        (call("price", item="gold"), "error: ValueError: no item is named gold"),
        (call("add", a=1), "error: add: b: Missing required argument"),
        (call("add", a="x", b=2), "error: add: a: Input should be a valid integer"),
        (call("add", a=1, b=2, c=3), "error: add: c: Unexpected keyword argument"),
    ],
)
def test_a_wrong_call_is_answered_and_does_not_end_the_episode(tools, made, answer):
    tools.reset(options={"row": ROW})
    observation, _, terminated, _, info = tools.step(calls(made))
    assert observation[0]["content"].startswith(answer)
    assert not terminated
    assert info["tool_errors"] == 1


def test_demonstrations_are_the_tokens_that_the_environment_makes(tools):
    """Otherwise the policy would meet a conversation that it was not shown."""
    tokenizer = train_tokenizer([sums.offered_tools()], 320)
    with open("configs/tools.jinja", encoding="utf-8") as file:
        tokenizer.chat_template = file.read()
    renderer = EnvironmentTurns(tokenizer)
    rng = random.Random(0)
    for _ in range(20):
        messages = sums.demonstration(rng)["messages"]
        row = {"prompt": messages[1]["content"]}
        first, info = tools.reset(options={"row": row})
        ids = renderer.first_prompt(first, info["tools"])
        mask = [False] * len(ids)
        for message in messages[2:]:
            if message["role"] == "assistant":
                added = [*tokenizer.encode(message["content"]), tokenizer.eos_token_id]
            else:
                added = renderer.words([message], ended=True)
            ids += added
            mask += [message["role"] == "assistant"] * len(added)
        assert (ids, mask) == encode_conversation(tokenizer, messages)


def test_no_question_of_the_sums_is_held_out_and_trained_on(tmp_path):
    sums.write_data(tmp_path, seed=1, demonstrations=20, prompts=50, heldout=20)
    rows = {
        name: [json.loads(line) for line in (tmp_path / f"{name}.jsonl").read_text().splitlines()]
        for name in ("prompts", "heldout")
    }
    prompts, heldout = ({row["prompt"] for row in rows[name]} for name in rows)
    assert len(prompts) == 50
    assert not prompts & heldout
    for row in rows["prompts"]:
        words = row["prompt"].removeprefix("What is ").removesuffix("?").split(" + ")
        total = sum(sums.PRICES.get(word) or int(word) for word in words)
        assert sums.grade(row, str(total), True) == 1.0
        assert sums.grade(row, str(total + 1), True) == 0.0


def test_twenty_questions_are_answered_by_the_facts():
    environment = TwentyQuestions()
    opening, _ = environment.reset(seed=3)
    assert opening == twenty_questions.OPENING
    secret = environment._secret
    assert environment.step(f"Is it in {twenty_questions.CONTINENTS[secret]}?")[0] == "Yes."
    assert environment.step("Is it in Nowhere?")[0] == "No."
    assert environment.step("Is its first letter before A?")[0] == "No."
    assert environment.step("Tell me.")[0] == twenty_questions.ODD
    observation, reward, terminated, _, info = environment.step(f"Is it {secret}?")
    assert (observation, reward, terminated) == ("Yes.", 1.0, True)
    assert info == {"found": True, "questions": 5}
    again = TwentyQuestions()
    again.reset(seed=3)
    assert again._secret == secret


def test_the_user_of_a_repair_dialogue_objects():
    fact = next(fact for fact in all_facts() if fact.relation.name == "capital")
    row = fact_row(fact, fact.relation.questions[0])
    right = f"The capital of {fact.subject} is {fact.value}."
    doubted = {}
    for seed in range(20):
        environment = RepairDialogue()
        environment.reset(seed=seed, options={"row": row})
        _, reward, terminated, _, _ = environment.step(right)
        doubted[terminated] = seed
        assert reward == float(terminated)
    assert set(doubted) == {True, False}  # sometimes the user doubts a right answer
    for first, second, expected in (
        (right, right, 1.0),
        (right, "x", 0.0),
        ("x", right, 0.5),
        ("x", "x", 0.0),
    ):
        environment.reset(seed=doubted[False], options={"row": row})
        observation, reward, terminated, _, _ = environment.step(first)
        assert observation
        assert not terminated
        _, reward, terminated, _, _ = environment.step(second)
        assert (reward, terminated) == (expected, True)
