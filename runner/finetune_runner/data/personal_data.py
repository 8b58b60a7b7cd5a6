"""Personal data in a text, by the pattern recognisers of Presidio (Microsoft, MIT): no model, nothing is downloaded.

Names and addresses of people need a language model and are not looked for. What has a check digit (card numbers by
Luhn, IBAN, national ids) counts only when it is right. Presidio's package imports torch: some seconds and 0.5 GB, once,
and only for jobs that ask.
"""

from __future__ import annotations

import re
import string
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

SUREST = 0.4
"""Presidio's own score of a phone number that its library finds possible; weaker patterns are guesses."""
_PHONE_REGIONS = ("US", "GB", "DE", "FR", "ES", "IT", "IN", "BR", "CA")
_DIGITS = re.compile(r"\d")
_LONG_NUMBER = re.compile(r"(?:\d[ ().\-/\u00a0\u202f\u2010-\u2015]{0,3}){7}")
_DECIMAL = re.compile(r"(?<![\w.])\d\.\d{4,}(?!\.?\d)")
"""Of mathematics, where Presidio sees a telephone number."""
_NATIONAL = re.compile(r"\d(?:[ .\-/]?\d){5}|\b(?=\w*\d)\w{8,}")
"""Six digits with at most a separator between them, or a word of eight characters with a digit: every id below."""
_IBAN = re.compile(r"[A-Za-z]{2}\d{2}")
_CAPITALS = str.maketrans(string.ascii_lowercase, string.ascii_uppercase)
_HEXTETS_LEAST = 3
"""Of an IPv6 address without an IPv4 one in it: `x[::2]` and `a::b` are code."""
_NAMES_VERSION = re.compile(
    r"(?:(?:\b(?:versi\w*|vers[aã]o|vers[oõ]es|firmware)\b|\bv(?:er)?\b\.?)"  # of eight languages
    r"(?:[\s:='\"#(]{1,4}(?:is|ist|est|es|no\.?|nr\.?|number))?[\s:='\"#(]{0,4}"
    r"(?:v?\d+(?:\.\d+)+(?:,|\s?(?:->|→|[-\u2013]|to|and|or|bis|auf|und|oder|à|et|ou|a|y|o|e|naar|en|of))\s?v?)*"
    r"|\b(?:Chrom(?:e|ium)|HeadlessChrome|CriOS|EdgA?|OPR)/)\Z",
    re.IGNORECASE,
)
"""What stands before the number of a version, or of several: of programs, and of browsers in their own words."""
_VERSION_FOLLOWS = re.compile(r"-(?:alpha|beta|rc|dev|pre|snapshot)|\s(?:version|release)\b", re.IGNORECASE)
_LONGEST_BEFORE = 64
_IP = re.compile(r"\d\.\d{1,3}\.\d|:[0-9A-Fa-f]{0,4}:")


@dataclass(frozen=True)
class Span:
    """Personal data in a text."""

    start: int
    end: int
    kind: str
    """As Presidio names it, for example EMAIL_ADDRESS."""
    score: float = 1.0
    """How sure Presidio is: 1 where a check digit is right."""


@dataclass(frozen=True)
class _Recogniser:
    kinds: list[str]
    may_occur: re.Pattern[str]
    """Cheap, so that most texts are not searched."""
    find: Any


def personal_data(text: str, before: str = "") -> list[Span]:
    """Spans in the order of the text; of overlapping ones the longest. `before`: what stands before the text."""
    if "@" not in text and ":" not in text and not _DIGITS.search(text):
        return []
    found = [
        Span(result.start, result.end, result.entity_type, result.score)
        for recogniser in _recognisers()
        if recogniser.may_occur.search(text)
        for result in recogniser.find(text, recogniser.kinds, None)
        if result.score >= SUREST and not _only_looks_like(text, result, before)
    ]
    return without_overlaps(found)


def _only_looks_like(text: str, found: Any, before: str) -> bool:
    """Whether what Presidio found is a number of mathematics or of a version, or a piece of code."""
    if found.entity_type == "PHONE_NUMBER":
        return any(each.start() < found.end and found.start < each.end() for each in _DECIMAL.finditer(text))
    if found.entity_type != "IP_ADDRESS":
        return False
    here, behind = text[found.start : found.end], text[found.end :]
    if "." not in here:
        return len(re.findall(r"\w+", here)) < _HEXTETS_LEAST
    if ":" in here:
        return False
    ahead = (before + text[: found.start])[-_LONGEST_BEFORE:]
    longer = re.search(r"\d\.\Z", ahead) or re.match(r"\.\d", behind)  # a section, an object identifier
    return bool(longer or _NAMES_VERSION.search(ahead) or _VERSION_FOLLOWS.match(behind))


def without_overlaps(spans: Sequence[Span]) -> list[Span]:
    """The longest of spans that overlap (of equals the surest), in the order of the text."""
    kept: list[Span] = []
    for span in sorted(spans, key=lambda span: (span.start - span.end, -span.score, span.start, span.kind)):
        if all(span.end <= other.start or span.start >= other.end for other in kept):
            kept.append(span)
    return sorted(kept, key=lambda span: span.start)


@lru_cache(maxsize=1)
def _recognisers() -> list[_Recogniser]:
    import tldextract
    from presidio_analyzer import predefined_recognizers as known

    offline = tldextract.TLDExtract(suffix_list_urls=(), cache_dir=None)  # the list in its package: no network

    class Email(known.EmailRecognizer):
        def validate_result(self, pattern_text: str) -> bool:
            return bool(offline(pattern_text).suffix)

    class Iban(known.IbanRecognizer):
        def analyze(self, text: str, *args: Any, **kwargs: Any) -> Any:
            return super().analyze(text.translate(_CAPITALS), *args, **kwargs)

    def where(pattern: re.Pattern[str], recogniser: Any) -> _Recogniser:
        return _Recogniser(recogniser.supported_entities, pattern, recogniser.analyze)

    national = [
        known.UsSsnRecognizer, known.UsItinRecognizer, known.NhsRecognizer, known.UkNinoRecognizer,
        known.EsNifRecognizer, known.EsNieRecognizer, known.ItFiscalCodeRecognizer, known.PlPeselRecognizer,
        known.DeTaxIdRecognizer, known.FiPersonalIdentityCodeRecognizer, known.SePersonnummerRecognizer,
        known.InAadhaarRecognizer, known.InPanRecognizer, known.AuTfnRecognizer, known.CaSinRecognizer,
        known.KrRrnRecognizer, known.TrNationalIdRecognizer, known.SgFinRecognizer,
    ]  # fmt: skip
    return [
        where(re.compile("@"), Email()),
        where(_IBAN, Iban()),
        where(_LONG_NUMBER, known.CreditCardRecognizer()),
        where(_IP, known.IpRecognizer()),
        where(_LONG_NUMBER, known.PhoneRecognizer(supported_regions=_PHONE_REGIONS)),
        *(where(_NATIONAL, recogniser()) for recogniser in national),
    ]
