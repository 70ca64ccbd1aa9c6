"""How the chat endpoint is served."""

from __future__ import annotations

from pydantic import Field

from learners.config import DType, Section


class ServeConfig(Section):
    host: str = "127.0.0.1"
    """Address to listen on."""
    port: int = Field(8000, ge=1, le=65535)
    """Port to listen on."""
    replicas: int = Field(1, ge=1)
    """Copies of the engine behind the endpoint."""
    threads: int = Field(2, ge=1)
    """CPU threads of each replica."""
    gpus: float = Field(0.0, ge=0)
    """GPUs of each replica."""
    tensor_parallel: int = Field(1, ge=1)
    """GPUs that one replica's model is split over."""
    dtype: DType = "float32"
    """Arithmetic of the served model."""
    max_model_len: int | None = Field(None, ge=16)
    """Longest conversation in tokens. Empty: the model's own limit."""
    kv_cache_gib: float = Field(0.5, gt=0)
    """Key-value cache of a replica on CPU, GiB."""
    name: str = "hero"
    """Model name that clients ask for."""
