"""This project's own routes of the endpoint: pages, feedback, status, list of models, and promotion
for its owner.

Every replica has one such application, behind the `Gateway`. The handlers read the replica from
`app.state.replica`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal, Protocol

from fastapi import APIRouter, Depends, FastAPI, Header, HTTPException, Request
from fastapi.openapi.utils import get_openapi
from fastapi.responses import FileResponse, JSONResponse, PlainTextResponse
from pydantic import BaseModel, ConfigDict, Field

from common.errors import UserError
from common.run_paths import RunPaths
from serve.config import ServeConfig
from serve.example_prompts import example_prompts
from serve.feedback import Feedback, store
from serve.metrics import exposition
from serve.versions import current_policy, list_promotions, list_versions
from serve.vllm_messages import NOT_STORED

PAGES = Path(__file__).parent / "pages"
LAST_PROMOTIONS = 50
"""Rows of the log of promotions on the status page."""


class Replica(Protocol):
    """What the handlers need of a `serve.deployment.ChatEndpoint`."""

    target: Path
    config: ServeConfig
    started: float
    failure: str
    models: dict[str, Any]
    current: Any

    async def broadcast(self, method: str) -> list[Any]: ...
    async def start_promotion(self, version: str, who: str, why: str) -> dict[str, Any]: ...
    async def start_rollback(self, who: str, why: str) -> dict[str, Any]: ...


class RollbackRequest(BaseModel):
    model_config = ConfigDict(extra="forbid")
    who: str = Field("someone", max_length=200)
    why: str = Field("", max_length=2000)


class PromotionRequest(RollbackRequest):
    version: str = Field(max_length=200)


class FeedbackStored(BaseModel):
    stored: Literal["rankings.jsonl", "other.jsonl"]


def get_replica(request: Request) -> Replica:
    replica: Replica = request.app.state.replica
    return replica


CurrentReplica = Annotated[Replica, Depends(get_replica)]
router = APIRouter()


def create_api(replica: Replica) -> FastAPI:
    """The application of one replica."""
    # FastAPI's own documentation pages load scripts from elsewhere, which the security headers
    # forbid. Its schema would lack vLLM's routes; /openapi.json below has both.
    api = FastAPI(title="Zero2Hero", version="1", docs_url=None, redoc_url=None, openapi_url=None)
    api.state.replica = replica
    api.add_exception_handler(UserError, answer_user_error)
    api.add_exception_handler(RuntimeError, answer_server_error)
    api.include_router(router)
    return api


async def answer_user_error(_: Request, error: Exception) -> JSONResponse:
    return error_answer(409, str(error))


async def answer_server_error(_: Request, error: Exception) -> JSONResponse:
    return error_answer(500, str(error), "server_error")


def error_answer(status: int, message: str, kind: str = "invalid_request_error") -> JSONResponse:
    """An error in the form of the OpenAI protocol."""
    return JSONResponse({"error": {"message": message, "type": kind, "code": status}}, status)


@router.get("/v1/models")
async def list_models(replica: CurrentReplica) -> dict[str, Any]:
    """The served names; `version` says which weights each holds."""
    rows = [describe_model(replica, name) for name in replica.models]
    return {"object": "list", "data": rows}


@router.get("/v1/models/{name:path}", response_model=None)
async def retrieve_model(replica: CurrentReplica, name: str) -> dict[str, Any] | JSONResponse:
    """One of the served names."""
    if name not in replica.models:
        return error_answer(404, f"The model `{name}` does not exist; there are {', '.join(replica.models)}.")
    return describe_model(replica, name)


def describe_model(replica: Replica, name: str) -> dict[str, Any]:
    model = replica.models[name]
    return {
        "id": name,
        "object": "model",
        "created": int(replica.started),
        "owned_by": "zero2hero",
        "version": model.version.name,
        "max_model_len": model.engine.model_config.max_model_len,
    }


@router.api_route("/v1/responses/{rest:path}", methods=["GET", "POST", "DELETE"], include_in_schema=False)
async def stored_response(rest: str) -> JSONResponse:
    """Where a stored answer of /v1/responses would be retrieved or cancelled."""
    return error_answer(404, NOT_STORED)


@router.get("/health")
async def health(replica: CurrentReplica) -> dict[str, str]:
    """200 while this replica's engines live and hold the current version."""
    version = current_policy(replica.target).name
    dead = [name for name, model in replica.models.items() if model.engine.errored]
    if replica.failure:
        raise HTTPException(503, replica.failure)
    if dead or version != replica.current.version.name:
        raise HTTPException(503, f"dead engines: {dead}; current version of the run: {version}")
    return {"status": "ok", "version": version}


@router.get("/metrics", response_class=PlainTextResponse)
async def metrics(replica: CurrentReplica) -> str:
    """Prometheus metrics of vLLM and of the processes, of all replicas."""
    results = await replica.broadcast("metrics")
    # A replica that died meanwhile gives an exception instead of its families.
    return exposition(families for families in results if isinstance(families, list))


@router.get("/status.json")
async def status(replica: CurrentReplica) -> dict[str, Any]:
    """Served versions, promotions, requests and replicas."""
    results = await replica.broadcast("state")
    return {
        "current": current_policy(replica.target).name,
        "versions": list_versions(replica.target),
        "promotions": list_promotions(replica.target)[-LAST_PROMOTIONS:],
        "replicas": [state for state in results if isinstance(state, dict)],
        "name": replica.config.name,
    }


@router.get("/prompts.json")
def prompts(replica: CurrentReplica) -> list[str]:
    """Prompts to try, for the chat page."""
    return example_prompts(replica.target)


@router.post("/feedback")
def feedback(
    replica: CurrentReplica,
    request: Request,
    feedback: Feedback,
    key: Annotated[str, Header(alias="Idempotency-Key", max_length=100)] = "",
) -> FeedbackStored:
    """Stores a person's opinion of answers, once for each Idempotency-Key."""
    # FastAPI runs this handler in a thread, because it is not async: the write waits for the disk.
    signed_by = getattr(request.state, "key_name", "")
    file = store(RunPaths(replica.target), feedback, key, signed_by)
    return FeedbackStored(stored=file)  # type: ignore[arg-type]


@router.post("/admin/promote")
async def promote(replica: CurrentReplica, request: PromotionRequest) -> dict[str, Any]:
    """Serves another version of the run, if the canary accepts it."""
    return await replica.start_promotion(request.version, request.who, request.why)


@router.post("/admin/rollback")
async def rollback(replica: CurrentReplica, request: RollbackRequest) -> dict[str, Any]:
    """Serves the version before the present one again."""
    return await replica.start_rollback(request.who, request.why)


@router.get("/openapi.json", include_in_schema=False)
async def schema(request: Request, replica: CurrentReplica) -> dict[str, Any]:
    """The schema of these routes and of vLLM's."""
    api = request.app
    return get_openapi(
        title=api.title, version=api.version, routes=[*api.routes, *replica.current.app.routes]
    )


@router.get("/", include_in_schema=False)
async def chat_page() -> FileResponse:
    return FileResponse(PAGES / "chat.html")


@router.get("/playground", include_in_schema=False)
async def playground_page() -> FileResponse:
    return FileResponse(PAGES / "playground.html")


@router.get("/status", include_in_schema=False)
async def status_page() -> FileResponse:
    return FileResponse(PAGES / "status.html")


@router.get("/pages/{name}", include_in_schema=False)
async def page_file(name: str) -> FileResponse:
    """Scripts and styles of the pages."""
    # Only names that are in the folder: a path in `name` leads nowhere else.
    if name not in {file.name for file in PAGES.iterdir()}:
        raise HTTPException(404, f"no page {name}")
    return FileResponse(PAGES / name, headers={"cache-control": "no-cache"})
