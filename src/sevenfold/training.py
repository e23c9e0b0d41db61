"""The one training loop: rows from the device, early stopping with the best weights, one seed for everything random."""

import csv
import io
import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor

from sevenfold import arithmetic, processes
from sevenfold.checkpoints import Checkpoint
from sevenfold.datasets.base import Split
from sevenfold.loader import Loader
from sevenfold.models.base import Autoencoder, ModelSpec
from sevenfold.optimizer import AdamW
from sevenfold.steps import Steps

JUDGED = 4096
"""Rows of a validation split that go through the model at a time."""


@dataclass(frozen=True)
class Settings:
    """How to train.

    epochs: at most so many passes over the training rows.
    patience: stop after so many epochs without a better validation loss.
    batch_size: rows per step.
    learning_rate: at its peak; it rises linearly over the first `warmup` share of the steps, then falls as a cosine.
    weight_decay: of AdamW.
    gradient_clip: largest norm of a step's gradient.
    threads: CPU threads at most; small networks take one. Part of the result, since the order of a sum depends on it.
    precision: of the products; weights and optimizer stay float32. "auto" is bfloat16 for wide networks and convolutions,
        where the processor has it.
    compile: whether the step is compiled. "auto" does so in a training so long that it pays.
    """

    epochs: int
    patience: int
    batch_size: int
    learning_rate: float
    warmup: float
    weight_decay: float
    gradient_clip: float
    threads: int
    precision: arithmetic.Precision = "auto"
    compile: arithmetic.Compile = "auto"


@dataclass(frozen=True)
class Epoch:
    """What one pass over the training rows gave; losses are means over rows. `seconds` and `rows` are for showing only."""

    number: int
    learning_rate: float
    train: dict[str, float]
    validation: dict[str, float]
    best: bool
    seconds: float
    rows: int

    @property
    def loss(self) -> float:
        return sum(self.validation.values())


@dataclass(frozen=True)
class History:
    """Every epoch of a training, in order, and what a reader should know of how it went."""

    epochs: tuple[Epoch, ...]
    notes: tuple[str, ...] = ()

    @property
    def best(self) -> Epoch:
        """The epoch whose weights the model has."""
        return next(epoch for epoch in reversed(self.epochs) if epoch.best)

    def to_csv(self) -> str:
        """Return one line per epoch. No times: equal trainings give equal bytes."""
        out = io.StringIO()
        writer = csv.writer(out, lineterminator="\n")
        terms = list(self.epochs[0].validation)
        writer.writerow(
            ["epoch", "learning_rate", "validation_loss", *(f"{p}_{t}" for p in ("train", "validation") for t in terms)]
        )
        for e in self.epochs:
            values = [e.learning_rate, e.loss, *(e.train[t] for t in terms), *(e.validation[t] for t in terms)]
            writer.writerow([e.number, *(f"{v:.6g}" for v in values)])
        return out.getvalue()


class DivergenceError(ArithmeticError):
    """The loss is no longer a finite number.

    model: with the weights of the best epoch before, in `eval` mode on the CPU; None where there was none.
    """

    model: Autoencoder | None = None


def fit(
    spec: ModelSpec,
    train: Split,
    validation: Split,
    settings: Settings,
    *,
    seed: int,
    device: str,
    on_epoch: Callable[[Epoch], None],
    checkpoint: Checkpoint | None = None,
    room: int | None = None,
    cache: Path | None = None,
) -> tuple[Autoencoder, History]:
    """Train a model and return it, in `eval` mode on the CPU, with the weights of its best epoch.

    Same spec, rows, settings and seed give the same weights on one machine's CPU. A variant without trainable
    parameters is only prepared. Epochs before the share of the training that a model names as `settled` are not compared:
    its losses mean something else until then.

    Where torch.distributed is initialised, as under torchrun, all processes call this alike, and each takes its share of
    every batch. Each gets the same model; only the process of rank 0 calls `on_epoch` and saves.

    Args:
        device: "cpu", "cuda" or "cuda:0".
        on_epoch: called after each epoch, to show progress; after a resumption with the epochs from there on.
        checkpoint: where the state is saved every so often. A training that finds its own state there goes on from it,
            and on the CPU ends with the very weights of one that was never stopped; it removes the state at its end.
        room: bytes that rows may take on the device; beyond, they are read from disk while it computes. By default a
            share of its free memory. The result is the same.
        cache: a private folder in which a compiler keeps its work for the next training.

    Raises:
        ValueError: there are fewer training rows than code values, or no validation rows; or the settings want a
            precision that the device does not have.
        DivergenceError: a loss was not finite; the message names the step, the term and the learning rate.
        MemoryError: the device's memory does not take a single row.
    """
    # Before the model is built: its weights are random too.
    torch.manual_seed(seed)
    model = spec.build()
    # A code longer than the sample is no summary of rows: an image restorer learns from a single one.
    if len(train) < (least := model.code if model.code <= model.size else 1):
        raise ValueError(
            f"{len(train)} training rows for a code of {model.code}; expected at least {least}; give more rows or a "
            "smaller `code`"
        )
    if not len(validation):
        raise ValueError(
            "no validation rows; expected at least one, to tell the best epoch by; give the split a larger share, or "
            "mend the data set's `normal` where only normal rows count"
        )
    threads = torch.get_num_threads()
    torch.set_num_threads(arithmetic.threads(model, settings.batch_size, settings.threads))
    try:
        rows, held_out = Loader(train, device, room=room), Loader(validation, device, room=room)
        start = time.perf_counter()
        x, observed = rows.all()
        model = model.to(x.device)
        model.prepare(x, observed)
        _require_learned(model)
        model = model.to(device)
        if arithmetic.convolves(model):
            model = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        if not any(p.requires_grad for p in model.parameters()):
            history = _closed_form(model, rows, held_out, start)
            if (together := processes.group()) is None or together.rank == 0:
                on_epoch(history.epochs[0])
        else:
            descent = _Descent(model, settings, rows, held_out, seed, checkpoint, cache)
            history = descent.run(on_epoch)
    finally:
        torch.set_num_threads(threads)
    return model.cpu().eval(), history


def _closed_form(model: Autoencoder, rows: Loader, held_out: Loader, start: float) -> History:
    fitted, found = _mean_losses(model, rows), _mean_losses(model, held_out)
    _require_finite(fitted | {f"validation {n}": v for n, v in found.items()}, "in closed form")
    return History((Epoch(1, 0.0, fitted, found, True, time.perf_counter() - start, len(rows)),))


class _Descent:
    """A training by gradients, with all that changes while it lasts, so that it can be saved and taken up again."""

    def __init__(
        self,
        model: Autoencoder,
        settings: Settings,
        rows: Loader,
        held_out: Loader,
        seed: int,
        checkpoint: Checkpoint | None,
        cache: Path | None,
    ) -> None:
        self._model = model
        self._settings = settings
        self._rows, self._held_out = rows, held_out
        self._checkpoint = checkpoint
        self._group = processes.group()
        device = next(model.parameters()).device
        self._size = min(settings.batch_size, len(rows))
        low = arithmetic.in_bfloat16(model, settings.precision, device, cells=self._size * model.size)
        self._optimizer = AdamW(
            model, low=low or (), weight_decay=settings.weight_decay, gradient_clip=settings.gradient_clip
        )
        self._count = settings.epochs * math.ceil(len(rows) / self._size)
        self._steps = Steps(
            model,
            self._optimizer,
            low=low,
            size=self._size if self._group is None else len(self._group.share(torch.arange(self._size))),
            count=self._count,
            compiled=settings.compile,
            cache=cache,
        )
        # The order has chance of its own: it is the same in all processes, whose noise is not.
        self._shuffle = torch.Generator().manual_seed(seed)
        if self._group is not None:
            if self._size < self._group.size:
                raise ValueError(
                    f"batches of {self._size} rows for {self._group.size} processes; expected a row each or more; use "
                    "fewer processes or a larger `batch_size`"
                )
            torch.manual_seed(seed + 7919 * self._group.rank)
        self._step = 0
        self._epochs: list[Epoch] = []
        self._best_weights: dict[str, Tensor] = {}
        self._best_loss, self._since = math.inf, 0
        # Of the epoch that is under way: the state of chance before its order was drawn, its losses so far, its seconds.
        self._chance = self._shuffle.get_state()
        self._taken: list[Tensor] = []
        self._seconds = 0.0
        self._saved = time.monotonic()

    def run(self, on_epoch: Callable[[Epoch], None]) -> History:
        """Train to the end, and leave the model with the weights of its best epoch."""
        resumed = self._take_up()
        try:
            while len(self._epochs) < self._settings.epochs and self._since < self._settings.patience:
                parts = self._order(resumed)
                resumed = False
                self._pass(parts)
                epoch = self._judge([len(part) for part in parts])
                if self._group is None or self._group.rank == 0:
                    on_epoch(epoch)
                self._save_together()
        except DivergenceError as error:
            if self._best_weights:
                self._finish()
                error.model = self._model.cpu().eval()
            raise
        self._finish()
        if self._checkpoint is not None:
            self._checkpoint.remove()
        return History(tuple(self._epochs), tuple(self._steps.notes))

    def _finish(self) -> None:
        self._model.progress.fill_(1.0)
        self._model.load_state_dict(self._best_weights)
        self._optimizer.release()

    def _order(self, resumed: bool) -> tuple[Tensor, ...]:
        """Draw the rows of each batch; those of an epoch that was broken off are drawn again."""
        if resumed:
            self._shuffle.set_state(self._chance)
        else:
            self._chance, self._taken, self._seconds = self._shuffle.get_state(), [], 0.0
        return torch.split(torch.randperm(len(self._rows), generator=self._shuffle), self._size)

    def _pass(self, batches: tuple[Tensor, ...]) -> None:
        """Go through what is left of an epoch."""
        start = time.perf_counter()
        self._model.train()
        group, progress = self._group, self._model.progress
        parts = batches if group is None else tuple(group.share(batch) for batch in batches)
        shares = [len(part) / len(batch) for part, batch in zip(parts, batches, strict=True)]
        first = len(self._taken)
        for index, (x, observed) in enumerate(self._rows.batches(parts, first), start=first):
            progress.fill_(self._step / self._count)
            values = self._steps.take(x, observed, self._step, share=1.0 if group is None else shares[index])
            if group is not None:
                group.add(self._optimizer.gradients)
            self._optimizer.step(self._rate(self._step))
            self._step += 1
            self._taken.append(values)
            if group is None and self._due():
                self._seconds += time.perf_counter() - start
                self._save()
                start = time.perf_counter()
        self._seconds += time.perf_counter() - start

    def _rate(self, step: int) -> float:
        return self._settings.learning_rate * _rate(step, self._count, self._settings.warmup)

    def _judge(self, sizes: list[int]) -> Epoch:
        """Close an epoch: look at its losses and at those of the validation rows, and keep the best weights."""
        start = time.perf_counter()
        number = len(self._epochs) + 1
        # One look at the device per epoch, not per step: each look waits for it.
        table = torch.stack(self._taken).double()  # (steps, terms)
        if self._group is not None:
            self._group.add([table])
            self._group.spread([b for b in self._model.buffers() if b.is_floating_point()])
        table = table.cpu()
        first = self._step - len(table)
        # Of all steps the first that went wrong, or the last.
        wrong = (~table.isfinite().all(dim=1)).nonzero()
        index = int(wrong[0]) if len(wrong) else len(table) - 1
        place = f"step {first + index + 1} (epoch {number}, learning rate {self._rate(first + index):.2g})"
        _require_finite(dict(zip(self._steps.terms, table[index].tolist(), strict=True)), f"in {place}")
        weights = torch.tensor(sizes, dtype=torch.double) / len(self._rows)
        fitted = dict(zip(self._steps.terms, (weights @ table).tolist(), strict=True))
        found = self._found()
        _require_finite({f"validation {n}": v for n, v in found.items()}, f"after {place}")
        total = sum(found.values())
        # Before a model has settled its losses do not compare, and waiting for better ones has not begun.
        settled = self._step >= self._model.settled * self._count
        better = settled and total < self._best_loss
        if better:
            self._best_loss, self._since = total, 0
            self._best_weights = {name: value.detach().clone() for name, value in self._model.state_dict().items()}
        elif settled:
            self._since += 1
        seconds = self._seconds + time.perf_counter() - start
        self._epochs.append(Epoch(number, self._rate(self._step - 1), fitted, found, better, seconds, len(self._rows)))
        return self._epochs[-1]

    def _found(self) -> dict[str, float]:
        """Return the validation losses; with several processes, those that the first one finds."""
        if self._group is None:
            return _mean_losses(self._model, self._held_out)
        values = torch.zeros(len(self._steps.terms), dtype=torch.double)
        if self._group.rank == 0:
            values = torch.tensor(list(_mean_losses(self._model, self._held_out).values()), dtype=torch.double)
        values = values.to(self._optimizer.places[0].device)
        self._group.spread([values])
        return dict(zip(self._steps.terms, values.tolist(), strict=True))

    def _due(self) -> bool:
        return self._checkpoint is not None and time.monotonic() - self._saved > self._checkpoint.seconds

    def _save_together(self) -> None:
        """Save between two epochs, where several processes can: when the first one's time has come."""
        if self._group is None or self._checkpoint is None:
            return
        due = torch.tensor(float(self._due()), device=self._optimizer.places[0].device)
        self._group.spread([due])
        if due:
            self._chance, self._taken, self._seconds = self._shuffle.get_state(), [], 0.0
            self._save()

    def _noise(self) -> Tensor:
        device = self._optimizer.places[0].device
        return torch.cuda.get_rng_state(device).to(device) if device.type == "cuda" else torch.get_rng_state()

    def _save(self) -> None:
        assert self._checkpoint is not None
        noise = [self._noise()] if self._group is None else self._group.gathered(self._noise())
        tensors = {f"model.{name}": value for name, value in self._model.state_dict().items()}
        tensors |= {f"best.{name}": value for name, value in self._best_weights.items()}
        tensors |= {f"optimizer.{name}": value for name, value in self._optimizer.state().items()}
        tensors |= {f"noise.{rank}": state for rank, state in enumerate(noise)}
        tensors |= {"chance": self._chance} | ({"taken": torch.stack(self._taken)} if self._taken else {})
        facts = {
            "step": self._step,
            "epochs": [asdict(epoch) for epoch in self._epochs],
            "best_loss": self._best_loss if math.isfinite(self._best_loss) else None,
            "since": self._since,
            "terms": self._steps.terms,
            "part": self._steps.part,
            "notes": self._steps.notes,
            "seconds": self._seconds,
        }
        if self._group is None or self._group.rank == 0:
            self._checkpoint.save(tensors, facts)
        self._saved = time.monotonic()

    def _take_up(self) -> bool:
        """Put back a state that was saved; say whether there was one."""
        found = self._checkpoint.load() if self._checkpoint is not None else None
        if found is None:
            return False
        tensors, facts = found

        def part(prefix: str) -> dict[str, Tensor]:
            return {n.removeprefix(prefix): value for n, value in tensors.items() if n.startswith(prefix)}

        self._model.load_state_dict(part("model."))
        self._optimizer.restore(part("optimizer."))
        device = self._optimizer.places[0].device
        self._best_weights = {name: value.to(device) for name, value in part("best.").items()}
        noise = tensors[f"noise.{0 if self._group is None else self._group.rank}"]
        if device.type == "cuda":
            torch.cuda.set_rng_state(noise, device)
        else:
            torch.set_rng_state(noise)
        self._chance, self._taken = tensors["chance"], list(tensors.get("taken", torch.empty(0)).to(device))
        self._step, self._since, self._seconds = facts["step"], facts["since"], facts["seconds"]
        self._best_loss = math.inf if facts["best_loss"] is None else facts["best_loss"]
        self._steps.terms, self._steps.part = tuple(facts["terms"]), facts["part"]
        self._steps.notes += facts["notes"]
        self._epochs = [Epoch(**epoch) for epoch in facts["epochs"]]
        return True


def _rate(step: int, steps: int, warmup: float) -> float:
    """The share of the peak learning rate at a step: a linear rise, then half a cosine down to a hundredth."""
    rising = max(1, round(steps * warmup))
    if step < rising:
        return (step + 1) / rising
    done = (step - rising) / max(1, steps - rising)
    return 0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * min(1.0, done)))


def _require_finite(losses: dict[str, float], where: str) -> None:
    for term, value in losses.items():
        if not math.isfinite(value):
            raise DivergenceError(
                f"loss term {term!r} is {value} {where}; expected a finite number; lower `learning_rate`, or look for "
                "extreme values in the data"
            )


def _require_learned(model: Autoencoder) -> None:
    for name, value in model.named_buffers():
        if not value.isfinite().all():
            raise DivergenceError(
                f"what {type(model).__name__} learned of the data is not finite, {name} to begin with; expected numbers "
                "that float32 can square; look for extreme values in the data"
            )


def _mean_losses(model: Autoencoder, rows: Loader) -> dict[str, float]:
    """Return each loss over all rows, in `eval` mode and float32, in batches that fit anywhere."""
    model.eval()
    totals: dict[str, float] = {}
    with torch.inference_mode():
        for x, observed in rows.in_order(JUDGED):
            for name, value in model.losses(x, observed).items():
                totals[name] = totals.get(name, 0.0) + float(value) * len(x) / len(rows)
    return totals
