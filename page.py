"""page.py: report.html, the page of a run, and comparison.html, that of several runs.

report.py reads the run directories, describes each of them in a Run, and calls run_page or
comparison_page, which return HTML. A page needs no other file and no network: pictures, style and
script are in it. Whatever comes from a run is escaped.

The curves are drawn here as SVG, so that they are there without JavaScript, too. The script moves
the slider of the samples, and reads values off the curves.
"""

import base64
import contextlib
import hashlib
import html
import io
import json
import math
import re
import shlex
import warnings
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

import training
from sources import InputError, printable

FRAMES = 60  # of a slider, at most
PAGE_BYTES = 2_100_000  # of all pictures of a page: as text they take a third more
PICTURE_BYTES = 700_000  # of those that are not frames of a slider
POINTS = 1000  # of a curve, at most
PICTURES = {  # what report.py draws: its title
    "strip": "Samples at a few epochs",
    "classes": "Images of each class",
    "interpolation": "Walks from one latent vector to another",
    "denoising": "From noise to image",
    "guidance": "More and more guidance",
    "extremes": "The generated images most and least like real ones",
    "neighbours": "Generated images beside the training images nearest to them",
    "grid": "Generated images",
    "weights": "The weights of every layer, darker at later steps",
}
COMPARED = ("strip", "classes", "interpolation")
MEANINGS = {  # how the name of a value begins: what is good
    "FID": "Distance between generated and real images in features of Inception: lower is better.",
    "best FID": "The lowest one during training, and its step.",
    "KID": "Like FID, but fair with few images: lower is better, and 0 is perfect.",
    "precision": "Share of generated images that lie among real ones: higher is better.",
    "recall": "Share of real images that lie among generated ones: low means little variety.",
    "density": "How many real images surround a generated one: near 1 is good.",
    "coverage": "Share of real images with a generated one near by: higher is better.",
    "MS-SSIM (among": "Likeness of two generated images: far above real ones, there is no variety.",
    "MS-SSIM": "Likeness of a generated and a real image: good near that of two real ones.",
    "SSIM": "Likeness of a generated and a real image: good near that of two real ones.",
    "collapse": "Pairs that are nearly the same: many more than among real images is collapse.",
    "near training": "Share as near to training images as few real ones: high is copying or blur.",
    "class accuracy, reverse": "Of a classifier trained on generated images: higher is better.",
    "class accuracy": "How often a classifier sees the class that was asked for: higher is better.",
    "reconstruction": "What the decoder loses of an image: lower is better.",
    "KL": "What the latents tell about an image: near 0, they are ignored.",
    "bound": "Bound on -log p(x) of an image: lower is better.",
    "squared error": "Between an image and its reconstruction: lower is better.",
    "active latents": "Latents that depend on the image: the others carry nothing.",
}


class Curve(NamedTuple):
    """A column of log.csv without its gaps."""

    title: str
    steps: np.ndarray
    values: np.ndarray
    mean: np.ndarray  # of a long curve the running mean, else the values

    @property
    def is_long(self):
        return self.mean is not self.values


class Run(NamedTuple):
    """What a page shows of a run. Whatever is missing is empty."""

    name: str
    folder: Path
    args: dict  # args.json
    curves: dict  # {column of log.csv: Curve}
    panels: list  # lists of the columns that share a plot
    best: tuple  # (column, step, value) of the lowest FID
    films: dict  # {"samples": [(step, path), ...], "reconstructions": ...}
    rows: list  # the classes of the first rows of samples, if each row is a class
    values: dict  # {what was measured: (value, the same of real images, protocol)}


def text(words):
    """Anything as HTML that shows just this text."""
    return html.escape(printable(words, math.inf))


# ---------------------------------------------------------------------------------------- pictures


def spread(items, limit):
    """At most `limit` of the items, evenly spread, with the first and the last."""
    indices = np.linspace(0, len(items) - 1, min(len(items), limit)).round().astype(int)
    return [items[index] for index in np.unique(indices)]


def open_picture(path, width):
    """A picture as RGB, at most so many pixels wide. None if it is damaged or far too large."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path) as file:
                picture = file.convert("RGB")
    except Exception:  # Pillow has many ways to say so
        return None
    picture.thumbnail((width, 8000))
    return picture


def jpeg(picture, quality):
    """The bytes of a JPEG file. Small pictures are enlarged on the page: theirs is better."""
    file = io.BytesIO()
    small = picture.width * picture.height < 120_000
    picture.save(file, "JPEG", quality=quality + 7 * small, subsampling=0 if small else 2)
    return file.getvalue()


def smaller_jpeg(picture, limit):
    """The bytes of a JPEG file, with less quality and fewer pixels if it has more than `limit`."""
    while True:
        for quality in (85, 75, 60):
            data = jpeg(picture, quality)
            if len(data) <= limit:
                return data
        if max(picture.size) < 200:
            return data
        picture = picture.resize([math.ceil(0.8 * side) for side in picture.size])


def palette_png(picture):
    """The bytes of a PNG file with 64 colors: small and sharp where there are lines and words."""
    file = io.BytesIO()
    palette = picture.quantize(64, method=Image.Quantize.FASTOCTREE)
    palette.save(file, "PNG", optimize=True)
    return file.getvalue()


def image(data, alt, more=""):
    """The bytes of a JPEG or PNG file as an element of HTML. alt: its words, as HTML."""
    kind = "png" if data.startswith(b"\x89PNG") else "jpeg"
    code = base64.b64encode(data).decode("ascii")
    return f'<img alt="{alt}"{more} src="data:image/{kind};base64,{code}">'


def frames_within(frames, limit):
    """[(step, picture)] -> [(step, bytes)], together at most about `limit` bytes: with less
    quality, and then fewer of them, where that is needed."""
    for quality in (85, 72):
        files = [(step, jpeg(picture, quality)) for step, picture in frames]
        total = sum(len(data) for _, data in files)
        if total <= limit:
            return files
    return spread(files, max(6, int(len(files) * limit / total)))


def film(run, kind, limit):
    """The pictures of one kind of a run. The script shows one of them at a time."""
    samples = run.films[kind]
    opened = [(step, open_picture(path, 800)) for step, path in spread(samples, FRAMES)]
    pictures = [(step, picture) for step, picture in opened if picture]
    if not pictures:
        return f"<p>The pictures in {kind}/ of {text(run.name)} are damaged.</p>"
    frames = frames_within(pictures, limit)
    images = []
    for step, data in frames:
        epoch = f"{step / run.args['steps_per_epoch']:,.2f}".rstrip("0").rstrip(".")
        words = text(f"{run.name}: {kind} at step {step:,} (epoch {epoch})")
        hidden = "" if step == frames[-1][0] else " hidden"
        images.append(image(data, words, f' data-step="{step}" decoding="sync"{hidden}'))
    picture = pictures[-1][1]
    factor = max(1.25, round(600 / picture.width))
    sharp = " sharp" if factor > 2 else ""
    style = f"aspect-ratio:{picture.width}/{picture.height};--w:{factor * picture.width:.0f}px"
    notes = [f"{len(frames)} of {len(samples):,} pictures"]
    if len(pictures) < len(opened):
        notes.append(f"{len(opened) - len(pictures)} damaged")
    if kind == "reconstructions":
        notes.append("each image with its reconstruction under it")
    rows = ""
    if kind == "samples" and run.rows:
        count = len(run.args["data"]["classes"])
        first = f"the first {len(run.rows)} of " if len(run.rows) < count else ""
        notes.append(f"a row for each of {first}{count} classes")
        rows = "".join(f"<li><span>{text(name)}</span></li>" for name in run.rows)
        rows = f'<ol class="names">{rows}</ol>'
    return f"""<figure class="film"><div class="stage">{rows}
<div class="frames{sharp}" style="{style}">{"".join(images)}</div></div>
<figcaption>{words}</figcaption><p class="note">{"; ".join(notes)}</p></figure>"""


def films(runs, kinds, limit):
    """The section with the samples of runs, about `limit` bytes, and one slider for all of them."""
    chosen = [(run, kind) for run in runs for kind in kinds if run.films.get(kind)]
    if not chosen:
        return "<section><h2>Samples</h2><p>There are none yet.</p></section>"
    figures = [film(run, kind, limit // len(chosen)) for run, kind in chosen]
    return f"""<section id="films"><h2>Samples</h2><div class="bar sticky">
<button type="button" aria-label="play">&#9654;</button>
<input type="range" min="0" value="0" aria-label="step of the samples"><output></output></div>
<div class="films">{"".join(figures)}</div></section>"""


def pictures(run, names, limit):
    """What else report.py has drawn of a run, as figures of about `limit` bytes."""
    paths = {name: run.folder / f"{name}.png" for name in names}
    opened = {name: open_picture(path, 1600) for name, path in paths.items()}
    opened = {name: picture for name, picture in opened.items() if picture}
    figures = []
    for name, picture in opened.items():
        if name == "weights":
            data = palette_png(picture)
        else:
            data = smaller_jpeg(picture, limit // len(opened))
        words = text(f"{run.name}: {PICTURES[name]}")
        width = f' style="min-width:{min(picture.width, 520)}px"'
        card = "card whole" if name == "weights" else "card"
        figures.append(f"""<figure class="{card}"><figcaption>{PICTURES[name]}</figcaption>
<div class="scroll" tabindex="0">{image(data, words, width)}</div></figure>""")
    return "".join(figures)


# ------------------------------------------------------------------------------------------ curves


def nice_ticks(low, high):
    """Three to six round numbers between low and high."""
    rough = (high - low) / 5
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough)
    first = math.ceil(low / step)
    return [k * step for k in range(first, math.floor(high / step) + 1)]


def span(values):
    """The lowest and the highest of some numbers, never equal."""
    low = float(np.min(values))
    high = float(np.max(values))
    margin = 0 if high > low else abs(high) or 1
    return low - margin, high + margin


def line(x, y, css):
    """A path of SVG through points in units of the plot, 0 to 1, y upwards."""
    points = [f"{1000 * a:.1f} {300 - 300 * b:.1f}" for a, b in zip(x, y, strict=True)]
    path = f'<path class="{css}" d="M{"L".join(points)}"/>'
    if len(points) <= 40:  # a dot is a line of no length with round ends
        dots = "".join(f"M{point}h0" for point in points)
        path += f'<path class="{css} dots" d="{dots}"/>'
    return path


def plot(title, curves, ends, ring=()):
    """Curves that share axes: (HTML, what the script must know of them).

    curves: [(label, number of its look, Curve)]. ends: the first and the last step of all plots of
    the page. ring: (step, value) of the best value.
    """
    shown = [np.percentile(curve.values, [0.5, 99.5]) for *_, curve in curves if curve.is_long]
    shown += [curve.mean for *_, curve in curves] + [ring[1:]]  # not the lone spikes of a long one
    low, high = span(np.concatenate(shown))
    margin = 0.06 * (high - low)
    low -= margin
    high += margin
    first, last = ends

    def at(step, value):
        return (step - first) / (last - first), (value - low) / (high - low)

    paths = []
    legend = []
    known = []
    for label, number, curve in curves:
        look = f"c{number % 4} d{number // 4 % 4}"
        where = spread(np.arange(len(curve.steps)), POINTS)
        if curve.is_long:
            paths.append(line(*at(curve.steps[where], curve.values[where]), f"{look} pale"))
        paths.append(line(*at(curve.steps[where], curve.mean[where]), look))
        values = [float(f"{value:.5g}") for value in curve.values[where]]
        known.append({"step": curve.steps[where].tolist(), "y": values})
        key = f'<svg viewBox="0 0 24 8"><path class="{look}" d="M0 4H24"/></svg>'
        words = "" if label == title and len(curves) == 1 else text(label)
        legend.append(f"<li>{key}{words} <b></b></li>")
    grid = []
    ticks = []
    for value in nice_ticks(low, high):
        _, y = at(first, value)
        grid.append(f'<path class="grid" d="M0 {300 - 300 * y:.1f}H1000"/>')
        ticks.append(f'<span class="y" style="bottom:{100 * y:.2f}%">{value:,.6g}</span>')
    for step in nice_ticks(*ends):
        x, _ = at(step, low)
        words = f"{step / 1000:g}k" if step >= 10_000 else f"{step:,g}"
        ticks.append(f'<span class="x" style="left:{100 * x:.2f}%">{words}</span>')
    if ring:
        x, y = at(*ring)
        ticks.append(f'<i class="ring" style="left:{100 * x:.2f}%;bottom:{100 * y:.2f}%"></i>')
        legend.append(f"<li>lowest: {ring[1]:.4g} at step {ring[0]:,.0f}</li>")
    content = f"""<figure class="plot card"><figcaption>{text(title)}</figcaption>
<ul class="legend">{"".join(legend)}</ul><div class="axes">
<svg viewBox="0 0 1000 300" preserveAspectRatio="none" role="img" aria-label="{text(title)}">
{"".join(grid)}{"".join(paths)}</svg>{"".join(ticks)}<i class="hair" hidden></i>
{'<i class="dot" hidden></i>' * len(curves)}</div></figure>"""
    return content, {"low": low, "high": high, "curves": known}


def curves_section(plots):
    """plots: [(title, curves, ring)], see plot(). Gives HTML and what the script must know."""
    if not plots:
        return "<section><h2>Curves</h2><p>log.csv holds none yet.</p></section>", {}
    steps = [curve.steps for _, curves, _ in plots for *_, curve in curves]
    ends = span(np.concatenate(steps))
    made = [plot(title, curves, ends, ring) for title, curves, ring in plots]
    data = {"first": ends[0], "last": ends[1], "plots": [known for _, known in made]}
    return (
        f"""<section id="curves"><h2>Curves</h2><p class="note">Over training steps. Point at a
curve, touch it, or move the slider to read the values. A long curve is the running mean over a pale
line of all values.</p><div class="bar sticky"><input type="range" min="0" value="0"
aria-label="step at which the curves are read"><output></output></div>
<div class="plots">{"".join(content for content, _ in made)}</div></section>""",
        data,
    )


# ----------------------------------------------------------------------------------------- numbers


def meaning(what):
    """In a sentence, what is good, or ""."""
    if what.endswith("at that step"):  # of the best FID; the value itself has a row, too
        return ""
    return next((words for start, words in MEANINGS.items() if what.startswith(start)), "")


def protocols(notes):
    """[(what was measured, protocol)] as a list in which every clause stands once, after the names
    of all values that share it."""
    users = {}
    for what, protocol in notes:
        for clause in re.split(r"; (?![^()]*\))", protocol):  # not inside of parentheses
            users.setdefault(clause, {})[what] = None
    groups = {}
    for clause, names in users.items():
        groups.setdefault(tuple(names), []).append(clause)
    items = []
    for names, clauses in sorted(groups.items(), key=lambda item: -len(item[0])):
        items.append(f"<dt>{text(', '.join(names))}</dt><dd>{text('; '.join(clauses))}</dd>")
    return f"<details><summary>How this was measured</summary><dl>{''.join(items)}</dl></details>"


def table(rows):
    """Rows of text as HTML; the first of them has the heads. Names of values get their meaning."""
    lines = []
    for index, (what, *cells) in enumerate(rows):
        tag = "td" if index else "th"
        words = meaning(what) if index else ""
        first = f"{text(what)}<small>{words}</small>" if words else text(what)
        others = "".join(f"<{tag}>{text(cell)}</{tag}>" for cell in cells)
        lines.append(f'<tr><th scope="row">{first}</th>{others}</tr>')
    content = f'<table style="--n:{len(rows[0]) - 1}">{"".join(lines)}</table>'
    return f'<div class="scroll" tabindex="0">{content}</div>'


def numbers(run):
    """The section with what was measured of a run."""
    if not run.values:
        return ""
    rows = [("", "this run", "real images")]
    rows += [(what, value, real) for what, (value, real, _) in run.values.items() if value]
    notes = [(what, protocol) for what, (_, _, protocol) in run.values.items() if protocol]
    return f"""<section><h2>Numbers</h2>{table(rows)}<p class="note">"real images": what real
images get in place of generated ones, the best that a generator can hope for. The curves compare
with other real images, so their last values differ a little.</p>{protocols(notes)}
</section>"""


# ---------------------------------------------------------------------------------------- the pages


def command(args):
    """The command that trains such a run: with the flags that are not those of its preset."""
    flags = args["flags"]
    preset = flags.get("preset")
    words = [f"--preset={preset}"] if preset else [f"--data={flags.get('data')}"]
    if preset == flags.get("data") == "shapes":  # which a plain start takes
        words = []
    with contextlib.redirect_stderr(io.StringIO()):  # notes, or the script knows other flags now
        try:
            script = training.load_script(args["script"])
            usual = vars(script.parse_args([*words, "--dry-run"])[0])
        except (Exception, SystemExit):  # all flags that are on; few have a form that says off
            usual = {name: flag for name, flag in flags.items() if flag is False}
    changed = training.different_flags(flags, usual)
    changed.pop("dry_run", None)
    words += [word for word in training.flag_words(changed) if word not in words]
    return shlex.join(["python", f"{args['script']}.py", *words])


def next_steps(run, last):
    """What to try next: [(command, what it is for)]. last: the step of the run."""
    path = str(run.folder)
    flags = run.args["flags"]
    script = f"{run.args['script']}.py"
    steps = [(["report.py", path, "OTHER"], "Compare it with another run")]
    if (run.folder / "last.pt").exists():
        steps.append((["sample.py", path, "--count", "64", "--to", "grid.png"], "64 new images"))
        if not run.values and "data" in flags:
            words = ["metrics.py", flags["data"], path, "--floor"]
            steps.append((words, "Measure how good it is"))
        if not (run.folder / "neighbours.png").exists() and "data" in flags:
            words = ["metrics.py", flags["data"], path, "--floor", "--neighbours"]
            steps.append((words, "See also whether it copies its training images"))
        if not (run.folder / "extremes.png").exists():
            steps.append((["report.py", path, "--extremes"], "Its best and worst images"))
        words = [script, "--resume", path, "--steps", str(2 * last)]
        steps.append((words, "Train for as many steps again"))
    items = []
    for words, purpose in steps:
        if Path(__file__).with_name(words[0]).is_file():
            items.append(f"<li>{purpose}<pre>{text(shlex.join(['python', *words]))}</pre></li>")
    return f"<section><h2>What to try next</h2><ul class='next'>{''.join(items)}</ul></section>"


def description(run, last):
    """The top of the page: what was trained, on what, for how long, and by which command."""
    args = run.args
    about = args["data"]
    model = f"{args['script']}.py" + (f", preset {args['preset']}" if args.get("preset") else "")
    epochs = f"{last / args['steps_per_epoch']:,.1f}"
    training = f"{last:,} steps of {args['flags'].get('batch')} images, {epochs} epochs"
    if "seconds" in run.curves:
        training += f", {run.curves['seconds'].values[-1] / 60:,.1f} minutes"
    where = ", ".join(str(args[key]) for key in ("device", "precision") if key in args)
    facts = {
        "Model": model,
        "Data": f"{about.get('name')}, {about.get('count', 0):,} images of {about['size']} pixels",
        "Training": f"{training} ({where})",
    }
    items = "".join(f"<dt>{what}</dt><dd>{text(words)}</dd>" for what, words in facts.items())
    classes = []
    for name, count in zip(about["classes"], about.get("counts", []), strict=False):
        classes.append(f"<li>{text(name)} <b>{count:,}</b></li>")
    if classes:
        items += f'<dt>Classes</dt><dd><ul class="classes">{"".join(classes[:20])}</ul>'
        if more := classes[20:]:
            words = f"<summary>{len(more)} more classes</summary>"
            items += f'<details>{words}<ul class="classes">{"".join(more)}</ul></details>'
        items += "</dd>"
    flags = [(f"--{k.replace('_', '-')}", json.dumps(v)) for k, v in args["flags"].items()]
    return f"""<header><h1>{text(run.name)}</h1><dl>{items}</dl>
<pre tabindex="0">{text(command(args))}</pre>
<details><summary>All settings</summary>{table([("flag", "value"), *flags])}</details></header>"""


def page(title, parts, data):
    """page.html with a title, parts of its body, and data for its script. Its policy lets only this
    script run, and nothing come from elsewhere."""
    path = Path(__file__).with_name("page.html")
    if not path.is_file():
        raise InputError("it needs page.html next to page.py")
    template = path.read_text(encoding="utf-8")
    script = re.search("<script>(.*)</script>", template, re.DOTALL).group(1)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode("ascii")
    policy = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; "
    content = {
        "title": text(title),
        "policy": f"{policy}script-src 'sha256-{digest}'",
        "body": "\n".join(parts),
        "data": json.dumps(data, allow_nan=False).replace("<", "\\u003c"),
    }
    # in one pass, so that nothing is replaced in what comes from a run
    return re.sub(r"<!--(\w+)-->", lambda match: content[match.group(1)], template)


def run_page(run):
    """report.html of a run, as text."""
    plots = []
    for columns in run.panels:
        found = [run.curves[column] for column in columns]
        titles = ", ".join(curve.title for curve in found)
        title = "loss" if columns[0].startswith("loss_") else titles
        ring = run.best[1:] if run.best and run.best[0] in columns else ()
        curves = [(curve.title, index, curve) for index, curve in enumerate(found)]
        plots.append((title, curves, ring))
    curves, data = curves_section(plots)
    data["per_epoch"] = run.args["steps_per_epoch"]
    steps = [int(curve.steps[-1]) for curve in run.curves.values()]
    last = max(
        [*steps, *(step for samples in run.films.values() for step, _ in samples)], default=0
    )
    drawn = pictures(run, PICTURES, PICTURE_BYTES)
    if drawn:
        drawn = f'<section><h2>Pictures</h2><div class="pictures">{drawn}</div></section>'
    limit = PAGE_BYTES - len(drawn) * 3 // 4
    parts = [description(run, last), films([run], ["samples", "reconstructions"], limit), curves]
    return page(run.name, [*parts, numbers(run), drawn, next_steps(run, last)], data)


def comparison_page(runs, rows, notes):
    """comparison.html of several runs, as text. rows: its table. notes: see protocols()."""
    plots = []
    columns = [column for run in runs for panel in run.panels for column in panel]
    for column in dict.fromkeys(columns):
        curves = []
        for index, run in enumerate(runs):
            if column in run.curves:
                curves.append((run.name, index, run.curves[column]))
        title = curves[0][2].title
        plots.append((f"loss {title}" if column.startswith("loss_") else title, curves, ()))
    curves, data = curves_section(plots)
    sections = []
    for run in runs:
        drawn = pictures(run, COMPARED, PICTURE_BYTES // len(runs))
        if drawn:
            words = f'<h2>{text(run.name)}</h2><div class="pictures">{drawn}</div>'
            sections.append(f"<section>{words}</section>")
    limit = PAGE_BYTES - sum(map(len, sections)) * 3 // 4
    names = text(", ".join(run.name for run in runs))
    parts = [f"<header><h1>Comparison of {len(runs)} runs</h1><p>{names}</p></header>"]
    parts += [films(runs, ["samples"], limit), curves]
    parts.append(f"<section><h2>Numbers</h2>{table(rows)}{protocols(notes)}</section>")
    return page("Comparison", [*parts, *sections], data)
