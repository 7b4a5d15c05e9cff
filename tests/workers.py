"""What the processes of tests that launch several run: `workers.py CASE FOLDER [WORDS] -- CASE FOLDER [WORDS] ...`.

The cases go one after another in the same processes, since starting those costs more than most cases do. Each that comes
to its end leaves `world-RANK` in its folder, with how many processes there were.
"""

from __future__ import annotations

import itertools
import json
import sys
from pathlib import Path

import own_terms
import torch
from accelerate.state import AcceleratorState, PartialState
from game import gradients, networks, player, rounds
from oracles import affine_game, of_several_processes, windows
from pytest import MonkeyPatch
from safetensors.torch import save_file

from gantrain.batching import GradientProbe
from gantrain.distributed import finish, from_main, make_accelerator, mean_of_processes, mean_over_processes, sum_over_processes
from gantrain.losses import R1, R2, Hinge, Relativistic
from gantrain.training.update import discriminator_phase, generator_phase


def gradient(accelerator, folder: Path) -> None:
    """The gradients of both players for several cuts of an update, with one pair of DDP objects throughout."""
    g, d = (player(n, accelerator) for n in networks())
    start = [{k: v.clone() for k, v in p.network.state_dict().items()} for p in (g, d)]
    for b, k in [(4, 1), (4, 2), (4, 4), (3, 3)]:
        for p, state in zip((g, d), start):
            p.network.load_state_dict(state)
        cut = {"b": b, "k": k, "world": accelerator.num_processes, "rank": accelerator.process_index}
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
    g, d = (player(n, accelerator) for n in networks(san=True))  # whose D returns its logits twice
    cut = {"world": accelerator.num_processes, "rank": accelerator.process_index}
    discriminator_phase(g, d, Hinge(), rounds(4, 2, **cut), 2, penalties=[(R1(gamma=0.5), 4.0)])
    if accelerator.is_main_process:
        save_file(gradients(d.network), folder / "san.safetensors")


def terms(accelerator, folder: Path) -> None:
    """The gradients and states after two updates with every word, for two cuts, with one pair of DDP objects throughout."""
    world, rank = accelerator.num_processes, accelerator.process_index
    for loss in (Relativistic(), own_terms.PairedHinge()):
        for b, k in [(6, 1), (3, 2)]:
            g, d = (player(n, accelerator) for n in networks())
            own = own_terms.terms(**own_terms.EVERYTHING, over=(mean_of_processes(accelerator), world))
            found = own_terms.play(g, d, loss, own, b, k, world=world, rank=rank) | own_terms.flat(own.states)
            for tensor in found.values():  # every process holds the same
                assert torch.equal(accelerator.gather(tensor[None])[0], tensor) or accelerator.is_main_process
            if accelerator.is_main_process:
                save_file(found, folder / f"{type(loss).__name__}-{b}-{k}.safetensors")


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
            estimates, single = windows(oracle, b, k, 16, 16, world, rank, mean)
            found[f"{name}-{k}"] = {"estimates": [vars(one) for one in estimates], "single": single.tolist()}
    (folder / f"noise-{rank}.json").write_text(json.dumps(found))


def command(patch: MonkeyPatch, folder: Path, words: list[str]) -> int:
    """`gantrain` with these words."""
    from gantrain import cli

    return cli.run(words)


def spoil(patch: MonkeyPatch, folder: Path, words: list[str]) -> int:
    """Train, with every image unreadable for the second process once training has begun."""
    import os

    from gantrain import cli
    from gantrain.data.folder import Decoder
    from gantrain.errors import UserError
    from gantrain.training.trainer import Trainer

    update = Trainer.update

    def spoilt(trainer: Trainer) -> None:
        if os.environ["RANK"] == "1":

            def read(self, index: int):
                raise UserError(f"{self.path(index)}: does not decode as an image")

            patch.setattr(Decoder, "read", read)
        update(trainer)

    patch.setattr(Trainer, "update", spoilt)
    return cli.run(["train", *words])


def statistics(patch: MonkeyPatch, folder: Path, words: list[str]) -> int:
    """Train; after every score and checkpoint the processes' BatchNorm statistics are the mean of what they were."""
    from gantrain import cli
    from gantrain.training.saving import Saving
    from gantrain.training.scoreboard import Scoreboard

    def checked(method):
        def run(part: Scoreboard | Saving, *arguments, **kwargs) -> None:
            mean = part.players.G.network.last_norm.running_mean
            each = part.context.accelerator.gather(mean.clone()[None])
            method(part, *arguments, **kwargs)
            torch.testing.assert_close(mean, each.mean(0))
            if not torch.equal(each[0], each[1]):
                (folder / f"{method.__name__}-{part.context.rank}").write_text(str(part.run.nimg))

        return run

    for part, method in ((Scoreboard, "evaluate"), (Saving, "save")):
        patch.setattr(part, method, checked(getattr(part, method)))
    return cli.run(["train", *words])


def swap(patch: MonkeyPatch, folder: Path, words: list[str]) -> int:
    """Train; right after every swap all processes hold the same weights, buffers and batch."""
    from gantrain import cli
    from gantrain.training.swapper import Swapper

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

    patch.setattr(Swapper, "swap", run)
    return cli.run(["train", *words])


def disagree(patch: MonkeyPatch, folder: Path, words: list[str]) -> int:
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

    patch.setattr(ByNoiseScale, "propose", asks_for_more)
    patch.setattr(BatchController, "ask", kept)
    return cli.run(["train", *words])


def orbit(patch: MonkeyPatch, folder: Path, words: list[str]) -> int:
    """Train; at every recording all processes have the same sketches of live weights and averages, and the same distances."""
    from gantrain import cli
    from gantrain.averaging.average import named_weights
    from gantrain.orbit.recorder import OrbitRecorder
    from gantrain.theory.sketch import Sketch

    method, counted = OrbitRecorder.record, []

    def record(recorder: OrbitRecorder, *arguments, **kwargs) -> None:
        method(recorder, *arguments, **kwargs)
        rank, world = torch.distributed.get_rank(), torch.distributed.get_world_size()
        for key, bank in recorder.banks.items():
            live = named_weights(bank.network)
            sketch = Sketch(live, key, recorder.settings.size)
            found = [
                sketch(live),
                *(sketch(bank[name].shadows) for name in bank.started()),
                *(bank.distance(name).float().view(1) for name in bank.started()),
            ]
            mine = torch.cat(found)
            each = [torch.empty_like(mine) for _ in range(world)]
            torch.distributed.all_gather(each, mine)
            assert all(torch.equal(each[0], one) for one in each), key
        counted.append(1)
        (folder / f"orbit-{rank}").write_text(f"rank {rank} of {world}: {len(counted)} recordings")

    patch.setattr(OrbitRecorder, "record", record)
    return cli.run(["train", *words])


def exchanges(patch: MonkeyPatch, folder: Path, words: list[str]) -> int:
    """How often three updates exchange each network's gradients, bucket by bucket."""
    from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook

    from gantrain.config.loading import load
    from gantrain.training.trainer import Trainer

    trainer = Trainer(load(words[0], words[1:]))
    seen: dict[str, list[int]] = {"d": [], "g": []}
    for key, one in (("d", trainer.players.D), ("g", trainer.players.G)):

        def hook(state, bucket, key=key):
            seen[key].append(bucket.index())
            return allreduce_hook(None, bucket)

        one.wrapped.register_comm_hook(None, hook)
    trainer.start()
    trainer.update()  # after the first, DistributedDataParallel puts its buckets in order
    for of in seen.values():
        of.clear()
    for _ in range(3):
        trainer.update()
    trainer.guard.pulse.receive(all=True)
    buckets = {key: len(set(of)) for key, of in seen.items()}
    views = all(p.grad._is_view() for player in trainer.players.by_key.values() for p in player.network.parameters() if p.grad is not None)
    found = {
        "updates": 3,
        "d_steps": trainer.config.optim.d_steps,
        "buckets": buckets,
        "exchanges": {key: len(of) for key, of in seen.items()},
        "views": views,
    }
    if trainer.context.main:
        (folder / "exchanges.json").write_text(json.dumps(found))
    trainer.close()
    accelerator = trainer.accelerator
    del trainer, one, of
    finish(accelerator)
    return 0


SMALL = {"gradient": gradient, "terms": terms, "helpers": helpers, "noise_scale": noise_scale}
WHOLE_RUNS = {
    "command": command,
    "spoil": spoil,
    "statistics": statistics,
    "swap": swap,
    "disagree": disagree,
    "orbit": orbit,
    "exchanges": exchanges,
}


def run(case: str, folder: Path, words: list[str]) -> None:
    """One case, as if in processes of its own; a command that fails ends them."""
    AcceleratorState._reset_state(reset_partial_state=True)
    folder.mkdir(exist_ok=True)
    if case in WHOLE_RUNS:
        with MonkeyPatch.context() as patch:
            status = WHOLE_RUNS[case](patch, folder, words)
        if status:
            sys.exit(status)
        rank, world = PartialState().process_index, PartialState().num_processes
    else:
        accelerator = make_accelerator()
        SMALL[case](accelerator, folder)
        rank, world = accelerator.process_index, accelerator.num_processes
        finish(accelerator)
    (folder / f"world-{rank}").write_text(str(world))


if __name__ == "__main__":
    cases = [list(words) for between, words in itertools.groupby(sys.argv[1:], lambda word: word == "--") if not between]
    # A group of processes meets once; only the last case leaves it.
    destroy, torch.distributed.destroy_process_group = torch.distributed.destroy_process_group, lambda group=None: None
    for i, (case, folder, *words) in enumerate(cases):
        if i == len(cases) - 1:
            torch.distributed.destroy_process_group = destroy
        run(case, Path(folder), words)
