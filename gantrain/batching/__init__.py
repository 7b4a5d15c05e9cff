"""Batch policies: `propose(state) -> batch_size` before every update. The micro-batch never changes within a run."""
from gantrain.batching.fixed import Fixed
from gantrain.batching.state import BatchState
from gantrain.errors import UserError

BATCH_POLICIES: dict[str, type] = {"fixed": Fixed}

__all__ = ["BATCH_POLICIES", "BatchState", "Fixed", "rounds_of"]


def rounds_of(batch_size: int, micro_batch: int | None, world: int) -> tuple[int, int]:
    """(micro_batch b, rounds k) with batch_size = b x world x k.

    Raises:
        UserError: no whole number of rounds gives this batch on this many processes.
    """
    if micro_batch is None:
        if batch_size % world:
            raise UserError(f"batching.batch_size: {batch_size} does not divide over {world} processes; choose a multiple of {world}")
        return batch_size // world, 1
    if batch_size % (micro_batch * world):
        raise UserError(
            f"batching.micro_batch: {micro_batch} images x {world} processes does not divide batch_size {batch_size};"
            f" choose a micro_batch that divides {batch_size // world if batch_size % world == 0 else batch_size}"
            + ("" if batch_size % world == 0 else f" and a batch_size that is a multiple of {world}")
        )
    return micro_batch, batch_size // (micro_batch * world)
