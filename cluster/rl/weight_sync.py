"""Weights from learners (or a folder) into engines, and the proof that they arrived."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from huggingface_hub import snapshot_download

from actors.weights.transport import stored_tensors
from cluster.context import Context
from common.errors import UserError


def load_weights(context: Context, folder: Path) -> int:
    """Puts the weights of a Hugging Face folder into every engine; returns the version they are known by."""
    rollouts = context.fleets.rollouts(folder)
    version = max(state["version"] for state in rollouts.all("ready")) + 1
    stored = folder if folder.is_dir() else Path(snapshot_download(str(folder)))
    if not list(stored.glob("*.safetensors")):
        raise UserError(
            f"{folder}: no weights in *.safetensors files; save the model again with transformers"
        )
    payload = context.fleets.transport.send(stored_tensors(str(stored)), rank=0, version=version)
    rollouts.all("update_weights", payload, version)
    return version


def verify_sync(context: Context, sequences: list[np.ndarray], version: int) -> dict[str, float]:
    """Compares the log-probabilities of probe prompts between learners and engines; over the bound the run stops.

    The bound is on the mean absolute difference, in nats. The largest is reported beside it: it belongs to tokens so
    unlikely that float32 itself resolves them no better.
    """
    config = context.config.ppo
    bound = config.max_logprob_error or (1e-5 if config.dtype == "float32" else 0.05)
    learners, rollouts = context.fleets.learners(), context.fleets.rollouts(context.run.model("sft"))
    probed = [learners.submit(i, "probe", sequences) for i in range(len(learners))]
    engines = rollouts.all("prompt_logprobs", [s.tolist() for s in sequences])
    expected = np.concatenate(learners.get(probed, "probe")[0])
    errors = [np.abs(np.concatenate(engine) - expected) for engine in engines]
    mean = max(float(e.mean()) for e in errors)
    if not mean <= bound:
        raise UserError(
            f"weight sync to version {version}: the engines' log-probabilities differ from the learner's by {mean:.2e}, over "
            f"the bound ppo.max_logprob_error={bound:.0e}; the engines do not hold the learner's weights, so the run stops"
        )
    return {"sync/mean_error": mean, "sync/max_error": max(float(e.max()) for e in errors)}
