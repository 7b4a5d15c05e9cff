"""`gantrain train`: train a run, or resume it."""

from __future__ import annotations

import argparse
import dataclasses
import shlex
from collections.abc import Collection, Sequence
from pathlib import Path

from accelerate import Accelerator
from accelerate.utils import gather_object

from gantrain import other_processes, plugin_errors
from gantrain.averaging.birth import starting_at
from gantrain.commands.arguments import overrides_of
from gantrain.config import loading
from gantrain.config.config import Config
from gantrain.config.plain import leaves, to_dict
from gantrain.config.schema import may_differ
from gantrain.distributed import finish, from_main, make_accelerator, on_main
from gantrain.errors import UserError, counted
from gantrain.home import expand_user
from gantrain.interruption import Interruption, exit_status
from gantrain.launch_environment import process_rank
from gantrain.run_folder.claim import Claim, claim_folder
from gantrain.run_folder.config_damage import require_whole
from gantrain.run_folder.layout import CONFIG_FILE
from gantrain.run_folder.recognition import holds_checkpoints
from gantrain.shipped import explain_choice, find_config
from gantrain.training.trainer import Trainer

PATHS = ("run_dir", "eval.reference", "eval.features.weights")  # of files that may lie elsewhere on another machine


def call(arguments: argparse.Namespace) -> int:
    """Train the configured run to its end; the exit status."""
    with Interruption() as interruption:
        require_whole_beside(find_config(arguments.config))
        config = loading.load(arguments.config, overrides_of(arguments))
        given = loading.set_keys(arguments.config, overrides_of(arguments))
        refuse_moved(find_config(arguments.config), config.run_dir, arguments.overrides)
        if (choice := explain_choice(arguments.config)) and process_rank() == 0:
            print(choice, flush=True)
        accelerator = make_accelerator(config.mixed_precision)
        require_one_config(config, accelerator)
        config, claim = take_folder(config, given, accelerator)
        try:
            trainer = Trainer(config, accelerator, interruption, arguments.changed_data, claim)
            try:
                trainer.train()
            except BaseException as error:
                plugin_errors.State.training = interruption.patient
                other_processes.stand_down()
                trainer.close(exit_code=1, wait=not isinstance(error, KeyboardInterrupt))
                raise
        finally:
            if claim is not None:
                claim.release()
        stopping = trainer.stopping
        del trainer  # or it would hold the process group
        finish(accelerator)
    return exit_status(stopping) if stopping else 0


def require_one_config(config: Config, accelerator: Accelerator) -> None:
    """Compare the configurations of all processes: one that is started by hand may read another file, or a stale copy of it.

    Raises:
        UserError: they differ; on every process, with a key and both values.
    """
    if accelerator.num_processes == 1:
        return
    first, *others = gather_object([comparable(config)])
    for rank, other in enumerate(others, 1):
        differing = [key for key in {**first, **other} if first.get(key) != other.get(key)]
        if differing:
            key = differing[0]
            more = f", and {counted(len(differing) - 1, 'other key')}" if differing[1:] else ""
            raise UserError(
                f"{key}: process 0 has {first.get(key, 'no such key')}, and process {rank} has {other.get(key, 'no such key')}{more};"
                " start all processes with the same configuration"
            )


def comparable(config: Config) -> dict[str, str]:
    """What must be equal on all processes, by full key. Paths may differ, since machines do; so may how images are kept and decoded.

    Whether there is a reference may not: a process that opens one would wait forever for one that does not.
    """
    found = {k: repr(v) for k, v in leaves(to_dict(config)) if k not in PATHS and not (k.startswith("data.") and may_differ(k))}
    return {**found, "eval.reference": "null" if config.eval.reference is None else "a path"}


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
    claim = on_main(accelerator, lambda: claim_folder(config, given))
    decided = {name: one.start_kimg for name, one in claim.found.config.averagers.items()} if claim else {}
    starts = from_main(accelerator, {name: kimg for name, kimg in decided.items() if kimg != config.averagers[name].start_kimg})
    moved = {name: starting_at(config.averagers[name], round(kimg * 1000)) for name, kimg in starts.items()}
    return dataclasses.replace(config, averagers={**config.averagers, **moved}), claim


def require_whole_beside(config: Path) -> None:
    """Refuse a damaged configuration in a run folder: read as any file, an empty one would be that of a run with defaults.

    Raises:
        UserError: says what is wrong with it.
    """
    if config.name == CONFIG_FILE and holds_checkpoints(config.parent):
        require_whole(config)


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
    parts, there = Path(run_dir).parts, folder.resolve()
    if not Path(run_dir).is_absolute() and parts and there.parts[-len(parts) :] == parts:  # the same run, seen from another folder
        start = there.parents[len(parts) - 1]
        raise UserError(
            f"{config}: its run_dir is {run_dir}, a path that starts at {start}, where the run was begun, and this is {Path.cwd()}; run"
            f" the command there: cd {shlex.quote(str(start))}, then gantrain train {shlex.quote(str(Path(run_dir) / config.name))};"
            f" or add run_dir={here}"
        )
    raise UserError(
        f"{config}: lies beside the checkpoints of a run, but its run_dir is {run_dir}; add run_dir={here} to resume the run that lies"
        f" here, or run_dir={run_dir} to train in that folder"
    )
