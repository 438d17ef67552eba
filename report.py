"""Pictures of a training run, made from nothing but its run directory.

    python report.py runs/dcgan-shapes-1
    python report.py runs/dcgan-cats-1 runs/dcgan-cats-2 --epochs 10 30 50

writes into each run directory

    losses.png         every loss against the step, and the metrics that were measured on the way
    progress.gif       the fixed-latent samples from the first to the last; reconstructions.gif of autoencoders
    strip.png          the first 8 of these samples at a few epochs, one row each
    interpolation.png  walks between random latents, on a sphere and on a straight line, by the best checkpoint; of
                       autoencoders, on the straight line between the latents of two real images
    classes.png        of cvae.py: real images, and their latents decoded as every class

A picture that cannot be made (no samples yet, no matplotlib) costs one line; the others are made all the same.
The model scripts call `report(run_directory)` at the end of a run.
"""

import argparse
import csv
import importlib
import io
import json
import math
import sys
from pathlib import Path


def epoch_number(text):
    value = float(text)
    if not 0 <= value < math.inf:
        raise ValueError
    return value


def parse_args(argv=None):
    parser = argparse.ArgumentParser(prog="report.py", description="Pictures of training runs.", allow_abbrev=False)
    parser.error = lambda message: parser.exit(2, f"report.py: error: {message} (see --help)\n")  # one line
    parser.add_argument("runs", nargs="+", metavar="RUN", help="a run directory, such as runs/dcgan-shapes-1")
    parser.add_argument("--epochs", nargs="+", type=epoch_number, metavar="E", help="rows of strip.png (default: 5)")
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


# ----------------------------------------------------------------------------------------------------------- losses.png


def running_mean(values, window):
    """Mean over `window` neighbours on both sides together; near the ends over those that exist."""
    ones = np.ones(min(window, len(values)))
    return np.convolve(values, ones, "same") / np.convolve(np.ones(len(values)), ones, "same")


def draw_losses(folder, args):
    """One panel for each kind of loss and of metric: `loss_d_real` and `loss_d_fake` share one, `loss_g` has its own.

    A generator's loss is often ten times the discriminator's: on a common axis the latter would be a flat line.
    """
    log = read_log(folder)
    try:
        from matplotlib.figure import Figure  # without pyplot: no window, no global state
    except ImportError:
        raise InputError("matplotlib is not installed; pip install matplotlib") from None

    panels = {}
    for name in log:
        if name not in ("step", "epoch", "seconds", "img_per_s") and np.isfinite(log[name]).any():
            is_loss, kind = name.startswith("loss_"), name.removeprefix("loss_").split("_")[0]
            panels.setdefault((not is_loss, kind), []).append(name)
    panels = [panels[key] for key in sorted(panels, key=lambda key: key[0])]  # losses above metrics
    if not panels:
        raise InputError("log.csv holds no finite loss")

    figure = Figure(figsize=(9, 1 + 2.3 * len(panels)), dpi=110, layout="constrained")
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
        axis.legend(loc="upper right", frameon=True, framealpha=0.85, edgecolor="none", fontsize=9)
    axes[-1].set_xlabel("step")
    per_epoch = args["steps_per_epoch"]
    epochs = axes[0].secondary_xaxis("top", functions=(lambda step: step / per_epoch, lambda epoch: epoch * per_epoch))
    epochs.set_xlabel("epoch")
    figure.suptitle(folder.resolve().name, fontsize=11, color=INK)
    file = io.BytesIO()
    figure.savefig(file, format="png")
    return file.getvalue()


# --------------------------------------------------------------------------------------------------------- progress.gif


def write_text(picture, place, text, size=16, color=INK):
    """Text at `place` = (x, y), with its middle at the height y."""
    ImageDraw.Draw(picture).text(place, text, fill=color, font=ImageFont.load_default(size), anchor="lm")


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
    """A picture of rows [(label, picture), ...] with the labels at the left and a caption below.

    Pictures are of equal size. A label that is None stands for a gap between groups of rows.
    """
    font, gap = ImageFont.load_default(16), 6
    left = 24 + math.ceil(max(font.getlength(label) for label, _ in rows if label))
    height, width = rows[0][1].height, rows[0][1].width
    total = sum(height + gap if label else 2 * gap for label, _ in rows) + gap
    page = Image.new("RGB", (left + width + gap, total + (26 if caption else 0)), PAPER)
    top = gap
    for label, picture in rows:
        if label:
            write_text(page, (12, top + height // 2), label)
            page.paste(picture, (left, top))
        top += height + gap if label else 2 * gap
    if caption:
        write_text(page, (left, total + 10), caption, 13, FAINT)
    return page


def row_scale(size):
    """Small images are enlarged to about 64 pixels, large ones shrunk to 128."""
    return 128 / size if size > 128 else max(1, 64 // size)


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
    rows = []
    for step, path in sorted(nearest):
        row = rescale(first_images(open_picture(path), size, 8, args["script"] == "cvae"), row_scale(size))
        rows.append((f"epoch {epoch_text(step, args)}", row))
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


def draw_interpolation(folder, args):
    """Three pairs of latents; between each, ten frames along the sphere and ten along the straight line.

    A straight line between two Gaussian vectors passes nearer to the origin than any likely latent; the sphere keeps
    the length. That is why the two rows of a pair agree at the ends and may differ in the middle.
    """
    checkpoint, model, words = open_model(folder)
    pairs, frames = 3, 10
    kinds = ("spherical", "linear") if "interpolation" in model.FLAGS else ("linear",)
    walks = {kind: model.interpolate(checkpoint, pairs, frames, kind=kind) for kind in kinds}
    rows = []
    for pair in range(pairs):
        rows += [(None, None)] if pair else []
        for kind, images in walks.items():
            row = datasets.grid(images[pair * frames : (pair + 1) * frames], columns=frames).convert("RGB")
            rows.append((kind, rescale(row, row_scale(images.shape[-1]))))
    return png(labelled_rows(rows, words))


def draw_classes(folder, args):
    """Real images, what comes back from their latents, and the same latents decoded as every class."""
    checkpoint, model, words = open_model(folder)
    images, columns = model.as_every_class(checkpoint)
    picture = datasets.grid(images, columns)
    picture = rescale(picture, row_scale(images.shape[-1]))
    step, page = picture.width / columns, Image.new("RGB", (picture.width, picture.height + 54), PAPER)
    page.paste(picture, (0, 28))
    for column, text in enumerate(["real", "back", *checkpoint["data"]["classes"]][:columns]):
        write_text(page, (round(column * step) + 4, 14), text, 14)
    write_text(page, (4, page.height - 14), words, 13, FAINT)
    return png(page)


# ---------------------------------------------------------------------------------------------------------- all of them


def png(picture):
    file = io.BytesIO()
    picture.save(file, format="PNG", optimize=True)
    return file.getvalue()


def report(run_dir, epochs=None):
    """Write every picture that can be made into the run directory; return the list of paths written.

    epochs: rows of strip.png. A picture that cannot be made costs one line on stderr. InputError if run_dir is no run.
    """
    folder, written = Path(run_dir), []
    args = read_run(folder)
    pictures = {
        "losses.png": lambda: draw_losses(folder, args),
        "progress.gif": lambda: draw_progress(folder, args),
        "reconstructions.gif": lambda: draw_progress(folder, args, "reconstructions"),
        "strip.png": lambda: draw_strip(folder, args, epochs),
        "interpolation.png": lambda: draw_interpolation(folder, args),
    }
    if not (folder / "reconstructions").exists():  # a run of a GAN
        del pictures["reconstructions.gif"]
    if args.get("script") == "cvae":
        pictures["classes.png"] = lambda: draw_classes(folder, args)
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
        for path in report(run, args.epochs):
            print(f"wrote {path}")


if __name__ == "__main__":
    datasets.run_program("report.py", main, ARGS)
