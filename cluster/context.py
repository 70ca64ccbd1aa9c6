"""What every stage gets: the config, the run directory, the fleets, and the tools made from
them."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, is_dataclass
from functools import partial
from typing import Any

from transformers import PreTrainedTokenizerBase

from actors.config import Decoding
from cluster.config import RunConfig
from cluster.fleets.manager import FleetManager
from cluster.run.directory import RunDirectory
from cluster.run.monitor import Monitor
from common.errors import UserError
from common.plugins import describe_error, load_function
from learners.data.encoding import encode_prompts
from learners.data.sources import DatasetReader, SourceRow


@dataclass
class Context:
    config: RunConfig
    run: RunDirectory
    fleets: FleetManager
    readers: dict[str, DatasetReader] = field(default_factory=dict)
    """Readers of what the current stage has read, by kind of data."""

    def monitor(self, stage: str) -> Monitor:
        return Monitor(self.run.root, stage, self.config.name, self.config.model_dump(mode="json"))

    def read(self, kind: str) -> tuple[list[SourceRow], DatasetReader]:
        """The records of one kind of data, and their reader, to which encoders pass rows that are
        too long."""
        reader = DatasetReader(kind, self.config.data, self.config.seed)
        # Kept for `data_stats`: encoders run later, and what they leave out is counted in it too.
        self.readers[kind] = reader
        rows = reader.read(self.run.sources(kind))
        self._check_prompts_and_heldout()
        return rows, reader

    def _check_prompts_and_heldout(self) -> None:
        """Raises UserError if a value of `data.split_key` is among the prompts to train on and to
        evaluate on."""
        if not {"prompts", "heldout"} <= self.readers.keys():
            return
        both = sorted(self.readers["prompts"].split_values & self.readers["heldout"].split_values)
        if both:
            raise UserError(
                f"{self.config.data.split_key} {both[0]!r} (one of {len(both)}) is in data.prompts and in "
                "data.heldout; with data.split_key no value may be in both"
            )

    def prompts(
        self, kind: str, tokenizer: PreTrainedTokenizerBase, room: int
    ) -> tuple[list[dict[str, Any]], list[list[int]]]:
        """Rows and token ids of the prompts of one kind, each of which leaves `room` tokens for
        the response. Rows are plain dicts, as functions of the user take them."""
        source_rows, reader = self.read(kind)
        rows, tokens = encode_prompts(source_rows, tokenizer, self.config.model.context - room, reader)
        if not rows:
            raise UserError(
                f"data.{kind}: no prompt leaves room for {room} tokens in "
                f"model.context={self.config.model.context}"
            )
        return rows, tokens

    def data_stats(self) -> dict[str, int]:
        """How many rows of each kind the current stage has read, left out and kept."""
        stats = {}
        for kind, reader in self.readers.items():
            for name, count in reader.stats.items():
                stats[f"data/{kind}/{name}"] = count
        return stats

    def judge(self) -> Callable[..., dict[str, Any]] | None:
        """The function that knows which responses are right, (row, response, ended) -> measures
        by name, for evaluation only; None if the config names none."""
        path = self.config.evaluate.judge_function
        if not path:
            return None
        return partial(_judge, load_function(path, "evaluate.judge", *JUDGE_ARGUMENTS), path)

    def check_judge(self) -> None:
        """Calls the judge once, on the first held-out prompt: its first call in training comes after
        hours. The response is empty, which a policy may give too. Raises UserError if it fails."""
        judge = self.judge()
        if judge is None:
            return
        rows, _ = self.read("heldout")
        try:
            judge(rows[0].record.user_row(), "", True)
        except UserError as error:
            raise UserError(f"{error}, called before training with an empty response") from error

    def decoding(self, stage: str, temperature: float) -> Decoding:
        return Decoding(temperature=temperature, max_tokens=getattr(self.config, stage).max_response_tokens)


JUDGE_ARGUMENTS = ("row", "response", "ended")


def _judge(
    function: Callable[..., Any], path: str, row: dict[str, Any], response: str, ended: bool = True
) -> dict[str, Any]:
    """The measures of one response. Raises UserError if the judge fails or gives something else."""
    try:
        verdict = function(row, response, ended)
        if inspect.isawaitable(verdict):
            verdict = asyncio.run(_awaited(verdict))
        found = measures(verdict)
        if found.get("score") is None:
            raise TypeError(f"it gives {verdict!r}; expected a number, or measures with a score")
        return found
    except Exception as error:  # the user's code may raise anything
        raise UserError(
            f"evaluate.judge={path}: {describe_error(error)}; the prompt was {str(row.get('prompt'))[:80]!r}"
        ) from error


async def _awaited(verdict: Any) -> Any:
    return await verdict


def measures(verdict: Any) -> dict[str, Any]:
    """The result of an evaluation function by name; a number alone is the score.

    Numbers of numpy and torch become Python's, since they are written as JSON. Raises TypeError for
    anything but numbers, true, false and None (a measure that does not apply)."""
    if is_dataclass(verdict) and not isinstance(verdict, type):
        verdict = {**asdict(verdict), "score": getattr(verdict, "score", None)}
    if not isinstance(verdict, Mapping):
        verdict = {"score": verdict}
    return {str(name): _plain_number(str(name), value) for name, value in verdict.items()}


def _plain_number(name: str, value: Any) -> float | bool | None:
    if callable(getattr(value, "item", None)):  # of numpy or torch
        value = value.item()
    if value is None or isinstance(value, (bool, int, float)):
        return value
    if hasattr(type(value), "__float__"):  # a Fraction, a Decimal
        return float(value)
    raise TypeError(f"measure {name} is {value!r} ({type(value).__name__}); expected a number")
