"""A YAML to the API server: judged here first, then applied by the server, one object after the other."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from finetune_api.validation import accepted_values, validate_document
from finetune_api.yaml_document import Document, read_documents
from finetune_cli.cluster.api import APPLY_PATCH, JSON
from finetune_cli.cluster.connection import Connection
from finetune_cli.cluster.refusals import Refusal, explain
from finetune_cli.cluster.refused_fields import problems_of
from finetune_cli.cluster.resources import OURS, Resource
from finetune_cli.errors import CliError
from finetune_cli.jobfile import FILE_SCHEME, InvalidDocumentError, file_sources

FIELD_MANAGER = "kubectl-finetune"
Change = Literal["created", "configured", "unchanged"]


@dataclass(frozen=True)
class Applied:
    """One object of the file as the server has it now."""

    resource: Resource
    wire: JSON
    change: Change

    @property
    def name(self) -> str:
        """Its name."""
        return str(self.wire["metadata"]["name"])


def read_objects(file: Path, text: str, namespace: str, *, given: bool) -> list[tuple[JSON, Document]]:
    """The objects of a file with their namespace. Raises CliError naming every problem.

    `given` says that the namespace was asked for: then another one in the file is an error, as with kubectl.
    """
    problems = validate_document(text)
    if problems:
        raise InvalidDocumentError(file, problems)
    found = list(zip(accepted_values(text), read_documents(text), strict=True))
    for wire, document in found:
        metadata = wire["metadata"]
        where = f"{file}:{document.position_of(('metadata', 'namespace')).line}"
        if not metadata.get("name"):
            raise CliError(f"{where}: metadata.name is missing", "Name the object; apply needs a name.")
        if OURS[wire["kind"]].namespaced:
            if given and metadata.get("namespace", namespace) != namespace:
                raise CliError(
                    f"{where}: metadata.namespace is {metadata['namespace']}, and -n says {namespace}",
                    "Use one of them.",
                )
            metadata.setdefault("namespace", namespace)
        if wire["kind"] == "FineTuneJob":
            _refuse_files(file, wire, document)
    return found


def _refuse_files(file: Path, wire: JSON, document: Document) -> None:
    from finetune_cli.cluster.refused_fields import parse_field

    for field, source in file_sources(wire):
        line = document.position_of(parse_field(field)).line
        raise CliError(
            f"{file}:{line}: {field} is {source}: {FILE_SCHEME} works only without a cluster",
            "Upload it to s3:// or use pvc://, or run it here: `finetune run`.",
        )


def _change(before: JSON | None, after: JSON) -> Change:
    if before is None:
        return "created"
    same = before["metadata"].get("generation") == after["metadata"].get("generation")
    labels = all(before["metadata"].get(name) == after["metadata"].get(name) for name in ("labels", "annotations"))
    return "unchanged" if same and labels else "configured"


def _apply(connection: Connection, file: Path, wire: JSON, document: Document, query: dict[str, str]) -> Applied:
    resource = OURS[wire["kind"]]
    namespace = wire["metadata"].get("namespace") if resource.namespaced else None
    name = wire["metadata"]["name"]
    try:
        before: JSON | None = connection.api.get(resource, namespace, name)
    except Refusal as refusal:
        if refusal.code != 404 or not refusal.details.get("name"):
            raise explain(refusal, "get", resource, namespace, name, connection.api.server) from refusal
        before = None
    try:
        after = connection.api.patch(resource, namespace, name, wire, APPLY_PATCH, query)
    except Refusal as refusal:
        judged = refusal.code in (400, 422) and not refusal.unready
        problems = problems_of(refusal, document) if judged else []
        if problems:
            raise InvalidDocumentError(file, problems) from refusal
        if refusal.code == 409 and refusal.details.get("causes"):
            told = "\n".join(f"  {cause.get('field')}: {cause.get('message')}" for cause in refusal.details["causes"])
            raise CliError(
                f"fields of {resource.kind} {name} belong to another manager\n{told}",
                "Edit them there (in Git, say), or take them over with --force-conflicts.",
            ) from refusal
        raise explain(refusal, "patch", resource, namespace, name, connection.api.server) from refusal
    return Applied(resource, after, _change(before, after))


def apply_file(
    connection: Connection, file: Path, text: str, *, given: bool, dry_run: bool, force: bool
) -> Iterator[Applied]:
    """Server-side apply of every object, in the order of the file.

    Raises CliError with what the API server refuses; what was applied before that stays.
    """
    query: dict[str, Any] = {"fieldManager": FIELD_MANAGER, "fieldValidation": "Strict"}
    query |= {"dryRun": "All"} if dry_run else {}
    query |= {"force": "true"} if force else {}
    for wire, document in read_objects(file, text, connection.namespace, given=given):
        yield _apply(connection, file, wire, document, query)
