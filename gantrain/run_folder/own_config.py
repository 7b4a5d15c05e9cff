"""The configuration in a run folder: written durably, and refused if it is not whole."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import yaml

from gantrain.atomic_file import write_atomically
from gantrain.config import loading
from gantrain.config.config import Config
from gantrain.errors import UserError, in_words
from gantrain.plain_yaml import load_plain
from gantrain.run_folder.config_damage import require_whole
from gantrain.run_folder.earlier import load_as_begun
from gantrain.run_folder.layout import CONFIG_FILE
from gantrain.strict_yaml import LARGEST as MOST_BYTES, MOST_VALUES


def write_config(config: Config, run_dir: Path) -> None:
    """Create the run folder and write the resolved configuration into it, such that no power failure leaves half of it.

    Raises:
        UserError: see `require_readable`.
    """
    require_readable(config)
    run_dir.mkdir(parents=True, exist_ok=True)
    write_atomically(run_dir / CONFIG_FILE, loading.to_yaml(config), durable=True, only_writer=True)


def require_readable(config: Config) -> None:
    """Refuse a configuration that is larger than what is read back: the defaults of plug-ins and overrides may be long lists.

    Raises:
        UserError: with the bounds.
    """
    text = loading.to_yaml(config)
    try:
        if len(text.encode()) > MOST_BYTES:
            raise ValueError
        load_plain(text)
    except (yaml.YAMLError, ValueError):
        raise UserError(
            f"configuration: with all defaults written out, as in a run folder, it has more than {MOST_VALUES:,} values or"
            f" {in_words(MOST_BYTES)}; keep long tables in a file that the plug-in reads"
        ) from None


def load_config(run_dir: Path, overrides: Iterable[str] = ()) -> Config:
    """The configuration of a run, with overrides.

    Raises:
        UserError: the file is damaged, with a remedy; or see `gantrain.config.loading.load`.
    """
    require_whole_config(run_dir)
    return load_as_begun(run_dir / CONFIG_FILE, overrides)


def require_whole_config(run_dir: Path) -> None:
    """Refuse a run's configuration of which a part is missing.

    Raises:
        UserError: names the file, the damage and the remedy.
    """
    require_whole(run_dir / CONFIG_FILE)
