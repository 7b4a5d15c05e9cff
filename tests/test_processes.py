"""Processes: their place in a group, what they hear of each other, their limits, and where there is no home folder."""

from __future__ import annotations

import argparse
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from conftest import ROOT, TINY, slow_but

from gantrain import cache, command_end, command_signals, home, launch_environment, memory, other_processes, process_watch
from gantrain.averaging.average import named_weights
from gantrain.averaging.batchnorm import named_statistics
from gantrain.commands import arguments as command_arguments, train
from gantrain.config.loading import load
from gantrain.data import worker_processes
from gantrain.distributed import local_processes
from gantrain.errors import UserError
from gantrain.launch_environment import Place, process_rank, read_place
from gantrain.models.architecture import build_networks
from gantrain.optimizers import Adam
from gantrain.process_watch import ProcessWatch
from gantrain.training.sizes import batches_of, bytes_of_networks, require_room, sizes_of_networks

GROUP = {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1", "MASTER_ADDR": "localhost", "MASTER_PORT": "29500"}


@pytest.fixture
def group(monkeypatch):
    """Sets exactly these variables of a launcher."""

    def set_to(**variables: str) -> None:
        for name in (*launch_environment.VARIABLES, *(one for others in launch_environment.OF_MPI.values() for one in others)):
            monkeypatch.setenv(name, "")  # so that what is set meanwhile is unset afterwards
            monkeypatch.delenv(name)
        for name, value in variables.items():
            monkeypatch.setenv(name, value)

    return set_to


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"MASTER_ADDR": None}, "MASTER_ADDR: not set, but WORLD_SIZE=2 is; start the processes with"),
        ({"RANK": None}, "RANK: not set"),
        ({"LOCAL_RANK": None, "MASTER_ADDR": "node1"}, "LOCAL_RANK: not set, but WORLD_SIZE=2 is"),
        ({"WORLD_SIZE": None}, "RANK: 1 does not fit, since WORLD_SIZE is not set; start the processes with"),
        ({"WORLD_SIZE": None}, "to train with one process, unset RANK and LOCAL_RANK"),
        ({"WORLD_SIZE": None, "RANK": None}, "WORLD_SIZE: not set, but LOCAL_RANK=1 is"),
        ({"MASTER_ADDR": None, "LOCAL_WORLD_SIZE": "2"}, "one process, unset RANK, LOCAL_RANK, WORLD_SIZE and LOCAL_WORLD_SIZE"),
        ({"RANK": "2"}, "RANK: 2 does not fit, since WORLD_SIZE=2 allows 0 to 1"),
        ({"RANK": "one"}, "RANK: must be a whole number of at least 0 (the number of this process, from 0), got 'one'"),
        ({"RANK": "-1"}, "RANK: not set, but WORLD_SIZE=2 is"),
        ({"RANK": "-2"}, "RANK: must be a whole number of at least 0"),
        ({"WORLD_SIZE": "0"}, "WORLD_SIZE: must be a whole number of at least 1"),
        ({"WORLD_SIZE": "9" * 30}, "WORLD_SIZE: must be a whole number"),
        ({"LOCAL_WORLD_SIZE": "1"}, "LOCAL_RANK: must be below LOCAL_WORLD_SIZE=1, got 1"),
        ({"LOCAL_WORLD_SIZE": "3"}, "LOCAL_WORLD_SIZE: must be at most WORLD_SIZE=2, got 3"),
        ({"LOCAL_RANK": "2"}, "LOCAL_RANK: must be below WORLD_SIZE=2"),
        ({"MASTER_PORT": "99999"}, "MASTER_PORT: must be a whole number from 1 to 65535"),
        ({"MASTER_PORT": "http"}, "got 'http'"),
    ],
)
def test_a_wrong_variable_of_a_launcher_is_named(changes, words, group):
    group(**{name: value for name, value in (GROUP | changes).items() if value is not None})
    with pytest.raises(UserError, match=re.escape(words)):
        read_place(cpu=False)


@pytest.mark.parametrize(
    ("variables", "cpu", "place"),
    [
        ("RANK=0 WORLD_SIZE=1", None, Place()),  # srun -n1
        ("RANK=0 WORLD_SIZE=1 LOCAL_RANK=0", None, Place()),
        ("WORLD_SIZE=1 LOCAL_RANK=0 LOCAL_WORLD_SIZE=1", False, Place()),
        ("LOCAL_RANK=-1", None, Place()),
        ("RANK=-1 WORLD_SIZE=-1 LOCAL_RANK=-1 LOCAL_WORLD_SIZE=-1", True, Place()),
        ("RANK=0 LOCAL_WORLD_SIZE=4 MASTER_ADDR=node1 MASTER_PORT=1", True, Place()),
        ("RANK=0 WORLD_SIZE=1 LOCAL_RANK=0 MASTER_ADDR=node1", True, Place(address="node1", port=29500)),
        ("RANK=1 WORLD_SIZE=2 MASTER_ADDR=localhost", False, Place(1, 2, 1, 1, "localhost", 29500)),
        ("RANK=1 WORLD_SIZE=2 MASTER_ADDR=127.0.0.1 LOCAL_RANK=-1", True, Place(1, 2, 1, 1, "127.0.0.1", 29500)),
        ("RANK=1 WORLD_SIZE=2 MASTER_ADDR=node1 LOCAL_WORLD_SIZE=2 MASTER_PORT=5", False, Place(1, 2, 1, 2, "node1", 5)),
        ("RANK=1 WORLD_SIZE=2 MASTER_ADDR=node1", True, Place(1, 2, 0, 1, "node1", 29500)),
        ("RANK=1 WORLD_SIZE=2 MASTER_ADDR=node1", None, Place(1, 2, 0, 1, "node1", 29500)),
        ("WORLD_SIZE=2 OMPI_COMM_WORLD_RANK=1 OMPI_COMM_WORLD_SIZE=2 MASTER_ADDR=node1", True, Place(1, 2, 0, 1, "node1", 29500)),
        ("PMI_RANK=0 PMI_SIZE=1", True, Place()),
    ],
)
def test_what_has_a_sound_default_need_not_be_set(variables, cpu, place, group):
    group(**dict(one.split("=") for one in variables.split()))
    assert read_place(cpu) == place == read_place(cpu)
    assert ("LOCAL_RANK" in os.environ) == (place.local_rank > 0 or place.world == 1 < len(place.address))  # or Accelerate forms a group
    assert not place.grouped or os.environ["MASTER_PORT"] == str(place.port)


def test_following_the_remedy_trains_with_one_process(group):
    """All that has to be unset is named at once."""
    for variables in (
        "RANK=1 LOCAL_RANK=1", "LOCAL_RANK=0", "WORLD_SIZE=2 RANK=x", "RANK=3 WORLD_SIZE=2 LOCAL_RANK=0 LOCAL_WORLD_SIZE=2",
        "LOCAL_WORLD_SIZE=x", "PMI_SIZE=2 PMI_RANK=1", "WORLD_SIZE=2 RANK=0 LOCAL_RANK=1 LOCAL_WORLD_SIZE=1 MASTER_ADDR=node1",
    ):  # fmt: skip
        group(**dict(one.split("=") for one in variables.split()))
        with pytest.raises(UserError, match="to train with one process, unset ") as refused:
            read_place(cpu=True)
        for name in re.split(r", | and ", str(refused.value).rpartition("unset ")[2]):
            del os.environ[name]
        assert read_place(cpu=True) == Place()


def test_a_place_is_read(group):
    group(**GROUP, LOCAL_WORLD_SIZE="2")
    assert read_place() == Place(1, 2, 1, 2, "localhost", 29500) and process_rank() == 1
    group(RANK="0", LOCAL_RANK="", MASTER_ADDR=" ")
    assert read_place() == Place() and not read_place().grouped and "LOCAL_RANK" not in os.environ
    group(OMPI_COMM_WORLD_SIZE="2", OMPI_COMM_WORLD_RANK="1", OMPI_COMM_WORLD_LOCAL_RANK="1", MASTER_ADDR="localhost")
    assert read_place(cpu=True) == Place(1, 2, 1, 1, "localhost", 29500)


@pytest.mark.parametrize("variables", [{"RANK": "1"}, {"RANK": "x", "WORLD_SIZE": "2"}, {"RANK": "3", "WORLD_SIZE": "2"}, {"RANK": ""}])
def test_a_rank_that_is_left_over_is_that_of_no_process(variables, group):
    group(**variables)
    assert process_rank() == 0


def test_a_process_without_a_device_of_its_own_is_refused():
    with pytest.raises(UserError, match=r"LOCAL_RANK: 1 needs 2 CUDA devices on this machine, not 1; start at most 1 process on it"):
        launch_environment.require_devices(Place(1, 2, 1, 2, "localhost", 1), 1, "CUDA")


@pytest.mark.parametrize("address", ["no such host", "a..b", "nosuch.invalid"])
def test_an_address_that_does_not_resolve_is_named(address):
    with pytest.raises(UserError, match=f"MASTER_ADDR: '{address}' does not resolve"):
        launch_environment.resolve_address(Place(1, 2, 1, 2, address, 29500))


# ---- what processes hear of each other -------------------------------------------------------------------------------


@pytest.fixture
def pair(monkeypatch):
    """Two processes of a group as two objects of this one."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    monkeypatch.setattr(process_watch, "LINGER", 0.5)
    monkeypatch.setattr(process_watch, "RETRY", 0.01)
    made = [ProcessWatch(Place(rank, 2, rank, 2, "127.0.0.1", port)) for rank in (0, 1)]
    made[0].wait_for_all(pytest.fail)
    made[0].publish_store(1234)
    assert made[1].wait_for_store(pytest.fail) == 1234
    yield made
    for one in made:
        one.end(0, failed=False)


@pytest.mark.parametrize("rank", slow_but([1], [0, 1]))
def test_the_others_end_with_the_status_of_a_process_that_failed(pair, rank):
    pair[rank].end(3, failed=True)
    failure = pair[1 - rank].wait_for_news()
    assert failure and (failure.rank, failure.exit_status) == (rank, 3)
    assert failure.in_words() == "another process failed; see its error message"


@pytest.mark.parametrize("rank", slow_but([1], [0, 1]))
def test_a_process_that_is_killed_is_named(pair, rank):
    for one in list(pair[rank]._peers.values()):  # as the system does
        one.shutdown(socket.SHUT_RDWR)
    failure = pair[1 - rank].wait_for_news()
    assert failure and failure.exit_status == 1 and f"process {rank} was killed or crashed" in failure.in_words()


def test_a_process_that_is_done_is_not_missed(pair, monkeypatch):
    monkeypatch.setattr(process_watch, "NEWS", 0.2)
    pair[1].end(0, failed=False)
    assert pair[0].wait_for_news() is None


def test_what_does_not_fit_the_group_is_refused(pair):
    for rank, world, words in ((1, 2, "RANK: two processes have RANK=1"), (1, 3, "WORLD_SIZE: 3 here, but 2 on the process with RANK=0")):
        other = ProcessWatch(Place(rank, world, 1, 2, "127.0.0.1", pair[0].place.port))
        with pytest.raises(UserError, match=words):
            other.wait_for_store(pytest.fail)
        other.end(2, failed=False)
    with pytest.raises(UserError, match=r"MASTER_PORT: cannot listen on \d+ \(Address already in use\); set it to a free port"):
        ProcessWatch(pair[0].place)
    assert pair[0].failure is None


def test_strangers_do_not_end_a_run(pair):
    for said in (b"GET / HTTP/1.1\n\n", b"failed 1 2\n", b"hello 0 2\nfailed 0 2\n", b"\xff" * 1000, b"hello 7 x\n", b""):
        with socket.create_connection(("127.0.0.1", pair[0].place.port)) as one:
            one.sendall(said)
    time.sleep(0.05)
    assert pair[0].failure is None and pair[1].failure is None


@pytest.mark.slow
def test_waiting_for_a_process_is_bounded(monkeypatch):
    monkeypatch.setenv(process_watch.JOIN, "0.3")
    monkeypatch.setattr(process_watch, "NOTE_AFTER", 0.1)
    monkeypatch.setattr(process_watch, "LINGER", 0.0)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
        alone, notes = ProcessWatch(Place(1, 2, 1, 2, "127.0.0.1", port)), []
        with pytest.raises(UserError, match=rf"MASTER_ADDR: the process with RANK=0 at .*MASTER_PORT={port} did not come within 0.3 s"):
            alone.wait_for_store(notes.append)
        alone.end(2, failed=True)
    assert len(notes) == 1 and notes[0].startswith("waiting for the process with RANK=0")
    monkeypatch.setenv(process_watch.JOIN, "soon")
    with pytest.raises(UserError, match="GANTRAIN_JOIN_SECONDS: must be a number of seconds above 0, got 'soon'"):
        process_watch.join_seconds()


@pytest.mark.parametrize(
    ("error", "gone"),
    [
        (RuntimeError("[../gloo/transport/tcp/pair.cc:547] Connection closed by peer [127.0.0.1]:1"), True),
        (type("DistBackendError", (RuntimeError,), {})("NCCL communicator was aborted"), True),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), False),
        (ValueError("gloo"), False),
    ],
)
def test_only_a_broken_connection_shows_that_another_process_has_gone(error, gone, group):
    group(WORLD_SIZE="2")
    assert (other_processes.explain(error) is not None) == gone
    group()
    assert other_processes.explain(error) is None


# ---- no home folder --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["~nosuch/x", "~nosuch"])
def test_a_path_of_an_unknown_user_is_refused(path):
    with pytest.raises(UserError, match=rf"data.root: '{path}' begins with '~nosuch', and there is no user 'nosuch' with a home folder"):
        home.expand_user(path, "data.root")


def test_a_path_of_nobody_knows_home_is_refused(monkeypatch):
    monkeypatch.setenv("HOME", "here")
    with pytest.raises(UserError, match=r"'~/x' begins with '~', and this user has no home folder; write the path in full"):
        home.expand_user("~/x")
    with pytest.raises(UserError, match="contains a NUL character"):
        home.expand_user("a\0b")
    assert home.expand_user("a/~b") == Path("a/~b") and home.home_folder() is None


def test_a_home_that_may_not_be_entered_is_replaced(tmp_path, monkeypatch):
    """As root's home in a container that runs as another user; here a loop of links, which stops root too."""
    loop = tmp_path / "loop"
    loop.symlink_to(loop)
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    for name in (home.REPLACED, "GANTRAIN_CACHE", "XDG_CACHE_HOME", "MPLCONFIGDIR"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    monkeypatch.setattr(home, "LONGEST_TEMPORARY", 1000)
    home.replacement.cache_clear(), cache.default_cache_folder.cache_clear()
    try:
        for wrong in (loop, loop / "below"):
            monkeypatch.setenv("HOME", str(wrong))
            assert not home.is_writable(wrong / ".config")
            said: list[str] = []
            home.settle_home(said.append)
            folder = home.replacement()
            words = f"HOME is '{wrong}', which this user cannot enter (Too many levels of symbolic links); caches go to {folder}"
            assert said == [f"{words}: set HOME to keep them"]
            assert os.environ["HOME"] == str(folder) and cache.cache_folder() == folder / "cache"
            monkeypatch.delenv(home.REPLACED)
        monkeypatch.setenv("HOME", str(tmp_path / "missing"))
        assert home.fault_of_home() is None
    finally:
        home.replacement.cache_clear(), cache.default_cache_folder.cache_clear()


def test_a_user_without_a_home_gets_a_folder(tmp_path, monkeypatch):
    said: list[str] = []
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    for name in (home.REPLACED, "GANTRAIN_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", "")
    monkeypatch.setenv("USER", "somebody")
    monkeypatch.setenv("HOME", "relative")
    home.replacement.cache_clear()
    cache.default_cache_folder.cache_clear()
    monkeypatch.setattr(home, "LONGEST_TEMPORARY", 1000)
    try:
        home.settle_home(said.append)
        folder = tmp_path / f"gantrain-{os.getuid()}"
        assert os.environ["HOME"] == str(folder) and folder.stat().st_mode & 0o777 == 0o700
        assert said == [
            f"HOME is 'relative', not an absolute path, and this user has no home folder; caches go to {folder}: set HOME to keep them"
        ]
        assert cache.cache_folder() == folder / "cache"
        with pytest.raises(UserError, match="this user has no home folder"):
            home.expand_user("~/data")
    finally:
        monkeypatch.delenv(home.REPLACED, raising=False)
        home.replacement.cache_clear()
        cache.default_cache_folder.cache_clear()


def test_a_folder_of_another_user_is_not_used_as_home(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    home.replacement.cache_clear()
    (tmp_path / f"gantrain-{os.getuid()}").symlink_to(tmp_path)
    try:
        assert home.replacement().name.startswith("gantrain-") and home.replacement().stat().st_mode & 0o777 == 0o700
        assert home.replacement() != tmp_path / f"gantrain-{os.getuid()}"
    finally:
        home.replacement.cache_clear()


# ---- limits ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        pytest.param(
            "model.ch=1000000000",
            "model: ch=1000000000, dim_z=64: a weight has more values than a tensor can; use a smaller model",
            marks=pytest.mark.slow,
        ),
        ("eval.batch_size=1000000000", r"eval.batch_size: 1000000000: the images of one pass need at least .* GiB of memory"),
        ("batching.batch_size=1000000000 batching.micro_batch=null batching.max_batch=null", "batching.batch_size: 1000000000"),
        ("averagers.lawa.name=lawa averagers.lawa.k=10001", "averagers.lawa.k must be from 1 to 10000, got 10001"),
        ("averagers.lawa.name=lawa averagers.lawa.k=9999 model.ch=64", "averagers: 4 averages and the networks need at least .* GiB"),
    ],
)
def test_what_no_memory_holds_is_refused(overrides, words):
    with pytest.raises(UserError, match=words):
        require_room(load("digits", overrides.split()), (16, 1, 10), torch.device("cpu"), 1, 1)


STATS = {
    "v2": ("inactive_file 200\nactive_file 30\nfile 500\n", 1000 - 700 + 230),
    "v1": ("inactive_file 1\nactive_file 2\ntotal_inactive_file 200\ntotal_active_file 30\n", 1000 - 700 + 230),
    "nothing cached": ("anon 700\n", 300),
    "no limit": (None, None),
}


@pytest.mark.parametrize("stat, left", STATS.values(), ids=STATS)
def test_free_memory_is_that_of_the_container(monkeypatch, tmp_path, stat, left):
    """Cached files count as free: the system drops them."""
    files = [tmp_path / name for name in ("limit", "used", "stat")]
    for file, text in zip(files, ("max" if stat is None else "1000", "700", stat or "")):
        file.write_text(text)
    monkeypatch.setattr(memory, "CGROUPS", (("/no/such", "/no", "/no"), files))
    free = memory.free_memory()
    assert free == left if stat else free > 2**20


@pytest.mark.slow
def test_networks_averages_and_features_are_counted(monkeypatch):
    monkeypatch.setattr(memory, "main_memory", lambda: 2**21)
    monkeypatch.setattr("gantrain.training.sizes.main_memory", lambda: 2**21)
    small = ["eval.batch_size=2", "batching.batch_size=2", "batching.micro_batch=2", "batching.max_batch=2"]
    state = torch.get_rng_state()
    with pytest.raises(UserError, match=r"model: dim_z=64, ch=8: its networks of [\d,]+ parameters, with gradients and optimizer, need at"):
        require_room(load("digits", small), (16, 1, 10), torch.device("cpu"), 1, 1)
    many = [*small, "model.ch=2", *(f"averagers.a{i}={{name: ema}}" for i in range(40))]
    with pytest.raises(UserError, match=r"averagers: 4\d averages and the networks need at least"):
        require_room(load("digits", many), (16, 1, 10), torch.device("cpu"), 1, 1)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.slow  # torch needs seconds to import what it has for the meta device
@pytest.mark.parametrize(
    ("name", "shape"),
    [("digits", (16, 1, 10)), ("digits_swap", (16, 1, 10)), ("cifar10_biggan", (32, 3, 10)), ("imagenet128_biggan", (128, 3, 1000))],
)
def test_the_estimate_of_the_memory_is_a_lower_bound(name, shape):
    """The tensors of a run after an update, without activations, counted one by one on the meta device."""
    config = load(name, ["data.root=/nosuch"] if name.startswith("imagenet") else [])
    sizes = sizes_of_networks(config, shape)
    with torch.device("meta"), torch.random.fork_rng(devices=[]):
        (g, d), (averaged, _) = build_networks(config.model, *shape), build_networks(config.model, *shape)
    held = [tensor for network in (g, d, averaged) for tensor in (*network.parameters(), *network.buffers())]
    for network in (g, d):
        optimizer = Adam().build([*network.parameters()], 1e-4, config.optim.betas, config.optim.eps)
        for parameter in network.parameters():
            parameter.grad = torch.empty_like(parameter)
        optimizer.step()
        held += [p.grad for p in network.parameters()] + [one for state in optimizer.state.values() for one in state.values()]
    averages = 0
    for key, network in (("g", g), ("d", d)):
        followed = [*named_weights(network).values(), *named_statistics(network).values()]
        averages += len(config.followed(key)) * sum(4 * one.numel() for one in followed)
    playing, averaging = bytes_of_networks(config, *sizes)
    real = sum(one.nbytes for one in held)
    assert 0.99 * real < playing <= real and averaging <= averages <= 1.01 * averaging


@pytest.mark.slow
@pytest.mark.parametrize("batchnorm", ["recalibrate", "copy"])
def test_no_more_images_are_counted_than_a_pass_has(batchnorm, monkeypatch):
    """A batch for evaluation that is larger than all samples is a common way to say: at once."""
    monkeypatch.setattr(memory, "main_memory", lambda: 2**26)
    monkeypatch.setattr("gantrain.training.sizes.main_memory", lambda: 2**26)
    config = load("digits", ["eval.batch_size=100000", "eval.num_samples=100", f"eval.batchnorm={batchnorm}"])
    with pytest.raises(UserError, match="eval.batch_size: 100000") if batchnorm == "recalibrate" else nullcontext():
        require_room(config, (16, 1, 10), torch.device("cpu"), 1, 1)
    elastic = load("digits", ["batching.micro_batch=64"])
    assert batches_of(elastic, 4)["batching.micro_batch"] == 16


def test_left_over_local_world_size_takes_no_memory_away(group):
    group(LOCAL_WORLD_SIZE="8")
    assert local_processes() == 1
    group(LOCAL_WORLD_SIZE="-1", WORLD_SIZE="4")
    assert local_processes() == 1
    group(LOCAL_WORLD_SIZE="2", WORLD_SIZE="4")
    assert local_processes() == 2


@pytest.mark.parametrize(
    ("error", "known"),
    [
        (MemoryError("Unable to allocate 7.45 GiB for an array"), True),
        (
            RuntimeError("[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes"),
            True,
        ),
        (RuntimeError("Storage size calculation overflowed with sizes=[9]"), True),
        (type("OutOfMemoryError", (RuntimeError,), {})("CUDA out of memory. Tried to allocate 8 GiB."), True),
        (RuntimeError("shapes differ"), False),
        (OSError("out of memory"), False),
    ],
)
def test_an_allocation_that_failed_is_one_line(error, known):
    words = memory.explain_allocation(error)
    assert (words is not None) == known
    assert words is None or (words.startswith("out of memory (") and "batching.micro_batch" in words and "\n" not in words)


def test_workers_that_the_system_does_not_allow_are_refused(monkeypatch):
    with pytest.raises(UserError, match=r"data.workers: 1000000 are too many for the .* of this machine; use at most \d+"):
        worker_processes.require_workers(1_000_000, 1)
    monkeypatch.setattr(worker_processes, "raise_file_limit", lambda needed: 100)
    with pytest.raises(UserError, match=r"8 need about 192 open files, and this process may have 100; .* or set data.workers=2"):
        worker_processes.require_workers(8, 1)
    monkeypatch.undo()
    if os.path.isdir(worker_processes.SHARED):
        with pytest.raises(UserError, match=r"data.workers: 2 pass .* of images on through /dev/shm, which has .*--shm-size"):
            worker_processes.require_workers(2, 2**60)


def test_a_limit_on_processes_is_one_line():
    def start(turn: int):
        raise BlockingIOError(11, "Resource temporarily unavailable")

    with pytest.raises(UserError, match=r"data.workers: cannot start 4 workers \(Resource temporarily unavailable\); lower data.workers"):
        worker_processes.SteadyWorkers(start, 4)


@pytest.mark.parametrize(
    ("status", "words"),
    [
        (-signal.SIGKILL, "memory runs out"),
        (-signal.SIGBUS, "/dev/shm is full"),
        (-signal.SIGSEGV, "SIGSEGV"),
        (3, "status 3"),
        (None, "status"),
    ],
)
def test_the_death_of_a_worker_is_explained(status, words):
    assert words in worker_processes.words_of_death(status)[0]


def images_on_disk(folder: Path):
    """Forty images that workers decode."""
    import numpy as np
    from PIL import Image

    from gantrain.data import prepare
    from gantrain.data.folder import Folder

    folder.mkdir()
    for i in range(40):
        Image.fromarray(np.full((16, 16, 3), i, np.uint8)).save(folder / f"{i}.png")
    return prepare(Folder(root=str(folder), resolution=16, keep_in="disk", labels=False), torch.device("cpu"), 1, lambda i, total: i, None)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGBUS, signal.SIGSEGV])
def test_a_worker_that_is_killed_is_replaced_and_no_batch_is_lost(tmp_path, number, caplog):
    import multiprocessing

    from gantrain.data.stream import RealBatches

    images = images_on_disk(tmp_path / "pictures")

    def batches(kills: list[int]) -> torch.Tensor:
        stream = RealBatches(images, 0, 8, 0, 1, 0, torch.device("cpu"), workers=2)
        found = []
        for i in range(50):
            if i in kills:
                os.kill(multiprocessing.active_children()[0].pid, number)
            found.append(stream.next()[0])
        stream.close()
        return torch.stack(found)

    assert torch.equal(batches([]), batches([20]))
    assert "a worker ended" in caplog.text and number.name in caplog.text
    with pytest.raises(UserError, match=r"data.workers: 3 workers in 10 min ended .*; run the same command to resume from the last"):
        batches([5, 20, 35])


@pytest.mark.parametrize("error", [EOFError, ConnectionResetError, RuntimeError, OSError])
def test_without_workers_an_error_of_the_data_set_is_its_own(error):
    def start(turn: int):
        raise error("of the data set")
        yield

    began = time.monotonic()
    with pytest.raises(error, match="of the data set"):
        worker_processes.SteadyWorkers(start, 0).next()
    assert time.monotonic() - began < 0.5


@pytest.mark.slow
def test_workers_end_with_their_stream_although_something_keeps_their_batches(tmp_path):
    import multiprocessing

    from gantrain.data.stream import RealBatches

    stream = RealBatches(images_on_disk(tmp_path / "pictures"), 0, 8, 0, 1, 0, torch.device("cpu"), workers=2)
    stream.next()
    kept = stream._loaded._batches
    stream.close()
    assert not multiprocessing.active_children()
    del kept


DAMAGED_LATER = """
from dataclasses import dataclass
import torch

class Images(torch.utils.data.Dataset):
    num_classes, channels, resolution, read = 10, 1, 16, 0
    def __len__(self): return 100
    def __getitem__(self, i):
        Images.read += 1
        if Images.read > 900: raise {error}("ended before the end-of-stream marker")
        return torch.full((1, 16, 16), i, dtype=torch.uint8), i % 10

@dataclass(frozen=True)
class Set:
    resolution: int = 16
    flip: bool = False
    workers: int = 0
    keep_in: str = "disk"
    def build(self): return Images()
"""


@pytest.mark.slow
@pytest.mark.parametrize(("workers", "error"), [(0, "ConnectionResetError"), (1, "EOFError")])
def test_a_data_set_that_fails_in_training_ends_the_command(tmp_path, workers, error):
    (tmp_path / "mysets.py").write_text(DAMAGED_LATER.format(error=error))
    data = f"data={{name: 'mysets:Set', workers: {workers}, keep_in: disk}}"
    command = [sys.executable, "-m", "gantrain", "train", "digits", f"run_dir={tmp_path / 'run'}", *TINY, data, "total_kimg=100"]
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}:{tmp_path}", "WANDB_MODE": "disabled"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=60)
    assert "data set 'mysets:Set' failed" in done.stderr and "end-of-stream marker" in done.stderr, done.stderr
    assert done.returncode == 1 and "is replaced" not in done.stderr and "lower data.workers" not in done.stderr


# ---- signals outside of commands, and whole groups -------------------------------------------------------------------


def test_ctrl_c_inside_code_from_a_string_has_the_status_of_any_other():
    """Dataclasses are made of such code while modules are imported; Python would kill itself by SIGINT after it."""
    code = "from gantrain import cli; cli.call = lambda arguments: exec('raise KeyboardInterrupt'); cli.main(['configs'])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == command_signals.INTERRUPTED and done.stderr.startswith("gantrain: error: interrupted")


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGUSR1])
@pytest.mark.parametrize("seconds", [0.04, 0.06, 0.1, 0.3, 0.8, 1.5, 2.5])
def test_a_signal_at_the_start_is_one_line(tmp_path, number, seconds):
    command = [sys.executable, "-m", "gantrain", "train", "digits", f"run_dir={tmp_path / 'run'}", *TINY, "total_kimg=100"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "WANDB_MODE": "disabled"}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)
    while not signal_is_caught(process.pid, number) and process.poll() is None:  # before, it is Python's own, which starts
        time.sleep(0.002)
    time.sleep(seconds)
    process.send_signal(number)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == (command_signals.INTERRUPTED if number == signal.SIGINT else command_signals.PREEMPTED), errors
    assert "Traceback" not in errors


def signal_is_caught(pid: int, number: signal.Signals) -> bool:
    caught = re.search(r"SigCgt:\s*(\w+)", Path(f"/proc/{pid}/status").read_text()) if Path(f"/proc/{pid}/status").exists() else None
    return caught is not None and bool(int(caught[1], 16) >> (number - 1) & 1) and "python" in Path(f"/proc/{pid}/cmdline").read_text()


def start_group(run: Path, folder: Path, own: dict[int, list[str]], *overrides: str, processes: int = 2) -> list[subprocess.Popen]:
    """The processes of a training without a launcher; `own` has further overrides of some."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    started = []
    for rank in range(processes):
        place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": processes, "LOCAL_WORLD_SIZE": processes, "MASTER_PORT": port}
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "1", "WANDB_MODE": "disabled"}
        environment |= {"MASTER_ADDR": "127.0.0.1", **{name: str(value) for name, value in place.items()}}
        command = [sys.executable, "-m", "gantrain", "train", "digits", f"run_dir={run}", *TINY, *overrides, *own.get(rank, [])]
        with open(folder / f"{rank}.txt", "w") as errors:
            started.append(subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=errors, env=environment))
    return started


def ends(started: list[subprocess.Popen], folder: Path) -> list[tuple[int, str]]:
    """(status, standard error) of each process."""
    try:
        return [(one.wait(120), (folder / f"{rank}.txt").read_text()) for rank, one in enumerate(started)]
    finally:
        for one in started:
            one.kill()


OTHERS = [
    (["optim.lr_g=0.5"], r"optim.lr_g: process 0 has 0.0004, and process 2 has 0.5; start all processes with the same configuration"),
    (["averagers.late={name: swa}"], r"averagers.late.name: process 0 has no such key, and process 2 has 'swa', and \d+ other keys; s"),
    (["averagers.ema=null"], r"averagers.ema.name: process 0 has 'ema', and process 2 has no such key"),
    (["total_kimg=7", "checkpoint.every_kimg=1"], r"total_kimg: process 0 has 80.0, and process 2 has 7.0, and 1 other key; start"),
    (["eval.reference=here.npz"], "eval.reference: process 0 has null, and process 2 has a path; start all processes with the same"),
    (["run_dir=elsewhere", "data.workers=0"], None),
]


@pytest.mark.parametrize(
    ("other", "words"),
    slow_but(OTHERS[:1], OTHERS),
)
def test_processes_of_different_configurations_are_refused(monkeypatch, other, words):
    config = load("digits")
    monkeypatch.setattr(train, "gather_object", lambda mine: [*mine, *mine, train.comparable(load("digits", other))])
    with pytest.raises(UserError, match=words) if words else nullcontext():
        train.require_one_config(config, SimpleNamespace(num_processes=3))


def test_processes_may_find_the_reference_at_other_paths(monkeypatch):
    monkeypatch.setattr(train, "gather_object", lambda mine: [*mine, train.comparable(load("digits", ["eval.reference=there.npz"]))])
    train.require_one_config(load("digits", ["eval.reference=here.npz"]), SimpleNamespace(num_processes=2))


@pytest.mark.slow
@pytest.mark.parametrize("key", ["eval.reference=/nosuch.npz", "optim.lr_g=0.5", "data={name: folder, root: /nosuch, resolution: 16}"])
def test_all_processes_refuse_different_configurations(tmp_path, key):
    statuses = ends(start_group(tmp_path / "run", tmp_path, {1: [key]}), tmp_path)
    assert [status for status, _ in statuses] == [2, 2] and not (tmp_path / "run").exists()
    assert all("process 0 has" in errors and errors.count("gantrain: error") == 1 for _, errors in statuses)


PICKY = """
import dataclasses, os
from gantrain.losses import Hinge

@dataclasses.dataclass(frozen=True)
class Picky(Hinge):
    def generator(self, *logits):
        if os.environ["RANK"] == os.environ["REFUSED"]:
            raise ValueError("these logits are refused")
        return super().generator(*logits)
"""
REFUSED = [
    ("alone", "nosuch", 2),
    ("together", "/nosuch.npz", 2),
    ("in an update", "these logits are refused", 1),  # as docs/plugins.md says
]


@pytest.mark.slow
@pytest.mark.parametrize("refused", [0, 1])
@pytest.mark.parametrize(("moment", "words", "status"), REFUSED, ids=[moment for moment, *_ in REFUSED])
def test_all_processes_end_when_one_refuses(tmp_path, monkeypatch, refused, moment, words, status):
    """Before they have joined, while both do the same, and in an update, where the other waits for this one's gradients."""
    (tmp_path / "picky.py").write_text(PICKY)
    monkeypatch.chdir(tmp_path)  # where a plug-in is found
    monkeypatch.setenv("REFUSED", str(refused))
    own = {"alone": ["model.nosuch=3"], "together": ["eval.reference=/nosuch.npz"], "in an update": []}[moment]
    everywhere = [f"eval.reference={ROOT / 'configs' / 'digits.yaml'}", *(["loss.name=picky:Picky"] if moment == "in an update" else [])]
    statuses = ends(start_group(tmp_path / "run", tmp_path, {refused: own}, *everywhere), tmp_path)
    assert [found for found, _ in statuses] == [status, status]
    assert all("Traceback" not in errors and errors.count("gantrain: error") == 1 for _, errors in statuses)
    assert words in statuses[refused][1] and "another process failed; see its error message" in statuses[1 - refused][1]


@pytest.mark.slow
@pytest.mark.parametrize("killed", [0, 1])
@pytest.mark.parametrize("when", ["metrics.jsonl", "checkpoints/0*", "samples/*.png"])
def test_all_processes_end_when_one_is_killed(tmp_path, killed, when):
    run = tmp_path / "run"
    started = start_group(run, tmp_path, {}, "total_kimg=100")
    deadline = time.monotonic() + 90
    while not list(run.glob(when)) and time.monotonic() < deadline:
        time.sleep(0.01)
    started[killed].kill()
    statuses = ends(started, tmp_path)
    assert statuses[killed][0] == -signal.SIGKILL
    status, errors = statuses[1 - killed]
    assert status == 1 and f"process {killed} was killed or crashed" in errors and "Traceback" not in errors


# ---- killed before training is imported ------------------------------------------------------------------------------


def test_processes_join_before_a_command_is_imported(monkeypatch):
    """Importing torch takes seconds, and the system may kill a process in them."""
    done: list[str] = []
    monkeypatch.setattr(other_processes, "join", lambda place: done.append("joined"))
    monkeypatch.setattr(command_end.importlib, "import_module", lambda name: done.append(name) or SimpleNamespace(call=lambda given: 0))
    monkeypatch.setattr(command_arguments, "refuse_missing", lambda given: done.append("checked"))
    command_end.call(argparse.Namespace(verb="train"))
    command_end.call(argparse.Namespace(verb="sample"))
    assert done == ["joined", "checked", "gantrain.commands.train", "checked", "gantrain.commands.sample"]


IMPORTING = """
import importlib, os, time
from gantrain import cli, other_processes
from gantrain.commands import arguments

def killed(name):
    while not other_processes.current()._peers:
        time.sleep(0.05)
    {how}

importlib.import_module = killed
cli.main(["train", "digits", "run_dir={run}"])
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("how", "status", "words"),
    [
        ("os.kill(os.getpid(), 9)", 1, "process 0 was killed or crashed; see its output"),
        ("os.kill(os.getpid(), 15)", 1, "process 0 was killed or crashed; see its output"),
        ("raise ImportError('torch')", 1, "another process failed; see its error message"),
        ("arguments.refuse_missing(cli.parse(['train', 'nope.yaml']))", 2, "another process failed; see its error message"),
    ],
)
def test_the_others_end_when_the_main_process_ends_while_it_imports_training(how, status, words, tmp_path):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    group = {**os.environ, "ACCELERATE_USE_CPU": "true", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2"}
    main, other = (
        subprocess.Popen([sys.executable, *arguments], env={**group, "RANK": str(rank)}, stderr=subprocess.PIPE, text=True, cwd=tmp_path)
        for rank, arguments in enumerate(
            (
                ["-c", IMPORTING.format(how=how, run=tmp_path / "run")],
                ["-m", "gantrain", "train", "digits", f"run_dir={tmp_path / 'run'}"],
            )
        )
    )
    said = other.communicate(timeout=60)[1]
    main.communicate(timeout=60)
    assert other.returncode == status and said.count("\n") == 1 and f"gantrain: error: process 1: {words}" in said, said
    assert not (tmp_path / "run").exists()
