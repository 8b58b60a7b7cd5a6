"""Accepted: which pool, which storage, which gates; frozen so that later edits do not reach a running job. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from finetune_api.common import Storage
from finetune_api.gpupool import GPUPool
from finetune_api.job.spec import FineTuneJobSpec
from finetune_api.job.status import Resolved
from finetune_api.stages import WarmStartVersion
from finetune_api.wording import counted
from finetune_operator.decide.gates import gates_in_force
from finetune_operator.decide.types import Observed
from finetune_operator.decide.warm_start import Unusable, warm_start_version
from finetune_operator.planner.steps import PlanError, split_batch

_MOUNTED = ("pvc://", "oci://")


@dataclass(frozen=True)
class Refusal:
    """Why a job is not accepted. A final one ends the run; the others may be cured by somebody else."""

    reason: str
    message: str
    next_step: str
    final: bool


def _invalid(message: str, next_step: str = "Correct the spec and apply again.") -> Refusal:
    return Refusal("InvalidSpec", message, next_step, final=True)


def _sources(spec: FineTuneJobSpec) -> Iterator[tuple[str, str]]:
    yield "model.source", spec.model.source
    for number, dataset in enumerate(spec.data.train):
        yield f"data.train[{number}].source", dataset.source
    if spec.data.validation.source:
        yield "data.validation.source", spec.data.validation.source
    if spec.data.test.source:
        yield "data.test.source", spec.data.test.source
    if spec.data.replay:
        yield "data.replay.source", spec.data.replay.source
    if spec.evaluation.out_of_domain:
        yield "evaluation.outOfDomain.source", spec.evaluation.out_of_domain.source
    if spec.output.storage:
        yield "output.storage.uri", spec.output.storage.uri


def _choose_pool(spec: FineTuneJobSpec, pools: Sequence[GPUPool]) -> GPUPool | Refusal:
    names = ", ".join(sorted(pool.metadata.name for pool in pools)) or "none"
    if spec.compute.pool is not None:
        for pool in pools:
            if pool.metadata.name == spec.compute.pool:
                return pool
        return Refusal(
            "PoolNotFound",
            f"compute.pool: there is no GPUPool {spec.compute.pool}; there are: {names}",
            "Name an existing pool, or ask the platform team to create this one.",
            final=False,
        )
    defaults = [pool for pool in pools if pool.spec.default]
    if len(defaults) == 1:
        return defaults[0]
    if defaults:
        names = ", ".join(sorted(pool.metadata.name for pool in defaults))
        message = f"compute.pool is empty and several GPUPools are marked default: {names}"
    else:
        message = f"compute.pool is empty and no GPUPool is marked default; there are: {names}"
    return Refusal(
        "PoolNotFound", message, "Set compute.pool, or ask the platform team for one default pool.", final=False
    )


def _gpus(spec: FineTuneJobSpec, pool: GPUPool) -> int | Refusal:
    offered = pool.spec.gpus_per_node
    asked = spec.compute.gpus_per_node
    gpus = min(1, offered) if asked is None else asked
    name = pool.metadata.name
    if gpus > offered:
        return _invalid(
            f"compute.gpusPerNode: {gpus} asked, nodes of pool {name} have {offered}",
            f"Set compute.gpusPerNode to at most {offered} and compute.nodes for more, or use another pool."
            if offered
            else "Leave compute.gpusPerNode out, or use a pool with GPUs.",
        )
    if offered and not gpus:
        return _invalid(f"compute.gpusPerNode: 0 asked, but {name} is a GPU pool; ask for at least 1")
    if spec.compute.nodes > pool.spec.limits.max_nodes:
        return _invalid(
            f"compute.nodes: {spec.compute.nodes} asked, pool {name} allows {pool.spec.limits.max_nodes}",
            f"Set compute.nodes to at most {pool.spec.limits.max_nodes}, or use another pool.",
        )
    if spec.compute.nodes * gpus > pool.spec.limits.max_gpus:
        return _invalid(
            f"compute.nodes x gpusPerNode: {counted(spec.compute.nodes * gpus, 'GPU')} asked, pool {name} allows "
            f"{pool.spec.limits.max_gpus}",
            f"Ask for at most {counted(pool.spec.limits.max_gpus, 'GPU')} over all nodes, or use another pool.",
        )
    return gpus


def _storage(observed: Observed, pool: GPUPool) -> Storage | Refusal:
    asked = observed.job.spec.output.storage
    if observed.adapter is not None:
        pinned = observed.adapter.spec.storage
        if asked is not None and (asked.uri.rstrip("/"), asked.endpoint) != (pinned.uri.rstrip("/"), pinned.endpoint):
            return _invalid(
                f"output.storage.uri: {asked.uri} differs from the pinned storage of Adapter "
                f"{observed.adapter.metadata.name} ({pinned.uri}); leave output.storage out"
            )
        return pinned
    storage = asked or pool.spec.default_storage
    if storage is None:
        return _invalid(
            f"output.storage: the Adapter does not exist yet and pool {pool.metadata.name} has no defaultStorage; "
            "set output.storage.uri"
        )
    return storage


def _warm_start(observed: Observed, storage: Storage) -> WarmStartVersion | Refusal | None:
    asked = observed.job.spec.method.warm_start_from
    if asked is None:
        return None
    found = warm_start_version(asked.version, observed.warm_start, observed.job.metadata.namespace, storage)
    if not isinstance(found, Unusable):
        return found
    if found.missing:
        next_step = "Name a published version (kubectl get adapterversions), or publish this one first."
        return Refusal("VersionNotFound", found.message, next_step, final=False)
    return _invalid(found.message)


def resolve(observed: Observed) -> Resolved | Refusal:
    """What Accepted freezes, or why the job is not accepted."""
    spec = observed.job.spec
    if not observed.allow_file_sources:
        for field, source in _sources(spec):
            if source.startswith("file://"):
                return _invalid(
                    f"{field}: file:// works only without a cluster (finetune run); upload to s3:// or use pvc://"
                )
    else:
        for field, source in _sources(spec):
            if source.startswith(_MOUNTED):
                return _invalid(
                    f"{field}: {source.partition('://')[0]}:// is mounted by a cluster and is not there in finetune "
                    "run; copy the files here and name them with file://, or submit the job to a cluster"
                )
    pool = _choose_pool(spec, observed.pools)
    if isinstance(pool, Refusal):
        return pool
    allowed = pool.spec.allowed_namespaces
    namespace = observed.job.metadata.namespace
    if allowed is not None and namespace not in allowed:
        return Refusal(
            "PoolNotAllowed",
            f"compute.pool: namespace {namespace} may not use GPUPool {pool.metadata.name}",
            "Use another pool, or ask the platform team to add the namespace to allowedNamespaces.",
            final=False,
        )
    gpus = _gpus(spec, pool)
    if isinstance(gpus, Refusal):
        return gpus
    if spec.compute.max_cost is not None and pool.spec.price is None:
        return _invalid(f"compute.maxCost: pool {pool.metadata.name} has no price; leave maxCost out")
    storage = _storage(observed, pool)
    if isinstance(storage, Refusal):
        return storage
    warm_start = _warm_start(observed, storage)
    if isinstance(warm_start, Refusal):
        return warm_start
    try:
        split_batch(
            spec.training.global_batch_size, spec.compute.nodes * max(1, gpus), 1, spec.training.micro_batch_size
        )
    except PlanError as error:
        return _invalid(str(error))
    policy_gates = observed.adapter.spec.policy.gates if observed.adapter is not None else []
    return Resolved(
        pool=pool.metadata.name,
        pool_uid=pool.metadata.uid,
        pool_spec=pool.spec,
        gpus_per_node=gpus,
        storage=storage,
        gates=gates_in_force(spec.evaluation, policy_gates),
        warm_start=warm_start,
    )
