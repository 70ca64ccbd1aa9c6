"""Rankings of the collect stage by the way that people's labels take: a labelling workplace in RUN/label,
simulated people who join it over HTTP, and its export.

The people are `label.simulate`'s; what they like is the truth of the quickstart. Who gets which item depends
on who asks first, so two runs do not have the same rankings.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

from cluster.context import Context
from cluster.quickstart.oracle import BEST_UTILITY, judge, utility
from common.random_streams import Stream, generator
from label.config import LabelConfig
from label.export import export
from label.server import serving
from label.simulate import make_people, work_together
from label.simulated_team import admit_all
from label.store.items import BatchSpec, add_items
from label.workplace import Workplace
from learners.data.records import RankingRecord, ResponsesRecord

NO_LIMIT = 10**6


def rank_in_workplace(context: Context, collected: Sequence[ResponsesRecord]) -> list[list[dict[str, Any]]]:
    """The rankings of each record, as rows of `RankingRecord`. After an interruption the labels that the
    workplace has confirmed stay, and other people give those that are missing."""
    config, seed = context.config.collect, context.config.seed
    draws = generator(seed, Stream.LABELER_ASSIGNMENT).random(len(collected))
    # A collection that is done again has other responses, and batches of its own.
    mark = hashlib.sha256(context.run.paths.responses.read_bytes()).hexdigest()[:8]
    once, twice = f"collect-{mark}", f"collect-{mark}-overlap"
    items: dict[str, list[dict[str, Any]]] = {once: [], twice: []}
    for record, draw in zip(collected, draws, strict=True):
        items[twice if draw < config.overlap else once].append(record.stored_row())
    # Only what this stage needs: nobody is screened, and no item is hidden among others.
    settings = LabelConfig(gold_share=0, calibration_share=0, repeat_share=0, requests_per_10_s=NO_LIMIT)
    workplace = Workplace(context.run.root, settings)
    try:
        for quota, (name, rows) in enumerate(items.items(), start=1):
            add_items(workplace.database, BatchSpec(name, "rank", quota), rows)
        worth = _worth(collected)
        with serving(workplace) as url:
            people = make_people(
                url,
                config.labelers,
                seed,
                error_rate=config.error_rate,
                quality=lambda prompt, text: worth[str(prompt), text],
            )
            admit_all(workplace, people)
            work_together(people)
        with workplace.database.read() as connection:
            exported = export(connection, batches=list(items))
    finally:
        workplace.database.close()
    rankings = defaultdict(list)
    for row in exported.rankings:
        rankings[row["item"]].append(RankingRecord.parse(row).stored_row())
    return list(rankings.values())


def _worth(collected: Sequence[ResponsesRecord]) -> dict[tuple[str, str], float]:
    """What the oracle thinks of each response to each prompt, from 0 to 1."""
    worth = {}
    for record in collected:
        for text, ended in zip(record.responses, record.ended, strict=True):
            worth[str(record.prompt), text] = utility(judge(record.row, text, ended)) / BEST_UTILITY
    return worth
