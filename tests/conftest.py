"""What every test shares: the limits of property tests, and which tests stay on one worker."""

import functools
import gc
import os
import signal
from pathlib import Path

import hypothesis
import pytest
from xdist.scheduler import LoadScopeScheduling

from tests.cluster.harness.cluster import UNDER_TEST

ONE_WORKER = (
    ("tests/node/test_", "tests/node/e2e/test_fa", "tests/node/e2e/test_gang"),
    ("tests/node/",),
    ("tests/cluster/scenarios/",),
    ("tests/cluster/",),
    ("tests/gitops/",),
    ("tests/manifests/",),
    ("tests/kueue/",),
    ("tests/images/",),
)
"""Tests that share what takes long to start (a control plane, a node), by how their paths begin; the first group that
fits counts.

They start in this order, before all others: what takes longest must not come last. The node's are two groups of like
length, each with a node: as one they took as long as all other tests together.
"""
LONG = (
    "tests/runner/test_rank_faults.py",
    "tests/runner/test_strategies.py",
    "tests/examples/",
    "tests/runner/test_prepare_memory.py",
    "tests/runner/test_chain.py",
    "tests/runner/test_methods.py",
    "tests/runner/",
)
"""Of the tests that any worker can take, these start first, in this order, for the same reason."""

# Five thousand tests and their libraries all stay: the garbage collector need not look at them at every round.
gc.disable()

# No test may meet the cluster of the person who runs it by accident.
os.environ.pop("KUBECONFIG", None)

# A shell that starts the tests in the background ignores Ctrl-C for them, and so for every process they start.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# A busy machine is slow, not wrong: no deadline per example, and the same examples in every run.
hypothesis.settings.register_profile("project", deadline=None, derandomize=True, max_examples=100)
hypothesis.settings.load_profile("project")


@functools.cache
def shares_a_fixture(file: Path) -> bool:
    """Whether tests of a file share what one of them makes; several workers would each make it anew."""
    return 'scope="module"' in file.read_text(encoding="utf-8")


class OneControlPlane(LoadScopeScheduling):
    """Spread tests over the workers one by one, but keep together those of each group above, and of such a file.

    xdist's own `loadgroup` does this by a marker, which has no effect with pytest 9.2 (it writes the group into an
    attribute that pytest no longer reads).
    """

    def _split_scope(self, nodeid: str) -> str:
        group = next((group for group in ONE_WORKER if nodeid.startswith(group)), None)
        if group and UNDER_TEST in os.environ:
            return UNDER_TEST  # a cluster that was given is one for all of them: two operators would meet in it
        if group:
            return " ".join(group)
        file = nodeid.split("::")[0]
        return file if shares_a_fixture(self.config.rootpath / file) else nodeid


@pytest.fixture(scope="session", autouse=True)
def kubectl_cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Keep what kubectl remembers of each test's cluster out of the home folder, where nothing ever removes it."""
    os.environ["KUBECACHEDIR"] = str(tmp_path_factory.mktemp("kubectl"))


def pytest_configure(config: pytest.Config) -> None:
    """Keep xdist from sorting the groups by their number of tests."""
    config.option.loadscopereorder = False


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Sort by the order above; within a group nothing moves."""
    order = (*ONE_WORKER, *LONG)

    def place(item: pytest.Item) -> int:
        return next((number for number, begins in enumerate(order) if item.nodeid.startswith(begins)), len(order))

    items.sort(key=place)


def pytest_collection_finish() -> None:
    """Let the garbage collector work again, on what the tests make."""
    gc.freeze()
    gc.enable()


def pytest_report_header() -> str:
    """Say whose cluster the tests change."""
    return f"cluster under test: {os.environ.get(UNDER_TEST) or 'one of our own'}"


def pytest_xdist_make_scheduler(config: pytest.Config, log: object) -> LoadScopeScheduling:
    """Let xdist use the scheduler above, whatever `--dist` says."""
    return OneControlPlane(config, log)


def pytest_addoption(parser: pytest.Parser) -> None:
    """`--update-golden` rewrites the expected files of golden tests with what the code makes now."""
    parser.addoption("--update-golden", action="store_true", help="rewrite golden files")
