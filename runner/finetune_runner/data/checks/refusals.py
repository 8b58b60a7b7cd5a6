"""Answers that refuse: usually left over from the model that generated the data."""

from __future__ import annotations

import re

from finetune_api.job.spec import FineTuneJobSpec
from finetune_runner.data.checking import TASK_SPLITS, Found, Given, Mode, Phase, Remark, judged, mode_of

PHASE: Phase = "rows"
ORDER = 40

_CANNOT = (
    r"i(?: can(?:['\u2019]t|not| not)| won['\u2019]t|"
    r"(?:['\u2019]m| am) (?:unable|not able|not allowed|not comfortable))"
)
_ACT = (
    r"(?:to |with )?(?:help(?! but)|assist|answer|respond|comply|fulfill?|do that|do this|generate|engage|participate|"
    r"discuss|support (?:that|this)|continue|share that|provide (?:that|this|any|you with|information|instructions|"
    r"guidance|assistance|advice|content|medical|legal|financial|a response|an answer)|"
    r"(?:create|write|produce) (?:that|this|content|such)|give (?:you )?(?:medical|legal|financial|any|that|this)|"
    r"assisting|helping|providing|answering|discussing)"
)
_REFUSAL = re.compile(
    # A regret needs what cannot be done (or to break off there): "Sorry, I cannot find order 12" is an answer.
    rf"^\W*(?:(?:i(?:['\u2019]m| am) (?:really |very |so |truly )?sorry|sorry|i apologi[sz]e|my apologies|"
    rf"unfortunately|i regret)\W+(?:but )?(?:for [\w ]+\W+(?:but )?)?{_CANNOT}(?:\W*$|[,;]|\.(?:\s|$)| {_ACT}\b)|"
    rf"{_CANNOT} {_ACT}\b|i do(?:n['\u2019]t| not) feel comfortable\b|"
    r"as an? (?:ai|(?:large )?language model)\b|"
    r"(?:es )?tut mir leid\W+(?:aber )?(?:(?:das|dabei|damit|dazu|hierbei) kann ich|ich kann (?:ihnen |dir |euch )?"
    r"(?:das|dabei|damit|dazu|hierbei|leider|darauf))\b[^.!]*\bnicht\b|"
    r"leider kann ich (?:ihnen |dir )?(?:dabei |damit |das |hierbei )nicht\b|als ki\b|"
    r"(?:je suis )?d\u00e9sol\u00e9e?\W+(?:mais )?je ne peux pas (?:vous |t['\u2019])?"
    r"(?:aider|r\u00e9pondre|faire (?:cela|\u00e7a)|fournir|assister)|"
    r"en tant qu['\u2019](?:ia|intelligence artificielle)\b|"
    r"lo siento\W+(?:pero )?no puedo (?:ayudar|responder|hacer (?:eso|esto)|proporcionar|asistir|cumplir)|"
    r"como (?:una )?(?:ia|inteligencia artificial)\b)",
    re.IGNORECASE,
)
"""How models begin a refusal in English, German, French and Spanish; other languages are not known."""


def mode(spec: FineTuneJobSpec) -> Mode:
    """As data.checks.refusals says."""
    return mode_of(spec.data.checks.refusals)


def refuses(answer: str) -> bool:
    """Whether an answer begins like a refusal."""
    return _REFUSAL.match(answer) is not None


def check(given: Given) -> list[Remark]:
    """Report or drop answers that begin like a refusal. Raises StageError (INVALID_DATA) in mode fail."""
    found = Found()
    for example in given.rows(*TASK_SPLITS):
        if refuses(example.row.said):
            found.add(example)
            if given.mode == "fix":
                given.drop(example)
    return judged(
        "refusals",
        given,
        found,
        what="[answer refuses|answers refuse]",
        hint="remove them unless the model shall refuse",
    )
