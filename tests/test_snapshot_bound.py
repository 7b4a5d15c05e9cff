"""The room that snapshots of averages take: said before it is taken, and right."""

from __future__ import annotations

import pytest

from gantrain.config import loading
from gantrain.run_folder.snapshot_bound import count_snapshots, describe_room, foresee_room, measure_room


def configured(*settings: str):
    """A configuration on digits with power averages."""
    return loading.load(None, ["run_dir=none", "data.name=digits", *settings])


def power(name: str, every: float | str) -> str:
    return f"averagers.{name}={{name: power, sigma_rel: 0.1, snapshot_every_kimg: {every}}}"


@pytest.mark.parametrize(
    "total, intervals, snapshots",
    [
        (10, {"a": 2.5}, {"a": 4}),  # 2.5, 5, 7.5 and the end, which is 10
        (10, {"a": 3}, {"a": 4}),  # 3, 6, 9 and the end
        (10, {"a": 2, "b": 5}, {"a": 5, "b": 2}),  # 10 is in both
        (10, {"a": 20}, {"a": 1}),  # the end alone
        (10, {"a": "null"}, {}),
    ],
)
def test_snapshots_are_counted_to_the_end(total, intervals, snapshots):
    config = configured(f"total_kimg={total}", "averagers={}", *(power(name, every) for name, every in intervals.items()))
    moments = {*(min(k * every, total) for every in intervals.values() if every != "null" for k in range(1, 99) if (k - 1) * every < total)}
    assert len(moments) == count_snapshots(config)[0] and count_snapshots(config)[1] == snapshots
    assert foresee_room(config, 1000, 64) == (sum(snapshots.values()) * 2000 + len(moments) * 64 if snapshots else None)


def test_room_on_disk_beside_the_bound(tmp_path):
    config = configured("total_kimg=10", "averagers={}", power("a", 2.5))
    assert describe_room(tmp_path, configured("averagers={}")) == ""
    for name in ("000000002500", "rebuilt_by_name"):
        (tmp_path / "averages" / name).mkdir(parents=True)
        (tmp_path / "averages" / name / "a.safetensors").write_bytes(b"\0" * (3 * 2**20))
    assert measure_room(tmp_path) == (1, 3 * 2**20)
    assert describe_room(tmp_path, config) == "1 snapshot in averages/, 3 MiB; at most 4 by 10 kimg, about 12 MiB; none is deleted"


def test_a_run_says_at_its_start_what_its_snapshots_will_take(monkeypatch):
    from types import SimpleNamespace

    import torch

    from gantrain.training import facts

    network = torch.nn.BatchNorm1d(2**20)  # 2 Mi parameters; buffers of 8 MiB and a counter of 8 bytes
    config = configured("total_kimg=10", "averagers={}", power("a", 2.5), power("b", 5))
    mine = SimpleNamespace(
        context=SimpleNamespace(config=config, run_dir=None), players=SimpleNamespace(G=SimpleNamespace(network=network))
    )
    monkeypatch.setattr(facts, "measure_room", lambda run: (0, 0))
    for free, words in ((2**40, "1024.0 GiB are free; none is deleted"), (2**20, "1 MiB are free, which is not enough: set a larger")):
        monkeypatch.setattr(facts, "free_bytes", lambda run, free=free: free)
        said = facts.Facts.describe_snapshots(mine)
        assert said.startswith("averages/ will hold at most 4 by 10 kimg, of a, b, 57 MiB in all") and words in said  # 6 x 4 + 4 x 8 + 32 B
