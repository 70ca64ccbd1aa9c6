"""What every stage is given: the config, the run directory, the fleets and the tools made from them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, is_dataclass
from typing import Any

from transformers import PreTrainedTokenizerBase

from actors.config import Decoding
from cluster.config import RunConfig
from cluster.fleets.manager import FleetManager
from cluster.run.directory import Run
from cluster.run.monitor import Monitor
from common.errors import UserError
from common.plugins import load_object
from learners.data.encoding import encode_prompts
from learners.data.sources import DatasetReader, SourceRow


@dataclass
class Context:
    config: RunConfig
    run: Run
    fleets: FleetManager
    readers: dict[str, DatasetReader] = field(default_factory=dict)
    """What the present stage has read, by kind."""

    def monitor(self, stage: str) -> Monitor:
        return Monitor(self.run.root, stage, self.config.name, self.config.model_dump(mode="json"))

    def read(self, kind: str) -> tuple[list[SourceRow], DatasetReader]:
        """The rows of one kind of data, and their reader, which encoders hand over-long rows to."""
        reader = self.readers[kind] = DatasetReader(kind, self.config.data, self.config.seed)
        rows = reader.read(self.run.sources(kind))
        other = self.readers.get({"prompts": "heldout", "heldout": "prompts"}.get(kind, ""))
        if other and (both := sorted(reader.owners & other.owners)):
            raise UserError(
                f"{self.config.data.split_key} {both[0]!r} (one of {len(both)}) is in data.prompts and in data.heldout; with "
                "data.split_key nobody may be in both"
            )
        return rows, reader

    def prompts(
        self, kind: str, tokenizer: PreTrainedTokenizerBase, room: int
    ) -> tuple[list[dict[str, Any]], list[list[int]]]:
        """Rows and token ids of the prompts of one kind, each of which leaves `room` tokens for the response."""
        located, reader = self.read(kind)
        rows, tokens = encode_prompts(located, tokenizer, self.config.model.context - room, reader)
        if not rows:
            raise UserError(
                f"data.{kind}: no prompt leaves room for {room} tokens in model.context={self.config.model.context}"
            )
        return rows, tokens

    def counts(self) -> dict[str, int]:
        """How many rows of each kind the present stage has read, left out and kept."""
        return {
            f"data/{kind}/{name}": n
            for kind, reader in self.readers.items()
            for name, n in reader.counts.items()
        }

    def judge(self) -> Callable[..., dict[str, Any]] | None:
        """The function that tells right from wrong, for evaluation only, as named measures; None where nobody knows."""
        if not self.config.evaluate.judge:
            return None
        function = load_object(self.config.evaluate.judge)
        return lambda row, response, ended=True: measures(function(row, response, ended))

    def decoding(self, stage: str, temperature: float) -> Decoding:
        return Decoding(temperature=temperature, max_tokens=getattr(self.config, stage).max_response_tokens)


def measures(found: Any) -> dict[str, Any]:
    """What an evaluation function said, by name; a number alone is the score."""
    if is_dataclass(found) and not isinstance(found, type):
        return {**asdict(found), "score": getattr(found, "score", None)}
    return dict(found) if isinstance(found, Mapping) else {"score": float(found)}
