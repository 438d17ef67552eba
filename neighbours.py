"""neighbours.py: does a model repeat its training images? A number, and a picture to look at.

A model that has learned images by heart makes images that are nearer to its training images than
new real images are (Meehan, Chaudhuri, Dasgupta 2020: A Non-Parametric Test to Detect Data-Copying
in Generative Models, arXiv 2004.05675). Three sets of images are compared, by Inception features
and by pixels: training images, held-out real images, and generated ones.

    distance of an image    to its nearest training image, Euclidean
    limit                   the k-th smallest distance of H held-out images, k = (H + 1) / 20
    near training           the share of generated images whose distance is at most this limit

A perfect generator scores k / (H + 1), which is 5 % or a little less, whatever the images are:
among H + 1 images of one kind, each is equally likely to be one of the k nearest. A model that
copies its training images scores up to 100 %. One whose images resemble no real image scores 0 %.
The paper compares the whole range of distances by their ranks; the smallest 5 % also show a model
that copies one image in ten.

`python metrics.py DATA RUN --neighbours` prints the share next to that of other held-out images,
and writes neighbours.png into the run.
"""

import math
from typing import NamedTuple

import torch
from PIL import Image

from datasets import from_uint8, grid, shuffled
from inception import features, features_words, reachable, real_features
from sample import write_words
from sources import InputError

FEWEST = 19  # held-out images: with less, k is 0
IMAGES = 16  # generated ones in neighbours.png
NEAREST = 3  # training images beside each of them
TILE = 96  # pixels, at least


class Real(NamedTuple):
    """Real images for the comparison, each uint8 (n, C, H, W)."""

    train: torch.Tensor  # in random order
    held_out: torch.Tensor  # they set the limit
    others: torch.Tensor  # for the floor; held out, too. May be empty
    own: bool  # whether held_out and others are the first training images instead
    words: str  # what all of these are


class Nearness(NamedTuple):
    """How near generated images are to training images, by one description of the images."""

    name: str  # "pixels", "features 768", ...
    value: dict  # the share of images within the limit, in the form of metrics.evaluate()
    distances: torch.Tensor  # float64 (n, NEAREST), of each generated image
    rows: torch.Tensor  # int64 (n, NEAREST), the training images


def choose_real(train, held_out, count, most):
    """What datasets.load_parts gives -> Real, with `count` held-out images and as many others.

    Without held-out images, training images take their place, and each is compared with all others.
    Then one training image less is all that differs. most: training images to search.
    """
    total = len(train.images)
    images = train.images[shuffled(total, 0)[:most]]
    pool = images if held_out is None else held_out.images[shuffled(len(held_out.images), 0)]
    if len(pool) < FEWEST:
        raise InputError(f"{len(pool)} held-out images are too few: it takes {FEWEST}")
    half = min(max(count, FEWEST), len(pool) // 2)
    if half < FEWEST:  # too few for a floor
        half = len(pool)
    others = pool[half : 2 * half]
    words = f"{len(images):,} of the {total:,} training images of {train.name} were searched; "
    if held_out is None:
        words += "nothing is held out, so training images stand in, each compared with all others: "
    words += f"{half} held-out images set the limit, {len(others)} others are the real images"
    return Real(images, pool[:half], others, held_out is None, words)


def compare(real, generated, dims, weights, device="cpu", precision="fp32"):
    """Real and generated images, uint8 (n, C, H, W) -> a list of Nearness: by the largest of `dims`
    that the weights reach, if any, and by pixels."""
    if generated.shape[1:] != real.train.shape[1:]:
        shapes = f"{tuple(generated.shape[1:])} and {tuple(real.train.shape[1:])}"
        raise InputError(f"generated and training images differ in channels or size: {shapes}")
    sets = [generated, real.train, real.held_out, real.others]
    by_pixels = nearness("pixels", sets, real.own, f"pixels in [-1, 1]; {real.words}")
    weights, usable, _ = reachable(dims, weights)
    if not usable:
        return [by_pixels]
    dim = max(usable)
    settings = ((dim,), weights, device, precision)
    described = [features(generated, *settings, words="features, generated")[dim]]
    described.append(real_features(real.train, *settings, "features, training")[dim])
    half = len(real.held_out)
    if real.own:
        rest = described[1]
    else:
        held_out = torch.cat([real.held_out, real.others])
        rest = real_features(held_out, *settings, "features, held out")[dim]
    described += [rest[:half], rest[half : half + len(real.others)]]
    how = f"{features_words(dim, weights, precision)}; {real.words}"
    return [nearness(f"features {dim}", described, real.own, how), by_pixels]


def nearness(name, sets, own, how):
    """Nearness of four sets, as `nearest` takes them: generated, training, held-out, others.

    own: whether the last two are the first rows of the training set. how: for the protocol.
    """
    generated, train, held_out, others = sets
    half = len(held_out)
    own_rows = torch.arange(half + len(others))
    distances, rows = nearest(generated, train, NEAREST)
    limits, _ = nearest(held_out, train, 1, own_rows[:half] if own else None)
    share, error = share_within(distances[:, 0], limits[:, 0])
    floor = floor_error = None
    if len(others):
        of_others, _ = nearest(others, train, 1, own_rows[half:] if own else None)
        floor, floor_error = share_within(of_others[:, 0], limits[:, 0])
    words = f"share of {len(generated)} generated images that are at most as far from their "
    words += f"nearest training image as the {(half + 1) // 20} nearest of {half} held-out images"
    doubles = int((limits == 0).sum())
    if doubles:
        words += f", {doubles} of which are training images, too"
    value = {"name": f"near training ({name})", "value": share, "real": floor}
    value |= {"error": error, "real_error": floor_error}
    value["protocol"] = f"{words}; Euclidean distance of {how}"
    return Nearness(name, value, distances, rows)


def share_within(distances, held_out):
    """The share of `distances` that are at most the k-th smallest of `held_out`, k = (H + 1) // 20,
    and its standard error. float64 (n,) and (H,): of images to their nearest training image."""
    n = len(distances)
    total = len(held_out)
    k = (total + 1) // 20
    limit = held_out.sort().values[k - 1]
    share = (distances <= limit).double().mean().item()
    q = k / (total + 1)
    # of n draws, and of the limit, which is a quantile of H draws
    return share, math.sqrt(share * (1 - share) / n + q * (1 - q) / total)


def nearest(x, train, k=1, own=None):
    """The k nearest rows of `train` for each row of x: distances, float64 (n, k), smallest first,
    and row numbers, int64 (n, k).

    x, train: (n, ...) and (N, ...), float, or uint8 for pixels, which are taken in [-1, 1]. own:
    int64 (n,), a row of `train` for each of x that is not compared, because it is the same image.
    """
    if len(train) - (own is not None) < k:
        raise InputError(f"{len(train)} training images are too few to find the nearest {k}")
    x = flat(x)
    best = torch.empty(len(x), 0)
    rows = torch.empty(len(x), 0, dtype=torch.int64)
    for start in range(0, len(train), 1024):  # memory does not grow with N
        chunk = flat(train[start : start + 1024])
        numbers = torch.arange(start, start + len(chunk)).expand(len(x), -1)
        # |x - y|^2 without |x|^2, which changes no order
        distances = chunk.square().sum(1) - 2 * x @ chunk.T
        if own is not None:
            distances[numbers == own[:, None]] = torch.inf
        best = torch.cat([best, distances], 1)
        rows = torch.cat([rows, numbers], 1)
        best, columns = best.topk(min(k, best.shape[1]), largest=False)
        rows = rows.gather(1, columns)
    # once more, exactly: a copy has distance 0 and not a rounding error
    exact = [(x - flat(train[rows[:, j]])).double().norm(dim=1) for j in range(k)]
    distances, order = torch.stack(exact, 1).sort(1)
    return distances, rows.gather(1, order)


def flat(x):
    """Features or images as float32 (n, d)."""
    x = torch.as_tensor(x)
    return (from_uint8(x) if x.dtype == torch.uint8 else x.float()).flatten(1)


def draw(generated, train, results):
    """The generated images nearest to a training image, each in a row with the nearest ones.

    generated, train: uint8 (n, C, H, W); results: of compare(). The first of them sets the order.
    Returns a PIL picture.
    """
    order = results[0].distances[:, 0].argsort()[:IMAGES]
    blocks = [("generated", grid(generated[order], 1))]
    for result in results:
        images = train[result.rows[order].flatten()]
        blocks.append((f"nearest training images by {result.name}", grid(images, NEAREST)))
    factor = math.ceil(TILE / generated.shape[-1])
    gap = 24
    width = sum(factor * picture.width + gap for _, picture in blocks)
    height = factor * blocks[0][1].height
    page = Image.new("RGB", (gap + width, height + 76), "white")
    left = gap
    for title, picture in blocks:
        size = (factor * picture.width, height)
        write_words(page, (left, 20), title, 14, width=size[0] + gap)
        page.paste(picture.resize(size, Image.Resampling.NEAREST), (left, 40))
        left += size[0] + gap
    words = f"of {len(generated)} generated images the {len(order)} that are nearest to a training "
    words += f"image by {results[0].name}, the nearest first"
    write_words(page, (gap, height + 58), words, 14, "#777777", width)
    return page
