"""The storage interface: everything the runner keeps goes through it, whatever is behind it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Protocol


@dataclass(frozen=True)
class Object:
    """One stored object."""

    uri: str
    size: int
    """Bytes."""
    etag: str = ""
    """Changes with the content, where the store tells one."""


class Storage(Protocol):
    """Object storage. Every write is atomic: an object is there whole or not at all.

    All methods raise StageError: STORAGE_UNAVAILABLE (unreachable, overloaded), ACCESS_DENIED, SOURCE_NOT_FOUND
    (no such bucket, object or file), DISK_FULL.
    """

    def read_bytes(self, uri: str) -> bytes:
        """The whole object."""

    def open_read(self, uri: str) -> BinaryIO:
        """The object as a seekable binary stream; the caller closes it."""

    def write_bytes(self, uri: str, data: bytes) -> None:
        """Write or replace an object."""

    def upload_file(self, path: Path, uri: str) -> None:
        """Write or replace an object with a local file's content."""

    def download_file(self, uri: str, path: Path, got: Callable[[int], None] | None = None) -> None:
        """Copy an object into a local file (its folder is created); the file appears whole or not at all.

        `got` is called with the bytes that arrived, from any thread; it may raise to stop.
        """

    def create(self, uri: str, data: bytes) -> bool:
        """Write an object that must not exist: True for the one writer that made it, False for all others."""

    def exists(self, uri: str) -> bool:
        """Whether there is an object of exactly this name."""

    def list(self, prefix_uri: str) -> list[Object]:
        """All objects whose name starts with the prefix, sorted by name; empty when there is none."""

    def delete(self, uri: str) -> None:
        """Remove an object; fine when there is none."""


def join(uri: str, *parts: str) -> str:
    """A URI below another; a slash at its end stays, so that it can be listed as a folder."""
    return "/".join(
        [uri.rstrip("/"), *(part.strip("/") for part in parts[:-1]), *(part.lstrip("/") for part in parts[-1:])]
    )
