"""Swaps within a run: when one is due, what it does to both players and to the batch, and what became of the scores."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from gantrain import clock
from gantrain.averaging import AverageBank
from gantrain.averaging.swap_growth import growth_that_holds, identified_rate
from gantrain.batching import BatchController
from gantrain.config.sections import AUTO, Swap
from gantrain.metrics import SPREADS
from gantrain.reporting.event_words import on_console
from gantrain.reporting.tracker import Tracker
from gantrain.text_table import align, join_columns
from gantrain.training.players import Player, reset_optimizer

MetricValues = dict[str, float]
MOMENTS = ("before", "at", "after")


class Swapper:
    """Puts an average in place of the live weights, and keeps the live score before, at and after.

    Everything it decides is the same on every process: it reads weights and averages that are.

    Args:
        settings: the `swap` section.
        players: "g" and "d".
        banks: the averages of each.
        batching: grows at a swap.
        score_live: the live weights' scores at this moment (empty but on the main process).
        protocol: what those scores must be quoted with.
        settle: brings G's BatchNorm statistics to its weights.
        watch: called before the weights are replaced, and with True after.
        agree: the main process's value of something, on every process.
        tracker: of the run.
    """

    def __init__(
        self,
        settings: Swap,
        players: Mapping[str, Player],
        banks: Mapping[str, AverageBank],
        batching: BatchController,
        score_live: Callable[[], MetricValues],
        protocol: Callable[[], dict[str, Any]],
        settle: Callable[[], None],
        watch: Callable[[bool], None],
        agree: Callable[[Any], Any],
        tracker: Tracker,
    ):
        self.settings, self.batching, self.tracker = settings, batching, tracker
        self.players = {key: players[key] for key in settings.networks}
        self.banks = {key: banks[key] for key in settings.networks} if settings.source else {}
        self.score_live, self.protocol, self.settle, self.watch, self.agree = score_live, protocol, settle, watch, agree
        self.lr_scale = 1.0
        self.owed = False
        self.records: list[dict[str, Any]] = []  # of every swap: nimg, batch before and after it, scores by moment

    def swaps_now(self, before: int, nimg: int, more: bool) -> bool:
        """Whether `maintain` at this moment will swap."""
        return self.settings.source is not None and more and nimg > 0 and (self.owed or self.settings.due(before, nimg))

    def maintain(self, before: int, nimg: int, done: bool, more: bool) -> None:
        """Score what an earlier swap has come to, and swap, where the clock has passed the time for it.

        Args:
            before: images seen before the last update.
            nimg: images seen now.
            done: this is the end of the run.
            more: training goes on from here. A swap that falls on the end is owed to a run that is made longer.
        """
        if self.settings.source is None:
            return
        last = self.records[-1] if self.records else None
        if last:
            settled = last["nimg"] + clock.images(self.settings.after_kimg)
            if more and last.get("after_nimg", settled) < settled:  # was scored at an end that is none any more
                del last["scores"]["after"], last["after_nimg"]
        self.owed = nimg > 0 and (self.owed or self.settings.due(before, nimg))
        swaps = self.owed and more
        after = None
        if last and "after" not in last["scores"] and (done or before < settled <= nimg or swaps):
            last["after_nimg"] = nimg
            after = self._keep_score(last, "after", nimg, since_swap=nimg - last["nimg"])["live"]
        if swaps:
            self.owed = False
            self.swap(nimg, after)

    def swap(self, nimg: int, before: MetricValues | None = None) -> None:
        """Swap now, between two scores of the live weights.

        Args:
            nimg: images seen.
            before: the live weights' scores at this moment, where they were just taken.
        """
        s = self.settings
        waiting = [name for name, bank in self.banks.items() if not bank[s.source].started]
        if waiting:
            self.tracker.say(f"swap: {s.source} has not begun at {nimg / 1000:g} kimg; the live weights stay")
            return
        record: dict[str, Any] = {"nimg": nimg, "batch": [self.batching.batch_size, self.batching.batch_size], "scores": {}}
        self._keep_score(record, "before", nimg, scores=before)
        growth, reason = self.agree(self._growth(nimg))  # a batch that differed between processes would hang them
        self.watch(False)
        for key, bank in self.banks.items():
            bank.write_back(s.source, s.alpha)
            reset_optimizer(self.players[key].optimizer, s.optimizer)
        self.settle()
        self.lr_scale *= s.lr_scale
        was = self.batching.batch_size
        self.batching.weights_jumped()  # first: no growth by the noise of weights that are gone
        grown = self.batching.ask(nimg, growth)
        self.watch(True)
        record["batch"] = [was, self.batching.batch_size]
        settings = {
            "source": s.source,
            "networks": s.networks,
            "alpha": s.alpha,
            "optimizer": s.optimizer,
            "lr_scale": s.lr_scale,
            "lr_scale_so_far": self.lr_scale,
        }
        # Whatever the policy of BatchNorm is, the live statistics were just measured anew.
        line = self._keep_score(
            record,
            "at",
            nimg,
            **settings,
            growth=growth,
            grown=self.batching.batch_size / was,
            live_statistics="recalibrated",
            **reason,
        )
        self.records.append(record)
        if grown:
            self.tracker.tell(nimg, "growth", **grown)
        self.tracker.say(on_console(line, dict(record["scores"]["before"])))

    def _growth(self, nimg: int) -> tuple[float, dict[str, Any]]:
        """(factor for the batch, what it was read off)."""
        if self.settings.growth != AUTO:
            return float(self.settings.growth), {}
        k, read_off = identified_rate(self.banks, nimg)
        if k is None:
            ramping = len(set(read_off["half_lives_kimg"].values())) == 1
            why = "the two EMAs still ramp up alike" if ramping else "no orbit has these distances to its averages, the weights still drift"
            return 1.0, {**read_off, "undecidable": f"growth undecidable: {why}"}
        holds = growth_that_holds(self.banks["g"], self.settings.source, k, nimg, self.settings.alpha)
        # Adam at a fixed rate: V ~ rate / sqrt(batch), so V falls by g* when the batch grows by (g* x the rate's factor)^2.
        return max(1.0, (holds * self.settings.lr_scale) ** 2), {**read_off, "k_per_kimg": k * 1000, "g_star": holds}

    def _keep_score(
        self, record: dict[str, Any], moment: str, nimg: int, scores: MetricValues | None = None, **more: Any
    ) -> dict[str, Any]:  # fmt: skip
        """The event with the live score, taken now unless given; on every process the record knows that it was taken."""
        scores = self.score_live() if scores is None else scores
        record["scores"][moment] = list(scores.items())
        return self.tracker.event(
            nimg, "swap", moment=moment, swap_nimg=record["nimg"], live=scores, **self.batching.numbers(), **more, **self.protocol()
        )

    def report(self) -> str:
        """A table: three rows a swap, the live weights' scores before, at and after it."""
        taken = [m for record in self.records for scores in record["scores"].values() for m in dict(scores)]
        metrics = [m for m in dict.fromkeys(taken) if not m.endswith(SPREADS)]  # eval.metrics may change at a resume
        rows = [["swap at kimg", "batch", "live", *metrics]]
        for record in self.records:
            head = [f"{record['nimg'] / 1000:.6g}", "{} -> {}".format(*record["batch"])]
            for moment in [m for m in MOMENTS if m in record["scores"]]:
                scores = dict(record["scores"][moment])
                rows.append([*head, moment, *(f"{scores.get(m, float('nan')):.4f}" for m in metrics)])
                head = ["", ""]
        at, batch, live, *values = zip(*rows)
        columns = [align(at, right=True), align(batch, right=True, least=14), align(live, least=6)]
        return join_columns([*columns, *(align(column, right=True, least=9) for column in values)])

    def state(self) -> dict[str, Any]:
        """What `load` needs, as JSON values."""
        return {"lr_scale": self.lr_scale, "owed": self.owed, "records": self.records}

    def load(self, state: dict[str, Any]) -> None:
        self.lr_scale, self.owed, self.records = state["lr_scale"], state["owed"], state["records"]
