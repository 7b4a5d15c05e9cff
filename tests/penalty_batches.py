"""Micro-batches for tests of penalties: small networks in float64 whose derivatives are written by hand, and `PenaltyBatch`es of them."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

from gantrain.losses.objective import PenaltyBatch
from gantrain.randomness import Draws

CLASSES, DIM_Z, SHAPE = 3, 5, (2, 4, 4)
SIZE = 32


class SmoothD(nn.Module):
    """D(x, y) = v . tanh(W x + B_y), whose gradient at an image is W^T (v * (1 - tanh^2))."""

    def __init__(self, seed: int = 0, size: int = SIZE, width: int = 6):
        super().__init__()
        source = torch.Generator().manual_seed(seed)
        self.W = nn.Parameter(torch.randn(width, size, generator=source, dtype=torch.float64) / 4)
        self.B = nn.Parameter(torch.randn(CLASSES, width, generator=source, dtype=torch.float64) / 2)
        self.v = nn.Parameter(torch.randn(width, generator=source, dtype=torch.float64))

    def forward(self, x, y):
        return torch.tanh(x.flatten(1) @ self.W.T + self.B[y]) @ self.v

    def numpy(self, x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(logits `[N]`, gradients `[N, size]`)."""
        W, B, v = (p.detach().numpy() for p in (self.W, self.B, self.v))
        h = np.tanh(x.reshape(len(x), -1) @ W.T + B[y])
        return h @ v, ((1 - h**2) * v) @ W


class LinearD(nn.Module):
    """D(x, y) = w . x + y."""

    def __init__(self, w):
        super().__init__()
        self.w = nn.Parameter(w)

    def forward(self, x, y):
        return x.flatten(1) @ self.w + y


class QuadraticD(nn.Module):
    """D(x, y) = g . x + x . H x / 2, whose gradient at 0 is g."""

    def __init__(self, g, H):
        super().__init__()
        self.g, self.H = nn.Parameter(g), nn.Parameter(H)

    def forward(self, x, y):
        x = x.flatten(1)
        return x @ self.g + ((x @ self.H) * x).sum(dim=1) / 2


class SmoothG(nn.Module):
    """G(z, y) = tanh(A z + C_y), an image; without BatchNorm."""

    def __init__(self, seed: int = 1):
        super().__init__()
        source = torch.Generator().manual_seed(seed)
        self.A = nn.Parameter(torch.randn(SIZE, DIM_Z, generator=source, dtype=torch.float64) / 2)
        self.C = nn.Parameter(torch.randn(CLASSES, SIZE, generator=source, dtype=torch.float64) / 2)

    def forward(self, z, y):
        return torch.tanh(z @ self.A.T + self.C[y]).unflatten(1, SHAPE)

    def numpy(self, z: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(images `[N, SIZE]`, Jacobians `[N, SIZE, DIM_Z]`)."""
        A, C = self.A.detach().numpy(), self.C.detach().numpy()
        x = np.tanh(z @ A.T + C[y])
        return x, (1 - x**2)[:, :, None] * A


def make_batch(
    D,
    G,
    positions,
    player: str = "d",
    state=None,
    nimg: int = 10**9,
    augment=None,
    purpose: str = "d0/penalties/p",
    images=None,
    generator=None,
) -> PenaltyBatch:
    """The batch of these positions, as the update makes it.

    Args:
        positions: of the images, which they alone decide on.
        state: as of `Penalty.initial_state`.
        augment: (images, kind, positions) -> images, if D sees them augmented.
        images: takes the place of the real ones.
        generator: what the batch has as a generator, if it is not G.
    """
    positions = torch.as_tensor(positions)
    inputs = Draws(7, "inputs", positions)
    x_real = inputs.uniform("real", *SHAPE).double() * 2 - 1 if images is None else images
    y_real, y_fake = ((inputs.uniform(name)[:] * CLASSES).long().view(-1) for name in ("y_real", "y_fake"))
    z = inputs.normal("z", DIM_Z).to(x_real.dtype)
    augment = augment or (lambda x, kind, positions: x)

    def d(kind):
        def logits_of(x, y, stride=1):
            places = positions[::stride]
            assert len(x) % len(places) == 0
            return D(augment(x, kind, places.repeat(len(x) // len(places))), y)

        return logits_of

    with torch.set_grad_enabled(player == "g"):
        x_fake = G(z, y_fake).to(x_real.dtype)
    d_real, d_fake = d("real"), d("fake")
    state = {name: torch.tensor(value, dtype=torch.float64) for name, value in (state or {}).items()}
    return PenaltyBatch(
        d_real, d_fake, generator or G, x_real, y_real, x_fake, y_fake, z, d_real(x_real, y_real), d_fake(x_fake, y_fake),
        Draws(3, purpose, positions), nimg, state,
    )  # fmt: skip
