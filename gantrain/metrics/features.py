"""Feature extractors: uint8 images to feature vectors and class logits."""

from __future__ import annotations

import hashlib
import json
import warnings
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlparse

import torch
import torch.nn.functional as F
from safetensors.torch import load as load_safetensors
from torch import Tensor, nn

from gantrain.errors import UserError, check, one_line
from gantrain.metrics.metric import Extractor, FeatureExtractor

HERE = Path(__file__).parent
DIGITS_WEIGHTS = HERE / "digits_classifier.safetensors"
DIGITS_RECORD = HERE / "digits_classifier.json"


@dataclass(frozen=True)
class InceptionFeatures(FeatureExtractor):
    """Inception-v3 as FID and IS were defined on it (torch-fidelity's port, "inception-v3-compat"), 2048 features.

    Attributes:
        weights: path of the weights (.pth as torch-fidelity publishes them, or .safetensors); null takes them from
            torch's hub folder, downloading them first where they are missing.
        layer: feature layer, "2048" as published; "64", "192" and "768" are cheaper and compare with nothing.
    """

    weights: str | None = None
    layer: str = "2048"

    def __post_init__(self) -> None:
        check(self, "layer", self.layer in ("64", "192", "768", "2048"), "must be one of 64, 192, 768, 2048")

    @property
    def metric_prefix(self) -> str:
        """Bare metric names belong to the 2048 features alone."""
        return "" if self.layer == "2048" else f"inception{self.layer}_"

    def fetch(self) -> None:
        """Download the weights if they are needed and missing; to be called by one process first."""
        inception_weights_path(self.weights)

    def build(self, device: torch.device) -> Extractor:
        path = inception_weights_path(self.weights)
        state, digest = read_weights(path)
        network = build_inception(state, path, self.layer).to(device)

        def extract(images: Tensor) -> tuple[Tensor, Tensor]:
            features, logits = network(images.expand(-1, 3, -1, -1).contiguous())
            return features.float(), logits.float()

        return Extractor(extract, f"inception-v3-compat/{self.layer}/{digest}")


@dataclass(frozen=True)
class DigitsFeatures(FeatureExtractor):
    """A small classifier of handwritten digits that ships with gantrain: 64 features, for the embedded data.

    Its scores say how runs on digits compare with each other; they compare with nothing else.
    """

    metric_prefix = "digits_"

    def build(self, device: torch.device) -> Extractor:
        data = DIGITS_WEIGHTS.read_bytes()
        digest, wanted = hashlib.sha256(data).hexdigest(), json.loads(DIGITS_RECORD.read_text())["sha256"]
        if digest != wanted:
            raise UserError(f"{DIGITS_WEIGHTS}: its SHA-256 {digest} is not the recorded {wanted}; install gantrain again")
        network = DigitsClassifier()
        network.load_state_dict(load_safetensors(data))
        network.to(device).eval().requires_grad_(False)
        return Extractor(network, f"digits-classifier/64/{digest}")


class DigitsClassifier(nn.Module):
    """Three convolutions, mean over positions, one linear map: uint8 `[N, C, H, W]` to (features `[N, 64]`, logits `[N, 10]`).

    Images are taken to grey and to 16x16.
    """

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 28, 3, padding=1)
        self.conv2 = nn.Conv2d(28, 56, 3, padding=1)
        self.conv3 = nn.Conv2d(56, 64, 3, padding=1)
        self.out = nn.Linear(64, 10)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        x = images.float().mean(dim=1, keepdim=True) / 255
        if x.shape[-2:] != (16, 16):
            x = F.interpolate(x, size=(16, 16), mode="bilinear", antialias=True)
        x = F.max_pool2d(F.relu(self.conv1(x)), 2)
        x = F.max_pool2d(F.relu(self.conv2(x)), 2)
        features = F.relu(self.conv3(x)).mean(dim=(2, 3))
        return features, self.out(features)


def inception_weights_path(weights: str | None) -> Path:
    """Where the Inception weights are; downloads torch-fidelity's into torch's hub folder when none are given.

    Raises:
        UserError: the given file is not there, or the download failed: names the URL, the target and the option.
    """
    if weights is not None:
        path = Path(weights).expanduser()
        if not path.is_file():
            raise UserError(f"eval.features.weights: there is no file {weights!r}")
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
                f"eval.features: Inception weights could not be fetched ({one_line(error)}); get {URL_INCEPTION_V3} where there is"
                f" network and put it into {path.parent}, or give its path as eval.features.weights=PATH"
            ) from error
    return path


def read_weights(path: Path) -> tuple[dict[str, Tensor], str]:
    """A state dictionary and the SHA-256 of its file. Only tensors are read: no code in the file can run.

    Raises:
        UserError: the file holds something else.
    """
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    try:
        if path.suffix == ".safetensors":
            return load_safetensors(path.read_bytes()), digest
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what torch thinks of a pickle's protocol is no help here
            state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # whatever a damaged or hostile file provokes, it is the file's fault
        raise UserError(
            f"{path}: holds no weights that can be read safely ({type(error).__name__}); give torch-fidelity's .pth or a .safetensors"
        ) from error
    if not isinstance(state, dict) or not all(isinstance(k, str) and isinstance(t, Tensor) for k, t in state.items()):
        raise UserError(f"{path}: holds no dictionary of weights; give torch-fidelity's .pth or a .safetensors")
    return state, digest


def build_inception(state: dict[str, Tensor], path: Path, layer: str) -> nn.Module:
    """torch-fidelity's Inception with the given weights, giving (features, unbiased logits).

    The constructor fetches its weights itself, by a load that may unpickle; it is handed ours instead.
    """
    from torch_fidelity import feature_extractor_inceptionv3 as module

    fetch = module.load_state_dict_from_url
    module.load_state_dict_from_url = lambda url, progress=True: state
    try:
        return module.FeatureExtractorInceptionV3("inception-v3-compat", [layer, "logits_unbiased"], verbose=False)
    except RuntimeError as error:
        raise UserError(f"{path}: these are not the weights of inception-v3-compat ({one_line(error)[:120]})") from error
    finally:
        module.load_state_dict_from_url = fetch
