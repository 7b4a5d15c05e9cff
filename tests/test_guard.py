"""The guard by itself: what it finds in random histories against its rules stated over, what a rollback counts, how updates are told."""

from __future__ import annotations

import json
import math
import signal
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
from conftest import ROOT
from hypothesis import given, settings, strategies as st

from gantrain.config.sections import Guard
from gantrain.interruption import SIGNALS
from gantrain.training.guard import WATCHED, Beat, Pulse, Trouble, Watch, better

FID, IS, KID = "eval/ema/digits_fid", "eval/ema/digits_is", "eval/live/kid"
ACTIONS = st.sampled_from(["stop", "rollback", "warn"])
many = settings(max_examples=150, deadline=None)


def beat(nimg: int, *names: str, n: int = 1) -> Beat:
    return Beat(nimg - 16, nimg, dict.fromkeys(names, n), None)


# ---- what is not finite ----------------------------------------------------------------------------------------------


def first_of_episode(hit: list[bool], i: int) -> bool:
    """Whether a trouble at i is there for the first time since all was well."""
    return hit[i] and (i == 0 or not hit[i - 1])


@many
@given(st.lists(st.sets(st.sampled_from(WATCHED), max_size=3), max_size=60), ACTIONS, st.booleans())
def test_what_is_not_finite_is_found(history, action, fp16):
    """Every update with such a value; of those that are warned of, the first in a row. fp16's own skips do not count for so long."""
    watch = Watch(Guard(on_nonfinite=action), (), fp16=fp16)
    found = [{name for name in names if not (fp16 and "grad_norm" in name)} for names in history]  # 60 of them in a row: below
    run = 0
    for i, names in enumerate(history):
        run = run + 1 if any("grad_norm" in name for name in names) else 0
        if run >= 32:
            found[i] = set(names)
    for i, names in enumerate(history):
        trouble = watch.beat(beat(16 * i + 16, *names), world=1)
        wanted = first_of_episode([bool(f) for f in found], i) if action == "warn" else bool(found[i])
        assert bool(trouble) == wanted
        if trouble:
            assert (trouble.kind, trouble.nimg, trouble.healthy) == ("nonfinite", 16 * i + 16, 16 * i) and set(
                trouble.evidence["nonfinite"]
            ) == found[i]


@pytest.mark.parametrize("name", ["grad_norm/d", "grad_norm/g"])
def test_fp16_may_skip_31_steps_in_a_row_and_no_more(name):
    watch = Watch(Guard(), (), fp16=True)
    for row in (31, 31, 5):  # one good step between them
        assert not any(watch.beat(beat(16, name), 1) for _ in range(row))
        assert watch.beat(beat(16), 1) is None
    found = [bool(watch.beat(beat(16, name), 1)) for _ in range(34)]
    assert found == [False] * 31 + [True] * 3
    assert not any(Watch(Guard(), (), fp16=True).beat(beat(16, name), 1) for _ in range(31))  # of either player


@pytest.mark.parametrize("name", [name for name in WATCHED if "grad_norm" not in name])
def test_fp16_excuses_gradients_only(name):
    trouble = Watch(Guard(), (), fp16=True).beat(beat(16, name, "grad_norm/d"), 1)
    assert trouble.evidence["nonfinite"] == {name: 1}


def test_what_is_not_finite_is_said_with_where():
    trouble = Watch(Guard(), ()).beat(Beat(2000, 2500, {"loss/d": 1, "grad_norm/g": 3}, None), world=4)
    assert str(trouble) == trouble.words == "loss/d, grad_norm/g not finite in the update to 2.5 kimg on 3 of 4 processes"
    assert trouble.evidence == {"nonfinite": {"loss/d": 1, "grad_norm/g": 3}, "update_nimg": 2500, "processes": 4}
    assert str(Watch(Guard(), ()).beat(beat(500, "loss/g"), world=1)) == "loss/g not finite in the update to 0.5 kimg"
    assert isinstance(trouble, Trouble) and not isinstance(trouble, ValueError)  # no mistake of the user's


# ---- D has won -------------------------------------------------------------------------------------------------------

LOSSES = st.sampled_from([0.0, 0.039, 0.0399999, 0.04, 0.05, 2.0, math.nan, math.inf, -1.0])


@many
@given(st.lists(st.tuples(st.integers(1, 4000), LOSSES), max_size=40), ACTIONS, st.sampled_from([0.5, 3.0, 10.0]))
def test_saturation_is_a_loss_below_the_bound_for_so_long(history, action, kimg):
    """The stretch begins with the images that the first low loss is the mean of; nan is not low."""
    watch = Watch(Guard(on_saturation=action, saturation_kimg=kimg), (), silence=2.0)
    times, low = [0], []
    for i, (images, loss) in enumerate(history):
        times.append(times[-1] + images)
        low.append(loss < 0.04)
        begins = [next((j - k for k in range(j + 1) if not low[j - k]), -1) + 1 for j in range(i + 1)]  # of the stretch that ends with j
        hit = [low[j] and times[j + 1] - times[begins[j]] >= kimg * 1000 for j in range(i + 1)]
        since = times[begins[i]]
        trouble = watch.losses(times[-2], times[-1], loss)
        assert bool(trouble) == (first_of_episode(hit, i) if action == "warn" else hit[i])
        if trouble:
            assert (trouble.kind, trouble.nimg, trouble.healthy) == ("saturation", times[-1], since)
        assert watch.well_until == (since if low[-1] and action == "rollback" else None)


def test_saturation_is_said_with_its_numbers():
    watch = Watch(Guard(), (), silence=2.0)
    assert watch.losses(1000, 10_999, 0.03) is None
    trouble = watch.losses(10_999, 11_000, 0.01)
    assert trouble.words == "loss/d below 0.04 since 1 kimg (now 0.01; an uninformative D has 2): D has won"
    assert trouble.evidence == {"loss/d": 0.01, "bound": 0.04, "since": 1000}


# ---- scores that get worse -------------------------------------------------------------------------------------------

VALUES = {
    FID: st.sampled_from([5.0, 9.9, 10.0, 10.1, 19.9, 20.0, 20.1, 500.0, math.nan, math.inf]),
    IS: st.sampled_from([1.0, 2.4, 2.5, 2.6, 5.0, 9.0, math.nan, -math.inf]),
    KID: st.sampled_from([-0.02, -0.01, 0.0, 0.01, 0.02, 0.021, 0.04, 0.05, math.nan]),
}


@many
@given(st.data(), st.sampled_from(sorted(VALUES)), ACTIONS, st.sampled_from([1, 2, 3]), st.sampled_from([1.5, 2.0]))
def test_worse_is_beyond_the_bound_so_many_times_in_a_row(data, name, action, evaluations, factor):
    """Of every direction, below 0 too; nan is worse than anything, and an evaluation without the score counts for nothing."""
    history = data.draw(st.lists(st.one_of(st.none(), VALUES[name]), max_size=25))
    watch = Watch(Guard(on_worse=action, score=name, factor=factor, evaluations=evaluations), (name,))
    best, row, began, hit = None, 0, None, []
    for i, value in enumerate(history):
        nimg = 1000 * i + 1000
        if value is not None and math.isfinite(value) and (best is None or (value > best[0] if name == IS else value < best[0])):
            best, improves = (value, nimg), True
        else:
            improves = False
        if value is not None and best is not None:
            beyond = value < best[0] / factor if name == IS else value > abs(best[0]) * factor
            if math.isnan(value) or math.isinf(value) or beyond:
                row, began = row + 1, nimg - 1000 if row == 0 else began
            else:
                row, began = 0, None
            hit.append(row >= evaluations)
        improved, trouble = watch.scores(nimg, {} if value is None else {name: value})
        assert improved == ([name] if improves else [])
        said = value is not None and best is not None and (first_of_episode(hit, len(hit) - 1) if action == "warn" else hit[-1])
        assert bool(trouble) == said
        if trouble:
            assert (trouble.kind, trouble.nimg, trouble.healthy) == ("worse", nimg, began)
            assert (trouble.evidence["best"], trouble.evidence["best_nimg"], trouble.evidence["evaluations"]) == (*best, row)
        assert watch.well_until == ((nimg if began is None else began) if action == "rollback" else None)
        assert (best is None and not watch.best) or (watch.best[name].value, watch.best[name].nimg) == best


def test_every_score_named_has_its_best_and_one_alone_is_watched():
    watch = Watch(Guard(score=FID, evaluations=1, on_worse="stop"), (IS, FID, KID))
    assert watch.scores(1000, {FID: 10.0, IS: 2.0, KID: 0.1, "eval/ema/recall": 1.0}) == ([IS, FID, KID], None)
    assert watch.scores(2000, {FID: 20.0, IS: 1.0, KID: 0.05}) == ([KID], None)
    assert watch.scores(3000, {FID: 10.0, IS: 2.0}) == ([], None)  # no better than the best is no better
    improved, trouble = watch.scores(4000, {FID: 20.5, IS: 9.0})
    assert improved == [IS]
    assert str(trouble) == f"{FID} 20.5 is above 20, 1 evaluation in a row; the best was 10 at 1 kimg"
    assert {name: (one.value, one.nimg) for name, one in watch.best.items()} == {FID: (10.0, 1000), IS: (9.0, 4000), KID: (0.05, 2000)}
    high = Watch(Guard(score=IS, evaluations=1, on_worse="stop"), (IS,))
    high.scores(1000, {IS: 8.0})
    assert str(high.scores(2000, {IS: 3.0})[1]) == f"{IS} 3 is below 4, 1 evaluation in a row; the best was 8 at 1 kimg"


def test_no_score_is_watched_unless_one_is_named():
    watch = Watch(Guard(evaluations=1, on_worse="stop"), (FID,))
    assert [watch.scores(nimg, {FID: value})[1] for nimg, value in ((1000, 1.0), (2000, 1e9), (3000, math.nan))] == [None] * 3


@pytest.mark.parametrize(
    "key, higher", [(FID, False), (IS, True), (KID, False), ("eval/ema/precision", True), ("eval/ema/digits_recall", True)]
)
def test_better(key, higher):
    assert (
        better(key, 2.0, 1.0) is higher
        and better(key, 1.0, 2.0) is not higher
        and not better(key, 1.0, 1.0)
        and not better(key, math.nan, 1.0)
    )


@pytest.mark.parametrize(
    "actions", [("warn", "warn"), ("rollback", "warn"), ("warn", "rollback"), ("rollback", "rollback"), ("stop", "stop")]
)
def test_well_until_is_the_earliest_that_a_rollback_may_want(actions):
    watch = Watch(Guard(on_saturation=actions[0], on_worse=actions[1], score=FID), (FID,), silence=2.0)
    watch.scores(1000, {FID: 1.0})
    assert watch.well_until == (1000 if actions[1] == "rollback" else None)  # whatever the next evaluation finds
    watch.losses(2000, 3000, 0.0)
    watch.scores(4000, {FID: 9.0})  # worse since 1000, D strong since 2000
    wanted = [at for at, action in zip((2000, 1000), actions) if action == "rollback"]
    assert watch.well_until == min(wanted, default=None)


# ---- rollbacks -------------------------------------------------------------------------------------------------------


@many
@given(st.integers(1, 4), st.lists(st.tuples(st.integers(1, 3000), st.integers(1, 3000)), min_size=1, max_size=60), st.floats(0.3, 1.0))
def test_rollbacks_end_unless_they_lead_beyond_the_obstacle(most, history, lr_scale):
    """Each rollback is from some images to fewer. Attempts count since the last one whose checkpoint lay beyond all obstacles before
    it, so that a run of L images sees at most `max_rollbacks` between two, and the obstacle rises from one to the next."""
    watch, now, obstacle = Watch(Guard(max_rollbacks=most, lr_scale=lr_scale), ()), 0, -1
    attempts, behind = 0, []
    for further, back in history:
        bad = now + further
        to = max(0, bad - back)
        watch.rolled_back(bad, to)
        if to >= obstacle:
            attempts, obstacle = 1, bad
            behind.append(obstacle)
        else:
            attempts, obstacle = attempts + 1, max(obstacle, bad)
        assert (watch.attempts, watch.obstacle) == (attempts, obstacle)
        now = to
        if watch.attempts > most:
            break
    assert behind == sorted(set(behind)) and watch.rollbacks <= most * len(behind) + 1
    assert watch.skipped == sum(f for f, _ in history[: watch.rollbacks]) - now  # every image was either left out or is part of the run
    assert watch.lr_scale == pytest.approx(lr_scale**watch.rollbacks)


@pytest.mark.parametrize("most", [1, 3])
def test_a_wall_is_tried_so_often_and_then_given_up(most):
    """The same obstacle from ever earlier checkpoints; and creeping a little further each time from the same one."""
    for bads, tos in (([5000] * 9, range(4000, 0, -400)), (range(5000, 9000, 100), [4000] * 40)):
        watch, tries = Watch(Guard(max_rollbacks=most), ()), 0
        for bad, to in zip(bads, tos):
            watch.rolled_back(bad, to)
            if watch.attempts > most:
                break
            tries += 1
        assert tries == most


# ---- saving ----------------------------------------------------------------------------------------------------------

EVENTS = st.lists(
    st.one_of(
        st.tuples(st.just("beat"), st.sets(st.sampled_from(WATCHED), max_size=2)),
        st.tuples(st.just("loss"), LOSSES),
        st.tuples(st.just("score"), VALUES[FID]),
        st.tuples(st.just("back"), st.integers(1, 900)),
    ),
    max_size=30,
)


def tell(watch: Watch, i: int, kind: str, what) -> object:
    nimg = 1000 * i + 1000
    if kind == "beat":
        found = watch.beat(beat(nimg, *what), 1)
    elif kind == "loss":
        found = watch.losses(nimg - 1000, nimg, what)
    elif kind == "score":
        improved, found = watch.scores(nimg, {FID: what})
        return improved, found and found.words
    else:
        found = watch.rolled_back(nimg, nimg - what)
    return found and (found.words, repr(found.evidence))  # nan is not equal to itself


def fresh(action: str, fp16: bool) -> Watch:
    guard = Guard(
        on_nonfinite=action, on_saturation=action, on_worse=action, score=FID, evaluations=2, saturation_kimg=2.5, lr_scale=0.5, growth=3
    )
    return Watch(guard, (FID,), fp16=fp16, silence=2.0)


@many
@given(EVENTS, st.integers(0, 30), ACTIONS, st.booleans())
def test_a_watch_that_was_saved_goes_on_as_if_it_had_not_been(events, at, action, fp16):
    one, two = fresh(action, fp16), fresh(action, fp16)
    for i, (kind, what) in enumerate(events):
        if i == at:
            saved = json.dumps(two.state(), allow_nan=False)
            two = fresh(action, fp16)
            two.load(json.loads(saved))
            assert two.state() == one.state() and two.best == one.best
        assert tell(one, i, kind, what) == tell(two, i, kind, what)
    assert one.state() == two.state() and one.well_until == two.well_until


def a_history(watch: Watch) -> dict:
    """Something in every field; the state half-way."""
    for i, event in enumerate([("score", 10.0), ("loss", 0.0), ("score", 500.0), ("beat", {"grad_norm/d"}), ("back", 500)]):
        tell(watch, i, *event)
    half = json.loads(json.dumps(watch.state()))
    for i, event in enumerate(
        [("score", 5.0), ("loss", 2.0), ("beat", {"grad_norm/d", "loss/d"}), ("back", 4400), *[("score", 400.0)] * 2]
    ):
        tell(watch, i + 5, *event)
    assert all(half[name] != value for name, value in watch.state().items())
    return half


COUNTS = {"lr_scale": 0.25, "growth": 9, "best": [[FID, 5.0, 6000]], "skipped": 4900, "rollbacks": 2, "attempts": 2, "obstacle": 9000}


def test_going_back_restores_what_was_measured_and_keeps_what_was_counted():
    watch = fresh("warn", True)
    half = a_history(watch)
    watch.go_back(half)
    assert watch.state() == {**half, **COUNTS}


def test_counting_takes_over_what_was_counted_only():
    watch = fresh("warn", True)
    half = a_history(watch)
    before = watch.state()
    assert {name: before[name] for name in COUNTS} == COUNTS
    watch.count(half)
    assert watch.state() == {**before, **{name: half[name] for name in COUNTS}}


# ---- how updates are told --------------------------------------------------------------------------------------------


def pulse() -> Pulse:
    return Pulse(SimpleNamespace(num_processes=1, device=torch.device("cpu")))


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("name", WATCHED)
def test_a_beat_names_what_is_not_finite(name, value):
    """Values that an update does not have, the penalty's say, are well."""
    one = pulse()
    one.send(
        0, 16, {"loss/d": torch.tensor(1.0, requires_grad=True), "logits/real": torch.tensor(math.nan), name: torch.tensor(value)}, None
    )
    assert one.receive(all=True) == [Beat(0, 16, {name: 1}, None)]


@pytest.mark.parametrize("asked", [None, *SIGNALS])
def test_a_beat_names_the_signal(asked):
    one = pulse()
    one.send(0, 16, {}, asked)
    assert one.receive(all=True) == [Beat(0, 16, {}, asked)]


def test_beats_come_an_update_later_in_order_each_once():
    one, heard = pulse(), []
    for i in range(5):
        one.send(i, i + 1, {"loss/d": torch.tensor(math.nan if i % 2 else 0.0)}, None)
        beats = one.receive()
        assert len(beats) == (i > 0)
        heard += beats
    heard += one.receive(all=True)
    assert heard == [Beat(i, i + 1, {"loss/d": 1} if i % 2 else {}, None) for i in range(5)] and one.receive(all=True) == []


PROCESSES = """
import json, signal, sys, torch
from types import SimpleNamespace
from gantrain.training.guard import Pulse
rank = int(sys.argv[1])
torch.distributed.init_process_group("gloo", init_method="file://" + sys.argv[2], rank=rank, world_size=2)
pulse = Pulse(SimpleNamespace(num_processes=2, device=torch.device("cpu")))
bad, good = torch.tensor(float("nan")), torch.tensor(1.0)
pulse.send(0, 16, {"loss/d": bad, "loss/g": bad if rank else good, "weights/d": good}, signal.SIGUSR1 if rank else None)
pulse.send(16, 32, {"loss/d": good}, signal.SIGINT if rank else signal.SIGTERM)
pulse.send(32, 48, {"grad_norm/g": good if rank else bad}, None)
print(json.dumps([[b.before, b.nimg, b.nonfinite, b.asked] for b in pulse.receive(all=True)]))
torch.distributed.destroy_process_group()
"""


def test_all_processes_hear_what_any_has_found(tmp_path):
    """Two real ones: in how many it was, whoever was asked to stop, and the same on both."""
    command = [sys.executable, "-c", PROCESSES]
    both = [subprocess.Popen([*command, str(rank), str(tmp_path / "meet")], stdout=subprocess.PIPE, text=True, cwd=ROOT) for rank in (0, 1)]
    said = [json.loads(one.communicate(timeout=120)[0]) for one in both]
    beats = [[0, 16, {"loss/d": 2, "loss/g": 1}, signal.SIGUSR1], [16, 32, {}, signal.SIGTERM], [32, 48, {"grad_norm/g": 1}, None]]
    assert said == [beats, beats]
