"""The environment variables by which a launcher gives each process its place in a group: RANK, WORLD_SIZE, MASTER_ADDR and the rest.

torch and Accelerate read them too, but name none of them when one is missing or wrong, or train several single processes instead.
"""

from __future__ import annotations

import os
from typing import NamedTuple

from gantrain.command_signals import AGENT_STORE
from gantrain.errors import UserError, counted

VARIABLES = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
REMEDY = "start the processes with `accelerate launch` or `torchrun`, or set all of " + ", ".join(VARIABLES)
NUMBERS = VARIABLES[:4]
PORT = "29500"  # of the main process where MASTER_PORT is not set, as Accelerate and torchrun have it
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


def is_launched() -> bool:
    """Whether a launcher that watches the processes, and ends all of them when one fails, has started this one. Never raises."""
    return process_world() > 1 and os.environ.get(AGENT_STORE) == "True"


def process_local_world() -> int:
    """The number of processes on this machine that LOCAL_WORLD_SIZE names; 1 unless it is a number. Never raises."""
    return min(max(_number_or_none(os.environ.get("LOCAL_WORLD_SIZE", "")) or 1, 1), process_world())


def read_place(cpu: bool | None = None) -> Place:
    """Read and check this process's place in its group, and set the variables that torch needs and that have a sound default.

    Variables that are empty, or -1 as in Accelerate, count as unset, and are removed.

    Args:
        cpu: whether the networks are on the CPU, where variables of MPI count too, as in Accelerate; None if that is not known yet.

    Raises:
        UserError: a variable is missing, is not a number, or contradicts another; the message names it, its value, and what to unset.
    """
    _remove_unset()
    if cpu is not False:
        _adopt_mpi(whole=cpu is True)
    world = _number("WORLD_SIZE", 1, "the number of processes")
    rank = _number("RANK", 0, "the number of this process, from 0")
    local_rank = _number("LOCAL_RANK", 0, "the number of this process on its machine, from 0")
    local_world = _number("LOCAL_WORLD_SIZE", 1, "the number of processes on this machine")
    if (rank or 0) >= (world or 1):
        limit = "WORLD_SIZE is not set" if world is None else f"WORLD_SIZE={world} allows 0 to {world - 1}"
        raise UserError(f"RANK: {rank} does not fit, since {limit}; {REMEDY}; {_alone()}")
    if (world or 1) == 1 and local_rank is None:
        return Place()
    _require("WORLD_SIZE", world is not None, f"LOCAL_RANK={local_rank}")
    assert world is not None
    address, given = os.environ.get("MASTER_ADDR", "").strip(), f"WORLD_SIZE={world}"
    rank = 0 if world == 1 else rank
    _require("RANK", rank is not None, given)
    assert rank is not None
    if local_rank is None:
        local_rank = _local_rank(rank, world, local_world, address, cpu)
        _require("LOCAL_RANK", local_rank is not None, given)
        assert local_rank is not None
    _require_local(local_rank, local_world, world)
    if world == 1 and not address:
        del os.environ["LOCAL_RANK"]  # Accelerate would form a group, which needs an address
        return Place()
    _require("MASTER_ADDR", bool(address), given)
    os.environ["RANK"] = str(rank)
    os.environ.setdefault("MASTER_PORT", PORT)
    port = _number("MASTER_PORT", 1, "a port on MASTER_ADDR that is free, the same for all processes", HIGHEST_PORT)
    assert port is not None
    return Place(rank, world, local_rank, local_world or 1, address, port, os.environ.get(AGENT_STORE) == "True")


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


def _remove_unset() -> None:
    """Remove variables that are empty, which torch and Accelerate fail to parse, or -1, which is Accelerate's own value for "not set"."""
    for name in VARIABLES:
        if os.environ.get(name, "-").strip() in ("", *(["-1"] if name in NUMBERS else [])):
            del os.environ[name]


def _adopt_mpi(whole: bool) -> None:
    """Set variables that are missing to those of MPI, if there are several processes.

    Args:
        whole: also if neither WORLD_SIZE nor LOCAL_RANK is set; otherwise only MPI knows of a group.
    """
    if not whole and "WORLD_SIZE" not in os.environ and "LOCAL_RANK" not in os.environ:
        return
    found = {name: next((os.environ[one] for one in others if os.environ.get(one, "").strip()), None) for name, others in OF_MPI.items()}
    if (_number_or_none(os.environ.get("WORLD_SIZE") or found["WORLD_SIZE"] or "") or 1) > 1:
        for name, value in found.items():
            if value is not None:
                os.environ.setdefault(name, value)


def _local_rank(rank: int, world: int, local_world: int | None, address: str, cpu: bool | None) -> int | None:
    """LOCAL_RANK where it is not set: RANK if all processes are on this machine. None if a GPU depends on it."""
    loopback = address.startswith("127.") or address in ("localhost", "::1")
    if rank < (local_world or world) and (local_world == world or loopback):
        os.environ["LOCAL_RANK"] = str(rank)
        return rank
    return None if cpu is False else 0  # Accelerate's default, on a CPU


def _require_local(local_rank: int, local_world: int | None, world: int) -> None:
    """Refuse places on a machine that contradict each other."""
    if local_world is not None and local_world > world:
        raise UserError(f"LOCAL_WORLD_SIZE: must be at most WORLD_SIZE={world}, got {local_world}; {REMEDY}; {_alone()}")
    limit = f"WORLD_SIZE={world}" if local_world is None else f"LOCAL_WORLD_SIZE={local_world}"
    if local_rank >= (local_world or world):
        raise UserError(f"LOCAL_RANK: must be below {limit}, got {local_rank}; {REMEDY}; {_alone()}")


def _require(name: str, holds: bool, given: str) -> None:
    if not holds:
        raise UserError(f"{name}: not set, but {given} is; {REMEDY}; {_alone()}")


def _alone() -> str:
    """How to train with a single process: all variables that make this one part of a group."""
    names = [name for name in (*NUMBERS, *(one for others in OF_MPI.values() for one in others)) if name in os.environ]
    return "to train with one process, unset " + (" and ".join(filter(None, (", ".join(names[:-1]), names[-1]))))


def _number(name: str, least: int, meaning: str, most: int | None = None) -> int | None:
    """A variable as a whole number; None if it is not set."""
    text = os.environ.get(name)
    if text is None:
        return None
    value = _number_or_none(text)
    if value is None or value < least or (most is not None and value > most):
        bounds = f"of at least {least}" if most is None else f"from {least} to {most}"
        remedy = REMEDY if name == "MASTER_PORT" else _alone()
        raise UserError(f"{name}: must be a whole number {bounds} ({meaning}), got {text!r}; {remedy}")
    return value


def _number_or_none(text: str) -> int | None:
    digits = text.strip()
    return int(digits) if digits.isascii() and digits.removeprefix("-").isdigit() and len(digits) < 10 else None
