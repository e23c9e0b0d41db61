"""Train the same networks on the same rows with this engine and with its peers, in turn, and print the ratios.

    python benchmarks/training.py [--cases wide narrow images] [--rounds 3] [--json FILE]

Needs the extra `bench`; a peer that is not installed is left out. Every training is a process of its own, and everything that
happens after the imports counts: captures and compilation too, from an empty cache. Each round has a seed of its own: of two
trainings of 400 steps that differ in their seed alone, one may end a quarter worse. Run it on a machine that does nothing else.
"""

import argparse
import contextlib
import itertools
import json
import os
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

RATE = 0.001
"""The learning rate of the peers, which is the default of each. Ours falls from a peak of twice as much, 0.001 in the mean."""

BATCH = 256


@dataclass(frozen=True)
class Case:
    """A network and its rows; a tenth as many are held out.

    widths: of the layers, down to the code; of an image's network, its channels.
    """

    title: str
    shape: tuple[int, ...]
    widths: tuple[int, ...]
    code: int
    rows: int
    epochs: int
    bars: tuple[tuple[str, float], ...]

    @property
    def sizes(self) -> list[int]:
        """Every width of a fully connected network, from sample to sample."""
        down = [*self.shape, *self.widths, self.code]
        return down + down[-2::-1]


CASES = {
    "wide": Case("3000-1500-200-1500-3000", (3000,), (1500,), 200, 8192, 10, (("plain loop", 2.2), ("PyOD", 3.0))),
    "narrow": Case(
        "30-64-16-64-30", (30,), (64,), 16, 50_000, 60, (("PyOD", 15.0), ("plain loop", 5.0), ("scikit-learn", 2.0))
    ),
    "images": Case(
        "convolutional 1-32-64, code 32, 28x28", (1, 28, 28), (32, 64), 32, 10_000, 10, (("plain loop", 1.5),)
    ),
}


def rows(case: Case) -> tuple[np.ndarray, np.ndarray]:
    """Return training and validation rows: curved surfaces of few dimensions with noise, or smooth blots."""
    generator = np.random.default_rng(0)
    n = case.rows + case.rows // 10
    if len(case.shape) == 3:
        height, width = case.shape[1:]
        y, x = np.mgrid[:height, :width]
        z = generator.uniform(size=(n, 3, 3, 1, 1))
        spread = 1.5 + 4 * z[:, :, 2]
        blots = np.exp(-((y - height * z[:, :, 0]) ** 2 + (x - width * z[:, :, 1]) ** 2) / (2 * spread**2)).sum(axis=1)
        values = blots[:, None] + 0.02 * generator.normal(size=(n, *case.shape))
    else:
        z = generator.normal(size=(n, case.code // 2))
        inner = np.tanh(z @ generator.normal(size=(case.code // 2, 2 * case.code)) / np.sqrt(case.code / 2))
        values = inner @ generator.normal(size=(2 * case.code, *case.shape)) / np.sqrt(2 * case.code)
        values += 0.1 * generator.normal(size=values.shape)
    values = ((values - values.mean()) / values.std()).astype(np.float32)
    return values[: case.rows], values[case.rows :]


@dataclass
class Outcome:
    """Seconds of the whole training, validation loss at its end, and (seconds, loss) on the way where it is told."""

    seconds: float
    loss: float
    curve: list[tuple[float, float]]


def sevenfold(case: Case, x: np.ndarray, held_out: np.ndarray, threads: int, seed: int, **settings: Any) -> Outcome:
    from sevenfold import params, training
    from sevenfold.datasets.base import Split
    from sevenfold.models.base import ModelSpec

    def split(values: np.ndarray) -> Split:
        return Split(values, None, None, None, np.arange(len(values)))

    variant, widths = ("convolutional", "channels") if len(case.shape) == 3 else ("deep", "hidden")
    # All that params.yaml says of its first candidate of this variant, which is a plain one, but for the network's size.
    settled = params.load(Path(__file__).parents[1] / "params.yaml").candidates.values()
    options = dict(next(candidate.options for candidate in settled if candidate.variant == variant))
    options |= {"hidden": [], "code": case.code, widths: list(case.widths), "activation": "relu"}
    chosen = training.Settings(
        epochs=case.epochs,
        patience=case.epochs,
        batch_size=BATCH,
        learning_rate=2 * RATE,
        warmup=0.05,
        weight_decay=0.0001,
        gradient_clip=1.0,
        threads=threads,
        **settings,
    )
    curve: list[tuple[float, float]] = []
    start = time.perf_counter()
    model, _ = training.fit(
        ModelSpec(variant, case.shape, options),
        split(x),
        split(held_out),
        chosen,
        seed=seed,
        device="cpu",
        on_epoch=lambda epoch: curve.append((time.perf_counter() - start, epoch.loss)),
    )
    return Outcome(time.perf_counter() - start, _error(model, held_out), curve)


def plain(case: Case, x: np.ndarray, held_out: np.ndarray, threads: int, seed: int) -> Outcome:
    """The loop that most people write: a DataLoader, Adam, float32, and a look at the validation rows after each epoch."""
    import torch
    from torch import nn
    from torch.utils.data import DataLoader, TensorDataset

    torch.manual_seed(seed)
    layers: list[nn.Module] = []
    if len(case.shape) == 3:
        channels = [case.shape[0], *case.widths]
        edge = case.shape[1] // 2 ** len(case.widths)
        flat = channels[-1] * edge**2
        for finer, coarser in itertools.pairwise(channels):
            layers += [nn.Conv2d(finer, coarser, 4, stride=2, padding=1), nn.ReLU()]
        layers += [nn.Flatten(), nn.Linear(flat, case.code), nn.Linear(case.code, flat)]
        layers += [nn.Unflatten(1, (channels[-1], edge, edge))]
        for coarser, finer in itertools.pairwise(channels[::-1]):
            layers += [nn.ReLU(), nn.ConvTranspose2d(coarser, finer, 4, stride=2, padding=1)]
    else:
        for width, following in itertools.pairwise(case.sizes):
            layers += [nn.Linear(width, following)] + [nn.ReLU()] * (following not in (case.code, case.sizes[-1]))
    model = nn.Sequential(*layers)
    curve = []
    start = time.perf_counter()
    loader = DataLoader(TensorDataset(torch.from_numpy(x)), batch_size=BATCH, shuffle=True)
    optimizer = torch.optim.Adam(model.parameters(), lr=RATE)
    for _ in range(case.epochs):
        model.train()
        for (batch,) in loader:
            optimizer.zero_grad()
            loss = nn.functional.mse_loss(model(batch), batch)
            loss.backward()
            optimizer.step()
        model.eval()
        curve.append((0.0, _error(model, held_out)))
        curve[-1] = (time.perf_counter() - start, curve[-1][1])
    return Outcome(time.perf_counter() - start, curve[-1][1], curve)


def pyod(case: Case, x: np.ndarray, held_out: np.ndarray, threads: int, seed: int, **options: Any) -> Outcome:
    """PyOD's detector as it comes, with its normalised and thinned out layers, or as `options` say."""
    from pyod.models.auto_encoder import AutoEncoder

    detector = AutoEncoder(
        preprocessing=False,
        lr=RATE,
        epoch_num=case.epochs,
        batch_size=BATCH,
        hidden_neuron_list=[*case.widths, case.code],
        verbose=0,
        random_state=seed,
        **options,
    )
    start = time.perf_counter()
    detector.fit(x)
    seconds = time.perf_counter() - start
    return Outcome(seconds, _error(detector.model.eval(), held_out), [])


def bare_pyod(case: Case, x: np.ndarray, held_out: np.ndarray, threads: int, seed: int) -> Outcome:
    return pyod(case, x, held_out, threads, seed, batch_norm=False, dropout_rate=0.0)


def scikit_learn(case: Case, x: np.ndarray, held_out: np.ndarray, threads: int, seed: int) -> Outcome:
    from sklearn.neural_network import MLPRegressor

    hidden = case.sizes[1:-1]
    network = MLPRegressor(
        hidden_layer_sizes=hidden, batch_size=BATCH, learning_rate_init=RATE, alpha=0.0, max_iter=case.epochs, tol=0.0,
        n_iter_no_change=case.epochs, random_state=seed,
    )  # fmt: skip
    start = time.perf_counter()
    with contextlib.suppress(UserWarning):  # that it has not converged
        network.fit(x, x)
    seconds = time.perf_counter() - start
    return Outcome(seconds, float(np.square(network.predict(held_out) - held_out).mean()), [])


CONTENDERS: dict[str, Any] = {
    "sevenfold": sevenfold,
    "plain loop": plain,
    "PyOD": pyod,
    "PyOD, plain layers": bare_pyod,
    "scikit-learn": scikit_learn,
}


def _error(model: Any, values: np.ndarray) -> float:
    """Return the mean squared error of the reconstruction."""
    import torch

    with torch.inference_mode():
        x = torch.from_numpy(values)
        parts = [(model(part) - part).square().sum() for part in torch.split(x, 4096)]
    return float(sum(parts)) / x.numel()


def peaks(case: Case | None) -> dict[str, float]:
    """Return the best rate of matrix products here: in GFLOP/s of a large one; in rows/s of those of a training step."""
    import torch

    found = {}
    for dtype in (torch.float32, torch.bfloat16):
        name = str(dtype).removeprefix("torch.")
        if case is None:
            a = torch.randn(2048, 2048).to(dtype)
            found[name] = 2 * 2048**3 / _fastest([lambda a=a: a @ a]) / 1e9
            continue
        products = []
        for index, (i, o) in enumerate(itertools.pairwise(case.sizes)):
            weight, x, d = (torch.randn(*shape).to(dtype) for shape in ((o, i), (BATCH, i), (BATCH, o)))
            products += [lambda x=x, w=weight: x @ w.t(), lambda d=d, x=x: d.t() @ x]
            products += [lambda d=d, w=weight: d @ w] if index else []
        found[name] = BATCH / _fastest(products)
    return found


def _fastest(calls: list[Any]) -> float:
    """Return the seconds of all calls in turn, at best."""
    best = float("inf")
    stop = time.perf_counter() + 2
    while time.perf_counter() < stop:
        start = time.perf_counter()
        for _ in range(5):
            for call in calls:
                call()
        best = min(best, (time.perf_counter() - start) / 5)
    return best


def alone(what: str, case: Case, threads: int, seed: int) -> dict[str, Any]:
    """Run one contender, or the products, in this process."""
    import torch

    torch.set_num_threads(threads)
    if what == "peak":
        return peaks(None)
    if what == "products":
        return peaks(case)
    x, held_out = rows(case)
    name, _, options = what.partition(":")
    outcome = CONTENDERS[name](case, x, held_out, threads, seed, **json.loads(options or "{}"))
    return vars(outcome)


def process(what: str, name: str, arguments: argparse.Namespace, seed: int = 0) -> dict[str, Any] | None:
    """Run one contender in a process of its own; None where it is not installed."""
    command = [sys.executable, "-W", "ignore", __file__, "--alone", what, "--cases", name]
    command += ["--threads", str(arguments.threads), "--seed", str(seed)]
    for option in ("rows", "epochs"):
        if getattr(arguments, option):
            command += [f"--{option}", str(getattr(arguments, option))]
    threads = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), str(arguments.threads))
    done = subprocess.run(command, env={**os.environ, **threads}, capture_output=True, text=True, check=False)
    if done.returncode and "ModuleNotFoundError" in done.stderr:
        return None
    if done.returncode:
        raise RuntimeError(f"{what} on {name} failed:\n{done.stderr}")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def chosen(case: Case, arguments: argparse.Namespace) -> Case:
    changes = {name: value for name in ("rows", "epochs") if (value := getattr(arguments, name))}
    return Case(**{**vars(case), **changes})


def measure(name: str, arguments: argparse.Namespace) -> dict[str, Any]:
    """Let all contenders train in turn, round after round."""
    case = chosen(CASES[name], arguments)
    found: dict[str, list[dict[str, Any]]] = {}
    products: list[dict[str, float]] = []
    left_out = {"PyOD", "PyOD, plain layers", "scikit-learn"} if len(case.shape) == 3 else set()
    for number in range(arguments.rounds):
        for contender in [c for c in CONTENDERS if c not in left_out]:
            _say(f"{name}: round {number + 1} of {arguments.rounds}, {contender}")
            outcome = process(contender, name, arguments, seed=number)
            if outcome is None:
                left_out.add(contender)
                continue
            found.setdefault(contender, []).append(outcome)
        if len(case.shape) == 1 and (allowed := process("products", name, arguments)):
            products.append(allowed)
    _say("")
    contenders = {}
    goal = statistics.median(o["loss"] for o in found.get("plain loop", found["sevenfold"]))
    for contender, outcomes in found.items():
        rates = [case.rows * case.epochs / o["seconds"] for o in outcomes]
        until = [next((s for s, loss in o["curve"] if loss <= goal), None) for o in outcomes]
        contenders[contender] = {
            "rate": statistics.median(rates),
            "rates": rates,
            "loss": statistics.median(o["loss"] for o in outcomes),
            "until": None if None in until or not until else statistics.median(until),
        }
    allowed_rates = {k: statistics.median(p[k] for p in products) for k in products[0]} if products else {}
    return {"title": case.title, "rows": case.rows, "epochs": case.epochs, "goal": goal, "contenders": contenders,
            "products": allowed_rates, "bars": dict(case.bars)}  # fmt: skip


def table(found: dict[str, Any]) -> str:
    """Return what was measured for one case as Markdown."""
    ours = found["contenders"]["sevenfold"]
    lines = [
        f"### {found['title']}, {found['rows']:,} rows, {found['epochs']} epochs",
        "",
        f"| | rows/s, median (range) | sevenfold is faster by | bar | validation error | seconds to {found['goal']:.4g} |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for name, one in found["contenders"].items():
        ratio = "" if name == "sevenfold" else f"{ours['rate'] / one['rate']:.2f}"
        bar = found["bars"].get(name)
        until = "-" if one["until"] is None else f"{one['until']:.1f}"
        lines.append(
            f"| {name} | {one['rate']:,.0f} ({min(one['rates']):,.0f} to {max(one['rates']):,.0f}) | {ratio} | "
            f"{'' if bar is None else f'{bar:g}'} | {one['loss']:.4g} | {until} |"
        )
    for dtype, rate in found["products"].items():
        lines.append(
            f"| the step's products alone, {dtype} | {rate:,.0f} | {ours['rate'] / rate:.0%} of it reached | | | |"
        )
    return "\n".join(lines)


def _say(text: str) -> None:
    if sys.stderr.isatty():
        print(f"\r{text:<60}", end="" if text else "\r", file=sys.stderr, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--rows", type=int, help="in place of each case's own number")
    parser.add_argument("--epochs", type=int, help="in place of each case's own number")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--json", type=Path, help="write everything that was measured to this file")
    parser.add_argument("--alone", help=argparse.SUPPRESS)
    parser.add_argument("--seed", type=int, default=0, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.alone:
        case = chosen(CASES[arguments.cases[0]], arguments)
        print(json.dumps(alone(arguments.alone, case, arguments.threads, arguments.seed)))
        return
    peak = process("peak", arguments.cases[0], arguments) or {}
    cores = f"{arguments.threads} thread{'s' * (arguments.threads > 1)}"
    print(
        f"Matrix products of 2048 x 2048 on {cores}: " + ", ".join(f"{v:,.0f} GFLOP/s in {k}" for k, v in peak.items())
    )
    everything = {"peak": peak, "threads": arguments.threads, "cases": {}}
    for name in arguments.cases:
        everything["cases"][name] = found = measure(name, arguments)
        print(f"\n{table(found)}", flush=True)
    if arguments.json:
        arguments.json.write_text(json.dumps(everything, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
