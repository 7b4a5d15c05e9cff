"""`gantrain train`: train a run, or resume it."""

from __future__ import annotations

import argparse
import os

from gantrain.commands.arguments import overrides_of
from gantrain.interruption import Interruption, exit_status
from gantrain.shipped import explain_choice


def call(arguments: argparse.Namespace) -> int:
    """Train the configured run to its end; the exit status."""
    with Interruption() as interruption:  # before torch is imported: an early signal gets its exit status too
        from gantrain.config import loading

        config = loading.load(arguments.config, overrides_of(arguments))
        if (choice := explain_choice(arguments.config)) and os.environ.get("RANK", "0") == "0":
            print(choice, flush=True)
        from gantrain.distributed import finish
        from gantrain.training.trainer import Trainer

        trainer = Trainer(config, interruption=interruption)
        try:
            trainer.train()
        except BaseException as error:
            trainer.close(exit_code=1, wait=not isinstance(error, KeyboardInterrupt))
            raise
        accelerator, stopping = trainer.accelerator, trainer.stopping
        del trainer  # or it would hold the process group
        finish(accelerator)
    return exit_status(stopping) if stopping else 0
