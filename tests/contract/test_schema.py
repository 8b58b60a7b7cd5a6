"""The generated CRDs: what is committed is what the models say, and the models mean what the schema says."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import jsonschema
import pytest
from hypothesis import HealthCheck, given, settings

from finetune_api.crd import KINDS, UNSEEN, Kind, Schema, crd, fields, schema_of
from finetune_api.finetunejob import FineTuneJob
from finetune_api.generate import generated
from finetune_api.job.spec import MUTABLE_WHILE_RUNNING, FineTuneJobSpec
from tests.contract.strategies import specs

LARGEST_ANNOTATIONS_BYTES = 256 * 1024
"""Kubernetes, apimachinery/pkg/api/validation: TotalAnnotationSizeLimitB."""
every_kind = pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)


def _nodes(schema: Schema, path: str = "") -> Iterator[tuple[str, Schema]]:
    yield path, schema
    for name, member in schema.get("properties", {}).items():
        yield from _nodes(member, f"{path}.{name}")
    for key in ("items", "additionalProperties"):
        if key in schema:
            yield from _nodes(schema[key], f"{path}.{key}")


def test_what_is_committed_is_what_the_models_say() -> None:
    stale = [path.name for path, text in generated().items() if path.read_text(encoding="utf-8") != text]
    assert stale == [], "run `make generate`"


def test_generating_twice_gives_the_same_files() -> None:
    assert generated() == generated()


@every_kind
def test_every_field_is_described(kind: Kind) -> None:
    rows = [row for row in fields(schema_of(kind)) if row.path != "metadata"]
    assert [row.path for row in rows if not row.description] == []
    assert len(rows) > 20


@every_kind
def test_the_schema_is_structural(kind: Kind) -> None:
    allowed_without_type = {"x-kubernetes-int-or-string"}
    for path, node in _nodes(schema_of(kind)):
        assert "type" in node or allowed_without_type & node.keys(), path
        assert not {"$ref", "anyOf", "oneOf", "const", "title", "nullable"} & node.keys(), path
        assert node.get("additionalProperties") is not False, path
        assert node.get("exclusiveMinimum") in (None, True), path
        assert "default" not in node or node["default"] is not None, path


@every_kind
def test_entries_of_lists_have_no_defaults(kind: Kind) -> None:
    """Client-side apply and Argo CD compare lists as a whole: an entry completed by the API server differs from Git."""
    found = [path for path, node in _nodes(schema_of(kind)["properties"]["spec"]) if "default" in node]
    assert [path for path in found if ".items" in path] == []
    assert len(found) > 5 or kind.name == "AdapterVersion"


@every_kind
def test_a_status_has_no_defaults_but_that_nobody_has_seen_the_object(kind: Kind) -> None:
    status = schema_of(kind)["properties"]["status"]
    defaults = {path: node["default"] for path, node in _nodes(status) if "default" in node}
    assert defaults == ({"": {"observedGeneration": UNSEEN}} if kind.always_reconciled else {})


@every_kind
def test_the_crd_fits_into_the_annotation_of_a_client_side_apply(kind: Kind) -> None:
    # kubectl keeps the object there as JSON, and all annotations of an object may have 256 KiB.
    assert len(json.dumps(crd(kind), separators=(",", ":")).encode()) < LARGEST_ANNOTATIONS_BYTES / 2


@every_kind
def test_every_version_has_a_status_subresource(kind: Kind) -> None:
    spec = crd(kind)["spec"]
    assert spec["versions"][0]["subresources"] == {"status": {}}
    assert spec["names"]["categories"] == ["finetune"]
    assert spec["scope"] == ("Cluster" if kind.name == "GPUPool" else "Namespaced")


@every_kind
def test_printer_columns_point_at_fields(kind: Kind) -> None:
    known = {row.path for row in fields(schema_of(kind))}
    for column in kind.columns:
        path = column.path.removeprefix(".")
        if "[?(" not in path and not path.startswith("metadata."):
            assert path in known, column


def test_every_field_of_a_running_spec_is_immutable_but_three() -> None:
    rules = [rule.field_path for rule in FineTuneJob.RULES if rule.transition]
    names = {info.alias for info in FineTuneJobSpec.model_fields.values()}
    assert {path.removeprefix("spec.") for path in rules} == names - MUTABLE_WHILE_RUNNING
    assert names >= MUTABLE_WHILE_RUNNING == {"suspend", "cancel", "ttlSecondsAfterFinished"}


def _spec_schema(kind: str) -> dict[str, Any]:
    found: dict[str, Any] = next(schema_of(k)["properties"]["spec"] for k in KINDS if k.name == kind)
    return found


@settings(max_examples=60, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(specs())
def test_what_the_schema_allows_and_the_rules_keep_is_a_spec(spec: dict[str, Any]) -> None:
    parsed = FineTuneJobSpec.from_wire(spec)
    again = parsed.to_wire()
    # OpenAPI 3.0 is JSON Schema draft 4 as far as bounds go.
    jsonschema.Draft4Validator(_spec_schema("FineTuneJob")).validate(again)
    assert FineTuneJobSpec.from_wire(again) == parsed


def test_what_must_not_change_while_running_is_always_there() -> None:
    """A rule that compares a field with its old value fails on one that is absent, and refuses every update."""
    spec = _spec_schema("FineTuneJob")
    compared = {rule.field_path.removeprefix("spec.") for rule in FineTuneJob.RULES if rule.transition}
    always = {name for name, member in spec["properties"].items() if "default" in member} | set(spec["required"])
    assert compared - always == set()
