"""What `bench.bringup` works on: the model, the batch, the sizes of both, and the GPU's memory."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from transformers import Qwen2Config

from bench.memory import save_model
from learners.data.samples import Samples, offsets_of
from learners.rl.scored_parts import ScoredPart

GIB = 2**30


class Skipped(Exception):
    """A step that this machine cannot make, with the reason."""


@dataclass(frozen=True)
class Workload:
    """What is measured, and where its files are."""

    device: str
    tiny: bool
    folder: Path

    @property
    def model(self) -> Path:
        return self.folder / "model"

    @property
    def prompts(self) -> int:
        return 8 if self.tiny else 64

    @property
    def responses(self) -> int:
        return 2 if self.tiny else 8

    @property
    def max_response_tokens(self) -> int:
        return 16 if self.tiny else 512

    @property
    def context(self) -> int:
        return 128 if self.tiny else 1024

    @property
    def micro_batch_tokens(self) -> int:
        return 1024 if self.tiny else 16_384

    @property
    def dtype(self) -> str:
        return "bfloat16" if self.device == "cuda" else "float32"

    @property
    def iterations(self) -> int:
        return 3 if self.tiny else 6

    @property
    def model_gib(self) -> float:
        return (self.model / "model.safetensors").stat().st_size / GIB

    def step_folder(self, name: str) -> Path:
        folder = self.folder / name
        folder.mkdir(parents=True, exist_ok=True)
        return folder


def build_model(workload: Workload) -> None:
    """Random weights in the sizes of Qwen2.5-0.5B, or small ones, and a tokenizer of as many entries."""
    if (workload.model / "model.safetensors").exists():
        return
    sizes = {
        "vocab_size": 151_936,
        "hidden_size": 896,
        "intermediate_size": 4864,
        "num_hidden_layers": 24,
        "num_attention_heads": 14,
        "num_key_value_heads": 2,
    }
    if workload.tiny:
        sizes = {
            "vocab_size": 600,
            "hidden_size": 64,
            "intermediate_size": 192,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "num_key_value_heads": 1,
        }
    config = Qwen2Config(
        **sizes, tie_word_embeddings=True, max_position_embeddings=4096, dtype=workload.dtype
    )
    torch.manual_seed(0)
    save_model(workload.model, config)


def free_gib(workload: Workload) -> float:
    """Free memory of the GPU, whoever holds the rest; 0 on a CPU."""
    if workload.device != "cuda":
        return 0.0
    torch.cuda.synchronize()
    return torch.cuda.mem_get_info()[0] / GIB


def batch(workload: Workload) -> ScoredPart:
    """Responses of one iteration with random tokens and scores."""
    rng = np.random.default_rng(1)
    size, prompt = workload.prompts * workload.responses, 32
    lengths_B = np.full(size, prompt + workload.max_response_tokens)
    total = int(lengths_B.sum())
    tokens_BT = rng.integers(10, 500, (size, prompt + workload.max_response_tokens)).astype(np.int32)
    tokens_BT[:, :prompt] = np.repeat(tokens_BT[:: workload.responses, :prompt], workload.responses, axis=0)
    samples = Samples(
        tokens_N=tokens_BT.reshape(-1),
        offsets=offsets_of(lengths_B),
        prompt_lengths_B=np.full(size, prompt, dtype=np.int32),
        logprobs_N=np.full(total, -6.0, dtype=np.float32),
        versions_N=np.zeros(total, dtype=np.int32),
        prompt_ids_B=np.repeat(np.arange(workload.prompts), workload.responses),
        ended_B=np.ones(size, dtype=bool),
    )
    return ScoredPart(samples, rng.normal(size=size).astype(np.float32), None)


def peak_gib(workload: Workload) -> float:
    return torch.cuda.max_memory_allocated() / GIB if workload.device == "cuda" else 0.0
