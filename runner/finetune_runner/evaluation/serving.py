"""The candidate in the forms in which it can be served, loaded the way a server loads it."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from finetune_api.exit_codes import ExitCode
from finetune_api.stages import TrainPlan
from finetune_runner.context import StageContext
from finetune_runner.errors import StageError
from finetune_runner.training.checkpoint import sha256_of
from finetune_runner.training.loading import ADAPTER_FILE, MethodType, load_base, merged, with_adapter

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
    for name in ADAPTER_FILES:
        context.storage.download_file(f"{trained.checkpoint_uri}/{name}", folder / name)
    if sha256_of(folder / ADAPTER_FILE) != trained.checkpoint_digest:
        raise StageError(
            ExitCode.INVALID_DATA,
            f"{trained.checkpoint_uri}/{ADAPTER_FILE} is not the file that train reported",
            hint="nobody may write below runs/; start a new run",
        )
    return folder


def load_form(
    form: Form,
    model_path: Path,
    adapter: Path,
    merged_folder: Path,
    method: MethodType,
    device: torch.device,
    plan: TrainPlan | None,
) -> Any:
    """The candidate as it is served. The merged form is written to `merged_folder` and loaded from there."""
    if form == "adapter":
        return with_adapter(load_base(model_path, method, device, plan), adapter)
    shutil.rmtree(merged_folder, ignore_errors=True)
    # Nothing holds the merged model any more when it is loaded as a server would: two of them would not fit.
    merged(load_base(model_path, method, device, plan), adapter, method).save_pretrained(
        str(merged_folder), safe_serialization=True
    )
    return load_plain(merged_folder, device)


def load_plain(folder: Path, device: torch.device) -> Any:
    """A model in the precision in which it was saved."""
    from transformers import AutoModelForCausalLM

    model: Any = AutoModelForCausalLM.from_pretrained(
        str(folder), dtype="auto", trust_remote_code=False, use_safetensors=True, attn_implementation="sdpa"
    )
    return model.to(device).eval()
