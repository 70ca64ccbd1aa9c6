"""bench/facts.py: the log-probabilities that it compares are transformers' own losses."""

import pytest
import torch
from transformers import AutoModelForCausalLM

from bench.answers import nats_of
from learners.data.chat_template import render
from learners.data.conversations import as_messages
from learners.data.tokenizer_loading import load_tokenizer
from tests.learners.fixtures import make_files


def test_nats_of_answers_and_of_texts_alone(tmp_path):
    make_files(tmp_path)
    folder = tmp_path / "policy"
    tokenizer = load_tokenizer(folder)
    model = AutoModelForCausalLM.from_pretrained(folder)
    prompts = ["What is the capital of France?", ""]
    texts = ["Paris", "The capital of Peru is Lima."]
    expected = []
    for prompt, text in zip(prompts, texts, strict=True):
        before = render(tokenizer, as_messages(prompt), open_turn=True) if prompt else ""
        given = tokenizer.encode(before, add_special_tokens=False)
        learned = tokenizer.encode(text, add_special_tokens=False)
        labels = torch.tensor([[-100] * len(given) + learned])
        loss = model(torch.tensor([given + learned]), labels=labels).loss.item()
        expected.append(loss * (len(learned) - (not given)))  # nothing predicts a text's first token
    assert nats_of(folder, prompts, texts) == pytest.approx(expected, rel=1e-5)
