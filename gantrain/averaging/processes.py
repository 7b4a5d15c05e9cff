"""Counting images over the processes of a group, for loops whose processes have batches of different sizes."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist

from gantrain.errors import UserError


class Processes:
    """The processes of torch.distributed's default group, if there is one."""

    def __init__(self) -> None:
        self._group: Any = None  # of main memory, beside a default group that only has GPUs
        self._of: Any = None  # the default group that `_group` was made for

    def sum(self, images: int, nimg: int) -> int:
        """The sum of `images` over all processes; every one of them must call it.

        Raises:
            UserError: `nimg`, the images counted before, differs between processes. Raised on all of them.
        """
        if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
            return images
        mine = torch.tensor([images, nimg], dtype=torch.int64)
        counts = [torch.empty_like(mine) for _ in range(dist.get_world_size())]
        dist.all_gather(counts, mine, group=self._in_main_memory())
        totals = [int(count[1]) for count in counts]
        if len(set(totals)) > 1:
            other = next(rank for rank, total in enumerate(totals) if total != totals[0])
            raise UserError(
                f"nimg: process {other} has counted {totals[other]} images and process 0 {totals[0]}, so their averages differ;"
                " call bank.advance on all processes from the start, or bank.update with the images of all processes"
            )
        return sum(int(count[0]) for count in counts)

    def _in_main_memory(self) -> Any:
        """A group whose numbers are exchanged in main memory, so that no process waits for its GPU."""
        if dist.get_backend() in ("gloo", "mpi"):
            return None
        if self._of is not dist.group.WORLD:
            self._group, self._of = dist.new_group(backend="gloo"), dist.group.WORLD
        return self._group
