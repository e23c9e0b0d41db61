"""Imputation: fills the gaps of a table with what the other cells of the row, and rows like it, make likely.

What a network says of a gap is joined with a linear model and with the nearest training rows, whose own gaps the network
filled: on tables with few rows the first, on tables whose rows resemble each other the second knows more than any network.
How much each counts is learned, column by column, on cells of the validation rows that were hidden. Nothing is learned
when new rows are filled.
"""

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Self

import numpy as np
import torch
from torch import Tensor

from sevenfold.applications.base import (
    Application,
    Columns,
    Rival,
    Scores,
    in_batches,
    reconstructions,
    require_at_least,
    tensor,
)
from sevenfold.datasets.base import Schema, Split
from sevenfold.models.base import Autoencoder, Imputer
from sevenfold.pictures import OURS, THEIRS, THIRD, Picture, plot

Aid = Literal["linear", "neighbours"]
"""What the network is joined with: the conditional mean of a normal distribution, or the nearest training rows."""

Fill = Callable[[np.ndarray, np.ndarray], np.ndarray]
"""Takes x (n, size), where a gap may hold anything, and which cells are known; returns x with its gaps filled."""

PATTERNS = {
    "mcar": "at random",
    "mar": "by another column",
    "own": "as in other rows",
}
"""Ways in which cells are hidden. The last one takes part where the training rows have gaps."""

LARGEST_TUNING = 4000
"""Masked validation rows that calibration learns from, and a rival is tuned by."""

LARGEST_REFERENCE = 20_000
"""Training rows among which neighbours are looked for."""

LARGEST_SHOWN = 40
"""Columns up to which each has an error of its own among the metrics."""

NEIGHBOURS = (10, 30)
POWERS = (2, 4, 6)
TRUSTS = (0.15, 0.5)
RIDGES = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3)
"""What calibration chooses from: how many neighbours; how steeply their weight falls with the distance; what a neighbour's
cell that was itself filled counts in the distance to it, against one that was observed; and what share of its variance is
added to each column's before the linear model is solved."""

BINS = 4
"""Groups of gaps by the distance of the nearest neighbour, each with weights of its own: a row that was seen before is
better copied than predicted."""

FAR = 1e30
"""The distance where no neighbour has a value."""

PRIOR = 30
"""Hidden cells that the weights of all columns together count for in the weights of one."""

LEVELS = 101
"""Quantiles of the held-out residuals that draws are taken from."""

TREES = 60
"""Of a forest among the rivals."""

_WORK = 2e10  # products that the estimate of a covariance from rows with gaps may take in each of its rounds
_BATCH = 1024


class Imputation(Application):
    """Hides known cells in several patterns, and judges by how much less a fill errs than the mean of the column.

    The unit of an error is the column's standard deviation, so that columns count alike; categories are judged by
    accuracy, and decide only where a table has no numbers.
    """

    primary = "error_reduction"
    operation = "impute"
    learns_from = "all"

    def __init__(self, *, share: float, passes: int, aids: list[Aid], draws: int | None, flags: bool) -> None:
        """Set up the masks and the fill.

        Args:
            share: of the known cells that are hidden to learn and to judge by, above 0 and at most 0.5.
            passes: how often at most the network is given its own fill; the validation rows say how often.
            aids: what the network is joined with.
            draws: fills of each gap with the uncertainty that is left, for multiple imputation (Rubin, 1987), each in
                columns of its own; None for none.
            flags: whether each column comes with one that says which of its cells were filled.

        Raises:
            ValueError: an option is out of range.
        """
        require_at_least(1, passes=passes)
        if not 0 < share <= 0.5:
            raise ValueError(f"share is {share}; expected more than 0 and at most 0.5; 0.2 is a start")
        if draws is not None and draws < 1:
            raise ValueError(f"draws is {draws}; expected 1 or more, or null for none")
        if len(set(aids)) < len(aids):
            raise ValueError(f"aids is {aids}; expected each at most once; remove the others")
        super().__init__({"share": share, "passes": passes, "aids": [*aids], "draws": draws, "flags": flags})
        self.share = share
        self.passes = passes
        self.aids = tuple(aids)
        self.draws = draws
        self.flags = flags

    def unsuited(self, *, code: int | None, images: bool | None, labelled: bool, normal: bool) -> str | None:
        if images:
            return "fills the gaps of tables, and an image has none; give it a table, or images to `denoising`"
        return None

    def calibrate(self, model: Autoencoder, train: Split, validation: Split) -> Self:
        """Learn bounds, the linear model and the neighbours from the training rows, and from hidden cells of the
        validation rows how often the network is fed its own fill, and how much it counts against the aids.

        Raises:
            ValueError: no training row has a value of some column, or no validation row any.
        """
        x, seen = _cells(train)
        if empty := [str(place) for place in np.flatnonzero(~seen.any(axis=0))]:
            names = ", ".join(empty)
            raise ValueError(
                f"no training row has a value at {names} of a sample (from 0); expected some in every column; leave the "
                "column out by the data set's `drop`, or give the training split a larger share"
            )
        if not len(validation) or not _cells(validation)[1].any():
            raise ValueError(
                "no validation row has a value; expected some, to weigh by; give the split a larger share, or mend the gaps"
            )
        draft = self.with_state(
            {
                "low": np.where(seen, x, np.inf).min(axis=0).astype(np.float32),
                "high": np.where(seen, x, -np.inf).max(axis=0).astype(np.float32),
                "passes": np.ones(1, np.int64),
            }
        )
        held = draft._tuning(model, validation)
        draft._choose_passes(model, held)
        if "linear" in self.aids:
            draft._learn_linear(x, seen, held)
        if "neighbours" in self.aids:
            draft._learn_neighbours(model, train, held)
        draft._weigh(model, held)
        return draft

    def _tuning(self, model: Autoencoder, validation: Split) -> "_Held":
        """Return copies of the validation rows in which each cell is hidden once, some columns of a row at a time."""
        owner = _owner(model)
        parts = max(2, round(1 / self.share))
        step = max(1, -(-len(validation) * parts // LARGEST_TUNING))
        x, seen = _cells(validation.take(np.arange(0, len(validation), step)))
        order = np.random.default_rng(1).random((len(x), owner.max() + 1)).argsort(axis=1)
        part = order % parts  # (n, columns), each row's columns in parts of about one size
        hidden = np.concatenate([(part == k)[:, owner] & seen for k in range(parts)])
        row = np.tile(np.arange(len(x)), parts)
        rows = hidden.any(axis=1)
        return _Held(x[row][rows], seen[row][rows] & ~hidden[rows], hidden[rows], row[rows])

    def _choose_passes(self, model: Autoencoder, held: "_Held") -> None:
        """Feed the network its own fill for as long as that makes the hidden cells come out better."""
        best = np.inf
        for count, filled in enumerate(self._network(model, held.x, held.seen, self.passes), start=1):
            error = float(((filled - held.x) ** 2)[held.hidden].sum())
            if error < best * (1 - 1e-4):
                best, self.state["passes"] = error, np.full(1, count)
            elif count >= self.state["passes"][0] + 3:
                break

    def _learn_linear(self, x: np.ndarray, seen: np.ndarray, held: "_Held") -> None:
        mean, covariance = _normal(x, seen)
        best = np.inf
        for ridge in RIDGES:
            # A column that never varied has no variance to add to.
            variance = np.maximum(np.diag(covariance), 1e-6)
            precision = np.linalg.inv(covariance + np.diag(ridge * variance))
            filled = _conditional(held.x, held.seen, mean, precision)
            error = float(((filled - held.x) ** 2)[held.hidden].sum())
            if error < best or not np.isfinite(best):
                best = error
                self.state |= {"mean": mean, "precision": precision}

    def _learn_neighbours(self, model: Autoencoder, train: Split, held: "_Held") -> None:
        step = max(1, -(-len(train) // LARGEST_REFERENCE))
        x, seen = _cells(train.take(np.arange(0, len(train), step)))
        # Of network and linear model alike, since no weights are known yet.
        guesses = [self._last(model, x, seen), *([self._linear(x, seen)] if "linear" in self.aids else [])]
        filled = np.where(seen, x, np.mean(guesses, axis=0)).astype(np.float32)
        self.state |= {"reference": filled, "reference_seen": seen}
        guess = self._last(model, held.x, held.seen)
        settings = [*itertools.product(NEIGHBOURS, POWERS)]
        best = np.inf
        for trust in TRUSTS:
            errors = np.zeros(len(settings))
            for rows, found in self._nearest(held.x, held.seen, trust):
                for index, (count, power) in enumerate(settings):
                    copied, _ = self._copied(found, guess[rows], count, power)
                    errors[index] += ((copied - held.x[rows]) ** 2)[held.hidden[rows]].sum()
            if errors.min() < best:
                best = errors.min()
                self.state |= {"neighbours": np.array(settings[int(errors.argmin())]), "trust": np.array([trust])}
            if seen.all():
                break  # no neighbour has a filled cell

    def _weigh(self, model: Autoencoder, held: "_Held") -> None:
        """Learn the weights of network and aids from all held rows, and from them what is left, for draws."""
        owner = _owner(model)
        guesses, near = self._guesses(model, held.x, held.seen)
        self.state["bins"] = np.quantile(near[held.hidden], np.arange(1, BINS) / BINS)
        self.state["weights"] = _weights(guesses, np.digitize(near, self.state["bins"]), held, owner)
        if self.draws is not None:
            residual = np.where(held.hidden, held.x - self._mixed(guesses, near, owner), np.nan)
            # A column without a known validation cell has no residuals, and its draws no spread.
            known = np.where(held.hidden.any(axis=0), residual, 0.0)
            levels = np.linspace(0, 1, LEVELS)
            self.state["residuals"] = np.nanquantile(known, levels, axis=0).astype(np.float32)  # (LEVELS, size)

    def _network(self, model: Autoencoder, x: np.ndarray, seen: np.ndarray, passes: int) -> Iterator[np.ndarray]:
        """Give the fill (n, size) after each pass; what is fed back counts as observed."""
        categorical = np.isin(_owner(model), np.flatnonzero(np.bincount(_owner(model)) > 1))
        filled = np.where(seen, x, np.float32(0))
        for step in range(passes):
            if step == 0 and isinstance(model, Imputer):
                with torch.inference_mode():
                    parts = [model.impute(*cells).numpy() for cells in in_batches(filled, seen, 4096)]
                found = np.concatenate(parts)
                if categorical.any():  # with their probabilities, which a filled category no longer has
                    found = np.where(categorical, reconstructions(model, filled, seen), found)
            else:
                found = reconstructions(model, filled, seen if step == 0 else None)
            found = np.clip(found, self.state["low"], self.state["high"])
            filled = np.where(seen, filled, found)
            yield filled

    def _last(self, model: Autoencoder, x: np.ndarray, seen: np.ndarray) -> np.ndarray:
        *_, filled = self._network(model, x, seen, int(self.state["passes"][0]))
        return filled

    def _linear(self, x: np.ndarray, seen: np.ndarray) -> np.ndarray:
        return _conditional(x, seen, self.state["mean"], self.state["precision"]).astype(np.float32)

    def _nearest(self, x: np.ndarray, seen: np.ndarray, least: float) -> Iterator[tuple[slice, "_Near"]]:
        """Give the nearest reference rows, some rows at a time.

        The distance is over the cells that the row has, in the mean; a cell that the neighbour lacks was filled, and
        counts `least`.
        """
        reference, known = tensor(self.state["reference"]), tensor(self.state["reference_seen"])
        trust = torch.where(known, 1.0, least)
        factors = trust.T, (trust * reference).T, (trust * reference.square()).T  # (size, reference)
        count = min(max(NEIGHBOURS), len(reference))
        size = max(1, min(_BATCH, 2**23 // (count * reference.shape[1])))
        for start in range(0, max(len(x), 1), size):
            rows = slice(start, start + size)
            have = tensor(seen[rows]).float()
            cells = tensor(x[rows]) * have
            far = (cells.square() @ factors[0] - 2 * cells @ factors[1] + have @ factors[2]) / (
                have @ factors[0]
            ).clamp(min=least)
            found = far.topk(count, largest=False).indices  # (n, count)
            # By products, whose rounding hides how near a copy is; so the few that are found are measured again.
            weight = have[:, None] * trust[found]  # (n, count, size)
            distance = (weight * (cells[:, None] - reference[found]).square()).sum(dim=2)
            distance = distance / weight.sum(dim=2).clamp(min=least)
            # Of a row without any cell nothing is near.
            usable = known[found] & (have.sum(dim=1) > 0)[:, None, None]
            order = distance.argsort(dim=1, stable=True)
            yield (
                rows,
                _Near(
                    distance.gather(1, order),
                    reference[found].take_along_dim(order[:, :, None], dim=1),
                    usable.take_along_dim(order[:, :, None], dim=1),
                ),
            )

    @staticmethod
    def _copied(near: "_Near", guess: np.ndarray, count: int, power: int) -> tuple[np.ndarray, np.ndarray]:
        """Return the weighted mean of the neighbours that have a value (n, size), and the distance of the nearest.

        Where none has one, `guess` stands.
        """
        usable = near.usable[:, :count]
        weight = (near.distance[:, :count] + 1e-6).pow(-power / 2)[:, :, None] * usable
        total = weight.sum(dim=1)
        mean = (weight * near.values[:, :count]).sum(dim=1) / total.clamp(min=1e-30)
        nearest = torch.where(usable, near.distance[:, :count, None], FAR).amin(dim=1)
        return torch.where(total > 0, mean, tensor(guess)).numpy(), nearest.numpy()

    def _guesses(self, model: Autoencoder, x: np.ndarray, seen: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return what network and aids say, (1 + aids, n, size), and how far the nearest neighbour is, (n, size)."""
        x = np.where(seen, x, np.float32(0))  # whatever stands in a gap
        network = self._last(model, x, seen)
        found, near = [network], np.zeros(x.shape, np.float32)
        for aid in self.aids:
            if aid == "linear":
                found.append(self._linear(x, seen))
            else:
                count, power = self.state["neighbours"]
                copied = np.empty_like(network)
                for rows, neighbours in self._nearest(x, seen, float(self.state["trust"][0])):
                    copied[rows], near[rows] = self._copied(neighbours, network[rows], int(count), int(power))
                found.append(copied)
        return np.stack(found), near

    def _mixed(self, guesses: np.ndarray, near: np.ndarray, owner: np.ndarray) -> np.ndarray:
        """Return the weighted guesses (n, size), numbers within the bounds of the training rows."""
        # (n, size, guesses)
        weights = self.state["weights"][np.digitize(near, self.state["bins"]), owner]
        mixed = np.einsum("gns,nsg->ns", guesses, weights)
        within: np.ndarray = np.clip(mixed, self.state["low"], self.state["high"]).astype(np.float32)
        return within

    def fill(self, model: Autoencoder, x: np.ndarray, seen: np.ndarray) -> np.ndarray:
        """Return x (n, size) with its gaps filled, each category by its likeliest; known cells as they are."""
        owner = _owner(model)
        return _settled(self._mixed(*self._guesses(model, x, seen), owner), x, seen, owner)

    def evaluate(self, model: Autoencoder, split: Split, train: Split) -> Scores:
        return self.scores(split, train, lambda x, seen: self.fill(model, x, seen))

    def held_out(self, model: Autoencoder, validation: Split, train: Split) -> Scores:
        """Judge each row by weights that the others taught."""
        owner, held = _owner(model), self._tuning(model, validation)
        folds = min(5, len(np.unique(held.row)))
        if folds < 2:
            return self.evaluate(model, validation, train)
        guesses, near = self._guesses(model, held.x, held.seen)
        drafts = []
        for fold in range(folds):
            rows = held.row % folds != fold
            draft = self.with_state(self.state)
            bins = np.digitize(near[rows], self.state["bins"])
            draft.state["weights"] = _weights(guesses[:, rows], bins, held.take(rows), owner)
            drafts.append(draft)
        step = max(1, len(validation) // (held.row.max() + 1))

        def fill(x: np.ndarray, seen: np.ndarray) -> np.ndarray:
            guesses, near = self._guesses(model, x, seen)
            filled = np.empty_like(x)
            for fold, draft in enumerate(drafts):
                rows = np.arange(len(x)) // step % folds == fold
                filled[rows] = draft._mixed(guesses[:, rows], near[rows], owner)
            return _settled(filled, x, seen, owner)

        return self.scores(validation, train, fill)

    def scores(self, split: Split, train: Split, fill: Fill) -> Scores:
        """Judge a way of filling on the hidden cells of a split, pattern by pattern; the same cells for everybody."""
        x, seen = _cells(split)
        owner = columns(train)
        numeric = np.bincount(owner) == 1
        decide = numeric if numeric.any() else ~numeric
        center = _center(train, owner)
        metrics: dict[str, float] = {}
        values: dict[str, np.ndarray] = {}
        errors, counts = np.zeros(len(numeric)), np.zeros(len(numeric))
        for pattern, hidden in hide(split, train, owner, self.share).items():
            at = hidden[:, owner]
            filled = fill(np.where(at, np.float32(0), x), seen & ~at)
            error, base = (_error(one, x, owner) * hidden for one in (filled, np.broadcast_to(center, x.shape)))
            errors, counts = errors + error.sum(axis=0), counts + hidden.sum(axis=0)
            # Categories have no unit in common with numbers, so they decide only where there is nothing else.
            values[f"{pattern}_error"], values[f"{pattern}_base"] = (e[:, decide].sum(axis=1) for e in (error, base))
            metrics[f"{pattern}_error_reduction"] = _reduction(values, pattern)
            if numeric.any() and hidden[:, numeric].any():
                mean = error[:, numeric].sum() / hidden[:, numeric].sum()
                metrics[f"{pattern}_rmse"] = float(np.sqrt(mean))
            if hidden[:, ~numeric].any():
                metrics[f"{pattern}_accuracy"] = float(1 - error[:, ~numeric].sum() / hidden[:, ~numeric].sum())
        if len(numeric) <= LARGEST_SHOWN:
            for column in np.flatnonzero(counts):
                metrics[f"rmse_{column + 1}"] = float(np.sqrt(errors[column] / counts[column]))
        return Scores({self.primary: self.statistic(values), **metrics}, values)

    def statistic(self, values: Mapping[str, np.ndarray]) -> float:
        patterns = [pattern for pattern in PATTERNS if f"{pattern}_error" in values]
        found = [_reduction(values, pattern) for pattern in patterns]
        return float(np.mean(found)) if found else float("nan")

    def rivals(self) -> dict[str, Rival]:
        neighbours = [(k, w) for w in ("uniform", "distance") for k in (1, 3, 5, 10, 20, 50)]
        return {
            "mean": _Method(self, lambda _: Mean(), [None]),
            "knn": _Method(self, lambda s: Neighbours(*s), neighbours),
            "bayesian_ridge": _Method(self, lambda _: Chain(_bayesian_ridge, rounds=30), [None]),
            "extra_trees": _Method(
                self,
                lambda leaf: Chain(lambda: _extra_trees(leaf, TREES), rounds=4),
                [1, 3],
                draft=lambda leaf: Chain(lambda: _extra_trees(leaf, TREES // 4), rounds=2),
            ),
        }

    def giving(self, *, flags: bool | None = None, draws: int | None = None) -> Self:
        """Return a copy that gives columns of flags or not, and so many draws; None for as it was made.

        Raises:
            ValueError: it was calibrated without draws, so it does not know how far fills are off.
        """
        if draws and "residuals" not in self.state:
            raise ValueError(
                f"draws is {draws}; expected 0, since this model was trained with `draws: null` and has not learned how "
                "far its fills are off; set `draws: 1` in params.yaml and train again"
            )
        given = {
            "flags": self.flags if flags is None else flags,
            "draws": self.draws if draws is None else draws or None,
        }
        return type(self)(**self.options | given).with_state(self.state)

    def predict(self, model: Autoencoder, x: np.ndarray, observed: np.ndarray | None, schema: Schema) -> Columns:
        """Return the table's columns, in their own units and types, without a gap; then the draws and flags.

        A draw is the fill of a row plus what such fills were off by in held-out rows; of a category, one by its
        probability. It depends on the row's own cells, so that the same row always has the same draws.
        """
        owner = _owner(model)
        seen = np.ones(x.shape, bool) if observed is None else observed
        mixed = self._mixed(*self._guesses(model, x, seen), owner)
        made = _columns(_settled(mixed, x, seen, owner), schema)
        extra: Columns = {}
        for draw in range(self.draws or 0):
            filled = self._drawn(mixed, x, seen, owner, draw)
            extra |= {f"{name}_draw_{draw + 1}": values for name, values in _columns(filled, schema).items()}
        if self.flags:
            first = np.flatnonzero(np.diff(owner, prepend=-1))
            extra |= {f"{name}_imputed": ~seen[:, at] for name, at in zip(made, first, strict=True)}
        if both := sorted(made.keys() & extra.keys()):
            raise ValueError(
                f"the table has columns {', '.join(map(repr, both))}, the names of draws or flags of others; expected "
                "other names; rename them, or set `draws: null` and `flags: false`"
            )
        return made | extra

    def _drawn(self, mixed: np.ndarray, x: np.ndarray, seen: np.ndarray, owner: np.ndarray, draw: int) -> np.ndarray:
        """Return x (n, size) with its gaps filled at random."""
        chance = _chance(np.where(seen, x, np.float32(0)), seen, owner.max() + 1, draw)  # (n, columns)
        place = chance * (LEVELS - 1)
        below = np.minimum(place.astype(int), LEVELS - 2)
        residuals, at = self.state["residuals"], np.arange(len(owner))
        part = (place - below)[:, owner]
        low, high = residuals[below[:, owner], at], residuals[below[:, owner] + 1, at]
        drawn = np.clip(mixed + low + part * (high - low), self.state["low"], self.state["high"])
        for block in _blocks(owner):
            total = np.clip(mixed[:, block], 0, None).cumsum(axis=1)
            reach = chance[:, owner[block.start], None] * total[:, -1:]
            drawn[:, block] = 0
            drawn[np.arange(len(x)), block.start + (total < reach).sum(axis=1)] = 1
        return np.where(seen, x, drawn.astype(np.float32))

    def pictures(self, model: Autoencoder, split: Split, train: Split, schema: Schema) -> list[Picture]:
        """Draw imputed against true values of the columns that come out best and worst, and who filled which column."""
        x, seen = _cells(split)
        owner = columns(train)
        hidden = hide(split, train, owner, self.share)["mcar"]
        at = hidden[:, owner]
        filled = self.fill(model, np.where(at, np.float32(0), x), seen & ~at)
        error = _error(filled, x, owner)
        numeric = np.flatnonzero((np.bincount(owner) == 1) & hidden.any(axis=0))
        made = []
        if len(numeric):
            rmse = [np.sqrt(error[hidden[:, column], column].mean()) for column in numeric]
            order = numeric[np.argsort(rmse, kind="stable")]
            shown = order if len(order) <= 4 else order[[0, 1, -2, -1]]
            made.append(_scatter(shown, filled, x, hidden, owner, schema))
        if self.aids:
            made.append(self._who(schema))
        return made

    def _who(self, schema: Schema) -> Picture:
        weights = self.state["weights"].mean(axis=0)  # (columns, guesses)
        names = ("network", *self.aids)

        def draw(ax: Any) -> None:
            under = np.zeros(len(weights))
            for name, share, colour in zip(names, weights.T, (OURS, THEIRS, THIRD), strict=False):
                ax.bar(np.arange(len(weights)), share, bottom=under, color=colour, label=name, width=0.9)
                under += share
            ax.set(ylabel="weight", ylim=(0, 1))
            _name_columns(ax, schema.features)
            ax.legend(frameon=False, ncols=len(names), loc="lower left", bbox_to_anchor=(0, 1))

        shares = ", ".join(f"{name} {share:.2f}" for name, share in zip(names, weights.mean(axis=0), strict=True))
        description = f"Weights by column, in the mean over all columns: {shares}."
        return plot("weights", "How much network, linear model and neighbours count", description, draw)

    def comparison(self, scores: Mapping[str, Scores], chosen: str) -> list[Picture]:
        """Draw the error of the chosen candidate and of the rivals by column, and everybody's result by pattern."""
        patterns = [p for p in PATTERNS if f"{p}_error" in scores[chosen].values]
        names = [*scores]

        def by_pattern(ax: Any) -> None:
            height = 0.8 / len(patterns)
            for index, (pattern, colour) in enumerate(zip(patterns, (OURS, THEIRS, THIRD), strict=False)):
                found = [scores[name].metrics[f"{pattern}_error_reduction"] for name in names]
                ax.barh(np.arange(len(names)) + index * height, found, height, color=colour, label=PATTERNS[pattern])
            ax.set_yticks(np.arange(len(names)) + height * (len(patterns) - 1) / 2, names)
            ax.invert_yaxis()
            ax.set(xlabel="error below that of the mean, share")
            ax.legend(frameon=False)

        best = ", ".join(f"{name} {scores[name].metrics[self.primary]:.3f}" for name in names)
        what = " and ".join(PATTERNS[p] for p in patterns)
        made = [
            plot(
                "by_pattern",
                "How much less each errs than the mean of the column",
                f"Cells hidden {what}; in the mean over these: {best}.",
                by_pattern,
                size=(7.0, 1.2 + 0.35 * len(names)),
            )
        ]
        keys = [key for key in scores[chosen].metrics if key.startswith("rmse_")]
        if keys:
            made.append(_by_column(scores, chosen, keys))
        return made


@dataclass(frozen=True)
class _Held:
    """Validation rows with hidden cells: x and seen (n, size), which cells are hidden, and of which row each is a copy."""

    x: np.ndarray
    seen: np.ndarray
    hidden: np.ndarray
    row: np.ndarray

    def take(self, rows: np.ndarray) -> "_Held":
        return _Held(self.x[rows], self.seen[rows], self.hidden[rows], self.row[rows])


@dataclass(frozen=True)
class _Near:
    """Neighbours of some rows, nearest first: distances (n, count), values and which were observed (n, count, size)."""

    distance: Tensor
    values: Tensor
    usable: Tensor


def columns(split: Split) -> np.ndarray:
    """Return to which column each value of a flat sample belongs, (size,) int, read off the values themselves.

    The values of a categorical column are 0 and 1, and one of them is 1 in each row; a standardised number is never
    always 0 or 1. A category that no row has counts to the column before it.
    """
    x, seen = _cells(split)
    binary = ((x == 0) | (x == 1)).all(axis=0) & (x != 0).any(axis=0)
    empty = (x == 0).all(axis=0)
    owner = np.zeros(x.shape[1], np.int64)
    place, column = 0, 0
    while place < x.shape[1]:
        owner[place] = column
        end = place + 1
        if binary[place] or empty[place]:
            total = x[:, place].copy()
            while end < x.shape[1] and (binary[end] or empty[end]) and (seen[:, end] == seen[:, place]).all():
                if not empty[end] and (total == 1)[seen[:, place]].all():
                    break
                total += x[:, end]
                end += 1
            owner[place:end] = column
        place, column = end, column + 1
    return owner


def hide(split: Split, train: Split, owner: np.ndarray, share: float) -> dict[str, np.ndarray]:
    """Return which known cells are hidden in each pattern that applies, (n, columns) bool; the same every time.

    At random; by another column, of which a high value makes a gap likely, one half of the columns hiding the other and
    then the other way round by turns of rows; and as in training rows that have gaps.
    """
    x, seen = _cells(split)
    first = np.flatnonzero(np.diff(owner, prepend=-1))
    known = seen[:, first]  # (n, columns)
    count = known.shape[1]
    generator = np.random.default_rng(0)
    found = {"mcar": (generator.random(known.shape) < share) & known}
    if count > 1:
        order = generator.permutation(count)
        driver = np.empty(count, np.int64)
        driver[order] = np.roll(order, 1)  # neighbours in this order are in different halves
        half = np.empty(count, np.int64)
        half[order] = np.arange(count) % 2
        if count % 2:
            driver[order[0]] = order[1]  # the last one is in its own half
        turn = np.arange(len(x))[:, None] % 2 == half
        hidden = generator.random(known.shape) < 2 * share * _rank(x, known, owner)[:, driver]
        found["mar"] = hidden & turn & known
    if train.observed is not None:
        gaps = ~_cells(train)[1][:, first]
        donors = gaps[gaps.any(axis=1)]
        if len(donors):
            found["own"] = donors[generator.integers(len(donors), size=len(x))] & known
    return {pattern: hidden for pattern, hidden in found.items() if hidden.any()}


def _rank(x: np.ndarray, known: np.ndarray, owner: np.ndarray) -> np.ndarray:
    """Return about the share of values below each, (n, columns): by the normal distribution; a gap is in the middle."""
    first = np.flatnonzero(np.diff(owner, prepend=-1))
    rank = torch.special.ndtr(tensor(x[:, first].astype(np.float64))).numpy()
    for block in _blocks(owner):
        width = block.stop - block.start
        rank[:, owner[block.start]] = (x[:, block].argmax(axis=1) + 0.5) / width
    return np.where(known, rank, 0.5)


def _cells(split: Split) -> tuple[np.ndarray, np.ndarray]:
    """Return x (n, size) float32 with 0 in its gaps, and which cells are known."""
    x = np.asarray(split.x, np.float32).reshape(len(split), -1)
    seen = np.ones(x.shape, bool) if split.observed is None else np.asarray(split.observed).reshape(x.shape)
    return np.where(seen, x, np.float32(0)), seen


def _owner(model: Autoencoder) -> np.ndarray:
    """Return to which column each value of a flat sample belongs, (size,) int."""
    widths = [field.width for field in model.layout.fields] or [1] * model.size
    return np.repeat(np.arange(len(widths)), widths)


def _blocks(owner: np.ndarray) -> list[slice]:
    """Return the places of each categorical column."""
    ends = np.cumsum(np.bincount(owner))
    return [slice(int(e - w), int(e)) for e, w in zip(ends, np.bincount(owner), strict=True) if w > 1]


def _settled(filled: np.ndarray, x: np.ndarray, seen: np.ndarray, owner: np.ndarray) -> np.ndarray:
    """Return the fill with one category where there are several, and the known cells as they are, (n, size)."""
    settled = filled.astype(np.float32)
    for block in _blocks(owner):
        settled[:, block] = np.eye(block.stop - block.start, dtype=np.float32)[filled[:, block].argmax(axis=1)]
    return np.where(seen, x, settled)


def _center(train: Split, owner: np.ndarray) -> np.ndarray:
    """Return what the mean, and the most frequent category, of each column is, (size,)."""
    x, seen = _cells(train)
    mean = x.sum(axis=0, dtype=np.float64) / np.maximum(seen.sum(axis=0), 1)
    gaps = np.zeros((1, len(owner)))
    center: np.ndarray = _settled(mean[None], gaps, gaps > 0, owner)[0]
    return center


def _error(filled: np.ndarray, x: np.ndarray, owner: np.ndarray) -> np.ndarray:
    """Return the squared error of each number and, of each category, 1 where it is another one; (n, columns)."""
    first = np.flatnonzero(np.diff(owner, prepend=-1))
    error: np.ndarray = (filled[:, first].astype(np.float64) - x[:, first]) ** 2
    for block in _blocks(owner):
        error[:, owner[block.start]] = filled[:, block].argmax(axis=1) != x[:, block].argmax(axis=1)
    return error


def _reduction(values: Mapping[str, np.ndarray], pattern: str) -> float:
    base = values[f"{pattern}_base"].sum()
    return float(1 - np.sqrt(values[f"{pattern}_error"].sum() / base)) if base > 0 else float("nan")


def _normal(x: np.ndarray, seen: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the mean (size,) and covariance (size, size) of a normal distribution, in float64.

    From rows with gaps by expectation and maximisation (Dempster, Laird and Rubin, 1977).
    """
    size = x.shape[1]
    if not seen.all():
        rows = max(4 * size, int(_WORK / size**3))
        step = max(1, -(-len(x) // rows))
        x, seen = x[::step], seen[::step]
    x = x.astype(np.float64)
    count = np.maximum(seen.sum(axis=0), 1)
    mean = (x * seen).sum(axis=0) / count
    centered = (x - mean) * seen
    covariance = centered.T @ centered / len(x)
    if seen.all():
        return mean, covariance
    np.fill_diagonal(covariance, (centered**2).sum(axis=0) / count)
    for _ in range(15):
        ridge = np.diag(0.003 * np.maximum(np.diag(covariance), 1e-6))
        precision = np.linalg.inv(covariance + ridge)
        total, products = np.zeros(size), np.zeros((size, size))
        for start in range(0, len(x), _BATCH):
            part, have = x[start : start + _BATCH], seen[start : start + _BATCH]
            gaps = ~have[:, :, None] & ~have[:, None, :]  # (n, size, size)
            left = np.linalg.inv(np.where(gaps, precision, np.eye(size))) * gaps
            known = (part - mean) * have
            filled = known - (left @ (known @ precision)[:, :, None])[:, :, 0]
            total += filled.sum(axis=0)
            products += filled.T @ filled + left.sum(axis=0)
        shift = total / len(x)
        mean = mean + shift
        covariance = products / len(x) - np.outer(shift, shift)
    return mean, covariance


def _conditional(x: np.ndarray, seen: np.ndarray, mean: np.ndarray, precision: np.ndarray) -> np.ndarray:
    """Return x (n, size) with its gaps filled by their mean given the known cells, float64.

    The gaps solve `precision[gaps, gaps] @ filled = -precision[gaps, known] @ known`: by conjugate gradients, all rows
    at once, each with gaps of its own.
    """
    scale = 1 / np.sqrt(np.diag(precision))
    scaled = precision * scale * scale[:, None]
    gaps = ~seen
    known = np.where(seen, x - mean, 0.0)
    left = -(known @ precision) * scale * gaps
    filled, direction = np.zeros_like(left), left.copy()
    norm = (left**2).sum(axis=1)
    enough = 1e-14 * norm
    for _ in range(min(200, int(gaps.sum(axis=1).max(initial=0)))):
        moving = norm > enough
        if not moving.any():
            break
        image = (direction @ scaled) * gaps
        curve = (direction * image).sum(axis=1)
        length = np.where(moving, norm / np.where(curve > 0, curve, 1.0), 0.0)[:, None]
        filled += length * direction
        left -= length * image
        after = (left**2).sum(axis=1)
        direction = left + np.where(moving, after / np.where(norm > 0, norm, 1.0), 0.0)[:, None] * direction
        norm = np.where(moving, after, norm)
    return np.where(seen, x, mean + filled * scale)


def _weights(guesses: np.ndarray, bins: np.ndarray, held: _Held, owner: np.ndarray) -> np.ndarray:
    """Return the weights (bins, columns, guesses), none negative and with sum 1, of the least squared error.

    What the hidden cells of a column and bin say counts for as much as they are many; what the whole column says, and
    all columns of the bin, for `PRIOR` cells each.
    """
    several = len(guesses)
    count = int(owner.max()) + 1
    residual = (guesses - held.x) * held.hidden  # (guesses, n, size)
    scale, cells = np.zeros(count), np.zeros(count)
    np.add.at(scale, owner, np.square(residual, dtype=np.float64).mean(axis=0).sum(axis=0))
    np.add.at(cells, owner, held.hidden.sum(axis=0).astype(np.float64))
    # Columns count alike, whatever the size of their errors.
    residual = residual / np.sqrt(np.maximum(scale / np.maximum(cells, 1), 1e-12))[owner]
    gram, number = np.zeros((BINS, count, several, several)), np.zeros((BINS, count))
    for kind in range(BINS):
        part = (residual * (bins == kind)).transpose(2, 0, 1).astype(np.float64)  # (size, guesses, n)
        np.add.at(gram[kind], owner, part @ part.transpose(0, 2, 1))
        np.add.at(number[kind], owner, (held.hidden & (bins == kind)).sum(axis=0).astype(np.float64))
    whole = gram.sum(axis=(0, 1)) / max(number.sum(), 1)
    by_column = (gram.sum(axis=0) + PRIOR * whole) / (number.sum(axis=0) + PRIOR)[:, None, None]
    by_bin = (gram.sum(axis=1) + PRIOR * whole) / (number.sum(axis=1) + PRIOR)[:, None, None]
    joint = gram + PRIOR * (by_column[None] + by_bin[:, None])
    steps = 20
    simplex = np.array([w for w in itertools.product(range(steps + 1), repeat=several) if sum(w) == steps]) / steps
    error = np.einsum("wg,bcgh,wh->bcw", simplex, joint, simplex)
    best: np.ndarray = simplex[error.argmin(axis=2)].astype(np.float32)
    return best


def _chance(x: np.ndarray, seen: np.ndarray, count: int, draw: int) -> np.ndarray:
    """Return numbers in [0, 1), (n, count), drawn from the row's own cells, so that no other row has a say.

    By the mixing function of splitmix64 (Steele et al., 2014).
    """

    def mix(state: np.ndarray) -> np.ndarray:
        state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        mixed: np.ndarray = state ^ (state >> np.uint64(31))
        return mixed

    step = np.uint64(0x9E3779B97F4A7C15)
    state = np.full(len(x), draw + 1, np.uint64) * step
    # A zero and a minus zero are the same value.
    for cell, known in zip((x + np.float32(0)).view(np.uint32).T, seen.T, strict=True):
        state = mix(state + step + 2 * cell.astype(np.uint64) + known)
    wide = state[:, None] + step * np.arange(1, count + 1, dtype=np.uint64)
    return (mix(wide) >> np.uint64(11)).astype(np.float64) / 2.0**53


def _columns(filled: np.ndarray, schema: Schema) -> Columns:
    frame = schema.inverse(filled).frame
    return {str(name): frame[name].to_numpy() for name in frame.columns}


def _scatter(
    shown: np.ndarray, filled: np.ndarray, x: np.ndarray, hidden: np.ndarray, owner: np.ndarray, schema: Schema
) -> Picture:
    """Draw imputed against true values of these columns, in standard deviations."""
    first = np.flatnonzero(np.diff(owner, prepend=-1))
    names = [schema.features[schema.feature_of[first[column]]] for column in shown]

    def draw(*axes: Any) -> None:
        for ax, column, name in zip(axes, shown, names, strict=True):
            rows = np.flatnonzero(hidden[:, column])[:500]
            true, found = x[rows, first[column]], filled[rows, first[column]]
            ends = [min(true.min(), found.min()), max(true.max(), found.max())]
            ax.plot(ends, ends, color=THIRD, linewidth=0.8)
            ax.scatter(true, found, s=6, color=OURS, alpha=0.6, linewidths=0)
            ax.set(title=name, xlabel="true", ylabel="imputed" if ax is axes[0] else "")

    description = (
        f"Hidden cells of {', '.join(names)}, the columns that come out best first, in standard deviations; on the line "
        "both are the same."
    )
    return plot("imputed", "Imputed against true values", description, draw, panels=len(shown), size=(7.2, 2.4))


def _by_column(scores: Mapping[str, Scores], chosen: str, keys: Sequence[str]) -> Picture:
    names = [name for name in scores if name == chosen or keys[0] in scores[name].metrics]

    def draw(ax: Any) -> None:
        numbers = [int(key.removeprefix("rmse_")) for key in keys]
        for name in names:
            found = [scores[name].metrics.get(key, np.nan) for key in keys]
            own = name == chosen
            ax.plot(
                numbers,
                found,
                color=OURS if own else None,
                linewidth=2 if own else 0.9,
                marker="o",
                markersize=3,
                label=name,
            )
        ax.set(xlabel="column, in the order of the table", ylabel="RMSE, standard deviations")
        ax.legend(frameon=False, ncols=3, fontsize=7)

    best = sum(
        scores[chosen].metrics[k] <= min(scores[n].metrics.get(k, np.inf) for n in names if n != chosen)
        if len(names) > 1
        else True
        for k in keys
    )
    description = (
        f"{chosen} errs least in {best} of {len(keys)} columns; of a category, the root of the share that is wrong."
    )
    return plot("by_column", "Error by column", description, draw)


def _name_columns(ax: Any, names: Sequence[str]) -> None:
    if len(names) <= LARGEST_SHOWN:
        ax.set_xticks(np.arange(len(names)), names, rotation=90, fontsize=6)
    else:
        ax.set(xlabel="column, in the order of the table")


class Mean:
    """The mean of each column and, of the values of a category, their frequencies."""

    def fit(self, x: np.ndarray, owner: np.ndarray) -> None:
        self._mean = np.nanmean(x, axis=0)

    def fill(self, x: np.ndarray) -> np.ndarray:
        return np.where(np.isnan(x), self._mean, x)


class Neighbours:
    """scikit-learn's KNNImputer, which copies from the nearest of the rows that have a value."""

    def __init__(self, count: int, weights: str) -> None:
        self._count, self._weights = count, weights

    def fit(self, x: np.ndarray, owner: np.ndarray) -> None:
        from sklearn import impute

        self._fitted = impute.KNNImputer(
            n_neighbors=min(self._count, len(x)), weights=self._weights, keep_empty_features=True
        ).fit(x)

    def fill(self, x: np.ndarray) -> np.ndarray:
        return np.asarray(self._fitted.transform(x))


class Chain:
    """Chained equations: each column is predicted from all others, round after round, until the fill rests.

    As scikit-learn's IterativeImputer and missForest (Stekhoven and Buehlmann, 2012), the values of a category together.
    Unlike the former it also learns to fill columns that have no gap in the training rows, by all rounds.
    """

    def __init__(self, method: Callable[[], Any], rounds: int) -> None:
        self._method = method
        self._rounds = rounds

    def fit(self, x: np.ndarray, owner: np.ndarray) -> None:
        self._mean = np.nanmean(x, axis=0)
        gaps = np.isnan(x)
        places = [np.flatnonzero(owner == column) for column in range(owner.max() + 1)]
        # Those with the fewest gaps first; they are what the others are filled by.
        self._places = sorted(places, key=lambda block: int(gaps[:, block[0]].sum()))
        self._fitted: list[Any] = []
        filled = np.where(gaps, self._mean, x)
        for _ in range(self._rounds if gaps.any() else 1):
            before = filled.copy()
            fitted = []
            for block in self._places:
                others = np.delete(np.arange(x.shape[1]), block)
                known = ~gaps[:, block[0]]
                method = self._method()
                wanted = filled[known][:, block]
                method.fit(filled[known][:, others], wanted[:, 0] if len(block) == 1 else wanted)
                fitted.append((block, others, method))
                if not known.all():
                    found = np.asarray(method.predict(filled[~known][:, others]))
                    filled[np.ix_(~known, block)] = found.reshape(-1, len(block))
            self._fitted, self.filled = fitted, filled
            if ((filled - before) ** 2).sum() <= 1e-6 * (filled[gaps] ** 2).sum():
                break

    def fill(self, x: np.ndarray) -> np.ndarray:
        gaps = np.isnan(x)
        filled = np.where(gaps, self._mean, x)
        for _ in range(self._rounds):
            before = filled.copy()
            for block, others, method in self._fitted:
                rows = gaps[:, block[0]]
                if rows.any():
                    found = np.asarray(method.predict(filled[rows][:, others]))
                    filled[np.ix_(rows, block)] = found.reshape(-1, len(block))
            if ((filled - before) ** 2).sum() <= 1e-6 * (filled[gaps] ** 2).sum():
                break
        return filled


def _bayesian_ridge() -> Any:
    from sklearn import linear_model

    return _EachAlone(linear_model.BayesianRidge)


class _EachAlone:
    """A method of one output, fitted to each output alone."""

    def __init__(self, method: Callable[[], Any]) -> None:
        self._method = method

    def fit(self, x: np.ndarray, y: np.ndarray) -> None:
        self._fitted = [self._method().fit(x, one) for one in y.reshape(len(y), -1).T]

    def predict(self, x: np.ndarray) -> np.ndarray:
        return np.stack([one.predict(x) for one in self._fitted], axis=1)


def _extra_trees(leaf: int, trees: int) -> Any:
    from sklearn import ensemble

    return ensemble.ExtraTreesRegressor(trees, min_samples_leaf=leaf, random_state=0)


class _Method(Rival):
    """A method with `fit(x, owner)` and `fill(x)`, x (n, size) with NaN for gaps; its setting is the one that fills hidden
    cells of the validation rows best."""

    def __init__(
        self,
        application: Imputation,
        method: Callable[[Any], Any],
        settings: Sequence[Any],
        *,
        draft: Callable[[Any], Any] | None = None,
    ) -> None:
        """Set up the method; `draft` is one that takes less time, and errs by the setting as it does."""
        self._application = application
        self._method = method
        self._settings = settings
        self._draft = draft or method

    def fit(self, train: Split, validation: Split) -> None:
        rows, owner = _with_gaps(*_cells(train)), columns(train)
        chosen = self._settings[0]
        if len(self._settings) > 1:
            step = max(1, -(-len(validation) // LARGEST_TUNING))
            held = validation.take(np.arange(0, len(validation), step))
            x, seen = _cells(held)
            at = hide(held, train, owner, self._application.share)["mcar"][:, owner]
            errors = []
            for setting in self._settings:
                method = self._draft(setting)
                method.fit(rows, owner)
                errors.append(float(((method.fill(_with_gaps(x, seen & ~at)) - x) ** 2)[at].sum()))
            chosen = self._settings[int(np.argmin(errors))]
        self._chosen = self._method(chosen)
        self._chosen.fit(rows, owner)

    def evaluate(self, split: Split, train: Split) -> Scores:
        owner = columns(train)

        def fill(x: np.ndarray, seen: np.ndarray) -> np.ndarray:
            return _settled(self._chosen.fill(_with_gaps(x, seen)), x, seen, owner)

        return self._application.scores(split, train, fill)


def _with_gaps(x: np.ndarray, seen: np.ndarray) -> np.ndarray:
    return np.where(seen, x.astype(np.float64), np.nan)
