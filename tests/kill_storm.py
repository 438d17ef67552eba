"""Kill training runs at random moments, and check that nothing is lost.

    python tests/kill_storm.py                                # 90 kills over all seven scripts
    python tests/kill_storm.py --kills 6 --scripts vae_mlp

Each script trains once without interruption. Then it trains again and is ended by SIGKILL, SIGTERM
or SIGINT, just before a random file operation or at a random time: while data are prepared, while a
checkpoint, a picture or a row of the log is written, during the final metrics and in the middle of
the report. It is resumed, and ended again, until it is done. Then

- weights, buffers, optimizers, random states, log, histograms, pictures, metrics.json and plots
  equal those of the uninterrupted run, bit for bit (on the CPU in fp32, with one thread),
- no temporary file is left, and no process printed a traceback.

Every process is a fork of this one, which has imported everything already, so a kill costs two
seconds and not ten. The file operations are seen by an audit hook.
"""

import argparse
import functools
import json
import os
import random
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from pathlib import Path

for variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ[variable] = "1"  # bits can depend on the number of threads
ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import matplotlib.figure  # noqa: E402, F401
import numpy as np  # noqa: E402
import scipy.linalg  # noqa: E402, F401
import torch  # noqa: E402
from PIL import Image  # noqa: E402
from torchvision.models.inception import BasicConv2d  # noqa: E402

import metrics  # noqa: E402
import report  # noqa: E402, F401
import sources  # noqa: E402
import training  # noqa: E402

COMMON = "--data photos --size 16 --width 4 --batch 8 --steps 14 --device cpu --precision fp32"
COMMON += " --log-every 3 --sample-every 5 --save-every 4"
COMMON += " --eval-every 6 --eval-images 8 --dims 64 --weights weights.pth"
NOISE = "--ema 0.9 --noise 0.1 --noise-steps 10 --lr-decay 0.99"
VAE = "--ema 0.9 --lr-decay 0.99 --likelihood sigma --kl-warmup 9 --hold-out 20 --latent-dim 6"
SCRIPTS = {  # script: a preset with a report, and everything that has a state of its own
    "dcgan": f"--preset cats {NOISE} --d-steps 2",
    "wgan_gp": f"--preset small-gan {NOISE} --critic-steps 2 --stages 2 --stage-steps 7 "
    "--fade-steps 3",
    "vae_mlp": f"--preset cats {VAE}",
    "cvae": f"--preset animals {VAE} --balance",
    "cgan": f"--preset animals {NOISE} --d-steps 2 --r1 1 --r1-every 3 --augment --latent-dim 6",
    "gan_resnet": f"--preset cifar10-conditional {NOISE} --g-steps 2",
    "ddpm": "--preset mnist --ema 0.9 --blocks 1 --timesteps 20 --sample-steps 2 --flip --balance",
}
SIGNALS = [signal.SIGKILL, signal.SIGKILL, signal.SIGKILL, signal.SIGTERM, signal.SIGINT]
CLOCK = ("seconds", "img_per_s")  # columns of log.csv that no two runs share
KINDS = [  # what a file operation belongs to: part of the path, name
    ("data", "preparation"),
    ("last.pt", "checkpoint"),
    ("best.pt", "checkpoint"),
    ("samples", "picture"),
    ("reconstructions", "picture"),
    ("log.csv", "log"),
    ("weights.csv", "log"),
    ("args.json", "start or end"),
    ("source.py", "start or end"),
    ("metrics.json", "final metrics"),
    ("", "report"),
]


def make_inputs(folder):
    """photos/, 90 images in three classes, and weights.pth, random ones of Inception's start."""
    generator = np.random.default_rng(0)
    for k in range(90):
        path = folder / "photos" / "abc"[k % 3] / f"{k:02d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = generator.integers(0, 256, (4, 4, 3), dtype=np.uint8)
        Image.fromarray(pixels.repeat(4, 0).repeat(4, 1)).save(path)
    torch.manual_seed(0)
    layers = {
        "Conv2d_1a_3x3": BasicConv2d(3, 32, kernel_size=3, stride=2),
        "Conv2d_2a_3x3": BasicConv2d(32, 32, kernel_size=3),
        "Conv2d_2b_3x3": BasicConv2d(32, 64, kernel_size=3, padding=1),
    }
    torch.save(torch.nn.ModuleDict(layers).state_dict(), folder / "weights.pth")


# ---------------------------------------------------------------------------------------- processes


class Bomb:
    """An audit hook that ends this process just before file operation `number` of those that write
    below the current folder."""

    def __init__(self, number, which):
        self.count = 0
        self.number = number
        self.which = which
        self.folder = os.getcwd()

    def __call__(self, event, arguments):
        if event == "open":
            writes = isinstance(arguments[1], str) and set(arguments[1]) & set("wax+")
        else:
            writes = event in ("os.rename", "os.remove", "os.mkdir")
        if not writes or not isinstance(arguments[0], (str, os.PathLike)):
            return
        path = os.path.join(self.folder, os.fspath(arguments[0]))
        if not path.startswith(self.folder):
            return
        self.count += 1
        if self.count == self.number:
            if event == "open" and arguments[1] == "a" and self.which == signal.SIGKILL:
                with open(path, "ab") as file:  # a row that is cut in two
                    file.write(b"9,0.5,1.2")
            os.write(2, f"ended before {event} {os.path.relpath(path)}\n".encode())
            os.kill(os.getpid(), self.which)


def child(name, flags, bomb):
    """In the forked process: the program, up to its exit code."""
    code = 1
    try:
        output = os.open("output.txt", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(output, 1)
        os.dup2(output, 2)
        if bomb:
            sys.addaudithook(bomb)
        sys.argv = [f"{name}.py", *flags]
        sources.run_program(training.load_script(name).main)
        code = 0
    except SystemExit as stop:
        code = stop.code
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        if bomb and code == 0:
            os.write(2, f"operations: {bomb.count}\n".encode())
        os._exit(code)


def run(name, folder, operation=None, seconds=None, which=signal.SIGKILL):
    """Begin or resume the run in folder/run, and end it before a file operation or after some
    seconds. Returns (exit code, negative for a signal; what the process printed)."""
    flags = ["--resume", "run"]
    if not (folder / "run/last.pt").exists():
        flags = [*COMMON.split(), *SCRIPTS[name].split(), "--out", "run"]
    here = os.getcwd()
    os.chdir(folder)
    process = os.fork()
    if process == 0:
        child(name, flags, Bomb(operation, which) if operation is not None else None)
    os.chdir(here)
    end = time.monotonic() + (seconds or 600)
    while True:
        ended, status = os.waitpid(process, os.WNOHANG)
        if ended:
            break
        if time.monotonic() > end:
            os.kill(process, which)
            end += 600
        time.sleep(0.005)
    output = (folder / "output.txt").read_text(encoding="utf-8", errors="replace")
    return os.waitstatus_to_exitcode(status), output


# -------------------------------------------------------------------------------------- comparison


def difference(a, b):
    """Where two nested structures with tensors differ first, or ""."""
    if isinstance(a, dict) and isinstance(b, dict) and a.keys() == b.keys():
        parts = [(str(key), a[key], b[key]) for key in a]
    elif isinstance(a, list) and isinstance(b, list) and len(a) == len(b):
        parts = [(str(index), x, y) for index, (x, y) in enumerate(zip(a, b, strict=True))]
    elif isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor):
        return "" if a.dtype == b.dtype and torch.equal(a, b) else "differs"
    else:
        return "" if a == b else f"{a!r:.60} is not {b!r:.60}"
    for key, x, y in parts:
        if below := difference(x, y):
            return f"{key}: {below}"
    return ""


def content(path):
    """A file of a run as something to compare."""
    if path.suffix == ".pt":
        return {k: v for k, v in training.read_checkpoint(path).items() if k != "seconds"}
    if path.name == "log.csv":
        rows = sources.read_log(path)
        return [{k: v for k, v in row.items() if k not in CLOCK} for row in rows]
    if path.suffix == ".json":
        return json.loads(path.read_text(encoding="utf-8"))
    return path.read_bytes()


def problems(whole, folder):
    """What is not as in the uninterrupted run: a list of words."""
    result = [f"left: {path.name}" for path in folder.rglob("*.tmp")]
    files = [path.relative_to(whole / "run") for path in (whole / "run").rglob("*")]
    others = [path.relative_to(folder / "run") for path in (folder / "run").rglob("*")]
    odd = set(files) ^ set(others)
    result += [f"only in one run: {path}" for path in odd if path.suffix != ".tmp"]
    for path in sorted(set(files) & set(others)):
        if (whole / "run" / path).is_file():
            words = difference(content(whole / "run" / path), content(folder / "run" / path))
            result += [f"{path}: {words}"] if words else []
    return result


# --------------------------------------------------------------------------------------------- main


def kind_of(output):
    """What the process did when it ended before a file operation."""
    for line in output.splitlines():
        if line.startswith("ended before "):
            path = line.split(" ", 3)[3]
            return next(kind for part, kind in KINDS if part in path)
    return "at a random time"


def storm(name, kills, chance, base):
    """End runs of a script `kills` times. Returns (Counter of what they did, list of problems)."""
    whole = base / "whole"
    whole.mkdir(parents=True)
    make_inputs(whole)
    begin = time.monotonic()
    code, output = run(name, whole, operation=10**9)
    if code:
        return Counter(), [f"the uninterrupted run ended with {code}: {output[-500:]}"]
    duration = time.monotonic() - begin
    operations = int(output.rsplit("operations: ", 1)[1])
    seen = Counter()
    found = []
    number = 0
    while sum(seen.values()) < kills:
        number += 1
        folder = base / f"storm-{number}"
        folder.mkdir()
        make_inputs(folder)
        code = 1
        while code != 0:
            when = {}
            if sum(seen.values()) < kills:
                when = {"operation": chance.randint(1, operations)}
                if chance.random() < 0.4:
                    when = {"seconds": chance.uniform(0, duration)}
            which = chance.choice(SIGNALS)
            code, output = run(name, folder, which=which, **when)
            words = f"{name} {folder.name} {when} {which.name}"
            if "Traceback" in output or code not in (0, -which, 128 + which):
                return seen, [*found, f"{words}: exit code {code}: {output[-1500:]}"]
            if code != 0:
                seen[kind_of(output)] += 1
        found += [f"{words}: {problem}" for problem in problems(whole, folder)]
        if found:
            return seen, found
    return seen, found


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--kills", type=int, default=90)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--scripts", nargs="+", choices=SCRIPTS, default=list(SCRIPTS))
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    metrics.conditional = functools.partial(metrics.conditional, steps=3)
    chance = random.Random(args.seed)
    total = Counter()
    failed = False
    for index, name in enumerate(args.scripts):
        share = (args.kills + index) // len(args.scripts)  # they add up to --kills
        with tempfile.TemporaryDirectory() as base:
            begin = time.monotonic()
            seen, found = storm(name, share, chance, Path(base))
        seconds = time.monotonic() - begin
        print(f"{name}: {sum(seen.values())} kills in {seconds:.0f} s, {len(found)} problems")
        for problem in found:
            print(f"  {problem}")
        sys.stdout.flush()
        total += seen
        failed = failed or bool(found)
    print(f"{sum(total.values())} kills: {dict(total.most_common())}")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
