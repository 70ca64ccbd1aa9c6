"""What every stage is given: the config, the run directory, the fleets and the tools made from them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, is_dataclass
from typing import Any

from transformers import PreTrainedTokenizerBase

from actors.config import Decoding
from cluster.config import RunConfig
from cluster.fleet import Fleets
from cluster.host import load_object
from cluster.monitor import Monitor
from cluster.run import Run
from learners.datasets import check_prompt, read_rows
from learners.errors import UserError
from learners.tokenizer import encode_prompt


@dataclass
class Context:
    config: RunConfig
    run: Run
    fleets: Fleets

    def monitor(self, stage: str) -> Monitor:
        return Monitor(self.run.root, stage, self.config.name, self.config.model_dump(mode="json"))

    def prompts(
        self, kind: str, tokenizer: PreTrainedTokenizerBase, room: int
    ) -> tuple[list[dict[str, Any]], list[list[int]]]:
        """Rows and token ids of a prompt file; every prompt must leave `room` tokens for the response."""
        path = self.run.data(kind)
        rows = read_rows(path, check_prompt)
        tokens = [encode_prompt(tokenizer, row["prompt"]) for row in rows]
        for number, ids in enumerate(tokens, 1):
            if len(ids) + room > self.config.model.context:
                raise UserError(
                    f"{path}, row {number}: the prompt has {len(ids)} tokens and the response may have {room}, together more "
                    f"than model.context={self.config.model.context}; shorten the prompt or raise the context"
                )
        return rows, tokens

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
