"""SIGKILL at steps spread over a run that saves twice at one moment, evaluates, swaps and grows: resumed, it ends with the same bits.

The moments are those of the run's own progress: its updates, the images that it scores, and whatever it does to its folder, most
densely where the second checkpoint of one moment replaces the first, of which there is no other copy (`keep_last: 1`).
"""

from __future__ import annotations

import atexit
import functools
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import ROOT, TESTS, lines_of

SCRIPT = TESTS / "hunt" / "stepwise.py"
TWICE = 160  # images: an evaluation and a swap are due, SIGTERM comes while it is scored, and the run that goes on saves again
SETTINGS = [
    "model.ch=2", "model.dim_z=8", "optim.d_steps=1", "total_kimg=0.32", "batching={name: on_swap, batch_size: 16, max_batch: 32}",
    "averagers={ema_short: null, swa: null}", "averagers.power={name: power, sigma_rel: 0.1, snapshot_every_kimg: 0.08}",
    "swap={source: ema, every_kimg: 0.16, start_kimg: 0.16, growth: 2, after_kimg: 0.08}", "eval.every_kimg=0.16", "eval.num_samples=32",
    "eval.batch_size=32", "eval.reference_samples=64", "eval.recalibration_batches=1", "eval.metrics=[fid]", "eval.is_splits=1",
    "checkpoint={every_kimg: 0.08, keep_last: 1}",
    "tracking={every_kimg: 0.08, samples_every_kimg: 0.16, sample_rows: 1}",
    "orbit.every_kimg=0.032",
]  # fmt: skip
SAME = rf"checkpoints/\S*{TWICE:012d}"
WORK = r"^(update|generate_features|write (metrics|orbit))"  # what a run is there for, and the lines that tell of it
TIMES = ("throughput/", "memory/", "time", "eta", "wait/", "costs/")
TOLD = ("swap", "growth", "rollback", "end")


@functools.cache
def server() -> subprocess.Popen:
    """The process that has imported everything, and forks the runs."""
    environment = {**os.environ, "ACCELERATE_USE_CPU": "true", "PYTHONPATH": f"{ROOT}{os.pathsep}{TESTS}"}
    command = [sys.executable, str(SCRIPT), "--serve"]
    one = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT, env=environment)
    atexit.register(one.stdin.close)
    return one


def process(run: Path, **spec: object) -> int:
    """One start of the run; its exit status."""
    argv = ["train", str(ROOT / "configs" / "digits.yaml"), f"run_dir={run}", *SETTINGS]
    log = run.with_name("log")
    print(json.dumps({"spec": {"run": str(run), **spec}, "argv": argv, "log": str(log)}), file=server().stdin, flush=True)
    status = int(server().stdout.readline())
    assert status in (0, 75, -signal.SIGKILL), log.read_text()[-4000:]
    return status


def finished(run: Path, trace: Path, kills: list[tuple[int, dict]]) -> int:
    """Start the run until it ends; return how many kills came. Each start must go on where the one before has saved, or later.

    Args:
        kills: (number of the start that it hits, what `stepwise` is told).
    """
    killed = start = saved = 0
    planned = dict(kills)
    while True:
        spec = {"kill": planned[start]} if start in planned else {}
        status = process(run, term=TWICE, trace=f"{trace}-{start}", **spec)
        begun = re.search(r"resumed at ([0-9.]+) of|from (0) of", run.with_name("log").read_text())
        if begun:
            at = round(1000 * float(begun[1] or begun[2]))
            assert at >= saved, f"start {start} goes on at {at} images, but {saved} were saved before"
        saved = max(saved, last_saved(Path(f"{trace}-{start}")))
        killed += status == -signal.SIGKILL
        start += 1
        if status == 0:
            return killed
        assert start < len(kills) + 4, "it does not come to an end"


def last_saved(trace: Path) -> int:
    """The newest checkpoint that stood under its name when the process ended; the last step was not taken if it was killed there."""
    steps = trace.read_text().splitlines()[:-1] if trace.exists() else []
    return max((int(found[1]) for step in steps if (found := re.fullmatch(r"rename .* checkpoints/(\d{12})", step))), default=0)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory) -> Path:
    """The run in one piece."""
    run = tmp_path_factory.mktemp("undisturbed") / "run"
    assert process(run) == 0
    return run


@pytest.fixture(scope="module")
def traces(undisturbed, tmp_path_factory) -> list[list[str]]:
    """The steps of the two processes of the run that is stopped once and not killed."""
    folder = tmp_path_factory.mktemp("traced")
    assert finished(folder / "run", folder / "trace", []) == 0
    same(undisturbed, folder / "run")
    found = [Path(f"{folder / 'trace'}-{start}").read_text().splitlines() for start in (0, 1)]
    saved = [sum(bool(line.startswith("rename") and line.endswith(f"checkpoints/{TWICE:012d}")) for line in lines) for lines in found]
    assert saved == [1, 1], "it must save twice at one moment"
    return found


def spread(count: int, out_of: int) -> list[int]:
    """Numbers from 1 to `out_of`, evenly spread."""
    return [1 + i * (out_of - 1) // max(1, count - 1) for i in range(count)]


def plan(traces: list[list[str]], count: int) -> list[list[tuple[int, dict]]]:
    """Where a run is killed, for each of `count` runs: (start, what to count).

    A third over all steps of both processes, a third over their updates, scores and lines, and a third where the second checkpoint of a
    moment replaces the first, those next to a renaming first; every fourth of the runs is killed once more where it goes on.
    """
    found: list[tuple[int, dict]] = []
    third = count // 3
    for only, some in (("", count - 2 * third), (WORK, third)):
        lengths = [sum(bool(re.search(only, line)) for line in lines) for lines in traces]
        for at in spread(some, sum(lengths) - 2):  # two threads may change places at the very end
            start, within = (0, at) if at <= lengths[0] else (1, at - lengths[0])
            found.append((start, {"only": only, "at": within, "torn": bool(at % 2)}))
    replacing = [line for line in traces[1] if re.search(SAME, line)]
    renamings = [at for at, line in enumerate(replacing, 1) if line.startswith("rename")]
    order = sorted(range(1, len(replacing) + 1), key=lambda at: min((abs(at - one) for one in renamings), default=0))
    found += [(1, {"only": SAME, "at": at, "torn": False}) for at in order[:third]]
    plans = [[one] for one in found]
    for i, one in enumerate(plans):
        if i % 4 == 3:
            one.append((one[0][0] + 1, {"only": "", "at": 5 + 7 * i % 120, "torn": i % 8 == 3}))
    return plans


def same(one: Path, other: Path) -> None:
    """Weights, averages, orbit and pictures to the bit; the record without times and without what tells of the stops."""
    for folder in ("checkpoints", "averages", "orbit", "samples"):
        files = [
            sorted(str(path.relative_to(run / folder)) for path in (run / folder).rglob("*") if path.is_file()) for run in (one, other)
        ]
        assert files[0] == files[1] and files[0], folder
        for name in files[0]:
            if name.endswith((".safetensors", ".png", ".jsonl")):
                assert (one / folder / name).read_bytes() == (other / folder / name).read_bytes(), f"{folder}/{name}"
    first, second = (record(run) for run in (one, other))
    assert first == second, next((pair for pair in zip(first, second) if pair[0] != pair[1]), (len(first), len(second)))


def record(run: Path) -> list[dict]:
    """The lines of a record that tell of training, scores, swaps and growth, without times."""
    return [
        {key: value for key, value in line.items() if not key.startswith(TIMES)}
        for line in lines_of(run)
        if "event" not in line or line["event"] in TOLD
    ]


def kill_and_compare(
    undisturbed: Path, traces: list[list[str]], folder: Path, count: int, say: Callable[[str], None] = lambda line: None
) -> tuple[int, int]:
    """(runs that were killed and ended with the same bits, kills) of `count`."""
    plans = plan(traces, count)
    kills = 0
    for i, kills_of_one in enumerate(plans):
        run = folder / "run"
        came = finished(run, folder / f"trace-{i}", kills_of_one)
        assert came, f"the kill never came: {kills_of_one}"
        try:
            same(undisturbed, run)
        except AssertionError as error:
            raise AssertionError(f"killed at {kills_of_one}: {error}") from error
        kills += came
        shutil.rmtree(run)
        if i % 10 == 9:
            say(f"kills: {i + 1} of {len(plans)} runs, {kills} kills")
    return len(plans), kills


@pytest.mark.slow
def test_killed_at_ten_steps(undisturbed, traces, tmp_path):
    assert kill_and_compare(undisturbed, traces, tmp_path, 10)[0] == 10


@pytest.mark.hunt
def test_killed_at_a_hundred_steps(request, undisturbed, traces, tmp_path, capsys):
    """`--hunt-kills` runs."""
    count = request.config.getoption("--hunt-kills")
    with capsys.disabled():
        print(f"\nkills: {count} runs of {len(traces[0])} + {len(traces[1])} steps", flush=True)
        runs, kills = kill_and_compare(undisturbed, traces, tmp_path, count, lambda line: print(line, flush=True))
        print(f"kills: {runs} of {runs} runs bit-equal after {kills} kills", flush=True)
    assert runs == count
