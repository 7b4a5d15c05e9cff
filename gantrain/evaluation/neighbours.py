"""A check for memorisation: the nearest real neighbours of generated images in feature space."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from gantrain.devices import widest_float
from gantrain.distributed import on_main
from gantrain.errors import UserError
from gantrain.evaluation.evaluator import Evaluator
from gantrain.evaluation.of_runs import RunScorer
from gantrain.evaluation.room import require_room_for_features
from gantrain.evaluation.score_notes import describe_features
from gantrain.run_folder.contents import run_of
from gantrain.run_folder.start_folder import require_images_of
from gantrain.sampling.choice import ImageSource
from gantrain.sampling.output import CHUNK, save_picture
from gantrain.sampling.sheets import make_labelled_grid

SHOWN, NEAREST = 8, 8  # rows of the sheet, and real images per row
SHARE = 0.05  # of real images that are within the threshold of another
QUERIES = 10_000  # most real images whose nearest other is searched
BLOCK = 1024  # queries per matrix product
SPARE = 8  # extra candidates, which are then sorted by exact distance


@dataclass(frozen=True)
class Memorisation:
    """How close generated images are to real ones, compared with how close real ones are to each other.

    Attributes:
        distances: float64 `[n, k]`, from each generated image to its nearest real images, nearest first.
        indices: int64 `[n, k]`, positions of those real images.
        between_real: float64 `[m]`, from each real image to its nearest other.
    """

    distances: Tensor
    indices: Tensor
    between_real: Tensor

    @property
    def threshold(self) -> float:
        """The 5th percentile of `between_real`: 5% of real images are that close to another real one."""
        return float(torch.quantile(self.between_real, SHARE))

    @property
    def share(self) -> float:
        """Share of generated images within the threshold of a real one.

        About 5% for an independent sample of the data, more for copies, less for images far from the data.
        """
        return float((self.distances[:, 0] <= self.threshold).double().mean())

    @property
    def medians(self) -> tuple[float, float]:
        """Median distances (from a generated image to the nearest real one, from a real image to its nearest other)."""
        return float(self.distances[:, 0].median()), float(self.between_real.median())


@torch.no_grad()
def find_nearest(queries: Tensor, among: Tensor, k: int, themselves: bool = False) -> tuple[Tensor, Tensor]:
    """Find the k nearest rows by L2 distance.

    Candidates come from one matrix product per block, whose rounding hides small distances; their distances are then computed exactly.

    Args:
        queries: `[n, d]`.
        among: `[m, d]` on the same device, m above k.
        themselves: queries are the first n rows of `among`, and a row is not its own neighbour.

    Returns:
        (distances float64 `[n, k]`, nearest first, indices int64 `[n, k]`), on the CPU.
    """
    centre = among.mean(dim=0)  # shorter vectors round less
    distances, indices = [], []
    for start in range(0, len(queries), BLOCK):
        block = queries[start : start + BLOCK]
        rough = torch.cdist(block - centre, among - centre)
        if themselves:
            rows = torch.arange(len(block), device=rough.device)
            rough[rows, rows + start] = float("inf")
        found = rough.topk(min(k + SPARE, len(among) - themselves), largest=False).indices
        wide = widest_float(rough.device)
        exact = (among[found].to(wide) - block[:, None].to(wide)).norm(dim=2)
        order = exact.argsort(dim=1, stable=True)[:, :k]
        distances.append(exact.gather(1, order).cpu().double())
        indices.append(found.gather(1, order).cpu())
    return torch.cat(distances), torch.cat(indices)


def measure_memorisation(fake: Tensor, real: Tensor, k: int = NEAREST) -> Memorisation:
    """Measure it from features `[n, d]` of generated and `[m, d]` of real images, m above k."""
    return Memorisation(*find_nearest(fake, real, k), find_nearest(real[:QUERIES], real, 1, themselves=True)[0][:, 0])


def draw_neighbours(source: ImageSource, num: int, out: Path, scale: int | None = None) -> str:
    """Check `num` images for memorisation, those that `gantrain sample` draws, and draw the eight closest with their neighbours.

    All processes take part.

    Args:
        scale: see `gantrain.sampling.sheets.make_grid`.

    Returns:
        The result in words on the main process, elsewhere "".

    Raises:
        UserError: the generator outputs nan or infinity, there are too few real images, or see `RunScorer`.
    """
    run = run_of(source.path)
    # Compared with all training images, whatever eval.reference says, and drawn in the chunks of `gantrain sample`.
    overrides = ["eval.protocol=null", "eval.reference=null", "eval.reference_samples=null", f"eval.batch_size={CHUNK}"]
    require_images_of(run, source.config, None, reads_data=True)
    scorer = RunScorer(run, None, None, overrides, source.path)
    scorer.prepare()
    evaluator, accelerator = scorer.evaluator, scorer.accelerator
    if evaluator.real.taken <= NEAREST:
        raise UserError(f"data: {evaluator.real.name} has {evaluator.real.taken} images; --sheet neighbours needs more than {NEAREST}")
    require_room_for_features("--num", num, evaluator.widths)
    generator = source.load_generator(accelerator.device)
    with evaluator.isolated():
        real = evaluator.reference()
        fake = evaluator.extract(source.float_sampler(generator), num, f"features of {source.average}")

    def finish() -> str:
        assert fake is not None, "the main process has the features"
        if not torch.isfinite(fake.features).all():
            raise UserError(f"{run}: {source.average} generates nan or infinity, so it has no neighbours; choose another average or kimg")
        with evaluator.isolated():
            found = measure_memorisation(fake.features.to(accelerator.device), real.features.to(accelerator.device))
            closest = found.distances[:, 0].argsort(stable=True)[:SHOWN]
            images = source.image_sampler(generator)
            generated = torch.stack([images(i // CHUNK * CHUNK, min(CHUNK, num - i // CHUNK * CHUNK))[i % CHUNK] for i in closest.tolist()])
        beside = torch.stack([take_real_images(evaluator, found.indices[i].tolist()) for i in closest.tolist()])
        heads = ["generated", "nearest", *(f"{i + 1}." for i in range(1, NEAREST))]
        rows = [f"{d:.3g}" for d in found.distances[closest, 0].tolist()]
        cells = torch.cat([generated[:, None], beside], dim=1).flatten(0, 1)
        save_picture(make_labelled_grid(cells, 1 + NEAREST, rows, heads, apart=True, scale=scale), out)
        return describe(found, evaluator, source, out)

    return on_main(accelerator, finish) or ""


def take_real_images(evaluator: Evaluator, positions: list[int]) -> Tensor:
    """Read real images by position in the reference: uint8 `[n, C, H, W]` on the CPU."""
    take = evaluator.real.take
    assert take is not None, "the reference is a data set"
    return torch.cat([take(position, 1) for position in positions]).cpu()


def describe(found: Memorisation, evaluator: Evaluator, source: ImageSource, out: Path) -> str:
    """State the result of the check in one line; a note follows if the features are made for other images."""
    (generated, between), num = found.medians, len(found.distances)
    return (
        f"{num} images of {source.average} against {evaluator.real.taken} of {evaluator.real.name}, L2 in"
        f" {evaluator.extractor.identity}: median distance {generated:.4g} to the nearest real image, {between:.4g} from a real image to"
        f" its nearest other; {found.share:.1%} of them are as close to a real image as the closest {SHARE:.0%} of real images are to"
        f" another ({found.threshold:.4g}); an independent sample of the data would have {SHARE:.0%};"
        f" the {min(SHOWN, num)} closest, with their neighbours, in {out}"
        + "".join(f"\nnote: {note}" for note in describe_features(evaluator.config.eval, evaluator.remarks.foreign, "distances"))
    )
