"""Weights into the rollout engines: from the learners, verified, or from a folder.

    learners ──────────── WeightRoute ───────────────► engines        push
    learners ─probe_logprobs─┐                                        verify
    engines ──prompt_logprobs┴─► equal within the tolerance, or WeightSyncError

Used by the stages ppo (`WeightSync`), collect and evaluate (`load_weights`). Waits for learners
and engines.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import ray

from actors.weights.tolerance import coarser, logprob_tolerance
from cluster.context import Context
from cluster.fleets.learner_fleet import LearnerFleet
from cluster.fleets.rollout_fleet import RolloutFleet
from cluster.rl.weight_routes import WeightRoute, push_folder
from common.config import DType
from common.errors import WeightSyncError
from learners.model_paths import model_folder
from learners.rl.config import PPOConfig

NUM_PROBES = 8
"""Prompts whose log-probabilities are compared after each sync."""


class WeightSync:
    """Brings the learners' policy into every engine of a fleet."""

    def __init__(
        self,
        learners: LearnerFleet,
        rollouts: RolloutFleet,
        route: WeightRoute,
        config: PPOConfig,
        prompts: Sequence[Sequence[int]],
        engine_dtype: DType,
    ) -> None:
        """The first of `prompts` are the probes."""
        self.learners, self.rollouts, self.route = learners, rollouts, route
        self.config = config
        self.dtype = coarser(config.dtype, engine_dtype)
        self.probes = [np.array(tokens, dtype=np.int32) for tokens in prompts[:NUM_PROBES]]

    def push(self, version: int) -> dict[str, float]:
        """Sends, loads and verifies the weights of a policy version. Groups that are then too old
        to learn from are dropped by the engines. Returns metrics; raises WeightSyncError."""
        started = time.perf_counter()
        # Where both share GPUs the learners are asked before they leave them. Their weights stay the same.
        learner_refs = None
        if self.learners.before_call:
            learner_refs = self.learners.submit_probe_logprobs(self.probes)
            self.learners.before_call("send_bucket")
        self.route.push(version, version - self.config.staleness)
        loaded = time.perf_counter()
        errors = self.verify(version, learner_refs)
        probed = time.perf_counter()
        return {**errors, "time/sync": loaded - started, "time/probe": probed - loaded}

    def verify(self, version: int, learner_refs: list[ray.ObjectRef] | None = None) -> dict[str, float]:
        """Compares the log-probabilities that learners and engines give the probes. `learner_refs`: of the
        learners, if they have been asked.

        The tolerance is on the mean absolute difference, in nats. The largest difference is a
        metric only: it belongs to tokens so improbable that float32 itself does not resolve them
        better. Raises WeightSyncError over the tolerance.
        """
        # Learners compute while engines do; all ranks give the same values, rank 0's are used.
        if learner_refs is None:
            learner_refs = self.learners.submit_probe_logprobs(self.probes)
        engines = self.rollouts.prompt_logprobs([probe.tolist() for probe in self.probes])
        expected = np.concatenate(self.learners.wait(learner_refs, "probe_logprobs")[0])
        errors = [np.abs(np.concatenate(engine) - expected) for engine in engines]
        mean = max(float(error.mean()) for error in errors)
        largest = max(float(error.max()) for error in errors)
        tolerance = logprob_tolerance(self.dtype, self.config.max_logprob_error)
        # Written so that a mean of nan fails too.
        if not mean <= tolerance:
            raise WeightSyncError(
                f"weight sync to version {version}: the engines' log-probabilities differ from the "
                f"learner's by {mean:.2e}, over the bound ppo.max_logprob_error={tolerance:.0e}; "
                "the engines do not hold the learner's weights, so the run stops"
            )
        return {"sync/mean_error": mean, "sync/max_error": largest}


def load_weights(context: Context, folder: Path) -> None:
    """Loads a Hugging Face folder, or a model of the hub by its name, into every engine. Raises
    UserError if it has no safetensors files."""
    rollouts = context.fleets.rollouts(folder)
    # Larger than any version that an engine has, so that responses show which weights wrote them.
    version = max(engine["version"] for engine in rollouts.ready()) + 1
    kind = context.fleets.transport_kind()
    if kind == "ipc":  # the driver has no GPU, and engines share a host with it or the run's folder
        kind = "file"
    push_folder(rollouts, model_folder(folder), version, context.fleets.bucket_transport(kind))
