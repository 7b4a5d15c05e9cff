"""Data sets, the order of their images, and what is refused."""

from __future__ import annotations

import contextlib
import dataclasses
import gc
import hashlib
import io
import itertools
import json
import math
import tarfile
import typing
import urllib.error
import urllib.request
import weakref
import zipfile
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import psutil
import pytest
import torch
from hypothesis import example, given, settings, strategies as st
from PIL import Image
from scipy import stats
from sklearn.datasets import load_digits

from gantrain import memory, randomness
from gantrain.data import (
    DATASETS,
    Archive,
    Cifar10,
    Cifar100,
    Digits,
    Folder,
    ImageSet,
    Packed,
    RealBatches,
    Source,
    Stl10,
    audit,
    decode_all,
    intake,
    pack,
    permuted,
    prepare,
)
from gantrain.data.imageset import DECODER
from gantrain.data.intake import place, refuse_impossible
from gantrain.data.torchvision_sets import CIFAR10, CIFAR100, read_cifar
from gantrain.errors import InvalidField, UserError

CPU = torch.device("cpu")
UNLIKELY = 1e-3


# ---- material --------------------------------------------------------------------------------------------------------


def noise(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def in_memory(count: int = 30, classes: int = 3, channels: int = 3, resolution: int = 4) -> ImageSet:
    pixels = torch.from_numpy(noise(count, channels, resolution, resolution))
    return ImageSet("noise", torch.arange(count) % classes, [f"class{i}" for i in range(classes)], channels, resolution, pixels)


def write_images(root: Path, files: typing.Iterable[str], size: tuple[int, int] = (8, 8), mode: str = "RGB") -> Path:
    """Write a different noise image to each file."""
    for seed, name in enumerate(files):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(noise(size[1], size[0], *([3] if mode == "RGB" else []), seed=seed)).save(path)
    return root


def cats_and_dogs(root: Path) -> Path:
    return write_images(root / "pets", [*(f"cat/{i}.png" for i in range(3)), *(f"dog/{i}.png" for i in range(4))])


def write_cifar10(root: Path, images: np.ndarray, labels: np.ndarray, files: list[str], names: str = "plane car bird") -> None:
    """The published layout: a record is the label byte, then 1,024 red, 1,024 green and 1,024 blue bytes, row by row."""
    folder = root / "cifar-10-batches-bin"
    folder.mkdir(parents=True, exist_ok=True)
    for name, part in zip(files, np.array_split(np.arange(len(labels)), len(files))):
        records = (bytes([labels[i]]) + b"".join(images[i, :, :, colour].tobytes() for colour in range(3)) for i in part)
        (folder / name).write_bytes(b"".join(records))
    (folder / "batches.meta.txt").write_text("\n".join(names.split()) + "\n\n")


TRAIN_FILES = [f"data_batch_{i}.bin" for i in range(1, 6)]


def write_cifar100(root: Path, images: np.ndarray, coarse: np.ndarray, fine: np.ndarray, file: str = "train.bin") -> None:
    folder = root / "cifar-100-binary"
    folder.mkdir(parents=True, exist_ok=True)
    records = [bytes([c, f]) + image.transpose(2, 0, 1).tobytes() for c, f, image in zip(coarse, fine, images)]
    (folder / file).write_bytes(b"".join(records))
    (folder / "fine_label_names.txt").write_text("\n".join(f"fine{i}" for i in range(100)) + "\n")
    (folder / "coarse_label_names.txt").write_text("\n".join(f"coarse{i}" for i in range(20)) + "\n")


def write_stl10(root: Path, images: np.ndarray, labels: np.ndarray, split: str = "train") -> None:
    """The published layout: channel by channel, each column by column; labels count from 1."""
    folder = root / "stl10_binary"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{split}_X.bin").write_bytes(images.transpose(0, 3, 2, 1).tobytes())  # [N, H, W, C] to [N, C, W, H]
    (folder / f"{split}_y.bin").write_bytes((labels + 1).astype(np.uint8).tobytes())
    (folder / "class_names.txt").write_text("\n".join(f"thing{i}" for i in range(10)) + "\n")


def write_zip(path: Path, folder: Path, labels: dict[str, int] | None = None, **more: object) -> Path:
    """The images under a folder as StyleGAN's tool writes them: stored PNGs, and `dataset.json` with a class for each."""
    files = sorted(p for p in folder.rglob("*") if p.is_file())
    with zipfile.ZipFile(path, "w") as archive:
        for file in files:
            archive.write(file, file.relative_to(folder))
        if labels is not None:
            pairs = [[str(file.relative_to(folder)), labels[file.parent.name]] for file in files]
            archive.writestr("dataset.json", json.dumps({"labels": pairs, **more}))
    return path


@pytest.fixture
def any_stl10(monkeypatch):
    """torchvision takes STL-10 files whatever their checksums."""
    from torchvision.datasets import STL10

    monkeypatch.setattr(STL10, "_check_integrity", lambda self: True)


@pytest.fixture
def no_network(monkeypatch):
    def refuse(*args, **kwargs):
        raise urllib.error.URLError("[Errno -3] Temporary failure\nin name resolution")

    monkeypatch.setattr(urllib.request, "urlopen", refuse)


def furnished(name: str, root: Path) -> Source:
    """A data set of a class in the table, whose small files are written under `root`."""
    if name == "digits":
        return Digits()
    if name == "folder":
        return Folder(root=str(cats_and_dogs(root)), resolution=16)
    if name == "cifar10":
        write_cifar10(root, noise(10, 32, 32, 3), np.arange(10) % 3, TRAIN_FILES)
        return Cifar10(root=str(root))
    if name == "cifar100":
        write_cifar100(root, noise(10, 32, 32, 3), np.zeros(10, np.uint8), np.arange(10))
        return Cifar100(root=str(root))
    if name == "stl10":
        write_stl10(root, noise(10, 96, 96, 3), np.arange(10))
        return Stl10(root=str(root))
    if name == "archive":
        return Archive(root=str(write_zip(root / "pets.zip", cats_and_dogs(root), {"cat": 1, "dog": 0})), resolution=16)
    if name == "packed":
        pack(Folder(root=str(cats_and_dogs(root)), resolution=16).build(), root / "packed", "pets") if not (
            root / "packed"
        ).exists() else None
        return Packed(root=str(root / "packed"), resolution=16)
    raise AssertionError(f"say here how a small {name} is made, so that its contract is tested")


# ---- every data set --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cls", DATASETS.values(), ids=DATASETS)
def test_a_data_set_is_a_frozen_dataclass_with_the_common_keys(cls):
    assert dataclasses.is_dataclass(cls) and cls.__dataclass_params__.frozen and issubclass(cls, Source)
    own = {f.name for f in dataclasses.fields(cls)}
    assert own >= {f.name for f in dataclasses.fields(Source)}
    assert typing.get_type_hints(cls).keys() >= own
    assert cls() == cls() and hash(cls()) == hash(cls())  # every field has a default
    with pytest.raises(dataclasses.FrozenInstanceError):
        cls().resolution = 1
    with pytest.raises(InvalidField, match="resolution: must be at least 1, got 0"):
        cls(resolution=0)
    with pytest.raises(InvalidField, match="workers: must be at least 0, got -1"):
        cls(workers=-1)


@pytest.mark.parametrize("name", DATASETS)
def test_what_a_data_set_builds(name, tmp_path, any_stl10):
    source = furnished(name, tmp_path)
    images = source.build()
    assert len(images) > 0 and images.resolution == source.resolution and images.channels in (1, 3)
    assert images.num_classes == len(images.class_names) == len(set(images.class_names))
    assert images.labels.dtype == torch.int64 and images.labels.shape == (len(images),)
    assert images.labels.min() >= 0 and images.labels.max() < images.num_classes
    image, label = images[len(images) - 1]
    assert image.dtype == torch.uint8 and image.shape == (images.channels, images.resolution, images.resolution)
    assert isinstance(label, int) and label == images.labels[-1]
    assert images.bytes == len(images) * image.numel()
    assert images.fingerprint == source.build().fingerprint and len(images.fingerprint) == 64


@pytest.mark.parametrize("name", [n for n in DATASETS if n not in ("cifar100", "cifar10")])  # whose small copies miss classes
def test_a_data_set_is_prepared_and_described(name, tmp_path, any_stl10):
    images = prepare(furnished(name, tmp_path), CPU)
    assert images.pixels.shape == (len(images), images.channels, images.resolution, images.resolution)
    assert audit(images).startswith(f"{images.name}: {len(images):,} images, {images.num_classes} classes (")


@pytest.mark.parametrize("name", DATASETS)
def test_without_labels_any_data_set_has_one_class(name, tmp_path, any_stl10):
    images = prepare(dataclasses.replace(furnished(name, tmp_path), labels=False), CPU)
    assert images.num_classes == 1 and images.class_names == ["all"] and not images.labels.any()
    assert len(images) == len(furnished(name, tmp_path).build())
    assert " 1 class, " in audit(images)


# ---- the order -------------------------------------------------------------------------------------------------------


def orders(seed: int, size: int, epochs: int, first: int = 0) -> np.ndarray:
    """The images of whole epochs: `[epochs, size]`."""
    return permuted(seed, np.arange(first * size, (first + epochs) * size), size).reshape(epochs, size)


@settings(max_examples=60, deadline=None)
@given(size=st.integers(1, 3000), seed=st.integers(0, 2**63 - 1), epoch=st.integers(0, 10**9))
@example(size=1, seed=0, epoch=0)
@example(size=2, seed=0, epoch=0)
@example(size=3, seed=0, epoch=7)
@example(size=5, seed=0, epoch=0)
@example(size=255, seed=0, epoch=0)
@example(size=256, seed=0, epoch=0)
@example(size=257, seed=0, epoch=1)
@example(size=1023, seed=1, epoch=0)
@example(size=1024, seed=1, epoch=0)
@example(size=1025, seed=1, epoch=0)
@example(size=1797, seed=2, epoch=10**9)
@example(size=65537, seed=2, epoch=3)
def test_every_epoch_shows_every_image_once(size, seed, epoch):
    assert np.array_equal(np.sort(orders(seed, size, 1, epoch)[0]), np.arange(size))


@settings(deadline=None)
@given(size=st.integers(1, 600), data=st.data())
def test_an_order_is_a_function_of_the_position(size, data):
    positions = np.array(data.draw(st.lists(st.integers(0, 3 * size - 1), max_size=30)), dtype=np.int64)
    assert np.array_equal(permuted(5, positions, size), orders(5, size, 3).flatten()[positions])


def test_epochs_and_seeds_have_orders_of_their_own():
    a, b = orders(0, 257, 50), orders(1, 257, 50)
    assert len({row.tobytes() for row in np.concatenate([a, b])}) == 100
    assert not np.array_equal(orders(2**32, 257, 1), orders(0, 257, 1))


@pytest.mark.parametrize("size", [2, 3, 5, 12])
def test_every_image_is_as_likely_at_every_position(size):
    """For random permutations (N-1)/N of Pearson's sum over the N x N table follows chi-square with (N-1)^2 degrees."""
    epochs = 3000
    table = np.zeros((size, size))
    for row in orders(0, size, epochs):
        table[np.arange(size), row] += 1
    statistic = (size - 1) / size * ((table - epochs / size) ** 2 / (epochs / size)).sum()
    assert UNLIKELY < stats.chi2.sf(statistic, (size - 1) ** 2) < 1 - UNLIKELY


def test_every_order_of_few_images_is_as_likely():
    seen = orders(3, 4, 4800)
    counts = [int((seen == order).all(axis=1).sum()) for order in itertools.permutations(range(4))]
    assert sum(counts) == 4800 and stats.chisquare(counts).pvalue > UNLIKELY


@pytest.mark.parametrize("size", [17, 256, 300])
def test_coincidences_are_those_of_random_permutations(size):
    """Fixed points, neighbours that stay neighbours, and agreement with the next epoch and the next seed: each has mean
    and variance of about 1 an epoch, so their number over many epochs is normal."""
    epochs = 1000
    p, q = orders(0, size, epochs), orders(1, size, epochs)
    numbers = {
        "fixed points": ((p == np.arange(size)).sum(), 1),
        "successors": ((p[:, 1:] - p[:, :-1] == 1).sum(), (size - 1) / size),
        "predecessors": ((p[:, 1:] - p[:, :-1] == -1).sum(), (size - 1) / size),
        "next epoch": ((p[1:] == p[:-1]).sum() * epochs / (epochs - 1), 1),
        "next seed": ((p == q).sum(), 1),
    }
    for name, (found, mean) in numbers.items():
        assert abs(found - mean * epochs) < 4 * math.sqrt(epochs), f"{name}: {found} in {epochs} epochs"


def test_an_order_of_a_billion_images_costs_as_little_as_a_short_one():
    """Far into a stream over far more images than any table could hold."""
    size, positions = 10**9, 10**12 + np.arange(2000)
    images = permuted(0, positions, size)
    assert images.dtype == np.int64 and images.min() >= 0 and images.max() < size
    assert len(np.unique(images)) == 2000  # one epoch: none twice
    assert stats.kstest(images / size, "uniform").pvalue > UNLIKELY
    assert np.array_equal(permuted(0, positions[1234:1235], size), images[1234:1235])


# ---- the stream ------------------------------------------------------------------------------------------------------


def stream(
    images: ImageSet, count: int, micro_batch: int = 4, world: int = 1, start: int = 0, **kwargs
) -> tuple[torch.Tensor, torch.Tensor]:
    """`count` images in the order of their positions, each drawn by the process whose turn it is."""
    ranks = [RealBatches(images, 0, micro_batch, rank, world, start, CPU, **kwargs) for rank in range(world)]
    parts = [ranks[rank].next() for _ in range(count // (micro_batch * world)) for rank in range(world)]
    for x, y in parts:
        assert x.dtype == torch.uint8 and y.dtype == torch.int64 and len(x) == len(y) == micro_batch
    return torch.cat([x for x, _ in parts]), torch.cat([y for _, y in parts])


def slice_of(images: ImageSet, start: int, count: int, flip: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """Positions start .. start + count - 1 one by one."""
    x, y = [], []
    for position in range(start, start + count):
        index = int(permuted(0, np.array([position]), len(images))[0])
        mirrored = flip and float(randomness.uniform(0, "flip", position, 1)) < 0.5
        x.append(torch.from_numpy(images.pixels[index].numpy()[:, :, :: -1 if mirrored else 1].copy()))
        y.append(images.labels[index])
    return torch.stack(x), torch.stack(y)


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("world, micro_batch", [(1, 24), (1, 1), (2, 12), (2, 3), (3, 4), (4, 1), (8, 3)])
@pytest.mark.parametrize("start", [0, 240])
def test_all_ranks_and_rounds_together_are_the_slice(world, micro_batch, start, flip):
    images = in_memory()
    x, y = stream(images, 48, micro_batch, world, start, flip=flip)
    x_expected, y_expected = slice_of(images, start, 48, flip)
    assert torch.equal(x, x_expected) and torch.equal(y, y_expected)


def test_starting_in_the_middle_is_continuing():
    images = in_memory()
    x, y = stream(images, 96, 4, 2, flip=True)
    for start in (8, 40, 88):
        x_late, y_late = stream(images, 96 - start, 4, 2, start, flip=True)
        assert torch.equal(x_late, x[start:]) and torch.equal(y_late, y[start:])


def test_an_epoch_of_the_stream_holds_every_image_once():
    images = in_memory(count=30)
    x, _ = stream(images, 60, 3, 2)
    for epoch in (x[:30], x[30:]):
        assert {one.numpy().tobytes() for one in epoch} == {one.numpy().tobytes() for one in images.pixels}
    assert not torch.equal(x[:30], x[30:])


def test_half_of_the_images_are_mirrored_and_chosen_again_in_each_epoch():
    images = in_memory(count=50)
    plain, flipped = stream(images, 4000, 50)[0], stream(images, 4000, 50, flip=True)[0]
    mirrored = (plain != flipped).flatten(1).any(dim=1)
    assert torch.equal(flipped[mirrored], plain[mirrored].flip(3)) and torch.equal(flipped[~mirrored], plain[~mirrored])
    assert abs(int(mirrored.sum()) - 2000) < 4 * math.sqrt(1000)
    epochs = mirrored.reshape(80, 50)
    assert len({row.numpy().tobytes() for row in epochs}) == 80


@pytest.mark.parametrize("workers", [0, 2])
def test_images_on_disk_stream_as_those_in_memory(tmp_path, workers):
    source = Folder(root=str(cats_and_dogs(tmp_path)), resolution=8, workers=workers)
    in_host, on_disk = prepare(dataclasses.replace(source, keep_in="host"), CPU), prepare(dataclasses.replace(source, keep_in="disk"), CPU)
    assert in_host.pixels is not None and on_disk.pixels is None
    for world, start in ((1, 0), (2, 16)):
        x, y = stream(in_host, 32, 4, world, start, flip=True)
        x_disk, y_disk = stream(on_disk, 32, 4, world, start, flip=True, workers=workers)
        assert torch.equal(x_disk, x) and torch.equal(y_disk, y)


@pytest.mark.parametrize("workers", [0, 1])
def test_drawing_images_leaves_the_global_generator_alone(tmp_path, workers):
    on_disk = Folder(root=str(cats_and_dogs(tmp_path)), resolution=8).build()
    state = torch.get_rng_state()
    stream(on_disk, 8, flip=True, workers=workers), stream(in_memory(), 8, flip=True)
    assert torch.equal(torch.get_rng_state(), state)


# ---- digits ----------------------------------------------------------------------------------------------------------


def test_digits_are_the_real_ones():
    data = load_digits()
    images = Digits(resolution=8).build()
    assert len(images) == 1797 and images.channels == 1 and images.class_names == list("0123456789")
    assert np.array_equal(images.pixels[:, 0].numpy(), np.rint(data.images * 255 / 16).astype(np.uint8))
    assert np.array_equal(images.labels.numpy(), data.target)
    assert images.pixels.min() == 0 and images.pixels.max() == 255


@pytest.mark.parametrize("number", [10, 100, 300, 1795])
def test_few_digits_are_the_same_number_of_each_class_from_all_writers(number):
    data, few = load_digits(), Digits(num_images=number, resolution=8).build()
    counts = few.labels.bincount()
    assert len(few) == number and (counts.max() - counts.min() <= 1 or number > 10 * 174)
    whole = {image.tobytes(): i for i, image in enumerate(Digits(resolution=8).build().pixels.numpy())}
    places = [whole[image.tobytes()] for image in few.pixels.numpy()]
    assert places == sorted(set(places)) and data.target[places].tolist() == few.labels.tolist()
    assert places[-1] > len(data.target) * (1 - 2 * 10 / number)


@pytest.mark.parametrize("number", [9, 1798])
def test_a_number_of_digits_that_there_are_not_is_refused(number):
    with pytest.raises(InvalidField, match="must be between 10 and 1797, or null for all"):
        Digits(num_images=number)


@pytest.mark.parametrize("resolution", [16, 32])
def test_digits_are_resized_smoothly(resolution):
    """Against Pillow's bicubic filter on floats."""
    data, images = load_digits(), Digits(resolution=resolution).build()
    assert images.pixels.shape == (1797, 1, resolution, resolution)
    for i in (0, 900, 1796):
        float_image = Image.fromarray((data.images[i] * 255 / 16).astype(np.float32))
        expected = np.asarray(float_image.resize((resolution, resolution), Image.Resampling.BICUBIC)).clip(0, 255)
        assert np.abs(images.pixels[i, 0].numpy() - expected).max() <= 0.501


# ---- CIFAR -----------------------------------------------------------------------------------------------------------


def test_cifar10_records_are_read_as_published(tmp_path):
    pictures, labels = noise(11, 32, 32, 3), np.array([0, 1, 2, 2, 1, 0, 0, 1, 2, 1, 2])
    write_cifar10(tmp_path, pictures, labels, TRAIN_FILES)
    write_cifar10(tmp_path, pictures[:2] // 2, labels[:2], ["test_batch.bin"])
    images = Cifar10(root=str(tmp_path)).build()
    assert images.name == "cifar-10/train" and images.class_names == ["plane", "car", "bird"]
    assert images.labels.tolist() == labels.tolist()
    assert np.array_equal(images.pixels.numpy(), pictures.transpose(0, 3, 1, 2))  # red first, rows before columns
    assert images.pixels[4, 2, 30, 5] == pictures[4, 30, 5, 2]
    test = Cifar10(root=str(tmp_path), split="test").build()
    assert np.array_equal(test.pixels.numpy(), (pictures[:2] // 2).transpose(0, 3, 1, 2)) and test.name == "cifar-10/test"


def test_cifar100_uses_the_fine_label(tmp_path):
    pictures, fine = noise(5, 32, 32, 3), np.array([99, 0, 7, 50, 98])
    write_cifar100(tmp_path, pictures, np.array([19, 3, 4, 0, 1]), fine)
    images = Cifar100(root=str(tmp_path)).build()
    assert images.labels.tolist() == fine.tolist() and images.num_classes == 100 and images.class_names[7] == "fine7"
    assert np.array_equal(images.pixels.numpy(), pictures.transpose(0, 3, 1, 2)) and images.name == "cifar-100/train"
    write_cifar100(tmp_path, pictures[:1], np.array([1]), np.array([42]), "test.bin")
    assert Cifar100(root=str(tmp_path), split="test").build().labels.tolist() == [42]


@pytest.mark.parametrize("resolution", [16, 48])
def test_cifar_is_resized_with_antialiasing(tmp_path, resolution):
    pictures = noise(5, 32, 32, 3)
    write_cifar10(tmp_path, pictures, np.arange(5) % 3, TRAIN_FILES)
    images = Cifar10(root=str(tmp_path), resolution=resolution).build()
    assert images.origin == Cifar10(root=str(tmp_path)).build().origin != ""  # of the published pixels
    for picture, pixels in zip(pictures, images.pixels):
        expected = np.asarray(Image.fromarray(picture).resize((resolution, resolution), Image.Resampling.BILINEAR))
        assert np.abs(pixels.permute(1, 2, 0).numpy().astype(int) - expected).max() <= 1


@pytest.mark.parametrize("cut", [1, 3072, 3073])
def test_a_cifar_file_that_is_cut_short_is_refused(tmp_path, cut):
    write_cifar10(tmp_path, noise(5, 32, 32, 3), np.arange(5) % 3, TRAIN_FILES)
    path = tmp_path / "cifar-10-batches-bin" / "data_batch_3.bin"
    path.write_bytes(path.read_bytes()[:-cut])
    words = rf"data_batch_3\.bin: {3073 - cut} bytes are not a whole number of 3073-byte records; delete .* and download it again"
    with pytest.raises(UserError, match=words):
        Cifar10(root=str(tmp_path)).build()


def test_a_cifar_label_without_a_name_is_refused(tmp_path):
    write_cifar10(tmp_path, noise(5, 32, 32, 3), np.array([0, 1, 2, 3, 0]), TRAIN_FILES)
    with pytest.raises(UserError, match=r"label 3 has no name in batches\.meta\.txt"):
        Cifar10(root=str(tmp_path)).build()


def test_a_missing_cifar_file_is_named(tmp_path, no_network):
    write_cifar10(tmp_path, noise(5, 32, 32, 3), np.arange(5) % 3, TRAIN_FILES)
    (tmp_path / "cifar-10-batches-bin" / "data_batch_4.bin").unlink()
    with pytest.raises(UserError, match=r"data\.root: CIFAR-10 is not under .*data_batch_4\.bin.*https://www\.cs\.toronto\.edu") as caught:
        Cifar10(root=str(tmp_path), download=False).build()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("cls, release", [(Cifar10, CIFAR10), (Cifar100, CIFAR100)])
def test_cifar_without_network_says_what_to_download_and_where(tmp_path, no_network, cls, release):
    with pytest.raises(UserError, match="in name resolution") as caught:
        cls(root=str(tmp_path / "sets")).build()
    text = str(caught.value)
    assert text.startswith(f"data.root: {release.title} is not under ") and "\n" not in text
    assert f"download {release.url} on a machine with network access" in text
    assert text.endswith(f"unpack it to {tmp_path / 'sets' / release.folder}")


def test_cifar_is_not_downloaded_if_download_is_false(tmp_path, monkeypatch):
    monkeypatch.setattr(urllib.request, "urlopen", lambda *args, **kwargs: pytest.fail("went to the network"))
    with pytest.raises(UserError, match=rf"data\.root: CIFAR-10 is not under .*unpack it to {tmp_path}"):
        Cifar10(root=str(tmp_path), download=False).build()


def archived(root: Path, release) -> object:
    """The release's folder under `root` packed into its archive there and removed; the release with that checksum."""
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as tar:
        tar.add(root / release.folder, arcname=release.folder)
    for file in (root / release.folder).iterdir():
        file.unlink()
    (root / release.folder).rmdir()
    (root / release.url.rpartition("/")[2]).write_bytes(packed.getvalue())
    return dataclasses.replace(release, md5=hashlib.md5(packed.getvalue()).hexdigest())


def test_an_existing_cifar_archive_is_unpacked(tmp_path, no_network):
    write_cifar10(tmp_path, noise(5, 32, 32, 3), np.arange(5) % 3, TRAIN_FILES)
    release = archived(tmp_path, CIFAR10)
    images = read_cifar(release, Cifar10(root=str(tmp_path)))
    assert np.array_equal(images.pixels.numpy(), noise(5, 32, 32, 3).transpose(0, 3, 1, 2))


def test_an_archive_with_another_checksum_is_not_unpacked(tmp_path, no_network):
    write_cifar10(tmp_path, noise(5, 32, 32, 3), np.arange(5) % 3, TRAIN_FILES)
    archived(tmp_path, CIFAR10)
    with pytest.raises(UserError, match=r"CIFAR-10 is not under .*"):
        Cifar10(root=str(tmp_path)).build()
    assert not (tmp_path / "cifar-10-batches-bin").exists()


def test_cifar_is_read_from_the_folder_it_is_downloaded_to(tmp_path, monkeypatch):
    """torchvision puts `~/sets` under the home folder."""
    monkeypatch.setenv("HOME", str(tmp_path))
    write_cifar10(tmp_path / "sets", noise(5, 32, 32, 3), np.arange(5) % 3, TRAIN_FILES)
    assert len(Cifar10(root="~/sets", download=False).build()) == 5


# ---- STL-10 ----------------------------------------------------------------------------------------------------------


def test_stl10_is_read_upright(tmp_path, any_stl10):
    pictures, labels = noise(4, 96, 96, 3), np.array([9, 0, 3, 9])
    write_stl10(tmp_path, pictures, labels)
    write_stl10(tmp_path, 255 - pictures, labels[::-1], "test")
    images = Stl10(root=str(tmp_path)).build()
    assert np.array_equal(images.pixels.numpy(), pictures.transpose(0, 3, 1, 2))
    assert images.labels.tolist() == labels.tolist() and images.class_names == [f"thing{i}" for i in range(10)]
    test = Stl10(root=str(tmp_path), split="test").build()
    assert np.array_equal(test.pixels.numpy(), 255 - pictures.transpose(0, 3, 1, 2)) and test.labels.tolist() == labels[::-1].tolist()
    assert Stl10(root=str(tmp_path), resolution=48).build().pixels.shape == (4, 3, 48, 48)


def test_the_unlabeled_split_of_stl10_has_no_classes(tmp_path, any_stl10):
    write_stl10(tmp_path, noise(4, 96, 96, 3), np.zeros(4, int), "unlabeled")
    images = prepare(Stl10(root=str(tmp_path), split="unlabeled", labels=False), CPU)
    assert images.num_classes == 1 and images.labels.tolist() == [0] * 4 and images.name == "stl10/unlabeled"
    with pytest.raises(UserError, match=r"data\.labels: STL-10's unlabeled split has no classes; set data\.labels=false"):
        Stl10(root=str(tmp_path), split="unlabeled").build()


@pytest.mark.parametrize("download", [True, False])
def test_stl10_without_network_says_what_to_download_and_where(tmp_path, no_network, download):
    with pytest.raises(UserError, match=r"data\.root: STL-10 is not under .* download https://ai\.stanford\.edu/~acoates/") as caught:
        Stl10(root=str(tmp_path), download=download).build()
    assert str(caught.value).endswith(f"unpack it to {tmp_path / 'stl10_binary'}") and "\n" not in str(caught.value)


# ---- a folder of images ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("channels, mode", [(3, "RGB"), (1, "RGB"), (3, "L"), (1, "L")])
@pytest.mark.parametrize("size", [(40, 64), (64, 40), (41, 64), (30, 30), (8, 8)])
def test_images_are_cropped_to_the_middle_and_resized(tmp_path, channels, mode, size):
    write_images(tmp_path, ["a/x.png"], size, mode)
    (width, height), side = size, min(size)
    square = noise(height, width, *([3] if mode == "RGB" else []))[(height - side) // 2 :, (width - side) // 2 :][:side, :side]
    converted = Image.fromarray(square).convert("RGB" if channels == 3 else "L")
    for filter in ("lanczos", "bicubic", "bilinear", "box"):
        images = Folder(root=str(tmp_path), resolution=8, channels=channels, filter=filter).build()
        expected = np.asarray(converted.resize((8, 8), Image.Resampling[filter.upper()])).reshape(8, 8, channels).transpose(2, 0, 1)
        assert images.channels == channels and images[0][0].shape == (channels, 8, 8)
        assert np.array_equal(images[0][0].numpy(), expected), filter


def test_what_the_crop_cuts_off_does_not_show(tmp_path):
    picture = noise(32, 64, 3)
    for name, outside in (("a/black.png", 0), ("a/white.png", 255)):
        (tmp_path / "a").mkdir(exist_ok=True)
        picture[:, :16], picture[:, 48:] = outside, outside
        Image.fromarray(picture).save(tmp_path / name)
    images = Folder(root=str(tmp_path), resolution=16).build()
    assert torch.equal(images[0][0], images[1][0])


def test_shrinking_looks_at_every_pixel(tmp_path):
    """A checkerboard of black and white shrinks to grey, where sampling would give black or white."""
    (tmp_path / "a").mkdir()
    Image.fromarray((np.indices((64, 64)).sum(0) % 2 * 255).astype(np.uint8)).save(tmp_path / "a" / "x.png")
    for filter in ("lanczos", "bicubic", "bilinear", "box"):
        pixels = Folder(root=str(tmp_path), resolution=8, channels=1, filter=filter).build()[0][0]
        assert pixels.min() >= 120 and pixels.max() <= 135


def test_sixteen_bit_images_keep_their_greys(tmp_path):
    (tmp_path / "a").mkdir()
    grey = np.linspace(0, 65535, 64).astype(np.uint16).reshape(8, 8)
    Image.fromarray(grey).save(tmp_path / "a" / "x.png")
    pixels = Folder(root=str(tmp_path), resolution=8, channels=1).build()[0][0][0]
    assert np.abs(pixels.numpy().astype(float) - grey / 257).max() <= 1


def test_classes_are_the_sub_folders_in_sorted_order_however_deep_the_files_lie(tmp_path):
    write_images(tmp_path, ["zebra/1.png", "ant/b.PNG", "ant/deep/er/a.jpg", "ant/a.png", "Bee/1.bmp", ".hidden/1.png", "loose.png"])
    (tmp_path / "ant" / "notes.txt").write_text("no image")
    images = Folder(root=str(tmp_path), resolution=8).build()
    assert images.class_names == ["Bee", "ant", "zebra"]
    assert images.labels.tolist() == [0, 1, 1, 1, 2]
    files = [str(images.decode.path(i).relative_to(tmp_path)) for i in range(len(images))]
    assert files == ["Bee/1.bmp", "ant/a.png", "ant/b.PNG", "ant/deep/er/a.jpg", "zebra/1.png"]
    assert images.name == f"folder/{tmp_path.name}"


def test_without_labels_images_may_be_in_the_root_folder(tmp_path):
    write_images(tmp_path, ["x.PNG", "a/1.png", "b/c/2.png", "w.png"])
    images = prepare(Folder(root=str(tmp_path), resolution=8, labels=False), CPU)
    assert len(images) == 4 and images.num_classes == 1
    only_loose = write_images(tmp_path / "flat", ["1.png", "2.png"])
    assert len(prepare(Folder(root=str(only_loose), resolution=8, labels=False), CPU)) == 2


def test_a_missing_folder_is_refused(tmp_path):
    with pytest.raises(UserError, match="data.root must be the path of a folder of images, got ''"):
        Folder().build()
    with pytest.raises(UserError, match=r"data\.root: '.*nowhere' is not a folder; pass the folder that contains the images"):
        Folder(root=str(tmp_path / "nowhere")).build()
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"data\.root: '.*file' is not a folder; pass the folder that contains the images"):
        Folder(root=str(tmp_path / "file")).build()


def test_pictures_are_read_as_they_are_displayed(tmp_path):
    """Rotated by EXIF, transparency over white; 32-bit pixels, whose range is unknown, are refused."""
    picture = Image.fromarray(np.arange(64, dtype=np.uint8).reshape(8, 8))
    exif = Image.Exif()
    exif[0x0112] = 3  # upside down
    picture.save(tmp_path / "a.png", exif=exif)
    Image.new("RGBA", (8, 8), (255, 0, 0, 0)).save(tmp_path / "b.png")
    images = Folder(root=str(tmp_path), resolution=8, channels=1, labels=False).build()
    assert torch.equal(images.decode(0)[0], torch.from_numpy(np.array(picture)).flip(0, 1))
    assert images.decode(1).min() == 255
    Image.new("I", (8, 8), 30_000).save(tmp_path / "b.tif")
    with pytest.raises(UserError, match=r"b\.tif: does not decode as an image \(32-bit pixels\)"):
        Folder(root=str(tmp_path), resolution=8, labels=False).build().decode(2)


def test_a_folder_without_images_is_refused(tmp_path):
    words = r"data\.root: .* contains no images \(.*\.jpeg.*\.png.*\); put them in one sub-folder per class"
    with pytest.raises(UserError, match=words):
        Folder(root=str(tmp_path)).build()
    write_images(tmp_path, ["loose.png"])  # but no class
    (tmp_path / "class").mkdir()
    (tmp_path / "class" / "readme.md").write_text("")
    with pytest.raises(UserError, match=words):
        Folder(root=str(tmp_path)).build()


def test_other_channel_counts_are_refused():
    with pytest.raises(InvalidField, match="channels: must be 1 or 3, got 4"):
        Folder(root="x", channels=4)


def test_empty_classes_are_named(tmp_path):
    cats_and_dogs(tmp_path)
    (tmp_path / "pets" / "ewe").mkdir()
    (tmp_path / "pets" / "bear" / "deep").mkdir(parents=True)
    with pytest.raises(UserError, match="data.root: .*/pets has no images of class bear, ewe; fill or delete the empty class folders"):
        prepare(Folder(root=str(tmp_path / "pets"), resolution=8), CPU)
    for i in range(12):
        (tmp_path / "pets" / f"empty{i:02}").mkdir()
    with pytest.raises(UserError, match="of class bear, empty00, .*, empty08 and 4 more; fill"):
        prepare(Folder(root=str(tmp_path / "pets"), resolution=8), CPU)
    assert len(prepare(Folder(root=str(tmp_path / "pets"), resolution=8, labels=False), CPU)) == 7
    write_images(tmp_path / "numbers", ["0/a.png", "2/a.png"])
    (tmp_path / "numbers" / "1").mkdir()
    with pytest.raises(UserError, match="/numbers has no images of class 1; fill or delete the empty class folders"):
        prepare(Folder(root=str(tmp_path / "numbers"), resolution=8), CPU)


def test_labels_without_images_are_named():
    images = in_memory(6, 3)
    images.labels[:] = torch.arange(6) % 2
    with pytest.raises(
        UserError, match="data: noise has no images with label class2; number the labels 0, 1, 2, ... without gaps, or set data.labels"
    ):
        refuse_impossible(images, wanted_classes=True)


def test_a_single_class_is_refused_with_the_remedy(tmp_path):
    root = cats_and_dogs(tmp_path) / "cat"
    write_images(root, ["siamese/1.png"])
    words = r"has only one class, 'siamese', .*point data\.root at the folder whose sub-folders are the classes, or set data\.labels=false"
    with pytest.raises(UserError, match=words):
        prepare(Folder(root=str(root), resolution=8), CPU)
    assert len(prepare(Folder(root=str(root), resolution=8, labels=False), CPU)) == 4


# ---- images that do not decode ---------------------------------------------------------------------------------------


def spoil(*paths: Path) -> None:
    for i, path in enumerate(paths):
        path.write_bytes([b"", b"no image at all", path.read_bytes()[: path.stat().st_size // 2]][i % 3])


def test_every_broken_image_is_named(tmp_path):
    root = cats_and_dogs(tmp_path)
    spoil(root / "cat" / "1.png", root / "dog" / "0.png", root / "dog" / "3.png")
    with pytest.raises(UserError, match=r"^data: ") as caught:
        prepare(Folder(root=str(root), resolution=8), CPU)
    text = str(caught.value)
    assert "\n" not in text and "; and" not in text and text.count("does not decode as an image (") == 3
    for name in ("cat/1.png", "dog/0.png", "dog/3.png"):
        assert f"{root / name}: does not decode" in text
    assert text.endswith("; replace or delete them, or set data.on_error=skip")


def test_no_more_than_ten_broken_images_are_named(tmp_path):
    names = [f"{c}/{i:02}.png" for c in ("a", "b") for i in range(8)]
    root = write_images(tmp_path, names)
    spoil(*(root / name for name in names[1:11]))
    with pytest.raises(UserError) as caught:
        decode_all(Folder(root=str(root), resolution=8).build(), range(16))
    assert str(caught.value).count("does not decode") == 10 and "; and" not in str(caught.value)
    spoil(*(root / name for name in names[11:14]))
    with pytest.raises(UserError, match="; and 3 more; replace or delete them, or set data.on_error=skip$") as caught:
        decode_all(Folder(root=str(root), resolution=8).build(), range(16))
    assert str(caught.value).count("does not decode") == 10


@pytest.mark.parametrize("workers", [0, 2])
def test_an_image_that_breaks_during_training_is_named(tmp_path, workers):
    root = cats_and_dogs(tmp_path)
    images = prepare(Folder(root=str(root), resolution=8, keep_in="disk"), CPU)
    spoil(root / "dog" / "2.png")
    batches = RealBatches(images, 0, 2, 0, 1, 0, CPU, workers=workers)
    with pytest.raises(
        UserError,
        match=r"dog/2\.png: does not decode as an image \(not a format that Pillow knows\);"
        r" replace it and run the same command again, or set data.on_error=skip$",
    ):
        for _ in range(4):  # an epoch
            batches.next()


def test_a_stream_that_raised_is_freed_at_once(tmp_path):
    """If the error's traceback kept it in a cycle, the garbage collector would close the workers' queues before telling them to end,
    which takes five seconds per worker."""
    root = cats_and_dogs(tmp_path)
    images = prepare(Folder(root=str(root), resolution=8, keep_in="disk"), CPU)
    spoil(*root.glob("*/*.png"))
    batches = RealBatches(images, 0, 2, 0, 1, 0, CPU, workers=1)
    gc.disable()
    try:
        with contextlib.suppress(UserError):
            batches.next()
        left = weakref.ref(batches)
        del batches
        assert left() is None
    finally:
        gc.enable()


def test_a_decompression_bomb_is_refused(tmp_path, monkeypatch):
    root = cats_and_dogs(tmp_path)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 20)
    with pytest.raises(UserError, match=r"cat/0\.png: does not decode as an image \(Image size \(64 pixels\) exceeds limit"):
        decode_all(Folder(root=str(root), resolution=8).build(), [0])


def test_images_are_decoded_in_order_and_counted(tmp_path):
    images = Folder(root=str(cats_and_dogs(tmp_path)), resolution=8).build()
    assert torch.equal(decode_all(images, [4, 0, 6]), torch.stack([images[4][0], images[0][0], images[6][0]]))
    counted = []

    def progress(blocks, total):
        for block in blocks:
            counted.append((len(block), total))
            yield block

    prepare(Folder(root=str(tmp_path), resolution=8, keep_in="host", labels=False), CPU, progress=progress)
    assert counted == [(len(images), 1)]


# ---- the audit -------------------------------------------------------------------------------------------------------


def test_the_audit_describes_the_set(tmp_path):
    root = cats_and_dogs(tmp_path)
    Image.fromarray(np.full((8, 8, 3), 7, np.uint8)).save(root / "cat" / "0.png")
    images = prepare(Folder(root=str(root), resolution=8), CPU)
    low, high = int(images.pixels.min()), int(images.pixels.max())
    line = f"folder/pets: 7 images, 2 classes (smallest 'cat' 3, largest 'dog' 4), 3 x 8 x 8, range {low}..{high} (all), in memory"
    assert audit(images) == line
    on_disk = prepare(Folder(root=str(root), resolution=8, keep_in="disk"), CPU)
    assert audit(on_disk) == line.replace("(all), in memory", "(a sample), on disk")
    assert "7 images, 1 class, 3 x 8 x 8" in audit(prepare(Folder(root=str(root), resolution=8, labels=False), CPU))
    assert "30 images, 3 classes (10 each), 3 x 4 x 4" in audit(in_memory())
    of_digits = "digits: 1,797 images, 10 classes (smallest '8' 174, largest '3' 183), 1 x 16 x 16, range 0..255 (all), in memory"
    assert audit(prepare(Digits(), CPU)) == of_digits


@pytest.mark.parametrize("keep_in", ["host", "disk"])
def test_blank_images_are_refused(tmp_path, keep_in):
    for i, c in enumerate("aabb"):
        (tmp_path / c).mkdir(exist_ok=True)
        Image.fromarray(np.full((8, 8, 3), 200, np.uint8)).save(tmp_path / c / f"{i}.png")
    images = prepare(Folder(root=str(tmp_path), resolution=8, keep_in=keep_in), CPU)
    with pytest.raises(UserError, match=r"data: folder/.*: every pixel read is 200, so the images are blank; check the data set"):
        audit(images)


def test_the_audit_samples_the_whole_set():
    """It does not read only the first images, which may be of one class."""
    looked = []
    images = in_memory(count=1000)
    pixels, images.pixels = images.pixels, None
    images.decode = DECODER.adapt(lambda i: looked.append(i) or pixels[i])
    assert "(a sample), on disk" in audit(images)
    assert len(looked) <= 256 and min(looked) < 10 and max(looked) > 700


# ---- where images live -----------------------------------------------------------------------------------------------


def on_disk(count: int = 30) -> ImageSet:
    images = in_memory(count)
    pixels, images.pixels = images.pixels, None
    images.decode = DECODER.adapt(pixels.__getitem__)
    return images


@pytest.fixture
def machine(monkeypatch):
    """Sets the free memory of the machine and of its accelerator."""

    def free(host: float, device: float = 0) -> None:
        monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=int(host)))
        monkeypatch.setattr(memory, "CGROUPS", ())
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (int(device), int(device)))

    return free


CUDA = torch.device("cuda")


def placed(images: ImageSet, device: torch.device, keep_in: str = "auto", processes_here: int = 1) -> str:
    return place(images, keep_in, device, processes_here)


def test_images_are_put_in_the_first_place_in_which_they_fit(machine):
    size = on_disk().bytes
    machine(host=1e12, device=1e12)
    assert placed(on_disk(), CUDA) == "device" and placed(on_disk(), CPU) == "host"
    machine(host=1e12, device=3 * size)  # training needs the rest
    assert placed(on_disk(), CUDA) == "host"
    machine(host=1.9 * size)
    assert placed(on_disk(), CUDA) == placed(on_disk(), CPU) == "disk"
    machine(host=4.1 * size)
    assert placed(on_disk(), CPU) == placed(on_disk(), CPU, processes_here=2) == "host"
    assert placed(on_disk(), CPU, processes_here=4) == "disk"  # each process has its own copy
    machine(host=0)
    assert placed(in_memory(), CPU) == placed(in_memory(), CUDA) == "host"  # they are there already


def test_keep_in_is_obeyed(machine):
    machine(host=0, device=0)
    assert placed(on_disk(), CPU, "host") == placed(on_disk(), CUDA, "host") == "host"
    assert placed(on_disk(), CUDA, "device") == placed(in_memory(), CUDA, "device") == "device"
    assert placed(on_disk(), CPU, "device") == "host"  # a CPU's device is its memory
    machine(host=1e12, device=1e12)
    assert placed(on_disk(), CUDA, "disk") == "disk"
    assert placed(in_memory(), CPU, "disk") == "host"  # nothing to go back to


# ---- fingerprints ----------------------------------------------------------------------------------------------------


def test_a_fingerprint_depends_on_pixels_labels_and_shape():
    prints = {in_memory().fingerprint}
    pixel, label, order = in_memory(), in_memory(), in_memory()
    pixel.pixels[17, 1, 2, 3] ^= 1
    label.labels[5] = (label.labels[5] + 1) % 3
    order.pixels, order.labels = order.pixels.flip(0), order.labels.flip(0)
    flat = in_memory()
    flat.pixels, flat.channels, flat.resolution = flat.pixels.reshape(30, 12, 2, 2), 12, 2
    prints |= {images.fingerprint for images in (pixel, label, order, flat, in_memory(count=29))}
    assert len(prints) == 6
    assert in_memory().fingerprint in prints  # and the same again


def test_a_fingerprint_does_not_depend_on_the_layout_in_memory():
    images = in_memory()
    images.pixels = images.pixels.to(memory_format=torch.channels_last)
    assert images.fingerprint == in_memory().fingerprint


def test_the_fingerprint_of_files_depends_on_names_and_sizes(tmp_path):
    def fingerprint(**kwargs) -> str:
        return prepare(Folder(root=str(root), resolution=8, **kwargs), CPU).fingerprint

    root = cats_and_dogs(tmp_path)
    first = fingerprint()
    assert fingerprint() == first and fingerprint(filter="box") != first and fingerprint(channels=1) != first
    (root / "cat" / "0.png").rename(root / "cat" / "9.png")
    renamed = fingerprint()
    (root / "cat" / "9.png").write_bytes((root / "cat" / "9.png").read_bytes() + b"\0")
    longer = fingerprint()
    (root / "cat" / "9.png").rename(root / "dog" / "9.png")
    moved = fingerprint()
    data = bytearray((root / "dog" / "9.png").read_bytes())
    data[-1] ^= 1  # behind the picture's end: the same size, the same pixels, other bytes
    (root / "dog" / "9.png").write_bytes(data)
    assert len({first, renamed, longer, moved, fingerprint()}) == 5


def test_files_on_disk_are_all_decoded_before_a_run_and_only_once(tmp_path, monkeypatch):
    """A broken one is named before training; a second start reads nothing, until a file changes."""
    monkeypatch.setenv("GANTRAIN_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("gantrain.cache.FRESH", 0)  # nothing is kept of files that have just been written
    root, read = cats_and_dogs(tmp_path / "pictures"), []
    source = Folder(root=str(root), resolution=8, keep_in="disk")
    from gantrain.data.folder import Decoder

    whole = Decoder.read
    monkeypatch.setattr(Decoder, "read", lambda self, index: read.append(index) or whole(self, index))
    first = prepare(source, CPU)
    count = len(read)
    assert first.pixels is None and sorted(read) == list(range(len(first)))
    assert prepare(source, CPU).fingerprint == first.fingerprint and len(read) == count
    (root / "cat" / "0.png").write_bytes(b"spoilt")
    with pytest.raises(UserError, match="0.png: does not decode"):
        prepare(source, CPU)


@dataclass(frozen=True)
class Squares:
    """A data set from outside that has only what the contract requires."""

    size: int = 8
    dtype: torch.dtype = torch.uint8

    def build(self):
        class Plain(torch.utils.data.Dataset):
            num_classes = 2

            def __len__(plain):
                return 20

            def __getitem__(plain, index):
                return torch.full((3, self.size, self.size), index * 10, dtype=self.dtype), index % 2

        return Plain()


def test_a_plain_data_set_from_outside_is_accepted():
    images = prepare(Squares(), CPU)
    assert (images.channels, images.resolution, images.num_classes, len(images)) == (3, 8, 2, 20)
    assert torch.equal(images.pixels[7], torch.full((3, 8, 8), 70, dtype=torch.uint8)) and images.labels.tolist() == [0, 1] * 10
    with pytest.raises(UserError, match="items of Squares must be square uint8 tensors .* got torch.float32"):
        prepare(Squares(dtype=torch.float32), CPU)


def test_a_fingerprint_does_not_depend_on_where_the_images_live(tmp_path):
    """A resumed run may have more or less free memory but must keep its fingerprint."""
    source = Folder(root=str(cats_and_dogs(tmp_path)), resolution=8)
    prints = {prepare(dataclasses.replace(source, keep_in=where), CPU).fingerprint for where in ("host", "disk")}
    assert len(prints) == 1


@pytest.mark.parametrize("broken", [False, True], ids=["whole", "one broken"])
def test_files_that_were_read_into_memory_are_not_read_again_from_disk(broken, tmp_path, monkeypatch):
    """This is what a background scorer does while its run trains."""
    monkeypatch.setattr("gantrain.cache.FRESH", 0)  # nothing is kept of files that have just been written
    root = cats_and_dogs(tmp_path)
    if broken:
        (root / "dog" / "2.png").write_bytes(b"no picture")
    source = Folder(root=root, resolution=8, on_error="skip")
    first = prepare(dataclasses.replace(source, keep_in="host"), torch.device("cpu"))
    monkeypatch.setattr(intake, "read_blocks", lambda *args: pytest.fail("it reads the images again"))
    second = prepare(dataclasses.replace(source, keep_in="disk"), torch.device("cpu"))
    assert second.fingerprint == first.fingerprint and second.skipped == first.skipped and len(first.skipped) == broken
    monkeypatch.undo()
    assert len(second) == 7 - broken
    if broken:  # whoever skips nothing is told all the same
        with pytest.raises(UserError, match="does not decode"):
            prepare(dataclasses.replace(source, keep_in="disk", on_error="stop"), torch.device("cpu"))


def test_a_moved_folder_is_the_same_data(tmp_path):
    root = cats_and_dogs(tmp_path)
    before = Folder(root=str(root), resolution=8).build().fingerprint
    root.rename(tmp_path / "animals")
    assert Folder(root=str(tmp_path / "animals"), resolution=8).build().fingerprint == before
