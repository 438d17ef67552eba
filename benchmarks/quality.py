"""How good are the images after so many minutes of training? FID-768 for scripts, presets and data.

    python benchmarks/quality.py --data DIR --weights FILE --minutes 5 15 --seeds 2
    python benchmarks/quality.py --data DIR --weights FILE --minutes 60 120 --rows dcgan-cats-best
    python benchmarks/quality.py --data DIR --grids --minutes 15      # grids to be judged blind
    python benchmarks/quality.py --data DIR --weights FILE --ablation dcgan

DIR holds the files of SETS. A row is a script with a preset on a data set, as in dcgan-cats-best:

    <script>-<data>-report   the preset of the report (REPORTS)
    <script>-<data>-best     the preset `best` of each script that has one, on each data set
    <script>-shapes          the script without flags, which ends by itself
    "<row> <flags>"          a row with changed flags, as in "dcgan-cats-best --no-shift"

A row is one training for each seed. It stops when it has trained for the first of the minutes, is
measured, goes on exactly where it was, and so on. Minutes are those of log.csv: without pictures,
checkpoints and measuring. The weights are those at the end of the step that reaches the time; the
table says which step this is. (On a GPU, going on costs a few seconds for new CUDA graphs.)

Kill it at any time: the same command goes on. After each point, --to holds

    quality.jsonl    all that is known of each point, a line for each
    quality.md       the table
    quality.png      FID over minutes and over images
    runs/            the run directories; kept/5-minutes.pt holds the weights of a point

With --ablation NAME, ablation-NAME takes the place of quality in these names. Each value stands
beside that of other real images in place of the generated ones, the last line of its table.

Nothing that is measured has helped to choose anything. Training has seeds from 100 on and the
generated images one of their own (LATENTS). The real images are the half of the held-out ones that
never chooses a best.pt, or, of a set without a split, training images outside of the tenth that
all other numbers of the collection are measured on. --ablation exists for choosing, so it takes
the other half, that tenth, other latents, and seeds from 0 on: its numbers are not for the table.

Minutes on two machines do not compare: each machine needs a --to of its own. If the flags of a row
have changed since, as a preset may, its old points are dropped, and it begins anew.
"""

import signal

if __name__ == "__main__":  # Ctrl-C during the imports is silent; run_program takes over later
    signal.signal(signal.SIGINT, signal.SIG_DFL)

import json
import random
import re
import subprocess
import sys
import zlib
from pathlib import Path
from typing import NamedTuple
from unittest import mock

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
import step

import datasets
import metrics
import report
import sources
import training
from sources import InputError, markdown, new_parser, number, run_program, write_text

ROOT = Path(__file__).resolve().parent.parent

SETS = {  # name: file in --data, pixels
    "cats": ("cats64.zip", 64),
    "animals": ("animals5.zip", 64),
    "food": ("food27.zip", 64),
    "cifar10": ("cifar10-15k.zip", 32),
}
REPORTS = {  # data set: {script: preset of a report}
    "cats": {"dcgan": "cats", "vae_mlp": "cats"},
    "animals": {"cgan": "animals", "cvae": "animals", "ddpm": "animals"},
    "food": {"dcgan": "food-noise", "wgan_gp": "small-gan"},
    "cifar10": {"gan_resnet": "cifar10", "ddpm": "cifar10"},
}
EACH = "each flag removed"  # stands for an entry for each flag of the preset
ABLATIONS = {  # name: [(row, further flags)]
    script: [(f"{row}-report", ""), (f"{row}-best", ""), (f"{row}-best", EACH)]
    for script, row in (
        ("dcgan", "dcgan-cats"),
        ("cgan", "cgan-animals"),
        ("wgan_gp", "wgan_gp-food"),
    )
}
NOT_TYPED = {"data", "size", "report", "steps", "epochs", "eval_images", *training.NO_MATTER}

LATENTS = 20_000_000  # seed of the generated images; a run uses its own seed and the next few
FIRST_SEED = 100  # of training. Whoever tries out presets starts at 0
DIM = 768  # of the features: the deepest of which everybody has the weights
NUMBERS = ("FID", "KID", "precision", "recall")


class Row(NamedTuple):
    """What is trained."""

    script: str
    data: str  # a name of SETS, or "shapes"
    size: int  # in pixels
    words: list  # the flags that make the row


def parse_args(argv=None):
    parser = new_parser("quality.py", __doc__)
    add = parser.add_argument
    add("--data", metavar="DIR", default=".", help="folder with the data files [this one]")
    add("--weights", metavar="FILE", help="Inception weights [torch hub's folder, or a download]")
    add("--minutes", type=number(float, 0.001), nargs="+", default=[5, 15], help="[5 15]")
    add("--seeds", type=number(int, 1), default=1, help="trainings of each row [%(default)s]")
    either = parser.add_mutually_exclusive_group().add_argument
    either("--rows", nargs="+", metavar="ROW", help="[all]")
    either("--ablation", choices=ABLATIONS, help="rows with changed flags instead")
    add("--images", type=number(int, 10), default=2000, help="at most, on each side [%(default)s]")
    add("--device", default="auto", help="auto, cpu, cuda, cuda:1 or mps [%(default)s]")
    add("--to", metavar="DIR", default="docs/results/quality", help="for results [%(default)s]")
    add("--grids", action="store_true", help="train nothing: draw grids under random letters")
    args = parser.parse_args(argv)
    args.minutes = sorted(args.minutes)
    args.seeds = [i + (0 if args.ablation else FIRST_SEED) for i in range(args.seeds)]
    return args


# ------------------------------------------------------------------------------------------- rows


def all_rows():
    """Every row there is: {name: Row}."""
    files = sorted(ROOT.glob("*.py"))
    scripts = [path.stem for path in files if "\nPRESETS = {" in path.read_text(encoding="utf-8")]
    presets = {script: training.load_script(script).PRESETS for script in scripts}
    rows = {}
    for data, (_, size) in SETS.items():
        for script, preset in REPORTS[data].items():
            rows[f"{script}-{data}-report"] = Row(script, data, size, ["--preset", preset])
        for script in scripts:
            # these two need classes, which the cats do not have
            if "best" in presets[script] and (data != "cats" or script not in ("cgan", "cvae")):
                rows[f"{script}-{data}-best"] = Row(script, data, size, ["--preset", "best"])
    for script in scripts:
        rows[f"{script}-shapes"] = Row(script, "shapes", presets[script]["shapes"]["size"], [])
    return rows


def chosen_rows(args):
    """The rows of this command: {name: Row}. Raises InputError."""
    rows = all_rows()
    chosen = {}
    named = [name.partition(" ")[::2] for name in args.rows or rows]
    for name, flags in ABLATIONS.get(args.ablation, named):
        if name not in rows:
            raise InputError(f"no row {name}; there are: {', '.join(rows)}")
        row = rows[name]
        if row.data != "shapes" and not Path(data_of(row, args)).is_file():
            raise InputError(f"{name} needs '{data_of(row, args)}': see --data and --rows")
        if flags == EACH:
            chosen |= without_each_flag(name, row)
        else:
            chosen[f"{name} {flags}".strip()] = row._replace(words=row.words + flags.split())
    return chosen


def without_each_flag(name, row):
    """A Row for each flag that its preset sets: all the others are typed, without the preset."""
    script = training.load_script(row.script)
    flags = {k: v for k, v in script.PRESETS[row.words[-1]].items() if k not in NOT_TYPED}
    defaults = script.parse_args(["--dry-run"])[0].defaults
    chosen = {}
    for removed in flags:
        if flags[removed] != defaults[removed]:
            words = training.flag_words(flags | {removed: None})
            chosen[f"{name} without {removed}"] = row._replace(words=words)
    return chosen


def data_of(row, args):
    """--data for a run of this row."""
    return "shapes" if row.data == "shapes" else str(Path(args.data, SETS[row.data][0]))


def command(row, args):
    """The flags of a run, without seed and directory."""
    words = ["--data", data_of(row, args), "--size", str(row.size), *row.words]
    words += ["--eval-images", "0", "--save-every", "1000000000"]
    if row.data != "shapes":
        words += ["--steps", "1000000000"]  # these have no end of their own
    return words


def settings(row, args):
    """The flags of a run that are not the script's defaults, without its data and seed, as text."""
    try:
        flags, _ = training.load_script(row.script).parse_args([*command(row, args), "--dry-run"])
    except InputError:  # flags that do not fit together: training says so
        return ""
    changed = training.changed_flags(flags, {})
    return " ".join(training.flag_words({k: v for k, v in changed.items() if k != "data"}))


# --------------------------------------------------------------------------------------- training


def train(row, seed, minutes, folder, args):
    """Train until `minutes`, or go on until then. Ctrl-C ends the program.

    Returns the checkpoint that has them: kept/<minutes>-minutes.pt, or last.pt of a run that ended
    by itself before.
    """
    goal = folder / "kept" / f"{minutes:g}-minutes.pt"
    last = folder / "last.pt"
    if goal.exists():
        return goal
    words = command(row, args) + ["--seed", str(seed), "--out", str(folder)]
    if last.exists():
        checkpoint = training.read_checkpoint(last)
        if checkpoint["seconds"] >= 60 * minutes:
            raise InputError(f"'{folder}' is past this time: delete it to begin anew")
        if checkpoint["step"] == checkpoint["total"]:
            return last
        words = ["--data", data_of(row, args), "--resume", str(folder)]
    with stopped_after(60 * minutes, goal):
        code = training.load_script(row.script).main([*words, "--device", str(args.device)])
    if code and not goal.exists():
        sys.exit(code)
    return goal if goal.exists() else last


def stopped_after(seconds, goal):
    """A context in which trainings stop, as if by Ctrl-C, once they have trained for `seconds`.

    When they save last.pt then, the weights also go into `goal`. Before, last.pt is saved every two
    minutes, in case of a kill.
    """
    should_stop = training.Run.should_stop
    save = training.Run.save
    saved = [0.0]  # the training time of last.pt
    reached = []

    def timed_should_stop(run):
        if run.step < run.total and run.seconds >= seconds and not run.signals:
            run.signals.append(signal.SIGINT)
            reached.append(run.step)
        elif run.seconds > saved[0] + 120:
            save(run, "last.pt")
            saved[0] = run.seconds
        return should_stop(run)

    def save_twice(run, name, **more):
        if reached:  # first, because once last.pt is past the time, these cannot be had any more
            save(run, f"kept/{goal.name}", optimizers={})
        save(run, name, **more)

    return mock.patch.multiple(training.Run, should_stop=timed_should_stop, save=save_twice)


# -------------------------------------------------------------------------------------- measuring


def real_images(row, fit, args):
    """(real images, others for the floor, what they are): each uint8 (n, C, H, W), n <= --images.

    An ablation chooses, and gets those that may choose. All others have never chosen anything.
    """
    choosing = bool(args.ablation)
    train_set, held_out = datasets.load_parts(data_of(row, args), row.size, fit=fit)
    others = torch.arange(len(train_set.images))
    if held_out is None:
        tenth = datasets.test_rows(len(others))
        others = others[~torch.isin(others, tenth)]
        rows = tenth if choosing else others
    else:  # as in datasets.reference_images, where the first half chooses best.pt
        order = datasets.shuffled(len(held_out.images), 0)
        rows = order[0::2] if choosing else order[1::2]
    n = min(args.images, len(rows), len(others) // 2)
    rows = rows[datasets.shuffled(len(rows), 2)[:n]]
    others = others[datasets.shuffled(len(others), 2)[-n:]]  # the last: both may be the same set
    pool, words = datasets.measured_on(train_set, held_out)
    return pool.images[rows], train_set.images[others], f"{words} images of {pool.name}"


def measure(row, path, args, weights):
    """What there is to say about a checkpoint: a dict of plain values."""
    checkpoint = training.read_checkpoint(path)
    script, model = training.open_model(checkpoint, args.device)
    real, floor, real_words = real_images(row, checkpoint["flags"]["fit"], args)
    seed = LATENTS + bool(args.ablation)
    generated = script.generate(model, len(real), seed)
    how = {"dims": [DIM], "weights": weights, "device": args.device}
    how |= {"real_words": real_words, "fake_words": f"generated images, latent seed {seed}"}
    values = metrics.evaluate(real, generated, floor, **how)
    point = {"seconds": checkpoint["seconds"], "step": checkpoint["step"]}
    point["images"] = checkpoint["drawn"] * checkpoint["flags"]["batch"]
    point["ended"] = checkpoint["step"] == checkpoint["total"]
    point["computed in"] = checkpoint["flags"]["precision"]
    point["values"] = [value for value in values if value["name"].startswith(NUMBERS)]
    return point


def common(args):
    """What all points of a table share, because otherwise they do not compare."""
    machine = f"{args.device.type}, {torch.get_num_threads()} threads of {step.processor()}"
    if args.device.type == "cuda":
        machine = torch.cuda.get_device_name(args.device)
    return {"machine": f"{machine}, torch {torch.__version__}", "--images": args.images}


def run_all(args, rows, weights, base):
    """Train and measure what is missing. base: the path of the results without their ending."""
    points = read_points(base, args)
    wanted = {name: settings(row, args) for name, row in rows.items()}
    for key, point in list(points.items()):
        if wanted.get(point["row"], point["settings"]) != point["settings"]:
            print(f"dropped: {point['row']} after {point['minutes']:g} minutes, of other flags")
            del points[key]
    commit = subprocess.getoutput(f'git -C "{ROOT}" rev-parse --short=10 HEAD')  # or why not
    shared = common(args) | {"commit": commit}
    jobs = [(name, seed) for seed in args.seeds for name in rows]
    for i, (name, seed) in enumerate(jobs):
        text = f"{base.name}-{name}-{zlib.crc32(wanted[name].encode()):08x}-seed-{seed}"
        folder = base.parent / "runs" / re.sub("[^a-z0-9.]+", "-", text)
        for minutes in args.minutes:
            key = (name, seed, minutes)
            if "values" not in points.get(key, {}):
                print(f"\n[{i + 1}/{len(jobs)}] {name}, seed {seed}, {minutes:g} minutes")
                point = {"row": name, "seed": seed, "minutes": minutes, **shared}
                point |= {"settings": wanted[name], "set": f"{rows[name].data}-{rows[name].size}"}
                try:
                    path = train(rows[name], seed, minutes, folder, args)
                    point["checkpoint"] = path.relative_to(base.parent).as_posix()
                    points[key] = point | measure(rows[name], path, args, weights)
                except (InputError, torch.OutOfMemoryError) as problem:  # the other rows go on
                    points[key] = point | {"problem": sources.short(problem)}
                write_results(base, points)
                print(", ".join(f"{title} {text}" for title, text in cells(points[key]).items()))
            if points[key].get("ended"):
                break
    write_results(base, points)


# ---------------------------------------------------------------------------------------- results


def read_points(base, args):
    """{(row, seed, minutes): point} of base.jsonl; {} if there is none. Raises InputError."""
    path = Path(f"{base}.jsonl")
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    points = {}
    try:
        for point in map(json.loads, lines):
            points[point["row"], point["seed"], point["minutes"]] = point
            for name, value in common(args).items():
                if point[name] != value:
                    raise InputError(f"'{path}' has {name} {point[name]}: give another --to")
    except (ValueError, TypeError, KeyError):
        raise InputError(f"'{path}' is damaged: restore it, or give another --to") from None
    return points


def cells(point):
    """{column: text} of a point."""
    result = {"row": point["row"], "seed": point["seed"], "minutes": f"{point['minutes']:g}"}
    if "problem" in point:
        return result | {"seconds": f"failed: {point['problem']}"}
    ended = " (its end)" if point["ended"] else ""
    result |= {"seconds": f"{point['seconds']:.1f}{ended}", "step": f"{point['step']:,}"}
    result |= {"images": f"{point['images']:,}", **numbers(point, "value")}
    return result | {name: point[name] for name in ("computed in", "commit", "checkpoint")}


def numbers(point, key):
    """{title: text}. key: "value", or "real" for real images."""
    return {metrics.title(value): metrics.format_value(value, key) for value in point["values"]}


def write_results(base, points):
    """Write base.jsonl, base.md and base.png. points: {key: point}."""
    write_text(f"{base}.jsonl", "".join(f"{json.dumps(point)}\n" for point in points.values()))
    ordered = [point for _, point in sorted(points.items())]
    write_text(f"{base}.md", markdown_page(by_set(ordered)))
    if measured := [point for point in ordered if "values" in point]:
        sources.write_bytes(f"{base}.png", figure(by_set(measured)))


def by_set(points):
    """{data set and size: its points}."""
    groups = {}
    for point in points:
        groups.setdefault(point["set"], []).append(point)
    return groups


def markdown_page(groups):
    """A table for each data set, and how it was measured."""
    about = "images: real images seen in training; each one counts every time."
    lines = ["# After minutes of training", "", about]
    for name, group in groups.items():
        measured = [point for point in group if "values" in point]
        table = [cells(point) for point in group]
        table += [{"row": "real images", **numbers(point, "real")} for point in measured[:1]]
        columns = list(dict.fromkeys(column for row in table for column in row))
        texts = [columns, ["---"] * len(columns)]
        texts += [[markdown(row.get(column, "")) for column in columns] for row in table]
        lines += ["", f"## {name}", "", *(f"| {' | '.join(row)} |" for row in texts), ""]
        protocols = dict.fromkeys(point["values"][0]["protocol"] for point in measured)
        lines += [f"{markdown(words)}." for words in (group[0]["machine"], *protocols)]
    return "\n".join([*lines, ""])


def figure(groups):
    """FID over minutes and over images, the mean of all seeds, a column of panels for each set."""
    drawing = report.new_figure(5 * len(groups), 8, "mean of all seeds; dotted: real images")
    columns = drawing.subplots(2, len(groups), squeeze=False).T
    for column, (name, group) in zip(columns, groups.items(), strict=True):
        lines = {}  # row -> minutes -> (minutes, thousand images, FID) of each seed
        for point in group:
            fid = point["values"][0]
            place = (point["seconds"] / 60, point["images"] / 1000, fid["value"])
            lines.setdefault(point["row"], {}).setdefault(point["minutes"], []).append(place)
        for x, axis in enumerate(column):
            curves = []
            for i, (row, times) in enumerate(lines.items()):
                means = np.array([np.mean(places, axis=0) for _, places in sorted(times.items())])
                curves.append((row, means[:, x], means[:, 2], f"C{i}"))
            report.draw_panel(axis, curves, [fid["real"]])
            axis.axhline(fid["real"], ls=":")
            xlabel = ("minutes of training", "thousand images")[x]
            axis.set(xlim=0, xlabel=xlabel, ylabel=fid["name"])
        column[0].set_title(name)
        column[0].legend(fontsize=7)
    return report.figure_png(drawing)


def write_grids(args, rows, base):
    """64 images of each row, of its first seed after the last of --minutes, under random letters.

    They are <base>-grids/<data>-<letter>.png. <base>-grids-key.json says which is which.
    """
    key_file = Path(f"{base}-grids-key.json")
    if key_file.exists():
        raise InputError(f"'{key_file}' is there: new grids have other letters; remove it for them")
    points = read_points(base, args)
    chosen = {}  # row -> its point
    for (name, seed, minutes), point in points.items():
        if name in rows and seed == args.seeds[0] and "values" in point:
            if minutes == args.minutes[-1] or (minutes < args.minutes[-1] and point["ended"]):
                chosen[name] = point
    print(f"not measured, and left out: {', '.join(rows.keys() - chosen) or 'none'}")
    key = {}
    for data, group in by_set(chosen.values()).items():
        random.shuffle(group)
        for i, point in enumerate(group):
            checkpoint = training.read_checkpoint(base.parent / point["checkpoint"])
            script, model = training.open_model(checkpoint, args.device)
            picture = datasets.grid(script.generate(model, 64, LATENTS + 2), 8)
            label = f"{data}-{chr(ord('A') + i % 26)}{i // 26 or ''}"
            datasets.save_picture(datasets.enlarged(picture), f"{base}-grids/{label}.png")
            key[label] = {"row": point["row"], "checkpoint": point["checkpoint"]}
    write_text(key_file, json.dumps(key, indent=1))
    print(f"wrote {len(key)} grids to {base}-grids; which is which: {key_file}")


def main(argv=None):
    args = parse_args(argv)
    args.device, _ = training.pick_device(args.device)
    rows = chosen_rows(args)
    base = Path(args.to, f"ablation-{args.ablation}" if args.ablation else "quality")
    if args.grids:
        return write_grids(args, rows, base)
    weights = metrics.load_weights(args.weights)
    metrics.require(weights, DIM)
    (base.parent / "runs").mkdir(parents=True, exist_ok=True)
    with sources.locked(base.parent / "runs" / ".lock", busy=f"'{args.to}' is in use"):
        sources.remove_half_written(base.parent)
        run_all(args, rows, weights, base)
    print(f"\nwrote {base}.jsonl, {base}.md and {base}.png")


if __name__ == "__main__":
    run_program(main)
