"""bench/facts.py: the log-probabilities that it compares are transformers' own losses."""

import pytest
import torch
from transformers import AutoModelForCausalLM

from bench.answers import nats_of
from learners.data.chat_template import render
from learners.data.conversations import as_messages
from learners.data.tokenizer_loading import load_tokenizer
from tests.learners.fixtures import make_files


def test_nats_of_several_answers_to_a_prompt(tmp_path):
    make_files(tmp_path)
    folder = tmp_path / "policy"
    tokenizer = load_tokenizer(folder)
    model = AutoModelForCausalLM.from_pretrained(folder)
    prompts = ["What is the capital of France?", "And of Peru?"]
    texts = [["Paris", "The capital of Peru is Lima."], ["Lima"]]
    for prompt, of_prompt, found in zip(prompts, texts, nats_of(folder, prompts, texts), strict=True):
        rendered = render(tokenizer, as_messages(prompt), open_turn=True)
        given = tokenizer.encode(rendered, add_special_tokens=False)
        expected = []
        for text in of_prompt:
            learned = tokenizer.encode(text, add_special_tokens=False)
            labels = torch.tensor([[-100] * len(given) + learned])
            loss = model(torch.tensor([given + learned]), labels=labels).loss.item()
            expected.append(loss * len(learned))
        assert found == pytest.approx(expected, rel=1e-4)
