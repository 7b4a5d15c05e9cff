"""What makes a folder a run folder. Nothing here imports torch, so that reading a run's record does not wait for it."""

from __future__ import annotations

import contextlib
import difflib
from pathlib import Path

from gantrain.errors import UserError
from gantrain.run_folder.layout import AVERAGES_FOLDER, BEST_FOLDER, CONFIG_FILE, METRICS_FILE

CHECKPOINT = f"{'[0-9]' * 12}/manifest.json"
FOLDERS = {"checkpoints", "evaluations", "orbit", "samples", "scoring", "tensorboard", "wandb", AVERAGES_FOLDER, BEST_FOLDER}  # of a run
FILES = {".err", ".json", ".jsonl", ".html", ".log", ".md", ".out", ".py", ".sh", ".txt", ".yaml", ".yml"}  # of a run, or of a job's script
BESIDE = (METRICS_FILE, ".lock")  # a run folder has one of them next to its configuration, or checkpoints


def is_run_folder(folder: Path) -> bool:
    """Whether a folder is that of a run: beside its `config.yaml` are checkpoints, or a record or lock if the file is gantrain's.

    Other programs write a `config.yaml` too. Beside checkpoints of gantrain, even a damaged one is that of a run.
    """
    if not (folder / CONFIG_FILE).is_file():
        return False
    begun = any((folder / name).exists() for name in BESIDE)
    return holds_checkpoints(folder) or (begun and is_run_config(folder / CONFIG_FILE))


def holds_checkpoints(folder: Path) -> bool:
    """Whether a folder has the checkpoints of a run: the newest, or the best ones."""
    patterns = (f"checkpoints/{CHECKPOINT}", f"{BEST_FOLDER}/*/{CHECKPOINT}")
    return any(True for pattern in patterns for _ in folder.glob(pattern))


def is_run_config(path: Path) -> bool:
    """Whether a YAML file can be the configuration in a run folder; False if it cannot be read."""
    import yaml  # here, since --help needs no YAML

    from gantrain.plain_yaml import load_plain
    from gantrain.regular_file import read_regular
    from gantrain.strict_yaml import LARGEST

    try:
        values = load_plain(read_regular(path, LARGEST), shallow=True)
    except (OSError, ValueError, yaml.YAMLError):
        return False
    return isinstance(values, dict) and "total_kimg" in values


def find_foreign(folder: Path) -> list[str]:
    """Names in a folder that neither a run nor its job leaves there, such as folders of images, sorted; none in a run folder.

    What a start that failed has left, a log and a configuration are not foreign, and hidden files are not.
    """
    if not folder.is_dir() or is_run_folder(folder):
        return []
    inside = sorted(path for path in folder.iterdir() if not path.name.startswith("."))
    return [path.name for path in inside if path.name not in FOLDERS and (path.is_dir() or path.suffix.lower() not in FILES)]


def not_a_run(run: Path) -> UserError:
    """The error for a path that is no run folder: it does not exist, is a file, or has no configuration."""
    remedy = "pass the run_dir of a `gantrain train`"
    if run.is_dir():
        return UserError(f"{run}: is not a run folder (it has no {CONFIG_FILE}); {remedy}")
    if run.exists():
        return UserError(f"{run}: is a file, not a run folder; {remedy}")
    with contextlib.suppress(OSError):
        beside = {path.name for path in run.parent.iterdir() if (path / CONFIG_FILE).is_file()}
        near = difflib.get_close_matches(run.name, sorted(beside), n=1)
        remedy = f"did you mean {run.with_name(near[0])}?" if near else remedy
    return UserError(f"{run}: does not exist; {remedy}")
