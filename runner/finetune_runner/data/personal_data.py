"""Personal data in a text, by the pattern recognisers of Presidio (Microsoft, MIT): no model, nothing is downloaded.

Names and addresses of people need a language model and are not looked for. What has a check digit (card numbers by
Luhn, IBAN, national ids) counts only when it is right. Presidio's package imports torch: some seconds and 0.5 GB, once,
and only for jobs that ask.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

SUREST = 0.4
"""Presidio's own score of a phone number that its library finds possible; weaker patterns are guesses."""
_PHONE_REGIONS = ("US", "GB", "DE", "FR", "ES", "IT", "IN", "BR", "CA")
_DIGITS = re.compile(r"\d")
_LONG_NUMBER = re.compile(r"(?:\d[ ().\-/]?){7}")


@dataclass(frozen=True)
class Span:
    """Personal data in a text."""

    start: int
    end: int
    kind: str
    """As Presidio names it, for example EMAIL_ADDRESS."""


@dataclass(frozen=True)
class _Recogniser:
    kinds: list[str]
    may_occur: Callable[[str], bool]
    """A cheap test, so that most texts are not searched."""
    find: Any


def personal_data(text: str) -> list[Span]:
    """Spans in the order of the text; of overlapping ones the longest."""
    if "@" not in text and ":" not in text and not _DIGITS.search(text):
        return []
    found = [
        Span(result.start, result.end, result.entity_type)
        for recogniser in _recognisers()
        if recogniser.may_occur(text)
        for result in recogniser.find(text, recogniser.kinds, None)
        if result.score >= SUREST
    ]
    return without_overlaps(found)


def without_overlaps(spans: Sequence[Span]) -> list[Span]:
    """The longest of spans that overlap (of equals the first), in the order of the text."""
    kept: list[Span] = []
    for span in sorted(spans, key=lambda span: (span.start - span.end, span.start, span.kind)):
        if all(span.end <= other.start or span.start >= other.end for other in kept):
            kept.append(span)
    return sorted(kept, key=lambda span: span.start)


def redacted(text: str) -> str:
    """The text with a mark of its kind in the place of each piece of personal data: `<EMAIL_ADDRESS>`."""
    parts, at = [], 0
    for span in personal_data(text):
        parts += [text[at : span.start], f"<{span.kind}>"]
        at = span.end
    return "".join([*parts, text[at:]])


@lru_cache(maxsize=1)
def _recognisers() -> list[_Recogniser]:
    import tldextract
    from presidio_analyzer import predefined_recognizers as known

    offline = tldextract.TLDExtract(suffix_list_urls=(), cache_dir=None)  # the list in its package: no network

    class Email(known.EmailRecognizer):
        def validate_result(self, pattern_text: str) -> bool:
            return bool(offline(pattern_text).suffix)

    def has_digits(text: str) -> bool:
        return _DIGITS.search(text) is not None

    def has_long_number(text: str) -> bool:
        return _LONG_NUMBER.search(text) is not None

    def always(recogniser: Any, may_occur: Callable[[str], bool]) -> _Recogniser:
        return _Recogniser(recogniser.supported_entities, may_occur, recogniser.analyze)

    national = [
        known.UsSsnRecognizer, known.UsItinRecognizer, known.NhsRecognizer, known.UkNinoRecognizer,
        known.EsNifRecognizer, known.EsNieRecognizer, known.ItFiscalCodeRecognizer, known.PlPeselRecognizer,
        known.DeTaxIdRecognizer, known.FiPersonalIdentityCodeRecognizer, known.SePersonnummerRecognizer,
        known.InAadhaarRecognizer, known.InPanRecognizer, known.AuTfnRecognizer, known.CaSinRecognizer,
        known.KrRrnRecognizer, known.TrNationalIdRecognizer, known.SgFinRecognizer,
    ]  # fmt: skip
    return [
        always(Email(), lambda text: "@" in text),
        always(known.IbanRecognizer(), has_digits),
        always(known.CreditCardRecognizer(), has_long_number),
        always(known.IpRecognizer(), lambda text: has_digits(text) or "::" in text),
        always(known.PhoneRecognizer(supported_regions=_PHONE_REGIONS), has_long_number),
        *(always(recogniser(), has_digits) for recogniser in national),
    ]
