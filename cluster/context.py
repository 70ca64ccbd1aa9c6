"""What every stage is given: the config, the run directory, the fleets and the tools made from them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
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

    def judge(self) -> Callable[..., Any] | None:
        """The function that tells right from wrong, for evaluation only; None where nobody knows."""
        return load_object(self.config.evaluate.judge) if self.config.evaluate.judge else None

    def decoding(self, stage: str, temperature: float) -> Decoding:
        return Decoding(temperature=temperature, max_tokens=getattr(self.config, stage).max_response_tokens)
