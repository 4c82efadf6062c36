"""The training loop: a function of the recipe, the start and the step, so that it can be killed at any time and taken up again."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import nullcontext
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from ..distributed import rank, world
from ..errors import VitfrostError
from ..evaluation.intervals import share
from ..evaluation.outcomes import Outcomes
from ..model import Model
from ..progress import say, track
from ..vit.compat import import_timm
from .augment import Augment, mix
from .checkpoint import MetricsFile, load_checkpoint, save_checkpoint
from .decoded import DecodedImages
from .evaluation import EvaluationImages, outcomes_of
from .objective import objective, soft_labels, token_loss
from .optimizer import build_optimizer, build_schedule, stop_dropping, total_steps
from .order import batches_of_rank, item_seeds
from .prepare import Start
from .processes import check_norms, distributed, first_process, mean_of_processes, share_of_batch
from .products import fast_products
from .recipe import TrainingRecipe
from .teacher import Teacher, WithTokens

import_timm()
from timm.utils import ModelEmaV3  # noqa: E402  (timm must be imported through the guard)

_RANK, _POSITIVE = np.zeros(1, np.int64), 2**63 - 1
CHECKPOINT, METRICS, BOARD = "checkpoint.pt", "metrics.jsonl", "tensorboard"


class Trainer:
    """One run in `folder`. The model of `start` is trained in place; `inputs` are the hashes that its checkpoints belong to. They also keep
    `notes`, plain values about the start.

    Raises VitfrostError for batches that cannot be made or shared, too small ones, and unknown options.
    """

    def __init__(
        self,
        recipe: TrainingRecipe,
        folder: Path,
        start: Start,
        images: DecodedImages,
        device: torch.device,
        *,
        inputs: dict[str, str],
        evaluation: EvaluationImages | None = None,
        teacher: Model | None = None,
        progress: bool = True,
    ):
        self.recipe, self.folder, self.device, self.inputs = recipe, folder, device, inputs
        self.notes: dict[str, Any] = {"structure": start.structure, "seeds": start.seeds}
        self.loaded, self.evaluation, self.progress = start.loaded, evaluation, progress and rank() == 0
        self.share = share_of_batch(recipe.batch_size)
        if len(images) < recipe.batch_size:
            raise VitfrostError(f"data.train has {len(images)} images, fewer than one batch of {recipe.batch_size}; lower batch_size")
        mixing = recipe.mixing
        if (mixing.mixup or mixing.cutmix) and self.share % mixing.chunk:
            raise VitfrostError(
                f"a process takes {self.share} images, which is no multiple of mixing.chunk {mixing.chunk}; change batch_size or the chunk"
            )
        self.images = images.to(device)
        self.model = check_norms(start.model.to(device), self.share, device)
        self.tokens = 0.0 if recipe.teacher is None else recipe.teacher.tokens
        self.teacher = None if teacher is None else Teacher(teacher, start.loaded, device, tokens=self.tokens > 0)
        self.average = None if recipe.ema is None else ModelEmaV3(self.model, decay=recipe.ema)
        self.steps_per_epoch = len(images) // recipe.batch_size
        self.total = total_steps(recipe.schedule, self.steps_per_epoch)
        self.optimizer = build_optimizer(self.model, recipe.optimizer)
        self.schedule = build_schedule(self.optimizer, recipe.schedule, recipe.optimizer.lr, self.steps_per_epoch)
        runner = distributed(WithTokens(self.model) if self.tokens else self.model, device)
        self.runner: Any = torch.compile(runner) if recipe.compile and device.type == "cuda" else runner
        height, width = start.loaded.image_size
        if height != width:
            raise VitfrostError(f"the model takes images of {height} x {width} pixels, training square ones only; choose a square size")
        self.augment = Augment(recipe.augment, height, start.loaded.preprocessing.mean, start.loaded.preprocessing.std)
        self.step, self.elapsed, self.last_good = 0, 0.0, 0
        self._metrics_position = 0
        self._bad_step = torch.full((), -1, device=device)
        self._loss = torch.zeros((), device=device)
        self._since_log = 0

    @property
    def result(self) -> nn.Module:
        """What is evaluated and kept: the moving average where there is one."""
        return self.model if self.average is None else self.average.module

    @property
    def checkpoint(self) -> Path:
        """Where the state is kept."""
        return self.folder / CHECKPOINT

    def resume(self) -> None:
        """Take up the run where its checkpoint left it. Raises VitfrostError as `load_checkpoint` does."""
        state = load_checkpoint(self.checkpoint, self.inputs)
        try:
            self.model.load_state_dict(state["model"])
            if self.average is not None:
                self.average.module.load_state_dict(state["average"])
            self.optimizer.load_state_dict(state["optimizer"])
            self.step, self.elapsed, self._metrics_position = int(state["step"]), float(state["elapsed"]), int(state["metrics"])
            self.notes = dict(state["notes"])
            self._loss, self._since_log = state["loss"].to(self.device), int(state["since_log"])
        except (KeyError, RuntimeError, ValueError, TypeError, AttributeError, IndexError) as error:
            reason = f"{type(error).__name__} {str(error).splitlines()[0] if str(error) else ''}"
            raise VitfrostError(f"{self.checkpoint} is damaged: {reason}; delete it to train from the start") from error
        self.last_good = self.step

    def train(self) -> None:
        """Train to the end of the schedule or of the time limit; at its end a checkpoint holds the last state.

        Raises VitfrostError where the loss is not finite (the last good checkpoint stays) and where nothing can be written.
        """
        board = self.folder / BOARD if self.recipe.tensorboard else None
        metrics = MetricsFile(self.folder / METRICS, self._metrics_position, board) if rank() == 0 else None
        try:
            self._train(metrics)
        finally:
            if metrics is not None:
                metrics.close()

    def _train(self, metrics: MetricsFile | None) -> None:
        began = saved = logged = time.monotonic()
        before, first = self.elapsed, self.step
        self._set_modes()
        todo = max(self.total - self.step, 0)
        for chosen in track(self._batches(), todo, "train", self.progress and not self._follows_time):
            self.elapsed = before + time.monotonic() - began
            if self._out_of_time():
                break
            self._one_step(chosen)
            self.step += 1
            if self.step == self._drop_end:
                self._set_modes()
            now = time.monotonic()
            if self.step % self.recipe.log_every == 0:
                self._log(metrics, now - logged)
                logged = now
            every = self.recipe.evaluate_every
            if every is not None and self.step % (every * self.steps_per_epoch) == 0 and self.step < self.total:
                self.evaluate(metrics)
                logged = time.monotonic()
            if rank() == 0 and self._checkpoint_is_due(now - saved):
                self.elapsed = before + time.monotonic() - began
                self._save(metrics)
                saved = time.monotonic()
        if self.step > first:
            self.elapsed = before + time.monotonic() - began
            self._refuse_bad()
            if rank() == 0:
                self._save(metrics)

    @property
    def _follows_time(self) -> bool:
        return self.recipe.schedule.follow == "time"

    @property
    def _drop_end(self) -> int:
        return int(self.recipe.drop_until * self.total)

    def _set_modes(self) -> None:
        self.model.train()
        if self.step >= self._drop_end:
            stop_dropping(self.model)

    def _batches(self) -> Iterator[tuple[int, np.ndarray]]:
        """(epoch, positions of this process) from the present step on: to the end of the schedule, or for ever if it follows time."""
        step = self.step
        while self._follows_time or step < self.total:
            epoch, skip = divmod(step, self.steps_per_epoch)
            batches = batches_of_rank(len(self.images), self.share, rank(), world(), self.recipe.seed, epoch, drop_last=True)
            for chosen in islice(batches, skip, None):
                if not self._follows_time and step >= self.total:
                    return
                yield epoch, chosen
                step += 1

    def _out_of_time(self) -> bool:
        limit = self.recipe.time_limit
        if limit is None:
            return False
        self.elapsed = first_process(self.elapsed, self.device)
        return self.elapsed >= 60 * limit and self.step > 0

    def _schedule_position(self) -> int:
        if not self._follows_time:
            return self.step
        assert self.recipe.time_limit is not None
        return int(min(self.elapsed / (60 * self.recipe.time_limit), 1.0) * (self.total - 1))

    def _one_step(self, chosen: tuple[int, np.ndarray]) -> None:
        recipe = self.recipe
        epoch, positions = chosen
        self.schedule.step_update(self._schedule_position())
        torch.manual_seed(int(item_seeds(recipe.seed, self.step, _RANK + rank())[0]) & _POSITIVE)
        pixels, targets = self._batch(positions, epoch)
        bf16 = recipe.precision == "bf16"
        products = fast_products(recipe.products == "onednn", self.device)
        with torch.autocast(self.device.type, torch.bfloat16) if bf16 else nullcontext(), products:
            taught = None if self.teacher is None else self.teacher(pixels)
            logits = self.runner(pixels)
        apart = None
        if self.tokens:
            assert taught is not None
            (logits, tokens), (taught, aims) = logits, taught
            if tokens.shape != aims.shape:
                shapes = f"{list(tokens.shape[1:])} and {list(aims.shape[1:])}"
                raise VitfrostError(f"model and teacher have last tokens of {shapes}, which cannot be compared; leave teacher.tokens out")
            apart = self.tokens * token_loss(tokens, aims)
        part = recipe.teacher
        options: dict[str, Any] = {} if part is None else {"weight": part.weight, "kind": part.kind, "temperature": part.temperature}
        loss = objective(logits, targets, taught, **options)
        loss = loss if apart is None else loss + apart
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        clip = float("inf") if recipe.optimizer.clip is None else recipe.optimizer.clip
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), clip)
        bad = ~torch.isfinite(norm)
        self._bad_step = torch.where(bad & (self._bad_step < 0), self.step, self._bad_step)
        self.optimizer.step()
        if self.average is not None:
            self.average.update(self.model)
        self._loss += loss.detach()
        self._since_log += 1

    def _batch(self, positions: np.ndarray, epoch: int) -> tuple[Float[Tensor, "b 3 o o"], Float[Tensor, "b classes"]]:
        """Augmented and mixed pictures and their soft targets, zero where there are no labels."""
        part, classes = self.recipe.mixing, self.loaded.classes
        pixels, labels = self.images.batch(positions)
        seeds = item_seeds(self.recipe.seed, epoch, positions)
        augmented = self.augment(pixels, seeds)
        if not (part.mixup or part.cutmix):
            soft = torch.zeros(len(positions), classes, device=self.device)
            return augmented, soft if labels is None else soft_labels(labels, classes, part.smoothing)
        known = torch.zeros(len(positions), dtype=torch.int64, device=self.device) if labels is None else labels
        mixed, soft = mix(
            augmented, known, seeds, mixup_alpha=part.mixup, cutmix_alpha=part.cutmix, switch_prob=part.switch_prob,
            label_smoothing=part.smoothing, classes=classes, chunk=part.chunk,
        )  # fmt: skip
        return mixed, torch.zeros_like(soft) if labels is None else soft

    def _refuse_bad(self) -> None:
        """Stop where a gradient was not finite; all processes see the same gradients."""
        step = int(self._bad_step)
        if step < 0:
            return
        rate = self.optimizer.param_groups[0]["lr"]
        kept = f"the checkpoint of step {self.last_good} stays" if self.last_good else "there is no checkpoint yet"
        raise VitfrostError(
            f"the loss or its gradient is not finite in epoch {step // self.steps_per_epoch + 1}, step {step + 1} "
            f"(learning rate {rate:.3g}); lower optimizer.lr, lengthen schedule.warmup, or set optimizer.clip; {kept}"
        )

    def _log(self, metrics: MetricsFile | None, seconds: float) -> None:
        self._refuse_bad()
        loss = float(mean_of_processes(self._loss)) / self._since_log
        speed = self._since_log * self.recipe.batch_size / max(seconds, 1e-9)
        self._loss.zero_()
        self._since_log = 0
        if metrics is None:
            return
        rate = max(group["lr"] for group in self.optimizer.param_groups)
        line = {"step": self.step, "epoch": round(self.step / self.steps_per_epoch, 4), "loss": loss, "lr": rate}
        metrics.write(line | {"images_per_second": round(speed, 1), "elapsed": round(self.elapsed, 2)})
        if self.progress and self._follows_time:
            assert self.recipe.time_limit is not None
            left = max(60 * self.recipe.time_limit - self.elapsed, 0)
            say(f"train: step {self.step}, loss {loss:.4f}, {left:.0f} s left")

    def evaluate(self, metrics: MetricsFile | None) -> None:
        """Measure top-1 of the present result; nothing without evaluation pictures."""
        self._refuse_bad()
        if self.evaluation is None:
            return
        right = outcomes_of(self.result, self.evaluation).correct1
        self._set_modes()
        if metrics is not None:
            metrics.write(self._accuracy_line(right))

    def note_result(self, outcomes: Outcomes) -> None:
        """Add what the saved artifact gets right as the last line of the metrics (process 0 only)."""
        metrics = MetricsFile(self.folder / METRICS, self._metrics_position, self.folder / BOARD if self.recipe.tensorboard else None)
        metrics.write(self._accuracy_line(outcomes.correct1) | {"result": True})
        metrics.close()

    def _accuracy_line(self, right: np.ndarray) -> dict[str, Any]:
        value, interval = share(int(right.sum()), len(right))
        assert interval is not None
        epoch = round(self.step / self.steps_per_epoch, 4)
        if self.progress:
            text = f"top-1 {value:.2f} % of {len(right)} [{interval[0]:.2f}, {interval[1]:.2f}]"
            say(f"epoch {epoch:g}: {text}")
        found = {"top1": round(value, 4), "images": len(right), "interval": [round(end, 4) for end in interval]}
        return {"step": self.step, "epoch": epoch, "elapsed": round(self.elapsed, 2)} | found

    def _checkpoint_is_due(self, seconds: float) -> bool:
        every = self.recipe.checkpoint_every
        return self.step % every.steps == 0 if every.steps is not None else seconds >= (every.seconds or 0)

    def _save(self, metrics: MetricsFile | None) -> None:
        self._refuse_bad()
        self._metrics_position = 0 if metrics is None else metrics.position
        state = {
            "model": self.model.state_dict(),
            "average": None if self.average is None else self.average.module.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "step": self.step,
            "elapsed": self.elapsed,
            "metrics": self._metrics_position,
            "notes": self.notes,
            "loss": self._loss,
            "since_log": self._since_log,
        }
        save_checkpoint(self.checkpoint, state, self.inputs)
        self.last_good = self.step
