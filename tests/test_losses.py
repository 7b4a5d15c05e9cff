"""What every loss must do, and the formulas."""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from gantrain.config.config import Config
from gantrain.config.notes import notes
from gantrain.config.sections import Guard
from gantrain.errors import UserError
from gantrain.losses import LOSSES, PENALTIES, R1, R2, Hinge, LeastSquares, Minimax, NonSaturating, Relativistic, Wasserstein
from gantrain.models import BigGAN
from gantrain.training.facts import Facts
from gantrain.training.guard import Watch


@pytest.fixture(params=LOSSES.values(), ids=LOSSES)
def loss(request):
    return request.param()


def logits(seed: int, count: int = 32, scale: float = 2.0) -> torch.Tensor:
    return (torch.randn(count, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * scale).requires_grad_()


def undecided(seed: int, count: int = 32) -> torch.Tensor:
    """Logits in (0.1, 0.5), where no loss holds a real or a fake image for settled, or for settled too far."""
    return (torch.rand(count, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * 0.4 + 0.1).requires_grad_()


def of_generator(loss, real: torch.Tensor, fake: torch.Tensor) -> torch.Tensor:
    """G's loss as the update asks for it: with real logits only where they are wanted."""
    return loss.generator(real if loss.generator_sees_real else None, fake)


# ---- every loss ------------------------------------------------------------------------------------------------------


def test_a_loss_is_a_frozen_dataclass_that_says_what_it_needs(loss):
    assert dataclasses.is_dataclass(loss) and type(loss).__dataclass_params__.frozen
    assert isinstance(loss.generator_sees_real, bool)
    assert "generator_sees_real" not in {f.name for f in dataclasses.fields(loss)}  # a fact, no hyper-parameter
    assert loss == type(loss)()


@pytest.mark.parametrize("scale", [0.0, 2.0, 1e4])
def test_losses_are_finite_scalars_with_finite_gradients(loss, scale):
    real, fake = logits(0, scale=scale), logits(1, scale=scale)
    for value in (loss.discriminator(real, fake), of_generator(loss, real, fake)):
        assert value.shape == () and torch.isfinite(value)
        gradient = torch.autograd.grad(value, fake)[0]
        assert gradient.shape == fake.shape and torch.isfinite(gradient).all()


def test_gradient_reaches_every_undecided_logit(loss):
    real, fake = undecided(0), undecided(1)
    of_real, of_fake = torch.autograd.grad(loss.discriminator(real, fake), (real, fake))
    assert (of_real < 0).all() and (of_fake > 0).all()  # going downhill raises D(x) and lowers D(G(z))
    assert (torch.autograd.grad(of_generator(loss, real, fake), fake)[0] < 0).all()


def test_the_players_pull_in_opposite_directions(loss):
    real, fake = undecided(0), undecided(1)
    assert loss.discriminator(real + 0.1, fake) < loss.discriminator(real, fake) < loss.discriminator(real, fake + 0.1)
    assert of_generator(loss, real, fake + 0.1) < of_generator(loss, real, fake)


def test_a_loss_is_the_mean_over_the_batch(loss):
    real, fake = logits(0), logits(1)
    for f in (loss.discriminator, lambda r, x: of_generator(loss, r, x)):
        torch.testing.assert_close(f(real.repeat(2), fake.repeat(2)), f(real, fake))
        halves = (f(real[:16], fake[:16]) + f(real[16:], fake[16:])) / 2
        torch.testing.assert_close(halves, f(real, fake))  # so rounds divided by their number are the whole


def test_the_order_of_pairs_does_not_matter(loss):
    real, fake, order = logits(0), logits(1), torch.randperm(32, generator=torch.Generator().manual_seed(2))
    torch.testing.assert_close(loss.discriminator(real[order], fake[order]), loss.discriminator(real, fake))
    torch.testing.assert_close(of_generator(loss, real[order], fake[order]), of_generator(loss, real, fake))


def test_real_logits_matter_to_the_generator_exactly_where_the_loss_says(loss):
    real, fake = undecided(0), undecided(1)
    if loss.generator_sees_real:
        gradient = torch.autograd.grad(loss.generator(real, fake), real)[0]
        assert (gradient != 0).all()
        assert loss.generator(real + 1, fake) != loss.generator(real, fake)
    else:
        assert torch.equal(loss.generator(None, fake), loss.generator(real, fake))
        assert torch.autograd.grad(loss.generator(real, fake), real, allow_unused=True)[0] is None


def test_gradients_are_those_of_finite_differences(loss):
    """In float64, at logits away from the kinks of the hinge."""
    real, fake = logits(0, 8), logits(1, 8)
    assert torch.autograd.gradcheck(loss.discriminator, (real, fake))
    assert torch.autograd.gradcheck(lambda r, f: of_generator(loss, r, f), (real, fake))


def test_bf16_logits_lose_digits_and_nothing_else(loss):
    """The update converts logits to float32 before; a loop of somebody's own may not."""
    real, fake = logits(0).detach(), logits(1).detach()
    for f in (loss.discriminator, lambda r, x: of_generator(loss, r, x)):
        found = f(real.bfloat16(), fake.bfloat16())
        assert found.dtype == torch.bfloat16 and found.double().item() == pytest.approx(f(real, fake).item(), rel=0.02, abs=0.02)


# ---- formulas --------------------------------------------------------------------------------------------------------


def softplus(x: np.ndarray) -> np.ndarray:
    """log(1 + e^x)."""
    return np.logaddexp(0, x)


FORMULAS = {
    Hinge: (lambda r, f: np.maximum(0, 1 - r).mean() + np.maximum(0, 1 + f).mean(), lambda r, f: -f.mean()),
    NonSaturating: (
        # -log sigmoid(D(x)) - log(1 - sigmoid(D(G(z)))), and -log sigmoid(D(G(z)))
        lambda r, f: -np.log(1 / (1 + np.exp(-r))).mean() - np.log(1 - 1 / (1 + np.exp(-f))).mean(),
        lambda r, f: -np.log(1 / (1 + np.exp(-f))).mean(),
    ),
    Relativistic: (lambda r, f: softplus(f - r).mean(), lambda r, f: softplus(r - f).mean()),
    LeastSquares: (lambda r, f: ((r - 1) ** 2).mean() / 2 + (f**2).mean() / 2, lambda r, f: ((f - 1) ** 2).mean() / 2),
    Wasserstein: (lambda r, f: f.mean() - r.mean(), lambda r, f: -f.mean()),
    Minimax: (
        lambda r, f: -np.log(1 / (1 + np.exp(-r))).mean() - np.log(1 - 1 / (1 + np.exp(-f))).mean(),
        lambda r, f: np.log(1 - 1 / (1 + np.exp(-f))).mean(),
    ),
}


@pytest.mark.parametrize("cls", FORMULAS, ids=lambda c: c.__name__)
@pytest.mark.parametrize("seed", range(3))
def test_formula(cls, seed):
    real, fake = logits(seed).detach(), logits(seed + 10).detach()
    of_d, of_g = FORMULAS[cls]
    assert float(cls().discriminator(real, fake)) == pytest.approx(of_d(real.numpy(), fake.numpy()), rel=1e-9)
    assert float(cls().generator(real, fake)) == pytest.approx(of_g(real.numpy(), fake.numpy()), rel=1e-9)


def test_hinge_by_hand():
    real, fake = torch.tensor([2.0, 0.5, -1.0]), torch.tensor([-3.0, 0.0, 1.0])
    assert float(Hinge().discriminator(real, fake)) == pytest.approx((0 + 0.5 + 2) / 3 + (0 + 1 + 2) / 3)
    assert float(Hinge().generator(None, fake)) == pytest.approx(2 / 3)


def test_hinge_lets_go_of_logits_beyond_the_margin():
    real, fake = torch.tensor([1.5, 0.5], requires_grad=True), torch.tensor([-1.5, -0.5], requires_grad=True)
    Hinge().discriminator(real, fake).backward()
    assert real.grad.tolist() == [0, -0.5] and fake.grad.tolist() == [0, 0.5]


@pytest.mark.parametrize(
    "cls, at_zero",
    [
        (Hinge, (2.0, 0.0)),
        (NonSaturating, (2 * np.log(2), np.log(2))),
        (Relativistic, (np.log(2), np.log(2))),
        (LeastSquares, (0.5, 0.5)),
        (Wasserstein, (0.0, 0.0)),
        (Minimax, (2 * np.log(2), -np.log(2))),
    ],
)
def test_values_of_a_discriminator_that_knows_nothing(cls, at_zero):
    zero = torch.zeros(4, dtype=torch.float64)
    assert float(cls().discriminator(zero, zero)) == pytest.approx(at_zero[0])
    assert float(cls().generator(zero, zero)) == pytest.approx(at_zero[1])


def test_the_relativistic_loss_sees_differences_only():
    real, fake = logits(0), logits(1)
    torch.testing.assert_close(Relativistic().discriminator(real + 7, fake + 7), Relativistic().discriminator(real, fake))
    torch.testing.assert_close(Relativistic().generator(real, fake), Relativistic().discriminator(fake, real))


def test_every_loss_has_a_formula():
    assert set(FORMULAS) == set(LOSSES.values())


def test_labels_of_the_least_squares_loss():
    """a = -1, b = 1, c = 0 (Mao et al. 2017, Eq. 8): by hand."""
    loss, real, fake = LeastSquares(a=-1, b=1, c=0), torch.tensor([3.0, 1.0]), torch.tensor([-2.0, 1.0])
    assert loss.discriminator(real, fake).item() == pytest.approx((4 + 0) / 4 + (1 + 4) / 4)
    assert loss.generator(None, fake).item() == pytest.approx((4 + 1) / 4)


@pytest.mark.parametrize(
    "labels, words",
    [
        ({"b": -1.0}, "b: must be above a (0): D's logits are higher for real images, got -1.0"),
        ({"c": 0.0}, "c: must be above a (0), or G would help D, got 0.0"),
        ({"a": 2.0}, "b: must be above a (2): D's logits are higher for real images, got 1.0"),
        ({"a": float("inf")}, "a: must be finite, got inf"),
        ({"c": float("nan")}, "c: must be finite, got nan"),
    ],
)
def test_labels_that_turn_the_game_around_are_refused(labels, words):
    with pytest.raises(UserError) as error:
        LeastSquares(**labels)
    assert str(error.value) == words


def test_a_minimax_generator_loses_its_gradient_where_d_is_sure():
    """sigmoid(D) of each fake: the reason for the non-saturating form (Goodfellow et al. 2014, section 3)."""
    fake = torch.tensor([-8.0, 0.0, 8.0], dtype=torch.float64, requires_grad=True)
    Minimax().generator(None, fake).backward()
    torch.testing.assert_close(fake.grad, -torch.sigmoid(fake.detach()) / 3)


def test_the_guard_sees_no_saturation_in_a_loss_without_a_floor():
    """D's loss of a Wasserstein GAN is negative when all is well; that of the hinge is not."""
    guard = Guard(saturation_kimg=1)
    assert Watch(guard, (), silence=0.0).losses(0, 2000, -5.0) is None
    assert "D has won" in str(Watch(guard, (), silence=2.0).losses(0, 2000, 0.01))


BOUNDS = "loss.name=wasserstein: nothing bounds D's slope"
FLOOR = "guard.on_saturation has no effect with loss.name=wasserstein"


@pytest.mark.parametrize(
    "sections, said",
    [
        ({"loss": Wasserstein()}, []),  # spectral norm
        ({"loss": Wasserstein(), "model": BigGAN(spectral_norm=False)}, [BOUNDS]),
        ({"loss": Wasserstein(), "model": BigGAN(spectral_norm=False), "penalties": {"r1": R1()}}, []),
        ({"loss": Wasserstein(), "model": BigGAN(spectral_norm=False), "penalties": {"lecam": PENALTIES["lecam"]()}}, [BOUNDS]),
        ({"loss": Wasserstein(), "guard": Guard(on_saturation="stop")}, [FLOOR]),
        ({"loss": Wasserstein(), "guard": Guard(saturation=0.1), "model": BigGAN(spectral_norm=False)}, [BOUNDS, FLOOR]),
        ({"model": BigGAN(spectral_norm=False), "guard": Guard(on_saturation="stop")}, []),
    ],
)
def test_notes_of_a_loss_that_nothing_keeps_in_bounds(sections, said):
    found = [note for note in notes(Config(**sections)) if "wasserstein" in note]
    assert len(found) == len(said) and all(note.startswith(words) for note, words in zip(found, said))


# ---- penalties -------------------------------------------------------------------------------------------------------


class Quadratic(torch.nn.Module):
    """logits = w |x|^2 / 2 + b, whose gradient at an image is w x."""

    def __init__(self):
        super().__init__()
        self.w, self.b = (torch.nn.Parameter(torch.tensor(v, dtype=torch.float64)) for v in (1.5, -2.0))

    def forward(self, x, y):
        return self.w * x.square().sum(dim=(1, 2, 3)) / 2 + self.b


@pytest.mark.parametrize("name", ["r1", "r2"])
def test_a_penalty_is_a_frozen_dataclass_with_an_interval_and_a_scalar_with_a_gradient(name):
    penalty = PENALTIES[name]()
    assert dataclasses.is_dataclass(penalty) and type(penalty).__dataclass_params__.frozen and penalty.every >= 1
    D, x = Quadratic(), torch.randn(4, 1, 2, 2, dtype=torch.float64)
    value = penalty.penalty(D, x, x + 1, torch.zeros(4, dtype=torch.int64), torch.zeros(4, dtype=torch.int64))
    value.backward()
    assert value.shape == () and value > 0 and D.w.grad != 0 and not x.requires_grad


@pytest.mark.parametrize("penalty, which", [(R1(gamma=0.3), 0), (R2(gamma=0.3), 1)])
def test_gradient_penalties_against_a_quadratic_d(penalty, which):
    """gamma / 2 E |w x|^2 at real images for R1, at generated ones for R2 (Mescheder et al. 2018, Eqs. 9 and 10)."""
    images = torch.randn(5, 2, 3, 3, dtype=torch.float64), torch.randn(7, 2, 3, 3, dtype=torch.float64) * 2
    labels = [torch.zeros(len(x), dtype=torch.int64) for x in images]
    D = Quadratic()
    value = penalty.penalty(D, *images, *labels)
    expected = 0.3 / 2 * 1.5**2 * images[which].square().sum(dim=(1, 2, 3)).mean()
    assert value.item() == pytest.approx(expected.item(), rel=1e-12)
    value.backward()
    assert D.w.grad.item() == pytest.approx(2 * expected.item() / 1.5, rel=1e-12)


MIXED = Relativistic(paired_labels=False)


@pytest.mark.parametrize("loss, classes, said", [(MIXED, 10, True), (MIXED, 1, False), (Relativistic(), 10, False), (Hinge(), 10, False)])
def test_a_class_conditional_run_says_that_relativistic_pairs_mix_classes(loss, classes, said):
    context = SimpleNamespace(config=Config(loss=loss))
    images = SimpleNamespace(num_classes=classes, class_counts=[1] * classes)
    facts = Facts(context, None, None, None, images, None)
    facts.note_loss()
    note = (
        "loss.paired_labels=false: each real image is compared with a generated one of a class drawn independently;"
        " R3GAN, the source of the loss, compares images of one class, as a new run or a fork does with loss.paired_labels=true"
    )
    assert (note in facts.notes) == said
