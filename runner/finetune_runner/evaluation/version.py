"""A published version in storage: its manifest, and its files on this machine."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from finetune_api.exit_codes import ExitCode
from finetune_runner.errors import StageError
from finetune_runner.storage import Storage, join
from finetune_runner.training.checkpoint import sha256_of

MANIFEST = "manifest.json"


def read_manifest(storage: Storage, uri: str) -> dict[str, Any]:
    """The manifest of a version. Raises StageError when there is no such version or it is damaged."""
    try:
        manifest: dict[str, Any] = json.loads(storage.read_bytes(join(uri, MANIFEST)))
    except ValueError as error:
        raise StageError(
            ExitCode.INVALID_DATA,
            f"{uri}/{MANIFEST} is damaged: {error}",
            hint="restore it from a backup of the bucket",
        ) from error
    return manifest


def download_version(storage: Storage, uri: str, manifest: dict[str, Any], folder: Path) -> Path:
    """The version's files, each as its manifest says. Raises StageError naming the file that is not."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for name, facts in manifest["files"].items():
        if "/" in name or name in ("", ".", ".."):
            raise StageError(
                ExitCode.INVALID_DATA, f"{uri}: {name!r} is not a file name", hint="the manifest was changed"
            )
        storage.download_file(join(uri, name), folder / name)
        if sha256_of(folder / name) != facts["sha256"]:
            raise StageError(
                ExitCode.INVALID_DATA,
                f"{uri}/{name} does not have the sha256 of its manifest",
                hint="restore the version's files from a backup; versions are never changed",
            )
    return folder
