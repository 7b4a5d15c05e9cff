"""The `gantrain` script: listens for signals first, and imports the command line after that."""

from gantrain import command_signals

command_signals.listen()

from gantrain.cli import main  # noqa: E402 - Ctrl-C during this import must not be a traceback

__all__ = ["main"]
