"""What the tests of the manifests share with the cluster's tests: one control plane with everything installed."""

from __future__ import annotations

from tests.cluster.conftest import cluster, installed, namespace, operated, operator, player, runs

__all__ = ["cluster", "installed", "namespace", "operated", "operator", "player", "runs"]
