"""This project's own part of the endpoint: pages, feedback, status, the list of models, and promotion for its owner."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from fastapi import FastAPI, HTTPException
from fastapi.openapi.utils import get_openapi
from fastapi.responses import FileResponse, JSONResponse, PlainTextResponse
from pydantic import BaseModel, ConfigDict, Field

from common.errors import UserError
from serve.feedback import Feedback, store
from serve.versions import kept, promotions, resolve

PAGES = Path(__file__).parent / "pages"


class Promotion(BaseModel):
    model_config = ConfigDict(extra="forbid")
    version: str = Field(max_length=200)
    who: str = Field("someone", max_length=200)
    why: str = Field("", max_length=2000)


class Rollback(BaseModel):
    model_config = ConfigDict(extra="forbid")
    who: str = Field("someone", max_length=200)
    why: str = Field("", max_length=2000)


class Stored(BaseModel):
    stored: Literal["rankings.jsonl", "other.jsonl"]


def create_api(replica: Any) -> FastAPI:
    """The application of one replica (a `serve.deployment.ChatEndpoint`)."""
    site = FastAPI(title="Zero2Hero", version="1", docs_url=None, redoc_url=None, openapi_url=None)
    target: Path = replica.target

    @site.exception_handler(UserError)
    async def refused(_: Any, fault: UserError) -> JSONResponse:
        return JSONResponse(
            {"error": {"message": str(fault), "type": "invalid_request_error", "code": 409}}, 409
        )

    @site.exception_handler(RuntimeError)
    async def broke(_: Any, fault: RuntimeError) -> JSONResponse:
        return JSONResponse({"error": {"message": str(fault), "type": "server_error", "code": 500}}, 500)

    @site.get("/v1/models")
    async def models() -> dict[str, Any]:
        """The served names; `version` says which weights each holds."""
        rows = [
            {
                "id": name,
                "object": "model",
                "created": int(replica.started),
                "owned_by": "zero2hero",
                "version": m.served.version,
                "max_model_len": m.engine.model_config.max_model_len,
            }
            for name, m in replica.models.items()
        ]
        return {"object": "list", "data": rows}

    @site.get("/health")
    async def health() -> dict[str, str]:
        """200 while this replica's engines live and hold the durable version."""
        wanted = resolve(target).version
        dead = [name for name, model in replica.models.items() if model.engine.errored]
        if replica.broken or dead or wanted != replica.current.served.version:
            raise HTTPException(503, replica.broken or f"dead engines: {dead}; durable version: {wanted}")
        return {"status": "ok", "version": wanted}

    @site.get("/metrics", response_class=PlainTextResponse)
    async def metrics() -> str:
        """Prometheus metrics of vLLM and of the processes, of all replicas."""
        families: dict[
            str, dict[str, None]
        ] = {}  # a family's lines, in order, the same comment of two replicas once
        for text in await replica.everywhere("metrics"):
            lines: dict[str, None] = {}
            for line in text.splitlines() if isinstance(text, str) else ():
                if line.startswith("# HELP "):
                    lines = families.setdefault(line.split()[2], {})
                lines[line] = None
        return "\n".join(line for lines in families.values() for line in lines) + "\n"

    @site.get("/status.json")
    async def status() -> dict[str, Any]:
        """Served versions, promotions, traffic and replicas."""
        states = [s for s in await replica.everywhere("state") if isinstance(s, dict)]
        return {
            "current": resolve(target).version,
            "versions": kept(target),
            "promotions": promotions(target)[-50:],
            "replicas": states,
            "name": replica.config.name,
        }

    @site.post("/feedback")
    def feedback(given: Feedback) -> Stored:
        """Keeps what a person thinks of answers."""
        return Stored(stored=store(target / "feedback", given))  # type: ignore[arg-type]

    @site.post("/admin/promote")
    async def promote(asked: Promotion) -> dict[str, Any]:
        """Moves the service to another version of the run."""
        return await replica.move(asked.version, asked.who, asked.why)

    @site.post("/admin/rollback")
    async def rollback(asked: Rollback) -> dict[str, Any]:
        """Moves the service back to the version before."""
        return await replica.move(None, asked.who, asked.why)

    @site.get("/openapi.json", include_in_schema=False)
    async def schema() -> dict[str, Any]:
        routes = [*site.routes, *replica.current.app.routes]
        return get_openapi(title=site.title, version=site.version, routes=routes)

    @site.get("/pages/{name}", include_in_schema=False)
    async def file(name: str) -> FileResponse:
        if name not in {p.name for p in PAGES.iterdir()}:
            raise HTTPException(404, f"no page {name}")
        return FileResponse(PAGES / name, headers={"cache-control": "no-cache"})

    def page(name: str) -> Any:
        return lambda: FileResponse(PAGES / name)

    for path, name in (("/", "chat.html"), ("/playground", "playground.html"), ("/status", "status.html")):
        site.get(path, include_in_schema=False)(page(name))
    return site
