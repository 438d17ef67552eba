# /// script
# requires-python = ">=3.10"
# dependencies = ["torch>=2.6", "torchvision", "numpy", "scipy", "pillow", "tqdm", "matplotlib"]
# ///
"""datasets.py: every data set as one uint8 tensor, and the batches drawn from it.

A small image set fits in memory: 23,000 color images of 64x64 are 290 MB of bytes. So there are no
worker processes, and training never decodes a file. `load` decodes, crops and resizes each image
once, keeps the result in `data/<name>-<size>.npy`, and returns one tensor. `Batches` picks rows of
it and scales them to [-1, 1].

    python datasets.py                                        # the sets, and what is prepared
    python datasets.py shapes --size 32 --show shapes.png     # look at one
    python datasets.py photos.zip --size 64 --stats           # count it
    python datasets.py photos.zip --size 64 --svd svd.png     # how many dimensions it takes up

A data set is a known name, or a path of your own: a folder, zip or tar of images (folders inside
are classes, unless a file such as labels.csv says more; `train/` and `test/` or `val/` are splits),
or an .npz with `images` uint8 (N, H, W[, C]) or (N, C, H, W) and, if you have them, `labels`,
`classes` and `split` (0 train, 1 test). docs/data.md tells the rest.
"""

import signal

if __name__ == "__main__":  # Ctrl-C during the imports is silent; run_program takes over later
    signal.signal(signal.SIGINT, signal.SIG_DFL)

import argparse
import contextlib
import functools
import hashlib
import json
import math
import operator
import os
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image

from sources import (
    FITS,
    LAYOUT,
    RANK,
    WORLD,
    InputError,
    check_output,
    counted,
    file_stamp,
    locked,
    new_parser,
    npz_source,
    number,
    prepare,
    printable,
    remove_half_written,
    run_program,
    short,
    title,
    write_atomic,
    write_bytes,
    write_text,
)

DATA = Path("data")  # prepared sets; downloads go to data/downloads

# name -> what it is and where it comes from. downloads.py knows how to get all but `shapes`.
KNOWN = {
    "shapes": "five geometric shapes, drawn by this file; any size, labeled",
    "mnist": "70,000 handwritten digits, 28x28 gray (torchvision)",
    "fashion-mnist": "70,000 pieces of clothing, 28x28 gray (torchvision)",
    "cifar10": "60,000 photographs in 10 classes, 32x32 color (torchvision)",
    "cats64": "29,843 cat faces, 64x64 color (github.com/fferlito/Cat-faces-dataset)",
    "animals": "photographs of 5 animals (Kaggle; you download it by hand)",
    "food64": "101,000 photographs of food in 101 classes (Food-101; a download of 5 GB)",
    "artbench10": "60,000 paintings in 10 styles (ArtBench-10): 32x32; larger ones from 256x256",
}
BY_HAND = ("animals",)  # sets that nobody can download without a login; downloads.py says where
SIZE_32 = ("shapes", "mnist", "fashion-mnist", "cifar10")  # sets whose default size is 32


class Images(NamedTuple):
    images: torch.Tensor  # uint8 (N, C, H, W), C = 1 or 3, H = W = size
    labels: torch.Tensor | None  # int64 (N,), indices into classes
    classes: list[str]  # empty when there are no labels
    name: str  # "shapes", "cats64", ...
    fingerprint: str  # of the pixels and labels of the whole set, all splits
    held_out: bool  # True if split "test" shares no image with split "train"
    note: str  # how the images were made, in words


# ---------------------------------------------------------------------------------------- load


def load(name_or_path, size, split="train", fit="crop"):
    """One split of a data set as Images of size x size pixels.

    fit: how images that are not square become square, "crop", "squash" or "pad": sources.fitted.
    split: "train", "test" or "all". A set without a split of its own trains on everything ("train"
    is all of it). Its "test" is then a fixed random part, a tenth of the images but at least 2,000
    if there are as many: good for metrics, but not held out (`held_out` is False).
    Raises InputError for an unknown name, a missing path, and data that cannot be read.
    """
    name_or_path = str(name_or_path)
    if split not in ("train", "test", "all"):
        raise InputError(f"unknown split '{split}': use train, test or all")
    if fit not in FITS:
        raise InputError(f"unknown fit '{fit}': use {', '.join(FITS)}")
    if is_named(name_or_path) and Path(name_or_path).exists():
        words = f"is the known set; for the path here, write ./{name_or_path}"
        say_once(f"note: '{name_or_path}' {words}")
    if name_or_path == "shapes":
        return shapes(size, split)
    name, key, stamp, open_source = locate(name_or_path, size)
    pixels, info = prepared(key, stamp, size, open_source, fit)
    for line in info["remarks"]:
        say_once(line)
    images = torch.from_numpy(pixels)
    labels = None if info["labels"] is None else torch.tensor(info["labels"])
    held_out = info["split"] is not None
    classes = info["classes"]
    data = Images(images, labels, classes, name, info["fingerprint"], held_out, info["note"])
    if split == "all" or (split == "train" and not data.held_out):
        return data
    if data.held_out:
        rows = torch.tensor(info["split"]).eq(split == "test").nonzero()[:, 0]
    else:
        rows = test_rows(len(images))
    if len(rows) == 0:
        raise InputError(f"'{printable(name_or_path)}' has no image in its split '{split}'")
    return pick(data, rows)


def locate(name_or_path, size):
    """A name or path -> (name of the set, cache key, stamp, open_source).

    See path_source for the last three.
    """
    names = ", ".join(KNOWN)
    if not name_or_path.strip():
        raise InputError(f"the name of the data is empty: give a path or one of {names}")
    if not is_named(name_or_path):
        path = Path(name_or_path)
        if not path.exists():
            place = printable(name_or_path)
            raise InputError(f"no data set or path '{place}': known names are {names}")
        return title(path), *path_source(path)
    name = name_or_path
    if name not in BY_HAND:
        return name, name, "1", lambda: download(name, size)
    for copy in (DATA / "downloads" / name, DATA / "downloads" / f"{name}.zip"):
        if copy.exists():
            _, stamp, open_source = path_source(copy)
            return name, name, stamp, open_source
    # Without the files, a set that was prepared from them will do, whatever its stamp.
    return name, name, None, lambda: download(name, size)


def path_source(path):
    """A folder, zip, tar, .npz or .npy of your own -> (cache key, stamp, open_source).

    The key names the prepared files, the stamp changes when the data do, and open_source() returns
    the Source. Raises InputError if `path` is something else.
    """
    if not path.is_dir() and not path.is_file():  # to open a pipe may take for ever
        raise InputError(f"'{printable(path)}' is no folder and no regular file")
    if path.is_file() and path.suffix.lower() in (".npz", ".npy"):
        stamp = file_stamp(path)
        open_source = functools.partial(npz_source, path)
    else:
        with needed("folders.py"):
            import folders
        stamp, open_source = folders.path_source(path)
    digest = hashlib.sha256(os.fsencode(path.resolve())).hexdigest()
    name = title(path)[:50].replace("\\", "_")
    return f"{name}-{digest[:8]}", f"{LAYOUT}-{stamp}", open_source


def is_named(text):
    """Whether --data means a known set. A path of the same name wins only where no program can
    download the set."""
    return text in KNOWN and not (text in BY_HAND and Path(text).exists())


@functools.cache
def say_once(line):
    """Print a line on stderr, but only the first time in this program."""
    if RANK == 0:
        print(line, file=sys.stderr)


def download(name, size):
    """The Source of a known set, downloaded if it is not there yet."""
    with needed("downloads.py"):
        from downloads import named_source
    return named_source(name, size)


@contextlib.contextmanager
def needed(file):
    """Surrounds the import of a file that few programs need. If it fails, that is an InputError."""
    try:
        yield
    except ImportError as error:
        words = f"{file} cannot be imported ({short(error)})"
        raise InputError(f"{words}: copy it to where this script is") from None


def pick(data, rows, note=""):
    """Some rows of Images. note: what to add to the note."""
    labels = None if data.labels is None else data.labels[rows]
    return data._replace(images=data.images[rows], labels=labels, note=data.note + note)


def rows_per_class(data, count, seed=0):
    """Rows of at most `count` random images of each class, int64 (n,), class by class.

    Those for a smaller count are among those for a larger one. Without labels, all images are one
    class.
    """
    labels = torch.zeros(len(data.images)) if data.labels is None else data.labels
    rows = []
    for label in range(max(1, len(data.classes))):
        members = (labels == label).nonzero()[:, 0]
        rows.append(members[shuffled(len(members), seed)[:count]])
    return torch.cat(rows)


def limited(data, per_class):
    """Training images with at most `per_class` of each class. A line says how many these are."""
    rows = rows_per_class(data, per_class).sort().values
    limit = f"at most {per_class:,} {'a class' if data.classes else 'in all'}"
    words = f"{len(rows):,} of {len(data.images):,} training images are used ({limit})"
    counts = zip(data.classes, class_counts(data), strict=True)
    fewer = [f"{printable(name, 40)} has {count:,}" for name, count in counts if count < per_class]
    if fewer:
        words += f"; classes with fewer: {len(fewer)}, the first: {fewer[0]}"
    say_once(f"{printable(data.name)}: {words}")
    return pick(data, rows, f", {limit}")


def load_parts(name_or_path, size, count=0, fit="crop", per_class=None):
    """(training images, held-out images in random order, or None).

    These are the splits of the set. If it has none, `count` images are held out at random, always
    the same ones. per_class: use at most so many training images of each class.
    """
    data = load(name_or_path, size, fit=fit)
    held_out = None
    if data.held_out and count:
        raise InputError(f"'{data.name}' has a test split of its own: leave out --hold-out")
    if data.held_out:
        test = load(name_or_path, size, "test", fit)
        count = len(test.images)
        held_out = pick(test, shuffled(count, 0))
    elif count:
        total = len(data.images)
        if not 1 < count < total:
            words = f"has {total} images: --hold-out must be from 2 to less than that"
            raise InputError(f"'{data.name}' {words}")
        order = shuffled(total, 0)
        held_out = pick(data, order[:count], ", held out")
        data = pick(data, order[count:].sort().values)
    words = f"without {count} held-out ones" if count else "none of them held out"
    data = data._replace(note=f"{data.note}, {words}")
    return limited(data, per_class) if per_class else data, held_out


def measured_on(train, held_out):
    """What load_parts gives -> (the Images on which a model is measured, their kind in words)."""
    if held_out is None:
        return train, "training (nothing is held out)"
    return held_out, "held-out"


class Reference(NamedTuple):
    """Real images for the numbers of a run, each uint8 (n, C, H, W)."""

    choose: torch.Tensor  # for the curve; these choose best.pt
    judge: torch.Tensor  # for the final numbers of last.pt, which nothing has chosen
    floor: torch.Tensor  # others, to be compared with `judge`
    words: str  # what `choose` and `judge` are


def reference_images(train, held_out, count):
    """At most `count` images for each purpose: `choose` is from half of the held-out images, and
    `judge` from all of them; `floor` is of training images. train, held_out: of load_parts.

    Where nothing is held out, a fixed random part of the training images takes their place: that of
    split "test". If too few others are left for `floor`, `judge` is from the other half only, and
    `floor` is `choose`. Raises InputError if an evaluation has fewer than 2 images.
    """
    pool = held_out
    words = "held-out images"
    others = torch.ones(len(train.images), dtype=torch.bool)
    if held_out is None:
        rows = test_rows(len(train.images))
        pool = pick(train, rows)
        words = "training images (the data have no held-out split)"
        others[rows] = False
    order = shuffled(len(pool.images), 0)
    choose = pool.images[order[0::2][:count]]
    judge = pool.images[order[:count]]
    others = others.nonzero()[:, 0]
    floor = train.images[others[shuffled(len(others), 1)[: len(judge)]]]
    if len(floor) < len(judge):
        judge = pool.images[order[1::2][:count]]
        floor = choose
    if min(len(choose), len(judge)) < 2:
        raise InputError(
            "an evaluation needs 2 images on each side: "
            "see --eval-images (0: none) and the test split"
        )
    return Reference(choose, judge, floor, f"{words} of {pool.name}")


def test_rows(count):
    """The fixed random part of a set without a split that stands for its split "test"."""
    return shuffled(count, 0)[: max(count // 10, min(count, 2000))].sort().values


def image_hashes(images):
    """A hash of the content of each image: uint8 (N, C, H, W) -> int64 (N,).

    It does not depend on the order or the split. Grey counts as three equal channels.
    """
    hashes = []
    for image in images.expand(-1, 3, -1, -1):
        digest = hashlib.blake2b(image.numpy().tobytes(), digest_size=8).digest()
        hashes.append(int.from_bytes(digest, "little", signed=True))
    return torch.tensor(hashes, dtype=torch.int64)


def require_labels(data, source):
    """Raise InputError unless the data have at least two classes. source: the text of --data."""
    if data.labels is not None and len(data.classes) > 1:
        return
    odd = ""
    if not is_named(source) and Path(source).exists():
        _, _, open_source = path_source(Path(source))
        odd = open_source().unlabelled
        odd = f" (the first without one: '{odd}')" if odd else ""
    raise InputError(
        f"'{printable(source)}' has no labels, or all images in one class{odd}: a conditional "
        "model needs a sub-folder for each class, a label file, or `labels` in the .npz"
    )


def class_words(classes, counts):
    """In words, how many images the classes have, the first ten of them by name.

    A single class is how a script says that its model takes no notice of classes."""
    if len(classes) < 2:
        return "all images count as one class" if classes else "no classes"
    words = [f"{printable(name, 40)} {count}" for name, count in zip(classes, counts, strict=True)]
    more = f" and {len(classes) - 10} more" if len(classes) > 10 else ""
    return f"{len(classes)} classes: {', '.join(words[:10])}{more}"


def class_counts(data):
    """How many images each class has. An empty list without labels."""
    if data.labels is None:
        return []
    return torch.bincount(data.labels, minlength=len(data.classes)).tolist()


def channel_moments(images):
    """Mean and standard deviation of each channel, of values in [0, 1]: see analysis.py."""
    with needed("analysis.py"):
        from analysis import channel_moments
    return channel_moments(images)


def default_size(name_or_path):
    """A fitting --size: 32 where the images are no larger than that (28x28 is padded), else 64."""
    small = str(name_or_path) in SIZE_32 or native_size(name_or_path) <= 32
    return 32 if small else 64


def native_size(name_or_path):
    """The size of a data set's own images: the median of the shorter sides of a hundred, in pixels.

    64 for the known sets, and where nothing can be read."""
    path = Path(name_or_path)
    if not str(name_or_path) or is_named(str(name_or_path)) or not path.exists():
        return 64  # load() will say what is wrong
    _, _, open_source = path_source(path)
    source = open_source()
    count = len(source.names)
    sizes = []
    for i in range(0, count, max(1, count // 100)):
        with contextlib.suppress(Exception):  # preparation says which images are damaged
            sizes.append(min(source.read(i).size))
    return sorted(sizes)[len(sizes) // 2] if sizes else 64


# -------------------------------------------------------------------------------------- shapes

SHAPES = ["circle", "square", "triangle", "star", "ring"]
# shape -> (sides, distance of the sides from the center, in units of the radius)
POLYGONS = {"square": (4, 0.7), "triangle": (3, 0.49), "star": (5, 0.3)}


def shapes(size, split="train"):
    """The built-in set: 10,000 training and 2,000 test images of five shapes, always the same.

    Color, size, position, rotation and background vary.
    """
    drawn = []
    if split in ("train", "all"):
        drawn.append(draw_shapes(10_000, size, seed=1))
    if split in ("test", "all"):
        drawn.append(draw_shapes(2_000, size, seed=2))
    images, labels = map(torch.cat, zip(*drawn, strict=True))
    note = f"drawn at {size}x{size}"
    return Images(images, labels, list(SHAPES), "shapes", f"shapes-1-{size}", True, note)


def draw_shapes(count, size, seed):
    """Random shapes: (images uint8 (count, 3, size, size), labels int64 (count,))."""
    generator = torch.Generator().manual_seed(seed)

    def uniform(low, high, *shape):
        return low + (high - low) * torch.rand(count, *shape, generator=generator)

    labels = torch.randint(5, (count,), generator=generator)
    radius = uniform(0.24, 0.42) * size  # of the circle around the shape
    room = size / 2 - 2 - radius  # how far the center may move with all of the shape inside
    center = size / 2 + uniform(-1, 1, 2) * room[:, None]
    angle = uniform(0, 2 * math.pi)
    # hue -> RGB: three cosines a third of a turn apart, then mixed with white (saturation) and
    # with black (value)
    hue = uniform(0, 2 * math.pi)[:, None] - torch.tensor([0, 2 * math.pi / 3, 4 * math.pi / 3])
    saturation = uniform(0.7, 1, 1)
    color = (1 - saturation + saturation * (0.5 + 0.5 * hue.cos())) * uniform(0.8, 1, 1)
    ground = uniform(0.0, 0.3, 1) + uniform(0.0, 0.1, 3)  # dark, slightly tinted

    pixel = torch.arange(size) + 0.5
    grid_y, grid_x = torch.meshgrid(pixel, pixel, indexing="ij")
    images = torch.empty(count, 3, size, size, dtype=torch.uint8)
    for label, shape in enumerate(SHAPES):
        of_shape = (labels == label).nonzero()[:, 0]
        for rows in of_shape.split(256):  # small pieces stay in the processor's cache
            x = grid_x - center[rows, 0, None, None]
            y = grid_y - center[rows, 1, None, None]
            distance = signed_distance(shape, x, y, radius[rows, None, None], angle[rows])
            cover = (0.5 - distance).clamp_(0, 1)[:, None]  # (n, 1, size, size)
            behind = ground[rows, :, None, None]
            mixed = behind + cover * (color[rows, :, None, None] - behind)
            images[rows] = (255 * mixed).round_().byte()
    return images, labels


def signed_distance(shape, x, y, radius, angle):
    """How far each pixel lies outside a shape, in pixels; negative inside. (n, size, size).

    A pixel's coverage is this distance clipped to one pixel, which does the antialiasing. A regular
    polygon is where *all* n half-planes hold, so its distance is the largest of n. A five-pointed
    star is where at least four of five hold, so its distance is the second largest.
    """
    if shape == "circle":
        return (x * x + y * y).sqrt() - 0.9 * radius
    if shape == "ring":
        return ((x * x + y * y).sqrt() - 0.72 * radius).abs() - 0.2 * radius
    sides, inner = POLYGONS[shape]
    largest = torch.full_like(x, -math.inf)
    second = largest
    for k in range(sides):
        turn = angle[:, None, None] + 2 * math.pi * k / sides
        side = x * turn.cos() + y * turn.sin() - inner * radius
        second = torch.maximum(second, torch.minimum(largest, side))
        largest = torch.maximum(largest, side)
    return second if shape == "star" else largest


# ------------------------------------------------------------------------------------- batches


class Batches:
    """Endless batches: float32 images (batch, C, H, W) in [-1, 1] on `device`, channels last (see
    layout), and int64 labels (batch,) or None.

    Every epoch is a new random order of the whole set; the last short batch is dropped. The order
    depends on `seed` and the epoch only, so the number of batches drawn so far (`drawn`) is the
    whole state: save it, set it, and the data go on exactly where they were.

    The images live on the training device if they take less than half of its free memory. Otherwise
    a thread gathers the next batch into one of two pinned buffers while the device works on this
    one (`stream`; None decides by the memory).

    Several processes (torchrun) with this batch size together draw what one process with WORLD
    times this batch size draws.

    balance: draw every class equally often. An epoch has as many images as without it: the images
    of a small class several times, of a large class a new random part.

    Raises InputError if there are fewer images than one batch, or nothing to balance.
    """

    def __init__(self, data, batch, device="cpu", seed=0, stream=None, balance=False):
        count = len(data.images)
        # of a larger set, perhaps: see --hold-out and --limit-per-class
        words = f"training uses {counted(data.images, 'image')} of '{data.name}'"
        if count < 2 * WORLD:
            raise InputError(f"{words}, which is too few")
        if count < batch * WORLD:
            flag = "--batch" if WORLD == 1 else f"--batch times {WORLD} processes"
            raise InputError(f"{words}: {flag} must not be more than that")
        if balance and data.labels is None:
            raise InputError(f"'{data.name}' has no labels, so there is nothing to balance")
        self.batch = batch
        self.seed = seed
        self.device = torch.device(device)
        self.per_epoch = count // (batch * WORLD)
        self.drawn = 0
        self.class_rows = []  # to balance: the rows of each class
        if balance:
            self.class_rows = [(data.labels == c).nonzero()[:, 0] for c in data.labels.unique()]
        if stream is None and self.device.type == "cuda":
            free, _ = torch.cuda.mem_get_info(self.device)
            stream = data.images.nbytes > free / 2
        self.images = data.images if stream else data.images.to(self.device)
        self.labels = None if data.labels is None else data.labels.to(self.device)
        self.order = (-1, None, None)  # epoch, its order on the CPU, its order on the device
        self.thread = None
        if stream:
            self.thread = ThreadPoolExecutor(1)
            self.ahead = (-1, None)  # number of the batch that is being gathered, its future
            shape = (2, batch, *data.images.shape[1:])
            on_gpu = self.device.type == "cuda"
            self.buffers = torch.empty(shape, dtype=torch.uint8, pin_memory=on_gpu)
            self.copied = [torch.cuda.Event(), torch.cuda.Event()] if on_gpu else None

    def __iter__(self):
        return self

    def __next__(self):
        host_rows, rows = self.rows(self.drawn)
        images = self.images[rows] if self.thread is None else self.streamed(host_rows)
        self.drawn += 1
        images = images.to(torch.float32, memory_format=layout(self.device)).div_(127.5).sub_(1)
        return images, None if self.labels is None else self.labels[rows]

    def rows(self, number):
        """Rows of the set in batch `number`: int64 (batch,) on the CPU, and again on the device."""
        epoch, place = divmod(number, self.per_epoch)
        if self.order[0] != epoch:
            generator = torch.Generator().manual_seed(self.seed * 1_000_003 + epoch)
            order = torch.randperm(len(self.images), generator=generator)
            if self.class_rows:  # place k belongs to class k % classes, then places are shuffled
                order = self.balanced(len(order), generator)[order]
            # from pinned memory, so that nobody waits for the GPU
            pinned = order.pin_memory() if self.device.type == "cuda" else order
            self.order = (epoch, order, pinned.to(self.device, non_blocking=True))
        start = (place * WORLD + RANK) * self.batch  # each process takes its part of a larger batch
        part = slice(start, start + self.batch)
        _, order, device_order = self.order
        return order[part], device_order[part]

    def balanced(self, count, generator):
        """At least `count` rows, in turn from each class."""
        share = math.ceil(count / len(self.class_rows))
        drawn = []
        for rows in self.class_rows:
            repeats = math.ceil(share / len(rows))
            orders = [torch.randperm(len(rows), generator=generator) for _ in range(repeats)]
            drawn.append(rows[torch.cat(orders)[:share]])
        return torch.stack(drawn, dim=1).flatten()

    def streamed(self, host_rows):
        """The images of the next batch, uint8 on the device. The thread starts on the one after."""
        number, future = self.ahead
        if number != self.drawn:
            number = self.drawn
            future = self.thread.submit(self.gather, number, host_rows)
        images = future.result().to(self.device, non_blocking=True)  # on a CPU: the buffer itself
        if self.copied:
            self.copied[number % 2].record(torch.cuda.current_stream(self.device))
        next_rows, _ = self.rows(number + 1)
        self.ahead = (number + 1, self.thread.submit(self.gather, number + 1, next_rows))
        return images

    def gather(self, number, host_rows):
        """In the thread: copy rows into a buffer, once the device has read the last batch in it."""
        if self.copied:
            self.copied[number % 2].synchronize()
        return torch.index_select(self.images, 0, host_rows, out=self.buffers[number % 2])


def layout(device):
    """The memory format of images and weights: channels last, where convolutions are faster.

    Not on NVIDIA GPUs before Ampere, which train in fp32 here: channels last helps tensor cores
    only. Not on a Mac's GPU: with it, BatchNorm's gradients are wrong there (seen with torch 2.10,
    github.com/pytorch/pytorch/issues/175189).
    """
    device = torch.device(device)
    plain = device.type == "mps"
    if device.type == "cuda":
        plain = torch.cuda.get_device_capability(device) < (8, 0)
    return torch.contiguous_format if plain else torch.channels_last


def from_uint8(images):
    """uint8 images -> float32 in [-1, 1]."""
    return images.float().div(127.5).sub(1)


def to_uint8(images):
    """Float images in [-1, 1] -> uint8, the exact inverse of from_uint8. Rounded, not truncated."""
    return images.float().add(1).mul(127.5).round().clamp(0, 255).to(torch.uint8)


def shuffled(n, seed):
    """The numbers from 0 to n - 1 in a random order that the seed fixes, int64 (n,)."""
    return torch.randperm(n, generator=torch.Generator().manual_seed(seed))


# --------------------------------------------------------------------------------- preparation


def prepared(key, stamp, size, open_source, fit):
    """The prepared array of a source: from data/<key>-<size>.npy if that is up to date, else made.

    Where fit is not "crop", the name is <key>-<size>-<fit>.npy.
    The .json next to it is written last and removed first, so an array without one is never used.
    Returns uint8 (N, C, size, size), memory-mapped copy-on-write, and the dict of the .json.
    Raises InputError if data/ cannot be written.
    """
    name = f"{key}-{size}" if fit == "crop" else f"{key}-{size}-{fit}"
    array = DATA / f"{name}.npy"
    about = DATA / f"{name}.json"
    result = read_prepared(array, about, stamp)
    if result:
        return result
    lock = DATA / f"{name}.lock"
    try:
        DATA.mkdir(parents=True, exist_ok=True)
        lock.touch()
    except OSError as error:
        words = f"the folder {DATA} for prepared images cannot be written here"
        raise InputError(f"{words} ({short(error)}): start in another folder") from None
    with locked(lock, wait=f"another process is preparing {printable(key)}; waiting for it"):
        result = read_prepared(array, about, stamp)
        if result:  # the other process has prepared it
            return result
        source = open_source()
        if about.exists():
            words = "is damaged or older than the images: they are prepared again"
            print(f"{printable(array)} {words}", file=sys.stderr)
        about.unlink(missing_ok=True)
        remove_half_written(DATA)
        info = {"name": key, "stamp": stamp, **prepare(source, size, array, key, fit)}
        write_text(about, json.dumps({**info, "checksum": checksum(info)}))
        return np.load(array, mmap_mode="c"), info


def read_prepared(array, about, stamp):
    """(pixels, the dict of the .json), or None if they are absent, damaged or out of date.

    stamp: None accepts any.
    """
    try:
        info = json.loads(about.read_text(encoding="utf-8"))
        pixels = np.load(array, mmap_mode="c")
        whole = info.pop("checksum") == checksum(info)
        if whole and list(pixels.shape) == info["shape"] and pixels.dtype == np.uint8:
            return (pixels, info) if stamp in (None, info["stamp"]) else None
    except Exception:  # whatever numpy and json raise for files that are damaged or not ours
        pass
    return None


def checksum(info):
    """Of the dict of a .json: labels that were damaged may look as good as others."""
    return hashlib.sha256(json.dumps(info).encode()).hexdigest()


# ------------------------------------------------------------------------------- picture files


def grid(images, columns=None):
    """uint8 (N, C, H, W) -> one PIL picture, row by row, with 2 white pixels between the images.

    columns: None makes the grid square.
    """
    n, _, height, width = images.shape
    columns = min(columns or math.ceil(math.sqrt(n)), n)
    rows = math.ceil(n / columns)
    shape = (rows * (height + 2) - 2, columns * (width + 2) - 2, 3)
    canvas = np.full(shape, 255, np.uint8)
    for i, image in enumerate(images.expand(n, 3, height, width).permute(0, 2, 3, 1).numpy()):
        row, column = divmod(i, columns)
        top = row * (height + 2)
        left = column * (width + 2)
        canvas[top : top + height, left : left + width] = image
    return Image.fromarray(canvas)


def pairs_grid(originals, copies):
    """uint8 (N, C, H, W) twice -> one picture: a row of up to eight originals with their copies
    under it, and so on."""
    columns = min(8, len(originals))
    missing = -len(originals) % columns  # white images fill the last row
    white = originals.new_full((missing, *originals.shape[1:]), 255)
    original_rows = torch.cat([originals, white]).split(columns)
    copy_rows = torch.cat([copies, white]).split(columns)
    rows = []
    for pair in zip(original_rows, copy_rows, strict=True):
        rows.extend(pair)
    return grid(torch.cat(rows), columns)


def enlarged(picture, at_least=512):
    """A PIL picture with every pixel repeated, by the smallest whole factor that gives its shorter
    side `at_least` pixels. A picture that large stays as it is."""
    factor = math.ceil(at_least / min(picture.size))
    if factor <= 1:
        return picture
    size = (picture.width * factor, picture.height * factor)
    return picture.resize(size, Image.Resampling.NEAREST)


def save_picture(picture, path):
    """Write a PIL picture as PNG, whole or not at all. Makes the folder if needed."""
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, lambda temporary: picture.save(temporary, format="PNG"))


# -------------------------------------------------------------------------------- command line


def parse_args(argv=None):
    parser = new_parser("datasets.py", __doc__)
    parser.usage = "datasets.py [NAME|PATH] [flags]"
    add = parser.add_argument
    add("data", nargs="?", metavar="NAME|PATH", help="a known name, or a folder, zip or .npz")
    add("--size", type=number(int, 8, 1025), help="side in pixels [32 for small images, else 64]")
    add("--split", choices=["train", "test", "all"], default="train", help="which images")
    add("--fit", choices=FITS, default="crop", help="to make images square")
    add("--show", metavar="FILE.png", type=png_name, help="write a grid of 64 images")
    add("--stats", action="store_true", help="print counts, balance, channel means")
    add("--svd", metavar="FILE.png", type=png_name, help="plot singular values, print dimensions")
    return parser.parse_args(argv)


def png_name(text):
    if not text.lower().endswith(".png"):
        raise argparse.ArgumentTypeError(f"'{text}' must end in .png")
    check_output(text)  # before the data are prepared
    return text


def main(argv=None):
    args = parse_args(argv)
    if args.data is None:
        list_data()
        return
    args.size = args.size or default_size(args.data)
    data = load(args.data, args.size, args.split, args.fit)
    if args.show:
        rows = shuffled(len(data.images), 0)[:64]
        save_picture(grid(data.images[rows]), args.show)
        say_once(f"{printable(data.name)}: {len(rows)} of {len(data.images):,} images, {data.note}")
        print(f"wrote {args.show}")
        if not (args.stats or args.svd):
            return
    with needed("analysis.py"):
        import analysis
    if args.stats or not args.svd:
        print(analysis.stats_text(data))
        if data.held_out:
            with contextlib.suppress(InputError):  # one side of the split may be empty
                parts = [load(args.data, args.size, part, args.fit) for part in ("train", "test")]
                print(f"{len(parts[0].images)} images to train on, {len(parts[1].images)} held out")
                if data.labels is not None:
                    distance, divergence = analysis.jensen_shannon(*map(class_counts, parts))
                    words = "Jensen-Shannon distance between the classes of train and test:"
                    values = f"{distance:.4g} (nats, base e), divergence {divergence:.4g}"
                    print(words, values)
    if args.svd:
        try:
            png, text = analysis.draw_spectrum(data)
        except ValueError as error:
            raise InputError(str(error)) from None
        Path(args.svd).parent.mkdir(parents=True, exist_ok=True)
        write_bytes(args.svd, png)
        print(text)
        print(f"wrote {args.svd}")


def list_data():
    """What `python datasets.py` alone prints: the known sets, and what is in data/."""
    for name, about in KNOWN.items():
        print(f"{name:14s} {about}")
    print("or give a folder, zip, tar or .npz of your own images")
    for about in sorted(DATA.glob("*.json")):
        array = about.with_suffix(".npy")
        # a file that is not ours is passed over
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError, RecursionError):
            shape = json.loads(about.read_text(encoding="utf-8"))["shape"]
            n, channels, height, width = (operator.index(length) for length in shape)
            size = f"{height}x{width}x{channels}, {array.stat().st_size / 1e6:,.1f} MB"
            print(f"prepared: {printable(array)}, {n:,} images, {size}")
    for kind in ("downloads", "features"):
        folder = DATA / kind
        if folder.is_dir():
            size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
            print(f"{kind}: {folder}, {size / 1e6:,.1f} MB")


if __name__ == "__main__":
    run_program(main)
