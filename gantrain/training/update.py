"""One update of the game: D phases, then a G phase, each of k rounds of micro-batches. Pure tensor code."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from gantrain.batching.noise_scale import GradientProbe
from gantrain.losses import Loss, Penalty
from gantrain.losses.direction import direction_loss
from gantrain.models.san import split_logits
from gantrain.spectral_norm import frozen_power_iteration, reuse_normed_weights
from gantrain.training.players import Player
from gantrain.training.results import require_gradient, require_images, require_logits, require_scalar

Stats = dict[str, Tensor]
Batch = tuple[Tensor, Tensor]  # (images or latents, labels) of one micro-batch


def discriminator_phase(
    G: Player, D: Player, loss: Loss, rounds: Iterable[tuple[Batch, Batch]], k: int,
    probe: GradientProbe | None = None, penalties: Sequence[tuple[Penalty, float]] = (),
) -> Stats:  # fmt: skip
    """One optimizer step of D on k rounds.

    Args:
        rounds: k pairs ((x_real `[b, C, H, W]` in [-1, 1], labels), (z `[b, dim_z]`, labels)).
        probe: of D, if this step's gradients are measured.
        penalties: added to the loss, each with its factor.
    """

    def term(batch: tuple[Batch, Batch]) -> tuple[Tensor, Stats]:
        (x_real, y_real), (z, y_fake) = batch
        with torch.no_grad():
            x_fake = G.network(z, y_fake)
        require_images(x_fake, x_real, G.network)
        # One forward pass for both halves the number of kernel launches.
        with split_logits(D.network) as sliced:
            logits = D.wrapped(torch.cat([x_real, x_fake.to(x_real.dtype)]), torch.cat([y_real, y_fake]))
        logits, along = full_precision(logits).unbind() if sliced else (logits, None)
        require_logits(logits, 2 * len(x_real), D.network)
        logits_real, logits_fake = full_precision(logits).chunk(2)
        value = loss.discriminator(logits_real, logits_fake)
        require_scalar(value, loss, "discriminator")
        stats = {"loss/d": value, "logits/real": logits_real.mean(), "logits/fake": logits_fake.mean()}
        if along is not None:
            stats["loss/direction"] = direction_loss(loss, *along.chunk(2))
            value = value + stats["loss/direction"]
        for penalty, factor in penalties:
            with frozen_power_iteration(D.network):  # they iterate once per phase
                amount = penalty.penalty(D.wrapped, x_real, x_fake, y_real, y_fake)
            require_scalar(amount, penalty, "penalty")
            value = value + factor * amount
            stats["loss/penalty"] = stats.get("loss/penalty", 0.0) + factor * amount
        require_gradient(value, loss, "discriminator")
        return value, stats

    return step(D, G, term, rounds, k, probe)


def generator_phase(
    G: Player, D: Player, loss: Loss, rounds: Iterable[tuple[Batch | None, Batch]], k: int, probe: GradientProbe | None = None
) -> Stats:
    """One optimizer step of G on k rounds; the real batch may be None if the loss does not see real images."""

    def term(batch: tuple[Batch | None, Batch]) -> tuple[Tensor, Stats]:
        real, (z, y_fake) = batch
        x_fake = G.wrapped(z, y_fake)
        if real is None:
            logits = D.network(x_fake, y_fake)
            require_logits(logits, len(z), D.network)
            logits_real, logits_fake = None, full_precision(logits)
        else:
            x_real, y_real = real
            require_images(x_fake, x_real, G.network)
            logits = D.network(torch.cat([x_real, x_fake.to(x_real.dtype)]), torch.cat([y_real, y_fake]))
            require_logits(logits, 2 * len(x_real), D.network)
            logits_real, logits_fake = full_precision(logits).chunk(2)
        value = loss.generator(logits_real, logits_fake)
        require_scalar(value, loss, "generator")
        require_gradient(value, loss, "generator")
        return value, {"loss/g": value}

    trained = [p for p in D.network.parameters() if p.requires_grad]
    for parameter in trained:
        parameter.requires_grad_(False)
    try:
        return step(G, D, term, rounds, k, probe)
    finally:
        for parameter in trained:
            parameter.requires_grad_(True)


def step(player: Player, other: Player, term: Callable, rounds: Iterable, k: int, probe: GradientProbe | None = None) -> Stats:
    """Accumulate the gradient of the mean of `term` over k rounds, regularise it, and step the optimizer.

    Processes exchange gradients once, in the last round. Spectral norms are iterated once, in the first round, which also
    normalises the other player's weights for all rounds. With a probe, `stats["measured"]` is its measurement of
    the loss's gradient, before regularisation is added.
    """
    player.optimizer.zero_grad(set_to_none=True)
    if probe and probe.halves(k):
        rounds, k = halves(rounds), 2 * k
    total: Stats = {}
    with reuse_normed_weights(other.network), probe.listening() if probe else nullcontext():
        for j, batch in enumerate(rounds):
            # no_sync must span the forward too: DDP decides there whether this backward will exchange gradients.
            sync = nullcontext() if j == k - 1 else player.no_sync()
            norms = nullcontext() if j == 0 else frozen_power_iteration(player.network)
            others = nullcontext() if j == 0 else frozen_power_iteration(other.network)
            with sync, norms, others:
                value, stats = term(batch)
                player.scaler.scale(value / k).backward()
            for name, stat in stats.items():
                total[name] = total.get(name, 0.0) + stat.detach() / k
    if probe:
        scale = player.scaler.scale(torch.ones((), device=value.device))  # kept as a tensor to avoid a device sync
    player.scaler.unscale_(player.optimizer)
    if probe:
        total["measured"] = probe.measurement(k, scale)
    add_orthogonal_gradient(player)
    gradients = [p.grad for p in player.network.parameters() if p.grad is not None]
    total["grad_norm/" + ("d" if "loss/d" in total else "g")] = nn.utils.get_total_norm(gradients)
    player.scaler.step(player.optimizer)
    player.scaler.update()
    return total


def halves(rounds: Iterable) -> Iterator:
    """The same micro-batches, each split into two halves."""

    def half(value: Any, i: int) -> Any:
        return value if value is None else value.chunk(2)[i] if isinstance(value, Tensor) else tuple(half(part, i) for part in value)

    for batch in rounds:
        yield half(batch, 0)
        yield half(batch, 1)


def full_precision(logits: Tensor) -> Tensor:
    """Convert logits to at least fp32, in which losses are computed whatever precision the networks use."""
    return logits.float() if logits.dtype in (torch.bfloat16, torch.float16) else logits


@torch.no_grad()
def add_orthogonal_gradient(player: Player) -> None:
    """Add the gradient of beta * ||W W^T o (1 - I)||_F^2 over every weight matrix W, filters as rows.

    Brock et al. 2019, Eq. 3: rows are pushed to be orthogonal; their lengths are free. The gradient is
    4 beta (W W^T o (1 - I)) W, computed in closed form. (The authors' PyTorch release has 2 instead of 4: its strength s is
    our weight s / 2.)
    """
    if not player.orthogonal:
        return
    for weight in player.network.parameters():
        if weight.dim() < 2 or weight.grad is None or weight in player.exempt:
            continue
        w = weight.flatten(1)
        gram = w @ w.T
        gram.fill_diagonal_(0.0)
        weight.grad.add_((gram @ w).view_as(weight), alpha=4.0 * player.orthogonal)


def penalties_due(penalties: Iterable[Penalty], d_step: int) -> list[tuple[Penalty, float]]:
    """The penalties of D's step number `d_step`, each with its factor: one that is applied every n-th step is multiplied by n."""
    return [(penalty, float(penalty.every)) for penalty in penalties if d_step % penalty.every == 0]
