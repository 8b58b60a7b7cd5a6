"""Prepared data kept by the content they were made of: a run on the same data does not prepare them again.

Below the adapter: `cache/prepare/<data>/<model>.json` names the files, which lie in `cache/prepare/files/<sha256>` and,
for test, in `cache/test/<sha256>` (who may train need not be able to read test). The key is made of the sources' bytes,
of all that the spec says about data and judging, of the tokenizer, and of the code of this program and its contract. An
entry is made once; every file is verified when it is used, and an entry that does not hold is made again.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Mapping, Sequence
from functools import lru_cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import finetune_api
import finetune_runner
from finetune_api.exit_codes import ExitCode
from finetune_runner.context import StageContext
from finetune_runner.data.loading import Fetched
from finetune_runner.data.outcome import Prepared
from finetune_runner.data.prepared import split_path
from finetune_runner.data.wanted import SplitSource
from finetune_runner.errors import StageError
from finetune_runner.model_source import model_files
from finetune_runner.storage import join

log = logging.getLogger("finetune_runner.prepare")

_JUDGING_ONLY = frozenset({"gates", "humanReview", "maxNewTokens"})
"""Not baselinePrompt: a class that it names is called by its name in findings (labels.py)."""
_LIBRARIES = ("transformers", "tokenizers", "datasketch", "numpy", "ftfy", "py3langid", "presidio-analyzer")


def data_key(context: StageContext, sources: Sequence[tuple[SplitSource, Fetched]]) -> str:
    """sha256 over everything but the model that decides what prepare makes."""
    spec = context.task.spec
    described = {
        "code": _code_digest(),
        "libraries": {name: version(name) for name in _LIBRARIES},
        "sources": [
            [named.split, named.wanted.place, named.weight, *([f["name"], f["sha256"]] for f in fetched.files)]
            for named, fetched in sources
        ],
        "data": spec.data.to_wire(),
        "evaluation": {k: v for k, v in spec.evaluation.to_wire().items() if k not in _JUDGING_ONLY},
        "objective": spec.method.to_wire().get("objective"),
        "maxLength": spec.training.max_length,
        "seed": spec.training.seed,
        "incumbent": context.task.incumbent.uri if context.task.incumbent is not None else None,
    }
    return hashlib.sha256(json.dumps(described, sort_keys=True).encode()).hexdigest()


def model_key(context: StageContext, path: Path) -> str:
    """sha256 over what the model decides: tokenizer, template, configuration, and what the spec says about them."""
    total = hashlib.sha256(json.dumps(context.task.spec.model.to_wire(), sort_keys=True).encode())
    for item in model_files(path):
        if item.suffix != ".safetensors":
            total.update(f"{item.name} {hashlib.sha256(item.read_bytes()).hexdigest()}\n".encode())
    return total.hexdigest()


class PreparedCache:
    """The adapter's prepared data for one data key."""

    def __init__(self, context: StageContext, key: str) -> None:
        self._context = context
        self._root = join(context.task.adapter_uri, "cache")
        self._folder = join(self._root, "prepare", key)

    def may_have(self) -> bool:
        """Whether these data were prepared before, for whatever model."""
        return bool(self._context.storage.list(f"{self._folder}/"))

    def restore(self, model: str) -> tuple[Prepared, str] | None:
        """Bring the files of an entry into this run.

        Returns:
            The prepared data and the run that made them; None when there is no entry or it does not hold.
        """
        storage, run_uri = self._context.storage, self._context.task.run_uri
        entry_uri = self._entry(model)
        if not storage.exists(entry_uri):
            return None
        try:
            entry = json.loads(storage.read_bytes(entry_uri))
            prepared = Prepared(**entry["prepared"])
            for name, facts in prepared.files.items():
                self._context.check_stop()
                self._copy(self._file(name, facts), join(run_uri, name), facts)
        except (ValueError, KeyError, TypeError) as error:
            log.warning("%s does not hold and is made again: %s", entry_uri, error)
        except StageError as error:
            if error.exit_code not in (ExitCode.INVALID_DATA, ExitCode.SOURCE_NOT_FOUND):
                raise
            log.warning("%s does not hold and is made again: %s", entry_uri, error.message)
        else:
            return prepared, str(entry["run"])
        self._context.fence.check()
        storage.delete(entry_uri)
        return None

    def keep(self, model: str, prepared: Prepared, paths: Mapping[str, Path]) -> None:
        """Make the entry: the files first, then what names them, once."""
        storage = self._context.storage
        for name, facts in prepared.files.items():
            self._context.check_stop()
            storage.upload_file(paths[name], self._file(name, facts))
        entry = {"run": self._context.task.run_uri, "prepared": prepared.to_wire()}
        self._context.fence.check()
        storage.create(self._entry(model), json.dumps(entry, ensure_ascii=False).encode())

    def _copy(self, uri: str, target: str, facts: Mapping[str, Any]) -> None:
        path = self._context.scratch / "prepare" / "cached"
        self._context.storage.download_file(uri, path)
        with path.open("rb") as stream:
            digest = hashlib.file_digest(stream, "sha256").hexdigest()
        if digest != facts["sha256"]:
            raise StageError(ExitCode.INVALID_DATA, f"{uri} has sha256 {digest}")
        self._context.storage.upload_file(path, target)
        path.unlink()

    def _entry(self, model: str) -> str:
        return f"{self._folder}/{model}.json"

    def _file(self, name: str, facts: Mapping[str, Any]) -> str:
        folder = "test" if name == split_path("test") else "prepare/files"
        return join(self._root, folder, str(facts["sha256"]))


@lru_cache(maxsize=1)
def _code_digest() -> str:
    """sha256 over this program's own source and the contract's: another version of either may prepare otherwise."""
    total = hashlib.sha256()
    for package in (finetune_api, finetune_runner):
        root = Path(str(package.__file__)).parent
        for path in sorted([*root.rglob("*.py"), *root.rglob("*.jinja")]):
            name = f"{package.__name__}/{path.relative_to(root)}"
            total.update(f"{name} {hashlib.sha256(path.read_bytes()).hexdigest()}\n".encode())
    return total.hexdigest()
