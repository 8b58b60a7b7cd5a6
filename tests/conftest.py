"""What every test shares: the limits of property tests, and which tests stay on one worker."""

import hypothesis
import pytest
from xdist.scheduler import LoadScopeScheduling

CLUSTER = ("tests/cluster/scenarios/", "tests/cluster/", "tests/kueue/")

# A busy machine is slow, not wrong: no deadline per example, and the same examples in every run.
hypothesis.settings.register_profile("project", deadline=None, derandomize=True, max_examples=100)
hypothesis.settings.load_profile("project")


class OneControlPlane(LoadScopeScheduling):
    """Spread tests over the workers one by one, but keep the cluster's in groups that share a control plane each.

    xdist's own `loadgroup` does this by a marker, which has no effect with pytest 9.2 (it writes the group into an
    attribute that pytest no longer reads).
    """

    def _split_scope(self, nodeid: str) -> str:
        return next((folder for folder in CLUSTER if nodeid.startswith(folder)), nodeid)


def pytest_xdist_make_scheduler(config: pytest.Config, log: object) -> LoadScopeScheduling:
    """Let xdist use the scheduler above, whatever `--dist` says."""
    return OneControlPlane(config, log)


def pytest_addoption(parser: pytest.Parser) -> None:
    """`--update-golden` rewrites the expected files of golden tests with what the code makes now."""
    parser.addoption("--update-golden", action="store_true", help="rewrite golden files")
