"""The section of the run configuration that says what is learned from: files, folders and hub datasets."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from common.config import Section


class SourceConfig(Section):
    path: str
    """A file (.txt, .jsonl, .json, .csv, .parquet), a folder of data files, or a hub name like owner/dataset."""
    subset: str | None = None
    """Which of a hub dataset's configurations, where it has several."""
    split: str = "train"
    """Split of a hub dataset or of a folder."""
    weight: float | None = Field(None, gt=0)
    """Share of the mix, relative to the other sources' weights; no row is repeated. Empty everywhere: all rows of all."""
    convert: str | None = None
    """module:function (row) -> list of rows in the form that the stage reads, for files in another form."""


def _listed(given: Any) -> Any:
    """A path alone and a source alone are a list of one."""
    if isinstance(given, str):
        given = {"path": given}
    return (
        [{"path": g} if isinstance(g, str) else g for g in given]
        if isinstance(given, list)
        else given and [given]
    )


Sources = Annotated[list[SourceConfig] | None, BeforeValidator(_listed)]


class DataConfig(Section):
    root: str = "."
    """Folder that relative paths of this section start from."""
    corpus: Sources = None
    """Text for pre-training: .txt files, or rows with "text". Empty: the built-in world's."""
    documents: Literal["paragraphs", "file"] = "paragraphs"
    """What a document is in a .txt file: what stands between blank lines, or the whole file. The end of a file that is
    one document is kept for validation."""
    demonstrations: Sources = None
    """Conversations, {"messages": [{"role", "content"}, …]} or {"prompt", "response"}. Empty: the built-in world's."""
    prompts: Sources = None
    """Prompts to sample from, {"prompt": text} or {"messages": […]}. Empty: the built-in world's."""
    heldout: Sources = None
    """Prompts kept for evaluation. Empty: the built-in world's."""
    rankings: Sources = None
    """Ranked responses, {"prompt", "responses", "ranks"}, or pairs, {"prompt", "chosen", "rejected"}. Empty: what the
    collect stage wrote."""
    split_key: str | None = None
    """Key of demonstrations and rankings (for example user): rows that share its value are all learned or all held out."""
    deduplicate: bool = False
    """Leave out rows that repeat an earlier one but for case and white space."""
    overlong: Literal["refuse", "drop", "truncate"] = "refuse"
    """Rows over model.context: an error, left out, or cut after the last sentence that fits."""
    max_invalid_rows: int = Field(0, ge=0)
    """Broken rows that are skipped, told and counted; one more is an error. 0: the first is one."""

    @model_validator(mode="after")
    def _weights(self) -> DataConfig:
        for kind in KINDS:
            weights = [s.weight for s in getattr(self, kind) or []]
            if any(weights) and (not all(weights) or len(weights) == 1):
                raise ValueError(
                    f"{kind}: give a weight to each of several sources or to none (found {weights})"
                )
        return self


KINDS = ("corpus", "demonstrations", "prompts", "heldout", "rankings")
