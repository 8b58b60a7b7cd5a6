"""Salted hashes of the rows a version was trained on, so that it can be asked for a row without keeping its text.

The salt is random, one per adapter, made once and kept beside its versions: hashes of two adapters cannot be joined,
and a list of guesses made for one is of no use for another. Whoever may read the salt can test a guess; the text cannot
be had from a hash. A row is hashed as it was read, without system messages, before anything was redacted.

File: one line of JSON (format, algorithm, number of hashes by split), then for each split its sorted 16-byte hashes.
"""

from __future__ import annotations

import hmac
import json
import secrets
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import BinaryIO

from finetune_api.exit_codes import ExitCode
from finetune_runner.data.row_store import RowStore
from finetune_runner.errors import StageError
from finetune_runner.storage import Storage, join

ROW_HASHES = "row-hashes.dat"
HASHED_SPLITS = ("train", "replay", "validation")
"""What a version learned from, and what steered it."""
_FORMAT = 1
_ALGORITHM = "HMAC-SHA-256, first 16 bytes"
_SALT_BYTES = 32
_HASH_BYTES = 16
_LONGEST_HEAD = 4096
_AT_ONCE = 4096


def adapter_salt(storage: Storage, adapter_uri: str) -> bytes:
    """The adapter's salt; the first caller makes it."""
    storage.create(_salt_uri(adapter_uri), secrets.token_bytes(_SALT_BYTES))
    return storage.read_bytes(_salt_uri(adapter_uri))


def known_salt(storage: Storage, adapter_uri: str) -> bytes | None:
    """The adapter's salt; None when it has no prepared data yet."""
    uri = _salt_uri(adapter_uri)
    return storage.read_bytes(uri) if storage.exists(uri) else None


def row_hash(salt: bytes, content_key: str) -> bytes:
    """Hash of a row by `Row.content_key`."""
    return hmac.digest(salt, content_key.encode(), "sha256")[:_HASH_BYTES]


def write_row_hashes(store: RowStore, salt: bytes, path: Path) -> None:
    """Write the hashes of the store's rows; the same rows and salt give the same bytes."""
    database = store.database
    database.create_function("row_hash", 1, lambda key: row_hash(salt, key), deterministic=True)
    database.execute("DROP TABLE IF EXISTS hashes")
    database.execute("CREATE TABLE hashes(split TEXT, hash BLOB)")
    database.execute("INSERT INTO hashes SELECT DISTINCT split, row_hash(key) FROM rows WHERE split IS NOT NULL")
    counts = dict(database.execute("SELECT split, count(*) FROM hashes GROUP BY split"))
    head = {"format": _FORMAT, "algorithm": _ALGORITHM, "splits": {s: counts[s] for s in HASHED_SPLITS if s in counts}}
    with path.open("wb") as target:
        target.write(json.dumps(head).encode() + b"\n")
        for split in head["splits"]:  # type: ignore[attr-defined]
            for (hashed,) in database.execute("SELECT hash FROM hashes WHERE split = ? ORDER BY hash", (split,)):
                target.write(hashed)


def find_hashes(stream: BinaryIO, wanted: Collection[bytes], name: str) -> Iterator[tuple[str, bytes]]:
    """Which of the wanted hashes a file has, with their splits. Memory: the wanted ones.

    Raises:
        StageError: INVALID_DATA when it is not a file of this format, or breaks off.
    """
    try:
        head = json.loads(stream.readline(_LONGEST_HEAD))
        if head["format"] != _FORMAT:
            raise ValueError(f"format {head['format']}")
        splits = {str(split): int(count) for split, count in head["splits"].items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise StageError(
            ExitCode.INVALID_DATA, f"{name} is not a file of row hashes", "copy the version again", str(error)[:200]
        ) from error
    for split, count in splits.items():
        left = count
        while left:
            data = stream.read(min(left, _AT_ONCE) * _HASH_BYTES)
            if not data or len(data) % _HASH_BYTES:
                raise StageError(ExitCode.INVALID_DATA, f"{name} breaks off in {split}", "copy the version again")
            left -= len(data) // _HASH_BYTES
            for start in range(0, len(data), _HASH_BYTES):
                hashed = data[start : start + _HASH_BYTES]
                if hashed in wanted:
                    yield split, hashed


def _salt_uri(adapter_uri: str) -> str:
    return join(adapter_uri, "lineage/salt")
