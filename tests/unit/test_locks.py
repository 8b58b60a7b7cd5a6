"""The check that pyproject.toml and the locks agree: silent on this checkout, and it sees each kind of disagreement."""

import importlib.util
import shutil
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SPEC = importlib.util.spec_from_file_location("check_locks", ROOT / "requirements" / "check_locks.py")
assert SPEC
assert SPEC.loader
check_locks = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(check_locks)


@pytest.fixture
def checkout(tmp_path):
    shutil.copytree(ROOT / "requirements", tmp_path / "requirements")
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    return tmp_path


def test_this_checkout_agrees_with_itself():
    assert check_locks.check(ROOT) == []


@pytest.mark.parametrize(
    ("lock", "old", "new", "want"),
    [
        ("operator.lock", "kopf==", "left-pad==", "kopf is declared in pyproject.toml and missing here"),
        ("operator.lock", "kopf==1", "kopf==0", "which pyproject.toml declares"),
        ("operator.lock", "kopf==", "kopf>=", "kopf is not pinned to one version"),
        ("operator.lock", "idna==", "idna==0.", "differs from dev.lock's"),
        ("bootstrap.lock", "uv==", "uv==0.", "differs from dev.lock's"),
        ("runner.lock", "sha256:", "md5:", "has no sha256 hash"),
        ("runner.lock", "torch==", "--index-url https://mirror.example.com\ntorch==", "names an address or an index"),
        ("runner.lock", "torch==", "torch @ https://mirror.example.com/torch-", "names an address or an index"),
    ],
)
def test_a_disagreement_is_named(checkout, lock, old, new, want):
    path = checkout / "requirements" / lock
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))
    assert any(error.startswith(f"{lock}: ") and want in error for error in check_locks.check(checkout))
