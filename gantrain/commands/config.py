"""`gantrain config`: print what a run would use."""

from __future__ import annotations

import argparse


def call(arguments: argparse.Namespace) -> None:
    from gantrain.config import loading

    print(loading.to_yaml(loading.load(arguments.config, arguments.overrides)), end="")
