"""Post-hoc averages: inner products, coefficients and errors against numeric integration, and weights against averages tracked directly."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch

from gantrain.averaging import Average, Power, weight_profile
from gantrain.averaging.posthoc import Profile, coefficients, combine, compact, inner_products
from gantrain.averaging.power import gamma_of

T = 1_000_000
STORED = (0.05, 0.10)


def grid(end: float, pieces: int = 400, order: int = 24, begin: float = 0.0) -> tuple[np.ndarray, np.ndarray]:
    """Points and weights that integrate over (begin, end): Gauss-Legendre on equal pieces."""
    nodes, weights = np.polynomial.legendre.leggauss(order)
    edges = np.linspace(begin, end, pieces + 1)
    half = np.diff(edges)[:, None] / 2
    return (edges[:-1, None] + half + half * nodes).ravel(), (half * weights).ravel()


def density(profile: Profile, at: np.ndarray) -> np.ndarray:
    """p(s) = (gamma + 1) s^gamma / t^(gamma + 1) on [0, t], and 0 later (Karras et al. 2024, section 3)."""
    inside = at <= profile.nimg
    share = np.where(inside, at / profile.nimg, 0.0)
    return np.where(inside, (profile.gamma + 1) * share**profile.gamma / profile.nimg, 0.0)


def snapshots_of(number: int, end: int = T, lengths: tuple[float, ...] = STORED) -> list[Profile]:
    """So many evenly spaced snapshots of each length, the last at the end."""
    return [Profile(end * i // number, gamma_of(s)) for s in lengths for i in range(1, number + 1)]


def relative_error(snapshots: list[Profile], c: np.ndarray, wanted: Profile) -> float:
    """L2 norm of (sum of c times profiles - wanted) over that of the wanted one, by numeric integration between all the ends."""
    difference = norm = 0.0
    ends = sorted({0, *(p.nimg for p in snapshots), wanted.nimg})
    for a, b in itertools.pairwise(ends):
        at, weight = grid(b, 40, begin=a)
        combined = sum(ci * density(p, at) for ci, p in zip(c, snapshots))
        difference += (weight * (combined - density(wanted, at)) ** 2).sum()
        norm += (weight * density(wanted, at) ** 2).sum()
    return math.sqrt(difference / norm)


# ---- inner products --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "t, gamma, u, delta",
    [(1000, 0.0, 1000, 0.0), (1000, 6.94, 1000, 16.97), (1000, 6.94, 400, 16.97), (300, 40.0, 7000, 2.5), (10**8, 300.0, 10**8, 0.0)],
)
def test_inner_products_are_integrals(t, gamma, u, delta):
    """Of the product of the two profiles up to where the earlier one ends, for exponents of 0 and of hundreds."""
    a, b = Profile(t, gamma), Profile(u, delta)
    at, weight = grid(min(t, u), pieces=2000)
    expected = (weight * density(a, at) * density(b, at)).sum()
    assert inner_products([a], [b])[0, 0] == pytest.approx(expected, rel=1e-8)
    assert inner_products([b], [a])[0, 0] == pytest.approx(expected, rel=1e-8)


def test_inner_products_of_many_are_a_matrix():
    """Every entry is the product of the two alone; a sequence with itself is symmetric and positive."""
    a, b = snapshots_of(3), [Profile(T, 2.0), Profile(T // 2, 0.5)]
    matrix = inner_products(a, b)
    assert matrix.shape == (6, 2)
    for i, j in itertools.product(range(6), range(2)):
        assert matrix[i, j] == inner_products([a[i]], [b[j]])[0, 0]
    gram = inner_products(a, a)
    np.testing.assert_allclose(gram, gram.T, rtol=1e-12)
    assert np.linalg.eigvalsh(gram / np.sqrt(np.outer(np.diag(gram), np.diag(gram)))).min() > 0


def test_extreme_exponents_do_not_overflow():
    """sigma_rel 0.002 of a run of 10^9 images: every number is finite, and the norm is (gamma + 1)^2 / (2 gamma + 1) / t."""
    gamma = gamma_of(0.002)
    narrow = Profile(10**9, gamma)
    assert inner_products([narrow], [narrow])[0, 0] == pytest.approx((gamma + 1) ** 2 / (2 * gamma + 1) / 1e9, rel=1e-9)
    assert inner_products([narrow], [Profile(1000, gamma)])[0, 0] == 0.0


# ---- coefficients ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [1, 2, 5, 16])
@pytest.mark.parametrize("which", [0, -1, 3])
def test_a_stored_profile_is_itself(number, which):
    """The target equal to one of the snapshots: coefficient 1 for it and 0 for all others, error 0."""
    snapshots = snapshots_of(number)
    which = which % len(snapshots)
    # Also those that are not the latest: the later snapshots are left out.
    usable = [p for p in snapshots if p.nimg <= snapshots[which].nimg]
    c, error = coefficients(usable, snapshots[which])
    np.testing.assert_allclose(c, [float(p == snapshots[which]) for p in usable], rtol=0, atol=1e-6)
    assert error < 1e-6


@pytest.mark.parametrize(
    "sigma_rel, bound", [*((s, 0.01) for s in (0.05, 0.06, 0.07, 0.085, 0.10, 0.12, 0.15)), (0.18, 0.03), (0.20, 0.03)]
)
def test_sixteen_snapshots_rebuild_other_lengths(sigma_rel, bound):
    """Of 0.05 and 0.10 each: the profile is within 1% up to 0.15 and 3% up to 0.20, and so says the integral."""
    snapshots, wanted = snapshots_of(16), Profile(T, gamma_of(sigma_rel))
    c, error = coefficients(snapshots, wanted)
    assert error < bound
    # The error is a small difference of numbers of order 1: of its square 1e-12 is rounding.
    assert error**2 == pytest.approx(relative_error(snapshots, c, wanted) ** 2, rel=1e-6, abs=1e-12)


@pytest.mark.parametrize("number", [1, 2, 3, 8, 16, 64])
@pytest.mark.parametrize("sigma_rel", [0.02, 0.05, 0.08, 0.15, 0.25])
def test_coefficients_add_up_to_one_and_the_error_is_the_integral(number, sigma_rel):
    """With few snapshots and lengths out of reach too, where the error is large and has to say so."""
    snapshots, wanted = snapshots_of(number), Profile(T, gamma_of(sigma_rel))
    c, error = coefficients(snapshots, wanted)
    assert c.sum() == pytest.approx(1.0, abs=1e-9)
    assert error**2 == pytest.approx(relative_error(snapshots, c, wanted) ** 2, rel=1e-6, abs=1e-12)


def test_one_snapshot_is_taken_as_it_is():
    """There is but one combination that adds up to 1; its error is the distance between the two profiles."""
    stored, wanted = Profile(T, gamma_of(0.05)), Profile(T, gamma_of(0.20))
    c, error = coefficients([stored], wanted)
    assert c.tolist() == pytest.approx([1.0])
    assert error == pytest.approx(relative_error([stored], np.ones(1), wanted), rel=1e-8)
    assert error > 0.5


@pytest.mark.parametrize("sigma_rel", [0.07, 0.15, 0.20])
def test_no_other_combination_is_nearer(sigma_rel):
    """Any step from the solution that keeps the sum at 1 raises the error."""
    snapshots, wanted = snapshots_of(6), Profile(T, gamma_of(sigma_rel))
    gram, rhs = inner_products(snapshots, snapshots), inner_products(snapshots, [wanted])[:, 0]
    c, _ = coefficients(snapshots, wanted)

    def squared(x: np.ndarray) -> float:
        return x @ gram @ x - 2 * x @ rhs

    generator = np.random.default_rng(0)
    for size in (1e-1, 1e-2, 1e-3):
        for _ in range(50):
            step = generator.standard_normal(len(c))
            step -= step.mean()
            assert squared(c + size * step) > squared(c)


def test_coefficients_are_small_enough_for_half_precision():
    """Their absolute values add up to at most 2 within 0.05 to 0.15, so that the snapshots' rounding is not blown up."""
    for sigma_rel in np.linspace(0.05, 0.15, 11):
        c, _ = coefficients(snapshots_of(16), Profile(T, gamma_of(sigma_rel)))
        assert np.abs(c).sum() <= 2.0


def test_profiles_go_by_images_alone():
    """A run of ten times as many images has the same coefficients and errors."""
    c, error = coefficients(snapshots_of(8, 160_000), Profile(160_000, gamma_of(0.13)))
    d, other = coefficients(snapshots_of(8, 1_600_000), Profile(1_600_000, gamma_of(0.13)))
    np.testing.assert_allclose(c, d, rtol=0, atol=1e-6)
    assert error == pytest.approx(other, rel=1e-6)


# ---- weights ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def run() -> dict:
    """A random walk of 400 weights with a batch that grows twice, followed by two stored lengths and by the ones to rebuild.

    Sixteen snapshots of each stored length, compact, the last at the end.
    """
    wanted = (0.05, 0.07, 0.09, 0.12, 0.15, 0.20)
    batches = [64] * 512 + [128] * 256 + [256] * 128  # 98 304 images, a third at each batch
    positions = list(itertools.accumulate(batches))
    generator = torch.Generator().manual_seed(0)
    live = torch.randn(400, generator=generator)
    stored = {s: Average(Power(sigma_rel=s), {"w": live}) for s in STORED}
    direct = {s: Average(Power(sigma_rel=s), {"w": live}) for s in wanted}
    path, snapshots, profiles = [], [], []
    for nimg, batch in zip(positions, batches):
        live += torch.randn(400, generator=generator) * (batch / 1024) ** 0.5 * 0.2
        path.append(live.double().numpy().copy())
        for average in (*stored.values(), *direct.values()):
            average.update(nimg)
        if nimg % 6144 == 0:
            for sigma_rel, average in stored.items():
                snapshots.append(compact(average.shadows))
                profiles.append(Profile(nimg, gamma_of(sigma_rel)))
    assert len(snapshots) == 32 and profiles[-1].nimg == positions[-1]
    return {
        "positions": positions,
        "batches": np.array(batches),
        "path": np.array(path),
        "snapshots": snapshots,
        "profiles": profiles,
        "direct": direct,
    }


def half_precision_error(c: np.ndarray, snapshots: list[dict[str, torch.Tensor]], steps: int) -> np.ndarray:
    """A bound on the rounding of a combination, for every weight.

    fp16 rounds a value to within 2^-11 of itself, or 2^-25 near zero; each of `steps` fp32 moves of an average rounds by at
    most 2^-24 of the largest value on the way (taken as 16), and contributes to a snapshot and to the average alike.
    """
    values = np.abs(np.array([s["w"].double().numpy() for s in snapshots]))
    return np.abs(c) @ (values * 2.0**-11 + 2.0**-25) + (np.abs(c).sum() + 1) * steps * 16 * 2.0**-24


@pytest.mark.parametrize("sigma_rel", [0.05, 0.07, 0.09, 0.12, 0.15, 0.20])
def test_rebuilt_weights_agree_with_an_average_tracked_directly(run, sigma_rel):
    """Within what the profile's error allows, and that is far less than what lies between lengths.

    Both weigh the live weights w_i of an interval by the integral of their profiles over it, so that they differ by
    sum_i (w_i - m) d_i for any m, with d_i the integral of the profiles' difference (whose total is 0). By Cauchy-Schwarz
    this is at most sqrt(sum_i (w_i - m)^2 l_i) times the L2 norm of the difference, l_i being the intervals' lengths; that
    norm is the relative error times the norm (gamma + 1) / sqrt((2 gamma + 1) T) of the wanted profile.
    """
    gamma, end = gamma_of(sigma_rel), run["positions"][-1]
    c, error = coefficients(run["profiles"], Profile(end, gamma))
    rebuilt = combine(zip(c, run["snapshots"]))["w"].double().numpy()
    direct = run["direct"][sigma_rel].shadows["w"].double().numpy()
    lengths, path = run["batches"], run["path"]
    mean = lengths @ path / end
    spread = np.sqrt(lengths @ (path - mean) ** 2)
    bound = spread * error * (gamma + 1) / math.sqrt((2 * gamma + 1) * end) + half_precision_error(c, run["snapshots"], len(path))
    assert (np.abs(rebuilt - direct) <= bound).all()
    if sigma_rel not in STORED:
        others = [run["direct"][s].shadows["w"].double().numpy() for s in run["direct"] if s != sigma_rel]
        nearest = min(np.sqrt(np.mean((other - direct) ** 2)) for other in others)
        assert np.sqrt(np.mean((rebuilt - direct) ** 2)) < nearest / 10


@pytest.mark.parametrize("sigma_rel", [0.07, 0.12, 0.20])
def test_rebuilt_weights_are_the_combined_profile_of_the_path(run, sigma_rel):
    """Up to rounding alone: each weight is the sum over the path of the combination of the snapshots' exact weights."""
    end, steps = run["positions"][-1], len(run["path"])
    c, _ = coefficients(run["profiles"], Profile(end, gamma_of(sigma_rel)))
    effective = np.zeros(steps)
    for coefficient, profile in zip(c, run["profiles"]):
        ends = np.minimum(np.array([0, *run["positions"]]) / profile.nimg, 1.0)  # what comes after a snapshot is not in it
        effective += coefficient * np.diff(ends ** (profile.gamma + 1))
    rebuilt = combine(zip(c, run["snapshots"]))["w"].double().numpy()
    assert (np.abs(rebuilt - effective @ run["path"]) <= half_precision_error(c, run["snapshots"], steps)).all()


def test_an_earlier_moment_is_rebuilt_from_the_snapshots_up_to_there(run):
    """The average as it stood at half the run: equal to the path averaged directly up to there."""
    at = 6144 * 8
    usable = [i for i, p in enumerate(run["profiles"]) if p.nimg <= at]
    gamma = gamma_of(0.12)
    c, error = coefficients([run["profiles"][i] for i in usable], Profile(at, gamma))
    rebuilt = combine((ci, run["snapshots"][i]) for ci, i in zip(c, usable))["w"].double().numpy()
    steps = run["positions"].index(at) + 1
    _, weights = weight_profile(Power(sigma_rel=0.12), run["positions"][:steps])
    path, lengths = run["path"][:steps], run["batches"][:steps]
    spread = np.sqrt(lengths @ (path - lengths @ path / at) ** 2)
    bound = spread * error * (gamma + 1) / math.sqrt((2 * gamma + 1) * at) + half_precision_error(
        c, [run["snapshots"][i] for i in usable], steps
    )
    assert (np.abs(rebuilt - weights[1:] @ path) <= bound).all()


def test_weights_that_stood_still_are_rebuilt_as_they_are():
    """Whatever the length, even one out of reach, since the coefficients add up to 1."""
    constant = {"w": torch.tensor([0.5, -3.0, 1024.0]), "scalar": torch.tensor(0.25)}  # exact in half precision
    for sigma_rel in (0.02, 0.12, 0.25):
        c, _ = coefficients(snapshots_of(4), Profile(T, gamma_of(sigma_rel)))
        rebuilt = combine((ci, compact(constant)) for ci in c)
        for name, tensor in constant.items():
            assert rebuilt[name].dtype == torch.float32
            torch.testing.assert_close(rebuilt[name], tensor, rtol=1e-6, atol=0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_combine_is_a_weighted_sum_that_leaves_its_parts_alone(dtype):
    """Accumulated in float64, where terms of 2^30 cancel and leave the 1 that fp32 would have lost; the parts stay as they were."""
    parts = [
        {"w": torch.tensor([3.0, 5.0], dtype=dtype)},
        {"w": torch.tensor([0.5, 1.0], dtype=dtype)},
        {"w": torch.tensor([2.0, 2.0], dtype=dtype)},
    ]
    before = [part["w"].clone() for part in parts]
    total = combine(zip((2.0**30, 2.0, -1.5 * 2.0**30), parts))
    assert all(torch.equal(part["w"], old) for part, old in zip(parts, before))
    assert total["w"].dtype == torch.float32 and total["w"].tolist() == [1.0, 2.0**31]  # 2^31 + 2, rounded to fp32


# ---- compact copies --------------------------------------------------------------------------------------------------


def test_compact_is_half_precision():
    tensors = {"w": torch.randn(50, generator=torch.Generator().manual_seed(0)), "b": torch.zeros(())}
    halves = compact(tensors)
    assert halves.keys() == tensors.keys()
    for name, half in halves.items():
        assert half.dtype == torch.float16 and half.shape == tensors[name].shape
        assert torch.equal(half, tensors[name].half())


@pytest.mark.parametrize("value", [70_000.0, -1e6, 3e38])
def test_compact_keeps_what_half_precision_cannot_hold(value):
    """A tensor with one value beyond 65504 stays whole, in fp32; the others are halved."""
    tensors = {"large": torch.tensor([0.1, value, 2.0]), "w": torch.tensor([0.1, 65504.0])}
    halves = compact(tensors)
    assert halves["large"].dtype == torch.float32 and torch.equal(halves["large"], tensors["large"])
    assert halves["w"].dtype == torch.float16 and bool(torch.isfinite(halves["w"]).all())


def test_compact_copies_do_not_follow_the_average():
    """A snapshot is of its moment, halved or not."""
    live = {"w": torch.ones(2), "large": torch.full((2,), 1e6)}
    average = Average(Power(), live)
    average.update(64)
    snapshot = compact(average.shadows)
    for tensor in live.values():
        tensor.zero_()
    average.update(128)
    assert snapshot["w"].tolist() == [1.0, 1.0] and snapshot["large"].tolist() == [1e6, 1e6]


def test_complex_snapshots_keep_their_imaginary_part_and_integers_are_the_last():
    generator = torch.Generator().manual_seed(0)
    z = [torch.randn(5, dtype=torch.complex128, generator=generator) for _ in range(3)]
    parts = [compact({"z": value, "n": torch.tensor([2**40 + i]), "w": value.real}) for i, value in enumerate(z)]
    assert parts[0]["z"].dtype == torch.complex64 and parts[0]["w"].dtype == torch.float16 and parts[0]["n"].dtype == torch.int64
    found = combine(zip((0.5, -0.25, 0.75), parts))
    expected = 0.5 * z[0] - 0.25 * z[1] + 0.75 * z[2]
    assert found["z"].dtype == torch.complex64 and found["w"].dtype == torch.float32
    torch.testing.assert_close(found["z"].to(torch.complex128), expected, rtol=0, atol=1e-6)
    torch.testing.assert_close(found["w"].double(), expected.real, rtol=0, atol=5e-3)
    assert found["n"].tolist() == [2**40 + 2]
