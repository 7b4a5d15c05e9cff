"""The contract of architectures; BigGAN against the published networks; layers against their formulas."""

from __future__ import annotations

import copy
import dataclasses
import re

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import ROOT
from scipy import stats
from torch import Tensor, nn
from torch.nn.utils.parametrize import is_parametrized

from gantrain.errors import InvalidField, UserError
from gantrain.models import ARCHITECTURES, BigGAN
from gantrain.models.biggan import DiscriminatorBlock, GeneratorBlock, attention_places
from gantrain.models.layers import ConditionalBatchNorm2d, Layers, SelfAttention, initialize
from gantrain.spectral_norm import frozen_power_iteration, singular_values

RESOLUTIONS = (8, 16, 32, 64, 128, 256)
CLASSES = 5


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def parameters(network: nn.Module) -> int:
    return sum(p.numel() for p in network.parameters())


def noise_and_labels(G: nn.Module, count: int = 6, seed: int = 0) -> tuple[Tensor, Tensor]:
    z = torch.randn(count, G.dim_z, generator=torch.Generator().manual_seed(seed))
    return z, torch.arange(count) % G.num_classes


# ---- every architecture ----------------------------------------------------------------------------------------------


def small(cls: type):
    """An architecture narrow enough for a test."""
    fields = {f.name for f in dataclasses.fields(cls)}
    return cls(**{key: value for key, value in {"ch": 4, "dim_z": 12}.items() if key in fields})


@pytest.fixture(params=ARCHITECTURES.values(), ids=ARCHITECTURES)
def cls(request):
    return request.param


@pytest.fixture(params=[(16, 1), (16, 3), (32, 1), (32, 3)], ids=lambda p: f"{p[1]}x{p[0]}x{p[0]}")
def shape(request):
    return request.param


def test_an_architecture_is_a_frozen_dataclass(cls):
    assert dataclasses.is_dataclass(cls) and cls.__dataclass_params__.frozen
    assert cls() == cls() and hash(cls()) == hash(cls())


@pytest.mark.parametrize("num_classes", [1, CLASSES])
def test_what_an_architecture_builds(cls, shape, num_classes):
    resolution, channels = shape
    G, D = small(cls).build(resolution, channels, num_classes)
    assert (G.num_classes, G.resolution, G.channels) == (num_classes, resolution, channels) and G.dim_z >= 1
    z, y = noise_and_labels(G)
    for training in (True, False):
        G.train(training), D.train(training)
        x = G(z, y)
        assert x.shape == (6, channels, resolution, resolution) and x.dtype == torch.float32
        assert x.min() >= -1 and x.max() <= 1 and x.std() > 0
        logits = D(x, y)
        assert logits.shape == (6,) and logits.dtype == torch.float32 and torch.isfinite(logits).all()


def test_gradients_reach_every_parameter(cls, shape):
    G, D = small(cls).build(*shape, CLASSES)
    z, y = noise_and_labels(G)
    x_real = torch.rand(6, shape[1], shape[0], shape[0]) * 2 - 1
    for loss, network in (
        (lambda: F.softplus(-D(G(z, y), y)).sum(), G),
        (lambda: F.softplus(-D(x_real, y)).sum() + D(G(z, y).detach(), y).sum(), D),
    ):
        loss().backward()
        for name, p in network.named_parameters():
            assert p.grad is not None and torch.isfinite(p.grad).all(), name
            assert p.dim() < 2 or p.grad.any(), name  # a bias in front of BatchNorm has no effect, and no gradient


def test_the_seed_decides_the_weights(cls):
    def weights(seed: int) -> list[Tensor]:
        torch.manual_seed(seed)
        G, D = small(cls).build(16, 3, CLASSES)
        return [*G.state_dict().values(), *D.state_dict().values()]

    first, again, other = weights(0), weights(0), weights(1)
    assert all(torch.equal(a, b) for a, b in zip(first, again))
    assert not all(torch.equal(a, b) for a, b in zip(first, other))


def test_an_image_does_not_depend_on_its_batch_in_evaluation(cls):
    G, _ = small(cls).build(16, 3, CLASSES)
    z, y = noise_and_labels(G)
    G.eval()
    torch.testing.assert_close(torch.cat([G(z[:1], y[:1]), G(z[1:], y[1:])]), G(z, y), rtol=1e-4, atol=1e-5)


def test_copies_and_saved_weights_give_the_same_images(cls):
    G, D = small(cls).build(16, 3, CLASSES)
    z, y = noise_and_labels(G)
    D(G(z, y), y)  # statistics that are not the fresh ones
    other_G, other_D = small(cls).build(16, 3, CLASSES)
    other_G.load_state_dict(G.state_dict()), other_D.load_state_dict(D.state_dict())
    copied_G, copied_D = copy.deepcopy(G), copy.deepcopy(D)
    for network in (G, D, other_G, other_D, copied_G, copied_D):
        network.eval()
    x = G(z, y)
    assert torch.equal(other_G(z, y), x) and torch.equal(copied_G(z, y), x)
    assert torch.equal(other_D(x, y), D(x, y)) and torch.equal(copied_D(x, y), D(x, y))


def test_networks_run_in_half_precision_and_channels_last(cls):
    G, D = (network.to(memory_format=torch.channels_last) for network in small(cls).build(16, 3, CLASSES))
    z, y = noise_and_labels(G)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        x = G(z, y)
        logits = D(x, y)
    assert x.shape == (6, 3, 16, 16) and logits.shape == (6,) and torch.isfinite(logits).all()
    logits.sum().backward()
    assert all(p.grad.dtype == torch.float32 for p in [*G.parameters(), *D.parameters()])


# ---- BigGAN: the published networks ----------------------------------------------------------------------------------

IMAGENET = BigGAN(ch=96, dim_z=120, shared_embedding=128, hierarchical_z=True, attention_resolution=64, init="normal")


@pytest.mark.parametrize(
    "config, shape, published",
    [
        (BigGAN(ch=64, dim_z=128, init="normal"), (32, 3, 10), (4_304_387, 4_207_361)),
        (IMAGENET, (128, 3, 1000), (70_433_988, 87_982_370)),
    ],
    ids=["cifar10", "imagenet128"],
)
def test_parameter_counts_are_the_published_ones(config, shape, published):
    """As the authors' PyTorch release prints them."""
    with torch.device("meta"):
        G, D = config.build(*shape)
    assert (parameters(G), parameters(D)) == published


@pytest.mark.parametrize("resolution", RESOLUTIONS)
def test_every_resolution_has_networks(resolution):
    for config in (BigGAN(ch=2, dim_z=8), BigGAN(ch=2, dim_z=840, shared_embedding=4, hierarchical_z=True)):
        G, D = config.build(resolution, 3, CLASSES)
        z, y = noise_and_labels(G, 2)
        x = G(z, y)
        assert x.shape == (2, 3, resolution, resolution) and torch.isfinite(D(x, y)).all()


@pytest.mark.slow
@pytest.mark.parametrize("resolution", RESOLUTIONS)
def test_attention_is_at_the_requested_resolution(resolution):
    for place in attention_places(resolution):
        G, D = BigGAN(ch=8, dim_z=8, attention_resolution=place, init="normal", spectral_norm=False).build(resolution, 3, CLASSES)
        seen = []
        for network in (G.eval(), D):
            found = [m for m in network.modules() if isinstance(m, SelfAttention)]
            assert len(found) == 1
            found[0].register_forward_pre_hook(lambda module, inputs, seen=seen: seen.append(tuple(inputs[0].shape[2:])))
        z, y = noise_and_labels(G, 1)
        with torch.no_grad():
            assert D(G(z, y), y).shape == (1,)
        assert seen == [(place, place)] * 2


def test_resolutions_for_attention():
    """Both networks have a feature map of that size: G after a block that doubles, D after one that halves."""
    assert {r: attention_places(r) for r in RESOLUTIONS} == {
        8: [], 16: [8], 32: [8, 16], 64: [8, 16, 32], 128: [8, 16, 32, 64], 256: [8, 16, 32, 64, 128],
    }  # fmt: skip


def batch_norm(x: Tensor, norm: nn.Module) -> Tensor:
    """In evaluation, without gain and bias."""
    return (x - norm.running_mean[:, None, None]) / (norm.running_var[:, None, None] + norm.eps).sqrt()


def conditional(x: Tensor, norm: ConditionalBatchNorm2d, condition: Tensor) -> Tensor:
    return batch_norm(x, norm.norm) * (1 + norm.gain(condition)[:, :, None, None]) + norm.bias(condition)[:, :, None, None]


def doubled(x: Tensor) -> Tensor:
    return x.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)


def halved(x: Tensor) -> Tensor:
    return (x[:, :, ::2, ::2] + x[:, :, 1::2, ::2] + x[:, :, ::2, 1::2] + x[:, :, 1::2, 1::2]) / 4


def published_generator_block(block: GeneratorBlock, x: Tensor, condition: Tensor) -> Tensor:
    h = block.conv1(doubled(conditional(x, block.norm1, condition).relu()))
    h = block.conv2(conditional(h, block.norm2, condition).relu())
    return h + block.shortcut(doubled(x))


def published_discriminator_block(block: DiscriminatorBlock, x: Tensor) -> Tensor:
    """The first block pools in front of its shortcut's convolution, the others behind it."""
    h = block.conv2(block.conv1(x if block.first else x.relu()).relu())
    if not block.halve:
        return h + block.shortcut(x)
    return halved(h) + (block.shortcut(halved(x)) if block.first else halved(block.shortcut(x)))


def explicit_attention(attention: SelfAttention, x: Tensor) -> Tensor:
    def conv(layer: nn.Module, x: Tensor) -> Tensor:
        return torch.einsum("oi,nihw->nohw", layer.weight[:, :, 0, 0], x)

    def pooled(x: Tensor) -> Tensor:
        n, c, h, w = x.shape
        return x.reshape(n, c, h // 2, 2, w // 2, 2).amax(dim=(3, 5)).flatten(2)

    query, key, value = conv(attention.theta, x).flatten(2), pooled(conv(attention.phi, x)), pooled(conv(attention.g, x))
    scores = torch.einsum("ncq,nck->nqk", query, key).exp()
    attended = torch.einsum("nqk,nck->ncq", scores / scores.sum(dim=2, keepdim=True), value)
    return x + attention.gamma * conv(attention.o, attended.unflatten(2, x.shape[2:]))


def shaken(network: nn.Module) -> nn.Module:
    """In float64 and evaluation mode, with biases, statistics and attention that differ from their initial values."""
    generator = torch.Generator().manual_seed(5)
    network = network.double().eval()
    with torch.no_grad():
        for name, p in [*network.named_parameters(), *network.named_buffers()]:
            if name.endswith(("bias", "running_mean", "gamma")):
                p += 0.3 * torch.randn(p.shape, generator=generator)
            if name.endswith(("running_var", "last_norm.weight")):
                p *= 0.5 + torch.rand(p.shape, generator=generator)
    return network


VARIANTS = {
    "cifar": BigGAN(ch=8, dim_z=12),
    "attention": BigGAN(ch=8, dim_z=12, attention_resolution=8),
    "shared": BigGAN(ch=8, dim_z=12, shared_embedding=6),
    "hierarchical": BigGAN(ch=8, dim_z=12, shared_embedding=6, hierarchical_z=True, attention_resolution=8),
    "plain": BigGAN(ch=8, dim_z=12, spectral_norm=False, init="normal"),
}


@pytest.mark.parametrize("resolution", [16, 32])
@pytest.mark.parametrize("config", VARIANTS.values(), ids=VARIANTS)
def test_the_generator_computes_what_is_published(config, resolution):
    G = shaken(config.build(resolution, 3, CLASSES)[0])
    z, y = noise_and_labels(G)
    z = z.double()
    condition = y if G.shared is None else G.shared.weight[y]
    chunks = z.split(config.dim_z // (len(G.blocks) + 1), dim=1)
    h = G.first(chunks[0] if config.hierarchical_z else z).reshape(6, -1, 4, 4)
    for i, block in enumerate(G.blocks):
        h = published_generator_block(block, h, torch.cat([condition, chunks[i + 1]], dim=1) if config.hierarchical_z else condition)
        if h.shape[2] == config.attention_resolution:
            (attention,) = G.attention.values()
            h = explicit_attention(attention, h)
    h = batch_norm(h, G.last_norm) * G.last_norm.weight[:, None, None] + G.last_norm.bias[:, None, None]
    torch.testing.assert_close(G(z, y), torch.tanh(G.last(h.relu())), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("resolution", [16, 32])
@pytest.mark.parametrize("config", [VARIANTS["cifar"], VARIANTS["attention"], VARIANTS["plain"]], ids=["cifar", "attention", "plain"])
def test_the_discriminator_computes_what_is_published(config, resolution):
    D = shaken(config.build(resolution, 3, CLASSES)[1])
    x, y = torch.rand(6, 3, resolution, resolution, dtype=torch.float64) * 2 - 1, torch.arange(6) % CLASSES
    h, attentions = x, list(D.attention.values())
    for block in D.blocks:
        h = published_discriminator_block(block, h)
        if attentions and h.shape[2] == config.attention_resolution:  # the first map of this size
            h = explicit_attention(attentions.pop(), h)
    assert not attentions
    h = h.relu().sum(dim=(2, 3))
    expected = torch.einsum("nc,c->n", h, D.last.weight[0]) + D.last.bias + torch.einsum("nc,nc->n", D.embed.weight[y], h)
    torch.testing.assert_close(D(x, y), expected, rtol=1e-10, atol=1e-12)


def test_a_1x1_convolution_commutes_with_upsampling_and_pooling():
    """To rounding, also when both blocks train."""
    layers, y = Layers("normal"), torch.arange(4) % CLASSES
    norm = lambda width: ConditionalBatchNorm2d(width, nn.Embedding(CLASSES, width), nn.Embedding(CLASSES, width), 1e-5)  # noqa: E731
    up = shaken(GeneratorBlock(layers, 6, 4, norm))
    x = torch.randn(4, 6, 8, 8, dtype=torch.float64)
    torch.testing.assert_close(up(x, y), published_generator_block(up, x, y), rtol=1e-12, atol=1e-12)
    for first in (True, False):
        down = shaken(DiscriminatorBlock(layers, 6, 6, first, halve=True))
        torch.testing.assert_close(down(x), published_discriminator_block(down, x), rtol=1e-12, atol=1e-12)
        kept = shaken(DiscriminatorBlock(layers, 6, 6, first, halve=False))
        assert isinstance(kept.shortcut, nn.Identity) and kept(x).shape == x.shape


# ---- BigGAN: classes and chunks of z ---------------------------------------------------------------------------------


def test_the_class_matters_to_both_networks():
    for config in (VARIANTS["cifar"], VARIANTS["shared"]):
        G, D = config.build(16, 3, CLASSES)
        z, y = noise_and_labels(G)
        G.eval(), D.eval()
        assert ((G(z, y) - G(z, (y + 1) % CLASSES)).abs().amax(dim=(1, 2, 3)) > 1e-4).all()
        x = G(z, y)
        assert (D(x, y) != D(x, (y + 1) % CLASSES)).all()


def test_a_chunk_of_z_enters_at_its_block_and_nowhere_else():
    G = VARIANTS["hierarchical"].build(32, 3, CLASSES)[0].eval()
    z, y = noise_and_labels(G, 2)
    conditions, outputs = [], []
    for block in G.blocks:
        block.register_forward_pre_hook(lambda module, inputs: conditions.append(inputs[1]))
        block.register_forward_hook(lambda module, inputs, output: outputs.append(output))
    G.first.register_forward_hook(lambda module, inputs, output: outputs.append(output))

    def record(z: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        conditions.clear(), outputs.clear()
        G(z, y)
        return list(conditions), list(outputs)

    conditions_before, outputs_before = record(z)
    assert len(conditions_before) == 3 and all(c.shape == (2, 6 + 3) for c in conditions_before)
    assert all(torch.equal(c[:, :6], G.shared(y)) for c in conditions_before)
    for chunk in range(4):
        changed = z.clone()
        changed[:, 3 * chunk : 3 * chunk + 3] += 1
        conditions_after, outputs_after = record(changed)
        for i in range(3):
            assert torch.equal(conditions_after[i], conditions_before[i]) == (i + 1 != chunk)
        for i in range(4):  # the first layer, then the blocks
            assert torch.equal(outputs_after[i], outputs_before[i]) == (i < chunk)


def test_one_embedding_is_shared_by_all_norms():
    G = VARIANTS["shared"].build(16, 3, CLASSES)[0]
    assert [m for m in G.modules() if isinstance(m, nn.Embedding)] == [G.shared]
    tables = [m for m in VARIANTS["cifar"].build(16, 3, CLASSES)[0].modules() if isinstance(m, nn.Embedding)]
    assert len(tables) == 2 * 2 * len(G.blocks)  # a gain and a bias for each of two norms a block


# ---- BigGAN: refusals ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "config, resolution, words",
    [
        (BigGAN(), 48, "^data.resolution: biggan does not support resolution 48; choose from 8, 16, 32, 64, 128, 256$"),
        (
            BigGAN(attention_resolution=64),
            32,
            "^model.attention_resolution: the networks for resolution 32 cannot have attention at 64; choose from 8, 16$",
        ),
        (BigGAN(attention_resolution=8), 8, "resolution 8 cannot have attention at 8; choose from null$"),
        (
            BigGAN(ch=4, attention_resolution=16),
            32,
            "^model.ch: must be at least 8, because attention uses an eighth of the channels, got 4",
        ),
        (
            BigGAN(dim_z=30, shared_embedding=8, hierarchical_z=True),
            32,
            "^model.dim_z: must be a multiple of 4, because hierarchical_z splits z into 4 chunks at resolution 32, got 30; use 28$",
        ),
        (BigGAN(dim_z=3, shared_embedding=8, hierarchical_z=True), 32, "4 chunks at resolution 32, got 3; use 4$"),
    ],
)
def test_hyper_parameters_that_do_not_fit_the_resolution_are_refused(config, resolution, words):
    with pytest.raises(UserError, match=words):
        config.require_resolution(resolution)
    with pytest.raises(UserError, match=words):
        config.build(resolution, 3, CLASSES)


@pytest.mark.parametrize(
    "values, words",
    [
        ({"ch": 0}, "ch: must be at least 1, got 0"),
        ({"dim_z": 0}, "dim_z: must be at least 1, got 0"),
        ({"shared_embedding": -1}, "shared_embedding: must be at least 0, got -1"),
        ({"power_iterations": 0}, "power_iterations: must be at least 1, got 0"),
        ({"sn_eps": 0.0}, "sn_eps: must be above 0, got 0.0"),
        ({"bn_eps": -1.0}, "bn_eps: must be above 0, got -1.0"),
        ({"hierarchical_z": True}, r"hierarchical_z: requires shared_embedding above 0 \(published: 128\), got True"),
    ],
)
def test_values_out_of_range_are_refused(values, words):
    with pytest.raises(InvalidField, match=words):
        BigGAN(**values)


def test_values_next_to_refused_ones_build():
    for dim_z in (28, 4):
        BigGAN(ch=2, dim_z=dim_z, shared_embedding=8, hierarchical_z=True).build(32, 3, CLASSES)
    for place in (8, 16):
        BigGAN(ch=8, attention_resolution=place).require_resolution(32)


# ---- spectral norm ---------------------------------------------------------------------------------------------------


def normed(network: nn.Module) -> dict[str, nn.Module]:
    return {name: m for name, m in network.named_modules() if is_parametrized(m, "weight")}


def original(layer: nn.Module) -> Tensor:
    return layer.parametrizations.weight.original


@pytest.mark.parametrize("config", [VARIANTS["attention"], VARIANTS["hierarchical"]], ids=["attention", "hierarchical"])
def test_every_weight_has_spectral_norm_one_once_the_iteration_has_settled(config):
    G, D = dataclasses.replace(config, init="normal", power_iterations=20).build(16, 3, CLASSES)
    z, y = noise_and_labels(G, 2)
    with torch.no_grad():
        for _ in range(20):
            D(G(z, y), y)
    G.eval(), D.eval()
    for network in (G, D):
        for name, layer in normed(network).items():
            norm = torch.linalg.matrix_norm(layer.weight.detach().flatten(1), ord=2)
            assert float(norm) == pytest.approx(1, abs=2e-3), name
            before = torch.linalg.matrix_norm(original(layer).flatten(1), ord=2)
            torch.testing.assert_close(layer.weight * before, original(layer), rtol=3e-3, atol=1e-4)


def test_singular_values_are_those_of_the_weights_before_they_are_normed():
    """For every layer with spectral norm, by name, and for no other, compared with a decomposition of the matrix."""
    G, D = dataclasses.replace(VARIANTS["attention"], init="normal", power_iterations=20).build(16, 3, CLASSES)
    z, y = noise_and_labels(G, 2)
    with torch.no_grad():
        for layer in [*normed(G).values(), *normed(D).values()]:
            original(layer).mul_(torch.rand(()) + 0.5)
        for _ in range(20):
            D(G(z, y), y)
    for network in (G, D):
        found = singular_values(network)
        assert found.keys() == normed(network).keys()
        for name, layer in normed(network).items():
            torch.testing.assert_close(
                found[name].detach(), torch.linalg.svdvals(original(layer).detach().flatten(1))[0], rtol=2e-3, atol=0, msg=name
            )
    plain, _ = dataclasses.replace(VARIANTS["attention"], spectral_norm=False).build(16, 3, CLASSES)
    assert singular_values(plain) == {}


@pytest.mark.parametrize("config", VARIANTS.values(), ids=VARIANTS)
def test_all_weights_but_the_generators_tables_are_normed(config):
    G, D = config.build(16, 3, CLASSES)
    for network, kinds in ((G, (nn.Conv2d, nn.Linear)), (D, (nn.Conv2d, nn.Linear, nn.Embedding))):
        layers = {name for name, m in network.named_modules() if isinstance(m, kinds)}
        assert set(normed(network)) == (layers if config.spectral_norm else set())


def test_orthogonal_weights_are_left_alone_by_their_norm():
    """Their singular values are all one, and the norm is set up after the weight is."""
    for network in VARIANTS["hierarchical"].build(16, 3, CLASSES):
        for name, layer in normed(network.eval()).items():
            torch.testing.assert_close(layer.weight, original(layer), rtol=1e-4, atol=1e-5, msg=name)


@pytest.mark.parametrize("iterations", [1, 3])
def test_a_training_forward_iterates_as_often_as_asked(iterations):
    layer = Layers("normal", power_iterations=iterations).conv(3, 5)
    (norm,) = layer.parametrizations.weight
    w, u, v = original(layer).detach().flatten(1).double().numpy(), norm._u.double().numpy(), norm._v.double().numpy()
    for _ in range(iterations):
        u = w @ v / np.linalg.norm(w @ v)
        v = w.T @ u / np.linalg.norm(w.T @ u)
    layer.train()(torch.zeros(1, 3, 4, 4))
    np.testing.assert_allclose(norm._u.numpy(), u, atol=1e-5)
    np.testing.assert_allclose(norm._v.numpy(), v, atol=1e-5)
    layer.eval()
    np.testing.assert_allclose(layer.weight.detach().flatten(1).numpy(), w / (u @ w @ v), rtol=1e-4, atol=1e-6)


def vectors(network: nn.Module) -> dict[str, Tensor]:
    return {name: b.clone() for name, b in network.named_buffers() if name.endswith(("._u", "._v"))}


def equal(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def test_frozen_norms_are_not_iterated():
    G, D = dataclasses.replace(VARIANTS["cifar"], init="normal").build(16, 3, CLASSES)
    z, y = noise_and_labels(G)
    before, statistics = (vectors(G), vectors(D)), G.last_norm.running_mean.clone()
    assert all(before)
    with frozen_power_iteration(G), frozen_power_iteration(D):
        first = D(G(z, y), y)
        assert torch.equal(D(G(z, y), y), first)  # every round of an update sees the same weights
        assert G.training and D.training
    assert equal(vectors(G), before[0]) and equal(vectors(D), before[1])
    assert not torch.equal(G.last_norm.running_mean, statistics)  # BatchNorm goes on
    D(G(z, y), y)
    for network, old in zip((G, D), before):
        same = [name for name, vector in vectors(network).items() if torch.equal(vector, old[name])]
        assert all(name.startswith("last.") and network is D for name in same)  # a single row needs no iteration


def test_frozen_norms_still_let_gradients_through():
    D = dataclasses.replace(VARIANTS["cifar"], init="normal").build(16, 3, CLASSES)[1]
    x, y = torch.randn(6, 3, 16, 16), torch.arange(6) % CLASSES
    D(x, y)
    with frozen_power_iteration(D):
        D(x, y).sum().backward()
    frozen = [p.grad.clone() for p in D.parameters()]
    D.zero_grad()
    D.eval()(x, y).sum().backward()
    assert all(torch.equal(p.grad, f) and f.any() for p, f in zip(D.parameters(), frozen))


def test_norms_are_thawed_after_an_error_and_only_where_they_were_iterating():
    D = VARIANTS["cifar"].build(16, 3, CLASSES)[1]
    modes = lambda: {name: m.training for name, m in D.named_modules()}  # noqa: E731
    D.blocks[0].eval()
    before = modes()
    with pytest.raises(ZeroDivisionError), frozen_power_iteration(D):
        assert modes() != before
        raise ZeroDivisionError
    assert modes() == before and not all(before.values()) and any(before.values())
    with frozen_power_iteration(D), frozen_power_iteration(D):
        pass
    assert modes() == before


# ---- initialisation --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(4, 6), (6, 4), (8, 3, 3, 3), (40, 3, 3, 3), (5, 5, 1, 1), (10, 16)])
def test_orthogonal_weights_are_orthonormal(shape):
    weight = torch.empty(shape)
    initialize(weight, "orthogonal")
    w = weight.flatten(1).double()
    product = w @ w.T if w.shape[0] <= w.shape[1] else w.T @ w
    torch.testing.assert_close(product, torch.eye(len(product), dtype=torch.float64), rtol=0, atol=1e-5)


def test_normal_weights_are_normal():
    weight = torch.empty(200, 100)
    initialize(weight, "normal")
    assert stats.kstest(weight.flatten().numpy(), stats.norm(0, 0.02).cdf).pvalue > 1e-3


@pytest.mark.parametrize("init", ["orthogonal", "normal"])
def test_the_networks_start_as_asked(init):
    for network in BigGAN(ch=16, dim_z=64, init=init).build(32, 3, 10):
        weights = [
            original(m) if is_parametrized(m) else m.weight
            for m in network.modules()
            if isinstance(m, (nn.Conv2d, nn.Linear, nn.Embedding))
        ]
        for w in (w.detach().flatten(1).double() for w in weights):
            if init == "orthogonal":
                torch.testing.assert_close(torch.linalg.svdvals(w), torch.ones(min(w.shape), dtype=torch.float64), rtol=0, atol=1e-5)
        if init == "normal":
            values = torch.cat([w.detach().flatten() for w in weights]).numpy()
            assert stats.kstest(values, stats.norm(0, 0.02).cdf).pvalue > 1e-3
        biases = [m.bias for m in network.modules() if isinstance(m, (nn.Conv2d, nn.Linear))]
        assert biases and not any(b.any() for b in biases if b is not None)


# ---- layers ----------------------------------------------------------------------------------------------------------


def test_convolutions_keep_height_and_width():
    layers = Layers("normal")
    for kernel in (1, 3):
        assert layers.conv(2, 5, kernel)(torch.zeros(1, 2, 7, 6)).shape == (1, 5, 7, 6)
    assert layers.conv(2, 5, bias=False).bias is None and layers.linear(2, 5, bias=False).bias is None


def test_conditional_batch_norm_is_the_formula():
    norm = ConditionalBatchNorm2d(3, nn.Embedding(CLASSES, 3), nn.Embedding(CLASSES, 3), eps=1e-2).double()
    x, y = torch.randn(6, 3, 5, 4, dtype=torch.float64) * 3 + 1, torch.tensor([0, 1, 4, 4, 2, 0])
    gain, bias, values = (t.detach().numpy() for t in (norm.gain.weight, norm.bias.weight, x))

    def expected(mean: np.ndarray, variance: np.ndarray) -> Tensor:
        result = np.empty_like(values)
        for n in range(6):
            for c in range(3):
                result[n, c] = (values[n, c] - mean[c]) / np.sqrt(variance[c] + 1e-2) * (1 + gain[y[n], c]) + bias[y[n], c]
        return torch.from_numpy(result)

    mean, variance = values.mean(axis=(0, 2, 3)), values.var(axis=(0, 2, 3))
    torch.testing.assert_close(norm(x, y), expected(mean, variance))
    running_mean, running_variance = 0.1 * mean, 0.9 + 0.1 * variance * 120 / 119  # unbiased, momentum 0.1
    torch.testing.assert_close(norm.eval()(x, y), expected(running_mean, running_variance))


def test_conditional_batch_norm_takes_vectors_too():
    norm = ConditionalBatchNorm2d(3, nn.Linear(4, 3, bias=False), nn.Linear(4, 3, bias=False), eps=1e-5).double()
    x, condition = torch.randn(6, 3, 5, 5, dtype=torch.float64), torch.randn(6, 4, dtype=torch.float64)
    plain = F.batch_norm(x, None, None, training=True, eps=1e-5)
    expected = plain * (1 + condition @ norm.gain.weight.T)[:, :, None, None] + (condition @ norm.bias.weight.T)[:, :, None, None]
    torch.testing.assert_close(norm(x, condition), expected)
    torch.testing.assert_close(norm(x, torch.zeros_like(condition)), plain)  # gain one, bias zero


def test_self_attention_starts_as_the_identity():
    x = torch.randn(2, 16, 8, 8)
    attention = SelfAttention(Layers("orthogonal"), 16)
    assert torch.equal(attention(x), x)
    attention(x).sum().backward()
    assert attention.gamma.grad != 0  # but need not stay so


@pytest.mark.parametrize("size", [(8, 8), (4, 6)])
def test_self_attention_is_a_softmax_over_positions(size):
    attention = SelfAttention(Layers("orthogonal"), 16).double().eval()
    nn.init.constant_(attention.gamma, 0.7)
    x = 2 * torch.randn(3, 16, *size, dtype=torch.float64)
    torch.testing.assert_close(attention(x), explicit_attention(attention, x), rtol=1e-10, atol=1e-12)
    assert (attention(x) - x).abs().max() > 0.1


def test_private_parts_of_torchs_spectral_norm_are_used_in_one_file():
    private = re.compile(r"\b(_SpectralNorm|_power_method|_reshape_weight_to_matrix)\b|\._[uv]\b")
    using = [str(path.relative_to(ROOT)) for path in (ROOT / "gantrain").rglob("*.py") if private.search(path.read_text())]
    assert using == ["gantrain/spectral_norm.py"]
