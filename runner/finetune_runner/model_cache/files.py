"""Files of a model: which count, what they must hash to, and whether they do."""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from uuid import uuid4

log = logging.getLogger(__name__)

OnBlock = Callable[[int], None]
"""Is called with the bytes that were read, every few MiB and from several threads; may raise to stop."""
MODEL_FILES = ("*.safetensors", "*.json", "*.txt", "*.model", "*.jinja")
"""What of a model is used. Code and pickles are not fetched."""
_SECOND_COPY = "consolidated*.safetensors"
"""Some publishers put all weights there a second time, in their own layout."""
_BLOCK_BYTES = 4 << 20
_READERS = 4
_GIT_BYTES = 100 << 20
"""The hub takes no larger file without LFS (its own limit is 10 MB)."""


@dataclass(frozen=True)
class ModelFile:
    """One file of a model as its source lists it."""

    name: str
    size: int
    """Bytes."""
    sha256: str = ""
    """Of the content, where the source tells it (large files of the hub)."""
    git_oid: str = ""
    """sha1 of git's blob of it, where the source tells that (small files of the hub)."""


@dataclass(frozen=True)
class Hashes:
    """What a file on the disk is."""

    size: int
    sha256: str
    git_oid: str
    """Empty for a file too large to be anything but LFS."""


def used_names(names: Iterable[str]) -> list[str]:
    """The names, directly in the model's folder, that make up a model; sorted."""
    used = sorted(name for name in names if "/" not in name and any(fnmatch(name, p) for p in MODEL_FILES))
    weights = [name for name in used if name.endswith(".safetensors")]
    if all(fnmatch(name, _SECOND_COPY) for name in weights):
        return used
    return [name for name in used if not fnmatch(name, _SECOND_COPY)]


def hash_file(path: Path, on_block: OnBlock = lambda _count: None) -> Hashes:
    """Hashes of a file, in one pass. Raises OSError."""
    size = path.stat().st_size
    content = hashlib.sha256()
    # Git's own name for the content, not a protection; what the hub lists by it is small.
    blob = hashlib.sha1(f"blob {size}\0".encode(), usedforsecurity=False) if size <= _GIT_BYTES else None
    with path.open("rb") as stream:
        while block := stream.read(_BLOCK_BYTES):
            on_block(len(block))
            content.update(block)
            if blob is not None:
                blob.update(block)
    return Hashes(size, content.hexdigest(), "" if blob is None else blob.hexdigest())


def hash_files(folder: Path, names: Sequence[str], on_block: OnBlock = lambda _count: None) -> dict[str, Hashes | None]:
    """Hashes of files by name, several at once (hashing leaves the interpreter's lock).

    None for a file that is not there, or that its disk cannot give back.
    """

    def one(name: str) -> Hashes | None:
        try:
            return hash_file(folder / name, on_block)
        except OSError as error:
            log.warning("%s cannot be read: %s", folder / name, error)
            return None

    with ThreadPoolExecutor(_READERS) as pool:
        return dict(zip(names, pool.map(one, names), strict=True))


def fits(file: ModelFile, found: Hashes | None) -> bool:
    """Whether what is on the disk is what the source lists."""
    return (
        found is not None
        and found.size == file.size
        and file.sha256 in ("", found.sha256)
        and file.git_oid in ("", found.git_oid)
    )


def digest_of(sha256s: dict[str, str]) -> str:
    """sha256 over the names and contents of a model's files: the identity of a model wherever it is kept."""
    total = hashlib.sha256()
    for name in sorted(sha256s):
        total.update(f"{name} {sha256s[name]}\n".encode())
    return total.hexdigest()


class DigestMemory:
    """Digests of folders that were read before by a process of this pod, as long as no file's facts changed.

    140 GB are not hashed again by every rank. Kept in the pod's own scratch, never beside the shared files.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def digest(self, folder: Path, names: Sequence[str], on_block: OnBlock = lambda _count: None) -> str:
        """Digest of the files in a folder. Raises OSError when one cannot be read."""
        facts = self._facts(folder, names)
        note = self._folder / f"{hashlib.sha256(str(folder).encode()).hexdigest()[:16]}.json"
        try:
            known = json.loads(note.read_bytes())
        except (OSError, ValueError):
            known = {}
        if known.get("facts") == facts:
            return str(known["digest"])
        digest = digest_of(
            {name: found.sha256 for name, found in hash_files(folder, names, on_block).items() if found is not None}
        )
        self.remember(folder, names, digest)
        return digest

    def remember(self, folder: Path, names: Sequence[str], digest: str) -> None:
        """Keep a digest that was just computed."""
        self._folder.mkdir(parents=True, exist_ok=True)
        note = self._folder / f"{hashlib.sha256(str(folder).encode()).hexdigest()[:16]}.json"
        temporary = note.with_name(f".{uuid4().hex}.part")
        temporary.write_text(json.dumps({"facts": self._facts(folder, names), "digest": digest}))
        temporary.replace(note)

    @staticmethod
    def _facts(folder: Path, names: Sequence[str]) -> list[list[object]]:
        found = [(name, os.stat(folder / name)) for name in names]
        return [[name, s.st_size, s.st_mtime_ns, s.st_ctime_ns, s.st_ino] for name, s in found]
