"""The shape of the project: imports run downwards, the README and CI say the same, nothing unpickles."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest
from conftest import ROOT

from gantrain import averaging, batching, data, losses, metrics, models

# A folder answers one question and imports only folders before it. What lies flat is ground: it imports ground alone.
ORDER = [
    # Libraries, which do not know each other.
    {"averaging", "augment", "batching", "data", "losses", "metrics", "models", "optimizers", "theory"},
    {"config"},
    {"run_folder"},
    {"sampling", "orbit"},
    {"evaluation", "reporting"},
    {"training"},
    {"commands"},
    {"command_end"},
    {"parser"},
    {"cli", "entry", "__main__"},
]
FLOOR_OF = {name: floor for floor, names in enumerate(ORDER, 1) for name in names}
BESIDE = {("averaging", "theory"), ("entry", "cli"), ("__main__", "entry")}  # who may know a neighbour
SOURCES = sorted((ROOT / "gantrain").rglob("*.py"))


def module_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_of(path): path for path in SOURCES}


def imported(path: Path) -> set[str]:
    """The modules of gantrain that a file imports, anywhere in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {a.name for a in node.names if a.name in MODULES}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are written in full"
            if node.module and node.module.split(".")[0] == "gantrain":
                found |= {name if (name := f"{node.module}.{a.name}") in MODULES else node.module for a in node.names}
    return found - {module_of(path)}


IMPORTS = {module: imported(path) for module, path in MODULES.items()}


def room(module: str) -> str:
    return module.split(".")[1] if "." in module else ""


@pytest.mark.parametrize("module", sorted(IMPORTS))
def test_a_file_imports_only_folders_below_its_own(module):
    here = room(module)
    if module == "gantrain":  # hands on two functions, when they are asked for
        return
    for there in IMPORTS[module]:
        mine, other = FLOOR_OF.get(here, 0), FLOOR_OF.get(room(there), 0)
        below = here == room(there) or other < mine or other == mine == 0 or (here, room(there)) in BESIDE
        assert below, f"{module} imports {there}, which lies beside or above it"


def test_there_is_no_circle_of_files():
    """Files are taken away as long as there is one that imports none of those that are left."""
    left = {module: IMPORTS[module] - {"gantrain"} for module in IMPORTS if module != "gantrain"}
    while free := [module for module, needed in left.items() if not needed & left.keys()]:
        for module in free:
            del left[module]
    assert not left, f"these files import each other in a circle, or one that does: {sorted(left)}"


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(ROOT)))
def test_files_classes_and_functions_are_short(path):
    text = path.read_text()
    assert len(text.splitlines()) <= 450
    for node in ast.walk(ast.parse(text)):
        most = 300 if isinstance(node, ast.ClassDef) else 60 if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)) else None
        assert most is None or node.end_lineno - node.lineno + 1 <= most, f"{node.name} is longer than {most} lines"


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(ROOT)))
def test_nothing_unpickles(path):
    text = path.read_text()
    assert not re.search(r"^\s*(import|from) (pickle|dill|joblib|cloudpickle|shelve)\b", text, re.M)
    for call in re.findall(r"torch\.load\([^)]*\)", text):
        assert "weights_only=True" in call
    assert "allow_pickle=True" not in text


@pytest.mark.parametrize(
    "path",
    [p for p in SOURCES if p.name not in ("cli.py", "tracker.py", "__main__.py") and p.parent.name != "commands"],
    ids=lambda p: str(p.relative_to(ROOT)),
)
def test_only_the_tracker_and_the_command_speak(path):
    calls = [n for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.Call) and isinstance(n.func, ast.Name)]
    assert not [n.lineno for n in calls if n.func.id == "print"]


def test_the_loop_syncs_with_the_device_only_where_a_line_is_due():
    """No .item(), .cpu() or .tolist() in what every update runs."""
    update = (ROOT / "gantrain" / "training" / "update.py").read_text()
    hot = []
    for file, names in {
        "trainer": {"update", "train_d", "train_g", "play"},
        "inputs": {"real", "ahead", "of_g", "_next", "_needed_by_g", "_as_input", "latents"},
        "terms": {"shown_as", "draws", "augmented", "due", "setting", "follow", "_observed", "_set"},
        "measurements": {"begin_update", "probe", "add", "count_update"},
        "players": {"set_rates", "set_groups", "average", "weight_norms"},
        "run_state": {"advance"},
        "guard": {"send"},
    }.items():
        tree = ast.parse((ROOT / "gantrain" / "training" / f"{file}.py").read_text())
        found = [n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef) and n.name in names]
        assert {n.name for n in found} == names, file
        hot += [ast.unparse(n) for n in found]
    average = ast.parse((ROOT / "gantrain" / "averaging" / "average.py").read_text())
    moves = [n for n in ast.walk(average) if isinstance(n, ast.FunctionDef) and n.name in ("update", "_move", "_weight")]
    assert len(moves) == 3
    hot += [ast.unparse(n) for n in moves]
    hot += [(ROOT / "gantrain" / "averaging" / f"{rule}.py").read_text() for rule in ("rule", *averaging.AVERAGERS)]  # a file each
    for text in [update, *hot]:
        assert not re.search(r"\.(item|cpu|tolist|numpy)\(", text)


def test_nothing_is_left_to_fill_in():
    for path in [ROOT / "README.md", *(ROOT / "configs").glob("*.yaml"), *(ROOT / "docs").glob("*.md")]:
        text = path.read_text()
        assert len(text) > 200 and not re.search(r"(README|HEAD)_[A-Z]+|placeholder|@@", text), path


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
