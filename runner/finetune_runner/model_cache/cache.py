"""The cache itself: find a model, fill it once, find what is corrupt and fetch only that again."""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Protocol
from uuid import uuid4

from finetune_api.exit_codes import ExitCode
from finetune_runner.errors import FULL_DISK_ERRNOS, StageError, disk_full
from finetune_runner.model_cache.files import DigestMemory, Hashes, ModelFile, digest_of, fits, hash_files
from finetune_runner.model_cache.lock import FolderLock, Held, Holder, Timing
from finetune_runner.model_cache.manifest import MANIFEST, Manifest, read_manifest
from finetune_runner.model_cache.meter import REPORT_EVERY_S, Hooks, Meter, short, size_text, tell

log = logging.getLogger(__name__)

_SPARE_BYTES = 64 << 20


@dataclass(frozen=True)
class CachedModel:
    """A model that is whole and verified."""

    path: Path
    digest: str
    """See `model_cache.files.digest_of`."""


class Fetch(Protocol):
    """Brings files into a folder. Calls `got` with the bytes that arrived; raises StageError."""

    def __call__(self, files: Sequence[ModelFile], folder: Path, got: Callable[[int], None]) -> None:
        """Bring the files."""


class ModelCache:
    """A folder with models, shared by pods or private to one.

    Layout: `hub/models--owner--name/snapshots/<commit>/` (that of the hub's client; `--at-<hash>` after the name
    where a Secret names the hub) or `s3/<hash>/`, each whole and
    with a manifest; `filling/` with what is being fetched, `locks/` with who does it. A model appears by a rename.

    Args:
        folder: the cache.
        memory: digests that this pod has computed.
        hooks: see Hooks.
        read_only: whether this pod only reads; then nothing is written, not even a lock.
        room_bytes: most that may be put there, beside what its disk has free; 0 = no such limit.
        timing: of the lock.
    """

    def __init__(
        self,
        folder: Path,
        memory: DigestMemory,
        hooks: Hooks,
        *,
        read_only: bool = False,
        room_bytes: int = 0,
        timing: Timing | None = None,
    ) -> None:
        self._folder = folder
        self._memory = memory
        self._hooks = hooks
        self._read_only = read_only
        self._room_bytes = room_bytes
        self._timing = timing or Timing()

    def path_of(self, key: str) -> Path:
        """Where the model of a key is, once it is there."""
        return self._folder / key

    def find_digest(self, digest: str) -> CachedModel | None:
        """The model with this digest, its files verified; None when there is none or they are not what they were."""
        for path, manifest in self._models():
            if manifest.digest != digest:
                continue
            names = sorted(manifest.files)
            try:
                found = self._memory.digest(path, names, self._verifying(manifest.source, manifest.size))
            except OSError:
                found = ""
            if found == digest:
                return CachedModel(path, digest)
            log.warning("%s is corrupt: its files are not those of its manifest", path)
        return None

    def known_files(self, key: str) -> list[ModelFile] | None:
        """Files of a model that is there, as its manifest has them; None when it is not there."""
        manifest = read_manifest(self.path_of(key))
        if manifest is None:
            return None
        return [ModelFile(name, facts["bytes"], facts["sha256"]) for name, facts in manifest.files.items()]

    def ensure(self, key: str, source: str, wanted: Sequence[ModelFile], fetch: Fetch) -> CachedModel:
        """The model, whole and verified; filled by this process or by whoever was first.

        Args:
            key: path below the cache that names source and revision.
            source: for messages.
            wanted: its files, as the source lists them.
            fetch: brings those that are missing.

        Raises:
            StageError: DISK_FULL, before anything is fetched where that can be known; MODEL_UNUSABLE when what arrives
                is not what the source lists; ACCESS_DENIED when the cache cannot be written; and what `fetch` raises.
        """
        while True:
            ready = self._verified(key, wanted)
            if ready is not None:
                return ready
            if self._read_only:
                raise not_whole(source)
            try:
                made = self._fill_or_wait(key, source, wanted, fetch)
            except OSError as error:
                raise self._unwritable(error) from error
            if made is not None:
                return made

    def _fill_or_wait(self, key: str, source: str, wanted: Sequence[ModelFile], fetch: Fetch) -> CachedModel | None:
        """Fill the cache; None when somebody else did, or took over."""
        before = self._stamp(key)
        told: tuple[int, datetime] | None = None

        def waiting(holder: Holder) -> None:
            nonlocal told
            now = self._hooks.clock()
            if told is None or holder.done != told[0] or (now - told[1]).total_seconds() >= REPORT_EVERY_S:
                told = (holder.done, now)
                tell(self._hooks.report, f"waiting for {holder.host}: {short(source)}", holder.done, holder.total)

        lock = FolderLock(self._folder / "locks" / _flat(key), self._timing)
        held = lock.acquire(
            needless=lambda: self._stamp(key) not in (None, before), waiting=waiting, wait=self._hooks.wait
        )
        if held is None:
            return None
        with held:
            if self._stamp(key) not in (None, before):
                return None
            try:
                return self._fill(held, key, source, wanted, fetch)
            except (OSError, StageError):
                if held.lost:
                    log.warning("another process took over the fetching of %s", source)
                    return None
                raise

    def _fill(self, held: Held, key: str, source: str, wanted: Sequence[ModelFile], fetch: Fetch) -> CachedModel:
        ready, staging = self.path_of(key), self._folder / "filling" / f"{_flat(key)}.{held.number}"
        self._take_over(staging, ready, held.number)
        hashes = self._keep_good(staging, source, wanted)
        missing = [file for file in wanted if hashes.get(file.name) is None]
        self._check_room(source, missing)
        total = sum(file.size for file in wanted)
        there = total - sum(file.size for file in missing)
        if missing:
            meter = Meter(self._hooks, f"fetching {short(source)}", there, total, held)
            meter.add(0)
            fetch(missing, staging, meter.add)
            hashes |= hash_files(staging, [file.name for file in missing], self._verifying(source, total - there))
        wrong = [file for file in missing if not fits(file, hashes[file.name])]
        for file in wrong:
            (staging / file.name).unlink(missing_ok=True)
        if wrong:
            raise StageError(
                ExitCode.MODEL_UNUSABLE,
                f"model.source {source}: {wrong[0].name} is not what the source lists (size or hash differs)",
                "the next attempt fetches it again; if it stays so, the source itself is damaged: publish it again",
                f"listed {wrong[0]}, received {hashes[wrong[0].name]}",
            )
        good = {name: found for name, found in hashes.items() if found is not None}
        digest = digest_of({name: found.sha256 for name, found in good.items()})
        self._commit(staging, ready, source, digest, good)
        self._memory.remember(ready, sorted(good), digest)
        return CachedModel(ready, digest)

    def _take_over(self, staging: Path, ready: Path, number: int) -> None:
        """Go on from what an earlier holder fetched, or from a model that turned out corrupt.

        The rename is the fence: whoever was taken for dead and wakes up finds its folder gone.
        """
        staging.parent.mkdir(parents=True, exist_ok=True)
        stem = staging.name.rpartition(".")[0]
        earlier = sorted(
            (int(item.name.rpartition(".")[2]), item)
            for item in staging.parent.glob(f"{stem}.*")
            if item.name.rpartition(".")[2].isdigit() and int(item.name.rpartition(".")[2]) < number
        )
        candidates = [item for _, item in reversed(earlier)]
        if ready.exists():
            candidates = [ready, *candidates]
        for first, item in enumerate(candidates):
            if first == 0:
                item.rename(staging)
            else:
                shutil.rmtree(item, ignore_errors=True)
        staging.mkdir(exist_ok=True)

    def _verifying(self, source: str, total: int) -> Callable[[int], None]:
        """Counts bytes that are hashed, and tells them: of a large model it takes minutes."""
        return Meter(self._hooks, f"verifying {short(source)}", 0, total).add

    def _keep_good(self, staging: Path, source: str, wanted: Sequence[ModelFile]) -> dict[str, Hashes | None]:
        """Hashes of the files that are already what they must be; all others are removed."""
        names = {file.name for file in wanted}
        # A model that turned out corrupt still says what its files were: the only word where the source tells no hash.
        manifest = read_manifest(staging)
        filled = {name: str(facts["sha256"]) for name, facts in manifest.files.items()} if manifest else {}
        for item in staging.iterdir():
            if item.is_dir() and not item.is_symlink():
                shutil.rmtree(item)
            elif item.name not in names or not item.is_file():
                item.unlink()
        there = [file.name for file in wanted if (staging / file.name).is_file()]
        size = sum((staging / name).stat().st_size for name in there)
        hashes = dict.fromkeys(names) | hash_files(staging, there, self._verifying(source, size))
        for file in wanted:
            if not fits(replace(file, sha256=file.sha256 or filled.get(file.name, "")), hashes[file.name]):
                hashes[file.name] = None
                (staging / file.name).unlink(missing_ok=True)
        return hashes

    def _commit(self, staging: Path, ready: Path, source: str, digest: str, hashes: dict[str, Hashes]) -> None:
        for item in staging.iterdir():
            if item.name not in hashes:
                shutil.rmtree(item) if item.is_dir() else item.unlink()
        for name in hashes:
            # Some clients make files private to their owner; other pods of the cache must read them.
            if (staging / name).stat().st_mode & 0o444 != 0o444:
                (staging / name).chmod(0o644)
            _sync(staging / name)
        files = {name: {"bytes": found.size, "sha256": found.sha256} for name, found in sorted(hashes.items())}
        _sync(Manifest(source, digest, uuid4().hex, files).write(staging))
        ready.parent.mkdir(parents=True, exist_ok=True)
        staging.rename(ready)
        _sync(ready.parent)

    def _verified(self, key: str, wanted: Sequence[ModelFile]) -> CachedModel | None:
        path = self.path_of(key)
        manifest = read_manifest(path)
        names = sorted(file.name for file in wanted)
        if manifest is None or sorted(manifest.files) != names:
            return None
        hashes = hash_files(path, names, self._verifying(manifest.source, manifest.size))
        filled = {name: facts["sha256"] for name, facts in manifest.files.items()}
        found = {name: each.sha256 for name, each in hashes.items() if each is not None}
        corrupt = [file.name for file in wanted if not fits(file, hashes[file.name])]
        corrupt += [name for name in names if found.get(name) != filled[name] and name not in corrupt]
        if corrupt:
            log.warning("%s: corrupt in the model cache: %s", path, ", ".join(corrupt))
            return None
        digest = digest_of(found)
        try:
            self._memory.remember(path, names, digest)
        except FileNotFoundError:  # somebody else found it corrupt meanwhile, and repairs it
            return None
        return CachedModel(path, digest)

    def _check_room(self, source: str, missing: Sequence[ModelFile]) -> None:
        """Refuse what the disk cannot hold before the first byte. Raises StageError (DISK_FULL)."""
        needed = sum(file.size for file in missing)
        free = shutil.disk_usage(self._folder).free - _SPARE_BYTES
        if self._room_bytes:
            free = min(free, self._room_bytes - _SPARE_BYTES)
        if needed <= free:
            return
        held = ", ".join(f"{manifest.source} ({size_text(manifest.size)})" for _, manifest in self._models())
        raise StageError(
            ExitCode.DISK_FULL,
            f"model.source {source} needs {size_text(needed)} more, {self._folder} has room for "
            f"{size_text(max(free, 0))}",
            f"enlarge the claim, or remove what is no longer used: {held}"[:512]
            if held
            else "raise scratchSize of the GPUPool, or give it a modelCache with a claim that is large enough",
        )

    def _unwritable(self, error: OSError) -> StageError:
        if error.errno in FULL_DISK_ERRNOS:
            return disk_full(error.filename or self._folder, str(error))
        return StageError(
            ExitCode.ACCESS_DENIED,
            f"the model cache {self._folder} cannot be written: {error.strerror or error}",
            "give group 65532 the right to write at the root of the claim, for example with chgrp and chmod g+rwxs",
            str(error),
        )

    def _models(self) -> Iterator[tuple[Path, Manifest]]:
        for pattern in (f"hub/*/snapshots/*/{MANIFEST}", f"s3/*/{MANIFEST}"):
            for path in sorted(self._folder.glob(pattern)):
                manifest = read_manifest(path.parent)
                if manifest is not None:
                    yield path.parent, manifest

    def _stamp(self, key: str) -> str | None:
        """Which filling is there; None when there is none."""
        manifest = read_manifest(self.path_of(key))
        return None if manifest is None else manifest.filling


def not_whole(source: str) -> StageError:
    """The error of a stage that only reads the cache, and does not find its model there."""
    return StageError(
        ExitCode.MODEL_UNUSABLE,
        f"model.source {source} is not whole in the model cache, and this stage only reads there",
        "something removed or changed it since stage prepare; start a new run: its prepare fills it again",
    )


def _flat(key: str) -> str:
    return key.replace("/", "--")


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
