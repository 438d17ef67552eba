"""DDPM: a network that takes a little noise off a picture, a thousand times over, until noise has become a picture.

Forward, nothing is learnt: T = 1000 steps, each of which shrinks a picture x_0 a little and adds noise to it, so that

    x_t = sqrt(abar_t) x_0 + sqrt(1 - abar_t) eps,    eps ~ N(0, I),    abar_0 = 1, abar_T close to 0

Backward, a U-Net is shown x_t, the time t and the class y, and guesses the noise eps that is in it; from the guess
follows a guess of x_0, and from that the next, a little less noisy x_(t-1). It is trained with the plain squared error
|eps - guess|^2 at random t. The U-Net, at 32 pixels (f = --width, R = residual blocks, A = with attention):

    x_t (3, 32, 32)                                                guess of eps (3, 32, 32)
      | Conv                                                            | GroupNorm, SiLU, Conv
    R (f, 32, 32)  ----------------------------------------------->  R (f, 32, 32)
      | stride 2                                                        | pixels repeated
    RA (2f, 16, 16)  --------------------------------------------->  RA (2f, 16, 16)
      | stride 2                                                        | pixels repeated
    RA (2f, 8, 8)  ---> RA, R (2f, 8, 8)  ------------------------>  RA (2f, 8, 8)

    t: sines of many wave lengths, two Linear;  y: an embedding. Their sum scales and shifts inside every R.

Ho, Jain, Abbeel: Denoising Diffusion Probabilistic Models, 2020 (arXiv 2006.11239); the cosine schedule: Nichol,
Dhariwal 2021 (2102.09672); the sampler in few steps: Song, Meng, Ermon 2021 (DDIM, 2010.02502); guidance: Ho, Salimans
2022 (2207.12598). Labels are optional: without them all pictures are of one class.

    python ddpm.py                                               # built-in shapes: about three minutes on two cores
    python ddpm.py --data photos/ --size 32 --preset small --flip  # your own few hundred pictures
    python ddpm.py --load runs/ddpm-shapes-1 --generate 64 --class star --guidance 3 --to stars.png

Report row: R4c, a proposal that its report did not carry out; augment.py does, with this script.
Time: at 32 pixels, width 32 and one block the work is 1 GFLOP an image; a picture takes a third of that for each of its
--sample-steps, twice with guidance.

If you copy this for coursework: take datasets.py along (metrics.py and report.py if you want FID and plots). What makes
it a DDPM is in `alpha_bars`, `train_step`, `posterior` and `ddim_step`; change those. The blocks marked "shared" are
plumbing and the same in every script.
"""

import argparse
import sys

# A preset only sets defaults: a flag on the command line wins. "report" holds the published numbers, never a flag.
R4C = {"protocol": "R4: proposed there, not carried out; no number"}
PRESETS = {
    "shapes": dict(  # what `python ddpm.py` alone runs: small enough for a laptop without a GPU
        data="shapes", size=16, width=24, blocks=1, batch=32, steps=1400, lr=2e-3, lr_decay=0.998, ema=0.99,
        dropout=0.0, guidance=2.0, sample_steps=20, eta=1.0, sample_every=200, save_every=600,
    ),
    # Ho et al.'s data, rate, batch, schedule and width. Theirs too: 800,000 steps, EMA 0.9999, a warm-up, clipped
    # gradients, a network down to 4x4; and no classes
    "cifar10": dict(
        data="cifar10", size=32, width=128, batch=128, steps=200_000, lr=2e-4, ema=0.999, flip=True,
        noise_schedule="linear", guidance=1.5, sample_every=5000, save_every=5000, report=R4C,
    ),
    "animals": dict(
        data="animals", size=64, width=64, batch=64, steps=100_000, lr=2e-4, ema=0.9995, flip=True, guidance=2.0,
        sample_every=5000, save_every=5000, report=R4C,
    ),
    "mnist": dict(  # a quarter of an hour on two older CPU cores, 6 minutes with AMX
        data="mnist", size=32, width=32, blocks=1, batch=32, steps=2200, lr=2e-3, lr_decay=0.99895, ema=0.99,
        dropout=0.0, guidance=3.0, sample_steps=20, eta=1.0, sample_every=550, save_every=550, report=R4C,
    ),
    "small": dict(  # a few hundred pictures, which a network of this size could learn by heart: hence the dropout
        size=32, width=32, blocks=1, batch=32, steps=4000, lr=1e-3, lr_decay=0.9995, ema=0.995, dropout=0.2,
        guidance=1.5, sample_steps=25, eta=1.0, sample_every=500, save_every=500,
    ),
}  # fmt: skip


# --- shared: flags ---
def number(kind, low, below=float("inf")):
    """An argparse type: an int or a float with low <= value < below."""

    def convert(text):
        try:
            value = kind(text)
        except ValueError:
            value = None
        if value is None or not low <= value < below:
            whole, end = "whole " * (kind is int), f" and below {below}" * (below < float("inf"))
            raise argparse.ArgumentTypeError(f"'{text}' is not a {whole}number of at least {low}{end}")
        return value

    return convert


COMMON = {  # flag: (default, type or choices, help); None as a default is explained in the help
    "data": ("shapes", str, "a known data set (python datasets.py lists them), or a folder, zip or .npz of your own"),
    "epochs": (50, number(int, 1), "length in passes over the data"),
    "steps": (None, number(int, 1), "length in generator (or VAE) updates; wins over --epochs"),
    "batch": (128, number(int, 2), "images in one update"),
    "size": (None, [16, 32, 64, 128, 256], "side of the pictures in pixels (default: 32 for small images, else 64)"),
    "seed": (0, number(int, 0, 2**32), "of weights, latents and data order"),
    "lr_decay": (1.0, number(float, 1e-12, 1.0000001), "learning rates are multiplied by this after every step"),
    "ema": (0.0, number(float, 0, 1), "decay of the averaged weights, used for pictures and metrics; 0: none"),
    "device": ("auto", str, "auto, cpu, cuda, cuda:1 or mps"),
    "precision": ("auto", ["auto", "fp32", "bf16"], "auto: bf16 where the hardware computes in it"),
    "no_graph": (False, None, "on an NVIDIA GPU: launch every operation by itself instead of the captured step"),
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
    "load": (None, str, "a checkpoint or run directory to use, for example with --generate"),
    "generate": (None, number(int, 1), "with --load: make N pictures"),
    "to": (None, str, "with --load: FILE.png gets one grid, anything else is a folder of PNGs"),
}


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
    if given.get("data", "shapes") == "shapes" and not given.keys() & {"preset", "resume", "load"}:
        given["preset"] = "shapes"
    preset = {k: v for k, v in PRESETS.get(given.get("preset"), {}).items() if k != "report"}
    assert not (unknown := set(preset) - set(FLAGS)), f"the preset sets flags that do not exist: {unknown}"
    if "epochs" in given:
        preset.pop("steps", None)  # a length on the command line wins, in whichever unit it is given
    if "lr" in given:
        preset = {k: v for k, v in preset.items() if k not in ("lr_g", "lr_d")}  # and so does a rate for both
    args = argparse.Namespace(**{name: flag[0] for name, flag in FLAGS.items()} | preset | given)
    args.explicit = sorted(given)
    uses = [name for name in ("generate", "interpolate", "iwae") if getattr(args, name, None)]
    lonely = given.keys() & {"generate", "interpolate", "interpolation", "class", "to"} and not args.load
    if lonely or args.load and (len(uses) != 1 or args.resume is not None):
        parser.error(f"--load goes with one of --{' N, --'.join(USED_WITH)} N, they with it, none with --resume")
    if args.load and (idle := given.keys() - {"load", "seed", "device", *uses, *USED_WITH[uses[0]]}):
        parser.error(f"--{min(idle).replace('_', '-')} does nothing with --load and --{uses[0]}: leave it out")
    if args.resume is not None and args.out:
        parser.error("--resume goes on in its own directory: leave out --out")
    return args


# --- end shared ---

FLAGS = COMMON | {
    "preset": (None, list(PRESETS), "settings for a kind of data; 'shapes' is what a run without --data uses"),
    "width": (64, number(int, 4), "base channel count, f in the drawing"),
    "blocks": (2, number(int, 1), "residual blocks at each side"),
    "dropout": (0.1, number(float, 0, 1), "share of the values in a block that are set to 0 while training"),
    "lr": (2e-4, number(float, 1e-12), "learning rate"),
    "timesteps": (1000, number(int, 2, 10**6), "T, the steps from picture to noise"),
    "noise_schedule": ("cosine", ["cosine", "linear"], "how the noise grows from step to step"),
    "drop_label": (0.1, number(float, 0, 1), "share of training pictures whose class is not told: guidance needs them"),
    "flip": (False, None, "mirror every other picture while training"),
    "balance": (False, None, "draw every class equally often, however many images it has"),
    "guidance": (1.0, number(float, 0), "how strongly pictures follow the class; 1: the conditional model as it is"),
    "sampler": ("ddim", ["ddim", "ancestral"], "ancestral: the chain of Ho et al., all of its T steps"),
    "sample_steps": (50, number(int, 1), "steps of DDIM from noise to picture"),
    "eta": (0.0, number(float, 0, 1.0001), "noise that DDIM adds: 0 none; 1, as the chain does, mends errors"),
    "class": (None, str, "with --load: make pictures of this class only"),
    "interpolate": (None, number(int, 2), "with --load: walk between random noises in N pictures, 8 walks"),
    "interpolation": ("spherical", ["spherical", "linear"], "how --interpolate walks"),
}

SAMPLING = ["guidance", "sampler", "sample_steps", "eta"]
USED_WITH = {  # a use of --load: the flags that it reads
    "generate": ["to", "class", *SAMPLING], "interpolate": ["to", "class", "interpolation", *SAMPLING]
}  # fmt: skip

if __name__ == "__main__":  # before the slow imports: --help and typing errors answer at once
    ARGS = parse_args()

import copy
import functools
import math

import torch
import torch.nn.functional as F
from torch import nn
from tqdm import tqdm

try:
    from datasets import Captured, InputError, Run, adam_kernel, describe, flags_of, grid, latents, layout
    from datasets import random_labels, run_program, save_picture, to_uint8, update_average, use_generator, walks  # isort: skip
except ImportError as problem:
    sys.exit(print(f"ddpm.py: error: needs our datasets.py beside it ({problem})", file=sys.stderr) or 2)

SCRIPT = "ddpm"

# --------------------------------------------------------------------------------------------- the noise schedule


def alpha_bars(kind, timesteps):
    """abar_t, the share of a picture's variance that is left after t steps: float64 (timesteps + 1,), 1 at t = 0.

    linear: step t takes away a share beta_t that grows evenly from 0.0001 to 0.02 (Ho et al.); with other than 1,000
    steps each takes more or less, so that the end is the same. cosine: abar_t falls like a squared cosine, which leaves
    more of small pictures in the middle of the way (Nichol and Dhariwal, equation 17).
    """
    if kind == "linear":
        betas = torch.linspace(0.1 / timesteps, 20 / timesteps, timesteps, dtype=torch.float64)
    else:
        t = torch.arange(timesteps + 1, dtype=torch.float64) / timesteps
        left = torch.cos((t + 0.008) / 1.008 * math.pi / 2).square()
        betas = 1 - left[1:] / left[:-1]
    return torch.cat([torch.ones(1, dtype=torch.float64), (1 - betas.clamp(max=0.999)).cumprod(0)])


def posterior(bars, t, x_0, x_t):
    """q(x_(t-1) | x_t, x_0), a normal distribution: its mean, and its variance, a number (Ho et al., equations 6, 7).

    bars: of alpha_bars; t: a number from 1 to T.
    """
    now, before = bars[t].item(), bars[t - 1].item()
    alpha = now / before  # 1 - beta_t
    mean = (math.sqrt(before) * (1 - alpha) * x_0 + math.sqrt(alpha) * (1 - before) * x_t) / (1 - now)
    return mean, (1 - before) / (1 - now) * (1 - alpha)


def ddim_step(bars, t, s, x_0, x_t, eta, noise):
    """From time t to an earlier s, any number of steps at once: x_s (Song et al., equations 12 and 16).

    What lies between x_0 and x_t is taken for the noise, and as much of it as x_s should have is put back. eta 1
    replaces a part of it by fresh noise, as much as the posterior has; eta 0 none, so that x_T decides the picture.
    """
    now, then = bars[t].item(), bars[s].item()
    eps = (x_t - math.sqrt(now) * x_0) / math.sqrt(1 - now)
    variance = eta**2 * (1 - then) / (1 - now) * (1 - now / then)
    return math.sqrt(then) * x_0 + math.sqrt(max(1 - then - variance, 0)) * eps + math.sqrt(variance) * noise


# ------------------------------------------------------------------------------------------------------ network


def norm(channels):
    """GroupNorm with 8 groups where they come out even. BatchNorm would mix pictures of different t."""
    return nn.GroupNorm(math.gcd(8, channels), channels)


def zeros(layer):
    """The layer with its weights set to 0: a residual block then begins as doing nothing, and the network as 0."""
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer


class Attention(nn.Module):
    """x + attention among its H*W places, with heads of at least 64 channels. (N, C, H, W) -> the same."""

    def __init__(self, channels):
        super().__init__()
        self.heads = math.gcd(channels, max(1, channels // 64))
        self.norm, self.qkv = norm(channels), nn.Conv2d(channels, 3 * channels, 1)
        self.out = zeros(nn.Conv2d(channels, channels, 1))

    def forward(self, x):
        q, k, v = self.qkv(self.norm(x)).flatten(2).unflatten(1, (3, self.heads, -1)).transpose(3, 4).unbind(1)
        h = F.scaled_dot_product_attention(q, k, v)  # each (N, heads, H*W, C / heads)
        return x + self.out(h.transpose(2, 3).reshape(x.shape))


class Block(nn.Module):
    """Residual block: (N, before, H, W), embedding (N, 4f) -> (N, after, H, W)."""

    def __init__(self, before, after, embedding, dropout, attention):
        super().__init__()
        self.first = nn.Sequential(norm(before), nn.SiLU(), nn.Conv2d(before, after, 3, 1, 1))
        self.scale_shift = nn.Linear(embedding, 2 * after)
        self.norm = norm(after)
        self.second = nn.Sequential(nn.SiLU(), nn.Dropout(dropout), zeros(nn.Conv2d(after, after, 3, 1, 1)))
        self.shortcut = nn.Conv2d(before, after, 1) if before != after else nn.Identity()
        self.attention = Attention(after) if attention else nn.Identity()

    def forward(self, x, embedding):
        scale, shift = self.scale_shift(embedding)[:, :, None, None].chunk(2, dim=1)
        h = self.norm(self.first(x)) * (1 + scale) + shift
        return self.attention(self.shortcut(x) + self.second(h))


class UNet(nn.Module):
    """Noisy pictures (N, colours, size, size), times int64 (N,), classes int64 (N,) -> a guess of their noise.

    A class equal to `classes` stands for "not told".
    """

    def __init__(self, args, colours, classes):
        super().__init__()
        self.classes, width = classes, args.width
        bars = alpha_bars(args.noise_schedule, args.timesteps)
        self.register_buffer("signal", bars.sqrt().float()[:, None, None, None], persistent=False)
        self.register_buffer("spread", (1 - bars).sqrt().float()[:, None, None, None], persistent=False)
        # wave lengths from 2 pi to 20,000 pi steps, as in "Attention Is All You Need"
        waves = torch.exp(-math.log(10_000) * torch.arange(width // 2) / (width // 2))
        self.register_buffer("waves", waves * (1000 / args.timesteps), persistent=False)
        wide = 4 * width
        self.embed_time = nn.Sequential(nn.Linear(2 * (width // 2), wide), nn.SiLU(), nn.Linear(wide, wide))
        self.embed_class = nn.Embedding(classes + 1, wide)

        sides = [args.size >> k for k in range(args.size.bit_length() - 3)]  # size, ..., 16, 8
        counts = [width if side == args.size else 2 * width for side in sides]

        def block(before, after, attention):
            return Block(before, after, wide, args.dropout, attention)

        self.first = nn.Conv2d(colours, width, 3, 1, 1)
        self.down, self.up, before = nn.ModuleList(), nn.ModuleList(), width
        for side, count in zip(sides, counts, strict=True):
            blocks = [block(before if k == 0 else count, count, side <= 16) for k in range(args.blocks)]
            self.down.append(nn.ModuleList(blocks))
            before = count
        self.halve = nn.ModuleList(nn.Conv2d(count, count, 3, 2, 1) for count in counts[:-1])
        self.middle = nn.ModuleList([block(before, before, True), block(before, before, False)])
        for side, count in zip(sides[::-1], counts[::-1], strict=True):  # each block gets the output of its opposite
            blocks = [block((before if k == 0 else count) + count, count, side <= 16) for k in range(args.blocks)]
            self.up.append(nn.ModuleList(blocks))
            before = count
        self.last = nn.Sequential(norm(width), nn.SiLU(), zeros(nn.Conv2d(width, colours, 3, 1, 1)))

    def forward(self, x, t, y):
        angles = t[:, None].float() * self.waves
        embedding = F.silu(self.embed_time(torch.cat([angles.sin(), angles.cos()], dim=1)) + self.embed_class(y))
        h, seen = self.first(x), []
        for level, blocks in enumerate(self.down):
            if level > 0:
                h = self.halve[level - 1](h)
            for block in blocks:
                seen.append(h := block(h, embedding))
        for block in self.middle:
            h = block(h, embedding)
        for level, blocks in enumerate(self.up):
            if level > 0:
                h = F.interpolate(h, scale_factor=2.0, mode="nearest")
            for block in blocks:
                h = block(torch.cat([h, seen.pop()], dim=1), embedding)
        return self.last(h)


# -------------------------------------------------------------------------------------------------- train step


def schedule(step, args):
    """What changes from step to step, which counts from 0: the factor of the learning rate."""
    return {"decay": args.lr_decay**step}


def train_step(now, args, batches, unet, optimiser, average, autocast):
    """One update: minimise |eps - guess|^2 at a random time for each picture (Ho et al., algorithm 1).

    now: what schedule() returns. Returns float32 (1,) on the device, the mean over all values: 1 is a network that
    guesses nothing. Nothing here waits for the device.
    """
    for group in optimiser.param_groups:
        group["lr"] = args.lr * now["decay"]

    x_0, labels = next(batches)
    if args.flip:
        x_0 = torch.where(torch.rand(args.batch, 1, 1, 1, device=x_0.device) < 0.5, x_0.flip(3), x_0)
    t = torch.randint(1, args.timesteps + 1, (args.batch,), device=x_0.device)
    eps = torch.randn_like(x_0)
    x_t = unet.signal[t] * x_0 + unet.spread[t] * eps
    # The same network also learns to guess without the class (Ho and Salimans, algorithm 1).
    y = labels.masked_fill(torch.rand(args.batch, device=x_0.device) < args.drop_label, unet.classes)
    with autocast():
        guess = unet(x_t, t, y)
    loss = F.mse_loss(guess.float(), eps)
    optimiser.zero_grad()
    loss.backward()
    optimiser.step()

    if average is not None:
        update_average(average, unet, args.ema)
    return loss.detach()[None]


LOSSES = ("loss",)


# ------------------------------------------------------------------------------------------------------ sampling


def guess_noise(unet, x, t, y, guidance):
    """The network's guess at time t, a number, pushed away from what it would be without the class.

    guess without + guidance * (guess with - guess without): Ho and Salimans, equation 6, whose w is guidance - 1.
    guidance 1 is the conditional model itself, 0 the unconditional one.
    """
    t = torch.full((len(x),), t, device=x.device)
    if guidance == 1 or unet.classes == 1:  # there is nothing to be told where all are of one class
        return unet(x, t, y)
    nothing = torch.full_like(y, unet.classes)
    told, not_told = unet(torch.cat([x, x]), torch.cat([t, t]), torch.cat([y, nothing])).chunk(2)
    return torch.lerp(not_told, told, guidance)


def check_sampling(args, given):
    """InputError for flags that do not go together. given: the names of those on the command line."""
    if args.sampler == "ancestral" and (idle := {"sample_steps", "eta"} & set(given)):
        flag = min(idle).replace("_", "-")
        raise InputError(f"--{flag} does nothing with --sampler ancestral, which takes all steps: leave it out")
    if "sample_steps" not in given:
        args.sample_steps = min(args.sample_steps, args.timesteps)
    if args.sample_steps > args.timesteps:
        raise InputError(f"--sample-steps {args.sample_steps} is more than the {args.timesteps} steps of --timesteps")
    if args.drop_label == 0 and args.guidance != 1:
        raise InputError(f"--guidance {args.guidance:g} needs a network trained without the class, too (--drop-label)")


def sampling_times(args):
    """The times that a sampler visits, from T to 0."""
    steps = args.timesteps if args.sampler == "ancestral" else args.sample_steps
    return torch.linspace(args.timesteps, 0, steps + 1, dtype=torch.float64).round().int().tolist()


def fresh_noise(seeds, t, x):
    """Noise of the shape of x (N, ...) for time t. A picture's depends on its seed and t only, not on the others."""
    generators = [torch.Generator().manual_seed((2**31 + seed * 1_000_003 + t) % 2**32) for seed in seeds]
    return torch.stack([torch.randn(x.shape[1:], generator=generator) for generator in generators]).to(x.device)


def without_noise(bars, t, x_t, eps):
    """The x_0 that x_t was made of if eps is the noise in it: the first equation at the top, solved for it."""
    return (x_t - math.sqrt(1 - bars[t]) * eps) / math.sqrt(bars[t])


@torch.no_grad()
def denoise(unet, x, y, args, seeds, clip=True):
    """The way from noise x (N, colours, size, size) to pictures of classes y: yields x_T, then x after every step.

    seeds: N whole numbers, for the noise added on the way. clip: cut each guess of x_0 to [-1, 1], as Ho et al.'s code.
    """
    bars, times = alpha_bars(args.noise_schedule, args.timesteps), sampling_times(args)
    noisy = args.sampler == "ancestral" or args.eta > 0
    yield x
    for t, s in zip(times, times[1:], strict=False):
        eps = guess_noise(unet, x, t, y, args.guidance)
        x_0 = without_noise(bars, t, x, eps)
        x_0 = x_0.clamp(-1, 1) if clip else x_0
        noise = fresh_noise(seeds, t, x) if noisy and s > 0 else torch.zeros_like(x)
        if args.sampler == "ancestral":
            mean, variance = posterior(bars, t, x_0, x)
            x = mean + math.sqrt(variance) * noise
        else:
            x = ddim_step(bars, t, s, x_0, x, args.eta, noise)
        yield x


@torch.no_grad()
def invert(unet, x, y, args):
    """DDIM with eta 0 walked backwards, from pictures x in [-1, 1] to the noise x_T that it would make them of.

    Each step assumes that the guess changes little over it, so `denoise` with clip=False brings the pictures back, more
    exactly the more steps there are.
    """
    bars, times = alpha_bars(args.noise_schedule, args.timesteps), sampling_times(args)[::-1]
    for s, t in zip(times, times[1:], strict=False):
        eps = guess_noise(unet, x, max(s, 1), y, args.guidance)
        x_0 = without_noise(bars, s, x, eps)
        x = math.sqrt(bars[t]) * x_0 + math.sqrt(1 - bars[t]) * eps
    return x


# ------------------------------------------------------------------------------------------- using a checkpoint


def load_unet(checkpoint, device="cpu", settings=None):
    """Checkpoint dict -> the trained network in eval mode (the averaged one if there is one), and its flags.

    settings: flags of SAMPLING to use in place of those that it was trained with.
    """
    args, data = flags_of(checkpoint, FLAGS), checkpoint["data"]
    vars(args).update(settings or {})
    check_sampling(args, settings or {})
    unet = UNet(args, data["channels"], len(data["classes"]))
    unet.load_state_dict(checkpoint["networks"].get("ema") or checkpoint["networks"]["unet"])
    return unet.to(device, memory_format=layout(device)).eval(), args


def noises(n, unet, args, seed):
    """n noises x_T, float32 (n, colours, size, size). The first ones do not depend on n."""
    colours = unet.first.in_channels
    return latents(n, colours * args.size**2, seed).view(n, colours, args.size, args.size)


def pictures(unet, x, y, args, seeds):
    """Noises, classes, seeds -> uint8 (N, colours, size, size) on the CPU, 100 at a time."""
    device, made = unet.signal.device, []
    steps = len(sampling_times(args)) * math.ceil(len(x) / 100)
    with tqdm(total=steps, desc="pictures", unit="step", leave=False, disable=None) as bar:
        for k in range(0, len(x), 100):
            here = slice(k, k + 100)
            for now in denoise(unet, x[here].to(device), y[here].to(device), args, seeds[here]):
                picture = now
                bar.update()
            made.append(to_uint8(picture).cpu())
    return torch.cat(made)


def generate(checkpoint, n, seed=0, device="cpu", label=None, **settings):
    """n pictures, uint8 (n, colours, size, size), the same for the same seed.

    label: the number of a class; None: classes as frequent as in the data, those of random_labels.
    """
    unet, args = load_unet(checkpoint, device, settings)
    y = random_labels(checkpoint["data"]["counts"], n, seed) if label is None else torch.full((n,), label)
    return pictures(unet, noises(n, unet, args, seed), y, args, range(10_007 * seed, 10_007 * seed + n))


def interpolate(checkpoint, rows, frames, kind="spherical", seed=0, device="cpu", label=None, **settings):
    """rows walks of `frames` pictures, each between two random noises, in one class, which is `label` or the next for
    every row: uint8 (rows * frames, colours, size, size). Noise that is added on the way is the same along a row."""
    unet, args = load_unet(checkpoint, device, settings)
    colours = unet.first.in_channels
    x = walks(rows, frames, colours * args.size**2, kind, seed).view(-1, colours, args.size, args.size)
    y = torch.arange(rows) % unet.classes if label is None else torch.full((rows,), label)
    return pictures(unet, x, y.repeat_interleave(frames), args, [row for row in range(rows) for _ in range(frames)])


def denoising(checkpoint, rows=4, frames=10, seed=0, device="cpu"):
    """From noise to picture: uint8 (rows * frames, colours, size, size), a row for each of the first classes, and the
    times of its frames."""
    unet, args = load_unet(checkpoint, device)
    y = torch.arange(rows) % unet.classes
    way = list(denoise(unet, noises(rows, unet, args, seed).to(device), y.to(device), args, range(rows)))
    chosen = torch.linspace(0, len(way) - 1, frames).round().int().tolist()
    times = sampling_times(args)
    return to_uint8(torch.stack([way[k] for k in chosen], dim=1).flatten(0, 1)).cpu(), [times[k] for k in chosen]


def guided(checkpoint, strengths=(0.0, 1.0, 2.0, 4.0, 8.0), columns=10, seed=0, device="cpu"):
    """The same noises and classes with each strength of guidance: uint8 (strengths * columns, colours, size, size)."""
    unet, args = load_unet(checkpoint, device)
    x, y, made = noises(columns, unet, args, seed), torch.arange(columns) % unet.classes, []
    for args.guidance in strengths:
        made.append(pictures(unet, x, y, args, range(columns)))
    return torch.cat(made)


# -------------------------------------------------------------------------------------------------------- main


def main(args):
    if args.load:
        chosen = {name: getattr(args, name) for name in SAMPLING if name in args.explicit}
        uses = functools.partial(generate, **chosen), functools.partial(interpolate, **chosen)
        return use_generator(SCRIPT, args, *uses)
    if args.resume is None:
        check_sampling(args, args.explicit)
    run = Run(SCRIPT, args, FLAGS, PRESETS, LOSSES)
    args, device, classes = run.args, run.device, len(run.data.classes)

    # The seed fixes weights and noise; the fixed noises of the pictures have a generator of their own.
    torch.manual_seed(args.seed)
    unet = UNet(args, run.data.images.shape[1], classes)
    if args.dry_run:
        one = torch.ones(2, dtype=torch.int64)
        describe(unet, torch.zeros(2, run.data.images.shape[1], args.size, args.size), one, one * 0)
        return run.plan()
    networks = {"unet": unet.to(device, memory_format=layout(device))}
    average = None
    if args.ema > 0:
        average = networks["ema"] = copy.deepcopy(unet)
    optimiser = torch.optim.Adam(unet.parameters(), args.lr, **adam_kernel(device))
    shown = unet if average is None else average  # whose pictures are shown and measured

    def pictures_now(x, y, seeds):
        images = pictures(shown.eval(), x, y, args, seeds)
        shown.train()
        return images

    def sample():  # a row for each class (of many, the first 16), from the same eight noises
        rows = min(classes, 16)
        x, y = noises(8, unet, args, args.seed + 1).repeat(rows, 1, 1, 1), torch.arange(rows).repeat_interleave(8)
        images = pictures_now(x, y, [*range(8)] * rows)
        save_picture(grid(images, 8), run.path / "samples" / f"{run.step:06d}.png")

    def fakes(n):
        y = random_labels(run.about["counts"], n, args.seed + 2)
        return pictures_now(noises(n, unet, args, args.seed + 2), y, range(n))

    with run.opened(networks, {"unet": optimiser}, sample, fakes):
        train = Captured(train_step, schedule, args, run.batches, unet, optimiser, average, run.autocast)
        for step in run.steps():
            run.record(train(step))
    run.finish(generate)


if __name__ == "__main__":
    run_program(f"{SCRIPT}.py", main, ARGS)
