"""Forks: a new run folder that continues from a checkpoint of a run with other settings."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gantrain import clock, lock
from gantrain.atomic_file import sync
from gantrain.config.config import Config
from gantrain.config.loading import differing_keys, to_dict
from gantrain.errors import UserError
from gantrain.lock import InUse
from gantrain.run_folder import checkpoint
from gantrain.run_folder.change_words import spell
from gantrain.run_folder.changes import refuse_reserved, require_late_start
from gantrain.run_folder.checkpoint import CheckpointStore, Snapshot, link_checkpoint
from gantrain.run_folder.contents import group_of, look_again, open_checkpoint
from gantrain.run_folder.finite import NotFinite, count_nonfinite
from gantrain.run_folder.held import Held
from gantrain.run_folder.json_values import as_json
from gantrain.run_folder.layout import AVERAGES_FOLDER, METRICS_FILE
from gantrain.run_folder.own_config import write_config
from gantrain.run_folder.ownership import is_abandoned, read_rollback
from gantrain.run_folder.provenance import new_run_id, utc_now
from gantrain.run_folder.recognition import is_run_folder
from gantrain.run_folder.stores import require_known_formats
from gantrain.run_folder.trained_with import to_state
from gantrain.version import __version__

DRAFT = ".forking-"  # before the name of the new folder, until it is complete
SHAPES = ("data.resolution", "data.channels", "data.labels")  # keys besides `model` that decide the shapes of the networks
# How images are read or shown, not which they are. `root` is not among them: a fork with another one is meant to train on what lies there.
SAME_IMAGES = {f"data.{key}" for key in ("workers", "keep_in", "on_error", "download", "flip")}
PLACES = {"offload"}  # keys of an average that say where its tensors are kept; their values do not depend on them
# Keys of an optimizer that do not change what its state means.
FREE_OF_OPTIMIZERS = {"betas", "eps", "weight_decay", "alpha", "nesterov"}
NETWORKS = (("g", "averages"), ("d", "averages_d"))


@dataclass(frozen=True)
class Origin:
    """The checkpoint that a fork continues from.

    Attributes:
        run: its run folder.
        path: the checkpoint.
        seal: checksum of its manifest, and so of all its files.
        snapshot: its content, with what a later rollback to it has changed.
    """

    run: Path
    path: Path
    seal: str
    snapshot: Snapshot


@dataclass(frozen=True)
class Fork:
    """A fork that was written.

    Attributes:
        folder: the new run folder.
        nimg: images seen at the checkpoint.
        event: its line in the record, which says where it comes from.
        lr_scale: factor that swaps and rollbacks before the fork have put on the learning rates.
    """

    folder: Path
    nimg: int
    event: dict[str, Any]
    lr_scale: float


def open_origin(run: Path, kimg: float | None = None) -> Origin:
    """The checkpoint of a run at `kimg`, or its newest undamaged one. The run may be training.

    Raises:
        UserError: not a run folder, or no such checkpoint.
    """
    require_known_formats(run)
    return look_again(lambda: read_origin(run, kimg))


def read_origin(run: Path, kimg: float | None) -> Origin:
    """What `open_origin` returns; raises `Gone` if the run deletes the checkpoint meanwhile."""
    rollback = read_rollback(run)
    held = held_newest_kept(run, rollback) if kimg is None else open_checkpoint(run, kimg)
    snapshot, seal = checkpoint.read(held.folder), checkpoint.read_manifest(held.folder)["seal"]
    apply_rollback(snapshot, rollback)
    return Origin(run, held.folder, seal, snapshot)


def newest_kept(run: Path, rollback: dict[str, Any] | None) -> Path:
    """The newest undamaged checkpoint that no rollback has abandoned.

    Raises:
        UserError: there is none.
    """
    return held_newest_kept(run, rollback).folder


def held_newest_kept(run: Path, rollback: dict[str, Any] | None) -> Held:
    """The same, with its files open."""
    store = CheckpointStore(run / "checkpoints")
    later = [int(path.name) for path in store.paths() if rollback and is_abandoned(path, rollback)]
    found = store.newest_held(until=min(later) - 1) if later else None
    return found or open_checkpoint(run)


def apply_rollback(snapshot: Snapshot, rollback: dict[str, Any] | None) -> None:
    """Change a checkpoint as a rollback to it did, whose changes are in a file of their own until the next checkpoint."""
    guard = snapshot.state["guard"]
    if rollback and rollback["to"] == snapshot.nimg and guard["rollbacks"] < rollback["guard"]["rollbacks"]:
        counted = ("lr_scale", "growth", "skipped", "rollbacks", "attempts", "obstacle")
        guard |= {key: rollback["guard"][key] for key in counted}
        snapshot.state["batching"] = rollback["batching"]


def require_same_networks(changed: Mapping[str, tuple[Any, Any]]) -> None:
    """Refuse settings that the networks of a checkpoint cannot take.

    Raises:
        UserError: names the key and both values.
    """
    for key, (old, new) in changed.items():
        if key.startswith("model.") or (key in SHAPES and "absent" not in (old, new)):
            raise UserError(
                f"{key}: is {spell(old)} in the checkpoint and {spell(new)} in the fork, but its networks cannot change;"
                f" set {key}={spell(old)} for the fork, or train a new run with {key}={spell(new)}"
            )


def kept_averages(old: Config, new: Config, state: Mapping[str, Any]) -> dict[str, list[str]]:
    """Names of the averages that continue, by network: those with equal settings, of every network that they follow.

    Where an average is kept may change.
    """
    same = [
        name
        for name in new.averagers
        if name in state["averages"]
        and name in old.averagers
        and average_alike(old.averagers[name], new.averagers[name])
        and (name not in new.followed("d") or name in state["averages_d"])
    ]
    return {"g": same, "d": [name for name in same if name in new.followed("d")]}


def average_alike(one: Any, other: Any) -> bool:
    """Whether two averagers give the same averages: they may only differ in where those are kept."""
    settings, others = ({key: value for key, value in to_dict(each).items() if key not in PLACES} for each in (one, other))
    return type(one) is type(other) and settings == others


def forked_state(state: Mapping[str, Any], old: Config, new: Config, nimg: int, kept: Mapping[str, list[str]]) -> dict[str, Any]:
    """The JSON of the fork's checkpoint: what its settings leave valid continues, and the rest begins anew."""
    different = differing_keys(old, new).keys() - SAME_IMAGES
    sections = {key.partition(".")[0] for key in different}
    guard = {**state["guard"], "best": [], "worse": 0, "worse_since": None, "warned": [], "saturated_since": None, "scored_at": nimg}
    changes: dict[str, Any] = {
        "gantrain": __version__,
        "wandb_id": new_run_id(),
        **to_state(new),
        "orbit": {"bytes": 0, "latest": [], "nimg": -1},
        "stats": [],
        "stats_count": 0,
        "logged_at": nimg,
        "scores": [],
        "scored": 0,
        "scored_at": -1,
        "scores_of": -1,
        "scoring": None,
        "collapsed": {},
        "guard": guard,
        **{key: {name: state[key][name] for name in kept[network]} for network, key in NETWORKS},
    }
    if sections & {"batching", "noise_scale"}:
        first = new.batching.first_batch
        changes["batching"] = {
            "batch_size": first, "first_micro_batch": new.batching.micro_batch or first,
            "micro_batch": state["batching"]["micro_batch"],  # what BatchNorm saw before, for a note
            "proposal": float(first), "last_change": nimg, "noise": None,
        }  # fmt: skip
    if "swap" in sections:
        changes["swaps"] = {"lr_scale": state["swaps"]["lr_scale"], "owed": False, "records": []}
    if "data" in sections:
        changes |= {"data_listing": None, "data_content": None}  # other images are meant
    if "terms" in state:
        changes["terms"] = kept_terms(state["terms"], old, new)
    return {key: value for key, value in {**state, **changes}.items() if key != "stats_counts"}


def kept_terms(terms: Mapping[str, Any], old: Config, new: Config) -> dict[str, Any]:
    """What penalties and the augmentation remember, of those that are of the same kind as before."""
    same = {name for name, one in new.penalties.items() if type(one) is type(old.penalties.get(name))}
    penalties = {name: one for name, one in terms.get("penalties", {}).items() if name in same}
    augments = "augment" in terms and type(old.augment) is type(new.augment)
    return {**({"penalties": penalties} if penalties else {}), **({"augment": terms["augment"]} if augments else {})}


def new_optimizers(old: Config, new: Config) -> list[str]:
    """The players whose optimizer begins anew: it is of another kind, or has settings that change what it remembers."""

    def of(config: Config, key: str) -> tuple[type, dict[str, Any]]:
        one = getattr(config.optim, key)
        return type(one), {name: value for name, value in to_dict(one).items() if name not in FREE_OF_OPTIMIZERS}

    return [key for key, _ in NETWORKS if of(old, key) != of(new, key)]


def forked_tensors(snapshot: Snapshot, kept: Mapping[str, list[str]], anew: Sequence[str] = ()) -> dict[str, dict[str, Any]]:
    """The tensors of the fork's checkpoint: all but those of averages that do not continue.

    Args:
        snapshot: the origin's.
        kept: see `kept_averages`.
        anew: players whose optimizer begins without a past.
    """
    gone = {
        group_of(name, network, slots)
        for network, key in NETWORKS
        for name in snapshot.state[key]
        if name not in kept[network]
        for slots in (False, True)
    }
    without_past: dict[str, dict[str, Any]] = {f"optimizer_{key}": {} for key in anew}
    return {group: named for group, named in snapshot.tensors.items() if group not in gone} | without_past


def refuse_nonfinite(origin: Origin, tensors: Mapping[str, Mapping[str, Any]]) -> None:
    """Refuse to continue from nan or infinity, which training never gets rid of.

    Raises:
        NotFinite: names the first of them, and the remedy.
    """
    owners = {group_of(name, network): name for network, key in NETWORKS for name in origin.snapshot.state[key]}
    for group, named in tensors.items():
        if group.startswith("slots"):  # a rule's own business, which may wait for its first look
            continue
        if words := count_nonfinite({name: tensor for name, tensor in named.items() if "running_" not in name}):
            name = owners.get(group)
            what = f"the average {name}" if name else f"the live {group.upper()}" if group in ("g", "d") else f"the state of {group}"
            way = f"--kimg K of an earlier one, or drop the average: averagers.{name}=null" if name else "--kimg K of an earlier one"
            raise NotFinite(
                f"{origin.run}: its checkpoint at {origin.snapshot.nimg / 1000:g} kimg is not finite: in {what}, {words}; use {way}"
            )


def write_fork(origin: Origin, old: Config, new: Config, folder: Path) -> Fork:
    """Write the folder of a fork, completely or not at all.

    Args:
        origin: the checkpoint.
        old: the configuration of its run.
        new: that of the fork.
        folder: the run folder of the fork, which must not exist or be empty.

    Raises:
        UserError: the folder is in use, or the settings do not fit the checkpoint.
    """
    nimg, state = origin.snapshot.nimg, origin.snapshot.state
    changed = {key: values for key, values in differing_keys(old, new).items() if key != "run_dir"}
    require_same_networks(changed)
    require_time(origin, old, new)
    kept = kept_averages(old, new, state)
    saved, anew = forked_state(state, old, new, nimg, kept), new_optimizers(old, new)
    if "optimizers" in saved:
        saved["optimizers"] = {key: values for key, values in saved["optimizers"].items() if key not in anew}
    begin = [name for name in new.averagers if name not in kept["g"]]
    refuse_reserved(begin)
    require_late_start(new, begin, nimg)
    event = {
        "nimg": nimg, "event": "fork", "time": utc_now(), "from": str(origin.run), "checkpoint": origin.path.name, "seal": origin.seal,
        "changed": {key: list(values) for key, values in changed.items()},
        "batch": [state["batching"]["batch_size"], saved["batching"]["batch_size"]],
        "averages": {"kept": kept["g"], "begin": begin, "dropped": [name for name in state["averages"] if name not in new.averagers]},
        **({"optimizers": {"begin": anew}} if anew else {}),
    }  # fmt: skip
    tensors = forked_tensors(origin.snapshot, kept, anew)
    refuse_nonfinite(origin, tensors)
    line = json.dumps(as_json(event), allow_nan=False) + "\n"
    saved["metrics_bytes"] = len(line.encode())
    require_free(folder)
    try:
        write_whole(folder, origin, tensors, saved, line, new)
    except OSError as error:
        raise UserError(f"--out: {folder} could not be written ({error.strerror or error}); nothing is left of it") from error
    return Fork(folder, nimg, event, state["swaps"]["lr_scale"] * state["guard"]["lr_scale"])


def require_time(origin: Origin, old: Config, new: Config) -> None:
    """Refuse a fork that would have nothing to train.

    Raises:
        UserError: `total_kimg` is not after the checkpoint; says whether it is the origin's.
    """
    nimg = origin.snapshot.nimg
    if nimg < clock.images(new.total_kimg):
        return
    if new.total_kimg == old.total_kimg:
        raise UserError(
            f"total_kimg: {new.total_kimg:g} is taken over from {origin.run}, and the checkpoint is at {nimg / 1000:g} kimg, so nothing is"
            f" left to train; add total_kimg=NUMBER above {nimg / 1000:g}, or fork from an earlier checkpoint (--kimg)"
        )
    raise UserError(
        f"total_kimg: must be above {nimg / 1000:g}, the time of the checkpoint, or nothing is left to train, got {new.total_kimg:g}"
    )


def require_free(folder: Path) -> None:
    """Refuse a folder that exists and is not empty, or that lies in the folder of a run.

    Raises:
        UserError: names it.
    """
    above = next((path for path in folder.resolve().parents if is_run_folder(path)), None)
    if above is not None:
        raise UserError(f"--out: {folder} is inside the run folder {above}; use a folder outside it")
    if folder.is_dir() and any(folder.iterdir()):
        raise UserError(f"--out: {folder} already exists and is not empty; use another folder")
    if folder.exists() and not folder.is_dir():
        raise UserError(f"--out: {folder} is a file; use another folder")


def write_whole(
    folder: Path, origin: Origin, tensors: Mapping[str, Mapping[str, Any]], state: Mapping[str, Any], line: str, config: Config
) -> None:  # fmt: skip
    """Write a run folder under another name, and rename it.

    Raises:
        UserError: another process is writing it, or has written it.
        OSError: it could not be written; nothing is left.
    """
    draft, name = folder.parent / f"{DRAFT}{folder.name}", origin.path.name
    try:
        held = lock.acquire(draft, create=True)
    except InUse as owner:
        raise UserError(f"--out: {folder} is being written by {owner}; wait for it, or use another folder") from None
    with held:
        try:
            require_free(folder)  # again: another fork may have written it meanwhile, or a training may have begun there
            for left in draft.iterdir():  # of a fork that was killed
                if left.name != lock.NAME:
                    shutil.rmtree(left) if left.is_dir() else left.unlink()
            (draft / METRICS_FILE).write_text(line, encoding="utf-8")
            link_snapshots(origin, draft, [one for key, one in config.averagers.items() if key in state["averages"]])
            checkpoint.write(draft / "checkpoints" / name, origin.snapshot.nimg, tensors, state)
            write_config(config, draft)
            sync(draft)
            move_into_place(draft, folder)
        except (OSError, UserError):
            shutil.rmtree(draft, ignore_errors=True)
            raise
        lock.discard(held, folder)  # it has moved along: without it, another fork could have written into the draft
        sync(folder.parent)


def move_into_place(draft: Path, folder: Path) -> None:
    """Rename a draft to a folder that does not exist or is empty.

    Raises:
        UserError: it is no longer empty.
        OSError: it cannot be renamed.
    """
    try:
        os.rename(draft, folder)
    except OSError:
        require_free(folder)
        with contextlib.suppress(OSError):  # some systems replace no folder, not even an empty one
            folder.rmdir()
        os.rename(draft, folder)


def link_snapshots(origin: Origin, draft: Path, kept: Sequence[Any]) -> None:
    """Hard-link the snapshots up to the checkpoint, from which averages are rebuilt; they are never rewritten in place."""
    if all(averager.snapshot_every_kimg is None for averager in kept):
        return
    for path in CheckpointStore(origin.run / AVERAGES_FOLDER).paths():
        if int(path.name) <= origin.snapshot.nimg:
            try:
                link_checkpoint(path, draft / AVERAGES_FOLDER / path.name)
            except FileNotFoundError:
                if path.exists():
                    raise
                # otherwise the run has gone back to before it
