"""Names that many rooms share; nothing here imports torch, so that whoever only reads a run's record does not wait for it."""
from __future__ import annotations

CONFIG_FILE = "config.yaml"  # of a run folder: the resolved configuration
METRICS_FILE = "metrics.jsonl"  # of a run folder: its record

# Whether more of a score is better, for tables that mark the best.
HIGHER_IS_BETTER = {"fid": False, "is": True, "kid": False, "precision": True, "recall": True, "fid_infinity": False}
