"""spec.tracking: where a run's curves are shown besides its own report."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from finetune_api.base import Contract
from finetune_api.common import SecretRef

_URL = r"^https?://[^\x00-\x20\x7f@]+$"
_TEXT = r"^[^\x00-\x1f\x7f]+$"


class Mlflow(Contract):
    """An MLflow tracking server, spoken to by its REST API."""

    tracking_uri: Annotated[
        str,
        Field(
            description="URL of the server, for example `https://mlflow.example.com`. Credentials belong into "
            "secretRef.",
            max_length=512,
            pattern=_URL,
        ),
    ]
    experiment: Annotated[
        str | None,
        Field(
            description="Experiment the run belongs to; created when it does not exist. Default: namespace/adapter.",
            min_length=1,
            max_length=256,
            pattern=_TEXT,
        ),
    ] = None
    secret_ref: Annotated[
        SecretRef | None,
        Field(
            description="Secret with `MLFLOW_TRACKING_TOKEN`, or with `MLFLOW_TRACKING_USERNAME` and "
            "`MLFLOW_TRACKING_PASSWORD`. Default: no credentials."
        ),
    ] = None


class Wandb(Contract):
    """Weights & Biases."""

    project: Annotated[
        str,
        Field(description="Project the run belongs to.", max_length=128, pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$"),
    ]
    entity: Annotated[
        str | None,
        Field(
            description="Team or user that owns the project. Default: that of the API key.",
            max_length=128,
            pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$",
        ),
    ] = None
    base_url: Annotated[
        str | None,
        Field(description="URL of a server of your own. Default: the public service.", max_length=512, pattern=_URL),
    ] = None
    mode: Annotated[
        Literal["online", "offline"],
        Field(
            description="`online` (default) sends; `offline` leaves the files in the run's storage, for `wandb sync`."
        ),
    ] = "online"
    secret_ref: Annotated[SecretRef | None, Field(description="Secret with `WANDB_API_KEY`; needed online.")] = None


class Tensorboard(Contract):
    """Event files below the run in storage: `train/tensorboard/`, `evaluate/tensorboard/`. No settings: write `{}`."""


class Tracking(Contract):
    """Trackers of a run. Losing one never hurts the run: it becomes a warning."""

    mlflow: Annotated[Mlflow | None, Field(description="Send to an MLflow tracking server.")] = None
    wandb: Annotated[Wandb | None, Field(description="Send to Weights & Biases.")] = None
    tensorboard: Annotated[Tensorboard | None, Field(description="Write TensorBoard event files: `{}`.")] = None
