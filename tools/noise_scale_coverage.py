"""How often the 95% intervals of the gradient noise scale hold the true value: simulated gradients, whose true value is known.

    python tools/noise_scale_coverage.py

Prints three tables in Markdown. The first is for fixed weights, as `gantrain noise-scale` measures: independent updates, by number of
measurements and by spectrum of the covariance Sigma. Its effective number of directions is (tr Sigma)^2 / tr(Sigma^2). The second is
for weights that move, as training measures: stochastic gradient descent on |w|^2 / 2 at its noise floor, measured at consecutive
updates. Its intervals are held against the noise scale of the weights that the window has seen, and against that of the whole
stationary motion. In the third, the gradient swings as that of a GAN does: the logarithm of |G|^2 is normal with a standard deviation
of 1, and correlated between measurements. Where more than one window in a
hundred has no interval, their share in percent stands in brackets.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence

import command
import numpy as np

from gantrain.batching import Estimate, estimate

RATIOS = (1, 4, 16, 64, 256)  # B_simple in batches
SPECTRA = {
    "300 equal directions": np.ones(300),
    "20 equal directions": np.ones(20),
    "50 directions, the i-th with 1 / i": np.arange(1, 51) ** -1.0,
    "30 directions, the i-th with 1 / i^2": np.arange(1, 31) ** -2.0,
}


def unbiased(micro: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(tr Sigma, |G|^2) of updates, from the gradients `[..., k, directions]` of their k micro-batches; the batch is the unit."""
    k = micro.shape[-2]
    small, big = (micro**2).sum(-1).mean(-1), (micro.mean(-2) ** 2).sum(-1)
    return (small - big) / (k - 1), (k * big - small) / (k - 1)


def share(traces: np.ndarray, squares: np.ndarray, b_simple: Sequence[float]) -> str:
    """The share of the intervals that hold their true values, in percent, and of the windows without an interval if it is above 1%.

    Args:
        traces, squares: `[windows, measurements]`.
        b_simple: the true value of each window.
    """
    found = [(one, true) for s, g, true in zip(traces, squares, b_simple, strict=True) if not (one := estimate(s, g)).undecidable]
    none = 1 - len(found) / len(traces)
    return f"{100 * np.mean([holds(one, true) for one, true in found]):.1f}" + (f" ({100 * none:.0f})" if none > 0.01 else "")


def holds(one: Estimate, b_simple: float) -> bool:
    """Whether an interval holds the true value; one without an upper end holds all that is above its lower end."""
    return one.low is not None and one.low <= b_simple and (one.high is None or b_simple <= one.high)


def fixed_weights(spectrum: np.ndarray, ratio: float, k: int, n: int, repeats: int, rng: np.random.Generator) -> str:
    """The coverage at fixed weights, with the gradient spread over all directions."""
    spectrum = spectrum / spectrum.sum()
    mean = 1 / math.sqrt(ratio * len(spectrum))
    windows = []
    for _ in range(0, repeats, 100):  # all at once would take much memory
        noise = rng.standard_normal((100, n, k, len(spectrum)))
        windows.append(unbiased(mean + noise * np.sqrt(spectrum * k)))
    traces, squares = (np.concatenate(each) for each in zip(*windows))
    return share(traces, squares, [ratio] * len(traces))


def moving_weights(rate: float, directions: int, k: int, n: int, repeats: int, rng: np.random.Generator) -> tuple[str, str]:
    """The coverage at SGD's noise floor: of the noise scale of the weights in the window, and of the stationary noise scale.

    Each weight is an AR(1) of variance rate / (2 - rate) batches, so the stationary noise scale is (2 - rate) / rate batches.
    """
    w = rng.standard_normal((repeats, directions)) * math.sqrt(rate / (2 - rate) / directions)
    found, lengths = [], np.zeros(repeats)
    for _ in range(n):
        micro = w[:, None] + rng.standard_normal((repeats, k, directions)) * math.sqrt(k / directions)
        found.append(unbiased(micro))
        lengths += (w**2).sum(1) / n
        w -= rate * micro.mean(1)
    traces, squares = (np.stack(each, 1) for each in zip(*found))
    return share(traces, squares, list(1 / lengths)), share(traces, squares, [(2 - rate) / rate] * repeats)


def swinging_gradient(ratio: float, correlation: float, k: int, n: int, repeats: int, rng: np.random.Generator) -> tuple[str, str]:
    """The coverage where log |G|^2 is an AR(1) of standard deviation 1: of the noise scale in the window, and of the long run."""
    directions = 100
    logarithm = rng.standard_normal(repeats)
    found, lengths = [], np.zeros(repeats)
    for _ in range(n):
        squared = np.exp(logarithm - 0.5) / ratio  # whose mean is 1 / ratio
        mean = np.sqrt(squared / directions)[:, None, None]
        found.append(unbiased(mean + rng.standard_normal((repeats, k, directions)) * math.sqrt(k / directions)))
        lengths += squared / n
        logarithm = correlation * logarithm + math.sqrt(1 - correlation**2) * rng.standard_normal(repeats)
    traces, squares = (np.stack(each, 1) for each in zip(*found))
    return share(traces, squares, list(1 / lengths)), share(traces, squares, [ratio] * repeats)


def main() -> None:
    """Parse the arguments and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=command.positive, default=2000, help="windows per cell, rounded up to hundreds (2000)")
    parser.add_argument("--measurements", type=command.positive, nargs="+", default=[8, 16, 32, 64], metavar="N")
    arguments = parser.parse_args()
    rng, repeats = np.random.default_rng(0), -(-arguments.repeats // 100) * 100
    print(f"| Σ | micro-batches | measurements | {' | '.join(f'{ratio}' for ratio in RATIOS)} |\n|{'---|' * (3 + len(RATIOS))}")
    for name, spectrum in SPECTRA.items():
        for k in (2, 8):
            for n in arguments.measurements:
                cells = [fixed_weights(spectrum, ratio, k, n, repeats, rng) for ratio in RATIOS]
                print(f"| {name} | {k} | {n} | {' | '.join(cells)} |", flush=True)
    print("\n| rate | directions | B_simple in batches | measurements | of the window | of the whole motion |\n|---|---|---|---|---|---|")
    for rate, directions in ((0.5, 100), (0.1, 100), (0.1, 5), (0.02, 100), (0.02, 5)):
        for n in arguments.measurements:
            own, whole = moving_weights(rate, directions, 2, n, repeats, rng)
            print(f"| {rate:g} | {directions} | {(2 - rate) / rate:.0f} | {n} | {own} | {whole} |", flush=True)
    rng = np.random.default_rng(1)
    print("\n| B_simple in batches | correlation | measurements | of the window | of the long run |\n|---|---|---|---|---|")
    for ratio, correlation in ((1, 0.0), (1, 0.9), (16, 0.0), (16, 0.9)):
        for n in arguments.measurements:
            own, whole = swinging_gradient(ratio, correlation, 2, n, repeats, rng)
            print(f"| {ratio} | {correlation:g} | {n} | {own} | {whole} |", flush=True)


if __name__ == "__main__":
    command.run(main)
