"""The environment variables by which a launcher gives each process its place in a group: RANK, WORLD_SIZE, MASTER_ADDR and the rest.

torch and Accelerate read them too, but name none of them when one is missing or wrong, or train several single processes instead.
"""

from __future__ import annotations

import os
from typing import NamedTuple

from gantrain.errors import UserError, counted

AGENT_STORE = "TORCHELASTIC_USE_AGENT_STORE"  # set by torchrun and `accelerate launch`, which host the store of the group themselves
VARIABLES = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
REMEDY = "start the processes with `accelerate launch` or `torchrun`, or set all of " + ", ".join(VARIABLES)
ALONE = "to train with one process, unset it"
# Variables of MPI that Accelerate reads on a CPU.
OF_MPI = {
    "RANK": ("PMI_RANK", "OMPI_COMM_WORLD_RANK", "MV2_COMM_WORLD_RANK"),
    "WORLD_SIZE": ("PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE"),
    "LOCAL_RANK": ("MPI_LOCALRANKID", "OMPI_COMM_WORLD_LOCAL_RANK", "MV2_COMM_WORLD_LOCAL_RANK"),
    "LOCAL_WORLD_SIZE": ("MPI_LOCALNRANKS", "OMPI_COMM_WORLD_LOCAL_SIZE", "MV2_COMM_WORLD_LOCAL_SIZE"),
}
HIGHEST_PORT = 2**16 - 1


class Place(NamedTuple):
    """The place of this process in its group.

    Attributes:
        rank: number of this process, from 0, which is the main one.
        world: number of processes.
        local_rank: number of this process on its machine.
        local_world: number of processes on this machine.
        address, port: where the main process listens; empty and 0 without a group.
        launched: a launcher that watches the processes has started them.
    """

    rank: int = 0
    world: int = 1
    local_rank: int = 0
    local_world: int = 1
    address: str = ""
    port: int = 0
    launched: bool = False

    @property
    def grouped(self) -> bool:
        """Whether the process belongs to a group, which may have a single process."""
        return bool(self.address)


def process_rank() -> int:
    """The rank of this process, for what only one process should do; 0 unless RANK and WORLD_SIZE name another one.

    A RANK alone, or one that does not fit WORLD_SIZE, belongs to no group, and is left over from something else. Never raises.
    """
    rank, world = (_number_or_none(os.environ.get(name, "")) for name in ("RANK", "WORLD_SIZE"))
    return rank if rank is not None and world is not None and 0 < rank < world else 0


def process_world() -> int:
    """The number of processes that WORLD_SIZE names; 1 unless it is a number. Never raises."""
    return max(_number_or_none(os.environ.get("WORLD_SIZE", "")) or 1, 1)


def read_place(cpu: bool = False) -> Place:
    """Read and check this process's place in its group. Empty variables count as unset, and are removed.

    Args:
        cpu: whether variables of MPI count where WORLD_SIZE and LOCAL_RANK are not set, as Accelerate does on a CPU.

    Raises:
        UserError: a variable is missing, is not a number, or contradicts another; the message names it and its value.
    """
    for name in VARIABLES:
        if not os.environ.get(name, "-").strip():
            del os.environ[name]  # torch and Accelerate fail to parse an empty value
    if cpu and "WORLD_SIZE" not in os.environ and "LOCAL_RANK" not in os.environ:
        _adopt_mpi()
    world = _number("WORLD_SIZE", 1, "the number of processes", ALONE)
    rank = _number("RANK", 0, "the number of this process, from 0", ALONE)
    local_rank = _number("LOCAL_RANK", 0, "the number of this process on its machine, from 0", ALONE)
    local_world = _number("LOCAL_WORLD_SIZE", 1, "the number of processes on this machine", ALONE)
    if (rank or 0) >= (world or 1):
        limit = "WORLD_SIZE is not set" if world is None else f"WORLD_SIZE={world} allows 0 to {world - 1}"
        raise UserError(f"RANK: {rank} does not fit, since {limit}; {ALONE}, or else {REMEDY}")
    if (world or 1) == 1 and local_rank is None:
        return Place()
    why = f"LOCAL_RANK={local_rank} is" if world is None else f"WORLD_SIZE={world} is"
    for name, value in (("WORLD_SIZE", world), ("RANK", rank), ("LOCAL_RANK", local_rank)):
        _require(name, value is not None, why)
    assert world is not None and rank is not None and local_rank is not None
    if local_world is not None and not local_rank < local_world <= world:
        wrong = "LOCAL_WORLD_SIZE" if local_world > world else "LOCAL_RANK"
        values = f"LOCAL_RANK={local_rank}, LOCAL_WORLD_SIZE={local_world}, WORLD_SIZE={world}"
        raise UserError(f"{wrong}: must be below {'or equal to WORLD_SIZE' if local_world > world else 'LOCAL_WORLD_SIZE'}, got {values}")
    if local_world is None and local_rank >= world:
        raise UserError(f"LOCAL_RANK: must be below WORLD_SIZE={world}, got {local_rank}; {REMEDY}")
    address, port = os.environ.get("MASTER_ADDR"), os.environ.get("MASTER_PORT")
    _require("MASTER_ADDR", address is not None, why)
    _require("MASTER_PORT", port is not None, why)
    assert address is not None
    number = _number("MASTER_PORT", 1, "a port on MASTER_ADDR that is free, the same for all processes", REMEDY, HIGHEST_PORT)
    assert number is not None
    launched = os.environ.get(AGENT_STORE) == "True"
    return Place(rank, world, local_rank, local_world or 1, address.strip(), number, launched)


def resolve_address(place: Place) -> None:
    """Look up the address of the main process.

    Raises:
        UserError: MASTER_ADDR does not resolve.
    """
    import socket  # most commands do not need it

    try:
        socket.getaddrinfo(place.address, place.port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:  # UnicodeError: such as an empty label
        why = getattr(error, "strerror", None) or "not a host name"
        raise UserError(f"MASTER_ADDR: {place.address!r} does not resolve ({why}); set it to the host of the process with RANK=0") from None


def require_devices(place: Place, available: int, kind: str) -> None:
    """Refuse a process that has no device of its own.

    Raises:
        UserError: LOCAL_RANK is at or above the number of devices.
    """
    if place.grouped and place.local_rank >= available:
        raise UserError(
            f"LOCAL_RANK: {place.local_rank} needs {counted(place.local_rank + 1, f'{kind} device')} on this machine, not {available};"
            f" start at most {counted(available, 'process', 'es')} on it, or set ACCELERATE_USE_CPU=1 to train on the CPU"
        )


def _adopt_mpi() -> None:
    """Set this module's variables to those of MPI, if it has started several processes."""
    found = {name: next((os.environ[one] for one in others if os.environ.get(one)), None) for name, others in OF_MPI.items()}
    if (_number_or_none(found["WORLD_SIZE"] or "") or 1) > 1:
        given = {name: value for name, value in found.items() if value is not None} | {"MASTER_PORT": "29500"}
        os.environ.update({name: os.environ.get(name, value) for name, value in given.items()})


def _require(name: str, holds: bool, why: str) -> None:
    if not holds:
        raise UserError(f"{name}: not set, but {why}; {REMEDY}; to train with one process, unset {why.partition('=')[0]}")


def _number(name: str, least: int, meaning: str, remedy: str, most: int | None = None) -> int | None:
    """A variable as a whole number; None if it is not set."""
    text = os.environ.get(name)
    if text is None:
        return None
    value = _number_or_none(text)
    if value is None or value < least or (most is not None and value > most):
        bounds = f"of at least {least}" if most is None else f"from {least} to {most}"
        raise UserError(f"{name}: must be a whole number {bounds} ({meaning}), got {text!r}; {remedy}")
    return value


def _number_or_none(text: str) -> int | None:
    digits = text.strip()
    return int(digits) if digits.isascii() and digits.removeprefix("-").isdigit() and len(digits) < 10 else None
