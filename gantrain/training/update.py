"""One update of the game: D phases, then a G phase, each of k rounds of micro-batches. Pure tensor code."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import nullcontext
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from gantrain.batching.noise_scale import GradientProbe
from gantrain.losses import Loss, Penalty
from gantrain.losses.objective import LogitsOf, PenaltyBatch
from gantrain.spectral_norm import frozen_power_iteration, reuse_normed_weights
from gantrain.training.players import Player
from gantrain.training.results import (
    require_gradient,
    require_images,
    require_logits,
    require_observed,
    require_scalar,
    require_term,
)
from gantrain.training.terms import AUGMENT, PENALTIES, Due, PlayerKey, Setting, observed_as

Stats = dict[str, Tensor]
Batch = tuple[Tensor, Tensor]  # (images, labels) of one micro-batch
RealOfG = tuple[Tensor | None, Tensor]  # the same in G's phase, without the images if the loss of G only pairs labels
# (z, labels, positions in the stream: int64 `[b]` on the device) of one micro-batch; positions may be left out if there is one round.
Latents = tuple[Tensor, Tensor, Tensor] | tuple[Tensor, Tensor]
NOWHERE = Setting()


def discriminator_phase(
    G: Player, D: Player, loss: Loss, rounds: Iterable[tuple[Batch, Latents]], k: int, probe: GradientProbe | None = None,
    penalties: Sequence[Due | tuple[Penalty, float]] = (), setting: Setting = NOWHERE,
) -> Stats:  # fmt: skip
    """One optimizer step of D on k rounds.

    Args:
        rounds: k pairs ((x_real `[b, C, H, W]` in [-1, 1], labels), (z `[b, dim_z]`, labels, positions)).
        probe: of D, if this step's gradients are measured.
        penalties: added to the loss, each with its factor.
        setting: of this phase.
    """

    def term(batch: tuple[Batch, Latents]) -> tuple[Tensor, Stats]:
        (x_real, y_real), latents = batch
        z, y_fake, positions = placed(latents)
        y_fake = y_real if loss.paired_labels else y_fake
        with torch.no_grad():
            x_fake = G.network(z, y_fake)
        require_images(x_fake, x_real, G.network)
        x_fake = x_fake.to(x_real.dtype)
        # One forward pass for both halves the number of kernel launches.
        shown = torch.cat([setting.augmented(x_real, "real", positions), setting.augmented(x_fake, "fake", positions)])
        logits = D.wrapped(shown, torch.cat([y_real, y_fake]))
        require_logits(logits, 2 * len(x_real), D.network)
        logits_real, logits_fake = full_precision(logits).chunk(2)
        value = loss.discriminator(logits_real, logits_fake)
        require_scalar(value, loss, "discriminator")
        require_gradient(value, loss, "discriminator")
        stats = {"loss/d": value, "logits/real": logits_real.mean(), "logits/fake": logits_fake.mean()}
        stats |= observed_by(setting, logits_real)
        scene = Scene(x_real, y_real, x_fake, y_fake, z, logits_real, logits_fake, positions)
        return penalised(value, stats, "d", G, D, penalties, scene, setting), stats

    return step(D, G, term, rounds, k, probe)


def generator_phase(
    G: Player, D: Player, loss: Loss, rounds: Iterable[tuple[RealOfG | None, Latents]], k: int, probe: GradientProbe | None = None,
    penalties: Sequence[Due | tuple[Penalty, float]] = (), setting: Setting = NOWHERE,
) -> Stats:  # fmt: skip
    """One optimizer step of G on k rounds.

    Args:
        rounds: k pairs (real, (z, labels, positions)). `real` is a batch of real images and labels if the loss sees them, (None, labels)
            if it only pairs labels, and may be None if it does neither.
        probe: of G, if this step's gradients are measured.
        penalties: added to the loss, each with its factor.
        setting: of this phase.
    """

    def term(batch: tuple[RealOfG | None, Latents]) -> tuple[Tensor, Stats]:
        real, latents = batch
        x_real, y_real = real or (None, None)
        z, y_fake, positions = placed(latents)
        if loss.paired_labels:
            assert y_real is not None, "a loss that pairs labels needs those of real images"
            y_fake = y_real
        x_fake = G.wrapped(z, y_fake)
        if x_real is None or y_real is None:
            y_real = None
            logits = D.network(setting.augmented(x_fake, "fake", positions), y_fake)
            require_logits(logits, len(z), D.network)
            logits_real, logits_fake = None, full_precision(logits)
        else:
            require_images(x_fake, x_real, G.network)
            x_fake = x_fake.to(x_real.dtype)
            shown = torch.cat([setting.augmented(x_real, "real", positions), setting.augmented(x_fake, "fake", positions)])
            logits = D.network(shown, torch.cat([y_real, y_fake]))
            require_logits(logits, 2 * len(x_real), D.network)
            logits_real, logits_fake = full_precision(logits).chunk(2)
        value = loss.generator(logits_real, logits_fake)
        require_scalar(value, loss, "generator")
        require_gradient(value, loss, "generator")
        stats = {"loss/g": value}
        scene = Scene(x_real, y_real, x_fake, y_fake, z, logits_real, logits_fake, positions)
        return penalised(value, stats, "g", G, D, penalties, scene, setting), stats

    trained = [p for p in D.network.parameters() if p.requires_grad]
    for parameter in trained:
        parameter.requires_grad_(False)
    try:
        return step(G, D, term, rounds, k, probe)
    finally:
        for parameter in trained:
            parameter.requires_grad_(True)


def placed(latents: Latents) -> tuple[Tensor, Tensor, Tensor]:
    """(z, labels, positions) of a micro-batch; positions that were left out count from 0, as in a batch of one round."""
    if len(latents) == 3:
        return latents
    z, y = latents
    return z, y, torch.arange(len(z), device=z.device)


class Scene(NamedTuple):
    """A micro-batch in the middle of a phase: what penalties see of it, as in `PenaltyBatch`, and the positions of its latents."""

    x_real: Tensor | None
    y_real: Tensor | None
    x_fake: Tensor
    y_fake: Tensor
    z: Tensor
    logits_real: Tensor | None
    logits_fake: Tensor
    positions: Tensor


def observed_by(setting: Setting, logits_real: Tensor) -> Stats:
    """What the augmentation observes in a phase of D, by the names under which `Terms` finds it."""
    if setting.augmentation is None:
        return {}
    with torch.no_grad():
        found = setting.augmentation.observe(logits_real.detach())
    require_observed(found, setting.augmentation, "observe")
    return observed_as(AUGMENT, found)


def penalised(
    value: Tensor, stats: Stats, player: PlayerKey, G: Player, D: Player, penalties: Sequence[Due | tuple[Penalty, float]], scene: Scene,
    setting: Setting,
) -> Tensor:  # fmt: skip
    """A player's loss with its penalties added, each of which is noted in the statistics.

    The networks' spectral norms do not iterate in further forward passes: they iterate once a phase.
    """
    if not penalties:
        return value
    total = "loss/penalty" if player == "d" else "loss/penalty_g"
    batch = seen_by_penalties(player, G, D, scene, setting)
    with frozen_power_iteration(G.network), frozen_power_iteration(D.network):
        for due in penalties:
            one = due if isinstance(due, Due) else Due(*due)
            draws = setting.draws(f"penalties/{one.key}", scene.positions)
            found = one.penalty.term(dataclasses.replace(batch, draws=draws, state=one.state), player)
            require_term(found, one.penalty)
            amount, observed = found[0].to(value.dtype), found[1]
            value = value + one.factor * amount
            stats[total] = stats.get(total, 0.0) + one.factor * amount
            stats[one.shown_as(player)] = amount
            stats |= observed_as(f"{PENALTIES}{one.key}", observed)
    return value


def seen_by_penalties(player: PlayerKey, G: Player, D: Player, scene: Scene, setting: Setting) -> PenaltyBatch:
    """A micro-batch for penalties, without their own random numbers and states."""
    judge = D.wrapped if player == "d" else D.network

    def logits_of(kind: Literal["real", "fake"]) -> LogitsOf:
        return lambda x, y: full_precision(judge(setting.augmented(x, kind, scene.positions), y))

    def images_of(z: Tensor, y: Tensor) -> Tensor:
        if player == "g":
            return G.wrapped(z, y)
        with torch.no_grad():
            return G.network(z, y)

    return PenaltyBatch(
        logits_of("real"), logits_of("fake"), images_of, scene.x_real, scene.y_real, scene.x_fake, scene.y_fake, scene.z,
        scene.logits_real, scene.logits_fake, setting.draws("penalties", scene.positions), setting.nimg, {},
    )  # fmt: skip


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
