"""Languages of the rows: a few rows of another language are likely an accident of collecting.

py3langid (Lui and Baldwin 2012, langid.py) tells 97 languages with a model in its package. Below some 40 letters
the guess is poor: of short texts only those are judged whose script tells the language.
"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import replace
from functools import lru_cache
from typing import Any

from finetune_api.job.spec import FineTuneJobSpec
from finetune_api.wording import counted
from finetune_runner.data.checking import TASK_SPLITS, Found, Given, Mode, Phase, Remark, judged, mode_of
from finetune_runner.data.rows import Row

PHASE: Phase = "rows"
ORDER = 45

SHORTEST_LETTERS = 40
SUREST = 0.95
ACCIDENT_SHARE = 0.2
"""A language of more rows than this is meant; one of fewer is reported."""
_JUDGED_CHARACTERS = 400
_TABLE = "CREATE TABLE IF NOT EXISTS languages(number INTEGER PRIMARY KEY, code TEXT)"
_LETTER = re.compile(r"[^\W\d_]")
_OWN_SCRIPTS = (
    ("ja", re.compile("[\u3041-\u30ff]"), 2),
    ("ko", re.compile("[\u1100-\u11ff\uac00-\ud7a3]"), 6),
    ("th", re.compile("[\u0e01-\u0e5b]"), 6),
    ("zh", re.compile("[\u3400-\u4dbf\u4e00-\u9fff\U00020000-\U0003fffd]"), 10),
)
"""Scripts that tell the language, with fewest letters: kana among Han is Japanese, Han alone Chinese."""


def mode(spec: FineTuneJobSpec) -> Mode:
    """As data.checks.language says."""
    return mode_of(spec.data.checks.language)


@lru_cache(maxsize=1)
def _identifier() -> Any:
    from py3langid.langid import MODEL_FILE, LanguageIdentifier  # its model takes a while to unpack

    return LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)


def language_of(text: str) -> str:
    """ISO 639-1 code of a text's language; empty when it is too short or the guess is not sure."""
    letters = "".join(_LETTER.findall(text[:_JUDGED_CHARACTERS]))
    if len(letters) < SHORTEST_LETTERS:
        return _by_script(letters)
    code, probability = _identifier().classify(text[:_JUDGED_CHARACTERS])
    return str(code) if probability >= SUREST else ""


def _by_script(letters: str) -> str:
    """The language of a short text whose script has no other; empty where most letters are of another script."""
    counts = {code: len(script.findall(letters)) for code, script, _ in _OWN_SCRIPTS}
    if 2 * sum(counts.values()) <= len(letters):
        return ""
    return next((code for code, _, fewest in _OWN_SCRIPTS if counts[code] >= fewest), "")


def _language(row: Row) -> str:
    said = "\n".join(message["content"] for message in row.messages if message["role"] != "system")
    return language_of(said)


def check(given: Given) -> list[Remark]:
    """Tell the languages; report, drop or refuse rows of rare ones. Raises StageError (INVALID_DATA) in mode fail."""
    database = given.store.database
    database.execute(_TABLE)
    database.execute("DELETE FROM languages")
    counts: Counter[str] = Counter()
    for example in given.rows(*TASK_SPLITS):
        code = _language(example.row)
        counts[code] += 1
        database.execute("INSERT INTO languages VALUES (?, ?)", (example.number, code))
    unsure = counts.pop("", 0)
    judged_rows = counts.total()
    if not judged_rows:
        return []
    rare = {code for code, count in counts.items() if count <= ACCIDENT_SHARE * judged_rows}
    main = ", ".join(f"{code} {100 * count / judged_rows:.1f} %" for code, count in counts.most_common(5))
    facts = {"languages": dict(counts.most_common(20)), "notJudged": unsure}
    if not rare:
        return [
            Remark(
                "language", "info", f"languages: {main}; {counted(unsure, 'row')} not judged", judged_rows, facts=facts
            )
        ]
    found = Found()
    marks = ", ".join("?" * len(rare))
    odd = f"SELECT number, code FROM languages WHERE code IN ({marks}) ORDER BY number"  # noqa: S608 - marks only
    for number, code in database.execute(odd, sorted(rare)):
        example = given.store.example(number)
        found.add(example, f"({code})")
        if given.mode == "fix":
            given.drop(example)
    hint = "remove them, or add more rows of that language when they are meant"
    what = f"[row is|rows are] in another language than most ({main})"
    return [replace(r, facts=facts) for r in judged("language", given, found, what=what, hint=hint)]
