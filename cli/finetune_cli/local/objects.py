"""Objects as the API server keeps them, one JSON file each: uid, generation, resourceVersion, optimistic writes."""

from __future__ import annotations

import json
import uuid
from datetime import datetime
from pathlib import Path
from typing import TypeVar

from pydantic import ValidationError

from finetune_api.adapter import Adapter
from finetune_api.adapterversion import AdapterVersion
from finetune_api.base import whole_seconds
from finetune_api.finetunejob import FineTuneJob
from finetune_api.gpupool import GPUPool
from finetune_cli.errors import CliError
from finetune_cli.local.files import read_json, write_atomically
from finetune_cli.local.state import StateDir, write_lock
from finetune_cli.options import checked_name

Object = TypeVar("Object", FineTuneJob, Adapter, AdapterVersion, GPUPool)


class ConflictError(Exception):
    """Somebody else wrote the object since it was read, or it exists already: observe again."""


class ObjectStore:
    """The local registry's objects below `<state>/objects/<kind>/<namespace>/<name>.json`."""

    def __init__(self, state: StateDir) -> None:
        self._state = state

    def path(self, kind: type[Object], namespace: str, name: str) -> Path:
        """File of one object. Cluster-scoped kinds have no namespace."""
        folder = self._state.objects / kind.__name__.lower()
        if namespace:
            folder = folder / checked_name(namespace, "metadata.namespace")
        return folder / f"{checked_name(name, 'metadata.name')}.json"

    def get(self, kind: type[Object], namespace: str, name: str) -> Object | None:
        """One object, or None. Raises CliError when the file is not one this version understands."""
        return self._read(kind, self.path(kind, namespace, name))

    def list(self, kind: type[Object], namespace: str) -> list[Object]:
        """All objects of a kind in a namespace, by name."""
        folder = self.path(kind, namespace, "any").parent
        found = [self._read(kind, file) for file in sorted(folder.glob("[a-z0-9]*.json"))]
        return [item for item in found if item is not None]

    def create(self, item: Object, now: datetime) -> Object:
        """Store a new object with its identity. Raises ConflictError when the name is taken."""
        metadata = item.metadata.model_copy(
            update={
                "uid": str(uuid.uuid4()),
                "generation": 1,
                "resource_version": "1",
                "creation_timestamp": whole_seconds(now),
            }
        )
        created = item.model_copy(update={"metadata": metadata})
        path = self.path(type(item), metadata.namespace, metadata.name)
        with write_lock(self._state):
            if path.exists():
                raise ConflictError(f"{item.kind} {metadata.name} exists")
            self._write(path, created)
        return created

    def replace(self, item: Object) -> Object:
        """Store a changed object: an edited spec is a new generation, an unchanged object is not written.

        Raises ConflictError when `item` was not made from what is stored now.
        """
        kind, metadata = type(item), item.metadata
        path = self.path(kind, metadata.namespace, metadata.name)
        with write_lock(self._state):
            stored = self._read(kind, path)
            if stored is None or (stored.metadata.uid, stored.metadata.resource_version) != (
                metadata.uid,
                metadata.resource_version,
            ):
                raise ConflictError(f"{item.kind} {metadata.name} was changed by somebody else")
            if stored == item:
                return stored
            edited = stored.spec != item.spec
            changed = item.model_copy(
                update={
                    "metadata": metadata.model_copy(
                        update={
                            "generation": stored.metadata.generation + edited,
                            "resource_version": str(int(stored.metadata.resource_version) + 1),
                        }
                    )
                }
            )
            self._write(path, changed)
            return changed

    @staticmethod
    def _write(path: Path, item: FineTuneJob | Adapter | AdapterVersion | GPUPool) -> None:
        write_atomically(path, json.dumps(item.to_wire(), indent=1, ensure_ascii=False) + "\n")

    @staticmethod
    def _read(kind: type[Object], path: Path) -> Object | None:
        try:
            wire = read_json(path)
            return None if wire is None else kind.from_wire(wire)
        except (ValueError, ValidationError) as error:
            raise CliError(
                f"{path} is not a {kind.__name__} this version understands: {str(error).splitlines()[0]}",
                "It was edited by hand or written by another version; use another folder with --state DIR.",
            ) from error
