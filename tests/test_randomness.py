"""Numbers by position, images between bytes and floats, and the clock."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings, strategies as st
from scipy import stats

from gantrain import clock, randomness
from gantrain.images import to_float, to_uint8

MANY = 100_000
UNLIKELY = 1e-3  # the numbers are fixed by their seeds: a test that passes once passes for ever


def correlation(a: torch.Tensor, b: torch.Tensor) -> float:
    """Pearson's, times the root of the count: standard normal where the two are independent."""
    a, b = a.double().flatten(), b.double().flatten()
    return float(torch.corrcoef(torch.stack([a, b]))[0, 1]) * math.sqrt(len(a))


# ---- position --------------------------------------------------------------------------------------------------------

DRAWS = {
    "uniform": lambda start, count, width: randomness.uniform(3, "z", start, count, width),
    "normal": lambda start, count, width: randomness.normal(3, "z", start, count, width),
    "truncated": lambda start, count, width: randomness.normal(3, "z", start, count, width, truncation=0.5),
    "integers": lambda start, count, width: randomness.integers(3, "y", start, count, 10 + width),
}


@pytest.mark.parametrize("draw", DRAWS.values(), ids=DRAWS)
@settings(deadline=None)
@given(data=st.data(), width=st.sampled_from([1, 3, 4, 5, 8, 120]), start=st.sampled_from([0, 1, 7, 2**32 - 3, 10**12]))
def test_a_slice_has_the_numbers_of_the_whole(draw, data, width, start):
    whole = draw(start, 30, width)
    first = data.draw(st.integers(0, 30))
    last = data.draw(st.integers(first, 30))
    assert torch.equal(draw(start + first, last - first, width), whole[first:last])


def test_any_cut_into_rounds_and_ranks_gives_the_batch():
    whole = randomness.normal(0, "z/g", 640, 24, 16)
    for micro_batch in (1, 2, 3, 8, 24):
        parts = [randomness.normal(0, "z/g", 640 + i, micro_batch, 16) for i in range(0, 24, micro_batch)]
        assert torch.equal(torch.cat(parts), whole)


def test_numbers_are_a_function_of_the_arguments_alone():
    state = torch.get_rng_state(), np.random.get_state()[1].copy()
    torch.manual_seed(1)
    a = randomness.normal(0, "z", 5, 7, 9)
    torch.manual_seed(2)
    assert torch.equal(randomness.normal(0, "z", 5, 7, 9), a)
    torch.set_rng_state(state[0])
    randomness.uniform(0, "z", 5, 7), randomness.integers(0, "z", 5, 7, 3)
    assert torch.equal(torch.get_rng_state(), state[0]) and np.array_equal(np.random.get_state()[1], state[1])


def test_no_position_repeats_another():
    numbers = randomness.uniform(0, "z", 0, MANY, 5)
    assert len(torch.unique(numbers)) == numbers.numel()


def test_shapes_and_types():
    assert randomness.uniform(0, "a", 0, 3, 7).shape == (3, 7) and randomness.uniform(0, "a", 0, 3).shape == (3, 1)
    assert randomness.uniform(0, "a", 0, 3).dtype == torch.float64
    assert randomness.normal(0, "a", 0, 3, 7).shape == (3, 7) and randomness.normal(0, "a", 0, 3, 7).dtype == torch.float32
    assert randomness.integers(0, "a", 0, 3, 7).shape == (3,) and randomness.integers(0, "a", 0, 3, 7).dtype == torch.int64
    for empty in (randomness.uniform(0, "a", 4, 0, 7), randomness.normal(0, "a", 4, 0, 7)):
        assert empty.shape == (0, 7)


# ---- independence ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("other", [(0, "z/d1"), (1, "z/d0"), (0, "y/d0"), (10, "z/d0"), (2**63 - 1, "z/d0")])
def test_streams_of_another_seed_or_purpose_are_independent(other):
    a, b = randomness.normal(0, "z/d0", 0, MANY, 1), randomness.normal(*other, 0, MANY, 1)
    assert abs(correlation(a, b)) < 4
    assert abs(correlation(a.abs(), b.abs())) < 4  # nor do their sizes go together


def test_seed_and_purpose_are_not_run_together():
    assert randomness.key(1, "2a") != randomness.key(12, "a")
    assert len({randomness.key(seed, purpose) for seed in range(50) for purpose in ("z", "y", "flip", "0", "1")}) == 250


def test_neighbouring_positions_and_columns_are_independent():
    z = randomness.normal(0, "z", 0, MANY, 5)
    assert abs(correlation(z[1:], z[:-1])) < 4
    for column in range(1, 5):
        assert abs(correlation(z[:, 0], z[:, column])) < 4


# ---- laws ------------------------------------------------------------------------------------------------------------


def test_uniform_numbers_are_uniform_and_inside_the_open_interval():
    u = randomness.uniform(0, "u", 0, MANY, 3)
    assert u.min() > 0 and u.max() < 1
    assert stats.chisquare(np.histogram(u.numpy(), bins=100, range=(0, 1))[0]).pvalue > UNLIKELY
    assert stats.kstest(u.flatten().numpy(), "uniform").pvalue > UNLIKELY
    low_bits = (u * 2**40 % 1).flatten().numpy()  # below the fortieth bit they are as random
    assert stats.kstest(low_bits, "uniform").pvalue > UNLIKELY


def test_the_ends_of_the_uniform_numbers_are_open(monkeypatch):
    """The smallest and largest word that a generator can give still give a finite normal number."""

    class Ends:
        def __init__(self, key):
            pass

        def advance(self, ticks):
            pass

        def random_raw(self, count):
            return np.resize(np.array([0, 2**64 - 1], dtype=np.uint64), count)

    monkeypatch.setattr(np.random, "Philox", Ends)
    u = randomness.uniform(0, "u", 0, 1, 2)[0]
    assert u[0] > 0 and u[1] < 1 and u[0] == 1 - u[1]
    z = randomness.normal(0, "z", 0, 1, 2)[0]
    assert torch.isfinite(z).all() and z[0] == -z[1]
    for below in (1, 2, 3, 10, 1000, 10**9 + 7):
        assert int(randomness.integers(0, "y", 0, 1, below)[0]) == 0
        assert int((u[1] * below).long()) == below - 1


def test_normal_numbers_are_normal():
    z = randomness.normal(0, "z", 0, MANY, 2).flatten().double().numpy()
    assert stats.kstest(z, "norm").pvalue > UNLIKELY
    assert np.abs(z).max() > 4  # the tails are there


def test_normal_numbers_are_the_inverse_distribution_of_the_uniform_ones():
    u = randomness.uniform(7, "z", 11, 1000, 3)
    expected = torch.from_numpy(stats.norm.ppf(u.numpy()))
    torch.testing.assert_close(randomness.normal(7, "z", 11, 1000, 3).double(), expected, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("truncation", [0.02, 0.5, 1.0, 2.0, 8.0])
def test_truncated_numbers_follow_the_truncated_normal(truncation):
    z = randomness.normal(0, "z", 0, MANY, 2, truncation=truncation).flatten().double().numpy()
    assert np.abs(z).max() <= np.float32(truncation)
    assert stats.kstest(z, stats.truncnorm(-truncation, truncation).cdf).pvalue > UNLIKELY


def test_a_far_truncation_is_none():
    torch.testing.assert_close(randomness.normal(0, "z", 0, 1000, 4, truncation=20.0), randomness.normal(0, "z", 0, 1000, 4))


@pytest.mark.parametrize("below", [1, 2, 10, 1000])
def test_integers_are_uniform_below_the_bound(below):
    y = randomness.integers(0, "y", 0, MANY, below)
    counts = torch.bincount(y, minlength=below)
    assert len(counts) == below and y.min() >= 0
    if below > 1:
        assert stats.chisquare(counts.numpy()).pvalue > UNLIKELY


# ---- images ----------------------------------------------------------------------------------------------------------

LEVELS = torch.arange(256, dtype=torch.uint8)


def test_every_level_comes_back_from_float():
    x = to_float(LEVELS.reshape(1, 1, 16, 16))
    assert x.dtype == torch.float32 and x.shape == (1, 1, 16, 16)
    assert x.min() == -1 and x.max() == 1
    torch.testing.assert_close(x.flatten().double(), torch.linspace(-1, 1, 256, dtype=torch.float64), rtol=0, atol=1e-7)
    assert torch.equal(to_uint8(x).flatten(), LEVELS)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16])
def test_every_level_comes_back_from_other_precisions(dtype):
    assert torch.equal(to_uint8(to_float(LEVELS).to(dtype)), LEVELS)


def test_floats_are_rounded_to_the_nearest_level_not_truncated():
    level = torch.arange(1, 255, dtype=torch.float64)
    for shift in (-0.49, -0.3, 0.3, 0.49):
        assert torch.equal(to_uint8((level + shift) / 127.5 - 1), level.to(torch.uint8))


def test_rounding_keeps_the_mean():
    """Truncation would lower it by half a level."""
    x = randomness.uniform(0, "x", 0, MANY)[:, 0] * 2 - 1
    assert abs(float(to_uint8(x).double().mean() - (x + 1).mean() * 127.5)) < 0.01


def test_values_outside_are_clipped():
    x = torch.tensor([-1e9, -1.5, -1.004, 1.004, 1.5, 300.0, float("-inf"), float("inf")])
    assert to_uint8(x).tolist() == [0, 0, 0, 255, 255, 255, 0, 255]


def test_the_conversions_leave_their_input_alone():
    bytes_, floats = LEVELS.clone(), torch.linspace(-2, 2, 9)
    kept = floats.clone()
    to_float(bytes_), to_uint8(floats)
    assert torch.equal(bytes_, LEVELS) and torch.equal(floats, kept)


# ---- clock -----------------------------------------------------------------------------------------------------------


def multiples(every: int, before: int, after: int) -> int:
    """How many multiples of `every` from 0 on lie in (before, after], counted one by one."""
    return sum(1 for i in range(max(before + 1, 0), after + 1) if i % every == 0)


@settings(deadline=None)
@given(every=st.integers(1, 400), before=st.integers(-1, 2000), step=st.integers(0, 900))
@example(every=1, before=-1, step=1)
@example(every=100, before=99, step=1)
@example(every=100, before=100, step=99)
@example(every=100, before=100, step=100)
def test_due_is_whether_a_multiple_was_passed(every, before, step):
    assert clock.due(every / 1000, before, before + step) == (multiples(every, before, before + step) > 0)


@settings(deadline=None)
@given(every=st.integers(50, 400), batches=st.lists(st.integers(1, 50), min_size=1, max_size=200))
def test_it_fires_once_for_each_multiple_when_batches_are_smaller(every, batches):
    """Whatever the batch does on the way, and whether or not it divides."""
    fired, before = 0, -1
    for after in np.cumsum([0, *batches]).tolist():
        fired, before = fired + clock.due(every / 1000, before, after), after
    assert fired == multiples(every, -1, sum(batches))


def test_it_fires_at_the_start_and_not_while_the_clock_stands():
    for every_kimg in (0.001, 1, 25, 1e6):
        assert clock.due(every_kimg, -1, 0)
        assert not clock.due(every_kimg, 0, 0) and not clock.due(every_kimg, 64_000, 64_000)


def test_a_jump_over_many_multiples_fires_once():
    assert clock.due(1, 999, 10**12) is True
    assert not clock.due(1, 10**12, 10**12 + 999) and clock.due(1, 10**12, 10**12 + 1000)


def test_nothing_is_due_without_a_period():
    assert not clock.due(None, -1, 0) and not clock.due(None, 0, 10**9)


def test_thousands_of_images_are_whole_images():
    assert [clock.images(k) for k in (1, 0.5, 25, 1.2346, 1e-9)] == [1000, 500, 25_000, 1235, 1]
    assert all(clock.images(n / 1000) == n for n in range(1, 5000))  # though n / 1000 is seldom a float
