"""The control plane, the operator and the namespace of tests/cluster, and what a GitOps tool does to objects."""

from __future__ import annotations

from tests.cluster.conftest import (  # noqa: F401 - fixtures
    cluster,
    installed,
    namespace,
    operated,
    operator,
    player,
    runs,
)
