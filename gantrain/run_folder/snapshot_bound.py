"""How many snapshots of averages a run keeps, and how much room they take: none is ever deleted, so this grows with the run."""

from __future__ import annotations

from pathlib import Path

from gantrain import clock
from gantrain.config.config import Config
from gantrain.errors import counted, in_words
from gantrain.run_folder.layout import AVERAGES_FOLDER


def count_snapshots(config: Config) -> tuple[int, dict[str, int]]:
    """(folders in averages/ at most, snapshots at most by average) at the end of a run, with the one at the end.

    A batch that is larger than an interval leaves fewer.
    """
    total = clock.images(config.total_kimg)
    every = {
        name: clock.images(rule.snapshot_every_kimg)
        for name, rule in config.averagers.items()
        if rule.snapshot_every_kimg is not None and rule.exponent is not None
    }
    moments = {min(moment, total) for interval in set(every.values()) for moment in range(interval, total + interval, interval)}
    return len(moments), {name: -(-total // interval) for name, interval in every.items()}


def foresee_room(config: Config, weights: int, buffers: int) -> int | None:
    """Bytes that all snapshots of a run will take at most; None if it keeps none.

    Args:
        config: of the run.
        weights: number of G's parameters; a snapshot of an average holds them in half precision.
        buffers: bytes of G's buffers; every folder holds them.
    """
    folders, by_name = count_snapshots(config)
    return 2 * weights * sum(by_name.values()) + buffers * folders if by_name else None


def measure_room(run: Path) -> tuple[int, int]:
    """(number of snapshots in a run folder, their bytes)."""
    folders = [folder for folder in (run / AVERAGES_FOLDER).glob("*") if folder.name.isdigit() and folder.is_dir()]
    return len(folders), sum(path.stat().st_size for folder in folders for path in folder.rglob("*") if path.is_file())


def describe_room(run: Path, config: Config) -> str:
    """The room that a run's snapshots take, and will take at most, in words; empty if it keeps none."""
    most, _ = count_snapshots(config)
    count, size = measure_room(run)
    if not most and not count:
        return ""
    words = f"{counted(count, 'snapshot')} in averages/, {in_words(size)}"
    if count and count < most:
        words += f"; at most {most} by {config.total_kimg:g} kimg, about {in_words(size * most // count)}; none is deleted"
    return words
