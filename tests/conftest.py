"""What every test shares: the limits of property tests, and which tests stay on one worker."""

from pathlib import Path

import hypothesis
import pytest

CLUSTER = Path(__file__).parent / "cluster"

# A busy machine is slow, not wrong: no deadline per example, and the same examples in every run.
hypothesis.settings.register_profile("project", deadline=None, derandomize=True, max_examples=100)
hypothesis.settings.load_profile("project")


# Before xdist's own hook, which reads the group from the marker.
@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Keep the tests of the cluster together: they share one control plane, whatever the number of workers."""
    for item in items:
        if CLUSTER in item.path.parents:
            item.add_marker(pytest.mark.cluster)
            if item.get_closest_marker("xdist_group") is None:
                item.add_marker(pytest.mark.xdist_group("cluster"))
