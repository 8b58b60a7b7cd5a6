"""lineage.json: where the rows come from, under which licence, and everything that was done to them."""

from __future__ import annotations

from importlib.metadata import version
from typing import Any

from finetune_api.stages import StageTask
from finetune_runner.context import StageContext
from finetune_runner.data.licences import licence_of
from finetune_runner.data.loading import Fetched, Loaded
from finetune_runner.data.outcome import Prepared
from finetune_runner.data.prepared import ROW_HASHES_PATH
from finetune_runner.data.wanted import SplitSource
from finetune_runner.model_source import FetchedModel

FORMAT = 1
_LIBRARIES = (
    "finetune-operator", "transformers", "tokenizers", "datasketch", "ftfy", "py3langid", "presidio-analyzer",
)  # fmt: skip


def described_source(context: StageContext, named: SplitSource, fetched: Fetched, loaded: Loaded) -> dict[str, Any]:
    """One source: origin, licence, layout, and the digest of every file."""
    wanted = named.wanted
    provenance = dict(wanted.provenance)
    return {
        "field": wanted.place,
        "source": wanted.source,
        "usedFor": named.split,
        "weight": named.weight,
        "licence": provenance.get("licence") or licence_of(context, wanted.source, fetched.revision, wanted.secret_ref),
        "provenance": provenance,
        "format": loaded.format,
        "rows": loaded.rows + loaded.empty_answers,
        **({"systemPromptAdded": loaded.system_prompts_added} if loaded.system_prompts_added else {}),
        "files": fetched.files,
        **({"revision": fetched.revision} if fetched.revision else {}),
    }


def lineage_document(
    task: StageTask, prepared: Prepared, model: FetchedModel, data_digest: str, origin: str
) -> dict[str, Any]:
    """The whole document; `origin` is the run that prepared the data, empty = this one."""
    return {
        "format": FORMAT,
        "job": task.job.to_wire(),
        "adapter": task.adapter,
        "model": {"source": task.spec.model.source, "revision": model.revision, "digest": model.digest},
        "sources": prepared.sources,
        "transformations": prepared.transformations,
        "rows": prepared.rows,
        "dropped": prepared.dropped,
        "files": prepared.files,
        "splits": prepared.splits,
        "dataDigest": data_digest,
        "rowHashes": ROW_HASHES_PATH,
        "seed": task.spec.training.seed,
        "maxLength": task.spec.training.max_length,
        "preparedBy": origin or task.run_uri,
        "image": task.image,
        "versions": {name: version(name) for name in _LIBRARIES},
    }
