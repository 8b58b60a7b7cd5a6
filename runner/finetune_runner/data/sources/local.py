"""file://, pvc:// and oci://: files that are on this machine already, or mounted; they are read in place."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from finetune_api.common import SecretRef
from finetune_api.exit_codes import ExitCode
from finetune_runner import mounts
from finetune_runner.context import StageContext
from finetune_runner.data.listing import Listing
from finetune_runner.errors import StageError
from finetune_runner.storage.files import path_of

SCHEMES = ("file", "pvc", "oci")


def list_source(context: StageContext, uri: str, secret_ref: SecretRef | None, folder: Path) -> Listing:
    """The file, or the files in the folder and its subfolders; hidden ones do not count."""
    path = path_of(uri) if uri.startswith("file://") else mounts.path_of(uri)

    def refuse(error: OSError) -> None:
        raise error

    try:
        if not path.is_dir():
            _check_regular(uri, path)
            with path.open("rb"):
                return Listing([path.name], lambda _names: {path.name: path}, single=True)
        names: list[str] = []
        for parent, folders, files in os.walk(path, onerror=refuse):
            context.check_stop()
            folders[:] = [name for name in folders if not name.startswith(".")]
            names += [str(Path(parent, name).relative_to(path)) for name in files if not name.startswith(".")]
    except PermissionError as error:
        raise StageError(
            ExitCode.ACCESS_DENIED, f"{uri}: no right to read it", "let the user that runs this read it", str(error)
        ) from error
    except OSError as error:
        raise StageError(ExitCode.SOURCE_NOT_FOUND, f"{uri} does not exist", "check the path", str(error)) from error

    def copy(wanted: Sequence[str]) -> dict[str, Path]:
        for name in wanted:
            _check_regular(f"{uri.rstrip('/')}/{name}", path / name)
        return {name: path / name for name in wanted}

    return Listing(names, copy)


def _check_regular(what: str, path: Path) -> None:
    """Raise StageError for a pipe, a socket or a device: reading it might never end."""
    if path.exists() and not path.is_file():
        raise StageError(ExitCode.INVALID_DATA, f"{what} is not a regular file", "name a file or a folder")
