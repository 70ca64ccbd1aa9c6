"""The `serve` section of the configuration.

Read by `hero serve` from RUN/config.yaml, and by `serve.launch.build` for a cluster. Engine
settings come from `EngineConfig`.
"""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field

from actors.config import Decoding, EngineConfig
from actors.vllm_arguments import SERVE_RESERVED
from common.config import LocalPath, Section


class ServedDecoding(Decoding):
    """Decoding settings of a served model, of which only those that are set count."""

    def inactive_keys(self) -> dict[str, str]:
        # So that a run's config.yaml does not hold the defaults, which would then count as set: every
        # answer of a served run ended after Decoding's 32 tokens.
        unset = Decoding.model_fields.keys() - self.model_fields_set
        return dict.fromkeys(unset, "a value")


class ExtraModelConfig(Section):
    """A model that is served beside the current policy."""

    path: LocalPath
    """A version of the run (ppo-20), one of its stages (sft), or a Hugging Face folder."""
    decoding: ServedDecoding = ServedDecoding()
    """Decoding settings that a request does not give."""


class AutoscalingConfig(Section):
    """Number of replicas that Ray Serve chooses by load."""

    min_replicas: int = Field(1, ge=1)
    """Fewest replicas."""
    max_replicas: int = Field(4, ge=1)
    """Most replicas."""
    target_ongoing_requests: float = Field(16, gt=0)
    """Requests in flight for each replica that Serve aims at by starting and stopping replicas."""


class CanaryConfig(Section):
    """The comparison of a new version with the served one, on one replica."""

    prompts: int = Field(16, ge=1)
    """Size of the fixed set of prompts that one replica answers before and after it takes a
    version."""
    file: LocalPath | None = None
    """JSONL of prompts, {"prompt": …}. Empty: the run's held-out prompts."""
    max_tokens: int = Field(32, ge=1)
    """Longest answer to one of these prompts, in tokens."""
    max_logprob_error: float | None = Field(None, gt=0)
    """Largest mean difference in nats between engine and learner log-probabilities. Empty: 1e-5 in
    float32 (on GPUs 5e-3), 0.05 in bfloat16."""
    max_reward_drop: float = Field(1.0, ge=0)
    """Largest accepted fall of the mean reward-model score."""
    max_rude_rise: float = Field(0.2, ge=0)
    """Largest accepted rise of the share of rude answers."""
    max_refusal_rise: float = Field(0.2, ge=0)
    """Largest accepted rise of the share of refusals."""


class ServeConfig(EngineConfig):
    reserved_for_vllm: ClassVar[dict[str, str]] = SERVE_RESERVED

    host: str = "127.0.0.1"
    """Address or name to listen on; 0.0.0.0 for all addresses of the machine."""
    port: int = Field(8000, ge=1, le=65535)
    """Port to listen on."""
    replicas: int = Field(1, ge=1)
    """Copies of the engines behind the endpoint."""
    start_timeout_s: float | None = Field(None, gt=0)
    """How long the replicas may take to load their models. Empty: 300 s, and one more for every 100 MB of
    the models' files."""
    autoscaling: AutoscalingConfig | None = None
    """Bounds between which Ray Serve chooses the number of replicas, instead of `replicas`."""
    max_sequences: int = Field(64, ge=1)
    """Sequences that an engine processes at a time."""
    name: str = "hero"
    """Model name that clients ask for: the current policy."""
    decoding: ServedDecoding = ServedDecoding()
    """Decoding settings that a request does not give; only keys that are set here count. max_tokens
    is the limit of every request."""
    models: dict[str, ExtraModelConfig] = Field({})
    """Further models beside the current policy, by the name that clients ask for; every replica
    holds all of them."""
    max_ongoing: int = Field(256, ge=1)
    """Requests in flight that a replica accepts (those over max_sequences wait in its engine);
    further ones are answered 429 with Retry-After."""
    max_body_kib: int = Field(1024, ge=1)
    """Longest request body, KiB; a longer one is answered 413."""
    max_choices: int = Field(16, ge=1)
    """Largest number of responses (`n`) of one request."""
    api_keys: LocalPath | None = None
    """File of API keys, made by `hero key`. Empty: no keys, and only clients on this machine are
    served."""
    allowed_hosts: list[str] = Field([])
    """Further names, without ports, that the Host header of a request may have where there are no API keys:
    names of this machine for a proxy or a container. 127.0.0.1, localhost, ::1 and `host` always may."""
    requests_per_minute: int | None = Field(None, ge=1)
    """Requests of one key in a minute, shared evenly by the replicas; further ones are answered
    429. Empty: no limit."""
    keep_versions: int = Field(4, ge=1)
    """Stored versions of the policy that can be promoted. The served one, the one before it and
    those in `models` are kept besides."""
    canary: CanaryConfig = CanaryConfig()
    """The comparison that a version must pass on one replica before the others take it."""

    @property
    def replica_gpus(self) -> float:
        """GPUs of one replica: one for each worker of an engine that is split over several."""
        if self.gpus and self.tensor_parallel > 1:
            return max(self.gpus, float(self.tensor_parallel))
        return self.gpus or 0.0

    def inactive_keys(self) -> dict[str, str]:
        # A page of another site has no key. The empty list stands in every run's config.yaml, to which
        # `hero serve --api-keys` adds the keys.
        if self.api_keys and self.allowed_hosts:
            return {"allowed_hosts": "no serve.api_keys"}
        return {}
