# /// script
# requires-python = ">=3.10"
# dependencies = ["torch>=2.6", "torchvision", "numpy", "scipy", "pillow", "tqdm", "matplotlib"]
# ///
"""report.py: draw the plots, pictures and web page of training runs.

    python report.py runs/dcgan-shapes-1
    python report.py runs/dcgan-cats-1 runs/dcgan-cats-2 --epochs 10 30 50
    python report.py runs/dcgan-cats-1 --extremes
    python report.py runs/wgan_gp-1 runs/wgan_gp-2 runs/wgan_gp-3

It writes into each run directory

    losses.png         every loss over the steps, and the metrics that were measured, with a ring
                       at the lowest FID
    weights.png        how the weights of each layer are distributed, at up to 8 steps
    progress.gif       the samples from first to last; reconstructions.gif of autoencoders
    strip.png          the first 8 samples at a few epochs, one row each
    interpolation.png  walks by the best checkpoint, of each kind that the model knows
    classes.png        generated images of each class; of cvae.py real images and their latents
                       decoded as every class
    denoising.png      from noise to image; guidance.png: more and more guidance (ddpm.py)
    extremes.png       with --extremes: the generated images most and least like real ones, by the
                       best checkpoint and by up to six of those that --keep-every kept
    grid.png           with --grid N: N generated images by the best checkpoint
    report.html        a page with all of this, and with what was measured; it needs no other file

and, for several runs, next to the first of them

    comparison.md      a table of what the runs are, how long they took and all that was measured,
                       also by metrics.py, with the numbers of the report and every protocol
    comparison-X.png   the curves of all runs, over steps and over minutes of training. X is losses,
                       fid, kid, ms-ssim or ssim
    comparison.html    a page with the samples of all runs side by side, their curves in the same
                       plots, and the table

If a picture cannot be made (no samples yet, no matplotlib), one line says why, and the others are
still made. The scripts call `report(run_directory)` at the end of a run.
"""

import signal

if __name__ == "__main__":  # Ctrl-C during the imports is silent; run_program takes over later
    signal.signal(signal.SIGINT, signal.SIG_DFL)

import contextlib
import functools
import io
import json
import math
import os
import re
import sys
import warnings
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm import tqdm

import datasets
import training
from sample import labelled_rows, write_words
from sources import (
    InputError,
    check_output,
    markdown,
    new_parser,
    number,
    parse_log,
    printable,
    remove_half_written,
    run_program,
    short,
    write_bytes,
    write_text,
)

INK = "#222222"
FAINT = "#777777"
PAPER = "#ffffff"
# Whatever the kind of color blindness, these differ by 30 or more in CIELAB.
LINES = ("#0050b0", "#e07b00", "#2aa876", "#222222")
TIMES = (("step", 1, "step"), ("seconds", 60, "minutes of training"))  # column, unit, title
STYLES = (("-", "o"), ("--", "s"), (":", "^"), ("-.", "D"))  # one for each four runs
RING = {"marker": "o", "markersize": 11, "fillstyle": "none", "color": "#c4003c", "linestyle": ""}
OVERLAYS = ("fid", "kid", "ms-ssim", "ssim")  # columns of log.csv with a figure of their own
NAMES = {"ms-ssim": "MS-SSIM", "ms-ssim-3": "MS-SSIM, 3 scales", "ssim": "SSIM"}
BEST = ("best.pt", "last.pt")  # the best checkpoint is the first of these that is there
CLASS_ROWS = 16  # of classes.png, at most
SAMPLES = 8  # images in each of them
GIF_FRAMES = 60  # at most
GIF_SIDE = 640  # pixels
GIF_BYTES = 8_000_000
EXTREMES = 8  # images in a row of extremes.png
GENERATED = 200  # images that are scored for it
REAL = 50  # images with which each of them is compared
STAGES = 6  # checkpoints of kept/ in it, at most


# ------------------------------------------------------------------------------------ reading a run


def read_run(folder):
    """args.json of a run directory as a dict. InputError if the folder is not a run."""
    path = Path(folder) / "args.json"
    if not path.is_file():
        raise InputError(f"'{folder}' is not a run directory: it holds no args.json")
    advice = "give another run directory"
    args = read_json(path, advice)
    about = args.get("data", {})
    kinds = [(args.get("flags", {}), dict), (about, dict), (args.get("script", ""), str)]
    if all(isinstance(value, kind) for value, kind in kinds):
        names = about.get("classes", [])
        named = isinstance(names, list) and all(isinstance(name, str) for name in names)
        numbers = ((args.get("steps_per_epoch"), (int, float)), (about.get("size"), int))
        if named and all(isinstance(n, kind) and 1e-6 < n < 2**31 for n, kind in numbers):
            return args
    raise InputError(f"'{path}' is damaged: {advice}")


def read_json(path, advice):
    """A JSON file that holds an object, as a dict. InputError with this advice if it is damaged."""
    try:
        result = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError):  # no JSON, not UTF-8, or nested without end
        result = None
    if not isinstance(result, dict):
        raise InputError(f"'{path}' is damaged: {advice}")
    return result


def reason(problem):
    """In one line, why a picture cannot be made."""
    if isinstance(problem, (InputError, OSError)):
        return str(problem)
    return f"the files of the run do not fit together ({type(problem).__name__}: {short(problem)})"


def read_columns(folder):
    """log.csv as {column: float64 array}. A cell is NaN where nothing was measured.

    Columns in which nothing was ever measured are left out.
    """
    rows = read_rows(folder / "log.csv")
    log = {name: np.array([float(row[name] or "nan") for row in rows]) for name in rows[0]}
    return {name: values for name, values in log.items() if np.isfinite(values).any()}


def read_rows(path):
    """The rows of log.csv or weights.csv, dicts of strings, at least one. Damaged ones are left
    out, and one line says so."""
    rows, damaged = parse_log(path)
    if not rows:
        problem = "has no rows yet; train for longer"
        if damaged:
            advice = "put a copy back, or train on: --resume begins a new one"
            problem = f"is damaged: none of its rows is whole; {advice}"
        raise InputError(f"{path.name} {problem}")
    if damaged:
        print(f"{printable(path)}: {damaged} damaged rows are left out", file=sys.stderr)
    return rows


def read_weights(folder):
    """weights.csv as {(network, layer): {step: (low, high, counts)}}.

    counts: float64 (50,), the number of weights in equal bins from low to high.
    """
    layers = {}
    try:
        for row in read_rows(folder / "weights.csv"):
            counts = np.array(row["counts"].split(), dtype=float)
            if len(counts) == 50:
                histogram = (float(row["low"]), float(row["high"]), counts)
                steps = layers.setdefault((row["network"], row["layer"]), {})
                steps[int(row["step"])] = histogram
    except (ValueError, KeyError) as error:
        raise InputError(f"weights.csv is damaged ({error}); put a copy back") from None
    if not layers:
        problem = "is damaged: none of its rows has 50 counts"
        raise InputError(f"weights.csv {problem}; put a copy back")
    return layers


def read_samples(folder, kind="samples"):
    """[(step, path)] of samples/*.png in the order of their steps."""
    paths = [path for path in folder.glob(f"{kind}/*.png") if path.stem.isdecimal()]
    samples = sorted((int(path.stem), path) for path in paths if path.is_file())
    if not samples:
        raise InputError(f"no pictures in {kind}/ yet; train for longer or lower --sample-every")
    return samples


def open_picture(path):
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path) as picture:
                return picture.convert("RGB")
    except Exception:  # Pillow has many ways to say so
        raise InputError(f"{path} is damaged or far too large; remove it") from None


# -------------------------------------------------------------------------- losses.png, weights.png


def new_figure(width, height, title):
    """An empty matplotlib figure of width x height inches."""
    try:
        from matplotlib.figure import Figure  # without pyplot: no window, no global state
    except ImportError:
        raise InputError("matplotlib is not installed; pip install matplotlib") from None
    figure = Figure(figsize=(width, height), dpi=110, layout="constrained")
    figure.suptitle(printable(title), fontsize=11, color=INK, parse_math=False)
    return figure


def figure_png(figure):
    """A matplotlib figure as the bytes of a PNG file."""
    file = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the font lacks a letter of somebody's name
        figure.savefig(file, format="png")
    return file.getvalue()


def running_mean(values, window):
    """Mean over `window` neighbours on both sides together; near the ends over those that exist."""
    ones = np.ones(min(window, len(values)))
    return np.convolve(values, ones, "same") / np.convolve(np.ones(len(values)), ones, "same")


def loss_panels(log):
    """Columns of log.csv -> lists of those that share a panel, losses first.

    `loss_d_real` and `loss_d_fake` share one, and `loss_g` has its own: a generator's loss is often
    ten times the discriminator's, which would be a flat line on the same axis. So have FIDs of
    different features, whose scales differ too.
    """
    panels = {}
    for name in log:
        if name not in ("step", "epoch", "seconds", "img_per_s"):
            kind = name if figure_of(name) else name.removeprefix("loss_").split("_")[0]
            is_metric = not name.startswith("loss_")
            panels.setdefault((is_metric, kind), []).append(name)
    return [panels[key] for key in sorted(panels, key=lambda key: key[0])]


def figure_of(column):
    """Which of OVERLAYS shows a column of log.csv, or ""."""
    kind = column.split("_")[0].removesuffix("-3")
    return kind if kind in OVERLAYS else ""


def column_title(name):
    """What a column of log.csv holds, as in the tables: "fid_768" is FID-768, "fid_2048" FID."""
    kind, _, features = name.partition("_")
    if kind in ("fid", "kid"):
        title = kind.upper() if features in ("", "2048") else f"{kind.upper()}-{features}"
        return f"{title} x 10^3" if kind == "kid" else title
    return NAMES.get(name, printable(name).removeprefix("loss_").replace("_", " "))


def column_values(log, name):
    """A column of the log in the unit of its title."""
    return 1e3 * log[name] if name.startswith("kid") else log[name]


def smoothed(values):
    """A long column as (its running mean, over how many log rows); a short one as (itself, 1)."""
    if len(values) <= 40:
        return values, 1
    window = max(5, len(values) // 40)
    return running_mean(values, window), window


def draw_curve(axis, x, values, label, color, style="-", marker="o"):
    """Draw one column of the log; returns what must lie inside the panel.

    A long curve is drawn as its running mean over a pale line of all its values.
    """
    look = {"color": color, "linestyle": style}
    mean, window = smoothed(values)
    if window == 1:
        axis.plot(x, values, label=label, linewidth=1.4, marker=marker, markersize=3.5, **look)
        return values
    axis.plot(x, values, color=color, alpha=0.25, linewidth=0.8)
    axis.plot(x, mean, label=f"{label} (mean of {window} log rows)", linewidth=1.8, **look)
    return np.concatenate([mean, np.percentile(values, [0.5, 99.5])])  # not a lone spike


def draw_panel(axis, curves, inside=()):
    """Draw columns of logs: curves is [(label, x, values, color, ...)], see draw_curve.

    inside: more values that the panel must hold.
    """
    for label, x, values, *look in curves:
        finite = np.isfinite(x) & np.isfinite(values)
        held = draw_curve(axis, x[finite], values[finite], label, *look)
        inside = np.concatenate([inside, held])
    if len(inside):
        low = inside.min()
        high = inside.max()
        margin = 0.06 * (high - low) or 0.06 * abs(high) or 1
        axis.set_ylim(low - margin, high + margin)
    axis.grid(color="#dddddd", linewidth=0.6)
    axis.spines[["top", "right"]].set_visible(False)


def best_row(folder, log):
    """Where log.csv has the FID of best.pt: (column, row), or None if no FID was measured.

    Of several FIDs, that of most features counts. Without best.pt it is the lowest one.
    """
    names = [name for name in log if re.fullmatch(r"fid_\d+", name)]
    names.sort(key=lambda name: int(name.removeprefix("fid_")), reverse=True)
    if names and (folder / "best.pt").is_file():
        with contextlib.suppress(InputError):  # a damaged one
            step = training.read_checkpoint(folder / "best.pt")["step"]
            for name in names:
                rows = np.isfinite(log[name]) & (log["step"] == step)
                if rows.any():
                    return name, rows.argmax()
    return (names[0], np.nanargmin(log[names[0]])) if names else None


def draw_losses(folder, args):
    """losses.png: a panel for each kind of loss and of metric, see loss_panels."""
    log = read_columns(folder)
    panels = loss_panels(log)
    if not panels:
        raise InputError("log.csv holds no finite loss")
    best = best_row(folder, log)
    figure = new_figure(9, 1 + 2.3 * len(panels), folder.resolve().name)
    axes = figure.subplots(len(panels), 1, sharex=True, squeeze=False)[:, 0]
    for axis, names in zip(axes, panels, strict=True):
        curves = []
        fid = []  # the lowest, where it is in this panel
        for index, name in enumerate(names):
            color = LINES[index % len(LINES)]
            curves.append((column_title(name), log["step"], column_values(log, name), color))
            if best and best[0] == name:
                step = log["step"][best[1]]
                fid = [log[name][best[1]]]
                axis.plot([step], fid, label=f"best: step {step:,.0f}, {fid[0]:.2f}", **RING)
        draw_panel(axis, curves, fid)
        kind = "loss" if names[0].startswith("loss_") else ", ".join(map(column_title, names))
        axis.set_ylabel(kind, parse_math=False)
        axis.legend(loc="best", frameon=True, framealpha=0.85, edgecolor="none", fontsize=9)
    axes[-1].set_xlabel("step")
    per_epoch = args["steps_per_epoch"]
    both_ways = (lambda step: step / per_epoch, lambda epoch: epoch * per_epoch)
    axes[0].secondary_xaxis("top", functions=both_ways).set_xlabel("epoch")
    return figure_png(figure)


def draw_histogram(axis, low, high, counts, color):
    """One histogram as a density. Returns the line, or None if all weights are equal."""
    if low >= high:
        return None
    if counts.sum() < 5000:  # few weights: with narrow bins one sees nothing but noise
        counts = counts.reshape(25, 2).sum(1)
    width = (high - low) / len(counts)
    middle = low + width * (np.arange(len(counts)) + 0.5)
    density = np.where(counts > 0, counts, np.nan) / (counts.sum() * width)  # no line at empty bins
    # with dots, a bin between two empty ones can be seen
    line = axis.plot(middle, density, color=color, linewidth=1.1, marker=".", markersize=2)
    return line[0]


def weights_axis(figure, place, title):
    axis = figure.add_subplot(place)
    axis.set_yscale("log")
    axis.set_axisbelow(True)
    axis.set_title(printable(title), fontsize=9, color=INK, parse_math=False)
    axis.tick_params(labelsize=7, colors=FAINT)
    axis.grid(color="#e5e5e5", linewidth=0.5)
    axis.spines[["top", "right"]].set_visible(False)
    return axis


def draw_weights(folder, args):
    """weights.png: histograms of the weights of each layer at up to eight steps, darker later.

    They are densities on a logarithmic axis: a few weights far out are as easy to see as the many
    near 0, and a normal distribution is a parabola. Each network begins a new row.
    """
    layers = read_weights(folder)
    steps = sorted({step for histograms in layers.values() for step in histograms})
    chosen = [steps[index] for index in spread(len(steps), 8)]
    networks = {}
    for network, layer in layers:
        networks.setdefault(network, []).append(layer)
    longest = max(map(len, networks.values()))
    columns = math.ceil(longest / math.ceil(longest / 6))  # at most 6, in rows of similar length
    rows = sum(math.ceil(len(names) / columns) for names in networks.values())
    title = f"{folder.resolve().name}: weights of every layer"
    figure = new_figure(max(6, 1 + 2.4 * columns), 1 + 2 * rows, title)
    from matplotlib import colormaps

    shades = colormaps["YlGnBu"](np.linspace(0.3, 1, len(chosen)))
    grid = figure.add_gridspec(rows, columns)
    row = 0
    lines = {}
    for network, names in networks.items():
        for index, name in enumerate(names):
            short_name = name.split(".parametrizations")[0].removesuffix(".weight")
            place = grid[row + index // columns, index % columns]
            axis = weights_axis(figure, place, f"{network} {short_name}")
            for step, color in zip(chosen, shades, strict=True):
                low, high, counts = layers[network, name].get(step, (0, 0, None))
                line = draw_histogram(axis, low, high, counts, color)
                lines[step] = line or lines.get(step)
            bottom, top = axis.get_ylim()
            # two powers of ten at least: otherwise noise fills the panel of a flat layer
            axis.set_ylim(min(bottom, top / 100), top)
            axis.yaxis.set_minor_formatter("")
            axis.locator_params(axis="x", nbins=5)
        row += math.ceil(len(names) / columns)
    figure.supxlabel("weight", fontsize=9, color=INK)
    figure.supylabel("density", fontsize=9, color=INK)
    drawn = {step: line for step, line in sorted(lines.items()) if line is not None}
    labels = [f"step {step:,}" for step in drawn]
    place = {"loc": "outside right upper", "frameon": False, "fontsize": 9}
    figure.legend(list(drawn.values()), labels, **place)
    return figure_png(figure)


# ------------------------------------------------------------------------------------- progress.gif


def rescale(picture, factor):
    """Enlarge by repeating pixels, which shows what the model made; shrink with antialiasing."""
    method = Image.Resampling.NEAREST if factor >= 1 else Image.Resampling.LANCZOS
    return picture.resize((round(picture.width * factor), round(picture.height * factor)), method)


def spread(count, limit):
    """At most `limit` of the indices 0 .. count - 1, evenly spread, with the first and the last."""
    return np.unique(np.linspace(0, count - 1, min(count, limit)).round().astype(int))


def film_frame(step, path, args):
    """One picture of samples/ with its epoch and step above, in a palette of 256 colors."""
    picture = open_picture(path)
    longest = max(picture.size)
    factor = GIF_SIDE / longest if longest > GIF_SIDE else max(1, 400 // longest)
    picture = rescale(picture, factor)
    page = Image.new("RGB", (picture.width, picture.height + 28), PAPER)
    page.paste(picture, (0, 28))
    write_words(page, (6, 14), f"epoch {epoch_text(step, args)}   step {step:,}")
    # A palette for each frame, by octree: median cut loses rare colors and takes 20 times as long.
    palette = page.quantize(256, method=Image.Quantize.FASTOCTREE)
    return page.quantize(palette=palette, dither=Image.Dither.FLOYDSTEINBERG)


def draw_progress(folder, args, kind="samples"):
    """progress.gif: a film of about 8 seconds, with fewer frames where it would be too large."""
    samples = read_samples(folder, kind)
    frames = {}
    limit = GIF_FRAMES
    while True:
        chosen = [samples[index] for index in spread(len(samples), limit)]
        for step, path in chosen:
            if step not in frames:
                frames[step] = film_frame(step, path, args)
        first, *others = [frames[step] for step, _ in chosen]
        each = min(600, max(100, 8000 // len(chosen)))  # milliseconds
        film = {"append_images": others, "duration": [each] * len(others) + [2000], "loop": 0}
        file = io.BytesIO()
        first.save(file, format="GIF", save_all=True, **film)
        if file.tell() <= GIF_BYTES or limit <= 10:
            return file.getvalue()
        limit = max(10, min(limit - 1, int(limit * 0.95 * GIF_BYTES / file.tell())))


# ---------------------------------------------------------------------------------------- strip.png


def epoch_text(step, args):
    return f"{step / args['steps_per_epoch']:.1f}".removesuffix(".0")


def row_scale(size, about=64):
    """The factor that enlarges small images to about that many pixels, and shrinks large ones."""
    return 128 / size if size > 128 else max(1, about // size)


def in_a_row(images, about=64):
    """uint8 (N, C, H, W) -> one RGB picture with all of them in a row, scaled by row_scale."""
    row = datasets.grid(images, len(images)).convert("RGB")
    return rescale(row, row_scale(images.shape[-1], about))


def first_images(picture, size, count, by_column=False):
    """The first `count` images of a sample grid, whose gaps are 2 pixels wide, in one row.

    by_column: take them down the columns, because each row is a class.
    """
    pitch = size + 2
    columns = (picture.width + 2) // pitch
    rows = (picture.height + 2) // pitch
    if (picture.width + 2) % pitch or not columns:
        words = f"a sample grid {picture.width} pixels wide does not hold images of {size} pixels"
        raise InputError(words)
    result = Image.new("RGB", (count * pitch - 2, size), PAPER)
    for index in range(min(count, rows * columns)):
        row, column = divmod(index, columns)
        if by_column:
            column, row = divmod(index, rows)
        x = column * pitch
        y = row * pitch
        result.paste(picture.crop((x, y, x + size, y + size)), (index * pitch, 0))
    return result


def draw_strip(folder, args, epochs=None):
    """strip.png: a row of 8 images for each of some epochs.

    Without `epochs` there are five rows, closer together at the start, where most happens.
    """
    samples = read_samples(folder)
    per_epoch = args["steps_per_epoch"]
    size = args["data"]["size"]
    last_step = samples[-1][0]
    last = last_step / per_epoch
    for epoch in epochs or ():
        if epoch > last + 0.5 / per_epoch:
            words = f"beyond the last samples (epoch {epoch_text(last_step, args)})"
            print(f"{folder}: epoch {epoch:g} is {words}")
    chosen = set()
    for epoch in epochs or [last * (part / 5) ** 2 for part in range(1, 6)]:
        distances = [abs(step / per_epoch - epoch) for step, _ in samples]
        chosen.add(samples[np.argmin(distances)])
    chosen = sorted(chosen)
    names = [f"epoch {epoch_text(step, args)}" for step, _ in chosen]
    if len(set(names)) < len(names):  # a run far shorter than an epoch
        names = [f"step {step}" for step, _ in chosen]
    rows = []
    for name, (_, path) in zip(names, chosen, strict=True):
        row = first_images(open_picture(path), size, 8, rows_are_classes(args))
        rows.append((name, rescale(row, row_scale(size))))
    return png(labelled_rows(rows))


# -------------------------------------------------------------------------------- interpolation.png


def open_model(folder, device="cpu", names=BEST):
    """The first checkpoint of these in a run: (checkpoint, its script, the model, in words)."""
    names = [name for name in names if (folder / name).exists()]
    if not names:
        raise InputError("no checkpoint (best.pt or last.pt) yet")
    checkpoint = training.read_checkpoint(folder / names[0])
    script, model = training.open_model(checkpoint, device)
    words = f"{checkpoint['script']}, {names[0]}: {training.weights_used(checkpoint)}"
    return checkpoint, script, model, words


def offers(args, name):
    """Whether the script of a run has a function of this name. False without the script."""
    try:
        return hasattr(training.load_script(args["script"]), name)
    except InputError:
        return False


def rows_are_classes(args):
    """Whether each row of a run's sample grids is a class: those of a conditional model."""
    return offers(args, "asked_labels") and len(args["data"]["classes"]) > 1


def draw_interpolation(folder, device):
    """interpolation.png: three walks of ten frames, each by every kind of walk the model knows.

    A straight line between two Gaussian vectors passes nearer to the origin than any likely latent;
    a walk on the sphere keeps the length. So the two rows agree at the ends and may differ between.
    """
    checkpoint, script, model, words = open_model(folder, device)
    pairs = 3
    frames = 10
    made = {}
    for kind in script.WALKS:
        if kind != "classes" or len(checkpoint["data"]["classes"]) > 1:
            made[kind] = script.walk(model, kind, pairs, frames)
    rows = []
    for pair in range(pairs):
        if pair:
            rows.append((None, None))
        for kind, images in made.items():
            rows.append((kind, in_a_row(images[pair * frames : (pair + 1) * frames])))
    return png(labelled_rows(rows, words))


def draw_classes(folder, device):
    """classes.png: real images, their reconstructions, and their latents decoded as each class."""
    checkpoint, script, model, words = open_model(folder, device)
    images, columns = script.as_every_class(model)
    picture = datasets.grid(images, columns)
    picture = rescale(picture, row_scale(images.shape[-1]))
    step = picture.width / columns
    page = Image.new("RGB", (picture.width, picture.height + 54), PAPER)
    page.paste(picture, (0, 28))
    titles = ["real", "back", *checkpoint["data"]["classes"]]
    for column, text in enumerate(titles[:columns]):
        write_words(page, (round(column * step) + 4, 14), text, 14, width=step - 6)
    write_words(page, (4, page.height - 14), words, 13, FAINT, page.width - 8)
    return png(page)


def draw_class_rows(folder, device):
    """classes.png of a model without an encoder: generated images of each class, with its name."""
    checkpoint, script, model, words = open_model(folder, device)
    classes = checkpoint["data"]["classes"]
    rows = []
    for label, name in enumerate(classes[:CLASS_ROWS]):
        images = script.generate(model, SAMPLES, label=label)
        rows.append((printable(name, 40), in_a_row(images)))
    if len(classes) > CLASS_ROWS:
        words += f"\nthe first {CLASS_ROWS} of {len(classes)} classes"
    return png(labelled_rows(rows, words))


# ------------------------------------------------------------------------------------- extremes.png


def real_images(args):
    """Up to REAL random images of the data of a run, uint8 (M, C, H, W), and what they are.

    They are held out, by the set's own split or by --hold-out, or else images of the training.
    """
    flags = args.get("flags", {})
    about = args["data"]
    if "data" not in flags:
        raise InputError("args.json does not name the data of the run")
    where = (flags["data"], about["size"])
    count = flags.get("hold_out", 0)
    fit = flags.get("fit", "crop")  # older runs have no such flag
    limit = flags.get("limit_per_class")
    if count or limit:
        real, _ = datasets.measured_on(*datasets.load_parts(*where, count, fit, limit))
    else:
        real = datasets.load(*where, "test", fit)
    if real.fingerprint != about.get("fingerprint"):
        words = "is not the data that this run was trained on (its fingerprint differs)"
        raise InputError(f"'{flags['data']}' {words}")
    chosen = datasets.shuffled(len(real.images), 0)[:REAL]
    words = "training images (nothing is held out)"
    if count or real.held_out:
        words = "held-out images"
    return real.images[chosen], f"{len(chosen)} random {words} of {real.name}"


def import_metrics():
    metrics = training.tool("metrics")
    if metrics is None:
        raise InputError("it needs metrics.py next to report.py")
    return metrics


def draw_extremes(folder, args):
    """extremes.png: of 200 generated images the 8 most and the 8 least like real ones.

    The score of an image is its mean MS-SSIM with 50 random real images. With kept/ there are two
    rows for each of up to six kept checkpoints, evenly spread, and for the best one. All have the
    same latents and real images.
    """
    metrics = import_metrics()
    real, real_words = real_images(args)
    kept = [path for path in folder.glob("kept/*.pt") if path.stem.isdecimal()]
    kept.sort(key=lambda path: int(path.stem))
    chosen = [[f"kept/{kept[index].name}"] for index in spread(len(kept), STAGES)]
    stages = {}  # step -> its two rows
    captions = {}  # lines, each of them once
    for names in tqdm([BEST, *chosen], "extremes", disable=None if kept else True, leave=False):
        checkpoint, script, model, words = open_model(folder, names=names)
        step = checkpoint["step"]
        seed = checkpoint["flags"]["seed"] + 2  # the latents of the metrics
        images = script.generate(model, GENERATED, seed)
        # in an early stage of a growing model the real images are larger
        smaller, against = metrics.averaged_down(real, real_words, images)
        scores = metrics.mean_ms_ssim(images, smaller)
        captions[f"mean MS-SSIM of each of {GENERATED} generated images with {against}"] = None
        if names is BEST:
            captions[f"{words}, latent seed {seed}"] = None
        label = f"step {step:,}, " if kept else ""
        stages[step] = best_and_worst(images, scores, args["data"]["size"], label)
    if kept:
        captions[f"{len(chosen)} of {len(kept)} checkpoints in kept/, the same latents"] = None
    rows = [row for step in sorted(stages) for row in (*stages[step], (None, None))]
    return png(labelled_rows(rows[:-1], "\n".join(captions)))


def best_and_worst(images, scores, size, prefix):
    """Two rows of labelled_rows(), with the scores below the images.

    images: uint8 (N, C, H, W). size: each pixel of smaller images is repeated up to this one.
    """
    order = scores.argsort(descending=True).tolist()
    repeats = max(1, size // images.shape[-1])
    rows = []
    for label, indices in (("best", order[:EXTREMES]), ("worst", order[-EXTREMES:])):
        larger = images[indices].repeat_interleave(repeats, 2).repeat_interleave(repeats, 3)
        row = in_a_row(larger, 128)
        page = Image.new("RGB", (row.width, row.height + 24), PAPER)
        page.paste(row, (0, 0))
        pitch = (size + 2) * row.height / size
        for column, index in enumerate(indices):
            place = (round(column * pitch) + 2, row.height + 11)
            write_words(page, place, f"{scores[index]:.3f}", 14)
        rows.append((f"{prefix}{label}", page))
    return rows


# ---------------------------------------------------------------------- denoising.png, guidance.png


def draw_denoising(folder, device):
    """denoising.png: from noise to image, a row for each of the first classes."""
    checkpoint, script, model, words = open_model(folder, device)
    classes = checkpoint["data"]["classes"]
    frames = 10
    images, times = script.denoising(model, min(len(classes), 8), frames)
    named = zip(classes, images.split(frames), strict=False)
    rows = [(name, in_a_row(row)) for name, row in named]
    sampler = checkpoint["flags"]["sampler"]
    caption = f"t = {', '.join(map(str, times))}; sampler {sampler}\n{words}"
    return png(labelled_rows(rows, caption))


def draw_guidance(folder, device):
    """guidance.png: the same noise and classes with stronger and stronger guidance."""
    checkpoint, script, model, words = open_model(folder, device)
    strengths = (0.0, 1.0, 2.0, 4.0, 8.0)
    columns = 10
    if len(checkpoint["data"]["classes"]) == 1 or checkpoint["flags"]["drop_label"] == 0:
        raise InputError("the network was not trained both with and without the class")
    images = script.guided(model, strengths, columns)
    pairs = zip(strengths, images.split(columns), strict=True)
    rows = [(f"guidance {strength:g}", in_a_row(row)) for strength, row in pairs]
    return png(labelled_rows(rows, words))


# ----------------------------------------------------------------------------------------- grid.png


def draw_grid(folder, count, device):
    """grid.png: `count` generated images."""
    checkpoint, script, model, words = open_model(folder, device)
    seed = checkpoint["flags"]["seed"] + 2  # the latents of the metrics
    images = script.generate(model, count, seed)
    picture = rescale(datasets.grid(images), row_scale(images.shape[-1]))
    page = Image.new("RGB", (picture.width, picture.height + 28), PAPER)
    page.paste(picture, (0, 0))
    words = f"{words}, latent seed {seed}"
    write_words(page, (4, page.height - 14), words, 13, FAINT, page.width - 8)
    return png(page)


# ---------------------------------------------------------------- comparison-losses.png and others


def overlay_columns(logs):
    """The columns of several logs, by the figure that shows them: {"losses": [...], "FID": ...}.

    Only losses.png shows the noise.
    """
    columns = [name for log in logs for panel in loss_panels(log) for name in panel]
    figures = {}
    for name in dict.fromkeys(columns):
        if name != "noise":
            figures.setdefault(figure_of(name).upper() or "losses", []).append(name)
    return figures


def draw_overlay(kind, columns, runs):
    """A row of two panels for each column: over steps, and over minutes of training.

    runs: [(name, log)]. A run looks the same in all panels and figures.
    """
    title = f"{len(runs)} runs: {kind} (where values are pale, the line is their running mean)"
    figure = new_figure(12, 1.3 + 2.5 * len(columns) + 0.2 * len(runs), title)
    axes = figure.subplots(len(columns), 2, sharex="col", sharey="row", squeeze=False)
    from matplotlib.lines import Line2D

    looks = [(LINES[i % 4], *STYLES[i // 4 % 4]) for i in range(len(runs))]
    for column, panels in zip(columns, axes, strict=True):
        for axis, (time, unit, _) in zip(panels, TIMES, strict=True):
            curves = []
            for (name, log), look in zip(runs, looks, strict=True):
                if column in log and time in log:
                    curves.append((name, log[time] / unit, column_values(log, column), *look))
            draw_panel(axis, curves)
        panels[0].set_ylabel(column_title(column), parse_math=False)
    for axis, (time, _, words) in zip(axes[-1], TIMES, strict=True):
        ends = [np.nanmax(log[time]) for _, log in runs if time in log]
        far = max(ends, default=0) > 20 * min(ends, default=0)  # the shortest run would be a dot
        axis.set_xscale("log" if far else "linear")
        axis.set_xlabel(f"{words} (logarithmic)" if far else words)
    lines = [Line2D([], [], color=color, ls=ls, marker=marker) for color, ls, marker in looks]
    across = max(1, 130 // (10 + max(len(name) for name, _ in runs)))
    place = {"loc": "outside lower center", "ncols": across, "frameon": False, "fontsize": 9}
    legend = figure.legend(lines, [" "] * len(runs), handlelength=4, markerscale=0.6, **place)
    for text, (name, log) in zip(legend.get_texts(), runs, strict=True):
        missing = "" if any(column in log for column in columns) else " (not measured)"
        text.set_parse_math(False)
        text.set_text(printable(name, 120) + missing)  # a legend refuses labels that begin with "_"
    return figure_png(figure)


# ----------------------------------------------------------------------- comparison.md and its page


def facts(folder, log, checkpoint):
    """What a run is: {what: in words}. checkpoint: its last.pt."""
    args = read_run(folder)
    about = args["data"]
    trained = []
    for name, optimizer in checkpoint["optimizers"].items():
        # Adam keeps an average for every weight that it trains
        count = sum(state["exp_avg"].numel() for state in optimizer["state"].values())
        trained.append(f"{count:,} ({name})")
    model = args["script"]
    if args["preset"]:
        model += f" --preset {args['preset']}"
    minutes = f"{checkpoint['seconds'] / 60:.1f}"
    speed = np.nanmedian(log.get("img_per_s", 0))
    return {
        "model": model,
        "data": f"{about['name']}, {about['count']:,} images",
        "image": f"{about['channels']}x{about['size']}x{about['size']}",
        "trained parameters": " + ".join(trained),
        "steps x batch": f"{checkpoint['step']:,} x {args['flags']['batch']}",
        "minutes of training": f"{minutes} ({args['device']}, {args['precision']})",
        "images a second": f"{speed:,.0f}" if speed else "-",
    }


def best_fid(folder, log):
    """What was measured at the step of the lowest FID: {what: (value, "", protocol)} or {}."""
    best = best_row(folder, log)
    if best is None:
        return {}
    name, row = best
    count = np.isfinite(log[name]).sum()
    protocol = f"the lowest of {count} measured during training"
    value = f"{log[name][row]:.2f} ({log['step'][row]:,.0f})"
    values = {f"best {column_title(name)} (step)": (value, "", protocol)}
    for other in log:
        if figure_of(other) and other != name and np.isfinite(log[other][row]):
            value = f"{column_values(log, other)[row]:.4g}"
            values[f"{column_title(other)} at that step"] = (value, "", "")
    return values


def cells(values, metrics, report, which=""):
    """Values of metrics.evaluate as {what: (value, the same of real images or "", protocol)}.

    report: {name: published value}. which: added to the names.
    """
    result = {}
    for value in values:
        theirs = report.get(value["name"])
        theirs = "" if theirs is None else f" (report: {theirs:,})"
        title = f"{metrics.title(value)}{which}"
        if value["value"] is None:
            result[title] = (f"not measured{theirs}", "", f"{value['reason']}")
        else:
            real = "" if value.get("real") is None else metrics.format_value(value, "real")
            result[title] = (metrics.format_value(value) + theirs, real, f"{value['protocol']}")
    return result


def final_values(folder, checkpoint, metrics):
    """metrics.json of a run as cells(), or {}. checkpoint: its last.pt."""
    path = folder / "metrics.json"
    if not path.is_file():
        return {}
    result = read_json(path, "remove it")
    values = {}
    if result.get("step") not in (None, checkpoint["step"]):  # trained further, not measured again
        words = "the run has been prolonged since"
        values["step of the values below"] = (f"{result['step']:,}", "", words)
    report = result["report"]
    note = f"{report['protocol']}"
    changed = result.get("changed")
    words = f"this run is not quite that preset: {changed}"
    if not result.get("comparable", not changed):
        note = f"the report's numbers are left out: {words}"
        report = {}
    elif changed:
        note += f"; {words}"
    return values | cells(result["values"], metrics, report) | {"the report": ("", "", note)}


def later_values(folder, metrics):
    """What metrics.py measured of a run afterwards, metrics-*.json, as cells()."""
    values = {}
    for path in sorted(folder.glob("metrics-*.json")):
        try:
            result = read_json(path, "remove it")
            which = f" of {result['checkpoint']} against {result['real']}"
            values |= cells(result["values"], metrics, {}, which)
        except Exception:  # whatever is wrong with the file, the others count
            print(printable(f"'{path}' is damaged and left out", 2000), file=sys.stderr)
    return values


def comparison_table(folders, names):
    """Rows of text, the first of them the heads, and [(what was measured, protocol)]."""
    metrics = import_metrics()
    runs = {}
    for name, folder in zip(names, folders, strict=True):
        log = read_columns(folder)
        checkpoint = training.read_checkpoint(folder)
        run = {what: (words, "", "") for what, words in facts(folder, log, checkpoint).items()}
        run |= best_fid(folder, log)
        runs[name] = run | final_values(folder, checkpoint, metrics) | later_values(folder, metrics)
    rows = [["", *names, "real images"]]
    notes = []
    for what in dict.fromkeys(what for values in runs.values() for what in values):
        measured = {name: values[what] for name, values in runs.items() if what in values}
        protocols = {}
        for name, (_, _, protocol) in measured.items():
            protocols.setdefault(protocol, []).append(name)
        for protocol, users in protocols.items():
            which = f" of {', '.join(users)}" if len(users) < len(names) else ""
            if protocol:
                notes.append((f"{what}{which}", protocol))
        if any(value for value, _, _ in measured.values()):
            real = dict.fromkeys(real for _, real, _ in measured.values() if real)
            texts = [measured[name][0] if name in measured else "-" for name in names]
            rows.append([what, *texts, " / ".join(real)])
    return rows, notes


def names_of(folders):
    """How the runs are called in a comparison."""
    names = [folder.resolve().name for folder in folders]
    return names if len(set(names)) == len(names) else [str(folder) for folder in folders]


def compare(folders):
    """Several runs as (Markdown, an HTML page that needs no other file). Without page.py the page
    is None."""
    names = names_of(folders)
    rows, notes = comparison_table(folders, names)
    lines = [f"| {' | '.join(map(markdown, row))} |" for row in rows]
    lines.insert(1, "|" + "---|" * len(rows[0]))
    lines += ["", *(f"- {markdown(f'{what}: {protocol}')}" for what, protocol in notes), ""]
    content = None
    if page := training.tool("page"):
        runs = []
        for name, folder in zip(names, folders, strict=True):
            runs.append(run_for_page(page, folder, read_run(folder), name))
        content = page.comparison_page(runs, rows, notes)
    return "\n".join(lines), content


# ------------------------------------------------------------------------------------- report.html


def run_for_page(page, folder, args, name):
    """A run as page.py shows it. What cannot be read is left out: other pictures say so."""
    films = {}
    for kind in ("samples", "reconstructions"):
        with contextlib.suppress(InputError):
            films[kind] = read_samples(folder, kind)
    curves = {}
    panels = []
    best = None
    # losses.png has said what is wrong with log.csv
    with contextlib.suppress(Exception), contextlib.redirect_stderr(io.StringIO()):
        log = read_columns(folder)
        best = best_row(folder, log)
        for column in log:
            values = column_values(log, column)
            finite = np.isfinite(log["step"]) & np.isfinite(values)
            if finite.any():
                mean, _ = smoothed(values[finite])
                steps = log["step"][finite]
                curves[column] = page.Curve(column_title(column), steps, values[finite], mean)
        panels = loss_panels(curves)
    if best:
        column, row = best
        best = (column, log["step"][row], log[column][row])
    rows = []
    if rows_are_classes(args) and "samples" in films:
        with contextlib.suppress(InputError):
            height = open_picture(films["samples"][-1][1]).height
            count = (height + 2) // (args["data"]["size"] + 2)
            rows = args["data"]["classes"][:count]  # of many, training.class_rows takes the first
            rows = rows if len(rows) == count else []
    return page.Run(name, folder, args, curves, panels, best, films, rows, {})


def all_values(folder, run):
    """What metrics.json and metrics-*.json hold as cells(); one line if that cannot be read."""
    if any(folder.glob("metrics*.json")) and (metrics := training.tool("metrics")):
        steps = run.curves["step"].values if "step" in run.curves else [0]
        try:
            last = {"step": int(steps[-1])}
            return final_values(folder, last, metrics) | later_values(folder, metrics)
        except Exception as problem:  # whatever is wrong, the rest of the page is made
            words = f"{folder}: no numbers in report.html: {reason(problem)}"
            print(printable(words, 2000), file=sys.stderr)
    return {}


def draw_page(page, folder, args):
    """report.html, with the pictures that are in the run directory. page: the module page.py."""
    run = run_for_page(page, folder, args, folder.resolve().name)
    return page.run_page(run._replace(values=all_values(folder, run))).encode("utf-8")


# -------------------------------------------------------------------------------------- all of them


def png(picture):
    file = io.BytesIO()
    picture.save(file, format="PNG", optimize=True)
    return file.getvalue()


def report(run_dir, epochs=None, extremes=False, grid=None, device="cpu"):
    """Write every picture that can be made into the run directory; returns the paths written.

    epochs: rows of strip.png. extremes: also extremes.png, which needs the data. grid: the number
    of images in grid.png. device: where models make images. If a picture cannot be made, one line
    on stderr says why. InputError if run_dir is no run.
    """
    folder = Path(run_dir)
    args = read_run(folder)
    draw = functools.partial
    pictures = {
        "losses.png": draw(draw_losses, folder, args),
        "weights.png": draw(draw_weights, folder, args),
        "progress.gif": draw(draw_progress, folder, args),
        "strip.png": draw(draw_strip, folder, args, epochs),
        "interpolation.png": draw(draw_interpolation, folder, device),
    }
    if (folder / "reconstructions").exists():
        pictures["reconstructions.gif"] = draw(draw_progress, folder, args, "reconstructions")
    if offers(args, "as_every_class"):
        pictures["classes.png"] = draw(draw_classes, folder, device)
    elif offers(args, "asked_labels") and len(args["data"].get("classes", [])) > 1:
        pictures["classes.png"] = draw(draw_class_rows, folder, device)
    if offers(args, "denoising"):
        pictures["denoising.png"] = draw(draw_denoising, folder, device)
    if offers(args, "guided"):
        pictures["guidance.png"] = draw(draw_guidance, folder, device)
    if extremes:
        pictures["extremes.png"] = draw(draw_extremes, folder, args)
    if grid:
        pictures["grid.png"] = draw(draw_grid, folder, grid, device)
    if page := training.tool("page"):
        pictures["report.html"] = draw(draw_page, page, folder, args)
    remove_half_written(folder)
    return write_pictures(folder, pictures)


def write_pictures(folder, pictures):
    """Write {file name: function that makes its bytes}; returns the paths written.

    If a picture cannot be made, one line on stderr says why.
    """
    written = []
    for name, make in pictures.items():
        try:
            data = make()  # the whole file in memory, so that none is ever half-written
        except Exception as problem:  # whatever is wrong with a run's files, the others are made
            print(printable(f"{folder}: no {name}: {reason(problem)}", 2000), file=sys.stderr)
            continue
        write_bytes(folder / name, data)
        written.append(folder / name)
    return written


def parse_args(argv=None):
    parser = new_parser("report.py", __doc__)
    parser.usage = "report.py RUN [RUN ...] [flags]"
    add = parser.add_argument
    add("runs", nargs="+", metavar="RUN", help="a run directory, such as runs/dcgan-shapes-1")
    epoch = number(float, 0)
    add("--epochs", nargs="+", type=epoch, metavar="E", help="epochs in strip.png [5 of them]")
    add("--extremes", action="store_true", help="draw the best and worst images; needs the data")
    add("--grid", type=number(int, 1, 10_001), metavar="N", help="draw N generated images")
    return parser.parse_args(argv)


def main(argv=None):
    args = parse_args(argv)
    folders = list(dict.fromkeys(Path(run) for run in args.runs))
    for folder in folders:
        read_run(folder)  # a wrong name fails before any work is done
        check_output(folder / "losses.png")
    base = folders[0].resolve().parent / "comparison"
    if len(folders) > 1:
        check_output(f"{base}.html")
    for folder in folders:
        for path in report(folder, args.epochs, args.extremes, args.grid):
            print(f"wrote {printable(path)}")
    if len(folders) == 1:
        return
    try:
        runs = list(zip(names_of(folders), map(read_columns, folders), strict=True))
        pictures = {}
        for kind, columns in overlay_columns([log for _, log in runs]).items():
            make = functools.partial(draw_overlay, kind, columns, runs)
            pictures[f"{base.name}-{kind.lower()}.png"] = make
        for path in write_pictures(base.parent, pictures):
            print(f"wrote {printable(os.path.relpath(path))}")
        text, page = compare(folders)
    except Exception as problem:
        raise InputError(f"no comparison of these runs: {reason(problem)}") from None
    for kind, content in [("md", text), ("html", page)] if page else [("md", text)]:
        write_text(f"{base}.{kind}", content)
        print(f"wrote {printable(os.path.relpath(base))}.{kind}")


if __name__ == "__main__":
    run_program(main)
