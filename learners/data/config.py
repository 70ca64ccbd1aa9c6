"""The section of the run configuration that says what is learned from: files, folders and hub
datasets."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from common.config import LocalPath, Section


class SourceConfig(Section):
    path: LocalPath = Field(min_length=1)
    """A file (.txt, .jsonl, .json, .csv, .tsv, .parquet, .arrow; texts also as .gz, .bz2, .zst), a
    pattern like books/*.txt, a folder of data files, what save_to_disk wrote, or a hub name like
    owner/dataset."""
    subset: str | None = None
    """Which configuration of a hub dataset or of a folder, where it has several."""
    split: str = "train"
    """Split or parts of splits, for example train[:1000] or train[10%:]+test. A file is all of
    "train"."""
    weight: float | None = Field(None, gt=0)
    """Share of the mix, relative to the other sources' weights; no row is repeated. Empty
    everywhere: all rows of all."""
    convert: str | None = None
    """For files in another form: its name where it is a published one (alpaca, hh, nectar, oasst, openai,
    openai_summarize, prism, sharegpt, shp, ultrafeedback, webgpt), or module:function (row) -> list of
    rows (or one row) in the form that the stage reads."""


def _as_source_list(value: Any) -> Any:
    """A list of sources; one source alone may stand without the list, and a source may be its
    path alone."""
    # Nothing stays nothing, and the field says whether that is allowed.
    if not value and not isinstance(value, str):
        return value
    if not isinstance(value, list):
        value = [value]
    sources = []
    for source in value:
        if isinstance(source, str):
            source = {"path": source}
        sources.append(source)
    return sources


Sources = Annotated[list[SourceConfig] | None, BeforeValidator(_as_source_list)]


class DataConfig(Section):
    root: LocalPath = "."
    """Folder that relative paths of this section start from."""
    corpus: Sources = None
    """Text for pre-training: .txt files, or rows with "text". Empty: the quickstart's."""
    documents: Literal["paragraphs", "file"] = "paragraphs"
    """What a document is in a .txt file: text between blank lines, or the whole file. Of a long
    document the end is kept for validation, short ones are kept whole or not at all."""
    demonstrations: Sources = None
    """Conversations, {"messages": [{"role", "content"}, …]} or {"prompt", "response"}. Empty: the
    quickstart's."""
    prompts: Sources = None
    """Prompts to sample from, {"prompt": text} or {"messages": […]}. Empty: the quickstart's."""
    heldout: Sources = None
    """Prompts kept for evaluation. Empty: the quickstart's."""
    rankings: Sources = None
    """Ranked responses, {"prompt", "responses", "ranks"}, or pairs, {"prompt", "chosen",
    "rejected"}. Empty: what the collect stage wrote."""
    split_key: str | None = None
    """Key of demonstrations and rankings (for example user): rows that share its value are all
    learned or all held out. A prompt of rankings is held out with any of its values; its rankings
    with other values are left out. Empty, or a row without the key: rows that share their prompt
    are all learned or all held out."""
    deduplicate: bool = False
    """Leave out rows whose text, prompt, conversation or ranking differs from an earlier one's only
    in case and in the amount of white space, whatever their other keys."""
    overlong: Literal["refuse", "drop", "truncate"] = "refuse"
    """Rows over model.context: an error, left out, or cut after the last sentence that fits."""
    max_invalid_rows: int = Field(0, ge=0)
    """Invalid rows that are skipped with a warning and counted; one more is an error."""

    @model_validator(mode="after")
    def _check_weights(self) -> DataConfig:
        for kind in KINDS:
            # A weight is a share of the mix, which means nothing for one source or beside none.
            weights = [source.weight for source in getattr(self, kind) or []]
            if any(weights) and (not all(weights) or len(weights) == 1):
                raise ValueError(
                    f"{kind}: give a weight to each of several sources or to none (got {weights})"
                )
        return self


KINDS = ("corpus", "demonstrations", "prompts", "heldout", "rankings")
