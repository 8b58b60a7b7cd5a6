"""The candidate in the forms in which it can be served, loaded the way a server loads it."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from finetune_api.exit_codes import ExitCode
from finetune_api.stages import TrainPlan
from finetune_runner.context import StageContext
from finetune_runner.errors import StageError
from finetune_runner.evaluation.merging import NotByShardsError, merge_by_shards
from finetune_runner.evaluation.phases import MERGED_AT
from finetune_runner.training.checkpoint import MANIFEST, sha256_of
from finetune_runner.training.device import release_memory
from finetune_runner.training.loading import ADAPTER_FILE, MethodType, base_dtype, load_base, merged
from finetune_runner.training.placement import device_map, judging_devices

if TYPE_CHECKING:
    import torch

log = logging.getLogger(__name__)

Form = Literal["adapter", "merged"]
ADAPTER_FILES = (ADAPTER_FILE, "adapter_config.json")


def fetch_adapter(context: StageContext, folder: Path) -> Path:
    """The kept checkpoint's adapter in PEFT's layout. Raises StageError when it is not the one that was trained."""
    trained = context.task.results.train
    if trained is None:
        raise StageError(ExitCode.INVALID_SPEC, "this stage needs the result of train")
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    wanted = {**_saved_digests(context, trained.checkpoint_uri), ADAPTER_FILE: trained.checkpoint_digest}
    for name in ADAPTER_FILES:
        context.storage.download_file(f"{trained.checkpoint_uri}/{name}", folder / name)
        # The configuration too: with another alpha the same weights are another model.
        if sha256_of(folder / name) != wanted.get(name):
            raise StageError(
                ExitCode.INVALID_DATA,
                f"{trained.checkpoint_uri}/{name} is not the file that train saved",
                hint="nobody may write below runs/; start a new run",
            )
    return folder


def _saved_digests(context: StageContext, checkpoint_uri: str) -> dict[str, str]:
    """sha256 of a checkpoint's files by name, as its manifest has them. Raises StageError when it has none."""
    try:
        manifest = json.loads(context.storage.read_bytes(f"{checkpoint_uri}/{MANIFEST}"))
        return {str(name): str(facts["sha256"]) for name, facts in manifest["files"].items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise StageError(
            ExitCode.INVALID_DATA,
            f"{checkpoint_uri}/{MANIFEST} is not the manifest that train saved",
            hint="nobody may write below runs/; start a new run",
            evidence=repr(error)[:500],
        ) from error


def make_merged(
    context: StageContext, model_path: Path, adapter: Path, folder: Path, method: MethodType, device: torch.device
) -> None:
    """Write the merged model to `folder`, within the memory of one of the base's files where that is possible."""
    plan = context.task.plan

    def on_tensor(done: int, total: int) -> None:
        context.check_stop()
        context.report_progress("merging", done, total, percent=round(MERGED_AT * done / max(1, total), 1))

    try:
        if method == "qlora-8bit":
            raise NotByShardsError("LLM.int8 keeps a state per layer that only a loaded model has")
        merge_by_shards(
            model_path,
            adapter,
            folder,
            quantise=method == "qlora",
            dtype=base_dtype(method, device, plan),
            device=device,
            on_tensor=on_tensor,
        )
    except NotByShardsError as reason:
        log.warning("merging in memory instead of file by file: %s", reason)
        shutil.rmtree(folder, ignore_errors=True)
        base = load_base(model_path, method, device, plan, judging_devices(plan))
        merged(base, adapter, method).save_pretrained(str(folder), safe_serialization=True)
    # The processes that judge the forms are others than this one.
    release_memory(device)


def load_plain(
    folder: Path, device: torch.device, plan: TrainPlan | None = None, spread: Sequence[torch.device] = ()
) -> Any:
    """A model in the precision in which it was saved, with the plan's attention (without a plan: sdpa).

    On `device`, or block by block over the devices of `spread`.
    """
    from transformers import AutoModelForCausalLM

    from finetune_runner.training.attention import implementation

    attention = implementation(plan.attention if plan is not None else "sdpa")
    # Straight onto the GPU, weight by weight: a 70B model need not fit the host.
    placed: dict[str, Any] = {"device_map": {"": device}} if device.type == "cuda" else {}
    if len(spread) > 1:
        placed = {"device_map": device_map(folder, spread)}
    model: Any = AutoModelForCausalLM.from_pretrained(
        str(folder),
        dtype="auto",
        trust_remote_code=False,
        use_safetensors=True,
        attn_implementation=attention,
        **placed,
    )
    return (model if len(spread) > 1 else model.to(device)).eval()
