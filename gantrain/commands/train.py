"""`gantrain train`: train a run, or resume it."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from gantrain import other_processes
from gantrain.commands.arguments import overrides_of
from gantrain.config import loading
from gantrain.distributed import finish
from gantrain.errors import UserError
from gantrain.home import expand_user
from gantrain.interruption import Interruption, exit_status
from gantrain.launch_environment import process_rank, read_place
from gantrain.run_folder.recognition import holds_checkpoints
from gantrain.run_folder.starts import resolve_starts
from gantrain.shipped import explain_choice, find_config
from gantrain.training.trainer import Trainer


def call(arguments: argparse.Namespace) -> int:
    """Train the configured run to its end; the exit status."""
    with Interruption() as interruption:
        other_processes.join(read_place())  # so that the others hear if this process fails from here on
        config = loading.load(arguments.config, overrides_of(arguments))
        given = loading.set_keys(arguments.config, overrides_of(arguments))
        refuse_moved(find_config(arguments.config), config.run_dir, arguments.overrides)
        if (choice := explain_choice(arguments.config)) and process_rank() == 0:
            print(choice, flush=True)
        config = resolve_starts(config, given)
        trainer = Trainer(config, interruption=interruption, changed_data=arguments.changed_data)
        try:
            trainer.train()
        except BaseException as error:
            other_processes.stand_down()
            trainer.close(exit_code=1, wait=not isinstance(error, KeyboardInterrupt))
            raise
        accelerator, stopping = trainer.accelerator, trainer.stopping
        del trainer  # or it would hold the process group
        finish(accelerator)
    return exit_status(stopping) if stopping else 0


def refuse_moved(config: Path, run_dir: str, overrides: Sequence[str]) -> None:
    """Refuse a configuration that lies in a run folder with checkpoints and names another folder, as after a move.

    It would train from the start in that other folder, or resume the run there. With `run_dir` on the command line, the user has chosen.

    Raises:
        UserError: with both remedies.
    """
    folder = config.parent
    chosen = any(text.partition("=")[0].strip() == "run_dir" for text in overrides)
    if chosen or folder.resolve() == expand_user(run_dir, "run_dir").resolve() or not holds_checkpoints(folder):
        return
    here = folder.resolve() if folder == Path(".") else folder
    raise UserError(
        f"{config}: lies beside the checkpoints of a run, but its run_dir is {run_dir}; add run_dir={here} to resume the run that lies"
        f" here, or run_dir={run_dir} to train in that folder"
    )
