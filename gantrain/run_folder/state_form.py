"""The form of `state.json`: types and ranges of everything that readers take from it.

A checksum does not prove that a state is one which gantrain wrote: its manifest may be damaged, forged, or of a program of the user's
own. Readers index states freely, so the form is checked once, where a state is read.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, NoReturn

Form = Callable[[Any, str, bool], str | None]  # (value, its key, whether required keys must be there) -> the key that is wrong, or None
LARGEST_WHOLE = 2**53  # of whole numbers


class State(dict[str, Any]):
    """The JSON values of a checkpoint. A key that it lacks raises what `refuse` raises, at every level.

    Args:
        values: the content.
        refuse: receives the key.
    """

    def __init__(self, values: Mapping[str, Any], refuse: Callable[[str], NoReturn]):
        super().__init__(values)
        self._refuse = refuse

    def __missing__(self, key: str) -> NoReturn:
        self._refuse(key)

    def __reduce__(self) -> tuple[type[dict], tuple[dict[str, Any]]]:
        return dict, (dict(self),)  # other processes and copies get the values


def whole(least: int) -> Form:
    """A whole number of at least `least`."""
    return lambda value, key, _: None if type(value) is int and least <= value <= LARGEST_WHOLE else key


def text(value: Any, key: str, _: bool) -> str | None:
    """A string."""
    return None if isinstance(value, str) else key


def flag(value: Any, key: str, _: bool) -> str | None:
    """True or false."""
    return None if isinstance(value, bool) else key


def number(value: Any, key: str, _: bool) -> str | None:
    """Any number, nan and infinities included, as numbers or as the words for them."""
    return None if (type(value) in (int, float) and is_float(value)) or value in ("nan", "inf", "-inf") else key


def real(value: Any, key: str, _: bool) -> str | None:
    """Any number, nan and infinities included, but not in words."""
    return None if type(value) in (int, float) and is_float(value) else key


def finite(value: Any, key: str, _: bool) -> str | None:
    """A finite number."""
    return None if type(value) in (int, float) and is_float(value) and math.isfinite(value) else key


def positive(value: Any, key: str, _: bool) -> str | None:
    """A finite number above 0."""
    return finite(value, key, _) or (None if value > 0 else key)


def anything(value: Any, key: str, _: bool) -> str | None:
    """A value that is only shown or passed on."""
    return None


def is_float(value: float) -> bool:
    """Whether a number has a float: JSON's whole numbers may have any number of digits."""
    try:
        return float(value) == value or value != value or isinstance(value, int)
    except OverflowError:
        return False


def maybe(form: Form) -> Form:
    """That, or null."""
    return lambda value, key, required: None if value is None else form(value, key, required)


def list_of(form: Form) -> Form:
    """A list of any length."""

    def check(value: Any, key: str, required: bool) -> str | None:
        return first(form(one, key, required) for one in value) if isinstance(value, list) else key

    return check


def row(*forms: Form) -> Form:
    """A list of exactly these."""

    def check(value: Any, key: str, required: bool) -> str | None:
        if not isinstance(value, list) or len(value) != len(forms):
            return key
        return first(form(one, key, required) for form, one in zip(forms, value))

    return check


def by_name(form: Form) -> Form:
    """An object of any keys."""

    def check(value: Any, key: str, required: bool) -> str | None:
        return first(form(one, f"{key}.{name}", required) for name, one in value.items()) if isinstance(value, dict) else key

    return check


def fields(optional: Mapping[str, Form] | None = None, **forms: Form) -> Form:
    """An object of these keys; further keys are left alone."""
    may = dict(optional or {})

    def check(value: Any, key: str, required: bool) -> str | None:
        if not isinstance(value, dict):
            return key
        inner = {name: f"{key}.{name}" if key else name for name in (*forms, *may)}
        if required and (missing := next((inner[name] for name in forms if name not in value), None)):
            return missing
        return first(form(value[name], inner[name], required) for name, form in {**forms, **may}.items() if name in value)

    return check


def first(found: Any) -> str | None:
    """The first key that is wrong."""
    return next((key for key in found if key is not None), None)


def looks(value: Any, key: str, required: bool) -> str | None:
    """Runs of looks as `averaging.looks.Looks` stores them: [first position, distance, number, updates of the network per look]."""
    if key_wrong := list_of(row(whole(0), whole(0), whole(1), whole(0)))(value, key, required):
        return key_wrong
    return None if all(distance > 0 or count == 1 for _, distance, count, _ in value) else key


def scaler(value: Any, key: str, required: bool) -> str | None:
    """The state of torch's GradScaler; empty without fp16."""
    if value == {}:
        return None
    names = ("scale", "growth_factor", "backoff_factor", "growth_interval", "_growth_tracker")
    return fields(None, **dict.fromkeys(names, finite))(value, key, required)


SCORES = list_of(row(text, number))  # a list because JSON in a checkpoint is sorted by key
AVERAGES = by_name(fields(first_nimg=whole(0), previous_nimg=whole(0), nimg=whole(0), num_averaged=whole(0), unseen=whole(0), looks=looks))
ESTIMATE = fields(trace=real, squared=real, low=maybe(real), high=maybe(real), measurements=whole(0))
NOISE = fields(
    wanted=list_of(text),
    windows=by_name(list_of(row(list_of(real), list_of(real)))),
    micro_batch=by_name(whole(0)),
    fresh=by_name(whole(-LARGEST_WHOLE)),
    checks=list_of(by_name(ESTIMATE)),
)
BATCHING = fields(
    {"noise": maybe(NOISE)}, batch_size=whole(1), micro_batch=whole(1), first_micro_batch=whole(1), proposal=real, last_change=whole(-1)
)
COUNTED: dict[str, Any] = {"lr_scale": positive, "growth": positive, "skipped": whole(0), "rollbacks": whole(0), "attempts": whole(0),
           "obstacle": whole(-1)}  # fmt: skip
MEASURED: dict[str, Any] = {"saturated_since": maybe(whole(-1)), "scored_at": maybe(whole(-1)), "worse_since": maybe(whole(-1)),
                            "worse": whole(0), "skips": whole(0)}  # fmt: skip
GUARD = fields(best=list_of(row(text, real, whole(0))), warned=list_of(text), **COUNTED, **MEASURED)
SWAPS = fields(
    lr_scale=positive,
    owed=flag,
    records=list_of(fields({"after_nimg": whole(0)}, nimg=whole(0), batch=row(whole(1), whole(1)), scores=by_name(SCORES))),
)
ORBIT = fields(bytes=whole(0), nimg=whole(-1), latest=SCORES)
SHAPE = row(whole(1), whole(1), whole(0))  # resolution, channels, classes
CHOSEN = fields(
    average=text, nimg=whole(0), kimg=finite, metric=text, scores=by_name(number), scored_at_kimg=finite, protocol=by_name(anything)
)

# What every checkpoint of a training has.
OF_TRAINING: dict[str, Form] = {
    "wandb_id": text, "shape": SHAPE, "averages": AVERAGES, "averages_d": AVERAGES, "scalers": fields(g=scaler, d=scaler),
    "previous_nimg": whole(-1), "updates": whole(0), "batching": BATCHING, "guard": GUARD, "swaps": SWAPS,
    "scores": list_of(row(text, SCORES)), "scored": whole(0), "scored_at": whole(-1), "stats": SCORES, "stats_count": whole(0),
    "logged_at": whole(-1), "data_fingerprint": text, "data_listing": maybe(text),
}  # fmt: skip
# What later versions have, and what snapshots of averages, rebuilt averages and exported generators have.
OF_SOME: dict[str, Form] = {
    "gantrain": text, "metrics_bytes": whole(0), "orbit": ORBIT, "scores_of": whole(-1), "scoring": maybe(whole(0)),
    "collapsed": by_name(text), "data_content": maybe(text), "data_parts": maybe(list_of(maybe(text))), "class_names": maybe(list_of(text)),
    "class_counts": maybe(list_of(whole(0))), "data_left_out": list_of(whole(0)),
    "config": by_name(anything), "stats_counts": by_name(whole(1)),
    "terms": fields({"penalties": by_name(by_name(number)), "augment": by_name(number)}),
    "gammas": by_name(positive), "sigma_rel": positive, "profile_error": number, "coefficients": by_name(finite), "chosen": CHOSEN,
}  # fmt: skip
ROLLBACK = fields(to=whole(0), guard=GUARD, batching=BATCHING, metrics_bytes=whole(0))


def find_fault(state: Any, of_training: bool) -> str | None:
    """The first key of a state whose value is not one that gantrain writes there; None if there is none.

    Args:
        state: as it was read.
        of_training: it is that of a checkpoint to resume from, so all of its keys must be there.
    """
    if of_training:
        return fields(OF_SOME, **OF_TRAINING)(state, "", True)
    return fields({**OF_TRAINING, **OF_SOME})(state, "", False)
