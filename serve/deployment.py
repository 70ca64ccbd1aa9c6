"""The Ray Serve deployment. One replica holds an engine for the run's current policy and one for
each further model.

    client ─► Serve's proxy ─► Gateway (keys, limits) ─┬─► vLLM's application of the named model
                                                       └─► serve.api: pages, status, promotion

The durable pointer (`serve.versions`) decides which version is served. A replica loads it at its
start and takes it over after every promotion and after every health check that finds another, so that
after any crash no replica serves another version for long.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Coroutine
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ray import serve

from common.errors import UserError
from common.files import try_lock
from common.logs import log_to
from common.run_paths import RunPaths
from serve.config import ServeConfig
from serve.manifest import verify
from serve.promotion import LOCKED
from serve.versions import (
    ModelVersion,
    append_event,
    current_policy,
    list_versions,
    locate,
    previous_version,
    set_current,
)

DEPLOYMENT, APPLICATION = "ChatEndpoint", "hero"
BROADCAST_TIMEOUT_S = 600


@dataclass(frozen=True)
class CanaryResult:
    metrics: dict[str, dict[str, float]]
    """Metrics of the answers "before" and "after", as far as they could be measured."""
    regression: str | None
    """Why the version must not be served; None if it may."""
    note: str = ""
    """What whoever promotes should know of the comparison."""


@serve.deployment(name=DEPLOYMENT)
@serve.ingress()
class ChatEndpoint:
    """One replica."""

    def __init__(self, target: str, config: ServeConfig, logs: str, admin_digest: str) -> None:
        """`target` is a run directory or a model folder, `logs` the folder for this replica's log
        file, `admin_digest` the SHA-256 of the admin token."""
        self.id = serve.get_replica_context().replica_id.unique_id
        log_to(Path(logs) / f"serve-{self.id}.log", f"serve-{self.id}")
        self.target, self.config, self.admin_digest = Path(target), config, admin_digest
        self.started = time.time()
        self.failure = ""
        """Why this replica must be replaced; empty while it is in order."""
        self.swap_lock = asyncio.Lock()
        self._following: asyncio.Task[str] | None = None
        self.models: dict[str, Any] = {}

    async def __serve_build_asgi_app__(self) -> Any:
        """Starts the engines and returns the ASGI application; Serve calls it once."""
        # Imported here, because the process that deploys the replicas does not need vLLM.
        from serve.api import create_api
        from serve.engine import ServedModel
        from serve.gateway import Gateway

        config = self.config
        self.current = ServedModel(config.name, current_policy(self.target))
        await self.current.start(config, config.decoding, first=True)
        self.models[config.name] = self.current
        for name, extra in config.models.items():
            model = ServedModel(name, locate(self.target, extra.path))
            await model.start(config, extra.decoding, first=False)
            self.models[name] = model
        self.gateway = Gateway(create_api(self), config, self.models, self.admin_digest)
        return self.gateway

    async def check_health(self) -> None:
        """Raises if an engine is dead or could not take the current version; Serve then replaces the
        replica.

        A version is only begun to be taken here: hashing and loading one of 140 GB takes longer than
        Serve waits for this answer, after which it would replace replica after replica.
        """
        if self.failure:
            raise RuntimeError(self.failure)
        for model in self.models.values():
            await model.engine.check_health()
        self._follow_current()

    def _follow_current(self) -> None:
        """Starts to take the version that the durable pointer names, if it is another. Raises what an
        earlier attempt has failed with."""
        following = self._following
        if following is not None and following.done():
            self._following = None
            following.result()
        # While a swap or a promotion is in progress, the pointer is about to be followed anyway.
        if self._following is not None or self.swap_lock.locked():
            return
        if current_policy(self.target).name != self.current.version.name:
            self._following = asyncio.create_task(self.sync_to_current())

    async def sync_to_current(self) -> str:
        """Takes the version that the durable pointer names, if it is another; returns the version
        that is held then."""
        async with self.swap_lock:
            version = current_policy(self.target)
            if version.name != self.current.version.name:
                await self._swap(version)
            held: str = self.current.version.name
            return held

    async def _swap(self, version: ModelVersion) -> None:
        # In a thread: hashing large files would stop the event loop, and with it every stream.
        await asyncio.to_thread(verify, version.folder, self.current.version.folder)
        try:
            await self.current.swap(version)
        except RuntimeError as error:
            # The engine stays paused and can never be used again. The end of the process closes the
            # connections of its clients, and Serve starts another replica. One second later, so
            # that the caller still gets the error.
            self.failure = str(error)
            asyncio.get_running_loop().call_later(1, os._exit, 1)
            raise

    async def start_promotion(self, version: str, who: str, why: str) -> dict[str, Any]:
        """Serves another stored version: this replica first, as the canary; then the pointer; then
        the others.

        Returns the row of the log of promotions, whose outcome is "promoted" or "rolled back".
        Raises UserError if the version cannot be served or another promotion is in progress,
        RuntimeError if this replica's engine broke.
        """
        return await self._run_to_end(self._promote(version, {"who": who, "why": why}))

    async def start_rollback(self, who: str, why: str) -> dict[str, Any]:
        """Serves the version before the present one again, without a canary: it passed one when it
        was promoted."""
        version = previous_version(self.target)
        if version is None:
            raise UserError(
                f"{self.target}: the log of promotions has no version before the one that is served"
            )
        event = {"who": who, "why": why, "rollback": True}
        return await self._run_to_end(self._promote(version, event))

    async def _run_to_end(self, promotion: Coroutine[Any, Any, dict[str, Any]]) -> dict[str, Any]:
        """Awaits a promotion that goes on even if the client disconnects, which would cancel this
        call."""
        self._promotion = asyncio.create_task(promotion)  # kept: asyncio itself holds tasks weakly
        return await asyncio.shield(self._promotion)

    async def _promote(self, name: str, event: dict[str, Any]) -> dict[str, Any]:
        if name not in list_versions(self.target):
            available = ", ".join(list_versions(self.target)) or "none; only a run has versions"
            raise UserError(f"{name}: not a version of {self.target} (available: {available})")
        with try_lock(RunPaths(self.target).promotions_lock, LOCKED):
            await self.sync_to_current()
            before: ModelVersion = self.current.version
            if name == before.name:
                raise UserError(f"{name} is served already")
            event = {"from": before.name, "to": name, **event}
            try:
                async with self.swap_lock:
                    row = await self._swap_and_decide(before, locate(self.target, name), event)
            except Exception as error:
                outcome = "failed"
                if isinstance(error, UserError):
                    outcome = "refused"
                append_event(self.target, **event, outcome=outcome, reason=str(error))
                raise
            if row["outcome"] != "promoted":
                return row
            held = await self.broadcast("sync_to_current")
            stale = sum(version != name for version in held)
            return {**row, "replicas": len(held), "stale": stale}

    async def _swap_and_decide(
        self, before: ModelVersion, version: ModelVersion, event: dict[str, Any]
    ) -> dict[str, Any]:
        """Takes the version on this replica and moves the pointer, or goes back to `before`;
        returns the logged row.

        Adds metrics and seconds to `event` as they become known, so that a failure is logged with
        them.
        """
        started = time.time()
        result = CanaryResult({}, None)
        if event.get("rollback"):
            await self._swap(version)
        else:
            result = await self._try_as_canary(before, version)
        event["metrics"] = result.metrics
        if result.note:
            event["note"] = result.note
        event["seconds"] = time.time() - started
        if result.regression:
            await self._swap(before)
            return append_event(self.target, **event, outcome="rolled back", reason=result.regression)
        return set_current(self.target, version.name, **event)

    async def _try_as_canary(self, before: ModelVersion, version: ModelVersion) -> CanaryResult:
        """Swaps this replica to the version and compares its answers with those before."""
        from serve.canary import regression
        from serve.canary_prompts import canary_prompts

        # In a thread: reading data would stop the event loop, and with it every stream.
        chosen = await asyncio.to_thread(canary_prompts, self.config.canary, self.target)
        prompts = await asyncio.to_thread(chosen.encode, before.folder)
        metrics = {"before": await self._measure(prompts, before)}
        await self._swap(version)
        try:
            metrics["after"] = await self._measure(prompts, version)
        except ArithmeticError as error:  # weights that give no finite log-probability
            return CanaryResult(metrics, str(error), chosen.note)
        reason = regression(metrics["before"], metrics["after"], self.config)
        return CanaryResult(metrics, reason, chosen.note)

    async def _measure(self, prompts: list[list[int]], version: ModelVersion) -> dict[str, float]:
        """The canary's metrics of the answers that this replica gives now, holding `version`."""
        from serve.canary import measure

        reward_model: Path | None = RunPaths(self.target).stage("reward").model
        if reward_model and not reward_model.is_dir():
            reward_model = None
        outputs = await self.current.answer(prompts, self.config.canary.max_tokens)
        return await asyncio.to_thread(measure, outputs, version.folder, reward_model, self.config)

    async def broadcast(self, method: str) -> list[Any]:
        """Calls one of the methods on every replica; the result of each, or the exception of one
        that failed."""
        handle = serve.get_deployment_handle(DEPLOYMENT, APPLICATION)
        responses = handle.broadcast(method)
        results: list[Any] = await responses.results_async(
            return_exceptions=True, timeout_s=BROADCAST_TIMEOUT_S
        )
        return results

    async def state(self) -> dict[str, Any]:
        """This replica for the status page."""
        models = {}
        for name, model in self.models.items():
            models[name] = {"version": model.version.name, "tokens": model.engine.tokens}
        return {
            "id": self.id,
            "pid": os.getpid(),
            "up": time.time() - self.started,
            "models": models,
            **self.gateway.stats.summary(),
        }

    async def metrics(self) -> list[Any]:
        """This process's Prometheus metric families, every sample labelled with the replica."""
        from prometheus_client import REGISTRY

        from serve.metrics import labelled_families

        return labelled_families(REGISTRY, self.id)
