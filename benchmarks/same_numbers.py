"""Does this edition compute the same numbers as the first one? Bit for bit, in fp32 on one core.

    python benchmarks/same_numbers.py                       # every case: about half an hour
    python benchmarks/same_numbers.py --only dcgan          # those whose name starts with "dcgan"
    python benchmarks/same_numbers.py --cache recorded/     # keep what the first edition computed

A case is a training run and perhaps some commands that use the trained model; same_numbers.txt
lists all cases. This program runs each case in both editions, each in a folder of its own, and
compares

    last.pt, best.pt    weights and buffers of every network, optimizers, random state, best FID
    log.csv             every column but the times
    weights.csv         the histograms of all layers
    metrics.json        every value
    *.png               the pixels of samples, reconstructions, generated images and walks

Networks and tensors may have other names now, so tensors are compared in order. The program prints
one line for each case: "equal", or the first difference. The exit code is 1 if anything differs.

The first edition is commit e34f961. Without --old, the program checks it out as a temporary git
worktree. Cases whose data or Inception weights are not on this machine are skipped.
"""

import signal

if __name__ == "__main__":  # Ctrl-C during the imports is silent; main takes over later
    signal.signal(signal.SIGINT, signal.SIG_DFL)

import argparse
import contextlib
import csv
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image

ROOT = Path(__file__).resolve().parent.parent
SHARED = ROOT.parent / "shared"
FIRST_EDITION = "e34f961"

# With an odd --log-every, most rows of the log are means over several steps, and a run that is
# interrupted leaves losses in its checkpoint that wait for their row.
TRAIN = "--out run --device cpu --precision fp32 --log-every 7 --sample-every 20 --seed"

# ---------------------------------------------------------------------------------- running a case


class Failed(Exception):
    """A command did not end as it should."""


def read_cases():
    """same_numbers.txt, which explains the words -> {name of a case: [(word, command), ...]}."""
    cases = {}
    for line in Path(__file__).with_suffix(".txt").read_text(encoding="utf-8").splitlines():
        word, _, text = line.partition(" ")
        if word == "case":
            commands = cases[text] = []
        elif word not in ("", "#"):
            commands.append((word, text.strip()))
    return cases


def selected(commands, words, args, seed):
    """The commands of a case that have one of these words, with the paths of this machine."""
    names = {
        "train": f"{TRAIN} {seed}",
        "fid": f"--eval-every 10 --eval-images 64 --dims 768 --weights {args.weights}",
        "metrics": f"--eval-every 10 --eval-images 24 --dims 192 --weights {args.weights}",
        "data": args.data_dir,
        "tiny": "--size 16 --width 8 --batch 16",
        "quiet": "--eval-images 0",
        "use": "--seed 5 --device cpu",
    }
    return [(word, command.format(**names)) for word, command in commands if word in words]


def run_case(commands, folder, tree):
    """Run the commands of a case one after the other, with the scripts of `tree`."""
    for word, command in commands:
        run(command, folder, tree, interrupt=word == "stop")


def run(command, folder, tree, interrupt):
    script, *flags = command.split()
    with open(folder / "output.txt", "a", encoding="utf-8") as output:
        process = subprocess.Popen(
            [sys.executable, tree / script, *flags],
            cwd=folder,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
            stdout=output,
            stderr=subprocess.STDOUT,
        )
        if interrupt:
            wait_for_lines(folder / "run" / "log.csv", 3, process)
            process.send_signal(signal.SIGINT)
        code = process.wait()
    if code != (128 + signal.SIGINT if interrupt else 0):
        lines = (folder / "output.txt").read_text(encoding="utf-8").strip().split("\n")
        raise Failed(f"{script} ended with exit code {code}: {lines[-1]}")


def wait_for_lines(path, count, process):
    """Wait until a file has so many lines, or until the process that writes it has ended."""
    while process.poll() is None:
        if path.exists() and path.read_text(encoding="utf-8").count("\n") >= count:
            return
        time.sleep(0.005)


def make_folder(path, data):
    """Make the folder of a case. All cases of one edition share the data that they prepare."""
    path.mkdir(parents=True)
    data.mkdir(parents=True, exist_ok=True)
    (path / "data").symlink_to(data, target_is_directory=True)


def recorded(name, commands, cache, tree):
    """The folder with what the first edition computed, from the cache or computed now."""
    folder = cache / name
    done = folder / "commands.json"  # written last: without it, the recording was interrupted
    if done.exists() and done.read_text() == json.dumps(commands):
        return folder
    shutil.rmtree(folder, ignore_errors=True)
    make_folder(folder, cache / "data")
    run_case(commands, folder, tree)
    done.write_text(json.dumps(commands))
    return folder


# --------------------------------------------------------------------------------------- comparing


def differences(old, new):
    """Yield a line for everything in which the folders of a case differ."""
    for name in ("run/last.pt", "run/best.pt"):
        if (old / name).exists() != (new / name).exists():
            yield f"{name} exists in one edition only"
        elif (old / name).exists():
            yield from unequal(name, read_checkpoint(old / name), read_checkpoint(new / name))
    for name in ("run/log.csv", "run/weights.csv"):
        old_columns = read_columns(old / name)
        new_columns = read_columns(new / name)
        for column in old_columns:
            place = f"{name}: {column}"
            yield from unequal(place, old_columns[column], new_columns.get(column))
    yield from unequal("metrics.json", read_values(old), read_values(new))
    old_pictures = read_pictures(old)
    new_pictures = read_pictures(new)
    yield from unequal("pictures", list(old_pictures), list(new_pictures))
    for name in old_pictures.keys() & new_pictures.keys():
        pixels = shrunk(new_pictures[name], old_pictures[name].shape)
        yield from unequal(name, old_pictures[name], pixels)


def unequal(name, old, new):
    """Yield a line for each difference between nested dicts and lists of tensors and values."""
    if isinstance(old, dict) and isinstance(new, dict):
        yield from unequal(f"{name}, names", list(old), list(new))
        for key in old:
            if key in new:
                yield from unequal(f"{name}, {key}", old[key], new[key])
    elif isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        for i, (old_value, new_value) in enumerate(zip(old, new, strict=True)):
            yield from unequal(f"{name} {i}", old_value, new_value)
    elif isinstance(old, torch.Tensor) and isinstance(new, torch.Tensor):
        if old.dtype != new.dtype or old.shape != new.shape:
            yield f"{name}: was {old.dtype} {list(old.shape)}, is {new.dtype} {list(new.shape)}"
        elif old.numpy().tobytes() != new.numpy().tobytes():
            distance = (old.double() - new.double()).abs().max().item()
            yield f"{name}, a tensor {list(old.shape)}: differs by up to {distance:.3g}"
    elif old != new:
        yield f"{name}: was {old}, is {new}"


def read_checkpoint(path):
    """What is compared of a checkpoint. Weights and optimizers have lost all names."""
    checkpoint = torch.load(path, weights_only=True)
    models = checkpoint.get("models") or checkpoint["networks"]
    optimizers = checkpoint.get("optimizers") or checkpoint["optimisers"]
    return {
        "step": checkpoint["step"],
        "images drawn": checkpoint["drawn"],
        "steps in an epoch": checkpoint["steps_per_epoch"],
        "data": checkpoint["data"]["fingerprint"],
        "weights": [list(model.values()) for model in models.values()],
        "optimizers": [optimizer_state(state) for state in optimizers.values()],
        "best FID": checkpoint["best"],
        "random state": checkpoint["rng"]["cpu"],
        "scale": checkpoint.get("scale"),
        "examples": checkpoint.get("examples"),
    }


def optimizer_state(state_dict):
    """Moments and hyperparameters, without the choice of an implementation (foreach, fused)."""
    names = ("lr", "betas", "eps", "weight_decay")
    groups = [[group[name] for name in names] for group in state_dict["param_groups"]]
    moments = [list(state.values()) for state in state_dict["state"].values()]
    return [groups, moments]


def read_columns(path):
    """A CSV file -> {column: its numbers and texts}, without times and names of layers."""
    with open(path, newline="", encoding="utf-8") as file:
        header, *lines = csv.reader(file)
    columns = {}
    for name, texts in zip(header, zip(*lines, strict=True), strict=True):
        if name not in ("seconds", "img_per_s", "network", "layer"):
            columns[name] = [number_or_text(text) for text in texts]
    return columns


def number_or_text(text):
    try:
        return float(text)
    except ValueError:
        return text


def read_values(folder):
    """metrics.json -> {name: [value, the same of real images]}; {} where there is none."""
    path = folder / "run" / "metrics.json"
    if not path.exists():
        return {}
    values = json.loads(path.read_text(encoding="utf-8"))["values"]
    return {value["name"]: [value["value"], value.get("real")] for value in values}


def read_pictures(folder):
    """What training and the commands after it wrote, without plots: {name: pixels}, sorted.

    sample.py puts the images of each class into a sub-folder, whose name is left out here.
    """
    pictures = {}
    for path in folder.rglob("*.png"):
        names = path.relative_to(folder).parts
        if names[0] != "run" and len(names) == 3:
            names = (names[0], names[2])
        if names[:-1] != ("run",):  # where the plots are
            pictures["/".join(names)] = torch.from_numpy(np.array(Image.open(path)))
    return dict(sorted(pictures.items()))


def shrunk(pixels, shape):
    """Undo the enlargement of a picture by a whole factor; else return it as it is."""
    factor = max(1, len(pixels) // shape[0])
    small = pixels[::factor, ::factor]
    enlarged = small.repeat_interleave(factor, 0).repeat_interleave(factor, 1)
    return small if enlarged.equal(pixels) else pixels


# -------------------------------------------------------------------------------------------- main


@contextlib.contextmanager
def first_edition(folder):
    """Check out the first edition as a git worktree in `folder`; remove it at the end."""
    worktree = ["git", "-C", ROOT, "worktree"]
    tree = folder / "first-edition"
    subprocess.run([*worktree, "add", "--quiet", "--detach", tree, FIRST_EDITION], check=True)
    try:
        yield tree
    finally:
        subprocess.run([*worktree, "remove", "--force", tree], check=True)


def missing_file(commands):
    """The first absolute path in the commands that does not exist here, or None."""
    for _, command in commands:
        for word in command.split():
            if os.path.isabs(word) and not os.path.exists(word):
                return word
    return None


def compare(name, args, cache, temporary):
    """Run one case -> "equal", "recorded", the first difference, or why it is skipped."""
    commands = read_cases()[name]
    old_commands = selected(commands, ("both", "old"), args, 0)
    new_commands = selected(commands, ("both", "new", "stop"), args, args.seed)
    absent = missing_file(old_commands)
    if absent:
        return f"skipped: no {absent}"
    try:
        old = recorded(name, old_commands, cache, args.old)
        if args.record:
            return "recorded"
        new = temporary / "new" / name
        make_folder(new, temporary / "new" / "data")
        run_case(new_commands, new, args.new)
    except Failed as error:
        return f"failed: {error}"
    return next(differences(old, new), "equal")[:200]


def parse_args():
    weights = SHARED / "weights" / "inception-2015-12-05-to-Mixed_6e.pth"
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--only", default="", metavar="TEXT", help="cases whose name starts with this")
    add("--record", action="store_true", help="run the first edition only, to fill the cache")
    add("--cache", type=Path, metavar="DIR", help="keep the first edition's results here")
    add("--old", type=Path, metavar="DIR", help="the first edition, if it is checked out already")
    add("--new", type=Path, metavar="DIR", default=ROOT, help="this edition, if it is not here")
    add("--data-dir", type=Path, metavar="DIR", default=SHARED / "data", help="the real data")
    add("--weights", type=Path, metavar="FILE", default=weights, help="weights of the Inception")
    add("--seed", type=int, default=0, help="of this edition; with any but 0, every case differs")
    return parser.parse_args()


def main():
    signal.signal(signal.SIGINT, signal.default_int_handler)
    args = parse_args()
    for name in ("old", "new", "data_dir", "weights"):
        path = getattr(args, name)
        setattr(args, name, path and path.resolve())
    names = [name for name in read_cases() if name.startswith(args.only)]
    results = []
    with contextlib.ExitStack() as stack:
        temporary = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        cache = (args.cache or temporary / "old").resolve()
        if args.old is None:
            args.old = stack.enter_context(first_edition(temporary))
        for name in names:
            results.append(compare(name, args, cache, temporary))
            print(f"{name:24s} {results[-1]}", flush=True)
    skipped = sum(result.startswith("skipped") for result in results)
    good = sum(result in ("equal", "recorded") for result in results)
    bad = len(results) - skipped - good
    word = "recorded" if args.record else "equal"
    print(f"{len(results)} cases: {good} {word}, {bad} different, {skipped} skipped")
    return 1 if bad else 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
