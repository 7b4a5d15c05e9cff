"""The hunt: seeded faults, area after area, until the time is over; then a table of what came of them.

    python tests/hunt/hunting.py --minutes 5 --seed 3 --areas images,archives
    python tests/hunt/hunting.py --case FOLDER      one failure of an earlier hunt again

`pytest -m hunt` runs it. Each failure's files are kept in a folder, with `case.json`, which says what was done with them.
"""

from __future__ import annotations

import argparse
import os
import random
import re
import shutil
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import actions
import areas_of_data
import areas_of_runs
import areas_of_surroundings
import areas_of_texts
import material
from everything import import_everything
from supervised import ACCEPTED, FAILED, REFUSED, Case, Limits, Supervisor, Verdict, emptied, read_case, write_case

AREAS: dict[str, Callable[[random.Random, Path, Path], Case]] = {
    "configurations": areas_of_texts.configurations,
    "yaml texts": areas_of_texts.yaml_texts,
    "starts": areas_of_texts.starts,
    "command lines": areas_of_texts.command_lines,
    "records": areas_of_runs.records,
    "orbits": areas_of_runs.orbits,
    "checkpoints": areas_of_runs.checkpoints,
    "images": areas_of_data.images,
    "archives": areas_of_data.archives,
    "statistics": areas_of_data.statistics,
    "notes": areas_of_runs.notes,
    "plug-ins": areas_of_surroundings.plug_ins,
    "environments": areas_of_surroundings.environments,
}
TURN = 4.0  # seconds that an area has before it is the next one's turn
KEPT = 2  # folders of each kind of failure


class Hunt:
    """A hunt over some areas.

    Args:
        folder: holds the cases while the hunt lasts.
        world: holds the material; made if it is not there.
        failures: receives the failures.
        seed: of all cases.
    """

    def __init__(self, folder: Path, world: Path, failures: Path, seed: int, areas: Sequence[str], say: Callable[[str], None] = print):
        self.folder, self.world, self.failures, self.seed, self.areas, self.say = folder, world, failures, seed, areas, say
        self.counts: Counter[tuple[str, str]] = Counter()
        self.kinds: dict[tuple[str, str], list[str]] = {}  # (area, kind) -> folders and counts
        self.kind_counts: Counter[tuple[str, str]] = Counter()
        self.next = dict.fromkeys(areas, 0)
        self.supervisor = Supervisor(dict(actions.ACTIONS), Limits(), emptied(folder / "said"))

    def prepare(self) -> None:
        """Make the material, in a process of its own, so that this one stays as it was."""
        began = time.monotonic()
        os.environ["GANTRAIN_CACHE"] = str(self.world / "cache")
        if (self.world / material.DONE).exists():
            return
        shutil.rmtree(self.world, ignore_errors=True)
        sys.stdout.flush()
        pid = os.fork()
        if pid == 0:
            status = 1
            try:
                with open(self.folder / "said" / "material", "w") as log:
                    os.dup2(log.fileno(), 1)
                    os.dup2(log.fileno(), 2)
                    material.build(self.world)
                status = 0
            finally:
                os._exit(status)
        assert os.waitpid(pid, 0)[1] == 0, "the hunt cannot train the runs that it damages"
        self.say(f"hunt: the material took {time.monotonic() - began:.0f} s")

    def run(self, minutes: float) -> None:
        """Hunt for so long."""
        end, spoken = time.monotonic() + 60 * minutes, time.monotonic()
        while time.monotonic() < end:
            for area in self.areas:
                stop = min(end, time.monotonic() + TURN)
                for name, verdict in self.supervisor.run(lambda judged, area=area, stop=stop: self.cases(area, stop, judged)):
                    self.next[area] = max(self.next[area], int(name) + 1)
                    self.note(area, int(name), verdict)
                if time.monotonic() - spoken > 10:
                    spoken = time.monotonic()
                    self.say(f"hunt: {minutes - (end - spoken) / 60:.1f} of {minutes:g} min, {self.summary()}")

    def cases(self, area: str, stop: float, judged: Sequence[str]) -> Iterator[tuple[str, Path, Case]]:
        """The next cases of an area, made in the worker while the turn lasts."""
        number = max([self.next[area], *(int(name) + 1 for name in judged)])
        while time.monotonic() < stop:
            folder = emptied(self.folder / "case")
            yield str(number), folder, self.make(area, number, folder)
            number += 1

    def make(self, area: str, number: int, folder: Path) -> Case:
        """A case, from the area and its number alone."""
        try:
            return AREAS[area](random.Random(f"{self.seed}/{area}/{number}"), self.world, folder)
        except Exception:  # a fault of the hunt's own, which must not end it
            return Case("own_fault", {"text": traceback.format_exc()})

    def note(self, area: str, number: int, verdict: Verdict) -> None:
        """Count a verdict, and keep what failed: its files as they were before the case."""
        self.counts[area, verdict.outcome] += 1
        if verdict.outcome != FAILED:
            return
        kind = (area, verdict.kind)
        self.kind_counts[kind] += 1
        kept = self.kinds.setdefault(kind, [])
        if len(kept) < KEPT:
            folder = self.keep(area, number, verdict)
            kept.append(str(folder))
            if len(kept) == 1:
                self.say(f"hunt: {area}: {verdict.kind}: {folder}")

    def keep(self, area: str, number: int, verdict: Verdict) -> Path:
        """Make the case once more, in the folder of failures."""
        folder = emptied(self.failures / re.sub(r"\W", "-", f"{area}-{self.seed}-{number}"))
        write_case(self.make(area, number, folder), folder)
        (folder / "verdict.txt").write_text(f"{verdict.outcome}: {verdict.kind}\n{verdict.text}\n", errors="backslashreplace")
        return folder

    def summary(self) -> str:
        total, failed = self.counts.total(), sum(self.counts[area, FAILED] for area in self.areas)
        return f"{total:,} cases, {failed:,} failed" + (f" ({len(self.kinds)} kinds)" if failed else "")

    def table(self) -> str:
        """Counts by area and outcome, and a line a kind of failure."""
        rows = [("area", ACCEPTED, REFUSED, FAILED)]
        rows += [(area, *(f"{self.counts[area, one]:,}" for one in (ACCEPTED, REFUSED, FAILED))) for area in self.areas]
        rows.append(("all", *(f"{sum(self.counts[area, one] for area in self.areas):,}" for one in (ACCEPTED, REFUSED, FAILED))))
        lines = [f"{row[0]:<16}" + "".join(f"{cell:>10}" for cell in row[1:]) for row in rows]
        for (area, kind), kept in sorted(self.kinds.items()):
            lines.append(f"failed: {area}: {kind} ({self.kind_counts[area, kind]:,} times): {kept[0]}")
        return "\n".join(lines)


def rerun(folder: Path, say: Callable[[str], None] = print) -> Verdict:
    """Judge one kept case again, on copies of its files."""
    with tempfile.TemporaryDirectory() as made:
        copy = Path(made) / "case"
        shutil.copytree(folder, copy, symlinks=True, copy_function=copy_or_make)
        os.environ["GANTRAIN_CACHE"] = str(Path(made) / "cache")
        supervisor = Supervisor(dict(actions.ACTIONS), Limits(), emptied(Path(made) / "said"))
        ((_, verdict),) = supervisor.run(lambda judged: iter(() if judged else (("0", copy, read_case(copy)),)))
    say(f"{verdict.outcome}: {verdict.kind}\n{verdict.text}")
    return verdict


def copy_or_make(source: str, target: str) -> None:
    """Copy a file; make a pipe where there is one, and holes where a file is too large to copy."""
    if not os.path.isfile(source):
        os.mkfifo(target)
    elif os.path.getsize(source) > 1 << 30:
        with open(target, "wb") as file:
            file.truncate(os.path.getsize(source))
    else:
        shutil.copy2(source, target)


def main() -> int:
    """Hunt, or judge one case again; 1 if something failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=2)
    parser.add_argument("--seed", type=int, default=None, help="default: a new one, which is printed")
    parser.add_argument("--areas", default=",".join(AREAS), help=f"default: all, {', '.join(AREAS)}")
    parser.add_argument(
        "--failures", type=Path, default=Path("hunt-failures"), help="folder that receives the failures (default: hunt-failures)"
    )
    parser.add_argument("--material", type=Path, help="folder that keeps the material for the next hunt (default: a new one each time)")
    parser.add_argument("--case", type=Path, metavar="FOLDER", help="judge this failure again")
    arguments = parser.parse_args()
    import_everything()
    if arguments.case is not None:
        return int(rerun(arguments.case).outcome == FAILED)
    areas = arguments.areas.split(",")
    if unknown := [area for area in areas if area not in AREAS]:
        parser.error(f"--areas: no area {unknown[0]!r}; known: {', '.join(AREAS)}")
    seed = arguments.seed if arguments.seed is not None else random.SystemRandom().randrange(10**6)
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(prefix="gantrain-hunt-", dir=memory if os.access(memory, os.W_OK) else None) as made:
        world = arguments.material.absolute() if arguments.material else Path(made) / "world"
        hunt = Hunt(Path(made), world, arguments.failures.absolute(), seed, areas, lambda line: print(line, flush=True))
        print(f"hunt: seed {seed}", flush=True)
        hunt.prepare()
        hunt.run(arguments.minutes)
    print(hunt.table(), flush=True)
    return int(bool(hunt.kinds))


if __name__ == "__main__":
    os.environ["OMP_NUM_THREADS"] = "1"
    sys.exit(main())
