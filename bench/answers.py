"""Answers of model folders for the benches: one rollout actor, hence the engine of every stage."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM

from actors.config import Decoding, RolloutConfig
from common.errors import UserError
from learners.data.chat_template import render
from learners.data.conversations import as_messages
from learners.data.tokenizer import end_token
from learners.data.tokenizer_loading import load_tokenizer


def named_folders(arguments: Sequence[str]) -> dict[str, Path]:
    """NAME=FOLDER arguments. Raises UserError for another form."""
    folders = {}
    for argument in arguments:
        name, equals, folder = argument.partition("=")
        if not equals or not (Path(folder) / "config.json").exists():
            raise UserError(f"{argument}: expected NAME=FOLDER with a Hugging Face model folder")
        folders[name] = Path(folder)
    return folders


def answers(
    folder: Path, prompts: Sequence[str], max_tokens: int, beginnings: Sequence[str] = (), threads: int = 2
) -> list[str]:
    """Greedy answers to prompts, each as a user's message. With `beginnings` the answer goes on from the
    text that is given for it."""
    # It would print more lines about the machine than the bench has results.
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    from actors.rollout import RolloutActor  # vLLM takes seconds to import

    tokenizer = load_tokenizer(folder)
    encoded = []
    for i, prompt in enumerate(prompts):
        text = render(tokenizer, as_messages(prompt), open_turn=True)
        if beginnings:
            text += beginnings[i]
        encoded.append(tokenizer.encode(text, add_special_tokens=False))
    longest = max(len(tokens) for tokens in encoded) + max_tokens
    config = RolloutConfig(threads=threads, max_sequences=32, max_model_len=longest, dtype="float32")
    actor = RolloutActor("answers", str(folder), config)
    decoding = Decoding(temperature=0.0, max_tokens=max_tokens)
    samples = actor.generate(encoded, range(len(encoded)), decoding, end_token(tokenizer))
    return [tokenizer.decode(samples.response(b), skip_special_tokens=True) for b in range(samples.size)]


def nats_of(folder: Path, prompts: Sequence[str], texts: Sequence[str]) -> list[float]:
    """Minus the log-probability of each text as the answer to a user's message, or, where its prompt is
    empty, of a text that stands alone, without its first token."""
    tokenizer = load_tokenizer(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    found = []
    for prompt, text in zip(prompts, texts, strict=True):
        before = render(tokenizer, as_messages(prompt), open_turn=True) if prompt else ""
        given = tokenizer.encode(before, add_special_tokens=False)
        tokens_T = torch.tensor(given + tokenizer.encode(text, add_special_tokens=False))
        with torch.no_grad():
            logprobs_TV = model(tokens_T[None]).logits[0, :-1].log_softmax(-1)
        logprobs_T = logprobs_TV.gather(1, tokens_T[1:, None]).squeeze(1)
        found.append(-float(logprobs_T[max(len(given) - 1, 0) :].sum()))
    return found
