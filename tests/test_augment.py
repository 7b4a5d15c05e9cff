"""Augmentations of what D sees: each transform against another implementation, the laws of their draws, and the control of p."""

from __future__ import annotations

import dataclasses
import json
import math
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ROOT, TINY, lines_of, slow_but
from game import networks, player
from own_terms import flat, play, terms
from safetensors.torch import load_file
from scipy import ndimage, stats
from scipy.spatial.transform import Rotation
from sklearn.datasets import load_digits
from torch import nn

from gantrain.augment import AUGMENTATION, AUGMENTATIONS, Ada, DiffAugment, Plain, ada, diffaugment, gates, wavelet
from gantrain.augment.blits import Blits, apply_blits, draw_blits
from gantrain.augment.colors import Colors, apply_colors, draw_colors
from gantrain.augment.corruptions import POWER, add_noise, apply_gains, cut_out, draw_gains
from gantrain.augment.geometry import Warp, apply_warp, draw_warp
from gantrain.augment.sampling import sample
from gantrain.config.config import Config, separates_by_sign
from gantrain.config.notes import notes
from gantrain.errors import InvalidField
from gantrain.losses import LOSSES, R1, Hinge, NonSaturating
from gantrain.randomness import Draws
from gantrain.schedule import Schedule
from gantrain.training.update import discriminator_phase

ALL = dict.fromkeys(ada.GROUPS, 1.0)
MANY = 20_000
P = 0.3


def draws_of(count: int, start: int = 0, seed: int = 0, purpose: str = "d0/augment/real") -> Draws:
    return Draws(seed, purpose, torch.arange(start, start + count))


def images_of(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> torch.Tensor:
    return (torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * 2 - 1).to(dtype)


def at_p(p: float) -> dict[str, torch.Tensor]:
    """A state of `Ada` with this p."""
    return {**{name: torch.tensor(v, dtype=torch.float64) for name, v in Ada().initial_state().items()}, "p": torch.tensor(p).double()}


def one(**values: float) -> dict[str, torch.Tensor]:
    return {name: torch.tensor([value]) for name, value in values.items()}


def blits(flip: bool = False, quarters: int = 0, down: int = 0, right: int = 0) -> Blits:
    return Blits(**one(flip=flip, quarters=quarters, down=down, right=right))


def warp(**values: float) -> Warp:
    neutral = dict.fromkeys(Warp._fields, 0.0)
    return Warp(**{name: torch.tensor([value], dtype=torch.float64) for name, value in {**neutral, **values, "touched": 1}.items()})


def colors(**values: float) -> Colors:
    neutral = {"brightness": 0.0, "contrast": 0.0, "flip": False, "hue": 0.0, "saturation": 0.0, "touched": True}
    return Colors(**one(**{**neutral, **values}))


# ---- every augmentation ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", AUGMENTATIONS)
@pytest.mark.parametrize(
    ("shape",), slow_but([((6, 3, 6, 10),)], [((6, *size),) for size in ((3, 6, 10), (3, 8, 8), (1, 8, 8), (4, 6, 10), (2, 9, 5))])
)
def test_an_augmentation_keeps_shape_dtype_and_layout(name, shape):
    augmentation = AUGMENTATION.adapt(AUGMENTATIONS[name]())
    state = at_p(0.7) if augmentation.initial_state() else {}
    for dtype in (torch.float32, torch.float64, torch.bfloat16, torch.float16):
        for layout in (torch.contiguous_format, torch.channels_last):
            x = images_of(*shape, dtype=dtype).contiguous(memory_format=layout)
            y = augmentation.apply(x, draws_of(6), state, 0)
            assert y.shape == x.shape and y.dtype == dtype and y.is_contiguous(memory_format=layout)
            assert y.isfinite().all() and (name == "none" or not torch.equal(x, y))


@pytest.mark.parametrize("augmentation", [DiffAugment(), Ada(p=0.6, **ALL)], ids=lambda one: type(one).__name__)
def test_an_images_transform_depends_on_its_position_alone(augmentation):
    x = images_of(8, 3, 8, 8, dtype=torch.float64)
    whole = augmentation.apply(x, draws_of(8, 5), {}, 0)
    halves = torch.cat([augmentation.apply(x[:4], draws_of(4, 5), {}, 0), augmentation.apply(x[4:], draws_of(4, 9), {}, 0)])
    assert torch.allclose(whole, halves, rtol=1e-12, atol=1e-12)
    order = torch.tensor([3, 1, 7, 0, 2, 6, 5, 4])
    shuffled = augmentation.apply(x[order], Draws(0, "d0/augment/real", order + 5), {}, 0)
    assert torch.allclose(whole[order], shuffled, rtol=1e-12, atol=1e-12)
    others = [draws_of(8, 5, seed=1), draws_of(8, 5, purpose="d0/augment/fake"), draws_of(8, 13)]
    assert not any(torch.allclose(whole, augmentation.apply(x, other, {}, 0)) for other in others)


@pytest.mark.slow
@pytest.mark.parametrize("augmentation", [DiffAugment(), Ada(p=1.0), Ada(p=1.0, **ALL)], ids=["diffaugment", "bgc", "all"])
def test_an_augmentation_is_differentiable_twice(augmentation):
    """By finite differences; every transform but the sign and the noise is linear in the image, so a square follows it."""
    x = images_of(2, 3, 8, 8, dtype=torch.float64).requires_grad_()

    def transformed(x: torch.Tensor) -> torch.Tensor:
        return augmentation.apply(x, draws_of(2, 3), {}, 0).square()

    assert torch.autograd.gradcheck(transformed, x, fast_mode=True)
    assert torch.autograd.gradgradcheck(transformed, x, fast_mode=True)


def test_the_gradient_of_a_gradient_reaches_d_through_the_pipe():
    """R1's: against the same network behind a matrix that the pipe was measured to be."""
    x, pipe = images_of(1, 1, 4, 4, dtype=torch.float64), Ada(p=1.0, color=0.0)
    basis = torch.eye(16, dtype=torch.float64).view(16, 1, 4, 4)
    draws = Draws(0, "a", torch.zeros(16, dtype=torch.int64))
    matrix = pipe.apply(basis, draws, {}, 0).view(16, 16).T
    weight = images_of(16, seed=1, dtype=torch.float64).requires_grad_()

    def r1(transform) -> torch.Tensor:
        some = x.clone().requires_grad_()
        (slope,) = torch.autograd.grad((weight * transform(some).flatten()).tanh().sum(), some, create_graph=True)
        return torch.autograd.grad(slope.square().sum(), weight)[0]

    ours = r1(lambda some: pipe.apply(some, Draws(0, "a", torch.zeros(1, dtype=torch.int64)), {}, 0))
    assert torch.allclose(ours, r1(lambda some: matrix @ some.flatten()), rtol=1e-10, atol=1e-12)


# ---- p --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize(("shape",), slow_but([((32, 3, 8, 8),)], [((32, 3, 8, 8),), ((32, 1, 6, 10),)]))
def test_at_p_0_the_pipe_is_the_identity_to_the_bit(dtype, shape):
    x = images_of(*shape, dtype=dtype)
    x[0, 0, 0, 0] = -0.0
    y = Ada(**ALL).apply(x, draws_of(32), at_p(0.0), 0)  # as a tensor, so that the whole pipe runs
    assert torch.equal(y, x) and torch.equal(y.signbit(), x.signbit())
    assert Ada(p=0.0, **ALL).apply(x, draws_of(32), {}, 0) is x
    late = Schedule(0.0, 1.0, start_kimg=1, until_kimg=2)
    assert Ada(p=late, **ALL).apply(x, draws_of(32), {}, 1000) is x
    assert not torch.equal(Ada(p=late, **ALL).apply(x, draws_of(32), {}, 1500), x)


def test_images_that_no_transform_was_drawn_for_stay_as_they_are_to_the_bit():
    x, draws, p = images_of(400, 3, 8, 8), draws_of(400), 0.2
    moves, geometry, color = draw_blits(draws, p, 8, 8), draw_warp(draws, p, 8, 8), draw_colors(draws, p, 3)
    moved = moves.flip | (moves.quarters > 0) | (moves.down != 0) | (moves.right != 0)
    same = (Ada().apply(x, draws, at_p(p), 0) == x).flatten(1).all(dim=1)
    assert torch.equal(same, ~(moved | geometry.touched | color.touched)) and 20 < same.sum() < 100


def test_a_group_can_have_a_share_of_p():
    """Its draws are those that p itself would have at that share; R3GAN has half of p for colors."""
    x, draws, off = images_of(64, 3, 8, 8), draws_of(64), dict.fromkeys(ada.GROUPS, 0.0)
    for group in ada.GROUPS:
        half, whole = (Ada(**{**off, group: share}) for share in (0.5, 1.0))
        assert torch.equal(half.apply(x, draws, at_p(0.6), 0), whole.apply(x, draws, at_p(0.3), 0))
        assert not torch.equal(half.apply(x, draws, at_p(0.6), 0), whole.apply(x, draws, at_p(0.6), 0))


def test_a_device_that_must_not_be_waited_for_transforms_all_images_and_keeps_those_that_are_touched(monkeypatch):
    x, pipe = images_of(32, 3, 8, 8, dtype=torch.float64), Ada(p=0.2, **ALL)
    picked = pipe.apply(x, draws_of(32), {}, 0)
    monkeypatch.setattr(gates, "waits", lambda device: True)
    assert torch.allclose(pipe.apply(x, draws_of(32), {}, 0), picked, rtol=1e-12, atol=1e-12)
    for dtype in (torch.float32, torch.bfloat16):
        assert torch.equal(Ada(**ALL).apply(x.to(dtype), draws_of(32), at_p(0.0), 0), x.to(dtype))


SHARES = {  # of images that a transform touches, and p's part in it
    "mirrored": (lambda d: draw_blits(d, P, 32, 32).flip, P / 2),
    "turned by quarters": (lambda d: draw_blits(d, P, 32, 32).quarters > 0, P * 3 / 4),
    "turned by halves": (lambda d: draw_blits(d, P, 32, 16).quarters > 0, P / 2),
    "scaled": (lambda d: draw_warp(d, P, 32, 32).scale != 0, P),
    "stretched": (lambda d: draw_warp(d, P, 32, 32).stretch != 0, P),
    "rotated before": (lambda d: draw_warp(d, P, 32, 32).before != 0, 1 - math.sqrt(1 - P)),
    "rotated": (lambda d: (draw_warp(d, P, 32, 32).before != 0) | (draw_warp(d, P, 32, 32).after != 0), P),
    "moved": (lambda d: draw_warp(d, P, 32, 32).right != 0, P),
    "warped": (lambda d: draw_warp(d, P, 32, 32).touched, 1 - (1 - P) ** 4),
    "brighter": (lambda d: draw_colors(d, P, 3).brightness != 0, P),
    "of other contrast": (lambda d: draw_colors(d, P, 3).contrast != 0, P),
    "negative": (lambda d: draw_colors(d, P, 3).flip, P / 2),
    "of other hue": (lambda d: draw_colors(d, P, 3).hue != 0, P),
    "of other saturation": (lambda d: draw_colors(d, P, 3).saturation != 0, P),
    "of other saturation, two channels": (lambda d: draw_colors(d, P, 2).saturation != 0, P),
    "recolored": (lambda d: draw_colors(d, P, 3).touched, 1 - (1 - P) ** 4 * (1 - P / 2)),
    "recolored grey": (lambda d: draw_colors(d, P, 1).touched, 1 - (1 - P) ** 2 * (1 - P / 2)),
    "filtered": (lambda d: draw_gains(d, P)[1], 1 - (1 - P) ** 4),
    "noisy": (lambda d: add_noise(torch.zeros(MANY, 1, 1, 1), d, P).flatten() != 0, P),
    "cut": (lambda d: cut_out(torch.ones(MANY, 1, 4, 4), d, P).flatten(1).amin(1) == 0, P),
}


@pytest.mark.parametrize("name", SHARES)
def test_the_share_of_images_that_a_transform_touches_follows_from_p(name):
    touched, share = SHARES[name]
    count = int(touched(draws_of(MANY)).sum())
    assert stats.binomtest(count, MANY, share).pvalue > 1e-3


LAWS = {  # the strength where a transform is applied, and its published law
    "scale": (lambda d: draw_warp(d, 1.0, 32, 32).scale, stats.norm(0, 0.2)),
    "stretch": (lambda d: draw_warp(d, 1.0, 32, 32).stretch, stats.norm(0, 0.2)),
    "first angle": (lambda d: draw_warp(d, 1.0, 32, 32).before, stats.uniform(-math.pi, 2 * math.pi)),
    "second angle": (lambda d: draw_warp(d, 1.0, 32, 32).after, stats.uniform(-math.pi, 2 * math.pi)),
    "to the right": (lambda d: draw_warp(d, 1.0, 32, 16).right, stats.norm(0, 0.125 * 16)),
    "downwards": (lambda d: draw_warp(d, 1.0, 32, 16).down, stats.norm(0, 0.125 * 32)),
    "brightness": (lambda d: draw_colors(d, 1.0, 3).brightness, stats.norm(0, 0.2)),
    "contrast": (lambda d: draw_colors(d, 1.0, 3).contrast.exp2(), stats.lognorm(0.5 * math.log(2))),
    "hue": (lambda d: draw_colors(d, 1.0, 3).hue, stats.uniform(-math.pi, 2 * math.pi)),
    "saturation": (lambda d: draw_colors(d, 1.0, 3).saturation.exp2(), stats.lognorm(math.log(2))),
    "noise": (lambda d: add_noise(torch.zeros(MANY, 1, 1, 1), d, 1.0).flatten(), None),
}


@pytest.mark.parametrize("name", LAWS)
def test_the_strengths_follow_their_published_laws(name):
    drawn, law = LAWS[name]
    found = drawn(draws_of(MANY)).double().numpy()
    if law is None:  # normal noise of a half-normal deviation: the product of two normal numbers, whose density is a Bessel function
        from scipy.special import k0

        grid = np.linspace(1e-6, 12, 200_001)
        upper = np.cumsum(k0(grid)) * (grid[1] - grid[0]) / math.pi
        assert stats.kstest(np.abs(found) / 0.1, lambda x: np.interp(x, grid, 2 * upper)).pvalue > 1e-3
    else:
        assert stats.kstest(found, law.cdf).pvalue > 1e-3


def test_whole_steps_are_as_likely_as_published():
    moves = draw_blits(draws_of(MANY), 1.0, 32, 24)
    for shift, reach in ((moves.down, 4), (moves.right, 3)):  # rounding gives the outermost steps half of the odds
        odds = np.array([0.5, *[1.0] * (2 * reach - 1), 0.5])
        assert stats.chisquare(np.bincount(shift.numpy() + reach), odds / odds.sum() * MANY).pvalue > 1e-3
    assert stats.chisquare(np.bincount(draw_blits(draws_of(MANY), 1.0, 32, 32).quarters.numpy())).pvalue > 1e-3
    down, right = diffaugment.shifts(draws_of(MANY).uniform("translation", 2).unbind(1), 32, 24)
    top, left = diffaugment.corners(draws_of(MANY).uniform("cutout", 2).unbind(1), 32, 10)
    for found, first, last in ((down, -4, 4), (right, -3, 3), (top, -8, 24), (left, -2, 7)):
        assert stats.chisquare(np.bincount(found.numpy() - first, minlength=last - first + 1)).pvalue > 1e-3


def test_below_p_of_08_the_untouched_image_is_the_most_frequent_one():
    """Why augmentations do not leak (section 3): the odds of the four directions are 1 - 3p/4 against p/4 each, for any p below 1."""
    image, p = images_of(1, 1, 4, 4), 0.79
    seen = Ada(geometric=0.0, color=0.0).apply(image.expand(4000, -1, -1, -1), draws_of(4000), at_p(p), 0)
    turned = [torch.rot90(way, k, (2, 3)) for way in (image, image.flip(3)) for k in range(4)]
    counts = np.array([(seen == one).flatten(1).all(dim=1).sum() for one in turned])
    # 4 pixels are never moved: half a pixel rounds to none.
    odds = np.outer([1 - p / 2, p / 2], [1 - 3 * p / 4, p / 4, p / 4, p / 4]).flatten()
    assert counts.sum() == 4000 and counts[0] == counts.max()
    assert stats.chisquare(counts, odds * counts.sum()).pvalue > 1e-3
    p = 0.2
    everything = Ada().apply(images_of(1, 3, 4, 4).expand(3000, -1, -1, -1), draws_of(3000), at_p(p), 0)
    kinds, counts = everything.flatten(1).unique(dim=0, return_counts=True)
    assert torch.equal(kinds[counts.argmax()].view(3, 4, 4), images_of(1, 3, 4, 4)[0]) and counts.sort().values[-2] < 0.25 * counts.max()


# ---- pixel blitting -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(6, 6), (5, 5), (4, 7)])
def test_blits_are_those_of_numpy(size):
    x = images_of(1, 2, *size)
    for flip in (False, True):
        for quarters in range(4) if size[0] == size[1] else (0, 2):
            for down, right in ((0, 0), (2, -1), (-3, 3)):
                wanted = np.flip(x.numpy(), 3) if flip else x.numpy()
                wanted = np.rot90(wanted, quarters, (2, 3))
                padded = np.pad(wanted, [(0, 0), (0, 0), (3, 3), (3, 3)], mode="reflect")
                wanted = padded[:, :, 3 - down : 3 - down + size[0], 3 - right : 3 - right + size[1]]
                assert np.array_equal(apply_blits(x, blits(flip, quarters, down, right)).numpy(), wanted)


def test_images_that_are_only_mirrored_and_turned_have_the_same_pixels():
    x, draws = images_of(64, 3, 8, 8), draws_of(64)
    y = Ada(geometric=0.0, color=0.0).apply(x, draws, at_p(0.9), 0)
    still = (draw_blits(draws, 0.9, 8, 8).down == 0) & (draw_blits(draws, 0.9, 8, 8).right == 0)
    assert torch.equal(y[still].flatten(2).sort().values, x[still].flatten(2).sort().values) and 5 < still.sum() < 40
    assert all(torch.isin(mine, theirs).all() for mine, theirs in zip(y, x))


# ---- the warp -------------------------------------------------------------------------------------------------------


def test_doubling_and_halving_lose_nothing_and_are_low_pass_filters():
    for size in (4, 5, 8, 33):
        samples = 2 * size - 1
        extended = wavelet.doubling(size)[wavelet.mirrored(np.arange(-wavelet.MARGIN, samples + wavelet.MARGIN), samples)]
        assert np.allclose(wavelet.halving(size) @ extended, np.eye(size), atol=1e-12)
        assert np.allclose(wavelet.doubling(size).sum(axis=1), 1) and np.allclose(wavelet.halving(size).sum(axis=1), 1)
    # The factors of the half-band filter of order 8: its four roots at z = -1, and those of 1 + 4y + 10y^2 + 20y^3, shared out.
    roots = np.roots([20, 10, 4, 1])
    real = roots[np.abs(roots.imag) < 1e-9].real[0]
    (pair,) = roots[roots.imag > 1e-9]
    one_minus_y, y = np.array([1, 2, 1]) / 4, np.array([-1, 2, -1]) / 4
    smooth = np.convolve(one_minus_y, one_minus_y)
    double = 2 * np.convolve(smooth, np.array([0, 1, 0]) - y / real)
    quadratic = np.convolve(y, y) / abs(pair) ** 2 - np.pad(2 * pair.real / abs(pair) ** 2 * y, 1) + np.array([0, 0, 1, 0, 0])
    assert np.allclose(double, wavelet.symmetric(wavelet.DOUBLE)) and np.allclose(
        np.convolve(smooth, quadratic), wavelet.symmetric(wavelet.HALVE)
    )


def smooth_image(height: int, width: int) -> np.ndarray:
    rows, columns = np.mgrid[:height, :width]
    return np.sin(0.31 * rows + 0.5) * np.cos(0.23 * columns - 0.2) + 0.3 * np.cos(0.2 * (rows + columns))


WARPS = [
    {"scale": 0.4}, {"scale": -0.4}, {"before": 0.7}, {"stretch": 0.3}, {"after": -2.0}, {"right": 3.3, "down": -5.6},
    {"scale": 0.2, "before": 1.0, "stretch": -0.3, "after": 0.4, "right": 2.5, "down": 1.25},
]  # fmt: skip


@pytest.mark.parametrize("values", WARPS, ids=lambda values: ",".join(values))
@pytest.mark.parametrize("size", [(24, 24), (18, 28)])
def test_the_warp_is_that_of_scipy_by_splines(values, size):
    """Composed here of matrices, forwards, in the published order: scale, rotation, stretch, rotation, translation."""

    def turn(angle: float) -> np.ndarray:  # counter-clockwise in (row, column), whose rows point downwards
        return np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])

    w = {**dict.fromkeys(Warp._fields, 0.0), **values}
    stretch = np.diag([2 ** -w["stretch"], 2 ** w["stretch"]])
    forward = turn(w["after"]) @ stretch @ turn(w["before"]) * 2 ** w["scale"]
    middle, shift = (np.array(size) - 1) / 2, np.array([w["down"], w["right"]])
    back = np.linalg.inv(forward)
    image = smooth_image(*size)
    wanted = ndimage.affine_transform(image, back, middle - back @ (middle + shift), mode="mirror", order=5)
    found = apply_warp(torch.from_numpy(image)[None, None], warp(**values))[0, 0].numpy()
    assert np.abs(found - wanted).max() < 0.05 and np.abs(found - wanted).mean() < 0.008 and np.abs(found - image).max() > 0.1


def test_the_warp_by_quarters_and_whole_pixels_is_exact():
    x = images_of(1, 2, 8, 8, dtype=torch.float64)
    assert torch.allclose(apply_warp(x, warp()), x, atol=1e-12)
    assert torch.allclose(apply_warp(x, warp(before=math.pi / 2)), torch.rot90(x, 1, (2, 3)), atol=1e-6)
    assert torch.allclose(apply_warp(x, warp(after=-math.pi / 2)), torch.rot90(x, -1, (2, 3)), atol=1e-6)
    assert torch.allclose(apply_warp(x, warp(right=2.0, down=-1.0)), apply_blits(x, blits(down=-1, right=2)), atol=1e-6)
    assert torch.equal(apply_warp(x, warp()._replace(touched=torch.tensor([False]))), x)


def test_an_image_that_becomes_smaller_does_not_alias():
    board = torch.tensor([1.0, -1.0], dtype=torch.float64).repeat(16)[None, None, None].expand(1, 1, 32, 32)
    small = apply_warp(board, warp(scale=-1.0))
    places = torch.linspace(-1, 1, 32, dtype=torch.float64) * 0.5
    bilinear = sample(board, torch.stack(torch.meshgrid(2 * places, 2 * places, indexing="xy"), -1)[None])
    assert small.square().mean() < 0.02 < bilinear.square().mean()


# ---- colors ---------------------------------------------------------------------------------------------------------


def test_colors_are_products_of_matrices_in_the_published_order():
    x, axis = images_of(1, 3, 4, 5, dtype=torch.float64), np.ones(3) / math.sqrt(3)
    luma = np.outer(axis, axis)
    for values in ({"brightness": 0.3}, {"contrast": -0.7}, {"flip": True}, {"hue": 1.1}, {"saturation": 0.8},
                   {"brightness": -0.2, "contrast": 0.4, "flip": True, "hue": -2.0, "saturation": -1.0}):  # fmt: skip
        v = {**dict.fromkeys(("brightness", "contrast", "flip", "hue", "saturation"), 0.0), **values}
        pixels = x.numpy().reshape(3, -1) + v["brightness"]
        pixels = pixels * 2 ** v["contrast"]
        pixels = pixels - 2 * luma @ pixels if v["flip"] else pixels
        pixels = Rotation.from_rotvec(axis * v["hue"]).as_matrix() @ pixels
        pixels = luma @ pixels + 2 ** v["saturation"] * (pixels - luma @ pixels)
        assert np.allclose(apply_colors(x, colors(**values)).numpy().reshape(3, -1), pixels, atol=1e-6)
        grey = {"brightness": v["brightness"], "contrast": v["contrast"], "flip": v["flip"]}
        wanted = (x[:, :1] + v["brightness"]) * 2 ** v["contrast"] * (-1 if v["flip"] else 1)
        assert torch.allclose(apply_colors(x[:, :1], colors(**grey)), wanted, atol=1e-6)


# ---- filtering, noise, cutout ---------------------------------------------------------------------------------------


def test_bands_sum_to_the_identity_and_pass_their_frequencies():
    taps = wavelet.bands(129)[:, 64]  # the middle row is the filter itself
    frequencies = np.array([1 / 16, 3 / 16, 3 / 8, 3 / 4]) * math.pi  # the middle of each band
    passed = taps @ np.cos(np.outer(np.arange(129) - 64, frequencies))
    assert np.allclose(wavelet.bands(12).sum(axis=0), np.eye(12)) and (np.diag(passed) > 0.7).all()
    assert (passed - np.diag(np.diag(passed)) < 0.3).all() and math.isclose(sum(POWER), 1)


def test_the_filter_is_a_convolution_with_its_bands():
    x, gains = images_of(2, 2, 7, 9, dtype=torch.float64), torch.tensor([[1.0, 1.0, 2.0, 1.0], [0.5, 1.5, 1.0, 3.0]])
    found = apply_gains(x, gains, torch.tensor([True, True]))
    for image, gain, mine in zip(x.numpy(), gains.numpy(), found.numpy()):
        taps = gain @ wavelet.bands(129)[:, 64]
        wanted = ndimage.convolve1d(ndimage.convolve1d(image, taps, 1, mode="mirror"), taps, 2, mode="mirror")
        assert np.allclose(mine, wanted)


def test_gains_keep_the_expected_power_band_by_band():
    gains, touched = draw_gains(draws_of(MANY), P)
    u = draws_of(MANY).uniform("filter", 8).double().numpy()
    power, wanted = np.array(POWER), np.ones((MANY, 4))
    for band in range(4):
        one = np.ones((MANY, 4))
        one[:, band] = np.where(u[:, band] < P, 2 ** stats.norm.ppf(u[:, 4 + band]), 1)
        wanted *= one / np.sqrt((one**2 * power).sum(axis=1, keepdims=True))
    assert np.allclose(gains.numpy(), wanted) and torch.equal(touched, (gains != 1).any(dim=1))


def test_cutout_is_a_rectangle_of_half_the_size():
    u = draws_of(50).uniform("cutout", 3).numpy()
    x = images_of(50, 2, 6, 10)
    found = cut_out(x, draws_of(50), 0.5).numpy()
    for image, mine, (gate, row, column) in zip(x.numpy(), found, u):
        wanted = image.copy()
        for i in range(6):
            for j in range(10):
                if gate < 0.5 and abs((i + 0.5) / 6 - row) < 0.25 and abs((j + 0.5) / 10 - column) < 0.25:
                    wanted[:, i, j] = 0
        assert np.array_equal(mine, wanted)


# ---- DiffAugment ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(20, 3, 8, 8), (20, 1, 9, 12)])
def test_diffaugment_is_its_definition_image_by_image(shape):
    x, draws = images_of(*shape, dtype=torch.float64), draws_of(20)
    height, width = shape[2:]
    color, move, cut = (draws.uniform(*one).double().numpy() for one in (("color", 3), ("translation", 2), ("cutout", 2)))
    found = DiffAugment().apply(x, draws, {}, 0).numpy()
    for i, image in enumerate(x.numpy()):
        brightness, saturation, contrast = color[i]
        wanted = image + brightness - 0.5
        wanted = (wanted - wanted.mean(0)) * saturation * 2 + wanted.mean(0)
        wanted = (wanted - wanted.mean()) * (contrast + 0.5) + wanted.mean()
        far = [round(size / 8) for size in (height, width)]
        down, right = (math.floor(u * (2 * reach + 1)) - reach for u, reach in zip(move[i], far))
        padded = np.pad(wanted, [(0, 0), (far[0], far[0]), (far[1], far[1])])
        wanted = padded[:, far[0] - down : far[0] - down + height, far[1] - right : far[1] - right + width].copy()
        holes = [math.floor(size / 2 + 0.5) for size in (height, width)]
        first = [math.floor(u * (size + 1 - hole % 2)) - hole // 2 for u, size, hole in zip(cut[i], (height, width), holes)]
        wanted[:, max(0, first[0]) : max(0, first[0] + holes[0]), max(0, first[1]) : max(0, first[1] + holes[1])] = 0
        assert np.allclose(found[i], wanted, atol=1e-6)


def test_each_part_of_diffaugment_can_be_switched_off():
    x, draws = images_of(16, 3, 8, 8), draws_of(16)
    color, move, cut = (
        DiffAugment(*parts).apply(x, draws, {}, 0) for parts in ((True, False, False), (False, True, False), (False, False, True))
    )
    assert torch.equal(cut, torch.where(cut == 0, 0.0, x)) and not torch.equal(cut, x)
    assert torch.isin(move, torch.cat([x.flatten(), torch.zeros(1)])).all() and not torch.equal(move, x)
    assert (color != x).flatten(1).any(1).all()
    with pytest.raises(InvalidField, match="cutout: must be true if color and translation are not"):
        DiffAugment(False, False, False)


# ---- the control of p -----------------------------------------------------------------------------------------------


def follow(rule: Ada, signs: list[float], images: int, d_steps: int = 1, state: dict | None = None, nimg: int = 0) -> list[dict]:
    """States after each phase of D."""
    states, state = [], state or {name: torch.tensor(value, dtype=torch.float64) for name, value in rule.initial_state().items()}
    for i, sign in enumerate(signs):
        state = rule.next_state(state, {"sign": torch.tensor(sign, dtype=torch.float64)}, images, nimg + i // d_steps * images)
        states.append(state)
    return states


def test_p_follows_the_sign_of_the_mean_sign_by_images():
    rule = Ada(target=0.5, length_kimg=1.0, every=100)
    states = follow(rule, [1.0, 0.9, 0.0, 0.0, 1.0, 0.2], images=50)
    assert [float(s["p"]) for s in states] == pytest.approx([0, 0.1, 0.1, 0.0, 0.0, 0.1])
    assert [float(s["sign_real"]) for s in states] == pytest.approx([0, 0.95, 0.95, 0, 0, 0.6])
    assert [float(s["images"]) for s in states] == [50, 0, 50, 0, 50, 0]
    assert {value.dtype for value in states[-1].values()} == {torch.float64}
    rises = follow(rule, [1.0] * 30, images=50)
    assert float(rises[-1]["p"]) == 1.0 and float(rises[19]["p"]) == pytest.approx(1.0)  # 1 kimg from 0 to 1, and no further
    assert float(follow(rule, [-1.0] * 4, images=50)[-1]["p"]) == 0.0
    assert float(follow(rule, [0.5] * 4, images=50)[-1]["p"]) == 0.0  # at the target


def test_the_speed_of_p_does_not_depend_on_batch_size_or_d_steps():
    ends = [
        float(follow(Ada(length_kimg=2.0, every=128), [1.0] * (1024 // images * d_steps), images, d_steps)[-1]["p"])
        for images, d_steps in ((32, 1), (128, 1), (256, 1), (32, 4), (256, 3))
    ]
    assert ends == pytest.approx([1024 / 2000] * 5)
    late = follow(Ada(length_kimg=2.0, every=128), [1.0] * 4, 64, nimg=10**6)  # a run that continues another one
    assert float(late[-1]["p"]) == pytest.approx(256 / 2000)


def test_the_state_of_p_goes_on_where_it_was_saved():
    rule, signs = Ada(target=0.6, length_kimg=3.0, every=100), [1.0, 0.7, -0.3, 0.61, 1 / 3, 0.9]
    whole = follow(rule, signs, 48)
    saved = {name: float(value) for name, value in follow(rule, signs[:3], 48)[-1].items()}
    again = {name: torch.tensor(value, dtype=torch.float64) for name, value in saved.items()}
    rest = follow(rule, signs[3:], 48, state=again, nimg=3 * 48)
    assert all(torch.equal(rest[-1][name], whole[-1][name]) for name in saved)


def test_signs_are_those_of_the_logits_and_nan_has_none():
    rule = Ada()
    assert float(rule.observe(torch.tensor([3.0, -0.1, 0.0, 0.2]))["sign"]) == 0.25
    assert float(rule.observe(torch.tensor([float("nan"), 1.0]))["sign"]) == 0.5
    assert float(rule.observe(torch.tensor([float("inf"), -float("inf")]))["sign"]) == 0.0


def test_the_mean_sign_is_shown_once_there_is_one():
    rule = Ada(target=0.5, length_kimg=1.0, every=100)
    first, second = follow(rule, [1.0, 0.9], images=50)
    assert rule.shown(first, 50) == {"p": torch.tensor(0.0).double()}
    assert {name: float(value) for name, value in rule.shown(second, 100).items()} == pytest.approx({"p": 0.1, "sign_real": 0.95})


def test_a_given_p_observes_nothing_and_is_shown():
    rule = Ada(p=Schedule(0.0, 0.5, until_kimg=10))
    assert rule.initial_state() == {} and rule.observe(torch.ones(4)) == {} and rule.shown({}, 5000) == {"p": 0.25}
    assert Ada(p=0.3).shown({}, 0) == {"p": 0.3} and Plain().shown({}, 0) == {}
    for bad, words in (({"p": 1.5}, "p: must be in"), ({"p": Schedule(0, 2, until_kimg=1)}, "p: must be in"), ({"target": 1.0}, "target: "),
                       ({"length_kimg": 0.0}, "length_kimg: "), ({"every": 0}, "every: "),
                       (dict.fromkeys(ada.GROUPS, 0.0), "blit: must be above 0 if"), ({"color": 1.5}, "color: must be in")):  # fmt: skip
        with pytest.raises(InvalidField, match=words):
            Ada(**bad)


def test_a_p_that_may_leak_or_cannot_rise_is_noted():
    short = Config(augment=Ada(), total_kimg=80)
    assert notes(short) == ["augment.length_kimg=500: p starts at 0 and cannot exceed 0.16 by the end, at total_kimg=80"]
    assert notes(Config(augment=Ada(length_kimg=50), total_kimg=80)) == notes(Config(augment=Ada(p=0.8))) == notes(Config()) == []
    high = Config(augment=Ada(p=Schedule(0.0, 0.9, until_kimg=10)))
    assert notes(high) == ["augment.p reaches 0.9: above 0.8, generated images may show the augmentation"]


def test_an_adaptive_p_needs_a_loss_with_a_boundary_at_0():
    separate = {name: separates_by_sign(cls()) for name, cls in LOSSES.items()}
    assert separate["hinge"] and separate["nonsaturating"] and not separate["relativistic"]

    @dataclasses.dataclass(frozen=True)
    class Squares:
        real: float = 1.0
        fake: float = 0.0

        def discriminator(self, logits_real, logits_fake):
            return (logits_real - self.real).square().mean() + (logits_fake - self.fake).square().mean()

        def generator(self, logits_real, logits_fake):
            return (logits_fake - self.real).square().mean()

    with pytest.raises(InvalidField, match="loss.name: must draw logits to 0 .*; or set augment.p to a number"):
        Config(augment=Ada(), loss=Squares())
    assert Config(augment=Ada(), loss=Squares(fake=-1.0)).augment.reads_sign and Config(augment=Ada(p=0.5), loss=Squares())


# ---- in training ----------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_rounds_with_ada_are_one_batch():
    """With a penalty of second order through the pipe, and p that moves: gradients after two updates, and all states."""
    found = []
    for b, k in [(6, 1), (3, 2)]:
        (g, d), own = (player(n) for n in networks()), terms(Ada(every=6, length_kimg=0.02, target=-0.9, **ALL), r1=R1(0.3, every=1))
        found.append((play(g, d, Hinge(), own, b, k, updates=3), flat(own.states)))
    assert 0.3 < found[0][1]["augment/p"] < 1
    for one, other in zip(found[0], found[1]):
        for name, tensor in one.items():
            torch.testing.assert_close(other[name], tensor, rtol=1e-9, atol=1e-12)


class Held(nn.Module):
    """The best generator: it returns digits that D is never shown as real."""

    def __init__(self, digits: torch.Tensor):
        super().__init__()
        self.digits, self.nothing = digits, nn.Parameter(torch.zeros(1))

    def forward(self, z: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return self.digits[(torch.special.ndtr(z[:, 0]) * len(self.digits)).long()] + 0 * self.nothing


class Perceptron(nn.Module):
    """A D that can learn a hundred digits by heart."""

    def __init__(self):
        super().__init__()
        wide = (nn.Linear(64, 256), nn.LeakyReLU(0.2), nn.Linear(256, 256), nn.LeakyReLU(0.2), nn.Linear(256, 1))
        self.layers = nn.Sequential(nn.Flatten(), *wide)

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return self.layers(x)[:, 0]


def signs_and_p(count: int, augment: Ada, updates: int = 450, b: int = 64) -> tuple[float, float]:
    """(mean sign of D's logits at `count` real digits, p): each the mean over the second half of a training of D against others."""
    torch.manual_seed(0)
    digits = torch.from_numpy(load_digits().images).float()[torch.randperm(1797), None] / 8 - 1
    g, d, own = player(Held(digits[898:])), player(Perceptron()), terms(augment)
    signs, found = [], []
    for update in range(updates):
        x, z, y = digits[torch.randint(count, (b,))], torch.randn(b, 1), torch.zeros(b, dtype=torch.int64)
        positions = torch.arange(update * b, update * b + b)
        setting = own.setting("d0", update * b)
        with torch.no_grad():
            signs.append(float(d.network(setting.augmented(x, "real", positions), y).sign().mean()))
        own.follow(discriminator_phase(g, d, NonSaturating(), [((x, y), (z, y, positions))], 1, setting=setting), [], b, update * b)
        found.append(float(own.shown(update * b)["augment/p"]))
    return float(np.mean(signs[updates // 2 :])), float(np.mean(found[updates // 2 :]))


@pytest.mark.slow
def test_p_rises_where_d_overfits_and_stays_low_where_it_does_not():
    """Real and generated images have one distribution here, so all that D learns is which images are the real ones."""
    adaptive = Ada(length_kimg=10)
    alone, _ = signs_and_p(100, Ada(p=0.0))
    few, p_few = signs_and_p(100, adaptive)
    many, p_many = signs_and_p(898, adaptive)
    assert alone > 0.8 and few == pytest.approx(adaptive.target, abs=0.1) and p_few > 0.04
    assert many < adaptive.target and p_many < 0.005


WHOLE = ["train", str(ROOT / "configs" / "digits.yaml"), *TINY, "augment={name: ada, every: 48, length_kimg: 1.0, target: 0.3}"]


def newest(run: Path) -> Path:
    return sorted((run / "checkpoints").iterdir())[-1]


def require_same(run: Path, other: Path) -> None:
    """Weights and the augmentation's state of the newest checkpoints, to the bit."""
    for file in sorted(newest(run).glob("*.safetensors")):
        ours, theirs = load_file(file), load_file(newest(other) / file.name)
        assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours), file.name
    ours, theirs = (json.loads((newest(one) / "state.json").read_text()) for one in (run, other))
    assert ours.get("terms") == theirs.get("terms")


@pytest.mark.slow
def test_a_run_that_was_killed_has_the_same_p_to_the_bit(gantrain, tmp_path):
    gantrain(*WHOLE, f"run_dir={tmp_path / 'whole'}")
    gantrain(*WHOLE, f"run_dir={tmp_path / 'killed'}", "total_kimg=0.24")
    shutil.rmtree(newest(tmp_path / "killed"))  # as if the run had been killed after its checkpoint of 0.16 kimg
    gantrain(*WHOLE, f"run_dir={tmp_path / 'killed'}")
    require_same(tmp_path / "killed", tmp_path / "whole")
    saved = json.loads((newest(tmp_path / "whole") / "state.json").read_text())["terms"]["augment"]
    assert saved.keys() == Ada().initial_state().keys() and 0 < saved["p"] < 1 and saved["images"] > 0
    shown = [line["augment/p"] for line in lines_of(tmp_path / "whole") if "augment/p" in line]
    assert len(shown) == 4 and shown[-1] > 0


@pytest.mark.slow
def test_samples_and_scores_never_show_the_augmentation(gantrain, tmp_path, monkeypatch):
    """An augmentation that is the identity changes no number of a run, and after training nothing is augmented."""
    plain = [word for word in WHOLE if not word.startswith("augment=")]
    gantrain(*plain, f"run_dir={tmp_path / 'plain'}")
    gantrain(*plain, "augment={name: ada, p: 1.0e-9}", f"run_dir={tmp_path / 'same'}")
    require_same(tmp_path / "plain", tmp_path / "same")
    sheets = [sorted((tmp_path / name / "samples").iterdir())[-1].read_bytes() for name in ("plain", "same")]
    assert sheets[0] == sheets[1]
    gantrain(*plain, "augment.name=diffaugment", f"run_dir={tmp_path / 'strong'}")
    calls = []
    monkeypatch.setattr(DiffAugment, "apply", lambda *arguments: calls.append(arguments))
    gantrain("sample", tmp_path / "strong", "--num", 4, "--out", tmp_path / "four.png")
    gantrain("evaluate", tmp_path / "strong", "--average", "live")
    gantrain("report", tmp_path / "strong")
    assert calls == [] and (tmp_path / "four.png").is_file()
    with pytest.raises(AssertionError):
        gantrain(*plain, "augment.name=diffaugment", f"run_dir={tmp_path / 'strong'}", "total_kimg=0.4")
    assert calls


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["bf16", "fp32"])
def test_a_run_with_r1_at_both_precisions(gantrain, tmp_path, precision):
    more = ["penalties={r1: {name: r1, gamma: 0.1, every: 2}}", f"mixed_precision={precision}", "noise_scale.measure_every=2"]
    gantrain(*WHOLE, *more, f"run_dir={tmp_path / 'run'}", "total_kimg=0.16")
    assert all(np.isfinite(line["loss/d"]) for line in lines_of(tmp_path / "run") if "loss/d" in line)
