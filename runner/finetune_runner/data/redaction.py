"""Personal data in the texts of rows: found and marked so that what was JSON is JSON afterwards. Pure."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable

from finetune_runner.data.personal_data import Span, personal_data

_TOKEN = re.compile(r'"(?:[^"\\]|\\.)*"|-?\d+(?:\.\d+)?(?:[eE][+-]?\d+)?')
"""Texts and numbers of a JSON document; nothing else there has a quote or a digit."""
_MARK = re.compile(r"<[A-Z_]+>")
_KEY_CHARACTERS = 32
_COLON = re.compile(r"\s*:")


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

    def marked(plain: str, before: str = "") -> str:
        parts, at = [], 0
        for span in personal_data(plain, before):
            parts += [plain[at : span.start], f"<{span.kind}>"]
            at = span.end
            kinds.append(span.kind)
        return "".join([*parts, plain[at:]])

    if not _is_json(text):
        return marked(text), kinds

    def replaced(token: re.Match[str]) -> str:
        # The key before a value tells what it is: "version": "1.2.3.4" is no address.
        before = text[max(token.start() - _KEY_CHARACTERS, 0) : token.start()]
        return _token(token[0], before, marked, kinds)

    done = _TOKEN.sub(replaced, text)
    return (_numbered(done) if kinds and _has_a_key_twice(done) and not _has_a_key_twice(text) else done), kinds


def _has_a_key_twice(text: str) -> bool:
    found = False

    def pairs(of: list[tuple[str, object]]) -> None:
        nonlocal found
        found = found or len({key for key, _ in of}) < len(of)

    json.loads(text, object_pairs_hook=pairs)
    return found


def _numbered(text: str) -> str:
    """The JSON with a number behind each further mark of a kind that is a key: of two equal keys readers lose one."""
    seen: Counter[str] = Counter()

    def key(token: re.Match[str]) -> str:
        if not (token[0].startswith('"') and _MARK.search(token[0]) and _COLON.match(text, token.end())):
            return token[0]
        seen[token[0]] += 1
        return token[0] if seen[token[0]] == 1 else f'{token[0][:-1]} {seen[token[0]]}"'

    return _TOKEN.sub(key, text)


def _token(token: str, before: str, marked: Callable[[str, str], str], kinds: list[str]) -> str:
    if not token.startswith('"'):
        # An id has no fraction: 0.015625 alone would be taken for a telephone number.
        spans = personal_data(token) if token.lstrip("-").isdigit() else []
        if not spans:
            return token
        kind = max(spans, key=_length).kind
        kinds.append(kind)
        return f'"<{kind}>"'
    plain = json.loads(token, strict=False)
    changed = marked(plain, before)
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
