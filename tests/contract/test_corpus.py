"""Our own validation on the corpus; `tests/cluster/test_contract.py` asks a real API server about the same files."""

from __future__ import annotations

from pathlib import Path

import pytest

from finetune_api.base import Rule
from finetune_api.crd import KINDS, schema_of
from finetune_api.validation import validate_document
from tests.contract.corpus_files import BAD, GOOD, expected_words, text_of


@pytest.mark.parametrize("file", GOOD, ids=lambda file: file.stem)
def test_a_good_file_has_no_problem(file: Path) -> None:
    assert [str(problem) for problem in validate_document(text_of(file))] == []


@pytest.mark.parametrize("file", BAD, ids=lambda file: file.stem)
def test_a_bad_file_is_refused_in_words_that_help(file: Path) -> None:
    problems = validate_document(text_of(file))
    said = [str(problem) for problem in problems]
    assert any(expected_words(file) in line for line in said), said
    assert all(problem.fix and problem.line > 1 for problem in problems), "line 1 of a bad file is its comment"
    assert not any(word in line for line in said for word in ("Input should", "pydantic", "valid string", "dictionary"))


def _judgeable_messages(schema: dict[str, object]) -> set[str]:
    # A rule of a plain number repeats its range, which our validation words itself.
    own = schema.get("x-kubernetes-validations", []) if schema.get("type") == "object" else []
    rules = {rule["message"] for rule in own if "oldSelf" not in rule["rule"]}
    children = [*schema.get("properties", {}).values(), schema.get("items"), schema.get("additionalProperties")]
    return rules.union(*(_judgeable_messages(child) for child in children if isinstance(child, dict)))


def test_every_rule_has_a_bad_file() -> None:
    met = {f"{p.message}; {p.fix}" for file in BAD for p in validate_document(text_of(file))}
    wanted = set().union(*(_judgeable_messages(schema_of(kind)) for kind in KINDS))
    assert {message for message in wanted if f"is refused: {message}" not in met} == set()


def test_every_rule_says_the_fix() -> None:
    def messages(schema: dict[str, object]) -> set[str]:
        rules = {rule["message"] for rule in schema.get("x-kubernetes-validations", [])}
        children = [*schema.get("properties", {}).values(), schema.get("items")]
        return rules.union(*(messages(child) for child in children if isinstance(child, dict)))

    said = set().union(*(messages(schema_of(kind)) for kind in KINDS))
    assert [message for message in said if "; " not in message] == []


def test_a_transition_rule_is_left_to_the_api_server() -> None:
    assert Rule(cel="self.a == oldSelf.a", message="a; b").transition
    assert not Rule(cel="self.a > 0", message="a; b").transition
