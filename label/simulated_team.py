"""What an owner does for simulated people: invites, admission, and the questionnaire with its reviewers."""

from __future__ import annotations

from collections.abc import Sequence

from label.simulate import SimulatedPerson, make_people
from label.store.people import create_invite, set_state
from label.team import screened
from label.workplace import Workplace

REVIEWERS_SEED = 10**6


def join_all(workplace: Workplace, people: Sequence[SimulatedPerson], role: str = "labeler") -> list[str]:
    """Each joins by an invite of his or her own; returns the ids."""
    ids = []
    for one in people:
        with workplace.database.write() as connection:
            code = create_invite(connection, role, "simulated")
        ids.append(one.join(code))
    return ids


def admit_all(workplace: Workplace, people: Sequence[SimulatedPerson]) -> None:
    for person in join_all(workplace, people):
        with workplace.database.write() as connection:
            set_state(connection, person, "admitted", "cli", "simulated")


def screen_all(workplace: Workplace, people: Sequence[SimulatedPerson]) -> list[SimulatedPerson]:
    """All answer the questionnaire, as many reviewers as are needed rate their demonstrations, and whoever is
    proposed for admission is admitted; returns those."""
    thresholds = workplace.settings.screening.thresholds
    ids = join_all(workplace, people)
    for one in people:
        one.answer_questions(workplace.questionnaire)
    reviewers = make_people(
        people[0].url, thresholds.raters, REVIEWERS_SEED + people[0].seed % REVIEWERS_SEED
    )
    join_all(workplace, reviewers, "reviewer")
    for reviewer in reviewers:
        reviewer.rate_demonstrations()
    admitted = []
    for one, person in zip(people, ids, strict=True):
        with workplace.database.write() as connection:
            result = screened(connection, workplace, person)
            if result["proposal"] == "admit":
                set_state(
                    connection, person, "admitted", "cli", "questionnaire", {"scores": result["scores"]}
                )
                admitted.append(one)
    return admitted
