"""Writes the test vectors of compression: `python tests/vectors/write.py`, after a change that means to change streams.

Each folder has a small bundle, containers that it wrote, the pixels that came out of them, and digests of the whole numbers
in their streams. `version_1.7f` was written by the code of that time, and is only read. Streams that this writes anew differ
from those that are there: whoever changes them has broken every archive that somebody keeps, and raises a version.
"""

import hashlib
import json
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
from sklearn import datasets

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE.parent), str(HERE.parents[1] / "src")]

import samples  # noqa: E402
from sevenfold import archives, bundles, containers, formats, operations  # noqa: E402
from sevenfold.applications.compression import Compression  # noqa: E402
from sevenfold.bundles import Bundle  # noqa: E402
from sevenfold.datasets.base import ImageSchema  # noqa: E402
from sevenfold.models.base import Compressor, ModelSpec  # noqa: E402

MODELS = {
    "convolutional": (
        32,
        "compressive",
        {"channels": [6, 10, 6], "hidden": [], "hyper": [5], "groups": 2, "weights": [5.0, 20.0, 80.0], "augment": []},
    ),
    "layers": (
        8,
        "compressive",
        {"channels": [12], "hidden": [16], "hyper": [], "groups": 1, "weights": [3.0, 12.0, 48.0], "augment": []},
    ),
    "quantised": (
        8,
        "deep",
        {
            "code": 10, "hidden": [24], "activation": "silu", "blocks": 0, "tied": False, "augment": [],
            "numbers": "standard", "categories": "one-hot",
        },
    ),
}  # fmt: skip


def mosaics(count, seed, edge):
    """Images of digits, (count, edge, edge) uint8."""
    digits = np.rint(datasets.load_digits().images * (255 / 16)).astype(np.uint8)
    n = edge // 8
    chosen = digits[np.random.default_rng(seed).integers(0, len(digits), count * n * n)]
    return chosen.reshape(count, n, n, 8, 8).transpose(0, 1, 3, 2, 4).reshape(count, edge, edge)


def bundle(name):
    edge, variant, options = MODELS[name]
    learn, check = (samples.split(mosaics(300, seed, edge)[:, None] / np.float32(255)) for seed in (1, 2))
    spec = ModelSpec(variant, (1, edge, edge), options)
    model, _ = samples.fit(spec, learn, check, settings=replace(samples.SETTINGS, epochs=12, patience=12))
    application = Compression(steps=[4.0, 2.0, 1.0], decibels=20.0, chunk=4).calibrate(model, learn, check)
    return Bundle(spec, model, ImageSchema((1, edge, edge), 0.0, 255.0, "uint8"), "compression", application, {})


def parts(name):
    """Images of every kind: many of one size, of 16 bits, without content, and, where the model takes them, of other sizes."""
    edge = MODELS[name][0]

    def rows(names, pixels):
        return formats.Rows(pd.DataFrame({"path": names}), pixels)

    some = mosaics(6, 3, edge)
    yield rows([f"digits/{i}.png" for i in range(6)], some)
    yield rows(["deep.png"], some[:1].astype(np.uint16) * 257 + np.uint16(3))
    yield rows(["empty.webp"], np.zeros((1, edge, edge, 1), np.uint8))
    if name == "convolutional":
        yield rows(["wide.tif"], np.tile(mosaics(1, 4, 16), (1, 1, 69))[:, :, :1100])  # of two tiles
        yield rows(["odd.png"], some[:1, :13, :21])
        board = np.indices((1, 64, 48)).sum(axis=0).astype(np.uint8) % 2 * 250  # few bytes of PNG, and many of a stream
        yield rows(["board.png"], board)
        yield rows(["deep board.tif"], board.astype(np.uint16) * 257)


def integers(application, model, chunk):
    """Return the SHA-256 of the whole numbers in a chunk's streams, in order, or None for an image file."""
    if chunk.kind == "file":
        return None
    if not isinstance(model, Compressor):
        found = [application._quantiser().read(chunk.payload, chunk.count, chunk.rung)]
    else:
        transform, gain = model.transform, model.gains[chunk.rung - 1].detach()
        streams, places = [chunk.payload], [transform.grid(chunk.shape[1:])]
        if chunk.kind == "tiles":
            streams = containers.parted(chunk.payload)
            places = [[one.stop - one.start for one in tile] for tile in transform.tiles(chunk.shape[1:])]
        found = [
            model.prior.unpack([stream], chunk.count, where, chunk.rung, gain).numpy()
            for stream, where in zip(streams, places, strict=True)
        ]
    return hashlib.sha256(b"".join(one.astype("<i8").tobytes() for one in found)).hexdigest()


def expected(one, file):
    """Return what a container decodes to: digests of whole numbers and of pixels, and the pixels by name."""
    chunks = [c for c in containers.read(file) if isinstance(c, containers.Chunk)]
    pixels = {}
    for part in archives.Reader(one).read(file):
        pixels |= dict(zip(part.frame["path"], part.images, strict=True))
    return {
        "integers": [integers(one.application, one.model, chunk) for chunk in chunks],
        "pixels": {name: archives.digest(array).hex() for name, array in pixels.items()},
    }, pixels


def main():
    for name in MODELS:
        folder = HERE / name
        if not (folder / "bundle").exists():
            bundles.save(folder / "bundle", bundle(name))
        one = operations.accepting(bundles.load(folder / "bundle"))
        archives.pack(one, parts(name), folder / "archive.7f", psnr=16.0)
        archives.pack(one, parts(name), folder / "best.7f", lossless_if_smaller=True, psnr=60.0)
        told, arrays = {}, {}
        for file in sorted(folder.glob("*.7f")):
            told[file.name], pixels = expected(one, file)
            arrays |= {f"{file.stem}:{path}": array for path, array in pixels.items()}
        (folder / "expected.json").write_text(json.dumps(told, indent=1, sort_keys=True) + "\n")
        np.savez_compressed(folder / "pixels.npz", **arrays)


if __name__ == "__main__":
    main()
