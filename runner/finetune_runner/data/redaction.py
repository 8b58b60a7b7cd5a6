"""Personal data in the texts of rows: found and marked so that what was JSON is JSON afterwards. Pure."""

from __future__ import annotations

import json
import re
from collections.abc import Callable

from finetune_runner.data.personal_data import Span, personal_data

_TOKEN = re.compile(r'"(?:[^"\\]|\\.)*"|-?\d+(?:\.\d+)?(?:[eE][+-]?\d+)?')
"""Texts and numbers of a JSON document; nothing else there has a quote or a digit."""


def personal_kinds(text: str) -> list[str]:
    """Kinds of the personal data in a text, one for each piece, in order."""
    return _marked(text)[1]


def redacted(text: str) -> str:
    """The text with a mark of its kind in the place of each piece of personal data: `<EMAIL_ADDRESS>`.

    In a JSON object or list every text and key is redacted for itself, and a whole number that is personal data becomes
    a quoted mark. Everything else stays as it was written.
    """
    return _marked(text)[0]


def _marked(text: str) -> tuple[str, list[str]]:
    kinds: list[str] = []

    def marked(plain: str) -> str:
        parts, at = [], 0
        for span in personal_data(plain):
            parts += [plain[at : span.start], f"<{span.kind}>"]
            at = span.end
            kinds.append(span.kind)
        return "".join([*parts, plain[at:]])

    if not _is_json(text):
        return marked(text), kinds
    return _TOKEN.sub(lambda token: _token(token[0], marked, kinds), text), kinds


def _token(token: str, marked: Callable[[str], str], kinds: list[str]) -> str:
    if not token.startswith('"'):
        # An id has no fraction: 0.015625 alone would be taken for a telephone number.
        spans = personal_data(token) if token.lstrip("-").isdigit() else []
        if not spans:
            return token
        kind = max(spans, key=_length).kind
        kinds.append(kind)
        return f'"<{kind}>"'
    plain = json.loads(token, strict=False)
    changed = marked(plain)
    # Escapes stay escapes: half a surrogate pair can only be written so.
    return token if changed == plain else json.dumps(changed, ensure_ascii=token.isascii() or "\\u" in token)


def _length(span: Span) -> int:
    return span.end - span.start


def _is_json(text: str) -> bool:
    if not text.lstrip().startswith(("{", "[")):
        return False
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return False
    return True
