"""What does this GPU do with the collection? One command tests, times and trains on it.

    python benchmarks/gpu.py --data DIR --to OUT                      # 8 minutes
    python benchmarks/gpu.py --to OUT --only about tests speed-128    # needs no data
    python benchmarks/gpu.py --data DIR --to OUT --only no-noise-gan --minutes 2
    python benchmarks/gpu.py --data DIR --pack pack.zip               # to carry elsewhere
    python benchmarks/gpu.py --data pack.zip --to OUT --minutes 13

DIR holds zips of images whose names begin with cats, animals, food and cifar10, and the Inception
weights, a .pth file (sub-folders are searched, too). What is absent is not measured, and the report
says so. --pack is for a machine without a network that only small files can reach: it puts as much
of the data as 50 MiB hold into one file, and all cats into a second one, pack-cats.zip. --data
takes either.

The parts, in this order:

    about        the GPU, the versions, and how fast it computes and copies
    tests        the tests marked `gpu`
    speed-128    every script: images a second at batch 128, fp32 and bf16, with and without graphs
    cats         dcgan.py --preset cats, all 50 epochs, measured
    small-gan    wgan_gp.py --preset small-gan for 60 seconds, measured
    profile      the kernels in which three steps spend their time
    ...          seven more presets (see TRAININGS), each for its share of the time that is left
    metrics      Inception features a second
    speed-rest   as speed-128, at batch 64 and 512, if there is time left

Longer trainings run only if --only names them, because a share of 8 minutes shows little of them:

    cats-100k, food-noise                         dcgan.py, 100,000 and 200,000 steps
    no-noise-gan, multistep-critic, fade-in-gan   wgan_gp.py, 10,000 steps: a minute or two each
    large-gan                                     wgan_gp.py, 10,000 steps with 16 times the work
    ddpm-animals                                  ddpm.py, 100,000 steps
    wgan-best, cvae-best, ddpm-best, vae-best     the other presets `best`

A training ends after its steps or its share of --minutes. The parts run one after another: when
several trainings share a GPU, they take turns, and each runs 4 to 8 times slower (less with
NVIDIA's MPS: docs/speed.md).

Each part runs in a process of its own with a time limit, so a part that fails costs nothing else.
After each part OUT/gpu.json, OUT/gpu.md and OUT/pictures.zip (with the logs of trainings) hold all
that is known so far. If a part fails, the last 30 lines that it printed are in the report.

With --device cpu everything runs at a tiny size: a rehearsal, which says nothing about speed.
"""

import signal

if __name__ == "__main__":  # Ctrl-C during the imports is silent; run_program takes over later
    signal.signal(signal.SIGINT, signal.SIG_DFL)

import argparse
import collections
import contextlib
import gc
import importlib.util
import io
import itertools
import json
import multiprocessing
import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import traceback
import zipfile
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
import step

import datasets
import inception
import metrics
import training
from sources import (
    InputError,
    new_parser,
    number,
    printable,
    run_program,
    short,
    write_bytes,
    write_text,
)

ROOT = Path(__file__).resolve().parent.parent
SETS = ("cats", "animals", "food", "cifar10")
TESTS = ("test_captured.py", "test_scripts.py")  # those with tests marked gpu
PROFILED = {"dcgan": 128, "wgan_gp": 64, "ddpm": 64}  # batches of cats, small-gan and animals
BATCHES = {"speed-128": [128], "speed-rest": [64, 512]}

# part: script, preset (and flags), data set. The largest gain over the first edition comes first.
TRAININGS = {
    "cats": ("dcgan", "cats", "cats"),
    "small-gan": ("wgan_gp", "small-gan", "food"),
    "dcgan-best": ("dcgan", "best", "cats"),
    "cgan-animals": ("cgan", "animals", "animals"),
    "cgan-best": ("cgan", "best", "animals"),
    "cvae-animals": ("cvae", "animals", "animals"),
    "resnet-cifar10": ("gan_resnet", "cifar10", "cifar10"),
    "resnet-conditional": ("gan_resnet", "cifar10-conditional", "cifar10"),
    "ddpm-cifar10": ("ddpm", "cifar10", "cifar10"),
}
FIRST = ("about", "tests", "speed-128", "cats", "small-gan", "profile")
DEFAULT = (*FIRST, *(part for part in TRAININGS if part not in FIRST), "metrics", "speed-rest")

# These run if --only names them. Of the reports' 2,000,000 steps, 10,000 come first.
LONG = {
    "cats-100k": ("dcgan", "cats-100k", "cats"),
    "food-noise": ("dcgan", "food-noise", "food"),
    "no-noise-gan": ("wgan_gp", "no-noise-gan --steps 10000", "food"),
    "multistep-critic": ("wgan_gp", "multistep-critic --steps 10000", "food"),
    "fade-in-gan": ("wgan_gp", "fade-in-gan --steps 10000 --stage-steps 2000", "food"),
    "large-gan": ("wgan_gp", "large-gan --steps 10000", "food"),
    "ddpm-animals": ("ddpm", "animals", "animals"),
    "wgan-best": ("wgan_gp", "best", "food"),
    "cvae-best": ("cvae", "best", "animals"),
    "ddpm-best": ("ddpm", "best", "animals"),
    "vae-best": ("vae_mlp", "best", "cats"),
}
TRAININGS |= LONG
PARTS = (*DEFAULT, *LONG)

# How many of 480 seconds a part may take. The other trainings share what is left.
SECONDS = {
    "about": 10,
    "tests": 65,
    "speed-128": 70,
    "cats": 80,
    "small-gan": 65,
    "profile": 25,
    "metrics": 15,
}
OVERHEAD = 15  # seconds that a training needs besides: imports, preparation, samples, features

# --device cpu
TINY = "--size 16 --batch 8 --width 4"
TINY_MORE = {
    "ddpm": "--blocks 1 --timesteps 20 --sample-steps 2",
    "gan_resnet": "--size 32",
    "wgan_gp": "--size 32",  # for three stages
}


class Setup(NamedTuple):
    """What a part knows. It goes to another process, so it holds plain values only."""

    device: str
    tiny: bool
    data: dict  # name of a set -> path of its zip; "weights" -> path of the .pth
    work: Path  # for run directories and logs; deleted at the end
    seconds: float  # the time limit of the part


def parse_args(argv=None):
    parser = new_parser("gpu.py", __doc__)
    add = parser.add_argument
    add("--data", metavar="DIR", help="a folder, or a file made by --pack [nothing is trained]")
    add("--to", metavar="OUT", default="gpu", help="folder for the results [%(default)s]")
    add("--minutes", type=number(float, 0.1), default=8.0, help="for everything [%(default)s]")
    add("--only", nargs="+", choices=PARTS, metavar="PART", help="run these parts, in this order")
    add("--skip", nargs="+", choices=PARTS, default=[], metavar="PART", help="leave these out")
    add("--device", default="auto", help="auto, cuda, cuda:1, or cpu for a rehearsal [%(default)s]")
    add("--pack", metavar="FILE.zip", help="write what the run needs into a file, run nothing")
    return parser.parse_args(argv)


def find_data(place):
    """A folder or a file of --pack -> {"cats": path, ..., "weights": path} of what is there."""
    files = sorted(path for path in (*place.glob("*"), *place.glob("*/*")) if path.is_file())
    data = {}
    for name in SETS:
        archives = [path for path in files if path.name.startswith(name) and path.suffix == ".zip"]
        if archives:
            data[name] = str(archives[0])
    weights = [path for path in files if path.suffix == ".pth"]
    if weights:
        data["weights"] = str(weights[0])
    return data


# ------------------------------------------------------------------------------------------ parts
# Each is called in a process of its own as part(setup, save). save(result) keeps a dict of plain
# values; what the last call has kept counts, even if the part fails later.


def about(setup, save):
    device = torch.device(setup.device)
    result = {"torch": torch.__version__, "python": sys.version.split()[0]}
    result |= {"processor": step.processor(), "cores": os.cpu_count()}
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        result |= {"GPU": properties.name, "memory": f"{properties.total_memory / 2**30:.1f} GiB"}
        result |= {"compute capability": f"{properties.major}.{properties.minor}"}
        result |= {"CUDA": torch.version.cuda, "cuDNN": torch.backends.cudnn.version()}
        with contextlib.suppress(OSError, subprocess.SubprocessError):
            command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
            result["driver"] = subprocess.check_output(command, text=True).split("\n")[0]
    save(result)
    for precision in ("fp32", "bf16"):
        rate = step.device_rate("dcgan", device, precision)
        result[f"convolution, {precision}"] = f"{rate / 1e12:,.1f} TFLOP/s"
        save(result)
    x = torch.empty(2**20 if setup.tiny else 2**30, dtype=torch.uint8, device=device)
    y = torch.empty_like(x)
    seconds = timed(lambda: y.copy_(x), device)
    result["copy, read and written"] = f"{2 * len(x) / seconds / 1e9:,.0f} GB/s"
    save(result)


def timed(work, device, repeats=10):
    """Seconds that work() takes, on average, after a first call."""
    work()
    step.wait(device)
    start = time.perf_counter()
    for _ in range(repeats):
        work()
    step.wait(device)
    return (time.perf_counter() - start) / repeats


def tests(setup, save):
    """The tests marked gpu. With pytest-xdist several at a time, because they are mostly Python."""
    if importlib.util.find_spec("pytest") is None:
        save({"not run": "pytest is not installed"})
        return
    command = [sys.executable, "-m", "pytest", "-m", "gpu", "-p", "no:cacheprovider"]
    if not setup.tiny and importlib.util.find_spec("xdist"):
        command += ["-n", "6"]
    command += ["--durations=3", "--tb=short", f"--basetemp={setup.work / 'pytest'}"]
    files = [str(ROOT / "tests" / name) for name in TESTS]
    code = subprocess.run([*command, *files], stdout=sys.stdout, stderr=sys.stderr).returncode
    lines = (setup.work / "tests.log").read_text(encoding="utf-8", errors="replace").splitlines()
    failed = [line for line in lines if line.startswith(("FAILED", "ERROR"))]
    summary = [line.strip("= ") for line in lines if re.search(r"\d (passed|failed|skipped)", line)]
    save({"summary": summary[-1] if summary else "", "failed": failed, "exit code": code})


def speed(setup, save, batches):
    """Images a second of each script's step, as benchmarks/step.py measures them."""
    device = torch.device(setup.device)
    torch.backends.cudnn.benchmark = True  # as in pick_device
    rows = []
    counts = {}  # script -> operations for an image
    tops = {}  # (kind of layer, precision) -> the device's own rate
    every_case = itertools.product(
        [4] if setup.tiny else batches,
        (True, False),  # what matters most comes first
        ("bf16", "fp32"),
        step.OURS,
    )
    for batch, graph, precision, script in every_case:
        flags = step_flags(setup, script, batch)
        row = {"script": script, "batch": batch, "precision": precision, "graph": graph}
        try:
            row["img/s"], row["peak MiB"] = one_speed(flags, device, precision, graph)
            if script not in counts:
                counts[script] = operations(flags, device)
            kind = (script == "vae_mlp", precision)
            if kind not in tops:
                tops[kind] = step.device_rate(script, device, precision)
            row["GFLOP an image"] = counts[script] / 1e9
            row["share"] = row["img/s"] * counts[script] / tops[kind]
        except Exception as problem:  # out of memory, a capture that fails
            row["problem"] = short(problem)
        rows.append(row)
        print(", ".join(f"{name} {value}" for name, value in row.items()))
        save({"rows": rows})


def step_flags(setup, script, batch):
    """What step.ours wants to know: the networks of the reports."""
    if setup.tiny:
        return argparse.Namespace(script=script, batch=batch, size=16, width=4)
    return argparse.Namespace(script=script, batch=batch, size=64, width=step.WIDTH.get(script, 64))


def profile(setup, save):
    """The kernels of captured steps in bf16, with their shares of the time."""
    device = torch.device(setup.device)
    torch.backends.cudnn.benchmark = True  # as in pick_device
    activities = [torch.profiler.ProfilerActivity.CPU]
    if device.type == "cuda":
        activities = [torch.profiler.ProfilerActivity.CUDA]
    result = {}
    for script, batch in PROFILED.items():
        flags = step_flags(setup, script, 4 if setup.tiny else batch)
        loop = step.ours(flags, device, "bf16")
        for _ in range(8):  # finds kernels, captures
            next(loop)
        seconds = timed(lambda loop=loop: next(loop), device, 3)  # the profiler slows steps down
        with torch.profiler.profile(activities=activities) as profiler:
            for _ in range(3):
                next(loop)
            step.wait(device)
        microseconds = collections.Counter()
        calls = collections.Counter()
        for row in profiler.key_averages():
            name = row.key.replace("at::native::", "").replace("(anonymous namespace)::", "")
            name = printable(name, 100)
            microseconds[name] += (row.self_device_time_total or row.self_cpu_time_total) / 3
            calls[name] += row.count / 3
        total = microseconds.total()
        words = f"{total / 1e6 / seconds:.0%} of {seconds * 1e3:.2f} ms a step of {flags.batch}"
        result[f"{script}: busy"] = f"{words}, {calls.total():,.0f} kernels"
        for name, value in microseconds.most_common(10):
            result[f"{script}: {name}"] = f"{value / total:.1%}, {calls[name]:.0f} a step"
        save(result)


def one_speed(flags, device, precision, graph):
    """(images a second, the most memory in MiB): the median of three short measurements."""
    loop = step.ours(flags, device, precision, "" if graph else "CUDA graph")
    if device.type == "cpu":
        return step.images_in(flags) / timed(lambda: next(loop), device, 1), None
    gc.collect()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats(device)
    for _ in range(8):  # finds kernels, captures
        next(loop)
    repeats = max(2, round(0.25 / timed(lambda: next(loop), device, 3)))
    seconds = statistics.median(timed(lambda: next(loop), device, repeats) for _ in range(3))
    memory = torch.cuda.max_memory_allocated(device) / 2**20
    return step.images_in(flags) / seconds, memory


def operations(flags, device):
    """Floating-point operations that a step spends on an image."""
    loop = step.ours(flags, device, "fp32", "CUDA graph")
    with step.Operations() as counted:
        next(loop)
    return counted.count / step.images_in(flags)


def metric_speed(setup, save):
    """Inception features a second, of the built-in shapes at 64x64."""
    if "weights" not in setup.data:
        save({"not run": "no Inception weights"})
        return
    weights = inception.load_weights(setup.data["weights"])
    images = datasets.draw_shapes(32 if setup.tiny else 4096, 64, seed=1)[0]
    result = {"weights": weights.name, "images": len(images)}
    dim = feature_count(setup)
    outputs = {}
    for precision in ("fp32", "bf16"):
        if not setup.tiny:
            inception.features(images[:256], [dim], weights, setup.device, precision)  # warms up
        start = time.perf_counter()
        outputs[precision] = inception.features(images, [dim], weights, setup.device, precision)
        seconds = time.perf_counter() - start
        result[f"features {dim}, {precision}"] = f"{len(images) / seconds:,.0f} img/s"
        save(result)
    half = len(images) // 2
    for precision, output in outputs.items():
        fid = metrics.fid(outputs["fp32"][dim][:half], output[dim][half:])
        result[f"FID-{dim} of one half against the other in {precision}"] = f"{fid:.4f}"
    save(result)


def train(setup, save, part):
    """Train a preset, in full (cats) or for its steps or the time there is, and measure it."""
    script, preset, name = TRAININGS[part]
    if name not in setup.data:
        save({"not run": f"no {name}*.zip in --data"})
        return
    run_directory = setup.work / part
    words = ["--preset", *preset.split(), "--data", setup.data[name], "--out", str(run_directory)]
    words += ["--device", setup.device]
    if setup.tiny:
        words += f"{TINY} {TINY_MORE.get(script, '')}".split()
        words += ["--steps", "3" if part == "cats" else "1000000"]
    if part == "cats" and "weights" in setup.data:
        words += ["--weights", setup.data["weights"], "--dims", str(feature_count(setup))]
        words += ["--eval-images", str(image_count(setup))]
    else:
        words += ["--eval-images", "0"]
    module = training.load_script(script)
    flags, _ = module.parse_args(words)
    data = datasets.load(flags.data, flags.size, fit=flags.fit)  # prepared before the clock starts
    result = {"command": f"{script}.py --preset {preset} --data {name}", "images": len(data.images)}
    save(result)
    start = time.perf_counter()
    if part != "cats":
        stop_after(0.3 if setup.tiny else setup.seconds - OVERHEAD)
    code = module.main(words)
    result["seconds in all"] = round(time.perf_counter() - start, 1)
    checkpoint = training.read_checkpoint(run_directory)
    seconds = checkpoint["seconds"]
    rate = checkpoint["step"] / seconds
    result |= {"steps": checkpoint["step"], "seconds of training": round(seconds, 1)}
    result |= {"all steps": code is None, "steps/s": round(rate, 1)}
    result["epochs"] = round(checkpoint["step"] / checkpoint["steps_per_epoch"], 1)
    result["img/s"] = round(rate * flags.batch)
    result["precision"] = checkpoint["flags"]["precision"]
    save(result)
    save(result | quality(setup, part, checkpoint))


def feature_count(setup):
    """768: the deepest layer of which everybody has the weights."""
    return 64 if setup.tiny else 768


def image_count(setup):
    """On each side of a comparison."""
    return 8 if setup.tiny else 1000


def stop_after(seconds):
    """Let every training of this process stop, as if by Ctrl-C, so many seconds after its start."""
    should_stop = training.Run.should_stop
    start = []

    def timed_should_stop(run):
        start.append(time.perf_counter())
        if start[-1] - start[0] > seconds and not run.signals:
            run.signals.append(signal.SIGINT)
        del start[1:]
        return should_stop(run)

    training.Run.should_stop = timed_should_stop


def quality(setup, part, checkpoint):
    """FID-768 and the like of as many generated images as there are held-out ones, at most 1,000.

    The floor is the value for as many training images. Also writes the pictures of the run.
    """
    flags = checkpoint["flags"]
    script, model = training.open_model(checkpoint, setup.device)
    data, held_out = datasets.load_parts(flags["data"], flags["size"], fit=flags["fit"])
    count = image_count(setup)
    train_rows = datasets.shuffled(len(data.images), 0)
    real = data.images[train_rows[count : 2 * count]] if held_out is None else held_out.images
    real = real[:count]
    start = time.perf_counter()
    fake = script.generate(model, len(real), seed=2)
    result = {"images/s when sampling": round(len(fake) / (time.perf_counter() - start))}
    grid = datasets.enlarged(datasets.grid(script.generate(model, 64, seed=1), 8))
    datasets.save_picture(grid, setup.work / "pictures" / f"{part}.png")
    for name in ("losses", "strip", "interpolation"):
        with contextlib.suppress(OSError):
            picture = Image.open(setup.work / part / f"{name}.png")
            datasets.save_picture(picture, setup.work / "pictures" / f"{part}-{name}.png")
    with contextlib.suppress(OSError):  # stopped before its first row
        shutil.copy(setup.work / part / "log.csv", setup.work / "pictures" / f"{part}-log.csv")
    if "weights" not in setup.data:
        path = setup.work / "pictures" / f"{part}-generated.npz"
        write_npz(path, fake)
        return result | {"FID-768": f"not measured (no Inception weights); see {path.name}"}
    values = metrics.evaluate(
        real,
        fake,
        floor=data.images[train_rows[: len(real)]],
        dims=[feature_count(setup)],
        weights=setup.data["weights"],
        device=setup.device,
        real_words="training images" if held_out is None else "held-out images",
    )
    for value in values:
        words = metrics.format_value(value)
        if value.get("real") is not None:
            words += f" (real images: {metrics.format_value(value, 'real')})"
        result[value["name"]] = words
    return result | {"protocol": values[0].get("protocol", "")}


def write_npz(path, images):
    """Generated images as an .npz that metrics.py reads."""
    buffer = io.BytesIO()
    np.savez_compressed(buffer, images=images.permute(0, 2, 3, 1).numpy())
    write_bytes(path, buffer.getvalue())


def run_part(part, setup):
    """Call the function of a part. Its results go to <part>.json in setup.work."""

    def save(result):
        write_text(setup.work / f"{part}.json", json.dumps(result))

    if part in BATCHES:
        speed(setup, save, BATCHES[part])
    elif part in TRAININGS:
        train(setup, save, part)
    else:
        others = {"about": about, "tests": tests, "profile": profile, "metrics": metric_speed}
        others[part](setup, save)


# -------------------------------------------------------------------------------------- processes


def in_a_process(part, setup):
    """Run a part in a process of its own, which prints to <part>.log. Returns what went wrong."""
    # A fork has all imports done already. It may use CUDA, because this process does not.
    context = multiprocessing.get_context("fork" if sys.platform == "linux" else "spawn")
    process = context.Process(target=work, args=(part, setup))
    process.start()
    try:
        process.join(setup.seconds)
        problem = f"exit code {process.exitcode}" if process.exitcode else ""
        if process.is_alive():
            problem = f"stopped after {setup.seconds:.0f} s, its share of the time"
    finally:  # after Ctrl-C, too
        end_all(process.pid)
        process.kill()
        process.join()
    return problem


def end_all(group):
    """Kill a process and those that it has started."""
    with contextlib.suppress(AttributeError, OSError):  # Windows has no process groups
        os.killpg(group, signal.SIGKILL)


def work(part, setup):
    """In the process of a part."""
    with contextlib.suppress(AttributeError):
        os.setpgrp()
    log = open(setup.work / f"{part}.log", "w", encoding="utf-8", buffering=1)
    os.dup2(log.fileno(), 1)
    os.dup2(log.fileno(), 2)
    sys.stdout = log
    sys.stderr = log
    os.chdir(setup.work)  # data/ and runs/ are made there
    if setup.tiny:
        torch.set_num_threads(1)
    try:
        run_part(part, setup)
    except BaseException:
        traceback.print_exc()
        log.flush()
        os._exit(1)
    log.flush()
    os._exit(0)  # CUDA has nothing left to say


# ----------------------------------------------------------------------------------------- report


SHARE = """The share compares the operations of a step with what the device reaches in one large
convolution (vae_mlp: one matrix product) in the same precision. fp32 convolutions on a GPU since
Ampere round their factors to TF32, as is PyTorch's default.
"""


def speed_table(rows):
    """The rows of a speed part as Markdown."""
    head = ["script", "batch", "precision", "plain, img/s", "graph, img/s"]
    head += ["gain", "peak MiB", "share"]
    lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    pairs = {}
    for row in rows:
        case = (row["script"], row["batch"], row["precision"])
        pairs.setdefault(case, {})[row["graph"]] = row
    for case, pair in pairs.items():
        plain = pair.get(False, {})
        graph = pair.get(True, {})
        words = [str(value) for value in case]
        for row in (plain, graph):
            words.append(f"{row['img/s']:,.0f}" if "img/s" in row else row.get("problem", "-"))
        both = "img/s" in plain and "img/s" in graph
        words.append(f"{graph['img/s'] / plain['img/s']:.2f}" if both else "-")
        words.append(f"{graph['peak MiB']:,.0f}" if graph.get("peak MiB") else "-")
        words.append(f"{graph['share']:.1%}" if "share" in graph else "-")
        lines.append(f"| {' | '.join(words)} |")
    return lines


def markdown(results):
    """gpu.md: a section for each part."""
    lines = ["# What this GPU does", ""]
    for part, result in results.items():
        lines += [f"## {part}", ""]
        if "rows" in result["result"]:
            lines += speed_table(result["result"]["rows"])
        else:
            for name, value in result["result"].items():
                lines.append(f"- {name}: {value}")
        lines += ["", f"{result['seconds']:.0f} s. {result['problem']}".rstrip(), ""]
        if result["log"]:
            lines += ["```", *result["log"], "```", ""]
    lines += [SHARE]
    return "\n".join(lines)


def write_results(out, results, pictures):
    write_text(out / "gpu.json", json.dumps(results, indent=1))
    write_text(out / "gpu.md", markdown(results))
    files = sorted(pictures.glob("*"))
    if files:
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w") as archive:
            for file in files:
                archive.write(file, file.name)
        write_bytes(out / "pictures.zip", buffer.getvalue())


def last_lines(path, count=30):
    """The last lines of a log; a progress bar counts as one line."""
    text = path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""
    return [line.split("\r")[-1] for line in text.split("\n") if line.strip()][-count:]


def time_limit(part, waiting, left, minutes, tiny):
    """Seconds for a part. waiting: the parts after it; left: seconds in all."""
    if tiny:
        return left
    if part in SECONDS:
        return min(left, SECONDS[part] * minutes / 8)
    if part == "speed-rest":
        return left
    reserve = sum(SECONDS[name] for name in waiting if name in SECONDS) * minutes / 8
    sharing = 1 + sum(name in TRAININGS and name not in SECONDS for name in waiting)
    return (left - reserve) / sharing


def run_all(args, data, work_folder, start=in_a_process):
    """Run the parts one after another. Returns {part: {"result", "seconds", "problem", "log"}}."""
    out = Path(args.to)
    parts = [part for part in args.only or DEFAULT if part not in args.skip]
    begun = time.perf_counter()
    tiny = args.device == "cpu"
    results = {}
    for i, part in enumerate(parts):
        left = 60 * args.minutes - (time.perf_counter() - begun)
        seconds = time_limit(part, parts[i + 1 :], left, args.minutes, tiny)
        problem = "not run: no time left"
        enough = 1 if tiny or part not in TRAININGS else OVERHEAD + 5
        part_begun = time.perf_counter()
        if seconds > enough:
            print(f"{part}: at most {seconds:.0f} s", flush=True)
            problem = start(part, Setup(args.device, tiny, data, work_folder, seconds))
        took = time.perf_counter() - part_begun
        result = {}
        with contextlib.suppress(OSError, ValueError):
            result = json.loads((work_folder / f"{part}.json").read_text(encoding="utf-8"))
        log = last_lines(work_folder / f"{part}.log") if problem else []
        results[part] = {"result": result, "seconds": took, "problem": problem, "log": log}
        write_results(out, results, work_folder / "pictures")
        print(f"{part}: {took:.0f} s {problem}", flush=True)
    return results


# ------------------------------------------------------------------------------------------- pack

LIMIT = 50 * 2**20  # bytes of a pack
PACKED = {"cats": (6000, 1000), "animals": (2200, 0), "food": (1800, 400), "cifar10": (1800, 400)}


def pack(data, path):
    """Write `path`, and next to it all cats as <its stem>-cats.zip. Returns lines that say so."""
    missing = [name for name in (*SETS, "weights") if name not in data]
    if missing:
        raise InputError(f"--pack needs {', '.join(missing)} in --data")
    members = {f"{name}.zip": some_images(data[name], *PACKED[name]) for name in SETS}
    state = torch.load(data["weights"], weights_only=True, map_location="cpu")
    buffer = io.BytesIO()
    torch.save({name: tensor.half() for name, tensor in state.items()}, buffer)
    members["inception-fp16.pth"] = buffer.getvalue()
    about = f"FID-768 of 300 cats against 300 others: {weights_error(data, buffer.getvalue())}"
    members["about.txt"] = about.encode()
    lines = [about]
    cats = {"cats.zip": some_images(data["cats"], None, 1000)}
    for file, content in ((path, members), (path.with_name(f"{path.stem}-cats.zip"), cats)):
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w") as archive:
            for name, value in content.items():
                archive.writestr(name, value)
        size = len(buffer.getvalue())
        if content is members and size > LIMIT:
            raise InputError(f"the pack has {size / 2**20:.1f} MiB, more than 50")
        write_bytes(file, buffer.getvalue())
        lines.append(f"{file}: {size / 2**20:.1f} MiB")
    return lines


def some_images(path, train, test):
    """The bytes of a zip with `train` (None: all others) and `test` images of another zip.

    A set without a split of its own gets train/ and test/ folders if `test` is not 0.
    """
    buffer = io.BytesIO()
    with zipfile.ZipFile(path) as whole, zipfile.ZipFile(buffer, "w") as archive:
        names = sorted(member.filename for member in whole.infolist() if not member.is_dir())
        order = datasets.shuffled(len(names), 0).tolist()
        has_split = any(name.startswith("test/") for name in names)
        chosen = {"train": [], "test": []}
        for i in order:
            split = names[i].split("/")[0] if has_split else "train"
            if not has_split and len(chosen["test"]) < test:
                split = "test"
            if split in chosen:
                chosen[split].append(names[i])
        for split, limit in (("train", train), ("test", test)):
            for name in chosen[split][:limit]:
                inside = name if has_split or not test else f"{split}/{name}"
                archive.writestr(inside, whole.read(name))
    return buffer.getvalue()


def weights_error(data, half):
    """FID-768 with the weights as they are and rounded to fp16, in words."""
    images = datasets.load(data["cats"], 64).images
    images = images[datasets.shuffled(len(images), 1)[:600]]
    values = {}
    with tempfile.TemporaryDirectory() as folder:
        rounded = Path(folder) / "half.pth"
        rounded.write_bytes(half)
        for name, weights in (("fp32", data["weights"]), ("fp16", str(rounded))):
            x = inception.features(images, [768], weights)[768]
            values[name] = metrics.fid(x[:300], x[300:])
    return f"{values['fp32']:.5f} with the weights in fp32, {values['fp16']:.5f} in fp16"


# ------------------------------------------------------------------------------------------- main


def unpacked(place, folder):
    """--data -> {"cats": path, ...}. A file of --pack is unpacked into `folder`."""
    if place is None:
        return {}
    path = Path(place).resolve()
    if path.is_dir():
        return find_data(path)
    if not zipfile.is_zipfile(path):
        raise InputError(f"--data '{place}' is no folder and no file of --pack")
    with zipfile.ZipFile(path) as archive:
        archive.extractall(folder)
    return find_data(folder)


def check_device(name):
    """In a process of its own, because CUDA cannot be used on both sides of a fork."""
    command = "import sys, torch; torch.empty(1, device=sys.argv[1])"
    if subprocess.run([sys.executable, "-c", command, name], capture_output=True).returncode:
        raise InputError(f"no device '{name}' here: --device cpu makes a rehearsal")


def main(argv=None):
    args = parse_args(argv)
    with tempfile.TemporaryDirectory(prefix="gpu-", ignore_cleanup_errors=True) as folder:
        folder = Path(folder).resolve()
        (folder / "pack").mkdir()
        data = unpacked(args.data, folder / "pack")
        if args.pack:
            if Path(args.pack).suffix != ".zip":
                raise InputError(f"--pack '{args.pack}' must end in .zip")
            print("\n".join(pack(data, Path(args.pack))))
            return
        if args.device == "auto":
            args.device = "cuda"
        check_device(args.device)
        Path(args.to).mkdir(parents=True, exist_ok=True)
        print(f"data: {', '.join(data) or 'none'}")
        run_all(args, data, folder)
        print(f"wrote {args.to}/gpu.json, gpu.md and pictures.zip")


if __name__ == "__main__":
    run_program(main)
