"""Admission policies that need our kinds."""

from __future__ import annotations

import json

from tests.cluster.harness.cluster import Cluster
from tests.cluster.harness.waiting import wait_for
from tests.decide.world import job_dict

UNREADY = "failed to configure policy"


def wait_for_policies(cluster: Cluster) -> None:
    """Wait until the API server can judge FineTuneJobs.

    A policy with a `paramKind` refuses everything until the API server's own discovery knows the kind, which it looks
    for every 30 s (k8s.io/apiserver, options/admission.go): also after the kind was deleted and came back.
    """
    wire = job_dict()
    wire["metadata"] = {"name": "policies-ready", "namespace": "default"}

    def refusal() -> str:
        tried = cluster.kubectl("create", "--dry-run=server", "-f", "-", input=json.dumps(wire), check=False)
        return tried.stderr

    wait_for(lambda: UNREADY not in refusal(), 90, "the admission policies to know our kinds", context=refusal)
