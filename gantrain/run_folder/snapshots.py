"""Snapshots of averages that a run keeps, from which averages of other lengths can be rebuilt afterwards."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from torch import Tensor
from tqdm import tqdm

from gantrain import lock
from gantrain.averaging.posthoc import LARGEST_ERROR, Profile, coefficients, combine
from gantrain.averaging.power import WIDEST, gamma_of
from gantrain.config.config import FREE_NAME, RESERVED_NAMES
from gantrain.errors import UserError
from gantrain.lock import InUse
from gantrain.run_folder import checkpoint
from gantrain.run_folder.checkpoint import CheckpointStore, Damaged
from gantrain.run_folder.contents import fitting, group_of, not_a_run
from gantrain.run_folder.finite import NotFinite, count_nonfinite
from gantrain.run_folder.layout import AVERAGES_FOLDER, BEST, CONFIG_FILE
from gantrain.run_folder.manifest import Gone, all_damaged, require_names
from gantrain.run_folder.own_config import load_config
from gantrain.run_folder.stores import require_known_formats

HALF_ULP = 2.0**-11  # relative rounding error of half precision, in which snapshots are kept


@dataclass(frozen=True)
class Kept:
    """A snapshot in a run's folder: its average, its path, and its profile."""

    average: str
    path: Path
    profile: Profile


@dataclass(frozen=True)
class Rebuilt:
    """An average rebuilt from snapshots, and how accurately.

    Attributes:
        sigma_rel: its length as a fraction of the run.
        nimg: images seen at its end.
        error: relative L2 error of its profile.
        coefficients: coefficient of every snapshot, by AVERAGE@NIMG.
        tensors: weights and BatchNorm statistics.
        buffers: of the live generator at the last snapshot.
        shape: (resolution, channels, classes) of the networks.
    """

    sigma_rel: float
    nimg: int
    error: float
    coefficients: dict[str, float]
    tensors: dict[str, Tensor]
    buffers: dict[str, Tensor]
    shape: list[int]

    @property
    def rounding(self) -> float:
        """The largest relative error of a weight that the snapshots' half precision can cause."""
        return HALF_ULP * float(np.sum(np.abs(list(self.coefficients.values()))))


class Snapshots:
    """The snapshots of a run's power averages up to some time.

    Args:
        run: a run folder.
        at_kimg: the time; the nearest snapshot counts. None is the time of the last undamaged snapshot.
        say: receives a line about each damaged snapshot, which is then ignored.

    Raises:
        UserError: not a run folder, no snapshots, or none near that time; or one that may be whole cannot be read.
        Gone: the run has deleted some while they were read, as after a rollback.
    """

    def __init__(self, run: str | Path, at_kimg: float | None = None, say: Callable[[str], None] = lambda line: None):
        self.run, self.say = Path(run), say
        self.show_progress = True  # on a terminal
        if not (self.run / CONFIG_FILE).is_file():
            raise not_a_run(self.run)
        self.config = load_config(self.run)
        require_known_formats(self.run)
        paths = CheckpointStore(self.run / AVERAGES_FOLDER).paths()
        if not paths:
            raise UserError(
                f"{run}: has no snapshots to rebuild averages from; train with two averagers such as"
                " {name: power, sigma_rel: 0.05, snapshot_every_kimg: 5} and {name: power, sigma_rel: 0.10, snapshot_every_kimg: 5}"
            )
        self.nimg = self._last_undamaged(paths) if at_kimg is None else self._nearest(paths, at_kimg)
        self.kept: list[Kept] = []
        for path in [p for p in paths if int(p.name) <= self.nimg]:
            try:
                gammas = checkpoint.read(path, groups=[]).state["gammas"]
            except Gone:
                raise
            except Damaged as error:
                self.say(f"{error}; skipped")
                continue
            self.kept += [Kept(name, path, Profile(int(path.name), gamma)) for name, gamma in gammas.items()]

    def _last_undamaged(self, paths: Sequence[Path]) -> int:
        """Images seen at the last undamaged snapshot."""
        for path in reversed(paths):
            try:
                checkpoint.verify(path)
                return int(path.name)
            except Gone:
                raise
            except Damaged as error:
                self.say(f"{error}; skipped")
        require_names(paths)
        raise all_damaged(paths[-1].parent, paths, "snapshot")

    def _nearest(self, paths: Sequence[Path], at_kimg: float) -> int:
        """Images seen at the snapshot nearest to a time: as the batch grows, snapshots move off round numbers."""
        moments = np.array([int(p.name) for p in paths])
        widest = max([*np.diff(moments), moments[0]])
        nearest = int(moments[np.argmin(abs(moments - at_kimg * 1000))]) if np.isfinite(at_kimg) else -1
        if nearest < 0 or abs(nearest - at_kimg * 1000) > widest:
            first, last = moments[0] / 1000, moments[-1] / 1000
            raise UserError(
                f"--at-kimg: {self.run} has no snapshot near {at_kimg:g} kimg; it has {len(moments)}, from {first:g} to {last:g} kimg"
            )
        return nearest

    @property
    def name(self) -> str:
        """The snapshots in words, for messages."""
        return f"{len(self.kept)} snapshots of {', '.join(sorted({k.average for k in self.kept}))}"

    def error(self, sigma_rel: float) -> float:
        """Relative profile error of the best average of a length that these snapshots give; inf without snapshots."""
        if not self.kept:
            return float("inf")
        return coefficients([k.profile for k in self.kept], Profile(self.nimg, gamma_of(sigma_rel)))[1]

    def require(self, sigma_rel: float, option: str = "--sigma-rel") -> None:
        """Refuse a length that these snapshots cannot give.

        Raises:
            UserError: with the range that they can give.
        """
        if not 0 < sigma_rel <= WIDEST:
            raise UserError(f"{option}: must be above 0 and at most {WIDEST:.4f} (the plain mean of the whole run), got {sigma_rel:g}")
        error = self.error(sigma_rel)
        if error > LARGEST_ERROR:
            lengths = np.linspace(0.005, WIDEST, 200)
            good = [s for s in lengths if self.error(s) <= LARGEST_ERROR]
            gives = f"they can give {good[0]:.3f} to {good[-1]:.3f}" if good else "they can give no length"
            raise UserError(
                f"{option}: {sigma_rel:g} cannot be rebuilt from {self.name} at {self.nimg / 1000:g} kimg:"
                f" the profile would be off by {error:.0%} (limit {LARGEST_ERROR:.0%}); {gives}"
            )

    def rebuild(self, sigma_rel: float) -> Rebuilt:
        """The average of a length at the time of these snapshots.

        Raises:
            UserError: the snapshots cannot give it.
            Gone: the run has deleted one meanwhile.
        """
        while True:
            self.require(sigma_rel)
            shares, error = coefficients([k.profile for k in self.kept], Profile(self.nimg, gamma_of(sigma_rel)))
            try:
                kept = tqdm(self.kept, desc=f"rebuild {sigma_rel:g}", leave=False, disable=None if self.show_progress else True)
                with fitting(self.run / AVERAGES_FOLDER):
                    tensors = combine((c, self._read(one)) for c, one in zip(shares, kept))
                last = checkpoint.read(self.kept[-1].path, ["buffers"])
            except Gone:
                raise  # not damaged: the run has gone back to before it
            except Damaged as damage:
                self.say(f"{damage}; skipped")
                self.kept = [k for k in self.kept if k.path not in damage_in(damage, self.kept)]
                continue
            self._require_finite(tensors, sigma_rel)
            named = {f"{k.average}@{k.profile.nimg}": float(c) for c, k in zip(shares, self.kept)}
            return Rebuilt(sigma_rel, self.nimg, error, named, tensors, last.tensors["buffers"], last.state["shape"])

    def _require_finite(self, tensors: dict[str, Tensor], sigma_rel: float) -> None:
        """Refuse an average that is not finite.

        Raises:
            NotFinite: names the first snapshot that is not, and the last time before it.
        """
        words = count_nonfinite(tensors)
        if not words:
            return
        wrong = next((k for k in self.kept if count_nonfinite(self._read(k))), None)
        before = max((k.profile.nimg for k in self.kept if wrong and k.profile.nimg < wrong.profile.nimg), default=None)
        where = f"{self.run}: the average of sigma_rel {sigma_rel:g} at {self.nimg / 1000:g} kimg is not finite ({words})"
        if wrong is None:
            raise NotFinite(f"{where}, although its snapshots are; use another --sigma-rel")
        last = f"use --at-kimg {before / 1000:g}, the last one before it" if before else "no earlier one is left"
        raise NotFinite(f"{where}, as is the snapshot of {wrong.average} at {wrong.profile.nimg / 1000:g} kimg; {last}")

    def _read(self, kept: Kept) -> dict[str, Tensor]:
        group = group_of(kept.average)
        return checkpoint.read(kept.path, [group]).tensors[group]


def damage_in(damage: Damaged, kept: Sequence[Kept]) -> set[Path]:
    """The snapshot folders that an error names."""
    return {k.path for k in kept if str(k.path) in str(damage)}


def store(rebuilt: Rebuilt, run: Path, name: str) -> Path:
    """Write an average into the run's folder, where `sample` and `evaluate` find it by name.

    Raises:
        UserError: another average has this name, another process is writing one, or it could not be written.
    """
    target = run / AVERAGES_FOLDER / name
    state = {"sigma_rel": rebuilt.sigma_rel, "profile_error": rebuilt.error, "coefficients": rebuilt.coefficients, "shape": rebuilt.shape}
    try:
        with writing(target):
            require_free(target, rebuilt)
            checkpoint.write(target, rebuilt.nimg, {"average": rebuilt.tensors, "buffers": rebuilt.buffers}, state)
    except OSError as error:
        raise UserError(
            f"{target}: the average could not be written ({error.strerror or error}); free some space and run the same command again"
        ) from error
    return target


@contextlib.contextmanager
def writing(target: Path) -> Iterator[None]:
    """Within this context, only this process writes the average at `target`; a training beside it does not matter.

    Raises:
        UserError: another process is writing it.
    """
    name = f".lock-{target.name}"
    try:
        held = lock.acquire(target.parent, name)
    except InUse as owner:
        raise UserError(f"--name: {target.name} is being written by {owner}; wait for it, or choose another name") from None
    try:
        yield
    finally:
        lock.discard(held, target.parent, name)


def require_name(name: str, taken: Sequence[str]) -> None:
    """Refuse a name that an average of the run cannot have.

    Raises:
        UserError: with what a name may be.
    """
    reserved = (*RESERVED_NAMES, BEST)
    if not FREE_NAME.fullmatch(name) or name.isdigit() or name in reserved or name in taken:
        raise UserError(
            f"--name: {name!r} is not possible; use letters, digits, '_', '.' and '-', not only digits,"
            f" and none of {', '.join([*reserved, *taken])}"
        )


def require_free(target: Path, rebuilt: Rebuilt) -> None:
    """Refuse to replace a different average of the same name.

    Raises:
        UserError: names the one that exists.
    """
    if not (target / checkpoint.MANIFEST).is_file():
        return
    try:
        there = checkpoint.read(target, groups=[])
        length = there.state["sigma_rel"]
    except Damaged:
        return  # nothing can be read of it: it is written anew
    if (there.nimg, length) != (rebuilt.nimg, rebuilt.sigma_rel):
        raise UserError(
            f"--name: {target.name!r} is already an average of sigma_rel {length:g} at {there.nimg / 1000:g} kimg;"
            f" choose another name, or delete {target}"
        )
