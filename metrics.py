# /// script
# requires-python = ">=3.10"
# dependencies = ["torch>=2.6", "torchvision", "numpy", "scipy", "pillow", "tqdm", "matplotlib"]
# ///
"""metrics.py: how close are generated images to real ones? FID, KID, SSIM, and mode collapse.

FID    Frechet distance between two sets of images, each described by the mean and the covariance of
       its Inception features. Low is good. Heusel et al. 2017, arxiv.org/abs/1706.08500
KID    squared kernel distance between the same features. Low is good. It is unbiased: its
       expectation does not depend on the number of images, and single values may fall below zero.
       Binkowski et al. 2018, arxiv.org/abs/1801.01401
SSIM, MS-SSIM    similarity of two images, at one scale and at several; 1 means identical. We report
       the mean over pairs of a generated and a real image, and over pairs of generated images. If
       the latter is much higher than among real images, the generator has collapsed.
precision, recall, density, coverage    by nearest neighbours among the features: are the images
       good, and is a kind of image missing?
near training    does it copy? How many generated images are as near to a training image as few
       real images are, with --neighbours: see neighbours.py.
collapse   how many pairs of generated images are nearly the same, next to the count for real ones.

Which FID is this? An FID means nothing without four facts, so every value comes with them in words:
  - The features. Plain "FID" and "KID" use the standard 2048 features, with pytorch-fid's weights.
    The same network can be read at an earlier layer: FID-768 (an official option of pytorch-fid)
    has another scale and compares with FID-768 only.
  - The number of images. FID falls as it grows: compare 1,000 images with 1,000, never with 50,000.
  - The real images: which data set, which split. `--floor` compares other real images with them,
    which is the score of a perfect generator.
  - How pixels become features: uint8 images, resized to 299x299 as pytorch-fid does it (bilinear,
    not antialiased).

A side is the name of a data set, a folder, zip or .npz of images, a checkpoint (.pt), or a run
directory, which stands for its best.pt and its last.pt (as REAL: for its last.pt). It can also be
an .npz of samples `arr_0`, as guided-diffusion writes it, or of statistics `mu` and `sigma`, as
pytorch-fid writes them: then only FID is measured. Data sets are compared at the size of their own
images, the smaller one if they differ.

best.pt knows which real images chose it and is never measured on them: all columns of a table are
measured without them. What is measured of the checkpoints of a run is printed, and also written
into its directory, as metrics-best-<real>.json, metrics-last-<real>.json and so on.

    python metrics.py cats64 runs/dcgan-cats64-1                 # the best and the last checkpoint
    python metrics.py photos.zip generated/ --dims 768 --floor   # folders, zips or .npz files
    python metrics.py shapes runs/*/last.pt --bootstrap 50       # one table, with standard errors
    python metrics.py shapes runs/vae_mlp-shapes-1 --iwae 64     # a VAE: its bounds, too
    python metrics.py shapes runs/dcgan-shapes-1 --eval-images 500 --json
    python metrics.py photos/ runs/dcgan-photos-1 --neighbours   # does it copy my photos?

The weights (91 MB) are downloaded once. From Python, `evaluate(real, fake)` measures everything;
`fid`, `kid`, `ssim`, `ms_ssim`, `collapse` and `prdc` are its parts. inception.py has `features`.
"""

import signal

if __name__ == "__main__":  # Ctrl-C during the imports is silent; run_program takes over later
    signal.signal(signal.SIGINT, signal.SIG_DFL)

import functools
import json
import re
import sys
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

import numpy as np
import scipy.linalg
import torch
import torch.nn.functional as F
from torch import nn
from tqdm import tqdm

import datasets
import training
from datasets import from_uint8, layout, load, load_parts, pick, shuffled
from inception import (
    DIMS,
    digest,
    features,
    features_words,
    load_weights,
    moments,
    reachable,
    read_statistics,
    real_features,
    require,
)
from sources import InputError, new_parser, number, printable, run_program, write_text

# ------------------------------------------------------------------------------------------- FID


def checked(real, fake):
    """Two sets of features as numpy arrays (N, d) and (M, d), or InputError if they do not fit."""
    real = np.asarray(real)
    fake = np.asarray(fake)
    if real.ndim != 2 or fake.ndim != 2 or real.shape[1] != fake.shape[1]:
        raise InputError(f"features must be (N, d) and (M, d), not {real.shape} and {fake.shape}")
    if min(len(real), len(fake)) < 2:
        raise InputError(f"{len(real)} and {len(fake)} images: each side needs at least 2")
    if not (np.isfinite(real).all() and np.isfinite(fake).all()):
        raise InputError("features are not finite (NaN or infinity): are the weights damaged?")
    return real, fake


def fid(real, fake):
    """Frechet distance between two sets of features, taken as Gaussians.

        |mean1 - mean2|^2 + trace(S1) + trace(S2) - 2 trace((S1 S2)^(1/2))

    with the covariances S1 and S2, divisor N-1 (Dowson and Landau 1982).
    real, fake: (N, d) and (M, d), N, M >= 2. Returns a float >= 0, computed in float64.
    """
    real, fake = checked(real, fake)
    if min(len(real), len(fake)) <= real.shape[1]:
        # With no more images than features, a covariance is singular and need not be formed. The
        # centred features divided by sqrt(N-1) are the rows of A and B, so S1 = A'A and S2 = B'B.
        # Zeros aside, S1 S2 = A' (A B'B) and (A B'B) A' = (A B')(A B')' have the same eigenvalues.
        # Their roots are the singular values of A B', an N x M matrix, and the trace is the sum of
        # these: the nuclear norm. This takes no root of a rounding error. A matrix square root of
        # the singular S1 S2 does, and is wrong in the fourth digit.
        mean1 = real.mean(0, dtype=np.float64)
        mean2 = fake.mean(0, dtype=np.float64)
        a = (real - mean1) / np.sqrt(len(real) - 1)
        b = (fake - mean2) / np.sqrt(len(fake) - 1)
        traces = np.square(a).sum() + np.square(b).sum()
        root = scipy.linalg.svdvals(a @ b.T, check_finite=False).sum()
        distance = np.square(mean1 - mean2).sum() + traces - 2 * root
        return float(max(distance, 0.0))  # only rounding takes it below 0
    return frechet(*moments(real), *moments(fake))


def frechet(mean1, s1, mean2, s2):
    """The distance of fid() from two means, float64 (d,), and covariances, float64 (d, d)."""
    traces = np.trace(s1) + np.trace(s2)
    distance = np.square(mean1 - mean2).sum() + traces - 2 * root_trace(s1, s2)
    return float(max(distance, 0.0))


def root_trace(s1, s2):
    """trace((S1 S2)^(1/2)) of two covariances, float64 (d, d).

    S1 S2 is not symmetric: eigvalsh of it would be wrong, and a general matrix square root is slow.
    With S1 = L L' (Cholesky), S1 S2 = L (L' S2) has the eigenvalues of (L' S2) L, a symmetric
    positive semidefinite matrix, and the trace is the sum of their roots. LAPACK does this in one
    call: "type 2" of the generalized symmetric problem is S2 S1 v = w v. If S1 is singular (a dead
    feature), Cholesky fails, and the eigenvectors of S1 give a root of it.
    """
    try:
        values = scipy.linalg.eigvalsh(s2, s1, type=2, driver="gv", check_finite=False)
    except np.linalg.LinAlgError:
        values, vectors = scipy.linalg.eigh(s1, check_finite=False)
        root = vectors * np.sqrt(values.clip(0))  # root root' = S1
        values = scipy.linalg.eigvalsh(root.T @ s2 @ root, check_finite=False)
    return np.sqrt(values.clip(0)).sum()  # rounding may leave a value just below 0


# ------------------------------------------------------------------------------------------- KID


def kid(real, fake, subsets=100, subset_size=1000, seed=0):
    """The squared maximum mean discrepancy, unbiased, with the kernel k(x, y) = (x.y/d + 1)^3:

        mean of k(x, x') over x != x'  +  mean of k(y, y') over y != y'  -  2 mean of k(x, y)

    It is computed on `subsets` pairs of random subsets of `subset_size` images (or of as many as
    the smaller side has), drawn without replacement. If a subset holds all images of both sides,
    there is only one: it is computed once, and the deviation is 0.
    real, fake: (N, d) and (M, d), N, M >= 2.
    Returns the mean and the standard deviation over the subsets. They are not multiplied by 1,000,
    and the mean is not clamped at zero.
    """
    real, fake = checked(real, fake)
    rows, columns = draw_subsets(len(real), len(fake), subsets, subset_size, seed)
    a = np.zeros((len(rows), len(real)))
    b = np.zeros((len(rows), len(fake)))
    np.put_along_axis(a, rows, 1, 1)
    np.put_along_axis(b, columns, 1, 1)
    values = kid_of_counts(real, fake, a, b)
    return float(values.mean()), float(values.std())


def kid_of_counts(real, fake, a, b):
    """KID of each subset or resample that holds the images a and b times: float64 (subsets,).

    All share one kernel k of all images: the one with the counts a has the sum a'k a. a, b: float64
    (subsets, N) and (subsets, M).
    """
    kids = -2 * weighted_kernel(real, fake, a, b) / (a.sum(1) * b.sum(1))
    for x, counts in ((real, a), (fake, b)):
        pairs = counts.sum(1) ** 2 - (counts * counts).sum(1)  # of different images
        kids += weighted_kernel(x, x, counts, counts) / pairs
    return kids


def draw_subsets(n, m, subsets, subset_size, seed):
    """The row numbers of each subset: two int64 arrays (subsets, min(n, m, subset_size))."""
    size = min(n, m, subset_size)
    if n == m == size:
        return np.arange(n)[None], np.arange(n)[None]
    rng = np.random.default_rng(seed)
    pairs = [(rng.permutation(n)[:size], rng.permutation(m)[:size]) for _ in range(subsets)]
    rows, columns = zip(*pairs, strict=True)
    return np.stack(rows), np.stack(columns)


def kernel(x, y):
    """float64 (N, d) and (M, d) -> (N, M): k(x, y) = (x.y/d + 1)^3."""
    k = x @ y.T
    k /= x.shape[1]
    k += 1
    return k * k * k


def weighted_kernel(x, y, a, b):
    """The sum of a_i k(x_i, y_j) b_j over i and j, for each row of a and b: float64 (len(a),).

    x, y: (N, d) and (M, d); a, b: weights (sums, N) and (sums, M). If x is y, the pairs i = j are
    left out. The kernel is formed block by block, so memory does not grow with N M.
    """
    total = np.zeros(len(a))
    step = 2048
    for i in range(0, len(x), step):
        left = x[i : i + step].astype(np.float64)
        for j in range(0, len(y), step):
            k = kernel(left, y[j : j + step].astype(np.float64))
            if x is y and i == j:
                np.fill_diagonal(k, 0)
            total += ((a[:, i : i + step] @ k) * b[:, j : j + step]).sum(1)
    return total


# ------------------------------------------------------------------------------- standard errors


def bootstrap(real, fake, resamples=50, seed=0):
    """Standard errors of fid() and kid(): how far they would move with other images of this kind.

    Draws N of the N images of each side with replacement, `resamples` times. The standard deviation
    over the resamples is the bootstrap's standard error (Efron 1979,
    doi.org/10.1214/aos/1176344552). Their mean is of no use: a resample holds some images twice,
    which raises FID. KID is that of all images here, without the pairs of an image with its own
    copy. A choice of subsets adds to its error: see distance_values().
    real, fake: (N, d) and (M, d), N, M >= 10; at least 2 resamples.
    Returns (standard error of FID, standard error of KID).
    """
    real, fake = checked(real, fake)
    if min(len(real), len(fake)) < 10 or resamples < 2:
        raise InputError("standard errors need at least 10 images on each side and 2 resamples")
    rng = np.random.default_rng(seed)
    fids = []
    a = np.empty((resamples, len(real)))  # how often a resample holds each image
    b = np.empty((resamples, len(fake)))
    for row in tqdm(range(resamples), desc="bootstrap", disable=None, leave=False):
        i = rng.integers(len(real), size=len(real))
        j = rng.integers(len(fake), size=len(fake))
        fids.append(fid(real[i], fake[j]))
        a[row] = np.bincount(i, minlength=len(real))
        b[row] = np.bincount(j, minlength=len(fake))
    kids = kid_of_counts(real, fake, a, b)
    return float(np.std(fids, ddof=1)), float(kids.std(ddof=1))


# -------------------------------------------------------------------------------------- collapse


def collapse(x, threshold=0.9):
    """Count the ordered pairs (i, j), i != j, with cosine similarity above `threshold`.

    x: (N, ...). uint8 is taken as pixels and scaled to [-1, 1]; other types are taken as they are.
    As in the reports, nothing is centred. Backgrounds alone make real images similar, so the count
    means something only next to theirs. Returns (count, N (N-1)).
    """
    x = torch.as_tensor(x).flatten(1)
    if x.is_floating_point() and not x.isfinite().all():
        raise InputError("similarities of values that are not finite (NaN or infinity)")
    count = 0
    chunks = x.split(256)  # two at a time: memory does not grow with N^2
    for i, left in enumerate(tqdm(chunks, desc="collapse", disable=None, leave=False)):
        for j in range(i, len(chunks)):
            similar = unit(left) @ unit(chunks[j]).T > threshold
            if i == j:  # holds each pair in both orders, and each row with itself
                count += int(similar.sum() - similar.diagonal().sum())
            else:
                count += 2 * int(similar.sum())
    return count, len(x) * (len(x) - 1)


def unit(x):
    """Rows scaled to length 1, float64. A row of zeros stays zero, so it is similar to nothing."""
    rows = x.double()
    if x.dtype == torch.uint8:
        rows = rows / 127.5 - 1
    return F.normalize(rows, dim=1)


# ------------------------------------------------------- precision, recall, density and coverage


NEIGHBOURS = 5  # k, as in Naeem et al.


def prdc(real, fake, k=NEIGHBOURS):
    """Four shares by nearest neighbours, of features (N, d) and (M, d), as a dict. High is good.

    Each row has a ball around it that reaches to its k-th nearest neighbour on its own side.
      precision  share of generated rows inside the ball of some real row: are the images good?
      recall     share of real rows inside the ball of some generated row: is no kind missing?
                 (Kynkaanniemi et al. 2019, 1904.06991)
      density    mean number of real balls around a generated row, divided by k; may exceed 1
      coverage   share of real balls that hold a generated row. Outliers have large balls; they
                 count less in density and coverage (Naeem et al. 2020, 2002.09797)
    Computed in float64, 256 generated rows at a time: memory does not grow with N M.
    """
    real, fake = checked(real, fake)
    if min(len(real), len(fake)) <= k:
        raise InputError(f"nearest neighbours need more than {k} images on each side")
    real = torch.as_tensor(real).double()
    fake = torch.as_tensor(fake).double()
    real_radii = squared_radii(real, k)
    fake_radii = squared_radii(fake, k)
    precise = 0
    balls = 0
    recalled = torch.zeros(len(real), dtype=torch.bool)
    covered = torch.zeros(len(real), dtype=torch.bool)
    chunks = list(zip(fake.split(256), fake_radii.split(256), strict=True))
    for chunk, radii in tqdm(chunks, desc="neighbours", disable=None, leave=False):
        distances = squared_distances(chunk, real)
        in_ball = distances <= real_radii
        precise += int(in_ball.any(1).sum())
        covered |= in_ball.any(0)
        recalled |= (distances <= radii[:, None]).any(0)
        balls += int((distances < real_radii).sum())  # "<", as in the authors' code
    return {
        "precision": precise / len(fake),
        "recall": recalled.double().mean().item(),
        "density": balls / (k * len(fake)),
        "coverage": covered.double().mean().item(),
    }


def squared_radii(x, k):
    """The squared distance of each row of x to its k-th nearest neighbour: float64 (N,)."""
    radii = []
    for chunk in tqdm(x.split(256), desc="neighbours", disable=None, leave=False):
        # k + 1, because the nearest row of all is the row itself
        nearest = squared_distances(chunk, x).topk(k + 1, dim=1, largest=False)
        radii.append(nearest.values.amax(1))
    return torch.cat(radii)


def squared_distances(x, y):
    """Of all rows of x and y, float64 (n, d) and (M, d) -> (n, M)."""
    sums = x.norm(dim=1)[:, None].square() + y.norm(dim=1).square()
    distances = sums - 2 * x @ y.T
    return distances.masked_fill_(distances < 1e-12 * sums, 0)  # what rounding leaves of a 0 is 0


# ------------------------------------------------------------------------------ SSIM and MS-SSIM
#
# SSIM: Wang, Bovik, Sheikh, Simoncelli 2004, "Image quality assessment: from error visibility to
# structural similarity", doi.org/10.1109/TIP.2003.819861.
# MS-SSIM: Wang, Simoncelli, Bovik 2003, "Multiscale structural similarity for image quality
# assessment", doi.org/10.1109/ACSSC.2003.1292216.
# Both are defined for gray images. Each channel of a color image counts as one, and the mean over
# channels is taken last.

C1 = (0.01 * 255) ** 2  # C1 and C2 keep the quotients defined in black and in flat places
C2 = (0.03 * 255) ** 2
EXPONENTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)  # of each level, from the finest; sum 1.0001


def windows(height, width):
    """The width of the Gaussian window at each level of MS-SSIM, in pixels, from the finest level.

    The standard is five levels with 11 pixels at each, and needs images of 176 pixels. In smaller
    images the window shrinks with the level, to the largest odd number that fits: 11, 11, 11, 7, 3
    for 64 pixels. Levels of less than 3 pixels are left out, because one pixel has no variance:
    images of 32 pixels have four levels, of 16 three, of 8 two.
    """
    finest = min(height, width)
    sizes = [finest >> level for level in range(len(EXPONENTS))]  # pooling drops an odd last row
    return [min(11, size - 1 + size % 2) for size in sizes if size >= 3 or size == finest]


def blur(x, window):
    """Gaussian means over all windows inside the image: float64 (..., H, W) -> (..., H-w+1, W-w+1).

    The standard deviation is 1.5 pixels for a window of 11, and shrinks in proportion.
    """
    return window_weights(x.shape[-2], window) @ x @ window_weights(x.shape[-1], window).T


@functools.cache
def window_weights(n, window):
    """(n - window + 1, n): the weights of one window per row. Beats a convolution on CPUs."""
    offsets = torch.arange(n).double() - torch.arange(n - window + 1)[:, None] - window // 2
    inside = offsets.abs() <= window // 2
    weights = torch.exp(-0.5 * (offsets / (1.5 * window / 11)) ** 2) * inside
    return weights / weights.sum(1, keepdim=True)


class Level(NamedTuple):
    """What SSIM needs of N images at one level, each float64 (N, C, ...)."""

    pixels: torch.Tensor
    mean: torch.Tensor  # in each window
    variance: torch.Tensor  # in each window


def level_of(pixels, window):
    """float64 (N, C, H, W) -> their Level."""
    mean = blur(pixels, window)
    return Level(pixels, mean, blur(pixels * pixels, window) - mean * mean)


def levels(images, sizes):
    """uint8 (N, C, H, W) -> a Level for each window size. From level to level, pixels halve."""
    pixels = images.double()
    result = [level_of(pixels, sizes[0])]
    for window in sizes[1:]:
        pixels = F.avg_pool2d(pixels, 2)
        result.append(level_of(pixels, window))
    return result


def compare(x, y, window):
    """Two Levels of N images each (or of 1 and N) -> the means over all windows, (N, C) twice, of

        structure = (2 covariance + C2) / (variance_x + variance_y + C2)

    (in the papers: contrast and structure), and of

        SSIM = structure * (2 mean_x mean_y + C1) / (mean_x^2 + mean_y^2 + C1)
    """
    product = x.mean * y.mean
    covariances = blur(x.pixels * y.pixels, window) - product
    structure = (2 * covariances + C2) / (x.variance + y.variance + C2)
    luminance = (2 * product + C1) / (x.mean * x.mean + y.mean * y.mean + C1)
    return structure.mean((2, 3)), (structure * luminance).mean((2, 3))


def over_levels(structures, ssims):
    """MS-SSIM from what compare() gives at each level: float64 (N,)."""
    factors = [*structures[:-1], ssims[-1]]  # luminance counts at the coarsest level only
    exponents = EXPONENTS[: len(factors)]
    product = 1.0
    for factor, exponent in zip(factors, exponents, strict=True):
        # Opposite structures have a negative factor, which has no power.
        product = product * factor.relu() ** (exponent * sum(EXPONENTS) / sum(exponents))
    return product.mean(1)


def three_scales(x, y, structures):
    """MS-SSIM as TorchMetrics computes it with its first three exponents ("betas"): float64 (N,).

    Here the exponents stay as they are, the mean over channels comes before the powers, and at the
    third level the windows reach beyond the image, which goes on as in a mirror.
    x, y: the Levels at the third level. structures: of all levels, see compare().
    """
    mirrored = [level_of(F.pad(z.pixels, (5, 5, 5, 5), "reflect"), 11) for z in (x, y)]
    _, coarsest = compare(*mirrored, 11)
    factors = torch.stack([*structures[:2], coarsest]).mean(2)  # (3, N)
    exponents = torch.tensor(EXPONENTS[:3]).double()
    return (factors.relu() ** exponents[:, None]).prod(0)


def in_chunks(images):
    """Chunks of some 40 color images of 64x64 (4 MB in float64): memory does not grow with N."""
    return images.split(max(1, 2**19 // images.shape[1:].numel()))


def window_sizes(a, b):
    """windows() of two sets of images; InputError unless uint8 (N, C, H, W) of one size."""
    same_type = a.dtype == b.dtype == torch.uint8
    if not same_type or a.ndim != 4 or a.shape[1:] != b.shape[1:]:
        shapes = f"{a.dtype} {tuple(a.shape)} and {b.dtype} {tuple(b.shape)}"
        raise InputError(f"SSIM needs uint8 images (N, C, H, W) twice, of one size, not {shapes}")
    return windows(*a.shape[2:])


def similarities(a, b):
    """Three measures of pairs: uint8 (N, C, H, W) twice -> a dict of float64 (N,).

    "ms-ssim"    see ms_ssim()
    "ms-ssim-3"  see three_scales(). Left out where the third level is smaller than its window of
                 11 pixels, so for images of less than 44 pixels: TorchMetrics refuses those
    "ssim"       see ssim()
    """
    sizes = window_sizes(a, b)
    if len(a) != len(b):
        raise InputError(f"pairs need as many images on each side, not {len(a)} and {len(b)}")
    chunks = []
    for images, others in zip(in_chunks(a), in_chunks(b), strict=True):
        x = levels(images, sizes)
        y = levels(others, sizes)
        structures, ssims = zip(*map(compare, x, y, sizes), strict=True)
        measures = {"ms-ssim": over_levels(structures, ssims)}
        if sizes[:3] == [11, 11, 11]:
            measures["ms-ssim-3"] = three_scales(x[2], y[2], structures)
        measures["ssim"] = ssims[0].mean(1)
        chunks.append(measures)
    return {name: torch.cat([chunk[name] for chunk in chunks]) for name in chunks[0]}


def ms_ssim(a, b):
    """MS-SSIM of pairs: uint8 (N, C, H, W) twice -> float64 (N,), from 0 to 1 (the same image).

    The product over levels of the structure (at the coarsest level: of SSIM), each raised to its
    exponent. A negative factor counts as 0, as in common implementations. Images of 176 pixels and
    more have the standard five levels. In smaller ones the windows shrink, and where levels are
    left out, the other exponents grow in proportion: values for two image sizes do not compare.
    See windows().
    """
    return similarities(a, b)["ms-ssim"]


def ssim(a, b):
    """SSIM of pairs: uint8 (N, C, H, W) twice -> float64 (N,), from -1 to 1 (the same image).

    The window has 11 pixels, or in images smaller than that the largest odd number that fits.
    """
    return similarities(a, b)["ssim"]


def mean_ms_ssim(images, real):
    """How similar is each image to real ones? Its mean MS-SSIM with every real image.

    images, real: uint8 (N, C, H, W), (M, C, H, W) -> float64 (N,).
    """
    sizes = window_sizes(images, real)
    total = torch.zeros(len(images), dtype=torch.float64)
    for chunk in in_chunks(real):
        real_levels = levels(chunk, sizes)  # once for all images: a pair costs one blur, not five
        for i in range(len(images)):
            image_levels = levels(images[i : i + 1], sizes)
            pairs = zip(*map(compare, image_levels, real_levels, sizes), strict=True)
            total[i] += over_levels(*pairs).sum()
    return total / len(real)


def pair_similarities(x, y=None, pairs=1000, seed=0):
    """similarities() of random pairs of an image of x and one of y, or of two different ones of x.

    Among generated images they measure diversity: a higher value than among real images is
    collapse. Odena et al. 2017, arxiv.org/abs/1610.09585, section 4.2, take pairs within one class;
    here the class plays no part. x, y: uint8 (N, C, H, W), (M, C, H, W); pairs are drawn with
    replacement. Returns {name: (the mean over pairs, its standard error)}.
    """
    if y is None and len(x) < 2:
        raise InputError(f"{len(x)} images: pairs of different ones need at least 2")
    rng = np.random.default_rng(seed)
    i = rng.integers(len(x), size=pairs)
    if y is None:
        y = x
        j = (i + rng.integers(1, len(x), size=pairs)) % len(x)  # 1 to N-1 further: never i itself
    else:
        j = rng.integers(len(y), size=pairs)
    result = {}
    for name, values in similarities(x[i], y[j]).items():
        result[name] = (values.mean().item(), values.std().item() / pairs**0.5)
    return result


# --------------------------------------------------------------------------------- autoencoders


def active_units(mu, threshold=0.01):
    """How many latents the encoder uses: those whose mean varies over the data, Var_x(mu) > 0.01.

    mu: (N, latent_dim), the means of q(z|x). Burda et al. 2016, arxiv.org/abs/1509.00519, sec. 5.2.
    """
    return int((torch.as_tensor(mu).double().var(0) > threshold).sum())


def autoencoder(means, mu, likelihood, words, samples=0, importance_bound=None):
    """What only a VAE has: its bound, the latents in use, and their similarity. See evaluate().

    means: means over images of reconstruction, KL and bound in nats, and of the squared error of a
    value in [-1, 1]. mu: (N, latent_dim), the means of q(z|x). words: which images these are.
    importance_bound: the mean bound on -log p(x) from `samples` importance samples, or None.
    """
    n, latent_dim = mu.shape
    reconstruction, kl, bound, squared_error = means
    noise = f"one latent drawn for each image; {words}"
    prior = torch.randn(n, latent_dim, generator=torch.Generator().manual_seed(0))
    similar, pairs = collapse(mu)
    by_chance, _ = collapse(prior)
    unit_mu = unit(mu)
    mean_cosine = ((unit_mu.sum(0).square().sum() - n) / pairs).item()
    cosines = f"ordered pairs of means with cosine similarity above 0.9 (N(0, I): {by_chance:,})"
    values = [
        measured("reconstruction (nats)", reconstruction, f"-log p(x|z), {likelihood}; {noise}"),
        measured("KL (nats)", kl, f"KL(q(z|x) || N(0, I)), summed over latents; {words}"),
        measured("bound (nats)", bound, f"minus the evidence lower bound of an image; {noise}"),
        measured("squared error", squared_error, f"mean over values in [-1, 1]; {noise}"),
        measured("KL per latent (nats)", kl / latent_dim, f"mean over latents; {words}"),
        measured("active latents", active_units(mu), f"Var(mu) > 0.01; {words}", pairs=latent_dim),
        measured("collapse (latents)", similar, f"{cosines}; {words}", pairs=pairs),
        measured("mean cosine of latents", mean_cosine, f"over all pairs of the means; {words}"),
    ]
    if importance_bound is not None:
        how = f"-log p(x) from above, {samples} importance samples (Burda et al. 2016); {words}"
        values.insert(3, measured(f"bound ({samples} samples)", importance_bound, how))
    return values


# ------------------------------------------------------------------------ conditional models


def train_classifier(images, labels, classes, device="cpu", steps=800, seed=0):
    """Train a small convolutional network on uint8 images (N, C, H, W) and int64 labels (N,).

    Adam, `steps` batches of 128. Each batch is shifted by up to 4 pixels, and color images are
    mirrored at random (digits must not be). Returns the network, in eval mode, for predict().
    Torch's random state on the CPU is left as it was.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        layers = []
        in_channels = images.shape[1]
        for out_channels in (32, 64, 128):
            for kernel_size, stride in ((3, 1), (4, 2)):  # the second halves height and width
                layers.append(nn.Conv2d(in_channels, out_channels, kernel_size, stride, 1))
                layers += [nn.BatchNorm2d(out_channels), nn.ReLU()]
                in_channels = out_channels
        layers += [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(in_channels, classes)]
        network = nn.Sequential(*layers).to(device, memory_format=layout(device)).train()
        optimizer = torch.optim.Adam(network.parameters(), 2e-3)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, steps)
        for _ in tqdm(range(steps), desc="classifier", unit="step", disable=None):
            rows = torch.randint(len(images), (128,))
            output = network(augmented(classifier_input(images[rows], device)))
            loss = F.cross_entropy(output, labels[rows].to(device))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    return network.eval()


def classifier_input(images, device):
    """uint8 (N, C, H, W) -> float32 in [-1, 1], larger images shrunk to 32x32."""
    return F.adaptive_avg_pool2d(from_uint8(images.to(device)), min(32, images.shape[-1]))


def augmented(batch):
    """A batch of square images, shifted as a whole and, in color, mirrored one by one."""
    size = batch.shape[-1]
    y, x = torch.randint(9, (2,)).tolist()
    mirror = torch.rand(len(batch)) < 0.5
    if batch.shape[1] == 3:
        batch[mirror] = batch[mirror].flip(3)
    padded = F.pad(batch, (4, 4, 4, 4), "reflect")
    return padded[..., y : y + size, x : x + size]


@torch.no_grad()
def predict(network, images):
    """The class of each image by a network of train_classifier(): int64 (N,) on the CPU."""
    device = next(network.parameters()).device
    classes = [network(classifier_input(x, device)).argmax(1).cpu() for x in images.split(500)]
    return torch.cat(classes)


def conditional_count(train, eval_images):
    """How many generated images to give to conditional(): one per real image, up to a limit."""
    return min(len(train.images), 10 * eval_images)


def conditional(
    train,
    held_out,
    fake,
    asked,
    *,
    dims=(768, 2048),
    weights=None,
    device="cpu",
    eval_images=1000,
    steps=800,
):
    """Does a conditional model obey the class? A list of values like that of evaluate().

    train, held_out: datasets.Images with labels. If held_out is None, a random tenth of `train` is
    hidden from the classifier and measures its accuracy on real images.
    fake: uint8 (N, C, H, W); asked: int64 (N,), the classes asked for. steps: of the classifiers.

      class accuracy           on generated images, of a small classifier trained on real ones
      class accuracy, reverse  on real images, of the same classifier trained on generated ones.
                               Also low if a class lacks variety. Ravuri and Vinyals 2019,
                               1905.10887 ("classification accuracy score")
      FID-768 of <class>       of up to 16 classes, with the largest of `dims` that the weights
                               reach. eval_images is shared out evenly among the classes
    """
    images, fake = same_channels(train.images, fake)
    train = train._replace(images=images)
    if held_out is None:
        order = shuffled(len(train.images), 2)
        count = max(1, len(order) // 10)
        test = pick(train, order[:count])
        seen = pick(train, order[count:])
        where = "real images hidden from the classifier"
    else:
        images, _ = same_channels(held_out.images, fake)
        test = held_out._replace(images=images)
        seen = train
        where = "held-out real images"
    values = class_accuracies(seen, test, where, fake, asked, device, steps)

    weights, usable, reasons = reachable(dims, weights)
    if usable:
        n = max(2, eval_images // min(len(train.classes), 16))
        values += class_fids(train, fake, asked, n, max(usable), weights, device)
    else:
        name = metric_name("FID", max(dims))
        values.append(not_measured(f"{name} of each class", reasons[max(dims)]))
    return values


_classifiers = {}  # of real images; several models on one command line share them


def class_accuracies(seen, test, where, fake, asked, device, steps):
    """Both accuracies of conditional().

    seen: datasets.Images for the classifier of real images. test: others; where: what these are.
    """
    settings = (len(seen.classes), device, steps)
    key = (settings, digest(seen.images), digest(seen.labels))
    if key not in _classifiers:
        _classifiers[key] = train_classifier(seen.images, seen.labels, *settings)
    of_fake = train_classifier(fake, asked, *settings)
    real = accuracy(_classifiers[key], test.images, test.labels)
    forward = accuracy(_classifiers[key], fake, asked)
    reverse = accuracy(of_fake, test.images, test.labels)

    counts = torch.bincount(test.labels)
    share = f"{counts.max() / counts.sum():.2f} of them are {seen.classes[int(counts.argmax())]}"
    tested = f"tested on {len(test.images)} {where} ({share})"
    on_real = f"small network after {steps} steps on {len(seen.images)} real images"
    on_fake = f"small network after {steps} steps on {len(fake)} generated images"
    how = f"{on_real}, tested on {len(fake)} generated ones; real images: {tested}"
    how_reverse = f"{on_fake}, {tested}; real images: {on_real}"
    return [
        measured("class accuracy", forward, how, real),
        measured("class accuracy, reverse", reverse, how_reverse, real),
    ]


def accuracy(network, images, labels):
    """The share of images whose class the network gets right."""
    return (predict(network, images) == labels).double().mean().item()


def class_fids(train, fake, asked, n, dim, weights, device):
    """FID of each class (of many: of the first 16), n generated against n real training images."""
    how = f"{n} generated images of the class against {n} real ones of the training set; real "
    how += f"images: {n} others of these; compares with FIDs of {n} images only"
    how = f"{features_words(dim, weights)}; {how}"
    values = []
    for c, class_name in enumerate(train.classes[:16]):
        name = f"{metric_name('FID', dim)} of {class_name}"
        of_real = (train.labels == c).nonzero()[:, 0]
        of_fake = (asked == c).nonzero()[:, 0]
        if min(len(of_real) // 2, len(of_fake)) < n:
            counts = f"{len(of_real)} real and {len(of_fake)} generated images"
            values.append(not_measured(name, f"{counts}: {2 * n} and {n} are needed"))
            continue
        chosen = of_real[shuffled(len(of_real), 0)[: 2 * n]]
        words = f"features, {class_name}"
        real = real_features(train.images[chosen], (dim,), weights, device, "fp32", words)[dim]
        generated = features(fake[of_fake[:n]], (dim,), weights, device, words=words)[dim]
        floor = fid(real[:n], real[n:])
        values.append(measured(name, fid(real[:n], generated), how, floor))
    return values


# ------------------------------------------------------------------------------------ everything


def measured(name, value, protocol, real=None, **more):
    """One measured value in the form that evaluate() describes."""
    return {"name": name, "value": value, "real": real, **more, "protocol": protocol}


def not_measured(name, reason):
    """A value that cannot be measured, in the same form."""
    return {"name": name, "value": None, "reason": reason}


def metric_name(kind, dim):
    """The name of an FID or KID: "FID-768" for 768 features, "FID" for the usual 2048."""
    return kind if dim == 2048 else f"{kind}-{dim}"


def usable_dims(dims, weights):
    """Which of `dims` do the weights reach? -> (weights, list of those).

    For a training script, once at its start: prints one line for those out of reach. The weights
    come back as Weights if they can be read.
    weights: None for the official file; a path, which must exist (MissingWeights).
    """
    if weights is not None:
        weights = load_weights(weights)
    weights, usable, reasons = reachable(dims, weights)
    if reasons:
        names = " and ".join(metric_name("FID", dim) for dim in reasons)
        print(f"not measured here: {names} ({reasons[max(reasons)]})")
    return weights, usable


def averaged_down(images, words, like):
    """Real images at the size of generated ones, which a growing model makes smaller at first.

    images: uint8 (N, C, H, W); words: what they are; like: uint8 (M, C, h, w).
    Returns the images at h x w, averaged over blocks, and the words, which say so.
    """
    h, w = images.shape[2:]
    height, width = like.shape[2:]
    if (h, w) == (height, width):
        return images, words
    if h < height or h * width != w * height:
        sizes = f"{words} have {w}x{h} pixels and generated ones {width}x{height}"
        raise InputError(f"{sizes}: only larger ones of the same shape can be averaged down")
    small = [F.interpolate(x.float(), (height, width), mode="area") for x in in_chunks(images)]
    return torch.cat(small).round().byte(), f"{words} averaged down to {width}x{height}"


def curve(real, fake, dims, weights, device="cpu", real_words="real images"):
    """What a row of log.csv gets: {"fid_768": 3.1, "kid_768": 0.004, ..., "ssim": 0.1}.

    Some of the values of evaluate(), with the same arguments, and similarities() of generated and
    real images. Columns whose features the weights do not reach are left out.
    """
    real, _ = averaged_down(real, real_words, fake)
    weights, dims, _ = reachable(dims, weights)
    scores = {}
    if dims:
        x = real_features(real, dims, weights, device, "fp32", "features, real")
        y = features(fake, dims, weights, device, words="features, generated")
    for dim in dims:
        scores[f"fid_{dim}"] = fid(x[dim], y[dim])
        scores[f"kid_{dim}"], _ = kid(x[dim], y[dim])
    for name, (mean, _) in pair_similarities(*same_channels(real, fake)).items():
        scores[name] = mean
    return scores


def same_channels(real, fake):
    """Two sets of images; gray next to color becomes three equal channels, as for the features."""
    channels = max(real.shape[1], fake.shape[1])
    return real.expand(-1, channels, -1, -1), fake.expand(-1, channels, -1, -1)


def evaluate(
    real,
    fake,
    floor=None,
    *,
    dims=(768, 2048),
    weights=None,
    device="cpu",
    precision="fp32",
    seed=0,
    resamples=0,
    real_words="real images",
    fake_words="generated images",
):
    """Measure everything for two sets of images, uint8 (N, C, H, W) on the CPU.

    Real images that are larger than the generated ones are averaged down to their size first.
    floor: other real images, compared with `real` in the same way; give as many as `fake` has.
    weights: Weights, their path, or None for the official file. precision: see features().
    seed: of KID's subsets and SSIM's pairs. resamples: for standard errors of FID and KID, see
    bootstrap(); 0 for none. real_words, fake_words: what the images are, for "1000 <words>".

    Returns a list of dicts of plain values, one for each metric:
        name      "FID-768", "KID-768", "collapse (features 768)", ...; of 2048 features: "FID",
                  "KID"; "precision-768", "recall-768", ...; "MS-SSIM (generated, real)",
                  "MS-SSIM (among generated)", "MS-SSIM, 3 scales (generated, real)" (if the
                  images have at least 44 pixels), "SSIM (generated, real)", "collapse (pixels)"
        value     None if the weights do not reach the features; then "reason" says why, and there
                  are no other keys. KID is not multiplied by 1,000
        real      the same for real images: FID, KID and neighbours of `floor` (None without it),
                  SSIM, MS-SSIM and collapse among `real`
        protocol  how it was measured, in words
        se        with resamples: standard errors of FID and KID
        std, real_std        of KID, over subsets
        pairs, real_pairs    of collapse: out of how many
        error, real_error    of SSIM and MS-SSIM: standard errors of the means over pairs
    """
    for images, words in ((real, real_words), (fake, fake_words)):
        if len(images) < 2:
            raise InputError(f"{len(images)} {words}: at least 2 are needed on each side")
    if min(len(real), len(fake)) < 100:
        counts = f"{len(fake)} generated and {len(real)} real images"
        words = "with less than 100 on a side, most of a value is chance"
        datasets.say_once(f"note: {counts} are few: {words}")
    real, real_words = averaged_down(real, real_words, fake)
    against = f"{len(fake)} {fake_words} against {len(real)} {real_words}"
    with_floor = against
    if floor is not None:
        floor, floor_words = averaged_down(floor, "other real images", fake)
        with_floor += f"; real images: {len(floor)} {floor_words} against the same"

    values = []
    weights, usable, reasons = reachable(dims, weights)
    z = {}  # features of the floor
    if usable:
        settings = (usable, weights, device, precision)
        x = real_features(real, *settings, "features, real")
        y = features(fake, *settings, words="features, generated")
        if floor is not None:
            z = real_features(floor, *settings, "features, floor")
    for dim in dims:
        if dim in reasons:
            names = [metric_name(kind, dim) for kind in ("FID", "KID")]
            values += [not_measured(name, reasons[dim]) for name in names]
            continue
        source = features_words(dim, weights, precision)
        how = f"{source}; {with_floor}"
        values += distance_values(dim, x[dim], y[dim], z.get(dim), how, resamples, seed)
        how = f"{source}; {against}"
        values.append(collapse_value(f"features {dim}", x[dim], y[dim], how))
    if usable:
        dim = max(usable)
        how = f"{features_words(dim, weights, precision)}; {with_floor}"
        values += neighbour_values(dim, x[dim], y[dim], z.get(dim), how)
    values += similarity_values(*same_channels(real, fake), seed, against)
    values.append(collapse_value("pixels", real, fake, f"pixels in [-1, 1]; {against}"))
    return values


def distance_values(dim, real, fake, floor, how, resamples, seed):
    """FID and KID of features (N, dim), (M, dim), (K, dim) or None. how: the protocol so far."""
    mean, std = kid(real, fake, seed=seed)
    floor_fid = floor_mean = floor_std = None
    if floor is not None:
        floor_fid = fid(real, floor)
        floor_mean, floor_std = kid(real, floor, seed=seed)
    fid_error = {}
    kid_error = {"std": std, "real_std": floor_std}
    if resamples:
        how += f"; standard error (se) from {resamples} bootstrap resamples of both sides"
        fid_error["se"], kid_se = bootstrap(real, fake, resamples, seed)
        # Given the images, the mean of 100 random subsets scatters around the KID of all by std/10.
        kid_error["se"] = float(np.hypot(kid_se, std / 10))
    fid_how = f"{how}; covariances N-1"
    if dim != 2048:
        fid_how += f"; another scale than the usual 2048-d FID: compares with FID-{dim} only"
    size = min(len(real), len(fake), 1000)
    everything = len(real) == len(fake) == size
    subsets = "one subset, all of them" if everything else f"100 subsets of {size}, seed {seed}"
    kid_how = f"{how}; cubic kernel, {subsets}"
    return [
        measured(metric_name("FID", dim), fid(real, fake), fid_how, floor_fid, **fid_error),
        measured(metric_name("KID", dim), mean, kid_how, floor_mean, **kid_error),
    ]


def neighbour_values(dim, real, fake, floor, how):
    """Precision, recall, density and coverage of features: see distance_values()."""
    if min(len(real), len(fake)) <= NEIGHBOURS:
        reason = f"{NEIGHBOURS} nearest neighbours need more than {NEIGHBOURS} images on each side"
        names = ("precision", "recall", "density", "coverage")
        return [not_measured(metric_name(name, dim), reason) for name in names]
    among_real = {}
    if floor is not None and len(floor) > NEIGHBOURS:
        among_real = prdc(real, floor)
    values = []
    for name, share in prdc(real, fake).items():
        protocol = f"by {NEIGHBOURS} nearest neighbours; {how}"
        values.append(measured(metric_name(name, dim), share, protocol, among_real.get(name)))
    return values


def similarity_values(real, fake, seed, against):
    """SSIM and MS-SSIM of pairs, of uint8 (N, C, H, W) and (M, C, H, W).

    A perfect generator's images are as similar, to each other and to real ones, as two different
    real images are.
    """
    sizes = windows(*real.shape[2:])
    all_sizes = " ".join(str(size) for size in sizes)
    kinds = {  # name and protocol
        "ms-ssim": ("MS-SSIM", f"Gaussian windows of {all_sizes} pixels from the finest level"),
        "ms-ssim-3": ("MS-SSIM, 3 scales", "as TorchMetrics with its first 3 betas, windows of 11"),
        "ssim": ("SSIM", f"a Gaussian window of {sizes[0]} pixels"),
    }
    of_real = pair_similarities(real, seed=seed)
    values = []
    for which, sides in (("generated, real", (real, fake)), ("among generated", (fake,))):
        for key, (mean, error) in pair_similarities(*sides, seed=seed).items():
            if which == "among generated" and key != "ms-ssim":
                continue  # one measure of diversity is enough
            name, how = kinds[key]
            real_mean, real_error = of_real[key]
            protocol = f"mean over 1000 random pairs ({which}; seed {seed}) +- its standard error; "
            protocol += f"real images: pairs of two different real images; {how}; {against}"
            errors = {"error": error, "real_error": real_error}
            values.append(measured(f"{name} ({which})", mean, protocol, real_mean, **errors))
    return values


def collapse_value(name, real, fake, how):
    """collapse() of generated images or features, next to that of real ones."""
    count, pairs = collapse(fake)
    real_count, real_pairs = collapse(real)
    how = f"ordered pairs with cosine similarity above 0.9, not centred, of {how}"
    totals = {"pairs": pairs, "real_pairs": real_pairs}
    return measured(f"collapse ({name})", count, how, real_count, **totals)


# ---------------------------------------------------------------------------------------- tables


def format_value(value, key="value"):
    """One entry of a measured value as text. key: "value", or "real" for real images."""
    number = value.get(key)
    if number is None:
        return "-"
    prefix = "" if key == "value" else "real_"
    se = value.get(f"{prefix}se")
    if f"{prefix}pairs" in value:
        return f"{number:,} of {value[prefix + 'pairs']:,}"
    if f"{prefix}error" in value:
        return f"{number:.4f} +- {value[prefix + 'error']:.4f}"
    if f"{prefix}std" in value:  # KID
        std = value[prefix + "std"]
        text = f"{1e3 * number:.2f}"
        if std > 0:  # it is 0 if one subset holds all images
            text += f" +- {1e3 * std:.2f}"
        return text if se is None else f"{text} (se {1e3 * se:.2f})"
    text = f"{number:.2f}" if abs(number) >= 1 else f"{number:.4f}"
    return text if se is None else f"{text} (se {se:.2g})"


def title(value):
    """The name of a value in a table, with its unit."""
    name = value["name"]
    return f"{name} x 10^3" if name.startswith("KID") else name


def table(values, report=None):
    """Values as text: the protocol that most share, a line for each value with that of real images,
    and what else there is to say about some of them.

    report: {name: published value}, printed next to ours of the same name.
    """
    report = report or {}
    rows = [["", "value", "real images", "report"]]
    protocols = []
    for value in values:
        ours = "not measured" if value["value"] is None else format_value(value)
        theirs = f"{report[value['name']]:,}" if value["name"] in report else ""
        rows.append([title(value), ours, format_value(value, "real"), theirs])
        protocols.append((value["name"], protocol_of(value)))
    if all(row[3] == "" for row in rows[1:]):
        rows = [row[:3] for row in rows]
    return text_of(rows, protocols)


def protocol_of(value):
    """How a value was measured, or why it was not."""
    return value.get("protocol") or f"not measured here: {value['reason']}"


def text_of(rows, protocols, lines=()):
    """Lines, the protocols that most share, rows of cells in aligned columns, other protocols."""
    common, special = folded(protocols)
    lines = [*lines, *common, ""]
    widths = [max(len(cell) for cell in column) for column in zip(*rows, strict=True)]
    for row in rows:
        padded = [cell.ljust(width) for cell, width in zip(row, widths, strict=True)]
        lines.append("  ".join(padded).rstrip())
    return "\n".join(printable(line, 5000) for line in [*lines, "", *special]).strip("\n")


def folded(protocols):
    """Protocols as lines in which each of their parts stands once: "whose: part; part".

    protocols: [(whose, words)]. Returns the lines about most values, and those about a few.
    """
    owners = {}  # part -> those whose protocol has it
    for whose, words in protocols:
        for part in re.split(r"; (?![^()]*\))", words):  # not inside of brackets
            owners.setdefault(part, {})[whose] = None
    parts = {}  # owners -> their parts
    for part, whose in owners.items():
        parts.setdefault(tuple(whose), []).append(part)
    common = []
    special = []
    everybody = dict(protocols)
    for whose in sorted(parts, key=len, reverse=True):
        words = "; ".join(parts[whose])
        rest = [name for name in everybody if name not in whose]
        if len(rest) < len(whose):
            common.append(f"all but {', '.join(rest)}: {words}" if rest else words)
        else:
            special.append(f"{', '.join(whose)}: {words}")
    return common, special


def comparison(results):
    """Several lists of values as one text: a row for each value, a column for each list.

    The protocols follow. Where the columns differ, each protocol names its own.
    results: [(what the images are, values)].
    """
    letters = [chr(ord("A") + i) for i in range(len(results))]
    if len(results) > 26:
        letters = [str(i + 1) for i in range(len(results))]
    lines = [f"{letter}: {words}" for letter, (words, _) in zip(letters, results, strict=True)]
    images = {}  # letter -> what they are, without their name
    by_title = {}  # title -> {letter: value}, in order
    for letter, (words, values) in zip(letters, results, strict=True):
        images[letter] = words.split(": ", 1)[-1]
        for value in values:
            by_title.setdefault(title(value), {})[letter] = value

    rows = [["", *letters, "real images"]]
    whose_protocols = []
    for name, columns in by_title.items():
        cells = [format_value(columns.get(letter, {})) for letter in letters]
        # of real images there is usually one value for all columns
        real_cells = dict.fromkeys(format_value(value, "real") for value in columns.values())
        rows.append([name, *cells, " ".join(real_cells)])
        protocols = {}  # words -> letters
        for letter, value in columns.items():
            words = protocol_of(value).replace(images[letter], "images of the column")
            protocols.setdefault(words, []).append(letter)
        for words, of in protocols.items():
            which = f" ({','.join(of)})" if len(protocols) > 1 else ""
            whose_protocols.append((f"{value['name']}{which}", words))

    return text_of(rows, whose_protocols, lines)


def write_result(run, values, preset):
    """Write metrics.json of a run that reproduces a report, and print ours next to the report's.

    run: training.Run. values: of evaluate() and so on. preset: its flags, and its "report": {name:
    published value, "protocol": words}. Call it before any plot is made.
    """
    report = preset["report"]
    changed = training.changed_flags(run.args, preset)
    comparable = not changed.keys() & training.COMPARABLE
    words = " ".join(training.flag_words(changed))
    result = {"values": values, "report": report, "weights": run.weights_words()}
    result |= {"changed": words, "comparable": comparable, "step": run.step}
    write_text(run.path / "metrics.json", json.dumps(result, indent=1))
    if changed:
        print(f"\nnot quite the preset {run.args.preset}: {printable(words, 1000)}")
    if comparable:
        print(f"\n{run.args.preset}: ours beside the report's. Its protocol: {report['protocol']}")
        print(table(values, report))
    else:
        print("so its numbers do not compare with the report's (see docs/reports.md)\n")
        print(table(values))


# ---------------------------------------------------------------------------------- command line


NO_HASHES = torch.empty(0, dtype=torch.int64)


class Side(NamedTuple):
    """A side on the command line: a data set, a checkpoint and its model, or statistics."""

    name: str  # the data set's name or path, or that of the checkpoint or the statistics
    checkpoint: dict | None = None
    script: ModuleType | None = None
    model: nn.Module | None = None
    statistics: tuple | None = None  # mean and covariance of features, float64 (d,) and (d, d)


def parse_args(argv=None):
    parser = new_parser("metrics.py", __doc__)
    parser.usage = "metrics.py REAL FAKE [FAKE ...] [flags]"
    add = parser.groups["data"].add_argument
    add("real", metavar="REAL", help="real images; of a data set with a test split, that split")
    add("fake", metavar="FAKE", nargs="+", help="generated images: a run, a folder, ...")
    counts = number(int, 0, 100_001)
    add("--eval-images", type=number(int, 2, 100_001), default=1000, help="images from each side")
    add("--size", type=number(int, 8, 1025), help="size in pixels [the model's or the images' own]")
    add("--fit", choices=datasets.FITS, help="how images become square [the model's, or crop]")
    add = parser.groups["run"].add_argument
    add("--seed", type=number(int, 0, 2**32), default=0, help="chooses images, subsets and pairs")
    add("--device", default="auto", help="auto, cpu, cuda, cuda:1 or mps")
    add("--precision", choices=["fp32", "bf16"], default="fp32", help="of the Inception network")
    add("--json", action="store_true", help="print JSON instead of a table")
    add = parser.groups["evaluation"].add_argument
    words = "features of Inception: 64, 192, 768, 2048 or several [768 2048]"
    add("--dims", type=int, nargs="+", metavar="N", choices=DIMS, help=words)
    add("--weights", metavar="FILE", help="FID Inception weights [torch's cache, or downloaded]")
    add("--floor", action="store_true", help="also compare other real images with the real ones")
    add("--bootstrap", type=counts, default=0, metavar="B", help="standard errors from B resamples")
    words = "also search N training images for copies, or all without N [no search]"
    add("--neighbours", type=number(int, 1), nargs="?", const=2**31 - 1, help=words)
    add("--no-classes", action="store_true", help="do not check that images obey their class")
    add("--iwae", type=counts, default=0, metavar="K", help="bound of a VAE from K samples")
    args = parser.parse_args(argv)
    if args.bootstrap == 1:
        parser.error("--bootstrap must be at least 2 (0: none)")
    return args


def note(text):
    """A remark for the user that is not a result."""
    print(f"metrics.py: {printable(text, 1000)}", file=sys.stderr)


def checkpoint_files(path):
    """The files that a checkpoint or a run directory stands for: best.pt, last.pt. [] for data."""
    path = Path(path)
    if not path.is_dir():
        return [path] if path.suffix == ".pt" else []
    files = [path / name for name in ("best.pt", "last.pt") if (path / name).exists()]
    if not files and (path / "args.json").exists():
        raise InputError(f"'{path}' is a run directory without a checkpoint")
    return files


def open_sides(text, device):
    """The Sides that an argument stands for: two for a run whose best step is not its last."""
    sides = []
    for file in checkpoint_files(text):
        checkpoint = training.read_checkpoint(file)
        checkpoint.setdefault("chosen_on", NO_HASHES)  # only best.pt has some
        training.check_fields(file, checkpoint, chosen_on=torch.LongTensor)
        script, model = training.open_model(checkpoint, device)
        if sides and sides[0].checkpoint["step"] == checkpoint["step"]:  # the best is the last
            sides = []
        sides.append(Side(str(file), checkpoint, script, model))
    return sides or [Side(text, statistics=read_statistics(text))]


def agreed(flag, asked, sides):
    """--size or --fit: the value asked for or that of the models, or None without either.

    InputError if they disagree. Models of the same pixels never do: these were square already.
    """
    models = [side.checkpoint for side in sides if side.checkpoint]
    of_data = {model["data"]["fingerprint"]: model["flags"][flag] for model in models}
    values = {asked, *of_data.values()} - {None}
    if len(values) > 1:
        words = f"--{flag} or the models disagree ({' and '.join(map(str, sorted(values)))})"
        raise InputError(f"{words}: a model makes images of one kind only")
    return max(values, default=None)


def common_size(sides, say=note):
    """The size at which data sets are compared, in pixels: the smallest one, but from 64 to 512.

    say: takes the line that says so if they differ.
    """
    # shapes are drawn at any size
    names = [side.name for side in sides if not side.statistics and side.name != "shapes"]
    native = {name: datasets.native_size(name) for name in names}
    size = min(max(64, min(native.values(), default=64)), 512)  # Inception sees 299
    if set(native.values()) - {size}:
        sizes = " and ".join(f"{name} {own}" for name, own in native.items())
        say(f"all images are compared at {size} pixels (they have: {sizes}); --size says another")
    return size


def draw(side, n, size, split, seed, fit="crop", chosen_on=NO_HASHES):
    """Up to n images of a Side: datasets.Images, with a note that says what they are.

    chosen_on: hashes of real images that are left out, see without().
    """
    if side.statistics:
        words = f"statistics (mu, sigma) in {side.name}"
        return datasets.Images(torch.empty(0), None, [], side.name, "", False, words)
    if side.script is None:
        return draw_data(side.name, n, size, split, seed, fit, chosen_on)
    images = side.script.generate(side.model, n, seed)
    classes = side.checkpoint["data"]["classes"]
    labels = None
    if hasattr(side.script, "asked_labels") and len(classes) > 1:
        labels = side.script.asked_labels(side.model, n, seed)
    words = f"images by {side.checkpoint['script']}, {training.weights_used(side.checkpoint)}"
    return datasets.Images(images, labels, classes, side.name, "", False, f"{words}, seed {seed}")


def draw_data(name, n, size, split, seed, fit, chosen_on):
    """Up to n random images of a data set, in the same form."""
    data = load(name, size, split, fit)
    origin = "held-out test split" if split == "test" else split
    if split == "test" and not data.held_out:
        origin = "no held-out split: a model may have trained on them"
        if len(data.images) - len(chosen_on) < n:
            data = load(name, size, "all", fit)
    data = without(data, chosen_on)
    words = f"images of {data.name} ({origin}; {data.note}; drawn with seed {seed})"
    return pick(data, shuffled(len(data.images), seed)[:n])._replace(note=words)


def statistics_values(pairs, weights, device, precision):
    """FID where a Side has statistics instead of images. pairs: both Sides with their Images."""
    how = " against ".join(data.note for _, data in reversed(pairs))
    d = next(len(side.statistics[0]) for side, _ in pairs if side.statistics)
    both = []
    for side, data in pairs:
        if side.statistics:
            both.append(side.statistics)
            continue
        x = features(data.images, (d,), weights, device, precision)[d]
        both.append(moments(x))
        how = f"{features_words(d, weights, precision)}; {len(x)} images: {how}"
    first, second = both
    if len(first[0]) != len(second[0]):
        raise InputError("the two statistics have different numbers of features")
    distance = frechet(*first, *second)
    others = not_measured("all else", "statistics (mu, sigma) hold no images")
    return [measured(metric_name("FID", d), distance, how), others]


def class_values(args, fake, size, classes, settings):
    """conditional() for labelled data on the real side. classes: of the generated side."""
    parts = load_parts(args.real, size, fit=args.fit)
    train, held_out = [without(data, args.chosen_on) for data in parts]
    if train.classes != classes:
        note("the two sides have different classes: whether the class is obeyed is not measured")
        return []
    n = args.eval_images
    many = draw(fake, conditional_count(train, n), size, "all", args.seed + 1)
    return conditional(train, held_out, many.images, many.labels, eval_images=n, **settings)


def own_values(args, fake, size):
    """What the script of a VAE measures itself, on the data of the real side."""
    about = fake.checkpoint["data"]
    parts, same_data = parts_of(args, fake, size)
    data, split = datasets.measured_on(*parts)
    same_classes = data.classes == about["classes"] or not hasattr(fake.script, "asked_labels")
    if data.images.shape[1] != about["channels"] or not same_classes:
        note(f"{args.real} has other channels or classes than {fake.name}: its bound is left out")
        return []
    data = without(data, args.chosen_on)
    data = pick(data, shuffled(len(data.images), 1)[: args.eval_images])
    values = fake.script.own_values(fake.model, data, args.iwae)
    words = split if same_data else "given"  # the model never trained on other data
    return autoencoder(**values, words=f"{len(data.images)} {words} images of {data.name}")


def parts_of(args, fake, size):
    """The training and the held-out images (or None) of the real side, and whether they are those
    of the model on the other side."""
    about = fake.checkpoint["data"] if fake.checkpoint else {}
    data = load(args.real, size, fit=args.fit)
    same_data = data.fingerprint == about.get("fingerprint")
    flags = fake.checkpoint["flags"] if same_data else {}
    chosen = (flags.get("hold_out", 0), args.fit, flags.get("limit_per_class"))
    return load_parts(args.real, size, *chosen), same_data


def training_neighbours(args, side, fake, size, settings):
    """How near generated images are to training images: values, and neighbours.png in a run.

    Of two checkpoints of a run, the later one leaves its picture. side: the generated one; fake:
    its Images. See neighbours.py.
    """
    with datasets.needed("neighbours.py"):
        import neighbours
    (train, held_out), same_data = parts_of(args, side, size)
    if side.checkpoint and not same_data:
        note(f"{side.name} was trained on other images than {args.real}: give those as REAL")
    held_out = without(held_out, args.chosen_on)
    real = neighbours.choose_real(train, held_out, args.eval_images, args.neighbours)
    results = neighbours.compare(real, fake.images, precision=args.precision, **settings)
    run = run_of(side)
    if run:
        picture = neighbours.draw(fake.images, real.train, results)
        datasets.save_picture(picture, run / "neighbours.png")
        note(f"wrote {run / 'neighbours.png'}")
    return [result.value for result in results]


def without(data, chosen_on):
    """Images without those that chose a best.pt. chosen_on: their datasets.image_hashes()."""
    if data is None or len(chosen_on) == 0:
        return data
    chosen = torch.isin(datasets.image_hashes(data.images), chosen_on)
    words = f"{chosen.sum():,} images of {data.name} chose best.pt"
    if chosen.all():
        raise InputError(f"all {words}: measure last.pt, or give other real images")
    if chosen.any():
        datasets.say_once(f"metrics.py: {words} and are left out")
        data = pick(data, ~chosen, f", without {chosen.sum():,} that chose best.pt")
    return data


def run_of(side):
    """The run directory in which the checkpoint of a Side lies, or None."""
    run = Path(side.name).absolute().parent
    if run.name == "kept" and not (run / "args.json").is_file():
        run = run.parent
    return run if side.checkpoint and (run / "args.json").is_file() else None


def write_into_run(side, result):
    """Write what was measured of a checkpoint into its run directory, if it lies in one.

    The file is metrics-<best, last or other>-<real>.json; a later one replaces it. result: a dict
    with the name of the "real" images, their "size", the number of "images", and "values".
    """
    run = run_of(side)
    if run is None:
        return
    file = Path(side.name)
    real = re.sub(r"[^\w.,+=@() -]", "_", result["real"])[-50:]  # what a system may refuse
    path = run / f"metrics-{file.stem}-{real}.json"
    result |= {"checkpoint": file.name, "step": side.checkpoint["step"]}
    result["weights"] = training.weights_used(side.checkpoint)
    try:
        write_text(path, json.dumps(result, indent=1))
        if (run / "report.html").exists() and Path(__file__).with_name("report.py").is_file():
            datasets.say_once(f'metrics.py: python report.py "{printable(run)}" updates its page')
    except OSError as error:
        note(f"the results are not kept: {error}")


def main(argv=None):
    args = parse_args(argv)
    device, _ = training.pick_device(args.device, args.precision)
    real_side = open_sides(args.real, device)[-1]
    real_is_data = not (real_side.script or real_side.statistics)
    fake_sides = [side for text in args.fake for side in open_sides(text, device)]
    sides = [real_side, *fake_sides]
    hashes = [side.checkpoint["chosen_on"].flatten() for side in sides if side.checkpoint]
    args.chosen_on = torch.cat([NO_HASHES, *hashes])
    weights = args.weights
    given = [len(side.statistics[0]) for side in sides if side.statistics]
    if args.weights or args.dims or 0 < len(given) < len(sides):
        # whatever is asked for by name must be there: fail early
        weights = load_weights(args.weights)
        require(weights, max([64, *(args.dims or []), *given]))
    are_vaes = [real_is_data and hasattr(side.script, "own_values") for side in fake_sides]
    if args.iwae and not any(are_vaes):
        raise InputError("--iwae needs real images on one side and a VAE on the other")
    if args.neighbours and not (real_is_data and all(not s.statistics for s in fake_sides)):
        raise InputError("--neighbours needs training images on the real side, and no statistics")

    remarks = []  # said when nothing can be wrong any more
    if real_side.statistics and len(args.chosen_on):
        remarks.append(f"{args.real} holds no images: some behind it may have chosen best.pt")
    size = agreed("size", args.size, sides) or common_size(sides, remarks.append)
    args.fit = agreed("fit", args.fit, sides) or "crop"
    for side in sides:
        if not (side.script or side.statistics):
            # prepares it: a mistake in the last one must not cost the time of sampling
            load(side.name, size, "all", args.fit)
    # 2 n images with or without --floor, so that --floor does not change the first n. A model that
    # is on both sides must not make the same images twice.
    n = args.eval_images
    seed = args.seed if real_is_data else args.seed + 1
    pool = draw(real_side, 2 * n, size, "test", seed, args.fit, args.chosen_on)
    total = len(pool.images)
    if args.floor and 0 < total < 2 * n:
        n = total // 2
        args.eval_images = n
        words = f"{n} on each side, and {n} for --floor"
        remarks.append(f"{args.real} has only {total} images: {words}")
    floor = pool.images[n : 2 * n] if args.floor else None
    pool = pick(pool, slice(n))
    choice = (args.seed, args.fit, args.chosen_on)
    fakes = [draw(side, n, size, "all", *choice) for side in fake_sides]
    needed = 10 if args.bootstrap else 2
    for side, data in zip(sides, [pool, *fakes], strict=True):
        count = len(data.images)
        if count < needed and not side.statistics:
            words = f"at least {needed} are needed on each side (with --floor twice as many)"
            raise InputError(f"too few images of {side.name}: {words}")
        if 0 < count < n:
            remarks.append(f"{side.name} has only {count} of the {n} images asked for")
    for remark in remarks:
        note(remark)

    settings = {"dims": args.dims or (768, 2048), "weights": weights, "device": device}
    more = {"precision": args.precision, "seed": args.seed, "resamples": args.bootstrap}
    results = []
    for side, fake, is_vae in zip(fake_sides, fakes, are_vaes, strict=True):
        own = []  # first, because it is quick to find what is wrong
        if is_vae:
            own = own_values(args, side, size)
        if args.neighbours:
            own += training_neighbours(args, side, fake, size, settings)
        if real_side.statistics or side.statistics:
            pairs = [(real_side, pool), (side, fake)]
            values = statistics_values(pairs, weights, device, args.precision)
        else:
            words = {"real_words": pool.note, "fake_words": fake.note}
            values = evaluate(pool.images, fake.images, floor, **settings, **more, **words)
        labelled = pool.labels is not None and fake.labels is not None
        if labelled and real_is_data and not args.no_classes:
            values += class_values(args, side, size, fake.classes, settings)
        results.append({"fake": side.name, "images": fake.note, "values": values + own})
    if args.json:
        print(json.dumps({"real": args.real, "size": size, "fakes": results}))
    elif len(results) == 1:
        print(table(results[0]["values"]))
    else:
        columns = [(f"{r['fake']}: {r['images']}", r["values"]) for r in results]
        print(comparison(columns))
    for side, result in zip(fake_sides, results, strict=True):
        about = {"real": pool.name, "size": size, "images": n, "values": result["values"]}
        write_into_run(side, about)


if __name__ == "__main__":
    run_program(main)
