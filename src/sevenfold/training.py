"""The one training loop: data on the device, early stopping with the best weights, one seed for everything random."""

import csv
import io
import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass

import numpy as np
import torch
from torch import Tensor

from sevenfold.checkpoints import Checkpoint
from sevenfold.datasets.base import Split
from sevenfold.models.base import Autoencoder, ModelSpec


@dataclass(frozen=True)
class Settings:
    """How to train.

    epochs: at most so many passes over the training rows.
    patience: stop after so many epochs without a better validation loss.
    batch_size: rows per step.
    learning_rate: at its peak; it rises linearly over the first `warmup` share of the steps, then falls as a cosine.
    weight_decay: of AdamW.
    gradient_clip: largest norm of a step's gradient.
    threads: CPU threads; part of the result, since the order of a sum depends on it.
    """

    epochs: int
    patience: int
    batch_size: int
    learning_rate: float
    warmup: float
    weight_decay: float
    gradient_clip: float
    threads: int


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
        return min(self.epochs, key=lambda e: e.loss)

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
    """The loss is no longer a finite number."""


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
) -> tuple[Autoencoder, History]:
    """Train a model and return it, in `eval` mode on the CPU, with the weights of its best epoch.

    Same spec, rows, settings and seed give the same weights on one machine's CPU. A variant without trainable
    parameters is only prepared.

    Args:
        device: "cpu", "cuda" or "cuda:0".
        on_epoch: called after each epoch, to show progress; after a resumption with the epochs from there on.
        checkpoint: where the state is saved every so often. A training that finds its own state there goes on from it,
            and on the CPU ends with the very weights of one that was never stopped; it removes the state at its end.

    Raises:
        ValueError: there are fewer training rows than code values, or no validation rows.
        DivergenceError: a loss was not finite; the message names the step, the term and the learning rate.
        MemoryError: the device's memory does not take a single row.
    """
    # Before the model is built: its weights are random too.
    torch.manual_seed(seed)
    model = spec.build()
    if len(train) < (least := min(model.code, model.size)):
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
    torch.set_num_threads(settings.threads)
    try:
        model = model.to(device)
        x, observed = _resident(train, device)
        held_out = _resident(validation, device)
        start = time.perf_counter()
        model.prepare(x, observed)
        if not any(p.requires_grad for p in model.parameters()):
            history = _closed_form(model, x, observed, held_out, start)
            on_epoch(history.epochs[0])
        else:
            descent = _Descent(model, settings, len(x), checkpoint)
            history = descent.run(x, observed, held_out, on_epoch)
    finally:
        torch.set_num_threads(threads)
    return model.cpu().eval(), history


def _resident(split: Split, device: str) -> tuple[Tensor, Tensor | None]:
    x = torch.from_numpy(np.array(split.x)).to(device)
    return x, None if split.observed is None else torch.from_numpy(np.array(split.observed)).to(device)


def _closed_form(
    model: Autoencoder, x: Tensor, observed: Tensor | None, held_out: tuple[Tensor, Tensor | None], start: float
) -> History:
    fitted, found = _mean_losses(model, x, observed), _mean_losses(model, *held_out)
    _require_finite(fitted | {f"validation {n}": v for n, v in found.items()}, "in closed form")
    return History((Epoch(1, 0.0, fitted, found, True, time.perf_counter() - start, len(x)),))


class _Descent:
    """A training by gradients, with all that changes while it lasts, so that it can be saved and taken up again."""

    def __init__(self, model: Autoencoder, settings: Settings, rows: int, checkpoint: Checkpoint | None) -> None:
        self._model = model
        self._settings = settings
        self._rows = rows
        self._checkpoint = checkpoint
        self._optimizer = torch.optim.AdamW(
            model.parameters(), lr=settings.learning_rate, weight_decay=settings.weight_decay, fused=True
        )
        self._size = self._part = min(settings.batch_size, rows)
        self._notes: list[str] = []
        self._steps = settings.epochs * math.ceil(rows / self._size)
        self._step = 0
        self._epochs: list[Epoch] = []
        self._best_weights: dict[str, Tensor] = {}
        self._best_loss, self._since = math.inf, 0
        # Of the epoch that is under way: the state of chance before its order was drawn, its losses so far, its seconds.
        self._chance = torch.get_rng_state()
        self._taken: list[Tensor] = []
        self._terms: tuple[str, ...] = ()
        self._seconds = 0.0
        self._saved = time.monotonic()

    def run(
        self,
        x: Tensor,
        observed: Tensor | None,
        held_out: tuple[Tensor, Tensor | None],
        on_epoch: Callable[[Epoch], None],
    ) -> History:
        """Train to the end, and leave the model with the weights of its best epoch."""
        resumed = self._take_up()
        while len(self._epochs) < self._settings.epochs and self._since < self._settings.patience:
            batches = self._order(x.device, resumed)
            resumed = False
            self._pass(x, observed, batches)
            on_epoch(self._judge(batches, held_out))
        self._model.progress.fill_(1.0)
        self._model.load_state_dict(self._best_weights)
        if self._checkpoint is not None:
            self._checkpoint.remove()
        return History(tuple(self._epochs), tuple(self._notes))

    def _order(self, device: torch.device, resumed: bool) -> tuple[Tensor, ...]:
        """Draw the order of the rows; the one of an epoch that was broken off is drawn again."""
        now = torch.get_rng_state()
        if resumed:
            torch.set_rng_state(self._chance)
        else:
            self._chance, self._taken, self._seconds = now, [], 0.0
        batches = torch.split(torch.randperm(self._rows).to(device), self._size)
        if resumed:
            torch.set_rng_state(now)
        return batches

    def _pass(self, x: Tensor, observed: Tensor | None, batches: tuple[Tensor, ...]) -> None:
        """Go through what is left of an epoch."""
        start = time.perf_counter()
        self._model.train()
        for rows in batches[len(self._taken) :]:
            rate = self._settings.learning_rate * _rate(self._step, self._steps, self._settings.warmup)
            for group in self._optimizer.param_groups:
                group["lr"] = rate
            self._model.progress.fill_(self._step / self._steps)
            values = self._gradients(x, observed, rows)
            torch.nn.utils.clip_grad_norm_(self._model.parameters(), self._settings.gradient_clip)
            self._optimizer.step()
            self._step += 1
            self._taken.append(values)
            if self._checkpoint is not None and time.monotonic() - self._saved > self._checkpoint.seconds:
                self._seconds += time.perf_counter() - start
                self._save()
                start = time.perf_counter()
        self._seconds += time.perf_counter() - start

    def _gradients(self, x: Tensor, observed: Tensor | None, rows: Tensor) -> Tensor:
        """Leave the gradients of a batch with the parameters; return its losses, (terms,).

        What does not fit the device's memory at once is done in parts, whose gradients are added up.
        """
        while True:
            try:
                values = torch.zeros((), device=x.device)
                for index, part in enumerate(torch.split(rows, self._part)):
                    losses = self._model.losses(x[part], None if observed is None else observed[part])
                    own = torch.stack(list(losses.values())) * (len(part) / len(rows))
                    if index == 0:
                        self._optimizer.zero_grad(set_to_none=True)
                    own.sum().backward()  # type: ignore[no-untyped-call]
                    values = values + own.detach()
                self._terms = tuple(losses)
                return values
            except torch.OutOfMemoryError as error:
                if self._part == 1:
                    raise MemoryError(
                        f"a single row does not fit the memory of {x.device}; expected one or more; use a smaller model"
                    ) from error
                self._part = -(-self._part // 2)
                self._notes.append(f"batches go through {x.device} in parts of {self._part} rows, for want of memory")

    def _judge(self, batches: tuple[Tensor, ...], held_out: tuple[Tensor, Tensor | None]) -> Epoch:
        """Close an epoch: look at its losses and at those of the validation rows, and keep the best weights."""
        start = time.perf_counter()
        number = len(self._epochs) + 1
        # One look at the device per epoch, not per step: each look waits for it.
        table = torch.stack(self._taken).double().cpu()  # (steps, terms)
        first = self._step - len(table)
        for step, values in enumerate(table.tolist(), start=first):
            rate = self._settings.learning_rate * _rate(step, self._steps, self._settings.warmup)
            place = f"step {step + 1} (epoch {number}, learning rate {rate:.2g})"
            _require_finite(dict(zip(self._terms, values, strict=True)), f"in {place}")
        sizes = torch.tensor([len(rows) for rows in batches], dtype=torch.double)
        fitted = dict(zip(self._terms, (sizes @ table / self._rows).tolist(), strict=True))
        found = _mean_losses(self._model, *held_out)
        _require_finite({f"validation {n}": v for n, v in found.items()}, f"after {place}")
        total = sum(found.values())
        better = total < self._best_loss
        if better:
            self._best_loss, self._since = total, 0
            self._best_weights = {name: value.detach().clone() for name, value in self._model.state_dict().items()}
        else:
            self._since += 1
        seconds = self._seconds + time.perf_counter() - start
        self._epochs.append(Epoch(number, rate, fitted, found, better, seconds, self._rows))
        return self._epochs[-1]

    def _save(self) -> None:
        assert self._checkpoint is not None
        tensors = {f"model.{name}": value for name, value in self._model.state_dict().items()}
        tensors |= {f"best.{name}": value for name, value in self._best_weights.items()}
        for index, state in self._optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{index}.{name}": value for name, value in state.items()}
        tensors |= {"chance": self._chance, "chance_now": torch.get_rng_state(), "taken": torch.stack(self._taken)}
        facts = {
            "step": self._step,
            "epochs": [asdict(epoch) for epoch in self._epochs],
            "best_loss": self._best_loss if math.isfinite(self._best_loss) else None,
            "since": self._since,
            "terms": self._terms,
            "seconds": self._seconds,
        }
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
        self._best_weights = part("best.")
        states: dict[int, dict[str, Tensor]] = {}
        for name, value in part("optimizer.").items():
            index, _, key = name.partition(".")
            states.setdefault(int(index), {})[key] = value
        self._optimizer.load_state_dict({**self._optimizer.state_dict(), "state": states})
        self._chance, self._taken = tensors["chance"], list(tensors["taken"])
        torch.set_rng_state(tensors["chance_now"])
        self._step, self._since, self._seconds = facts["step"], facts["since"], facts["seconds"]
        self._best_loss = math.inf if facts["best_loss"] is None else facts["best_loss"]
        self._terms = tuple(facts["terms"])
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


def _mean_losses(model: Autoencoder, x: Tensor, observed: Tensor | None) -> dict[str, float]:
    """Return each loss over all rows, in `eval` mode, in batches that fit anywhere."""
    model.eval()
    totals: dict[str, float] = {}
    with torch.inference_mode():
        for rows in torch.split(torch.arange(len(x), device=x.device), 4096):
            losses = model.losses(x[rows], None if observed is None else observed[rows])
            for name, value in losses.items():
                totals[name] = totals.get(name, 0.0) + float(value) * len(rows) / len(x)
    return totals
