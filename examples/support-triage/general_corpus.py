"""The general domain of the example's base model: short chats a small model can learn in a minute.

One generator serves three purposes, so that they are the same domain by construction:

* pre-training of the base model (``make_base_model.py``),
* ``general.jsonl``, the out-of-domain evaluation: what tuning must not destroy,
* ``replay.jsonl``, general rows mixed into tuning against forgetting.

A document belongs to *evaluation* or to *training* by a hash of its text, so no row of ``general.jsonl`` is ever
pre-trained on or replayed. No support ticket and none of the sentences that tickets are made of is in here. What does
overlap is named at ``SHOP_NOTES``: one-line shop messages with the ticket labels, which is why the base beats chance.
"""

import hashlib
import random
from collections.abc import Iterator

Message = dict[str, str]
Document = list[Message]

PEOPLE = (
    "Ana Ben Carla Dmitri Elif Farid Grete Hiro Ines Jamal Katya Liam Mona Nils Olga Pedro Quinn Rosa Samir Tess "
    "Uma Viktor Wanda Yusuf Zoe"
).split()
COLOURS = "red blue green yellow black white brown grey orange purple".split()
THINGS = "kite boat lamp coat bicycle cup hat bag door chair ladder drum pencil tent piano basket umbrella rug".split()
PLACES = (
    "harbour library market forest museum station garden bakery mountain school river theatre island village "
    "farm castle bridge lake"
).split()
ADJECTIVES = "small old quiet busy bright famous cold warm narrow wide empty friendly ancient modern".split()
WEATHER = ["in the rain", "in the morning", "at night", "in winter", "in summer", "on Sundays", "after work", "at noon"]
ACTIONS = (
    "reads a book|paints a picture|repairs a clock|bakes bread|feeds the birds|plays the violin|writes letters|"
    "sells flowers|looks for mushrooms|waits for the bus|takes photographs|learns to dance|draws maps|drinks tea"
).split("|")
JOBS = {
    "teacher": "teaches children",
    "baker": "bakes bread",
    "pilot": "flies planes",
    "doctor": "helps sick people",
    "farmer": "grows food",
    "painter": "paints pictures",
    "sailor": "sails boats",
    "writer": "writes books",
    "gardener": "looks after plants",
    "mechanic": "repairs engines",
}
OPPOSITES = [
    pair.split("-")
    for pair in (
        "hot-cold big-small old-new fast-slow early-late full-empty open-closed light-dark wet-dry loud-quiet "
        "near-far high-low strong-weak happy-sad thick-thin rich-poor"
    ).split()
]
KINDS = {
    "fruits": "apple pear plum cherry banana grape lemon fig peach".split(),
    "animals": "dog cat horse sheep owl fox bear goat duck".split(),
    "tools": "hammer saw drill spade rake brush knife file axe".split(),
    "rivers": "Nile Danube Rhine Volga Amazon Thames Seine Elbe Tagus".split(),
    "languages": "Greek Polish Hindi Arabic Spanish Finnish Korean Welsh Dutch".split(),
}
NUMBERS = "zero one two three four five six seven eight nine ten eleven twelve".split()

# Notes to other desks, sorted by topic: the base learns to read a note and to answer with a JSON object.
OTHER_DESKS: dict[str, dict[str, list[str]]] = {
    "hotel": {
        "room": ["the room is too small", "the bed is broken", "the window does not close", "the room smells"],
        "food": ["breakfast was cold", "the soup had no salt", "there was no fruit", "the coffee is bad"],
        "booking": ["please add one more night", "we arrive a day later", "we want to book a double room"],
        "noise": ["the people next door sing", "the street is loud at night", "music plays until two"],
    },
    "city": {
        "roads": ["there is a hole in the road", "the crossing has no sign", "the bridge is closed"],
        "waste": ["the bin was not emptied", "someone left old chairs on the street", "rubbish lies in the park"],
        "water": ["there is no water since noon", "the tap water is brown", "the fountain leaks"],
        "trees": ["a branch fell on the path", "the tree blocks the light", "the hedge is too high"],
    },
    "library": {
        "loan": ["I want to keep the book longer", "the book is lent to someone else", "can I borrow two films"],
        "fine": ["why do I pay for a late book", "the fine is too high", "I was asked for two euros"],
        "rooms": ["can we use the reading room", "the group room was locked", "is there a quiet room"],
    },
}

# The overlap with the example's task, on purpose and only here: short notes to a shop, with the five labels of the
# tickets. They name a thing and say little about it: part of the tickets' vocabulary, none of their sentences.
SHOP_NOTES: dict[str, list[str]] = {
    "billing": "invoice|receipt|price|bank|tax|payment|discount|bill|fee|card|subscription|charge|Plus plan".split("|"),
    "account": "password|profile|user name|login|sign in page|email|access|workspace|phone number|team".split("|"),
    "shipping": "parcel|courier|delivery|package|tracking|driver|depot|address|box|customs|door".split("|"),
    "returns": "refund|exchange|money back|return|replacement|wrong size|label|crack|swap|colour|gift".split("|"),
    "technical": "error|screen|update|battery|app|wifi|bluetooth|setup|firmware|noise|export|reset".split("|"),
}
NOTE_FORMS = [
    "a question about the {noun}",
    "the {noun} is wrong",
    "something about my {noun}",
    "there is a problem with the {noun}",
    "please look at the {noun}",
    "{person} writes about the {noun}",
    "the {noun} again",
    "where can I see the {noun}",
    "I do not understand the {noun}",
    "my {noun} from {month}",
]
FILLERS = [
    "Hello",
    "{person} lives near the {place}",
    "it is about the {colour} {thing}",
    "I have a {thing}",
    "we met in {month}",
    "the {thing} is {colour}",
    "{person} has {number} of them",
    "I wrote in {month}",
    "{person}",
]
MONTHS = "January February March April May June July August September October November December".split()
URGENCY_CUES: dict[str, list[str]] = {
    "high": ["today please", "this is urgent", "at once please", "we cannot wait"],
    "normal": ["", "", "", "please answer", "thank you"],
    "low": ["there is no hurry", "some day", "whenever you can", "it can wait"],
}


def is_evaluation(document: Document) -> bool:
    """Whether the document is reserved for evaluation: one in ten, by a hash of its text (stable, seed-free)."""
    text = "\n".join(message["content"] for message in document)
    return hashlib.sha256(text.encode()).digest()[0] % 10 == 0


def documents(seed: int, *, shop_share: float = 0.0, evaluation: bool = False) -> Iterator[Document]:
    """Endless stream of general documents from one side of the evaluation hash.

    Args:
        seed: seeds the stream; equal seeds give equal streams.
        shop_share: probability of a shop note (``SHOP_NOTES``) instead of a general document, 0..1.
        evaluation: yield the documents reserved for evaluation instead of those for training.
    """
    rng = random.Random(seed)
    writers = [_prose, _prose, _reading, _opposite, _list, _job, _sum, _colour_swap, _other_desk, _other_desk]
    while True:
        document = _shop(rng) if rng.random() < shop_share else rng.choice(writers)(rng)
        if is_evaluation(document) == evaluation:
            yield document


def _chat(user: str, assistant: str, system: str | None = None) -> Document:
    head = [{"role": "system", "content": system}] if system else []
    return [*head, {"role": "user", "content": user}, {"role": "assistant", "content": assistant}]


def _prose(rng: random.Random) -> Document:
    place, person, other = rng.choice(PLACES), *rng.sample(PEOPLE, 2)
    first, second = rng.sample(ADJECTIVES, 2)
    sentences = [
        f"The {place} is {first} and {second}.",
        f"{person} {rng.choice(ACTIONS)} there {rng.choice(WEATHER)}.",
        f"{other} has a {rng.choice(COLOURS)} {rng.choice(THINGS)} and {rng.choice(ACTIONS)}.",
        f"From the {place} one can see the {rng.choice(PLACES)}.",
        f"Many people come to the {place} {rng.choice(WEATHER)}.",
        f"{person} and {other} meet {rng.choice(WEATHER)}.",
    ]
    rng.shuffle(sentences)
    ask = rng.choice(["Write about the {}.", "Tell me about the {}.", "Describe the {} in a few words."])
    return _chat(ask.format(place), " ".join(sentences[: rng.randint(1, 2)]))


def _reading(rng: random.Random) -> Document:
    people = rng.sample(PEOPLE, 2)
    things = rng.sample(THINGS, 2)
    colours = rng.sample(COLOURS, 2)
    facts = " ".join(f"{p} has a {c} {t}." for p, c, t in zip(people, colours, things, strict=True))
    which = rng.randrange(2)
    if rng.random() < 0.5:
        return _chat(f"{facts} What colour is the {things[which]}?", f"The {things[which]} is {colours[which]}.")
    return _chat(f"{facts} Who has the {things[which]}?", f"{people[which]} has the {things[which]}.")


def _opposite(rng: random.Random) -> Document:
    pair = rng.choice(OPPOSITES)
    first, second = pair if rng.random() < 0.5 else pair[::-1]
    thing, person = rng.choice(THINGS), rng.choice(PEOPLE)
    user = f"{person} says the {thing} is {first}. What is the opposite of {first}?"
    return _chat(user, f"The opposite of {first} is {second}.")


def _list(rng: random.Random) -> Document:
    kind = rng.choice(list(KINDS))
    names = rng.sample(KINDS[kind], 3)
    return _chat(f"Name three {kind}.", f"{names[0]}, {names[1]} and {names[2]}.")


def _job(rng: random.Random) -> Document:
    job, person, place = rng.choice(list(JOBS)), rng.choice(PEOPLE), rng.choice(PLACES)
    return _chat(f"{person} is a {job} near the {place}. What does {person} do?", f"{person} {JOBS[job]}.")


def _sum(rng: random.Random) -> Document:
    first, second = rng.randint(0, 6), rng.randint(0, 6)
    person, thing = rng.choice(PEOPLE), rng.choice(THINGS)
    user = f"{person} has {NUMBERS[first]} and buys {NUMBERS[second]} more of the {thing}s. How many are there?"
    return _chat(user, f"There are {NUMBERS[first + second]}.")


def _colour_swap(rng: random.Random) -> Document:
    thing, place = rng.choice(THINGS), rng.choice(PLACES)
    old, new = rng.sample(COLOURS, 2)
    user = f"Change {old} to {new}: the {old} {thing} is at the {place}."
    return _chat(user, f"The {new} {thing} is at the {place}.")


def _other_desk(rng: random.Random) -> Document:
    desk, labels = rng.choice(list(OTHER_DESKS.items()))
    category = rng.choice(list(labels))
    person, month = rng.choice(PEOPLE), rng.choice(MONTHS)
    note = rng.choice(["{note}", "{note}", "{person} says: {note}", "since {month} {note}"]).format(
        note=rng.choice(labels[category]), person=person, month=month
    )
    return _chat(f"Sort the {desk} note by topic: {note}", f'{{"{desk}": "{category}"}}')


def _shop(rng: random.Random) -> Document:
    category = rng.choice(list(SHOP_NOTES))
    noun = rng.choice(SHOP_NOTES[category])
    if rng.random() < 0.15:
        return _chat(f"Which team looks after the {noun}?", f"The {category} team looks after the {noun}.")
    urgency = rng.choice(list(URGENCY_CUES))
    note = rng.choice(NOTE_FORMS).replace("{noun}", noun)
    parts = [note, rng.choice(URGENCY_CUES[urgency]), *rng.sample(FILLERS, rng.randrange(4))]
    rng.shuffle(parts)
    slots = {
        "person": rng.choice(PEOPLE),
        "month": rng.choice(MONTHS),
        "place": rng.choice(PLACES),
        "colour": rng.choice(COLOURS),
        "thing": rng.choice(THINGS),
        "number": rng.choice(NUMBERS),
    }
    text = ". ".join(part for part in parts if part).format(**slots)
    labels = ", ".join(SHOP_NOTES)
    instruction = f"Classify the ticket as {labels}. Urgency is low, normal or high. Answer with one JSON object."
    answer = f'{{"category": "{category}", "urgency": "{urgency}"}}'
    # Both common ways of giving an instruction: as the system message, and in front of the text.
    if rng.random() < 0.5:
        return _chat(text, answer, system=instruction)
    return _chat(f"{instruction}\n\n{text}", answer)
