"""Files of reference statistics, .npz, gantrain's own and other programs'. Told apart by the arrays that they hold:

    mu [d], sigma [d, d]                TTUR, pytorch-fid, EDM, clean-fid's FID, BigGAN-PyTorch; also gantrain's own
    raw_mean, raw_cov, num_items        StyleGAN's FeatureStats (sums over N images of x and x x^T), saved as .npz
    features [N, d] (logits [N, c])     gantrain's own; clean-fid's KID calls them feats
    arr_0 [N, H, W, C] uint8            images: guided-diffusion's batches, which may hold mu and sigma of more images beside them

Covariances are taken as they stand: TTUR's and most others' divide by N - 1, StyleGAN's by N. Nothing is unpickled.
"""

from __future__ import annotations

import hashlib
import io
import json
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from gantrain.atomic_file import write_atomically
from gantrain.errors import UserError, one_line
from gantrain.metrics.featureset import FeatureSet, Moments

KINDS = "mu and sigma; raw_mean, raw_cov and num_items; features; or arr_0 (uint8 images)"
BROKEN = (OSError, ValueError, KeyError, EOFError, MemoryError, NotImplementedError, RuntimeError, zipfile.BadZipFile, zlib.error)
ASYMMETRY = 1e-3  # of the largest entry: float32 covariances are symmetric to rounding only
KEPT = ("mu", "sigma", "raw_mean", "raw_cov", "num_items", "num_images", "features", "feats", "logits", "arr_0", "identity", "name")
WIDTHS = {64: "eval.features.name=digits or eval.features={name: inception, layer: '64'}", 2048: "eval.features.name=inception"} | {
    d: f"eval.features={{name: inception, layer: '{d}'}}" for d in (192, 768)
}


@dataclass(frozen=True)
class Statistics:
    """What a file holds; at least one of moments, features, images.

    Attributes:
        path: of the file, for messages.
        content: SHA-256 of its arrays.
        moments: mu `[d]`, sigma `[d, d]`, float64.
        features: `[N, d]` float32; logits: `[N, c]`, c may be 0.
        images: uint8 `[N, H, W, C]`, 1 or 3 channels.
        count: images behind the statistics, where the file says.
        identity: of the extractor, where the file says.
        name: of what was measured, where the file says.
    """

    path: Path
    content: str
    moments: Moments | None = None
    features: Tensor | None = None
    logits: Tensor | None = None
    images: np.ndarray | None = None
    count: int | None = None
    identity: str | None = None
    name: str | None = None

    @property
    def width(self) -> int | None:
        """How many features an image has; None where there are images alone."""
        if self.features is not None:
            return self.features.shape[1]
        return None if self.moments is None else len(self.moments["mu"])

    def featureset(self) -> FeatureSet:
        """What is there without an extractor: features, or moments in their place."""
        if self.features is None:
            return FeatureSet(torch.empty(0, self.width), torch.empty(0, 0), self.moments)
        return FeatureSet(self.features, self.logits, self.moments)

    def require_extractor(self, identity: str, width: int) -> None:
        """Refuse statistics of other features than an extractor gives.

        Raises:
            UserError: of another dimension, or of an extractor with another name.
        """
        if self.width is None:
            return
        if self.width != width:
            fits = WIDTHS.get(self.width, "an extractor of that width")
            raise UserError(
                f"{self.path}: its statistics have {self.width} dimensions and eval.features gives {width} ({short(identity)}); set {fits}, or give another file"
            )
        if self.identity is not None and self.identity != identity:
            raise UserError(
                f"{self.path}: its statistics are of {short(self.identity)}, and eval.features is {short(identity)};"
                " set eval.features to that, or make the file again with `gantrain reference`"
            )


def short(identity: str) -> str:
    """An extractor's identity with its long digests cut."""
    return "/".join(part[:12] if len(part) > 40 else part for part in identity.split("/"))


def read_statistics(path: str | Path) -> Statistics:
    """A file of statistics, features or images, looked at from all sides.

    Raises:
        UserError: one line naming the file, what is wrong, and the remedy.
    """
    path = Path(path).expanduser()
    if path.suffix.lower() in (".pkl", ".pickle", ".pt", ".pth"):
        raise UserError(
            f"{path}: is a pickle, which can run code, and gantrain unpickles nothing; where you trust it, load it and save its raw_mean,"
            " raw_cov and num_items (or mu and sigma) with numpy.savez as an .npz"
        )
    if not path.is_file():
        raise UserError(f"{path}: there is no such file; give an .npz of statistics, or write one with `gantrain reference`")
    arrays = read_arrays(path)
    digest = hashlib.sha256()
    for key in sorted(arrays):
        digest.update(f"{key} {arrays[key].dtype} {arrays[key].shape}\n".encode() + np.ascontiguousarray(arrays[key]).tobytes())
    features, logits = features_of(path, arrays)
    images = images_of(path, arrays)
    moments = moments_of(path, arrays)
    if moments is None and features is None and images is None:
        raise UserError(f"{path}: holds {', '.join(arrays) or 'nothing'}, and a reference has {KINDS}; write one with `gantrain reference`")
    if moments is not None and features is not None and len(moments["mu"]) != features.shape[1]:
        raise UserError(
            f"{path}: mu has {len(moments['mu'])} dimensions and features has {features.shape[1]}; they are not of one set: make the file again"
        )
    count = next((int(arrays[key]) for key in ("num_images", "num_items") if key in arrays), None if features is None else len(features))
    if count is None and moments is None:
        count = len(images)
    said = {key: str(arrays[key]) for key in ("identity", "name") if key in arrays and arrays[key].dtype.kind == "U"}
    return Statistics(path, digest.hexdigest(), moments, features, logits, images, count, **said)


def read_arrays(path: Path) -> dict[str, np.ndarray]:
    """Those arrays of an .npz that a reference may have, and the names of the others as empty arrays where there are none of those."""
    try:
        with np.load(path, allow_pickle=False) as file:
            if not isinstance(file, np.lib.npyio.NpzFile):
                raise ValueError("a single array")
            names = [key for key in file.files if key in KEPT]
            return {key: file[key] for key in names} if names else {key: np.empty(0) for key in file.files}
    except BROKEN as error:
        pickled = "objects, which can run code; gantrain unpickles nothing" if "allow_pickle" in str(error) else one_line(error)
        raise UserError(
            f"{path}: cannot be read as an .npz of statistics ({pickled}); save its arrays with numpy.savez, or write one with `gantrain reference`"
        ) from None


def moments_of(path: Path, arrays: dict[str, np.ndarray]) -> Moments | None:
    """mu and sigma, from themselves or from StyleGAN's sums; None where the file has neither."""
    if "mu" in arrays or "sigma" in arrays:
        lacking = [key for key in ("mu", "sigma") if key not in arrays]
        if lacking:
            raise UserError(f"{path}: has no {lacking[0]} beside {'mu' if lacking[0] == 'sigma' else 'sigma'}; make the file again")
        mu, sigma, names = arrays["mu"], arrays["sigma"], ("mu", "sigma")
    elif "raw_mean" in arrays or "raw_cov" in arrays:
        lacking = [key for key in ("raw_mean", "raw_cov", "num_items") if key not in arrays]
        if lacking:
            raise UserError(f"{path}: has no {', '.join(lacking)}, and StyleGAN's sums are nothing without; make the file again")
        mu, sigma, names = arrays["raw_mean"], arrays["raw_cov"], ("raw_mean", "raw_cov")
    else:
        return None
    require_moments(path, mu, sigma, names)
    mu, sigma = mu.astype(np.float64), sigma.astype(np.float64)
    if names[0] == "mu":
        return {"mu": mu, "sigma": sigma}
    if arrays["num_items"].shape != () or not arrays["num_items"] >= 1:
        raise UserError(
            f"{path}: num_items must be a number of images, got {one_line(ValueError(arrays['num_items']))[:40]}; make the file again"
        )
    n = float(arrays["num_items"])  # FeatureStats.get_mean_cov of StyleGAN2-ADA and 3, metrics/metric_utils.py
    return {"mu": mu / n, "sigma": sigma / n - np.outer(mu / n, mu / n)}


def require_moments(path: Path, mu: np.ndarray, sigma: np.ndarray, names: tuple[str, str]) -> None:
    """Refuse what is no mean `[d]` with a covariance `[d, d]`."""
    if mu.dtype.kind not in "fiu" or sigma.dtype.kind not in "fiu":
        raise UserError(f"{path}: {names[0]} and {names[1]} must be numbers, and are {mu.dtype} and {sigma.dtype}; make the file again")
    if mu.ndim != 1 or sigma.shape != (*mu.shape, *mu.shape) or not len(mu):
        raise UserError(
            f"{path}: {names[0]} must be [d] and {names[1]} [d, d], and they are {list(mu.shape)} and {list(sigma.shape)}; make the file again"
        )
    if not (np.isfinite(mu).all() and np.isfinite(sigma).all()):
        raise UserError(
            f"{path}: {names[0]} or {names[1]} holds nan or infinity; make the file again from images whose features are finite"
        )
    if np.abs(sigma - sigma.T).max() > ASYMMETRY * np.abs(sigma).max() or (np.diag(sigma) < 0).any():
        raise UserError(f"{path}: {names[1]} is no covariance (not symmetric, or negative on its diagonal); make the file again")


def features_of(path: Path, arrays: dict[str, np.ndarray]) -> tuple[Tensor | None, Tensor | None]:
    """(features, logits), float32; (None, None) where the file has none."""
    name = next((key for key in ("features", "feats") if key in arrays), None)
    if name is None:
        return None, None
    features = arrays[name]
    if features.ndim != 2 or features.dtype.kind != "f" or len(features) < 2:
        raise UserError(f"{path}: {name} must be floats [N, d], and is {features.dtype} {list(features.shape)}; make the file again")
    logits = arrays.get("logits", np.empty((len(features), 0), np.float32))
    if logits.ndim != 2 or logits.dtype.kind != "f" or len(logits) != len(features):
        raise UserError(
            f"{path}: logits must be floats [{len(features)}, c] as {name}, and is {logits.dtype} {list(logits.shape)}; make the file again"
        )
    if not (np.isfinite(features).all() and np.isfinite(logits).all()):
        raise UserError(f"{path}: {name} or logits holds nan or infinity; make the file again from images whose features are finite")
    return torch.from_numpy(features.astype(np.float32)), torch.from_numpy(logits.astype(np.float32))


def images_of(path: Path, arrays: dict[str, np.ndarray]) -> np.ndarray | None:
    """uint8 `[N, H, W, C]`; None where the file has none."""
    images = arrays.get("arr_0")
    if images is not None and (images.dtype != np.uint8 or images.ndim != 4 or images.shape[3] not in (1, 3) or 0 in images.shape):
        raise UserError(
            f"{path}: arr_0 must be uint8 images [N, H, W, C] of 1 or 3 channels, and is {images.dtype} {list(images.shape)}; make the file again"
        )
    return images


def write_statistics(path: Path, features: FeatureSet, moments_only: bool, facts: dict[str, object]) -> None:
    """A file that `read_statistics` and every program that knows TTUR's files can read, whole or not at all.

    Args:
        path: of the .npz.
        features: what is to be kept.
        moments_only: leave features and logits out: kilobytes, or 32 MiB of 2048 dimensions, however many images there were.
        facts: text, numbers, or mappings (as JSON) that are kept beside.
    """
    arrays: dict[str, np.ndarray] = {**features.moments, "num_images": np.array(len(features))}
    if not moments_only:
        arrays |= {"features": features.features.numpy(), "logits": features.logits.numpy()}
    arrays |= {key: np.array(json.dumps(value) if isinstance(value, dict) else value) for key, value in facts.items()}
    held = io.BytesIO()
    np.savez(held, **arrays)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, held.getbuffer())
