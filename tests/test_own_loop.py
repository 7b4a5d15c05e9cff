"""Loops of several processes whose batches differ: `bank.advance` counts the images of all of them."""

from __future__ import annotations

import multiprocessing
import os
import traceback
from pathlib import Path

import pytest
import torch
from conftest import ROOT
from torch import nn

from gantrain.averaging import AverageBank, Ema, Power
from gantrain.errors import UserError

UNEVEN = [[4, 4, 1], [4, 2, 3]]  # images of each step, by process; with `even_batches=False`, say


def in_processes(world: int, body, folder: Path) -> list:
    """What `body(rank)` returns in each of so many processes of one gloo group, forked off this one; an error is its text."""

    def child(rank: int, pipe) -> None:
        try:
            os.environ["GLOO_SOCKET_IFNAME"] = "lo"
            torch.distributed.init_process_group("gloo", init_method=f"file://{folder / 'store'}", rank=rank, world_size=world)
            pipe.send(body(rank))
        except BaseException:
            pipe.send(traceback.format_exc())
        finally:
            pipe.close()
            os._exit(0)

    context = multiprocessing.get_context("fork")
    ends = []
    for rank in range(world):
        mine, theirs = context.Pipe()
        context.Process(target=child, args=(rank, theirs), daemon=True).start()
        theirs.close()
        ends.append(mine)
    return [end.recv() if end.poll(60) else "no answer" for end in ends]


def averaged(counts: list[int], advance: bool) -> tuple[list[int], list[list[float]]]:
    """(nimg after each update, averages at the end) of weights that are 1, 2, 3 ... after each step."""
    network = nn.Linear(1, 1, bias=False)
    nn.init.zeros_(network.weight)
    bank = AverageBank(network, {"ema": Ema(half_life_kimg=0.005, ramp_up=None), "power": Power(gamma=2.0)})
    positions = []
    for step, images in enumerate(counts, 1):
        nn.init.constant_(network.weight, float(step))
        if advance:
            positions.append(bank.advance(images))
        else:
            bank.update(bank.nimg + images)
            positions.append(bank.nimg)
    return positions, [bank[name].shadows["weight"].flatten().tolist() for name in bank]


def test_advance_counts_what_update_is_told():
    assert averaged([4, 0, 3], advance=True) == averaged([4, 0, 3], advance=False)
    assert averaged([4, 0, 3], advance=True)[0] == [4, 4, 7]


def test_uneven_batches_of_two_processes_are_added_up(tmp_path):
    """Both processes hold the averages of one process with all images; counted each by themselves, they drift apart."""
    together = in_processes(2, lambda rank: averaged(UNEVEN[rank], advance=True), tmp_path)
    expected = averaged([8, 6, 4], advance=False)
    assert together == [expected, expected] and expected[0] == [8, 14, 18]
    # By hand: an EMA keeps 2^(-n / 5) after n images.
    average = 0.0
    for step, images in enumerate([8, 6, 4], 1):
        kept = 0.5 ** (images / 5)
        average = kept * average + (1 - kept) * step
    assert expected[1][0] == pytest.approx([average], rel=1e-6)
    assert averaged(UNEVEN[0], advance=False)[1] != averaged(UNEVEN[1], advance=False)[1]


def test_processes_that_counted_differently_before_are_refused(tmp_path):
    """Instead of going on with averages that differ: on all of them, with the numbers."""

    def body(rank: int) -> str:
        bank = AverageBank(nn.Linear(1, 1), {"ema": Ema()})
        bank.update(UNEVEN[rank][1])
        with pytest.raises(UserError) as refused:
            bank.advance(1)
        return str(refused.value)

    words = (
        "nimg: process 1 has counted 2 images and process 0 4, so their averages differ; call bank.advance on all processes from the"
        " start, or bank.update with the images of all processes"
    )
    assert in_processes(2, body, tmp_path) == [words, words]


def test_a_negative_count_is_refused():
    bank = AverageBank(nn.Linear(1, 1), {"ema": Ema()})
    with pytest.raises(UserError, match="images: must be at least 0, got -1; pass the number of this process's images"):
        bank.advance(-1)


DOCUMENTED = """
import re, sys, torch
from pathlib import Path
from accelerate import Accelerator
from accelerate.utils import DataLoaderConfiguration
from gantrain.averaging import AverageBank, Ema

blocks = re.findall(r"```python\\n(.*?)```", Path({page!r}).read_text(), re.S)
block = next(block for block in blocks if "accelerator.prepare" in block)
torch.manual_seed(0)
accelerator = Accelerator(cpu=True, dataloader_config=DataLoaderConfiguration(even_batches=False))
generator = torch.nn.Linear(3, 2)
optimizer = torch.optim.SGD(generator.parameters(), lr=0.1)
loader = torch.utils.data.DataLoader(torch.arange(3.0 * 14).reshape(-1, 3) / 50, batch_size=4)  # 4, 4 and 4, 2
loss_of = lambda network, x: network(x).square().mean()
exec(block, globals())
mine = torch.cat([t.flatten().double() for t in bank["ema"].shadows.values()] + [torch.tensor([float(bank.nimg)])])
everyone = accelerator.gather(mine[None])
assert torch.equal(everyone[0], everyone[1]), everyone
assert bank.nimg == 14 and bank["ema"].num_averaged == 2, (bank.nimg, bank["ema"].num_averaged)
accelerator.end_training()
"""


@pytest.mark.slow
def test_the_documented_loop_of_two_processes_with_uneven_batches(together, tmp_path):
    """14 images in batches of 4 are 4 and 4 for one process, 4 and 2 for the other."""
    script = tmp_path / "loop.py"
    script.write_text(DOCUMENTED.format(page=str(ROOT / "docs" / "averages.md")))
    together(2, script)
