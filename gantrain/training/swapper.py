"""Swaps within a run: when one is due, what it does to both players and to the batch, and how the scores change."""

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
    """Replaces the live weights by an average, and keeps the live scores before, at and after the swap.

    Its decisions are the same on every process, because the weights and averages that it reads are.

    Args:
        settings: the `swap` section.
        players: "g" and "d".
        banks: the averages of each.
        batching: grows at a swap.
        score_live: returns the live weights' scores at this moment (on the main process only).
        protocol: returns the protocol of those scores.
        settle: recomputes G's BatchNorm statistics for its weights.
        watch: called with False before the weights are replaced, and with True afterwards.
        agree: returns the main process's value on every process.
        tracker: of the run.

    Attributes:
        lr_scale: the factor for both learning rates of all swaps so far.
        owed: a swap was due at the end of the run; it takes place if the run is extended.
        records: of every swap: `nimg`, the `batch` before and after it, and the live `scores` by moment.
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
        self.records: list[dict[str, Any]] = []

    @property
    def source(self) -> str:
        """The average that replaces the live weights."""
        assert self.settings.source is not None, "the run has no swaps"
        return self.settings.source

    def swaps_now(self, before: int, nimg: int, more: bool) -> bool:
        """Whether `maintain` will swap at this moment; its arguments are the same."""
        return self.settings.source is not None and more and nimg > 0 and (self.owed or self.settings.due(before, nimg))

    def maintain(self, before: int, nimg: int, done: bool, more: bool) -> None:
        """Score the live weights `after_kimg` after the last swap, and swap, if either is due. Every process must call it.

        Args:
            before: images seen before the last update.
            nimg: images seen now.
            done: the run has just reached its end.
            more: training continues from here. A swap that is due at the end takes place only if the run is extended.
        """
        if self.settings.source is None:
            return
        last = self.records[-1] if self.records else None
        if last:
            settled = last["nimg"] + clock.images(self.settings.after_kimg)
            if more and last.get("after_nimg", settled) < settled:  # it was scored too early, at an earlier end of the run
                last["scores"].pop("after", None)
                del last["after_nimg"]
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
        """Swap now, and score the live weights before and after.

        Args:
            nimg: images seen.
            before: the live weights' scores at this moment, if they are known.
        """
        s, source = self.settings, self.source
        if not all(bank[source].started for bank in self.banks.values()):
            self.tracker.say(f"swap: {source} has not started at {nimg / 1000:g} kimg; live weights unchanged")
            return
        record: dict[str, Any] = {"nimg": nimg, "batch": [self.batching.batch_size, self.batching.batch_size], "scores": {}}
        self._keep_score(record, "before", nimg, scores=before)
        growth, reason = self.agree(self._growth(nimg))  # with different batches, processes would hang
        self.watch(False)
        for key, bank in self.banks.items():
            bank.write_back(source, s.alpha)
            reset_optimizer(self.players[key], s.optimizer)
        self.settle()
        self.lr_scale *= s.lr_scale
        was = self.batching.batch_size
        self.batching.weights_jumped()  # first, so that the noise of the old weights does not make it grow
        grown = self.batching.ask(nimg, growth)
        self.watch(True)
        record["batch"] = [was, self.batching.batch_size]
        settings: dict[str, Any] = {
            "source": source,
            "networks": s.networks,
            "alpha": s.alpha,
            "optimizer": s.optimizer,
            "lr_scale": s.lr_scale,
            "lr_scale_so_far": self.lr_scale,
        }
        line = self._keep_score(
            record,
            "at",
            nimg,
            **settings,
            growth=growth,
            grown=self.batching.batch_size / was,
            live_statistics="recalibrated",  # by `settle`, whatever BatchNorm policy evaluations use
            **reason,
        )
        self.records.append(record)
        if grown:
            self.tracker.tell(nimg, "growth", **grown)
        self.tracker.say(on_console(line, dict(record["scores"]["before"])))

    def _growth(self, nimg: int) -> tuple[float, dict[str, Any]]:
        """(factor for the batch, the values that it was computed from)."""
        if self.settings.growth != AUTO:
            return float(self.settings.growth), {}
        k, read_off = identified_rate(self.banks, nimg)
        if k is None:
            ramping = len(set(read_off["half_lives_kimg"].values())) == 1
            why = (
                "the two EMAs are still in the same ramp-up"
                if ramping
                else "these distances do not fit an orbit; the weights are still drifting"
            )
            return 1.0, {**read_off, "undecidable": f"growth undecidable: {why}"}
        holds = growth_that_holds(self.banks["g"], self.source, k, nimg, self.settings.alpha)
        # Adam at a fixed rate: V ~ rate / sqrt(batch), so V falls by g* when the batch grows by (g* x the rate's factor)^2; without
        # Adam's normalisation V ~ rate / batch.
        power = 2 if self.players["g"].rule.normalizes else 1
        return max(1.0, (holds * self.settings.lr_scale) ** power), {**read_off, "k_per_kimg": k * 1000, "g_star": holds}

    def _keep_score(
        self, record: dict[str, Any], moment: str, nimg: int, scores: MetricValues | None = None, **more: Any
    ) -> dict[str, Any]:  # fmt: skip
        """Write an event with the live scores of a moment of a swap, and store them in the swap's record.

        Args:
            scores: None computes them now.
            more: further fields of the event.

        Returns:
            The event; only the main process has its scores.
        """
        scores = self.score_live() if scores is None else scores
        record["scores"][moment] = list(scores.items())
        return self.tracker.event(
            nimg, "swap", moment=moment, swap_nimg=record["nimg"], live=scores, **self.batching.numbers(), **more, **self.protocol()
        )

    def report(self) -> str:
        """A table of the live weights' scores, with rows for before, at and after every swap."""
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
        """Restore what `state` returned."""
        self.lr_scale, self.owed, self.records = state["lr_scale"], state["owed"], state["records"]
