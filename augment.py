# /// script
# requires-python = ">=3.10"
# dependencies = ["torch>=2.6", "torchvision", "numpy", "scipy", "pillow", "tqdm", "matplotlib"]
# ///
"""augment.py: does it help a classifier to enlarge a small labelled data set with generated images?

    python augment.py --data mnist --per-class 20 50 --width 16    # an hour or two on two cores
    python augment.py --data cifar10 --per-class 20 50 100 200 --add 500    # a learning curve
    python augment.py --data cifar10 --add 50 200 1000 --subsets 3    # how many to add? on a GPU
    python augment.py --data photos/ --per-class 50 --generator runs/cgan-50
    python augment.py --resume runs/augment-mnist-1                # go on after Ctrl-C

For each number in --per-class, that many training images of each class are drawn and kept as
`subset-N.npz`. A generator is trained on them and on nothing else: ddpm.py, or with --generator
cgan.py or cvae.py. --generator also takes a checkpoint. The fingerprint of its data must be that of
the subset, because a generator that has seen the full set would smuggle it in. The generator makes
--add images of each class; of several numbers, the smaller ones take the first images. Then a
ResNet-18 (He et al. 2016, 1512.03385) is trained in four ways:

    real                  on the subset
    real+classical        the same, with random crops, mirroring and colors
    real+generated        on the subset and the generated images
    real+both             the same, with random crops, mirroring and colors

A batch is drawn from the union of both sets, each image equally likely, so --add counts. With
--mix half, half of each batch is generated, whatever --add is. Each way has the same number of
optimizer steps and the same batch, once for each of --seeds seeds. Accuracy, and precision and
recall averaged over the classes, are measured on real images that neither the classifier nor the
generator has seen.

Scores with and without generated images are compared in pairs by Student's paired t-test, with
Holm's correction for all comparisons in the table. With one subset, a pair is two trainings with
the same seed, so the error covers the training of the classifier and nothing else. --subsets S
draws S subsets (`subset-N-1.npz` is the second one), and trains a generator and --seeds classifiers
of each way on each. All trainings on a subset share its images and its generator. To count each
of them as evidence would be pseudoreplication (Hurlbert 1984, doi.org/10.2307/1942661). So the
scores are averaged over the seeds of a subset first, and the test compares the S averages, with
S - 1 degrees of freedom. Its error covers every choice that differs from subset to subset: images,
generator and classifier (Bouthillier et al. 2021, 2103.03098, say why all of them should).

The table also has the FID of the generated images against real images that no generator has seen,
next to that of the subset itself and of other real images: see metrics.py. "near training" says
whether the generator copies its subset: see neighbours.py. Without the weights of FID's network all
else goes on; `--resume DIR --weights FILE` measures both later. The run directory gets table.md
with the verdicts, curve.png, results.csv, the generated images next to real ones, the subsets and
the generators.

Report R4 proposed this and did not carry it out.
"""

import signal

if __name__ == "__main__":  # Ctrl-C during the imports is silent; run_program takes over later
    signal.signal(signal.SIGINT, signal.SIG_DFL)

import argparse
import contextlib
import io
import itertools
import json
import math
import shlex
import statistics
import sys
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from scipy import stats
from torch import nn
from tqdm import tqdm

import datasets
import metrics
import neighbours
import training
from datasets import layout
from sources import (
    InputError,
    check_new_directory,
    locked,
    markdown,
    new_directory,
    new_parser,
    number,
    printable,
    run_program,
    write_atomic,
    write_text,
)

ARMS = ("real", "real+classical", "real+generated", "real+both")
STYLES = ("C7o-", "C0o-", "C1s--", "C2s--")  # of matplotlib: color, marker, line
PAIRS = {"real+generated": "real", "real+both": "real+classical"}  # with generated images: without
SCORES = ("accuracy", "precision", "recall")
GENERATORS = ("ddpm", "cgan", "cvae")


def flags_parser():
    parser = new_parser("augment.py", __doc__)
    some = number(int, 1, 10**9)
    counts = number(int, 2, 10**9)
    add = parser.groups["data"].add_argument
    add("--data", metavar="NAME|PATH", help="labelled data: a known name, a folder, zip or .npz")
    add("--per-class", type=counts, nargs="+", default=[50], help="training images a class [50]")
    add("--subsets", type=number(int, 1, 10**4), default=1, help="draws of the small set")
    add("--size", type=int, choices=training.SIZES, help="pixels [32 for small images, else 64]")
    add("--fit", choices=datasets.FITS, default="crop", help="how images become square")
    words = "half: half of each batch is generated"
    add("--mix", choices=["union", "half"], default="union", help=words)
    add = parser.groups["model"].add_argument
    add("--generator", default="ddpm", help="ddpm, cgan, cvae or a checkpoint")
    add("--generator-flags", type=str, default="", help="as in --generator-flags='--steps 900'")
    add("--add", type=some, nargs="+", default=[200], help="generated images of a class [200]")
    add("--width", type=number(int, 8, 1025), default=64, help="first channels of ResNet")
    add = parser.groups["training"].add_argument
    add("--seeds", type=number(int, 3, 10**6), default=5, help="classifiers trained in each way")
    add("--steps", type=some, default=500, help="optimizer steps of a classifier")
    add("--batch", type=counts, default=64, help="images in one step")
    add("--no-flip", action="store_true", help="never mirror an image (gray ones never are)")
    add = parser.groups["run"].add_argument
    add("--device", default="auto", help="auto, cpu, cuda, cuda:1 or mps")
    add("--out", metavar="DIR", help="run directory [a new one in runs/]")
    add("--resume", metavar="DIR", help="go on with this run")
    add = parser.groups["evaluation"].add_argument
    add("--eval-images", type=number(int, 0, 100_001), default=1000, help="for FID; 0: none")
    words = "features of FID: 64, 192, 768 or 2048"
    add("--dims", type=int, metavar="N", choices=training.DIMS, default=768, help=words)
    add("--weights", metavar="FILE", help="FID Inception weights [torch's cache, or downloaded]")
    return parser


def parse_args(argv=None):
    parser = flags_parser()
    args = parser.parse_args(argv)
    typed = [word for word in (sys.argv[1:] if argv is None else argv) if word.startswith("--")]
    may_change = ("--resume", "--device", "--weights")
    other = [word for word in typed if word.split("=")[0] not in may_change]
    if args.resume and other:
        parser.error(f"--resume goes on as the run began: leave out {other[0]}")
    if not args.resume and not args.data:
        parser.error("give --data, a labelled data set")
    args.per_class = sorted(set(args.per_class))
    args.add = sorted(set(args.add))
    if args.mix == "half" and args.batch % 2:
        parser.error(f"--batch {args.batch} is odd: with --mix half, half of it is generated")
    if args.generator not in GENERATORS and (len(args.per_class) > 1 or args.subsets > 1):
        parser.error("a checkpoint knows one subset: give --per-class one number, no --subsets")
    return args


# ----------------------------------------------------------------------------------------- the data


def subset(data, count, seed=0):
    """`count` images of each class as Images, the same at each call.

    The images for a smaller count are among those for a larger one. InputError if a class has
    fewer."""
    for name, members in zip(data.classes, datasets.class_counts(data), strict=True):
        if members < count:
            words = f"has {members} training images, and {count} are asked for"
            raise InputError(f"class '{name}' of {data.name} {words}")
    return datasets.pick(data, datasets.rows_per_class(data, count, seed))


def of_each_class(data, start, stop):
    """Images start .. stop - 1 of each class. data: Images, sorted by class, as many of each."""
    rows = torch.arange(len(data.images)).view(len(data.classes), -1)
    return datasets.pick(data, rows[:, start:stop].flatten())


def save_arrays(path, images, labels, classes):
    """uint8 (N, C, H, W), int64 (N,) -> an .npz that datasets.load reads, whole or not at all."""

    def write(temporary):
        with open(temporary, "wb") as file:
            pixels = images.permute(0, 2, 3, 1).contiguous().numpy()
            np.savez_compressed(
                file, images=pixels, labels=labels.numpy(), classes=np.array(classes)
            )

    write_atomic(path, write)


def may_flip(data, args):
    """Whether a mirrored image keeps its class. Grey images are often digits or letters: never."""
    return data.images.shape[1] == 3 and not args.no_flip


def classical(images, flip):
    """Random crops, mirroring and colors, different for each image.

    images: float (N, C, H, W) in [-1, 1] -> the same shape and range. A crop is a shift by up to an
    eighth of the side that repeats the edge. Brightness changes by up to 0.2; contrast and, of
    color images, saturation by up to a quarter.
    """
    n, channels, size, _ = images.shape
    device = images.device

    def uniform(low, high):
        return torch.rand(n, 1, 1, 1, device=device) * (high - low) + low

    if flip:
        images = torch.where(uniform(0, 1) < 0.5, images.flip(3), images)
    reach = max(1, size // 8)
    places = torch.arange(size, device=device)
    for axis, shape in ((2, (n, 1, size, 1)), (3, (n, 1, 1, size))):
        shift = torch.randint(-reach, reach + 1, (n, 1), device=device)
        index = (places + shift).clamp(0, size - 1)
        images = images.gather(axis, index.view(shape).expand_as(images))
    if channels == 3:
        gray = images.mean(1, keepdim=True)
        images = gray + uniform(0.75, 1.25) * (images - gray)
    mean = images.mean((1, 2, 3), keepdim=True)
    contrast = uniform(0.75, 1.25)
    return (mean + contrast * (images - mean) + uniform(-0.2, 0.2)).clamp(-1, 1)


# ----------------------------------------------------------------------------------- the classifier


class EveryNth(nn.Module):
    """(N, C, H, W) -> every n-th row and column of it."""

    def __init__(self, n):
        super().__init__()
        self.n = n

    def forward(self, x):
        return x[:, :, :: self.n, :: self.n]


def resnet18(channels, classes, size, width=64):
    """ResNet-18 for small images: (N, channels, size, size) -> logits (N, classes).

    The blocks are torchvision's. The first layer is 3x3 without pooling after it, as usual for 32
    pixels. Its stride brings 64 pixels to 32x32 places, and larger images are averaged to 64 first.
    (torchvision's own first layers bring 224 pixels to 56x56.)
    """
    from torchvision.models.resnet import BasicBlock

    layers = [nn.AvgPool2d(size // 64)] if size > 64 else []
    stride = 2 if size >= 64 else 1
    layers += [nn.Conv2d(channels, width, 3, stride, 1, bias=False), nn.BatchNorm2d(width)]
    layers += [nn.ReLU()]
    in_channels = width
    for stage in range(4):
        out_channels = width * 2**stage
        for block in range(2):
            stride = 2 if stage and not block else 1
            shortcut = None
            if stride > 1:
                # Every second place, then 1x1, is the same as a 1x1 convolution of stride 2. That
                # one writes outside of its memory on CPUs (PyTorch 2.15, few channels).
                convolution = nn.Conv2d(in_channels, out_channels, 1, bias=False)
                shortcut = nn.Sequential(EveryNth(2), convolution, nn.BatchNorm2d(out_channels))
            layers.append(BasicBlock(in_channels, out_channels, stride, shortcut))
            in_channels = out_channels
    head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(in_channels, classes)]
    return nn.Sequential(*layers, *head)


def scores(labels, predicted, classes):
    """int64 (N,) twice -> accuracy, and precision and recall averaged over classes, from 0 to 1.

    The precision of a class is the share of right images among those called so, and 0 if none was.
    """
    confusion = torch.zeros(classes, classes, dtype=torch.float64)  # row: true, column: predicted
    one = torch.ones((), dtype=torch.float64)
    confusion.index_put_((labels, predicted), one, accumulate=True)
    right = confusion.diag()
    present = confusion.sum(1) > 0
    precision = (right / confusion.sum(0).clamp(min=1))[present].mean().item()
    recall = (right / confusion.sum(1).clamp(min=1))[present].mean().item()
    accuracy = (right.sum() / len(labels)).item()
    return {"accuracy": accuracy, "precision": precision, "recall": recall}


def train_classifier(real, generated, test, args, augment, seed, device, bar=None):
    """Train a classifier on the Images `real`, measure it on the Images `test`: scores.

    generated: other Images to train on, or None; see --mix. augment: change the images with
    `classical`. --steps batches are drawn with replacement. The rate of AdamW rises to 0.002 and
    falls to 0 (one cycle).
    """
    _, precision = training.pick_device(args.device)
    sets = [real] if generated is None else [real, generated]
    images = torch.cat([data.images for data in sets]).to(device)
    labels = torch.cat([data.labels for data in sets]).to(device)
    ranges = [(0, len(images))]  # of rows; as many are drawn from each
    if args.mix == "half" and generated is not None:
        ranges = [(0, len(real.images)), (len(real.images), len(images))]
    count = args.batch // len(ranges)
    flip = may_flip(test, args)
    channels, size = images.shape[1:3]
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        network = resnet18(channels, len(test.classes), size, args.width)
        network.to(device, memory_format=layout(device)).train()
        optimizer = torch.optim.AdamW(network.parameters(), 2e-3, weight_decay=0.05)
        cycle = torch.optim.lr_scheduler.OneCycleLR
        schedule = cycle(optimizer, 2e-3, args.steps, cycle_momentum=False)
        for _ in range(args.steps):
            rows = [torch.randint(*limits, (count,), device=device) for limits in ranges]
            rows = torch.cat(rows)
            x = datasets.from_uint8(images[rows])
            if augment:
                x = classical(x, flip)
            x = x.contiguous(memory_format=layout(device))
            with training.autocast(device, precision):
                logits = network(x)
            loss = F.cross_entropy(logits.float(), labels[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            if bar is not None:
                bar.update()
    network.eval()
    predicted = []
    with torch.no_grad():
        for part in test.images.split(500):
            logits = network(datasets.from_uint8(part.to(device)))
            predicted.append(logits.argmax(1).cpu())
    return scores(test.labels, torch.cat(predicted), len(test.classes))


# ------------------------------------------------------------------------------------ the generator

TRAINED_WITH = {  # flags for a few hundred images; --generator-flags come after them and win
    "ddpm": "--preset small",
    "cgan": "--class-scale 0.0078125 --augment --ema 0.995 --steps 4000",
    "cvae": "--likelihood sigma --lr 1e-3 --ema 0.99 --steps 2000",
}


def check_knows_classes(checkpoint, source):
    """InputError if the model of the checkpoint cannot be asked for a class."""
    script = training.load_script(checkpoint["script"])
    if not hasattr(script, "asked_labels") or len(checkpoint["data"]["classes"]) < 2:
        raise InputError(f"'{source}' is a model of {script.SCRIPT}.py that knows no classes")


def check_no_leak(checkpoint, source, path, data):
    """InputError unless the checkpoint was trained on `data` only. path: where the data lie."""
    if checkpoint["data"]["fingerprint"] != data.fingerprint:
        words = "was not trained on this subset (fingerprints differ)"
        raise InputError(f"'{source}' {words}: train one with --data {path}")


def generator_flags(args, data, k, path, folder, device):
    """The command line that trains a generator on `data`, subset k at `path`, checked."""
    flags = [*shlex.split(TRAINED_WITH[args.generator]), "--batch", str(min(32, len(data.images)))]
    if args.generator == "ddpm" and may_flip(data, args):
        flags.append("--flip")
    flags += ["--data", str(path), "--size", str(args.size), "--device", str(device)]
    flags += ["--eval-images", "0", "--seed", str(k)]
    try:
        flags += shlex.split(args.generator_flags)
    except ValueError as problem:
        raise InputError(f"--generator-flags {args.generator_flags}: {problem}") from None
    flags += ["--out", str(folder)]
    try:
        with contextlib.redirect_stderr(io.StringIO()) as stderr:
            training.load_script(args.generator).parse_args([*flags, "--dry-run"])
    except SystemExit as stop:
        if not stop.code:  # --help
            raise
        problem = stderr.getvalue().strip().partition("error: ")[2]
        problem = problem.replace("see ", f"see python {args.generator}.py ")
        raise InputError(f"--generator-flags: {problem}") from None
    return flags


def trained_generator(args, data, k, path, folder, device):
    """Train a generator on `data`, subset k at `path`, or go on: its checkpoint."""
    script = training.load_script(args.generator)
    if not (folder / "last.pt").exists():
        flags = generator_flags(args, data, k, path, folder, device)
    else:
        flags = ["--resume", str(folder), "--device", str(device)]
        checkpoint = training.read_checkpoint(folder)
        if checkpoint["step"] == checkpoint["total"]:
            return checkpoint
    code = script.main(flags)
    if code:  # Ctrl-C: the generator's run was saved
        sys.exit(code)
    return training.read_checkpoint(folder)


def read_part(path, like):
    """The images in a file of save_arrays(), uint8 (N, C, H, W), or None if it is absent or
    damaged. like: a tensor of the same shape."""
    try:
        with np.load(path) as arrays:
            images = torch.from_numpy(arrays["images"]).permute(0, 3, 1, 2)
    except Exception:  # np.load fails in many ways on a damaged file
        return None
    return images if images.shape == like.shape and images.dtype == like.dtype else None


def check_part(path, data, labels):
    """InputError unless the Images of a file of this run have these labels."""
    if data.labels is None or not torch.equal(data.labels, labels):
        raise InputError(f"'{path}' is damaged: remove it, and it is made again")


def generated_images(args, name, k, data, folder, device):
    """The images that a generator of this subset makes, as Images; made once, then read.

    As many of each class as the largest --add.
    data: subset k, as it was read from subset-<name>.npz in `folder`.
    """
    file = folder / f"generated-{name}.npz"
    count = max(args.add)
    labels = torch.arange(len(data.classes)).repeat_interleave(count)
    path = folder / f"subset-{name}.npz"
    if not file.exists():
        if args.generator in GENERATORS:
            source = folder / f"{args.generator}-{name}"
            checkpoint = trained_generator(args, data, k, path, source, device)
        else:
            source = args.generator
            checkpoint = training.read_checkpoint(source)
        check_no_leak(checkpoint, source, path, data)
        script, model = training.open_model(checkpoint, device)
        made = []
        for label in tqdm(range(len(data.classes)), f"{count} images of each class", disable=None):
            # a file for each class and step of the generator, so that Ctrl-C costs one class
            part = folder / f"generated-{name}.{checkpoint['step']}.{label}.npz"
            images = read_part(part, data.images[:1].expand(count, -1, -1, -1))
            if images is None:
                seed = 1000 * (k + 1) + label
                images = script.generate(model, count, seed=seed, label=label)
                save_arrays(part, images, torch.full((count,), label), data.classes)
            made.append(images)
        save_arrays(file, torch.cat(made), labels, data.classes)
        for part in folder.glob(f"generated-{name}.*.npz"):
            part.unlink()
    generated = datasets.load(file, args.size)
    check_part(file, generated, labels)
    shape = (len(data.classes), -1)
    real, fake = [part.images.unflatten(0, shape)[:10, :8] for part in (data, generated)]
    both = torch.cat([real, fake], 1)  # a row for each class, real images at the left
    picture = datasets.grid(both.flatten(0, 1), both.shape[1])
    datasets.save_picture(picture, folder / f"generated-{name}.png")
    return generated


# -------------------------------------------------------------------------------------- their FID


def measured_fids(args, few, generated, test, device):
    """FID of the generated images, of the subset itself, and of other real images.

    few, generated: Images, sorted by class, as many of each class. test: held-out Images.
    Returns (cells of a table: number of images in each of the three sets, FIDs, shares of generated
    and of other real images that are near the subset; the protocol in words), or ("", why nothing
    can be measured).
    """
    classes = len(test.classes)
    reference = min(args.eval_images // classes, min(datasets.class_counts(test)) // 2)
    if reference == 0:
        return "", "not measured here: FID (too few held-out images, or a low --eval-images)"
    dims = [dim for dim in training.DIMS if dim <= args.dims]
    weights, usable, reasons = metrics.reachable(dims, args.weights)
    if not usable:
        return "", f"not measured here: FID ({reasons[args.dims]})"
    dim = max(usable)
    count = min(reference, len(few.images) // classes, max(args.add))
    real = subset(test, 2 * reference)
    sets = [of_each_class(real, 0, reference), of_each_class(generated, 0, count)]
    sets += [of_each_class(few, 0, count), of_each_class(real, reference, reference + count)]
    settings = ((dim,), weights, device, "fp32", "features")
    # kept in data/features/, so that --resume need not compute them again
    features = [metrics.real_features(data.images, *settings)[dim] for data in sets]
    cells = [metrics.format_value({"value": metrics.fid(features[0], x)}) for x in features[1:]]
    if len(features[0]) >= neighbours.FEWEST and len(few.images) >= neighbours.NEAREST:
        searched = metrics.real_features(few.images, *settings)[dim]
        compared = [features[1], searched, features[0], features[3]]
        near = neighbours.nearness("", compared, False, "").value
        cells += [metrics.format_value(near), metrics.format_value(near, "real")]
    else:
        cells += ["-", "-"]
    name = metrics.metric_name("FID", dim)
    words = (
        f"{name}: {metrics.features_words(dim, weights)}; against {len(features[0])} held-out "
        f"images of {test.name}, each class equally often. Compare within a row: with more images "
        f"FID falls. A perfect generator would score as other real images do. Near training: the "
        f"share as near to an image of the subset as the nearest 5 % of these held-out images; "
        f"more is copying. {reasons.get(args.dims, '')}"
    )
    return " | ".join([f"{name}, {count * classes} images", *cells]), words.strip()


def fid_table(fids):
    """Markdown. fids: {(images a class, subset): what measured_fids() returns}."""
    rows = [f"| {count} | {k} | {cells} |" for (count, k), (cells, _) in fids.items() if cells]
    if rows:
        header = "| real images a class | subset | measured | generated | the subset | other real "
        header += "| near training: generated | other real |"
        rows = [header, "|---|---|---|---|---|---|---|---|", *rows, ""]
    _, words = next(iter(fids.values()))
    return "\n".join([*rows, markdown(words)])


# -------------------------------------------------------------------------------------- the verdict


def mean_and_error(values):
    """Mean and its standard error, s / sqrt(n)."""
    return statistics.mean(values), statistics.stdev(values) / math.sqrt(len(values))


def compared(scores, others):
    """Pairs of scores in [0, 1] -> mean difference and its standard error, times 100, and p.

    p is that of the paired t-test. If all differences are equal, there is nothing to divide by, and
    p is that of the sign test.
    """
    differences = [100 * (a - b) for a, b in zip(scores, others, strict=True)]
    mean, error = mean_and_error(differences)
    if error >= 1e-9:
        return mean, error, float(stats.ttest_rel(scores, others).pvalue)
    return mean, error, 1.0 if abs(mean) < 1e-9 else 2 * 0.5 ** len(differences)


def holm(p_values):
    """Correct for many comparisons: with 5 %, chance alone finds one or more in 5 % of all studies.

    Holm 1979: the smallest p times their number, the next times one less, and so on, and none below
    an earlier one.
    """
    order = sorted(range(len(p_values)), key=p_values.__getitem__)
    adjusted = [0.0] * len(p_values)
    largest = 0.0
    for rank, index in enumerate(order):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = largest
    return adjusted


def in_words(mean, error, p):
    """What a comparison means, at the 5 % level."""
    if p >= 0.05:
        figures = f"{mean:+.1f} ± {error:.1f} points of accuracy, p = {p:.2g}"
        return f"makes no difference beyond noise ({figures})"
    verb = "helps" if mean > 0 else "hurts"
    return f"{verb} by {abs(mean):.1f} ± {error:.1f} points of accuracy (p = {p:.2g})"


def ways(args):
    """How to train a classifier: [(generated images of each class, arm)], those without first."""
    return [(0, arm) for arm in PAIRS.values()] + [(x, arm) for x in args.add for arm in PAIRS]


def seeds(args, k):
    """The seeds of the classifiers on subset k, other ones than on the other subsets."""
    return range(k * args.seeds, (k + 1) * args.seeds)


def collected(done, args):
    """What is compared: {(images a class, generated images a class, arm): {score: [values]}}.

    The values are those of each seed, or with several subsets those of each subset, averaged over
    its seeds. done: as of read_results().
    """
    results = {}
    for count, (added, arm) in itertools.product(args.per_class, ways(args)):
        lists = {name: [] for name in SCORES}
        for (name, values), k in itertools.product(lists.items(), range(args.subsets)):
            of_seeds = [done[count, k, added, arm, seed][name] for seed in seeds(args, k)]
            values += of_seeds if args.subsets == 1 else [statistics.mean(of_seeds)]
        results[count, added, arm] = lists
    return results


def verdict(results, args, name, tested):
    """Lines of text: the data, a line for each number of real and generated images, a summary.

    results: as of collected(). tested: number of test images.
    """
    source = f"{args.generator}.py" if args.generator in GENERATORS else args.generator
    made = f"{' or '.join(map(str, args.add))} images of each class generated by {source}"
    lines = [f"{name}, {made} (--mix {args.mix}), tested on {tested:,} real images:"]
    cases = list(itertools.product(args.per_class, args.add))
    raw = []
    for (count, added), arm in itertools.product(cases, PAIRS):
        both = (results[count, added, arm], results[count, 0, PAIRS[arm]])
        raw.append(compared(*[scored["accuracy"] for scored in both]))
    adjusted = holm([p for _, _, p in raw])
    tests = [(mean, error, p) for (mean, error, _), p in zip(raw, adjusted, strict=True)]
    for (count, added), alone, with_classical in zip(cases, tests[::2], tests[1::2], strict=True):
        lines.append(
            f"- {count} real and {added} generated images of each class: adding the generated ones "
            f"{in_words(*alone)}; where classical augmentation is used anyway, it "
            f"{in_words(*with_classical)}."
        )
    helps = sum(p < 0.05 and mean > 0 for mean, _, p in tests)
    hurts = sum(p < 0.05 and mean < 0 for mean, _, p in tests)
    accuracy = statistics.mean(x for scored in results.values() for x in scored["accuracy"])
    uncertain = 100 * math.sqrt(accuracy * (1 - accuracy) / tested)
    lines.append(
        f"Of {len(tests)} comparisons {helps} show{'s' if helps == 1 else ''} that it helps, "
        f"{hurts} that it hurts, {len(tests) - helps - hurts} neither (p after Holm). "
        f"All share {tested:,} test images, so any accuracy is uncertain by {uncertain:.1f} points."
    )
    return lines


def shared(data, args):
    """The expected share of images that a subset of the largest --per-class has in common with
    another one. data: the training images."""
    return statistics.mean(max(args.per_class) / count for count in datasets.class_counts(data))


def what_the_error_covers(args, data):
    """The meaning of every "±", in words. data: the training images."""
    trainings = f"{args.seeds} trainings of the classifier"
    if args.subsets == 1:
        words = "with one subset and one generator: it does not cover the choice of these"
        return f"± is the standard error over {trainings} {words} (--subsets 3 does)."
    return (
        f"± is the standard error over {args.subsets} subsets, each with its own generator and "
        f"the mean of {trainings} (degrees of freedom: {args.subsets - 1}): it covers the choice "
        f"of the images and the generator, too. Two subsets of {max(args.per_class)} images a "
        f"class share about {100 * shared(data, args):.2g} % of them."
    )


def table(results):
    """Markdown: a row for each number of images and arm, mean ± standard error in percent."""
    lines = [
        "| real images a class | generated | trained on | accuracy, % | precision, % | recall, % |",
        "|---|---|---|---|---|---|",
    ]
    for (count, added, arm), scored in results.items():
        cells = []
        for score in SCORES:
            mean, error = mean_and_error([100 * value for value in scored[score]])
            cells.append(f"{mean:.1f} ± {error:.1f}")
        lines.append(f"| {count} | {added} | {arm} | {' | '.join(cells)} |")
    return "\n".join(lines)


def draw_curve(results, args, path, title):
    """Accuracy over --add if it has several numbers, and over --per-class if that has several.

    A line for each arm, with standard errors; a panel for each number of the other flag.
    """
    try:
        from matplotlib.figure import Figure  # without pyplot: no window, no global state
    except ImportError:
        print("curve.png is not drawn: matplotlib is not installed", file=sys.stderr)
        return
    panels = []  # (title, label of the x axis, {x: (real images, generated images)})
    names = ("real images of each class", "generated images of each class")
    for count in args.per_class:
        panels.append((f"{count} {names[0]}", names[1], {x: (count, x) for x in args.add}))
    for added in args.add:
        panels.append((f"{added} {names[1]}", names[0], {x: (x, added) for x in args.per_class}))
    panels = [panel for panel in panels if len(panel[2]) > 1] or panels[-1:]
    figure = Figure(figsize=(7, 4.5 * len(panels)), dpi=110, layout="constrained")
    axes = figure.subplots(len(panels), sharey=True, squeeze=False)
    for axis, (words, label, places) in zip(axes.flat, panels, strict=True):
        for i, arm in enumerate(ARMS):
            points = []
            for count, added in places.values():
                values = results[count, added if arm in PAIRS else 0, arm]["accuracy"]
                points.append(mean_and_error([100 * value for value in values]))
            means, errors = zip(*points, strict=True)
            xs = [x * (0.97 + 0.02 * i) for x in places]  # error bars must not hide each other
            axis.errorbar(xs, means, errors, fmt=STYLES[i], capsize=3, label=arm)
        axis.set(xscale="log", xlabel=label, ylabel="accuracy on held-out real images, %")
        axis.set_xticks(list(places), [str(x) for x in places])
        axis.minorticks_off()
        axis.set_title(f"{title}, {words}", fontsize=11, parse_math=False)
        axis.spines[["top", "right"]].set_visible(False)
    figure.legend(*axis.get_legend_handles_labels(), loc="outside upper center", ncols=4)
    write_atomic(path, lambda temporary: figure.savefig(temporary, format="png"))


# --------------------------------------------------------------------------------------------- main


def read_results(path):
    """results.csv -> {(images a class, subset, generated images a class, arm, seed): scores}.

    Damaged rows are left out, with a line, and these classifiers are trained again."""
    results = {}
    text = path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""
    rows = text.splitlines()[1:]
    for row in rows:
        with contextlib.suppress(ValueError):
            per_class, k, added, arm, seed, *values = row.split(",")
            values = dict(zip(SCORES, map(float, values), strict=True))
            if all(0 <= value <= 1 for value in values.values()):
                results[int(per_class), int(k), int(added), arm, int(seed)] = values
    if len(results) < len(rows):
        damaged = len(rows) - len(results)
        print(f"{printable(path)}: {damaged} damaged rows are left out", file=sys.stderr)
    return results


def write_results(path, results):
    lines = [",".join(["per_class", "subset", "add", "arm", "seed", *SCORES])]
    for key, values in results.items():
        cells = [*key, *(values[score] for score in SCORES)]
        lines.append(",".join(map(str, cells)))
    write_text(path, "\n".join(lines) + "\n")


def resumed(args):
    """--resume: the settings that the run began with."""
    try:
        path = Path(args.resume) / "settings.json"
        settings = json.loads(path.read_text(encoding="utf-8") if path.is_file() else "{}")
        if "per_class" in settings and "mix" not in settings:
            raise InputError(f"'{args.resume}' was begun by an older augment.py: start a new run")
        flags = {name: settings[name] for name in vars(args)}
        training.check_flags(flags_parser(), flags)
        args.fingerprint = settings["fingerprint"]
    except (OSError, ValueError, LookupError, TypeError, RecursionError):
        words = "is no run of augment.py (settings.json is missing or damaged)"
        raise InputError(f"'{args.resume}' {words}") from None
    flags |= {"resume": args.resume, "weights": args.weights or flags["weights"]}
    if args.device != "auto":
        flags["device"] = args.device
    return argparse.Namespace(**flags, fingerprint=args.fingerprint)


def labelled_data(args):
    """The Images to train on and those to test on. Without a split, a fifth is held out."""
    data, test = datasets.load_parts(args.data, args.size, fit=args.fit)
    if data.labels is None:
        words = "has no labels, which a classifier needs: one sub-folder for each class"
        raise InputError(f"'{args.data}' {words}")
    if test is None:
        if len(data.images) < 10:
            raise InputError(
                f"'{args.data}' has {len(data.images)} images: too few to hold some out"
            )
        count = len(data.images) // 5
        data, test = datasets.load_parts(args.data, args.size, count, args.fit)
    return data, test


def main(argv=None):
    args = parse_args(argv)
    args = resumed(args) if args.resume else args
    device, _ = training.pick_device(args.device)
    if args.out and not args.resume:
        check_new_directory(args.out)
    args.size = args.size or datasets.default_size(args.data)
    data, test = labelled_data(args)
    for count in args.per_class:  # wrong input fails before anything is written
        few = subset(data, count)
        if args.generator in GENERATORS:
            generator_flags(args, few, 0, "subset", "generator", device)
    if args.subsets > 1 and shared(data, args) == 1:
        raise InputError("--subsets: all hold every training image: take a smaller --per-class")
    if args.generator not in GENERATORS:
        check_knows_classes(training.read_checkpoint(args.generator), args.generator)
    if args.weights and args.eval_images:
        metrics.load_weights(args.weights)
    if args.resume:
        folder = Path(args.resume)
        if args.fingerprint != data.fingerprint:
            # other images might be held out now, and some of these lie in the subset
            words = "has changed since this run began (its fingerprint differs)"
            raise InputError(f"'{args.data}' {words}")
    else:
        args.fingerprint = data.fingerprint
        folder = new_directory(args.out, Path("runs") / f"augment-{data.name}")
        write_text(folder / "settings.json", json.dumps(vars(args), indent=1))
    with locked(folder / ".lock", busy=f"another process is working in '{folder}'"):
        try:
            work(args, data, test, folder, device)
        except (KeyboardInterrupt, SystemExit):
            command = f"python augment.py --resume {training.quoted(folder)}"
            print(f"go on with: {command}", file=sys.stderr)
            raise


def work(args, data, test, folder, device):
    """Do everything in the run directory that is not there yet."""
    print(f"{data.name} {args.size}x{args.size}, tested on {len(test.images)} real images")
    done = read_results(folder / "results.csv")
    fids = {}
    for count, k in itertools.product(args.per_class, range(args.subsets)):
        name = f"{count}-{k}" if k else f"{count}"
        path = folder / f"subset-{name}.npz"
        part = subset(data, count, k)
        if not path.exists():
            save_arrays(path, part.images, part.labels, part.classes)
        few = datasets.load(path, args.size)
        check_part(path, few, part.labels)
        generated = generated_images(args, name, k, few, folder, device)
        fids[count, k] = measured_fids(args, few, generated, test, device)
        jobs = [(count, k, *way, seed) for seed in seeds(args, k) for way in ways(args)]
        jobs = [key for key in jobs if key not in done]
        print(f"{len(jobs)} classifiers to train on {path.stem}", flush=True)
        total = len(jobs) * args.steps
        with tqdm(total=total, desc=path.stem, unit="step", disable=None) as bar:
            for key in jobs:
                _, _, added, arm, seed = key
                extra = of_each_class(generated, 0, added) if added else None
                augment = arm in ("real+classical", "real+both")
                done[key] = train_classifier(few, extra, test, args, augment, seed, device, bar)
                write_results(folder / "results.csv", done)
                if bar.disable:
                    words = f"{path.stem}, {arm}, {added} generated, seed {seed}"
                    print(f"{words}: accuracy {100 * done[key]['accuracy']:.1f} %", flush=True)
    results = collected(done, args)
    lines = verdict(results, args, data.name, len(test.images))
    lines.append(what_the_error_covers(args, data))
    tables = f"{table(results)}\n\n{fid_table(fids)}\n\n"
    write_text(folder / "table.md", tables + "\n\n".join(map(markdown, lines)) + "\n")
    draw_curve(results, args, folder / "curve.png", data.name)
    print(f"\n{tables}" + "\n\n".join(printable(line, 5000) for line in lines))
    print(f"\neverything is in {printable(folder)}")


if __name__ == "__main__":
    run_program(main)
