"""Make the example's data: ``tickets.jsonl``, ``general.jsonl`` and ``replay.jsonl`` beside this file.

    python make_data.py

Deterministic: the same script writes the same bytes. The tickets are synthetic, and as imperfect as an export from a
real help desk: typos, terse tickets, tickets that mention a second topic, four percent of the rows labelled wrongly (in
test as well as in train), and a few tickets that were sent twice.
"""

import itertools
import json
import random
from collections.abc import Iterable
from pathlib import Path

from general_corpus import Document, documents
from ticket_texts import (
    CATEGORIES,
    CLOSINGS,
    CONTEXTS,
    DETAILS,
    GREETINGS,
    PROBLEMS,
    SIDE_REMARKS,
    SLOTS,
    URGENCY,
)

HERE = Path(__file__).resolve().parent
TICKETS = 1900
SENT_TWICE = 8
GENERAL_ROWS = 150
REPLAY_ROWS = 400
SEED = 2024

SIDE_REMARK_SHARE = 0.18  # mentions a second, settled topic
TWO_PROBLEMS_SHARE = 0.04  # two open problems; the label is the first one's: truly ambiguous
TERSE_SHARE = 0.15
TYPO_SHARE = 0.35  # of the tickets; within one, about one word in fourteen
LABEL_NOISE = 0.055
QUESTION_WORDS = set("how can when do does is are why where who which what could".split())
# Whom a hurried clerk mixes up: wrong labels are not uniform.
CONFUSABLE = {
    "billing": "returns",
    "returns": "billing",
    "shipping": "returns",
    "account": "technical",
    "technical": "account",
}


def fill(text: str, rng: random.Random) -> str:
    """Fill the slots of one sentence."""
    values = {name: rng.choice(words) for name, words in SLOTS.items()}
    values |= {
        "order": f"{rng.choice(['', '#', 'A', 'ord. '])}{rng.randint(1000, 99999)}",
        "amount": f"{rng.randint(4, 320)}{rng.choice(['', '.90', '.50', '.99'])} "
        f"{rng.choice(['euros', 'EUR', 'dollars'])}",
        "code": f"{rng.choice('BCEFHKX')}{rng.randint(10, 999)}",
        "percent": str(rng.choice([5, 10, 15, 20, 25, 40, 60, 99])),
        "count": str(rng.choice(["two", "three", "four", "five", 6, 8, 10, 12, 20])),
        "mail": f"{values['name'].lower()}.{rng.choice('abcdefgh')}{rng.randint(1, 99)}@example.com",
        "phone": f"+1 202 555 01{rng.randint(0, 99):02d}",
    }
    return text.format(**values)


def problem_of(category: str, rng: random.Random) -> str:
    """One way of putting one situation of the category; the first situations are the frequent ones."""
    situations = PROBLEMS[category]
    weights = [1 / (1 + 0.4 * rank) for rank in range(len(situations))]
    return fill(rng.choice(rng.choices(situations, weights)[0]), rng)


def misspell(text: str, rng: random.Random) -> str:
    """Typos as people make them: a letter lost, doubled or swapped in about one word of fourteen."""
    words = text.split(" ")
    for index, word in enumerate(words):
        if len(word) < 4 or "@" in word or rng.random() > 1 / 14:
            continue
        at = rng.randrange(1, len(word) - 1)
        words[index] = rng.choice(
            [
                word[:at] + word[at + 1 :],
                word[:at] + word[at] + word[at:],
                word[:at] + word[at + 1] + word[at] + word[at + 2 :],
            ]
        )
    return " ".join(words)


def sentence(text: str, rng: random.Random) -> str:
    """Capital letter and full stop, mostly."""
    if not text or text[-1] in "!?":
        return text
    first = text.split(" ", 1)[0].lower()
    ending = "?" if first in QUESTION_WORDS else rng.choice([".", ".", ".", "!"])
    return text[0].upper() + text[1:] + ending


def compose(category: str, urgency: str, rng: random.Random) -> str:
    """One ticket of the given category and urgency, before typos."""
    problem = problem_of(category, rng)
    cue = fill(rng.choice(URGENCY[urgency]), rng)
    if rng.random() < TERSE_SHARE:
        return (problem + rng.choice([" ", ", ", "... "]) + cue if cue else problem).lower()
    body = [sentence(problem, rng)]
    others = [name for name in CATEGORIES if name != category]
    draw = rng.random()
    if draw < SIDE_REMARK_SHARE:
        remark = sentence(fill(rng.choice(SIDE_REMARKS[rng.choice(others)]), rng), rng)
        body.insert(rng.randrange(2), remark)
    elif draw < SIDE_REMARK_SHARE + TWO_PROBLEMS_SHARE:
        body.append(sentence("also, " + problem_of(rng.choice(others), rng), rng))
    if rng.random() < 0.3:
        body.insert(0, fill(rng.choice(CONTEXTS), rng))
    if rng.random() < 0.25:
        body.append(fill(rng.choice(DETAILS), rng))
    body.insert(0 if rng.random() < 0.2 else len(body), sentence(cue, rng))
    parts = [rng.choice(GREETINGS), *body, fill(rng.choice(CLOSINGS), rng)]
    text = " ".join(part for part in parts if part)
    return text.lower() if rng.random() < 0.12 else text


def wrong_label(category: str, rng: random.Random) -> str:
    """What a clerk files the ticket under by mistake: mostly the category it is confused with."""
    if rng.random() < 0.6:
        return CONFUSABLE[category]
    return rng.choice([name for name in CATEGORIES if name != category])


def tickets(seed: int) -> tuple[list[Document], int]:
    """All tickets in order of arrival, and how many of them carry a wrong category."""
    rng = random.Random(seed)
    rows, wrong = [], 0
    for _ in range(TICKETS):
        category = rng.choices(CATEGORIES, [26, 20, 22, 16, 24])[0]
        urgency = rng.choices(["low", "normal", "high"], [22, 48, 30])[0]
        text = compose(category, urgency, rng)
        if rng.random() < TYPO_SHARE:
            text = misspell(text, rng)
        label = category
        if rng.random() < LABEL_NOISE:
            label, wrong = wrong_label(category, rng), wrong + 1
        answer = json.dumps({"category": label, "urgency": urgency})
        rows.append([{"role": "user", "content": text}, {"role": "assistant", "content": answer}])
    for source in rng.sample(rows, SENT_TWICE):
        rows.insert(rng.randrange(len(rows)), source)
    return rows, wrong


def write(path: Path, rows: Iterable[Document]) -> int:
    """Write chat rows as JSON lines; returns their number."""
    lines = [json.dumps({"messages": row}, ensure_ascii=False) + "\n" for row in rows]
    path.write_text("".join(lines), encoding="utf-8", newline="\n")
    return len(lines)


def unique(stream: Iterable[Document], count: int) -> list[Document]:
    """The first ``count`` different documents of a stream."""
    seen: dict[str, Document] = {}
    for document in stream:
        seen.setdefault(json.dumps(document), document)
        if len(seen) == count:
            break
    return list(seen.values())


def main() -> None:
    """Write the three files and say what is in them."""
    rows, wrong = tickets(SEED)
    print(f"tickets.jsonl  {write(HERE / 'tickets.jsonl', rows)} rows, {wrong} of them labelled wrongly")
    general = unique(documents(SEED + 1, evaluation=True), GENERAL_ROWS)
    print(f"general.jsonl  {write(HERE / 'general.jsonl', general)} rows, kept out of pre-training and replay")
    replay = unique(itertools.islice(documents(SEED + 2), REPLAY_ROWS * 10), REPLAY_ROWS)
    print(f"replay.jsonl   {write(HERE / 'replay.jsonl', replay)} rows")


if __name__ == "__main__":
    main()
