"""Nearest real neighbours of generated images in feature space: does the generator repeat what it was trained on?"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from gantrain.distributed import on_main
from gantrain.errors import UserError
from gantrain.evaluation.evaluator import Evaluator
from gantrain.evaluation.of_runs import RunScorer
from gantrain.run_folder.contents import run_of
from gantrain.sampling.choice import Chosen
from gantrain.sampling.output import CHUNK, save
from gantrain.sampling.sheets import labelled

SHOWN, NEAREST = 8, 8  # rows of the sheet, and real images a row
SHARE = 0.05  # of the real images that lie within the threshold of another
QUERIES = 10_000  # real images whose nearest other is looked for, at most
BLOCK = 1024  # rows of distances at once
SPARE = 8  # neighbours beyond those asked for, put in order exactly


@dataclass(frozen=True)
class Memorisation:
    """How near generated images come to the real ones, beside how near these come to each other.

    Attributes:
        distances: float64 `[n, k]`, of each generated image to its nearest real images, nearest first.
        indices: int64 `[n, k]`, which those are.
        between_real: float64, of each real image to its nearest other.
    """

    distances: Tensor
    indices: Tensor
    between_real: Tensor

    @property
    def threshold(self) -> float:
        """Within it lie 5% of the real images of their nearest other: the 5th percentile of these distances."""
        return float(torch.quantile(self.between_real, SHARE))

    @property
    def share(self) -> float:
        """Of the generated images that lie within the threshold of a real one; about 5% for an independent sample of the data,
        more for copies, less for images that keep off the data or are unlike them."""
        return float((self.distances[:, 0] <= self.threshold).double().mean())

    @property
    def medians(self) -> tuple[float, float]:
        """(of a generated image to the nearest real one, of a real image to its nearest other)."""
        return float(self.distances[:, 0].median()), float(self.between_real.median())


@torch.no_grad()
def nearest(queries: Tensor, among: Tensor, k: int, themselves: bool = False) -> tuple[Tensor, Tensor]:
    """The k nearest rows by L2: (distances float64 `[n, k]`, nearest first, indices int64 `[n, k]`), on the CPU.

    Candidates come from one matrix product a block, whose rounding hides small distances; they are then measured one by one.

    Args:
        queries: `[n, d]`.
        among: `[m, d]` on the same device, m above k.
        themselves: queries are the first n of `among`, and none is a neighbour of itself.
    """
    centre = among.mean(dim=0)  # the shorter the vectors, the less the product rounds
    distances, indices = [], []
    for start in range(0, len(queries), BLOCK):
        block = queries[start : start + BLOCK]
        rough = torch.cdist(block - centre, among - centre)
        if themselves:
            rows = torch.arange(len(block), device=rough.device)
            rough[rows, rows + start] = float("inf")
        found = rough.topk(min(k + SPARE, len(among) - themselves), largest=False).indices
        exact = (among[found].double() - block[:, None].double()).norm(dim=2)
        order = exact.argsort(dim=1, stable=True)[:, :k]
        distances.append(exact.gather(1, order).cpu())
        indices.append(found.gather(1, order).cpu())
    return torch.cat(distances), torch.cat(indices)


def memorisation(fake: Tensor, real: Tensor, k: int = NEAREST) -> Memorisation:
    """Of features `[n, d]` of generated and `[m, d]` of real images, m above k."""
    return Memorisation(*nearest(fake, real, k), nearest(real[:QUERIES], real, 1, themselves=True)[0][:, 0])


def neighbours(chosen: Chosen, num: int, out: Path) -> str:
    """The memorisation check of `num` images, those that `gantrain sample` draws, and a sheet of the eight nearest to real ones.

    All processes take part.

    Raises:
        UserError: a generator that puts out no numbers, too few real images, or as `RunScorer`.
    """
    # Against all that it was trained on, whatever it is scored against; in the chunks that images are drawn in.
    scorer = RunScorer(
        run_of(chosen.path),
        None,
        None,
        ["eval.protocol=null", "eval.reference=null", "eval.reference_samples=null", f"eval.batch_size={CHUNK}"],
        chosen.path,
    )
    scorer.prepare()
    evaluator, accelerator = scorer.evaluator, scorer.accelerator
    if evaluator.num_reference <= NEAREST:
        raise UserError(
            f"data: {evaluator.real.name} gives {evaluator.num_reference} real images; --sheet neighbours needs more than {NEAREST}"
        )
    generator = chosen.generator(accelerator.device)
    with evaluator.apart():
        real = evaluator.reference()
        fake = evaluator.extract(chosen.floats(generator), num, f"features of {chosen.average}")

    def finish() -> str:
        if not torch.isfinite(fake.features).all():
            raise UserError(f"{run_of(chosen.path)}: {chosen.average} puts out no numbers; it has no neighbours")
        with evaluator.apart():
            found = memorisation(fake.features.to(accelerator.device), real.features.to(accelerator.device))
            closest = found.distances[:, 0].argsort(stable=True)[:SHOWN]
            images = chosen.images(generator)
            generated = torch.stack([images(i // CHUNK * CHUNK, min(CHUNK, num - i // CHUNK * CHUNK))[i % CHUNK] for i in closest.tolist()])
        beside = torch.stack([real_images(evaluator, found.indices[i].tolist()) for i in closest.tolist()])
        heads = ["generated", "nearest", *(f"{i + 1}." for i in range(1, NEAREST))]
        rows = [f"{d:.3g}" for d in found.distances[closest, 0].tolist()]
        save(labelled(torch.cat([generated[:, None], beside], dim=1).flatten(0, 1), 1 + NEAREST, rows, heads, apart=True), out)
        return said(found, evaluator, chosen, out)

    return on_main(accelerator, finish) or ""


def real_images(evaluator: Evaluator, positions: list[int]) -> Tensor:
    """Real images by their positions in the reference: uint8 `[n, C, H, W]` on the CPU."""
    return torch.cat([evaluator.real.take(position, 1) for position in positions]).cpu()


def said(found: Memorisation, evaluator: Evaluator, chosen: Chosen, out: Path) -> str:
    """The memorisation check in words."""
    (generated, between), num = found.medians, len(found.distances)
    return (
        f"{num} images of {chosen.average} against {evaluator.num_reference} of {evaluator.real.name}, by L2 in {evaluator.extractor.identity}:"
        f" median distance {generated:.4g} to the nearest real image, {between:.4g} of a real image to its nearest other;"
        f" {found.share:.1%} of them are as near to a real image as the nearest {SHARE:.0%} of real images are to another ({found.threshold:.4g}),"
        f" of an independent sample of the data {SHARE:.0%} would be;"
        f" the {min(SHOWN, num)} nearest, with their neighbours, in {out}"
    )
