"""What the processes of tests that launch several run: `workers.py CASE FOLDER`."""
from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
from game import gradients, networks, player, rounds
from oracles import affine_game, of_several_processes, windows
from safetensors.torch import save_file

from gantrain.batching import GradientProbe
from gantrain.distributed import finish, from_main, make_accelerator, mean_of_processes, mean_over_processes, sum_over_processes
from gantrain.losses import R1, R2, Hinge
from gantrain.update import discriminator_phase, generator_phase


def gradient(accelerator, folder: Path) -> None:
    """The gradients of both players for several cuts of an update, with one pair of DDP objects throughout."""
    g, d = (player(n, accelerator) for n in networks())
    start = [{k: v.clone() for k, v in p.network.state_dict().items()} for p in (g, d)]
    for b, k in [(4, 1), (4, 2), (4, 4), (3, 3)]:
        for p, state in zip((g, d), start):
            p.network.load_state_dict(state)
        cut = dict(b=b, k=k, world=accelerator.num_processes, rank=accelerator.process_index)
        discriminator_phase(g, d, Hinge(), rounds(**cut), k)
        of_d = gradients(d.network)
        d.network.load_state_dict(start[1])
        discriminator_phase(g, d, Hinge(), rounds(**cut), k, penalties=[(R1(gamma=0.5), 4.0), (R2(gamma=0.2), 1.0)])
        penalised = gradients(d.network)
        d.network.load_state_dict(start[1])
        generator_phase(g, d, Hinge(), rounds(**cut, with_real=False), k)
        for name, tensors in (("d", of_d), ("p", penalised), ("g", gradients(g.network))):
            for tensor in tensors.values():  # every process holds the same
                assert torch.equal(accelerator.gather(tensor[None])[0], tensor) or accelerator.is_main_process
            if accelerator.is_main_process:
                save_file(tensors, folder / f"{name}-{b}-{k}.safetensors")


def helpers(accelerator, folder: Path) -> None:
    """Broadcasts, sums, and means in place, of tensors of any shape."""
    rank, world = accelerator.process_index, accelerator.num_processes
    assert from_main(accelerator, {"rank": rank}) == {"rank": 0}
    assert sum_over_processes(accelerator)(torch.tensor([1.0 + rank])).item() == world * (world + 1) / 2
    one, other = torch.full((3,), float(rank)), torch.tensor([[1.0, 2.0]]) * rank
    mean_over_processes([one, other], accelerator)
    assert one.tolist() == [(world - 1) / 2] * 3 and other.tolist() == [[(world - 1) / 2, world - 1.0]]


def noise_scale(accelerator, folder: Path) -> None:
    """Estimates of problems with a closed form, with one round and with three, and what the probes of a small game read."""
    world, rank, mean = accelerator.num_processes, accelerator.process_index, mean_of_processes(accelerator)
    found: dict = {"world": world, "measured": {}}
    for b, k in [(3, 1), (1, 3), (4, 2)]:
        g, d = (player(n, accelerator) for n in networks())
        probes = {key: GradientProbe(one.network, per_layer=True, processes=world) for key, one in (("d", d), ("g", g))}
        for one in (g, d):
            one.optimizer.param_groups[0]["lr"] = 0.0
        stats = discriminator_phase(g, d, Hinge(), rounds(b, k, world, rank), k, probes["d"])
        found["measured"][f"d-{b}-{k}"] = mean(stats["measured"]).tolist()
        stats = generator_phase(g, d, Hinge(), rounds(b, k, world, rank, with_real=False), k, probes["g"])
        found["measured"][f"g-{b}-{k}"] = mean(stats["measured"]).tolist()
    _, theta = windows(affine_game("theta", accelerator=accelerator), 4, 2, 16, 1, world, rank, mean)
    found["theta"] = theta.tolist()
    for name, oracle in of_several_processes(accelerator).items():
        for b, k in [(8, 1), (4, 3)]:
            estimates, single = windows(oracle, b, k, 16, 32, world, rank, mean)
            found[f"{name}-{k}"] = {"estimates": [vars(one) for one in estimates], "single": single.tolist()}
    (folder / f"noise-{rank}.json").write_text(json.dumps(found))


def spoil(folder: Path) -> None:
    """Train, with every image unreadable for the second process once training has begun."""
    import os

    from gantrain import cli
    from gantrain.data.folder import Decoder
    from gantrain.errors import UserError
    from gantrain.trainer import Trainer

    update = Trainer.update

    def spoilt(trainer: Trainer) -> None:
        if os.environ["RANK"] == "1":
            def read(self, index: int):
                raise UserError(f"{self.path(index)}: does not decode as an image")

            Decoder.read = read
        update(trainer)

    Trainer.update = spoilt
    cli.main(["train", *sys.argv[3:]])


def statistics(folder: Path) -> None:
    """Train; after every score and checkpoint the processes' BatchNorm statistics are the mean of what they were."""
    from gantrain import cli
    from gantrain.trainer import Trainer

    def checked(method):
        def run(trainer: Trainer) -> None:
            mean = trainer.G.network.last_norm.running_mean
            each = trainer.accelerator.gather(mean.clone()[None])
            method(trainer)
            torch.testing.assert_close(mean, each.mean(0))
            if not torch.equal(each[0], each[1]):
                (folder / f"{method.__name__}-{trainer.accelerator.process_index}").write_text(str(trainer.nimg))

        return run

    Trainer.evaluate, Trainer.save = checked(Trainer.evaluate), checked(Trainer.save)
    cli.main(["train", *sys.argv[3:]])


def swap(folder: Path) -> None:
    """Train; right after every swap all processes hold the same weights, buffers and batch."""
    from gantrain import cli
    from gantrain.swapping import Swapper

    method = Swapper.swap

    def run(swapper: Swapper, nimg: int, before=None) -> None:
        method(swapper, nimg, before)
        rank, world = torch.distributed.get_rank(), torch.distributed.get_world_size()
        for one in swapper.players.values():
            for name, tensor in one.network.state_dict().items():
                each = [torch.empty_like(tensor) for _ in range(world)]
                torch.distributed.all_gather(each, tensor.contiguous())
                # D keeps BatchNorm statistics that nothing reads; it has none here.
                assert all(torch.equal(each[0], one) for one in each), name
        b = swapper.batching
        (folder / f"swap-{nimg}-{rank}").write_text(f"{rank} world {world}, at {nimg}: batch {b.batch_size}, rounds {b.rounds}")

    Swapper.swap = run
    cli.main(["train", *sys.argv[3:]])


def disagree(folder: Path) -> None:
    """Train, with a policy that on the second process asks for the largest batch at every check; what each one grew to."""
    import json
    import os

    from gantrain import cli
    from gantrain.batching import BatchController, ByNoiseScale

    propose, ask, rank, sizes = ByNoiseScale.propose, BatchController.ask, os.environ["RANK"], []

    def asks_for_more(policy, state):
        return policy.max_batch if rank == "1" and state.checked else propose(policy, state)

    def kept(controller, *arguments, **kwargs):
        grown = ask(controller, *arguments, **kwargs)
        if grown:
            sizes.append((grown["from"], grown["to"]))
            (folder / f"batch-{rank}").write_text(json.dumps({"world": controller.world, "sizes": sizes}))
        return grown

    ByNoiseScale.propose, BatchController.ask = asks_for_more, kept
    cli.main(["train", *sys.argv[3:]])


def orbit(folder: Path) -> None:
    """Train; at every recording all processes have the same sketches of live weights and averages, and the same distances."""
    from gantrain import cli
    from gantrain.averaging.average import named_weights
    from gantrain.recording import OrbitRecorder
    from gantrain.theory.sketch import Sketch

    method, counted = OrbitRecorder.record, []

    def record(recorder: OrbitRecorder, *arguments, **kwargs) -> None:
        method(recorder, *arguments, **kwargs)
        rank, world = torch.distributed.get_rank(), torch.distributed.get_world_size()
        for key, bank in recorder.banks.items():
            live = named_weights(bank.network)
            sketch = Sketch(live, key, recorder.settings.size)
            found = [sketch(live), *(sketch(bank[name].shadows) for name in bank.started()), *(bank.distance(name).float().view(1) for name in bank.started())]
            mine = torch.cat(found)
            each = [torch.empty_like(mine) for _ in range(world)]
            torch.distributed.all_gather(each, mine)
            assert all(torch.equal(each[0], one) for one in each), key
        counted.append(1)
        (folder / f"orbit-{rank}").write_text(f"rank {rank} of {world}: {len(counted)} recordings")

    OrbitRecorder.record = record
    cli.main(["train", *sys.argv[3:]])


WHOLE_RUNS = {"spoil": spoil, "statistics": statistics, "swap": swap, "disagree": disagree, "orbit": orbit}

if __name__ == "__main__":
    if sys.argv[1] in WHOLE_RUNS:
        WHOLE_RUNS[sys.argv[1]](Path(sys.argv[2]))
    accelerator = make_accelerator()
    folder = Path(sys.argv[2])
    {"gradient": gradient, "helpers": helpers, "noise_scale": noise_scale}[sys.argv[1]](accelerator, folder)
    (folder / f"world-{accelerator.process_index}").write_text(str(accelerator.num_processes))
    finish(accelerator)
