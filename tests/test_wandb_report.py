"""The saved view of W&B: which panels it has; nothing here speaks to a server."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
from conftest import ROOT

from gantrain.config import loading


@pytest.fixture(scope="module")
def tool():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT / "tools"))
        import wandb_report
    return wandb_report


def call(tool, monkeypatch, capsys, *arguments: object) -> tuple[int, str]:
    """(exit status, what was said) of the script, run here."""
    monkeypatch.setattr(sys, "argv", ["wandb_report.py", *map(str, arguments)])
    try:
        tool.command.run(tool.main)
        status = 0
    except SystemExit as end:
        status = end.code
    said = capsys.readouterr()
    return status, said.out + said.err


AVERAGES, METRICS = ["live", "ema", "ema_short", "swa"], ["digits_fid", "digits_is", "digits_kid", "digits_precision", "digits_recall"]


def test_names_of_a_configuration_are_those_that_its_runs_log(tool):
    config = loading.load(ROOT / "configs" / "digits.yaml")
    names = tool.names_of_config(config)
    assert names == tool.Names(AVERAGES, METRICS)
    keys = [f"eval/{average}/{metric}" for average in ("ema", "live", "ema_short", "swa") for metric in METRICS]
    assert tool.names_of_keys([*keys, "eval/num_samples", "eval/ema/digits_is_std", "best/digits_fid", "loss/d"]) == names
    assert tool.names_of_keys(["loss/d", "eval/num_samples"]) == tool.Names([], [])


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of its own, in wandb-workspaces
def test_view_has_every_score_over_kimg(tool, monkeypatch, capsys, tmp_path):
    """What would be saved: sections, panels, axes, and the runs that it is of. No network, no key."""
    monkeypatch.setenv("WANDB_API_KEY", "")
    monkeypatch.setenv("HOME", str(tmp_path))
    status, said = call(
        tool,
        monkeypatch,
        capsys,
        "me/digits",
        "abc123",
        "--config",
        ROOT / "configs" / "digits.yaml",
        "--report",
        "--dry-run",
        tmp_path / "view.json",
    )
    assert (status, said) == (0, f"workspace and report written to {tmp_path / 'view.json'}; nothing was saved\n")
    specs = json.loads((tmp_path / "view.json").read_text())
    view = specs["workspace"]
    assert (view["entity"], view["project"], view["displayName"]) == ("me", "digits", "gantrain")
    section = view["spec"]["section"]
    by_name = {one["name"]: one for one in section["panelBankConfig"]["sections"]}
    assert list(by_name) == ["Overview", "Scores", "Batch and noise", "Losses", "Samples", "Events"] and all(
        one["isOpen"] for one in by_name.values()
    )
    lines = [panel["config"] for one in by_name.values() for panel in one["panels"] if panel["viewType"] == "Run History Line Plot"]
    assert len(lines) == 13 and all(line["xAxis"] == "kimg" for line in lines)
    scores = [panel["config"] for panel in by_name["Scores"]["panels"]]
    assert [one["metrics"] for one in scores] == [[f"eval/{average}/{metric}" for average in AVERAGES] for metric in METRICS]
    assert by_name["Batch and noise"]["panels"][0]["config"]["metrics"] == [
        "batch/size",
        "noise_scale/D/b_simple",
        "noise_scale/G/b_simple",
    ]
    media = [
        key
        for one in by_name.values()
        for panel in one["panels"]
        if panel["viewType"] == "Media Browser"
        for key in panel["config"]["mediaKeys"]
    ]
    assert media == [*(f"overview/{metric}" for metric in METRICS), "overview/batch", "samples", "samples/classes"]
    tables = json.dumps([panel for panel in by_name["Events"]["panels"] if panel["viewType"] == "Weave"])
    assert '"events"' in tables and '"final/scores"' in tables and "abc123" in json.dumps(section["runSets"])
    panels = [
        panel
        for block in specs["report"]["spec"]["blocks"]
        for panel in block.get("metadata", {}).get("panelBankSectionConfig", {}).get("panels", [])
    ]
    assert len(panels) == sum(len(one["panels"]) for one in by_name.values())


def test_mistakes_are_a_line_each(tool, monkeypatch, capsys, tmp_path):
    status, said = call(tool, monkeypatch, capsys, "digits")
    assert status == 2 and "must be ENTITY/PROJECT, got 'digits'" in said
    monkeypatch.setitem(sys.modules, "wandb_workspaces", None)  # so that its import fails
    status, said = call(tool, monkeypatch, capsys, "me/digits", "--config", ROOT / "configs" / "digits.yaml")
    assert (status, said) == (2, "wandb_report.py: error: wandb-workspaces is not installed; run pip install 'gantrain[workspace]'\n")


@pytest.mark.slow
def test_without_a_key_it_asks_for_a_configuration(tmp_path):
    """In a process of its own: W&B remembers for a process whether it had a key."""
    command = [sys.executable, ROOT / "tools" / "wandb_report.py", "me/digits"]
    environment = {
        "HOME": str(tmp_path),
        "NETRC": str(tmp_path / "netrc"),
        "PATH": "/usr/bin:/bin",
        "PYTHONPATH": str(ROOT),
        "OMP_NUM_THREADS": "1",
    }
    done = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL, env=environment, timeout=120)
    assert done.returncode == 2 and done.stderr.count("\n") == 1
    assert (
        done.stderr.startswith("wandb_report.py: error: me/digits: W&B cannot be asked for its runs (")
        and "give --config CONFIG.yaml" in done.stderr
    )
