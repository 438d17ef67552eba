"""datasets.py: every data set as one uint8 tensor, and the batches drawn from it.

A small image set fits in memory: 23,000 colour images of 64x64 are 290 MB of bytes. So there are no worker processes
and nothing is decoded during training. `load` decodes, crops and resizes each image once, keeps the result in
`data/<name>-<size>.npy`, and returns one tensor. `Batches` picks rows of it and scales them to [-1, 1].

    python datasets.py                                          # what there is, what is prepared, how large it is
    python datasets.py shapes --size 32 --show shapes.png       # look at it
    python datasets.py photos.zip --size 64 --stats             # count it
    python datasets.py photos.zip --size 64 --svd svd.png       # how many dimensions the images take up

A data set is one of the names below, or a path of your own: a folder or a zip of images (sub-folders are classes;
`train/` and `test/` or `val/` on top are splits), or an .npz with `images` uint8 (N, H, W[, C]) or (N, C, H, W) and,
if you have them, `labels`, `classes` and `split` (0 train, 1 test).

The last two sections hold what all scripts of the collection share: atomic files, locks, checkpoints and grids; and
`Run`, the plumbing around a training loop.
"""

import argparse
import sys

# name -> what it is and where it comes from
KNOWN = {
    "shapes": "five geometric shapes, drawn by this file; any size, labelled",
    "mnist": "70,000 handwritten digits, 28x28 grey (torchvision)",
    "fashion-mnist": "70,000 pieces of clothing, 28x28 grey (torchvision)",
    "cifar10": "60,000 photographs in 10 classes, 32x32 colour (torchvision)",
    "cats64": "29,843 cat faces, 64x64 colour (github.com/fferlito/Cat-faces-dataset)",
    "animals": "photographs of 5 animals (Kaggle; to be fetched by hand)",
    "food64": "101,000 photographs of food in 101 classes (Food-101; a download of 5 GB)",
    "artbench10": "60,000 paintings in 10 styles (ArtBench-10): 32x32, above that made from 256x256",
}
BY_HAND = {  # what a program cannot fetch: where to get it and where to put it
    "animals": "get the zip of 'antobenedetti/animals' from Kaggle (a login is needed) and put it at "
    "data/downloads/animals.zip, or its folder at data/downloads/animals",
}


def png_name(text):
    if not text.lower().endswith(".png"):
        raise argparse.ArgumentTypeError(f"'{text}' must end in .png")
    return text


def parse_args(argv=None):
    parser = argparse.ArgumentParser(
        prog="datasets.py", description="Prepare, show and count a data set.", allow_abbrev=False
    )
    parser.error = lambda message: parser.exit(2, f"datasets.py: error: {message} (see --help)\n")  # one line
    parser.add_argument("data", nargs="?", metavar="NAME|PATH", help="a known name, or a folder, zip or .npz")
    parser.add_argument("--size", type=int, default=64, metavar="N", help="side in pixels (default 64)")
    parser.add_argument("--split", choices=["train", "test", "all"], default="train", help="default: train")
    parser.add_argument("--show", metavar="FILE.png", type=png_name, help="write a grid of 64 images")
    parser.add_argument("--stats", action="store_true", help="counts, balance, channel means")
    parser.add_argument(
        "--svd", metavar="FILE.png", type=png_name, help="plot singular values, print the effective dimension"
    )
    args = parser.parse_args(argv)
    if args.size < 8:
        parser.error("--size must be at least 8")
    return args


if __name__ == "__main__":  # before the slow imports, so that --help and typing errors answer at once
    ARGS = parse_args()

import contextlib
import csv
import ctypes
import datetime
import functools
import hashlib
import http.client
import importlib
import io
import itertools
import json
import math
import operator
import os
import platform
import shlex
import shutil
import signal
import tarfile
import time
import urllib.error
import urllib.request
import warnings
import zipfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageOps
from tqdm import tqdm

DATA = Path("data")  # prepared sets; downloads go to data/downloads
IMAGE_SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff"}
MAX_FILE = 200 * 2**20  # bytes of one packed image; a larger one is skipped, not unpacked (zip bombs)

# Several processes train one model when torchrun starts the script; it sets these variables. See Run
_torchrun = os.environ if "LOCAL_RANK" in os.environ else {}
RANK, WORLD = int(_torchrun.get("RANK", 0)), int(_torchrun.get("WORLD_SIZE", 1))
START = f"torchrun --nproc-per-node {WORLD}" if WORLD > 1 else "python"


class InputError(Exception):
    """Bad input. The message is one line: what is wrong, and what to do. Programs print it and exit with code 2."""


class Images(NamedTuple):
    images: torch.Tensor  # uint8 (N, C, H, W), C = 1 or 3, H = W = size
    labels: torch.Tensor | None  # int64 (N,), indices into classes
    classes: list[str]  # empty when there are no labels
    name: str  # "shapes", "cats64", ...
    fingerprint: str  # of the pixels and labels of the whole set, all splits
    held_out: bool  # True if split "test" shares no image with split "train"
    note: str  # how the images were made, in words


class Source(NamedTuple):
    """Images that are not prepared yet."""

    names: list[str]  # one an image, for messages
    read: Callable  # index -> PIL image
    labels: list[int] | None
    classes: list[str]
    split: list[int] | None  # 0 train, 1 test
    unused: str = ""  # what else lies there, in words


# ------------------------------------------------------------------------------------------------------- load


def load(name_or_path, size, split="train"):
    """One split of a data set as Images of size x size pixels.

    split: "train", "test" or "all". A set without a split of its own trains on everything ("train" is all of it), and
    its "test" is a fixed random part, a tenth but at least 2,000 images where there are as many: good for metrics,
    not held out (`held_out` is False and says so).
    Raises InputError for an unknown name, a missing path, and data that cannot be read.
    """
    name_or_path = str(name_or_path)
    if split not in ("train", "test", "all"):
        raise InputError(f"unknown split '{split}': use train, test or all")
    if name_or_path == "shapes":
        return shapes(size, split)
    if not name_or_path:
        raise InputError(f"the name of the data is empty: give a path or one of {', '.join(KNOWN)}")
    path = Path(name_or_path)
    if named := is_named(name_or_path):
        key, stamp, open_source = name_or_path, "1", lambda: named_source(name_or_path, size)
        if name_or_path in BY_HAND:
            found = [path for path in (DATA / "downloads" / name_or_path, DATA / "downloads" / f"{name_or_path}.zip")
                     if path.exists()]  # fmt: skip
            # without the files, what was once prepared of them is taken as it is
            stamp, open_source = path_source(found[0])[1:] if found else (None, open_source)
    elif path.exists():
        key, stamp, open_source = path_source(path)
    else:
        raise InputError(f"no data set or path '{name_or_path}': known names are {', '.join(KNOWN)}")

    pixels, info = prepared(key, stamp, size, open_source)
    images = torch.from_numpy(pixels)
    labels = torch.tensor(info["labels"]) if info["labels"] is not None else None
    if split == "all" or (split == "train" and info["split"] is None):
        rows = None
    elif info["split"] is not None:
        rows = torch.tensor(info["split"]).eq(split == "test").nonzero()[:, 0]
    else:
        count = max(len(images) // 10, min(len(images), 2000))
        rows = shuffled(len(images), 0)[:count].sort().values
    if rows is not None:
        if len(rows) == 0:
            raise InputError(f"'{name_or_path}' has no image in its split '{split}'")
        images, labels = images[rows], labels[rows] if labels is not None else None
    name = name_or_path if named else title(path)
    return Images(images, labels, info["classes"], name, info["fingerprint"], info["split"] is not None, info["note"])


def load_parts(name_or_path, size, count=0):
    """(training images, held-out images in random order, or None): the splits of the set, or where it has none
    `count` images held out at random, always the same ones."""

    def pick(data, rows, note):
        labels = data.labels[rows] if data.labels is not None else None
        return data._replace(images=data.images[rows], labels=labels, note=data.note + note)

    data = load(name_or_path, size)
    if data.held_out and not count:
        test = load(name_or_path, size, "test")
        return data, pick(test, shuffled(len(test.images), 0), "")
    if not count:
        return data, None
    if data.held_out:
        raise InputError(f"'{data.name}' has a test split of its own: leave out --hold-out")
    if not 1 < count < len(data.images):
        raise InputError(f"'{data.name}' has {len(data.images)} images: --hold-out must be from 2 to less than that")
    order = shuffled(len(data.images), 0)
    rest = pick(data, order[count:].sort().values, f", without {count} held-out ones")
    return rest, pick(data, order[:count], ", held out")


def measured_on(train, held_out):
    """Of the two that load_parts gives, the one on which a model is measured, and what it is in words."""
    return (held_out, "held-out") if held_out else (train, "training (nothing is held out)")


def is_named(text):
    """Whether --data means a known set: a path of the same name counts only where no program could fetch the set."""
    return text in KNOWN and not (text in BY_HAND and Path(text).exists())


def default_size(name_or_path):
    """A fitting side for --size: 32 where the images are no larger than that (28x28 ones are padded), else 64."""
    if is_named(str(name_or_path)):
        return 32 if str(name_or_path) in ("shapes", "mnist", "fashion-mnist", "cifar10") else 64
    if not name_or_path or not Path(name_or_path).exists():
        return 64  # load() will say what is wrong
    source = path_source(Path(name_or_path))[2]()
    try:
        return 32 if min(source.read(0).size) <= 32 else 64
    except Exception:  # the first image is damaged: preparation will skip it and say so
        return 64


def shapes(size, split="train"):
    """The built-in set: 10,000 training and 2,000 test images of five shapes, the same at every call.

    Colour, size, position, rotation and background vary. A shape is a signed distance in pixels, negative inside;
    the coverage of a pixel is that distance clipped to one pixel, which is the antialiasing.
    A regular polygon is where *all* n half-planes hold, so its distance is the largest of n; a five-pointed star is
    where at least four of five hold, so its distance is the second largest.
    """
    classes = ["circle", "square", "triangle", "star", "ring"]
    parts = {"train": [(10_000, 1)], "test": [(2_000, 2)], "all": [(10_000, 1), (2_000, 2)]}[split]
    images, labels = [], []
    for count, seed in parts:
        generator = torch.Generator().manual_seed(seed)

        def uniform(low, high, *shape, n=count, g=generator):
            return low + (high - low) * torch.rand(n, *shape, generator=g)

        label = torch.randint(5, (count,), generator=generator)
        radius = uniform(0.24, 0.42) * size  # of the circle around the shape
        centre = size / 2 + uniform(-1, 1, 2) * (size / 2 - 2 - radius)[:, None]  # all of it inside
        angle = uniform(0, 2 * math.pi)
        # hue -> RGB: three cosines a third of a turn apart, then mixed with white (saturation) and black (value)
        hue = uniform(0, 2 * math.pi)[:, None] - torch.tensor([0, 2 * math.pi / 3, 4 * math.pi / 3])
        saturation = uniform(0.7, 1, 1)
        colour = (1 - saturation + saturation * (0.5 + 0.5 * hue.cos())) * uniform(0.8, 1, 1)
        ground = uniform(0.0, 0.3, 1) + uniform(0.0, 0.1, 3)  # dark, slightly tinted
        grid_y, grid_x = torch.meshgrid(torch.arange(size) + 0.5, torch.arange(size) + 0.5, indexing="ij")

        part = torch.empty(count, 3, size, size, dtype=torch.uint8)
        for c in range(5):
            for rows in (label == c).nonzero()[:, 0].split(256):  # small pieces stay in the processor's cache
                r = radius[rows, None, None]
                x, y = grid_x - centre[rows, 0, None, None], grid_y - centre[rows, 1, None, None]
                if classes[c] == "circle":
                    distance = (x * x + y * y).sqrt() - 0.9 * r
                elif classes[c] == "ring":
                    distance = ((x * x + y * y).sqrt() - 0.72 * r).abs() - 0.2 * r
                else:
                    n, inner = {"square": (4, 0.7), "triangle": (3, 0.49), "star": (5, 0.3)}[classes[c]]
                    first = second = torch.full_like(x, -math.inf)
                    for k in range(n):
                        turn = angle[rows, None, None] + 2 * math.pi * k / n
                        side = x * turn.cos() + y * turn.sin() - inner * r
                        second = torch.maximum(second, torch.minimum(first, side))
                        first = torch.maximum(first, side)
                    distance = second if classes[c] == "star" else first
                cover = (0.5 - distance).clamp_(0, 1)[:, None]  # (n, 1, size, size)
                behind = ground[rows, :, None, None]
                part[rows] = (255 * (behind + cover * (colour[rows, :, None, None] - behind))).round_().byte()
        images.append(part)
        labels.append(label)
    note = f"drawn at {size}x{size}"
    pair = torch.cat(images), torch.cat(labels)
    return Images(*pair, classes, "shapes", f"shapes-1-{size}", True, note)


# ---------------------------------------------------------------------------------------------------- batches


class Batches:
    """Endless batches: float32 (batch, C, H, W) in [-1, 1] on `device`, channels last (see layout), and int64 labels
    or None.

    Every epoch is a new random order of the whole set; the last short batch of an epoch is dropped. The order depends
    on `seed` and the epoch only, so the number of batches drawn so far (`drawn`) is the whole state: save it, set it,
    and the data go on exactly where they were.

    The images live on the training device when they take less than half of its free memory. Otherwise a thread
    gathers the next batch into one of two pinned buffers while the device works on this one.

    Several processes (torchrun) with this batch draw together what one process with WORLD times this batch draws.

    balance: draw every class equally often. An epoch has as many images as without it: those of a small class several
    times, of a large class a new random part.
    """

    def __init__(self, data, batch, device="cpu", seed=0, stream=None, balance=False):
        if len(data.images) < batch * WORLD:
            times = f" times {WORLD} processes" * (WORLD > 1)
            raise InputError(f"'{data.name}' has {len(data.images)} images: --batch{times} must not be more than that")
        if balance and data.labels is None:
            raise InputError(f"'{data.name}' has no labels, so there is nothing to balance")
        self.classes, self.pools = data.classes, []  # their names; to balance, the rows of each
        if balance:
            self.pools = [(data.labels == c).nonzero()[:, 0] for c in data.labels.unique()]
        self.device, self.batch, self.seed, self.drawn = torch.device(device), batch, seed, 0
        self.per_epoch = len(data.images) // (batch * WORLD)
        if stream is None:
            stream = False
            if self.device.type == "cuda":
                stream = data.images.nbytes > torch.cuda.mem_get_info(self.device)[0] / 2
        self.images = data.images if stream else data.images.to(self.device)
        self.labels = data.labels.to(self.device) if data.labels is not None else None
        self.order = (-1, None, None)  # epoch, order on the CPU, order on the device
        self.ahead = None  # (number of the batch, its future)
        self.slots, self.held = [], []  # see hold
        if stream:
            pin = self.device.type == "cuda"
            self.thread = ThreadPoolExecutor(1)
            self.buffers = [torch.empty(batch, *data.images.shape[1:], dtype=torch.uint8, pin_memory=pin) for _ in "ab"]
            self.copied = [torch.cuda.Event() if pin else None for _ in "ab"]

    def rows(self, number):
        """Indices of batch `number`, on the CPU and on the device. Both int64 (batch,)."""
        epoch, place = divmod(number, self.per_epoch)
        if self.order[0] != epoch:
            generator = torch.Generator().manual_seed(self.seed * 1_000_003 + epoch)
            order = torch.randperm(len(self.images), generator=generator)
            if self.pools:  # place k of the epoch belongs to class k % classes, in a random order of the places
                share = math.ceil(len(order) / len(self.pools))
                drawn = [rows[torch.cat([torch.randperm(len(rows), generator=generator)
                         for _ in range(math.ceil(share / len(rows)))])[:share]] for rows in self.pools]  # fmt: skip
                order = torch.stack(drawn, dim=1).flatten()[order]
            self.order = (epoch, order, order.to(self.device))
        start = (place * WORLD + RANK) * self.batch  # of several processes each takes its part of a larger batch
        here = slice(start, start + self.batch)
        return self.order[1][here], self.order[2][here]

    def gather(self, number, rows):
        """In the thread: copy the rows into a pinned buffer, once the device has read what was in it before."""
        buffer, event = self.buffers[number % 2], self.copied[number % 2]
        if event is not None:
            event.synchronize()
        return torch.index_select(self.images, 0, rows, out=buffer)

    def __iter__(self):
        return self

    def draw(self):
        """The next batch as (its rows on the device, its uint8 images there; None if all images are)."""
        number, images = self.drawn, None
        host_rows, rows = self.rows(number)
        if hasattr(self, "thread"):
            if self.ahead is None or self.ahead[0] != number:
                self.ahead = (number, self.thread.submit(self.gather, number, host_rows))
            images = self.ahead[1].result().to(self.device, non_blocking=True)
            if self.copied[number % 2] is not None:
                self.copied[number % 2].record(torch.cuda.current_stream(self.device))
            else:
                images = images.clone()  # on the CPU `to` does not copy, and the buffer is used again
            self.ahead = (number + 1, self.thread.submit(self.gather, number + 1, self.rows(number + 1)[0]))
        self.drawn = number + 1
        return rows, images

    def hold(self, count):
        """Draw `count` batches into tensors that stay where they are: a CUDA graph reads them there (see Captured)."""
        for k in range(count):
            batch = self.draw()
            if k == len(self.slots):
                self.slots.append([part if part is None else torch.empty_like(part) for part in batch])
            for slot, part in zip(self.slots[k], batch, strict=True):
                if part is not None:
                    slot.copy_(part)

    def __next__(self):
        rows, images = self.held.pop(0) if self.held else self.draw()
        if images is None:
            images = self.images[rows]
        images = images.to(torch.float32, memory_format=layout(self.device)).div_(127.5).sub_(1)
        return images, self.labels[rows] if self.labels is not None else None


class Captured:
    """A script's train step; on an NVIDIA GPU as one CUDA graph, so that it is launched in one call.

        train = Captured(train_step, schedule, args, batches, ...)
        losses = train(step)        # train_step(schedule(step, args), args, batches, ...)

    A step of these networks has some hundred short kernels, and launching each from Python takes longer than computing
    it. A graph is a recording of all of them. Replayed, it does the same operations on the same memory, so whatever
    changes from step to step must lie in tensors that stay where they are:

    - the floats in the schedule's dict, which become tensors of one float32 value. What else it holds (a number of a
      growth stage, which updates take a penalty, None) decides which operations there are: each of its values has a
      graph of its own;
    - the batches (Batches.hold);
    - the state of the random numbers, which PyTorch moves on.

    Before it is recorded, a step runs three times as it is, and these are real training steps: libraries choose their
    kernels meanwhile, and optimisers make their state. Nothing in a step may wait for the GPU or read a number off it.
    """

    def __init__(self, train_step, schedule, args, batches, *rest):
        self.train_step, self.schedule, self.args, self.rest = train_step, schedule, args, (args, batches, *rest)
        self.batches, self.device = batches, batches.device
        self.on = self.device.type == "cuda" and WORLD == 1 and not args.no_graph
        self.numbers, self.seen, self.graphs, self.pool = {}, {}, {}, None
        if self.on:  # a graph cannot be recorded on the default stream; so all work from here on is done on another
            torch.cuda.synchronize(self.device)
            torch.cuda.set_stream(torch.cuda.Stream(self.device))
        # PyTorch would advise another kind of Adam, seeing the steps before the recording
        warnings.filterwarnings("ignore", "This instance was constructed with capturable")

    def __call__(self, step):
        now = self.schedule(step, self.args)
        if not self.on:
            return self.train_step(now, *self.rest)
        numbers = {name: value for name, value in now.items() if isinstance(value, float)}
        for name, value in numbers.items():
            if name not in self.numbers:
                self.numbers[name] = torch.empty((), device=self.device)
            now[name] = self.numbers[name].fill_(value)
        kind = tuple(item for item in now.items() if item[0] not in numbers)
        if kind not in self.graphs:
            runs, _ = self.seen.get(kind, (0, 0))
            if runs < 3:
                before = self.batches.drawn
                losses = self.train_step(now, *self.rest)
                self.seen[kind] = runs + 1, self.batches.drawn - before
                return losses
        self.batches.hold(self.seen[kind][1])
        if kind not in self.graphs:
            self.batches.held, graph = self.batches.slots[: self.seen[kind][1]], torch.cuda.CUDAGraph()
            # All graphs share their memory: they run one after the other. thread_local: other threads, as the one that
            # gathers batches, may go on meanwhile
            try:
                with torch.cuda.graph(graph, self.pool, torch.cuda.current_stream(), "thread_local"):
                    losses = self.train_step(now, *self.rest)
            except RuntimeError as problem:
                cause = problem.__context__ or problem  # ending a broken recording fails too, and tells less
                if out_of_memory(cause):
                    raise
                raise InputError(f"this step cannot be captured here ({short(cause)}): use --no-graph") from problem
            self.graphs[kind], self.pool = (graph, losses), graph.pool()
        graph, losses = self.graphs[kind]
        graph.replay()
        return losses.clone()  # the next replay writes over them


def autocast(device, precision):
    """The context in which networks compute: bf16 where that is the precision, nothing special where it is fp32."""
    return contextlib.nullcontext() if precision == "fp32" else torch.autocast(device.type, torch.bfloat16)


def layout(device):
    """How pictures and weights lie in memory: channels last, with which convolutions are faster. Not on a Mac's GPU,
    where BatchNorm's gradients are wrong then (seen with torch 2.10: github.com/pytorch/pytorch/issues/175189)."""
    return torch.contiguous_format if torch.device(device).type == "mps" else torch.channels_last


def adam_kernel(device):
    """How Adam is computed on a device: all weights in one kernel, and on a GPU such that a graph can hold it."""
    return {"fused": device.type != "mps", "capturable": device.type == "cuda"}


def from_uint8(images):
    """uint8 images -> float32 in [-1, 1]."""
    return images.float().div(127.5).sub(1)


def shuffled(n, seed):
    """The numbers from 0 to n - 1 in a random order that the seed fixes, int64 (n,)."""
    return torch.randperm(n, generator=torch.Generator().manual_seed(seed))


def latents(n, latent_dim, seed):
    """Standard normal latents (n, latent_dim). The first ones do not depend on n (torch draws in blocks of 16)."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(math.ceil(n / 16) * 16, latent_dim, generator=generator)[:n]


def slerp(a, b, t):
    """Spherical interpolation of vectors (N, d) at t in [0, 1] (Shoemake 1985; for latents White 2016, 1609.04468).

    In 100 dimensions nearly all of N(0, I) lies close to a sphere of radius 10. A straight line between two points cuts
    through the inside, where a generator was never trained; the arc stays out.
    """
    angle = torch.acos(torch.cosine_similarity(a, b, dim=-1).clamp(-1 + 1e-7, 1 - 1e-7))[:, None]
    return (torch.sin((1 - t) * angle) * a + torch.sin(t * angle) * b) / torch.sin(angle)


def walks(rows, frames, latent_dim, kind, seed):
    """Latents on `rows` walks of `frames` steps from one random latent to another: (rows * frames, latent_dim).

    kind: "spherical" or "linear".
    """
    a, b = torch.randn(2, rows, latent_dim, generator=torch.Generator().manual_seed(seed))
    between = slerp if kind == "spherical" and latent_dim > 1 else torch.lerp  # a line has no arcs
    return torch.stack([between(a, b, i / (frames - 1)) for i in range(frames)], dim=1).flatten(0, 1)


def one_hot(labels, classes):
    """int64 (N,) -> float32 (N, classes), 1 at the label and 0 elsewhere."""
    return (labels[:, None] == torch.arange(classes, device=labels.device)).float()  # F.one_hot looks at the labels


def random_labels(counts, n, seed):
    """n classes, int64 (n,), each as likely as it is frequent in the data: so that samples compare with the data."""
    up_to = torch.tensor(counts).cumsum(0).double() / sum(counts)
    generator = torch.Generator().manual_seed((seed + 2**31) % 2**32)  # not the latents' (torch reads 32 bits)
    return torch.searchsorted(up_to, torch.rand(n, generator=generator).double(), right=True)


def class_inputs(counts, n, latent_dim, seed, label=None):
    """What a conditional model makes n pictures of: latents (n, latent_dim) and one-hot classes (n, classes).

    counts: of the images of each class; label: the number of the one class asked for. None: those of random_labels.
    """
    labels = random_labels(counts, n, seed) if label is None else torch.full((n,), label)
    return latents(n, latent_dim, seed), one_hot(labels, len(counts))


def class_rows(classes, latent_dim, seed):
    """The same for the samples: a row for each class (of many, the first 16) from the same eight latents."""
    rows = min(classes, 16)
    return latents(8, latent_dim, seed).repeat(rows, 1), one_hot(torch.arange(rows).repeat_interleave(8), classes)


def to_uint8(images):
    """Float images in [-1, 1] -> uint8: the exact inverse of the scaling above. Rounded, not truncated."""
    return images.float().add(1).mul(127.5).round().clamp(0, 255).to(torch.uint8)


# ---------------------------------------------------------------------------------------------------- sources


def path_source(path):
    """A folder, zip or .npz -> (cache key, stamp that changes when the data do, function that opens the source)."""
    if path.is_dir():
        files = sorted(p for p in path.rglob("*") if is_image(p.relative_to(path)) and p.is_file())
        names = [p.relative_to(path).as_posix() for p in files]
        stats = [(name, s.st_size, s.st_mtime_ns) for name, s in zip(names, (p.stat() for p in files), strict=True)]
        stamp = hashlib.sha256(json.dumps(stats).encode()).hexdigest()

        def open_source():
            return from_files(names, lambda i: Image.open(files[i]), path)
    elif zipfile.is_zipfile(path) or path.suffix.lower() in (".zip", ".npz"):
        stamp = f"{path.stat().st_size}-{path.stat().st_mtime_ns}"

        def open_source():
            return npz_source(path) if path.suffix.lower() == ".npz" else zip_source(path)
    else:
        raise InputError(f"'{path}' is no folder, zip or .npz file")
    key = f"{title(path)}-{hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:8]}"
    return key, stamp, open_source


def title(path):
    return path.resolve().name if path.is_dir() else path.stem


def is_image(path):
    hidden = any(part.startswith(".") or part == "__MACOSX" for part in Path(path).parts)
    return not hidden and Path(path).suffix.lower() in IMAGE_SUFFIXES


def zip_source(path):
    try:
        archive = zipfile.ZipFile(path)
    except (zipfile.BadZipFile, OSError) as error:
        raise InputError(f"'{path}' is not a readable zip file ({error})") from None
    members = sorted((m for m in archive.infolist() if is_image(m.filename)), key=lambda m: m.filename)

    def read(i):  # members are read in memory and never unpacked to disk, so no path can leave a folder
        if members[i].file_size > MAX_FILE:
            raise ValueError(f"{members[i].file_size} bytes unpacked")
        return Image.open(io.BytesIO(archive.read(members[i])))

    return from_files([m.filename for m in members], read, path)


HELD_OUT = ("test", "val", "valid", "validation")  # names of the folder beside train/; the first that is there is used


def from_files(names, read, path):
    """File names -> Source: splits and classes are read off the folders. names: with '/', in the order of `read`."""
    if not names:
        raise InputError(f"no images in '{path}' (looked for {' '.join(sorted(IMAGE_SUFFIXES))}, sub-folders too)")
    parts = [name.split("/") for name in names]
    while len({p[0] for p in parts}) == 1 and all(len(p) > 1 for p in parts):  # one folder around everything
        parts = [p[1:] for p in parts]
    tops, split, unused = {p[0] for p in parts if len(p) > 1}, None, ""
    if "train" in tops and (held_out := [name for name in HELD_OUT if name in tops]):
        rows = [i for i, p in enumerate(parts) if p[0] in ("train", held_out[0]) and len(p) > 1]
        if len(rows) < len(parts):
            unused = f"{path}: {len(parts) - len(rows)} images outside train/ and {held_out[0]}/ are not used"
        of_all, names, parts = read, [names[i] for i in rows], [parts[i] for i in rows]
        split, parts = [int(p[0] != "train") for p in parts], [p[1:] for p in parts]

        def read(i):
            return of_all(rows[i])

    labels, classes = None, []
    if all(len(p) > 1 for p in parts):  # an image outside every sub-folder has no class: then nothing is labelled
        classes = sorted({p[0] for p in parts})
        labels = [classes.index(p[0]) for p in parts]
    return Source(names, read, labels, classes, split, unused)


def npz_source(path):
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {key: file[key] for key in file.files}
    except Exception as error:  # zipfile, zlib, ValueError, EOFError ... all mean the same to the user
        raise InputError(f"'{path}' is not a readable .npz file ({error})") from None
    images = arrays.get("images")
    if images is None:
        raise InputError(f"'{path}' has no array 'images' (it has: {', '.join(arrays) or 'nothing'})")
    if images.dtype != np.uint8 or images.ndim not in (3, 4) or len(images) == 0:
        raise InputError(f"'images' in '{path}' must be uint8 (N, H, W[, C]), not {images.dtype} {images.shape}")
    if images.ndim == 4:
        if images.shape[-1] not in (1, 3) and images.shape[1] in (1, 3):
            images = images.transpose(0, 2, 3, 1)
        if images.shape[-1] not in (1, 3):
            raise InputError(f"'images' in '{path}' must have 1 or 3 channels, not shape {images.shape}")
    per_image = {}
    for key in ("labels", "split"):
        if key in arrays:
            values = arrays[key]
            if values.shape != (len(images),) or values.dtype.kind not in "iu" or values.min() < 0:
                there = f"{values.dtype} {values.shape}"
                raise InputError(f"'{key}' in '{path}' must be {len(images)} whole numbers from 0 up, not {there}")
            per_image[key] = values.tolist()
    labels = per_image.get("labels")
    classes = [str(c) for c in np.atleast_1d(arrays.get("classes", []))]
    if labels is not None:
        classes = classes or [str(c) for c in range(max(labels) + 1)]
        if max(labels) >= len(classes):
            raise InputError(f"'labels' in '{path}' go up to {max(labels)}, but there are {len(classes)} classes")
    return array_source(images, labels, classes, per_image.get("split"))


def array_source(images, labels, classes, split):
    """images: uint8 (N, H, W) or (N, H, W, C)."""
    if images.shape[-1] == 1:
        images = images[..., 0]
    names = [f"image {i}" for i in range(len(images))]
    return Source(names, lambda i: Image.fromarray(images[i]), labels, classes, split)


def named_source(name, size):
    if name in BY_HAND:
        raise InputError(f"'{name}' cannot be downloaded by this program: {BY_HAND[name]}")
    if name == "artbench10" and size > 32:
        return artbench_source()
    return {"cats64": cats64_source, "food64": food101_source}.get(name, lambda: torchvision_source(name))()


def torchvision_source(name):
    """Archives that torchvision knows (address, checksum) and reads. `fetch` gets them, for it can go on where a broken
    download stopped."""
    import torchvision
    from torchvision.datasets.utils import check_integrity

    class ArtBench10(torchvision.datasets.CIFAR10):
        """At 32x32, in CIFAR-10's format (Liao et al. 2022, github.com/liaopeiyuan/artbench). No tgz_md5: two versions
        of the archive are about, which hold the same files."""

        base_folder, filename, tgz_md5 = "artbench-10-batches-py", "artbench-10-python.tar.gz", None
        url = f"{ARTBENCH}{filename}"
        train_list = [
            ["data_batch_1", "c2e02a78dcea81fe6fead5f1540e542f"],
            ["data_batch_2", "1102a4dcf41d4dd63e20c10691193448"],
            ["data_batch_3", "177fc43579af15ecc80eb506953ec26f"],
            ["data_batch_4", "566b2a02ccfbafa026fbb2bcec856ff6"],
            ["data_batch_5", "faa6a572469542010a1c8a2a9a7bf436"],
        ]
        test_list = [["test_batch", "fa44530c8b8158467e00899609c19e52"]]
        meta = {"filename": "meta", "key": "styles", "md5": "5bdcafa7398aa6b75d569baaec5cd4aa"}

    make = {
        "mnist": torchvision.datasets.MNIST,
        "fashion-mnist": torchvision.datasets.FashionMNIST,
        "cifar10": torchvision.datasets.CIFAR10,
        "artbench10": ArtBench10,
    }[name]
    root = DATA / "downloads"
    raw = root / make.__name__ / "raw"  # of MNIST and its kin
    if hasattr(make, "resources"):
        archives = [(raw / file, [mirror + file for mirror in make.mirrors], md5) for file, md5 in make.resources]
    else:
        archives = [(root / make.filename, [make.url], make.tgz_md5)]

    def read(download):
        with open(os.devnull, "w", encoding="utf-8") as null, contextlib.redirect_stdout(null):
            return [make(root, train=train, download=download) for train in (True, False)]

    root.mkdir(parents=True, exist_ok=True)
    with locked(root / f"{name}.lock", wait=f"another process is fetching {name}; waiting for it"):
        packed = [path for path, *_ in archives if path.exists()]
        try:
            # What lies there unpacked is used: CIFAR-10's files have checksums of their own, MNIST's were put by hand
            # if their archives are missing (else kill -9 may have left a part of one, which its reader would believe).
            if not (packed and hasattr(make, "resources")):
                with contextlib.suppress(RuntimeError):  # "not found or corrupted"
                    return torchvision_arrays(*read(download=False))
            for path, urls, md5 in archives:
                fetch(urls, path, lambda p, md5=md5: check_integrity(str(p), md5))
                if hasattr(make, "resources"):
                    path.with_suffix("").unlink(missing_ok=True)
            return torchvision_arrays(*read(download=True))
        except (OSError, RuntimeError, EOFError, tarfile.TarError) as error:
            files = ", ".join(str(path) for path, *_ in archives)
            raise InputError(
                f"'{name}' cannot be read from {files} ({short(error)}): delete it and try again"
            ) from None


def torchvision_arrays(*parts):
    """The training and the test part of a torchvision data set -> Source."""
    images = np.concatenate([np.asarray(part.data) for part in parts])
    labels = [int(label) for part in parts for label in part.targets]
    split = [0] * len(parts[0].data) + [1] * len(parts[1].data)
    return array_source(images, labels, [str(c) for c in parts[0].classes], split)


ARTBENCH = "https://artbench.eecs.berkeley.edu/files/"


def artbench_source(images=60_000):
    """ArtBench-10 at 256x256, from the one .tar of its train/ and test/ folders, which is never unpacked to disk.

    No checksum of it is published: it is believed if it ends as a .tar does and holds all of its `images`.
    """
    path = DATA / "downloads" / "artbench-10-imagefolder-split.tar"

    def members(file):
        with tarfile.open(file, "r:") as archive:
            found = [m for m in archive if m.isfile() and is_image(m.name)]
        return sorted(found, key=lambda member: member.name)

    def whole(file):
        with contextlib.suppress(tarfile.TarError):  # "unexpected end of data" and others
            return len(members(file)) == images
        return False

    found = members(fetch([ARTBENCH + path.name], path, whole))

    def read(i):
        with open(path, "rb") as file:
            file.seek(found[i].offset_data)
            return Image.open(io.BytesIO(file.read(found[i].size)))

    return from_files([member.name for member in found], read, path)


FOOD101 = "http://data.vision.ee.ethz.ch/cvl/food-101.tar.gz", "85eeb15f3717b99a5da872d97d918f87"  # address, MD5


def food101_source(held_out=20):
    """Food-101 (Bossard et al. 2014): 1,000 photographs of each of 101 dishes, unpacked by torchvision.

    The split is not the published one (750 and 250 a class) but as in the report that is reproduced: `held_out` random
    images of each class are for testing (2,020 together), all others, of both published parts, for training. The draw
    depends on the names of the files only. A class as small as that keeps one image for training.
    """
    from torchvision.datasets import Food101
    from torchvision.datasets.utils import check_integrity

    root = DATA / "downloads"
    folder = root / "food-101"
    by_hand = f"unpack food-101.tar.gz into {root}, so that {folder / 'images'} and {folder / 'meta'} are there"
    try:
        if not folder.exists():
            fetch([FOOD101[0]], root / "food-101.tar.gz", lambda path: check_integrity(str(path), FOOD101[1]))
        with (
            locked(root / "food-101.lock", wait="another process is unpacking food-101; waiting for it"),
            open(os.devnull, "w", encoding="utf-8") as null,
            contextlib.redirect_stdout(null),
            contextlib.ExitStack() as undo,
        ):
            if not folder.exists():  # torchvision believes any folder, also one that was unpacked only in part
                print("unpacking food-101.tar.gz", file=sys.stderr)
                undo.callback(shutil.rmtree, folder, ignore_errors=True)
                Food101(root, download=True)
                undo.pop_all()
        lists = [json.loads((folder / "meta" / f"{part}.json").read_text("utf-8")) for part in ("train", "test")]
    except (OSError, RuntimeError, ValueError) as error:
        raise InputError(f"'food64' cannot be read from {folder} ({short(error)}): delete it, or {by_hand}") from None
    # {"apple_pie": ["apple_pie/1005649", ...], ...}; sorted, so that nothing depends on the order in the lists
    names = sorted({f"{name}.jpg" for part in lists for of_class in part.values() for name in of_class})
    files = [folder / "images" / name for name in names]
    missing = [name for name, file in zip(names, files, strict=True) if not file.exists()]
    if missing or not names:  # as after kill -9 while it was unpacked
        raise InputError(
            f"{folder} lacks {len(missing)} of its {len(names)} images: delete it and try again, or {by_hand}"
        )
    classes = sorted({name.split("/")[0] for name in names})
    labels = [classes.index(name.split("/")[0]) for name in names]
    of_image, split = torch.tensor(labels), torch.zeros(len(names), dtype=torch.int64)
    for c in range(len(classes)):
        rows = (of_image == c).nonzero()[:, 0]
        split[rows[shuffled(len(rows), c)[: min(held_out, len(rows) - 1)]]] = 1
    return Source(names, lambda i: Image.open(files[i]), labels, classes, split.tolist())


CATS64 = "https://raw.githubusercontent.com/fferlito/Cat-faces-dataset/c1bd9976b1b9fd31ce53de42b422febf60503aac/"
CATS64_BLOBS = {  # the ids under which git itself stores the three archives
    "dataset-part1.tar.gz": "d7c478c476f83df2408b02d34ba32cff8a06dbdf",
    "dataset-part2.tar.gz": "7acb443f4d5bb64a8ba2273764b249e5d21251e8",
    "dataset-part3.tar.gz": "0defae414292f0fbc9714515a88d5683be62a9b3",
}


def cats64_source():
    """29,843 cat faces in three archives, about a fifth of them exact duplicates. Used as published."""
    names, files = [], []
    for file, blob in CATS64_BLOBS.items():
        path = fetch([CATS64 + file], DATA / "downloads" / "cats64" / file, lambda p, blob=blob: git_blob(p) == blob)
        with tarfile.open(path) as archive:
            for member in archive:  # read in memory, never unpacked to disk
                if member.isfile() and is_image(Path(member.name).name) and member.size <= MAX_FILE:
                    names.append(Path(member.name).name)  # one class: the folders carry no meaning
                    files.append(archive.extractfile(member).read())
    return from_files(names, lambda i: Image.open(io.BytesIO(files[i])), "cats64")


def git_blob(path):
    """The id git gives a file: SHA-1 of 'blob SIZE', a zero byte, and the content."""
    content = Path(path).read_bytes()
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def fetch(urls, path, check):
    """The file `path`, downloaded from the first of `urls` that has it unless it is there already. Returns path.

    What has come when a connection breaks is kept in <path>.part, and any later call goes on from there. Only a whole
    file that passes check(path) gets the name. Raises InputError in one line that says where to put a file got by hand.
    """
    by_hand = f"download {urls[0]} yourself and put it at {path}"
    part, problem = Path(f"{path}.part"), None

    def there():
        if path.exists() and not check(path):
            raise InputError(f"{path} is damaged or another version (wrong checksum): delete it, or {by_hand}")
        return path.exists()

    if there():  # also in a folder that cannot be written
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    with locked(f"{path}.lock", wait=f"another process is downloading {path.name}; waiting for it"):
        if there():
            return path
        for url in urls:
            try:
                receive(url, part)
                if check(part):
                    break
                part.unlink()
                raise OSError("a file with a wrong checksum came")
            except (OSError, http.client.HTTPException) as error:
                problem = problem or error  # of the first address, which the message names
        else:
            kept = f"; {part.stat().st_size:,} bytes are kept for the next try" if part.exists() else ""
            raise InputError(f"could not download {path.name} ({short(problem)}{kept}): {by_hand}") from None
        with open(part, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(part, path)
    return path


def receive(url, part, patience=3):
    """Append to the file `part` what it lacks of `url`. A connection that breaks is taken up again, until `patience`
    times in a row nothing new came. Raises OSError and HTTPException."""
    failures, furthest, said = 0, 0, False
    while True:
        size = have = part.stat().st_size if part.exists() else 0
        total = broken = None
        try:
            request = urllib.request.Request(url, headers={"Range": f"bytes={have}-"} if have else {})
            reply = urllib.request.urlopen(request, timeout=30)
        except OSError as error:
            code = getattr(error, "code", 500)  # no answer is like a server in trouble: it may pass
            if code == 416 and have:  # nothing lies beyond: the part is whole, or its checksum will be wrong
                return
            if code < 500 or not have:
                raise
            broken = error
        else:
            with reply:
                if reply.headers.get_content_type() == "text/html":
                    raise OSError("a web page came instead of the file: a login page of the network?")
                if reply.status != 206:  # a server that cannot begin in the middle
                    size = have = 0
                if length := reply.headers.get("Content-Length"):
                    total = have + int(length)
                if not said:
                    said = f"downloading {part.stem}" + (f" ({total / 1e6:,.1f} MB)" if total else "")
                    print(said, file=sys.stderr)
                bar = tqdm(total=total, initial=have, unit="B", unit_scale=True, desc=part.stem, disable=None)
                with open(part, "ab" if have else "wb") as file, bar:
                    while True:
                        try:
                            piece = reply.read1(2**16)
                        except (OSError, http.client.HTTPException) as error:
                            piece, broken = b"", error
                        if not piece:
                            break
                        file.write(piece)  # its errors are the disk's, and end the download
                        file.flush()  # so that kill -9 loses nothing
                        size += len(piece)
                        bar.update(len(piece))
            if not broken and total in (None, size):
                return
        failures = 0 if size > furthest else failures + 1
        furthest = max(furthest, size)
        if failures == patience:
            raise OSError(f"the connection broke after {size:,}" + (f" of {total:,}" if total else "") + " bytes")
        time.sleep(failures)


# ------------------------------------------------------------------------------------------------ preparation


def prepared(key, stamp, size, open_source):
    """The prepared array of a source: from data/<key>-<size>.npy if that is up to date, else made now.

    The .json beside it is written last and removed first, so an array without its .json is never believed.
    Returns uint8 (N, C, size, size), memory-mapped copy-on-write, and the dict of the .json.
    """
    DATA.mkdir(parents=True, exist_ok=True)
    array, about = DATA / f"{key}-{size}.npy", DATA / f"{key}-{size}.json"

    def ready():
        try:
            info = json.loads(about.read_text(encoding="utf-8"))
            pixels = np.load(array, mmap_mode="c")
            if stamp in (None, info["stamp"]) and list(pixels.shape) == info["shape"] and pixels.dtype == np.uint8:
                return pixels, info
        except (OSError, ValueError, KeyError, TypeError, EOFError):  # cut short, or no file of ours
            pass
        return None

    if not (found := ready()):
        with locked(DATA / f"{key}-{size}.lock", wait=f"another process is preparing {key}; waiting for it"):
            if not (found := ready()):  # the other process may have done it meanwhile
                source = open_source()
                about.unlink(missing_ok=True)
                for left in DATA.iterdir():  # by kill -9
                    if left.name.startswith(f"{array.name}.") and left.suffix == ".tmp":
                        left.unlink()
                info = {"name": key, "stamp": stamp, **prepare(source, size, array, key)}
                write_text(about, json.dumps(info))
                found = ready()
    return found


def prepare(source, size, path, key):
    """Decode, crop and resize every image of a Source into the .npy file `path`; returns what the .json says.

    Rows are appended as they come, so memory does not grow with the set. An image that cannot be read is skipped and
    named; more than 1 % of them is an error.
    """
    total = len(source.names)
    if source.unused:
        print(source.unused, file=sys.stderr)
    grey, natural, skipped, kept = True, set(), [], []
    digest = hashlib.sha256()

    def one(i):
        try:
            image = source.read(i)
            shape, is_grey = image.size, image.mode in ("1", "L", "I;16", "I")
            return square(image, size), shape, is_grey
        except Exception as error:  # Pillow raises many kinds; each means that this file is no usable image
            return f"{source.names[i]}: {short(error)}", None, None

    def some(start):  # a task of its own for each image would cost a few percent
        return [one(i) for i in range(start, min(start + 8, total))]

    def write(temporary):
        nonlocal grey
        with open(temporary, "wb+") as file, ThreadPoolExecutor(os.cpu_count()) as pool:
            header(file, (total, 3, size, size))
            with tqdm(total=total, desc=f"preparing {key}", unit="img", disable=None) as bar:
                for start in range(0, total, 1024):
                    done = itertools.chain.from_iterable(pool.map(some, range(start, min(start + 1024, total), 8)))
                    for i, (row, shape, is_grey) in enumerate(done):
                        bar.update()
                        if shape is None:
                            skipped.append(row)
                            continue
                        kept.append(start + i)
                        natural.add(shape)
                        grey &= is_grey
                        file.write(row.tobytes())
            if len(skipped) > total / 100 or not kept:
                which = "; ".join(skipped[:5]) + "; ..." * (len(skipped) > 5)
                words = f"{len(skipped)} of {total} images cannot be read, which is more than 1 %"
                raise InputError(f"{words} (delete or repair them): {which}")
            file.flush()
            shape = (len(kept), 3, size, size)
            if grey:  # every file is grey: one channel is enough
                rows = np.memmap(temporary, np.uint8, "r+", file.tell() - math.prod(shape), shape)
                shape = (len(kept), 1, size, size)
                for k in range(len(kept)):
                    rows.reshape(-1)[k * size * size : (k + 1) * size * size] = rows[k, 0].reshape(-1)
                rows.flush()
                del rows
            file.seek(0)
            start = header(file, shape)
            file.truncate(start + math.prod(shape))
            while piece := file.read(2**20):
                digest.update(piece)
            digest.update(json.dumps([labels_of(kept), shape, split_of(kept)]).encode())

    def labels_of(rows):
        # one class says nothing: such a set is unlabelled
        return [source.labels[i] for i in rows] if source.labels is not None and len(source.classes) > 1 else None

    def split_of(rows):
        return [source.split[i] for i in rows] if source.split is not None else None

    with warnings.catch_warnings():  # Pillow warns about odd files that it reads all the same
        warnings.simplefilter("ignore")
        write_atomic(path, write)
    if skipped:
        print(f"{key}: skipped {len(skipped)} of {total} unreadable images; the first: {skipped[0]}", file=sys.stderr)
    if natural == {(28, 28)} and size == 32:
        note = "28x28 padded to 32x32 with black"
    elif natural == {(size, size)}:
        note = f"{size}x{size} as they are"
    else:
        note = f"cropped to the central square and resized to {size}x{size} (bicubic, antialiased)"
    return {
        "shape": [len(kept), 1 if grey else 3, size, size],
        "labels": labels_of(kept),
        "classes": source.classes if labels_of(kept) is not None else [],
        "split": split_of(kept),
        "fingerprint": digest.hexdigest()[:16],
        "skipped": skipped,
        "note": note,
    }


def header(file, shape):
    """Write an .npy header for uint8 `shape` and return its length, which is the same for any smaller shape."""
    np.lib.format.write_array_header_1_0(file, {"descr": "|u1", "fortran_order": False, "shape": shape})
    return file.tell()


def square(image, size):
    """PIL image -> uint8 (3, size, size): upright (EXIF), RGB, central square, antialiased bicubic resize."""
    if image.mode in ("I;16", "I;16B", "I"):  # 16-bit grey: Pillow's own conversion clips at 255
        image = Image.fromarray((np.asarray(image).astype(np.int64) >> 8).clip(0, 255).astype(np.uint8))
    ImageOps.exif_transpose(image, in_place=True)
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:  # what shows through is white
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    image = image if image.mode == "RGB" else image.convert("RGB")
    if image.size == (28, 28) and size == 32:
        image = ImageOps.expand(image, 2)  # MNIST and its kin: padding keeps every pixel, resizing would blur them
    elif image.size != (size, size):
        image = ImageOps.fit(image, (size, size), Image.Resampling.BICUBIC)
    return np.ascontiguousarray(np.asarray(image).transpose(2, 0, 1))


# ------------------------------------------------------------------------ what all files of the collection share

SCRIPTS = ("dcgan", "cgan", "wgan_gp", "vae_mlp", "cvae", "ddpm")  # model scripts that a checkpoint may name


def short(error):
    """The first line of an exception, for one-line messages."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]


def out_of_memory(error):
    """Whether a RuntimeError means that (an "illegal memory access" does not)."""
    return any(words in str(error) for words in ("out of memory", "allocate memory", "not enough memory"))


def run_program(name, main, args):
    """Call main(args). Bad input, a full disk or too little memory end in one line on stderr and exit code 2."""
    for stream in (sys.stdout, sys.stderr):  # a console that lacks a letter of a file's name is no reason to stop
        getattr(stream, "reconfigure", lambda **_: None)(errors="backslashreplace")
    try:
        main(args)
        if WORLD > 1:
            leave(0)
    except BrokenPipeError:  # of `| head`: nobody reads on
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # nor what is still to be written
        sys.exit(141)
    except (InputError, OSError, RuntimeError, MemoryError) as problem:
        if WORLD > 1 and (isinstance(problem, torch.distributed.DistError) or "gloo" in str(problem)):
            problem = InputError(f"another of the {WORLD} processes ended")
        if isinstance(problem, NotImplementedError) and "MPS" in str(problem):
            problem = InputError(f"{short(problem)} Set PYTORCH_ENABLE_MPS_FALLBACK=1, or use --device cpu")
        if isinstance(problem, RuntimeError) and not out_of_memory(problem):
            raise
        if RANK == 0 or not isinstance(problem, InputError):  # bad input is the same for all: one of them says it
            print(f"{name}: error: {problem if isinstance(problem, InputError) else short(problem)}", file=sys.stderr)
        leave(2)
    except KeyboardInterrupt:  # the training loop handles Ctrl-C itself
        print(f"{name}: interrupted", file=sys.stderr)
        sys.exit(130)


def leave(code):
    """End the program. One of several processes ends at once: in an orderly exit gloo's threads may still want Python,
    or another process that has ended, and abort."""
    if WORLD > 1:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)


def write_atomic(path, write):
    """Call write(temporary path) and rename the result to `path`: a reader sees the old file or the whole new one."""
    temporary = f"{path}.{os.getpid()}.tmp"
    try:
        write(temporary)
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        with contextlib.suppress(OSError):
            os.unlink(temporary)


def write_text(path, text):
    """Write a text file whole or not at all."""
    write_atomic(path, lambda temporary: Path(temporary).write_text(text, encoding="utf-8"))


@contextlib.contextmanager
def locked(path, wait=None, busy="another process is using it"):
    """Hold the file `path` as a lock, which the system frees even after kill -9.

    If it is taken: print `wait` and wait, or raise InputError(busy) where no `wait` is given.
    """
    with open(path, "a+b") as file:
        while True:
            try:
                if os.name == "nt":
                    import msvcrt

                    msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
                else:
                    import fcntl

                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except (BlockingIOError, PermissionError):  # taken; any other error is a file system without locks
                if wait is None:
                    raise InputError(busy) from None
                print(wait, file=sys.stderr)
                wait = ""
                time.sleep(0.5)
        yield


def read_checkpoint(path):
    """The dict of a checkpoint file, or of a run directory's last.pt. Tensors are on the CPU; nothing is unpickled."""
    path = Path(path)
    if path.is_dir():
        if not (path / "last.pt").exists():
            raise InputError(f"'{path}' holds no last.pt: it is not a run directory")
        path = path / "last.pt"
    if not path.exists():
        raise InputError(f"no checkpoint '{path}'")
    try:
        checkpoint = torch.load(path, weights_only=True, map_location="cpu")
    except Exception as error:  # torch raises RuntimeError, UnpicklingError, EOFError, ... for a damaged file
        raise InputError(f"'{path}' is damaged or no checkpoint ({short(error)})") from None
    if not isinstance(checkpoint, dict) or checkpoint.get("script") not in SCRIPTS or checkpoint.get("format") != 1:
        raise InputError(f"'{path}' is not a checkpoint of this collection")
    return checkpoint


def write_checkpoint(checkpoint, path):
    """Write a checkpoint whole or not at all. Serialised in memory first, so that a full disk is a plain OSError."""
    torch.save(checkpoint, buffer := io.BytesIO())
    write_atomic(path, lambda temporary: Path(temporary).write_bytes(buffer.getbuffer()))


def pick_device(name="auto", precision="auto"):
    """--device and --precision -> (torch.device, "fp32" or "bf16"). auto: bf16 where the hardware computes in it.

    On a CPU, memory that is freed from now on is kept (keep_memory), and some convolutions are quick_convolutions.
    """
    asked = name
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        device = torch.device(name)
        if device.type not in ("cpu", "cuda", "mps"):
            raise RuntimeError
        if device.type == "cuda":
            if WORLD > 1 and device.index is not None:
                raise InputError(f"--device {asked}: several processes take a GPU each, so leave its number out")
            index = int(os.environ["LOCAL_RANK"]) if WORLD > 1 else device.index or 0
            device = torch.device("cuda", index)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError):  # torch has many ways to say so
        raise InputError(f"no device '{asked}' here: use --device auto, cpu, cuda, cuda:1 or mps") from None
    native = False
    if device.type == "cuda":
        torch.cuda.set_device(device)  # so that random states, streams and events are those of this GPU
        native = torch.cuda.get_device_capability(device) >= (8, 0)  # is_bf16_supported() also counts emulation
    elif device.type == "cpu":
        native = getattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)()
        keep_memory()
        if matrix_units():
            quick_convolutions()
    if precision == "bf16" and not native:
        print(f"note: {device} computes bf16 in software, which may be many times slower than fp32", file=sys.stderr)
    return device, {"auto": "bf16" if native else "fp32"}.get(precision, precision)


def keep_memory(keep=True):
    """On Linux: memory that is freed stays with this process (keep), or goes back to the system as usual.

    The C library gives large blocks back when they are freed, and gets others for the next layer, which the system has
    to fill with zeros page by page: 50,000 pages in an update of wgan_gp.py's critic, a million for the features of 128
    images. Kept, they cost nothing. Up to 1 GB of what is free is kept. Without glibc this does nothing.
    """
    # mallopt(3): how many blocks may be mapped by themselves (M_MMAP_MAX, -4), from which size (M_MMAP_THRESHOLD, -3),
    # how much may be free (M_TRIM_THRESHOLD, -1). The usual ones are where glibc's own end up when blocks are large.
    options = {-4: 0, -1: 2**30} if keep else {-4: 65536, -3: 2**25, -1: 2**26}
    with contextlib.suppress(AttributeError, OSError, TypeError):
        mallopt = ctypes.CDLL(None).mallopt
        for option, value in options.items():
            mallopt(option, value)


def patches(images, kernel, stride, rows, columns):
    """images (N, H, W, C) -> (N, h, w, kh kw C): what a kernel (kh, kw) sees at each of its places. rows, columns: how
    many zeros go before and behind; less than 0 cuts off."""
    seen = F.pad(images, (0, 0, *columns, *rows)).unfold(1, kernel[0], stride[0]).unfold(2, kernel[1], stride[1])
    return seen.permute(0, 1, 2, 4, 5, 3).flatten(3)


def convolved(large, weight, bias, stride, padding):
    """F.conv2d by one product: large (N, C, H, W), weight (O, C, kh, kw), bias (O) or None -> small (N, O, h, w)."""
    seen = patches(large.permute(0, 2, 3, 1), weight.shape[2:], stride, *((p, p) for p in padding))
    return F.linear(seen, weight.permute(0, 2, 3, 1).flatten(1), bias).permute(0, 3, 1, 2)


def convolved_weight(large, small, kernel, stride, padding):
    """The gradient of `convolved` to its weight: large (N, C, H, W), small (N, O, h, w) -> (O, C, *kernel)."""
    seen = patches(large.permute(0, 2, 3, 1), kernel, stride, *((p, p) for p in padding))
    gradient = small.permute(0, 2, 3, 1).flatten(0, 2).t() @ seen.flatten(0, 2)
    return gradient.unflatten(1, (*kernel, -1)).permute(0, 3, 1, 2)


def convolved_back(small, weight, size, stride, padding):
    """The gradient of `convolved` to its input, a transposed convolution: small (N, O, h, w), weight (O, C, kh, kw),
    size (H, W) -> large (N, C, H, W). With stride s, the places a, a + s, a + 2s ... of a side are reached through the
    taps r, r + s, r + 2s ... of the kernel only: an ordinary convolution for each a."""

    def part(axis, a):  # -> r, how many taps, zeros before and behind
        s, p, k = stride[axis], padding[axis], weight.shape[2 + axis]
        first = (a + p) % s
        taps = len(range(first, k, s))
        before = taps - 1 - (a + p) // s
        return first, taps, (before, len(range(a, size[axis], s)) - small.shape[2 + axis] + taps - 1 - before)

    large, images = small.new_empty(len(small), *size, weight.shape[1]), small.permute(0, 2, 3, 1)
    for a, b in itertools.product(range(stride[0]), range(stride[1])):
        (down, height, rows), (right, width, columns) = part(0, a), part(1, b)
        taps = weight[:, :, down :: stride[0], right :: stride[1]].flip(2, 3)  # (O, C, height, width)
        seen = patches(images, (height, width), (1, 1), rows, columns)
        large[:, a :: stride[0], b :: stride[1]] = seen @ taps.permute(2, 3, 0, 1).flatten(0, 2)
    return large.permute(0, 3, 1, 2)


def matrix_units():
    """Has this CPU units for products of bf16 matrices (AMX), and PyTorch a way to use quick_convolutions there?"""
    return getattr(torch.cpu, "_is_amx_tile_supported", lambda: False)() and hasattr(torch.library, "get_kernel")


@functools.cache
def quick_convolutions(dtype=torch.bfloat16, few=4):
    """For CPUs with matrix units: convolutions of many channels at few places become the products above.

    oneDNN rearranges the weights at every call, which takes longer there than the convolution: the gradient of a
    weight (512, 256, 4, 4) at 64 x 4x4 places takes 36 ms instead of 7, that of (2048, 1024, 4, 4) 3.4 s instead of
    0.13 (torch 2.15, one core). few: places in the batch for each output channel up to which they pay; 4 times as many
    for a weight's gradient. From now on PyTorch uses them for this dtype on the CPU, whoever calls; gradients, and the
    gradients of those, are made of them, too.
    """
    names = "convolution", "convolution_backward"
    plain, plain_backward = (torch.library.get_kernel(f"aten::{name}", "CPU") for name in names)

    def pays(n, large, small, channels, stride, few=few):  # not where most of the kernel lies outside: 1x1 -> 4x4
        full = math.prod(large) <= 2 * math.prod(stride) * math.prod(small)
        return full and n * math.prod(small) <= few * channels

    def convolution(keys, x, weight, bias, stride, padding, dilation, transposed, output_padding, groups):
        if x.dtype == dtype and x.ndim == 4 and groups == 1:
            n, _, *size = x.shape
            sides = list(zip(size, weight.shape[2:], stride, padding, dilation, output_padding, strict=True))
            if max(dilation) > 1 and max(stride) == 1 and not transposed and bias is None:
                # The penalty of wgan_gp.py needs the gradient of the gradient. For a weight, PyTorch writes it as a
                # convolution with the gradients of all places as one large kernel; it is convolved_weight
                kernel = [a + 2 * p - d * (k - 1) for a, k, _, p, d, _ in sides]
                if all(k < of for k, of in zip(kernel, weight.shape[2:], strict=True)):
                    x, small = x.transpose(0, 1), weight.transpose(0, 1)
                    like = x.new_empty(small.shape[1], x.shape[1], *kernel)
                    given = small, x, like, None, dilation, padding, [1, 1], False, [0, 0], 1, [False, True, False]
                    return torch.ops.aten.convolution_backward(*given)[1].transpose(0, 1)
            elif max(dilation) == 1 and transposed:
                large = [(a - 1) * s - 2 * p + k + o for a, k, s, p, _, o in sides]
                if pays(n, large, size, weight.shape[0], stride):
                    y = convolved_back(x, weight, large, stride, padding)
                    return y if bias is None else y + bias[:, None, None]
            elif max(dilation) == 1:
                small = [(a + 2 * p - k) // s + 1 for a, k, s, p, _, _ in sides]
                if pays(n, size, small, weight.shape[0], stride):
                    return convolved(x, weight, bias, stride, padding)
        given = x, weight, bias, stride, padding, dilation, transposed, output_padding, groups
        return plain.call_boxed(keys, *given)

    def convolution_backward(keys, gradient, x, weight, *rest):
        _, stride, padding, dilation, transposed, _, groups, mask = rest
        found, mask = [None, None, None], list(mask)
        if x.dtype == dtype and x.ndim == 4 and groups == 1 and max(dilation) == 1:
            large, small = (gradient, x) if transposed else (x, gradient)
            given = len(x), large.shape[2:], small.shape[2:], small.shape[1], stride
            if mask[0] and pays(*given):
                mask[0] = False
                found[0] = (convolved(gradient, weight, None, stride, padding) if transposed else
                            convolved_back(gradient, weight, x.shape[2:], stride, padding))  # fmt: skip
            if mask[1] and pays(*given, 4 * few):
                mask[1] = False
                found[1] = convolved_weight(large, small, weight.shape[2:], stride, padding)
                if mask[2]:  # for a bias alone, oneDNN would find the gradient of the weight again
                    mask[2] = False
                    found[2] = gradient.sum((0, 2, 3))
        if any(mask):
            others = plain_backward.call_boxed(keys, gradient, x, weight, *rest[:-1], mask)
            found = [mine if other is None else other for mine, other in zip(found, others, strict=True)]
        return tuple(found)

    library = torch.library.Library("aten", "IMPL")
    for name, own in zip(names, (convolution, convolution_backward), strict=True):
        library.impl(name, own, "CPU", with_keyset=True)
    return library  # PyTorch goes back to its own when this is gone


def grid(images, columns=None):
    """uint8 (N, C, H, W) -> one PIL picture, row by row, with 2 white pixels between. columns: default square."""
    columns = min(columns or math.ceil(math.sqrt(len(images))), len(images))
    n, c, h, w = images.shape
    rows = math.ceil(n / columns)
    canvas = np.full((rows * (h + 2) - 2, columns * (w + 2) - 2, 3), 255, np.uint8)
    for i, image in enumerate(images.expand(n, 3, h, w).permute(0, 2, 3, 1).numpy()):
        y, x = i // columns * (h + 2), i % columns * (w + 2)
        canvas[y : y + h, x : x + w] = image
    return Image.fromarray(canvas)


def above(originals, copies):
    """uint8 (N, C, H, W) twice -> one picture: a row of eight originals, under it their copies, and so on."""
    columns = min(8, len(originals))
    white = originals.new_full((-len(originals) % columns, *originals.shape[1:]), 255)  # to the end of the last row
    rows = zip(*(torch.cat([images, white]).split(columns) for images in (originals, copies)), strict=True)
    return grid(torch.cat([part for pair in rows for part in pair]), columns)


def save_picture(picture, path):
    """Write a PIL picture as PNG, atomically, making the folder if needed."""
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, lambda p: picture.save(p, format="PNG"))


# ------------------------------------------------------------------------------------------ a run of a model script

CHANGEABLE = set("steps epochs device precision log_every sample_every save_every eval_every eval_images".split())
CHANGEABLE |= {"dims", "weights", "resume", "dry_run", "no_graph"}  # what may differ when a run goes on


def new_run(script, args, data_name):
    """Make and return the run directory: --out, or runs/<script>-<data>[-<preset>]-<n> with the next free n."""
    if args.out:
        path = Path(args.out)
        early = {".lock", "args.json", "log.csv", "weights.csv"}  # all that a run killed at once leaves
        if path.exists() and (not path.is_dir() or {p.name for p in path.iterdir() if p.suffix != ".tmp"} - early):
            resume = f"use --resume {path}, or " * (path / "last.pt").exists()
            raise InputError(f"'{path}' exists and is not empty: {resume}give another --out")
        path.mkdir(parents=True, exist_ok=True)
        return path
    preset = f"-{args.preset}" if args.preset and args.preset != data_name else ""
    base, n = Path("runs") / f"{script}-{data_name}{preset}", 1
    while True:
        with contextlib.suppress(FileExistsError):
            (path := Path(f"{base}-{n}")).mkdir(parents=True)
            return path
        n += 1


def resumed(script, flags, args):
    """--resume -> (run directory, its checkpoint, its flags with the changes that are allowed)."""
    if not args.resume:
        runs = sorted(Path("runs").glob(f"{script}-*/last.pt"), key=lambda p: p.stat().st_mtime_ns)
        if not runs:
            raise InputError(f"no run of {script}.py in runs/ to resume")
        args.resume = str(runs[-1].parent)
    checkpoint = checkpoint_of(script, args.resume)
    if not Path(args.resume).is_dir():
        raise InputError(f"--resume takes a run directory: --resume {Path(args.resume).parent}")
    merged = vars(flags_of(checkpoint, flags))
    for name in args.explicit:
        new = getattr(args, name)
        if name not in CHANGEABLE | {"data"} and new != merged[name]:  # data: its fingerprint is compared
            flag = name.replace("_", "-")
            raise InputError(f"--{flag} was {merged[name]} in this run and cannot become {new} on resume")
        merged[name] = new
    if "epochs" in args.explicit and "steps" not in args.explicit:
        merged["steps"] = None
    merged["no_graph"] = "no_graph" in args.explicit  # it has no opposite, so it holds for one session only
    return Path(args.resume), checkpoint, argparse.Namespace(**merged, explicit=args.explicit)


class Log:
    """log.csv or weights.csv. Opened again on resume, it drops the rows after the checkpoint: they are done again."""

    def __init__(self, path, columns, step):
        old = []
        if path.exists():
            with open(path, newline="", encoding="utf-8") as file:
                old = [row for row in csv.DictReader(file) if int(row.get("step") or step + 1) <= step]
        self.columns = columns + [c for c in (old[0] if old else []) if c and c not in columns]
        writer = csv.DictWriter(text := io.StringIO(), self.columns, extrasaction="ignore", lineterminator="\n")
        writer.writeheader()
        writer.writerows(old)
        write_text(path, text.getvalue())
        self.path = path

    def write(self, *rows):
        with open(self.path, "a", newline="", encoding="utf-8") as file:
            csv.DictWriter(file, self.columns, lineterminator="\n").writerows(rows)


class Run:
    """One training run of a model script: everything around the networks and their train step.

        run = Run("dcgan", args, FLAGS, PRESETS, LOSSES)    # the data, the device, the length; --resume is read
        ... build networks and optimisers ...
        with run.opened(networks, optimisers, sample, fakes):   # the directory, its lock, the checkpoint, the log
            for step in run.steps():
                run.record(train(step))                         # logs, draws, saves and evaluates when it is time
        run.finish(generate)                                    # plots, and the metrics of a preset

    sample()    writes the pictures of this moment, named by run.step
    fakes(n)    n generated pictures, uint8, for --eval-every
    measure()   more columns of the log, {name: value}; their names are `columns`
    A run goes on exactly where it stopped: see `snapshot` for what that takes.

    Several processes, one for each GPU:    torchrun --nproc-per-node 4 dcgan.py --batch 128
    All do the same steps on their own part of the data and with their own latents. Before each update their gradients
    are averaged, so their networks stay the same: as one process with 4 times the batch, but for BatchNorm, whose
    statistics are each process's own (those of the first are saved). Only the first writes, draws and measures.
    """

    def __init__(self, script, args, flags, presets, losses, updates=None):
        """losses: the columns of what train_step returns, or a function of args that returns them.
        updates: the flag that says how many batches a step draws."""
        self.script, self.checkpoint, self.path = script, None, None
        if args.resume is not None:
            self.path, self.checkpoint, args = resumed(script, flags, args)
        self.losses = losses(args) if callable(losses) else losses
        self.args, self.preset = args, presets.get(args.preset, {})
        self.flags = {k: v for k, v in vars(args).items() if k in flags and k != "resume"}
        self.device, self.precision = pick_device(args.device, args.precision)
        if WORLD > 1:
            if RANK > 0:
                sys.stdout = open(os.devnull, "w", encoding="utf-8")
            backend = "cpu:gloo,cuda:nccl" if self.device.type == "cuda" else "gloo"
            if not torch.distributed.is_initialized():  # the others wait while the first measures, so have patience
                torch.distributed.init_process_group(backend, timeout=datetime.timedelta(days=1))
        if self.device.type == "cuda":
            torch.backends.cudnn.benchmark = True  # shapes never change: measure once which kernels are fastest
        self.flags["size"] = args.size = args.size or default_size(args.data)
        self.data, self.held_out = load_parts(args.data, args.size, getattr(args, "hold_out", 0))
        if self.checkpoint and (before := self.checkpoint.get("processes", 1)) != WORLD:
            raise InputError(f"'{self.path}' was trained by {before} processes, not {WORLD}: go on with as many")
        if self.checkpoint and self.data.fingerprint != self.checkpoint["data"]["fingerprint"]:
            raise InputError(f"'{args.data}' is not the data that this run was trained on (its fingerprint differs)")
        if "drop_label" in flags and self.data.labels is None:  # the classes are optional: all pictures are of one
            self.data = self.data._replace(labels=torch.zeros(len(self.data.images)).long(), classes=[self.data.name])
        if "class" in flags and self.data.labels is None:
            raise InputError(
                f"'{args.data}' has no labels, or all images in one class: a conditional model needs a sub-folder for "
                "each class, or `labels` in the .npz"
            )
        balance = getattr(args, "balance", False)
        self.batches = Batches(self.data, args.batch, self.device, args.seed, balance=balance)
        self.per_epoch = max(1, self.batches.per_epoch // (getattr(args, updates) if updates else 1))
        self.total = args.steps or args.epochs * self.per_epoch
        self.sample_every, self.save_every = (
            every or max(self.per_epoch, 100) for every in (args.sample_every, args.save_every)
        )
        step = self.checkpoint["step"] if self.checkpoint else 0
        if step > self.total or step == self.total and self.measured_at() in (step, None):
            raise InputError(f"'{self.path}' is finished ({step} steps): give a larger --steps or --epochs")
        self.halves = self.words = None
        if args.eval_images and (args.eval_every or "report" in self.preset) and not args.dry_run:
            self.halves, self.words = self.reference_halves()
            if min(len(half) for half in self.halves) < 2:
                raise InputError(
                    "an evaluation needs 2 images on each side: see --eval-images (0: none) and the test split"
                )
            if args.weights and not Path(args.weights).is_file():
                raise InputError(f"no file '{args.weights}': see --weights")
        elif RANK == 0 and (idle := {"dims", "weights"} & set(args.explicit)) and not args.dry_run:
            print(f"note: --{min(idle)} does nothing here: nothing is measured without --eval-every", file=sys.stderr)
        self.step, self.seconds, self.recent, self.stop, self.told = 0, 0.0, [], [], set()
        self.best, self.best_side = math.inf, args.size  # lowest FID, and the side of the pictures that have it

    def reference_halves(self):
        """Two disjoint sets of real images: one chooses best.pt, the other gives the final numbers (so a fair result).

        They are the halves of the held-out images, or where there are none of a fixed random part of all images.
        """
        words = "held-out images" if self.held_out else "training images (the data have no held-out split)"
        pool = self.held_out or load(self.args.data, self.args.size, "test")
        order = shuffled(len(pool.images), 0)
        return [pool.images[order[i::2][: self.args.eval_images]] for i in (0, 1)], f"{words} of {pool.name}"

    def measured_at(self):
        """The step that metrics.json is about (0: measuring was stopped before it was written); None: none is due."""
        if not (self.args.eval_images and "report" in self.preset):
            return None
        try:
            return json.loads((self.path / "metrics.json").read_text(encoding="utf-8")).get("step")
        except (OSError, ValueError):
            return 0

    def plan(self):
        """The last lines of --dry-run."""
        shape, args = tuple(self.data.images.shape[1:]), self.args
        print(f"data: {self.data.name} from {args.data}: {len(self.data.images)} images {shape}, {self.data.note}")
        print(
            f"plan: {self.total} steps of {args.batch * WORLD} images, {self.per_epoch} steps an epoch "
            f"({self.total / self.per_epoch:.1f} epochs)"
        )
        print(f"on {self.device} in {self.precision}; seed {args.seed}. Nothing was trained.")

    def autocast(self):
        return autocast(self.device, self.precision)

    def snapshot(self, together=True):
        """The checkpoint: one dict of tensors and plain values, all that an exact continuation needs.

        together: all processes call this at once, and the random states of all are in it."""
        rng = {"cpu": torch.get_rng_state()}
        if self.device.type != "cpu":
            rng[self.device.type] = getattr(torch, self.device.type).get_rng_state()
        if WORLD > 1 and together:
            torch.distributed.all_gather_object(everyone := [None] * WORLD, rng)
            rng = {**rng, "everyone": everyone}
        return {
            "script": self.script, "format": 1, "flags": self.flags, "step": self.step, "seconds": self.seconds,
            "best": self.best, "best_side": self.best_side, "drawn": self.batches.drawn,
            "steps_per_epoch": self.per_epoch, "data": self.about, "processes": WORLD,
            "networks": {name: network.state_dict() for name, network in self.networks.items()},
            "optimisers": {name: optimiser.state_dict() for name, optimiser in self.optimisers.items()},
            "recent": torch.stack(self.recent).cpu() if self.recent else torch.empty(0, len(self.losses)),
            "rng": rng, **self.extra,
        }  # fmt: skip

    def restore(self):
        saved, args = self.checkpoint, self.args
        for name, network in self.networks.items():
            network.load_state_dict(saved["networks"][name])
        for name, optimiser in self.optimisers.items():
            for group in saved["optimisers"][name]["param_groups"]:
                group |= adam_kernel(self.device)  # it may be another device than the one it was saved on
            optimiser.load_state_dict(saved["optimisers"][name])
            for weight, state in optimiser.state.items():  # Adam's kernel wants its averages to lie as the weights do
                for key in ("exp_avg", "exp_avg_sq"):
                    state[key] = torch.empty_like(weight).copy_(state[key])
        self.step, self.seconds = saved["step"], saved["seconds"]
        if all(getattr(args, k) == saved["flags"][k] for k in ("dims", "weights", "eval_images")):
            # under another protocol FIDs do not compare, and the next one is the best
            self.best, self.best_side = saved["best"], saved.get("best_side", args.size)
        self.recent = list(saved["recent"].to(self.device))
        self.batches.drawn = saved["drawn"]
        rng = saved["rng"]["everyone"][RANK] if WORLD > 1 else saved["rng"]
        torch.set_rng_state(rng["cpu"])
        if self.device.type in rng and self.device.type != "cpu":
            getattr(torch, self.device.type).set_rng_state(rng[self.device.type])

    @contextlib.contextmanager
    def opened(self, networks, optimisers, sample, fakes, columns=(), measure=None, extra=None):
        """Hold the run directory while training. networks, optimisers: dicts; extra: more to keep in checkpoints."""
        args, data = self.args, self.data
        self.networks, self.optimisers, self.extra = networks, optimisers, extra or {}
        self.sample, self.fakes, self.measure = sample, fakes, measure
        counts = torch.bincount(data.labels, minlength=len(data.classes)).tolist() if data.labels is not None else []
        self.about = {
            "name": data.name, "source": args.data, "fingerprint": data.fingerprint, "size": args.size,
            "channels": data.images.shape[1], "count": len(data.images), "classes": data.classes, "counts": counts,
        }  # fmt: skip
        if self.checkpoint:
            self.restore()
        elif RANK > 0:
            torch.manual_seed(args.seed + 1_000_003 * RANK)  # the networks are the same, from here on latents are not
        if RANK == 0:
            self.path = self.path or new_run(self.script, args, data.name)
        if WORLD > 1:
            torch.distributed.broadcast_object_list(box := [self.path])
            self.path = box[0]
            for optimiser in optimisers.values():
                optimiser.register_step_pre_hook(average_gradients)
        one = locked(self.path / ".lock", busy=f"another process is training in '{self.path}'")
        with one if RANK == 0 else contextlib.nullcontext():
            self.metrics = self.log = self.histograms = None
            if RANK == 0:
                self.open_files(columns)
            if not self.checkpoint:
                self.save("last.pt")
                self.draw()
            handlers = {number: signal.signal(number, self.signalled) for number in (signal.SIGINT, signal.SIGTERM)}
            self.bar = tqdm(total=self.total, initial=self.step, unit="step", disable=RANK > 0 or None)
            self.mark = self.said = time.perf_counter()
            self.logged = (self.step, self.seconds)
            try:
                yield
                if self.step < self.total:
                    self.seconds += time.perf_counter() - self.mark
                    self.save("last.pt")
            finally:
                self.bar.close()
                for number, handler in handlers.items():
                    signal.signal(number, handler)
        if self.step < self.total:
            go_on = f"{START} {self.script}.py --resume {shlex.quote(str(self.path))}"
            print(f"stopped and saved at step {self.step} of {self.total}; go on with: {go_on}")
            leave(128 + self.stop[0])
        print(f"done: {self.step} steps in {self.seconds:.0f} s; pictures in {self.path / 'samples'}")

    def signalled(self, number, _):
        """A signal lets the step in progress finish, and an evaluation; then the run saves and ends. The same once more
        ends it at once (not under torchrun, which passes on what a terminal has sent already)."""
        if number in self.stop and WORLD == 1:
            raise KeyboardInterrupt
        if number == signal.SIGINT and RANK == 0:
            with contextlib.suppress(OSError):
                os.write(2, b"\nstopping after this step; Ctrl-C again: at once, without saving it\n")
        self.stop.append(number)

    def open_files(self, columns):
        """args.json, log.csv and weights.csv, and the first lines on the terminal."""
        args = self.args
        if self.checkpoint and read_checkpoint(self.path)["step"] != self.checkpoint["step"]:
            raise InputError(f"another process went on with '{self.path}' meanwhile: resume it again")
        for half_written in self.path.glob("*.tmp"):  # left by kill -9
            half_written.unlink()
        about_run = {
            "script": self.script, "preset": args.preset, "flags": self.flags, "device": str(self.device),
            "processes": WORLD, "precision": self.precision, "steps": self.total, "steps_per_epoch": self.per_epoch,
            "data": self.about, "versions": {"python": platform.python_version(), "torch": torch.__version__},
        }  # fmt: skip
        write_text(self.path / "args.json", json.dumps(about_run, indent=1))
        self.metrics = beside("metrics") if args.eval_every and args.eval_images else None
        scores = [f"{kind}_{dim}" for dim in args.dims for kind in ("fid", "kid")] + ["ms-ssim"]
        scores = scores if self.metrics else []
        header = ["step", "epoch", "seconds", "img_per_s", *self.losses, *columns, *scores]
        self.log = Log(self.path / "log.csv", header, self.step)
        self.histograms = Log(self.path / "weights.csv", "step network layer low high counts".split(), self.step)
        data, processes = self.data, f" in each of {WORLD} processes" * (WORLD > 1)
        print(f"{self.script}: {data.name} {args.size}x{args.size}, {len(data.images)} images ({data.note})")
        print(
            f"{self.total} steps of {args.batch}{processes}, {self.per_epoch} an epoch; {self.device}, "
            f"{self.precision}; everything goes to {self.path}"
        )

    def steps(self):
        """The steps that remain, until the last one or a signal."""
        while self.step < self.total:
            stop = self.stop[0] if self.stop else 0
            if WORLD > 1:  # a signal reaches each process at another step; all stop at the same
                torch.distributed.all_reduce(told := torch.tensor([stop]), torch.distributed.ReduceOp.MAX)
                stop = int(told)
            if stop:
                self.stop = [stop]
                return
            yield self.step

    def fail_at(self, step):
        raise InputError(
            f"a loss or weight is not finite at step {step}: stopped; {self.path / 'last.pt'} is the last good "
            "checkpoint. Start again with a lower --lr"
        )

    def save(self, name):
        """Write a checkpoint. last.pt: all processes at once; best.pt: the first alone, which has measured."""
        weights = [p for network in self.networks.values() for p in network.parameters()]
        if not torch.stack([weight.isfinite().all() for weight in weights]).all():
            self.fail_at(self.step)
        snapshot = self.snapshot(together=name == "last.pt")
        if RANK == 0:
            write_checkpoint(snapshot, self.path / name)

    def record(self, losses):
        """Count one step. losses: float32 (len(LOSSES),) on the device, which is not waited for between two logs."""
        args = self.args
        self.step += 1
        if WORLD > 1:
            torch.distributed.all_reduce(losses)
            losses /= WORLD
        self.recent.append(losses)
        self.bar.update()
        step, ends = self.step, self.step == self.total
        due_eval = self.metrics and (ends or step % args.eval_every == 0)
        due_sample = ends or step % self.sample_every == 0
        # also at the end of an epoch, so that the mean over an epoch can be read from the log
        due_log = ends or due_eval or step % args.log_every == 0 or step % self.per_epoch == 0
        due_save = ends or step % self.save_every == 0
        failed = self.device.type == "cpu" and not losses.isfinite().all()  # on a GPU asking would mean waiting
        if not (due_log or due_sample or due_save or failed):
            return
        table = torch.stack(self.recent).cpu()  # here the program waits for a GPU
        if len(bad := (~table.isfinite().all(1)).nonzero()):
            self.fail_at(step - len(self.recent) + 1 + int(bad[0]))
        self.seconds += time.perf_counter() - self.mark
        if due_log:
            rate = args.batch * WORLD * (step - self.logged[0]) / max(self.seconds - self.logged[1], 1e-9)
            means = dict(zip(self.losses, table.mean(0).tolist(), strict=True))
            row = {"step": step, "epoch": round(step / self.per_epoch, 4), "seconds": round(self.seconds, 3)}
            row |= {"img_per_s": round(rate, 1)} | means
            self.recent, self.logged = [], (step, self.seconds)
            text = " ".join(f"{k.removeprefix('loss_')} {v:.3f}" for k, v in means.items())
            self.bar.set_postfix_str(text := f"{text}, {rate:.0f} img/s")
            if self.bar.disable and (time.perf_counter() - self.said > 10 or ends):  # no terminal: a line now and then
                print(f"step {step}/{self.total} (epoch {step / self.per_epoch:.1f}): {text}", flush=True)
                self.said = time.perf_counter()
            if RANK == 0:
                more = self.measure() if self.measure else {}
                self.log.write(row | more | (self.evaluate() if due_eval else {}))
        if due_sample:
            self.draw()
        if due_save:
            self.save("last.pt")
        self.mark = time.perf_counter()

    def draw(self):
        """The pictures of this moment, and in weights.csv a histogram of every layer's weights, which report.py draws.

        A histogram: the numbers of weights in 50 equal bins from the lowest to the highest. Biases and norms are left
        out. It is counted where the weights are and comes over in one piece, without any random number.
        """
        if RANK > 0:
            return
        self.sample()
        where = "cpu" if self.device.type == "mps" else self.device  # a Mac's GPU lacks some of these operations
        layers = [
            (network, layer, parameter.detach().float().to(where))
            for network, module in self.networks.items()
            for layer, parameter in module.named_parameters()
            if network != "ema" and parameter.dim() > 1
        ]
        table = [torch.empty(0, 52, device=where)]
        for _, _, weight in layers:
            low, high = weight.aminmax()
            share = (weight - low) / (high - low).clamp(min=1e-30)  # 0 to 1; all 0 where all weights are equal
            # in parts: histc counts in float32, which stops at 2^24
            counts = sum(torch.histc(part, 50, 0, 1) for part in share.flatten().split(2**24))
            table.append(torch.cat([low[None], high[None], counts])[None])
        rows = []
        for (network, layer, _), (low, high, *counts) in zip(layers, torch.cat(table).tolist(), strict=True):
            if math.isfinite(low) and math.isfinite(high):  # else there is nothing to count, and save() stops the run
                row = {"step": self.step, "network": network, "layer": layer, "low": low, "high": high}
                rows.append(row | {"counts": " ".join(f"{count:.0f}" for count in counts)})
        self.histograms.write(*rows)

    def evaluate(self):
        """FID and KID of fresh pictures against the first half of the reference; a new best FID goes to best.pt."""
        args = self.args
        fake = self.fakes(args.eval_images)
        if fake.shape[-1] != self.best_side:  # a growing model: FIDs at two sizes do not compare
            self.best, self.best_side = math.inf, fake.shape[-1]
        values = self.metrics.evaluate(
            self.halves[0], fake, dims=args.dims, weights=args.weights, device=self.device,
            real_words=self.words,
        )  # fmt: skip
        found = self.metrics.scores(values)
        chosen = max((dim for dim in args.dims if f"fid_{dim}" in found), default=None)
        for v in values:
            if v["value"] is None and v["reason"] not in self.told:
                self.told.add(v["reason"])
                self.bar.write(f"not measured here: {v['reason']}" + "; so no best.pt is kept" * (chosen is None))
        best = chosen is not None and found[f"fid_{chosen}"] < self.best
        if best:
            self.best = found[f"fid_{chosen}"]
            self.save("best.pt")
        measured = [v for v in values if v["value"] is not None and v["name"].startswith(("FID", "KID"))]
        if text := ", ".join(f"{self.metrics.title(v)} {self.metrics.shown(v)}" for v in measured):
            self.bar.write(f"step {self.step}: {text}" + "; the best so far: best.pt" * best)
        return found

    def finish(self, generate, more=None):
        """After the last step: plots and, for a report's preset, its metrics; kept in metrics.json.

        generate: the script's own. more(metrics): what this script measures besides, in the form of
        metrics.evaluate. A conditional model (one with --class) is also asked whether it
        obeys the class.
        """
        args, report, checkpoint = self.args, self.preset.get("report"), self.snapshot(together=False)
        if RANK > 0:
            return
        if (pictures := beside("report")) is not None:
            for path in pictures.report(self.path, device=self.device):
                print(f"wrote {path}")
        if report and args.eval_images and (metrics := beside("metrics")) is not None:
            other, real = self.halves
            fake = generate(checkpoint, args.eval_images, args.seed + 2, self.device)
            values = metrics.evaluate(
                real, fake, floor=other, dims=args.dims, weights=args.weights, device=self.device,
                real_words=self.words,
                fake_words=f"images by {weights_used(checkpoint)}, latent seed {args.seed + 2}",
            )  # fmt: skip
            values += more(metrics) if more else []
            if "class" in self.flags and len(self.data.classes) > 1:
                count, seed = metrics.as_many_as(self.data, args.eval_images), args.seed + 3
                counts = self.about["counts"]
                fake, asked = generate(checkpoint, count, seed, self.device), random_labels(counts, count, seed)
                settings = {name: getattr(args, name) for name in ("dims", "weights", "eval_images")}
                values += metrics.conditional(self.data, self.held_out, fake, asked, device=self.device, **settings)
            others = {k: getattr(args, k) for k, v in self.preset.items() if k != "report" and getattr(args, k) != v}
            changed = " ".join(f"--{k.replace('_', '-')} {v}" for k, v in others.items() if v is not None)
            result = {"values": values, "report": report, "weights": weights_used(checkpoint), "changed": changed}
            result["step"] = checkpoint["step"]
            write_text(self.path / "metrics.json", json.dumps(result, indent=1))
            if changed:
                print(f"\nnot quite the preset {args.preset}: {changed}")
            print(f"\npreset {args.preset}, ours beside the report's; the report's protocol: {report['protocol']}")
            print(metrics.table(values, report))
        path = shlex.quote(str(self.path))
        print(f"\ntry next: python {self.script}.py --load {path} --generate 64 --to grid.png")
        print(f"          {START} {self.script}.py --resume {path} --steps {2 * checkpoint['step']}")


def average_gradients(optimiser, *_):
    """Just before an update, in several processes: every gradient becomes its mean over them, in one message."""
    grads = [p.grad for group in optimiser.param_groups for p in group["params"] if p.grad is not None]
    flat = torch.cat([grad.flatten() for grad in grads])
    torch.distributed.all_reduce(flat)
    for grad, mean in zip(grads, (flat / WORLD).split([grad.numel() for grad in grads]), strict=True):
        grad.copy_(mean.view_as(grad))


def beside(name):
    """metrics.py or report.py if it lies beside this script; else one line that says so, and None."""
    try:
        module = importlib.import_module(name)
        if hasattr(module, {"metrics": "evaluate", "report": "report"}[name]):
            return module
        problem = f"{module.__file__} is not ours"
    except ModuleNotFoundError as error:
        problem = error
    print(f"{name}.py is not used: {problem}", file=sys.stderr)
    return None


def checkpoint_of(script, path):
    """read_checkpoint, for the checkpoints of one script only."""
    checkpoint = read_checkpoint(path)
    if checkpoint["script"] != script:
        raise InputError(f"'{path}' is a checkpoint of {checkpoint['script']}.py: use it with that script")
    return checkpoint


def flags_of(checkpoint, flags):
    """The flags of a checkpoint as a Namespace. One that the script got later has its default. flags: its FLAGS."""
    return argparse.Namespace(**{name: flag[0] for name, flag in flags.items()} | checkpoint["flags"])


def weights_used(checkpoint):
    """Which weights of a checkpoint make its pictures, in words."""
    ema = checkpoint["flags"]["ema"]
    return (f"averaged weights (EMA {ema})" if ema else "plain weights") + f" at step {checkpoint['step']}"


@torch.no_grad()
def update_average(average, network, decay):
    """--ema: average = decay * average + (1 - decay) * network, of the parameters, in place.

    BatchNorm's statistics are copied: variances of the first steps can be thousands of times those of later ones, and
    would weigh in an average for as long. Nothing here waits for the device.
    """
    torch._foreach_lerp_(list(average.parameters()), list(network.parameters()), 1 - decay)
    for ours, theirs in zip(average.buffers(), network.buffers(), strict=True):
        ours.copy_(theirs)


def channels(size, width):
    """Channel counts at 4x4, 8x8, ... size/2. They double at every halving, up to 8 times the width."""
    return [width * min(8, size // (2 * side)) for side in (2**k for k in range(2, size.bit_length() - 1))]


def describe(network, *inputs):
    """--dry-run: the parameter count of a network, and the shape after every layer as these inputs run through it."""
    count, hooks = sum(p.numel() for p in network.parameters()), []
    print(f"{type(network).__name__}: {count:,} parameters\n  {'input':22s} {tuple(inputs[0].shape[1:])}")
    for name, layer in network.named_modules():
        # the innermost layers; what spectral normalisation hangs into one is no layer
        if "parametrizations" not in name and not dict(layer.named_children()).keys() - {"parametrizations"}:

            def show(layer, _, output):
                print(f"  {type(layer).__name__.removeprefix('Parametrized'):22s} {tuple(output.shape[1:])}")

            hooks.append(layer.register_forward_hook(show))
    with torch.no_grad():
        network.eval()(*inputs)
    for hook in hooks:
        hook.remove()


def use_generator(script, args, generate, interpolate):
    """--load with --generate or --interpolate, of the script's own: a grid in one file, or a folder of PNGs.

    --class goes to the two functions as label, the number of the class.
    """
    checkpoint, asked, more = checkpoint_of(script, args.load), getattr(args, "class", None), {}
    if asked is not None:
        classes = checkpoint["data"]["classes"]
        if asked not in classes:
            raise InputError(f"no class '{asked}': this model knows {', '.join(classes)}")
        more["label"] = classes.index(asked)
    device, _ = pick_device(args.device)
    print(f"{script}, {weights_used(checkpoint)}")
    if args.generate:
        write_pictures(generate(checkpoint, args.generate, args.seed, device, **more), args.to or "generated.png")
    else:
        kind = getattr(args, "interpolation", "linear")
        images = interpolate(checkpoint, 8, args.interpolate, kind, args.seed, device, **more)
        write_pictures(images, args.to or "interpolation.png", columns=args.interpolate)


def write_pictures(images, to, columns=None):
    """Write uint8 (N, C, H, W) to `to`: one grid if it is FILE.png, else a new folder of N PNGs."""
    to = Path(to)
    if to.suffix.lower() == ".png":
        save_picture(grid(images, columns), to)
    elif to.suffix:
        raise InputError(f"--to {to}: give a .png for one grid, or a folder")
    elif to.exists() and (not to.is_dir() or any(to.iterdir())):
        raise InputError(f"'{to}' exists and is not an empty folder: choose another --to")
    else:
        for i, image in enumerate(images):
            save_picture(grid(image[None]), to / f"{i:05d}.png")
    print(f"wrote {len(images)} pictures to {to}")


# ----------------------------------------------------------------------------------------------- command line


def entropy_floor(images):
    """Mean over images of the sum of -p log p - (1 - p) log(1 - p) over their values p = byte / 255, in nats.

    It is the binary cross-entropy of the images with themselves, which a VAE's reconstruction can only approach.
    """
    counts = sum(torch.bincount(part.flatten().int(), minlength=256).double() for part in images.split(1024))
    p = torch.arange(256, dtype=torch.float64) / 255
    return (counts @ (torch.special.entr(p) + torch.special.entr(1 - p))).item() / len(images)


def channel_moments(images):
    """Mean and standard deviation of each channel of uint8 (N, C, H, W), of values in [0, 1]: float64 (C,) twice."""
    values = torch.stack([torch.stack([p.float().mean((0, 2, 3)), p.float().square().mean((0, 2, 3))]) * len(p)
                          for p in images.split(1024)]).double().sum(0) / len(images)  # fmt: skip
    return values[0] / 255, (values[1] - values[0].square()).clamp(min=0).sqrt() / 255


def jensen_shannon(p_counts, q_counts):
    """Jensen-Shannon (distance, divergence) in nats between the distributions that two lists of counts stand for.

    With m = (p + q) / 2 and the entropy H the divergence is H(m) - (H(p) + H(q)) / 2, from 0 to ln 2 (Lin 1991). The
    distance is its square root, which is what scipy.spatial.distance.jensenshannon returns: do not mix them up.
    """
    p, q = (torch.as_tensor(counts, dtype=torch.float64) / sum(counts) for counts in (p_counts, q_counts))
    of_m, of_p, of_q = (torch.special.entr(x).sum().item() for x in ((p + q) / 2, p, q))
    divergence = max(of_m - (of_p + of_q) / 2, 0.0)
    return math.sqrt(divergence), divergence


def spectrum(images):
    """uint8 (N, C, H, W) -> (singular values, centred energies), both float64 (min(N, D),), falling; D = C*H*W.

    The singular values are those of the (N, D) matrix of values in [0, 1] as it is. The energies are the squares of
    those after the mean image was taken off: the variances of the principal components times N.

    Both come from the eigenvalues of one Gram matrix of the smaller side, which float64 holds exactly, because the
    values are whole numbers from 0 to 255. The square costs half the digits, and enough are left: of 1,000 photographs
    every singular value agrees with a float64 decomposition of the matrix itself to 2e-13 of its size, in a tenth of
    the time. In float32 that decomposition is right to 7e-6, and still takes six times as long as this.
    2,700 images of 64x64 take 15 seconds on one processor core, the 10,100 of Food-101 some minutes.
    """
    flat = images.flatten(1)
    n, d = flat.shape
    pieces = (flat if n <= d else flat.T).split(1024, dim=1)  # converted piece by piece, to save memory
    gram = sum(piece @ piece.T for piece in (piece.double() for piece in pieces))
    if n <= d:  # rows are images: take the mean off both sides, (I - 1/N) G (I - 1/N)
        mean = gram.mean(0)
        centred = gram - mean[:, None] - mean + mean.mean()
    else:
        mean = flat.sum(0, dtype=torch.float64)
        centred = gram - torch.outer(mean, mean) / n
    whole, energies = (torch.linalg.eigvalsh(matrix).flip(0) for matrix in (gram, centred))
    rounding = whole[0] * len(gram) * torch.finfo(torch.float64).eps  # what is smaller is 0, as in matrix_rank
    whole, energies = (values.where(values > rounding, 0) / 255**2 for values in (whole, energies))
    return whole.sqrt(), energies


def components(energies, share):
    """The smallest number of principal components that hold this share of the energy. energies: falling."""
    total = energies.cumsum(0)
    return int((total < share * total[-1] * (1 - 1e-12)).sum()) + 1


def elbow(values):
    """How many values come before the elbow of a falling curve.

    The elbow is the point farthest from the chord between the curve's ends, after both axes are scaled to [0, 1]
    (Satopaa et al. 2011, "kneedle", without its smoothing).
    """
    y = (values - values[-1]) / (values[0] - values[-1]).clamp(min=1e-300)
    return max(int((torch.linspace(1, 0, len(y), dtype=y.dtype) - y).argmax()), 1)


def draw_spectrum(data, path):
    """--svd: plot the singular values of 100 images of each class (5,000 if unlabelled), print effective dimensions."""
    try:
        from matplotlib.figure import Figure  # without pyplot: no window, no global state
    except ImportError:
        raise InputError("--svd draws with matplotlib, which is not installed: pip install matplotlib") from None
    if data.labels is None:
        rows, words = shuffled(len(data.images), 0)[:5000], "images"
    else:
        each = [(data.labels == c).nonzero()[:, 0] for c in range(len(data.classes))]
        rows, words = torch.cat([rows[shuffled(len(rows), 0)[:100]] for rows in each]), "images, 100 of each class,"
        if min(len(rows) for rows in each) < 100:
            words = "images, up to 100 of each class,"
    words = f"{len(rows)} {words} of {data.images[0].numel()} values"
    values, energies = spectrum(data.images[rows])
    if energies[0] == 0:
        raise InputError(f"'{data.name}' holds no two different images: their dimension is 0")
    shares = {share: components(energies, share / 100) for share in (90, 95, 99)}
    bend, raw = elbow(energies.sqrt()), elbow(values)

    figure = Figure(figsize=(8, 5), dpi=110, layout="constrained")
    axis = figure.subplots()
    # one upon the other: they differ in the first few values only
    for curve, label, color, width in (
        (values[values > 0], "of the images as they are", "#9ecae1", 5),
        (energies[energies > 0].sqrt(), "of the images without their mean", "#d95f02", 1.4),
    ):
        axis.plot(torch.arange(1, len(curve) + 1).numpy(), curve.numpy(), color=color, linewidth=width, label=label)
    axis.set_yscale("log")
    axis.axvline(bend, color="#222222", linewidth=1, linestyle=":", label=f"elbow of the latter: {bend}")
    for (share, count), style in zip(shares.items(), ("-", "--", "-."), strict=True):
        label = f"{share} % of the centred energy: {count}"
        axis.axvline(count, color="#777777", linewidth=1, linestyle=style, label=label)
    axis.set_xlabel("index")
    axis.set_ylabel("singular value (values in [0, 1])")
    axis.set_title(f"{data.name}: {words}", fontsize=11, parse_math=False)  # a name may hold dollars
    axis.spines[["top", "right"]].set_visible(False)
    axis.legend(frameon=False, fontsize=9)
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, lambda temporary: figure.savefig(temporary, format="png"))
    print(
        f"effective dimension, by {words}: "
        + ", ".join(f"{count} components for {share} %" for share, count in shares.items())
        + f" of the centred energy; elbow of the centred singular values after {bend}, of the uncentred after {raw}"
    )
    print(f"wrote {path}")


def print_stats(data):
    """Counts, balance and channel statistics of one split, on standard output."""
    n, c, h, w = data.images.shape
    print(f"{data.name}: {n} images, {c} channel{'s' * (c > 1)}, {h}x{w}, {data.note}; fingerprint {data.fingerprint}")
    mean, std = channel_moments(data.images)
    print("channel means " + " ".join(f"{v:.4f}" for v in mean) + ", deviations " + " ".join(f"{v:.4f}" for v in std))
    print(f"entropy floor {entropy_floor(data.images):.1f} nats an image: no cross-entropy summed over values is lower")
    if data.labels is None:
        print("no labels")
        return
    counts = torch.bincount(data.labels, minlength=len(data.classes)).tolist()
    for name, count in zip(data.classes, counts, strict=True):
        print(f"  {name:24s} {count:7d}  {100 * count / n:5.1f} %")
    print(f"balance: the largest class has {max(counts) / max(min(counts), 1):.2f} times the images of the smallest")


def list_data():
    """What `python datasets.py` alone prints."""
    for name, about in KNOWN.items():
        print(f"{name:14s} {about}")
    print("or give a folder, a zip or an .npz of your own images")
    for about in sorted(DATA.glob("*.json")):
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError, RecursionError):  # no file of ours
            n, c, h, w = (operator.index(k) for k in json.loads(about.read_text(encoding="utf-8"))["shape"])
            size = about.with_suffix(".npy").stat().st_size
            print(f"prepared: {about.with_suffix('.npy')}, {n:,} images, {h}x{w}x{c}, {size / 1e6:,.1f} MB")
    for kind in "downloads", "features":
        if (folder := DATA / kind).is_dir():
            size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
            print(f"{kind}: {folder}, {size / 1e6:,.1f} MB")


def main(args):
    if args.data is None:
        return list_data()
    data = load(args.data, args.size, args.split)
    if args.show:
        pick = shuffled(len(data.images), 0)[:64]
        save_picture(grid(data.images[pick]), args.show)
        print(f"wrote {args.show}")
    if args.stats or not (args.show or args.svd):
        print_stats(data)
        if data.held_out and data.labels is not None:
            with contextlib.suppress(InputError):  # one side of the split may be empty
                parts = [data if part == args.split else load(args.data, args.size, part) for part in ("train", "test")]
                counts = [torch.bincount(part.labels, minlength=len(data.classes)).tolist() for part in parts]
                distance, divergence = jensen_shannon(*counts)
                print(
                    f"Jensen-Shannon distance between the classes of train and test: {distance:.4g} (nats, base e), "
                    f"divergence {divergence:.4g}"
                )
    if args.svd:
        draw_spectrum(data, args.svd)


if __name__ == "__main__":
    run_program("datasets.py", main, ARGS)
