"""Fixtures of the runner's tests."""

import os
from collections.abc import Iterator

os.environ.setdefault("OMP_NUM_THREADS", "1")

from pathlib import Path

import pytest

from tests.cluster.harness.s3 import S3Server
from tests.runner.stores import PrepareWorld
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
