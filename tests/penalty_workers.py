"""What the processes of a test run: `penalty_workers.py FOLDER`, two updates with every penalty, in one round and in two."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path

import torch
from game import networks, player
from own_terms import Wobble, flat, play, terms
from safetensors.torch import save_file

from gantrain.distributed import finish, make_accelerator, mean_of_processes
from gantrain.losses import PENALTIES, Hinge
from gantrain.losses.penalties import FiniteDifferenceR1, LeCam

CUTS = ((8, 1), (4, 2))  # (images of a micro-batch, rounds) of each process


def all_penalties():
    """Each by its name, at every step and in effect from the first update on that it can be."""
    found = {name: dataclasses.replace(cls(), every=1) for name, cls in PENALTIES.items()}
    return found | {"fd_r1": FiniteDifferenceR1(share=0.5), "lecam": LeCam(start_kimg=0)}


def played(b, k, world=1, rank=0, accelerator=None):
    """Gradients and states after two updates."""
    g, d = (player(n, accelerator) for n in networks())
    over = (mean_of_processes(accelerator), world) if accelerator else None
    own = terms(Wobble(), over, **all_penalties())
    return play(g, d, Hinge(), own, b, k, world=world, rank=rank) | flat(own.states)


if __name__ == "__main__":
    accelerator = make_accelerator()
    for b, k in CUTS:
        found = played(b, k, accelerator.num_processes, accelerator.process_index, accelerator)
        for tensor in found.values():  # every process holds the same
            assert torch.equal(accelerator.gather(tensor[None])[0], tensor) or accelerator.is_main_process
        if accelerator.is_main_process:
            save_file(found, Path(sys.argv[1]) / f"{b}-{k}.safetensors")
    finish(accelerator)
