"""Which tests stay on one worker, and which start first."""

from __future__ import annotations

import os
from itertools import chain
from types import SimpleNamespace
from typing import Any

import pytest

from tests.cluster.harness.cluster import UNDER_TEST
from tests.conftest import LONG, ONE_WORKER, OneControlPlane

STRATEGIES, CHAIN = "tests/runner/test_strategies.py", "tests/runner/test_chain.py"
NODE, SECOND_NODE = " ".join(ONE_WORKER[0]), "tests/node/"


@pytest.fixture
def scope_of(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The unit that a test is scheduled with, on clusters of our own."""
    monkeypatch.delenv(UNDER_TEST, raising=False)
    scheduler = SimpleNamespace(config=request.config)
    return lambda nodeid: OneControlPlane._split_scope(scheduler, nodeid)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("nodeid", "scope"),
    [
        ("tests/node/test_node.py::test_a", NODE),
        ("tests/node/e2e/test_gang.py::test_a", NODE),
        ("tests/node/e2e/test_faults.py::test_a", NODE),
        ("tests/node/e2e/test_release.py::test_a", SECOND_NODE),
        ("tests/node/e2e/test_waits_in_queue.py::test_a", SECOND_NODE),
        ("tests/cluster/scenarios/test_cli.py::test_a", "tests/cluster/scenarios/"),
        ("tests/cluster/test_pools.py::test_a", "tests/cluster/"),
        (f"{STRATEGIES}::test_a[ddp]", STRATEGIES),
        (f"{CHAIN}::test_a", f"{CHAIN}::test_a"),
    ],
)
def test_tests_that_share_stay_together_and_others_do_not(nodeid: str, scope: str, scope_of: Any) -> None:
    assert scope_of(nodeid) == scope


def test_a_given_cluster_is_one_for_all(scope_of: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(os.environ, UNDER_TEST, "somebody's")
    assert scope_of("tests/node/test_node.py::test_a") == scope_of("tests/kueue/test_waiting.py::test_a")
    assert scope_of(f"{CHAIN}::test_a") == f"{CHAIN}::test_a"


@pytest.mark.parametrize("begins", [*chain(*ONE_WORKER), *LONG])
def test_what_starts_first_is_there(begins: str, request: pytest.FixtureRequest) -> None:
    assert any(request.config.rootpath.glob(f"{begins.rstrip('/')}*"))
