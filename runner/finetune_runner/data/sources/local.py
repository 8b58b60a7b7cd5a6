"""file:// and pvc://: files that are on this machine already; they are read in place."""

from __future__ import annotations

from pathlib import Path

from finetune_api.common import SecretRef
from finetune_api.exit_codes import ExitCode
from finetune_runner.context import StageContext
from finetune_runner.errors import StageError
from finetune_runner.model_source import pvc_path
from finetune_runner.storage.files import path_of

SCHEMES = ("file", "pvc")


def fetch(context: StageContext, uri: str, secret_ref: SecretRef | None, folder: Path) -> dict[str, Path]:
    """Names and paths of the file, or of all files in the folder."""
    path = path_of(uri) if uri.startswith("file://") else pvc_path(uri)
    try:
        if path.is_dir():
            return {item.name: item for item in path.iterdir() if item.is_file()}
        with path.open("rb"):
            return {path.name: path}
    except PermissionError as error:
        raise StageError(
            ExitCode.ACCESS_DENIED, f"{uri}: no right to read it", "let the user that runs this read it", str(error)
        ) from error
    except OSError as error:
        raise StageError(ExitCode.SOURCE_NOT_FOUND, f"{uri} does not exist", "check the path", str(error)) from error
