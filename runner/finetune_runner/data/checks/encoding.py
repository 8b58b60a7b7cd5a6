"""Characters that somebody's software broke: mojibake (ftfy decides), and characters that no text should have."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import replace

import ftfy
from ftfy.badness import is_bad

from finetune_api.job.spec import FineTuneJobSpec
from finetune_api.wording import counted
from finetune_runner.data.checking import Found, Given, Mode, Phase, Remark, judged, mode_of
from finetune_runner.data.rewriting import rewritten, texts_of

PHASE: Phase = "rows"
ORDER = 5

_ALPHABETS = "[A-Za-z\u00c0-\u024f\u0370-\u052f]"
_KINDS = {
    "NUL": re.compile("\x00"),
    "control characters": re.compile("[\x01-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]"),
    "bidirectional controls": re.compile("[\u202a-\u202e\u2066-\u2069]"),
    "byte order marks": re.compile("\ufeff"),
    "replacement characters": re.compile("\ufffd"),
    "invisible characters": re.compile(
        f"(?<={_ALPHABETS})[\u00ad\u200b\u2060]+(?={_ALPHABETS})|(?<![\U0001f3f4\U000e0020-\U000e007f])[\U000e0000-\U000e007f]+"
    ),
}
"""Bidirectional controls can make a text read otherwise than it is (Boucher and Anderson 2021, Trojan Source), tags
(U+E0000) hide one. Zero-width spaces and soft hyphens are meant between words and in scripts without spaces, tags in
flags."""
_UNMENDABLE = "replacement characters"


def mode(spec: FineTuneJobSpec) -> Mode:
    """As data.checks.encoding says."""
    return mode_of(spec.data.checks.encoding)


def broken_kinds(text: str) -> list[str]:
    """What is broken in a text, in words; empty when nothing is."""
    found = [name for name, pattern in _KINDS.items() if pattern.search(text)]
    if not text.isascii() and is_bad(text):
        found.append("mojibake")
    return found


def mended(text: str) -> str:
    """The text as it was meant: UTF-8 that was read as another encoding is read again, controls are removed.

    Replacement characters stay: what they replaced is lost.
    """
    if not text.isascii() and is_bad(text):
        text = ftfy.fix_encoding(text)
    for name, pattern in _KINDS.items():
        if name != _UNMENDABLE:
            text = pattern.sub("", text)
    return text


def check(given: Given) -> list[Remark]:
    """Report, repair or refuse broken characters in every split. Raises StageError (INVALID_DATA) in mode fail."""
    found, left = Found(), Found()
    kinds: Counter[str] = Counter()
    for example in given.rows(*given.store.splits()):
        broken = sorted({kind for text in texts_of(example.row) for kind in broken_kinds(text)})
        if not broken:
            continue
        kinds.update(broken)
        changed = rewritten(example.row, mended) if given.mode == "fix" else None
        if changed is None:
            found.add(example, f"({', '.join(broken)})")
            continue
        if changed.id != example.row.id and all(text.strip() for text in texts_of(changed)):
            given.replace(example, changed)
            found.add(example, f"({', '.join(broken)})")
        if any(broken_kinds(text) for text in texts_of(changed)) or not all(t.strip() for t in texts_of(changed)):
            left.add(example)
    hint = "save the source as UTF-8 again, or set data.checks.encoding: repair"
    remarks = judged("encoding", given, found, what="[row has|rows have] broken characters", hint=hint, fixed="mended")
    if left.rows:
        kept = counted(left.rows, "[row keeps|rows keep] broken characters")
        message = f"{kept} that cannot be mended: {left.where()}; correct the source"
        remarks.append(left.remark("encoding", "warning", message))
    return [replace(remark, facts={"kinds": dict(kinds)}) for remark in remarks]
