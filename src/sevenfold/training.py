"""The one training loop: data on the device, early stopping with the best weights, one seed for everything random."""

import csv
import io
import math
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

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
    """Every epoch of a training, in order."""

    epochs: tuple[Epoch, ...]

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
) -> tuple[Autoencoder, History]:
    """Train a model and return it, in `eval` mode on the CPU, with the weights of its best epoch.

    Same spec, rows, settings and seed give the same weights on one machine's CPU. A variant without trainable
    parameters is only prepared.

    Args:
        device: "cpu", "cuda" or "cuda:0".
        on_epoch: called after each epoch, to show progress.

    Raises:
        ValueError: there are fewer training rows than code values, or no validation rows.
        DivergenceError: a loss was not finite; the message names the step, the term and the learning rate.
    """
    # Before the model is built: its weights are random too.
    torch.manual_seed(seed)
    model = spec.build()
    if len(train) < model.code:
        raise ValueError(
            f"{len(train)} training rows for a code of {model.code}; expected at least as many rows as code values; "
            "give more rows or a smaller `code`"
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
            history = _descend(model, x, observed, held_out, settings, on_epoch)
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


def _descend(
    model: Autoencoder,
    x: Tensor,
    observed: Tensor | None,
    held_out: tuple[Tensor, Tensor | None],
    settings: Settings,
    on_epoch: Callable[[Epoch], None],
) -> History:
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=settings.learning_rate, weight_decay=settings.weight_decay, fused=True
    )
    size = min(settings.batch_size, len(x))
    steps = settings.epochs * math.ceil(len(x) / size)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _rate(step, steps, settings.warmup))
    epochs: list[Epoch] = []
    best_weights: dict[str, Tensor] = {}
    best_loss, since = math.inf, 0
    step = 0
    for number in range(1, settings.epochs + 1):
        start = time.perf_counter()
        model.train()
        taken: list[Tensor] = []
        batches = torch.split(torch.randperm(len(x)).to(x.device), size)
        for batch, rows in enumerate(batches):
            model.progress = (step + batch) / steps
            losses = model.losses(x[rows], None if observed is None else observed[rows])
            values = torch.stack(list(losses.values()))
            optimizer.zero_grad(set_to_none=True)
            values.sum().backward()  # type: ignore[no-untyped-call]
            torch.nn.utils.clip_grad_norm_(model.parameters(), settings.gradient_clip)
            optimizer.step()
            schedule.step()
            taken.append(values.detach())
        # One look at the device per epoch, not per step: each look waits for it.
        table = torch.stack(taken).double().cpu()  # (steps, terms)
        for terms in table.tolist():
            rate = settings.learning_rate * _rate(step, steps, settings.warmup)
            step += 1
            place = f"step {step} (epoch {number}, learning rate {rate:.2g})"
            _require_finite(dict(zip(losses, terms, strict=True)), f"in {place}")
        sizes = torch.tensor([len(rows) for rows in batches], dtype=torch.double)
        fitted = dict(zip(losses, (sizes @ table / len(x)).tolist(), strict=True))
        found = _mean_losses(model, *held_out)
        _require_finite({f"validation {n}": v for n, v in found.items()}, f"after {place}")
        total = sum(found.values())
        better = total < best_loss
        if better:
            best_loss, since = total, 0
            best_weights = {name: value.detach().clone() for name, value in model.state_dict().items()}
        else:
            since += 1
        epochs.append(Epoch(number, rate, fitted, found, better, time.perf_counter() - start, len(x)))
        on_epoch(epochs[-1])
        if since >= settings.patience:
            break
    model.progress = 1.0
    model.load_state_dict(best_weights)
    return History(tuple(epochs))


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
