"""Make a long record of an orbit, as real runs write it, and time `gantrain orbit` and what an evaluation does with it in training.

    python tools/long_orbit.py --recordings 40000
    python tools/long_orbit.py --recordings 40000 --code ../before     # the same with another copy of gantrain

Each row is a process of its own: its CPU seconds in both modes together, and its largest memory, with everything that it imports.
"First" is the first evaluation after a resume, "next" the mean of the three that follow, with ten new recordings each. Nothing is
trained: G and D circle at random, and three averages follow each.
"""

from __future__ import annotations

import argparse
import base64
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from command import positive, run

from gantrain.config.loading import load, to_yaml
from gantrain.errors import UserError
from gantrain.shipped import find_config

EVERY, SIZE, NEW = 250, 128, 10  # images between recordings, numbers of a sketch, and recordings between evaluations
PULL = 0.005  # share of the way back to the centre, per recording
MORE = 3  # evaluations after the first


class Circling:
    """Positions of G, D and their averages; `line` moves them and returns a recording."""

    def __init__(self, averages: list[str], seed: int = 0):
        self.random = np.random.default_rng(seed)
        self.shares = {name: 0.1 / 4**i for i, name in enumerate(averages)}
        self.live = {key: np.zeros(SIZE) for key in "gd"}
        self.averages = {key: {name: np.zeros(SIZE) for name in averages} for key in "gd"}
        self.count = 0

    def line(self) -> str:
        """The next line of the record."""
        body: dict[str, Any] = {"nimg": EVERY * self.count, "batch_size": 64, "lr": {"g": 2e-4, "d": 2e-4}, "distances": {}, "sketch": {}}
        for key in "gd":
            self.live[key] = (1 - PULL) * self.live[key] + self.random.normal(size=SIZE)
            for name, average in self.averages[key].items():
                average += self.shares[name] * (self.live[key] - average)
            body["distances"][key] = {name: float(((self.live[key] - one) ** 2).sum()) for name, one in self.averages[key].items()}
            body["sketch"][key] = {name: encode(one) for name, one in {"live": self.live[key], **self.averages[key]}.items()}
        self.count += 1
        return json.dumps(body) + "\n"


def encode(numbers: np.ndarray) -> str:
    """A sketch as text."""
    return base64.b64encode(numbers.astype("<f4").tobytes()).decode()


def make_run(folder: Path, count: int) -> None:
    """Write a run folder with `count` recordings, and later ones in files of their own."""
    config = load(find_config("digits"), [f"run_dir={folder}", "orbit.every_kimg=0.25", f"total_kimg={count}"])
    (folder / "orbit").mkdir(parents=True)
    (folder / "config.yaml").write_text(to_yaml(config))
    (folder / "metrics.jsonl").write_text('{"nimg": 0, "event": "start"}\n')
    weights = Circling(list(config.averagers))
    with open(folder / "orbit" / "record.jsonl", "w") as file:
        file.writelines(weights.line() for _ in range(count))
    for i in range(MORE):
        (folder / "orbit" / f"later-{i}").write_text("".join(weights.line() for _ in range(NEW)))


# What `Pictures.show_orbit` does at evaluations, without a trainer.
EVALUATE = """
import json, resource, sys, time
from pathlib import Path
from types import SimpleNamespace
from gantrain.orbit.recorder import OrbitRecorder
from gantrain.reporting.time_left import Costs
from gantrain.run_folder.contents import configuration_of
from gantrain.training.pictures import Pictures
folder, more = Path(sys.argv[1]), int(sys.argv[2])
config, path = configuration_of(folder), folder / "orbit" / "record.jsonl"
whole = path.stat().st_size
nothing = lambda *a, **b: None
banks = {key: SimpleNamespace(started=lambda: [], network=None) for key in "gd"}
orbit = OrbitRecorder(config.orbit, {}, folder, True)
orbit.open({"bytes": whole, "nimg": 0, "latest": []})
tracker = SimpleNamespace(image=nothing, say=lambda line: print(line, file=sys.stderr))
context = SimpleNamespace(costs=Costs(), run_dir=folder, config=config, tracker=tracker)
pictures = Pictures(context, SimpleNamespace(nimg=0), SimpleNamespace(banks=banks), None, None, None, orbit)
taken = []
for i in range(more + 1):
    if i:
        with open(path, "ab") as file:
            file.write((folder / "orbit" / f"later-{i - 1}").read_bytes())
    began = time.process_time()
    pictures.show_orbit()
    taken.append(time.process_time() - began)
with open(path, "ab") as file:
    file.truncate(whole)
print(json.dumps([taken, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024]))
"""
# A process that starts a command from a large one would show the memory of the large one.
LAUNCH = """
import json, resource, subprocess, sys
done = subprocess.run(sys.argv[1:], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
used = resource.getrusage(resource.RUSAGE_CHILDREN)
print(json.dumps([used.ru_utime + used.ru_stime, used.ru_maxrss / 1024, done.returncode, done.stderr.decode()]))
"""


def launch(words: list[str], code: Path) -> Any:
    """What a Python process prints as JSON.

    Raises:
        UserError: it failed.
    """
    environment = {**os.environ, "PYTHONPATH": str(code), "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, *words], capture_output=True, text=True, cwd=code, env=environment)
    if done.returncode:
        raise UserError(f"{code}: {done.stderr[-300:]}")
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    """Make the folder and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--recordings", type=positive, default=40_000, metavar="N", help="recordings of the orbit (default: 40000)")
    parser.add_argument("--code", type=Path, default=Path(__file__).resolve().parent.parent, help="the folder that contains gantrain/")
    arguments = parser.parse_args()
    code = arguments.code.resolve()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "run"
        make_run(folder, arguments.recordings)
        print(f"{arguments.recordings:,} recordings, {(folder / 'orbit' / 'record.jsonl').stat().st_size / 1e6:.0f} MB")
        print(f"{'':<20} {'CPU s':>8} {'MiB':>8}")
        command = ["-S", "-c", LAUNCH, sys.executable, "-m", "gantrain", "orbit", str(folder)]
        seconds, mib, status, said = launch(command, code)
        if status:
            raise UserError(f"gantrain orbit ended with {status}: {said[-300:]}")
        print(f"{'gantrain orbit':<20} {seconds:8.1f} {mib:8.0f}", flush=True)
        (first, *others), mib = launch(["-c", EVALUATE, str(folder), str(MORE)], code)
        print(f"{'first evaluation':<20} {first:8.1f}")
        print(f"{'next evaluation':<20} {sum(others) / len(others):8.1f} {mib:8.0f}")


if __name__ == "__main__":
    run(main)
