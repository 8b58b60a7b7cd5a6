"""Fixtures of the runner's tests."""

import os
from collections.abc import Iterator

os.environ.setdefault("OMP_NUM_THREADS", "1")

from pathlib import Path
from typing import Any

import pytest

from finetune_runner.data.loading import Wanted
from tests.cluster.harness.s3 import S3Server
from tests.runner.stores import LoadedRows, PrepareWorld, load_rows
from tests.runner.tiny import make_tiny_model


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Llama that every test may read and none may write."""
    return make_tiny_model(tmp_path_factory.mktemp("tiny-model"))


@pytest.fixture(scope="session")
def s3() -> Iterator[S3Server]:
    """A real S3 server; tests take a bucket of their own."""
    with S3Server() as server:
        yield server


@pytest.fixture
def world(tmp_path: Path, tiny_model: Path) -> PrepareWorld:
    """A folder for data, with the tiny model and a store on disk."""
    return PrepareWorld(tmp_path, f"file://{tiny_model}")


@pytest.fixture
def load_file(tmp_path: Path) -> Any:
    """Write one file and load it."""

    def do(name: str, content: bytes, **wanted: Any) -> LoadedRows:
        world = PrepareWorld(tmp_path, "file:///model")
        (tmp_path / name).write_bytes(content)
        source = f"file://{tmp_path}/{name}"
        context = world.open(world.task({"train": [{"source": source}]}))
        return load_rows(context, Wanted("data.train[0]", source, **wanted), tmp_path / "copies")

    return do
