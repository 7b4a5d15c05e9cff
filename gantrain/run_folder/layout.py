"""Names that many rooms share; nothing here imports torch, so that whoever only reads a run's record does not wait for it."""

from __future__ import annotations

CONFIG_FILE = "config.yaml"  # of a run folder: the resolved configuration
METRICS_FILE = "metrics.jsonl"  # of a run folder: its record
AVERAGES_FOLDER = "averages"  # of a run: snapshots under numbers, averages rebuilt from them under names
BEST_FOLDER = "best"  # of a run: a folder a score, with the checkpoint that was best by it
SUPERSEDED_FILE = "metrics.superseded.jsonl"
