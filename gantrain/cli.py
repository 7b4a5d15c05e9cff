"""The `gantrain` command: run the verb that the command line names, and turn what ends it into one line and an exit status."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

from gantrain import command_signals, streams
from gantrain.command_end import call, complain, forget_interrupt, leave
from gantrain.errors import OF_THE_MACHINE, USER_ERROR, UserError
from gantrain.interruption import INTERRUPTED, Stopped, exit_status
from gantrain.parser import parse


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command and exit: 0 when done, 2 on a user error, 3 if the guard gave up, 75 after SIGTERM or another request
    to stop (run the command again), 130 after Ctrl-C."""
    streams.secure()
    command_signals.listen()
    try:
        status = run(argv)
    except SystemExit as end:  # of the parser
        status = output_status(int(end.code or 0))
    streams.flush()
    leave(status)


def output_status(status: int) -> int:
    """The exit status of a command that is done and whose result is what it has printed: 1 if standard output did not take all of it."""
    lost = streams.find_loss()
    if lost and status == 0:
        complain(f"cannot write to standard output ({lost.strerror})", 1)
    return 1 if lost and status == 0 else status


def run(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit status."""
    arguments = parse(argv)

    trains = arguments.verb == "train"  # its result is the run folder
    streams.OnLoss.words = "training continues, and metrics.jsonl is complete" if trains else None
    warnings.filterwarnings("ignore", "Image size .* could be decompression bomb")  # Pillow's limit; gantrain.data has its own
    try:
        status = call(arguments)
        return status if trains else output_status(status)
    except UserError as error:
        complain(str(error), error.exit_status, error.of_another)
        return error.exit_status
    except OSError as error:
        if error.errno not in OF_THE_MACHINE and error.filename is None:
            raise
        complain(f"{error.filename or 'a file of the run'}: {error.strerror}; fix this and run the same command again")
        return USER_ERROR
    except KeyboardInterrupt:
        forget_interrupt()
        if not command_signals.State.explained:
            complain(f"interrupted{how_to_resume(arguments.verb)}", INTERRUPTED)
        return INTERRUPTED
    except Stopped as stopped:
        if not command_signals.is_told_by_main():
            complain(f"stopped by {stopped}{how_to_resume(arguments.verb)}", exit_status(stopped.signal))
        return exit_status(stopped.signal)


def how_to_resume(verb: str) -> str:
    """What to do after an interruption, for the end of its message; only training resumes."""
    return "; run the same command to resume from the last checkpoint, if there is one" if verb == "train" else ""
