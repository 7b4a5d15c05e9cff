"""The `gantrain` command: parse, call, format errors. torch is imported by the verbs, not for the help."""

from __future__ import annotations

import argparse
import importlib
import os
import sys
import time
import warnings
from collections.abc import Sequence
from typing import NoReturn

from gantrain.errors import OF_THE_MACHINE, GaveUp, UserError
from gantrain.interruption import INTERRUPTED, Stopped, exit_status
from gantrain.version import __version__

USER_ERROR = 2
GAVE_UP = 3
REFERENCE_HELP = "score against this in place of the data set: an .npz of statistics, a folder or zip of images, a run folder or a CONFIG.yaml (eval.reference)"
OVERRIDES_HELP = "section.key=value, as often as needed; the value is read as YAML"
SECONDS_FOR_MAIN = 3  # what all processes run into, the main one says; the launcher has ended the others by then


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command and exit: 0 when it is done, 2 on a user's mistake, 3 where the guard gave a training up, 75 when a signal
    asks for the machine (run it again), 130 on Ctrl-C."""
    status = run(argv)
    if getattr(sys.modules.get("gantrain.reporting.view_thread"), "HUNG", None):  # W&B's own end would wait for what it waits for
        said()
        os._exit(status)
    said()
    sys.exit(status)


def said() -> None:
    """Have standard output where it goes; on a full disk it goes nowhere, and the exit status stays what it is."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def run(argv: Sequence[str] | None = None) -> int:
    """Run the command; its exit status."""
    arguments = parse(argv)
    warnings.filterwarnings("ignore", "Image size .* could be decompression bomb")  # Pillow's bound; data has one of its own
    try:
        return importlib.import_module(f"gantrain.commands.{arguments.verb}").call(arguments) or 0
    except GaveUp as error:
        complain(str(error))
        return GAVE_UP
    except UserError as error:
        complain(str(error))
        return USER_ERROR
    except BrokenPipeError:  # `| head` has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        if error.errno not in OF_THE_MACHINE and error.filename is None:
            raise
        complain(f"{error.filename or 'a file of the run'}: {error.strerror}; mend this and run the same command again")
        return USER_ERROR
    except KeyboardInterrupt:
        complain("interrupted; the same command goes on from the last checkpoint")
        return INTERRUPTED
    except Stopped as stopped:
        complain(f"stopped by {stopped}; the same command goes on from the last checkpoint")
        return exit_status(stopped.signal)


def complain(text: str) -> None:
    """One line on standard error; another process than the main one speaks only of what it alone has run into."""
    rank = int(os.environ.get("RANK", "0"))
    if rank:
        time.sleep(SECONDS_FOR_MAIN)
    print(f"gantrain: error: {f'process {rank}: ' if rank else ''}{' '.join(text.split())}", file=sys.stderr, flush=True)


class Parser(argparse.ArgumentParser):
    """Says what is wrong with a command line in one line."""

    def error(self, message: str) -> NoReturn:
        complain(f"{message}; see `{self.prog} --help`")
        self.exit(USER_ERROR)


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line; KEY=VALUE may stand before and after options, which argparse alone does not allow."""
    top = parser()
    arguments, rest = top.parse_known_args(argv)
    if rest and (not hasattr(arguments, "overrides") or any(word.startswith("-") for word in rest)):
        top.error(f"unrecognized arguments: {' '.join(rest)}")
    if rest:
        arguments.overrides = [*arguments.overrides, *rest]
    return arguments


def parser() -> Parser:
    """The command line of every verb."""
    top = Parser(prog="gantrain", description="Train GANs, and follow, score and sample many averages of their weights.")
    top.add_argument("--version", action="version", version=f"gantrain {__version__}")
    verbs = top.add_subparsers(title="commands", metavar="COMMAND", required=True)

    train = verbs.add_parser("train", help="train; the same command on the same run_dir resumes")
    train.add_argument("config", metavar="CONFIG", help="a YAML file, such as configs/digits.yaml")
    train.add_argument("--reference", metavar="PATH", help=REFERENCE_HELP)
    train.add_argument("overrides", nargs="*", default=[], metavar="KEY=VALUE", help=OVERRIDES_HELP)
    train.set_defaults(verb="train")

    show = verbs.add_parser("config", help="print the resolved configuration")
    show.add_argument("config", metavar="CONFIG")
    show.add_argument("overrides", nargs="*", default=[], metavar="KEY=VALUE", help=OVERRIDES_HELP)
    show.set_defaults(verb="config")

    sample = verbs.add_parser("sample", help="draw images from a run's live or averaged generator")
    add_choice(sample)
    sample.add_argument(
        "--num",
        type=int,
        metavar="N",
        help="how many images (default: 64); with --sheet averages images of each (about 64), with z, class, both rows (8), with neighbours images compared (512)",
    )
    sample.add_argument(
        "--sheet",
        metavar="KIND",
        help="classes (a row each), averages (the same latents through all, or through --average A,B), z, class or both (ways between latents, classes), neighbours (nearest real images, the memorisation check)",
    )
    sample.add_argument("--per-class", type=int, metavar="N", help="images a row of --sheet classes (default: 10)")
    sample.add_argument(
        "--out", help="a .png for a grid, a folder/ for numbered PNGs, an .npz for arrays (default: samples.png, or KIND.png)"
    )
    sample.set_defaults(verb="sample")

    walk = verbs.add_parser("walk", help="a film of a closed walk through the latents")
    add_choice(walk)
    walk.add_argument("--num", type=int, default=16, metavar="N", help="how many walks, in tiles (default: 16)")
    walk.add_argument("--frames", type=int, default=120, metavar="N", help="of the loop (default: 120)")
    walk.add_argument("--fps", type=int, default=24, metavar="N", help="frames a second (default: 24)")
    walk.add_argument("--out", default="walk.gif", help="a .gif or a .mp4 (default: walk.gif)")
    walk.set_defaults(verb="walk")

    truncation = verbs.add_parser("truncation", help="score truncations of z and draw fidelity against variety")
    truncation.add_argument("run", metavar="RUN", help="a run folder")
    truncation.add_argument("--average", default="ema", metavar="NAMES", help="names with commas between, live among them (default: ema)")
    truncation.add_argument("--sweep", default="0.2:2:10", metavar="LOW:HIGH:COUNT", help="the truncations (default: 0.2:2:10)")
    truncation.add_argument("--num", type=int, metavar="N", help="generated images a score (default: the run's eval.num_samples)")
    truncation.add_argument("--kimg", type=float, help="which checkpoint (default: the newest)")
    truncation.add_argument("--reference", metavar="PATH", help=REFERENCE_HELP)
    truncation.add_argument("overrides", nargs="*", default=[], metavar="eval.KEY=VALUE", help="changes to the run's eval or data section")
    truncation.set_defaults(verb="truncation")

    evaluate = verbs.add_parser("evaluate", help="score a run's live weights and averages, or images")
    evaluate.add_argument("run", metavar="RUN", help="a run folder; or a folder, zip or .npz of images, with --reference")
    evaluate.add_argument("--reference", metavar="PATH", help=REFERENCE_HELP)
    evaluate.add_argument("--average", default="all", metavar="NAME", help="names with commas between, live among them, or all (default)")
    evaluate.add_argument(
        "--num", type=int, metavar="N", help="generated images a score (default: the run's eval.num_samples; of images, all)"
    )
    evaluate.add_argument("--kimg", type=float, help="which checkpoint (default: the newest)")
    evaluate.add_argument(
        "--batchnorm",
        metavar="POLICY",
        help="recalibrate, copy, average, batch, several with commas between, or all (default: the run's eval.batchnorm)",
    )
    evaluate.add_argument(
        "--out",
        metavar="FILE.json",
        help="where the scores go (default: RUN/evaluations/<nimg>.json or the next free name; of images, nowhere)",
    )
    evaluate.add_argument("overrides", nargs="*", default=[], metavar="eval.KEY=VALUE", help="changes to the run's eval or data section")
    evaluate.set_defaults(verb="evaluate")

    reference = verbs.add_parser("reference", help="write the statistics of real images, to score against in place of them")
    reference.add_argument(
        "target", metavar="TARGET", help="a CONFIG.yaml or a run folder, for its data set; or a folder, zip or .npz of images"
    )
    reference.add_argument("--out", required=True, metavar="FILE.npz", help="where the statistics go")
    reference.add_argument("--moments-only", action="store_true", help="mean and covariance alone, without features: for FID and IS")
    reference.add_argument("overrides", nargs="*", default=[], metavar="KEY=VALUE", help=OVERRIDES_HELP)
    reference.set_defaults(verb="reference")

    average = verbs.add_parser("average", help="rebuild an average of any length from a run's snapshots")
    average.add_argument("run", metavar="RUN", help="a run folder with power averages that kept snapshots")
    length = average.add_mutually_exclusive_group(required=True)
    length.add_argument("--sigma-rel", type=float, metavar="S", help="length of the average: its standard deviation as a share of the run")
    length.add_argument("--sweep", metavar="LOW:HIGH:COUNT", help="score this many lengths, draw score against length, keep the best")
    average.add_argument(
        "--at-kimg", type=float, metavar="K", help="where the average ends: the snapshot nearest to it (default: the last)"
    )
    average.add_argument("--name", help="what to call it (default: sigma_rel_S_at_K); not for --sweep")
    average.add_argument("--num", type=int, metavar="N", help="generated images a score of --sweep (default: the run's eval.num_samples)")
    average.add_argument("--reference", metavar="PATH", help=f"for --sweep: {REFERENCE_HELP}")
    average.add_argument(
        "overrides", nargs="*", default=[], metavar="eval.KEY=VALUE", help="for --sweep: changes to the run's eval or data section"
    )
    average.set_defaults(verb="average")

    noise = verbs.add_parser("noise-scale", help="measure the gradient noise scale of a run's G and D: which batch size suits it")
    noise.add_argument("run", metavar="RUN", help="a run folder, of a run that is finished or goes on")
    noise.add_argument("--average", default="live", metavar="NAME", help="measure at an average's weights (default: live)")
    noise.add_argument("--updates", type=int, default=64, metavar="N", help="gradients measured, of the run's batch each (default: 64)")
    noise.add_argument("--kimg", type=float, help="which checkpoint (default: the newest)")
    noise.add_argument("--per-layer", action="store_true", help="also where in the networks the noise sits")
    noise.add_argument(
        "--out", metavar="FILE.json", help="where the numbers go (default: RUN/evaluations/noise_scale-<nimg>.json or the next free name)"
    )
    noise.add_argument(
        "overrides", nargs="*", default=[], metavar="data.KEY=VALUE", help="changes to the run's data section, or mixed_precision=fp32"
    )
    noise.set_defaults(verb="noise_scale")

    orbit = verbs.add_parser("orbit", help="what a run's weights do, orbit, walk or drift, and what averaging can still gain")
    orbit.add_argument("run", metavar="RUN", help="a run folder, of a run trained with orbit.every_kimg")
    orbit.add_argument("--networks", choices=("g", "d", "gd"), default="gd", help="whose weights (default: of both players)")
    orbit.add_argument("--average", default="all", metavar="NAMES", help="which averages to report, with commas between (default: all)")
    orbit.add_argument(
        "--from-kimg",
        type=float,
        metavar="K",
        help="where the stretch begins (default: the last one long enough without swap, growth or jump of a learning rate)",
    )
    orbit.add_argument("--to-kimg", type=float, metavar="K", help="where it ends (default: the last recording)")
    orbit.add_argument(
        "--out", metavar="FILE.png", help="where the picture goes, the numbers beside it as JSON (default: RUN/orbit/<nimg>.png)"
    )
    orbit.set_defaults(verb="orbit")

    report = verbs.add_parser("report", help="a page of a run, or of several side by side: one HTML file that needs nothing else")
    report.add_argument(
        "runs", nargs="+", metavar="RUN", help="run folders; those that differ in nothing but their seed become a mean with its interval"
    )
    report.add_argument(
        "--out", metavar="FILE.html", help="where the page goes (default: RUN/report.html, of several the folder that they lie in)"
    )
    report.set_defaults(verb="report")

    runs = verbs.add_parser("runs", help="list runs: status, kimg, best score and of which average")
    runs.add_argument(
        "folders", nargs="*", default=["runs"], metavar="FOLDER", help="folders to look into, at any depth down to 3 (default: runs)"
    )
    runs.add_argument("--by", metavar="METRIC", help="whose best is shown, such as digits_kid (default: the first that a run is scored by)")
    runs.add_argument(
        "--sort",
        choices=("path", "score", "kimg", "time"),
        default="path",
        help="path (default), or score, kimg, time: the best, furthest or last changed first",
    )
    runs.add_argument("--json", action="store_true", help="a JSON object a run, for scripts")
    runs.set_defaults(verb="runs")

    watch = verbs.add_parser("watch", help="follow a run live, until it ends")
    watch.add_argument("run", metavar="RUN", help="a run folder")
    watch.add_argument("--last", type=int, default=10, metavar="N", help="how much of what it has said before (default: 10)")
    watch.set_defaults(verb="watch")
    return top


def add_choice(verb: argparse.ArgumentParser) -> None:
    """What `sample` and `walk` have in common."""
    verb.add_argument("run", metavar="RUN", help="a run folder")
    verb.add_argument("--average", metavar="NAME", help="an average's name, or live (default: ema)")
    verb.add_argument("--labels", metavar="0,3", help="classes, taken in turn (default: all of them)")
    verb.add_argument("--truncation", type=float, metavar="T", help="draw z from the normal cut at +-T")
    verb.add_argument("--seed", type=int, default=0, help="of the latents (default: 0)")
    verb.add_argument("--kimg", type=float, help="which checkpoint (default: the newest)")
    verb.add_argument(
        "--batchnorm",
        metavar="POLICY",
        help="recalibrate, copy, average, or batch, with which images depend on each other (default: the run's eval.batchnorm)",
    )
