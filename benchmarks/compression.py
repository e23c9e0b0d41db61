"""Compress photographs by an autoencoder and by JPEG, WebP and AVIF, all by real bytes with all headers.

    python benchmarks/compression.py DATA --model FOLDER

DATA holds kodak/, the photographs that judge. The model is one `compressive` autoencoder with a ladder of rates. It learns
from patches of other photographs: those in colour that scikit-image and scikit-learn carry, and, where DATA has them, the
grey ones of denoise/Train400. With --model it is kept there, and the next call only measures.
"""

import argparse
import io
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import page
import skimage.data
import skimage.io
import sklearn.datasets
import torch

from sevenfold import bundles, containers, quality, training
from sevenfold.applications import compression
from sevenfold.datasets.base import Split
from sevenfold.models.base import Autoencoder, ModelSpec
from sevenfold.models.compressive import CompressiveAutoencoder

COLOURED = ("astronaut", "chelsea", "coffee", "hubble_deep_field", "retina", "rocket")
PATCH = 48
OPTIONS = {
    "channels": [32, 64, 96],
    "hidden": [],
    "hyper": [32, 16],
    "groups": 4,
    "weights": [6.0, 18.0, 54.0, 162.0, 486.0],
    "augment": ["mirror", "flip", "transpose"],
}
SETTINGS = training.Settings(
    epochs=12, patience=12, batch_size=32, learning_rate=0.002, warmup=0.05, weight_decay=0.0001, gradient_clip=1.0,
    threads=1, precision="auto", compile=False,
)  # fmt: skip
CODECS = {
    "JPEG": {"optimize": True, "subsampling": "4:2:0"},
    "WebP": {"method": 6},
    "AVIF": {"speed": 6, "subsampling": "4:4:4", "max_threads": 2},
}
LADDER = {
    "JPEG": (5, 10, 20, 30, 50, 70, 85, 95),
    "WebP": (0, 5, 20, 40, 60, 80, 90, 97),
    "AVIF": (10, 20, 30, 40, 50, 60, 75, 90),
}
RATES = (0.15, 0.25, 0.5, 1.0)
"""Bits per pixel at which the curves are read."""


@dataclass(frozen=True)
class Rung:
    """Means over the photographs: bits per pixel, decibels, MS-SSIM; seconds per photograph."""

    bpp: float
    psnr: float
    ms_ssim: float
    encoding: float
    decoding: float


def photographs(folder: Path, most: int) -> list[np.ndarray]:
    """Read photographs in colour, (height, width, 3) uint8 each."""
    found = [skimage.io.imread(path)[:, :, :3] for path in sorted(folder.glob("*.png"))[:most]]
    if not found:
        raise FileNotFoundError(f"{folder} holds no PNG; name the folder that has kodak/ in it")
    return found


def patches(data: Path, most: int) -> tuple[Split, Split]:
    """Return patches to train on and, from the last tenth of the photographs' rows, to choose by."""
    sources = [getattr(skimage.data, name)() for name in COLOURED] + list(sklearn.datasets.load_sample_images().images)
    grey = [skimage.io.imread(path, as_gray=True) for path in sorted((data / "denoise" / "Train400").glob("*.png"))]
    sources += [np.repeat(image[:, :, None].astype(np.uint8), 3, axis=2) for image in grey]
    tiles = []
    for image in sources:
        for top in range(0, image.shape[0] - PATCH + 1, PATCH):
            for left in range(0, image.shape[1] - PATCH + 1, PATCH):
                tiles.append(image[top : top + PATCH, left : left + PATCH, :3])
    x = np.stack(tiles).transpose(0, 3, 1, 2).astype(np.float32) / 255
    x = x[x.std(axis=(1, 2, 3)) > 0.01]  # black sky teaches nothing
    held_out = np.arange(len(x)) % 10 == 9
    learned = np.flatnonzero(~held_out)
    learned = learned[np.linspace(0, len(learned) - 1, min(most, len(learned))).astype(int)]
    return tuple(Split(x[r], None, None, None, np.arange(len(r))) for r in (learned, np.flatnonzero(held_out)))


def trained(data: Path, folder: Path | None, epochs: int, most: int, channels: list[int]) -> tuple[Autoencoder, str]:
    """Return the model, trained unless the folder holds it already, and how it came to be."""
    if folder is not None and folder.is_dir():
        return bundles.load_model(folder)[1], f"trained before, kept in {folder.name}"
    train, validation = patches(data, most)
    spec = ModelSpec("compressive", (3, PATCH, PATCH), {**OPTIONS, "channels": channels})
    settings = training.Settings(**{**vars(SETTINGS), "epochs": epochs, "patience": epochs})
    start = time.perf_counter()

    def show(epoch: training.Epoch) -> None:
        print(f"epoch {epoch.number}: {epoch.loss:.4f}, {time.perf_counter() - start:.0f} s", file=sys.stderr)

    model, history = training.fit(spec, train, validation, settings, seed=0, device="cpu", on_epoch=show)
    how = f"{len(train)} patches, {len(history.epochs)} epochs, {(time.perf_counter() - start) / 60:.1f} minutes"
    if folder is not None:
        bundles.save_model(folder, spec, model)
    return model, how


def measured(
    images: list[np.ndarray], encode: Callable[[np.ndarray], bytes], decode: Callable[[bytes, np.ndarray], np.ndarray]
) -> Rung:
    """Send photographs through a codec, one by one."""
    rows = []
    for image in images:
        start = time.perf_counter()
        data = encode(image)
        between = time.perf_counter()
        output = decode(data, image)
        end = time.perf_counter()
        pair = [a.transpose(2, 0, 1)[None].astype(np.float32) / 255 for a in (output, image)]
        bpp = 8 * len(data) / (image.shape[0] * image.shape[1])
        rows.append((bpp, quality.psnr(*pair)[0], quality.ms_ssim(*pair)[0], between - start, end - between))
    return Rung(*np.mean(rows, axis=0).tolist())


def codec(images: list[np.ndarray], name: str) -> list[Rung]:
    return [
        measured(
            images, lambda i, q=q: compression.encoded(name.upper(), i, quality=q, **CODECS[name]), compression.decoded
        )
        for q in LADDER[name]
    ]


def ours(images: list[np.ndarray], model: CompressiveAutoencoder) -> list[Rung]:
    """Measure the model: each photograph is a container of its own, as `sevenfold compress` writes it."""

    application = compression.Compression(steps=[2.0, 1.0], decibels=30.0, chunk=1).with_state({})

    def encode(image: np.ndarray, rung: int) -> bytes:
        out = io.BytesIO()
        application.write(model, [image.transpose(2, 0, 1)[None].astype(np.float32) / 255], out, rung)
        return out.getvalue()

    def decode(data: bytes, image: np.ndarray) -> np.ndarray:
        (found,) = application.read(model, data)
        assert not isinstance(found, containers.Damage)
        return np.rint(found[0].transpose(1, 2, 0) * 255).astype(np.uint8)

    return [measured(images, lambda i, r=r: encode(i, r), decode) for r in range(1, model.rungs + 1)]


def at(rungs: list[Rung], bpp: float) -> str:
    """Return the decibels at a rate, between rungs by their logarithms; nothing is extrapolated."""
    rates = [rung.bpp for rung in rungs]
    if not rates[0] <= bpp <= rates[-1]:
        return ""
    return f"{np.interp(np.log(bpp), np.log(rates), [rung.psnr for rung in rungs]):.2f}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="the folder that has kodak/ in it")
    parser.add_argument("--model", type=Path, help="where the trained model is kept")
    parser.add_argument("--images", type=int, default=8, help="photographs of kodak/ at most")
    parser.add_argument("--crop", type=int, default=4096, help="pixels of an edge at most, from the upper left")
    parser.add_argument("--epochs", type=int, default=SETTINGS.epochs)
    parser.add_argument("--patches", type=int, default=5000, help="to train on, at most")
    parser.add_argument("--channels", type=int, nargs="+", default=OPTIONS["channels"], help="of the model")
    parser.add_argument("--write", action="store_true", help="fill this benchmark's section in docs/benchmarks.md")
    given = parser.parse_args()
    images = [i[: given.crop, : given.crop] for i in photographs(given.data / "kodak", given.images)]
    model, how = trained(given.data, given.model, given.epochs, given.patches, given.channels)
    assert isinstance(model, CompressiveAutoencoder)
    torch.set_num_threads(2)
    curves = {name: codec(images, name) for name in CODECS}
    curves["sevenfold, compressive"] = ours(images, model)
    points = {n: np.array([(r.bpp, r.psnr) for r in c]) for n, c in curves.items()}
    saved = {name: compression.bytes_saved(curve, points["JPEG"]) for name, curve in points.items()}
    head = ["", "BD-rate against JPEG", *(f"dB at {rate:g} bpp" for rate in RATES), "encoding, s", "decoding, s"]
    rows = [
        [
            name,
            f"{-saved[name]:+.1%}" if saved[name] > compression.WORST else "no common quality",
            *(at(curve, rate) for rate in RATES),
            *(f"{np.median([getattr(r, what) for r in curve]):.3f}" for what in ("encoding", "decoding")),
        ]
        for name, curve in curves.items()
    ]
    ladder = [
        [f"{name}, rung {i}", f"{r.bpp:.3f}", f"{r.psnr:.2f}", f"{r.ms_ssim:.4f}"]
        for name, curve in curves.items()
        for i, r in enumerate(curve, 1)
    ]
    body = "\n\n".join(
        [
            f"{len(images)} photographs of the Kodak set, RGB, bits per pixel with all headers, PSNR and MS-SSIM averaged "
            f"over photographs. The model: {how}, {sum(p.numel() for p in model.parameters()):,} weights, one for all rates.",
            page.table(head, rows),
            page.table(["", "bits per pixel", "PSNR in dB", "MS-SSIM"], ladder),
        ]
    )
    section = page.section("Compression of photographs", body, ("pillow", "constriction"))
    print(section)
    if given.write:
        page.write("compression", section)
    return 0


if __name__ == "__main__":
    sys.exit(main())
