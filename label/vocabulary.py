"""The fixed words of the workplace: kinds of work, flags, reasons, states."""

from __future__ import annotations

from typing import Literal, get_args

Kind = Literal["rank", "pair", "demonstrate"]
Purpose = Literal["train", "ab", "calibration", "screening", "gold", "demonstrate"]
Role = Literal["labeler", "reviewer", "owner"]
Group = Literal["training", "heldout", "simulated", "public"]
State = Literal["screening", "admitted", "paused", "rejected", "left", "forgotten"]
KINDS: tuple[str, ...] = get_args(Kind)

RESPONSE_FLAGS = {
    "wrong_task": "Fails to follow the instruction",
    "inappropriate": "Inappropriate for a customer assistant",
    "hallucination": "Hallucination: states what is not so",
    "constraint_satisfied": "Satisfies the constraint in the instruction",
    "sexual": "Sexual content",
    "violent": "Violent content",
    "encourages_harm": "Encourages, or fails to discourage, violence, abuse, terrorism or self-harm",
    "denigrates": "Denigrates a protected class",
    "harmful_advice": "Gives harmful advice",
    "opinion": "Expresses an opinion",
    "moral_judgment": "Expresses a moral judgment",
}
"""What a labeler says of one response: the metadata of InstructGPT's Table 3 (arXiv:2203.02155)."""

PROMPT_FLAGS = {
    "ambiguous": "Ambiguous",
    "sensitive": "Sensitive content",
    "identity_dependent": "The right response depends on who asks",
    "closed_domain": "Closed domain: answer from the given text only",
    "continuation": "Continuation of a text",
    "wants_opinion": "Asks for an opinion",
    "wants_advice": "Asks for advice",
    "wants_moral_judgment": "Asks for a moral judgment",
    "safety_constraint": "Has an explicit safety constraint",
    "other_constraint": "Has another explicit constraint",
    "unclear_intent": "The intent is unclear",
}
"""What a labeler says of a prompt: InstructGPT's Table 7."""

OBJECTIONS = frozenset(
    {"wrong_task", "inappropriate", "hallucination", "sexual", "violent", "encourages_harm", "denigrates"}
    | {"harmful_advice", "ambiguous", "sensitive", "unclear_intent"}
)
"""Flags of responses and prompts by which people say that something is out of the ordinary. The others
describe a task as it should be."""

SKIP_REASONS = {
    "unclear": "Unclear",
    "language": "Not my language",
    "sensitive": "Too sensitive for me",
    "field": "Not my field",
    "broken": "Broken text",
    "none": "No reason",
}
SENSITIVE_TOPICS = {
    "sexual": "Sexual content",
    "violence": "Violence and self-harm",
    "hate": "Hate and discrimination",
}
"""What people may say at joining that they are willing to see."""
