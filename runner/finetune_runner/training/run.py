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
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from finetune_api.exit_codes import ExitCode
from finetune_api.stages import Progress, TimeShares, TrainPlan, TrainResult
from finetune_runner.data.rows import Row
from finetune_runner.errors import StageError
from finetune_runner.tracking import Tracking, open_tracking
from finetune_runner.training.adapter_file import wanted_shapes
from finetune_runner.training.best import Selection
from finetune_runner.training.checkpoint import Checkpoint, CheckpointStore, Point, TrainingState
from finetune_runner.training.device import deterministic, peak_memory_bytes, pick_device
from finetune_runner.training.distributed import World
from finetune_runner.training.guards import (
    FirstStep,
    first_batch,
    refuse_changed_start,
    refuse_empty_adapter,
    refuse_other_loss,
)
from finetune_runner.training.horizon import Horizon, still_falls
from finetune_runner.training.judge import Judge
from finetune_runner.training.loading import (
    ADAPTER_FILE,
    load_base,
    load_tokenizer,
    method_of,
    new_adapter,
    saved_names,
    shards_weights,
)
from finetune_runner.training.objectives.base import Start
from finetune_runner.training.optimizer import trainable
from finetune_runner.training.optimizer_files import read_optimizer, write_optimizer
from finetune_runner.training.order import example_stream, micro_batches
from finetune_runner.training.rates import decay_steps, warmup_steps
from finetune_runner.training.remaining import remaining_s
from finetune_runner.training.schedule import DivergenceWatch, EarlyStop
from finetune_runner.training.timing import Stopwatch
from finetune_runner.training.warm_start import start_warm
from finetune_runner.training.watchdog import Watchdog

if TYPE_CHECKING:
    from finetune_runner.context import StageContext
    from finetune_runner.training.objectives.base import Batch, Sums
    from finetune_runner.training.probe import Probe

log = logging.getLogger(__name__)

HISTORY = "train/history.json"
PROGRESS_EVERY_S = 1.0
RECENT_STEPS = 5
SLOW_EVALUATION_S = 60.0
"""An evaluation that took longer might not end within a pod's grace period: its step is saved first."""


@dataclass(frozen=True)
class Rows:
    """Rows of the training mix and of validation."""

    train: list[Row]
    validation: list[Row]


def _finite(value: float) -> float | None:
    """A loss that can be told: JSON knows no NaN."""
    return value if math.isfinite(value) else None


def load_rows(context: StageContext) -> Rows:
    """Train with replay, and validation."""
    from finetune_runner.data.prepared import load_split

    return Rows(load_split(context, "train") + load_split(context, "replay"), load_split(context, "validation"))


class TrainingRun:
    """The training of one stage task. Read `run` first. `on_hang` ends the process when no step ends any more."""

    def __init__(self, context: StageContext, world: World, on_hang: Callable[[StageError], None]) -> None:
        if context.task.plan is None:
            raise StageError(ExitCode.INVALID_SPEC, "the train stage needs a plan")
        self.context = context
        self.world = world
        self.plan: TrainPlan = context.task.plan
        self.training = context.task.training
        self.device = pick_device(self.plan)
        self.folder = context.scratch / f"train-{world.rank}"
        self.store = CheckpointStore(context)
        self.state = TrainingState()
        self.resumed_from: int | None = None  # not known before the checkpoints are looked at
        self._saved: tuple[int, dict[str, dict[str, Any]]] | None = None
        """Step and files of the newest checkpoint: of that step only the manifest is written again."""
        self._interrupted = False
        self._in_steps_s = 0.0
        self._tokens = self._labelled = 0
        self.stopwatch = Stopwatch()
        self._steps_s: deque[float] = deque(maxlen=50)
        self._watchdog = Watchdog(on_hang)
        self._first_step = FirstStep()
        self._selection = Selection.of(context.task.spec)
        self._rate = 0.0
        self.tracking = open_tracking(context) if world.main else Tracking([])
        self._lost_trackers: list[str] = []
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
        peak_bytes = max(self.world.gather(peak_memory_bytes(self.device)))
        # Only once the main process has written everything is there a result: if it fails, the others lose a peer.
        result: TrainResult = self.world.from_main(
            self._result(best, duration_s, peak_bytes) if self.world.main else None
        )
        return result

    def _train(self) -> tuple[Checkpoint, float]:
        """The kept checkpoint, and how many seconds it took."""
        started = time.monotonic()
        self._set_up()
        if not self.state.ended_by:
            with self._watchdog:
                self._loop()
        if self._interrupted:
            raise self._asked_to_stop()
        best = self._prove_best()
        return best, time.monotonic() - started

    # -- set up ------------------------------------------------------------------------------------------------------

    def _set_up(self) -> None:
        import torch

        from finetune_runner.model_source import fetch_model

        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir(parents=True)
        deterministic(self.training.seed)
        self._say("loading the model")
        model_path = fetch_model(self.context).path
        self.tokenizer = load_tokenizer(model_path, self.context.task.spec.model.chat_template)
        self.rows = load_rows(self.context)
        self.judge = Judge(self.context, self.tokenizer, self.rows.validation, self.world)
        # What is cut into parts goes to the GPUs part by part: the whole may not fit on one.
        place = torch.device("cpu") if shards_weights(self.plan) else self.device
        base = load_base(model_path, method_of(self.context.task), place, self.plan)
        self.model = new_adapter(base, self.context.task.spec.method, self.training.seed)
        warm = start_warm(self.context, self.model, self.folder / "warm-start")

        checkpoint = self._newest_checkpoint()
        self.resumed_from = checkpoint.step if checkpoint is not None else 0
        if checkpoint is not None:
            self.state = checkpoint.state
            self._saved = checkpoint.step, checkpoint.files
            log.info("resuming from checkpoint step-%d", checkpoint.step)
        self.horizon.end = self.state.end or self.horizon.end
        self._make_trainer(self.folder / "resume" if checkpoint is not None else None)
        self._prepare_objective(Start(untouched=checkpoint is None, fresh=not warm))
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

    def _make_trainer(self, resume: Path | None) -> None:
        """Adapter and optimiser as they are in the checkpoint in `resume`, spread out as the strategy does."""
        import torch

        from finetune_runner.training import memory_saving, reference
        from finetune_runner.training.objectives.making import make_objective
        from finetune_runner.training.strategies import new_engine
        from finetune_runner.training.strategies.base import Setup
        from finetune_runner.training.trainer import AdapterTrainer

        # bf16 adapters without an fp32 master lose their updates at small learning rates.
        for parameter in trainable(self.model).values():
            parameter.data = parameter.data.to(torch.float32)
        self.trainable_parameters = sum(p.numel() for p in trainable(self.model).values())
        self.adapter_keys, self.adapter_shapes = saved_names(self.model), wanted_shapes(self.model)
        if resume is not None:
            self._load_adapter(resume)
        memory_saving.apply(self.model, self.plan)
        rows, first = self.rows, self.state.step
        self.objective = make_objective(self.context, self.tokenizer, rows.train, rows.validation, self.device)
        probed = min(range(len(self.objective.lengths)), key=self.objective.lengths.__getitem__)
        whole = (
            reference.whole_model_loss(self.model, self.objective, probed, self.device)
            if shards_weights(self.plan)
            else None
        )
        self.engine = new_engine(
            Setup(self.model, self.objective, self.plan, self.training, self.device, self.world, first, self.horizon),
            self.plan.strategy,
        )
        if whole is not None:
            batch = {n: t.to(self.device) for n, t in self.objective.collate([probed], packed=False).items()}
            self.model.eval()
            with torch.no_grad():
                sharded = float(self.engine.loss(batch)) / max(1, self.objective.counts[probed])
            precision = "bf16" if self.plan.method == "qlora" else self.plan.precision
            reference.require_equal(sharded, whole, precision, self.plan.strategy)
        if resume is not None:
            self.engine.load_optimizer_state(read_optimizer(resume))
        size = self.plan.micro_batch_size * self.plan.gradient_accumulation * self.world.size
        ids, weights = [row.id for row in rows.train], [row.weight for row in rows.train]
        self._stream = example_stream(ids, weights, self.training.seed, self.horizon.most * size).reshape(-1, size)
        self.probe = self._probe()
        self.plan = self.probe.plan
        self.trainer = AdapterTrainer(
            self.engine,
            self.objective,
            self._step_batches,
            packed=self.plan.packing,
            device=self.device,
            stopwatch=self.stopwatch,
        )

    def _prepare_objective(self, start: Start) -> None:
        """Let the objective ask the model that training starts from, and prove that model and loss are the base's."""
        from finetune_runner.text import encode_example

        self._say("asking the model before training")
        self.engine.call(lambda model: self.objective.prepare(model, self.world, lambda _: self._goes_on(), start))
        if start.untouched:
            max_length = self.training.max_length
            examples = first_batch(
                [encode_example(self.tokenizer, row.messages, max_length) for row in self.rows.validation]
            )
            dora, pad = self.context.task.spec.method.use_dora, self.tokenizer.pad_token_id
            if start.fresh:
                self.engine.call(lambda model: refuse_changed_start(model, examples, pad, dora=dora))
            precision = "bf16" if self.plan.method == "qlora" else self.plan.precision
            self.engine.call(lambda model: refuse_other_loss(model, examples, pad, precision))

    def _probe(self) -> Probe:
        """Find out before the run whether the micro-batch fits."""
        from finetune_runner.training import probe
        from finetune_runner.training.trainer import to_device

        if not self.engine.can_probe or self.state.ended_by:
            return probe.Probe(self.plan)
        steps = self._stream[self.state.step :].tolist() or self._stream[-1:].tolist()

        def batch_of(size: int) -> Batch:
            examples = probe.longest_micro_batch(steps, self.objective.lengths, size)
            return to_device(self.objective.collate(examples, packed=self.plan.packing), self.device)

        self._say("trying the longest batch")
        found = probe.find(self.engine, self.plan, self.world, batch_of)
        if found.changes:
            log.warning("the longest batch does not fit as planned: %s", found.changes)
        return found

    def _step_batches(self, step: int) -> tuple[list[list[int]], int]:
        """This rank's micro-batches of a step (from 1), and the count of all examples of the step on all ranks."""
        examples = self._stream[step - 1].tolist()
        parts = micro_batches(
            examples, self.objective.lengths, self.plan.gradient_accumulation, self.world.size, self.world.rank
        )
        return parts, sum(self.objective.counts[index] for index in examples)

    # -- loop --------------------------------------------------------------------------------------------------------

    def _loop(self) -> None:
        if self.state.initial_validation_loss is None:
            self._say("validating the untuned model")
            loss, measures = self._measure()
            self.state.initial_validation_loss = loss
            self._note_validation(Point(0, loss, measures=measures))
            self.early_stop.observe(self._selection.badness(loss, measures))
        if self.state.pending_evaluation:
            budget_s = self.plan.time_budget_seconds
            self._evaluate(self.state.step, over_budget=budget_s is not None and self.state.elapsed_s >= budget_s)
            if self.state.ended_by:
                return
        self.trainer.train(range(self.state.step + 1, self.horizon.most + 1), self._before_step, self._after_step)

    def _before_step(self, step: int) -> None:
        import torch

        # Random numbers (dropout) are a function of seed, step and rank: nothing to save, nothing to restore.
        torch.manual_seed((self.training.seed * 1_000_003 + step - 1) * 4_099 + self.world.rank)
        self._rate = float(self.engine.optimizer.param_groups[0]["lr"])
        self._step_started = time.monotonic()
        if step == 1:
            self._first_step.remember(self.engine.adapter())
        examples = self._stream[step - 1].tolist()
        self.engine.call(lambda model: self.objective.begin_step(model, examples, self.world))

    def _after_step(self, step: int) -> bool:
        """Everything that happens between two optimiser steps. Returns whether training ends here."""
        with self.stopwatch.measure("compute"):
            local_loss = float(self.trainer.take_step_loss())
        took_s = time.monotonic() - self._step_started
        budget_s = self.plan.time_budget_seconds
        over_budget = budget_s is not None and self.state.elapsed_s + took_s >= budget_s
        # All ranks must take the same way, and their clocks differ.
        loss, stop, budget, slow_somewhere = self.world.sum(
            [local_loss, float(self.context.stop.is_set()), float(over_budget), float(self._slow)], self.device
        )
        self._note_step(step, loss, took_s)
        self.tracking.log(step, {"train/loss": loss, "train/learning_rate": self._rate, "train/step_seconds": took_s})
        self._watchdog.beat()
        self._refuse_divergence(step, loss)
        if step == 1:
            self._first_step.refuse_unmoved(self.engine.adapter())

        last = step == self.horizon.end
        due = bool(last or budget or step % self.plan.eval_steps == 0 or self.horizon.decides_at(step))
        if stop and not last:
            self._interrupted = True
            self.state.pending_evaluation = due
            self._save()
            return True
        every = self.training.checkpoints.every_steps
        if due:
            if slow_somewhere:
                self.state.pending_evaluation = True
                self._save()
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
        examples = self._stream[step - 1].tolist()
        self._tokens += sum(self.objective.lengths[index] for index in examples)
        self._labelled += sum(self.objective.counts[index] for index in examples)
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
        loss, measures = self._measure()
        if not math.isfinite(loss):
            self._refuse_divergence(step, loss)
        state = self.state
        since = self.plan.eval_steps
        train_loss = statistics.fmean(state.recent_losses[-since:])
        self._note_validation(Point(step, loss, train_loss, measures))
        if self._selection.better(loss, measures, state.best_validation_loss, state.best_measures):
            state.best_step, state.best_validation_loss, state.best_measures = step, loss, measures
        wait_is_over = self.early_stop.observe(self._selection.badness(loss, measures))
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
        state.pending_evaluation = False
        self._save()

    def _measure(self) -> tuple[float, dict[str, float]]:
        """Loss and measures of all validation rows, and the metrics of those that are answered."""
        began = time.monotonic()
        loss, measures = self._validate()
        with self.stopwatch.measure("validation"):
            lockstep, alive = self.engine.lockstep, self._goes_on
            answers = self.engine.call(lambda model: self.judge.answer(model, alive, lockstep=lockstep))
            measures |= self.judge.metrics(answers, self.device)
        self.state.validation_s = time.monotonic() - began
        return loss, measures

    def _goes_on(self) -> None:
        """Between two batches of something other than a step. Raises StageError when a stop costs nothing.

        That is so when it is asked for, the step is saved and much is left to do. Ranks of one pod need not agree:
        whoever hears it first ends the others. Those of another pod would be told as failed, so with several nodes
        what is under way goes on.
        """
        self._watchdog.alive()
        saved = self._saved is not None and self._saved[0] == self.state.step
        if saved and self._slow and self.plan.nodes == 1 and self.context.stop.is_set():
            raise self._asked_to_stop()

    @property
    def _slow(self) -> bool:
        """Whether the last evaluation might not have ended within a pod's grace period."""
        return (self.state.validation_s or 0.0) > SLOW_EVALUATION_S

    def _asked_to_stop(self) -> StageError:
        return StageError(
            ExitCode.INTERRUPTED,
            f"training was asked to stop and saved a checkpoint at step {self.state.step}",
            hint="the next attempt resumes there",
        )

    def _note_validation(self, point: Point) -> None:
        self.state.history.append(point)
        measured = {f"validation/{name}": value for name, value in point.measures.items()}
        self.tracking.log(point.step, {"validation/loss": point.validation_loss, **measured})

    def _validate(self) -> tuple[float, dict[str, float]]:
        """Mean loss over all validation rows (sft: by token) and the objective's measures; each process has a share."""
        self.model.eval()
        with self.stopwatch.measure("validation"):
            local: Sums = self.engine.call(
                lambda model: self.objective.validation(model, self.world, lambda _: self._goes_on())
            )
            loss, count, *measures = self.world.sum([local.loss, local.count, *local.measures.values()], self.device)
        if count == 0:
            raise StageError(
                ExitCode.INVALID_DATA,
                "no validation row has an answer within training.maxLength",
                hint="raise training.maxLength or data.validation.fraction",
            )
        return loss / count, {name: value / count for name, value in zip(local.measures, measures, strict=True)}

    def _say(self, phase: str) -> None:
        """Live progress; the main process speaks for all."""
        if not self.world.main:
            return
        step, total = self.state.step, self.horizon.expected(self.state.step)
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
        """A checkpoint: every rank uploads its share of the files, the main process commits the manifest last."""
        with self.stopwatch.measure("checkpoint"):
            if self._saved is None or self._saved[0] != self.state.step:
                self._saved = self.state.step, self._upload()
            if self.world.main:
                self.store.commit(self.state, self._saved[1])
                if not self.state.pending_evaluation:
                    self.store.prune(self.state.best_step)
            self.world.barrier()

    def _upload(self) -> dict[str, dict[str, Any]]:
        """The files of the step's checkpoint, to storage; what its manifest has to say about them."""
        folder = self.folder / "save"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        adapter, states = self.engine.adapter(), self.engine.optimizer_state()
        if self.world.main:
            self.model.save_pretrained(
                str(folder), safe_serialization=True, save_embedding_layers=False, state_dict=adapter
            )
            (folder / "README.md").unlink(missing_ok=True)
        write_optimizer(states, folder, self.world)
        self.store.begin(self.state.step, self.world)
        files = self.world.gather(self.store.upload(folder, self.state.step))
        return {name: facts for part in files for name, facts in part.items()}

    def _load_adapter(self, folder: Path) -> None:
        """Overwrite every adapter weight of the not yet spread out model with the file's."""
        refuse_empty_adapter(self.adapter_shapes, folder)
        tensors = self._saved_adapter(folder)
        for name, parameter in trainable(self.model).items():
            parameter.data.copy_(tensors[name])

    def _saved_adapter(self, folder: Path) -> dict[str, Any]:
        """Weights of a saved adapter by parameter name. Raises StageError when it does not hold all of them."""
        from safetensors.torch import load_file

        saved = load_file(str(folder / ADAPTER_FILE))
        missing = [key for key in self.adapter_keys.values() if key not in saved]
        if missing:
            raise StageError(
                ExitCode.INTERNAL, "a saved adapter does not hold every weight", evidence=", ".join(missing)[:500]
            )
        return {name: saved[key] for name, key in self.adapter_keys.items()}

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
        tensors = self._saved_adapter(folder)
        self.engine.load_adapter(tensors)
        again, _ = self._validate()
        recorded = self.state.best_validation_loss or 0.0
        tolerance = 1e-5 if self.device.type == "cpu" else 1e-3
        if not math.isclose(again, recorded, rel_tol=tolerance):
            raise StageError(
                ExitCode.INTERNAL,
                f"the kept adapter has validation loss {again:.6g} after reloading, {recorded:.6g} before",
            )
        return best

    def _per_second(self, count: int) -> float:
        return count / self._in_steps_s if self._in_steps_s else 0.0

    def _utilization(self) -> float | None:
        """Model FLOPs utilisation: useful operations over the peak of all GPUs; None on a CPU or an unknown GPU."""
        peak, per_token = self.plan.gpu_peak_tflops, self.plan.flops_per_token
        if self.device.type != "cuda" or not peak or not per_token:
            return None
        return round(self._per_second(self._tokens) * per_token / (peak * 1e12 * self.world.size), 4)

    def _result(self, best: Checkpoint, duration_s: float, peak_bytes: int) -> TrainResult:
        """Of the main process, which writes the whole curve first."""
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
            total_steps=self.horizon.expected(self.state.step),
            best_step=best.step,
            stopped_by=ended_by.get(self.state.ended_by, "completed"),
            train_loss=statistics.fmean(self.state.recent_losses[-self._last_tenth :]),
            initial_validation_loss=self.state.initial_validation_loss or 0.0,
            best_validation_loss=self.state.best_validation_loss or 0.0,
            reward_accuracy=self.state.best_measures.get("rewardAccuracy"),
            reward_margin=self.state.best_measures.get("rewardMargin"),
            checkpoint_uri=best.uri,
            checkpoint_digest=adapter["sha256"],
            trainable_parameters=self.trainable_parameters,
            adapter_bytes=adapter["size"],
            peak_memory_bytes=peak_bytes,
            tokens_per_second=round(self._per_second(self._tokens), 1),
            labelled_tokens_per_second=round(self._per_second(self._labelled), 1),
            model_flops_utilization=self._utilization(),
            seconds=TimeShares(**{part: round(spent, 2) for part, spent in self.stopwatch.seconds.items()}),
            strategy=self.plan.strategy,
            micro_batch_size=self.plan.micro_batch_size,
            gradient_accumulation=self.plan.gradient_accumulation,
            gradient_checkpointing=self.plan.gradient_checkpointing,
            probe=self.probe.changes[:256],
            duration_seconds=round(duration_s, 1),
            resumed_from_step=self.resumed_from or 0,
            validation_metrics={name: round(value, 6) for name, value in self.state.best_measures.items()},
            lost_trackers=self._lost_trackers,
        )
