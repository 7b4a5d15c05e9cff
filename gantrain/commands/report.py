"""`gantrain report`: write an HTML page about one or more runs."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from pathlib import Path

from gantrain.atomic_file import write_atomically
from gantrain.errors import UserError, counted
from gantrain.reporting.comparison import require_comparable
from gantrain.reporting.page import render_page
from gantrain.run_folder.condensed import read_condensed
from gantrain.run_folder.record_lines import describe_unreadable

REPORT_FILE = "report.html"


def call(arguments: argparse.Namespace) -> None:
    """Run the command."""
    print(report_runs(arguments.runs, arguments.out))


def report_runs(runs: Sequence[str | Path], out: str | Path | None = None) -> str:
    """Write the report of one or more runs; returns a line that says where it is, and one for each run with lines that cannot be read.

    One run that cannot be read is refused, with its name, and so is the whole page: a comparison that lacks a run would mislead.

    Args:
        runs: run folders.
        out: path of the page; None is report.html in the run folder, or in the folder that contains all runs.

    Raises:
        UserError: a folder is not a run, scores are not comparable, or the page cannot be written.
    """
    folders = list(dict.fromkeys(Path(run).resolve() for run in runs))
    shown = {folder: Path(run) for folder, run in zip((Path(run).resolve() for run in runs), runs)}
    target = (
        Path(out)
        if out is not None
        else (shown[folders[0]] if len(folders) == 1 else Path(os.path.commonpath([f.parent for f in folders]))) / REPORT_FILE
    )
    if target.is_dir() or target.suffix.lower() not in (".html", ".htm"):
        beside = target if target.is_dir() else target.parent
        raise UserError(f"--out: {str(target)!r} is not an .html file; write for example {str(beside) + os.sep + REPORT_FILE!r}")
    records = [read_condensed(shown[folder]) for folder in folders]
    require_comparable(records)
    text = render_page(records)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(target, text)
    except OSError as error:
        raise UserError(f"--out: {str(target)!r} cannot be written ({error.strerror or error}); choose another path") from error
    said = [f"report of {counted(len(records), 'run')} in {target} ({len(text.encode()) / 1e6:.1f} MB)"]
    return "\n".join([*said, *(describe_unreadable(record.unreadable, record.run) for record in records if record.unreadable)])
