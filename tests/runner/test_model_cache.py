"""The model cache between processes that race, die and fall asleep, and its lock by itself."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from finetune_api.exit_codes import ExitCode
from finetune_runner.errors import StageError, interrupted
from finetune_runner.model_cache import lock as lock_module
from finetune_runner.model_cache.cache import CachedModel, ModelCache
from finetune_runner.model_cache.files import DigestMemory, ModelFile, digest_of, hash_file, used_names
from finetune_runner.model_cache.lock import FolderLock, Held, Holder, Timing
from finetune_runner.model_cache.manifest import MANIFEST
from finetune_runner.model_cache.meter import Hooks, size_text
from tests.runner.hub_server import HubServer, sha256

ROOT = Path(__file__).parents[2]
WEIGHTS = random.Random(0).randbytes(300_000)
FILES = {"config.json": b"{}", "model.safetensors": WEIGHTS, "tokenizer.json": b"t" * 5000}
DIGEST = digest_of({name: sha256(data) for name, data in FILES.items()})
QUICK = Timing(beat_s=0.02, stale_s=0.3, poll_s=0.01)


class GaveUpError(Exception):
    """Raised by a waiter that has waited long enough to be sure."""


@pytest.fixture
def server() -> Iterator[HubServer]:
    with HubServer() as running:
        running.model("acme/base", FILES)
        yield running


@pytest.fixture
def filler(server: HubServer, tmp_path: Path) -> Iterator[Callable[[], subprocess.Popen[str]]]:
    """Starts processes that fill `tmp_path/cache`; none survives the test."""
    started: list[subprocess.Popen[str]] = []

    def start() -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "tests.runner.fill_model_cache", server.endpoint, "acme/base"]
        process = subprocess.Popen(
            [*command, str(tmp_path / "cache"), str(tmp_path / f"scratch-{len(started)}")],
            stdout=subprocess.PIPE,
            cwd=ROOT,
            text=True,
        )
        started.append(process)
        return process

    yield start
    for process in started:
        if process.poll() is None:
            process.kill()
        process.wait()
        assert process.stdout is not None
        process.stdout.close()


def says(process: subprocess.Popen[str], word: str) -> None:
    """Wait until a process prints a word; pytest's time-out is the deadline."""
    assert process.stdout is not None
    for line in process.stdout:
        if line.strip() == word:
            return
    raise AssertionError(f"the process ended without {word}")


def digest(process: subprocess.Popen[str]) -> str:
    out, _ = process.communicate()
    assert process.returncode == 0
    return out.split()[-1]


def hold(server: HubServer) -> threading.Event:
    server.hold[sha256(WEIGHTS)] = event = threading.Event()
    return event


def test_of_two_processes_one_fetches_and_the_other_waits_for_it(
    server: HubServer, filler: Callable[[], subprocess.Popen[str]]
) -> None:
    half_way = hold(server)
    first = filler()
    assert server.held.wait(120)
    second = filler()
    says(second, "waiting")
    half_way.set()
    assert [digest(first), digest(second)] == [DIGEST, DIGEST]
    assert len(server.gets(sha256(WEIGHTS))) == 1


def test_three_that_start_at_once_fetch_once(server: HubServer, filler: Callable[[], subprocess.Popen[str]]) -> None:
    assert {digest(process) for process in [filler(), filler(), filler()]} == {DIGEST}
    assert len(server.gets(sha256(WEIGHTS))) == 1


def test_a_filler_that_is_killed_is_succeeded_by_who_waits(
    server: HubServer, filler: Callable[[], subprocess.Popen[str]], tmp_path: Path
) -> None:
    half_way = hold(server)
    first = filler()
    assert server.held.wait(120)
    second = filler()
    says(second, "waiting")
    first.kill()
    first.wait()
    half_way.set()
    assert digest(second) == DIGEST
    assert list((tmp_path / "cache" / "filling").iterdir()) == []


def test_a_filler_that_only_slept_changes_nothing_when_it_wakes_up(
    server: HubServer, filler: Callable[[], subprocess.Popen[str]], tmp_path: Path
) -> None:
    half_way = hold(server)
    first = filler()
    assert server.held.wait(120)
    first.send_signal(signal.SIGSTOP)
    half_way.set()
    assert digest(filler()) == DIGEST
    (ready,) = (tmp_path / "cache" / "hub" / "models--acme--base" / "snapshots").iterdir()
    before = {item.name: (item.stat().st_ino, item.read_bytes()) for item in ready.iterdir()}
    first.send_signal(signal.SIGCONT)
    assert digest(first) == DIGEST
    assert {item.name: (item.stat().st_ino, item.read_bytes()) for item in ready.iterdir()} == before


# The cache in this process.


class Source:
    """Files of a model, and how often each was fetched."""

    def __init__(self, files: dict[str, bytes]) -> None:
        self.files = files
        self.fetched: list[str] = []

    @property
    def wanted(self) -> list[ModelFile]:
        return [ModelFile(name, len(data), sha256=sha256(data)) for name, data in self.files.items()]

    def __call__(self, files: Sequence[ModelFile], folder: Path, got: Callable[[int], None]) -> None:
        for file in files:
            self.fetched.append(file.name)
            (folder / file.name).write_bytes(self.files[file.name])
            got(file.size)


def cache_in(folder: Path, said: list[tuple[str, float, float | None]] | None = None, **options: Any) -> ModelCache:
    start = datetime(2026, 1, 1, tzinfo=UTC)
    ticks = iter(range(1_000_000))

    def report(phase: str, *, percent: float, eta_seconds: float | None) -> None:
        if said is not None:
            said.append((phase, percent, eta_seconds))

    def clock() -> datetime:
        return start + timedelta(seconds=10 * next(ticks))

    hooks = Hooks(clock, report, options.pop("check_stop", lambda: None), lambda _seconds: None)
    return ModelCache(folder / "cache", DigestMemory(folder / "memory"), hooks, timing=QUICK, **options)


def test_a_model_that_is_there_is_not_fetched_again(tmp_path: Path) -> None:
    source = Source(FILES)
    made = cache_in(tmp_path).ensure("s3/k", "s3://b/m", source.wanted, source)
    assert made == CachedModel(tmp_path / "cache" / "s3" / "k", DIGEST)
    assert cache_in(tmp_path).ensure("s3/k", "s3://b/m", source.wanted, source) == made
    assert cache_in(tmp_path).find_digest(DIGEST) == made
    assert source.fetched == list(FILES)
    assert all(item.stat().st_mode & 0o444 == 0o444 for item in made.path.iterdir()), "other pods read it"


@pytest.mark.parametrize("damage", ["changed", "cut", "removed", "unreadable"])
def test_a_corrupt_file_is_found_and_only_it_is_fetched_again(tmp_path: Path, damage: str) -> None:
    source = Source(FILES)
    made = cache_in(tmp_path).ensure("s3/k", "s3://b/m", source.wanted, source)
    weights = made.path / "model.safetensors"
    if damage in ("removed", "unreadable"):
        weights.unlink()
    if damage == "unreadable":
        weights.mkdir()
    elif damage != "removed":
        weights.write_bytes(WEIGHTS[:-1] + (b"x" if damage == "changed" else b""))
    source.fetched.clear()
    assert cache_in(tmp_path).find_digest(DIGEST) is None
    assert cache_in(tmp_path).ensure("s3/k", "s3://b/m", source.wanted, source) == made
    assert source.fetched == ["model.safetensors"]
    assert weights.read_bytes() == WEIGHTS


def test_a_change_is_seen_without_a_hash_from_the_source(tmp_path: Path) -> None:
    """S3 tells no sha256: what the filler computed counts."""
    source = Source(FILES)
    wanted = [ModelFile(name, len(data)) for name, data in FILES.items()]
    made = cache_in(tmp_path).ensure("s3/k", "s3://b/m", wanted, source)
    (made.path / "config.json").write_bytes(b"[]")
    cache_in(tmp_path).ensure("s3/k", "s3://b/m", wanted, source)
    assert source.fetched == [*FILES, "config.json"]


def test_who_only_reads_writes_nothing_and_refuses_what_is_not_there(tmp_path: Path) -> None:
    source = Source(FILES)
    made = cache_in(tmp_path).ensure("s3/k", "s3://b/m", source.wanted, source)
    before = sorted(str(path) for path in (tmp_path / "cache").rglob("*"))
    reader = cache_in(tmp_path, read_only=True)
    assert reader.find_digest(DIGEST) == made
    with pytest.raises(StageError, match="is not whole in the model cache") as caught:
        reader.ensure("s3/other", "s3://b/other", source.wanted, source)
    assert caught.value.exit_code == ExitCode.MODEL_UNUSABLE
    assert sorted(str(path) for path in (tmp_path / "cache").rglob("*")) == before


@pytest.mark.parametrize(("room_mib", "fits"), [(64, False), (65, True)])
def test_room_is_looked_at_before_anything_is_fetched(tmp_path: Path, room_mib: int, fits: bool) -> None:
    source = Source(FILES)
    cache = cache_in(tmp_path, room_bytes=room_mib << 20)
    if fits:
        assert cache.ensure("s3/k", "s3://b/m", source.wanted, source).digest == DIGEST
        return
    with pytest.raises(StageError, match=r"s3://b/m needs 305\.0 kB more, .* has room for 0 bytes") as caught:
        cache.ensure("s3/k", "s3://b/m", source.wanted, source)
    assert caught.value.exit_code == ExitCode.DISK_FULL
    assert source.fetched == []


def test_a_full_cache_names_what_could_go(tmp_path: Path) -> None:
    source = Source(FILES)
    cache_in(tmp_path).ensure("s3/k", "s3://b/old", source.wanted, source)
    with pytest.raises(StageError) as caught:
        cache_in(tmp_path, room_bytes=1).ensure("s3/new", "s3://b/new", source.wanted, source)
    assert "remove what is no longer used: s3://b/old (305.0 kB)" in caught.value.hint


def test_a_cache_that_cannot_be_written_names_the_right_it_needs(tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file where the claim should be")
    source = Source(FILES)
    with pytest.raises(StageError, match="cannot be written") as caught:
        cache_in(tmp_path).ensure("s3/k", "s3://b/m", source.wanted, source)
    assert caught.value.exit_code == ExitCode.ACCESS_DENIED
    assert "65532" in caught.value.hint


def test_a_stop_ends_the_download_and_what_is_whole_is_kept(tmp_path: Path) -> None:
    source = Source(FILES)
    stopping = False

    def check_stop() -> None:
        if stopping:
            raise interrupted()

    def until_the_weights(files: Sequence[ModelFile], folder: Path, got: Callable[[int], None]) -> None:
        nonlocal stopping
        for file in files:
            source([file], folder, got)
            stopping = file.name == "model.safetensors"

    with pytest.raises(StageError, match="asked to stop"):
        cache_in(tmp_path, check_stop=check_stop).ensure("s3/k", "s3://b/m", source.wanted, until_the_weights)
    assert cache_in(tmp_path).ensure("s3/k", "s3://b/m", source.wanted, source).digest == DIGEST
    assert source.fetched == list(FILES)


def test_amounts_percent_and_time_left_are_told(tmp_path: Path) -> None:
    said: list[tuple[str, float, float | None]] = []
    source = Source({"config.json": b"{}", "a.safetensors": b"a" * 1_000_000, "b.safetensors": b"b" * 3_000_000})
    cache_in(tmp_path, said).ensure("s3/k", "s3://b/m", source.wanted, source)
    fetching = [each for each in said if each[0].startswith("fetching")]
    assert fetching[0] == ("fetching s3://b/m 0.0 of 4.0 MB", 0.0, None)
    phase, percent, eta_s = fetching[-2]
    assert (phase, percent) == ("fetching s3://b/m 1.0 of 4.0 MB", 25.0)
    assert eta_s is not None
    # The clock of this test moves 10 s per look: a third of the rest was fetched by then.
    assert eta_s == pytest.approx(3 * 10 * len(fetching[:-1]), rel=0.5)
    assert fetching[-1][:2] == ("fetching s3://b/m 4.0 of 4.0 MB", 100.0)


def test_the_check_of_a_large_model_is_told_too(tmp_path: Path) -> None:
    source = Source({"config.json": b"{}", "a.safetensors": b"a" * 9_000_000})
    cache_in(tmp_path).ensure("s3/k", "s3://b/m", source.wanted, source)
    said: list[tuple[str, float, float | None]] = []
    cache_in(tmp_path, said).ensure("s3/k", "s3://b/m", source.wanted, source)
    percents = [percent for phase, percent, _ in said if phase.startswith("verifying s3://b/m ")]
    assert len(percents) >= 3
    assert percents == sorted(percents)
    assert said[-1][0] == "verifying s3://b/m 9.0 of 9.0 MB"


def test_a_manifest_that_is_no_manifest_is_no_model(tmp_path: Path) -> None:
    source = Source(FILES)
    made = cache_in(tmp_path).ensure("s3/k", "s3://b/m", source.wanted, source)
    for content in ("", "[]", "{}", '{"source": 1}', json.dumps({"files": {"a": 1}})):
        (made.path / MANIFEST).write_text(content)
        assert cache_in(tmp_path).find_digest(DIGEST) is None
        assert cache_in(tmp_path).known_files("s3/k") is None
    assert cache_in(tmp_path).ensure("s3/k", "s3://b/m", source.wanted, source) == made
    assert source.fetched == list(FILES)


# The lock by itself.


def acquire(folder: Path, looks: int = 10_000, needless: Callable[[], bool] = lambda: False) -> Held | None:
    """Take the lock; GaveUpError after some looks."""
    left = iter(range(looks))

    def wait(seconds: float) -> None:
        if next(left, None) is None:
            raise GaveUpError
        threading.Event().wait(seconds)

    return FolderLock(folder, QUICK).acquire(needless=needless, waiting=lambda _holder: None, wait=wait)


def elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make this process one of another machine: nobody sees whether it lives."""
    monkeypatch.setattr(lock_module, "_this_process", lambda: "other-boot/pid:[1] 1 1")


def test_a_released_lock_is_free_at_once(tmp_path: Path) -> None:
    for number in (1, 2, 3):
        held = acquire(tmp_path, looks=0)
        assert held is not None
        with held:
            assert held.number == number
    assert len(list(tmp_path.iterdir())) == 1, "old numbers are swept"


def test_a_holder_that_beats_is_never_broken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    elsewhere(monkeypatch)
    held = acquire(tmp_path)
    assert held is not None
    with held:
        # 100 looks are more than three times as long as a silent holder would have.
        with pytest.raises(GaveUpError):
            acquire(tmp_path, looks=100)
        assert not held.lost


def test_a_silent_holder_of_another_machine_is_broken_and_notices(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    elsewhere(monkeypatch)
    silent = acquire(tmp_path)
    assert silent is not None
    silent._write()  # it said who it is, and died before the first beat
    assert not silent.lost
    successor = acquire(tmp_path)
    assert successor is not None
    assert successor.number == 2
    assert silent.lost
    assert not successor.lost


def test_a_holder_that_died_here_is_broken_at_once(tmp_path: Path) -> None:
    script = (
        "import os, sys; from pathlib import Path; from finetune_runner.model_cache.lock import *\n"
        "lock = FolderLock(Path(sys.argv[1]), Timing())\n"
        "lock.acquire(needless=bool, waiting=print, wait=print).__enter__(); os._exit(1)"
    )
    subprocess.run([sys.executable, "-c", script, str(tmp_path)], check=False)
    held = acquire(tmp_path, looks=0)
    assert held is not None
    assert held.number == 2


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"host": 1}', json.dumps({"host": "h"}).encode()])
def test_a_record_that_cannot_be_read_is_waited_for_and_then_broken(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "00000001").write_bytes(content)
    with pytest.raises(GaveUpError):
        acquire(tmp_path, looks=3)
    held = acquire(tmp_path)
    assert held is not None
    assert held.number == 2


def test_what_has_been_done_meanwhile_needs_no_lock(tmp_path: Path) -> None:
    held = acquire(tmp_path)
    assert held is not None
    with held:
        assert acquire(tmp_path, needless=lambda: True) is None


def test_many_threads_never_hold_it_together(tmp_path: Path) -> None:
    inside, most = 0, 0
    guard = threading.Lock()

    def work() -> None:
        nonlocal inside, most
        for _ in range(5):
            held = acquire(tmp_path)
            assert held is not None
            with held:
                with guard:
                    inside += 1
                    most = max(most, inside)
                with guard:
                    inside -= 1

    threads = [threading.Thread(target=work) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == 1
    assert int(next(tmp_path.iterdir()).name) == 30


def test_the_holder_tells_how_far_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    elsewhere(monkeypatch)
    held = acquire(tmp_path)
    assert held is not None
    heard: list[Holder] = []

    def wait(seconds: float) -> None:
        if heard and heard[-1].done:
            raise GaveUpError
        threading.Event().wait(seconds)

    with held:
        held.tell(3, 16)
        with pytest.raises(GaveUpError):
            FolderLock(tmp_path, QUICK).acquire(needless=lambda: False, waiting=heard.append, wait=wait)
    assert (heard[-1].done, heard[-1].total) == (3, 16)


# Files.


def test_hashes_are_those_of_sha256_and_of_git(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(b"hello\n")
    found = hash_file(tmp_path / "f")
    assert found.size == 6
    assert found.sha256 == "5891b5b522d5df086d0ff0b110fbd9d21bb4fc7163af34d08286a2e846f6be03"
    assert found.git_oid == "ce013625030ba8dba906f756967f9e9ca394464a"  # printf 'hello\n' | git hash-object --stdin


def test_a_digest_is_remembered_until_a_file_changes(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "a.safetensors").write_bytes(b"one")
    reads = 0

    def on_block(count: int) -> None:
        nonlocal reads
        reads += count

    memory = DigestMemory(tmp_path / "memory")
    first = memory.digest(folder, ["a.safetensors"], on_block)
    assert DigestMemory(tmp_path / "memory").digest(folder, ["a.safetensors"], on_block) == first
    assert reads == 3
    status = (folder / "a.safetensors").stat()
    (folder / "a.safetensors").write_bytes(b"two")
    os.utime(folder / "a.safetensors", ns=(status.st_atime_ns, status.st_mtime_ns))
    assert memory.digest(folder, ["a.safetensors"], on_block) != first
    assert reads == 6


@pytest.mark.parametrize(
    ("names", "used"),
    [
        (["model.safetensors", "consolidated.safetensors"], ["model.safetensors"]),
        (["consolidated.safetensors", "params.json"], ["consolidated.safetensors", "params.json"]),
        (["a.safetensors", "x.py", "x.bin", "sub/b.safetensors", "README.md"], ["a.safetensors"]),
        (
            ["tokenizer.model", "chat_template.jinja", "merges.txt"],
            ["chat_template.jinja", "merges.txt", "tokenizer.model"],
        ),
        ([], []),
    ],
)
def test_which_files_are_a_model(names: list[str], used: list[str]) -> None:
    assert used_names(names) == used


@pytest.mark.parametrize(
    ("size", "text"),
    [(0, "0 bytes"), (999, "999 bytes"), (1000, "1.0 kB"), (16_060_000_000, "16.1 GB"), (2e12, "2.0 TB")],
)
def test_sizes_for_people(size: float, text: str) -> None:
    assert size_text(size) == text
