"""Networks as graphs: torch.export, torch.jit.trace and ONNX with batches of any size give what the network gives."""

from __future__ import annotations

import io

import pytest
import torch
from conftest import slow_but
from torch import nn
from torch.export import Dim

from gantrain.averaging import AverageBank, EmaSteps
from gantrain.models import BigGAN

KINDS = {
    "all": BigGAN(ch=8, dim_z=12, shared_embedding=4, hierarchical_z=True, attention_resolution=8),
    "plain": BigGAN(ch=2, dim_z=8),
    "no spectral norm": BigGAN(ch=2, dim_z=8, spectral_norm=False),
}
TRACED, OTHER = 3, 5
every = [(kind, player) for kind in KINDS for player in (0, 1)]


def players(kind: str) -> tuple[nn.Module, nn.Module]:
    torch.manual_seed(0)
    G, D = KINDS[kind].build(16, 1, 4)
    with torch.no_grad():
        for network in (G, D):
            for name, p in network.named_parameters():
                if name.endswith("gamma"):
                    p.fill_(0.7)  # attention starts as the identity
    return G.eval(), D.eval()


def inputs(network: nn.Module, batch: int, mixtures: bool = False) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(batch)
    first = (
        torch.randn(batch, network.dim_z, generator=generator)
        if hasattr(network, "dim_z")
        else torch.randn(batch, 1, 16, 16, generator=generator)
    )
    y = torch.rand(batch, 4, generator=generator).softmax(1) if mixtures else torch.randint(4, (batch,), generator=generator)
    return first, y


@pytest.mark.slow
@pytest.mark.parametrize("kind, player", every)
def test_an_exported_network_takes_any_batch(kind, player):
    network = players(kind)[player]
    batch = Dim("batch", min=1, max=64)
    program = torch.export.export(network, inputs(network, TRACED), dynamic_shapes=({0: batch}, {0: batch}))
    for size in (1, TRACED, OTHER):
        torch.testing.assert_close(program.module()(*inputs(network, size)), network(*inputs(network, size)), rtol=1e-5, atol=1e-6)


@pytest.mark.slow
def test_an_exported_generator_takes_mixtures_of_classes():
    network = players("all")[0]
    batch = Dim("batch", min=1, max=64)
    program = torch.export.export(network, inputs(network, TRACED, mixtures=True), dynamic_shapes=({0: batch}, {0: batch}))
    torch.testing.assert_close(
        program.module()(*inputs(network, OTHER, True)), network(*inputs(network, OTHER, True)), rtol=1e-5, atol=1e-6
    )


@pytest.mark.slow
def test_an_exported_average_survives_its_file():
    """As docs/samples.md does it: a generator with averaged weights."""
    network, _ = players("plain")
    bank = AverageBank(network, {"ema": EmaSteps(decay=0.5)})
    with torch.no_grad():
        for p in network.parameters():
            p.add_(torch.randn_like(p) * 0.1)
    bank.update(1)
    averaged = players("plain")[0]
    bank.materialize("ema", averaged)
    batch = Dim("batch", min=1, max=64)
    file = io.BytesIO()
    torch.export.save(torch.export.export(averaged.eval(), inputs(network, TRACED), dynamic_shapes=({0: batch}, {0: batch})), file)
    file.seek(0)
    images = torch.export.load(file).module()(*inputs(network, OTHER))
    torch.testing.assert_close(images, averaged(*inputs(network, OTHER)), rtol=1e-5, atol=1e-6)
    assert not torch.allclose(images, network(*inputs(network, OTHER)), atol=1e-3)


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning", "ignore::DeprecationWarning", "ignore::FutureWarning")
@pytest.mark.parametrize("kind, player", slow_but([("plain", 0)], every))
def test_a_traced_network_takes_any_batch(kind, player):
    network = players(kind)[player]
    with torch.no_grad():
        traced = torch.jit.trace(network, inputs(network, TRACED), check_trace=False)
        torch.testing.assert_close(traced(*inputs(network, OTHER)), network(*inputs(network, OTHER)), rtol=1e-5, atol=1e-6)


@pytest.mark.slow
def test_onnx_takes_any_batch(tmp_path):
    pytest.importorskip("onnxscript")
    runtime = pytest.importorskip("onnxruntime")
    network, _ = players("all")
    path = tmp_path / "generator.onnx"
    batch = Dim("batch", min=1, max=64)
    torch.onnx.export(network, inputs(network, TRACED), path, dynamo=True, input_names=["z", "y"], dynamic_shapes=({0: batch}, {0: batch}))
    z, y = inputs(network, OTHER)
    images = runtime.InferenceSession(path).run(None, {"z": z.numpy(), "y": y.numpy()})[0]
    torch.testing.assert_close(torch.from_numpy(images), network(z, y), rtol=1e-4, atol=1e-5)
