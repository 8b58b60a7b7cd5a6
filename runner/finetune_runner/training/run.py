"""One training in one process (of one or many): set up, loop, keep the best, prove it."""

from __future__ import annotations

import json
import logging
import math
import shutil
import statistics
import time
from collections import deque
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal

from finetune_api.exit_codes import ExitCode
from finetune_api.stages import Progress, TrainPlan, TrainResult
from finetune_runner.errors import StageError
from finetune_runner.evaluation.likelihood import Encoded, score
from finetune_runner.evaluation.share import Share
from finetune_runner.tracking import Tracking, open_tracking
from finetune_runner.training.adapter_file import load_adapter
from finetune_runner.training.best import Selection
from finetune_runner.training.checkpoint import Checkpoint, CheckpointStore, Point, TrainingState
from finetune_runner.training.device import deterministic, peak_memory_bytes, pick_device
from finetune_runner.training.distributed import World
from finetune_runner.training.guards import FirstStep, first_batch, refuse_changed_start, refuse_empty_adapter
from finetune_runner.training.horizon import Horizon, still_falls
from finetune_runner.training.judge import Judge
from finetune_runner.training.loading import ADAPTER_FILE, load_base, load_tokenizer, method_of, new_adapter
from finetune_runner.training.optimizer import load_optimizer, new_optimizer, save_optimizer, trainable
from finetune_runner.training.order import example_stream, micro_batches
from finetune_runner.training.rates import decay_steps, warmup_steps
from finetune_runner.training.remaining import remaining_s
from finetune_runner.training.schedule import DivergenceWatch, EarlyStop
from finetune_runner.training.warm_start import start_warm
from finetune_runner.training.watchdog import Watchdog

if TYPE_CHECKING:
    from finetune_runner.context import StageContext

log = logging.getLogger(__name__)

OPTIMIZER_FILE = "optimizer.safetensors"
HISTORY = "train/history.json"
PROGRESS_EVERY_S = 1.0
RECENT_STEPS = 5


@dataclass(frozen=True)
class Rows:
    """Encoded rows of the training mix and of validation."""

    ids: list[str]
    weights: list[float]
    train: list[Encoded]
    validation: list[Encoded]


def _finite(value: float) -> float | None:
    """A loss that can be told: JSON knows no NaN."""
    return value if math.isfinite(value) else None


def load_rows(context: StageContext, tokenizer: Any) -> Rows:
    """Train, replay and validation, tokenised and cut as prepare counted them."""
    from finetune_runner.data.prepared import load_split
    from finetune_runner.text import encode_example

    max_length = context.task.spec.training.max_length
    mix = load_split(context, "train") + load_split(context, "replay")
    validation = load_split(context, "validation")
    return Rows(
        ids=[row.id for row in mix],
        weights=[row.weight for row in mix],
        train=[encode_example(tokenizer, row.messages, max_length) for row in mix],
        validation=[encode_example(tokenizer, row.messages, max_length) for row in validation],
    )


class TrainingRun:
    """The training of one stage task. Read `run` first. `on_hang` ends the process when no step ends any more."""

    def __init__(self, context: StageContext, world: World, on_hang: Callable[[StageError], None]) -> None:
        if context.task.plan is None:
            raise StageError(ExitCode.INVALID_SPEC, "the train stage needs a plan")
        self.context = context
        self.world = world
        self.plan: TrainPlan = context.task.plan
        self.training = context.task.spec.training
        self.device = pick_device(self.plan)
        self.folder = context.scratch / f"train-{world.rank}"
        self.store = CheckpointStore(context)
        self.state = TrainingState()
        self.resumed_from: int | None = None  # not known before the checkpoints are looked at
        self._interrupted = False
        self._in_steps_s = 0.0
        self._tokens = 0
        self._steps_s: deque[float] = deque(maxlen=50)
        self._rate = 0.0
        self.tracking = open_tracking(context) if world.main else Tracking([])
        self._lost_trackers: list[str] = []
        self._watchdog = Watchdog(on_hang)
        self._first_step = FirstStep()
        self.selection = Selection.of(context.task.spec)
        planned = self.plan.total_steps
        self.horizon = Horizon(planned, self.plan.extend_to, decay_steps(self.training, planned))
        self._said_at = -math.inf

    def run(self) -> TrainResult:
        """Train to the end, or to where the budget, early stopping or a signal ends it."""
        try:
            best, duration_s = self._train()
        except BaseException as error:
            interrupted = isinstance(error, StageError) and error.exit_code == ExitCode.INTERRUPTED
            self.tracking.close("Continues" if interrupted else "Failed")
            raise
        self._lost_trackers = self.world.from_main(self.tracking.close("Continues"))
        return self._result(best, duration_s)

    def _train(self) -> tuple[Checkpoint, float]:
        """The kept checkpoint, and how many seconds it took."""
        started = time.monotonic()
        self._set_up()
        if not self.state.ended_by:
            with self._watchdog:
                self._loop()
        if self._interrupted:
            raise StageError(
                ExitCode.INTERRUPTED,
                f"training was asked to stop and saved a checkpoint at step {self.state.step}",
                hint="the next attempt resumes there",
            )
        best = self._prove_best()
        return best, time.monotonic() - started

    # -- set up ------------------------------------------------------------------------------------------------------

    def _set_up(self) -> None:
        from finetune_runner.model_source import fetch_model

        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir(parents=True)
        deterministic(self.training.seed)
        self._say("loading the model")
        model_path = fetch_model(self.context).path
        self.tokenizer = load_tokenizer(model_path)
        self.rows = load_rows(self.context, self.tokenizer)
        self.judge = Judge(self.context, self.tokenizer, self.world, self._watchdog.alive)
        base = load_base(model_path, method_of(self.context.task), self.device, self.plan)
        method = self.context.task.spec.method
        self.model = new_adapter(base, method, self.training.seed)
        self._warm = start_warm(self.context, self.model, self.folder / "warm-start")

        checkpoint = self._newest_checkpoint()
        self.resumed_from = checkpoint.step if checkpoint is not None else 0
        if checkpoint is not None:
            self.state = checkpoint.state
            log.info("resuming from checkpoint step-%d", checkpoint.step)
        self.horizon.end = self.state.end or self.horizon.end
        self._make_trainer()
        if checkpoint is not None:
            load_adapter(self.model, self.folder / "resume")
            load_optimizer(self.trainer.optimizer, self.model, self.folder / "resume" / OPTIMIZER_FILE)
        self.early_stop = EarlyStop(
            patience=self.training.early_stopping.patience,
            minimum_delta=self.training.early_stopping.minimum_delta,
            best=math.inf if self.state.early_best is None else self.state.early_best,
            without_improvement=self.state.without_improvement,
        )
        self.divergence = DivergenceWatch(
            warmup_steps=warmup_steps(self.training, self.plan.total_steps),
            lowest=self.state.lowest_train_loss,
        )

    def _newest_checkpoint(self) -> Checkpoint | None:
        """The main process chooses, so that all resume from one step even while storage is written by nobody else."""
        folder = self.folder / "resume"
        found = self.store.newest_verified(folder) if self.world.main else None
        step = self.world.from_main(found.step if found else None)
        if step is None or self.world.main:
            return found
        return self.store.fetch(step, folder)

    def _make_trainer(self) -> None:
        import torch
        from transformers import PrinterCallback

        from finetune_runner.training.trainer import AdapterTrainer, StepWatch, as_dataset, trainer_settings

        first = self.state.step
        remaining = max(1, self.horizon.most - first)
        self.trainer = AdapterTrainer(
            batches=self._batches(first),
            model=self.model,
            args=trainer_settings(self.plan, self.training, remaining, self.device, self.folder / "trainer"),
            train_dataset=as_dataset(self.rows.train),
            processing_class=self.tokenizer,
            callbacks=[StepWatch(first, self._before_step, self._after_step)],
        )
        self.trainer.remove_callback(PrinterCallback)  # stdout stays free
        # TRL rounds a QLoRA adapter to bf16 and keeps no fp32 master: at small learning rates updates would vanish.
        for parameter in trainable(self.model).values():
            parameter.data = parameter.data.to(torch.float32)
        self.trainer.optimizer, self.trainer.lr_scheduler = new_optimizer(
            self.model, self.training, self.horizon, first
        )

    def _batches(self, first_step: int) -> list[list[int]]:
        """Micro-batches of this rank for the steps after `first_step`."""
        size = self.plan.micro_batch_size * self.plan.gradient_accumulation * self.world.size
        stream = example_stream(self.rows.ids, self.rows.weights, self.training.seed, self.horizon.most * size)
        lengths = [len(ids) for ids, _ in self.rows.train]
        batches: list[list[int]] = []
        for step in range(first_step, self.horizon.most):
            examples = stream[step * size : (step + 1) * size].tolist()
            batches += micro_batches(
                examples, lengths, self.plan.gradient_accumulation, self.world.size, self.world.rank
            )
        self._step_tokens = [
            sum(lengths[i] for i in stream[s * size : (s + 1) * size]) for s in range(self.horizon.most)
        ]
        return batches

    # -- loop --------------------------------------------------------------------------------------------------------

    def _loop(self) -> None:
        if self.state.initial_validation_loss is None:
            self._say("validating the untuned model")
            loss, measures = self._validate()
            self.state.initial_validation_loss = loss
            self._note_validation(Point(0, loss, measures=measures))
            self.early_stop.observe(self.selection.badness(loss, measures))
            if not self._warm:
                dora = self.context.task.spec.method.use_dora
                refuse_changed_start(
                    self.model, first_batch(self.rows.validation), self.tokenizer.pad_token_id, dora=dora
                )
        if self.state.step == 0:
            self._first_step.remember(self.model)
        self.trainer.train()

    def _before_step(self, step: int) -> None:
        import torch

        # Random numbers (dropout) are a function of seed, step and rank: nothing to save, nothing to restore.
        torch.manual_seed((self.training.seed * 1_000_003 + step) * 4_099 + self.world.rank)
        optimizer = self.trainer.optimizer
        self._rate = float(optimizer.param_groups[0]["lr"]) if optimizer is not None else 0.0
        self._step_started = time.monotonic()

    def _after_step(self, step: int) -> bool:
        """Everything that happens between two optimiser steps. Returns whether training ends here."""
        local_loss = float(self.trainer.take_step_loss())
        took_s = time.monotonic() - self._step_started
        budget_s = self.plan.time_budget_seconds
        over_budget = budget_s is not None and self.state.elapsed_s + took_s >= budget_s
        loss_sum, stop, budget = self.world.sum(
            [local_loss, float(self.context.stop.is_set()), float(over_budget)], self.device
        )
        loss = loss_sum / self.world.size
        self._note_step(step, loss, took_s)
        self.tracking.log(step, {"train/loss": loss, "train/learning_rate": self._rate, "train/step_seconds": took_s})
        self._watchdog.beat()
        self._refuse_divergence(step, loss)
        if step == 1:
            self._first_step.refuse_unmoved(self.model, self.world, self.device)

        last = step == self.horizon.end
        if stop and not last:
            self._interrupted = True
            self._save()
            return True
        every = self.training.checkpoints.every_steps
        if last or budget or step % self.plan.eval_steps == 0 or self.horizon.decides_at(step):
            self._evaluate(step, over_budget=bool(budget))
        elif every is not None and step % every == 0:
            self._save()
        if time.monotonic() - self._said_at >= PROGRESS_EVERY_S:
            self._said_at = time.monotonic()
            self._say("training")
        return bool(self.state.ended_by)

    def _note_step(self, step: int, loss: float, took_s: float) -> None:
        self.state.step = step
        self.state.elapsed_s += took_s
        self._in_steps_s += took_s
        self._tokens += self._step_tokens[step - 1]
        self._steps_s.append(took_s)
        self.state.recent_losses = [*self.state.recent_losses, loss][-max(RECENT_STEPS, self._last_tenth) :]

    @property
    def _last_tenth(self) -> int:
        return max(1, self.plan.total_steps // 10)

    def _refuse_divergence(self, step: int, loss: float) -> None:
        wrong = self.divergence.observe(step, loss)
        self.state.lowest_train_loss = self.divergence.lowest
        if not wrong:
            return
        recent = ", ".join(f"{value:.3g}" for value in self.state.recent_losses[-RECENT_STEPS:])
        raise StageError(
            ExitCode.TRAINING_DIVERGED,
            wrong,
            hint=f"lower training.learningRate (now {self.training.learning_rate:g}) or raise training.warmupRatio; "
            f"the best checkpoint so far is step {self.state.best_step}",
            evidence=f"losses of the last steps: {recent}",
        )

    def _evaluate(self, step: int, *, over_budget: bool) -> None:
        self._say("validating")
        began = time.monotonic()
        loss, measures = self._validate()
        if not math.isfinite(loss):
            self._refuse_divergence(step, loss)
        state = self.state
        since = self.plan.eval_steps
        train_loss = statistics.fmean(state.recent_losses[-since:])
        self._note_validation(Point(step, loss, train_loss, measures))
        if self.selection.better(loss, measures, state.best_validation_loss, state.best_measures):
            state.best_step, state.best_validation_loss, state.best_measures = step, loss, measures
        wait_is_over = self.early_stop.observe(self.selection.badness(loss, measures))
        losses = [point.validation_loss for point in state.history]
        self.horizon.observe(step, falls=still_falls(losses, self.training.early_stopping.minimum_delta))
        state.end = self.horizon.end
        state.early_best = self.early_stop.best
        state.without_improvement = self.early_stop.without_improvement
        if step == self.horizon.end:
            state.ended_by = "plateau" if self.horizon.at_plateau else "completed"
        elif wait_is_over:
            state.ended_by = "earlyStopping"
        elif over_budget:
            state.ended_by = "budget"
        state.elapsed_s += time.monotonic() - began
        self._save()

    def _validate(self) -> tuple[float, dict[str, float]]:
        """Loss of all validation rows, and the measures of those that are answered."""
        began = time.monotonic()
        loss = self._validation_loss()
        measures = self.judge.measures(self.model, self.device)
        self.state.validation_s = time.monotonic() - began
        return loss, measures

    def _note_validation(self, point: Point) -> None:
        self.state.history.append(point)
        measured = {f"validation/{name}": value for name, value in point.measures.items()}
        self.tracking.log(point.step, {"validation/loss": point.validation_loss, **measured})

    def _validation_loss(self) -> float:
        """Token-weighted mean over all validation rows; each process scores its share of the fixed batches."""
        self.model.eval()
        share = Share(self.world.rank, self.world.size)
        pad = self.tokenizer.pad_token_id
        scores = score(self.model, self.rows.validation, pad, lambda _: self._watchdog.alive(), share)
        nll, tokens = self.world.sum([float(scores[:, 0].sum()), float(scores[:, 1].sum())], self.device)
        if tokens == 0:
            raise StageError(
                ExitCode.INVALID_DATA,
                "no validation row has an answer within training.maxLength",
                hint="raise training.maxLength or data.validation.fraction",
            )
        return nll / tokens

    def _say(self, phase: str) -> None:
        """Live progress; the main process speaks for all."""
        if not self.world.main:
            return
        step, total = self.state.step, self.horizon.expected
        pace_s = statistics.median(self._steps_s) if self._steps_s else None
        newest = self.state.history[-1] if self.state.history else None
        self.context.progress(
            Progress(
                stage="train",
                attempt=self.context.task.attempt,
                phase=phase,
                step=step,
                total_steps=total,
                percent=min(100.0, round(100 * step / total, 1)),
                eta_seconds=remaining_s(step, total, self.plan.eval_steps, pace_s, self.state.validation_s),
                loss=_finite(self.state.recent_losses[-1]) if self.state.recent_losses else None,
                validation_loss=None if newest is None else _finite(newest.validation_loss),
                validation_metrics={} if newest is None else dict(newest.measures),
                resumed_from_step=self.resumed_from,
                updated_at=self.context.clock(),
            )
        )

    # -- checkpoints -------------------------------------------------------------------------------------------------

    def _save(self) -> None:
        if self.world.main:
            folder = self.folder / "save"
            shutil.rmtree(folder, ignore_errors=True)
            self.model.save_pretrained(str(folder), safe_serialization=True, save_embedding_layers=False)
            (folder / "README.md").unlink(missing_ok=True)
            save_optimizer(self.trainer.optimizer, self.model, folder / OPTIMIZER_FILE)
            self.store.save(folder, self.state)
            self.store.prune(self.state.best_step)
        self.world.barrier()

    def _prove_best(self) -> Checkpoint:
        """Load the kept checkpoint back from storage and measure it again: what is handed on is what was measured."""
        self._say("checking the kept checkpoint")
        folder = self.folder / "best"
        try:
            best = self.store.fetch(self.state.best_step, folder)
        except ValueError as error:
            raise StageError(
                ExitCode.STORAGE_UNAVAILABLE,
                f"the kept checkpoint of step {self.state.best_step} cannot be read back: {error}",
                hint="check that nothing else writes to the run's folder",
            ) from error
        refuse_empty_adapter(self.model, folder)
        load_adapter(self.model, folder)
        again = self._validation_loss()
        recorded = self.state.best_validation_loss or 0.0
        tolerance = 1e-5 if self.device.type == "cpu" else 1e-3
        if not math.isclose(again, recorded, rel_tol=tolerance):
            raise StageError(
                ExitCode.INTERNAL,
                f"the kept adapter has validation loss {again:.6g} after reloading, {recorded:.6g} before",
            )
        return best

    def _result(self, best: Checkpoint, duration_s: float) -> TrainResult:
        if self.world.main:
            # The kept checkpoint knows the curve only up to its own step.
            self.context.fence.check()
            self.context.storage.write_bytes(
                f"{self.context.task.run_uri}/{HISTORY}",
                json.dumps([asdict(point) for point in self.state.history]).encode(),
            )
        ended_by: dict[str, Literal["completed", "earlyStopping", "plateau", "budget"]] = {
            "earlyStopping": "earlyStopping",
            "plateau": "plateau",
            "budget": "budget",
        }
        adapter = best.files[ADAPTER_FILE]
        return TrainResult(
            steps=self.state.step,
            total_steps=self.horizon.expected,
            best_step=best.step,
            stopped_by=ended_by.get(self.state.ended_by, "completed"),
            train_loss=statistics.fmean(self.state.recent_losses[-self._last_tenth :]),
            initial_validation_loss=self.state.initial_validation_loss or 0.0,
            best_validation_loss=self.state.best_validation_loss or 0.0,
            checkpoint_uri=best.uri,
            checkpoint_digest=adapter["sha256"],
            trainable_parameters=sum(p.numel() for p in trainable(self.model).values()),
            adapter_bytes=adapter["size"],
            peak_memory_bytes=peak_memory_bytes(self.device),
            tokens_per_second=round(self._tokens / self._in_steps_s, 1) if self._in_steps_s else 0.0,
            duration_seconds=round(duration_s, 1),
            resumed_from_step=self.resumed_from or 0,
            validation_metrics={name: round(value, 6) for name, value in self.state.best_measures.items()},
            lost_trackers=self._lost_trackers,
        )
