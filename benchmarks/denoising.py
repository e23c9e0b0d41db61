"""How much noise the residual autoencoder takes off photographs, beside the filters that need no training.

    python benchmarks/denoising.py DATA

DATA holds denoise/Train400, grey photographs to learn from, and denoise/Set12, those that the literature judges by. Every
twentieth photograph of the first is kept for validation; the second serves for the last table alone. A training takes as
long as `--minutes` says: what an epoch takes is measured first.
"""

import argparse
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import page
import skimage.io
import torch

from sevenfold import training
from sevenfold.applications.base import Rival, Scores
from sevenfold.applications.denoising import Denoising
from sevenfold.datasets.base import Split
from sevenfold.models.base import Autoencoder, ModelSpec

PUBLISHED = {
    "BM3D, published": ("32.37", "29.97", "26.72"),
    "DnCNN-S, published": ("32.86", "30.43", "27.18"),
    "DRUNet, published": ("33.25", "30.94", "27.90"),
}
"""Mean PSNR on Set12 at 15, 25 and 50 (DnCNN: Zhang et al., 2017; DRUNet: Zhang et al., 2021)."""

SMALL = ("pca", "wiener")
"""Rivals for images of one small size."""

TRIAL = 4096
"""Rows of the trial that tells how long an epoch takes; a training wants as many rows as a patch has values."""


def images(folder: Path) -> list[np.ndarray]:
    """Return the grey images of a folder in the order of their names, each (height, width) uint8."""
    found = [skimage.io.imread(path) for path in sorted(folder.glob("*.png"))]
    if not found:
        raise FileNotFoundError(f"{folder} holds no PNG; name the folder that holds denoise/Train400 and denoise/Set12")
    return found


def split(stack: Sequence[np.ndarray], first: int = 0) -> Split:
    """Return images of one size as rows; `first` is the number of the first one, which tells its noise."""
    x = (np.stack(stack)[:, None] / np.float32(255)).astype(np.float32)
    return Split(x, None, None, None, np.arange(first, first + len(x)))


def patches(photographs: Sequence[np.ndarray], edge: int, step: int) -> list[np.ndarray]:
    """Cut patches at every `step` pixels, and as many from each photograph made smaller by a fifth and by two fifths."""
    from skimage import transform

    found = []
    for photograph in photographs:
        for scale in (1.0, 0.8, 0.6):
            edges = tuple(round(scale * n) for n in photograph.shape)
            small = photograph if scale == 1 else transform.resize(photograph, edges, anti_aliasing=True) * 255
            small = np.rint(small).astype(np.uint8)
            for top in range(0, edges[0] - edge + 1, step):
                found += [small[top : top + edge, left : left + edge] for left in range(0, edges[1] - edge + 1, step)]
    return found


def learn(given: argparse.Namespace, train: Split, validation: Split) -> tuple[Autoencoder, int, float]:
    """Train for as long as was given; return the model, the number of epochs, and the seconds of it all."""
    options = {
        "channels": given.channels,
        "blocks": given.blocks,
        "activation": "relu",
        "shuffle": 2,
        "levels": [0.0, max(given.levels) * 1.1 / 255],
        "doubt": 0.05,
        "augment": ["mirror", "flip", "transpose"],
    }
    spec = ModelSpec("residual", train.x.shape[1:], options)

    def fit(epochs: int, rows: Split, seconds: list[float]) -> Autoencoder:
        settings = training.Settings(
            epochs, epochs, given.batch, given.learning_rate, 0.05, 0.0001, 1.0, given.threads, "auto", False
        )

        def note(epoch: training.Epoch) -> None:
            seconds.append(epoch.seconds)
            if given.verbose:
                print(f"epoch {epoch.number}/{epochs}: {epoch.loss:.4f}, {epoch.seconds:.0f} s", flush=True)

        return training.fit(spec, rows, validation, settings, seed=given.seed, device="cpu", on_epoch=note)[0]

    start = time.perf_counter()
    epochs = given.epochs
    if epochs is None:
        few = Split(train.x[:TRIAL], None, None, None, train.ids[:TRIAL])
        trial: list[float] = []
        fit(1, few, trial)
        left = 60 * given.minutes - (time.perf_counter() - start)
        epochs = max(1, int(left / trial[0] * len(few) / len(train)))
    model = fit(epochs, train, [])
    return model, epochs, time.perf_counter() - start


def over(parts: Sequence[Scores], sizes: Sequence[int], name: str) -> float:
    """Return a metric's mean over the images of several splits."""
    return float(np.average([part.metrics[name] for part in parts], weights=sizes))


def row(parts: Mapping[bool, Sequence[Scores]], sizes: Sequence[int], levels: Sequence[float]) -> list[str]:
    known = [f"{over(parts[True], sizes, f'psnr_{level:g}'):.2f}" for level in levels]
    blind = [f"{over(parts[False], sizes, f'psnr_{level:g}'):.2f}" for level in levels]
    similar = [f"{over(parts[True], sizes, f'ssim_{level:g}'):.3f}" for level in levels]
    return [*known, *blind, *similar]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="folder that holds denoise/Train400 and denoise/Set12")
    parser.add_argument("--minutes", type=float, default=30, help="of training")
    parser.add_argument("--epochs", type=int, help="of training, instead of minutes")
    parser.add_argument("--levels", type=float, nargs="+", default=[15, 25, 50], help="noise, of 255")
    parser.add_argument("--channels", type=int, nargs="+", default=[32, 64], help="of the autoencoder")
    parser.add_argument("--blocks", type=int, default=2, help="residual blocks at each scale")
    parser.add_argument("--edge", type=int, default=64, help="of a patch, in pixels")
    parser.add_argument("--step", type=int, default=39, help="between patches, in pixels")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--learning-rate", type=float, default=0.005)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--photographs", type=int, default=400, help="to learn from, at most")
    parser.add_argument("--judged", type=int, default=12, help="images of Set12, at most")
    parser.add_argument("--rivals", nargs="*", help="just these; by default all for images of any size")
    parser.add_argument("--verbose", action="store_true", help="print every epoch")
    parser.add_argument("--write", action="store_true", help="write docs/benchmarks.md too")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    photographs = images(given.data / "denoise" / "Train400")[: given.photographs]
    held_out = photographs[::20]
    kept = [photograph for i, photograph in enumerate(photographs) if i % 20]
    train = split(patches(kept, given.edge, given.step))
    # Validation photographs are whole, of one size, for what is tuned on them; patches of them tell the best epoch.
    validation = split(held_out, first=len(train))
    by_size: dict[tuple[int, ...], list[np.ndarray]] = {}
    for image in images(given.data / "denoise" / "Set12")[: given.judged]:
        by_size.setdefault(image.shape, []).append(image)
    tests = [split(stack, first=1_000_000 * (i + 1)) for i, stack in enumerate(by_size.values())]
    sizes = [len(test) for test in tests]
    levels = [level / 255 for level in given.levels]
    contests = {known: Denoising(levels=levels, known=known) for known in (True, False)}

    model, epochs, seconds = learn(given, train, split(patches(held_out, given.edge, given.edge)))
    weights = sum(p.numel() for p in model.parameters())
    start = time.perf_counter()
    found: dict[str, list[str]] = {}
    judged: dict[bool, list[Scores]] = {}
    errors = []
    for known, contest in contests.items():
        calibrated = contest.calibrate(model, train, validation)
        judged[known] = [calibrated.evaluate(model, test, train) for test in tests]
        errors = [over(judged[known], sizes, "level_error")]
    found["residual autoencoder"] = [*row(judged, sizes, levels), f"{time.perf_counter() - start:.0f}"]
    names = [name for name in contests[True].rivals() if name not in SMALL]
    for name in names if given.rivals is None else given.rivals:
        start = time.perf_counter()
        scores: dict[bool, list[Scores]] = {}
        for known, contest in contests.items():
            rival: Rival = contest.rivals()[name]
            rival.fit(train, validation)
            scores[known] = [rival.evaluate(test, train) for test in tests]
        found[name] = [*row(scores, sizes, levels), f"{time.perf_counter() - start:.0f}"]
    if given.levels == [15, 25, 50] and sum(sizes) == 12:
        found |= {name: [*values, *[""] * 7] for name, values in PUBLISHED.items()}
    shown = [f"{level:g}" for level in given.levels]
    head = ["PSNR in dB", *shown, *(f"{one}, blind" for one in shown), *(f"{one}, SSIM" for one in shown), "s"]
    table = page.table(head, [[name, *cells] for name, cells in found.items()])
    text = (
        f"Noise of the given levels of 255 on {sum(sizes)} photographs of Set12, each method with the level known and, in the "
        f"columns `blind`, with the level that is measured in each image, off by {errors[0]:.1%} on average; SSIM with the "
        f"level known. The autoencoder (channels {given.channels}, {given.blocks} blocks, {weights:,} weights) learned for "
        f"{seconds / 60:.0f} minutes, {epochs} epochs of {len(train):,} patches of {given.edge} x {given.edge} pixels from "
        f"{len(kept)} photographs of Train400, on {given.threads} threads of a machine that others may have used too; what "
        f"is tuned, is tuned on {len(held_out)} others. Column `s` holds the seconds of tuning and judging, for known and "
        "blind together.\n\n"
        f"{table}"
    )
    section = page.section("Noise on photographs", text, ["scikit-image", "PyWavelets"])
    print(section)
    if given.write:
        page.write("denoising", section)


if __name__ == "__main__":
    main()
