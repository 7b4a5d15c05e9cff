"""What the hunt mutates: runs, checkpoints, records, images of every format that Pillow writes, archives, statistics; made once a hunt."""

from __future__ import annotations

import io
import json
import os
import random
import shutil
import tarfile
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from actions import CPU, TRUTH, command, digests, read_set_again
from PIL import Image
from safetensors.torch import save as save_safetensors

from gantrain.data import Folder, intake, pack
from gantrain.run_folder import checkpoint

DONE = ".done"
ROOT = Path(__file__).parents[2]
MODES = ("1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "I;16", "I", "F", "YCbCr", "HSV", "PA")
SMALL = [
    "model.ch=2", "model.dim_z=8", "batching={name: on_swap, batch_size: 16, max_batch: 64}", "optim.d_steps=1", "eval.every_kimg=0.16",
    "eval.num_samples=64", "eval.batch_size=32", "eval.reference_samples=64", "eval.recalibration_batches=1", "eval.metrics=[fid,is]",
    "checkpoint.every_kimg=0.08", "checkpoint.keep_last=3", "tracking.every_kimg=0.08", "tracking.samples_every_kimg=0.16",
    "tracking.sample_rows=1", "data.workers=0",
]  # fmt: skip
RUN = [
    *SMALL, "total_kimg=0.32", "averagers.swa.start_kimg=0.16", "averagers.swa.every_kimg=0.032", "orbit.every_kimg=0.016",
    "averagers.power={name: power, sigma_rel: 0.1, snapshot_every_kimg: 0.08}", "checkpoint.keep_best=[eval/ema/digits_fid]",
    "swap={source: ema, every_kimg: 0.16, start_kimg: 0.16, growth: 2, after_kimg: 0.08}",
]  # fmt: skip
LONG_ORBIT = [*SMALL, "total_kimg=0.8", "eval.every_kimg=null", "averagers={swa: null}", "orbit.every_kimg=0.016", "checkpoint.keep_last=1"]


def build(world: Path) -> None:
    """Make all of it in an empty folder."""
    (world / "cache").mkdir(parents=True)
    os.environ["GANTRAIN_CACHE"] = str(world / "cache")
    before = os.getcwd()
    os.chdir(world)
    for name, settings in (("run", RUN), ("orbit", LONG_ORBIT)):
        train(["train", str(ROOT / "configs" / "digits.yaml"), f"run_dir={name}", *settings])
    truth = {str(int(path.name)): digests(checkpoint.read(path)) for path in sorted((world / "run" / "checkpoints").iterdir())}
    (world / TRUTH).write_text(json.dumps(truth))
    build_images(world / "images")
    build_sets(world / "sets")
    build_statistics(world / "statistics")
    build_weights(world / "weights")
    build_cifar(world / "cifar")
    (world / "looks").mkdir()
    read_set_again("sets/classes", "looks")
    os.chdir(before)
    (world / DONE).touch()


def build_cifar(folder: Path) -> None:
    """A small CIFAR-10 as it is published: a byte of label and 3,072 of colours an image."""
    dice = random.Random(2)
    (folder / "cifar-10-batches-bin").mkdir(parents=True)
    for i in range(1, 6):
        images = b"".join(bytes([n % 10]) + dice.randbytes(3072) for n in range(20))
        (folder / "cifar-10-batches-bin" / f"data_batch_{i}.bin").write_bytes(images)
    names = "airplane automobile bird cat deer dog frog horse ship truck"
    (folder / "cifar-10-batches-bin" / "batches.meta.txt").write_text("\n".join(names.split()) + "\n")


def train(argv: list[str]) -> None:
    """A run, to its end."""
    try:
        command(argv)
    except SystemExit as end:
        assert not end.code, f"the hunt's own run ended with {end.code}"


def picture(dice: random.Random, mode: str, size: tuple[int, int]) -> Image.Image:
    """An image of noise."""
    noise = np.frombuffer(dice.randbytes(size[0] * size[1] * 4), np.uint8).reshape(size[1], size[0], 4)
    if mode == "I;16":
        return Image.fromarray((noise[..., 0].astype(np.uint16) << 8) | noise[..., 1])
    if mode in ("I", "F"):
        return Image.fromarray(noise[..., 0].astype(np.int32 if mode == "I" else np.float32))
    if mode == "PA":
        return Image.fromarray(noise[..., :3], "RGB").convert("P").convert("PA")
    return Image.fromarray(noise).convert("RGB").convert(mode) if mode not in ("RGBA", "LA") else Image.fromarray(noise).convert(mode)


def build_images(folder: Path) -> None:
    """One file of each format, mode and variant that Pillow writes."""
    folder.mkdir()
    Image.init()
    dice = random.Random(0)
    formats = {format: suffix for suffix, format in reversed(Image.registered_extensions().items()) if format in Image.SAVE}
    for format, suffix in formats.items():
        for mode in MODES:
            for number, size in enumerate([(8, 8), (64, 48)]):
                keep(folder / f"{format}-{mode.replace(';', '')}-{number}{suffix}", picture(dice, mode, size), format=format)
    colours = picture(dice, "RGB", (40, 24))
    turned = Image.Exif()
    turned[0x0112] = 6
    variants: dict[str, dict] = {
        "progressive.jpg": {"progressive": True}, "turned.jpg": {"exif": turned}, "turned.png": {"exif": turned},
        "turned.webp": {"exif": turned},
        "lossless.webp": {"lossless": True}, "icc.jpg": {"icc_profile": b"x" * 3000}, "subsampled.jpg": {"subsampling": 2},
        **{f"{name}.tiff": {"compression": name} for name in ("raw", "tiff_lzw", "tiff_deflate", "packbits", "jpeg", "zstd", "lzma",
        "webp")},
        **{f"animated.{suffix}": {"save_all": True, "append_images": [colours.rotate(90 * i) for i in range(3)]}
           for suffix in ("gif", "webp", "png", "tiff", "avif", "pdf")},
    }  # fmt: skip
    for name, settings in variants.items():
        keep(folder / name, colours, **settings)
    keep(folder / "group4.tiff", picture(dice, "1", (40, 24)), compression="group4")


def keep(path: Path, image: Image.Image, **settings: object) -> None:
    """Save an image, if Pillow writes this mode in this format."""
    try:
        image.save(path, **settings)
    except (OSError, ValueError, KeyError, TypeError, SystemError, AttributeError, RuntimeError):
        path.unlink(missing_ok=True)


def build_sets(folder: Path) -> None:
    """A folder of classes with a dataset.json, zips of it, tars, and a prepared data set."""
    dice = random.Random(1)
    labels = []
    for name in ("ants", "bees", "\u00e9t\u00e9"):
        (folder / "classes" / name).mkdir(parents=True)
        for i in range(5):
            picture(dice, ("RGB", "L", "RGBA")[i % 3], (12, 10)).save(folder / "classes" / name / f"{i}.png")
            labels.append([f"{name}/{i}.png", len(labels) // 5])
    shutil.copytree(folder / "classes", folder / "listed")
    (folder / "listed" / "dataset.json").write_text(json.dumps({"labels": labels}))
    for name, method in (("stored", zipfile.ZIP_STORED), ("deflated", zipfile.ZIP_DEFLATED)):
        for around, listed in (("", "listed"), ("top/", "classes")):
            with zipfile.ZipFile(folder / f"{name}-{listed}.zip", "w", method) as archive:
                for file in sorted(path for path in (folder / listed).rglob("*") if path.is_file()):
                    archive.write(file, f"{around}{file.relative_to(folder / listed)}")
    for name, kind in (("classes.tar", "w"), ("classes.tar.gz", "w:gz")):
        with tarfile.open(folder / name, kind) as archive:
            archive.add(folder / "classes", "classes")
    pack(intake.prepare(Folder(root=str(folder / "classes"), resolution=8), CPU), folder / "packed", "the hunt")


def statistics(dice: np.random.Generator) -> Iterator[tuple[str, dict[str, np.ndarray]]]:
    """Arrays of every kind of file of statistics."""
    features = dice.normal(size=(40, 6))
    mu, sigma = features.mean(0), np.cov(features.T)
    yield "gantrain", {"mu": mu, "sigma": sigma, "num_images": np.array(40), "features": features.astype(np.float32),
                       "logits": features[:, :3].astype(np.float32), "identity": np.array("x/6"), "name": np.array("digits"),
                       "data": np.array(""), "class_counts": np.array([20, 20])}  # fmt: skip
    yield "moments", {"mu": mu, "sigma": sigma}
    yield "stylegan", {"raw_mean": mu * 40, "raw_cov": (features.T @ features), "num_items": np.array(40)}
    yield "images", {"arr_0": dice.integers(0, 256, (20, 8, 8, 3), np.uint8), "arr_1": dice.integers(0, 4, 20)}
    yield "features", {"feats": features.astype(np.float32)}


def build_statistics(folder: Path) -> None:
    folder.mkdir()
    for name, arrays in statistics(np.random.default_rng(0)):
        np.savez(folder / f"{name}.npz", **arrays)
        np.savez_compressed(folder / f"{name}-deflated.npz", **arrays)


def build_weights(folder: Path) -> None:
    """Files of weights as torch and safetensors write them."""
    folder.mkdir()
    weights = {"a": torch.arange(12.0).view(3, 4), "b.c": torch.ones(2, dtype=torch.float16)}
    for name, new in (("new.pth", True), ("legacy.pth", False)):
        held = io.BytesIO()
        torch.save(weights, held, _use_new_zipfile_serialization=new)
        (folder / name).write_bytes(held.getvalue())
    (folder / "weights.safetensors").write_bytes(save_safetensors(weights))
