"""The storage contract, on disk and on a real S3 server, and what each failure is called."""

from __future__ import annotations

import errno
import os
import re
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from finetune_api.common import Storage as StorageSpec
from finetune_api.exit_codes import ExitCode
from finetune_runner.errors import StageError
from finetune_runner.fence import Fence
from finetune_runner.secret_files import Secrets
from finetune_runner.storage import Storage, join, open_storage, probe_conditional_writes, s3
from finetune_runner.storage.s3 import S3Storage
from tests.cluster.harness.process import free_ports
from tests.cluster.harness.s3 import Identity, S3Server
from tests.runner.stores import s3_storage


@dataclass(frozen=True)
class Store:
    storage: Storage
    root: str


def open_spec(spec: dict[str, Any], folder: Path) -> Storage:
    return open_storage(StorageSpec.from_wire(spec), Secrets(folder / "secrets"))


@pytest.fixture(params=["file", "s3"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    if request.param == "file":
        spec: dict[str, Any] = {"uri": f"file://{tmp_path}/store"}
    else:
        spec = s3_storage(request.getfixturevalue("s3"), tmp_path, "/team/models")
    return Store(open_spec(spec, tmp_path), spec["uri"])


def test_what_is_written_is_read(store: Store, tmp_path: Path) -> None:
    uri = join(store.root, "a/b.bin")
    store.storage.write_bytes(uri, b"old")
    store.storage.write_bytes(uri, b"new")
    assert store.storage.read_bytes(uri) == b"new"
    with store.storage.open_read(uri) as stream:
        stream.seek(1)
        assert stream.read() == b"ew"
    store.storage.download_file(uri, tmp_path / "deep" / "copy.bin")
    assert (tmp_path / "deep" / "copy.bin").read_bytes() == b"new"


def test_files_larger_than_a_part_arrive_whole(store: Store, tmp_path: Path) -> None:
    large = tmp_path / "large.bin"
    large.write_bytes(os.urandom((16 << 20) + 12345))
    store.storage.upload_file(large, join(store.root, "large.bin"))
    store.storage.download_file(join(store.root, "large.bin"), tmp_path / "again.bin")
    assert (tmp_path / "again.bin").read_bytes() == large.read_bytes()


def test_an_object_that_is_replaced_while_it_is_read_is_said(s3: S3Server, tmp_path: Path) -> None:
    spec = s3_storage(s3, tmp_path)
    storage = open_spec(spec, tmp_path)
    uri, path = join(spec["uri"], "large"), tmp_path / "large"
    storage.write_bytes(uri, bytes(80 << 20))
    replaced: list[bool] = []

    def replace(_count: int) -> None:
        if not replaced:
            replaced.append(True)
            storage.write_bytes(uri, b"1" * (80 << 20))

    with pytest.raises(StageError, match="large was replaced while it was read") as caught:
        storage.download_file(uri, path, replace)
    assert caught.value.exit_code == ExitCode.STORAGE_UNAVAILABLE, "it is tried again"
    assert caught.value.hint
    assert not path.exists()


def test_listing_is_by_prefix_sorted_and_complete(store: Store) -> None:
    for name in ("x/epoch-2", "x/epoch-1", "x/deep/epoch-3", "xy", "z"):
        store.storage.write_bytes(join(store.root, name), name.encode())
    assert [o.uri.removeprefix(store.root) for o in store.storage.list(join(store.root, "x/epoch-"))] == [
        "/x/epoch-1",
        "/x/epoch-2",
    ]
    assert [(o.uri.removeprefix(store.root), o.size) for o in store.storage.list(join(store.root, "x/"))] == [
        ("/x/deep/epoch-3", 14),
        ("/x/epoch-1", 9),
        ("/x/epoch-2", 9),
    ]
    assert store.storage.list(join(store.root, "nothing/")) == []


def test_exists_and_delete(store: Store) -> None:
    uri = join(store.root, "d/one")
    assert not store.storage.exists(uri)
    store.storage.write_bytes(uri, b"1")
    assert store.storage.exists(uri)
    assert not store.storage.exists(join(store.root, "d"))
    store.storage.delete(uri)
    store.storage.delete(uri)
    assert not store.storage.exists(uri)


@pytest.mark.parametrize("read", ["read_bytes", "open_read"])
def test_a_missing_object_is_source_not_found(store: Store, read: str) -> None:
    with pytest.raises(StageError, match="nowhere") as caught:
        getattr(store.storage, read)(join(store.root, "nowhere"))
    assert caught.value.exit_code == ExitCode.SOURCE_NOT_FOUND


def test_of_sixteen_creators_one_wins(store: Store) -> None:
    uri = join(store.root, "claim.json")
    with ThreadPoolExecutor(16) as pool:
        won = list(pool.map(lambda number: store.storage.create(uri, str(number).encode()), range(16)))
    assert sum(won) == 1
    assert store.storage.read_bytes(uri) == str(won.index(True)).encode()


def test_sixteen_attempts_claim_sixteen_epochs_and_only_the_newest_may_commit(store: Store) -> None:
    fences = [Fence(store.storage, join(store.root, "runs/u/1"), "train") for _ in range(16)]
    with ThreadPoolExecutor(16) as pool:
        epochs = list(pool.map(lambda fence: fence.claim(), fences))
    assert sorted(epochs) == list(range(1, 17))
    for fence in fences:
        if fence.epoch == 16:
            fence.check()
        else:
            with pytest.raises(StageError) as caught:
                fence.check()
            assert caught.value.exit_code == ExitCode.FENCED


def test_the_probe_accepts_a_store_that_creates_once_and_leaves_nothing(store: Store) -> None:
    probe_conditional_writes(store.storage, store.root)
    assert store.storage.list(store.root + "/") == []


def test_the_probe_refuses_a_store_that_ignores_conditions(store: Store) -> None:
    class Overwriting(type(store.storage)):  # type: ignore[misc]
        def create(self, uri: str, data: bytes) -> bool:
            self.write_bytes(uri, data)
            return True

    store.storage.__class__ = Overwriting
    with pytest.raises(StageError, match="ignores conditional writes") as caught:
        probe_conditional_writes(store.storage, store.root)
    assert caught.value.exit_code == ExitCode.INVALID_SPEC


def test_a_creation_whose_answer_was_lost_is_still_ours(s3: S3Server, tmp_path: Path) -> None:
    spec = s3_storage(s3, tmp_path)
    storage = open_spec(spec, tmp_path)
    assert isinstance(storage, S3Storage)
    client = storage._client

    class SendsTwice:
        def __getattr__(self, name: str) -> Any:
            return getattr(client, name)

        def put_object(self, **arguments: Any) -> Any:
            client.put_object(**arguments)
            return client.put_object(**arguments)

    storage._client = SendsTwice()
    assert storage.create(spec["uri"] + "/claim", b"mine")
    assert not open_spec(spec, tmp_path).create(spec["uri"] + "/claim", b"mine")


@pytest.mark.parametrize(
    ("who", "call", "code", "says"),
    [
        ("wrong secret", "read", ExitCode.ACCESS_DENIED, "SignatureDoesNotMatch"),
        ("unknown key", "read", ExitCode.ACCESS_DENIED, "InvalidAccessKeyId"),
        ("reader", "write", ExitCode.ACCESS_DENIED, "AccessDenied"),
        ("reader", "create", ExitCode.ACCESS_DENIED, "AccessDenied"),
        ("writer, no bucket", "read", ExitCode.SOURCE_NOT_FOUND, "no-such-bucket"),
        ("writer, no bucket", "list", ExitCode.SOURCE_NOT_FOUND, "no-such-bucket"),
    ],
)
def test_a_refusal_names_bucket_and_endpoint(
    s3: S3Server, tmp_path: Path, who: str, call: str, code: ExitCode, says: str
) -> None:
    identity = {
        "wrong secret": Identity(s3.access_key, "not-the-secret"),
        "unknown key": Identity("nobody", "nothing"),
        "reader": s3.read_only,
    }.get(who, s3.writer)
    spec = s3_storage(s3, tmp_path, identity=identity)
    if "no bucket" in who:
        spec["uri"] = "s3://no-such-bucket"
    storage, uri = open_spec(spec, tmp_path), spec["uri"] + "/some/key"
    calls = {
        "read": lambda: storage.read_bytes(uri),
        "write": lambda: storage.write_bytes(uri, b"x"),
        "create": lambda: storage.create(uri, b"x"),
        "list": lambda: storage.list(uri),
    }
    with pytest.raises(StageError) as caught:
        calls[call]()
    assert caught.value.exit_code == code
    assert says in caught.value.message + caught.value.evidence
    assert s3.endpoint in caught.value.message
    assert caught.value.hint


@pytest.mark.parametrize(
    ("call", "needed"),
    [
        ("read_bytes", {"GetObject", "ListBucket"}), ("open_read", {"GetObject", "ListBucket"}),
        ("exists", {"GetObject", "ListBucket"}), ("list", {"ListBucket"}), ("delete", {"DeleteObject"}),
        ("write_bytes", {"PutObject"}), ("create", {"PutObject", "GetObject"}),
    ],
)  # fmt: skip
def test_a_denial_names_what_the_request_needs_and_nothing_else(
    s3: S3Server, tmp_path: Path, call: str, needed: set[str]
) -> None:
    spec = s3_storage(s3, tmp_path, identity=Identity(s3.access_key, "not-the-secret"))
    content = [b"x"] if call in ("write_bytes", "create") else []
    with pytest.raises(StageError) as caught:
        getattr(open_spec(spec, tmp_path), call)(spec["uri"] + "/some/key", *content)
    assert caught.value.exit_code == ExitCode.ACCESS_DENIED
    assert set(re.findall(r"s3:(\w+)", caught.value.hint)) == needed
    assert spec["uri"] + "/some/key" in caught.value.hint


@pytest.fixture
def silent_port() -> Iterator[int]:
    """A server that accepts connections and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


@pytest.mark.parametrize("kind", ["refuses", "silent"])
def test_an_endpoint_that_does_not_answer_is_unavailable(
    tmp_path: Path, silent_port: int, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    assert s3._ATTEMPTS * (s3._CONNECT_TIMEOUT_S + s3._READ_TIMEOUT_S) <= 60  # seconds: within a minute
    monkeypatch.setattr(s3, "_READ_TIMEOUT_S", 0.2)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    port = silent_port if kind == "silent" else free_ports(1)[0]
    storage = open_spec({"uri": "s3://bucket", "endpoint": f"http://127.0.0.1:{port}"}, tmp_path)
    with pytest.raises(StageError, match=f"bucket bucket at http://127.0.0.1:{port} does not answer") as caught:
        storage.read_bytes("s3://bucket/key")
    assert caught.value.exit_code == ExitCode.STORAGE_UNAVAILABLE


def test_half_a_secret_is_refused(tmp_path: Path) -> None:
    (tmp_path / "secrets" / "store").mkdir(parents=True)
    (tmp_path / "secrets" / "store" / "AWS_ACCESS_KEY_ID").write_text("key")
    with pytest.raises(StageError, match="Secret store has only one of AWS_ACCESS_KEY_ID") as caught:
        open_spec({"uri": "s3://bucket", "secretRef": {"name": "store"}}, tmp_path)
    assert caught.value.exit_code == ExitCode.ACCESS_DENIED


@pytest.mark.parametrize("action", ["write", "create", "upload"])
def test_a_full_disk_is_named_and_leaves_the_old_content(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, action: str
) -> None:
    storage = open_storage(f"file://{tmp_path}/store", Secrets(tmp_path))
    old, new = f"file://{tmp_path}/store/old", f"file://{tmp_path}/store/new"
    storage.write_bytes(old, b"old")
    (tmp_path / "large").write_bytes(b"large")

    def full(_descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    calls = {
        "write": lambda: storage.write_bytes(old, b"x" * 1000),
        "create": lambda: storage.create(new, b"x"),
        "upload": lambda: storage.upload_file(tmp_path / "large", new),
    }
    with pytest.raises(StageError, match="no space left") as caught:
        calls[action]()
    assert caught.value.exit_code == ExitCode.DISK_FULL
    assert storage.read_bytes(old) == b"old"
    assert [path.name for path in (tmp_path / "store").iterdir()] == ["old"]


@pytest.mark.parametrize(
    ("number", "code"),
    [
        (errno.EACCES, ExitCode.ACCESS_DENIED),
        (errno.EROFS, ExitCode.ACCESS_DENIED),
        (errno.EDQUOT, ExitCode.DISK_FULL),
        (errno.EIO, ExitCode.STORAGE_UNAVAILABLE),
        (errno.ESTALE, ExitCode.STORAGE_UNAVAILABLE),
    ],
)
def test_errors_of_the_file_system_have_a_cause(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, code: ExitCode
) -> None:
    def fail(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(StageError) as caught:
        open_storage(f"file://{tmp_path}", Secrets(tmp_path)).write_bytes(f"file://{tmp_path}/a", b"x")
    assert caught.value.exit_code == code


@pytest.mark.parametrize("uri", ["file://relative/path", "gs://bucket/x", "s3:///key"])
def test_addresses_that_are_none_are_refused(tmp_path: Path, uri: str) -> None:
    with pytest.raises(StageError) as caught:
        open_storage(uri, Secrets(tmp_path)).read_bytes(uri)
    assert caught.value.exit_code == ExitCode.INVALID_SPEC
