"""The grammar of the command line: one function for each verb. It imports no verb, so that --help is fast."""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Callable, Sequence
from typing import NoReturn, TypeAlias

from gantrain.bounds import MOST_FPS, MOST_FRAMES, MOST_GRADIENTS, MOST_IMAGES, MOST_SIDE
from gantrain.command_end import complain
from gantrain.errors import USER_ERROR, did_you_mean
from gantrain.version import __version__

REFERENCE_HELP = (
    "score against this instead of the data set: an .npz of statistics, a folder or zip of images, a run folder or a CONFIG"
    " (eval.reference)"
)
CONFIG_HELP = "a YAML file, or the name of a configuration that ships with gantrain, such as digits (`gantrain configs` lists them)"
OVERRIDES_HELP = "any number of section.key=value; values are parsed as YAML"
EMPTY = re.compile(r"--[a-z][a-z-]*=")  # an option without its value, as of a variable of the shell that is not set
EVAL_OVERRIDES_HELP = "changes to the run's eval or data section"


class Parser(argparse.ArgumentParser):
    """A parser that reports an invalid command line in one line."""

    def error(self, message: str) -> NoReturn:
        """Print the error, with the word that was probably meant, and exit with 2."""
        wrong = re.search(r"(invalid choice: '([^']*)') \(choose from (.*)\)", message)
        hint = did_you_mean(wrong[2], re.findall(r"[\w-]+", wrong[3])) if wrong else ""
        if wrong and hint.endswith("?"):
            message = message.replace(wrong[0], wrong[1] + hint)
        complain(f"{message}{' See' if message.endswith('?') else '; see'} `{self.prog} --help`")
        self.exit(USER_ERROR)


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Parse the command line. KEY=VALUE may come before and after options, which argparse alone does not allow."""
    top = parser()
    words = list(sys.argv[1:] if argv is None else argv)
    if "" in words:  # as of a variable of the shell that is not set; as a path it would mean the working directory
        before = words[: words.index("")]
        top.error(f"an argument is empty{f' (after {before[-1]})' if before else ''}; give it a value, or leave it out")
    if empty := next((word for word in words if EMPTY.fullmatch(word)), None):
        top.error(f"{empty} has an empty value; give it a value, or leave it out")
    arguments, rest = top.parse_known_args(words)
    if rest and (not hasattr(arguments, "overrides") or any(word.startswith("-") for word in rest)):
        top.error(f"unrecognized arguments: {' '.join(rest)}{hint_at_override(rest) if hasattr(arguments, 'overrides') else ''}")
    if rest:
        arguments.overrides = [*arguments.overrides, *rest]
    return arguments


def hint_at_override(rest: Sequence[str]) -> str:
    """A hint at how a configuration key is written, if one may have been meant by `--key value`; or "".

    Args:
        rest: the words that no option takes.
    """
    at = next((i for i, word in enumerate(rest) if re.match(r"--?[A-Za-z_]{2}", word)), None)
    if at is None:
        return ""
    key, equals, value = rest[at].lstrip("-").partition("=")
    key = key.replace("-", "_")
    if not equals:
        value = rest[at + 1] if at + 1 < len(rest) and not rest[at + 1].startswith("--") and "=" not in rest[at + 1] else "VALUE"
    return f"; a configuration key is written without dashes: {key}={value}"


def parser() -> Parser:
    """Build the parser of all verbs."""
    top = Parser(prog="gantrain", description="Train GANs, and follow, score and sample many averages of their weights.")
    top.add_argument("--version", action="version", version=f"gantrain {__version__}")
    verbs = top.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for add_verb in (
        add_train, add_fork, add_config, add_sample, add_walk, add_truncation, add_evaluate, add_reference, add_average, add_noise_scale,
        add_orbit, add_report, add_runs, add_watch, add_configs, add_prepare, add_completion,
    ):  # fmt: skip
        add_verb(verbs)
    top.set_defaults(parser=top)  # for the script that completes its arguments
    return top


def whole(text: str) -> int:
    """The whole number of an option, in ASCII digits and of 64 bits: nothing here counts further, and not all that it is given to can."""
    value = int(text)
    if not text.isascii():
        raise ValueError
    if abs(value) >= 1 << 63:
        raise argparse.ArgumentTypeError(f"must be a whole number of at most {(1 << 63) - 1}")
    return value


def up_to(most: int) -> Callable[[str], int]:
    """The type of an option that counts what a command makes. What is too small, or too large for this machine, the command refuses.

    Args:
        most: the largest number (`gantrain.bounds`).
    """

    def count(text: str) -> int:
        value = whole(text)
        if value > most:
            raise argparse.ArgumentTypeError(f"must be at most {most:,}, got {value:,}; use a smaller number")
        return value

    count.__name__ = whole.__name__
    return count


def real(text: str) -> float:
    """The number of an option, in ASCII."""
    if not text.isascii():
        raise ValueError
    return float(text)


# What argparse calls them where they do not fit.
whole.__name__, real.__name__ = "whole number", "number"
of_images = up_to(MOST_IMAGES)

Verbs: TypeAlias = "argparse._SubParsersAction[Parser]"


def add_train(verbs: Verbs) -> None:
    """`gantrain train`."""
    train = verbs.add_parser("train", help="train a run; the same command with the same run_dir resumes it")
    train.add_argument("config", metavar="CONFIG", help=CONFIG_HELP)
    train.add_argument("--reference", metavar="PATH", help=REFERENCE_HELP)
    train.add_argument(
        "--changed-data", action="store_true", help="resume although the images have changed, and continue on them as they are now"
    )
    train.add_argument("overrides", nargs="*", default=[], metavar="KEY=VALUE", help=OVERRIDES_HELP)
    train.set_defaults(verb="train")


def add_fork(verbs: Verbs) -> None:
    """`gantrain fork`."""
    fork = verbs.add_parser("fork", help="prepare a new run that continues from a run's checkpoint with other settings")
    fork.add_argument("run", metavar="RUN", help="a run folder; it may be training")
    fork.add_argument("--out", required=True, metavar="NEW", help="the run folder of the fork, which must not exist yet")
    fork.add_argument("--kimg", type=real, help="which checkpoint (default: the newest)")
    fork.add_argument("overrides", nargs="*", default=[], metavar="KEY=VALUE", help=OVERRIDES_HELP)
    fork.set_defaults(verb="fork")


def add_config(verbs: Verbs) -> None:
    """`gantrain config`."""
    show = verbs.add_parser("config", help="print the configuration that a run would use, or list all keys")
    show.add_argument("config", nargs="?", metavar="CONFIG", help=CONFIG_HELP)
    show.add_argument(
        "--keys",
        nargs="?",
        const="",
        metavar="SECTION",
        help="list all keys with type, default, range and meaning; or only a section, plug-in or key, such as averagers.ema",
    )
    show.add_argument("--markdown", action="store_true", help="with --keys: print Markdown")
    show.add_argument("overrides", nargs="*", default=[], metavar="KEY=VALUE", help=OVERRIDES_HELP)
    show.set_defaults(verb="config")


def add_sample(verbs: Verbs) -> None:
    """`gantrain sample`."""
    sample = verbs.add_parser("sample", help="draw images from a run's live or averaged generator")
    add_choice(sample)
    sample.add_argument(
        "--num",
        type=of_images,
        metavar="N",
        help="number of images (default: 64); with --sheet averages, images of each average (about 64); with z, class or both, rows (8);"
        " with neighbours, images compared (512)",
    )
    sample.add_argument(
        "--sheet",
        metavar="KIND",
        help="classes (one per row), averages (the same latents with all averages, or with --average A,B), z, class or both"
        " (interpolations of latents, of classes, of both), neighbours (nearest real images, to check for memorisation)",
    )
    sample.add_argument("--per-class", type=of_images, metavar="N", help="images per row of --sheet classes (default: 10)")
    sample.add_argument(
        "--out", help="a .png for a grid, a folder/ for numbered PNGs, an .npz for arrays (default: samples.png, or KIND.png)"
    )
    sample.add_argument("--classes", action="store_true", help="list the run's classes (number, name, number of images) and draw nothing")
    sample.set_defaults(verb="sample")


def add_walk(verbs: Verbs) -> None:
    """`gantrain walk`."""
    walk = verbs.add_parser("walk", help="make a video of a closed walk through the latents")
    add_choice(walk)
    walk.add_argument("--num", type=of_images, default=16, metavar="N", help="number of walks, shown as tiles (default: 16)")
    walk.add_argument("--frames", type=up_to(MOST_FRAMES), default=120, metavar="N", help="frames of the loop (default: 120)")
    walk.add_argument("--fps", type=up_to(MOST_FPS), default=24, metavar="N", help="frames per second (default: 24)")
    walk.add_argument("--out", default="walk.gif", help="a .gif or a .mp4 (default: walk.gif)")
    walk.set_defaults(verb="walk")


def add_truncation(verbs: Verbs) -> None:
    """`gantrain truncation`."""
    truncation = verbs.add_parser("truncation", help="score truncations of z and plot fidelity against diversity")
    truncation.add_argument("run", metavar="RUN", help="a run folder")
    truncation.add_argument(
        "--average", default="ema", metavar="NAMES", help="comma-separated averages, including live and best (default: ema)"
    )
    truncation.add_argument("--sweep", default="0.2:2:10", metavar="LOW:HIGH:COUNT", help="the truncations (default: 0.2:2:10)")
    truncation.add_argument("--num", type=of_images, metavar="N", help="generated images per score (default: the run's eval.num_samples)")
    truncation.add_argument("--kimg", type=real, help="which checkpoint (default: the newest)")
    truncation.add_argument("--reference", metavar="PATH", help=REFERENCE_HELP)
    truncation.add_argument("overrides", nargs="*", default=[], metavar="eval.KEY=VALUE", help=EVAL_OVERRIDES_HELP)
    truncation.set_defaults(verb="truncation")


def add_evaluate(verbs: Verbs) -> None:
    """`gantrain evaluate`."""
    evaluate = verbs.add_parser("evaluate", help="score a run's live weights and averages, or images")
    evaluate.add_argument("run", metavar="RUN", help="a run folder; or, with --reference, a folder, zip or .npz of images")
    evaluate.add_argument("--reference", metavar="PATH", help=REFERENCE_HELP)
    evaluate.add_argument(
        "--average", default="all", metavar="NAME", help="comma-separated averages, including live and best, or all (default)"
    )
    evaluate.add_argument(
        "--num", type=of_images, metavar="N", help="images per score (default: the run's eval.num_samples; for images, all)"
    )
    evaluate.add_argument("--kimg", type=real, help="which checkpoint (default: the newest)")
    evaluate.add_argument(
        "--batchnorm",
        metavar="POLICY",
        help="recalibrate, copy, average, batch, several of these separated by commas, or all (default: the run's eval.batchnorm)",
    )
    evaluate.add_argument(
        "--out",
        metavar="FILE.json",
        help="where the scores are saved (default: RUN/evaluations/<nimg>.json or the next free name; for images, nowhere)",
    )
    evaluate.add_argument("overrides", nargs="*", default=[], metavar="eval.KEY=VALUE", help=EVAL_OVERRIDES_HELP)
    evaluate.set_defaults(verb="evaluate")


def add_reference(verbs: Verbs) -> None:
    """`gantrain reference`."""
    reference = verbs.add_parser("reference", help="save statistics of real images, to use as a reference instead of the images")
    reference.add_argument(
        "target", metavar="TARGET", help="a CONFIG or a run folder, to use its data set; or a folder, zip or .npz of images"
    )
    reference.add_argument("--out", required=True, metavar="FILE.npz", help="where the statistics are saved")
    reference.add_argument("--moments-only", action="store_true", help="save only mean and covariance, not features: enough for FID and IS")
    reference.add_argument("overrides", nargs="*", default=[], metavar="KEY=VALUE", help=OVERRIDES_HELP)
    reference.set_defaults(verb="reference")


def add_average(verbs: Verbs) -> None:
    """`gantrain average`."""
    average = verbs.add_parser("average", help="rebuild an average of any length from a run's snapshots")
    average.add_argument("run", metavar="RUN", help="the folder of a run that has kept snapshots of power averages")
    length = average.add_mutually_exclusive_group(required=True)
    length.add_argument(
        "--sigma-rel", type=real, metavar="S", help="length of the average: its standard deviation as a fraction of the run"
    )
    length.add_argument(
        "--sweep", metavar="LOW:HIGH:COUNT", help="score this many lengths, plot score against length, and keep the best average"
    )
    average.add_argument("--at-kimg", type=real, metavar="K", help="end of the average: the snapshot nearest to K (default: the last)")
    average.add_argument("--name", help="name of the average (default: sigma_rel_S_at_K); not with --sweep")
    average.add_argument(
        "--num", type=of_images, metavar="N", help="generated images per score of --sweep (default: the run's eval.num_samples)"
    )
    average.add_argument("--reference", metavar="PATH", help=f"for --sweep: {REFERENCE_HELP}")
    average.add_argument("overrides", nargs="*", default=[], metavar="eval.KEY=VALUE", help=f"for --sweep: {EVAL_OVERRIDES_HELP}")
    average.set_defaults(verb="average")


def add_noise_scale(verbs: Verbs) -> None:
    """`gantrain noise-scale`."""
    noise = verbs.add_parser("noise-scale", help="measure the gradient noise scale of a run's G and D, and suggest a batch size")
    noise.add_argument("run", metavar="RUN", help="the folder of a finished or running run")
    noise.add_argument("--average", default="live", metavar="NAME", help="measure at the weights of an average, or best (default: live)")
    noise.add_argument(
        "--updates", type=up_to(MOST_GRADIENTS), default=64, metavar="N", help="number of gradients, each of the run's batch (default: 64)"
    )
    noise.add_argument("--kimg", type=real, help="which checkpoint (default: the newest)")
    noise.add_argument("--per-layer", action="store_true", help="also show the noise of every layer")
    noise.add_argument(
        "--out",
        metavar="FILE.json",
        help="where the results are saved (default: RUN/evaluations/noise_scale-<nimg>.json or the next free name)",
    )
    noise.add_argument(
        "overrides", nargs="*", default=[], metavar="data.KEY=VALUE", help="changes to the run's data section, or mixed_precision=fp32"
    )
    noise.set_defaults(verb="noise_scale")


def add_orbit(verbs: Verbs) -> None:
    """`gantrain orbit`."""
    orbit = verbs.add_parser("orbit", help="tell whether a run's weights orbit, walk or drift, and what averaging can still gain")
    orbit.add_argument("run", metavar="RUN", help="the folder of a run trained with orbit.every_kimg")
    orbit.add_argument("--networks", choices=("g", "d", "gd"), default="gd", help="whose weights to analyse (default: both players')")
    orbit.add_argument("--average", default="all", metavar="NAMES", help="comma-separated averages to report (default: all)")
    orbit.add_argument(
        "--from-kimg",
        type=real,
        metavar="K",
        help="start of the stretch (default: the last long enough stretch without a swap, growth or jump of a learning rate)",
    )
    orbit.add_argument("--to-kimg", type=real, metavar="K", help="end of the stretch (default: the last recording)")
    orbit.add_argument(
        "--out", metavar="FILE.png", help="where the picture is saved, with its numbers next to it as JSON (default: RUN/orbit/<nimg>.png)"
    )
    orbit.set_defaults(verb="orbit")


def add_report(verbs: Verbs) -> None:
    """`gantrain report`."""
    report = verbs.add_parser("report", help="write a self-contained HTML page about one or more runs")
    report.add_argument(
        "runs", nargs="+", metavar="RUN", help="run folders; runs that differ only in their seed are shown as their mean with its interval"
    )
    report.add_argument(
        "--out",
        metavar="FILE.html",
        help="where the page is saved (default: RUN/report.html; for several runs, in their common folder)",
    )
    report.set_defaults(verb="report")


def add_runs(verbs: Verbs) -> None:
    """`gantrain runs`."""
    runs = verbs.add_parser("runs", help="list runs: status, kimg, best score and its average")
    runs.add_argument(
        "folders", nargs="*", default=["runs"], metavar="FOLDER", help="folders to search, down to a depth of 3 (default: runs)"
    )
    runs.add_argument(
        "--by", metavar="METRIC", help="the metric whose best score is shown, such as digits_kid (default: a run's first metric)"
    )
    runs.add_argument(
        "--sort",
        choices=("path", "score", "kimg", "time"),
        default="path",
        help="path (default), or score, kimg or time: the best, longest or most recently changed run first",
    )
    runs.add_argument("--json", action="store_true", help="print one JSON object per run, for scripts")
    runs.set_defaults(verb="runs")


def add_watch(verbs: Verbs) -> None:
    """`gantrain watch`."""
    watch = verbs.add_parser("watch", help="follow a run until it ends")
    watch.add_argument("run", metavar="RUN", help="a run folder")
    watch.add_argument("--last", type=whole, default=10, metavar="N", help="number of earlier lines to repeat first (default: 10)")
    watch.set_defaults(verb="watch")


def add_configs(verbs: Verbs) -> None:
    """`gantrain configs`."""
    configs = verbs.add_parser("configs", help="list the configurations that ship with gantrain, or print one")
    configs.add_argument("shipped", nargs="?", metavar="NAME", help="print this configuration with its comments, as a file to edit")
    configs.set_defaults(verb="configs")


def add_prepare(verbs: Verbs) -> None:
    """`gantrain prepare`."""
    prepare = verbs.add_parser(
        "prepare",
        help="decode, crop and resize the images of a data set once, for fast training",
        description="Decode, crop and resize every image of a data set once, and write an array that training maps into memory."
        " To continue an interrupted run, run the same command again. Then train with data.name=packed.",
    )
    prepare.add_argument(
        "source",
        nargs="?",
        metavar="SOURCE",
        help="a folder with one sub-folder per class, a zip by StyleGAN's data set tool, an .hdf5 by BigGAN-PyTorch (needs h5py), cifar10,"
        " cifar100, stl10, digits, or torchvision:NAME for one of torchvision's classification sets, which is downloaded if it is missing",
    )
    prepare.add_argument("--out", metavar="FOLDER", help="the folder to create")
    prepare.add_argument("--resolution", type=up_to(MOST_SIDE), metavar="N", help="height and width of the images, in pixels")
    prepare.add_argument(
        "--channels",
        type=whole,
        choices=(1, 3),
        default=3,
        help="3 for colour (default), 1 for grey; for folders, zips and torchvision sets",
    )
    prepare.add_argument(
        "--filter", choices=("bicubic", "lanczos", "bilinear", "box"), default="lanczos", help="resampling filter (default: lanczos)"
    )
    prepare.add_argument("--no-labels", action="store_true", help="ignore the labels: all images are one class")
    prepare.add_argument(
        "--on-error",
        choices=("stop", "skip"),
        default="stop",
        help="what to do with images that do not decode: name them and leave the data set unfinished (default), or leave them out of it",
    )
    prepare.add_argument("--data", default="data", metavar="FOLDER", help="where downloaded data sets are kept (default: data)")
    prepare.add_argument(
        "--verify", metavar="FOLDER", help="compare the images of a prepared data set with its checksums, and do nothing else"
    )
    prepare.set_defaults(verb="prepare")


def add_completion(verbs: Verbs) -> None:
    """`gantrain completion`."""
    completion = verbs.add_parser(
        "completion",
        help="print a script that completes gantrain's commands in a shell",
        description="Print a script that completes commands, options, names of configurations and paths. It needs shtab. For bash:"
        ' eval "$(gantrain completion bash)"; for zsh: gantrain completion zsh > FOLDER/_gantrain, with a FOLDER of $fpath.',
    )
    completion.add_argument("shell", choices=("bash", "zsh"), help="the shell")
    completion.set_defaults(verb="completion")


def add_choice(verb: argparse.ArgumentParser) -> None:
    """Add the options that `sample` and `walk` share."""
    verb.add_argument("run", metavar="RUN", help="a run folder")
    verb.add_argument("--average", metavar="NAME", help="an average, live, or best: the one with the run's best score (default: ema)")
    verb.add_argument(
        "--labels",
        action="append",
        metavar="0,NAME",
        help="classes by number or name, used in turn (default: all); may be repeated, such as for a name with a comma",
    )
    verb.add_argument(
        "--scale", type=whole, metavar="N", help="enlarge images N times, without smoothing (default: only small ones in a grid)"
    )
    verb.add_argument("--truncation", type=real, metavar="T", help="draw z from a normal distribution truncated at +-T")
    verb.add_argument("--seed", type=whole, default=0, help="seed of the latents (default: 0)")
    verb.add_argument("--kimg", type=real, help="which checkpoint (default: the newest)")
    verb.add_argument(
        "--batchnorm",
        metavar="POLICY",
        help="recalibrate, copy, average or batch; with batch, images depend on one another (default: the run's eval.batchnorm)",
    )
