"""training.py: what every training loop needs besides the loop itself.

The loop stands in the script (dcgan.py and its relatives). It calls the functions of this file:

    flags        add_run_flags, parse: defaults < preset or checkpoint < command line
    device       pick_device, autocast, adam_options, set_lr, scalar, captured (CUDA graphs)
    models       update_ema, latents, slerp, walks, one_hot, layer_widths, describe, ...
    a run        start opens the run directory and returns a Run. Its methods count steps, write
                 log.csv, save checkpoints and notice Ctrl-C, each when the script calls it.
    checkpoints  read_checkpoint, open_model: how sample.py, metrics.py and report.py open a model

Nothing here calls back into a script, and nothing here knows the name or the flags of a model.
"""

import contextlib
import datetime
import functools
import importlib.util
import io
import json
import math
import os
import platform
import re
import shlex
import signal
import sys
import time
import warnings
from pathlib import Path

import torch
import torch.nn.functional as F
from tqdm import tqdm

import datasets
import sources
from sources import RANK, START, WORLD, InputError, number, out_of_memory, short, write_text

FORMAT = 2  # of checkpoints
SIZES = [16, 32, 64, 128, 256]
DIMS = [64, 192, 768, 2048]
PRECISIONS = ["auto", "fp32", "bf16"]
NOT_TYPED = object()
# Where a run computes and how often it is looked at.
WATCHING = {
    "device", "precision", "no_graph", "dry_run", "tensorboard", "weights",
    "log_every", "sample_every", "save_every", "keep_every", "eval_every",
}  # fmt: skip
# Flags that may differ on --resume. Any other would contradict the steps already trained.
MAY_CHANGE = WATCHING | {"resume", "data", "steps", "epochs", "dims", "eval_images"}
# Flags that a run may have otherwise than its preset, and still be that preset.
NO_MATTER = WATCHING | {"preset", "resume", "out"}
# With others of these, a number does not compare with that of the report.
COMPARABLE = {
    "data", "fit", "limit_per_class", "hold_out", "size", "steps", "epochs", "eval_images",
}  # fmt: skip
RESULTS = {".json", ".png", ".gif", ".html"}  # what the end of a run makes
KILLED_EARLY = {".lock", "args.json", "source.py", "log.csv", "weights.csv"}  # what is left then

# ------------------------------------------------------------------------------------------ flags


def add_run_flags(parser, presets, any_size=False):
    """Add the flags that every script has. Another default: parser.set_defaults(batch=64).

    any_size: --size takes any number from 8 to 1024, not only powers of two. sources.HelpFormatter
    adds the defaults to the help.
    """
    if "shapes" in presets:
        words = "Without --data or --preset, the defaults are those of --preset shapes:"
        parser.description += "\n\n" + " ".join([words, *flag_words(presets["shapes"])])
    size = {"type": number(int, 8, 1025)} if any_size else {"type": int, "choices": SIZES}
    some = number(int, 1)
    none = number(int, 0)
    rate = number(float, 1e-12, 1.0000001)

    add = parser.groups["data"].add_argument
    names = f"a set of defaults: {', '.join(presets)} [shapes for --data shapes]"
    add("--preset", choices=list(presets), metavar="NAME", help=names)
    where = "a folder, zip, tar or .npz, or a name (python datasets.py lists them)"
    add("--data", default="shapes", metavar="NAME|PATH", help=where)
    add("--size", **size, help="image side in pixels [32 for small images, else 64]")
    add("--fit", choices=datasets.FITS, default="crop", help="how images become square")
    add("--limit-per-class", type=none, default=0, help="training images of each class; 0: all")

    add = parser.groups["training"].add_argument
    add("--epochs", type=some, default=50, help="length in passes over the data")
    add("--steps", type=some, help="length in training steps [from --epochs]")
    add("--batch", type=number(int, 2), default=128, help="images in an update")
    add("--seed", type=number(int, 0, 2**32), default=0, help="seed of all randomness")
    add("--lr-decay", type=rate, default=1.0, help="multiplies the rates at each step")
    add("--ema", type=number(float, 0, 1), default=0.0, help="decay of averaged weights; 0: none")

    add = parser.groups["run"].add_argument
    add("--out", metavar="DIR", help="run directory [a new one in runs/]")
    add("--resume", nargs="?", const=True, metavar="DIR", help="continue a run [the newest]")
    add("--device", default="auto", metavar="NAME", help="auto, cpu, cuda, cuda:1 or mps")
    add("--precision", choices=PRECISIONS, default="auto", help="auto: bf16 if the hardware has it")
    add("--no-graph", action="store_true", help="train without CUDA graphs (NVIDIA GPUs)")
    add("--log-every", type=some, default=50, help="steps between rows of log.csv")
    add("--sample-every", type=some, help="steps between pictures [an epoch, at least 100]")
    add("--save-every", type=some, help="steps between checkpoints [an epoch, at least 100]")
    add("--keep-every", type=some, help="steps between checkpoints to keep for good [never]")
    add("--tensorboard", action="store_true", help="also write the log for TensorBoard")
    add("--dry-run", action="store_true", help="print shapes and the plan, train nothing")

    add = parser.groups["evaluation"].add_argument
    often = "steps between FIDs; 0: never [never; 20 times with a report's preset]"
    add("--eval-every", type=none, help=often)
    images = number(int, 0, 100_001)
    add("--eval-images", type=images, default=1000, help="images on each side; 0: never evaluate")
    words = "features of FID: 64, 192, 768, 2048 or several [768 2048]"
    add("--dims", type=int, nargs="+", metavar="N", choices=DIMS, default=[768, 2048], help=words)
    add("--weights", metavar="FILE", help="FID Inception weights [torch's cache, or downloaded]")


def parse(parser, presets, script, argv=None, older=None):
    """Command line -> (Namespace, set of the names of the flags that were typed).

    A typed flag wins over the preset, or over the checkpoint of --resume. These win over defaults.
    args.defaults: what the flags are without a command line, for changed_flags. older: flags of
    checkpoints from before there were these flags, where they differ from the defaults.
    """
    args = parser.parse_args(argv)  # --help and mistakes end here
    defaults = vars(parser.parse_args([]))
    parser.set_defaults(**dict.fromkeys(defaults, NOT_TYPED))
    typed = {k: v for k, v in vars(parser.parse_args(argv)).items() if v is not NOT_TYPED}
    run_directory = None
    if args.resume is not None:
        if args.out is not None:
            parser.error("--resume goes on in its own directory: leave out --out")
        run_directory = newest_run(script) if args.resume is True else Path(args.resume)
        settings = (older or {}) | flags_on_resume(run_directory, script, typed)
        settings = {name: value for name, value in settings.items() if name in defaults}
        parser.set_defaults(**defaults)
        with fits(script):
            check_flags(parser, settings)
    else:
        preset = args.preset or ("shapes" if args.data == "shapes" else None)
        settings = {"preset": preset, **presets.get(preset, {})}
        settings.pop("report", None)
        unknown = settings.keys() - defaults.keys()
        assert not unknown, f"the preset sets flags that do not exist: {unknown}"
        if "lr" in typed:  # one rate for both networks wins over the preset's two
            settings.pop("lr_g", None)
            settings.pop("lr_d", None)
    if "epochs" in typed:  # a typed length wins, in whichever unit it is given
        settings["steps"] = None
    parser.set_defaults(**defaults | settings)
    args = parser.parse_args(argv)
    args.resume = run_directory
    args.defaults = defaults
    if RANK == 0 and not args.dry_run:
        if "out" in typed:
            sources.check_new_directory(args.out, KILLED_EARLY)
        else:
            sources.check_output((run_directory or Path("runs/new")) / "last.pt")
    measured = args.eval_images and (args.eval_every or "report" in presets.get(args.preset, {}))
    if typed.keys() & {"dims", "weights"} and not measured:
        print("note: --dims and --weights do nothing here: nothing is measured", file=sys.stderr)
    elif "weights" in typed and not Path(args.weights).is_file():
        raise InputError(f"no Inception weights '{args.weights}'")
    return args, set(typed)


def newest_run(script):
    """The run directory in runs/ that holds the newest checkpoint of this script."""
    files = sorted(Path("runs").glob("*/last.pt"), key=lambda path: path.stat().st_mtime_ns)
    for path in reversed(files):
        try:
            if read_checkpoint(path)["script"] == script:
                return path.parent
        except InputError as problem:
            print(f"not resumed: {problem}", file=sys.stderr)
    raise InputError(f"no run of {script}.py in runs/ to resume")


def flags_on_resume(run_directory, script, typed):
    """The flags of a run's checkpoint. InputError if a typed flag would change the past."""
    checkpoint = read_checkpoint(run_directory)
    if checkpoint["script"] != script:
        other = checkpoint["script"]
        raise InputError(f"'{run_directory}' is a run of {other}.py: resume it with that script")
    if not run_directory.is_dir():
        raise InputError(f"--resume takes a run directory: --resume {run_directory.parent}")
    flags = checkpoint["flags"]
    for name in sorted(typed.keys() - MAY_CHANGE):
        new, old = typed[name], flags.get(name)
        if new != old:
            flag = name.replace("_", "-")
            raise InputError(f"--{flag} was {old} in this run and cannot become {new} on resume")
    # these are not kept, because no flag turns them off
    return {**flags, "no_graph": False, "dry_run": False, "tensorboard": False}


def check_flags(parser, flags):
    """ValueError unless these flags of a checkpoint are as the command line would give them."""

    def refuse(message):
        raise ValueError(message)

    error = parser.error
    parser.error = refuse
    given = {name: value for name, value in flags.items() if value is not False}
    taken = vars(parser.parse_args(flag_words(given)))
    parser.error = error
    for name in flags:
        if taken[name] != flags[name]:
            refuse(f"{name} {flags[name]!r}")


def flag_words(flags):
    """A dict of flags as one would type them: ["--batch=64", "--dims", "768", "--balance"]."""
    words = []
    for name, value in flags.items():
        flag = f"--{name.replace('_', '-')}"
        if value is True:
            words.append(flag)
        elif value is False:  # where the preset says True
            words.append(f"--no-{flag[2:]}")
        elif isinstance(value, list):
            words += [flag, *map(str, value)]
        elif value is not None:
            words.append(f"{flag}={value}")
    return words


def changed_flags(args, preset):
    """The flags that are not those of a preset, or else not the defaults: {name: value}.

    Without those that change nothing in the numbers: see NO_MATTER.
    """
    flags = {name: getattr(args, name) for name in args.defaults if name not in NO_MATTER}
    return different_flags(flags, args.defaults | preset)


def different_flags(flags, usual):
    """The flags that one must type, because they differ from the usual ones: {name: value}."""
    different = {name: value for name, value in flags.items() if usual.get(name) != value}
    for dropped, typed in (("steps", "epochs"), ("lr_g", "lr"), ("lr_d", "lr")):
        if different.get(dropped, 0) is None:  # see parse: typing the other one has dropped it
            different[typed] = flags.get(typed)
    if flags.get("steps") is not None:  # wins over --epochs
        different.pop("epochs", None)
    return different


# ----------------------------------------------------------------------------------------- device


def pick_device(name="auto", precision="auto", bf16_needs="avx512_bf16"):
    """--device and --precision -> (torch.device, "fp32" or "bf16").

    precision "auto" is bf16 where the hardware computes in it. bf16_needs: what a CPU must have for
    that, as torch.cpu spells it ("amx_tile"); None: "auto" is never bf16 there. Raises InputError.
    """
    asked = name
    if name == "auto":
        name = "mps" if torch.backends.mps.is_available() else "cpu"
        name = "cuda" if torch.cuda.is_available() else name
    try:
        device = torch.device(name)
        if device.type not in ("cpu", "cuda", "mps"):
            raise RuntimeError
        if device.type == "cuda":
            device = cuda_device(device, asked)
            torch.empty(1, device=device)
            torch.cuda.set_device(device)  # random states, streams and events are of this GPU
            torch.backends.cudnn.benchmark = True  # shapes never change: find the fastest kernels
    except (RuntimeError, AssertionError):  # torch has many ways to say so
        words = "use --device auto, cpu, cuda, cuda:1 or mps"
        raise InputError(f"no device '{asked}' here: {words}") from None
    # is_bf16_supported() would also count emulation
    native = device.type == "cuda" and torch.cuda.get_device_capability(device) >= (8, 0)
    if device.type == "cpu":
        feature = bf16_needs if precision == "auto" else "avx512_bf16"
        native = getattr(torch.cpu, f"_is_{feature}_supported", lambda: False)()
    if precision == "auto":
        return device, "bf16" if native else "fp32"
    if precision == "bf16" and not native:
        print(f"note: {device} has no bf16 in hardware: expect it to be slow", file=sys.stderr)
    return device, precision


def cuda_device(device, asked):
    """With its number: the one asked for, or the one that torchrun gives to this process."""
    if WORLD == 1:
        return torch.device("cuda", device.index or 0)
    if device.index is not None:
        raise InputError(f"--device {asked}: each process has its own GPU; leave out the number")
    return torch.device("cuda", int(os.environ["LOCAL_RANK"]))


def autocast(device, precision):
    """The context in which networks compute in this precision."""
    if precision == "fp32":
        return contextlib.nullcontext()
    # A CUDA graph cannot keep weights that autocast converted outside of it: no cache there.
    return torch.autocast(device.type, torch.bfloat16, cache_enabled=device.type != "cuda")


def adam_options(device):
    """Options for torch.optim.Adam: one kernel for all weights, which on a GPU a graph can hold."""
    return {"fused": device.type != "mps", "capturable": device.type == "cuda"}


def set_lr(optimizer, lr):
    """Set the learning rate. On a GPU it is a tensor, which stays where a graph reads it."""
    for group in optimizer.param_groups:
        if torch.is_tensor(group["lr"]):
            group["lr"].fill_(lr)
        else:
            group["lr"] = lr


def scalar(value, device):
    """A number that changes at every step -> float32 tensor of no dimensions, or None if it is 0.

    None lets a step leave the whole operation out: `if sigma is not None: x = x + sigma * noise`.
    """
    if value == 0:
        return None
    return torch.full((), value, dtype=torch.float32, device=device)


def captured(step, device, no_graph=False):
    """step, or on an NVIDIA GPU a callable that does the same with CUDA graphs.

    A step of these networks has some hundred short kernels, and launching each from Python takes
    longer than computing it. A CUDA graph records them once and launches all of them in one call. A
    graph always works on the same memory, so whatever differs between two calls must be an
    argument:

        step(*tensors, **constants) -> tensor, tuple of tensors, or None

    Positional arguments are tensors, which are copied into the memory that the graph reads, or
    None. Keyword arguments are hashable constants. Each combination of constants and Nones has a
    graph of its own. A number that changes at every step is a tensor: see `scalar`. The results are
    copies, so the next call does not change them.

    The first three calls of each combination run as they are, and they are real training steps:
    libraries choose their kernels meanwhile, and optimizers create their state. Nothing in a step
    may wait for the GPU or read a number off it. Several processes (torchrun) train without graphs.
    """
    if device.type != "cuda" or no_graph or WORLD > 1:
        return step
    return CapturedStep(step, device)


class CapturedStep:
    """See `captured`. All graphs share a stream and a pool of memory: no two run at a time."""

    first = None
    pool = None
    stream = None

    def __init__(self, step, device):
        self.step = step
        self.calls = {}  # combination -> number of calls
        self.graphs = {}  # combination -> (graph, its input tensors, its output tensors)
        if CapturedStep.stream is None:  # nothing can be captured on the default stream
            torch.cuda.synchronize(device)
            CapturedStep.stream = torch.cuda.Stream(device)
            torch.cuda.set_stream(CapturedStep.stream)
            # A pool cannot be used again once all of its graphs are gone, as between two trainings
            # in one process. So a first graph keeps it.
            CapturedStep.first = torch.cuda.CUDAGraph()
            with torch.cuda.graph(CapturedStep.first, None, CapturedStep.stream, "thread_local"):
                torch.zeros(1, device=device)
            CapturedStep.pool = CapturedStep.first.pool()
            # PyTorch would advise another kind of Adam, because it sees the three plain steps
            warnings.filterwarnings("ignore", "This instance was constructed with capturable")

    def __call__(self, *tensors, **constants):
        nones = tuple(tensor is None for tensor in tensors)
        combination = (nones, tuple(sorted(constants.items())))
        if combination not in self.graphs:
            calls = self.calls.get(combination, 0)
            if calls < 3:
                self.calls[combination] = calls + 1
                return self.step(*tensors, **constants)
            self.graphs[combination] = self.capture(tensors, constants)
        graph, inputs, outputs = self.graphs[combination]
        for static, tensor in zip(inputs, tensors, strict=True):
            if static is not None:
                static.copy_(tensor)
        graph.replay()
        if isinstance(outputs, tuple):
            return tuple(output.clone() for output in outputs)
        return None if outputs is None else outputs.clone()

    def capture(self, tensors, constants):
        """Record the step. Recording computes nothing, so a replay must follow."""
        inputs = [tensor if tensor is None else tensor.clone() for tensor in tensors]
        graph = torch.cuda.CUDAGraph()
        try:
            # thread_local: the thread that gathers the next batch may go on meanwhile
            with torch.cuda.graph(graph, self.pool, self.stream, "thread_local"):
                outputs = self.step(*inputs, **constants)
        except RuntimeError as problem:
            # ending a broken capture fails too, with an error that tells less
            cause = problem.__context__ or problem
            if out_of_memory(cause):
                raise
            words = f"this step cannot be captured here ({short(cause)}): use --no-graph"
            raise InputError(words) from problem
        return graph, inputs, outputs


# ----------------------------------------------------------------------------------------- models


def ema_decay(decay, step, device):
    """The decay at this step, a tensor: min(decay, (1 + step) / (10 + step)).

    It begins low, so that the average soon forgets the random weights of the start (the formula is
    that of TensorFlow's ExponentialMovingAverage).
    """
    return torch.full((), min(decay, (1 + step) / (10 + step)), device=device)


@torch.no_grad()
def update_ema(ema, model, decay):
    """ema = decay * ema + (1 - decay) * model, in place, for all parameters. decay: a tensor.

    Buffers are copied: BatchNorm's variances in the first steps can be thousands of times those of
    later steps, and would dominate an average for as long.
    """
    for ours, theirs in zip(ema.parameters(), model.parameters(), strict=True):
        ours.lerp_(theirs, 1 - decay)
    for ours, theirs in zip(ema.buffers(), model.buffers(), strict=True):
        ours.copy_(theirs)


@torch.no_grad()
def recount_statistics(ema, inputs, *constants):
    """Count the running statistics of BatchNorm anew: those of an averaged generator.

    The statistics that update_ema copies belong to the weights of this step, and other weights have
    others (Izmailov et al. 2018, 1803.05407, section 3.2). inputs, constants: what the generator
    takes, a list of tensors with N rows and the rest. Means and variances are averaged over batches
    of about equal size, at most 100.
    """
    for layer in ema.modules():
        if isinstance(layer, torch.nn.BatchNorm2d):
            layer.reset_running_stats()
            layer.momentum = None  # an average in which all batches count the same
    device = next(ema.parameters()).device
    ema.train()
    for chunk in zip(*(x.chunk(math.ceil(len(x) / 100)) for x in inputs), strict=True):
        ema(*(tensor.to(device) for tensor in chunk), *constants)
    ema.eval()


def latents(n, latent_dim, seed, first=0):
    """Standard normal latents, float32 (n, latent_dim).

    They are number first .. first + n - 1 of an endless sequence. Latent k depends on the seed and
    on k only, because torch draws normal numbers in blocks of 16.
    """
    generator = torch.Generator().manual_seed(seed)
    skipped = first // 16 * 16
    for start in range(0, skipped, 1024):  # in pieces, so that memory does not grow with `first`
        torch.randn(min(1024, skipped - start), latent_dim, generator=generator)
    wanted = first - skipped + n
    z = torch.randn(math.ceil(wanted / 16) * 16, latent_dim, generator=generator)
    return z[first - skipped : wanted]


def slerp(a, b, t):
    """Spherical interpolation of vectors (N, d) at t in [0, 1].

    Shoemake 1985; for latents White 2016, 1609.04468. In 100 dimensions nearly all of N(0, I) lies
    close to a sphere of radius 10. A straight line between two points cuts through the inside,
    where a generator was never trained. The arc stays outside.
    """
    cosine = torch.cosine_similarity(a, b, dim=-1)
    angle = torch.acos(cosine.clamp(-1 + 1e-7, 1 - 1e-7))[:, None]
    return (torch.sin((1 - t) * angle) * a + torch.sin(t * angle) * b) / torch.sin(angle)


def walks(rows, frames, latent_dim, kind, seed):
    """Latents on `rows` walks of `frames` steps, each from one random latent to another.

    kind: "spherical" or "linear". Returns float32 (rows * frames, latent_dim).
    """
    generator = torch.Generator().manual_seed(seed)
    a, b = torch.randn(2, rows, latent_dim, generator=generator)
    # in one dimension a sphere has no arcs
    interpolate = slerp if kind == "spherical" and latent_dim > 1 else torch.lerp
    steps = [interpolate(a, b, i / (frames - 1)) for i in range(frames)]
    return torch.stack(steps, dim=1).flatten(0, 1)


def one_hot(labels, classes):
    """int64 (N,) -> float32 (N, classes). Unlike F.one_hot, it does not wait for a GPU."""
    return (labels[:, None] == torch.arange(classes, device=labels.device)).float()


@torch.no_grad()
def to_images(generator, *inputs):
    """The images of a generator in eval mode, uint8 (N, C, H, W) on the CPU.

    inputs: what it takes, tensors with N rows, such as latents and classes. It gets 100 rows at a
    time.
    """
    device = next(generator.parameters()).device
    was_training = generator.training
    generator.eval()
    images = []
    for chunk in zip(*(tensor.split(100) for tensor in inputs), strict=True):
        output = generator(*(tensor.to(device) for tensor in chunk))
        images.append(datasets.to_uint8(output).cpu())
    generator.train(was_training)
    return torch.cat(images)


def class_walks(rows, frames, latent_dim, classes, kind, seed, label=None):
    """Latents (rows * frames, latent_dim) and classes (rows * frames, classes) of walks.

    kind "spherical" or "linear": from one random latent to another, in one class. This is `label`,
    or another class for each row. kind "classes": from that class to the next, with one random
    latent.
    """
    labels = torch.arange(rows) % classes
    if label is not None:
        labels = torch.full((rows,), label)
    y = one_hot(labels, classes)
    if kind != "classes":
        return walks(rows, frames, latent_dim, kind, seed), y.repeat_interleave(frames, 0)
    z = latents(rows, latent_dim, seed).repeat_interleave(frames, 0)
    t = torch.linspace(0, 1, frames)[:, None]
    y = torch.lerp(y[:, None], one_hot((labels + 1) % classes, classes)[:, None], t)
    return z, y.flatten(0, 1)


def random_labels(counts, n, seed, first=0):
    """Random classes, int64 (n,), each as likely as in the data, so that samples compare with it.

    They are number first .. first + n - 1 of an endless sequence. counts: the images of each class.
    """
    cumulative = torch.tensor(counts).cumsum(0).double() / sum(counts)
    # another seed than that of the latents (torch reads 32 bits)
    generator = torch.Generator().manual_seed((seed + 2**31) % 2**32)
    uniform = torch.rand(first + n, generator=generator)[first:]
    return torch.searchsorted(cumulative, uniform.double(), right=True)


def class_rows(classes, latent_dim, seed):
    """For a grid with a row for each class (of many, the first 16), all of the same eight latents.

    Returns latents (rows * 8, latent_dim) and labels int64 (rows * 8,).
    """
    rows = min(classes, 16)
    labels = torch.arange(rows).repeat_interleave(8)
    return latents(8, latent_dim, seed).repeat(rows, 1), labels


def layer_widths(size, width):
    """Channels at 4x4, 8x8, ... size/2 pixels: they double at each halving, up to 8 width."""
    resolutions = [2**k for k in range(2, size.bit_length() - 1)]
    return [width * min(8, size // (2 * resolution)) for resolution in resolutions]


class UpsampleConv2d(torch.nn.ConvTranspose2d):
    """Repeat every pixel 2x2 times, then convolve 3x3: (N, in, H, W) -> (N, out, 2H, 2W).

    The four pixels that come from one share their weights. With a 4x4 transposed convolution each
    of the four has weights of its own, and a checkerboard shows (Odena, Dumoulin, Olah 2016,
    doi.org/10.23915/distill.00003).

    Both steps are one transposed convolution. Its 4x4 kernel is the 3x3 one, summed over the four
    places where it can lie. That takes 4/9 of the multiplications, a trick of Karras et al. 2017
    (1710.10196, in their code).
    """

    def __init__(self, in_channels, out_channels, bias=True):
        super().__init__(in_channels, out_channels, 3, stride=2, padding=1, bias=bias)
        axis = torch.tensor([[1.0, 1, 0, 0], [0, 1, 1, 0], [0, 0, 1, 1]])  # weight k -> k and k + 1
        self.register_buffer("spread", torch.kron(axis, axis), persistent=False)  # (9, 16)

    def forward(self, x):
        kernel = (self.weight.flatten(2) @ self.spread).unflatten(2, (4, 4))
        return F.conv_transpose2d(x, kernel, self.bias, stride=2, padding=1)


def randomly_flipped(images):
    """Each image (N, C, H, W) as it is or mirrored, with probability 1/2."""
    chosen = torch.rand(len(images), 1, 1, 1, device=images.device) < 0.5
    return torch.where(chosen, images.flip(3), images)


def shifted(images):
    """Each image shifted at random by up to an eighth of its side; gray, 0, moves in.

    If there are few real images, the discriminator learns them by heart. Changed at random they are
    many. Generated images are changed in the same way and the gradient passes through, so the
    generator does not learn the changes (Zhao et al. 2020, 2006.10738). images: (N, C, size, size)
    in [-1, 1].
    """
    n, _, size, _ = images.shape
    positions = torch.arange(size, device=images.device)
    reach = size // 8
    for axis in (2, 3):
        shift = torch.randint(-reach, reach + 1, (n, 1), device=images.device)
        shape = [n, 1, 1, 1]
        shape[axis] = size
        source = (positions + shift).view(shape)  # row i of the result is row i + shift
        inside = (source >= 0) & (source < size)
        index = source.clamp(0, size - 1).expand_as(images)
        images = images.gather(axis, index) * inside
    return images


def describe(model, *inputs):
    """For --dry-run: print the number of parameters, and the shape after each layer."""
    count = sum(parameter.numel() for parameter in model.parameters())
    print(f"{type(model).__name__}: {count:,} parameters")
    print(f"  {'input':22s} {tuple(inputs[0].shape[1:])}")

    def show(layer, _, output):
        name = type(layer).__name__.removeprefix("Parametrized")
        print(f"  {name:22s} {tuple(output.shape[1:])}")

    hooks = []
    for name, layer in model.named_modules():
        # innermost layers only, without the parts of spectral normalization
        parts = dict(layer.named_children()).keys() - {"parametrizations"}
        if "parametrizations" not in name and not parts:
            hooks.append(layer.register_forward_hook(show))
    with torch.no_grad():
        model.eval()(*inputs)
    for hook in hooks:
        hook.remove()


def print_plan(args, data, total, per_epoch, device):
    """The last lines of --dry-run."""
    shape = tuple(data.images.shape[1:])
    plan = f"{total} steps of {args.batch * WORLD} images, {per_epoch:.7g} an epoch"
    print(f"data: {data.name} from {args.data}: {len(data.images)} images {shape}, {data.note}")
    print(f"plan: {plan} ({total / per_epoch:.1f} epochs)")
    print(f"on {device} in {args.precision}; seed {args.seed}. Nothing was trained.")


# ------------------------------------------------------------------------------------------ a run


def new_batches(args, typed, data, device, balance=False):
    """The Batches that a run draws from data.

    Where there are fewer images than --batch, args.batch is lowered to their number, with a line
    that says so, unless somebody typed it. Raises InputError (see Batches).
    """
    largest = len(data.images) // WORLD
    if 2 <= largest < args.batch and "batch" not in typed:
        if RANK == 0:
            words = f"note: training uses {len(data.images)} images of '{data.name}', so --batch is"
            print(f"{words} {largest}, not {args.batch}", file=sys.stderr)
        args.batch = largest
    return datasets.Batches(data, args.batch, device, args.seed, balance=balance)


@contextlib.contextmanager
def start(args, script, data, batches, models, optimizers, total, per_epoch, extra=None):
    """Open the run directory, a new one or that of --resume, and hold its lock. Gives a Run.

    models, optimizers: dicts of all that a checkpoint holds. extra: more for it, tensors and plain
    values. On --resume everything goes on exactly where it was. Meanwhile, Ctrl-C and SIGTERM only
    set a flag: see Run.should_stop.
    """
    run = Run(args, script, data, batches, models, optimizers, total, per_epoch, extra)
    summary_writer = tensorboard_writer() if args.tensorboard else None  # fails early
    if WORLD > 1:
        join_processes(run.device, optimizers)
    if run.is_main:
        run.path = args.resume or sources.new_directory(args.out, default_out(run), KILLED_EARLY)
    if WORLD > 1:
        box = [run.path]
        torch.distributed.broadcast_object_list(box)
        run.path = box[0]
    lock = contextlib.nullcontext()
    if run.is_main:
        busy = f"another process is training in '{run.path}'"
        lock = sources.locked(run.path / ".lock", busy=busy)
    with lock:
        if args.resume:
            run.restore(read_checkpoint(run.path))
        elif RANK > 0:
            # the networks are the same in all processes; from here on, the latents are not
            torch.manual_seed(args.seed + 1_000_003 * RANK)
        rates_to_device(optimizers, run.device)
        if run.is_main:
            run.open_files(summary_writer)
        for which in (signal.SIGINT, signal.SIGTERM):
            run.loop.callback(signal.signal, which, signal.signal(which, run.notice))
        run.bar = tqdm(total=total, initial=run.step, unit="step", disable=RANK > 0 or None)
        run.loop.callback(run.bar.close)
        with run.loop:
            yield run


def default_out(run):
    """runs/<script>-<data>[-<preset>], without characters that a shell or a system may refuse."""
    data = re.sub(r"[^\w.,+=@() -]", "_", run.about["name"])[:50]
    name = f"{run.script}-{data}"
    preset = run.args.preset
    if preset and preset != run.about["name"]:
        name += f"-{preset}"
    return Path("runs") / name


def tensorboard_writer():
    """The class SummaryWriter of the optional package tensorboard."""
    try:
        from torch.utils.tensorboard import SummaryWriter

        return SummaryWriter
    except ImportError:
        raise InputError("--tensorboard needs a package: pip install tensorboard") from None


def join_processes(device, optimizers):
    """Under torchrun: let the processes of one training find each other and average gradients."""
    if not torch.distributed.is_initialized():
        backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
        patience = datetime.timedelta(days=1)  # the others wait while the first evaluates
        torch.distributed.init_process_group(backend, timeout=patience)
    for optimizer in optimizers.values():
        optimizer.register_step_pre_hook(average_gradients)


def average_gradients(optimizer, *_):
    """Just before an update: average all gradients over the processes, in one message."""
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    gradients = [p.grad for p in parameters if p.grad is not None]
    flat = torch.cat([gradient.flatten() for gradient in gradients])
    torch.distributed.all_reduce(flat)
    means = (flat / WORLD).split([gradient.numel() for gradient in gradients])
    for gradient, mean in zip(gradients, means, strict=True):
        gradient.copy_(mean.view_as(gradient))


def rates_to_device(optimizers, device):
    """Make every learning rate a tensor on a GPU (see set_lr), and a float elsewhere."""
    for optimizer in optimizers.values():
        for group in optimizer.param_groups:
            group["lr"] = float(group["lr"])
            if device.type == "cuda":
                group["lr"] = torch.full((), group["lr"], device=device)


class Run:
    """One training run: its directory, step, log and checkpoints. Made by `start`.

    Under torchrun all processes take the same steps, each with its own part of the data and its own
    latents. Gradients are averaged before each update, so the networks stay the same, as in one
    process with a batch WORLD times as large. Only BatchNorm's statistics are each process's own;
    those of the first are saved.
    """

    def __init__(self, args, script, data, batches, models, optimizers, total, per_epoch, extra):
        self.args = args
        unsaved = ("resume", "defaults")
        self.flags = {name: value for name, value in vars(args).items() if name not in unsaved}
        self.script = script
        self.batches = batches
        self.models = models
        self.optimizers = optimizers
        self.extra = extra or {}
        self.path = None  # the run directory
        self.is_main = RANK == 0  # the process that draws, evaluates and writes
        self.device = batches.device
        self.step = 0
        self.total = total
        self.per_epoch = per_epoch  # steps, maybe not a whole number
        self.seconds = 0.0  # of training, without evaluations and pictures
        self.best = math.inf  # the lowest FID so far
        self.best_size = args.size  # the size of the images that have it
        self.recent = []  # losses since the last row of log.csv, on the device
        self.signals = []
        self.loop = contextlib.ExitStack()  # what is undone when the loop ends
        self.mark = self.printed = time.perf_counter()
        self.note = data.note
        self.about = {"name": data.name, "source": str(args.data), "fingerprint": data.fingerprint}
        self.about |= {"size": args.size, "channels": data.images.shape[1]}
        self.about |= {"count": len(data.images), "classes": data.classes}
        self.about["counts"] = datasets.class_counts(data)

    # ---- what the loop calls ----

    def should_stop(self):
        """At the start of a step: did Ctrl-C or SIGTERM ask to stop? All processes agree on it."""
        self.mark = time.perf_counter()
        number = self.signals[0] if self.signals else 0
        if WORLD > 1:  # the answer is what all agreed on, even if a signal comes just now
            agreed = torch.tensor([number])
            torch.distributed.all_reduce(agreed, torch.distributed.ReduceOp.MAX)
            number = int(agreed)
        if number:
            self.signals = [number]
        return number > 0

    def every(self, *intervals):
        """Does one of these intervals end with this step? None and 0 mean never."""
        return any(n and self.step // n > (self.step - 1) // n for n in intervals)

    def count(self, **losses):
        """At the end of a step: count it, and keep its losses, tensors of no dimensions."""
        self.step += 1
        self.names = list(losses)
        values = torch.stack(list(losses.values())).detach()
        if self.recent and self.recent[-1].shape != values.shape:
            raise InputError(f"'{self.path}' is damaged: its recent losses are of another script")
        self.recent.append(values)
        self.count_time()
        self.bar.update()

    def count_time(self):
        now = time.perf_counter()
        self.seconds += now - self.mark
        self.mark = now

    def wait(self):
        """Wait until a GPU has done all steps so far, which is time spent on training."""
        self.mark = time.perf_counter()
        if self.device.type != "cpu":
            getattr(torch, self.device.type).synchronize()
        self.count_time()

    def write_log(self, **scores):
        """A row of log.csv: the mean losses since the last row, the speed, and these scores.

        Raises InputError if a loss was not finite. Under torchrun all processes call it.
        """
        self.wait()
        table = self.finite_losses()
        self.recent = []
        if WORLD > 1:
            torch.distributed.all_reduce(table)
            table /= WORLD
        if not self.is_main:
            return
        losses = dict(zip(self.names, table.mean(0).tolist(), strict=True))
        last_step, last_seconds = self.logged
        images = self.args.batch * WORLD * (self.step - last_step)
        rate = images / max(self.seconds - last_seconds, 1e-9)
        self.logged = (self.step, self.seconds)
        epoch = self.step / self.per_epoch
        row = {"step": self.step, "epoch": round(epoch, 4), "seconds": round(self.seconds, 3)}
        self.log.write([{**row, "img_per_s": round(rate, 1), **losses, **scores}])
        if self.tensorboard:
            for name, value in {**losses, **scores}.items():
                self.tensorboard.add_scalar(name, value, self.step)
        words = [f"{name.removeprefix('loss_')} {value:.3f}" for name, value in losses.items()]
        text = f"{' '.join(words)}, {rate:.0f} img/s"
        self.bar.set_postfix_str(text)
        seldom = time.perf_counter() - self.printed > 10 or self.step == self.total
        if self.bar.disable and seldom:  # no terminal: a line now and then
            print(f"step {self.step}/{self.total} (epoch {epoch:.1f}): {text}", flush=True)
            self.printed = time.perf_counter()

    def finite_losses(self):
        """The losses since the last row of log.csv, float32 (steps, losses) on the CPU.

        Raises InputError if one of them is not finite.
        """
        if not self.recent:
            return torch.empty(0, 0)
        table = torch.stack(self.recent).cpu()
        bad = (~table.isfinite().all(1)).nonzero()
        if len(bad):
            self.fail(self.step - len(table) + 1 + int(bad[0]))
        return table

    def fail(self, step):
        good = f"{self.path / 'last.pt'} is the last good checkpoint. Start again with a lower --lr"
        raise InputError(f"a loss or weight is not finite at step {step}: stopped; {good}")

    def save(self, name, **more):
        """Write a checkpoint. last.pt: all processes call this. best.pt: only the first does.

        more: for this file only. Raises InputError and leaves the old file if a loss, weight or
        buffer is not finite.
        """
        self.wait()
        self.finite_losses()
        checkpoint = self.snapshot(together=name == "last.pt") | more
        if not all_finite(checkpoint):
            self.fail(self.step)
        if self.is_main:  # serialized in memory first, so that a full disk is a plain OSError
            buffer = io.BytesIO()
            torch.save(checkpoint, buffer)
            (self.path / name).parent.mkdir(exist_ok=True)
            sources.write_bytes(self.path / name, buffer.getbuffer())

    def keep(self, network):
        """Write kept/<step>.pt: what makes images, which is this network and its average."""
        names = [name for name in (network, "ema") if name in self.models]
        states = {name: self.models[name].state_dict() for name in names}
        self.save(f"kept/{self.step:06d}.pt", models=states, optimizers={})

    def keep_best(self, scores, size, real):
        """Write best.pt if the FID in `scores` is the lowest so far. size: of the images.

        Of several FIDs, that of most features counts. A growing model starts anew at each size,
        because FIDs at two sizes do not compare. real: the real images of this FID. Their hashes
        are in best.pt, so that metrics.py never measures it on images that have chosen it.
        """
        dims = [int(name.removeprefix("fid_")) for name in scores if name.startswith("fid_")]
        if not dims:
            return
        if size != self.best_size:
            self.best = math.inf
            self.best_size = size
        dim = max(dims)
        fid = scores[f"fid_{dim}"]
        words = f"step {self.step}: FID-{dim} {fid:.2f}"
        if fid < self.best:
            self.best = fid
            self.save("best.pt", chosen_on=datasets.image_hashes(real))
            words += "; the best so far: best.pt"
        self.bar.write(words)

    def write_weights(self):
        """Rows of weights.csv, histograms of the weights of every layer, for report.py."""
        if self.is_main:
            self.histograms.write(weight_histograms(self.models, self.step))

    def resume_command(self):
        """What continues this run, for a shell."""
        script = quoted(f"{self.script}.py")
        return f"{START} {script} --resume {quoted(self.path)}"

    def goodbye(self):
        """Say how to resume a run that was stopped. Returns the exit code, 128 + the signal."""
        self.bar.close()
        command = self.resume_command()
        print(f"stopped and saved at step {self.step} of {self.total}; go on with: {command}")
        return 128 + self.signals[0]

    def done(self):
        """After the loop: say so. Ctrl-C ends what follows at once; --resume makes up for it."""
        self.loop.close()
        pictures = sources.printable(self.path / "samples")
        print(f"done: {self.step} steps in {self.seconds:.0f} s; pictures in {pictures}")

    def finish(self):
        """Note in args.json that nothing is left to do, and say what to try next."""
        if self.is_main:
            files = [path.name for path in self.path.iterdir() if path.suffix in RESULTS]
            self.write_args(finished=self.step, files=sorted(files))
            words = f"{self.resume_command()} --steps {2 * self.step}"
            if Path(__file__).with_name("sample.py").is_file():
                sampling = f"python sample.py {quoted(self.path)} --count 64 --to grid.png"
                words = f"{sampling}\n          {words}"
            print(f"\ntry next: {words}")

    def notice(self, number, _):
        """The signal handler. The step in progress ends first; then should_stop() is true.

        The same signal again stops at once. (Not under torchrun: it passes on what a terminal has
        sent to all processes already.)
        """
        if number in self.signals and WORLD == 1:
            raise KeyboardInterrupt
        if number == signal.SIGINT and self.is_main:
            with contextlib.suppress(OSError):
                os.write(2, b"\nstopping after this step; Ctrl-C again: at once, without saving\n")
        self.signals.append(number)

    # ---- state and files ----

    def snapshot(self, together):
        """The checkpoint: tensors and plain values, all that an exact continuation needs.

        together: all processes call this, and the random states of all of them are in it.
        """
        rng = {"cpu": torch.get_rng_state()}
        if self.device.type != "cpu":
            rng[self.device.type] = getattr(torch, self.device.type).get_rng_state()
        if WORLD > 1 and together:
            everyone = [None] * WORLD
            torch.distributed.all_gather_object(everyone, rng)
            rng["everyone"] = everyone
        state = {"format": FORMAT, "script": self.script, "flags": self.flags, "data": self.about}
        state |= {"step": self.step, "seconds": self.seconds, "steps_per_epoch": self.per_epoch}
        state |= {"best": self.best, "best_size": self.best_size, "drawn": self.batches.drawn}
        state |= {"total": self.total, "processes": WORLD, "rng": rng, **self.extra}
        state["recent"] = torch.stack(self.recent).cpu() if self.recent else torch.empty(0, 0)
        state["models"] = {name: model.state_dict() for name, model in self.models.items()}
        state["optimizers"] = {name: o.state_dict() for name, o in self.optimizers.items()}
        return state

    def restore(self, state):
        """Take over the state of a checkpoint. It may come from another kind of device."""
        numbers = {"seconds": float, "best": (int, float), "best_size": int, "drawn": int}
        parts = {"optimizers": dict, "rng": dict, "recent": torch.Tensor, "processes": int}
        check_fields(self.path / "last.pt", state, **numbers, **parts)
        if state["processes"] != WORLD:
            words = f"trained by {state['processes']} processes, not {WORLD}: use as many"
            raise InputError(f"'{self.path}' was {words}")
        if self.about["fingerprint"] != state["data"]["fingerprint"]:
            words = "is not the data that this run was trained on (its fingerprint differs)"
            raise InputError(f"'{self.args.data}' {words}")
        step = state["step"]
        if step > self.total or step == self.total == finished_step(self.path):
            words = f"finished ({step} steps): give a larger --steps or --epochs"
            raise InputError(f"'{self.path}' is {words}")
        with fits(self.script):
            if [*state["models"], *state["optimizers"]] != [*self.models, *self.optimizers]:
                raise ValueError("other networks")
            if not all_finite(state):
                raise ValueError("numbers that are not finite")
            for name, model in self.models.items():
                model.load_state_dict(state["models"][name])
            for name, optimizer in self.optimizers.items():
                restore_optimizer(optimizer, state["optimizers"][name]["state"])
            rng = state["rng"]["everyone"][RANK] if WORLD > 1 else state["rng"]
            torch.set_rng_state(rng["cpu"])
            if self.device.type in rng and self.device.type != "cpu":
                getattr(torch, self.device.type).set_rng_state(rng[self.device.type])
            self.recent = list(state["recent"].to(self.device))
            protocol = ("dims", "weights", "eval_images")
            if all(getattr(self.args, name) == state["flags"][name] for name in protocol):
                # under another protocol FIDs do not compare, and the next one is the best
                self.best = state["best"]
                self.best_size = state["best_size"]
        self.step = step
        self.seconds = state["seconds"]
        self.batches.drawn = state["drawn"]

    def open_files(self, summary_writer):
        """args.json, source.py, log.csv and weights.csv, and the first lines on the terminal."""
        sources.remove_half_written(self.path)
        self.write_args()
        source = Path(__file__).with_name(f"{self.script}.py")  # for the record; never executed
        sources.write_bytes(self.path / "source.py", source.read_bytes())
        last = self.step or -1  # what belongs to step 0 is made again
        self.log = sources.Log(self.path / "log.csv", last)
        self.histograms = sources.Log(self.path / "weights.csv", last)
        self.tensorboard = summary_writer(str(self.path)) if summary_writer else None
        self.logged = (self.step, self.seconds)
        data = self.about
        size = f"{data['size']}x{data['size']}"
        each = f" in each of {WORLD} processes" if WORLD > 1 else ""
        print(f"{self.script}: {data['name']} {size}, {data['count']} images ({self.note})")
        print(datasets.class_words(data["classes"], data["counts"]))
        done = f", {self.step} of them done" if self.step else ""
        length = f"{self.total} steps of {self.args.batch}{each}, {self.per_epoch:.7g} an epoch"
        path = sources.printable(self.path)
        print(f"{length}{done}; {self.device}, {self.args.precision}; everything goes to {path}")
        if self.args.steps is None and self.total < 500:
            print(f"note: {self.total} steps are few; try --steps 3000", file=sys.stderr)

    def write_args(self, **more):
        """args.json: what this run is, for people and for report.py."""
        about = {"script": self.script, "preset": self.args.preset, "flags": self.flags}
        about |= {"device": str(self.device), "processes": WORLD, "precision": self.args.precision}
        about |= {"steps": self.total, "steps_per_epoch": self.per_epoch, "data": self.about}
        about["versions"] = {"python": platform.python_version(), "torch": torch.__version__}
        write_text(self.path / "args.json", json.dumps({**about, **more}, indent=1))

    def weights_words(self):
        """In words, which weights make the images of this run."""
        return weights_used({"flags": self.flags, "step": self.step})


def quoted(path):
    """A path or file name as one types it into a shell, however long it is."""
    return shlex.quote(sources.printable(path, math.inf))


def finished_step(path):
    """The step at which the run in this directory noted that nothing is left to do, or None.

    None, too, if one of the files that it had made by then is gone: --resume makes it again.
    """
    try:
        about = json.loads((path / "args.json").read_text(encoding="utf-8"))
        gone = [name for name in about.get("files", []) if not (path / name).exists()]
        return None if gone else about.get("finished")
    except (OSError, ValueError, AttributeError, TypeError, RecursionError):
        return None


def all_finite(tree):
    """Whether all tensors in nested dicts and lists are finite. Waits once for each device."""
    flags = {}  # device -> a flag for each of its tensors
    branches = [tree]
    while branches:
        branch = branches.pop()
        if isinstance(branch, dict):
            branches += branch.values()
        elif isinstance(branch, (list, tuple)):
            branches += branch
        elif isinstance(branch, torch.Tensor):
            flags.setdefault(branch.device, []).append(branch.isfinite().all())
    return all(torch.stack(same).all() for same in flags.values())


def restore_optimizer(optimizer, state):
    """Load the state of an Adam that may come from another kind of device. Its options stay."""
    groups = optimizer.state_dict()["param_groups"]
    optimizer.load_state_dict({"state": state, "param_groups": groups})
    # Adam's kernel wants its averages laid out in memory as the weights are
    for weight, averages in optimizer.state.items():
        for key in ("exp_avg", "exp_avg_sq"):
            if averages[key].shape != weight.shape or averages["step"].dim() > 0:
                raise ValueError("an average of Adam has another shape than its weight")
            averages[key] = torch.empty_like(weight).copy_(averages[key])


@torch.no_grad()
def weight_histograms(models, step):
    """Rows for weights.csv: a histogram of the weights of each layer, 50 bins from low to high.

    Biases and norms are left out. The bins are counted where the weights are and come over in one
    piece. No random number is drawn.
    """
    layers = []
    for network, model in models.items():
        for layer, weight in model.named_parameters():
            if network != "ema" and weight.dim() > 1:
                # a Mac's GPU lacks some of these operations
                weight = weight.cpu() if weight.device.type == "mps" else weight
                layers.append((network, layer, weight.float()))
    table = []
    for _, _, weight in layers:
        low, high = weight.aminmax()
        scaled = (weight - low) / (high - low).clamp(min=1e-30)  # 0 to 1, or all 0 if all are equal
        # in parts, because histc counts in float32, which stops at 2^24
        counts = sum(torch.histc(part, 50, 0, 1) for part in scaled.flatten().split(2**24))
        table.append(torch.cat([low[None], high[None], counts]))
    rows = []
    for (network, layer, _), values in zip(layers, torch.stack(table).tolist(), strict=True):
        low, high, *counts = values
        if math.isfinite(low) and math.isfinite(high):  # otherwise save() stops the run
            row = {"step": step, "network": network, "layer": layer, "low": low, "high": high}
            row["counts"] = " ".join(f"{count:.0f}" for count in counts)
            rows.append(row)
    return rows


# ------------------------------------------------------------------------------------ checkpoints


def check_fields(path, values, **kinds):
    """InputError unless a dict of a checkpoint holds these kinds of values; numbers from 0 on."""
    for name, kind in kinds.items():
        value = values.get(name)
        if not isinstance(value, kind) or (kind in (int, float) and not 0 <= value < 2**48):
            raise InputError(f"'{path}' is damaged: its {name} makes no sense")


def read_checkpoint(path):
    """The dict of a checkpoint file, or of a run directory's last.pt, with tensors on the CPU.

    Nothing is unpickled. Raises InputError.
    """
    path = Path(path)
    if path.is_dir():
        if not (path / "last.pt").exists():
            raise InputError(f"'{path}' holds no last.pt: no run, or stopped before it saved one")
        path = path / "last.pt"
    if not path.exists():
        raise InputError(f"no checkpoint '{path}'")
    if not path.is_file():  # a pipe would wait for ever
        raise InputError(f"'{path}' is not a regular file")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of what it is, if it is no checkpoint
            checkpoint = torch.load(path, weights_only=True, map_location="cpu")
    except Exception as error:  # RuntimeError, UnpicklingError, EOFError, ...
        if getattr(error, "filename", None) or out_of_memory(error):  # it cannot be read
            raise
        # not torch's own words: they advise to read it without weights_only
        raise InputError(f"'{path}' is damaged or no checkpoint") from None
    known = isinstance(checkpoint, dict) and isinstance(checkpoint.get("script"), str)
    if known and checkpoint.get("format") == 1:
        raise InputError(f"'{path}' was made by the first edition of this collection: train anew")
    if not known or checkpoint.get("format") != FORMAT:
        raise InputError(f"'{path}' is not a checkpoint of this collection")
    checkpoint.setdefault("total", 2**48 - 1)  # older ones lack it
    check_fields(path, checkpoint, step=int, total=int, flags=dict, data=dict, models=dict)
    flags = {"fit": "crop", "limit_per_class": 0, **checkpoint["flags"]}  # older ones lack these
    check_fields(path, flags, size=int, seed=int, ema=(int, float), fit=str, limit_per_class=int)
    checkpoint["flags"] = flags
    about = checkpoint["data"]
    check_fields(path, about, size=int, channels=int, classes=list, fingerprint=str)
    names = all(isinstance(name, str) for name in about["classes"])
    if checkpoint["step"] > checkpoint["total"] or about["size"] != flags["size"] or not names:
        raise InputError(f"'{path}' is damaged: its step, sizes or classes make no sense")
    return checkpoint


def weights_used(checkpoint, weights="ema"):
    """In words, which weights of a checkpoint make its images."""
    ema = checkpoint["flags"]["ema"]
    words = f"averaged weights (EMA {ema})" if ema and weights == "ema" else "plain weights"
    return f"{words} at step {checkpoint['step']}"


MISFITS = (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError)


@contextlib.contextmanager
def fits(script):
    """Turn what happens when a checkpoint does not fit the networks of its script into one line."""
    try:
        yield
    except MISFITS as problem:
        nonsense = isinstance(problem, ArithmeticError) or "negative" in str(problem)
        if out_of_memory(problem) and not nonsense:
            raise
        words = f"does not fit {script}.py ({short(problem)})"
        words += ": it is damaged, or the script has changed since"
        raise InputError(f"the checkpoint {words}") from None


@functools.cache
def load_script(stem):
    """The module <stem>.py next to this file, never one of that name from elsewhere."""
    path = Path(__file__).parent / f"{stem}.py"
    if re.search(r"[/\\:\0]", stem) or not path.is_file():  # never from another folder
        raise InputError(f"this model was made by {stem}.py: copy it next to training.py")
    spec = importlib.util.spec_from_file_location(stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def open_model(checkpoint, device="cpu", weights="ema"):
    """Checkpoint -> (the script that made it, the trained model).

    weights: "ema" (if the run has averaged weights) or "plain".
    """
    script = load_script(checkpoint["script"])
    with fits(checkpoint["script"]):
        model = script.load_model(checkpoint, device, weights)
        used = {**checkpoint, "models": model.state_dict(), "optimizers": None}
        if not all_finite(used):
            words = "the weights of this checkpoint are not finite, so it makes no images"
            raise InputError(f"{words}: take another, or train again with a lower --lr")
    return script, model


def tool(name):
    """The module metrics or report, if it lies next to this file; else one line, and None.

    None in all processes but the first, which alone draws and measures.
    """
    if RANK > 0:
        return None
    problem = "it does not lie next to the script"
    if Path(__file__).with_name(f"{name}.py").is_file():
        try:
            return importlib.import_module(name)
        except ModuleNotFoundError as error:
            problem = error
    print(f"{name}.py is not used: {problem}", file=sys.stderr)
    return None
