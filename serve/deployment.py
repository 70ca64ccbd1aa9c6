"""The Ray Serve deployment. One replica holds an engine for the run's current policy and one for each further model.

    client -> Serve's proxy -> Gateway (keys, limits) -> vLLM's OpenAI application of the model that the request names
                                                   -> site: pages, feedback, status, admin

The durable pointer (`serve.versions`) is the truth. A replica loads it when it starts and follows it when it is told
to and at every health check, so none serves other weights than the run says for long, whatever died in between.
"""

from __future__ import annotations

import asyncio
import os
import time
from pathlib import Path
from typing import Any

from ray import serve

from common.errors import UserError
from common.files import try_lock
from common.logs import log_to
from serve.config import ServeConfig
from serve.versions import ModelVersion, find, kept, log, point, previous, resolve, verify

DEPLOYMENT, APPLICATION = "ChatEndpoint", "hero"


@serve.deployment(name=DEPLOYMENT)
@serve.ingress()
class ChatEndpoint:
    """One replica."""

    def __init__(self, target: str, config: ServeConfig, logs: str, admin: str) -> None:
        self.id = serve.get_replica_context().replica_id.unique_id
        log_to(Path(logs) / f"serve-{self.id}.log", f"serve-{self.id}")
        self.target, self.config, self.admin = Path(target), config, admin
        self.started, self.broken = time.time(), ""
        self.changing = asyncio.Lock()
        self.models: dict[str, Any] = {}

    async def __serve_build_asgi_app__(self) -> Any:
        from serve.api import create_api
        from serve.engine import ServedModel
        from serve.gateway import Gateway

        config = self.config
        self.current = ServedModel(config.name, resolve(self.target))
        await self.current.start(config, config.decoding, first=True)
        self.models[config.name] = self.current
        for name, other in config.models.items():
            model = ServedModel(name, find(self.target, other.path))
            await model.start(config, other.decoding, first=False)
            self.models[name] = model
        self.gate = Gateway(create_api(self), config, self.models, self.admin)
        return self.gate

    async def check_health(self) -> None:
        """Raises if an engine is dead or cannot get the durable version; Serve then replaces the replica."""
        if self.broken:
            raise RuntimeError(self.broken)
        for model in self.models.values():
            await model.engine.check_health()
        if not self.changing.locked():
            await self.follow()

    async def follow(self) -> str:
        """Takes the version that the durable pointer names, if it is another; returns the version that is held."""
        async with self.changing:
            wanted = resolve(self.target)
            if wanted.version != self.current.served.version:
                await self._swap(wanted)
            return self.current.served.version

    async def _swap(self, wanted: ModelVersion) -> None:
        await asyncio.to_thread(verify, wanted.model, self.current.served.model)
        try:
            await self.current.swap(wanted)
        except RuntimeError as fault:
            # The engine is paused for good. The end of the process tells its clients, and Serve starts another.
            self.broken = str(fault)
            asyncio.get_running_loop().call_later(1, os._exit, 1)
            raise

    async def move(self, version: str | None, who: str, why: str) -> dict[str, Any]:
        """`promote`, or without a version the way back; goes on to its end even if the client goes away."""
        self.moving = asyncio.create_task(
            self.promote(version, who, why) if version else self.rollback(who, why)
        )
        return await asyncio.shield(self.moving)

    async def promote(self, version: str, who: str, why: str, probe: bool = True) -> dict[str, Any]:
        """Moves the service to a version: this replica first, as the canary; then the pointer; then the others.

        Returns the row of the log, whose outcome is "promoted" or "rolled back". Raises UserError if the version cannot
        be served or another promotion is at work, RuntimeError if this replica's engine broke.
        """
        if version not in kept(self.target):
            known = ", ".join(kept(self.target)) or "none; only a run has versions"
            raise UserError(f"{version}: not a version of {self.target} (there are: {known})")
        with try_lock(
            self.target / "promotions.lock", "another promotion is at work; wait until it has ended"
        ):
            await self.follow()
            begun, before, wanted = time.time(), self.current.served, find(self.target, version)
            row: dict[str, Any] = {"who": who, "why": why} | ({} if probe else {"back": True})
            if version == before.version:
                raise UserError(f"{version} is served already")
            tried = {"from": before.version, "to": version}
            try:
                async with self.changing:
                    objection, row["metrics"] = await self._canary(before, wanted) if probe else (None, {})
                    if not probe:
                        await self._swap(wanted)
                    row["seconds"] = time.time() - begun
                    if objection:
                        await self._swap(before)
                        return log(self.target, **tried, **row, outcome="rolled back", reason=objection)
                    row = point(self.target, version, **row)
            except Exception as fault:
                outcome = "refused" if isinstance(fault, UserError) else "failed"
                log(self.target, **tried, **row, outcome=outcome, reason=str(fault))
                raise
            held = await self.everywhere("follow")
            return row | {"replicas": len(held), "stale": sum(h != version for h in held)}

    async def rollback(self, who: str, why: str) -> dict[str, Any]:
        """Back to the version served before, without asking what it answers: it was good once."""
        version = previous(self.target)
        if version is None:
            raise UserError(
                f"{self.target}: the log of promotions has nothing before the version that is served"
            )
        return await self.promote(version, who, why, probe=False)

    async def _canary(self, before: ModelVersion, wanted: ModelVersion) -> tuple[str | None, dict[str, Any]]:
        """Swaps this replica and compares its answers; (what speaks against the new version, figures of both)."""
        from serve.canary import judge, objection, probe_prompts

        prompts = probe_prompts(self.config.canary, self.target, before.model)
        folder = self.target / "reward" / "model"
        reward = folder if folder.is_dir() else None

        async def figures(version: ModelVersion) -> dict[str, float]:
            outputs = await self.current.answer(prompts, self.config.canary.max_tokens)
            return await asyncio.to_thread(judge, outputs, version.model, reward, self.config)

        found = {"before": await figures(before)}
        await self._swap(wanted)
        try:
            found["after"] = await figures(wanted)
        except ArithmeticError as fault:  # weights that give no finite number
            return str(fault), found
        return objection(found["before"], found["after"], self.config), found

    async def everywhere(self, method: str) -> list[Any]:
        """What every replica answers to a call of one of its methods; the exception of one that failed."""
        handle = serve.get_deployment_handle(DEPLOYMENT, APPLICATION)
        return await handle.broadcast(method).results_async(return_exceptions=True, timeout_s=600)

    async def state(self) -> dict[str, Any]:
        """This replica for the status page."""
        models = {
            name: {"version": m.served.version, "tokens": m.engine.tokens} for name, m in self.models.items()
        }
        up = time.time() - self.started
        return {"id": self.id, "pid": os.getpid(), "up": up, "models": models, **self.gate.traffic.summary()}

    async def metrics(self) -> str:
        """This process's Prometheus metrics, every sample labelled with the replica."""
        from prometheus_client import generate_latest

        label = f'replica="{self.id}"'
        lines = []
        for line in generate_latest().decode().splitlines():
            name, brace, rest = line.partition("{")
            if line.startswith("#"):
                lines.append(line)
            elif brace and " " not in name:
                lines.append(f"{name}{{{label},{rest}")
            else:
                name, _, rest = line.partition(" ")
                lines.append(f"{name}{{{label}}} {rest}")
        return "\n".join(lines)
