"""Records that no run has written: whatever a line contains, the report, `watch`, `runs` and the views show the rest."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT
from hypothesis import HealthCheck, Phase, given, settings, strategies as st

from gantrain.commands import runs as listing
from gantrain.commands.watch import watch
from gantrain.config.loading import load, to_yaml
from gantrain.reporting import page
from gantrain.reporting.event_words import Teller
from gantrain.reporting.wandb_panels import best_scores, overview, scores_table
from gantrain.run_folder import record
from gantrain.run_folder.condensed import read_condensed
from gantrain.run_folder.record_lines import parse

SCORES = {"digits_fid": 1.5, "digits_is": 2.0, "digits_fid_std": 0.1, "digits_fid_ci95": 0.2}
ROUNDS = {"batch/size": 32, "batch/rounds": 2, "batch/micro_batch": 16}
NOISE = {f"noise_scale/{player}/{name}": 10.0 for player in "GD" for name in ("b_simple", "b_simple_low", "b_simple_high")} | {
    f"noise_scale/{player}/{name}": 1 for player in "GD" for name in ("undecidable", "unbounded", "measurements")
}
# A line of every kind, as a run writes it.
KINDS: list[dict[str, Any]] = [
    {
        "nimg": 0, "event": "start", "time": "2026-11-30T17:20:13Z", "gantrain": "0.1.0", "versions": {"torch": "2.13.0"}, "device": "cpu",
        "processes": 1, "parameters": {"g": 1, "d": 2}, "data_fingerprint": "9e39", "class_names": ["0"], "notes": ["a"], "changed": {},
    },
    {"nimg": 64, "event": "resume", "time": "2026-11-30T17:21:13Z", "gantrain": "0.1.0", "device": "cpu", "processes": 1},
    {
        "nimg": 96, "loss/d": 1.0, "loss/g": 2.0, "lr/g": 2e-4, "lr/d": 2e-4, **ROUNDS, **NOISE, "throughput/img_per_s": 400.0,
        "throughput/elapsed_s": 5.0, "throughput/left_s": 7.0, "throughput/left_excludes": "scoring", "memory/gib": 0.5,
    },
    {"nimg": 128, "loss/d": "nan", "loss/g": "inf", **ROUNDS},
    {
        "nimg": 128, **{f"eval/{name}/{key}": value for name in ("live", "ema") for key, value in SCORES.items()}, "eval/num_samples": 64,
        "eval/truncation": None, "eval/notes": ["a note"], "eval/batchnorm": "copy", "eval/features_made_for": None, "eval/is_splits": 10,
    },
    {"nimg": 128, "event": "swap", "moment": "before", "swap_nimg": 128, "live": SCORES, **ROUNDS},
    {
        "nimg": 128, "event": "swap", "moment": "at", "swap_nimg": 128, "live": SCORES, **ROUNDS, "source": "swa", "networks": "gd",
        "grown": 2.0, "growth": 2.0, "g_star": 1.5,
    },
    {"nimg": 160, "event": "swap", "moment": "after", "swap_nimg": 128, "since_swap": 32, "live": SCORES, **ROUNDS},
    {"nimg": 128, "event": "growth", "from": 16, "to": 32, "rounds": 2, "reason": "the swap asks for x2"},
    {"nimg": 128, "event": "checkpoint", "path": "checkpoints/000000000128", "best_of": []},
    {
        "nimg": 200, "event": "rollback", "kind": "nonfinite", "words": "loss/d is nan", "to": 128, "attempt": 1, "max_rollbacks": 3,
        "lr_scale": 0.5, "batch_before": 16, **ROUNDS,
    },
    {"nimg": 200, "event": "warning", "kind": "saturation", "words": "D knows it all"},
    {"nimg": 200, "event": "collapse", "words": "all averages", "averages": {"ema": "one picture"}},
    {"nimg": 200, "event": "skipped", "image": "a.png: truncated"},
    {"nimg": 200, "event": "not_written", "words": "the disk is full"},
    {"nimg": 0, "event": "fork", "from": "runs/a", "changed": {"optim.lr_g": [1e-4, 2e-4]}},
    {"nimg": 64, "event": "average_added", "average": "late", "settings": {"name": "ema", "half_life_kimg": 1.0, "start_kimg": 0.1}},
    {"nimg": 64, "event": "data_changed", "data": "digits", "before": "9e39", "after": "9e40"},
    {"nimg": 200, "event": "interrupted", "signal": "SIGTERM"},
    {"nimg": 200, "event": "gave_up", "words": "no"},
    {"nimg": 960, "event": "end", "time": "2026-11-30T18:20:13Z", "collapsed": "one picture"},
]  # fmt: skip
LACKING = [{k: v for k, v in line.items() if k != key} for line in KINDS for key in line if key not in ("nimg", "event")]
ODD = st.one_of(
    st.none(), st.booleans(), st.integers(-3, 200), st.sampled_from([2**63, -(2**63) - 1, 10**400, 10**300, 2**62, 0]), st.floats(),
    st.sampled_from(["", "nan", "inf", "-inf", "x", "\ud800", "<script>", "2026-13-30T17:20:13Z", "0001-01-01T00:00:00Z"]),
    st.text(max_size=4),
    st.sampled_from([[], {}, [1], ["a"], {"a": 1}, {"name": 3}, [[]], {"digits_fid": "x"}, [None, None], {"k": [1, 2]}]),
)  # fmt: skip
KEYS = sorted({key for line in KINDS for key in line} | {"eval/x/y/fid", "eval/", "eval//fid", "eval/a/", "event", "to", "x"})


@st.composite
def odd_lines(draw) -> str:
    """A line of a record: of a real kind with some keys gone and some values changed, or anything."""
    if draw(st.integers(0, 9)) == 0:
        return draw(st.one_of(st.text(max_size=20), ODD.map(json.dumps)))
    line = dict(draw(st.sampled_from(KINDS)))
    for key in draw(st.lists(st.sampled_from(sorted(line)), max_size=2)):
        if key != "nimg" and draw(st.booleans()):
            line.pop(key, None)
        else:
            line[key] = draw(ODD)
    if draw(st.integers(0, 3)) == 0:
        line[draw(st.sampled_from(KEYS))] = draw(ODD)
    if draw(st.booleans()) and type(line.get("nimg")) is int:
        line["nimg"] = draw(st.integers(0, 300))
    return json.dumps(line)


RECORDS = st.lists(odd_lines(), max_size=14)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Two run folders without records, of runs that differ in their seed."""
    made = tmp_path_factory.mktemp("odd")
    for seed in (0, 1):
        (made / f"run_{seed}").mkdir()
        config = load(ROOT / "configs" / "digits.yaml", [f"run_dir={made / f'run_{seed}'}", f"seed={seed}"])
        (made / f"run_{seed}" / "config.yaml").write_text(to_yaml(config))
        (made / f"run_{seed}" / "metrics.jsonl").touch()
    return made


def read_everything(folder: Path, lines: list[str]) -> None:
    """Show a record in every way; none may raise, and the numbers of a page are numbers."""
    run = folder / "run_0"
    (run / "metrics.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8", errors="surrogatepass")
    whole, brief = record.read(run), read_condensed(run)
    for shown in ([whole], [brief], [brief, read_condensed(folder / "run_1")]):
        text = page.render_page(shown)
        assert 'id="figure"' in text
        text.encode()
    assert (whole.status, whole.nimg) == (brief.status, brief.nimg)
    rows = listing.list_runs([str(folder)])
    assert [row.run for row in rows] == ["run_0", "run_1"]
    listing.listing(rows).encode()
    [json.loads(line) for line in listing.as_json_lines(rows).splitlines()]
    said: list[str] = []
    watch(run, 5, said.append)
    "\n".join(said).encode()
    teller = Teller(1.0)
    for line in filter(None, map(parse, lines)):
        assert isinstance(teller.text(line), str) and isinstance(teller.rest(), str)
    for found in (whole, brief):
        figures, tables, best = overview(found)
        [figure.to_json() for figure in figures.values()]
        scores_table(found), best_scores(found), tables, best


@pytest.fixture
def without_plotly_js(monkeypatch):
    """Pages without Plotly's 4 MB."""
    monkeypatch.setattr("plotly.offline.get_plotlyjs", lambda: "")


@pytest.mark.parametrize("examples", [0, pytest.param(150, marks=pytest.mark.slow)])
def test_no_line_of_a_record_ends_a_reader(folder, without_plotly_js, examples):
    @given(RECORDS)
    @settings(
        max_examples=max(examples, 1), deadline=None, database=None, derandomize=True, suppress_health_check=list(HealthCheck),
        phases=[Phase.generate],  # making a failing record smaller takes minutes
    )  # fmt: skip
    def check(lines: list[str]) -> None:
        read_everything(folder, lines)

    read_everything(folder, [json.dumps(line) for line in KINDS])
    if examples:
        read_everything(folder, [json.dumps(line) for line in LACKING])
        check()


def test_a_line_that_lacks_any_key_ends_no_listing(folder):
    (folder / "run_0" / "metrics.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in LACKING))
    rows = listing.list_runs([str(folder)])
    assert listing.listing(rows) and rows[0].origin == "runs/a"  # of the fork that has it
