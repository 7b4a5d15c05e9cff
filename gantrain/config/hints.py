"""The hint for a key that does not exist: which key the user probably meant."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from gantrain.errors import did_you_mean

MOST = 3  # keys that one hint names
# What other trainers and papers call it: the keys that it has here.
ALSO_CALLED: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(("lr", "learning_rate", "lrate", "rate", "rates"), ("optim.lr_g", "optim.lr_d")),
    **dict.fromkeys(("g_lr", "lr_gen", "glr"), ("optim.lr_g",)),
    **dict.fromkeys(("d_lr", "lr_disc", "dlr"), ("optim.lr_d",)),
    **dict.fromkeys(("optimizer", "optimiser", "adam", "opt"), ("optim",)),
    **dict.fromkeys(("beta", "beta1", "beta2", "adam_betas", "b1", "b2"), ("optim.betas",)),
    **dict.fromkeys(("weight_decay", "wd", "decay_rate"), ("optim.g.weight_decay", "optim.d.weight_decay")),
    **dict.fromkeys(
        ("clip", "grad_clip", "max_grad_norm", "clip_norm", "clip_grad_norm", "gradient_clip"), ("optim.clip_g", "optim.clip_d")
    ),
    **dict.fromkeys(("n_critic", "num_d_steps", "d_iters", "n_disc"), ("optim.d_steps",)),
    **dict.fromkeys(("batch", "bs", "batchsize", "train_batch_size"), ("batching.batch_size",)),
    **dict.fromkeys(("batch_gpu", "microbatch", "per_device_batch_size"), ("batching.micro_batch",)),
    **dict.fromkeys(
        (
            "epochs",
            "epoch",
            "num_epochs",
            "kimg",
            "steps",
            "iters",
            "iterations",
            "max_steps",
            "max_iters",
            "n_iter",
            "total_steps",
            "max_iter",
            "max_epochs",
            "n_epochs",
            "num_iters",
            "total_iters",
            "train_steps",
            "num_steps",
            "max_kimg",
            "duration",
        ),
        ("total_kimg",),
    ),
    **dict.fromkeys(("ema",), ("averagers.ema",)),
    **dict.fromkeys(("ema_kimg", "ema_decay", "ema_beta", "ema_half_life"), ("averagers.ema.half_life_kimg",)),
    **dict.fromkeys(("average", "averages", "averager", "averaging", "swa", "weight_averaging"), ("averagers",)),
    **dict.fromkeys(("fid", "kid", "is", "metric", "metrics", "prc", "precision_recall"), ("eval.metrics",)),
    **dict.fromkeys(("evaluation", "evaluate", "scoring"), ("eval",)),
    **dict.fromkeys(("num_fid_samples", "fid_samples", "n_samples"), ("eval.num_samples",)),
    **dict.fromkeys(("resolution", "res", "image_size", "img_size", "imsize", "size"), ("data.resolution",)),
    **dict.fromkeys(("dataset", "datasets", "data_set"), ("data.name",)),
    **dict.fromkeys(
        ("data_root", "data_dir", "data_path", "dataroot", "dataset_path", "dataset_dir", "image_dir", "img_dir", "train_dir"),
        ("data.root",),
    ),
    **dict.fromkeys(("path", "dir", "folder", "directory"), ("data.root",)),
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
    **dict.fromkeys(("augmentation", "augmentations", "aug", "transform", "transforms", "augpipe", "aug_pipe"), ("augment",)),
    **dict.fromkeys(("ada", "diffaug", "diffaugment", "diff_augment", "diff_aug"), ("augment.name",)),
    **dict.fromkeys(("augment_p", "aug_p", "ada_p"), ("augment.p",)),
    **dict.fromkeys(("ada_target", "augment_target", "target"), ("augment.target",)),
    **dict.fromkeys(("ada_kimg", "ada_length", "augment_kimg"), ("augment.length_kimg",)),
    **dict.fromkeys(("ada_interval", "augment_every"), ("augment.every",)),
    **dict.fromkeys(("label", "class_labels"), ("labels", "data.labels")),
    **dict.fromkeys(("conditional", "cond", "class_conditional", "use_labels", "class_cond", "unconditional"), ("data.labels",)),
    **dict.fromkeys(("label_sampling", "label_distribution", "class_balance", "class_frequencies", "mixture"), ("labels",)),
}

# In one section, a word can stand for another key than elsewhere: section -> word -> the keys that it may be called there.
IN_SECTION: dict[str, dict[str, tuple[str, ...]]] = {
    "averagers": {
        **dict.fromkeys(("half_life", "halflife", "horizon", "window", "ema_kimg"), ("half_life_kimg", "every_kimg")),
        **dict.fromkeys(("start", "begin", "start_iter", "start_step", "start_epoch", "from"), ("start_kimg",)),
        **dict.fromkeys(("every", "interval", "freq", "frequency", "period", "update_every"), ("every_kimg", "update_every_kimg")),
        **dict.fromkeys(("warmup", "rampup", "ema_rampup"), ("ramp_up", "start_kimg")),
        **dict.fromkeys(("beta", "ema_beta", "ema_decay", "momentum"), ("decay", "alpha")),
        "device": ("offload",),
    },
    "augment": {
        **dict.fromkeys(("prob", "probability", "aug_p", "augment_p", "ada_p", "strength"), ("p",)),
        **dict.fromkeys(("kimg", "ada_kimg", "ada_length", "speed", "length"), ("length_kimg",)),
        **dict.fromkeys(("ada_interval", "interval", "every_kimg", "freq"), ("every",)),
        **dict.fromkeys(("ada_target", "rt", "r_t"), ("target",)),
        **dict.fromkeys(("colour", "bgc"), ("color",)),
        **dict.fromkeys(("geom", "geometry"), ("geometric",)),
    },
    "data": dict.fromkeys(
        (
            "folder",
            "path",
            "dir",
            "directory",
            "location",
            "source",
            "file",
            "zip",
            "archive",
            "images",
            "data_dir",
            "data_path",
            "train_dir",
        ),
        ("root",),
    ),
    "penalties": {
        **dict.fromkeys(("weight", "lambda", "lam", "coef", "coefficient", "strength", "r1_gamma"), ("gamma",)),
        **dict.fromkeys(("interval", "lazy", "d_reg_every", "every_k", "freq"), ("every",)),
    },
}
# What the keys of a schedule are called elsewhere.
OF_SCHEDULES: dict[str, tuple[str, ...]] = {
    "from": ("init", "initial", "initial_value", "start_value", "first", "begin", "base", "value", "start_factor", "max", "peak", "from_"),
    "to": ("end", "final", "final_value", "end_value", "target", "last", "min", "eta_min", "end_factor"),
    "start_kimg": ("start", "delay", "after", "from_kimg", "begin_kimg", "start_step"),
    "until_kimg": ("until", "end_kimg", "kimg", "to_kimg", "over", "length", "duration", "steps", "t_max", "total_iters", "decay_kimg",
                   "total_kimg"),
    "shape": ("kind", "type", "name", "curve", "mode", "decay", "schedule", "anneal"),
    "warmup_kimg": ("warmup", "warm_up", "rampup", "ramp_up", "ramp", "warmup_steps", "rampup_kimg"),
}  # fmt: skip
DECAY = ("decay", "beta", "betas", "ema_decay", "ema_beta", "momentum", "alpha", "gamma")
PER_UPDATE = (
    "; did you mean half_life_kimg? A decay d per update of B images has half_life_kimg = B / 1000 * ln(0.5) / ln(d);"
    " or choose name: ema_steps, which has a decay per update"
)
# What is not a key at all, and where it is chosen.
NO_KEY: dict[str, str] = {
    **dict.fromkeys(
        ("device", "devices", "gpu", "gpus", "num_gpus", "n_gpu", "n_gpus", "ngpu", "gpu_ids", "cuda", "use_cuda", "cpu", "accelerator"),
        "; Accelerate chooses the device: set ACCELERATE_TORCH_DEVICE=cuda:1 or ACCELERATE_USE_CPU=1 in the environment,"
        " or use several GPUs by `accelerate launch --num_processes N -m gantrain train ...`",
    ),
    **dict.fromkeys(
        ("world_size", "nproc", "num_processes", "num_nodes", "local_rank", "distributed", "ddp", "multi_gpu"),
        "; Accelerate starts the processes: `accelerate launch --num_processes N -m gantrain train ...`",
    ),
    **dict.fromkeys(
        ("resume", "resume_from", "pretrained", "init_from", "load", "load_from", "checkpoint_path", "ckpt_path"),
        "; a run resumes by itself where run_dir has checkpoints, and `gantrain fork` continues from those of another run",
    ),
}  # fmt: skip
# A value that belongs to another key of the same name: full key -> (is it, what to say).
OTHER_VALUES: dict[str, tuple[Callable[[Any], bool], str]] = {
    "labels": (lambda value: isinstance(value, bool) or value is None, "; data.labels=false trains without classes"),
    "data.labels": (lambda value: value in ("uniform", "data"), "; labels={} at the top level chooses the labels of generated images"),
    **{
        f"augment.{group}": (lambda value: isinstance(value, bool), "; 1 switches the group on, 0 off")
        for group in ("blit", "geometric", "color", "filter", "noise", "cutout")
    },
}


def hint_for_value(key: str, value: Any) -> str:
    """A hint for a value that does not fit its key: it is a schedule, or one for another key of that name; empty if there is none."""
    if isinstance(value, Mapping) and "from" in value:
        return "; it takes no schedule (`gantrain config --keys schedules` says which keys do)"
    belongs, words = OTHER_VALUES.get(key, (lambda value: False, ""))
    return words.format(value) if belongs(value) else ""


def hint_for(key: str, there: Sequence[str], known: Sequence[str]) -> str:
    """A hint such as `; did you mean optim.lr_g or optim.lr_d?`.

    Args:
        key: full key that does not exist, such as "lr" or "optimizer.lr_g".
        there: the keys that exist in its section.
        known: full keys of the default configuration, and of its sections.
    """
    section, _, word = key.rpartition(".")
    first = key.partition(".")[0]
    elsewhere = [] if first in known else [fold(first)]
    told = hint_of_section(section, first, word, there) or next((NO_KEY[one] for one in (*elsewhere, fold(word)) if one in NO_KEY), "")
    if told:
        return told
    if section and first not in known:  # a section that does not exist
        meant = [f"{one}{key[len(first) :]}" for one in (*also_called(first), *near(first, there))]
        found = [one for one in dict.fromkeys(meant) if one in known] or same_name(word, known)
        return said(found) if found else said(also_called(first)) or did_you_mean(first, there)
    alike = [one for one in there if fold(one) == fold(word)]
    if alike or first in ("averagers", "penalties"):  # each has keys of its own, which those of other sections do not stand for
        return said(alike) or did_you_mean(word, there)
    called = also_called(word)
    here = [one for one in called if one.rpartition(".")[0] == section and section]
    if here or (section and near(word, there)):
        return said(here) or did_you_mean(word, there)
    return said([one for one in same_name(word, known) if one != key]) or said(called) or did_you_mean(word, there)


def hint_in_schedule(word: str, there: Sequence[str]) -> str:
    """The hint for a key that a schedule does not have."""
    meant = next((key for key, words in OF_SCHEDULES.items() if fold(word) in words), None)
    return said([meant]) if meant is not None and meant in there else did_you_mean(word, there)


def hint_of_section(section: str, first: str, word: str, there: Sequence[str]) -> str:
    """The hint that a word has in a section alone; empty if it has none there."""
    if first == "averagers" and "half_life_kimg" in there and fold(word) in DECAY:
        return PER_UPDATE
    if section == "augment" and not there:
        return "; augment.name=none has no keys: choose name=ada or name=diffaugment as well"
    meant = IN_SECTION.get(first, {}).get(fold(word), ()) if section else ()
    if section == "data" and word == "root" and word not in there:
        return "; data.root is a key of data.name=folder, archive and packed: choose one of them as well"
    found = [f"{section}.{one}" for one in meant if one in there][:1]
    if not found and meant and section == "data":
        return "; did you mean data.root, with data.name=folder, archive or packed?"
    return said(found)


def fold(word: str) -> str:
    """A word without regard to capitals and hyphens."""
    return word.lower().replace("-", "_")


def also_called(word: str) -> tuple[str, ...]:
    """The keys that another trainer's word stands for."""
    return ALSO_CALLED.get(fold(word), ())


def same_name(word: str, known: Iterable[str]) -> list[str]:
    """Full keys that end in this name; none if there are too many to name."""
    found = [one for one in known if f".{one}".endswith(f".{fold(word)}")]
    return found if len(found) <= MOST else []


def near(word: str, known: Sequence[str]) -> list[str]:
    """The known word that is most similar, if one is similar enough."""
    return difflib.get_close_matches(word, known, n=1, cutoff=0.6)


def said(keys: Sequence[str]) -> str:
    """Keys as a question; empty if there are none."""
    return f"; did you mean {' or '.join(keys)}?" if keys else ""
