"""What the hunt does with the files of a case. Paths are relative to the case's folder, which is the current one.

An action returns if the files were accepted, raises `UserError` if they were refused, and asserts that what was accepted is what was
written.
"""

from __future__ import annotations

import contextlib
import gc
import hashlib
import json
import os
import signal
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from accelerate.state import AcceleratorState
from PIL import Image

from gantrain import cache, cli, plugin_errors
from gantrain.commands import runs
from gantrain.config import loading
from gantrain.data import Archive, Cifar10, Folder, Packed, intake
from gantrain.data.decoding import decoded_image, traits_of
from gantrain.data.unpacking import unpack
from gantrain.errors import UserError
from gantrain.evaluation import image_files
from gantrain.evaluation.references import open_reference
from gantrain.interruption import Interruption
from gantrain.metrics import feature_cache, features
from gantrain.metrics.statistics import read_statistics
from gantrain.orbit import motion
from gantrain.run_folder import checkpoint, record
from gantrain.sampling.sheets import read_side_by_side
from gantrain.training.trainer import Trainer

CPU = torch.device("cpu")
TRUTH = "truth.json"  # images seen -> digests of what a checkpoint of that moment contains


def command(argv: list[str]) -> None:
    """The real command line, in this process."""
    AcceleratorState._reset_state(reset_partial_state=True)
    try:
        cli.main(argv)
    finally:
        AcceleratorState._reset_state(reset_partial_state=True)
        gc.collect()


def command_in(argv: list[str], environment: dict[str, str | None]) -> None:
    """The command line with other variables of the environment; None removes one."""
    before = dict(os.environ)
    cache.default_cache_folder.cache_clear()
    try:
        for name, value in environment.items():
            os.environ.pop(name, None) if value is None else os.environ.__setitem__(name, value)
        command(argv)
    finally:
        os.environ.clear()
        os.environ.update(before)
        cache.default_cache_folder.cache_clear()


@contextlib.contextmanager
def blaming_plugins() -> Iterator[None]:
    """Within this context, errors in a plug-in's own code are refusals, as on the command line."""
    try:
        yield
    except UserError:
        raise
    except SystemExit as end:
        plugin_errors.require_exit(end)
    except Exception as error:
        if (failed := plugin_errors.explain_failure(error)) is None:
            raise
        raise failed from error


def load_config(path: str | None, overrides: Sequence[str]) -> None:
    """Load a configuration; as it is written, it must load equal."""
    with blaming_plugins():
        text = loading.to_yaml(loading.load(path, overrides))
    loading.set_keys(path, overrides)
    Path("again.yaml").write_text(text, encoding="utf-8")
    again = loading.to_yaml(loading.load("again.yaml"))
    assert again == text, "the configuration loads otherwise than it was written"


def build_config(values: Mapping[str, Any]) -> None:
    """A configuration from plain values, as a program may give them."""
    loading.to_yaml(loading.build(values))


def start(path: str, overrides: Sequence[str]) -> None:
    """Do everything that `train` does before its first update, and stop as on a signal."""
    with blaming_plugins():
        config = loading.load(path, overrides)
    interruption = Interruption()
    interruption.asked = signal.SIGTERM
    AcceleratorState._reset_state(reset_partial_state=True)
    trainer = None
    try:
        with blaming_plugins():
            trainer = Trainer(config, interruption=interruption)
            trainer.train()
    finally:
        if trainer is not None:
            trainer.close(exit_code=1)
        AcceleratorState._reset_state(reset_partial_state=True)
        gc.collect()


# ---- records ---------------------------------------------------------------------------------------------------------


def read_record(run: str, whole: bool = True) -> None:
    """Everything that a record can be asked.

    Args:
        whole: with its configuration too, which takes as long as ten records of that size.
    """
    for one in (
        record.outline(Path(run)),
        *([record.read(run)] if whole else [record.read_with(record.outline_config(Path(run)), Path(run))]),
    ):
        _ = one.status, one.nimg, one.metrics, one.averages, one.evaluations, one.comparable, one.facts, one.training
        one.events()
        one.events("swap", "growth", "rollback")
        for metric in [None, *one.metrics]:
            one.best(metric)


def list_runs(folder: str, count: int) -> None:
    """The list of runs: a damaged one hides no other."""
    rows = runs.list_runs([folder])
    assert runs.listing(rows) and runs.as_json_lines(rows), "the list is empty"
    assert len(rows) >= count, f"{len(rows)} of {count} runs are listed"


def read_orbit(run: str) -> None:
    """The recorded motion of both players."""
    lines = motion.read_record(Path(run))
    for player in "gd":
        motion.build_motion(lines, player)


# ---- checkpoints -----------------------------------------------------------------------------------------------------


def digests(snapshot: checkpoint.Snapshot) -> dict[str, str]:
    """Group of tensors, or "state" -> SHA-256 of names, types, shapes and values."""
    found = {"state": hashlib.sha256(json.dumps(snapshot.state, sort_keys=True).encode()).hexdigest()}
    for group, named in snapshot.tensors.items():
        digest = hashlib.sha256()
        for name in sorted(named):
            tensor = named[name]
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode() + tensor.contiguous().view(torch.uint8).numpy().tobytes()
                          if tensor.dim() else f"{name} {tensor.dtype} {tensor.item()!r}".encode())  # fmt: skip
        found[group] = digest.hexdigest()
    return found


def read_checkpoints(folder: str, forged: bool) -> None:
    """The newest whole checkpoint, and each alone: what is accepted must be what was written.

    Args:
        forged: with seals that fit, so that other values are no fault of the reader's.
    """
    truth = json.loads(Path(TRUTH).read_text())
    refusals = []
    store = checkpoint.CheckpointStore(Path(folder), say=refusals.append)
    for path in sorted(store.paths()):
        try:
            checkpoint.verify(path)
            snapshot = checkpoint.read(path)
        except UserError as error:
            refusals.append(error)
            continue
        assert path.name.isdigit() and int(path.name) == snapshot.nimg, f"{snapshot.nimg} is in the folder of {int(path.name)}"
        if not forged:
            assert digests(snapshot) == truth.get(str(snapshot.nimg)), "accepted with other values than were written"
        groups = checkpoint.groups_of(path)
        for group in groups[:2]:
            checkpoint.read(path, [group])
    newest = store.newest()
    assert newest is not None or not store.paths(), "there are checkpoints, and no word about none being taken"
    if newest is not None:
        snapshot = checkpoint.read(newest)
        assert forged or digests(snapshot) == truth.get(str(snapshot.nimg)), "accepted with other values than were written"
    for refusal in refusals:
        assert "\n" not in str(refusal) and folder in str(refusal), f"refused without a file, or in more than one line: {refusal}"
    if refusals:
        raise UserError(str(refusals[0]))


# ---- images, archives, statistics ------------------------------------------------------------------------------------


def decode_image(path: str) -> None:
    """As training and as scoring decode it."""
    data = Path(path).read_bytes()
    traits_of(data)
    errors = []
    for decode in (
        lambda: decoded_image(data, path, "RGB", 16, Image.Resampling.LANCZOS),
        lambda: decoded_image(data, path, "L", 8, Image.Resampling.BOX),
        lambda: image_files.decode(data, path),
    ):
        try:
            found = decode()
            assert found.dtype == torch.uint8 and found.dim() == 3, found.shape
        except UserError as error:
            errors.append(error)
    if errors:
        raise errors[0]


def read_set(kind: str, root: str, **settings: Any) -> None:
    """A data set for training: listed, labelled, decoded and audited."""
    source = {"folder": Folder, "archive": Archive, "packed": Packed}[kind](root=root, **{"resolution": 8, **settings})
    images = intake.prepare(source, CPU)
    intake.audit(images)
    intake.decode_all(images, range(min(4, len(images)))) if images.pixels is None else images.pixels[:4].clone()


def read_set_again(root: str, cache: str) -> None:
    """A data set on disk, of which `looked.json` in the cache says what was found in it before, whatever state its files have now."""
    with patched_cache(cache), mock.patch.object(intake, "look_name", lambda images: "looked.json"):
        read_set("folder", root, keep_in="disk", workers=0)


def read_features(print_: str, cache: str) -> None:
    """Features of real images from the cache, if it has whole ones."""
    with patched_cache(cache):
        found = feature_cache.cached(print_)
    if found is not None:
        assert found.features.dim() == 2 and found.features.dtype == torch.float32, "these are not features"
        assert len(found.logits) == len(found.features), "logits and features are not of the same images"


@contextlib.contextmanager
def patched_cache(folder: str) -> Iterator[None]:
    """Another cache folder than the hunt's."""
    before = os.environ["GANTRAIN_CACHE"]
    os.environ["GANTRAIN_CACHE"] = os.path.abspath(folder)
    try:
        yield
    finally:
        os.environ["GANTRAIN_CACHE"] = before


def read_cifar(root: str) -> None:
    """CIFAR-10 as it is published."""
    images = intake.prepare(Cifar10(root=root, download=False), CPU)
    intake.audit(images)


def read_reference(path: str) -> None:
    """A reference of scores: opened, and all of it read."""
    if path.endswith(".npz"):
        statistics = read_statistics(path)
        if statistics.images is None:
            statistics.featureset().moments  # noqa: B018 - computed from the features
    found = open_reference(path, None, CPU)
    found.require({"fid": "moments"})
    if found.take is not None:
        for at in range(0, min(found.taken, 64), 16):
            images = found.take(at, min(16, found.taken - at))
            assert images.dtype == torch.uint8 and images.dim() == 4
    assert found.is_unchanged() is not False, "a reference that nobody touched has changed"


def read_picture(path: str) -> None:
    """A sheet of samples, with the notes in it."""
    try:
        read_side_by_side(Path(path))
    except OSError as error:  # its callers say so, and go on
        raise UserError(f"{path}: {error}") from None


def unpack_archive(path: str) -> None:
    """An archive of a published data set, as it is downloaded."""
    unpack(Path(path), Path("into"))


def read_weights(path: str) -> None:
    """Weights of a feature extractor."""
    features.read_weights(Path(path))


def own_fault(text: str) -> None:
    """The hunt could not make a case."""
    raise AssertionError(f"a fault of the hunt's own: {text.strip().splitlines()[-1]}\n{text}")


ACTIONS: Mapping[str, Callable[..., None]] = {
    action.__name__: action
    for action in (
        command, command_in, load_config, build_config, start, read_record, list_runs, read_orbit, read_checkpoints, decode_image, read_set,
        read_set_again, read_features, read_cifar, read_reference, read_picture, unpack_archive, read_weights, own_fault,
    )
}  # fmt: skip
