"""Feature extractors, which map uint8 images to feature vectors and class logits."""

from __future__ import annotations

import hashlib
import io
import json
import warnings
import zipfile
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlparse

import torch
import torch.nn.functional as F
from safetensors.torch import load as load_safetensors
from torch import Tensor, nn

from gantrain.errors import UserError, check, in_words, one_line
from gantrain.home import expand_user
from gantrain.metrics.metric import Extractor, FeatureExtractor
from gantrain.regular_file import check_regular, read_regular

HERE = Path(__file__).parent
DIGITS_WEIGHTS = HERE / "digits_classifier.safetensors"
DIGITS_RECORD = HERE / "digits_classifier.json"
MOST_WEIGHTS = 2**30  # of a file of weights, packed and unpacked; Inception's have 91 MB
REMEDY = "use torch-fidelity's .pth or a .safetensors"
DIGITS_IDENTITY = "digits-classifier/64/"  # begins the identity of the digits extractor


@dataclass(frozen=True)
class InceptionFeatures(FeatureExtractor):
    """The Inception-v3 for which FID and IS were defined (torch-fidelity's port "inception-v3-compat"), with 2048 features.

    Attributes:
        weights: path of the weights, a .pth as published by torch-fidelity or a .safetensors; null uses torch's hub folder
            and downloads them (91 MB) if they are missing.
        layer: feature layer, named by its width: "2048" as published, or "64", "192" or "768", which are cheaper but not
            comparable with published scores.
    """

    weights: str | None = None
    layer: str = "2048"

    def __post_init__(self) -> None:
        check(self, "layer", self.layer in ("64", "192", "768", "2048"), "must be one of 64, 192, 768, 2048")

    @property
    def metric_prefix(self) -> str:
        """Prefix of score names: empty for the 2048 features, which alone have the bare names."""
        return "" if self.layer == "2048" else f"inception{self.layer}_"

    def fetch(self) -> None:
        """Download the weights if they are missing. One process calls this before the others call `build`."""
        inception_weights_path(self.weights)

    def build(self, device: torch.device) -> Extractor:
        """Load the network onto a device.

        Raises:
            UserError: the weights are missing, cannot be downloaded, or are not those of this network.
        """
        path = inception_weights_path(self.weights)
        state, digest = read_weights(path)
        network = build_inception(state, path, self.layer).to(device)

        def extract(images: Tensor) -> tuple[Tensor, Tensor]:
            """Features and logits of uint8 images of 1 or 3 channels."""
            features, logits = network(images.expand(-1, 3, -1, -1).contiguous())
            return features.float(), logits.float()

        return Extractor(extract, f"inception-v3-compat/{self.layer}/{digest}")


@dataclass(frozen=True)
class DigitsFeatures(FeatureExtractor):
    """A small classifier of handwritten digits that ships with gantrain, with 64 features, for the digits data set.

    Its scores compare runs on digits with each other; they are not comparable with any other scores.
    """

    metric_prefix = "digits_"
    made_for = "digits"

    def build(self, device: torch.device) -> Extractor:
        """Load the network onto a device.

        Raises:
            UserError: the installed weights are damaged.
        """
        data = DIGITS_WEIGHTS.read_bytes()
        digest, wanted = hashlib.sha256(data).hexdigest(), json.loads(DIGITS_RECORD.read_text(encoding="utf-8"))["sha256"]
        if digest != wanted:
            raise UserError(f"{DIGITS_WEIGHTS}: is damaged: its SHA-256 is {digest}, not {wanted}; reinstall gantrain")
        network = DigitsClassifier()
        network.load_state_dict(load_safetensors(data))
        network.to(device).eval().requires_grad_(False)
        return Extractor(network, f"{DIGITS_IDENTITY}{digest}")


class DigitsClassifier(nn.Module):
    """Three convolutions, a mean over positions and a linear layer. Images are converted to grey and resized to 16x16."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 28, 3, padding=1)
        self.conv2 = nn.Conv2d(28, 56, 3, padding=1)
        self.conv3 = nn.Conv2d(56, 64, 3, padding=1)
        self.out = nn.Linear(64, 10)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """uint8 `[N, C, H, W]` to (features `[N, 64]`, logits `[N, 10]`)."""
        x = images.float().mean(dim=1, keepdim=True) / 255
        if x.shape[-2:] != (16, 16):
            x = F.interpolate(x, size=(16, 16), mode="bilinear", antialias=True)
        x = F.max_pool2d(F.relu(self.conv1(x)), 2)
        x = F.max_pool2d(F.relu(self.conv2(x)), 2)
        features = F.relu(self.conv3(x)).mean(dim=(2, 3))
        return features, self.out(features)


def inception_weights_path(weights: str | None) -> Path:
    """Returns the path of the Inception weights; if `weights` is None, downloads torch-fidelity's into torch's hub folder.

    Raises:
        UserError: the given file is missing, or the download failed; the message names the URL, the target and the key to set.
    """
    if weights is not None:
        path = expand_user(weights, "eval.features.weights")
        try:
            check_regular(path, MOST_WEIGHTS)
        except (OSError, ValueError) as error:  # ValueError: a zero byte
            why = error.strerror if isinstance(error, OSError) else one_line(error)
            raise UserError(
                f"eval.features.weights: {weights!r} is not a file of weights ({why});"
                " pass the path of the weights, or null to download them"
            ) from None
        return path
    from torch_fidelity.feature_extractor_inceptionv3 import URL_INCEPTION_V3

    name = Path(urlparse(URL_INCEPTION_V3).path).name
    path = Path(torch.hub.get_dir()) / "checkpoints" / name
    if not path.is_file():
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            torch.hub.download_url_to_file(URL_INCEPTION_V3, str(path), hash_prefix=path.stem.rpartition("-")[2], progress=False)
        except (OSError, RuntimeError) as error:
            raise UserError(
                f"eval.features: Inception weights could not be downloaded ({one_line(error)}); download {URL_INCEPTION_V3} on a machine"
                f" with network access and put it into {path.parent}, or set eval.features.weights=PATH"
            ) from error
    return path


def read_weights(path: Path) -> tuple[dict[str, Tensor], str]:
    """Returns a state dictionary and the SHA-256 of its file. Only tensors are read, so no code in the file can run.

    Raises:
        UserError: the file is not a state dictionary of tensors, or is too large for one.
    """
    try:
        data = read_regular(path, MOST_WEIGHTS)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror or one_line(error)}); {REMEDY}") from None
    digest = hashlib.sha256(data).hexdigest()
    try:
        if path.suffix == ".safetensors":
            return load_safetensors(data), digest
        whole = unpacked_size(data)
        if whole <= MOST_WEIGHTS:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # torch warns about the pickle protocol of foreign files
                file = io.BytesIO(data)
                state = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged or hostile file can raise anything
        raise UserError(f"{path}: contains no weights that can be read safely ({type(error).__name__}); {REMEDY}") from error
    if whole > MOST_WEIGHTS:
        raise UserError(f"{path}: would be unpacked to {in_words(whole)}, and {in_words(MOST_WEIGHTS)} is the most; {REMEDY}")
    if not isinstance(state, dict) or not all(isinstance(k, str) and isinstance(t, Tensor) for k, t in state.items()):
        raise UserError(f"{path}: is not a dictionary of weights; {REMEDY}")
    return state, digest


def unpacked_size(data: bytes) -> int:
    """How many bytes a .pth unpacks to, which is a zip in the newer of torch's formats."""
    if not zipfile.is_zipfile(io.BytesIO(data)):
        return len(data)
    with zipfile.ZipFile(io.BytesIO(data)) as opened:
        return sum(member.file_size for member in opened.infolist())


def build_inception(state: dict[str, Tensor], path: Path, layer: str) -> nn.Module:
    """Returns torch-fidelity's Inception with the given weights; it maps images to (features, unbiased logits).

    Its constructor loads weights itself, in a way that may unpickle code, so its loader is replaced for the duration of the call.

    Raises:
        UserError: the weights are those of another network.
    """
    from torch_fidelity import feature_extractor_inceptionv3 as module

    fetch = module.load_state_dict_from_url
    module.load_state_dict_from_url = lambda url, progress=True: state
    try:
        return module.FeatureExtractorInceptionV3("inception-v3-compat", [layer, "logits_unbiased"], verbose=False)
    except Exception as error:  # damaged weights have other types, shapes and names
        raise UserError(
            f"{path}: these are not the weights of inception-v3-compat ({one_line(error)[:120]}); use torch-fidelity's"
        ) from error
    finally:
        module.load_state_dict_from_url = fetch
