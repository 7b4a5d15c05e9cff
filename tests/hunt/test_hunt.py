"""The hunt for faults (`pytest -m hunt`), and that it notices what it looks for."""

from __future__ import annotations

import os
import random
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from mutations import mutate_bytes, mutate_json, mutate_lines, mutate_yaml
from supervised import ACCEPTED, FAILED, REFUSED, Case, Limits, Supervisor, Verdict, emptied

from gantrain.errors import UserError


def raise_(error: BaseException) -> None:
    raise error


def complain(*lines: str) -> None:
    print(*lines, sep="\n", file=sys.stderr)
    sys.exit(2)


def leave_a_file() -> None:
    Path("made").touch()


PLANTED = {
    "traceback": lambda: raise_(KeyError("nimg")),
    "machine": lambda: raise_(OSError("no file in it")),
    "assertion": lambda: raise_(AssertionError("accepted with other values than were written")),
    "refusal": lambda: raise_(UserError("hunt.yaml: seed must be a whole number")),
    "riddle": lambda: raise_(UserError("something is wrong")),
    "two lines": lambda: complain("warning: libpng", "gantrain: error: hunt.yaml: is damaged"),
    "one line": lambda: complain("gantrain: error: hunt.yaml: is damaged"),
    "silence": lambda: sys.exit(2),
    "status": lambda: sys.exit(1),
    "nothing": lambda: None,
    "something": leave_a_file,
    "hang": lambda: time.sleep(60),
    "busy": lambda: [None for one in iter(int, 1) if one],
    "memory": lambda: [bytearray(b"x" * (8 << 20)) for _ in range(100)],
    "crash": lambda: os.kill(os.getpid(), signal.SIGKILL),
}  # fmt: skip


def judged(tmp_path: Path, names: list[str], limits: Limits | None = None) -> dict[str, Verdict]:
    """The verdicts on planted cases, all in one worker as long as it lives."""

    def jobs(done):
        for name in names:
            if name not in done:
                yield name, emptied(tmp_path / "case"), Case(name, {}, ["hunt.yaml"], ["made"] if name in ("nothing", "something") else [])

    return dict(Supervisor(PLANTED, limits or Limits(), emptied(tmp_path / "said")).run(jobs))


def test_the_hunt_notices_what_it_looks_for(tmp_path):
    found = judged(tmp_path, [name for name in PLANTED if name not in ("hang", "busy", "memory")])
    assert {name: verdict.outcome for name, verdict in found.items() if verdict.outcome != FAILED} == {
        "refusal": REFUSED, "one line": REFUSED, "something": ACCEPTED,
    }  # fmt: skip
    kinds = {name: verdict.kind for name, verdict in found.items() if verdict.outcome == FAILED}
    assert {name: re.sub(r":.*", "", kind) for name, kind in kinds.items()} == {
        "traceback": "KeyError", "machine": "OSError", "assertion": "AssertionError", "riddle": "names neither file nor key",
        "two lines": "refused in more than one line", "silence": "refused without a line", "status": "status 1",
        "nothing": "status 0 without made", "crash": "crash",
    }  # fmt: skip
    assert kinds["crash"] == "crash: status -9" and "KeyError: 'nimg'" in found["traceback"].text


@pytest.mark.slow
def test_the_hunt_notices_a_hang_and_memory_and_goes_on(tmp_path):
    found = judged(tmp_path, ["hang", "refusal", "busy", "memory", "something"], Limits(seconds=1, bytes=700 << 20))
    assert [found[name].outcome for name in ("hang", "busy", "memory")] == [FAILED] * 3
    assert found["hang"].kind.startswith("hang") and found["busy"].kind.startswith("hang") and found["memory"].kind.startswith("memory")
    assert (found["refusal"].outcome, found["something"].outcome) == (REFUSED, ACCEPTED)


def test_the_same_seed_makes_the_same_mutations():
    def made(seed: int) -> list:
        dice = random.Random(seed)
        line = b'{"nimg": 16, "loss/d": 1.5}\n'
        return [mutate_bytes(dice, line), mutate_lines(dice, line * 5), mutate_yaml(dice, "seed: 0\ndata: {name: digits}\n"),
                repr(mutate_json(dice, {"a": [1, {"b": None}]}))]  # fmt: skip

    assert made(3) == made(3) != made(4)


@pytest.mark.hunt
def test_hunt(request, tmp_path, capsys):
    """Seeded faults in every area for `--hunt-minutes`."""
    option = request.config.getoption
    failures = Path(option("--hunt-failures")).absolute()
    command = [sys.executable, str(Path(__file__).with_name("hunting.py")), "--failures", str(failures)]
    if option("--hunt-case"):
        command += ["--case", option("--hunt-case")]
    else:
        command += ["--minutes", str(option("--hunt-minutes"))]
        command += ["--areas", option("--hunt-areas")] if option("--hunt-areas") else []
        command += ["--seed", str(option("--hunt-seed"))] if option("--hunt-seed") is not None else []
    with capsys.disabled():
        print(flush=True)
        done = subprocess.run(command)
    assert done.returncode == 0, f"see the table above; the cases are in {failures}"
