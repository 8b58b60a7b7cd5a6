"""What many jobs cost the operator: memory, time until every first stage runs, requests to the API server.

A real control plane with nodes of kwok, whose pods run and do nothing; the operator is the process of the tests, with
the rights of the manifests. Run it from the repository's root:

    .venv/bin/python -m benchmarks.operator_scale --jobs 1000 --output benchmarks/results/operator-scale.json
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

from kubernetes import client

from tests.cluster.harness.controlplane import ControlPlane
from tests.cluster.harness.kwok import LABEL, Kwok
from tests.cluster.harness.operator_process import OperatorProcess
from tests.cluster.harness.waiting import wait_for

GROUP, VERSION = "finetune.dev", "v1alpha1"
NAMESPACES = 20
DEADLINE_S = 1800
IDLE_S = 15
MANIFESTS = Path(__file__).parents[1] / "manifests" / "base"


def resident_mib(pid: int) -> float:
    """Resident memory of a process in MiB."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("VmRSS:"))


def processor_s(pid: int) -> float:
    """Processor time of a process in seconds."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / 100


def requests(plane: ControlPlane) -> Counter[str]:
    """Requests the API server has answered, by verb and resource, of the kinds that only the operator writes here."""
    counted: Counter[str] = Counter()
    for series in plane.apiserver_metrics():
        if series.verb in ("POST", "PATCH", "PUT", "DELETE") and (series.group == GROUP or series.resource == "jobs"):
            counted[f"{series.verb} {'/'.join(filter(None, (series.resource, series.subresource)))}"] += series.count
    return counted


def job(number: int) -> dict[str, Any]:
    """One small job; every one is an Adapter of its own."""
    return {
        "apiVersion": f"{GROUP}/{VERSION}",
        "kind": "FineTuneJob",
        "metadata": {"name": f"job-{number}"},
        "spec": {
            "model": {"source": "s3://models/llama"},
            "data": {"train": [{"source": f"s3://team/{number}.jsonl"}]},
            "output": {"adapterRef": {"name": f"adapter-{number}"}},
        },
    }


def pool() -> dict[str, Any]:
    """The pool of all jobs: nodes of kwok, small pods."""
    spec = {
        "default": True,
        "gpusPerNode": 0,
        "image": "runner:1",
        "nodeSelector": {LABEL: "true"},
        "cpuPod": {"cpu": "1", "memory": "1Gi"},
        "defaultStorage": {"uri": "s3://bucket/store"},
    }
    return {"apiVersion": f"{GROUP}/{VERSION}", "kind": "GPUPool", "metadata": {"name": "kwok"}, "spec": spec}


def measure(jobs: int, nodes: int) -> dict[str, Any]:
    """Start everything, apply the jobs, and wait until the first stage of each runs."""
    with ControlPlane(node_lifecycle=True) as plane, Kwok(plane, completes=False) as kwok:
        plane.kubectl("apply", "--server-side", "-k", MANIFESTS)
        plane.kubectl(
            "wait", "--for=condition=Established", "crd/finetunejobs.finetune.dev", "crd/gpupools.finetune.dev"
        )
        kwok.add_nodes(nodes, gpus=8)
        plane.apply(pool())
        operator = OperatorProcess(plane, extra=("--lease-seconds", "30")).started().leading()
        time.sleep(IDLE_S)
        idle_mib, idle_cpu_s, before = resident_mib(operator.pid), processor_s(operator.pid), requests(plane)
        custom, core = client.CustomObjectsApi(plane.api()), client.CoreV1Api(plane.api())
        for number in range(NAMESPACES):
            core.create_namespace(client.V1Namespace(metadata=client.V1ObjectMeta(name=f"team-{number}")))
        print(f"operator idle: {idle_mib:.0f} MiB; applying {jobs} jobs", file=sys.stderr)
        started = time.monotonic()
        for number in range(jobs):
            namespace = f"team-{number % NAMESPACES}"
            custom.create_namespaced_custom_object(GROUP, VERSION, namespace, "finetunejobs", job(number))
        applied_s = time.monotonic() - started

        def running() -> bool:
            operator.check()
            listed: Any = custom.list_cluster_custom_object(GROUP, VERSION, "finetunejobs")
            items = listed["items"]
            states = Counter(
                stages[-1]["state"] if (stages := item.get("status", {}).get("stages")) else "none" for item in items
            )
            print(f"{time.monotonic() - started:.0f} s: {dict(states)}", file=sys.stderr)
            return states["Running"] == jobs

        wait_for(running, DEADLINE_S, f"{jobs} running stages", poll_s=5, context=operator.log_tail)
        settled_s = time.monotonic() - started
        time.sleep(IDLE_S)
        result = {
            "jobs": jobs,
            "nodes": nodes,
            "operator_idle_mib": round(idle_mib),
            "operator_with_jobs_mib": round(resident_mib(operator.pid)),
            "kib_per_job": round((resident_mib(operator.pid) - idle_mib) * 1024 / jobs, 1),
            "apply_s": round(applied_s),
            "all_running_s": round(settled_s),
            "operator_cpu_s": round(processor_s(operator.pid) - idle_cpu_s, 1),
            "writes": dict(sorted((requests(plane) - before).items())),
            "python": platform.python_version(),
            "processors": len(os.sched_getaffinity(0)),
        }
        operator.kill()
        return result


def main() -> None:
    """Measure and print as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, default=1000, help="FineTuneJobs (default 1000)")
    parser.add_argument("--nodes", type=int, default=200, help="nodes of kwok (default 200)")
    parser.add_argument("--output", type=Path, metavar="FILE", help="write the result there too")
    arguments = parser.parse_args()
    text = json.dumps(measure(arguments.jobs, arguments.nodes), indent=2)
    if arguments.output:
        arguments.output.write_text(text + "\n")
    print(text)


if __name__ == "__main__":
    main()
