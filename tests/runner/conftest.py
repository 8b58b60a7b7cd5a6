"""Fixtures of the runner's tests."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

from pathlib import Path

import pytest

from tests.runner.tiny import make_tiny_model


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Llama that every test may read and none may write."""
    return make_tiny_model(tmp_path_factory.mktemp("tiny-model"))
