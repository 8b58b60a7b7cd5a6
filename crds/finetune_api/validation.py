"""What is wrong with a YAML file, in words for its author: every problem with its line and its fix, no cluster needed.

Judges like the API server (`tests/contract/corpus` goes through both) and says more: did-you-mean, lines, all at once.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache
from typing import Any

from pydantic import ValidationError

from finetune_api.base import API_GROUP_VERSION
from finetune_api.crd import KINDS, Kind, Schema, kind_named, schema_of
from finetune_api.messages import describe, member_of, show_path, suggestion
from finetune_api.yaml_document import Document, Path, Position, UnreadableError, read_documents

_METADATA = frozenset(
    [
        "annotations",
        "creationTimestamp",
        "deletionGracePeriodSeconds",
        "deletionTimestamp",
        "finalizers",
        "generateName",
        "generation",
        "labels",
        "managedFields",
        "name",
        "namespace",
        "ownerReferences",
        "resourceVersion",
        "selfLink",
        "uid",
    ]
)
_OBJECT_NAME = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*")


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong. `path` names the field; `message` goes on from it, `fix` says what to do."""

    path: str
    line: int
    column: int
    message: str
    fix: str

    def __str__(self) -> str:
        """One line for people."""
        return f"line {self.line}: {self.path or 'document'} {self.message}; {self.fix}"


def validate_document(text: str) -> list[Problem]:
    """All problems of a YAML text of one or more documents, in the order of their lines; none means it is accepted.

    Never raises, whatever the text.
    """
    try:
        documents = read_documents(text)
    except UnreadableError as unreadable:
        error = unreadable.error
        return [_problem(error.position, "", error.message, error.fix)]
    except RecursionError:
        return [_problem(Position(1, 1), "", "is nested too deeply", "flatten it")]
    if not documents:
        return [_problem(Position(1, 1), "", "is empty", f"write an object of kind {' or '.join(_kind_names())}")]
    problems = [problem for document in documents for problem in _judge(document)]
    return sorted(dict.fromkeys(problems), key=lambda problem: (problem.line, problem.column))


def accepted_values(text: str) -> list[dict[str, Any]]:
    """The objects of a text in which `validate_document` finds nothing, ready for `from_wire` of their kinds.

    Empty fields are left out and 16.0 is 16, as in the API server; status is dropped.
    """
    values = []
    for document in read_documents(text):
        kind, _ = _identify(document.value)
        if kind is None:
            raise ValueError(f"{document.value.get('kind')} is not one of our kinds")
        wish = {name: part for name, part in document.value.items() if name != "status"}
        _metadata_faults(kind, wish)
        values.append(_cleaned(wish, _schema(kind), (), []))
    return values


def _judge(document: Document) -> list[Problem]:
    problems = [_problem(error.position, show_path(path), error.message, error.fix) for path, error in document.errors]
    value = document.value
    if not isinstance(value, dict):
        return [
            *problems,
            _problem(document.start, "", "is not an object with fields", "start with apiVersion: and kind:"),
        ]
    kind, faults = _identify(value)
    if kind is None:
        return problems + [_at(document, path, message, fix) for path, message, fix in faults]
    schema = _schema(kind)
    wish = {name: part for name, part in value.items() if name != "status"}
    faults += _metadata_faults(kind, wish)
    cleaned = _cleaned(wish, schema, (), faults)
    told = {path for path, _, _ in faults} | {path for path, _ in document.errors}
    faults += _model_faults(kind, schema, cleaned, told=told)
    return problems + [_at(document, path, message, fix) for path, message, fix in faults]


Fault = tuple[Path, str, str]


def _identify(value: dict[str, Any]) -> tuple[Kind | None, list[Fault]]:
    """The kind, or why there is none. Another group's object is refused rather than passed over."""
    name, group_version = value.get("kind"), value.get("apiVersion")
    kind = kind_named(name) if isinstance(name, str) else None
    if kind is None:
        near = suggestion(str(name), _kind_names()) if name else ""
        said = "is missing" if name is None else f"{name} is not one of ours"
        return None, [(("kind",), said, near or f"write kind: {', '.join(_kind_names())}")]
    if group_version != API_GROUP_VERSION:
        said = "is missing" if group_version is None else f"{group_version} is not the version of {kind.name}"
        return kind, [(("apiVersion",), said, f"write apiVersion: {API_GROUP_VERSION}")]
    return kind, []


def _metadata_faults(kind: Kind, value: dict[str, Any]) -> list[Fault]:
    """What the API server says about metadata; the models read only a part of it."""
    metadata = value.get("metadata")
    if not isinstance(metadata, dict):
        value["metadata"] = {}
        said = "is missing" if metadata is None else "is not an object with fields"
        return [(("metadata",), said, "write metadata: {name: ...}")]
    value["metadata"] = {name: part for name, part in metadata.items() if part is not None}
    faults: list[Fault] = [
        (("metadata", name), "is not a field of metadata", suggestion(name, sorted(_METADATA)) or "remove it")
        for name in metadata
        if name not in _METADATA
    ]
    name = metadata.get("name")
    if name is None or name == "":
        if not metadata.get("generateName"):
            faults.append((("metadata", "name"), "is missing", f"write the name of this {kind.name}"))
    elif isinstance(name, str) and (len(name) > 253 or not _OBJECT_NAME.fullmatch(name)):
        faults.append((("metadata", "name"), "has other characters than a-z, 0-9, '-' and '.'", "rename it"))
    return faults


def _cleaned(value: Any, schema: Schema, path: Path, faults: list[Fault]) -> Any:  # any JSON
    """The value as the API server sees it before its checks.

    An empty field is as if left out (an empty entry of a list is a fault); a whole number may be written as 16.0.
    """
    if schema.get("x-kubernetes-preserve-unknown-fields") or path == ("metadata",):
        return value
    if isinstance(value, float) and value.is_integer() and abs(value) < 2**63:
        return int(value)
    if isinstance(value, int) and not -(2**63) <= value < 2**63:
        return float(value)
    if isinstance(value, list):
        items = schema.get("items", {})
        for index, item in enumerate(value):
            if item is None:
                faults.append(((*path, index), "is empty", "write a value after the dash, or remove the line"))
        return [_cleaned(item, items, (*path, index), faults) for index, item in enumerate(value)]
    if not isinstance(value, dict):
        return value
    result = {}
    for name, member in value.items():
        inner = member_of(schema, name)
        if member is not None or not inner:
            result[name] = _cleaned(member, inner, (*path, name), faults)
    return result


def _model_faults(kind: Kind, schema: Schema, value: dict[str, Any], told: set[Path]) -> list[Fault]:
    try:
        kind.model.from_wire(value)
    except ValidationError as error:
        found: list[Fault] = []
        for detail in error.errors(include_url=False):
            path = _known_part(tuple(detail["loc"]), schema)
            if path in told and detail["type"] != "rule":
                continue
            if detail["type"] == "rule":
                found += [_rule_fault(path, *broken) for broken in detail["ctx"]["broken"]]
            else:
                found.append((path, *describe(detail, path, schema)))
        return [fault for fault in found if fault[0] not in told]
    return []


def _rule_fault(path: Path, message: str, field_path: str) -> Fault:
    said, _, fix = message.partition("; ")
    # The API server's fieldPath cannot name a member of metadata, so these rules say it in their message.
    inner = field_path or ("metadata.name" if said.startswith("metadata.name ") else "")
    return (*path, *inner.split(".")) if inner else path, f"is refused: {said}", fix


def _known_part(location: tuple[str | int, ...], schema: Schema) -> Path:
    """A pydantic location without the names of union members that it appends."""
    node: Schema = schema
    for length, step in enumerate(location):
        if node.get("x-kubernetes-int-or-string"):
            return location[:length]
        node = member_of(node, step)
    return location


def _at(document: Document, path: Path, message: str, fix: str) -> Problem:
    return _problem(document.position_of(path), show_path(path), message, fix)


def _problem(position: Position, path: str, message: str, fix: str) -> Problem:
    return Problem(path, position.line, position.column, message, fix)


def _kind_names() -> list[str]:
    return [kind.name for kind in KINDS]


@cache
def _schema(kind: Kind) -> Schema:
    return schema_of(kind)
