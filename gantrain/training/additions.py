"""Reports averages that were added to a run that exists."""

from __future__ import annotations

from gantrain.averaging import AVERAGERS
from gantrain.config import loading
from gantrain.config.plugins import name_of
from gantrain.training.context import Context
from gantrain.training.players import Players
from gantrain.training.run_state import RunState


def report_added(context: Context, run: RunState, players: Players) -> None:
    """Record and print each average that the checkpoint just loaded does not have, and that begins here."""
    for name in players.added:
        averager = players.bank[name].averager  # whose start is not before this moment
        settings = {"name": name_of(AVERAGERS, averager), **loading.to_dict(averager)}
        context.tracker.tell(run.nimg, "average_added", average=name, settings=settings)
