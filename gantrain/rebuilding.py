"""Averages rebuilt after the run: from the snapshots in its folder to a stored average, and to a sweep over lengths."""
from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from accelerate import Accelerator
from torch import Tensor, nn
from tqdm import tqdm

from gantrain import checkpoint
from gantrain.averaging.average import write_buffers, write_weights
from gantrain.averaging.bank import split
from gantrain.averaging.batchnorm import write_statistics
from gantrain.averaging.posthoc import LARGEST_ERROR, Profile, coefficients, combine
from gantrain.averaging.power import WIDEST, gamma_of
from gantrain.averaging.spectral import refresh_spectral_norms
from gantrain.checkpoint import CheckpointStore, Damaged
from gantrain.config import FREE_NAME, RESERVED_NAMES
from gantrain.errors import UserError
from gantrain.evaluation import RunScorer, Scores, table
from gantrain.loading import load
from gantrain.metrics import SPREADS
from gantrain.results import target_of, write
from gantrain.sampling import AVERAGES_FOLDER, CONFIG_FILE, group_of
from gantrain.tracking import better_when_higher

HALF_ULP = 2.0**-11  # relative rounding of half precision, in which snapshots are kept


@dataclass(frozen=True)
class Kept:
    """A snapshot in a run's folder: of which average, where, and its profile."""

    average: str
    path: Path
    profile: Profile


@dataclass(frozen=True)
class Rebuilt:
    """An average put together from snapshots, and how well.

    Attributes:
        sigma_rel: its length as a share of the run.
        nimg: images seen at its end.
        error: relative L2 error of its profile.
        coefficients: of every snapshot that went in.
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
        """Relative error of a weight, at most, from the snapshots' half precision."""
        return HALF_ULP * float(np.sum(np.abs(list(self.coefficients.values()))))


class Snapshots:
    """The snapshots of a run's power averages up to one moment.

    Args:
        run: a run folder.
        at_kimg: the moment, of which the nearest snapshot is taken; None is the last whole one.
        say: receives a line about a damaged snapshot, which is left out.

    Raises:
        UserError: not a run folder, no snapshots, or none near that moment.
    """

    def __init__(self, run: str | Path, at_kimg: float | None = None, say: Callable[[str], None] = lambda line: None):
        self.run, self.say = Path(run), say
        self.show_progress = True  # on a terminal
        if not (self.run / CONFIG_FILE).is_file():
            raise UserError(f"{run}: is no run folder (it has no {CONFIG_FILE}); give the run_dir of a `gantrain train`")
        self.config = load(self.run / CONFIG_FILE)
        paths = CheckpointStore(self.run / AVERAGES_FOLDER).paths()
        if not paths:
            raise UserError(
                f"{run}: keeps no snapshots to rebuild averages from; train with two averagers such as"
                " {name: power, sigma_rel: 0.05, snapshot_every_kimg: 5} and {name: power, sigma_rel: 0.10, snapshot_every_kimg: 5}"
            )
        self.nimg = self._last_whole(paths) if at_kimg is None else self._nearest(paths, at_kimg)
        self.kept: list[Kept] = []
        for path in [p for p in paths if int(p.name) <= self.nimg]:
            try:
                state = checkpoint.read(path, groups=[]).state
            except Damaged as error:
                self.say(f"{error}; left out")
                continue
            self.kept += [Kept(name, path, Profile(int(path.name), gamma)) for name, gamma in state["gammas"].items()]

    def _last_whole(self, paths: Sequence[Path]) -> int:
        """Images seen at the last snapshot that is not damaged."""
        for path in reversed(paths):
            try:
                checkpoint.verify(path)
                return int(path.name)
            except Damaged as error:
                self.say(f"{error}; left out")
        raise UserError(f"{self.run}: none of its {len(paths)} snapshots is whole")

    def _nearest(self, paths: Sequence[Path], at_kimg: float) -> int:
        """Images seen at the snapshot nearest to a moment: growth of the batch moves them off round numbers."""
        moments = np.array([int(p.name) for p in paths])
        widest = max([*np.diff(moments), moments[0]])
        nearest = int(moments[np.argmin(abs(moments - at_kimg * 1000))]) if np.isfinite(at_kimg) else -1
        if nearest < 0 or abs(nearest - at_kimg * 1000) > widest:
            raise UserError(f"--at-kimg: {self.run} has no snapshot near {at_kimg:g} kimg; it has {len(moments)}, from {moments[0] / 1000:g} to {moments[-1] / 1000:g} kimg")
        return nearest

    @property
    def name(self) -> str:
        """What they are of, for messages."""
        return f"{len(self.kept)} snapshots of {', '.join(sorted({k.average for k in self.kept}))}"

    def error(self, sigma_rel: float) -> float:
        """Relative profile error of the best that these snapshots give for a length; inf without snapshots."""
        if not self.kept:
            return float("inf")
        return coefficients([k.profile for k in self.kept], Profile(self.nimg, gamma_of(sigma_rel)))[1]

    def require(self, sigma_rel: float, option: str = "--sigma-rel") -> None:
        """Refuse a length that these snapshots do not give.

        Raises:
            UserError: with the range that they give.
        """
        if not 0 < sigma_rel <= WIDEST:
            raise UserError(f"{option}: must be above 0 and at most {WIDEST:.4f} (the plain mean of the whole run), got {sigma_rel:g}")
        error = self.error(sigma_rel)
        if error > LARGEST_ERROR:
            lengths = np.linspace(0.005, WIDEST, 200)
            good = [s for s in lengths if self.error(s) <= LARGEST_ERROR]
            gives = f"they give {good[0]:.3f} to {good[-1]:.3f}" if good else "they give none"
            raise UserError(
                f"{option}: {sigma_rel:g} is not what {self.name} at {self.nimg / 1000:g} kimg can give:"
                f" the profile would be off by {error:.0%} ({LARGEST_ERROR:.0%} at most); {gives}"
            )

    def rebuild(self, sigma_rel: float) -> Rebuilt:
        """The average of this length at this moment.

        Raises:
            UserError: the snapshots do not give it.
        """
        while True:
            self.require(sigma_rel)
            shares, error = coefficients([k.profile for k in self.kept], Profile(self.nimg, gamma_of(sigma_rel)))
            try:
                kept = tqdm(self.kept, desc=f"rebuild {sigma_rel:g}", leave=False, disable=None if self.show_progress else True)
                tensors = combine((c, self._read(one)) for c, one in zip(shares, kept))
                last = checkpoint.read(self.kept[-1].path, ["buffers"])
            except Damaged as damage:
                self.say(f"{damage}; left out")
                self.kept = [k for k in self.kept if k.path not in damage_in(damage, self.kept)]
                continue
            named = {f"{k.average}@{k.profile.nimg}": float(c) for c, k in zip(shares, self.kept)}
            return Rebuilt(sigma_rel, self.nimg, error, named, tensors, last.tensors["buffers"], last.state["shape"])

    def _read(self, kept: Kept) -> dict[str, Tensor]:
        group = group_of(kept.average)
        return checkpoint.read(kept.path, [group]).tensors[group]


def damage_in(damage: Damaged, kept: Sequence[Kept]) -> set[Path]:
    """The snapshot folders that an error speaks of."""
    return {k.path for k in kept if str(k.path) in str(damage)}


def store(rebuilt: Rebuilt, run: Path, name: str) -> Path:
    """Put an average into the run's folder, where `sample` and `evaluate` find it by name."""
    target = run / AVERAGES_FOLDER / name
    state = {"sigma_rel": rebuilt.sigma_rel, "profile_error": rebuilt.error, "coefficients": rebuilt.coefficients, "shape": rebuilt.shape}
    try:
        checkpoint.write(target, rebuilt.nimg, {"average": rebuilt.tensors, "buffers": rebuilt.buffers}, state)
    except OSError as error:
        raise UserError(f"{target}: the average could not be written ({error.strerror or error}); make room and run the same command again") from error
    return target


def default_name(sigma_rel: float, nimg: int) -> str:
    return f"sigma_rel_{sigma_rel:g}_at_{nimg / 1000:g}"


def require_name(name: str, taken: Sequence[str]) -> None:
    """Refuse a name that cannot be an average's beside those of the run."""
    if not FREE_NAME.fullmatch(name) or name.isdigit() or name in RESERVED_NAMES or name in taken:
        raise UserError(f"--name: {name!r} cannot be; use letters, digits, '_', '.', '-', no number, and none of {', '.join([*RESERVED_NAMES, *taken])}")


def require_free(target: Path, rebuilt: Rebuilt) -> None:
    """Refuse to put an average in the place of a different one."""
    if not (target / checkpoint.MANIFEST).is_file():
        return
    there = checkpoint.read(target, groups=[])
    if (there.nimg, there.state["sigma_rel"]) != (rebuilt.nimg, rebuilt.sigma_rel):
        raise UserError(
            f"--name: {target.name!r} is an average of sigma_rel {there.state['sigma_rel']:g} at {there.nimg / 1000:g} kimg already;"
            f" choose another name, or delete {target}"
        )


def average_run(run: str | Path, sigma_rel: float, at_kimg: float | None, name: str | None, say: Callable[[str], None]) -> str:
    """Rebuild one average and store it; a line that says how good it is and how to use it."""
    snapshots = Snapshots(run, at_kimg, say)
    if name is not None:
        require_name(name, list(snapshots.config.averagers))
    rebuilt = snapshots.rebuild(sigma_rel)
    if name is not None:
        require_free(Path(run) / AVERAGES_FOLDER / name, rebuilt)
    name = name if name is not None else default_name(sigma_rel, snapshots.nimg)
    store(rebuilt, Path(run), name)
    return (
        f"{name}: sigma_rel {sigma_rel:g} at {rebuilt.nimg / 1000:g} kimg from {snapshots.name}; relative profile error {rebuilt.error:.2%},"
        f" rounding of the snapshots at most {rebuilt.rounding:.2%} of a weight\n"
        f"draw and score it: gantrain sample {run} --average {name}; gantrain evaluate {run} --average live,{name}"
    )


def parse_sweep(text: str, highest: float = WIDEST, example: str = "0.02:0.25:8") -> list[float]:
    """LOW:HIGH:COUNT as that many numbers, lengths of averages by default, evenly spaced.

    Args:
        highest: what HIGH may be; inf leaves it open, but for inf itself.
        example: for the refusal.

    Raises:
        UserError: it is not that.
    """
    try:
        low, high, count = (number(part) for number, part in zip((float, float, int), text.split(":"), strict=True))
        if not (0 < low < high <= highest and high < float("inf") and 2 <= count <= 1000):
            raise ValueError
        lengths = list(dict.fromkeys(float(f"{s:.4g}") for s in np.linspace(low, high, count)))
    except ValueError:
        bound = f" <= {highest:.4f}" if highest < float("inf") else ""
        raise UserError(f"--sweep: must be LOW:HIGH:COUNT such as {example}, with 0 < LOW < HIGH{bound} and a COUNT of at least 2, got {text!r}") from None
    return lengths


def sweep_run(
    run: str | Path, lengths: Sequence[float], at_kimg: float | None, num_samples: int | None, overrides: Sequence[str], say: Callable[[str], None]
) -> tuple[str, Accelerator]:
    """Score averages of several lengths, keep the best, and draw score against length.

    Returns:
        A report as text, and the Accelerator that was used.

    Raises:
        UserError: as `Snapshots`, or the snapshots give none of these lengths.
    """
    scorer = RunScorer(run, num_samples, None, overrides)
    snapshots = Snapshots(run, at_kimg, say)
    given = [s for s in lengths if snapshots.error(s) <= LARGEST_ERROR]
    left_out = [s for s in lengths if s not in given]
    if not given:
        snapshots.require(lengths[0], "--sweep")
    target = target_of(None, Path(run) / "evaluations", f"sweep-{snapshots.nimg:012d}")
    scorer.prepare()
    accelerator, main = scorer.accelerator, scorer.accelerator.is_main_process
    snapshots.show_progress = main
    for s in left_out if main else ():
        say(f"sigma_rel {s:g} is left out: the profile would be off by {snapshots.error(s):.0%}, {LARGEST_ERROR:.0%} at most")
    rebuilt = {f"{s:g}": snapshots.rebuild(s) for s in given} if len(given) * size_of(scorer.generator) < 2**30 else {}

    def materialize(name: str, into: nn.Module, averaged_statistics: bool) -> None:
        one = rebuilt.get(name) or snapshots.rebuild(float(name))
        weights, statistics = split(one.tensors, into)
        write_weights(weights, into)
        write_buffers(one.buffers.items(), into)
        refresh_spectral_norms(into)
        if averaged_statistics:
            write_statistics(statistics, into)

    scores: Scores = {}
    for s in given:
        scores |= scorer.evaluator.score([f"{s:g}"], materialize, scorer.generator)
        if main:
            say(f"sigma_rel {s:g}: profile error {snapshots.error(s):.2%}, " + ", ".join(f"{m} {v:.4f}" for m, v in scores[f"{s:g}"].items() if not m.endswith(SPREADS)))
    if not main:
        return "", accelerator
    metric = next(m for m in scores[f"{given[0]:g}"] if better_when_higher(m) is not None)
    finite = [s for s in given if np.isfinite(scores[f"{s:g}"][metric])]
    if not finite:
        raise UserError(f"--sweep: no average of {run} at {snapshots.nimg / 1000:g} kimg puts out numbers; nothing can be ranked")
    best = (max if better_when_higher(metric) else min)(finite, key=lambda s: scores[f"{s:g}"][metric])
    name = default_name(best, snapshots.nimg)
    store(rebuilt.get(f"{best:g}") or snapshots.rebuild(best), Path(run), name)
    errors = {f"{s:g}": snapshots.error(s) for s in given}
    record: dict[str, Any] = {"nimg": snapshots.nimg, "sigma_rel": given, "scores": scores, "profile_error": errors, "best": best, "by": metric, **scorer.evaluator.protocol()}
    write(target, record)
    picture = target.with_suffix(".png")
    draw_sweep(given, scores, metric, best, f"{Path(run).name} at {snapshots.nimg / 1000:g} kimg, {scorer.config.eval.num_samples} samples", picture)
    return (
        f"\n{run} at {snapshots.nimg / 1000:g} kimg, {scorer.config.eval.num_samples} samples a length, BatchNorm {scorer.config.eval.batchnorm}; also in {target}, drawn in {picture}\n"
        f"{table(scores, 'sigma_rel')}\nbest {metric}: sigma_rel {best:g}, stored as {name}: gantrain sample {run} --average {name}"
    ), accelerator


def size_of(network: nn.Module) -> int:
    """Bytes of a network's parameters in fp32."""
    return 4 * sum(p.numel() for p in network.parameters())


def draw_sweep(lengths: Sequence[float], scores: Scores, metric: str, best: float, title: str, path: Path) -> None:
    """A picture: every metric against the length of the average, the best of `metric` marked."""
    from matplotlib.figure import Figure  # not needed, and not loaded, by anything else

    metrics = [m for m in scores[f"{lengths[0]:g}"] if not m.endswith(SPREADS)]
    columns = min(3, len(metrics))
    rows = -(-len(metrics) // columns)
    figure = Figure(figsize=(4.2 * columns, 3.2 * rows + 0.5), layout="constrained", dpi=150)
    for i, m in enumerate(metrics):
        axes = figure.add_subplot(rows, columns, i + 1)
        values = [scores[f"{s:g}"][m] for s in lengths]
        axes.plot(lengths, values, marker="o", color="#1f5fa8", linewidth=1.8, markersize=5)
        axes.axvline(best, color="#c2410c", linewidth=1, linestyle="--", zorder=0)
        if m == metric:
            axes.plot([best], [scores[f"{best:g}"][m]], marker="o", color="#c2410c", markersize=8, label=f"best: {best:g}", linestyle="none")
            axes.legend(frameon=False)
        higher = better_when_higher(m)
        axes.set_title(m + {True: " (higher is better)", False: " (lower is better)", None: ""}[higher], fontsize=11)
        axes.set_xlabel("sigma_rel (length of the average, share of the run)", fontsize=9)
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
    figure.suptitle(title, fontsize=11)
    figure.savefig(path)
