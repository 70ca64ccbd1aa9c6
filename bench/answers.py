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


def nats_of(folder: Path, prompts: Sequence[str], texts: Sequence[Sequence[str]]) -> list[list[float]]:
    """Minus the log-probability of each text as the answer to a user's message; several texts to a prompt."""
    tokenizer = load_tokenizer(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    found = []
    for prompt, of_prompt in zip(prompts, texts, strict=True):
        rendered = render(tokenizer, as_messages(prompt), open_turn=True)
        given_T = torch.tensor(tokenizer.encode(rendered, add_special_tokens=False))
        nats = []
        with torch.no_grad():
            # All but the last token once for all texts: most of the work.
            cache = model(given_T[None, :-1], use_cache=True).past_key_values
            for text in of_prompt:
                text_T = torch.tensor(tokenizer.encode(text, add_special_tokens=False))
                rest_T = torch.cat([given_T[-1:], text_T[:-1]])
                logprobs_TV = model(rest_T[None], past_key_values=cache).logits[0].log_softmax(-1)
                nats.append(-float(logprobs_TV.gather(1, text_T[:, None]).sum()))
                cache.crop(len(given_T) - 1)
        found.append(nats)
    return found
