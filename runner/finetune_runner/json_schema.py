"""The schema that a user gives for answers: JSON Schema 2020-12, complete in itself.

`jsonschema` alone fetches what a `$ref` names, from files and the network; here nothing is fetched.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from jsonschema import Draft202012Validator
from jsonschema.exceptions import SchemaError, ValidationError
from referencing import Registry
from referencing.exceptions import Unresolvable
from referencing.jsonschema import DRAFT202012

from finetune_api.exit_codes import ExitCode
from finetune_runner.errors import StageError

_FIELD = "evaluation.task.schema"
_REFERENCES = ("$ref", "$dynamicRef")
_EMPTY: Registry[Any] = Registry()
"""Knows and retrieves nothing."""


def schema_validator(schema: dict[str, Any]) -> Draft202012Validator:
    """A validator of the task's schema. Raises StageError (INVALID_SPEC): no JSON Schema, or a `$ref` out of it."""
    try:
        Draft202012Validator.check_schema(schema)
    except SchemaError as error:
        raise StageError(
            ExitCode.INVALID_SPEC,
            f"{_FIELD} is not a JSON Schema: {error.message}"[:500],
            "correct the schema (draft 2020-12)",
        ) from error
    _check_references(schema)
    return Draft202012Validator(schema, registry=_EMPTY)


def problem_with(validator: Draft202012Validator, value: object) -> str:
    """Where a value does not satisfy the schema, and which keyword; empty when it does. Never a word of the value."""
    try:
        problem = next(iter(sorted(validator.iter_errors(value), key=lambda e: list(map(str, e.path)))), None)
    except RecursionError:
        return "$: it is nested too deeply, or the schema refers to itself without end"
    return "" if problem is None else f"{_place(problem, validator)}: {problem.validator}"


def _place(problem: ValidationError, validator: Draft202012Validator) -> str:
    """JSON path of what breaks the schema; a key that the schema does not have is the row's own: `*`."""
    known = set(_keys(validator.schema))
    steps = (f"[{step}]" if isinstance(step, int) else f".{step if step in known else '*'}" for step in problem.path)
    return "$" + "".join(steps)


def _keys(schema: object) -> Iterator[str]:
    if isinstance(schema, dict):
        yield from schema
    for part in schema.values() if isinstance(schema, dict) else schema if isinstance(schema, list) else ():
        yield from _keys(part)


def _check_references(schema: dict[str, Any]) -> None:
    """Follow every reference. Raises StageError (INVALID_SPEC) for one that leads to no schema within this one."""
    root = DRAFT202012.create_resource(schema)
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
                Draft202012Validator.check_schema(found.contents)
            except (Unresolvable, SchemaError, ValueError, TypeError) as error:
                raise StageError(
                    ExitCode.INVALID_SPEC,
                    f"{_FIELD}: the reference {reference[:200]} leads to no schema within this one; nothing is fetched",
                    f"put the schema under $defs of {_FIELD} and refer to it as #/$defs/NAME",
                ) from error
            if id(found.contents) not in targets:
                targets.add(id(found.contents))
                waiting.append((DRAFT202012.create_resource(found.contents), found.resolver))
