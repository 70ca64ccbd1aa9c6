"""Answers to the questionnaire, their scores, and the demonstrations that reviewers rate.

An attempt begins anew when an owner puts a person back to screening; earlier answers stay with their attempt.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import sqlalchemy as sa
from sqlalchemy import Connection

from label.errors import BadInput, Conflict, Forbidden, NotHere
from label.quality.config import ScreeningThresholds
from label.quality.screening import Screening, screen
from label.questionnaire import Question, Questionnaire, SectionName
from label.store.assignments import lock_person
from label.store.database import now_ms, record_event
from label.store.screening_tables import answer, answer_rating, decision, screening
from label.store.tables import person
from label.submission import check_text

SECTION_OF_SCORE = {
    "flags": "flag",
    "sensitive flags": "flag",
    "rankings": "rank",
    "demonstrations": "write",
    "guidelines": "read",
}


def attempt_of(connection: Connection, person_id: str) -> int:
    query = sa.select(sa.func.count()).where(decision.c.person == person_id, decision.c.what == "screening")
    return 1 + int(connection.execute(query).scalar_one())


def _answers(connection: Connection, person_id: str, attempt: int) -> dict[str, Any]:
    query = sa.select(answer.c.question, answer.c.value)
    mine = query.where(answer.c.person == person_id, answer.c.attempt == attempt)
    return {row.question: row.value for row in connection.execute(mine)}


def _seed(person_id: str, attempt: int) -> str:
    return f"{person_id}:{attempt}"


def progress(connection: Connection, questionnaire: Questionnaire, person_id: str) -> dict[str, Any]:
    """How many questions are answered, and the next one as the person sees it."""
    attempt = attempt_of(connection, person_id)
    answered = _answers(connection, person_id, attempt)
    seed = _seed(person_id, attempt)
    open_ones = [one for one in questionnaire.in_order(seed) if one.id not in answered]
    return {
        "total": len(questionnaire.questions),
        "answered": len(questionnaire.questions) - len(open_ones),
        "next": open_ones[0].shown(seed) if open_ones else None,
    }


def save_answer(
    connection: Connection,
    questionnaire: Questionnaire,
    thresholds: ScreeningThresholds,
    person_id: str,
    question_id: str,
    value: Any,
) -> None:
    """Stores an answer, which is final; the same one again changes nothing. With the last one the scores are
    stored too. Raises Forbidden for a person who is not in screening, NotHere, Conflict and BadInput."""
    row = lock_person(connection, person_id)
    if row.state != "screening":
        raise Forbidden(
            f"state_{row.state}", f"you are {row.state}; the questions are for people in screening"
        )
    question = _question(questionnaire, question_id)
    attempt = attempt_of(connection, person_id)
    if isinstance(value, str):
        try:
            check_text(value)
        except ValueError as error:
            raise BadInput("value", str(error)) from None
    checked = question.check(value, _seed(person_id, attempt))
    answered = _answers(connection, person_id, attempt)
    if question.id in answered:
        if answered[question.id] != checked:
            raise Conflict("answered", "this question is answered already; go on with the next one")
        return
    values = {"person": person_id, "attempt": attempt, "question": question.id, "value": checked}
    connection.execute(answer.insert().values({**values, "time": now_ms()}))
    if len(answered) + 1 == len(questionnaire.questions):
        store_scores(connection, questionnaire, thresholds, person_id)
        record_event(connection, "questionnaire", person_id, None, attempt=attempt)


def _question(questionnaire: Questionnaire, question_id: str) -> Question:
    if question_id not in questionnaire.questions:
        raise NotHere("question", "there is no such question; reload the page")
    return questionnaire.questions[question_id]


def evaluate(
    connection: Connection, questionnaire: Questionnaire, thresholds: ScreeningThresholds, person_id: str
) -> Screening:
    """Scores and proposal of the latest attempt. Sections that the questionnaire lacks do not count."""
    attempt = attempt_of(connection, person_id)
    given = _answers(connection, person_id, attempt)
    result = screen(
        _answered(questionnaire, "flag", given),
        _answered(questionnaire, "rank", given),
        _ratings(connection, person_id, attempt).values(),
        [said == right for said, right in _answered(questionnaire, "read", given)],
        {one.content["topic"]: given[one.id] for one in questionnaire.of_section("topic") if one.id in given},
        thresholds,
    )
    asked = {question.section for question in questionnaire.questions.values()}
    scores = tuple(score for score in result.scores if SECTION_OF_SCORE[score.criterion] in asked)
    return replace(result, scores=scores)


def _answered(
    questionnaire: Questionnaire, section: SectionName, given: Mapping[str, Any]
) -> list[tuple[Any, Any]]:
    """(said, right) of the answered questions of a section."""
    return [(given[one.id], one.right) for one in questionnaire.of_section(section) if one.id in given]


def store_scores(
    connection: Connection, questionnaire: Questionnaire, thresholds: ScreeningThresholds, person_id: str
) -> Screening:
    result, attempt = (
        evaluate(connection, questionnaire, thresholds, person_id),
        attempt_of(connection, person_id),
    )
    mine = sa.and_(screening.c.person == person_id, screening.c.attempt == attempt)
    connection.execute(screening.delete().where(mine))
    for score in result.scores:
        values = {
            "person": person_id,
            "attempt": attempt,
            "criterion": score.criterion,
            "value": score.estimate.value,
            "n": score.estimate.n,
            "low": score.estimate.low,
            "high": score.estimate.high,
            "threshold": score.threshold,
            "passed": score.passed,
            "time": now_ms(),
        }
        connection.execute(screening.insert().values(values))
    return result


def _ratings(connection: Connection, person_id: str, attempt: int) -> dict[str, list[int]]:
    """Scores of each demonstration by question."""
    mine = sa.and_(answer_rating.c.person == person_id, answer_rating.c.attempt == attempt)
    scores: dict[str, list[int]] = {}
    for row in connection.execute(sa.select(answer_rating).where(mine)):
        scores.setdefault(row.question, []).append(row.score)
    return scores


def unrated_demonstrations(
    connection: Connection, questionnaire: Questionnaire, reviewer: str, raters: int
) -> list[dict[str, Any]]:
    """Demonstrations of people in screening that this reviewer has not rated and that need more ratings,
    without a word about who wrote them."""
    texts = {one.id: one for one in questionnaire.of_section("write")}
    query = (
        sa.select(answer)
        .join(person, person.c.id == answer.c.person)
        .where(person.c.state == "screening", person.c.id != reviewer, answer.c.question.in_(list(texts)))
        .order_by(answer.c.time)
    )
    waiting = []
    for row in connection.execute(query).all():
        rated = _raters(connection, row.person, row.attempt, row.question)
        if (
            row.attempt == attempt_of(connection, row.person)
            and reviewer not in rated
            and len(rated) < raters
        ):
            waiting.append(
                {
                    "id": f"{row.person}:{row.question}",
                    "prompt": texts[row.question].content["prompt"],
                    "text": row.value,
                }
            )
    return waiting


def _raters(connection: Connection, person_id: str, attempt: int, question: str) -> Sequence[str]:
    query = sa.select(answer_rating.c.reviewer).where(
        answer_rating.c.person == person_id,
        answer_rating.c.attempt == attempt,
        answer_rating.c.question == question,
    )
    return connection.execute(query).scalars().all()


def rate_demonstration(
    connection: Connection,
    questionnaire: Questionnaire,
    thresholds: ScreeningThresholds,
    reviewer: str,
    identity: str,
    score: int,
) -> None:
    """Stores a reviewer's rating from 1 to 7; the same one again changes nothing."""
    person_id, _, question = identity.partition(":")
    lock_person(connection, person_id)
    attempt = attempt_of(connection, person_id)
    if person_id == reviewer or question not in _answers(connection, person_id, attempt):
        raise NotHere("demonstration", "there is no such demonstration for you to rate")
    if reviewer in _raters(connection, person_id, attempt, question):
        return
    values = {"person": person_id, "attempt": attempt, "question": question, "reviewer": reviewer}
    connection.execute(answer_rating.insert().values({**values, "score": score, "time": now_ms()}))
    store_scores(connection, questionnaire, thresholds, person_id)
