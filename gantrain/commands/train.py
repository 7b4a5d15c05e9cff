"""`gantrain train`: train a run, or resume it."""

from __future__ import annotations

import argparse
import dataclasses
import os
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from gantrain.commands.arguments import overrides_of
from gantrain.errors import UserError
from gantrain.interruption import Interruption, exit_status
from gantrain.shipped import explain_choice, find_config

if TYPE_CHECKING:
    from accelerate import Accelerator

    from gantrain.config.config import Config
    from gantrain.run_folder.claim import Claim


def call(arguments: argparse.Namespace) -> int:
    """Train the configured run to its end; the exit status."""
    with Interruption() as interruption:  # before torch is imported: an early signal gets its exit status too
        from gantrain.config import loading

        config = loading.load(arguments.config, overrides_of(arguments))
        given = loading.set_keys(arguments.config, overrides_of(arguments))
        refuse_moved(find_config(arguments.config), config.run_dir, arguments.overrides)
        if (choice := explain_choice(arguments.config)) and os.environ.get("RANK", "0") == "0":
            print(choice, flush=True)
        from gantrain.distributed import finish, make_accelerator
        from gantrain.training.trainer import Trainer

        accelerator = make_accelerator(config.mixed_precision)
        config, claim = take_folder(config, given, accelerator)
        try:
            trainer = Trainer(config, accelerator, interruption, arguments.changed_data, claim)
            try:
                trainer.train()
            except BaseException as error:
                trainer.close(exit_code=1, wait=not isinstance(error, KeyboardInterrupt))
                raise
        finally:
            if claim is not None:
                claim.release()
        stopping = trainer.stopping
        del trainer  # or it would hold the process group
        finish(accelerator)
    return exit_status(stopping) if stopping else 0


def take_folder(config: Config, given: Collection[str], accelerator: Accelerator) -> tuple[Config, Claim | None]:
    """Take the run folder, on the main process, before anything is decided about it.

    Args:
        config: as loaded.
        given: full keys that the user has set.
        accelerator: of the program.

    Returns:
        The configuration, with the start of every average that is added to the run, the same on every process; and the claim to the
        folder, on the main process only.

    Raises:
        UserError: see `claim_folder`; on every process.
    """
    from gantrain.averaging.birth import starting_at
    from gantrain.distributed import from_main, on_main
    from gantrain.run_folder.claim import claim_folder

    claim = on_main(accelerator, lambda: claim_folder(config, given))
    decided = {name: one.start_kimg for name, one in claim.found.config.averagers.items()} if claim else {}
    starts = from_main(accelerator, {name: kimg for name, kimg in decided.items() if kimg != config.averagers[name].start_kimg})
    moved = {name: starting_at(config.averagers[name], round(kimg * 1000)) for name, kimg in starts.items()}
    return dataclasses.replace(config, averagers={**config.averagers, **moved}), claim


def refuse_moved(config: Path, run_dir: str, overrides: Sequence[str]) -> None:
    """Refuse a configuration that lies in a run folder with checkpoints and names another folder, as after a move.

    It would train from the start in that other folder, or resume the run there. With `run_dir` on the command line, the user has chosen.

    Raises:
        UserError: with both remedies.
    """
    from gantrain.run_folder.recognition import holds_checkpoints

    folder = config.parent
    chosen = any(text.partition("=")[0].strip() == "run_dir" for text in overrides)
    if chosen or folder.resolve() == Path(run_dir).expanduser().resolve() or not holds_checkpoints(folder):
        return
    here = folder.resolve() if folder == Path(".") else folder
    raise UserError(
        f"{config}: lies beside the checkpoints of a run, but its run_dir is {run_dir}; add run_dir={here} to resume the run that lies"
        f" here, or run_dir={run_dir} to train in that folder"
    )
