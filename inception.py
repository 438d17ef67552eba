"""inception.py: the network behind FID and KID: weights, layers, and its features of images.

FID is defined by one particular network. It is not torchvision's Inception-v3 but Google's of
December 2015, which pytorch-fid (github.com/mseitzer/pytorch-fid) ported to PyTorch. The network
can be read at four depths:

    features   read after   map
          64   maxpool1     (N, 64, 73, 73)
         192   maxpool2     (N, 192, 35, 35)
         768   Mixed_6e     (N, 768, 17, 17)
        2048   Mixed_7c     (N, 2048, 8, 8)     the usual one: "FID" without a number

A feature is the mean of one channel of that map. The weights (91 MB) are downloaded once, into
torch hub's folder.
"""

import contextlib
import functools
import hashlib
import socket
import sys
from collections import OrderedDict
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
import torchvision
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval
from torchvision.models import inception as tv
from tqdm import tqdm

import datasets
from datasets import layout
from sources import InputError, remove_half_written, short, write_atomic

STAGES = {  # number of features: the layers between the previous features and these
    64: ["Conv2d_1a_3x3", "Conv2d_2a_3x3", "Conv2d_2b_3x3", "maxpool1"],
    192: ["Conv2d_3b_1x1", "Conv2d_4a_3x3", "maxpool2"],
    768: [f"Mixed_{name}" for name in ("5b", "5c", "5d", "6a", "6b", "6c", "6d", "6e")],
    2048: ["Mixed_7a", "Mixed_7b", "Mixed_7c"],
}
DIMS = tuple(STAGES)

# --------------------------------------------------------------------------------------- weights

OFFICIAL = "pt_inception-2015-12-05-6726825d.pth"
SHA256 = "6726825d"  # the first digits, which the file carries in its name
URL = f"https://github.com/mseitzer/pytorch-fid/releases/download/fid_weights/{OFFICIAL}"


class MissingWeights(InputError):
    """The Inception weights are absent or damaged, or stop before the layers that are needed."""


class Weights(NamedTuple):
    state: dict  # state dict; torchvision and pytorch-fid use the same key names
    name: str  # file name and the first digits of its sha256, for protocol lines


def official_path():
    """Where the official weights lie, or will lie after the download."""
    return Path(torch.hub.get_dir()) / "checkpoints" / OFFICIAL


def by_hand():
    """How to get the weights without our download, in words."""
    return f"get {URL} and put it at {official_path()}, or name it with --weights"


@functools.cache  # without a network, one attempt per program is enough
def download():
    """Download the official file into torch hub's folder. Returns "", or why it failed."""
    timeout = socket.getdefaulttimeout()
    socket.setdefaulttimeout(20)  # a firewall that swallows packets must not hang a training run
    try:
        official_path().parent.mkdir(parents=True, exist_ok=True)
        print(f"downloading {OFFICIAL} (91 MB)", file=sys.stderr)
        progress = sys.stderr.isatty()
        torch.hub.download_url_to_file(URL, str(official_path()), SHA256, progress=progress)
        return ""
    except Exception as error:  # no network, timeout, full disk, wrong hash: all end up here
        return short(error)
    finally:
        socket.setdefaulttimeout(timeout)


def load_weights(path=None):
    """Load the weights from `path`, or the official ones, which are downloaded once.

    Returns Weights. Raises MissingWeights (one line) if there is no file, or if it is damaged or
    holds another network.
    """
    if path is None and not official_path().exists():
        problem = download()
        if problem:
            problem = f"could not download the Inception weights ({problem})"
            raise MissingWeights(f"{problem}: {by_hand()}")
    path = Path(path or official_path())
    if not path.is_file():
        raise MissingWeights(f"no Inception weights '{path}': {by_hand()}")
    try:
        digest = hashlib.sha256(path.read_bytes()).hexdigest()[:8]
        if path.name == OFFICIAL and digest != SHA256:
            raise ValueError("wrong sha256")
        state = torch.load(path, map_location="cpu", weights_only=True)
        if not isinstance(state, dict) or not all(isinstance(key, str) for key in state):
            raise ValueError("it holds no named weights")
        if state["Conv2d_1a_3x3.conv.weight"].shape != (32, 3, 3, 3):
            raise ValueError("the first layer has another shape")
    except Exception as error:  # torch.load fails in many ways on a file that is not its own
        words = short(error).partition(". ")[0]  # torch goes on to advise against weights_only
        problem = f"'{path}' is damaged or not the FID Inception ({words})"
        raise MissingWeights(f"{problem}: {by_hand()}") from None
    return Weights(state, f"{path.name}, sha256 {digest}")


def require(weights, dim):
    """Raise MissingWeights unless `weights` has every layer that `dim` features need."""
    present = {key.split(".")[0] for key in weights.state}
    for width, layers in STAGES.items():
        if width > dim:
            break
        for name in layers:
            if name not in present and not name.startswith("maxpool"):  # a pool has no weights
                problem = f"{weights.name} lacks {name}, which {dim}-d features need"
                raise MissingWeights(f"{problem}: {by_hand()}")


def reachable(dims, weights):
    """Which of `dims` do the weights reach? -> (weights, list of those, {other: reason}).

    weights: Weights, a path, or None for the official file; they come back as Weights if they can
    be read.
    """
    usable = []
    reasons = {}
    for dim in dims:
        try:
            if not isinstance(weights, Weights):
                weights = load_weights(weights)
            require(weights, dim)
            usable.append(dim)
        except MissingWeights as error:
            reasons[dim] = str(error)
    return weights, usable, reasons


# --------------------------------------------------------------------------------------- network
#
# torchvision has the same layers. FID's network differs in the pools inside the blocks: TensorFlow
# does not count the padding in an average, and the last block takes a maximum where the paper has
# an average.

average_pool = functools.partial(
    F.avg_pool2d, kernel_size=3, stride=1, padding=1, count_include_pad=False
)
max_pool = functools.partial(F.max_pool2d, kernel_size=3, stride=1, padding=1)


class InceptionA(tv.InceptionA):
    def forward(self, x):
        b5 = self.branch5x5_2(self.branch5x5_1(x))
        b3 = self.branch3x3dbl_3(self.branch3x3dbl_2(self.branch3x3dbl_1(x)))
        pooled = self.branch_pool(average_pool(x))
        return torch.cat([self.branch1x1(x), b5, b3, pooled], 1)


class InceptionC(tv.InceptionC):
    def forward(self, x):
        b7 = self.branch7x7_3(self.branch7x7_2(self.branch7x7_1(x)))
        b77 = self.branch7x7dbl_3(self.branch7x7dbl_2(self.branch7x7dbl_1(x)))
        b77 = self.branch7x7dbl_5(self.branch7x7dbl_4(b77))
        pooled = self.branch_pool(average_pool(x))
        return torch.cat([self.branch1x1(x), b7, b77, pooled], 1)


class InceptionE(tv.InceptionE):
    pool = staticmethod(average_pool)

    def forward(self, x):
        b3 = self.branch3x3_1(x)
        b33 = self.branch3x3dbl_2(self.branch3x3dbl_1(x))
        b3 = [self.branch3x3_2a(b3), self.branch3x3_2b(b3)]
        b33 = [self.branch3x3dbl_3a(b33), self.branch3x3dbl_3b(b33)]
        pooled = self.branch_pool(self.pool(x))
        return torch.cat([self.branch1x1(x), *b3, *b33, pooled], 1)


BLOCKS = [tv.BasicConv2d, InceptionA, tv.InceptionB, InceptionC, tv.InceptionD, InceptionE, None]


def inception(deepest, weights):
    """The network up to `deepest` features, ready for inference: {features: nn.Sequential}.

    Each stage continues where the one before it ends. Raises MissingWeights if the weights do not
    reach that far.
    """
    require(weights, deepest)
    with torch.device("meta"):  # neither memory nor random weights: everything is loaded below
        network = torchvision.models.inception_v3(
            weights=None,
            num_classes=1008,
            aux_logits=False,
            init_weights=False,
            inception_blocks=BLOCKS,
        ).eval()
    network.Mixed_7c.pool = max_pool
    stages = {}
    for dim, names in STAGES.items():
        if dim > deepest:
            break
        stage = nn.Sequential(OrderedDict((name, getattr(network, name)) for name in names))
        state = {key: x for key, x in weights.state.items() if key.split(".")[0] in names}
        try:
            stage.load_state_dict(state, assign=True)
        except RuntimeError as error:  # a key or a shape that FID's network does not have
            problem = f"{weights.name} is not the FID Inception ({short(error)})"
            raise MissingWeights(f"{problem}: {by_hand()}") from None
        for layer in stage.modules():
            if isinstance(layer, tv.BasicConv2d):
                # At inference BatchNorm scales and shifts each channel by fixed numbers: let the
                # filters do it.
                layer.conv = fuse_conv_bn_eval(layer.conv, layer.bn)
                layer.bn = nn.Identity()
        stages[dim] = stage.requires_grad_(False)
    return stages


# --------------------------------------------------------------------------------------- features


def features(
    images,
    dims=(2048,),
    weights=None,
    device="cpu",
    precision="fp32",
    batch=32,
    words="features",
):
    """Features of images: uint8 (N, C, H, W), C = 1 or 3 -> {dim: float32 (N, dim) numpy array}.

    Each feature is the mean over positions of one channel. All `dims` are read in one pass.
    weights: Weights, a path, or None for the official file. precision: "fp32", or "bf16" for the
    network alone. words: the label of the progress bar.
    Raises MissingWeights if the weights do not reach the largest of `dims`.
    """
    is_uint8 = images.dtype == torch.uint8
    if not is_uint8 or images.ndim != 4 or images.shape[1] not in (1, 3) or not dims:
        shape = f"{images.dtype} {tuple(images.shape)}"
        raise InputError(f"features need uint8 images (N, 1 or 3, H, W), not {shape}")
    if not isinstance(weights, Weights):
        weights = load_weights(weights)
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    stages = inception(max(dims), weights)
    for stage in stages.values():
        stage.to(device, dtype, memory_format=layout(device))
    result = {dim: np.empty((len(images), dim), np.float32) for dim in dims}
    # GPUs round the factors of fp32 convolutions to TF32 (10 bits) unless told not to.
    exact = torch.backends.cudnn.flags(enabled=True, benchmark=False, allow_tf32=False)
    progress = tqdm(total=len(images), desc=words, unit="img", disable=None)
    with torch.inference_mode(), exact, progress:
        for start in range(0, len(images), batch):
            chunk = images[start : start + batch].to(device)
            x = chunk.expand(-1, 3, -1, -1).float() / 255
            # pytorch-fid's resize mixes nearest neighbours only: large images are not antialiased.
            x = F.interpolate(x, size=(299, 299), mode="bilinear", align_corners=False)
            x = (2 * x - 1).to(dtype=dtype, memory_format=layout(device))
            for dim, stage in stages.items():
                x = stage(x)
                if dim in result:
                    means = x.float().mean((2, 3))
                    result[dim][start : start + batch] = means.cpu().numpy()
            progress.update(len(chunk))
    return result


def features_words(dim, weights, precision="fp32"):
    """The part of a protocol that describes the features."""
    source = f"{dim}-d FID Inception features ({weights.name}; {precision})"
    return f"{source}, pixels resized to 299x299 bilinear, not antialiased"


def moments(x):
    """Features (N, d) -> their mean, float64 (d,), and covariance, float64 (d, d)."""
    if len(x) < 2 or not np.isfinite(x).all():
        raise InputError(f"no covariance of {len(x)} features: they are not finite, or too few")
    mean = x.mean(0, dtype=np.float64)
    return mean, covariance(x, mean)


def covariance(x, mean):
    """(N, d) -> float64 (d, d), divisor N-1. Works in chunks, so memory does not grow with N."""
    total = np.zeros((x.shape[1], x.shape[1]))
    for start in range(0, len(x), 4096):
        centred = x[start : start + 4096] - mean
        total += centred.T @ centred
    return total / (len(x) - 1)


def read_statistics(path):
    """mu and sigma of an .npz file, float64, or None if `path` is something else."""
    if not (path.lower().endswith(".npz") and Path(path).is_file()):
        return None
    try:
        with np.load(path, allow_pickle=False) as file:
            if not {"mu", "sigma"} <= set(file.files) or "images" in file.files:
                return None
            if max(member.file_size for member in file.zip.infolist()) > 2**27:
                raise ValueError("too large")
            if {file["mu"].dtype.kind, file["sigma"].dtype.kind} - set("fiu"):
                raise ValueError("mu and sigma must be real numbers")
            mean = file["mu"].astype(np.float64)
            sigma = file["sigma"].astype(np.float64)
    except Exception as error:  # zipfile, zlib, ValueError, EOFError ... all mean the same
        raise InputError(f"'{path}' is not a readable .npz file ({short(error)})") from None
    d = mean.size
    if d not in DIMS or mean.shape != (d,) or sigma.shape != (d, d):
        shapes = f"mu {mean.shape} and sigma {sigma.shape}"
        raise InputError(f"'{path}' has {shapes}, and not (d,) and (d, d) with d one of {DIMS}")
    finite = all(np.abs(values).max() < 1e30 for values in (mean, sigma))  # not NaN either
    if not finite or sigma.diagonal().min() < 0 or not np.allclose(sigma, sigma.T):
        raise InputError(f"'{path}' has no finite mu, or a sigma that is no covariance")
    return mean, sigma


# ------------------------------------------------------------------------ features of real images
#
# A run that is evaluated every few epochs has the same real images every time.

_remembered = {}  # the newest results of real_features()


def digest(array):
    """sha256 of the shape and the bytes of a tensor or array."""
    array = np.ascontiguousarray(array)
    result = hashlib.sha256(str(array.shape).encode())
    result.update(array)
    return result.hexdigest()


def real_features(images, dims, weights, device, precision, words):
    """features(), found again in memory and, by later programs, in data/features/.

    An image takes 8 KB on disk at 2048 features. The folder may be deleted at any time.
    weights: Weights; the other arguments as of features().
    """
    version = 2  # count up when features() changes
    kind = torch.device(device).type
    settings = f"{version} {sorted(dims)} {weights.name} {precision} {kind} {digest(images)}"
    if settings not in _remembered:
        name = hashlib.sha256(settings.encode()).hexdigest()[:24]
        path = datasets.DATA / "features" / f"{name}.npz"
        result = read_features(path, dims, len(images))
        if result is None:
            result = features(images, dims, weights, device, precision, words=words)
            write_features(path, result)
        _remembered[settings] = result
        if len(_remembered) > 32:
            del _remembered[next(iter(_remembered))]  # the oldest
    return _remembered[settings]


def read_features(path, dims, n):
    """{dim: float32 (n, dim)} from a file of write_features(); None if it is absent or damaged."""
    try:
        with np.load(path) as file:
            result = {dim: file[str(dim)] for dim in dims}
    except Exception:  # np.load fails in many ways on a damaged file
        return None
    complete = all(x.shape == (n, dim) for dim, x in result.items())
    return result if complete else None


def write_features(path, result):
    """Save features, unless they are not finite. A full or read-only disk costs time, no more."""

    def write(temporary):
        with open(temporary, "wb") as file:
            np.savez(file, **{str(dim): x for dim, x in result.items()})

    if all(np.isfinite(x).all() for x in result.values()):
        with contextlib.suppress(OSError):
            path.parent.mkdir(parents=True, exist_ok=True)
            remove_half_written(path.parent)
            write_atomic(path, write)
