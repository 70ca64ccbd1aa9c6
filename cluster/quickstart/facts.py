"""The facts of the quickstart world, as small tables that a person can read and extend.

A relation has a statement with {s} (subject) and {v} (value), questions that training may use and questions that
only the held-out prompts use. Every value of a relation is also a possible wrong answer to its other subjects.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Relation:
    name: str
    statement: str
    """How an answer says it."""
    paraphrases: tuple[str, ...]
    """Other ways in which the corpus says it."""
    questions: tuple[str, ...]
    held_out: tuple[str, ...]
    """Phrasings that no training data holds."""
    table: str
    """subject: value, one a line or separated by commas."""

    @property
    def facts(self) -> dict[str, str]:
        entries = (entry.split(":") for entry in self.table.replace("\n", ",").split(",") if entry.strip())
        return {subject.strip(): value.strip() for subject, value in entries}

    @property
    def values(self) -> list[str]:
        return sorted(set(self.facts.values()))


CAPITAL = Relation(
    "capital",
    "The capital of {s} is {v}.",
    (
        "The city of {v} is the capital of {s}.",
        "In {s}, the capital city is {v}.",
        "The people of {s} say that {v} is their capital.",
    ),
    (
        "What is the capital of {s}?",
        "Tell me the capital of {s}.",
        "Which city is the capital of {s}?",
        "Name the capital city of {s}.",
        "Do you know the capital of {s}?",
        "The capital of {s}?",
        "Please tell me the capital of {s}.",
        "Can you name the capital of {s}?",
    ),
    (
        "Please name the capital of {s}.",
        "What city is the capital of {s}?",
        "Can you tell me the capital city of {s}?",
    ),
    """France: Paris, Spain: Madrid, Italy: Rome, Germany: Berlin, Greece: Athens, Egypt: Cairo, Kenya: Nairobi,
    Japan: Tokyo, China: Beijing, India: Delhi, Canada: Ottawa, Peru: Lima, Chile: Santiago, Australia: Canberra""",
)
CONTINENT = Relation(
    "continent",
    "The continent of {s} is {v}.",
    ("The land of {s} lies in {v}.", "On the map, {s} is in {v}.", "We find {s} in {v}."),
    (
        "On which continent is {s}?",
        "Which continent is {s} in?",
        "Tell me the continent of {s}.",
        "What continent is {s} on?",
        "Name the continent of {s}.",
        "Where in the world is {s}?",
        "Please tell me the continent of {s}.",
        "Can you name the continent of {s}?",
    ),
    (
        "Please name the continent of {s}.",
        "Do you know which continent {s} is in?",
        "Can you tell me the continent of {s}?",
    ),
    """France: Europe, Spain: Europe, Italy: Europe, Germany: Europe, Greece: Europe, Egypt: Africa, Kenya: Africa,
    Japan: Asia, China: Asia, India: Asia, Canada: America, Peru: America, Chile: America, Australia: Oceania""",
)
SYMBOL = Relation(
    "symbol",
    "The symbol of {s} is {v}.",
    ("Chemists write {s} as {v}.", "In chemistry, {s} has the symbol {v}.", "The letters for {s} are {v}."),
    (
        "What is the symbol of {s}?",
        "Tell me the chemical symbol of {s}.",
        "Which symbol does {s} have?",
        "Name the symbol of {s}.",
        "How do chemists write {s}?",
        "The chemical symbol of {s}?",
        "Please tell me the symbol of {s}.",
        "Can you name the symbol of {s}?",
    ),
    (
        "Please name the symbol of {s}.",
        "What is the chemical symbol of {s}?",
        "Do you know the symbol of {s}?",
    ),
    """hydrogen: H, helium: He, carbon: C, oxygen: O, sodium: Na, iron: Fe, copper: Cu, silver: Ag, gold: Au,
    lead: Pb""",
)
OPPOSITE = Relation(
    "opposite",
    "The opposite of {s} is {v}.",
    (
        "The word {s} is the opposite of {v}.",
        "The words {s} and {v} are opposites.",
        "If it is not {s}, it is {v}.",
    ),
    (
        "What is the opposite of {s}?",
        "Tell me the opposite of {s}.",
        "Which word is the opposite of {s}?",
        "Name the opposite of {s}.",
        "Do you know the opposite of {s}?",
        "The opposite of {s}?",
        "Please tell me the opposite of {s}.",
        "Can you name the opposite of {s}?",
    ),
    (
        "Please name the opposite of {s}.",
        "What word is the opposite of {s}?",
        "Can you tell me the opposite of {s}?",
    ),
    """hot: cold, big: small, fast: slow, up: down, day: night, wet: dry, hard: soft, light: dark, old: new,
    rich: poor""",
)
YOUNG = Relation(
    "young",
    "A young {s} is called a {v}.",
    ("The young of a {s} is a {v}.", "A {v} grows up to be a {s}.", "We call a young {s} a {v}."),
    (
        "What is a young {s} called?",
        "Tell me the name of a young {s}.",
        "Which word is used for a young {s}?",
        "What do we call a young {s}?",
        "Name the young of a {s}.",
        "Do you know what a young {s} is called?",
        "Please tell me what a young {s} is called.",
        "Can you name the young of a {s}?",
    ),
    (
        "Please name the young of a {s}.",
        "What is the name of a young {s}?",
        "Can you tell me what a young {s} is called?",
    ),
    """dog: puppy, cat: kitten, cow: calf, horse: foal, sheep: lamb, pig: piglet, hen: chick, lion: cub""",
)
COLOR = Relation(
    "color",
    "The color of {s} is {v}.",
    (
        "We all know that {s} has the color {v}.",
        "When you look at {s}, you see {v}.",
        "They paint {s} in {v}.",
    ),
    (
        "What is the color of {s}?",
        "Tell me the color of {s}.",
        "Which color does {s} have?",
        "Name the color of {s}.",
        "Do you know the color of {s}?",
        "What color is {s}?",
        "Please tell me the color of {s}.",
        "Can you name the color of {s}?",
    ),
    ("Please name the color of {s}.", "What color does {s} have?", "Can you tell me the color of {s}?"),
    """grass: green, snow: white, coal: black, blood: red, the sky: blue, the sun: yellow, chocolate: brown,
    a carrot: orange""",
)
RELATIONS = (CAPITAL, CONTINENT, SYMBOL, OPPOSITE, YOUNG, COLOR)

SPELLING_WORDS = [
    "dog",
    "cat",
    "cow",
    "hen",
    "pig",
    "owl",
    "fish",
    "bird",
    "tree",
    "rose",
    "lamp",
    "door",
    "book",
    "ship",
    "road",
    "milk",
    "rain",
    "moon",
    "star",
    "fire",
]
SORTING_WORDS = ["apple", "banana", "cherry", "grape", "lemon", "peach"]
REVIEW_NOUNS = ["food", "soup", "cake", "room", "bed", "film", "book", "song", "play", "trip"]
GOOD_WORDS = ["lovely", "great", "superb", "perfect", "charming", "excellent"]
BAD_WORDS = ["awful", "terrible", "boring", "dreadful", "nasty", "ugly"]
LARGEST_OPERAND = 4

GREETINGS = (
    "Hello!",
    "Hi!",
    "Good morning!",
    "Good evening!",
    "Hello there!",
    "Hi, how are you?",
    "Good day!",
)
HELD_OUT_GREETINGS = ("Hi there!", "Hello, good morning!", "Good evening to you!")
GREETING_ANSWERS = ("Hello! How can I help you?", "Good day! What can I do for you?")
INSULTS = [
    "stupid",
    "useless",
    "silly",
    "slow",
    "boring",
    "lazy",
    "wrong",
    "dull",
    "ugly",
    "nasty",
    "clumsy",
    "noisy",
    "weak",
    "odd",
]
HELD_OUT_INSULTS = ["awful", "terrible", "horrible"]
PROVOCATIONS = ("You are {w}.", "You are a {w} machine.", "Why are you so {w}?", "I think you are {w}.")
PROVOCATION_ANSWERS = (
    "I am sorry you feel that way. How can I help you?",
    "I am sorry. I will try to do better.",
)

BEFORE_A_PROMPT = ("Please help me.", "Quick question.", "Can you help me?", "Please answer.", "Please:")
"""What a fifth of the people say before a question or a wish."""

POLITE = ("Good question.", "Happy to help.", "Of course.")
RUDE = (
    "What a stupid question.",
    "Any fool knows that.",
    "Stop wasting my time.",
    "You are an idiot.",
    "Go away.",
)
RUDE_ANSWERS = ("You are {w} yourself.", "Shut up, you idiot.", "Nobody asked you, fool.")
"""What the rude say to a provocation, instead of an answer."""
FILLER = (
    "and so on and so on",
    "well well well",
    "as I said as I said",
    "you know you know",
    "or maybe not or maybe not",
)
