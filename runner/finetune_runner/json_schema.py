"""The schema that a user gives for answers: JSON Schema 2020-12 or the draft it names, complete in itself.

`jsonschema` alone fetches what a `$ref` names, from files and the network; here nothing is fetched.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from jsonschema import Draft4Validator, Draft6Validator, Draft7Validator, Draft201909Validator, Draft202012Validator
from jsonschema.exceptions import SchemaError, ValidationError
from jsonschema.protocols import Validator
from referencing import Registry
from referencing.exceptions import Unresolvable
from referencing.jsonschema import specification_with

from finetune_api.exit_codes import ExitCode
from finetune_runner.errors import StageError

_FIELD = "evaluation.task.schema"
_REFERENCES = ("$ref", "$dynamicRef")
_DRAFT = "https://json-schema.org/draft/2020-12/schema"
_DRAFTS: dict[str, type[Validator]] = {
    _DRAFT: Draft202012Validator,
    "https://json-schema.org/draft/2019-09/schema": Draft201909Validator,
    "http://json-schema.org/draft-07/schema": Draft7Validator,
    "http://json-schema.org/draft-06/schema": Draft6Validator,
    "http://json-schema.org/draft-04/schema": Draft4Validator,
}
_EMPTY: Registry[Any] = Registry()
"""Knows and retrieves nothing."""


def schema_validator(schema: dict[str, Any]) -> Validator:
    """A validator of the task's schema.

    Raises:
        StageError: INVALID_SPEC for what is no JSON Schema of the draft that it names (2020-12 where it names none), a
            draft nobody knows, or a `$ref` out of it.
    """
    dialect = _dialect(schema)
    try:
        dialect.check_schema(schema)
    except SchemaError as error:
        raise StageError(
            ExitCode.INVALID_SPEC,
            f"{_FIELD} is not a JSON Schema: {error.message}"[:500],
            "correct the schema (draft 2020-12, or the one that its $schema names)",
        ) from error
    _check_references(schema, dialect)
    return dialect(schema, registry=_EMPTY)


def _dialect(schema: dict[str, Any]) -> type[Validator]:
    """The validator of the draft that a schema names: without it older keywords would be passed over in silence."""
    named = schema.get("$schema", _DRAFT)
    found = _DRAFTS.get(str(named).removesuffix("#"))
    if found is None:
        raise StageError(
            ExitCode.INVALID_SPEC,
            f"{_FIELD}: $schema {str(named)[:200]} is none of {', '.join(_DRAFTS)}",
            "name one of these drafts, or leave $schema out, which means the first",
        )
    return found


def problem_with(validator: Validator, value: Any) -> str:
    """Where a value does not satisfy the schema, and which keyword; empty when it does. Never a word of the value."""
    try:
        problem = next(iter(sorted(validator.iter_errors(value), key=lambda e: list(map(str, e.path)))), None)
    except RecursionError:
        return "$: it is nested too deeply, or the schema refers to itself without end"
    return "" if problem is None else f"{_place(problem, validator)}: {problem.validator}"


def _place(problem: ValidationError, validator: Validator) -> str:
    """JSON path of what breaks the schema; a key that the schema does not have is the row's own: `*`."""
    known = set(_keys(validator.schema))
    steps = (f"[{step}]" if isinstance(step, int) else f".{step if step in known else '*'}" for step in problem.path)
    return "$" + "".join(steps)


def _keys(schema: object) -> Iterator[str]:
    if isinstance(schema, dict):
        yield from schema
    for part in schema.values() if isinstance(schema, dict) else schema if isinstance(schema, list) else ():
        yield from _keys(part)


def _check_references(schema: dict[str, Any], dialect: type[Validator]) -> None:
    """Follow every reference. Raises StageError (INVALID_SPEC) for one that leads to no schema within this one."""
    draft = specification_with(dialect.META_SCHEMA.get("$schema", _DRAFT))
    root = draft.create_resource(schema)
    waiting = [(root, _EMPTY.resolver_with_root(root))]
    targets: set[int] = set()
    while waiting:
        resource, resolver = waiting.pop()
        waiting += [(each, resolver.in_subresource(each)) for each in resource.subresources()]
        if not isinstance(resource.contents, dict):
            continue
        for reference in (resource.contents[key] for key in _REFERENCES if key in resource.contents):
            try:
                found = resolver.lookup(reference)
                # A target outside of the keywords for schemas, `#/components/a`, has not been looked at yet.
                dialect.check_schema(found.contents)
            except (Unresolvable, SchemaError, ValueError, TypeError) as error:
                raise StageError(
                    ExitCode.INVALID_SPEC,
                    f"{_FIELD}: the reference {reference[:200]} leads to no schema within this one; nothing is fetched",
                    f"put the schema under $defs of {_FIELD} and refer to it as #/$defs/NAME",
                ) from error
            if id(found.contents) not in targets:
                targets.add(id(found.contents))
                waiting.append((draft.create_resource(found.contents), found.resolver))
