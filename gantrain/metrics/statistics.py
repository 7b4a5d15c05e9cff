"""Reads and writes .npz files of reference statistics, in gantrain's and other programs' formats. The arrays identify the format:

    mu [d], sigma [d, d]                TTUR, pytorch-fid, EDM, clean-fid's FID, BigGAN-PyTorch; also gantrain
    raw_mean, raw_cov, num_items        StyleGAN's FeatureStats (sums over N images of x and x x^T), saved as .npz
    features [N, d] (logits [N, c])     gantrain; clean-fid's KID calls them feats
    arr_0 [N, H, W, C] uint8            images: guided-diffusion's batches, which may also contain mu and sigma of more images

Two more arrays say how often each class occurs: class_counts [c] (gantrain), or arr_1 [N], the labels of arr_0 (guided-diffusion).
Covariances are used as stored: TTUR and most others divide by N - 1, StyleGAN by N. Nothing is unpickled.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gantrain.atomic_file import write_atomically
from gantrain.errors import UserError, in_words, one_line
from gantrain.home import expand_user
from gantrain.metrics.featureset import FeatureSet, Moments
from gantrain.metrics.npz import NAMED, Header, open_npz

KINDS = "mu and sigma; raw_mean, raw_cov and num_items; features; or arr_0 (uint8 images)"
AGAIN = "create the file again"
ASYMMETRY = 1e-3  # tolerance relative to the largest entry: float32 covariances are symmetric only up to rounding
KEPT = ("mu", "sigma", "raw_mean", "raw_cov", "num_items", "num_images", "features", "feats", "logits", "arr_0", "identity", "name", "data")
OF_CLASSES = ("class_counts", "arr_1")  # not part of the content: scores are the same with and without them
MOST_CLASSES = 10**6  # in arr_1; larger numbers are not classes
MOST_IMAGES = 2**53  # a larger number is not a number of images
# Largest value of a feature or mean: squares and products of squares stay far from the largest float.
HIGHEST = 1e12
CHECKED_WIDTH = 4096  # up to so many features it is checked that a covariance is one, which takes a second at the most
# Most bytes of arrays that are single values, texts, or one number a class or feature.
MOST_OF_ARRAY = dict.fromkeys(("num_images", "num_items", "identity", "name", "data"), 2**22) | {
    "class_counts": 8 * MOST_CLASSES, "mu": 2**23, "raw_mean": 2**23,
}  # fmt: skip
WIDTHS = {64: "eval.features.name=digits or eval.features={name: inception, layer: '64'}", 2048: "eval.features.name=inception"} | {
    d: f"eval.features={{name: inception, layer: '{d}'}}" for d in (192, 768)
}


@dataclass(frozen=True)
class Statistics:
    """The content of a file; at least one of moments, features and images.

    Attributes:
        path: path of the file, for messages.
        content: SHA-256 of the arrays.
        moments: mu `[d]` and sigma `[d, d]`, float64.
        features: features `[N, d]`, float32.
        logits: logits `[N, c]`, float32; c may be 0.
        images: uint8 `[N, H, W, C]` with 1 or 3 channels.
        count: number of images behind the statistics, if the file contains it.
        identity: identity of the extractor, if the file contains it.
        name: name of the images, if the file contains it.
        data: the data set that the images were found to be of ("digits"), or "" for others; None in files that do not say.
        class_counts: images per class, if the file contains them; else empty.
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
    data: str | None = None
    class_counts: tuple[int, ...] = ()

    @property
    def width(self) -> int | None:
        """Number of features per image; None if the file contains only images."""
        if self.features is not None:
            return self.features.shape[1]
        return None if self.moments is None else len(self.moments["mu"])

    def featureset(self) -> FeatureSet:
        """The file's features or moments. Only for a file that contains one of them, not just images."""
        if self.features is None:
            assert self.width is not None
            return FeatureSet(torch.empty(0, self.width), torch.empty(0, 0), self.moments)
        assert self.logits is not None
        return FeatureSet(self.features, self.logits, self.moments)

    def require_extractor(self, identity: str, width: int) -> None:
        """Refuse statistics that do not belong to the given extractor.

        Raises:
            UserError: the number of features or the identity of the extractor differs.
        """
        if self.width is None:
            return
        if self.width != width:
            fits = WIDTHS.get(self.width, "an extractor of that width")
            raise UserError(
                f"{self.path}: its statistics have {self.width} dimensions, but eval.features has {width} ({short(identity)});"
                f" set {fits}, or use another file"
            )
        if self.identity is not None and self.identity != identity:
            raise UserError(
                f"{self.path}: its statistics are those of {short(self.identity)}, but eval.features is {short(identity)};"
                " change eval.features, or create the file again with `gantrain reference`"
            )


def short(identity: str) -> str:
    """Returns an extractor's identity with its long digests shortened."""
    return "/".join(part[:12] if len(part) > 40 else part for part in identity.split("/"))


def read_statistics(path: str | Path) -> Statistics:
    """Reads and validates a file of statistics, features or images.

    Raises:
        UserError: the file is missing or invalid.
    """
    path = expand_user(path)
    if path.suffix.lower() in (".pkl", ".pickle", ".pt", ".pth"):
        raise UserError(
            f"{path}: is a pickle, which can run code, so gantrain does not load it; if you trust it, load it yourself and save its"
            " raw_mean, raw_cov and num_items (or mu and sigma) as an .npz with numpy.savez"
        )
    if not is_there(path):
        raise UserError(f"{path}: is not a file; pass an .npz of statistics, or write one with `gantrain reference`")
    arrays = read_arrays(path)
    digest = hashlib.sha256()
    for key in sorted(arrays.keys() - OF_CLASSES):
        digest.update(f"{key} {arrays[key].dtype} {arrays[key].shape}\n".encode())
        digest.update(np.ascontiguousarray(arrays[key]).reshape(-1).view(np.uint8).data)  # not a copy, which may be large
    features, logits = features_of(path, arrays)
    images = arrays.get("arr_0")
    moments = moments_of(path, arrays)
    if moments is None and features is None and images is None:
        raise contains_nothing(path, list(arrays))
    if moments is not None and features is not None and len(moments["mu"]) != features.shape[1]:
        raise UserError(f"{path}: mu has {len(moments['mu'])} dimensions, but features has {features.shape[1]}; {AGAIN}")
    count = next((number_of(path, key, arrays[key]) for key in ("num_images", "num_items") if key in arrays), None)
    if features is not None and count is not None and count < len(features):
        raise UserError(f"{path}: has features of {len(features):,} images, but num_images or num_items is {count:,}; {AGAIN}")
    count = len(features) if features is not None and count is None else count
    if count is None and moments is None:
        assert images is not None  # features would have given the count
        count = len(images)
    said = {key: str(arrays[key]) for key in ("identity", "name", "data") if key in arrays and arrays[key].dtype.kind == "U"}
    return Statistics(path, digest.hexdigest(), moments, features, logits, images, count, **said, class_counts=classes_of(arrays))


def is_there(path: Path) -> bool:
    """Whether a path is that of something that is not a folder; a pipe is refused when it is opened.

    Raises:
        UserError: it cannot be known.
    """
    try:
        return path.exists() and not path.is_dir()
    except OSError as error:
        raise UserError(
            f"{path}: cannot be looked at ({error.strerror or one_line(error)}); make it and the folders above it readable"
        ) from None


def read_arrays(path: Path) -> dict[str, np.ndarray]:
    """Returns the arrays of an .npz that belong to a reference. Their types and shapes are checked before one of them is read.

    Raises:
        UserError: the file is damaged or too large, contains no such array, or one of another type or shape.
    """
    with open_npz(path, (*KEPT, *OF_CLASSES)) as file:
        if not file.headers:
            raise contains_nothing(path, file.names)
        for key, header in file.headers.items():
            if header.nbytes > MOST_OF_ARRAY.get(key, header.nbytes):
                what = f"{header.dtype} {list(header.shape)}, which takes {in_words(header.nbytes)}"
                raise UserError(f"{path}: {key} is {what}, and {in_words(MOST_OF_ARRAY[key])} is the most; {AGAIN}")
        require_forms(path, file.headers)
        if not has_labels(file.headers):
            file.headers.pop("arr_1", None)  # `numpy.savez(file, images, ANYTHING)`: not read
        return file.read()


def contains_nothing(path: Path, names: list[str]) -> UserError:
    """The error for a file without statistics, features or images."""
    found = (", ".join(names[:NAMED]) + (f" and {len(names) - NAMED:,} more" if len(names) > NAMED else "")) or "nothing"
    return UserError(f"{path}: contains {found}, but a reference must contain {KINDS}; write one with `gantrain reference`")


def number_of(path: Path, key: str, array: np.ndarray) -> int:
    """A number of images.

    Raises:
        UserError: it is something else.
    """
    fits = array.size == 1 and array.dtype.kind in "iuf" and bool(((array >= 1) & (array < MOST_IMAGES) & (array == np.floor(array))).all())
    if not fits:
        value = one_line(ValueError(array.ravel()[0] if array.size == 1 else f"{array.dtype} {list(array.shape)}"))[:40]
        raise UserError(f"{path}: {key} must be a number of images, got {value}; {AGAIN}")
    return int(array.item())


def require_forms(path: Path, arrays: Mapping[str, Header]) -> None:
    """Refuse arrays whose types or shapes are wrong, before they are read.

    Raises:
        UserError: names the array.
    """
    names = moment_names(path, arrays)
    if names is not None:
        require_moments_form(path, arrays[names[0]], arrays[names[1]], names)
    name = features_name(arrays)
    if name is not None:
        features = arrays[name]
        if features.ndim != 2 or features.dtype.kind != "f" or len(features) < 2 or not features.shape[1]:
            raise UserError(f"{path}: {name} must be floats [N, d], got {features.dtype} {list(features.shape)}; {AGAIN}")
        logits = arrays.get("logits")
        if logits is not None and (logits.ndim != 2 or logits.dtype.kind != "f" or len(logits) != len(features)):
            shape = f"floats [{len(features)}, c], one row per row of {name}"
            raise UserError(f"{path}: logits must be {shape}, got {logits.dtype} {list(logits.shape)}; {AGAIN}")
    images = arrays.get("arr_0")
    if images is not None and (images.dtype != np.uint8 or images.ndim != 4 or images.shape[3] not in (1, 3) or 0 in images.shape):
        wanted = "uint8 images [N, H, W, C] with 1 or 3 channels"
        raise UserError(f"{path}: arr_0 must be {wanted}, got {images.dtype} {list(images.shape)}; {AGAIN}")


def has_labels(arrays: Mapping[str, Header]) -> bool:
    """Whether arr_1 has the form of labels of the images in arr_0."""
    labels, images = arrays.get("arr_1"), arrays.get("arr_0")
    return labels is not None and images is not None and labels.dtype.kind in "iu" and labels.shape == images.shape[:1]


def moment_names(path: Path, arrays: Mapping[str, Any]) -> tuple[str, str] | None:
    """The names of mean and covariance, or of StyleGAN's sums; None if the file contains neither.

    Raises:
        UserError: one is missing.
    """
    if "mu" in arrays or "sigma" in arrays:
        lacking = [key for key in ("mu", "sigma") if key not in arrays]
        if lacking:
            raise UserError(f"{path}: contains {'mu' if lacking[0] == 'sigma' else 'sigma'} but no {lacking[0]}; {AGAIN}")
        return "mu", "sigma"
    if "raw_mean" in arrays or "raw_cov" in arrays:
        lacking = [key for key in ("raw_mean", "raw_cov", "num_items") if key not in arrays]
        if lacking:
            raise UserError(f"{path}: lacks {', '.join(lacking)}, which StyleGAN's sums require; {AGAIN}")
        return "raw_mean", "raw_cov"
    return None


def features_name(arrays: Mapping[str, Any]) -> str | None:
    """The name of the features; None if the file contains none."""
    return next((key for key in ("features", "feats") if key in arrays), None)


def require_moments_form(path: Path, mu: Header, sigma: Header, names: tuple[str, str]) -> None:
    """Refuse arrays that are not a mean `[d]` and a covariance `[d, d]` of numbers.

    Raises:
        UserError: the type or shape is wrong.
    """
    mean, covariance = names
    if mu.dtype.kind not in "fiu" or sigma.dtype.kind not in "fiu":
        raise UserError(f"{path}: {mean} and {covariance} must be numbers, got {mu.dtype} and {sigma.dtype}; {AGAIN}")
    if mu.ndim != 1 or sigma.shape != (*mu.shape, *mu.shape) or not len(mu):
        raise UserError(f"{path}: {mean} must be [d] and {covariance} [d, d], got {list(mu.shape)} and {list(sigma.shape)}; {AGAIN}")


def moments_of(path: Path, arrays: Mapping[str, np.ndarray]) -> Moments | None:
    """Returns mu and sigma, as stored or computed from StyleGAN's sums; None if the file contains neither.

    Raises:
        UserError: an array is missing, or its values are not those of a mean or a covariance.
    """
    names = moment_names(path, arrays)
    if names is None:
        return None
    with np.errstate(over="ignore", invalid="ignore"):  # infinity is refused
        mu, sigma = (arrays[name].astype(np.float64) for name in names)
    if not (np.isfinite(mu).all() and np.isfinite(sigma).all()):
        raise UserError(f"{path}: {names[0]} or {names[1]} contains nan or infinity; {AGAIN} from images whose features are finite")
    if names[0] == "mu":
        coarse = arrays["sigma"].dtype.kind == "f" and arrays["sigma"].dtype.itemsize < 4  # rounding leaves no definite matrix
        require_covariance(path, mu, sigma, names, bool((np.diag(sigma) < 0).any()), not coarse)
        return {"mu": mu, "sigma": sigma}
    n = float(
        number_of(path, "num_items", arrays["num_items"])
    )  # FeatureStats.get_mean_cov of StyleGAN2-ADA and 3, metrics/metric_utils.py
    with np.errstate(over="ignore", invalid="ignore"):
        mu, sigma = mu / n, sigma / n - np.outer(mu / n, mu / n)
    require_covariance(path, mu, sigma, names, False)  # a constant feature has a variance of 0, or less by rounding
    return {"mu": mu, "sigma": sigma}


def require_covariance(path: Path, mu: np.ndarray, sigma: np.ndarray, names: tuple[str, str], below_zero: bool, exact: bool = True) -> None:
    """Refuse values that are too large, or that are not those of a covariance.

    Args:
        names: of both in the file.
        below_zero: whether a variance is known to be negative.
        exact: whether eigenvalues below 0 are more than rounding.

    Raises:
        UserError: names the array.
    """
    largest = np.abs(sigma).max()
    if not (np.abs(mu).max() <= HIGHEST and largest <= HIGHEST**2):
        raise UserError(
            f"{path}: {names[0]} or {names[1]} has values up to {max(np.abs(mu).max(), largest):.3g}, more than features can have"
            f" ({HIGHEST:.0e}); {AGAIN}"
        )
    if np.abs(sigma - sigma.T).max() > ASYMMETRY * largest or below_zero:
        raise UserError(f"{path}: {names[1]} is not a covariance (not symmetric, or negative on the diagonal); {AGAIN}")
    if exact and largest > 0 and len(mu) <= CHECKED_WIDTH:
        try:  # float32 leaves eigenvalues of about -1e-6 of the largest where there are fewer images than features
            np.linalg.cholesky(sigma + ASYMMETRY * largest * np.eye(len(mu)))
        except np.linalg.LinAlgError:
            raise UserError(f"{path}: {names[1]} is not a covariance (not positive semi-definite); {AGAIN}") from None


def features_of(path: Path, arrays: Mapping[str, np.ndarray]) -> tuple[Tensor | None, Tensor | None]:
    """Returns (features, logits), float32; (None, None) if the file contains no features.

    Raises:
        UserError: a value is not finite, or too large.
    """
    name = features_name(arrays)
    if name is None:
        return None, None
    features = arrays[name]
    logits = arrays.get("logits", np.empty((len(features), 0), np.float32))
    if not (np.isfinite(features).all() and np.isfinite(logits).all()):
        raise UserError(f"{path}: {name} or logits contains nan or infinity; {AGAIN} from images whose features are finite")
    largest = max(float(max(one.max(initial=0), -one.min(initial=0))) for one in (features, logits))  # `abs` would be a copy
    if largest > HIGHEST:
        raise UserError(f"{path}: {name} or logits has values up to {largest:.3g}, more than features can have ({HIGHEST:.0e}); {AGAIN}")
    return torch.from_numpy(features.astype(np.float32, copy=False)), torch.from_numpy(logits.astype(np.float32, copy=False))


def classes_of(arrays: Mapping[str, np.ndarray]) -> tuple[int, ...]:
    """Returns images per class; empty if the file does not contain them, or if its labels are those of only some of the images."""
    counts, labels = (arrays.get(key, np.empty(0)) for key in OF_CLASSES)
    if counts.ndim == 1 and counts.dtype.kind in "iu" and (counts >= 0).all():
        return tuple(counts.tolist())
    of_all = "arr_0" in arrays and not arrays.keys() & {"mu", "raw_mean", "features", "feats"}
    if not of_all or labels.dtype.kind not in "iu" or labels.shape != arrays["arr_0"].shape[:1]:
        return ()
    if not len(labels) or labels.min() < 0 or labels.max() >= MOST_CLASSES:
        return ()
    return tuple(np.bincount(labels.astype(np.int64)).tolist())


def write_statistics(path: Path, features: FeatureSet, moments_only: bool, facts: dict[str, object]) -> None:
    """Atomically writes a file for `read_statistics` and for every program that reads TTUR's files.

    Args:
        path: path of the .npz.
        features: the features to write.
        moments_only: write no features and logits. The size of the file is then independent of the number of images: 32 MiB for
            2048 dimensions, and kilobytes for 64.
        facts: additional text, numbers, lists of numbers, or mappings (written as JSON).
    """
    arrays: dict[str, Any] = {**features.moments, "num_images": np.array(len(features))}
    if not moments_only:
        arrays |= {"features": features.features.numpy(), "logits": features.logits.numpy()}
    arrays |= {key: np.array(json.dumps(value) if isinstance(value, dict) else value) for key, value in facts.items()}
    held = io.BytesIO()
    np.savez(held, **arrays)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, held.getbuffer())
