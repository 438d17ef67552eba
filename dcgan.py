"""DCGAN: a generator and a discriminator, both convolutional, trained against each other.

The generator turns a latent vector z ~ N(0, I) into a picture; the discriminator says how likely a picture is to be
real. The discriminator learns to tell real from generated, the generator learns to be taken for real:

    z (100)                                          picture (3, 64, 64)
      | ConvTranspose 4x4                              | Conv 4x4 stride 2, LeakyReLU 0.2
    (8f, 4, 4)    BatchNorm, ReLU                    (f, 32, 32)
      | ConvTranspose 4x4 stride 2                     | Conv 4x4 stride 2, BatchNorm, LeakyReLU 0.2
    (4f, 8, 8)    BatchNorm, ReLU                    (2f, 16, 16)
      |                                                |
    (2f, 16, 16)  BatchNorm, ReLU                    (4f, 8, 8)
      |                                                |
    (f, 32, 32)   BatchNorm, ReLU                    (8f, 4, 4)
      |                                                | Conv 4x4
    (3, 64, 64)   tanh                               logit (1)          f = --width

Radford, Metz, Chintala: Unsupervised Representation Learning with Deep Convolutional GANs, 2015 (arXiv 1511.06434);
the game is from Goodfellow et al.: Generative Adversarial Nets, 2014 (arXiv 1406.2661).

    python dcgan.py                                              # built-in shapes: two or three minutes on two cores
    python dcgan.py --data photos/ --size 64 --epochs 100        # your own pictures: a folder, a zip, an .npz
    python dcgan.py --load runs/dcgan-shapes-1 --generate 64 --to grid.png

Report rows (the README has the numbers): --preset cats is R2a, --preset cats-100k is R1a, --preset food-noise is R3f.
Time: the work is 2.5 GFLOP an image at width 64; 50 epochs of 23,000 cats are 7 hours on two older CPU cores.

If you copy this for coursework: take datasets.py along (metrics.py and report.py if you want FID and plots). What makes
it a DCGAN is in `Generator`, `Discriminator`, the two losses and `train_step`; change those. The blocks marked
"shared" are plumbing and the same in every script.
"""

import argparse
import sys

# A preset only sets defaults: a flag on the command line wins. "report" holds the published numbers, never a flag.
PRESETS = {
    "shapes": dict(  # what `python dcgan.py` alone runs: small enough for a laptop without a GPU
        data="shapes", size=32, width=24, batch=32, steps=3000, lr=1e-3, lr_d=5e-4, ema=0.99, sample_every=200,
        save_every=500,
    ),
    "cats": dict(  # R2a. z and f are not stated there: 100 and 64 as in the paper
        data="cats64", size=64, width=64, latent_dim=100, batch=128, epochs=50, lr=2e-4,
        report={"FID": 132.7, "collapse (pixels)": 2412, "protocol": "R2: 50 epochs of 29,843 cat faces; 1,000 real "
                "against 1,000 generated images, 2048-d Inception features; pairs of 1,000 samples of cosine > 0.9"},
    ),
    "cats-100k": dict(  # R1a: 100 epochs of 1,000 steps; the decay is per step (per epoch it would do nothing)
        data="cats64", size=64, width=64, latent_dim=100, batch=128, steps=100_000, lr=2e-4, lr_decay=0.9999977,
        sample_every=1000, save_every=5000,
        report={"protocol": "R1: 100,000 steps, about 15,000 cat faces; FID and SSIM as curves, no final number"},
    ),
    "food-noise": dict(  # R3f, our reading: the report gives no architecture and stopped the run for its cost
        data="food64", size=64, width=64, latent_dim=100, batch=64, steps=200_000, lr=2e-4, noise=0.1,
        noise_steps=100_000, sample_every=2000, save_every=5000,
        report={"protocol": "R3: plain GAN with decaying noise, abandoned for its cost; no number"},
    ),
}  # fmt: skip


def number(kind, low, below=float("inf")):
    """An argparse type: an int or a float with low <= value < below."""

    def convert(text):
        try:
            value = kind(text)
        except ValueError:
            value = None
        if value is None or not low <= value < below:
            what = "a whole number" if kind is int else "a number"
            end = f" and below {below}" if below < float("inf") else ""
            raise argparse.ArgumentTypeError(f"'{text}' is not {what} of at least {low}{end}")
        return value

    return convert


FLAGS = {  # flag: (default, type or choices, help); None as a default is explained in the help
    "data": ("shapes", str, "a known data set (python datasets.py lists them), or a folder, zip or .npz of your own"),
    "preset": (None, list(PRESETS), "the settings of a report; 'shapes' is what a run without --data uses"),
    "epochs": (50, number(int, 1), "length in passes over the data"),
    "steps": (None, number(int, 1), "length in generator updates; wins over --epochs"),
    "batch": (128, number(int, 2), "images in one update"),
    "size": (None, [16, 32, 64, 128, 256], "side of the pictures in pixels (default: 32 for small images, else 64)"),
    "width": (64, number(int, 1), "base channel count, f in the drawing"),
    "latent_dim": (100, number(int, 1), "length of z"),
    "seed": (0, number(int, 0, 2**40), "of weights, latents and data order"),
    "lr": (2e-4, number(float, 1e-12), "learning rate of both networks"),
    "lr_g": (None, number(float, 1e-12), "of the generator alone (default: --lr)"),
    "lr_d": (None, number(float, 1e-12), "of the discriminator alone (default: --lr)"),
    "lr_decay": (1.0, number(float, 1e-12, 1.0000001), "learning rates are multiplied by this after every step"),
    "g_steps": (1, number(int, 1), "generator updates in one step"),
    "d_steps": (1, number(int, 1), "discriminator updates in one step"),
    "noise": (0.0, number(float, 0), "standard deviation of the noise on what the discriminator sees"),
    "noise_steps": (10_000, number(int, 1), "the noise falls linearly to 0 over this many steps"),
    "ema": (0.0, number(float, 0, 1), "decay of the averaged generator, used for pictures and metrics; 0: none"),
    "device": ("auto", str, "auto, cpu, cuda, cuda:1 or mps"),
    "precision": ("auto", ["auto", "fp32", "bf16"], "auto: bf16 where the hardware computes in it"),
    "out": (None, str, "run directory (default: a new one in runs/)"),
    "resume": (None, str, "go on with this run directory; without DIR, with the newest run of this script"),
    "log_every": (50, number(int, 1), "steps between rows of log.csv"),
    "sample_every": (None, number(int, 1), "steps between pictures (default: an epoch, at least 100)"),
    "save_every": (None, number(int, 1), "steps between checkpoints (default: an epoch, at least 100)"),
    "eval_every": (0, number(int, 0), "steps between FID evaluations that choose best.pt; 0: none"),
    "eval_images": (1000, number(int, 0), "images on each side of an evaluation; 0: no evaluation"),
    "dims": ([768, 2048], [64, 192, 768, 2048], "Inception features used for FID and KID, one or more"),
    "weights": (None, str, "file of the FID Inception weights (default: torch's cache, else a download)"),
    "dry_run": (False, None, "build everything, print shapes, parameters and the plan, train nothing"),
    "load": (None, str, "a checkpoint or run directory to use with --generate or --interpolate"),
    "generate": (None, number(int, 1), "with --load: make N pictures"),
    "interpolate": (None, number(int, 2), "with --load: walk between random latents in N pictures, 8 walks"),
    "interpolation": ("spherical", ["spherical", "linear"], "how --interpolate walks"),
    "to": (None, str, "with --load: FILE.png gets one grid, anything else is a folder of PNGs"),
}


# --- shared: flags ---
def parse_args(argv=None):
    """Command line -> Namespace of all FLAGS, and `explicit`: the names of those that the user gave."""
    title, _, rest = __doc__.partition("\n\n")
    parser = argparse.ArgumentParser(
        description=title, epilog=rest, formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False, argument_default=argparse.SUPPRESS,
    )  # fmt: skip
    parser.error = lambda message: parser.exit(2, f"{parser.prog}: error: {message} (see --help)\n")  # one line
    for name, (default, kind, about) in FLAGS.items():
        options = {"help": about.replace("%", "%%") + (f" [{default}]" if default not in (None, False) else "")}
        if name == "resume":
            options.update(nargs="?", const="", metavar="DIR")
        elif kind is None:
            options["action"] = "store_true"
        elif isinstance(kind, list):
            options.update(choices=kind, type=type(kind[0]), nargs="+" if isinstance(default, list) else None)
        else:
            options.update(type=kind, metavar=name.rsplit("_")[-1].upper())
        parser.add_argument("--" + name.replace("_", "-"), **options)
    given = vars(parser.parse_args(argv))
    if "preset" not in given and given.get("data", "shapes") == "shapes" and "resume" not in given:
        given["preset"] = "shapes"
    preset = {k: v for k, v in PRESETS.get(given.get("preset"), {}).items() if k != "report"}
    assert not (unknown := set(preset) - set(FLAGS)), f"the preset sets flags that do not exist: {unknown}"
    if "epochs" in given:
        preset.pop("steps", None)  # a length on the command line wins, in whichever unit it is given
    if "lr" in given:
        preset = {k: v for k, v in preset.items() if k not in ("lr_g", "lr_d")}  # and so does a rate for both
    args = argparse.Namespace(**{name: flag[0] for name, flag in FLAGS.items()} | preset | given)
    args.explicit = sorted(given)
    lonely = [name for name in ("generate", "interpolate", "interpolation", "to") if name in given and not args.load]
    if lonely or args.load and (bool(args.generate) == bool(args.interpolate) or args.resume is not None):
        parser.error("--load CHECKPOINT goes with --generate N or with --interpolate N, and they with it")
    if args.resume is not None and args.out:
        parser.error("--resume goes on in its own directory: leave out --out")
    return args


# --- end shared ---

if __name__ == "__main__":  # before the slow imports: --help and typing errors answer at once
    ARGS = parse_args()

import contextlib
import copy
import csv
import importlib
import io
import json
import math
import platform
import signal
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn
from tqdm import tqdm

try:
    from datasets import Batches, InputError, default_size, grid, load, locked, pick_device, read_checkpoint
    from datasets import run_program, save_picture, to_uint8, write_checkpoint, write_text  # isort: skip
except ImportError as problem:
    sys.exit(print(f"{Path(__file__).name}: error: needs our datasets.py beside it ({problem})", file=sys.stderr) or 2)

SCRIPT = "dcgan"

# ---------------------------------------------------------------------------------------------------- networks


def channels(size, width):
    """Channel counts at 4x4, 8x8, ... size/2. They double at every halving, up to 8 times the width."""
    return [width * min(8, size // (2 * side)) for side in (2**k for k in range(2, size.bit_length() - 1))]


class Generator(nn.Module):
    """z (N, latent_dim) -> pictures (N, colours, size, size) in [-1, 1]."""

    def __init__(self, size, colours, latent_dim, width):
        super().__init__()
        counts = channels(size, width)  # at size 64, width 64: 512, 256, 128, 64
        layers = [nn.ConvTranspose2d(latent_dim, counts[0], 4, 1, 0, bias=False)]  # (N, 8f, 4, 4)
        for before, after in zip(counts, counts[1:], strict=False):
            layers += [nn.BatchNorm2d(before), nn.ReLU(inplace=True)]
            layers += [nn.ConvTranspose2d(before, after, 4, 2, 1, bias=False)]  # side doubles, channels halve
        layers += [nn.BatchNorm2d(counts[-1]), nn.ReLU(inplace=True)]
        layers += [nn.ConvTranspose2d(counts[-1], colours, 4, 2, 1, bias=False), nn.Tanh()]  # (N, colours, size, size)
        self.layers = nn.Sequential(*layers)

    def forward(self, z):
        return self.layers(z[:, :, None, None])


class Discriminator(nn.Module):
    """Pictures (N, colours, size, size) -> logits (N,): the log odds that each is real.

    No BatchNorm in the first layer, so that it sees the pictures' own brightness, and none in the last (the paper).
    """

    def __init__(self, size, colours, width):
        super().__init__()
        counts = channels(size, width)[::-1]  # at size 64, width 64: 64, 128, 256, 512
        layers = [nn.Conv2d(colours, counts[0], 4, 2, 1, bias=False), nn.LeakyReLU(0.2, inplace=True)]
        for before, after in zip(counts, counts[1:], strict=False):
            layers += [nn.Conv2d(before, after, 4, 2, 1, bias=False)]  # side halves, channels double
            layers += [nn.BatchNorm2d(after), nn.LeakyReLU(0.2, inplace=True)]
        layers += [nn.Conv2d(counts[-1], 1, 4, 1, 0, bias=False)]  # (N, 1, 1, 1)
        self.layers = nn.Sequential(*layers)

    def forward(self, images):
        return self.layers(images)[:, 0, 0, 0]


def init_weights(module):
    """Weights from N(0, 0.02), as in the paper; BatchNorm's gain from N(1, 0.02), as in the authors' code."""
    if isinstance(module, (nn.Conv2d, nn.ConvTranspose2d)):
        nn.init.normal_(module.weight, 0.0, 0.02)
    elif isinstance(module, nn.BatchNorm2d):
        nn.init.normal_(module.weight, 1.0, 0.02)
        nn.init.zeros_(module.bias)


# ------------------------------------------------------------------------------------------------------ losses


def loss_real(logits):
    """-log D(x), averaged over the batch. From logits: log(sigmoid(l)) itself is -inf when the sigmoid rounds to 0."""
    return F.binary_cross_entropy_with_logits(logits.float(), torch.ones_like(logits, dtype=torch.float32))


def loss_fake(logits):
    """-log(1 - D(G(z))), averaged over the batch."""
    return F.binary_cross_entropy_with_logits(logits.float(), torch.zeros_like(logits, dtype=torch.float32))


# The generator minimises loss_real of its fakes, -log D(G(z)), not log(1 - D(G(z))): the "non-saturating" loss of
# Goodfellow et al. (section 3). Same fixed point, but a strong gradient where the discriminator is sure.

# -------------------------------------------------------------------------------------------------- train step


def train_step(step, args, batches, generator, discriminator, opt_g, opt_d, average, autocast):
    """One step: d_steps updates of the discriminator, then g_steps of the generator. step counts from 0.

    Returns float32 (3,) on the device: loss_d_real, loss_d_fake, loss_g of the last update of each.
    Fresh latents for every update. Nothing here waits for the device.
    """
    device = batches.device
    sigma = args.noise * max(0.0, 1 - step / args.noise_steps)  # instance noise, Sonderby et al. 2016 (1610.04490)

    def seen(images):
        return images + sigma * torch.randn_like(images) if sigma > 0 else images

    for optimiser, lr in ((opt_g, args.lr_g or args.lr), (opt_d, args.lr_d or args.lr)):
        for group in optimiser.param_groups:
            group["lr"] = lr * args.lr_decay**step

    # The discriminator: minimise -log D(x) - log(1 - D(G(z))). Real and fake go through it separately, because its
    # BatchNorm takes statistics over a batch, and a mixed batch would tell the two apart by them.
    for _ in range(args.d_steps):
        real, _ = next(batches)
        with autocast():
            d_real = loss_real(discriminator(seen(real)))
            with torch.no_grad():
                fake = generator(torch.randn(args.batch, args.latent_dim, device=device))
            d_fake = loss_fake(discriminator(seen(fake)))
        opt_d.zero_grad()
        (d_real + d_fake).backward()
        opt_d.step()

    # The generator: minimise -log D(G(z)). `inputs=` leaves the discriminator's own gradients out: they would be
    # thrown away, and are a quarter of the work of this update.
    for _ in range(args.g_steps):
        with autocast():
            fake = generator(torch.randn(args.batch, args.latent_dim, device=device))
            g_loss = loss_real(discriminator(seen(fake)))
        opt_g.zero_grad()
        g_loss.backward(inputs=list(generator.parameters()))
        opt_g.step()

    if average is not None:  # average = ema * average + (1 - ema) * generator; BatchNorm's statistics are copied
        with torch.no_grad():
            torch._foreach_lerp_(list(average.parameters()), list(generator.parameters()), 1 - args.ema)
            for ours, theirs in zip(average.buffers(), generator.buffers(), strict=True):
                ours.copy_(theirs)
    return torch.stack([d_real.detach(), d_fake.detach(), g_loss.detach()])


LOSSES = ("loss_d_real", "loss_d_fake", "loss_g")


# ------------------------------------------------------------------------------------------- using a checkpoint


def load_generator(checkpoint, device="cpu"):
    """Checkpoint dict -> the trained generator in eval mode: BatchNorm uses its running statistics, so that a picture
    depends on its own latent only and not on the others in its batch."""
    flags = checkpoint["flags"]
    generator = Generator(flags["size"], checkpoint["data"]["channels"], flags["latent_dim"], flags["width"])
    generator.load_state_dict(checkpoint["networks"].get("ema") or checkpoint["networks"]["generator"])
    return generator.to(device, memory_format=torch.channels_last).eval()


def weights_used(checkpoint):
    ema = checkpoint["flags"]["ema"]
    return (f"averaged weights (EMA {ema})" if ema else "plain weights") + f" at step {checkpoint['step']}"


@torch.no_grad()
def pictures(generator, z):
    """Latents (N, latent_dim) -> uint8 (N, colours, size, size) on the CPU, 100 at a time."""
    device = next(generator.parameters()).device
    return torch.cat([to_uint8(generator(part.to(device))).cpu() for part in z.split(100)])


def generate(checkpoint, n, seed=0, device="cpu"):
    """n pictures, uint8 (n, colours, size, size), the same for the same seed."""
    z = torch.randn(n, checkpoint["flags"]["latent_dim"], generator=torch.Generator().manual_seed(seed))
    return pictures(load_generator(checkpoint, device), z)


def slerp(a, b, t):
    """Spherical interpolation of vectors (N, d) at t in [0, 1] (Shoemake 1985; for latents White 2016, 1609.04468).

    In 100 dimensions nearly all of N(0, I) lies close to a sphere of radius 10. A straight line between two points cuts
    through the inside, where the generator was never trained; the arc stays out.
    """
    angle = torch.acos(F.cosine_similarity(a, b, dim=-1).clamp(-1 + 1e-7, 1 - 1e-7))[:, None]
    return (torch.sin((1 - t) * angle) * a + torch.sin(t * angle) * b) / torch.sin(angle)


def interpolate(checkpoint, rows, frames, kind="spherical", seed=0, device="cpu"):
    """rows walks of `frames` pictures, each between two random latents: uint8 (rows * frames, colours, size, size)."""
    walk = slerp if kind == "spherical" else torch.lerp
    latent_dim = checkpoint["flags"]["latent_dim"]
    a, b = torch.randn(2, rows, latent_dim, generator=torch.Generator().manual_seed(seed))
    z = torch.stack([walk(a, b, i / (frames - 1)) for i in range(frames)], dim=1)  # (rows, frames, latent_dim)
    return pictures(load_generator(checkpoint, device), z.flatten(0, 1))


# --- shared: run directory ---
CHANGEABLE = set("steps epochs device precision log_every sample_every save_every eval_every eval_images".split())
CHANGEABLE |= {"dims", "weights", "resume", "dry_run"}  # what may differ when a run goes on


def new_run(args, data_name):
    """Make and return the run directory: --out, or runs/<script>-<data>[-<preset>]-<n> with the next free n."""
    if args.out:
        path, early = Path(args.out), {".lock", "args.json", "log.csv"}  # all that a run killed at once leaves
        if path.exists() and (not path.is_dir() or {p.name for p in path.iterdir() if p.suffix != ".tmp"} - early):
            raise InputError(f"'{path}' exists and is not empty: use --resume {path}, or another --out")
        path.mkdir(parents=True, exist_ok=True)
        return path
    preset = f"-{args.preset}" if args.preset and args.preset != data_name else ""
    base, n = Path("runs") / f"{SCRIPT}-{data_name}{preset}", 1
    while True:
        with contextlib.suppress(FileExistsError):
            (path := Path(f"{base}-{n}")).mkdir(parents=True)
            return path
        n += 1


def resumed(args):
    """--resume -> (run directory, its checkpoint, its flags with the changes that are allowed)."""
    if not args.resume:
        runs = sorted(Path("runs").glob(f"{SCRIPT}-*/last.pt"), key=lambda p: p.stat().st_mtime_ns)
        if not runs:
            raise InputError(f"no run of {SCRIPT}.py in runs/ to resume")
        args.resume = str(runs[-1].parent)
    checkpoint = read_checkpoint(args.resume)
    if not Path(args.resume).is_dir():
        raise InputError(f"--resume takes a run directory: --resume {Path(args.resume).parent}")
    if checkpoint["script"] != SCRIPT:
        raise InputError(f"'{args.resume}' is a run of {checkpoint['script']}.py: resume it with that script")
    flags = argparse.Namespace(**{k: v[0] for k, v in FLAGS.items()} | checkpoint["flags"], explicit=args.explicit)
    for name in args.explicit:
        new = getattr(args, name)
        if name not in CHANGEABLE | {"data"} and new != getattr(flags, name):  # data: its fingerprint is compared
            flag = name.replace("_", "-")
            raise InputError(f"--{flag} was {getattr(flags, name)} in this run and cannot become {new} on resume")
        setattr(flags, name, new)
    if "epochs" in args.explicit and "steps" not in args.explicit:
        flags.steps = None
    return Path(args.resume), checkpoint, flags


# --- end shared ---


# --- shared: log ---
class Log:
    """log.csv. Opened again on resume, it drops the rows after the checkpoint: those steps are done once more."""

    def __init__(self, path, columns, step):
        old = []
        if path.exists():
            with open(path, newline="", encoding="utf-8") as file:
                old = [row for row in csv.DictReader(file) if int(row.get("step") or step + 1) <= step]
        self.columns = columns + [c for c in (old[0] if old else []) if c and c not in columns]
        writer = csv.DictWriter(text := io.StringIO(), self.columns, extrasaction="ignore", lineterminator="\n")
        writer.writeheader()
        writer.writerows(old)
        write_text(path, text.getvalue())
        self.path = path

    def write(self, row):
        with open(self.path, "a", newline="", encoding="utf-8") as file:
            csv.DictWriter(file, self.columns, lineterminator="\n").writerow(row)


# --- end shared ---


# ---------------------------------------------------------------------------------------------------- evaluate


def beside(name):
    """metrics.py or report.py if it lies beside this script; else one line that says so, and None."""
    try:
        module = importlib.import_module(name)
        if hasattr(module, {"metrics": "evaluate", "report": "report"}[name]):
            return module
        problem = f"{module.__file__} is not ours"
    except ModuleNotFoundError as error:
        problem = error
    print(f"{name}.py is not used: {problem}", file=sys.stderr)
    return None


def reference_halves(args):
    """Two disjoint sets of real images: one chooses best.pt, the other gives the final numbers (and so a fair result).

    They are the halves of the held-out split, or where the data have none of a fixed random part of the training set.
    """
    pool = load(args.data, args.size, "test")
    order = torch.randperm(len(pool.images), generator=torch.Generator().manual_seed(0))
    words = "held-out images" if pool.held_out else "training images (the data have no held-out split)"
    return [pool.images[order[i::2][: args.eval_images]] for i in (0, 1)], f"{words} of {pool.name}"


def final_evaluation(args, checkpoint, halves, words, run, device):
    """At the end of a preset: the report's metrics under its protocol, ours beside theirs; kept in metrics.json."""
    if (metrics := beside("metrics")) is None:
        return
    report = PRESETS[args.preset]["report"]
    other, real = halves
    fake = generate(checkpoint, args.eval_images, args.seed + 2, device)
    values = metrics.evaluate(
        real, fake, floor=other, dims=args.dims, weights=args.weights, device=device, real_words=words,
        fake_words=f"images by {weights_used(checkpoint)}, latent seed {args.seed + 2}",
    )  # fmt: skip
    result = {"values": values, "report": report, "weights": weights_used(checkpoint)}
    write_text(run / "metrics.json", json.dumps(result, indent=1))
    changed = [f"--{k.replace('_', '-')} {getattr(args, k)}" for k in args.explicit if k in PRESETS[args.preset]]
    if changed:
        print(f"\nnot quite the preset {args.preset}: {' '.join(changed)}")
    print(f"\npreset {args.preset}, ours beside the report's; the report's protocol: {report['protocol']}")
    print(metrics.table(values, report))


def finish(args, checkpoint, halves, words, run, device):
    """After the last step: plots and, for a report's preset, its metrics. Then what to try next."""
    if (report := beside("report")) is not None:
        for path in report.report(run):
            print(f"wrote {path}")
    if "report" in PRESETS.get(args.preset, {}) and args.eval_images:
        final_evaluation(args, checkpoint, halves, words, run, device)
    print(f"\ntry next: python {SCRIPT}.py --load {run} --generate 64 --to grid.png")
    print(f"          python {SCRIPT}.py --resume {run} --steps {2 * checkpoint['step']}")


def use_checkpoint(args):
    """--load with --generate or --interpolate: a grid in one file, or a folder of PNGs."""
    checkpoint = read_checkpoint(args.load)
    if checkpoint["script"] != SCRIPT:
        raise InputError(f"'{args.load}' is a checkpoint of {checkpoint['script']}.py: use it with that script")
    device, _ = pick_device(args.device)
    if args.generate:
        images, columns = generate(checkpoint, args.generate, args.seed, device), None
        to = Path(args.to or "generated.png")
    else:
        images = interpolate(checkpoint, 8, args.interpolate, args.interpolation, args.seed, device)
        to, columns = Path(args.to or "interpolation.png"), args.interpolate
    if to.suffix.lower() == ".png":
        save_picture(grid(images, columns), to)
    elif to.suffix:
        raise InputError(f"--to {to}: give a .png for one grid, or a folder")
    elif to.exists() and (not to.is_dir() or any(to.iterdir())):
        raise InputError(f"'{to}' exists and is not an empty folder: choose another --to")
    else:
        for i, image in enumerate(images):
            save_picture(grid(image[None]), to / f"{i:05d}.png")
    print(f"wrote {len(images)} pictures to {to}: {weights_used(checkpoint)}")


# -------------------------------------------------------------------------------------------------------- main


def describe(args, data, networks, total, per_epoch, where):
    """--dry-run: the shape after every layer, the parameter counts and the plan."""
    x = torch.zeros(2, args.latent_dim, 1, 1)
    for title, network in networks.items():
        parameters = sum(p.numel() for p in network.parameters())
        print(f"{title}: {parameters:,} parameters\n  {'input':22s} {tuple(x.shape[1:])}")
        with torch.no_grad():
            for layer in network.cpu().eval().layers:
                x = layer(x)
                print(f"  {type(layer).__name__:22s} {tuple(x.shape[1:])}")
    print(f"data: {data.name} from {args.data}: {len(data.images)} images {tuple(data.images.shape[1:])}, {data.note}")
    print(f"plan: {total} steps of {args.batch} images, {per_epoch} steps an epoch ({total / per_epoch:.1f} epochs)")
    print(f"{where}; seed {args.seed}. Nothing was trained.")


def main(args):
    if args.load:
        return use_checkpoint(args)
    checkpoint = run = None
    if args.resume is not None:
        run, checkpoint, args = resumed(args)
    device, precision = pick_device(args.device, args.precision)
    if device.type == "cuda":
        torch.cuda.set_device(device)  # so that random states and events are those of this GPU
    args.size = args.size or default_size(args.data)
    data = load(args.data, args.size)
    if checkpoint and data.fingerprint != checkpoint["data"]["fingerprint"]:
        raise InputError(f"'{args.data}' is not the data that this run was trained on (its fingerprint differs)")
    batches = Batches(data, args.batch, device, args.seed)
    per_epoch = max(1, batches.per_epoch // args.d_steps)
    total = args.steps or args.epochs * per_epoch
    sample_every, save_every = (every or max(per_epoch, 100) for every in (args.sample_every, args.save_every))
    if checkpoint and checkpoint["step"] >= total:
        raise InputError(f"'{run}' is finished ({checkpoint['step']} steps): give a larger --steps or --epochs")

    evaluates = args.eval_images and (args.eval_every or "report" in PRESETS.get(args.preset, {}))
    halves, words = reference_halves(args) if evaluates and not args.dry_run else (None, None)
    if halves and min(len(half) for half in halves) < 2:
        raise InputError("an evaluation needs 2 images on each side: see --eval-images (0: none) and the test split")
    if evaluates and args.weights and not Path(args.weights).is_file():
        raise InputError(f"no file '{args.weights}': see --weights")

    # Build. The seed fixes weights and latents; the fixed latents of the pictures have a generator of their own.
    torch.manual_seed(args.seed)
    colours = data.images.shape[1]
    generator = Generator(args.size, colours, args.latent_dim, args.width).apply(init_weights)
    discriminator = Discriminator(args.size, colours, args.width).apply(init_weights)
    networks = {"generator": generator, "discriminator": discriminator}
    average = None
    if args.ema > 0:
        average = networks["ema"] = copy.deepcopy(generator)
    if args.dry_run:
        networks.pop("ema", None)
        return describe(args, data, networks, total, per_epoch, f"on {device} in {precision}")
    for network in networks.values():
        network.to(device, memory_format=torch.channels_last)

    def adam(network, lr):
        # betas (0.5, 0.999): with Adam's usual 0.9 the game oscillates (the paper, section 4)
        return torch.optim.Adam(network.parameters(), lr, betas=(0.5, 0.999), fused=device.type != "mps")

    opt_g, opt_d = adam(generator, args.lr_g or args.lr), adam(discriminator, args.lr_d or args.lr)
    optimisers = {"generator": opt_g, "discriminator": opt_d}
    shown = generator if average is None else average  # whose pictures are shown and measured
    fixed = torch.randn(64, args.latent_dim, generator=torch.Generator().manual_seed(args.seed + 1))

    def autocast():
        return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16")

    # State that a checkpoint holds besides the networks and optimisers.
    step, seconds, best, recent = 0, 0.0, math.inf, []
    if checkpoint:
        for name, network in networks.items():
            network.load_state_dict(checkpoint["networks"][name])
        for name, optimiser in optimisers.items():
            optimiser.load_state_dict(checkpoint["optimisers"][name])
        step, seconds = checkpoint["step"], checkpoint["seconds"]
        if all(getattr(args, k) == checkpoint["flags"][k] for k in ("dims", "weights", "eval_images")):
            best = checkpoint["best"]  # under another protocol FIDs do not compare, and the next one is the best
        recent = list(checkpoint["recent"].to(device))
        batches.drawn = checkpoint["drawn"]
        torch.set_rng_state(checkpoint["rng"]["cpu"])
        if device.type in checkpoint["rng"] and device.type != "cpu":
            getattr(torch, device.type).set_rng_state(checkpoint["rng"][device.type])

    about = {
        "name": data.name, "source": args.data, "fingerprint": data.fingerprint, "size": args.size,
        "channels": colours, "count": len(data.images), "classes": data.classes,
    }  # fmt: skip
    flags = {k: v for k, v in vars(args).items() if k in FLAGS and k != "resume"}

    def snapshot():
        return {
            "script": SCRIPT, "format": 1, "flags": flags, "step": step, "seconds": seconds, "best": best,
            "steps_per_epoch": per_epoch, "data": about, "drawn": batches.drawn,
            "networks": {name: network.state_dict() for name, network in networks.items()},
            "optimisers": {name: optimiser.state_dict() for name, optimiser in optimisers.items()},
            "recent": torch.stack(recent).cpu() if recent else torch.empty(0, len(LOSSES)),
            "rng": {"cpu": torch.get_rng_state()}
            | ({device.type: getattr(torch, device.type).get_rng_state()} if device.type != "cpu" else {}),
        }  # fmt: skip

    run = run or new_run(args, data.name)
    with locked(run / ".lock", busy=f"another process is training in '{run}'"):
        if checkpoint and read_checkpoint(run)["step"] != checkpoint["step"]:
            raise InputError(f"another process went on with '{run}' meanwhile: resume it again")
        for half_written in run.glob("*.tmp"):  # left by kill -9
            half_written.unlink()
        about_run = {
            "script": SCRIPT, "preset": args.preset, "flags": flags, "device": str(device), "precision": precision,
            "steps": total, "steps_per_epoch": per_epoch, "data": about,
            "versions": {"python": platform.python_version(), "torch": torch.__version__},
        }  # fmt: skip
        write_text(run / "args.json", json.dumps(about_run, indent=1))
        metrics = beside("metrics") if args.eval_every and args.eval_images else None
        scores = [f"{kind}_{dim}" for dim in args.dims for kind in ("fid", "kid")] if metrics else []
        log = Log(run / "log.csv", ["step", "epoch", "seconds", "img_per_s", *LOSSES, *scores], step)
        print(f"{SCRIPT}: {data.name} {args.size}x{args.size}, {len(data.images)} images ({data.note})")
        print(f"{total} steps of {args.batch}, {per_epoch} an epoch; {device}, {precision}; everything goes to {run}")

        def fail_at(bad_step):
            raise InputError(
                f"a loss or weight is not finite at step {bad_step}: stopped; {run / 'last.pt'} is the last good "
                "checkpoint. Start again with a lower --lr"
            )

        def save(name):
            if not all(p.isfinite().all() for network in networks.values() for p in network.parameters()):
                fail_at(step)
            write_checkpoint(snapshot(), run / name)

        def sample():
            save_picture(grid(pictures(shown.eval(), fixed), 8), run / "samples" / f"{step:06d}.png")
            shown.train()

        def measure():
            """FID and KID of fresh pictures against the first half of the reference; a new best FID goes to best.pt."""
            nonlocal best
            z = torch.randn(args.eval_images, args.latent_dim, generator=torch.Generator().manual_seed(args.seed + 2))
            fake = pictures(shown.eval(), z)
            shown.train()
            values = metrics.evaluate(
                halves[0], fake, dims=args.dims, weights=args.weights, device=device, real_words=words
            )
            found = metrics.scores(values)
            chosen = max((dim for dim in args.dims if f"fid_{dim}" in found), default=None)
            if chosen and found[f"fid_{chosen}"] < best:
                best = found[f"fid_{chosen}"]
                save("best.pt")
            return found

        if not checkpoint:
            save("last.pt")
            sample()
        stop = []  # signals that have come: the step in progress is finished, then the run saves and ends
        handlers = {s: signal.signal(s, lambda number, _: stop.append(number)) for s in (signal.SIGINT, signal.SIGTERM)}
        mark = said = time.perf_counter()
        logged_step, logged_seconds = step, seconds
        bar = tqdm(total=total, initial=step, unit="step", disable=None)
        try:
            while step < total and not stop:
                losses = train_step(step, args, batches, generator, discriminator, opt_g, opt_d, average, autocast)
                step += 1
                recent.append(losses)
                bar.update()
                ends = step == total
                due_eval = metrics and (ends or step % args.eval_every == 0)
                due_log = ends or due_eval or step % args.log_every == 0
                due_sample = ends or step % sample_every == 0
                due_save = ends or step % save_every == 0
                failed = device.type == "cpu" and not losses.isfinite().all()  # on a GPU asking would mean waiting
                if not (due_log or due_sample or due_save or failed):
                    continue
                table = torch.stack(recent).cpu()  # the only place where the program waits for a GPU
                if len(bad := (~table.isfinite().all(1)).nonzero()):
                    fail_at(step - len(recent) + 1 + int(bad[0]))
                seconds += time.perf_counter() - mark
                if due_log:
                    rate = args.batch * (step - logged_step) / max(seconds - logged_seconds, 1e-9)
                    means = dict(zip(LOSSES, table.mean(0).tolist(), strict=True))
                    row = {"step": step, "epoch": round(step / per_epoch, 4), "seconds": round(seconds, 3)}
                    row |= {"img_per_s": round(rate, 1)} | means
                    recent, logged_step, logged_seconds = [], step, seconds
                    text = " ".join(f"{k.removeprefix('loss_')} {v:.3f}" for k, v in means.items())
                    bar.set_postfix_str(text := f"{text}, {rate:.0f} img/s")
                    if bar.disable and (time.perf_counter() - said > 10 or ends):  # no terminal: a line now and then
                        print(f"step {step}/{total} (epoch {step / per_epoch:.1f}): {text}", flush=True)
                        said = time.perf_counter()
                    log.write(row | (measure() if due_eval else {}))
                if due_sample:
                    sample()
                if due_save:
                    save("last.pt")
                mark = time.perf_counter()
            if step < total:  # a signal, wherever it came
                seconds += time.perf_counter() - mark
                save("last.pt")
        finally:
            bar.close()
            for number, handler in handlers.items():
                signal.signal(number, handler)
        if step < total:
            print(f"stopped and saved at step {step} of {total}; go on with: python {SCRIPT}.py --resume {run}")
            sys.exit(128 + stop[0])
        print(f"done: {step} steps in {seconds:.0f} s; pictures in {run / 'samples'}")
        finish(args, snapshot(), halves, words, run, device)


if __name__ == "__main__":
    run_program(f"{SCRIPT}.py", main, ARGS)
