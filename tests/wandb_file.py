"""Reads what an offline run of Weights & Biases has written."""

from __future__ import annotations

import json
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

BLOCK = 32 * 1024  # the file is cut into blocks, as LevelDB's log is


def wandb_records(path: Path) -> Iterator:
    """The records of a .wandb file: a header of seven bytes, then LevelDB's log with CRC-32 sums over type and data."""
    from wandb.proto.wandb_internal_pb2 import Record

    data = path.read_bytes()
    assert data[:7] == b":W&B" + struct.pack("<HB", 0xBEE1, 0)
    at, begun = 7, b""
    while at + 7 <= len(data):
        if BLOCK - at % BLOCK < 7:  # no header fits: filled with zeros
            at += BLOCK - at % BLOCK
            continue
        total, length, kind = struct.unpack("<IHB", data[at : at + 7])
        piece = data[at + 7 : at + 7 + length]
        assert len(piece) == length and zlib.crc32(bytes([kind]) + piece) == total
        at, begun = at + 7 + length, begun + piece
        if kind in (1, 4):  # whole, or the last piece
            yield Record.FromString(begun)
            begun = b""
    assert not begun


def read_wandb(folder: Path) -> SimpleNamespace:
    """What the .wandb file in an offline run's folder holds: run, config, history, metrics, summary, artifacts, exit code."""
    found = SimpleNamespace(run=None, config={}, history=[], metrics={}, summary={}, artifacts=[], exit_code=None)
    (path,) = folder.glob("*.wandb")
    for record in wandb_records(path):
        kind = record.WhichOneof("record_type")
        if kind == "run":
            found.run = record.run
            found.config = {item.key: json.loads(item.value_json) for item in record.run.config.update}
        elif kind == "history":
            found.history.append({"/".join(item.nested_key) or item.key: json.loads(item.value_json) for item in record.history.item})
        elif kind == "metric":
            found.metrics[record.metric.name or record.metric.glob_name] = record.metric
        elif kind == "summary":
            found.summary |= {"/".join(item.nested_key) or item.key: json.loads(item.value_json) for item in record.summary.update}
        elif kind == "artifact":
            found.artifacts.append(record.artifact)
        elif kind == "exit":
            found.exit_code = record.exit.exit_code
    return found
