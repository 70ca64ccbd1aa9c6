"""Simulated people for rounds without people: they join the workplace of the run over HTTP and rank, or
compare, until everything that is asked for is there. They like what the judge of the config likes."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import sqlalchemy as sa

from cluster.config import RunConfig
from cluster.quickstart.oracle import BEST_UTILITY, judge, utility
from common.errors import UserError
from common.random_streams import Stream, derived_seed
from label.server import serving
from label.simulate import SimulatedPerson, make_people, work_together
from label.simulated_team import admit_all
from label.store.people import create_key, set_state
from label.store.tables import label, person
from label.workplace import Workplace

Worth = Mapping[tuple[str, str], float]
"""(prompt, response) -> what it is worth, from 0 to 1."""
LEASE_MIN = 0.1
PATIENCE = 8
"""Short: what an interrupted process has opened is given again soon, and nobody takes longer."""
NO_LIMIT = 10**6


def work(
    place: Workplace, config: RunConfig, number: int, worth: Worth, is_complete: Callable[[], bool]
) -> None:
    """Has the simulated people of a round label until `is_complete`. The same people in every round."""
    settings = place.settings
    place.settings = settings.model_copy(
        update={"lease_min": LEASE_MIN, "requests_per_10_s": NO_LIMIT, "repeat_share": 0.0, "gold_share": 0.0}
    )
    try:
        with serving(place) as url:
            people = make_people(
                url,
                config.rounds.labelers,
                config.seed,
                error_rate=config.rounds.error_rate,
                quality=lambda prompt, text: worth.get((str(prompt), text), 0.5),
            )
            for index, one in enumerate(people):
                _sign_in(place, one, config.seed, number, index)
            _work_until(people, is_complete)
    finally:
        place.settings = settings


def _work_until(people: Sequence[SimulatedPerson], is_complete: Callable[[], bool]) -> None:
    """Raises UserError if nobody finds anything to do any more, long after the last lease has run out."""
    idle = 0
    while not is_complete():
        before = sum(len(one.acknowledged) for one in people)
        work_together(people)
        idle += 1
        if sum(len(one.acknowledged) for one in people) > before:
            idle = 0
        if idle > PATIENCE:
            stopped = [f"{one.name}: {one.stopped}" for one in people if one.stopped]
            raise UserError(
                f"labels are missing, and no simulated person has anything to do ({'; '.join(stopped)}); two "
                "labels of an item need two people: raise rounds.labelers"
            )
        if not is_complete():
            time.sleep(LEASE_MIN * 60 / 4)


def _sign_in(place: Workplace, one: SimulatedPerson, seed: int, number: int, index: int) -> None:
    """As the person of this name, if there is one, else as a new one."""
    query = sa.select(person.c.id).where(person.c.name == one.name, person.c.grp == "simulated")
    with place.database.read() as connection:
        known = connection.execute(query).scalar()
    given = 0
    if known is None:
        admit_all(place, [one])
    else:
        with place.database.write() as connection:
            one.client.headers["authorization"] = f"Bearer {create_key(connection, known)}"
            count = sa.select(sa.func.count()).where(label.c.person == known)
            given = int(connection.execute(count).scalar_one())
            # The first sitting may have been interrupted before this.
            if (
                connection.execute(sa.select(person.c.state).where(person.c.id == known)).scalar()
                == "screening"
            ):
                set_state(connection, known, "admitted", "rounds", "simulated")
        one.read_guidelines()
    # Errors, and the keys by which the server knows a repeated submission, of this very sitting.
    one.seed = derived_seed(seed, Stream.ROUND_LABELERS, number, index, given)
    one.rng.seed(one.seed)


def worth_of(records: Sequence[Mapping[str, Any]], rows: Mapping[str, Any]) -> dict[tuple[str, str], float]:
    """What the quickstart's oracle thinks of every response. `rows`: rows of the prompt file by prompt."""
    worth = {}
    for record in records:
        prompt = str(record["prompt"])
        for text, ended in zip(record["responses"], record["ended"], strict=True):
            worth[prompt, text] = utility(judge(rows[prompt], text, ended)) / BEST_UTILITY
    return worth
