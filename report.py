"""Pictures of a training run, made from its run directory.

    python report.py runs/dcgan-shapes-1
    python report.py runs/dcgan-cats-1 runs/dcgan-cats-2 --epochs 10 30 50
    python report.py runs/dcgan-cats-1 --extremes

writes into each run directory

    losses.png         every loss against the step, and the metrics that were measured on the way
    weights.png        how the weights of every layer are distributed, at up to 8 moments of the training
    progress.gif       the fixed-latent samples from the first to the last; reconstructions.gif of autoencoders
    strip.png          the first 8 of these samples at a few epochs, one row each
    interpolation.png  walks between random latents, on a sphere and on a straight line, by the best checkpoint (of
                       cgan.py also between two classes); of autoencoders, between the latents of two real images
    classes.png        of cvae.py: real images, and their latents decoded as every class
    denoising.png      of ddpm.py: from noise to picture; guidance.png: the same noises, the class weighed more and more
    extremes.png       with --extremes, which needs the data: the generated pictures most and least like real images
    grid.png           with --grid N: N generated pictures by the best checkpoint

and of several runs, beside the first of them, comparison.md and comparison.html: one table of what they are, how long
they took and what was measured, with the report's numbers and every protocol; the page holds their pictures too.

A picture that cannot be made (no samples yet, no matplotlib) costs one line; the others are made all the same.
The model scripts call `report(run_directory)` at the end of a run.
"""

import argparse
import base64
import csv
import functools
import html
import importlib
import io
import json
import math
import os
import sys
from pathlib import Path


def epoch_number(text):
    value = float(text)
    if not 0 <= value < math.inf:
        raise ValueError
    return value


def pictures_number(text):
    if not 1 <= (value := int(text)) <= 10_000:
        raise ValueError
    return value


def parse_args(argv=None):
    parser = argparse.ArgumentParser(prog="report.py", description="Pictures of training runs.", allow_abbrev=False)
    parser.error = lambda message: parser.exit(2, f"report.py: error: {message} (see --help)\n")  # one line
    parser.add_argument("runs", nargs="+", metavar="RUN", help="a run directory, such as runs/dcgan-shapes-1")
    parser.add_argument("--epochs", nargs="+", type=epoch_number, metavar="E", help="rows of strip.png (default: 5)")
    parser.add_argument("--extremes", action="store_true", help="the best and the worst pictures too; needs the data")
    parser.add_argument("--grid", type=pictures_number, metavar="N", help="N generated pictures too")
    return parser.parse_args(argv)


if __name__ == "__main__":  # before the slow imports, so that --help and typing errors answer at once
    ARGS = parse_args()

import numpy as np
from PIL import Image, ImageDraw, ImageFont

import datasets
from datasets import InputError

INK, FAINT, PAPER = "#222222", "#777777", "#ffffff"
LINES = ("#1f77b4", "#d95f02", "#2a9d5c", "#9b59b6")  # told apart by the colour-blind too
GIF_FRAMES, GIF_SIDE, GIF_BYTES = 60, 640, 8_000_000
EXTREMES, GENERATED, REAL = 8, 200, 50  # pictures shown of each kind, pictures scored, real images compared with each


# -------------------------------------------------------------------------------------------------------- reading a run


def read_run(folder):
    """args.json of a run directory as a dict. InputError if the folder is not a run."""
    path = Path(folder) / "args.json"
    try:
        args = json.loads(path.read_text(encoding="utf-8"))
        if args["steps_per_epoch"] > 0 and args["data"]["size"] > 0:
            return args
    except (FileNotFoundError, NotADirectoryError):
        raise InputError(f"'{folder}' is not a run directory: it holds no args.json") from None
    except (ValueError, KeyError, TypeError):
        pass
    raise InputError(f"'{path}' is damaged or no work of this collection: give another run directory")


def read_log(folder):
    """log.csv as {column: float64 array}, NaN where a cell is empty (metrics are measured now and then)."""
    try:
        with open(folder / "log.csv", encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file))
        columns = {name: np.array([float(row[name] or "nan") for row in rows]) for name in (rows[0] if rows else ())}
    except FileNotFoundError:
        columns = {}
    except (ValueError, TypeError, csv.Error) as error:
        raise InputError(f"log.csv is damaged ({error})") from None
    if "step" not in columns:
        raise InputError("log.csv has no rows yet; train for longer")
    return columns


def read_weights(folder):
    """weights.csv as {(network, layer): {step: (low, high, counts)}}. counts: float64 (50,), from low to high."""
    layers = {}
    try:
        with open(folder / "weights.csv", encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file))
        for row in rows:
            counts = np.array((row["counts"] or "").split(), dtype=float)
            if len(counts) == 50:  # else kill -9 cut the row short
                moment = float(row["low"]), float(row["high"]), counts
                layers.setdefault((row["network"], row["layer"]), {})[int(row["step"])] = moment
    except FileNotFoundError:
        raise InputError("the run has no weights.csv (it was made before there was one)") from None
    except (ValueError, TypeError, KeyError, csv.Error) as error:
        raise InputError(f"weights.csv is damaged ({error})") from None
    if not layers:
        raise InputError("weights.csv has no rows yet; train for longer")
    return layers


def read_samples(folder, kind="samples"):
    """[(step, path)] of samples/*.png in the order of their steps."""
    samples = sorted((int(path.stem), path) for path in folder.glob(f"{kind}/*.png") if path.stem.isdecimal())
    if not samples:
        raise InputError(f"no pictures in {kind}/ yet; train for longer or lower --sample-every")
    return samples


def open_picture(path):
    try:
        with Image.open(path) as picture:
            return picture.convert("RGB")
    except OSError:
        raise InputError(f"{path} is damaged; remove it") from None


# ---------------------------------------------------------------------------------------------- losses.png, weights.png


def new_figure(width, height, title):
    """An empty matplotlib figure of width x height inches."""
    try:
        from matplotlib.figure import Figure  # without pyplot: no window, no global state
    except ImportError:
        raise InputError("matplotlib is not installed; pip install matplotlib") from None
    figure = Figure(figsize=(width, height), dpi=110, layout="constrained")
    figure.suptitle(title, fontsize=11, color=INK)
    return figure


def figure_png(figure):
    file = io.BytesIO()
    figure.savefig(file, format="png")
    return file.getvalue()


def running_mean(values, window):
    """Mean over `window` neighbours on both sides together; near the ends over those that exist."""
    ones = np.ones(min(window, len(values)))
    return np.convolve(values, ones, "same") / np.convolve(np.ones(len(values)), ones, "same")


def draw_losses(folder, args):
    """One panel for each kind of loss and of metric: `loss_d_real` and `loss_d_fake` share one, `loss_g` has its own.

    A generator's loss is often ten times the discriminator's: on a common axis the latter would be a flat line.
    """
    log, panels = read_log(folder), {}
    for name in log:
        if name not in ("step", "epoch", "seconds", "img_per_s") and np.isfinite(log[name]).any():
            is_loss, kind = name.startswith("loss_"), name.removeprefix("loss_").split("_")[0]
            panels.setdefault((not is_loss, kind), []).append(name)
    panels = [panels[key] for key in sorted(panels, key=lambda key: key[0])]  # losses above metrics
    if not panels:
        raise InputError("log.csv holds no finite loss")

    figure = new_figure(9, 1 + 2.3 * len(panels), folder.resolve().name)
    axes = figure.subplots(len(panels), 1, sharex=True, squeeze=False)[:, 0]
    for axis, names in zip(axes, panels, strict=True):
        shown = []
        for name, color in zip(names, LINES * len(names), strict=False):
            known = np.isfinite(log[name])
            steps, values = log["step"][known], log[name][known]
            label = name.removeprefix("loss_").replace("_", " ")
            if len(values) > 40:
                window = max(5, len(values) // 40)
                mean = running_mean(values, window)
                axis.plot(steps, values, color=color, alpha=0.25, linewidth=0.8)
                axis.plot(steps, mean, color=color, linewidth=1.8, label=f"{label} (mean of {window} log rows)")
                shown += [mean, np.percentile(values, [0.5, 99.5])]  # a lone spike may leave the panel
            else:
                axis.plot(steps, values, color=color, linewidth=1.4, marker="o", markersize=3.5, label=label)
                shown.append(values)
        low, high = min(part.min() for part in shown), max(part.max() for part in shown)
        margin = 0.06 * (high - low) or 0.06 * abs(high) or 1
        axis.set_ylim(low - margin, high + margin)
        axis.set_ylabel("loss" if names[0].startswith("loss_") else names[0].split("_")[0])
        axis.grid(color="#dddddd", linewidth=0.6)
        axis.spines[["top", "right"]].set_visible(False)
        axis.legend(loc="best", frameon=True, framealpha=0.85, edgecolor="none", fontsize=9)
    axes[-1].set_xlabel("step")
    per_epoch = args["steps_per_epoch"]
    epochs = axes[0].secondary_xaxis("top", functions=(lambda step: step / per_epoch, lambda epoch: epoch * per_epoch))
    epochs.set_xlabel("epoch")
    return figure_png(figure)


def draw_weights(folder, args):
    """One panel for each layer: the histograms of its weights at up to eight moments, the later the darker.

    Drawn as densities on a logarithmic axis: a few weights far out are then as easy to see as the many near 0, and
    the histogram of a normal distribution is a parabola. Every network begins a new row.
    """
    layers = read_weights(folder)
    steps = sorted({step for moments in layers.values() for step in moments})
    chosen = [steps[index] for index in spread(len(steps), 8)]
    networks = {}
    for network, layer in layers:
        networks.setdefault(network, []).append(layer)
    longest = max(map(len, networks.values()))
    columns = math.ceil(longest / math.ceil(longest / 6))  # at most 6, and rows of nearly the same length
    rows = sum(math.ceil(len(names) / columns) for names in networks.values())

    figure = new_figure(max(6, 1 + 2.4 * columns), 1 + 2 * rows, f"{folder.resolve().name}: weights of every layer")
    from matplotlib import colormaps

    colors = dict(zip(chosen, colormaps["YlGnBu"](np.linspace(0.3, 1, len(chosen))), strict=True))
    grid = figure.add_gridspec(rows, columns)
    row, lines = 0, {}
    for network, names in networks.items():
        for index, name in enumerate(names):
            axis = figure.add_subplot(grid[row + index // columns, index % columns])
            for step in chosen:
                low, high, counts = layers[network, name].get(step, (0, 0, None))
                if low < high:  # the weights of a layer may all be equal at its start
                    if counts.sum() < 5000:  # few weights: wider bins, or there is nothing but noise to see
                        counts = counts.reshape(25, 2).sum(1)
                    width = (high - low) / len(counts)
                    middle = low + width * (np.arange(len(counts)) + 0.5)
                    density = np.where(counts > 0, counts, np.nan) / (counts.sum() * width)  # no line at empty bins
                    style = {"linewidth": 1.1, "marker": ".", "markersize": 2}  # dots: a bin between two empty ones
                    lines[step] = axis.plot(middle, density, color=colors[step], **style)[0]
            axis.set_yscale("log")
            bottom, top = axis.get_ylim()
            axis.set_ylim(min(bottom, top / 100), top)  # two powers of ten: else noise fills the panel of a flat layer
            axis.yaxis.set_minor_formatter("")
            axis.set_axisbelow(True)
            title = name.split(".parametrizations")[0].removesuffix(".weight")
            axis.set_title(f"{network} {title}", fontsize=9, color=INK)
            axis.tick_params(labelsize=7, colors=FAINT)
            axis.locator_params(axis="x", nbins=5)
            axis.grid(color="#e5e5e5", linewidth=0.5)
            axis.spines[["top", "right"]].set_visible(False)
        row += math.ceil(len(names) / columns)
    figure.supxlabel("weight", fontsize=9, color=INK)
    figure.supylabel("density", fontsize=9, color=INK)
    figure.legend(
        [lines[step] for step in sorted(lines)], [f"step {step:,}" for step in sorted(lines)],
        loc="outside right upper", frameon=False, fontsize=9,
    )  # fmt: skip
    return figure_png(figure)


# --------------------------------------------------------------------------------------------------------- progress.gif


@functools.cache
def font(size):
    """matplotlib's own has the letters of most alphabets, and Pillow's little more than English ones."""
    try:
        import matplotlib

        return ImageFont.truetype(str(Path(matplotlib.get_data_path(), "fonts", "ttf", "DejaVuSans.ttf")), size)
    except (ImportError, OSError):
        return ImageFont.load_default(size)


def write_text(picture, place, text, size=16, color=INK, width=math.inf):
    """Text at `place` = (x, y), with its middle at the height y. What is longer than `width` pixels is cut."""
    while len(text) > 1 and font(size).getlength(text) > width:
        text = text.rstrip("…")[:-1] + "…"
    ImageDraw.Draw(picture).text(place, text, fill=color, font=font(size), anchor="lm")


def rescale(picture, factor):
    """Enlarged by repeating pixels, which shows what the model made; shrunk with an antialiasing filter."""
    size = (round(picture.width * factor), round(picture.height * factor))
    return picture.resize(size, Image.Resampling.NEAREST if factor >= 1 else Image.Resampling.LANCZOS)


def spread(count, limit):
    """At most `limit` of the indices 0 .. count - 1, evenly spread, the first and the last always among them."""
    return np.unique(np.linspace(0, count - 1, min(count, limit)).round().astype(int))


def draw_progress(folder, args, kind="samples"):
    """The samples as a film of about 8 seconds. Where 60 frames would exceed GIF_BYTES, fewer are taken."""
    samples, frames, limit = read_samples(folder, kind), {}, GIF_FRAMES

    def frame(step, path):
        picture = open_picture(path)
        longest = max(picture.size)
        picture = rescale(picture, GIF_SIDE / longest if longest > GIF_SIDE else max(1, 400 // longest))
        page = Image.new("RGB", (picture.width, picture.height + 28), PAPER)
        page.paste(picture, (0, 28))
        write_text(page, (6, 14), f"epoch {epoch_text(step, args)}   step {step:,}")
        # A palette for each frame, by octree: median cut gives rare colours away and takes twenty times as long.
        palette = page.quantize(256, method=Image.Quantize.FASTOCTREE)
        return page.quantize(palette=palette, dither=Image.Dither.FLOYDSTEINBERG)

    while True:
        chosen = [samples[index] for index in spread(len(samples), limit)]
        frames = {step: frames.get(step) or frame(step, path) for step, path in chosen}
        first, *rest = frames.values()
        each = min(600, max(100, 8000 // len(frames)))  # milliseconds
        file = io.BytesIO()
        durations = [each] * len(rest) + [2000]
        first.save(file, format="GIF", save_all=True, append_images=rest, duration=durations, loop=0)
        if file.tell() <= GIF_BYTES or limit <= 10:
            return file.getvalue()
        limit = max(10, min(limit - 1, int(limit * 0.95 * GIF_BYTES / file.tell())))


# ------------------------------------------------------------------------------------------------------------ strip.png


def epoch_text(step, args):
    return f"{step / args['steps_per_epoch']:.1f}".removesuffix(".0")


def labelled_rows(rows, caption=""):
    """A picture of rows [(label, picture), ...] with the labels at the left and a caption of some lines below.

    Pictures are of equal size. A label that is None stands for a gap between groups of rows.
    """
    gap, left = 6, 24 + math.ceil(max(font(16).getlength(label) for label, _ in rows if label))
    height, width = rows[0][1].height, rows[0][1].width
    total = sum(height + gap if label else 2 * gap for label, _ in rows) + gap
    lines = caption.splitlines()
    page = Image.new("RGB", (left + width + gap, total + (8 + 18 * len(lines) if lines else 0)), PAPER)
    top = gap
    for label, picture in rows:
        if label:
            write_text(page, (12, top + height // 2), label)
            page.paste(picture, (left, top))
        top += height + gap if label else 2 * gap
    for index, line in enumerate(lines):
        write_text(page, (left, total + 10 + 18 * index), line, 13, FAINT)
    return page


def row_scale(size, about=64):
    """Small images are enlarged to `about` that many pixels, large ones shrunk to 128."""
    return 128 / size if size > 128 else max(1, about // size)


def in_a_row(images, about=64):
    """uint8 (N, C, H, W) -> one colour picture of them side by side, in the size of row_scale."""
    return rescale(datasets.grid(images, len(images)).convert("RGB"), row_scale(images.shape[-1], about))


def first_images(picture, size, count, down=False):
    """The first `count` images, of `size` pixels, of a sample grid (2-pixel gaps), in one row with the same gaps.

    down: taken down the columns, because the rows are classes.
    """
    columns, rows = (picture.width + 2) // (size + 2), (picture.height + 2) // (size + 2)
    if (picture.width + 2) % (size + 2) or not columns:
        raise InputError(f"a sample grid {picture.width} pixels wide does not hold images of {size} pixels")
    row = Image.new("RGB", (count * (size + 2) - 2, size), PAPER)
    for index in range(count):
        x, y = (index // rows, index % rows) if down else (index % columns, index // columns)
        x, y = x * (size + 2), y * (size + 2)
        if x < picture.width and y < picture.height:
            row.paste(picture.crop((x, y, x + size, y + size)), (index * (size + 2), 0))
    return row


def draw_strip(folder, args, epochs=None):
    """One row of 8 images for each epoch asked for, or five, closer together at the start, where most happens."""
    samples, per_epoch, size = read_samples(folder), args["steps_per_epoch"], args["data"]["size"]
    last = samples[-1][0] / per_epoch
    for epoch in epochs or ():
        if epoch > last + 0.5 / per_epoch:
            print(f"{folder}: epoch {epoch:g} is beyond the last samples (epoch {epoch_text(samples[-1][0], args)})")
    wanted = epochs or [last * (part / 5) ** 2 for part in range(1, 6)]
    nearest = {min(samples, key=lambda sample: abs(sample[0] / per_epoch - epoch)) for epoch in wanted}
    chosen = sorted(nearest)
    names = [f"epoch {epoch_text(step, args)}" for step, _ in chosen]
    if len({*names}) < len(names):  # of a run far shorter than an epoch
        names = [f"step {step}" for step, _ in chosen]
    rows = []
    for name, (_, path) in zip(names, chosen, strict=True):
        row = rescale(first_images(open_picture(path), size, 8, "class" in args["flags"]), row_scale(size))
        rows.append((name, row))
    return png(labelled_rows(rows))


# ---------------------------------------------------------------------------------------------------- interpolation.png


def open_model(folder):
    """The best checkpoint of a run, the script that made it, and both in words."""
    name = next((name for name in ("best.pt", "last.pt") if (folder / name).exists()), None)
    if name is None:
        raise InputError("no checkpoint (best.pt or last.pt) yet")
    checkpoint = datasets.read_checkpoint(folder / name)
    try:
        model = importlib.import_module(checkpoint["script"])
    except ModuleNotFoundError:
        raise InputError(f"it needs {checkpoint['script']}.py beside report.py") from None
    return checkpoint, model, f"{checkpoint['script']}, {name}: {datasets.weights_used(checkpoint)}"


def draw_interpolation(folder, device):
    """Three pairs of latents; between each, ten frames along the sphere and ten along the straight line. Of a
    conditional model a pair has one class, and a third row goes from it to the next class with one latent.

    A straight line between two Gaussian vectors passes nearer to the origin than any likely latent; the sphere keeps
    the length. That is why the two rows of a pair agree at the ends and may differ in the middle.
    """
    checkpoint, model, words = open_model(folder)
    pairs, frames = 3, 10
    kinds = model.FLAGS["interpolation"][1] if "interpolation" in model.FLAGS else ("linear",)
    walks = {kind: model.interpolate(checkpoint, pairs, frames, kind=kind, device=device) for kind in kinds}
    rows = []
    for pair in range(pairs):
        rows += [(None, None)] if pair else []
        for kind, images in walks.items():
            rows.append((kind, in_a_row(images[pair * frames : (pair + 1) * frames])))
    return png(labelled_rows(rows, words))


def draw_classes(folder, device):
    """Real images, what comes back from their latents, and the same latents decoded as every class."""
    checkpoint, model, words = open_model(folder)
    images, columns = model.as_every_class(checkpoint, device)
    picture = datasets.grid(images, columns)
    picture = rescale(picture, row_scale(images.shape[-1]))
    step, page = picture.width / columns, Image.new("RGB", (picture.width, picture.height + 54), PAPER)
    page.paste(picture, (0, 28))
    for column, text in enumerate(["real", "back", *checkpoint["data"]["classes"]][:columns]):
        write_text(page, (round(column * step) + 4, 14), text, 14, width=step - 6)
    write_text(page, (4, page.height - 14), words, 13, FAINT, page.width - 8)
    return png(page)


# --------------------------------------------------------------------------------------------------------- extremes.png


def real_images(args):
    """The data that a run was trained on: up to REAL random images, uint8 (M, C, H, W), and what they are in words.

    Held-out ones, of the set's own split or of --hold-out. A set without either gives images of the training.
    """
    flags, about = args.get("flags", {}), args["data"]
    if "data" not in flags:
        raise InputError("args.json does not name the data of the run")
    if flags.get("hold_out"):
        real = datasets.load_parts(flags["data"], about["size"], flags["hold_out"])[1]
    else:
        real = datasets.load(flags["data"], about["size"], "test")
    if real.fingerprint != about.get("fingerprint"):
        raise InputError(f"'{flags['data']}' is not the data that this run was trained on (its fingerprint differs)")
    chosen = datasets.shuffled(len(real.images), 0)[:REAL]
    held_out = flags.get("hold_out") or real.held_out
    words = "held-out images" if held_out else "training images (nothing is held out)"
    return real.images[chosen], f"{len(chosen)} random {words} of {real.name}"


def import_metrics():
    try:
        return importlib.import_module("metrics")
    except ModuleNotFoundError:
        raise InputError("it needs our metrics.py beside report.py") from None


def draw_extremes(folder, args):
    """Of 200 generated pictures those that resemble real images most and least: two rows of 8, with their scores.

    The score of a picture is its mean MS-SSIM with 50 random real images, the same for all: 1 for identical ones.
    """
    metrics = import_metrics()
    checkpoint, model, words = open_model(folder)
    real, real_words = real_images(args)
    seed = checkpoint["flags"]["seed"] + 2  # the latents of the metrics
    images = model.generate(checkpoint, GENERATED, seed)
    size = images.shape[-1]
    real, real_words = metrics.averaged_down(real, real_words, images)  # for a growing model at an early stage
    scores = metrics.mean_ms_ssim(images, real)
    order = scores.argsort(descending=True).tolist()
    rows = []
    for label, chosen in (("best", order[:EXTREMES]), ("worst", order[-EXTREMES:])):
        row = in_a_row(images[chosen], 128)
        page = Image.new("RGB", (row.width, row.height + 24), PAPER)
        page.paste(row, (0, 0))
        for column, index in enumerate(chosen):
            place = round(column * (size + 2) * row.height / size) + 2, row.height + 11
            write_text(page, place, f"{scores[index]:.3f}", 14)
        rows.append((label, page))
    protocol = f"mean MS-SSIM of each of {GENERATED} generated images with {real_words}\n{words}, latent seed {seed}"
    return png(labelled_rows(rows, protocol))


# ------------------------------------------------------------------------------------------ denoising.png, guidance.png


def draw_denoising(folder, device):
    """From noise to picture, a row for each of the first classes; the times above the frames."""
    checkpoint, model, words = open_model(folder)
    classes, frames = checkpoint["data"]["classes"], 10
    images, times = model.denoising(checkpoint, min(len(classes), 8), frames, device=device)
    rows = [(name, in_a_row(row)) for name, row in zip(classes, images.split(frames), strict=False)]
    caption = f"t = {', '.join(map(str, times))}; sampler {checkpoint['flags']['sampler']}\n{words}"
    return png(labelled_rows(rows, caption))


def draw_guidance(folder, device):
    """The same noises and classes with the class weighed more and more, one row for each strength."""
    checkpoint, model, words = open_model(folder)
    strengths, columns = (0.0, 1.0, 2.0, 4.0, 8.0), 10
    if len(checkpoint["data"]["classes"]) == 1 or checkpoint["flags"]["drop_label"] == 0:
        raise InputError("the network was not trained both with and without the class")
    images = model.guided(checkpoint, strengths, columns, device=device)
    pairs = zip(strengths, images.split(columns), strict=True)
    return png(labelled_rows([(f"guidance {strength:g}", in_a_row(row)) for strength, row in pairs], words))


# ------------------------------------------------------------------------------------------------------------- grid.png


def draw_grid(folder, count, device):
    checkpoint, model, words = open_model(folder)
    seed = checkpoint["flags"]["seed"] + 2  # the latents of the metrics
    images = model.generate(checkpoint, count, seed, device)
    picture = rescale(datasets.grid(images), row_scale(images.shape[-1]))
    page = Image.new("RGB", (picture.width, picture.height + 28), PAPER)
    page.paste(picture, (0, 0))
    write_text(page, (4, page.height - 14), f"{words}, latent seed {seed}", 13, FAINT, page.width - 8)
    return png(page)


# ------------------------------------------------------------------------------------------- comparison.md and its page


def figures(folder):
    """What is known of a run: {what: (in words, the same of real images or "", its protocol or "")}, in order."""
    args, log, checkpoint = read_run(folder), read_log(folder), datasets.read_checkpoint(folder)
    metrics, about = import_metrics(), args["data"]
    trained = {  # Adam keeps an average of every weight that it trains
        name: sum(state["exp_avg"].numel() for state in optimiser["state"].values())
        for name, optimiser in checkpoint["optimisers"].items()
    }
    facts = {
        "model": args["script"] + f" --preset {args['preset']}" * bool(args["preset"]),
        "data": f"{about['name']}, {about['count']:,} images",
        "picture": "x".join(str(about[key]) for key in ("channels", "size", "size")),
        "trained parameters": " + ".join(f"{count:,} ({name})" for name, count in trained.items()),
        "steps x batch": f"{checkpoint['step']:,} x {args['flags']['batch']}",
        "minutes of training": f"{checkpoint['seconds'] / 60:.1f} ({args['device']}, {args['precision']})",
        "images a second": f"{np.nanmedian(log['img_per_s']):,.0f}",
    }
    found = {name: (text, "", "") for name, text in facts.items()}
    best = checkpoint["best"]
    words = f"the lowest of those measured while it trained, every {args['flags']['eval_every']} steps"
    for name in log:  # the lowest FID of pictures of the size that they had at last, which best.pt has
        if name.startswith("fid_") and len(rows := (log[name] == best).nonzero()[0]):
            step = int(log["step"][rows[0]])
            found[f"best {metrics.named('FID', int(name[4:]))} (step)"] = f"{best:.2f} ({step:,})", "", words
    try:
        last = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return found
    if last.get("step", checkpoint["step"]) != checkpoint["step"]:  # trained further, and not measured again
        found["step of the figures below"] = f"{last['step']:,}", "", "the run has been prolonged since"
    for v in last["values"]:
        theirs = f" (report: {last['report'][v['name']]:,})" if v["name"] in last["report"] else ""
        if v["value"] is None:
            found[metrics.title(v)] = f"not measured{theirs}", "", v["reason"]
        else:
            real = metrics.shown(v, "real") if v.get("real") is not None else ""
            found[metrics.title(v)] = metrics.shown(v) + theirs, real, v["protocol"]
    changed = f"; this run is not quite that preset: {last['changed']}" if last.get("changed") else ""
    found["the report"] = "", "", last["report"]["protocol"] + changed
    return found


def compare(folders):
    """Several runs as (Markdown, a page of HTML that needs no other file)."""
    names = [folder.name for folder in folders]
    names = names if len({*names}) == len(names) else [str(folder) for folder in folders]
    runs = dict(zip(names, map(figures, folders), strict=True))
    rows, notes = [["", *names, "real images"]], []
    for what in dict.fromkeys(what for found in runs.values() for what in found):
        here = {name: found[what] for name, found in runs.items() if what in found}
        protocols = {}
        for name, (_, _, protocol) in here.items():
            protocols.setdefault(protocol, []).append(name)
        for words, of in protocols.items():
            which = f" of {', '.join(of)}" if len(of) < len(names) else ""
            notes += [f"{what}{which}: {words}"] if words else []
        if any(text for text, _, _ in here.values()):
            real = " / ".join(dict.fromkeys(real for _, real, _ in here.values() if real))
            rows.append([what, *(here.get(name, ("-",))[0] for name in names), real])
    lines = ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows]
    markdown = "\n".join([lines[0], "|" + "---|" * len(rows[0]), *lines[1:], "", *(f"- {note}" for note in notes), ""])

    head, *body = (
        "<tr>" + "".join(f"<{tag}>{html.escape(cell)}</{tag}>" for cell in row) + "</tr>"
        for tag, row in zip(["th"] + ["td"] * len(rows), rows, strict=False)
    )
    pictures = []
    for name, folder in zip(names, folders, strict=True):
        pictures.append(f"<h2>{html.escape(name)}</h2>")
        last = [path for _, path in read_samples(folder)[-1:]] if (folder / "samples").exists() else []
        for path in [*last, *(folder / f"{kind}.png" for kind in ("strip", "interpolation", "classes", "losses"))]:
            if path.exists():
                data = base64.b64encode(path.read_bytes()).decode("ascii")
                pictures.append(f'<p>{path.name}<br><img alt="" src="data:image/png;base64,{data}"></p>')
    style = "body{font:15px sans-serif;margin:2em}td,th{padding:.2em .8em;text-align:left;border-bottom:1px solid #ccc}"
    page = [
        "<!doctype html><meta charset='utf-8'><title>comparison</title>",
        f"<style>{style}img{{max-width:100%}}li{{color:#555}}</style>",
        "<table>", head, *body, "</table>", "<ul>", *(f"<li>{html.escape(note)}" for note in notes), "</ul>", *pictures,
    ]  # fmt: skip
    return markdown, "\n".join(page) + "\n"


# ---------------------------------------------------------------------------------------------------------- all of them


def png(picture):
    file = io.BytesIO()
    picture.save(file, format="PNG", optimize=True)
    return file.getvalue()


def report(run_dir, epochs=None, extremes=False, grid=None, device="cpu"):
    """Write every picture that can be made into the run directory; return the list of paths written.

    epochs: rows of strip.png. extremes: also extremes.png, for which the data are needed. grid: pictures in grid.png.
    device: where models make pictures. A picture that cannot be made costs one line on stderr. InputError if run_dir is
    no run.
    """
    folder, written = Path(run_dir), []
    args = read_run(folder)
    pictures = {
        "losses.png": lambda: draw_losses(folder, args),
        "weights.png": lambda: draw_weights(folder, args),
        "progress.gif": lambda: draw_progress(folder, args),
        "reconstructions.gif": lambda: draw_progress(folder, args, "reconstructions"),
        "strip.png": lambda: draw_strip(folder, args, epochs),
        "interpolation.png": lambda: draw_interpolation(folder, device),
    }
    if not (folder / "reconstructions").exists():  # a run of a GAN
        del pictures["reconstructions.gif"]
    if args.get("script") == "cvae":
        pictures["classes.png"] = lambda: draw_classes(folder, device)
    if args.get("script") == "ddpm":
        pictures["denoising.png"] = lambda: draw_denoising(folder, device)
        pictures["guidance.png"] = lambda: draw_guidance(folder, device)
    if extremes:
        pictures["extremes.png"] = lambda: draw_extremes(folder, args)
    if grid:
        pictures["grid.png"] = lambda: draw_grid(folder, grid, device)
    for name, draw in pictures.items():
        try:
            data = draw()  # a whole file in memory, so that none is ever half-written
        except InputError as problem:
            print(f"{folder}: no {name}: {problem}", file=sys.stderr)
            continue
        datasets.write_atomic(folder / name, lambda temporary, data=data: Path(temporary).write_bytes(data))
        written.append(folder / name)
    return written


def main(args):
    for run in args.runs:
        read_run(run)  # a wrong name among several is told before any work is done
    for run in args.runs:
        for path in report(run, args.epochs, args.extremes, args.grid):
            print(f"wrote {path}")
    if len(args.runs) > 1:
        path = Path(args.runs[0]).resolve().parent / "comparison"
        try:
            texts = compare([Path(run) for run in args.runs])
        except InputError as problem:
            raise InputError(f"no comparison of these runs: {problem}") from None
        for kind, text in zip(("md", "html"), texts, strict=True):
            datasets.write_text(f"{path}.{kind}", text)
            print(f"wrote {os.path.relpath(path)}.{kind}")


if __name__ == "__main__":
    datasets.run_program("report.py", main, ARGS)
