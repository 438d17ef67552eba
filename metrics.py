"""metrics.py: how far are generated images from real ones? FID, KID, MS-SSIM, and a check for collapse.

FID   Frechet distance between two sets of images, each summed up by the mean and covariance of its Inception features.
      Low is good. Heusel et al. 2017, arxiv.org/abs/1706.08500
KID   squared kernel distance between the same features. Unbiased: its expectation does not depend on the number of
      images, and it may come out below zero. Low is good. Binkowski et al. 2018, arxiv.org/abs/1801.01401
MS-SSIM   how alike two pictures are at several scales, 1 for the same picture: the mean over pairs of a generated and a
      real image, and over pairs of generated ones, where much more than among real ones means collapse.
precision, recall, density, coverage   by nearest neighbours among the features: are pictures good, is a kind missing?
collapse   how many pairs of generated images are nearly the same picture, beside the same count for real images.

Which FID is this? A number called FID means nothing without four things, so every value here carries them in words:
  - The features. "FID" and "KID" are the standard: pytorch-fid's 2048 features, with its weights. The same network can
    be read earlier; FID-768 (an official option of pytorch-fid) has another scale and compares only with FID-768.
  - The number of images. FID falls as the number grows: compare 1,000 images with 1,000, never with 50,000.
  - The real images: which set, which part of it. `--floor` compares other real images with them, which is what a
    perfect generator would get.
  - The way from pixels to features: bytes, resized to 299x299 as pytorch-fid does (bilinear, not antialiased).

    python metrics.py cats64 runs/dcgan-cats64-1                   # a run: its best and its last checkpoint
    python metrics.py photos.zip generated/ --dims 768 --floor     # two folders, zips or .npz files
    python metrics.py shapes runs/*/last.pt --bootstrap 50         # several: one table, with standard errors
    python metrics.py shapes runs/dcgan-shapes-1 --eval-images 500 --json

The weights (91 MB) are downloaded once. From Python, `evaluate(real, fake)` measures everything; `features`, `fid`,
`kid`, `ms_ssim` and `collapse` are the parts.
"""

import argparse
import sys

DIMS = (64, 192, 768, 2048)  # where the network can be read


def parse_args(argv=None):
    parser = argparse.ArgumentParser(
        prog="metrics.py",
        description="FID, KID, MS-SSIM, precision, recall and collapse of generated images against real ones; and, if "
        "both sides are labelled, whether the class is obeyed.",
        epilog="A side is a data set's name, a folder, zip or .npz of images, a checkpoint (.pt) or a run directory: "
        "its best.pt and its last.pt (as REAL: the last).",
        allow_abbrev=False,
    )
    parser.error = lambda message: parser.exit(2, f"metrics.py: error: {message} (see --help)\n")  # one line
    add = parser.add_argument
    add("real", metavar="REAL", help="the reference side; of a data set with a test split, that split")
    add("fake", metavar="FAKE", nargs="+", help="the generated side; of several, a table")
    add("--eval-images", type=int, default=1000, metavar="N", help="images on each side (default 1000)")
    add("--dims", type=int, nargs="+", choices=DIMS, metavar="D", help="features: 64 192 768 2048 (default 768 2048)")
    add("--weights", metavar="FILE", help="Inception weights (default: torch hub's folder, downloaded if need be)")
    add("--size", type=int, metavar="N", help="side in pixels (default: the model's, or 64 if neither side is a model)")
    add("--seed", type=int, default=0, help="for the choice of images, latents, subsets and pairs (default 0)")
    add("--device", default="auto", help="auto, cpu, cuda, cuda:1 or mps (default auto)")
    add("--precision", choices=["fp32", "bf16"], default="fp32", help="of the network (default fp32)")
    add("--floor", action="store_true", help="also compare as many other real images with the real ones")
    add(
        "--bootstrap", type=int, default=0, metavar="B", help="standard errors of FID and KID from B resamples (try 50)"
    )
    add(
        "--no-classes", action="store_true", help="of labelled sides: leave out whether the class is obeyed, for which "
        "two classifiers are trained on thousands of images (minutes on a CPU)"
    )  # fmt: skip
    add("--json", action="store_true", help="print one JSON object")
    args = parser.parse_args(argv)
    if args.eval_images < 2:
        parser.error("--eval-images must be at least 2")
    if args.size is not None and args.size < 8:
        parser.error("--size must be at least 8")
    if args.bootstrap < 0 or args.bootstrap == 1:
        parser.error("--bootstrap must be at least 2 (0: none)")
    return args


if __name__ == "__main__":  # before the slow imports, so that --help and typing errors answer at once
    ARGS = parse_args()

import contextlib
import functools
import hashlib
import importlib
import json
import socket
from collections import OrderedDict
from pathlib import Path
from typing import NamedTuple

import numpy as np
import scipy.linalg
import torch
import torch.nn.functional as F
import torchvision
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval
from torchvision.models import inception as tv
from tqdm import tqdm

try:
    import datasets
    from datasets import InputError, layout, pick_device, random_labels, short, shuffled
except ImportError as problem:
    sys.exit(print(f"metrics.py: error: needs our datasets.py beside it ({problem})", file=sys.stderr) or 2)

# ---------------------------------------------------------------------------------------------- Inception's weights

OFFICIAL = "pt_inception-2015-12-05-6726825d.pth"  # its sha256 begins with 6726825d
URL = f"https://github.com/mseitzer/pytorch-fid/releases/download/fid_weights/{OFFICIAL}"


class MissingWeights(InputError):
    """The Inception weights are absent, broken, or stop before the layers that are needed."""


class Weights(NamedTuple):
    state: dict  # state dict, in the key names of torchvision's (and pytorch-fid's) Inception-v3
    name: str  # the file and the beginning of its sha256, for protocol lines


def official_path():
    return Path(torch.hub.get_dir()) / "checkpoints" / OFFICIAL


def by_hand():
    return f"get {URL} and put it at {official_path()}, or name it with --weights"


@functools.cache  # without a network, the first attempt of a run is the only one
def download():
    """Fetch the official file into torch hub's folder. Returns "" or, in one line, why it failed."""
    old = socket.getdefaulttimeout()
    socket.setdefaulttimeout(20)  # a firewall that swallows packets must not hang a training run
    try:
        official_path().parent.mkdir(parents=True, exist_ok=True)
        print(f"metrics.py: downloading {OFFICIAL} (91 MB)", file=sys.stderr)
        torch.hub.download_url_to_file(URL, str(official_path()), "6726825d", progress=sys.stderr.isatty())
        return ""
    except Exception as error:  # URLError, HTTPError, timeout, full disk, wrong hash: to the user, all the same
        return short(error)
    finally:
        socket.setdefaulttimeout(old)


def load_weights(path=None):
    """Weights from `path`, or the official ones from torch hub's folder, downloaded if they are not there.
    Raises MissingWeights (one line) if there is no file, or if it is damaged or of another network."""
    if path is None and not official_path().exists() and (why := download()):
        raise MissingWeights(f"could not download the Inception weights ({why}): {by_hand()}")
    path = Path(path or official_path())
    if not path.is_file():
        raise MissingWeights(f"no Inception weights '{path}': {by_hand()}")
    try:
        digest = hashlib.sha256(path.read_bytes()).hexdigest()[:8]
        if path.name == OFFICIAL and digest != "6726825d":
            raise ValueError("wrong sha256")
        state = torch.load(path, map_location="cpu", weights_only=True)
        if state["Conv2d_1a_3x3.conv.weight"].shape != (32, 3, 3, 3):
            raise ValueError("another network's first layer")
    except Exception as error:  # torch.load has many ways to fail on a file that is not its own
        raise MissingWeights(f"'{path}' is damaged or no FID Inception ({short(error)}): {by_hand()}") from None
    return Weights(state, f"{path.name}, sha256 {digest}")


# ---------------------------------------------------------------------------------------------- Inception's features
#
# FID's network is not torchvision's Inception: it is Google's of December 2015, ported to PyTorch by pytorch-fid. The
# layers are the same but for the pools inside the blocks, in which TensorFlow does not count the padding, and for the
# last block, which takes a maximum where the paper has an average.

average = functools.partial(F.avg_pool2d, kernel_size=3, stride=1, padding=1, count_include_pad=False)
maximum = functools.partial(F.max_pool2d, kernel_size=3, stride=1, padding=1)


class InceptionA(tv.InceptionA):
    def forward(self, x):
        b5 = self.branch5x5_2(self.branch5x5_1(x))
        b3 = self.branch3x3dbl_3(self.branch3x3dbl_2(self.branch3x3dbl_1(x)))
        return torch.cat([self.branch1x1(x), b5, b3, self.branch_pool(average(x))], 1)


class InceptionC(tv.InceptionC):
    def forward(self, x):
        b7 = self.branch7x7_3(self.branch7x7_2(self.branch7x7_1(x)))
        b77 = self.branch7x7dbl_3(self.branch7x7dbl_2(self.branch7x7dbl_1(x)))
        b77 = self.branch7x7dbl_5(self.branch7x7dbl_4(b77))
        return torch.cat([self.branch1x1(x), b7, b77, self.branch_pool(average(x))], 1)


class InceptionE(tv.InceptionE):
    pool = staticmethod(average)

    def forward(self, x):
        b3 = self.branch3x3_1(x)
        b33 = self.branch3x3dbl_2(self.branch3x3dbl_1(x))
        b3 = [self.branch3x3_2a(b3), self.branch3x3_2b(b3)]
        b33 = [self.branch3x3dbl_3a(b33), self.branch3x3dbl_3b(b33)]
        return torch.cat([self.branch1x1(x), *b3, *b33, self.branch_pool(self.pool(x))], 1)


STAGES = {  # width of the features -> the layers between the previous features and these; what comes out of them
    64: ["Conv2d_1a_3x3", "Conv2d_2a_3x3", "Conv2d_2b_3x3", "maxpool1"],  # (N, 64, 73, 73)
    192: ["Conv2d_3b_1x1", "Conv2d_4a_3x3", "maxpool2"],  # (N, 192, 35, 35)
    768: [f"Mixed_{name}" for name in "5b 5c 5d 6a 6b 6c 6d 6e".split()],  # (N, 768, 17, 17)
    2048: ["Mixed_7a", "Mixed_7b", "Mixed_7c"],  # (N, 2048, 8, 8)
}


def require(weights, dim):
    """Raise MissingWeights unless `weights` has every layer that features of width `dim` need."""
    present = {key.split(".")[0] for key in weights.state}
    for width, layers in STAGES.items():
        lacking = [name for name in layers if name not in present and not name.startswith("maxpool")]
        if width <= dim and lacking:
            raise MissingWeights(f"{weights.name} lacks {lacking[0]}, which {dim}-d features need: {by_hand()}")


def inception(deepest, weights):
    """The stages of the network up to the features of width `deepest`, ready for inference: {width: nn.Sequential}."""
    require(weights, deepest)
    with torch.device("meta"):  # neither memory nor random weights: everything is loaded below
        blocks = [tv.BasicConv2d, InceptionA, tv.InceptionB, InceptionC, tv.InceptionD, InceptionE, None]
        options = dict(weights=None, num_classes=1008, aux_logits=False, init_weights=False, inception_blocks=blocks)
        network = torchvision.models.inception_v3(**options).eval()
    network.Mixed_7c.pool = maximum
    stages = {}
    for dim, names in STAGES.items():
        if dim > deepest:
            break
        stage = nn.Sequential(OrderedDict((name, getattr(network, name)) for name in names))
        state = {key: value for key, value in weights.state.items() if key.split(".")[0] in names}
        try:
            stage.load_state_dict(state, assign=True)
        except RuntimeError as error:  # a key or a shape that is not the FID Inception's
            raise MissingWeights(f"{weights.name} is no FID Inception ({short(error)}): {by_hand()}") from None
        for layer in stage.modules():
            if isinstance(layer, tv.BasicConv2d):
                # At inference BatchNorm is a fixed scale and shift of each channel: scale the filters instead.
                layer.conv, layer.bn = fuse_conv_bn_eval(layer.conv, layer.bn), nn.Identity()
        stages[dim] = stage.requires_grad_(False)
    return stages


def features(images, dims=(2048,), weights=None, device="cpu", precision="fp32", batch=32, words="features"):
    """Inception features of images: uint8 (N, C, H, W), C = 1 or 3 -> {dim: float32 (N, dim) numpy array}.

    Each is the mean over positions of what comes out of a stage. All `dims` are read in one pass.
    weights: Weights, a path, or None for the official file. precision: "fp32", or "bf16" for the network alone.
    Raises MissingWeights if the weights do not reach the largest of `dims`.
    """
    if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[1] not in (1, 3) or not dims:
        raise InputError(f"features need uint8 images (N, 1 or 3, H, W), not {images.dtype} {tuple(images.shape)}")
    weights = weights if isinstance(weights, Weights) else load_weights(weights)
    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16}[precision]
    stages = inception(max(dims), weights)
    for stage in stages.values():
        stage.to(device, dtype, memory_format=layout(device))
    found = {dim: np.empty((len(images), dim), np.float32) for dim in dims}
    # GPUs round fp32 convolutions to TF32 (10 bits) unless told not to; then fp32 would mean another thing there.
    exact = torch.backends.cudnn.flags(enabled=True, benchmark=False, allow_tf32=False)
    with torch.inference_mode(), exact, tqdm(total=len(images), desc=words, unit="img", disable=None) as bar:
        for start in range(0, len(images), batch):
            x = images[start : start + batch].to(device).expand(-1, 3, -1, -1).float() / 255
            # pytorch-fid's resize: neighbours only, in both directions, so a large image shrinks without antialiasing
            x = 2 * F.interpolate(x, size=(299, 299), mode="bilinear", align_corners=False) - 1
            x = x.to(dtype=dtype, memory_format=layout(device))
            for dim, stage in stages.items():
                x = stage(x)
                if dim in found:
                    found[dim][start : start + batch] = x.float().mean((2, 3)).cpu().numpy()
            bar.update(min(batch, len(images) - start))
    return found


# -------------------------------------------------------------------------------------------------------------- FID


def checked(real, fake):
    """Two feature arrays (N, d) and (M, d) as numpy arrays, or InputError if no distance can be made of them."""
    real, fake = np.asarray(real), np.asarray(fake)
    if real.ndim != 2 or fake.ndim != 2 or real.shape[1] != fake.shape[1]:
        raise InputError(f"features must be (N, d) and (M, d) with the same d, not {real.shape} and {fake.shape}")
    if min(len(real), len(fake)) < 2:
        raise InputError(f"{len(real)} and {len(fake)} images: FID and KID need at least 2 on each side")
    if not (np.isfinite(real).all() and np.isfinite(fake).all()):
        raise InputError("features are not finite (NaN or infinity): are the weights damaged?")
    return real, fake


def fid(real, fake):
    """Frechet distance between the Gaussians with the means and covariances (divisor N-1) of two sets of features.

        |mean1 - mean2|^2 + trace(S1) + trace(S2) - 2 trace((S1 S2)^(1/2))        (Dowson and Landau 1982)

    real, fake: (N, d) and (M, d), N, M >= 2. Returns a float >= 0, computed in float64.
    """
    real, fake = checked(real, fake)
    mean1, mean2 = real.mean(0, dtype=np.float64), fake.mean(0, dtype=np.float64)
    if min(len(real), len(fake)) < real.shape[1]:
        # Fewer images than features: the covariances are singular, and need not be formed. With the centred
        # features divided by sqrt(N-1) as rows of A and B, S1 = A'A and S2 = B'B. The eigenvalues of
        # S1 S2 = A' (A B'B) are, but for zeros, those of (A B'B) A' = (A B')(A B')'. Their roots are the singular
        # values of A B', an N x M matrix, and the trace is their sum: the nuclear norm. No root of a rounding error
        # is taken, so this is exact where a matrix square root of the singular S1 S2 is wrong in the fourth digit.
        a, b = (real - mean1) / np.sqrt(len(real) - 1), (fake - mean2) / np.sqrt(len(fake) - 1)
        traces = np.square(a).sum() + np.square(b).sum()
        root = scipy.linalg.svdvals(a @ b.T, check_finite=False).sum()
    else:
        s1, s2 = covariance(real, mean1), covariance(fake, mean2)
        traces = np.trace(s1) + np.trace(s2)
        root = root_trace(s1, s2)
    return float(max(np.square(mean1 - mean2).sum() + traces - 2 * root, 0.0))  # below 0 by rounding alone


def covariance(x, mean):
    """(N, d) -> float64 (d, d), divisor N-1. Centred before it is squared, a piece at a time: memory is flat in N."""
    total = np.zeros((x.shape[1], x.shape[1]))
    for start in range(0, len(x), 4096):
        centred = x[start : start + 4096] - mean
        total += centred.T @ centred
    return total / (len(x) - 1)


def root_trace(s1, s2):
    """trace((S1 S2)^(1/2)) of two covariances, float64 (d, d).

    S1 S2 is not symmetric, so eigvalsh of it would be wrong and a general square root is slow. With S1 = L L'
    (Cholesky), S1 S2 = L (L' S2) has the eigenvalues of (L' S2) L, which is symmetric and not negative: the trace is
    the sum of their roots. LAPACK does all of this in one call: "type 2" of the generalised symmetric problem is
    S2 S1 v = w v. Cholesky fails if S1 is singular (a dead feature); then its root comes from its own eigenvectors.
    """
    try:
        values = scipy.linalg.eigvalsh(s2, s1, type=2, driver="gv", check_finite=False)
    except np.linalg.LinAlgError:
        values, vectors = scipy.linalg.eigh(s1, check_finite=False)
        root = vectors * np.sqrt(values.clip(0))  # root root' = S1
        values = scipy.linalg.eigvalsh(root.T @ s2 @ root, check_finite=False)
    return np.sqrt(values.clip(0)).sum()  # a rounding error below zero has no root


# -------------------------------------------------------------------------------------------------------------- KID


def kid(real, fake, subsets=100, subset_size=1000, seed=0):
    """Kernel distance: the squared maximum mean discrepancy with the kernel k(x, y) = (x.y / d + 1)^3, unbiased.

        mean of k(x, x') over x != x'  +  mean of k(y, y') over y != y'  -  2 mean of k(x, y)

    It is taken on `subsets` pairs of random subsets of `subset_size` images (all, if there are fewer) without
    replacement. Returns (mean, standard deviation) over them, not multiplied by 1,000 and not clamped at zero. If a
    subset is all of both sides then they are all the same one: it is computed once, and the deviation is 0.
    real, fake: (N, d) and (M, d), N, M >= 2.
    """
    real, fake = checked(real, fake)
    rows, columns = draw_subsets(len(real), len(fake), subsets, subset_size, seed)
    # Up to some thousand images it is cheaper to form the whole kernel once and to read every subset off it.
    estimate = kid_gram if max(len(real), len(fake)) <= 5000 else kid_loop
    values = estimate(real, fake, rows, columns)
    return float(values.mean()), float(values.std())


def draw_subsets(n, m, subsets, subset_size, seed):
    """Row numbers of each subset: two int64 arrays (subsets, size), size = min(n, m, subset_size)."""
    size = min(n, m, subset_size)
    if n == m == size:
        return np.arange(n)[None], np.arange(n)[None]
    rng = np.random.default_rng(seed)
    pairs = [(rng.permutation(n)[:size], rng.permutation(m)[:size]) for _ in range(subsets)]
    return tuple(np.stack(side) for side in zip(*pairs, strict=True))


def kernel(x, y):
    k = x @ y.T
    k /= x.shape[1]
    k += 1
    return k * k * k


def kid_loop(real, fake, rows, columns):
    """The estimate on each subset, by forming its three kernels. Returns float64 (subsets,)."""
    values, m = [], rows.shape[1]
    for i, j in zip(rows, columns, strict=True):
        x, y = real[i].astype(np.float64), fake[j].astype(np.float64)
        xx, yy, xy = kernel(x, x), kernel(y, y), kernel(x, y)
        within = xx.sum() - xx.trace() + yy.sum() - yy.trace()
        values.append(within / (m * (m - 1)) - 2 * xy.mean())
    return np.array(values)


def kid_gram(real, fake, rows, columns):
    """The same from the kernels of all images: with a subset's indicator vectors a and b, its sum over k is a' k b."""
    a, b, m = np.zeros((len(rows), len(real))), np.zeros((len(rows), len(fake))), rows.shape[1]
    np.put_along_axis(a, rows, 1, 1)
    np.put_along_axis(b, columns, 1, 1)
    within = weighted_kernel(real, real, a, a) + weighted_kernel(fake, fake, b, b)
    return within / (m * (m - 1)) - 2 * weighted_kernel(real, fake, a, b) / (m * m)


def weighted_kernel(x, y, a, b):
    """The sums of a_i k(x_i, y_j) b_j over i and j, for each row of a and b: float64 (len(a),).

    x, y: (N, d) and (M, d); a, b: (number of sums, N or M). If x is y, pairs i = j are left out. The kernel is formed
    a piece at a time: memory is flat in N.
    """
    total, step = np.zeros(len(a)), 2048
    for i in range(0, len(x), step):
        left = x[i : i + step].astype(np.float64)
        for j in range(0, len(y), step):
            k = kernel(left, y[j : j + step].astype(np.float64))
            if x is y and i == j:
                np.fill_diagonal(k, 0)
            total += ((a[:, i : i + step] @ k) * b[:, j : j + step]).sum(1)
    return total


# ------------------------------------------------------------------------------------------------- standard errors


def bootstrap(real, fake, resamples=50, seed=0):
    """Standard errors of fid() and kid() for these features: how far they would move with other images.

    Both sides are drawn again from themselves, N of N and M of M with replacement, `resamples` times; the standard
    deviation over these is the bootstrap's standard error (Efron 1979, doi.org/10.1214/aos/1176344552). Their mean is
    of no use: a resample holds images twice, which raises FID. KID is here that of all images, without the pairs of an
    image with its own copy; a choice of subsets adds to its error, see evaluate().
    real, fake: (N, d) and (M, d), N, M >= 10. resamples: at least 2. Returns (error of FID, error of KID).
    """
    real, fake = checked(real, fake)
    if min(len(real), len(fake)) < 10 or resamples < 2:
        sides = f"{len(real)} and {len(fake)} images, {resamples} resamples"
        raise InputError(f"{sides}: standard errors need at least 10 images on each side and 2 resamples")
    rng, fids, often = np.random.default_rng(seed), [], []
    for _ in tqdm(range(resamples), desc="bootstrap", disable=None, leave=False):
        i, j = rng.integers(len(real), size=len(real)), rng.integers(len(fake), size=len(fake))
        fids.append(fid(real[i], fake[j]))
        often.append((np.bincount(i, minlength=len(real)), np.bincount(j, minlength=len(fake))))
    a, b = (np.stack(side).astype(np.float64) for side in zip(*often, strict=True))  # an image drawn twice weighs twice
    within = [weighted_kernel(x, x, w, w) / (w.sum(1) ** 2 - (w * w).sum(1)) for x, w in ((real, a), (fake, b))]
    kids = sum(within) - 2 * weighted_kernel(real, fake, a, b) / (a.sum(1) * b.sum(1))
    return float(np.std(fids, ddof=1)), float(kids.std(ddof=1))


# --------------------------------------------------------------------------------------------------------- collapse


def collapse(x, threshold=0.9):
    """Count ordered pairs (i, j), i != j, with cosine similarity above `threshold`: returns (count, N (N-1)).

    x: (N, ...). uint8 is taken as pixels and scaled to [-1, 1]; other types are taken as they are. Nothing is centred,
    as in the reports: backgrounds alone make real images similar, so the count means something only beside theirs.
    """
    x = torch.as_tensor(x).flatten(1)
    if x.is_floating_point() and not x.isfinite().all():
        raise InputError("similarities of values that are not finite (NaN or infinity)")

    def unit(rows, dtype=torch.float32):
        rows = rows.to(dtype) / 127.5 - 1 if rows.dtype == torch.uint8 else rows.to(dtype)
        return F.normalize(rows, dim=1)  # a row of zeros stays zero: similar to nothing

    count, pieces = 0, x.split(1024)  # two pieces at a time: memory is flat in N
    for i, piece in enumerate(tqdm(pieces, desc="collapse", disable=None, leave=False)):
        left = unit(piece)
        for j in range(i, len(pieces)):
            cosines = left @ unit(pieces[j]).T  # float32 is right to 1e-6 or so ...
            close = cosines > threshold
            for pairs in ((cosines - threshold).abs_() < 1e-4).nonzero().split(1024):  # ... which float64 decides
                a, b = pairs.T
                exact = unit(piece[a], torch.float64) * unit(pieces[j][b], torch.float64)
                close[a, b] = exact.sum(1) > threshold
            # above the diagonal of pieces each pair stands once, on it twice and with itself
            count += int(close.sum() - close.diagonal().sum()) if i == j else 2 * int(close.sum())
    return count, len(x) * (len(x) - 1)


# -------------------------------------------------------------------------- precision, recall, density and coverage


NEIGHBOURS = 5  # k, as in Naeem et al.


def squared_distances(x, y):
    """|x_i - y_j|^2 of the rows of float64 (N, d) and (M, d): (N, M). What rounding leaves of a 0 is 0."""
    sums = x.square().sum(1)[:, None] + y.square().sum(1)
    distances = sums - 2 * x @ y.T
    return distances.masked_fill_(distances < 1e-12 * sums, 0)


def prdc(real, fake, k=NEIGHBOURS):
    """Four shares by nearest neighbours, of features (N, d) and (M, d), as a dict. 1 is good for all.

    Each row has a ball around it, which reaches to its k-th nearest neighbour on its own side.
      precision  share of generated rows that lie in the ball of some real row: good pictures
      recall     share of real rows that lie in the ball of some generated row: no kind is missing
                 (Kynkaanniemi et al. 2019, 1904.06991)
      density    number of real balls around a generated row, over k, on average. May be above 1
      coverage   share of real balls that hold a generated row. Outliers, whose balls are large, count less in these two
                 (Naeem et al. 2020, 2002.09797)
    In float64, 1,000 rows against 4,096 at a time: memory grows with N and M, not with their product.
    """
    real, fake = (torch.as_tensor(x) for x in checked(real, fake))
    if min(len(real), len(fake)) <= k:
        raise InputError(f"{len(real)} and {len(fake)} images: neighbours need more than {k} on each side")

    def distances(part, others):
        """Squared distances of the rows of `part` to each piece of `others`, and where the piece stands."""
        for start in range(0, len(others), 4096):
            here = slice(start, start + 4096)
            yield here, squared_distances(part.double(), others[here].double())

    def reach(x):  # squared; the nearest of all is the row itself
        found = []
        for part in tqdm(x.split(1000), desc="neighbours", disable=None, leave=False):
            nearest = torch.full((len(part), k + 1), torch.inf, dtype=torch.float64)
            for _, found_here in distances(part, x):
                nearest = torch.cat([nearest, found_here], 1).topk(k + 1, dim=1, largest=False).values
            found.append(nearest.amax(1))
        return torch.cat(found)

    of_real, of_fake = reach(real), reach(fake)
    precise, balls = 0, 0
    recalled, covered = torch.zeros(2, len(real), dtype=torch.bool)
    parts = list(zip(fake.split(1000), of_fake.split(1000), strict=True))
    for part, of_part in tqdm(parts, desc="neighbours", disable=None, leave=False):
        in_any = torch.zeros(len(part), dtype=torch.bool)
        for here, found in distances(part, real):
            in_real = found <= of_real[here]
            in_any |= in_real.any(1)
            balls += int((found < of_real[here]).sum())  # the authors' code leaves out the surface here
            covered[here] |= in_real.any(0)
            recalled[here] |= (found <= of_part[:, None]).any(0)
        precise += int(in_any.sum())
    shares = {"precision": precise / len(fake), "recall": recalled.double().mean().item()}
    return shares | {"density": balls / (k * len(fake)), "coverage": covered.double().mean().item()}


# ------------------------------------------------------------------------------------------------- SSIM and MS-SSIM
#
# SSIM: Wang, Bovik, Sheikh, Simoncelli 2004, "Image quality assessment: from error visibility to structural
# similarity", doi.org/10.1109/TIP.2003.819861. MS-SSIM: Wang, Simoncelli, Bovik 2003, "Multiscale structural similarity
# for image quality assessment", doi.org/10.1109/ACSSC.2003.1292216. Both are defined for grey pictures; of colour
# pictures each channel is one, and the mean over channels is taken last.

C1, C2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2  # keep the two quotients defined in black and in flat places
SCALES = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)  # MS-SSIM's exponent of each level, the finest first; sum 1.0001


def windows(height, width):
    """The side of the Gaussian window at each level of MS-SSIM, in pixels: five levels, from the finest.

    The standard is 11 at every level, and needs 176 pixels. In smaller images the window shrinks with the level, to
    the largest odd number that fits: 11, 11, 11, 7, 3 for 64 pixels. Levels of less than 3 pixels are left out, for
    one pixel has no variance: 32 pixels have four levels, 16 three, 8 two.
    """
    sides = [min(height, width) >> level for level in range(len(SCALES))]  # pooling halves, and drops an odd last row
    return [min(11, side - 1 + side % 2) for level, side in enumerate(sides) if side >= 3 or level == 0]


def blur(x, window):
    """Gaussian-weighted means over every window that lies inside: float64 (..., H, W) -> (..., H-window+1, W-window+1).

    The standard deviation is 1.5 pixels for a window of 11 and shrinks in proportion.
    """

    return window_weights(x.shape[-2], window) @ x @ window_weights(x.shape[-1], window).T


@functools.cache
def window_weights(n, window):
    """(n - window + 1, n): each row holds the weights of one window. On CPUs faster than a convolution."""
    away = torch.arange(n).double() - torch.arange(n - window + 1)[:, None] - window // 2
    gauss = torch.exp(-0.5 * (away / (1.5 * window / 11)) ** 2) * (away.abs() <= window // 2)
    return gauss / gauss.sum(1, keepdim=True)


def levels(images, sides):
    """What each image alone gives to SSIM, for each window of `sides`: [(pixels, local means, local variances), ...].

    images: uint8 (N, C, H, W). From one level to the next the pixels are averaged in blocks of 2x2.
    """
    x, found = images.double(), []
    for window in sides:
        x = F.avg_pool2d(x, 2) if found else x
        mean = blur(x, window)
        found.append((x, mean, blur(x * x, window) - mean * mean))
    return found


def compare(one, other, window, luminance=True):
    """Two entries of levels(), of N images each (or of 1 and N): float64 (N, C), the means over positions of

        SSIM = luminance * contrast-structure, where luminance = (2 mean_x mean_y + C1) / (mean_x^2 + mean_y^2 + C1)
        and contrast-structure = (2 covariance + C2) / (variance_x + variance_y + C2), everything in one window;

    or, without luminance, of contrast-structure alone.
    """
    (x, mean_x, variance_x), (y, mean_y, variance_y) = one, other
    product = mean_x * mean_y
    found = (2 * (blur(x * y, window) - product) + C2) / (variance_x + variance_y + C2)
    if luminance:
        found *= (2 * product + C1) / (mean_x * mean_x + mean_y * mean_y + C1)
    return found.mean((2, 3))


def over_levels(a, b, sides):
    """MS-SSIM of what levels() gives for N images each (or 1 and N): float64 (N,)."""
    exponents = [exponent * sum(SCALES) / sum(SCALES[: len(sides)]) for exponent in SCALES[: len(sides)]]
    product = 1.0
    for i, window in enumerate(sides):
        factor = compare(a[i], b[i], window, luminance=i == len(sides) - 1)  # at the coarsest level alone
        product = product * factor.relu() ** exponents[i]  # opposite structures are below 0: they have no power
    return product.mean(1)


def pieces(images):
    """Parts of some 40 colour images of 64x64 (4 MB a map in float64): memory is flat in N."""
    return images.split(max(1, 2**19 // images.shape[1:].numel()))


def comparable(a, b):
    """The window sides for two sets of images, or InputError if they are not uint8 (N, C, H, W) of one size."""
    if a.dtype != torch.uint8 or b.dtype != torch.uint8 or a.ndim != 4 or a.shape[1:] != b.shape[1:]:
        shapes = f"{a.dtype} {tuple(a.shape)} and {b.dtype} {tuple(b.shape)}"
        raise InputError(f"SSIM needs two sets of uint8 images (N, C, H, W) of one size, not {shapes}")
    return windows(*a.shape[2:])


def in_pairs(a, b):
    if len(a) != len(b):
        raise InputError(f"pairs need as many images on each side, not {len(a)} and {len(b)}")
    return zip(pieces(a), pieces(b), strict=True)


def ssim(a, b):
    """SSIM of pairs: uint8 (N, C, H, W) twice -> float64 (N,), from -1 to 1 (the same image).

    Gaussian windows of 11 pixels (less in images that are smaller) inside the image, K1 = 0.01, K2 = 0.03.
    """
    side = comparable(a, b)[0]
    found = [compare(*levels(x, [side]), *levels(y, [side]), side).mean(1) for x, y in in_pairs(a, b)]
    return torch.cat(found)


def ms_ssim(a, b):
    """MS-SSIM of pairs: uint8 (N, C, H, W) twice -> float64 (N,), from 0 to 1 (the same image).

    The product over levels of contrast-structure (at the last level: of SSIM), each with its exponent from SCALES. A
    negative factor counts as 0, as in the common implementations. Images of 176 pixels and more have the standard five
    levels; in smaller ones the windows shrink, and where levels are left out the other exponents grow in proportion,
    so values for different sizes of image do not compare. See windows().
    """
    sides = comparable(a, b)
    return torch.cat([over_levels(levels(x, sides), levels(y, sides), sides) for x, y in in_pairs(a, b)])


def mean_ms_ssim(images, real):
    """How like real images is each image? Its mean MS-SSIM with every real one.

    images, real: uint8 (N, C, H, W), (M, C, H, W) -> float64 (N,).
    """
    sides = comparable(images, real)
    total = torch.zeros(len(images), dtype=torch.float64)
    for part in pieces(real):
        theirs = levels(part, sides)  # once for all images, which leaves one blur of five for each pair
        for i in range(len(images)):
            total[i] += over_levels(levels(images[i : i + 1], sides), theirs, sides).sum()
    return total / len(real)


def pair_ms_ssim(x, y=None, pairs=1000, seed=0):
    """Mean MS-SSIM over random pairs of one image of x and one of y, or of two different images of x.

    Among generated images it shows diversity: more than among real ones is collapse. Odena et al. 2017,
    arxiv.org/abs/1610.09585, section 4.2, take pairs within one class; here classes are not looked at.
    x, y: uint8 (N, C, H, W), (M, C, H, W). Drawn with replacement. Returns the mean and its standard error.
    """
    if y is None and len(x) < 2:
        raise InputError(f"{len(x)} images: pairs of different ones need at least 2")
    rng = np.random.default_rng(seed)
    i = rng.integers(len(x), size=pairs)
    if y is None:
        y, j = x, (i + rng.integers(1, len(x), size=pairs)) % len(x)  # 1 to N-1 places further: never itself
    else:
        j = rng.integers(len(y), size=pairs)
    found = ms_ssim(x[i], y[j])
    return found.mean().item(), found.std().item() / pairs**0.5


# ----------------------------------------------------------------------------------------------------- autoencoders


def active_units(mu, threshold=0.01):
    """How many latents the encoder uses: those whose mean mu varies over the data, Var_x(mu) > threshold.

    mu: (N, latent_dim), the means of q(z|x). Burda et al. 2016, arxiv.org/abs/1509.00519, section 5.2.
    """
    return int((torch.as_tensor(mu).double().var(0) > threshold).sum())


def autoencoder(means, mu, likelihood, words):
    """What is particular to a VAE, in the form of evaluate(): the bound, the latents in use, how alike latents are.

    means: means over images of reconstruction, KL and bound in nats, and of the squared error of a value in [-1, 1].
    mu: (N, latent_dim), the means of q(z|x). words: which images these are.
    """
    n, latent_dim = mu.shape

    def value(name, found, protocol, **more):
        return {"name": name, "value": found, "real": None, **more, "protocol": f"{protocol}; {words}"}

    one = "one latent drawn for each image"
    prior = torch.randn(n, latent_dim, generator=torch.Generator().manual_seed(0))
    (alike, pairs), (by_chance, _) = collapse(mu), collapse(prior)
    unit = F.normalize(mu.double(), dim=1)
    mean_cosine = ((unit.sum(0).square().sum() - n) / (n * (n - 1))).item()
    return [
        value("reconstruction (nats)", means[0], f"{likelihood} likelihood, summed over an image's values; {one}"),
        value("KL (nats)", means[1], "KL(q(z|x) || N(0, I)), summed over latents"),
        value("bound (nats)", means[2], f"minus the evidence lower bound of an image; {one}"),
        value("squared error", means[3], f"mean over values in [-1, 1]; {one}"),
        value("KL per latent (nats)", means[1] / latent_dim, "mean over latents"),
        value("active latents", active_units(mu), "latents whose mean varies by more than 0.01 over the images",
              pairs=latent_dim),
        value("collapse (latents)", alike, "ordered pairs with cosine similarity above 0.9 of the means of q(z|x) "
              f"(random N(0, I): {by_chance:,})", pairs=pairs),
        value("mean cosine of latents", mean_cosine, "over all pairs of the means of q(z|x)"),
    ]  # fmt: skip


# --------------------------------------------------------------------------------------- do they obey their class?


def classifier(images, labels, classes, device="cpu", steps=800, seed=0):
    """A small convolutional network, trained on uint8 images (N, C, H, W) and int64 labels (N,).

    Returns a function from uint8 images to int64 predicted labels. Larger images are shrunk to 32x32. Trained with
    Adam for `steps` batches of 128, each shifted by up to 4 pixels and, in colour, mirrored or not (digits do not bear
    it); the state of torch's random numbers on the CPU is left as it was.
    """

    def prepare(part):
        return F.adaptive_avg_pool2d(part.to(device).float() / 127.5 - 1, min(32, part.shape[-1]))

    def changed(batch):
        side, (y, x), mirrored = batch.shape[-1], torch.randint(9, (2,)).tolist(), torch.rand(len(batch)) < 0.5
        if batch.shape[1] == 3:
            batch = torch.where(mirrored.to(device)[:, None, None, None], batch.flip(3), batch)
        return F.pad(batch, (4, 4, 4, 4), "reflect")[:, :, y : y + side, x : x + side]

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        layers, before = [], images.shape[1]
        for after in (32, 64, 128):
            layers += [nn.Conv2d(before, after, 3, 1, 1), nn.BatchNorm2d(after), nn.ReLU()]
            layers += [nn.Conv2d(after, after, 4, 2, 1), nn.BatchNorm2d(after), nn.ReLU()]  # side halves
            before = after
        network = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(128, classes))
        network.to(device, memory_format=layout(device)).train()
        optimiser = torch.optim.Adam(network.parameters(), 2e-3)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 2e-3, steps)
        for _ in tqdm(range(steps), desc="classifier", unit="step", disable=None):
            rows = torch.randint(len(images), (128,))
            loss = F.cross_entropy(network(changed(prepare(images[rows]))), labels[rows].to(device))
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            schedule.step()
    network.eval()

    @torch.no_grad()
    def predict(images):
        return torch.cat([network(prepare(part)).argmax(1).cpu() for part in images.split(500)])

    return predict


# ------------------------------------------------------------------------------------------------------ all of them

_kept = {}  # what was found for the newest sets of real images, by their content: see kept()


def digest(array):
    """sha256 of the bytes of a tensor or array."""
    return hashlib.sha256(np.ascontiguousarray(array)).hexdigest()


def kept(what, images, find):
    """find(), remembered under `what` and the content of the images: a run that is evaluated every few epochs has the
    same real images every time."""
    key = (digest(images), tuple(images.shape), what)
    _kept[key] = _kept.pop(key) if key in _kept else find()  # the newest stands last
    while len(_kept) > 32:
        del _kept[next(iter(_kept))]
    return _kept[key]


def kept_features(images, dims, weights, device, precision, words):
    """features() of real images, also remembered by later programs: in data/features/, 8 KB an image at 2048. The
    folder may be deleted at any time."""
    version = 1  # count up when features() changes
    settings = f"{version} {sorted(dims)} {weights.name} {precision} {torch.device(device).type} {tuple(images.shape)}"

    def find():
        name = hashlib.sha256(f"{digest(images)} {settings}".encode()).hexdigest()[:24]
        path = datasets.DATA / "features" / f"{name}.npz"
        try:
            with np.load(path) as file:
                found = {dim: file[str(dim)] for dim in dims}
            if all(found[dim].shape == (len(images), dim) for dim in dims):
                return found
        except Exception:  # not there, or damaged: both cost the same work again
            pass
        found = features(images, dims, weights, device, precision, words=words)

        def write(temporary):
            with open(temporary, "wb") as file:
                np.savez(file, **{str(dim): values for dim, values in found.items()})

        if all(np.isfinite(np.asarray(values)).all() for values in found.values()):
            with contextlib.suppress(OSError):  # a full disk, a folder that cannot be written: then not
                path.parent.mkdir(parents=True, exist_ok=True)
                datasets.write_atomic(path, write)
        return found

    return kept(settings, images, find)


def reachable(dims, weights):
    """The weights that are named, read; which of dims they reach; and {dim: the reason} for the others."""
    usable, reasons = [], {}
    for dim in dims:
        try:
            weights = weights if isinstance(weights, Weights) else load_weights(weights)
            require(weights, dim)
            usable.append(dim)
        except MissingWeights as error:
            reasons[dim] = str(error)
    return weights, usable, reasons


def named(kind, dim):
    """ "FID" at 768 features -> "FID-768". Without a number a name means the usual 2048."""
    return kind if dim == 2048 else f"{kind}-{dim}"


def features_words(dim, weights, precision="fp32"):
    """The part of a protocol that says what the features are."""
    how = f"{dim}-d FID Inception features ({weights.name}; {precision})"
    return f"{how}, pixels resized to 299x299 bilinear, not antialiased"


def averaged_down(images, words, like):
    """Real images at the size of generated ones, which are smaller while a growing model is young, and the words."""
    (h, w), (height, width) = images.shape[2:], like.shape[2:]
    if (h, w) == (height, width):
        return images, words
    if h < height or h * width != w * height:
        raise InputError(f"{words} have {w}x{h} pixels and generated ones {width}x{height}: only larger ones of the "
                         "same shape can be averaged down")  # fmt: skip
    small = [F.interpolate(part.float(), (height, width), mode="area").round().byte() for part in pieces(images)]
    return torch.cat(small), f"{words} averaged down to {width}x{height}"


def evaluate(
    real, fake, floor=None, *, dims=(768, 2048), weights=None, device="cpu", precision="fp32", seed=0, resamples=0,
    real_words="real images", fake_words="generated images",
):  # fmt: skip
    """Every metric of this file for two sets of images, uint8 (N, C, H, W) on the CPU.

    Real images that are larger than the generated ones are averaged down to their size first.
    floor: other real images, compared with `real` in the same way; give as many as there are in `fake`.
    weights: path of the Inception weights, or None. seed: of KID's subsets and MS-SSIM's pairs.
    resamples: how often to draw both sides again for standard errors of FID and KID (0: none). See bootstrap().
    real_words, fake_words: what the images are, for the protocol lines: "1000 <words>".

    Returns a list of dicts of plain values, one for each metric:
        name      "FID-768", "KID-768", "collapse (features 768)", ...; 2048-d ones: "FID", "KID"; "precision-768",
                  "recall-768", ...; "MS-SSIM (generated, real)", "MS-SSIM (among generated)", "collapse (pixels)"
        value     None where the weights do not reach a dim; then "reason" says why, and there is nothing else
        real      the same for real images: FID and KID of `floor` (None without it), collapse and MS-SSIM among `real`
        protocol  how it was measured, in words
        se (FID and KID, with resamples); std, real_std (KID, over subsets); pairs, real_pairs (collapse, out of how
        many); error, real_error (MS-SSIM, standard errors of the means over pairs). KID is not times 1,000.
    """
    for side, words in (real, real_words), (fake, fake_words), (floor, "floor images"):
        if side is not None and len(side) < 2:
            raise InputError(f"{len(side)} {words}: at least 2 are needed on each side")
    real, real_words = averaged_down(real, real_words, fake)
    others = "other real images"
    if floor is not None:
        floor, others = averaged_down(floor, others, fake)
    weights, usable, reasons = reachable(dims, weights)
    if usable:
        settings = (usable, weights, device, precision)
        x, y = kept_features(real, *settings, "features, real"), features(fake, *settings, words="features, generated")
        z = kept_features(floor, *settings, "features, floor") if floor is not None else None

    sides = f"{len(fake)} {fake_words} against {len(real)} {real_words}"
    beside = f"; beside it, {len(floor)} {others} against the same" if floor is not None else ""
    size = min(len(real), len(fake), 1000)
    subsets = f"100 subsets of {size}, seed {seed}" if max(len(real), len(fake)) > size else "one subset, all of them"
    values = []

    def add(name, value, real, protocol, **more):
        values.append({"name": name, "value": value, "real": real, **more, "protocol": protocol})

    def add_collapse(name, real, fake, protocol):
        (value, pairs), (real, real_pairs) = collapse(fake), kept(f"collapse {name}", real, lambda: collapse(real))
        protocol = f"ordered pairs with cosine similarity above 0.9, not centred, of {protocol}"
        add(f"collapse ({name})", value, real, protocol, pairs=pairs, real_pairs=real_pairs)

    for dim in dims:
        if dim in reasons:
            values += [{"name": named(name, dim), "value": None, "reason": reasons[dim]} for name in ("FID", "KID")]
            continue
        how = f"{features_words(dim, weights, precision)}; {sides}"
        scale = f"; another scale than the usual 2048-d FID: compares with FID-{dim} only" if dim != 2048 else ""
        floor_fid, errors, against = fid(x[dim], z[dim]) if z else None, [{}, {}], f"{how}{beside}"
        mean, std = kid(x[dim], y[dim], seed=seed)
        real_mean, real_std = kid(x[dim], z[dim], seed=seed) if z else (None, None)
        if resamples:
            against += f"; standard error (se) from {resamples} bootstrap resamples of both sides"
            of_fid, of_kid = bootstrap(x[dim], y[dim], resamples, seed)
            # given the images, the mean over 100 random subsets scatters around the KID of all by std / 10
            errors = [{"se": of_fid}, {"se": float(np.hypot(of_kid, std / 10))}]
        add(named("FID", dim), fid(x[dim], y[dim]), floor_fid, f"{against}; covariances N-1{scale}", **errors[0])
        spread = {"std": std, "real_std": real_std, **errors[1]}
        add(named("KID", dim), mean, real_mean, f"{against}; cubic kernel, {subsets}", **spread)
        add_collapse(f"features {dim}", x[dim], y[dim], how)
    if usable:
        dim, among = max(usable), {}
        if min(len(real), len(fake)) > NEIGHBOURS:
            if z and len(floor) > NEIGHBOURS:
                among = prdc(x[dim], z[dim])
            how = f"by {NEIGHBOURS} nearest neighbours; {features_words(dim, weights, precision)}; {sides}{beside}"
            for name, value in prdc(x[dim], y[dim]).items():
                add(named(name, dim), value, among.get(name), how)
        else:
            reason = f"{NEIGHBOURS} nearest neighbours need more than {NEIGHBOURS} images on each side"
            names = [named(name, dim) for name in ("precision", "recall", "density", "coverage")]
            values += [{"name": name, "value": None, "reason": reason} for name in names]
    channels = max(real.shape[1], fake.shape[1])  # beside colour, grey is three equal channels, as for the features
    a, b = (images.expand(-1, channels, -1, -1) for images in (real, fake))
    # A perfect generator's images would be as alike, to each other and to real ones, as two different real ones are.
    among_real, real_error = kept(f"MS-SSIM {seed}", a, lambda: pair_ms_ssim(a, seed=seed))
    sizes = " ".join(str(side) for side in windows(*a.shape[2:]))
    for name, (value, error), pair in (
        ("generated, real", pair_ms_ssim(a, b, seed=seed), "one generated and one real image"),
        ("among generated", pair_ms_ssim(b, seed=seed), "two different generated images"),
    ):
        how = f"mean over 1000 random pairs of {pair} (seed {seed}) +- its standard error; beside it, of two different "
        how += f"real images; Gaussian windows of {sizes} pixels from the finest level; {sides}"
        add(f"MS-SSIM ({name})", value, among_real, how, error=error, real_error=real_error)
    add_collapse("pixels", real, fake, f"pixels in [-1, 1]; {sides}")
    return values


def as_many_as(train, eval_images):
    """How many generated images `conditional` is given: as many as there are real ones, up to 10 --eval-images."""
    return min(len(train.images), 10 * eval_images)


def conditional(
    train, held_out, fake, asked, *, dims=(768, 2048), weights=None, device="cpu", eval_images=1000, steps=800
):
    """Does a conditional model obey the class? Values in the form of evaluate().

    train, held_out: datasets.Images with labels; without held_out a random tenth of `train` is kept from the
    classifier, for its accuracy on real images. fake: uint8 (N, C, H, W); asked: int64 (N,), the class asked for.

      class accuracy           on generated images, of a small classifier that has seen only real ones
      class accuracy, reverse  on real images, of the same classifier trained on generated ones ("classification
                               accuracy score", Ravuri and Vinyals 2019, 1905.10887): low if a class lacks variety, too
      FID-768 of <class>       of up to 16 classes, with the largest of dims that the weights reach; eval_images are
                               shared out among them, so that every class has as many as the others
    """
    channels = max(train.images.shape[1], fake.shape[1])  # beside colour, grey is three equal channels
    train, held_out = (
        part and part._replace(images=part.images.expand(-1, channels, -1, -1)) for part in (train, held_out)
    )
    fake = fake.expand(-1, channels, -1, -1)
    images, labels, where = train.images, train.labels, "held-out real images"
    if held_out is None:
        order = shuffled(len(images), 2)
        rows, rest = order.split([max(1, len(order) // 10), len(order) - max(1, len(order) // 10)])
        test, test_labels, images, labels = images[rows], labels[rows], images[rest], labels[rest]
        where = "real images kept from the classifier"
    else:
        test, test_labels = held_out.images, held_out.labels

    def accuracy(predict, images, labels):
        return (predict(images) == labels).double().mean().item()

    settings = (len(train.classes), device, steps)
    of_real = kept(f"classifier {settings} {digest(labels)}", images, lambda: classifier(images, labels, *settings))
    of_fake = classifier(fake, asked, *settings)
    real = accuracy(of_real, test, test_labels)
    often = torch.bincount(test_labels)
    where += f" ({often.max() / often.sum():.2f} of them are {train.classes[int(often.argmax())]})"
    on_real, on_fake = f"{steps} steps on {len(images)} real images", f"{steps} steps on {len(fake)} generated ones"
    values = [
        {"name": "class accuracy", "value": accuracy(of_real, fake, asked), "real": real,
         "protocol": f"of a small network after {on_real}, on {len(fake)} generated ones, for the class asked for; "
         f"beside it, on {len(test)} {where}"},
        {"name": "class accuracy, reverse", "value": accuracy(of_fake, test, test_labels), "real": real,
         "protocol": f"of a small network after {on_fake}, on {len(test)} {where}; beside it, after {on_real}"},
    ]  # fmt: skip

    weights, usable, reasons = reachable(dims, weights)
    if not usable:
        name = f"{named('FID', max(dims))} of each class"
        return [*values, {"name": name, "value": None, "reason": reasons[max(dims)]}]
    dim, shown = max(usable), train.classes[:16]
    n = max(2, eval_images // len(shown))
    for c, name in enumerate(shown):
        of_real, of_fake = ((labels == c).nonzero()[:, 0] for labels in (train.labels, asked))
        value = {"name": f"{named('FID', dim)} of {name}", "value": None}
        if min(len(of_real) // 2, len(of_fake)) < n:
            value["reason"] = f"{len(of_real)} real and {len(of_fake)} generated images: {2 * n} and {n} are needed"
        else:
            chosen = of_real[shuffled(len(of_real), 0)[: 2 * n]]
            words = f"features, {name}"
            x, z = kept_features(train.images[chosen], (dim,), weights, device, "fp32", words)[dim].reshape(2, n, dim)
            y = features(fake[of_fake[:n]], (dim,), weights, device, words=words)[dim]
            value |= {"value": fid(x, y), "real": fid(x, z)}
            value["protocol"] = (
                f"{features_words(dim, weights)}; {n} generated images of the class against {n} real ones of the "
                f"training set; beside it, {n} others of these. Compares with FIDs of {n} images only"
            )
        values.append(value)
    return values


def scores(values):
    """What evaluate() returns as columns of a log: {"fid_768": 3.1, "kid_768": 0.004, ..., "ms-ssim": 0.13}."""
    pairs = ((v["name"].partition("-"), v["value"]) for v in values if v["name"].startswith(("FID", "KID")))
    found = {f"{kind.lower()}_{dim or 2048}": value for (kind, _, dim), value in pairs if value is not None}
    return found | dict(("ms-ssim", v["value"]) for v in values if v["name"] == "MS-SSIM (generated, real)")


def shown(value, key="value"):
    """One entry of a value as text. key: "value", or "real" for what stands beside it."""
    beside = "" if key == "value" else "real_"
    found, std, error = value[key], value.get(f"{beside}std"), value.get(f"{beside}error")
    se = value.get("se") if key == "value" else None
    if (pairs := value.get(f"{beside}pairs")) is not None:
        return f"{found:,} of {pairs:,}"
    if error is not None:
        return f"{found:.4f} +- {error:.4f}"
    if std is not None:
        spread = f" +- {1e3 * std:.2f}" if std else ""  # none where one subset holds all images
        return f"{1e3 * found:.2f}{spread}" + (f" (se {1e3 * se:.2f})" if se is not None else "")
    return (f"{found:.2f}" if abs(found) >= 1 else f"{found:.4f}") + (f" (se {se:.2g})" if se is not None else "")


def title(value):
    return value["name"] + " x 10^3" * value["name"].startswith("KID")


def table(values, report=None):
    """What evaluate() returns, as text: a line for each value, real images beside it, the protocol below.

    report: {name: published value}, printed beside ours. Only values of the same name stand together.
    """
    lines = []
    for v in values:
        theirs = f"    (report: {report[v['name']]:,})" if report and v["name"] in report else ""
        if v["value"] is None:
            lines.append(f"{title(v):26s}not measured here{theirs}: {v['reason']}")
            continue
        lines.append(f"{title(v):26s}{shown(v)}")
        if v["real"] is not None:
            lines[-1] += f"    (real images: {shown(v, 'real')})"
        lines[-1] += theirs
        lines.append(f"    {v['protocol']}")
    return "\n".join(lines)


def comparison(found):
    """Several lists of values as one text: a row for each value, a column for each list, the protocols below, and where
    they differ, each with its columns. found: [(what the images are, values)]."""
    letters = [chr(ord("A") + i) if len(found) <= 26 else str(i + 1) for i in range(len(found))]
    by_name = {}  # name -> {letter: value}, in order
    for letter, (_, values) in zip(letters, found, strict=True):
        for v in values:
            by_name.setdefault(v["name"], {})[letter] = v
    rows, notes = [["", *letters, "real images"]], []
    for name, here in by_name.items():
        protocols, beside = {}, []
        for letter, v in here.items():
            words = f"not measured here: {v['reason']}" if v["value"] is None else v["protocol"]
            protocols.setdefault(words, []).append(letter)
            beside.append(shown(v, "real") if v.get("real") is not None else "-")
        cells = [shown(here[k]) if k in here and here[k]["value"] is not None else "-" for k in letters]
        rows.append([title({"name": name}), *cells, " ".join(dict.fromkeys(beside))])  # usually one for all columns
        for words, of in protocols.items():
            columns = f" ({','.join(of)})" if len(protocols) > 1 else ""
            notes.append(f"{name}{columns}: {words}")
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    legend = [f"{letter}: {words}" for letter, (words, _) in zip(letters, found, strict=True)]
    return "\n".join([*legend, "", *lines, "", *notes])


# ----------------------------------------------------------------------------------------------------- command line


def checkpoints(path):
    """The files that a checkpoint or a run directory stands for: best.pt and last.pt; [] if it is data."""
    path = Path(path)
    if not path.is_dir():
        return [path] if path.suffix == ".pt" else []
    found = [file for file in (path / "best.pt", path / "last.pt") if file.exists()]
    if not found and (path / "args.json").exists():
        raise InputError(f"'{path}' is a run directory without a checkpoint")
    return found


def open_fakes(texts):
    """What is to be measured: [(name, checkpoint or None if it is data)]."""
    found = []
    for text in texts:
        models = [(str(file), datasets.read_checkpoint(file)) for file in checkpoints(text)] or [(text, None)]
        same = len(models) == 2 and models[0][1]["step"] == models[1][1]["step"]  # the best is the last
        found += models[same:]
    return found


def side(text, model, n, size, split, seed, device):
    """Up to n images of one side of the command line, uint8 (<= n, C, H, W), what they are in words, their labels or
    None, and the names of the classes."""
    if model:
        name = model["script"]  # one of datasets.SCRIPTS: read_checkpoint refuses any other
        try:
            script = importlib.import_module(name)
        except ModuleNotFoundError as problem:
            raise InputError(f"'{text}' was made by {name}.py, which is needed beside metrics.py ({problem})") from None
        labels, classes = None, None
        if "class" in model["flags"] and len(model["data"]["classes"]) > 1:  # the classes that generate() draws
            labels, classes = random_labels(model["data"]["counts"], n, seed), model["data"]["classes"]
        words = f"images by {name}, {datasets.weights_used(model)}, seed {seed}"
        return script.generate(model, n, seed, device), words, labels, classes
    data, part = datasets.load(text, size, split), split
    if split == "test":
        part = "held-out test split" if data.held_out else "no held-out split: a model may have trained on them"
        if not data.held_out and len(data.images) < n:
            data = datasets.load(text, size, "all")
    chosen = shuffled(len(data.images), seed)[:n]
    words = f"images of {data.name} ({part}; {data.note}; drawn with seed {seed})"
    return data.images[chosen], words, data.labels[chosen] if data.labels is not None else None, data.classes


def main(args):
    device, n, seed = pick_device(args.device, args.precision)[0], args.eval_images, args.seed
    weights = args.weights
    if args.weights or args.dims:  # what is asked for by name must be there, and is missed before the long work
        weights = load_weights(args.weights)
        for dim in args.dims or []:
            require(weights, dim)
    files, fakes = checkpoints(args.real), open_fakes(args.fake)
    model = datasets.read_checkpoint(files[-1]) if files else None
    models = [checkpoint for _, checkpoint in [(args.real, model), *fakes] if checkpoint]
    sizes = [args.size] * bool(args.size) + [checkpoint["flags"]["size"] for checkpoint in models] or [64]
    size = sizes[0]
    if len(set(sizes)) > 1:
        raise InputError(f"--size or the models disagree ({sizes} pixels): a model makes one size only")
    # The pool of real images is chosen for 2 n, with or without --floor, so that --floor does not change the others.
    pool, real_words, labels, classes = side(args.real, model, 2 * n, size, "test", seed + bool(model), device)
    real, floor = pool[:n], pool[n:]
    dims, results = args.dims or (768, 2048), []
    for what, images in (args.real, real), ("the floor", floor if args.floor else real):
        if len(images) < n:
            print(f"metrics.py: {what} has only {len(images)} of the {n} images asked for", file=sys.stderr)
    for name, checkpoint in fakes:
        if checkpoint is None:
            datasets.load(name, size, "all")  # what cannot be read is missed before the long work
    for name, checkpoint in fakes:
        fake, words, asked, others = side(name, checkpoint, n, size, "all", seed, device)
        if len(fake) < n:
            print(f"metrics.py: {name} has only {len(fake)} of the {n} images asked for", file=sys.stderr)
        values = evaluate(
            real, fake, floor if args.floor else None, dims=dims, weights=weights, device=device,
            precision=args.precision, seed=seed, resamples=args.bootstrap, real_words=real_words,
            fake_words=words if args.json or len(fakes) == 1 else "images of the column",
        )  # fmt: skip
        if labels is not None and asked is not None and model is None and not args.no_classes:
            if classes == others:
                train, held_out = datasets.load_parts(args.real, size)
                many, _, asked, _ = side(name, checkpoint, as_many_as(train, n), size, "all", seed + 1, device)
                settings = {"dims": dims, "weights": weights, "device": device}
                values += conditional(train, held_out, many, asked, eval_images=n, **settings)
            else:
                print("metrics.py: the two sides have other classes: nothing is said about them", file=sys.stderr)
        results.append({"fake": name, "images": words, "values": values})
    if args.json:
        print(json.dumps({"real": args.real, "size": size, "fakes": results}))
    elif len(results) == 1:
        print(table(results[0]["values"]))
    else:
        print(comparison([(f"{one['fake']}: {one['images']}", one["values"]) for one in results]))


if __name__ == "__main__":
    datasets.run_program("metrics.py", main, ARGS)
