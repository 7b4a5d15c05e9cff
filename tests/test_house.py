"""The shape of the project: imports run downwards, the README and CI say the same, nothing unpickles."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest
from conftest import ROOT

from gantrain import averaging, batching, data, losses, metrics, models

FLOORS = [
    {
        "archives",
        "errors",
        "interruption",
        "lines",
        "locks",
        "plugins",
        "randomness",
        "images",
        "clock",
        "cache",
        "names",
        "torchvision_ops",
        "theory",
        "sheets",
        "interpolation",
    },
    {"models", "losses", "averaging", "batching", "data", "metrics", "schedules"},
    {
        "config",
        "loading",
        "sampling",
        "checkpoint",
        "runfolder",
        "tracking",
        "update",
        "distributed",
        "performance",
        "record",
        "results",
        "best_generator",
        "comparison",
        "charts",
        "dashboard",
        "pictures",
        "references",
        "scores_table",
    },
    {
        "drawing",
        "evaluating",
        "evaluation",
        "galleries",
        "guard",
        "keeping",
        "listing",
        "measuring",
        "neighbours",
        "orbit_picture",
        "orbit_report",
        "rebuilding",
        "recording",
        "report",
        "report_figures",
        "scoring",
        "swapping",
        "trainer",
        "truncation",
        "walking",
        "watching",
    },
    {"cli", "__main__"},
]
FLOOR_OF = {name: i for i, names in enumerate(FLOORS) for name in names}
SOURCES = sorted((ROOT / "gantrain").rglob("*.py"))


def room(path: Path) -> str:
    parts = path.relative_to(ROOT / "gantrain").parts
    return parts[0] if len(parts) > 1 else path.stem


def imported(path: Path) -> set[str]:
    """The rooms of gantrain that a file imports from, anywhere in it."""
    rooms = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            rooms |= {a.name.split(".")[1] for a in node.names if a.name.startswith("gantrain.")}
        elif isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "gantrain":
            rest = node.module.split(".")[1:]
            rooms |= {rest[0]} if rest else {a.name for a in node.names if a.name != "__version__"}
    return rooms


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_run_downwards(path):
    """A floor imports from floors below it; the second floor's rooms do not know each other."""
    here = room(path)
    if here == "__init__":
        return
    for there in imported(path) - {here}:
        assert FLOOR_OF[there] <= FLOOR_OF[here], f"{here} imports {there} from above"
        assert not (FLOOR_OF[there] == FLOOR_OF[here] == 1), f"{here} imports its sibling {there}"


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(ROOT)))
def test_nothing_unpickles(path):
    text = path.read_text()
    assert not re.search(r"^\s*(import|from) (pickle|dill|joblib|cloudpickle|shelve)\b", text, re.M)
    for call in re.findall(r"torch\.load\([^)]*\)", text):
        assert "weights_only=True" in call
    assert "allow_pickle=True" not in text


@pytest.mark.parametrize(
    "path", [p for p in SOURCES if p.name not in ("cli.py", "tracking.py", "__main__.py")], ids=lambda p: str(p.relative_to(ROOT))
)
def test_only_the_tracker_and_the_command_speak(path):
    calls = [n for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.Call) and isinstance(n.func, ast.Name)]
    assert not [n.lineno for n in calls if n.func.id == "print"]


def test_the_loop_syncs_with_the_device_only_where_a_line_is_due():
    """No .item(), .cpu() or .tolist() in what every update runs."""
    update = (ROOT / "gantrain" / "update.py").read_text()
    trainer = ast.parse((ROOT / "gantrain" / "trainer.py").read_text())
    hot = [
        ast.unparse(n)
        for n in ast.walk(trainer)
        if isinstance(n, ast.FunctionDef) and n.name in ("update", "real", "as_input", "latents", "penalties", "probe", "add_stats")
    ]
    assert len(hot) == 7
    average = ast.parse((ROOT / "gantrain" / "averaging" / "average.py").read_text())
    hot += [
        ast.unparse(n) for n in ast.walk(average) if isinstance(n, ast.FunctionDef) and n.name in ("update", "_move", "_weight", "lerp")
    ]
    assert len(hot) == 11
    hot += [(ROOT / "gantrain" / "averaging" / f"{rule}.py").read_text() for rule in averaging.AVERAGERS]  # a file each
    for text in [update, *hot]:
        assert not re.search(r"\.(item|cpu|tolist|numpy)\(", text)


def test_nothing_is_left_to_fill_in():
    for path in [ROOT / "README.md", *(ROOT / "configs").glob("*.yaml"), *(ROOT / "docs").glob("*.md")]:
        text = path.read_text()
        assert len(text) > 200 and not re.search(r"(README|HEAD)_[A-Z]+|placeholder", text), path


def test_readme_and_ci_have_the_two_commands():
    readme = (ROOT / "README.md").read_text()
    assert "\n    pip install -e . -c constraints.txt && gantrain train configs/digits.yaml\n" in readme
    assert "\n    pip install -e '.[test]' -c constraints.txt && pytest\n" in readme
    assert "README.md" in (ROOT / ".ci" / "run").read_text()


def test_the_readme_names_every_configuration_and_only_files_that_exist():
    readme = (ROOT / "README.md").read_text()
    for path in (ROOT / "configs").glob("*.yaml"):
        assert f"configs/{path.name}" in readme
    for target in re.findall(r"\]\(([^)#:]+)\)", readme):
        assert (ROOT / target).exists(), f"README.md points to {target}, which is not there"


def test_the_readme_lists_every_plugin():
    readme = (ROOT / "README.md").read_text()
    for table in (
        models.ARCHITECTURES,
        averaging.AVERAGERS,
        batching.BATCH_POLICIES,
        losses.LOSSES,
        losses.PENALTIES,
        data.DATASETS,
        metrics.METRICS,
    ):
        for name in table:
            assert f"`{name}`" in readme, f"README.md does not mention {name}"


def test_versions_are_loose_in_the_project_and_exact_in_the_constraints():
    project = (ROOT / "pyproject.toml").read_text()
    constraints = (ROOT / "constraints.txt").read_text()
    for name in (
        "torch",
        "torchvision",
        "accelerate",
        "torch-fidelity",
        "wandb",
        "omegaconf",
        "safetensors",
        "scikit-learn",
        "matplotlib",
        "pytest",
        "hypothesis",
    ):
        assert re.search(rf'"{name}>=[\d.]+"', project), name
        assert re.search(rf"^{name.replace('-', '[-_]')}==[\d.]+$", constraints, re.M), name
    assert "torch==2.13.0" in constraints and "torchvision==0.28.0" in constraints
    assert "==" not in project
