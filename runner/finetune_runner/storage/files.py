"""Storage on a file system: write beside, fsync, then rename or link."""

from __future__ import annotations

import errno
import io
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO
from uuid import uuid4

from finetune_api.exit_codes import ExitCode
from finetune_runner.errors import FULL_DISK_ERRNOS, StageError, disk_full
from finetune_runner.storage.base import Object

_SCHEME = "file://"
_TEMPORARY = ".part"


def path_of(uri: str) -> Path:
    """The path of a file:// URI. Raises StageError (INVALID_SPEC) unless it is absolute."""
    path = uri.removeprefix(_SCHEME)
    if not uri.startswith(_SCHEME) or not path.startswith("/"):
        raise StageError(ExitCode.INVALID_SPEC, f"{uri} is not an absolute path", "write file:///absolute/path")
    return Path(path)


class FileStorage:
    """Storage whose objects are files; safe for several processes on a file system with hard links."""

    def read_bytes(self, uri: str) -> bytes:
        """See Storage."""
        with _typed(uri):
            return path_of(uri).read_bytes()

    def open_read(self, uri: str) -> BinaryIO:
        """See Storage."""
        with _typed(uri):
            return path_of(uri).open("rb")

    def write_bytes(self, uri: str, data: bytes) -> None:
        """See Storage."""
        self._write(io.BytesIO(data), uri)

    def upload_file(self, path: Path, uri: str) -> None:
        """See Storage."""
        with path.open("rb") as source:
            self._write(source, uri)

    def download_file(self, uri: str, path: Path, got: Callable[[int], None] | None = None) -> None:
        """See Storage."""
        with self.open_read(uri) as source:
            self._write(source, f"{_SCHEME}{path.absolute()}")
        if got is not None:
            got(path.stat().st_size)

    def create(self, uri: str, data: bytes) -> bool:
        """See Storage."""
        path = path_of(uri)
        with _typed(uri), _temporary(io.BytesIO(data), path) as temporary:
            try:
                os.link(temporary, path)
            except FileExistsError:
                return False
            _sync_folder(path.parent)
            return True

    def exists(self, uri: str) -> bool:
        """See Storage."""
        with _typed(uri):
            return path_of(uri).is_file()

    def list(self, prefix_uri: str) -> list[Object]:
        """See Storage."""
        prefix = str(path_of(prefix_uri)) + ("/" if prefix_uri.endswith("/") else "")
        with _typed(prefix_uri):
            paths = (
                Path(folder, name)
                for folder, _, names in os.walk(prefix.rpartition("/")[0] or "/")
                for name in names
                if os.path.join(folder, name).startswith(prefix) and not name.endswith(_TEMPORARY)
            )
            return [Object(f"{_SCHEME}{path}", path.stat().st_size) for path in sorted(paths)]

    def delete(self, uri: str) -> None:
        """See Storage."""
        with _typed(uri):
            path_of(uri).unlink(missing_ok=True)

    def _write(self, source: BinaryIO, uri: str) -> None:
        path = path_of(uri)
        with _typed(uri), _temporary(source, path) as temporary:
            temporary.replace(path)
            _sync_folder(path.parent)


@contextmanager
def _temporary(source: BinaryIO, path: Path) -> Iterator[Path]:
    """The content, safely on disk beside its destination under a name that nobody lists; gone afterwards."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.parent / f".{path.name[:100]}.{uuid4().hex}{_TEMPORARY}"
    try:
        with temporary.open("xb") as target:
            shutil.copyfileobj(source, target, 1 << 20)
            target.flush()
            os.fsync(target.fileno())
        yield temporary
    finally:
        temporary.unlink(missing_ok=True)


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def _typed(uri: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise _stage_error(error, uri) from error


def _stage_error(error: OSError, uri: str) -> StageError:
    evidence = str(error)
    if error.errno in FULL_DISK_ERRNOS:
        return disk_full(uri, evidence)
    if isinstance(error, FileNotFoundError | NotADirectoryError | IsADirectoryError):
        return StageError(
            ExitCode.SOURCE_NOT_FOUND, f"{uri} does not exist or is not a file", "check the path", evidence
        )
    if isinstance(error, PermissionError) or error.errno == errno.EROFS:
        return StageError(
            ExitCode.ACCESS_DENIED, f"{uri}: {error.strerror}", "give the user that runs this the right to it", evidence
        )
    return StageError(
        ExitCode.STORAGE_UNAVAILABLE, f"{uri}: {error.strerror or error}", "check the file system", evidence
    )
