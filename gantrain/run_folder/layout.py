"""Names of files that many folders share. Nothing here imports torch, so that reading a run's record does not wait for it."""

from __future__ import annotations

from pathlib import Path

SCORING_FOLDER = "scoring"  # of a run folder: checkpoints that are scored in the background
CONFIG_FILE = "config.yaml"  # of a run folder: the resolved configuration
METRICS_FILE = "metrics.jsonl"  # of a run folder: its record
AVERAGES_FOLDER = "averages"  # of a run: snapshots under numbers, averages rebuilt from them under names
BEST = "best"  # instead of the name of an average
BEST_FOLDER = "best"  # of a run: one folder per score, with the checkpoint that was best by it
SUPERSEDED_FILE = "metrics.superseded.jsonl"  # of a run: lines of the record that a resume has removed
NARROW = ".narrow"  # before the suffix of a picture: its variant for phones, with panels below each other


def narrow_variant(picture: Path) -> Path:
    """The path of a picture's variant for narrow screens."""
    return picture.with_name(f"{picture.stem}{NARROW}{picture.suffix}")


def is_narrow(picture: Path) -> bool:
    """Whether a picture is such a variant."""
    return picture.stem.endswith(NARROW)
