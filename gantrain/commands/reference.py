"""`gantrain reference`: save statistics of real images."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from accelerate import Accelerator

from gantrain.config.loading import load
from gantrain.data import prepare
from gantrain.distributed import finish, local_processes, main_first, make_accelerator
from gantrain.errors import UserError, in_words
from gantrain.evaluation.api import YAML, load_eval_config
from gantrain.evaluation.evaluator import Evaluator
from gantrain.evaluation.references import open_reference, wrap_dataset
from gantrain.evaluation.score_notes import DIGITS, describe_features, shows
from gantrain.home import expand_user
from gantrain.metrics.statistics import write_statistics
from gantrain.reporting.score_table import in_lines
from gantrain.run_folder.layout import CONFIG_FILE
from gantrain.run_folder.provenance import utc_now, versions
from gantrain.run_folder.recognition import is_run_folder
from gantrain.run_folder.start_folder import require_images_of
from gantrain.shipped import find_config


def call(arguments: argparse.Namespace) -> None:
    """Run the command."""
    written, accelerator = write_reference(arguments.target, arguments.out, arguments.moments_only, arguments.overrides)
    if accelerator.is_main_process:
        print(written)
    finish(accelerator)


def write_reference(target: str | Path, out: str | Path, moments_only: bool, overrides: Sequence[str]) -> tuple[str, Accelerator]:
    """Save statistics of a data set or of images, to use as `eval.reference`.

    Args:
        target: a CONFIG or run folder, for its data set; or a folder, zip, prepared set or .npz of images.
        out: the .npz file.
        moments_only: save mean and covariance only, as the files of TTUR and pytorch-fid do; enough for FID and IS.
        overrides: `section.key=value`; for images, keys of eval only.

    Returns:
        A line that says what was saved, and the Accelerator that was used.

    Raises:
        UserError: a path is invalid, or the target has no images.
    """
    out, there = Path(out), find_config(expand_user(target))
    if out.suffix.lower() != ".npz" or out.is_dir() or not all(parent.is_dir() for parent in out.parents if parent.exists()):
        raise UserError(f"--out: {str(out)!r} must be an .npz file")
    accelerator = make_accelerator()
    saved = there / CONFIG_FILE if is_run_folder(there) else there
    if saved.suffix.lower() in YAML:
        config = load(saved, [*overrides, "eval.reference=null"])
        if is_run_folder(there):
            require_images_of(there, config, overrides)
        real = main_first(
            accelerator, lambda: wrap_dataset(prepare(config.data, accelerator.device, local_processes()), config.eval.reference_samples)
        )
    else:
        config = load_eval_config(overrides, "images")
        real = main_first(accelerator, lambda: open_reference(there, config.eval.reference_samples, accelerator.device))
        if real.take is None:
            raise UserError(f"{target}: already contains statistics; pass it as --reference")
    evaluator = Evaluator(config, real, accelerator)
    with evaluator.isolated():
        found = evaluator.reference()
    if not accelerator.is_main_process:
        return "", accelerator
    assert found is not None
    facts: dict[str, object] = {
        "identity": evaluator.extractor.identity, "name": real.name, "fingerprint": evaluator.reference_fingerprint,
        "made": utc_now(), "versions": versions(), "data": DIGITS if shows(DIGITS, real) else "",
        **({"class_counts": list(real.class_counts)} if len(real.class_counts) > 1 else {}),
    }  # fmt: skip
    write_statistics(out, found, moments_only, facts)
    held = "mean and covariance" if moments_only else "mean, covariance, features and logits"
    size = f"{found.features.shape[1]} features per image, {in_words(out.stat().st_size)}"
    about = "".join(f"\nreference: {note}" for note in real.notes)
    notes = in_lines(describe_features(config.eval, evaluator.remarks.foreign))
    return f"{out}: {held} of {real.described}, {size}; use it as --reference {out}{about}{notes}", accelerator
