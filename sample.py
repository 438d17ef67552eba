# /// script
# requires-python = ">=3.10"
# dependencies = ["torch>=2.6", "torchvision", "numpy", "scipy", "pillow", "tqdm", "matplotlib"]
# ///
"""sample.py: make images with a trained model.

    python sample.py runs/dcgan-shapes-1 --count 64 --to grid.png    # one picture, enlarged
    python sample.py runs/dcgan-shapes-1 --count 5000 --to images/   # a PNG file for each image
    python sample.py runs/cgan-shapes-1 --class star --to stars.png  # one class
    python sample.py runs/cgan-shapes-1 --interpolate 12 --walk classes
    python sample.py runs/vae_mlp-photos-1 --interpolate 9 --walk images --data photos/

RUN, a run directory or a checkpoint (.pt), comes first. --to means a picture if it ends in .png,
else a folder; with a slash at the end it is always a folder. Image k depends on the seed and on k
only, and is written as soon as it is made. If you stop while a folder is being filled, the same
command goes on, and a larger --count adds images to it. In the folder of a conditional model, each
class has a sub-folder. Some models have sampling flags of their own, such as --guidance:
`python sample.py RUN --help` lists them.

The script that made the model must lie next to this file (dcgan.py, or your renamed copy of it).
"""

import signal

if __name__ == "__main__":  # Ctrl-C during the imports is silent; run_program takes over later
    signal.signal(signal.SIGINT, signal.SIG_DFL)

import functools
import hashlib
import json
import math
import os
import re
import sys
from itertools import pairwise
from pathlib import Path

import torch
from PIL import Image, ImageDraw, ImageFont
from tqdm import tqdm

import datasets
import training
from sources import (
    InputError,
    check_output,
    new_parser,
    number,
    printable,
    remove_half_written,
    run_program,
    write_text,
)

CHUNK = 16  # images made at a time for a folder; on a GPU more
LARGEST = 2**27  # pixels of a picture; Pillow itself refuses to open one of 179 million
ROWS = 8  # walks in a picture
MAX_COLUMNS = 16  # of a grid with a row for each class
AT_LEAST = 512  # pixels: the height to which grids are enlarged


def parse_args(argv=None):
    """Command line -> (Namespace, script, model, checkpoint).

    Flags of SAMPLING that the script of the model has are added to ours. Their values are None
    where the model's own are to be used.
    """
    parser = new_parser("sample.py", __doc__)
    parser.usage = "sample.py RUN [flags]"
    add = parser.groups["data"].add_argument
    add("run", metavar="RUN", help="a run directory or a checkpoint")
    add("--count", type=number(int, 1, 10**9), default=64, help="how many images")
    add("--to", metavar="PATH", help="FILE.png for one picture, or a folder [a picture]")
    add("--class", dest="class_name", metavar="NAME", help="images of this class only")
    add("--interpolate", type=number(int, 2, 1000), metavar="N", help="8 walks of N images each")
    add("--walk", metavar="KIND", help="spherical, linear, classes or images [the model's first]")
    add("--data", metavar="NAME|PATH", help="for --walk images: real images to walk between")
    add = parser.groups["run"].add_argument
    add("--seed", type=number(int, 0, 2**32), default=0, help="another seed gives other images [0]")
    add("--weights", choices=["ema", "plain"], default="ema", help="which weights of the model")
    add("--checkpoint", choices=["best", "last"], default="last", help="best.pt or last.pt")
    add("--device", default="auto", help="auto, cpu, cuda, cuda:1 or mps")
    words = sys.argv[1:] if argv is None else argv
    without_help = [word for word in words if word not in ("-h", "--help")]
    args, _ = parser.parse_known_args(without_help or words)  # --help alone ends here
    path = Path(args.run)
    if path.is_dir():
        path = path / f"{args.checkpoint}.pt"
    checkpoint = training.read_checkpoint(path)
    device, _ = training.pick_device(args.device)
    script, model = training.open_model(checkpoint, device, args.weights)
    for name, (_, kind, words) in getattr(script, "SAMPLING", {}).items():
        add(f"--{name.replace('_', '-')}", type=kind, help=f"{words} [{checkpoint['flags'][name]}]")
    return parser.parse_args(argv), script, model, checkpoint


def class_names(script, checkpoint):
    """The classes that the model makes images of, or [] if it knows no classes."""
    names = [printable(name) for name in checkpoint["data"]["classes"]]
    conditional = hasattr(script, "asked_labels") and len(names) > 1
    return names if conditional else []


def check(args, script, classes):
    """Find what is wrong before the slow work, and complete args.walk."""
    if args.class_name is not None and not classes:
        raise InputError("this model makes images without classes: leave out --class")
    if args.class_name is not None and printable(args.class_name) not in classes:
        raise InputError(f"no class '{args.class_name}': this model knows {', '.join(classes)}")
    if args.interpolate is None:
        if args.walk or args.data:
            raise InputError("--walk and --data go with --interpolate N")
    else:
        args.walk = args.walk or script.WALKS[0]
        if args.walk not in script.WALKS:
            raise InputError(f"--walk {args.walk}: this model can walk {', '.join(script.WALKS)}")
        if args.data and args.walk != "images":
            raise InputError("--data goes with --walk images")


def check_target(args, size):
    """Find what is wrong with --to, and set args.to, a Path, and args.to_folder, which says whether
    it means a folder. size: of an image, in pixels."""
    text = args.to or ("generated.png" if args.interpolate is None else "interpolation.png")
    args.to = Path(text)
    args.to_folder = not text.lower().endswith(".png")
    if args.to_folder:
        if args.interpolate is not None:
            raise InputError(f"--to {text}: walks make one picture, so give a FILE.png")
        of_a_file = re.fullmatch(r"\.[^\W\d]\w*|\.7z", args.to.suffix)  # not that of run1.5
        if of_a_file and not text.endswith(("/", os.sep)) and not args.to.is_dir():
            raise InputError(f"--to {text}: give a FILE.png for one grid, or a folder and a slash")
        check_output(args.to / "made_by.json")
        return
    images = args.count if args.interpolate is None else ROWS * args.interpolate
    if images * (size + 2) ** 2 > LARGEST:
        raise InputError(f"{images} images are too many for one picture: give a folder to --to")
    check_output(args.to)


# ------------------------------------------------------------------------------- rows with names


@functools.cache
def font(size):
    """matplotlib's DejaVu, which has most alphabets. Pillow's own has little but English."""
    try:
        import matplotlib

        path = Path(matplotlib.get_data_path(), "fonts", "ttf", "DejaVuSans.ttf")
        return ImageFont.truetype(str(path), size)
    except (ImportError, OSError):
        return ImageFont.load_default(size)


def write_words(picture, place, words, size=16, color="#222222", width=math.inf):
    """Write at `place` = (x, y), with the middle of the letters at height y, cut off at `width`."""
    words = printable(words)
    while len(words) > 1 and font(size).getlength(words) > width:
        words = words.removesuffix("…")[:-1] + "…"
    ImageDraw.Draw(picture).text(place, words, fill=color, font=font(size), anchor="lm")


def labelled_rows(rows, caption=""):
    """Rows [(label, picture), ...] of equal size -> one picture with the labels at the left.

    A label that is None is a gap between groups of rows. The caption goes below, line by line.
    """
    gap = 6
    left = 24 + math.ceil(max(font(16).getlength(label) for label, _ in rows if label is not None))
    height = rows[0][1].height
    heights = [2 * gap if label is None else height + gap for label, _ in rows]
    lines = caption.splitlines()
    below = 8 + 18 * len(lines) if lines else 0
    total = gap + sum(heights)
    page = Image.new("RGB", (left + rows[0][1].width + gap, total + below), "white")
    top = gap
    for (label, picture), step in zip(rows, heights, strict=True):
        if label is not None:
            write_words(page, (12, top + height // 2), label)
            page.paste(picture, (left, top))
        top += step
    for index, line in enumerate(lines):
        write_words(page, (left, total + 10 + 18 * index), line, 13, "#777777")
    return page


# ------------------------------------------------------------------------------------ what to make


def enlarged_rows(rows):
    """Rows [(name, picture), ...] -> one picture, with the names at the left of the rows."""
    factor = math.ceil(AT_LEAST / sum(picture.height for _, picture in rows))
    return labelled_rows([(name, datasets.enlarged(p, factor * p.height)) for name, p in rows])


def class_grid(args, script, model, classes, sampling):
    """A grid with at least one row for each class, and its name at the left."""
    counts = torch.bincount(torch.arange(args.count) % len(classes)).tolist()
    columns = min(MAX_COLUMNS, counts[0])
    rows = []
    for label, count in enumerate(counts):
        images = script.generate(model, count, args.seed, label=label, **sampling)
        white = images.new_full((-count % columns, *images.shape[1:]), 255)
        name = classes[label]
        for row in torch.cat([images, white]).split(columns):
            rows.append((name, datasets.grid(row, columns)))
            name = ""
    return enlarged_rows(rows)


def walk_grid(args, script, model, checkpoint, classes, sampling):
    """A walk in each row of a grid. sampling: more arguments for the script's walk()."""
    if args.walk == "images":
        sampling = {**sampling, "images": walk_ends(args.data, checkpoint)}
    frames = args.interpolate
    images = script.walk(model, args.walk, ROWS, frames, args.seed, **sampling)
    if args.walk == "images" or args.class_name is not None or not classes:
        return datasets.enlarged(datasets.grid(images, frames), AT_LEAST)
    # without a label, walk() takes the next class for every row
    names = [classes[row % len(classes)] for row in range(ROWS + 1)]
    if args.walk == "classes":
        names = [f"{name} to {next_name}" for name, next_name in pairwise(names)]
    pictures = [datasets.grid(row, frames) for row in images.split(frames)]
    return enlarged_rows(list(zip(names, pictures, strict=False)))


def walk_ends(data, checkpoint):
    """The Images of --data between which to walk, or None: the examples in the checkpoint."""
    if data is None:
        return None
    flags = checkpoint["flags"]
    parts = datasets.load_parts(data, flags["size"], fit=flags["fit"])
    ends, _ = datasets.measured_on(*parts)
    channels = ends.images.shape[1]
    needed = checkpoint["data"]["channels"]
    if channels != needed:
        raise InputError(f"'{data}' has {channels} channels, and the model needs {needed}")
    return ends


def folder_names(classes):
    """A folder name for each class, without letters that a file system may refuse."""
    names = [re.sub(r"[^\w -]", "_", name).strip()[:100] or "_" for name in classes]
    if len({name.casefold() for name in names}) < len(names):
        names = [f"{index:03d}_{name}" for index, name in enumerate(names)]
    return names


def digest(model):
    """A hash of all weights, so that a folder never mixes the images of two models."""
    result = hashlib.sha256()
    for tensor in model.state_dict().values():
        result.update(tensor.cpu().contiguous().numpy().tobytes())
    return result.hexdigest()[:16]


def check_folder(folder, note, count):
    """Check that a folder is empty, or was begun by the same command and has no more images than
    `count`: programs that read it, such as metrics.py, take all. note: of its made_by.json."""
    path = folder / "made_by.json"
    if path.is_file():
        if path.read_text(encoding="utf-8", errors="replace") != note:
            words = "holds other files, of another model, seed or flags (see made_by.json)"
            raise InputError(f"'{folder}' {words}: choose another --to")
        last = max([int(p.stem) for p in folder.glob("**/*.png") if p.stem.isdecimal()], default=0)
        if last >= count:
            words = f"holds images up to {last:05d}.png"
            raise InputError(f"'{folder}' {words}: give --count {last + 1}, or choose another --to")
        remove_half_written(folder)
    elif any(file.suffix != ".tmp" for file in folder.glob("*")):
        raise InputError(f"'{folder}' holds other files: choose another --to")


def is_whole(path):
    """Whether a PNG file is there to its end, which a crash of the machine may have cut off."""
    return path.is_file() and path.read_bytes().endswith(b"IEND\xaeB`\x82")


def fill_folder(args, script, model, checkpoint, classes, sampling):
    """Write image k to <folder>[/<class>]/<k>.png, those that are not there yet.

    sampling: more arguments for the script's generate(). Returns how many it has written.
    """
    made_by = {"script": script.SCRIPT, "step": checkpoint["step"], "weights": digest(model)}
    note = json.dumps({**made_by, "seed": args.seed, **sampling}, indent=1)
    check_folder(args.to, note, args.count)
    folders = [args.to / name for name in folder_names(classes)] or [args.to]
    chunk = CHUNK if next(model.parameters()).device.type == "cpu" else 8 * CHUNK
    already = 0  # there from before
    written = 0
    try:
        for first in tqdm(range(0, args.count, chunk), unit=f"x {chunk} images", disable=None):
            count = min(chunk, args.count - first)
            labels = [sampling.get("label", 0)] * count
            if classes and "label" not in sampling:
                labels = script.asked_labels(model, count, args.seed, first).tolist()
            paths = [folders[label] / f"{k:05d}.png" for k, label in enumerate(labels, first)]
            missing = [k for k, path in enumerate(paths) if not is_whole(path)]
            already += count - len(missing)
            if not missing:
                continue
            images = script.generate(model, count, args.seed, first, **sampling)
            if first == 0:  # not before: generate() may refuse a flag
                args.to.mkdir(parents=True, exist_ok=True)
                # again: another program may have begun meanwhile
                check_folder(args.to, note, args.count)
                write_text(args.to / "made_by.json", note)
            for k in missing:
                datasets.save_picture(datasets.grid(images[k : k + 1]), paths[k])
                written += 1
    except KeyboardInterrupt:
        words = f"stopped: {already + written} of {args.count} images are in {printable(args.to)}"
        print(f"{words}; the same command goes on with it", file=sys.stderr)
        raise
    return written


def main(argv=None):
    args, script, model, checkpoint = parse_args(argv)
    classes = class_names(script, checkpoint)
    check(args, script, classes)
    check_target(args, checkpoint["data"]["size"])
    sampling = {}  # what goes to generate() and walk() besides the usual
    if args.class_name is not None:
        sampling["label"] = classes.index(printable(args.class_name))
    given = {name: getattr(args, name) for name in getattr(script, "SAMPLING", {})}
    sampling |= {name: value for name, value in given.items() if value is not None}
    if args.to_folder:
        written = fill_folder(args, script, model, checkpoint, classes, sampling)
        words = f"wrote {written} images to {printable(args.to)}"
        if written < args.count:
            words += f"; {args.count - written} were there already"
    else:
        if args.interpolate is not None:
            picture = walk_grid(args, script, model, checkpoint, classes, sampling)
        elif classes and args.class_name is None:
            picture = class_grid(args, script, model, classes, sampling)
        else:
            images = script.generate(model, args.count, args.seed, **sampling)
            picture = datasets.enlarged(datasets.grid(images), AT_LEAST)
        datasets.save_picture(picture, args.to)
        words = f"wrote {printable(args.to)}"
    print(f"{script.SCRIPT}, {training.weights_used(checkpoint, args.weights)}\n{words}")


if __name__ == "__main__":
    run_program(main)
