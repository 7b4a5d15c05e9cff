"""`gantrain evaluate`: score a run's weights, or a folder of images."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from accelerate import Accelerator

from gantrain.averaging import LIVE
from gantrain.averaging.batchnorm import POLICIES
from gantrain.commands.arguments import averages_of_choice, listed_names, overrides_of
from gantrain.config.yaml_files import as_override
from gantrain.data.listing import list_folder
from gantrain.distributed import finish, from_main, main_first, make_accelerator
from gantrain.errors import UserError, did_you_mean, readable
from gantrain.evaluation.api import GENERATOR_KEYS, count_images, load_eval_config, open_pictures, score_images
from gantrain.evaluation.collapse import in_one_line
from gantrain.evaluation.evaluator import Evaluator
from gantrain.evaluation.image_files import sample_of
from gantrain.evaluation.of_runs import RunScorer
from gantrain.evaluation.score_notes import LOOKED_AT
from gantrain.home import expand_user
from gantrain.reporting.score_table import policy_tables, table
from gantrain.run_folder.contents import averages_of, look_again, moment_of_rebuilt, require_time, times_of_rebuilt
from gantrain.run_folder.recognition import is_run_folder
from gantrain.run_folder.result_file import keep_result, target_of, write
from gantrain.sampling.generators import hold_rebuilt
from gantrain.score_names import Scores


def call(arguments: argparse.Namespace) -> None:
    """Run the command.

    Raises:
        UserError: an option does not apply, or something cannot be scored.
    """
    if holds_images(arguments.run):
        for option, given in (
            ("--average", arguments.average != "all"),
            ("--kimg", arguments.kimg is not None),
            ("--batchnorm", arguments.batchnorm is not None),
        ):
            if given:
                raise UserError(f"{option}: only applies to runs, but {arguments.run} contains images; remove it")
        report, accelerator = evaluate_images(arguments.run, arguments.reference, arguments.num, arguments.out, arguments.overrides)
        if accelerator.is_main_process:
            print(report)
        finish(accelerator)
        return
    names, policies, kimg = None, None, arguments.kimg
    if arguments.average != "all":
        names, kimg = averages_of_choice(arguments.run, listed_names(arguments.average, "--average", "live,ema"), kimg)
    if arguments.batchnorm is not None:
        policies = list(POLICIES) if arguments.batchnorm == "all" else listed_names(arguments.batchnorm, "--batchnorm", "recalibrate,copy")
    report, accelerator = evaluate_run(arguments.run, names, arguments.num, kimg, arguments.out, overrides_of(arguments), policies)
    if accelerator.is_main_process:
        print(report)
    finish(accelerator)


def holds_images(target: str | Path) -> bool:
    """Whether a path contains images and is not a run folder."""
    path = expand_user(target)
    if path.suffix.lower() in (".npz", ".zip"):
        return True
    if not path.is_dir() or is_run_folder(path):
        return False
    return bool(list_folder(path).files)


def evaluate_images(
    target: str | Path, reference: str | None, num: int | None, out: str | Path | None, overrides: Sequence[str]
) -> tuple[str, Accelerator]:
    """Score a folder, zip or .npz of images.

    Args:
        reference: as `eval.reference`.
        num: how many images, a seeded random sample; None is all.
        out: where the scores are saved as JSON; None saves nothing.
        overrides: `eval.key=value`, changes to the defaults of `eval`.

    Returns:
        The table as text, and the Accelerator that was used.

    Raises:
        UserError: something cannot be scored.
    """
    if reference is None and not any(text.startswith("eval.reference=") for text in overrides):
        raise UserError(
            f"{target}: scoring images needs a reference; add --reference with an .npz of statistics, a folder of real images,"
            " a run folder or a CONFIG.yaml"
        )
    config = load_eval_config(overrides, "images")
    where = None if out is None else target_of(out, Path(), "")
    accelerator = make_accelerator()
    pictures = main_first(accelerator, lambda: open_pictures(expand_user(target)))
    total = count_images(pictures, num, "--num")
    config = load_eval_config(
        [*overrides, f"eval.num_samples={total}", *([] if reference is None else [as_override("eval.reference", reference)])], "images"
    )
    evaluator = Evaluator(config, None, accelerator, shape=pictures.shape, scored=lambda: pictures.some(LOOKED_AT))
    evaluator.remarks.require_room("--num")
    evaluator.remarks.require_enough()
    scores = {pictures.name: score_images(evaluator, sample_of(pictures, total, config.seed), total, f"score {pictures.name}")}
    if not accelerator.is_main_process:
        return "", accelerator
    protocol = {key: value for key, value in evaluator.protocol().items() if key not in GENERATOR_KEYS}
    chosen = "" if total == len(pictures) else f", a random sample of {len(pictures):,} without replacement, seed {config.seed}"
    if chosen:
        protocol["eval/sample"] = f"{total} images{chosen}"
    if where is not None:
        write(where, {"images": readable(target), **protocol, "scores": scores})
    also = f"; also in {readable(out)}" if out is not None else ""
    head = f"{readable(target)}: {total} images{f'{chosen},' if chosen else ''} against {evaluator.real.described}{also}"
    about = [f"{readable(target)}: {note}" for note in pictures.notes] + [f"reference: {note}" for note in evaluator.real.notes]
    return "\n".join([head, *about, table(scores, "images", evaluator.remarks.notes)]), accelerator


def evaluate_run(
    run: str | Path,
    names: list[str] | None = None,
    num_samples: int | None = None,
    kimg: float | None = None,
    out: str | Path | None = None,
    overrides: Sequence[str] = (),
    policies: Sequence[str] | None = None,
) -> tuple[str, Accelerator]:
    """Score a run's checkpoint and save the scores as JSON.

    Args:
        names: averages, including "live"; None is all of them.
        out: where the scores are saved; None is RUN/evaluations/<nimg>.json, with a number appended if that exists.
        policies: BatchNorm policies; None is the run's own.
        The rest as in `RunScorer`.

    Returns:
        The table as text, and the Accelerator that was used.

    Raises:
        UserError: see `load_generator`.
    """
    scorer = RunScorer(run, num_samples, kimg, overrides)
    path, config = scorer.path, scorer.config
    target = target_of(out, Path(run) / "evaluations", path.name)
    names, times = look_again(lambda: hold_averages(scorer, names, kimg))
    for policy in policies or ():
        if policy not in POLICIES:
            raise UserError(f"--batchnorm: there is no policy {policy!r}{did_you_mean(policy, POLICIES)}; or all, by itself")
    scorer.prepare()
    names = from_main(scorer.accelerator, names)
    chosen = list(policies or [config.eval.batchnorm])
    by_policy: dict[str, Scores] = {}
    collapsed: dict[str, str] = {}
    for policy in chosen:
        # For the live weights, `average` is the same as `copy`, so they are scored once.
        same = LIVE in names and policy == "average" and "copy" in by_policy
        scores = scorer.score([name for name in names if not (same and name == LIVE)], policy)
        collapsed |= {name: words for name, words in scorer.evaluator.collapsed.items() if words}
        by_policy[policy] = {name: by_policy["copy"][LIVE] if same and name == LIVE else scores[name] for name in names}
    accelerator, protocol = scorer.accelerator, scorer.evaluator.protocol(chosen[0])
    if not accelerator.is_main_process:
        return "", accelerator
    apart = {name: nimg for name, nimg in times.items() if name in names and nimg != int(path.name)}
    record = {"nimg": int(path.name), **({"nimg_of_rebuilt": apart} if apart else {}), **protocol}
    if len(chosen) == 1:
        record["scores"] = by_policy[chosen[0]]
    else:
        record |= {"eval/batchnorm": chosen, "scores_by_batchnorm": by_policy}
        record["eval/batchnorm_batches"] = {policy: scorer.evaluator.protocol(policy)["eval/batchnorm_batches"] for policy in chosen}
    notes = scorer.evaluator.remarks.notes
    if collapsed and int(path.name) > 0:
        record["collapsed"] = collapsed
        notes = [*notes, f"collapsed: {in_one_line(collapsed)}"]
    target = keep_result(target, record, out)
    text = table(by_policy[chosen[0]], notes=notes) if len(chosen) == 1 else policy_tables(by_policy, notes)
    others = "".join(f"; {name} at {nimg / 1000:g} kimg" for name, nimg in apart.items())
    how = f"{config.eval.num_samples} samples, BatchNorm {', '.join(chosen)}"
    return f"{run} at {int(path.name) / 1000:g} kimg{others}, {how}; also in {target}\n{text}", accelerator


def hold_averages(scorer: RunScorer, names: list[str] | None, kimg: float | None) -> tuple[list[str], dict[str, int]]:
    """What `choose_averages` returns, with the files of rebuilt averages open, since they are scored one after another.

    Raises:
        Gone: one was deleted or replaced meanwhile.
    """
    names, times = choose_averages(scorer.run, scorer.path, names, kimg)
    hold_rebuilt(scorer.held, names)
    return names, times


def choose_averages(run: Path, path: Path, names: list[str] | None, kimg: float | None) -> tuple[list[str], dict[str, int]]:
    """Choose the averages of a checkpoint to score.

    Args:
        path: the checkpoint.
        names: the requested averages; None is all of the checkpoint's time.
        kimg: the requested time.

    Returns:
        Their names, and the images seen by each rebuilt average.

    Raises:
        UserError: there is no such average, or it belongs to another time.
    """
    there = averages_of(path)
    for name in names or ():
        if name not in there:
            raise UserError(f"--average: {run} has no average {name!r} at {int(path.name) / 1000:g} kimg{did_you_mean(name, there)}")
    times = times_of_rebuilt(run)
    for name in names or ():
        if times.get(name) == -1:
            moment_of_rebuilt(run, name)  # says how it is damaged
    if kimg is not None:
        for name in names or ():
            require_time(name, times.get(name, int(path.name)), kimg)
    if names is None:  # of the rebuilt averages, only those at this time
        names = [name for name in there if times.get(name, int(path.name)) == int(path.name)]
    return names, times
