"""The hint for a key that does not exist: which key the user probably meant."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence

from gantrain.errors import did_you_mean

MOST = 3  # keys that one hint names
# What other trainers and papers call it: the keys that it has here.
ALSO_CALLED: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(("lr", "learning_rate", "lrate", "rate", "rates"), ("optim.lr_g", "optim.lr_d")),
    **dict.fromkeys(("g_lr", "lr_gen", "glr"), ("optim.lr_g",)),
    **dict.fromkeys(("d_lr", "lr_disc", "dlr"), ("optim.lr_d",)),
    **dict.fromkeys(("optimizer", "optimiser", "adam", "opt"), ("optim",)),
    **dict.fromkeys(("beta", "beta1", "beta2", "adam_betas", "b1", "b2"), ("optim.betas",)),
    **dict.fromkeys(("n_critic", "num_d_steps", "d_iters", "n_disc"), ("optim.d_steps",)),
    **dict.fromkeys(("batch", "bs", "batchsize", "train_batch_size"), ("batching.batch_size",)),
    **dict.fromkeys(("batch_gpu", "microbatch", "per_device_batch_size"), ("batching.micro_batch",)),
    **dict.fromkeys(
        ("epochs", "epoch", "num_epochs", "kimg", "steps", "iters", "iterations", "max_steps", "max_iters", "n_iter", "total_steps"),
        ("total_kimg",),
    ),
    **dict.fromkeys(("ema", "ema_kimg", "ema_decay"), ("averagers.ema",)),
    **dict.fromkeys(("average", "averages", "averager", "averaging", "swa", "weight_averaging"), ("averagers",)),
    **dict.fromkeys(("fid", "kid", "is", "metric", "metrics", "prc", "precision_recall"), ("eval.metrics",)),
    **dict.fromkeys(("evaluation", "evaluate", "scoring"), ("eval",)),
    **dict.fromkeys(("num_fid_samples", "fid_samples", "n_samples"), ("eval.num_samples",)),
    **dict.fromkeys(("resolution", "res", "image_size", "img_size", "imsize", "size"), ("data.resolution",)),
    **dict.fromkeys(("dataset", "datasets", "data_set"), ("data.name",)),
    **dict.fromkeys(("data_root", "data_dir", "data_path", "dataroot"), ("data.root",)),
    **dict.fromkeys(("num_workers", "n_workers"), ("data.workers",)),
    **dict.fromkeys(("mirror", "hflip", "xflip"), ("data.flip",)),
    **dict.fromkeys(("out", "outdir", "out_dir", "output_dir", "output", "logdir", "log_dir", "save_dir", "run", "name"), ("run_dir",)),
    **dict.fromkeys(("random_seed", "manual_seed", "rng_seed"), ("seed",)),
    **dict.fromkeys(("precision", "amp", "fp16", "bf16", "half", "dtype"), ("mixed_precision",)),
    **dict.fromkeys(("arch", "architecture", "network", "networks"), ("model.name",)),
    **dict.fromkeys(("z_dim", "nz", "latent_dim", "zdim"), ("model.dim_z",)),
    **dict.fromkeys(("losses", "objective", "loss_name"), ("loss.name",)),
    **dict.fromkeys(("gamma", "r1", "r1_gamma", "gradient_penalty", "gp", "penalty"), ("penalties",)),
    **dict.fromkeys(("save_every", "snapshot_every", "snap", "ckpt_every", "save_freq", "checkpoint_every"), ("checkpoint.every_kimg",)),
    **dict.fromkeys(("eval_every", "test_every", "eval_freq"), ("eval.every_kimg",)),
    **dict.fromkeys(("log_every", "log_freq", "log_interval"), ("tracking.every_kimg",)),
    **dict.fromkeys(("checkpoints", "ckpt"), ("checkpoint",)),
    **dict.fromkeys(("wandb", "wandb_mode", "project"), ("tracking.wandb",)),
    **dict.fromkeys(("compile", "channels_last", "tf32"), ("performance",)),
    **dict.fromkeys(("sync_bn", "syncbn"), ("sync_batchnorm",)),
}


def hint_for(key: str, there: Sequence[str], known: Sequence[str]) -> str:
    """A hint such as `; did you mean optim.lr_g or optim.lr_d?`.

    Args:
        key: full key that does not exist, such as "lr" or "optimizer.lr_g".
        there: the keys that exist in its section.
        known: full keys of the default configuration, and of its sections.
    """
    section, _, word = key.rpartition(".")
    first = key.partition(".")[0]
    if section and first not in known:  # a section that does not exist
        meant = [f"{one}{key[len(first) :]}" for one in (*also_called(first), *near(first, there))]
        found = [one for one in dict.fromkeys(meant) if one in known] or same_name(word, known)
        return said(found) if found else said(also_called(first)) or did_you_mean(first, there)
    called = also_called(word)
    here = [one for one in called if one.rpartition(".")[0] == section and section]
    if here or (section and near(word, there)):
        return said(here) or did_you_mean(word, there)
    return said(same_name(word, known)) or said(called) or did_you_mean(word, there)


def also_called(word: str) -> tuple[str, ...]:
    """The keys that another trainer's word stands for."""
    return ALSO_CALLED.get(word.lower().replace("-", "_"), ())


def same_name(word: str, known: Iterable[str]) -> list[str]:
    """Full keys that end in this name; none if there are too many to name."""
    found = [one for one in known if one.endswith(f".{word}")]
    return found if len(found) <= MOST else []


def near(word: str, known: Sequence[str]) -> list[str]:
    """The known word that is most similar, if one is similar enough."""
    return difflib.get_close_matches(word, known, n=1, cutoff=0.6)


def said(keys: Sequence[str]) -> str:
    """Keys as a question; empty if there are none."""
    return f"; did you mean {' or '.join(keys)}?" if keys else ""
