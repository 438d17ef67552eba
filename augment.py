"""Does it help a classifier to enlarge a small labelled data set with generated images?

    python augment.py --data mnist --per-class 20 50 --width 16            # some three quarters of an hour on two cores
    python augment.py --data cifar10 --per-class 20 50 100 200 --add 500   # a learning curve; a GPU
    python augment.py --data photos/ --per-class 50 --generator runs/cgan-subset-50-1 --add 200
    python augment.py --resume runs/augment-mnist-1                        # go on after Ctrl-C

For every number in --per-class, so many training images of each class are drawn and kept as `subset-N.npz`. A generator
is trained on them and on nothing else (ddpm.py, or cgan.py, cvae.py with --generator), or a checkpoint is taken, whose
recorded fingerprint of its data must be this subset's: a generator that has seen the full set would smuggle it in.
It makes --add images of each class. A ResNet-18 (He et al. 2016, 1512.03385) is then trained in four ways,

    real                  the subset
    real+classical        the same, with random crops, mirroring and colours
    real+generated        the subset and the generated images, half of every batch each
    real+both             these, with random crops, mirroring and colours

every time with the same number of optimiser steps and the same batch, once for each seed, and measured on real images
that neither it nor the generator has seen: accuracy, and precision and recall averaged over the classes. Seeds are
compared in pairs, with and without generated images, by Student's paired t-test. In the run directory: table.md with
the verdict, curve.png, results.csv, the generated images beside real ones, the subsets, the generators.

The idea is a proposal of report R4 that it did not carry out.
"""

import argparse
import sys

ARMS = ("real", "real+classical", "real+generated", "real+both")
PAIRS = (("real+generated", "real"), ("real+both", "real+classical"))  # with generated images, and without
SCORES = ("accuracy", "precision", "recall")
GENERATORS = ("ddpm", "cgan", "cvae")


def parse_args(argv=None):
    parser = argparse.ArgumentParser(prog="augment.py", description=__doc__.split("\n\n")[0], allow_abbrev=False)
    parser.error = lambda message: parser.exit(2, f"augment.py: error: {message} (see --help)\n")  # one line

    def whole(low):
        def convert(text):
            if not text.isdecimal() or int(text) < low:
                raise argparse.ArgumentTypeError(f"'{text}' is not a whole number of at least {low}")
            return int(text)

        return convert

    add = parser.add_argument
    add("--data", metavar="NAME|PATH", help="labelled data: a known name, or a folder, zip or .npz")
    add("--per-class", type=whole(2), nargs="+", default=[50], metavar="N", help="training images of a class [50]")
    add(
        "--generator",
        default="ddpm",
        metavar="CKPT|NAME",
        help="a checkpoint, or what to train: ddpm, cgan, cvae [ddpm]",
    )
    add("--generator-flags", default="", metavar="'FLAGS'", help="for its training: --generator-flags='--steps 2000'")
    add("--add", type=whole(1), default=200, metavar="N", help="generated images of a class [200]")
    add("--size", type=int, choices=[16, 32, 64, 128, 256], help="side in pixels [32 for small images, else 64]")
    add("--seeds", type=whole(3), default=5, metavar="N", help="trainings of each kind [5]")
    add("--steps", type=whole(1), default=500, metavar="N", help="optimiser steps of a classifier [500]")
    add("--batch", type=whole(2), default=64, metavar="N", help="images in one of them [64]")
    add("--width", type=whole(8), default=64, metavar="N", help="channels of its first layers; ResNet-18 has 64 [64]")
    add(
        "--no-flip", action="store_true", help="never mirror an image (grey images, often digits or letters, never are)"
    )
    add("--device", default="auto", help="auto, cpu, cuda, cuda:1 or mps [auto]")
    add("--out", metavar="DIR", help="run directory [a new one in runs/]")
    add("--resume", metavar="DIR", help="go on with this run")
    args = parser.parse_args(argv)
    given = [word for word in (sys.argv[1:] if argv is None else argv) if word.startswith("--")]
    if args.resume and (more := [word for word in given if word.split("=")[0] not in ("--resume", "--device")]):
        parser.error(f"--resume goes on as the run began: leave out {more[0]}")
    if not args.resume and not args.data:
        parser.error("give --data, a labelled data set")
    args.per_class = sorted(set(args.per_class))
    if args.batch % 2:
        parser.error(f"--batch {args.batch} is odd: half of it is generated in two of the four ways")
    if args.generator not in GENERATORS and len(args.per_class) > 1:
        parser.error("a checkpoint was trained on one subset: give --per-class one number")
    return args


if __name__ == "__main__":  # before the slow imports: --help and typing errors answer at once
    ARGS = parse_args()

import contextlib
import csv
import importlib
import io
import json
import math
import shlex
import statistics
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from scipy import stats
from torch import nn
from tqdm import tqdm

import datasets
from datasets import InputError, layout, shuffled

# ---------------------------------------------------------------------------------------------------- the data


def subset(data, count, seed=0):
    """`count` images of each class as Images, always the same; those of a smaller count are among those of a larger.

    InputError where a class has fewer.
    """
    rows = []
    for number, name in enumerate(data.classes):
        members = (data.labels == number).nonzero()[:, 0]
        if len(members) < count:
            raise InputError(
                f"class '{name}' of {data.name} has {len(members)} training images, and {count} are asked for"
            )
        rows.append(members[shuffled(len(members), seed)[:count]])
    rows = torch.cat(rows)
    return data._replace(images=data.images[rows], labels=data.labels[rows])


def save_arrays(path, images, labels, classes):
    """uint8 (N, C, H, W), int64 (N,) -> an .npz that datasets.load reads, whole or not at all."""

    def write(temporary):
        with open(temporary, "wb") as file:
            pixels = images.permute(0, 2, 3, 1).contiguous().numpy()
            np.savez_compressed(file, images=pixels, labels=labels.numpy(), classes=np.array(classes))

    datasets.write_atomic(path, write)


def may_flip(data, args):
    """Whether a mirrored image is still of its class. Grey images are often digits or letters, so never of those."""
    return data.images.shape[1] == 3 and not args.no_flip


def classical(images, flip):
    """Random crops, mirroring and colours: float (N, C, H, W) in [-1, 1] -> the same shape, other for each image.

    A crop: a shift by up to an eighth of the side, the edge repeated. Colours: brightness by up to 0.2, contrast and,
    of colour images, saturation by up to a quarter.
    """
    n, channels, side, _ = images.shape
    device = images.device

    def drawn(low, high):
        return torch.rand(n, 1, 1, 1, device=device) * (high - low) + low

    if flip:
        images = torch.where(drawn(0, 1) < 0.5, images.flip(3), images)
    reach, places = max(1, side // 8), torch.arange(side, device=device)
    for axis, shape in ((2, (n, 1, side, 1)), (3, (n, 1, 1, side))):
        source = (places + torch.randint(-reach, reach + 1, (n, 1), device=device)).clamp(0, side - 1)
        images = images.gather(axis, source.view(shape).expand_as(images))
    if channels == 3:
        grey = images.mean(1, keepdim=True)
        images = grey + drawn(0.75, 1.25) * (images - grey)
    middle = images.mean((1, 2, 3), keepdim=True)
    return (middle + drawn(0.75, 1.25) * (images - middle) + drawn(-0.2, 0.2)).clamp(-1, 1)


# ---------------------------------------------------------------------------------------------- the classifier


class Every(nn.Module):
    """(N, C, H, W) -> every n-th row and column of it."""

    def __init__(self, n):
        super().__init__()
        self.n = n

    def forward(self, x):
        return x[:, :, :: self.n, :: self.n]


def resnet18(channels, classes, side, width=64):
    """ResNet-18 for small images: (N, channels, side, side) -> logits (N, classes).

    torchvision's blocks, but a first layer of 3x3 without pooling behind it, as usual for 32 pixels; its stride brings
    64 pixels to 32 places, and larger images are averaged to 64 before (torchvision's brings 224 to 56).
    """
    from torchvision.models.resnet import BasicBlock

    layers = [nn.AvgPool2d(side // 64)] if side > 64 else []
    layers += [nn.Conv2d(channels, width, 3, 2 if side >= 64 else 1, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU()]
    before = width
    for stage in range(4):
        for block in range(2):
            after, stride, change = width * 2**stage, 2 if stage and not block else 1, None
            if stride > 1:
                # every second place, then 1x1: as a 1x1 with stride 2, but PyTorch 2.15's of few channels, channels
                # last, writes outside of its memory on CPUs
                change = nn.Sequential(Every(2), nn.Conv2d(before, after, 1, bias=False), nn.BatchNorm2d(after))
            layers.append(BasicBlock(before, after, stride, change))
            before = after
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(before, classes))


def scores(asked, found, classes):
    """int64 (N,) twice -> accuracy, and precision and recall averaged over the classes, each from 0 to 1.

    The precision of a class is the share of right ones among what was called so, and 0 where nothing was.
    """
    table = torch.zeros(classes, classes, dtype=torch.float64)
    table.index_put_((asked, found), torch.ones((), dtype=torch.float64), accumulate=True)  # row: true, column: called
    right = table.diag()
    present = table.sum(1) > 0
    precision = (right / table.sum(0).clamp(min=1))[present].mean().item()
    recall = (right / table.sum(1).clamp(min=1))[present].mean().item()
    return {"accuracy": (right.sum() / len(asked)).item(), "precision": precision, "recall": recall}


def train_classifier(real, generated, test, args, augment, seed, device, bar=None):
    """Train a classifier on the Images `real`, with `generated` as half of every batch if that is not None, and measure
    it on the Images `test`: scores. augment: with `classical`.

    --steps batches drawn with replacement; AdamW, its rate warmed up to 0.002 and brought to 0 (one cycle).
    """
    precision = datasets.pick_device(args.device)[1]
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        network = resnet18(real.images.shape[1], len(test.classes), real.images.shape[-1], args.width)
        network.to(device, memory_format=layout(device)).train()
        optimiser = torch.optim.AdamW(network.parameters(), 2e-3, weight_decay=0.05)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 2e-3, args.steps, cycle_momentum=False)
        parts = [(data.images.to(device), data.labels.to(device)) for data in (real, generated) if data is not None]
        flip = may_flip(test, args)
        for _ in range(args.steps):
            count = args.batch // len(parts)  # of each part; --batch is even
            drawn = [torch.randint(len(images), (count,), device=device) for images, _ in parts]
            x = torch.cat([images[rows] for (images, _), rows in zip(parts, drawn, strict=True)])
            labels = torch.cat([classes[rows] for (_, classes), rows in zip(parts, drawn, strict=True)])
            x = datasets.from_uint8(x)
            if augment:
                x = classical(x, flip)
            x = x.contiguous(memory_format=layout(device))
            with datasets.autocast(device, precision):
                logits = network(x)
            loss = F.cross_entropy(logits.float(), labels)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            schedule.step()
            if bar is not None:
                bar.update()
    network.eval()
    with torch.no_grad():
        found = [network(datasets.from_uint8(part.to(device))).argmax(1).cpu() for part in test.images.split(500)]
    return scores(test.labels, torch.cat(found), len(test.classes))


# ---------------------------------------------------------------------------------------------- the generator

TRAINED_WITH = {  # flags for a few hundred images; --generator-flags come after them and win
    "ddpm": "--preset small",
    "cgan": "--class-scale 0.0078125 --augment --ema 0.995 --steps 4000",
    "cvae": "--likelihood sigma --lr 1e-3 --ema 0.99 --steps 2000",
}


def check_knows_classes(checkpoint, source):
    if checkpoint["script"] not in GENERATORS:
        raise InputError(f"'{source}' was made by {checkpoint['script']}.py, which knows no classes")


def check_no_leak(checkpoint, source, path, data):
    """InputError unless the checkpoint was trained on `data`, which was loaded from `path`, and on nothing else."""
    if checkpoint["data"]["fingerprint"] != data.fingerprint:
        raise InputError(
            f"'{source}' was not trained on this subset (fingerprints differ): train one with --data {path}"
        )


def generator_arguments(args, data, path, folder, device):
    """What a generator is trained with, as its script's parsed arguments. data: the subset, which lies at `path`."""
    flags = [*shlex.split(TRAINED_WITH[args.generator]), "--batch", str(min(32, len(data.images)))]
    flags += ["--flip"] if args.generator == "ddpm" and may_flip(data, args) else []
    flags += ["--data", str(path), "--size", str(args.size), "--device", str(device), "--eval-images", "0"]
    try:
        flags += shlex.split(args.generator_flags)
    except ValueError as problem:
        raise InputError(f"--generator-flags {args.generator_flags}: {problem}") from None
    try:
        with contextlib.redirect_stderr(io.StringIO()) as said:
            return importlib.import_module(args.generator).parse_args([*flags, "--out", str(folder)])
    except SystemExit as stop:
        if not stop.code:  # --help
            raise
        problem = said.getvalue().strip().partition("error: ")[2]
        raise InputError(f"--generator-flags: {problem.replace('see ', f'see python {args.generator}.py ')}") from None


def trained_generator(args, data, path, folder, device):
    """Train a generator on the subset `data`, which lies at `path`, or go on with it: its checkpoint."""
    script = importlib.import_module(args.generator)
    if not (folder / "last.pt").exists():
        script.main(generator_arguments(args, data, path, folder, device))
    else:
        steps = json.loads((folder / "args.json").read_text(encoding="utf-8"))["steps"]
        if datasets.read_checkpoint(folder)["step"] < steps:
            script.main(script.parse_args(["--resume", str(folder), "--device", str(device)]))
    return datasets.read_checkpoint(folder)


def generated_images(args, count, data, folder, device):
    """The images that a generator of this subset makes, as Images: read where they are kept, else made and kept.

    data: the subset of `count` images a class, as it was read from subset-<count>.npz in `folder`.
    """
    kept, path = folder / f"generated-{count}.npz", folder / f"subset-{count}.npz"
    if not kept.exists():
        if args.generator in GENERATORS:
            source = folder / f"{args.generator}-{count}"
            checkpoint = trained_generator(args, data, path, source, device)
        else:
            checkpoint, source = datasets.read_checkpoint(args.generator), args.generator
        check_no_leak(checkpoint, source, path, data)
        script, made = importlib.import_module(checkpoint["script"]), []
        for number in tqdm(range(len(data.classes)), desc=f"{args.add} images of each class", disable=None):
            made.append(script.generate(checkpoint, args.add, seed=1000 + number, device=device, label=number))
        labels = torch.arange(len(data.classes)).repeat_interleave(args.add)
        save_arrays(kept, torch.cat(made), labels, data.classes)
    made = datasets.load(kept, args.size)
    rows = []
    for number in range(min(len(data.classes), 10)):  # real ones at the left, generated ones at the right
        for part in (data, made):
            images = part.images[part.labels == number][:8]
            rows.append(torch.cat([images, torch.full_like(images[:1], 255).repeat(8 - len(images), 1, 1, 1)]))
    datasets.save_picture(datasets.grid(torch.cat(rows), 16), folder / f"generated-{count}.png")
    return made


# --------------------------------------------------------------------------------------------------- the verdict


def mean_and_error(values):
    """Mean and its standard error, s / sqrt(n)."""
    return statistics.mean(values), statistics.stdev(values) / math.sqrt(len(values))


def compared(values, others):
    """Pairs of scores in [0, 1] -> mean difference and its standard error, times 100, and p of the paired t-test.

    Where all pairs differ alike the t-test has nothing to divide by, and p is that of the sign test.
    """
    differences = [100 * (a - b) for a, b in zip(values, others, strict=True)]
    mean, error = mean_and_error(differences)
    if error < 1e-9:
        return mean, error, 1.0 if abs(mean) < 1e-9 else 2 * 0.5 ** len(differences)
    return mean, error, float(stats.ttest_rel(values, others).pvalue)


def holm(found):
    """Many comparisons at once: their p made larger, so that with 5 % one or more of them is wrong by chance alone.

    Holm 1979: the smallest p times their number, the next times one less, and so on, and none below an earlier one.
    """
    order, adjusted, least = sorted(range(len(found)), key=found.__getitem__), [0.0] * len(found), 0.0
    for rank, k in enumerate(order):
        adjusted[k] = least = max(least, min(1.0, (len(found) - rank) * found[k]))
    return adjusted


def in_words(mean, error, p):
    """What a comparison means, at the 5 % level."""
    if p >= 0.05:
        return f"makes no difference beyond noise ({mean:+.1f} ± {error:.1f} points of accuracy, p = {p:.2g})"
    return f"{'helps' if mean > 0 else 'hurts'} by {abs(mean):.1f} ± {error:.1f} points of accuracy (p = {p:.2g})"


def verdict(results, args, name, tested):
    """One paragraph. results: {(images a class, arm): [scores of each seed]}."""
    counts = sorted({count for count, _ in results})
    source = f"{args.generator}.py" if args.generator in GENERATORS else args.generator
    text = [f"{name}, {args.add} images of each class generated by {source}, tested on {tested:,} real images:"]
    pairs = [[[s["accuracy"] for s in results[count, arm]] for arm in pair] for count in counts for pair in PAIRS]
    found = [compared(*pair) for pair in pairs]
    found = [(mean, error, p) for (mean, error, _), p in zip(found, holm([p for *_, p in found]), strict=True)]
    for count, alone, augmented in zip(counts, found[::2], found[1::2], strict=True):
        words = "with" if count == counts[0] else "With"
        text.append(f"{words} {count} real images of each class, adding them {in_words(*alone)}; where classical "
                    f"augmentation is used anyway, it {in_words(*augmented)}.")  # fmt: skip
    helps, hurts = (sum(p < 0.05 and mean * sign > 0 for mean, _, p in found) for sign in (1, -1))
    share = statistics.mean(value for pair in pairs for values in pair for value in values)
    text.append(
        f"Of {len(found)} comparisons {helps} show{'s' * (helps == 1)} that it helps, {hurts} that it hurts, "
        f"{len(found) - helps - hurts} neither (p after Holm). ± is the standard error over {args.seeds} trainings of "
        "the classifier. The subset, the generator and the test images are the same in all of them: other ones may "
        f"differ by more, and {tested:,} test images alone leave any accuracy uncertain by "
        f"{100 * math.sqrt(share * (1 - share) / tested):.1f} points."
    )
    return " ".join(text)


def table(results):
    """Markdown: a row for each number of images and arm, mean ± standard error in percent."""
    lines = ["| real images a class | trained on | accuracy, % | precision, % | recall, % |", "|---|---|---|---|---|"]
    for (count, arm), found in results.items():
        cells = ["{:.1f} ± {:.1f}".format(*mean_and_error([100 * s[score] for s in found])) for score in SCORES]
        lines.append(f"| {count} | {arm} | {' | '.join(cells)} |")
    return "\n".join(lines)


def draw_curve(results, path, title):
    """Accuracy against the number of real images, one line for each arm, with standard errors."""
    try:
        from matplotlib.figure import Figure  # without pyplot: no window, no global state
    except ImportError:
        return print("curve.png is not drawn: matplotlib is not installed", file=sys.stderr)
    figure = Figure(figsize=(7, 4.5), dpi=110, layout="constrained")
    axis = figure.subplots()
    counts = sorted({count for count, _ in results})
    styles = {"real": ("#555555", "o-"), "real+classical": ("#1f77b4", "o-"), "real+generated": ("#d95f02", "s--"),
              "real+both": ("#1b9e77", "s--")}  # fmt: skip
    for arm in ARMS:
        points = [mean_and_error([100 * s["accuracy"] for s in results[count, arm]]) for count in counts]
        color, style = styles[arm]
        axis.errorbar(counts, *zip(*points, strict=True), color=color, fmt=style, capsize=3, label=arm)
    axis.set_xscale("log")
    axis.set_xticks(counts, [str(count) for count in counts])
    axis.minorticks_off()
    axis.set_xlabel("real images of each class")
    axis.set_ylabel("accuracy on held-out real images, %")
    axis.set_title(title, fontsize=11, parse_math=False)
    axis.spines[["top", "right"]].set_visible(False)
    axis.legend(frameon=False)
    datasets.write_atomic(path, lambda temporary: figure.savefig(temporary, format="png"))


# ---------------------------------------------------------------------------------------------------------- main


def read_results(path):
    """results.csv -> {(images a class, arm, seed): scores}; a last line that was cut off is left out."""
    found = {}
    if path.exists():
        with open(path, newline="", encoding="utf-8") as file:
            for row in csv.DictReader(file):
                with contextlib.suppress(TypeError, ValueError, KeyError):
                    key = int(row["per_class"]), row["arm"], int(row["seed"])
                    found[key] = {score: float(row[score]) for score in SCORES}
    return found


def write_results(path, found):
    lines = [",".join(["per_class", "arm", "seed", *SCORES])]
    lines += [",".join(map(str, [*key, *(values[score] for score in SCORES)])) for key, values in found.items()]
    datasets.write_text(path, "\n".join(lines) + "\n")


def resumed(args):
    """--resume: the settings that the run began with."""
    try:
        kept = json.loads((Path(args.resume) / "settings.json").read_text(encoding="utf-8"))
        if missing := {*vars(args), "fingerprint"} - kept.keys():
            raise ValueError(missing)
    except (OSError, ValueError, AttributeError):
        raise InputError(f"'{args.resume}' is no run of augment.py (settings.json is missing or damaged)") from None
    device = {"device": args.device} if args.device != "auto" else {}
    return argparse.Namespace(**kept | device | {"resume": args.resume})


def main(args):
    args = resumed(args) if args.resume else args
    device, _ = datasets.pick_device(args.device)
    args.size = args.size or datasets.default_size(args.data)
    data, test = datasets.load_parts(args.data, args.size)
    if data.labels is None:
        raise InputError(f"'{args.data}' has no labels, which a classifier needs: one sub-folder for each class")
    if test is None:  # no split of its own: a fifth is held out, and no subset is drawn from it
        if len(data.images) < 10:
            raise InputError(f"'{args.data}' has {len(data.images)} images: too few to hold some out")
        data, test = datasets.load_parts(args.data, args.size, len(data.images) // 5)
    for count in args.per_class:  # what is wrong with the input is told before anything is written
        few = subset(data, count)
        if args.generator in GENERATORS:
            generator_arguments(args, few, "subset", "generator", device)
    if args.generator not in GENERATORS:
        check_knows_classes(datasets.read_checkpoint(args.generator), args.generator)
    if args.resume:
        folder = Path(args.resume)
        if args.fingerprint != data.fingerprint:  # other images might be held out now, and some of these in the subset
            raise InputError(f"'{args.data}' has changed since this run began (its fingerprint differs)")
    else:
        args.fingerprint = data.fingerprint
        folder = datasets.new_run("augment", argparse.Namespace(out=args.out, preset=None), data.name)
        datasets.write_text(folder / "settings.json", json.dumps(vars(args), indent=1))
    with datasets.locked(folder / ".lock", busy=f"another process is working in '{folder}'"):
        try:
            work(args, data, test, folder, device)
        except (KeyboardInterrupt, SystemExit):  # the generator's training ends with the latter
            print(f"go on with: python augment.py --resume {folder}", file=sys.stderr)
            raise


def work(args, data, test, folder, device):
    """Everything in the run directory that is not there yet."""
    print(f"{data.name} {args.size}x{args.size}, {len(data.classes)} classes; tested on {len(test.images)} real images")
    done = read_results(folder / "results.csv")
    for count in args.per_class:
        path = folder / f"subset-{count}.npz"
        if not path.exists():
            part = subset(data, count)
            save_arrays(path, part.images, part.labels, part.classes)
        few = datasets.load(path, args.size)
        made = generated_images(args, count, few, folder, device)
        missing = [(seed, arm) for seed in range(args.seeds) for arm in ARMS if (count, arm, seed) not in done]
        print(f"{len(missing)} classifiers to train on {count} images of each class", flush=True)
        with tqdm(
            total=len(missing) * args.steps, desc=f"classifiers, {count} a class", unit="step", disable=None
        ) as bar:
            for seed, arm in missing:
                generated = made if arm in ("real+generated", "real+both") else None
                augment = arm in ("real+classical", "real+both")
                found = train_classifier(few, generated, test, args, augment, seed, device, bar)
                done[count, arm, seed] = found
                write_results(folder / "results.csv", done)
                if bar.disable:
                    print(f"{count} a class, {arm}, seed {seed}: accuracy {100 * found['accuracy']:.1f} %", flush=True)
    results = {
        (count, arm): [done[count, arm, seed] for seed in range(args.seeds)] for count in args.per_class for arm in ARMS
    }
    text = f"{table(results)}\n\n{verdict(results, args, data.name, len(test.images))}\n"
    datasets.write_text(folder / "table.md", text)
    draw_curve(results, folder / "curve.png", f"{data.name}, {args.add} generated images of each class")
    print(f"\n{text}\neverything is in {folder}")


if __name__ == "__main__":
    datasets.run_program("augment.py", main, ARGS)
