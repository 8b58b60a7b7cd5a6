"""Checks of what texts hold: personal data, broken characters, languages."""

from __future__ import annotations

import itertools
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from finetune_runner.data.checks import (
    answers,
    encoding,
    language,
    pii,
    pii_in_test,
)
from finetune_runner.data.personal_data import Span, personal_data, without_overlaps
from finetune_runner.data.redaction import personal_kinds, redacted
from finetune_runner.errors import StageError
from tests.runner.check_rows import GOOD, row, rows, run, said, spec
from tests.runner.stores import store_of


def test_redaction_keeps_all_else_and_is_done_once() -> None:
    text = "Mail jane.doe@example.com or call +1 212-555-0143, order 77 of 2024-05-01."
    assert redacted(text) == "Mail <EMAIL_ADDRESS> or call <PHONE_NUMBER>, order 77 of 2024-05-01."
    assert redacted(redacted(text)) == redacted(text)
    first = personal_data(text)[0]
    assert (text[first.start : first.end], first.kind) == ("jane.doe@example.com", "EMAIL_ADDRESS")


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("AB 12 34 56 C", "UK_NINO"),
        ("943 476 5919", "UK_NHS"),
        ("12345678Z", "ES_NIF"),
        ("RSSMRA85T10A562S", "IT_FISCAL_CODE"),
        ("44051401359", "PL_PESEL"),
        ("131052-308T", "FI_PERSONAL_IDENTITY_CODE"),
        ("65929970489", "DE_TAX_ID"),
        ("ABCPE1234F", "IN_PAN"),
        ("FR76 3000 6000 0112 3456 7890 189", "IBAN_CODE"),
        ("2001:db8::ff00:42:8329", "IP_ADDRESS"),
        ("+49 30 901820", "PHONE_NUMBER"),
        ("+33\u00a01\u00a023\u00a045\u00a067\u00a089", "PHONE_NUMBER"),
        ("01\u00a023\u00a045\u00a067\u00a089", "PHONE_NUMBER"),
        ("(01632) 960123", "PHONE_NUMBER"),
        ("(089) 12 34 56", "PHONE_NUMBER"),
        ("de89 3704 0044 0532 0130 00", "IBAN_CODE"),
        ("::ffff:192.0.2.1", "IP_ADDRESS"),
        ("2001:db8::1", "IP_ADDRESS"),
        ("de88 3704 0044 0532 0130 00", None),
        ("x[::2]", None),
        ("y = a[::10, 1::3]", None),
        ("ab::cd", None),
        ("0.7071067811", None),
        ("-1.6180339887", None),
        ("0.30103 0.47712 0.60206", None),
        ("12345678A", None),
        ("44051401358", None),
        ("RSSMRA85T10A562X", None),
        ("978-3-16-148410-0", None),
        ("2024-05-01T10:30:00", None),
        ("order no. 4711-0815-2024", None),
        ("commit 9053cff1a2b3", None),
    ],
)
def test_ids_count_with_the_right_check_digit_only(text: str, kind: str | None) -> None:
    assert [span.kind for span in personal_data(f"It is {text}, he said.")] == ([kind] if kind else [])


@pytest.mark.parametrize(
    "text",
    [
        "upgrade to version 1.2.3.4",
        "Version: 1.2.3.4",
        "ver. 1.2.3.4",
        "v 1.2.3.4",
        "v1.2.3.4",
        "the version is 1.2.3.4.",
        "from version 1.2.3.4 to 1.2.3.5",
        "versions 1.2.3.4, 1.2.3.5 and 1.2.4.0",
        "die Versionen 1.2.3.4 und 1.2.3.5",
        "de la versión 1.2.3.4 a 1.2.3.5",
        "firmware 1.2.3.4",
        "the 1.2.3.4 release",
        "1.2.3.4-beta",
        "Chrome/120.0.0.0 Safari/537.36",
        "OID 1.3.6.1.4.1.311",
        "section 1.2.3.4.5",
        "--version=1.2.3.4",
        '{"version": "1.2.3.4"}',
    ],
)
def test_the_number_of_a_version_is_no_address(text: str) -> None:
    assert personal_kinds(text) == []


@pytest.mark.parametrize(
    "text",
    [
        "the server is 1.2.3.4",
        "IPv4 192.168.0.1",
        "http://10.0.0.1/x",
        "ipinfo.io/8.8.8.8",
        "1.2.3.4 runs version 2",
        "I run version 2.1 on 1.2.3.4",
        "this version. 10.0.0.1 is down",
        "1.2.3.4.",
        "10.0.0.0/8",
        "upgrade 10.0.0.1 to version 2.1.0",
        "::ffff:192.0.2.1",
        '{"version": "2.1", "ip": "1.2.3.4"}',
        '{"ip": "1.2.3.4", "version": "1.2.3.4"}',
    ],
)
def test_an_address_beside_a_version_is_one(text: str) -> None:
    assert personal_kinds(text) == ["IP_ADDRESS"]


@pytest.mark.parametrize(
    ("text", "after"),
    [
        ('{"phone": 4155552671}', '{"phone": "<UK_NHS>"}'),
        (' {"a":1,  "mail" :"to a.b@example.com \\u00fc"}\n', ' {"a":1,  "mail" :"to <EMAIL_ADDRESS> \\u00fc"}\n'),
        ('{"é": "ü a.b@example.com", "n": -1.5e3}', '{"é": "ü <EMAIL_ADDRESS>", "n": -1.5e3}'),
        (
            '{"a.b@example.com": ["\\"x\\" \\ud800 c.d@example.com"]}',
            '{"<EMAIL_ADDRESS>": ["\\"x\\" \\ud800 <EMAIL_ADDRESS>"]}',
        ),
        ('{"a": "\\u0061", "n": [0.015625, 12e2, true]}', '{"a": "\\u0061", "n": [0.015625, 12e2, true]}'),
        (
            '{"a.b@example.com": 1, "c.d@example.com" : {"e@example.com": "f@example.com"}}',
            '{"<EMAIL_ADDRESS>": 1, "<EMAIL_ADDRESS> 2" : {"<EMAIL_ADDRESS> 3": "<EMAIL_ADDRESS>"}}',
        ),
        (
            '[{"a.b@example.com": 1}, {"c.d@example.com": 2}]',
            '[{"<EMAIL_ADDRESS>": 1}, {"<EMAIL_ADDRESS>": 2}]',
        ),
        ('{"mail": a.b@example.com}', '{"mail": <EMAIL_ADDRESS>}'),  # no JSON before either
    ],
)
def test_redacted_json_is_json_written_as_before(text: str, after: str) -> None:
    assert redacted(text) == after
    assert len(personal_kinds(text)) == after.count("<")
    assert personal_kinds(after) == []


_LEAVES = st.none() | st.booleans() | st.integers(-999, 999) | st.floats(-9, 9) | st.text('ab"\\é \ud800', max_size=8)


@given(
    st.recursive(
        _LEAVES | st.just("call +1 212-555-0143"),
        lambda inner: st.lists(inner) | st.dictionaries(st.text('ab"', max_size=3), inner),
    ),
    st.sampled_from([None, 1]),
    st.booleans(),
)
def test_whatever_json_is_redacted_is_json(value: Any, indent: int | None, ascii_only: bool) -> None:
    text = json.dumps([value], indent=indent, ensure_ascii=ascii_only)
    expected = json.loads(json.dumps([value]).replace("+1 212-555-0143", "<PHONE_NUMBER>"))
    assert json.loads(redacted(text)) == expected
    assert "212-555" not in redacted(text)


@pytest.mark.parametrize(
    ("answer", "says"),
    [
        ('{"a": "jane.doe@example.com"}', "at $.a: enum"),
        ('{"jane.doe@example.com": 1}', "at $: required"),
        ('{"a": 1, "by": {"jane.doe@example.com": "x"}}', "at $.by.*: type"),
        ('{"a": 1, "by": {"k": 2}, "list": [1, "jane.doe@example.com"]}', "at $.list[1]: type"),
        ("jane.doe@example.com", "is not JSON"),
    ],
)
@pytest.mark.parametrize("policy", ["fail", "warn"])
def test_a_wrong_answer_is_told_without_a_word_of_it(answer: str, says: str, policy: str) -> None:
    number = {"type": "integer"}
    properties = {"a": {"enum": [1, 2]}, "by": {"additionalProperties": number}, "list": {"items": number}}
    task = {"type": "extraction", "schema": {"type": "object", "required": ["a"], "properties": properties}}
    wanted = spec({"answers": policy}, evaluation={"task": task})
    try:
        words = said(run(answers, {"pool": rows(answer)}, wanted)[0])
    except StageError as error:
        words = f"{error.message} {error.evidence}"
    assert says in words
    assert "jane" not in words
    assert run(answers, {"pool": rows('{"a": 1, "by": {"k": 2}, "list": [1]}')}, wanted)[0] == []


@given(st.lists(st.builds(lambda a, n: Span(a, a + n, "X"), st.integers(0, 30), st.integers(1, 9)), max_size=8))
def test_spans_do_not_overlap(spans: list[Span]) -> None:
    kept = without_overlaps(spans)
    assert all(one.end <= other.start for one, other in itertools.pairwise(kept))
    assert all(any(k.start < span.end and span.start < k.end for k in kept) for span in spans)


def test_the_redacted_share_of_test_is_told() -> None:
    wanted = spec({"pii": "redact"})
    store = store_of({"pool": GOOD, "test": [row("mail a.b@example.com", "ok"), row("nothing", "ok")]})
    run(pii, store, wanted)
    remarks, _ = run(pii_in_test, store, wanted)
    assert said(remarks).startswith("warning: test: 1 of 2 rows (50.0 %) was redacted: test row 1")
    assert store.example(6).row.messages[0]["content"] == "mail <EMAIL_ADDRESS>"
    assert "a.b@example.com" not in said(remarks)


@pytest.mark.parametrize(
    ("broken", "mended"),
    [
        ("schÃ¶n", "schön"),
        ("donâ€™t", "don\u2019t"),
        ("a\x00b\x07", "ab"),
        ("\u202eabc\u202c", "abc"),
        ("pass\u00adword re\u200bset", "password reset"),
        ("hello \U000e0069\U000e0067\U000e006e", "hello "),
        ("by \U0001f3f4\U000e0067\U000e0062\U000e0065\U000e006e\U000e0067\U000e007f team",) * 2,
        ("\U0001f468\u200d\U0001f469 \u0645\u06cc\u200c\u0634\u0648\u062f \u0e01\u200b\u0e02 one \u200btwo",) * 2,
        ("schön", "schön"),
        ("line\r\nline\ttab", "line\r\nline\ttab"),
        ("lost \ufffd", "lost \ufffd"),
    ],
)
def test_broken_characters_are_mended(broken: str, mended: str) -> None:
    assert encoding.mended(broken) == mended


def test_what_cannot_be_mended_is_told() -> None:
    remarks, _ = run(encoding, {"pool": [row("lost \ufffd", "a"), *GOOD]}, spec({"encoding": "repair"}))
    assert "1 row keeps broken characters that cannot be mended: pool row 1" in said(remarks)


@given(st.text(max_size=60))
def test_mending_is_done_once(text: str) -> None:
    once = encoding.mended(text)
    assert all(kind in ("mojibake", "replacement characters") for kind in encoding.broken_kinds(once))


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("Where is my parcel, I have been waiting for it since Monday morning", "en"),
        ("Wo ist mein Paket, ich warte schon seit Montag früh darauf und niemand hilft", "de"),
        (
            "私の荷物はどこにありますか。月曜日からずっと待っているのですが、まだ届いていません。すぐに調べてください。",
            "ja",
        ),
        ("\u6211\u7684\u5305\u88f9\u5728\u54ea\u91cc\uff1f\u661f\u671f\u4e00", "zh"),
        ("\u6211\u7684\u5305\u88f9\u5728\u54ea\u91cc\uff1f\u661f\u671f", ""),
        ("\u30ed\u30b0\u30a4\u30f3\u3067\u304d\u307e\u305b\u3093", "ja"),
        ("\ube44\ubc00\ubc88\ud638\ub97c \uc7ac\uc124\uc815", "ko"),
        ("\u0e23\u0e35\u0e40\u0e0b\u0e47\u0e15\u0e23\u0e2b\u0e31\u0e2a\u0e1c\u0e48\u0e32\u0e19", "th"),
        ("Translate \u30ed\u30b0\u30a4\u30f3 into English", ""),
        ("ok", ""),
        ("12345 67890 12345 67890 12345 67890 12345 67890", ""),
    ],
)
def test_language_of_a_text(text: str, code: str) -> None:
    assert language.language_of(text) == code


def test_two_languages_that_are_both_meant_are_no_accident() -> None:
    english = [
        row(f"Where is my parcel number {n}, I have been waiting since Monday", "It is on its way") for n in range(6)
    ]
    german = [
        row(f"Wo ist mein Paket Nummer {n}, ich warte schon seit Montag", "Es ist unterwegs zu Ihnen") for n in range(4)
    ]
    remarks, left = run(language, {"pool": [*english, *german]}, spec({"language": "drop"}))
    assert "en 60.0 %, de 40.0 %" in said(remarks)
    assert left == {"pool": 10}
