# /// script
# requires-python = ">=3.10"
# dependencies = ["torch>=2.6", "torchvision", "numpy", "scipy", "pillow", "tqdm", "matplotlib"]
# ///
"""DDPM: a network that removes a little noise, again and again, until noise has become an image.

The forward process is fixed. In T = 1000 steps it shrinks an image x_0 a little and adds noise:

    x_t = sqrt(abar_t) x_0 + sqrt(1 - abar_t) eps,    eps ~ N(0, I),    abar_0 = 1, abar_T near 0

The backward process is learned. A U-Net sees x_t, the time t and the class y, and predicts

    v = sqrt(abar_t) eps - sqrt(1 - abar_t) x_0

or, with --objective noise, eps itself, as Ho et al. do. This gives an estimate of x_0, and from
that a slightly less noisy x_(t-1). The loss is the squared error of the prediction at a random t.
Near T, x_t is hardly more than noise: there an error in eps becomes one in x_0 that is up to
20,000 times as large. An error in v never grows. The U-Net at 32 pixels:

    x_t (3, 32, 32)                                                  predicted v (3, 32, 32)
      | Conv                                                            | GroupNorm, SiLU, Conv
    R (f, 32, 32)  ----------------------------------------------->  R (f, 32, 32)
      | Conv, stride 2                                                  | nearest neighbor x2
    RA (2f, 16, 16)  --------------------------------------------->  RA (2f, 16, 16)
      | Conv, stride 2                                                  | nearest neighbor x2
    RA (2f, 8, 8)  ---> RA, R (2f, 8, 8)  ------------------------>  RA (2f, 8, 8)

    f = --width, R = residual blocks, A = with attention. t goes through a sinusoidal embedding
    and two linear layers, y through an embedding. Their sum sets a scale and a shift in every R.

Ho, Jain, Abbeel: Denoising Diffusion Probabilistic Models, 2020 (arXiv 2006.11239). Cosine
schedule: Nichol, Dhariwal 2021 (2102.09672). v: Salimans, Ho 2022 (2202.00512). Sampling in few
steps, DDIM: Song, Meng, Ermon 2021 (2010.02502). Guidance: Ho, Salimans 2022 (2207.12598). Labels
are optional: without them, all images belong to one class.

    python ddpm.py                                # built-in shapes: three minutes on two cores
    python ddpm.py --data photos/ --size 32 --preset small --flip    # your own few hundred images
    python sample.py runs/ddpm-shapes-1 --class star --guidance 3 --to stars.png

Student report R4 proposes to enlarge a small data set with generated images (R4c, see README.md),
but does not try it. augment.py does, with this script. Time: a training step costs 1 GFLOP per
image at 32 pixels, width 32 and one block. Sampling an image costs a third of that for each of its
--sample-steps, and twice as much with guidance.

If you copy this for coursework: take training.py, datasets.py and sources.py along (folders.py for
images in a folder, zip or tar; metrics.py and inception.py for FID; report.py and sample.py for
plots). What makes it a DDPM is in `alpha_bars`, `unet_step`, `posterior` and `ddim_step`; change
those. `main` is the whole loop.
"""

import signal

if __name__ == "__main__":  # Ctrl-C during the imports is silent; run_program takes over later
    signal.signal(signal.SIGINT, signal.SIG_DFL)

import copy
from functools import partial
from itertools import pairwise
from math import gcd, log, pi, sqrt
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn
from tqdm import tqdm

import datasets
import training
from sources import InputError, new_parser, number, printable, run_program
from training import latents

SCRIPT = Path(__file__).stem

# A preset only sets defaults: a flag on the command line wins. "report" holds published numbers.
R4C = {"protocol": "R4: proposed there, not carried out; no number"}
ANIMALS = dict(
    data="animals", size=64, fit="squash", width=64, flip=True, batch=64, guidance=2.0, report=R4C
)
PRESETS = {
    "shapes": dict(  # what `python ddpm.py` alone runs: small enough for a laptop without a GPU
        data="shapes", size=16, width=24, blocks=1, dropout=0.0, batch=32, steps=1400,
        lr=2e-3, lr_decay=0.998, ema=0.99,
        guidance=2.0, sample_steps=20, eta=1.0,
        sample_every=200, save_every=600,
    ),
    # Data, learning rate, batch, schedule, width and clipped gradients are those of Ho et al. They
    # also have 800,000 steps, EMA 0.9999, a warm-up and a network down to 4x4; and no classes.
    "cifar10": dict(
        data="cifar10", size=32, width=128, flip=True, batch=128, steps=200_000,
        lr=2e-4, ema=0.999, noise_schedule="linear",
        guidance=1.5, sample_every=5000, save_every=5000,
        report=R4C,
    ),
    "animals": dict(
        ANIMALS, steps=100_000, lr=2e-4, ema=0.9995, sample_every=5000, save_every=5000,
    ),
    # The network of animals for a short training: see docs/results/best.md
    "best": dict(ANIMALS, steps=3000, lr=8e-4, ema=0.999, sample_every=500, save_every=500),
    "mnist": dict(  # a quarter of an hour on two older CPU cores, 6 minutes with AMX
        data="mnist", size=32, width=32, blocks=1, dropout=0.0, batch=32, steps=2200,
        lr=2e-3, lr_decay=0.99895, ema=0.99,
        guidance=3.0, sample_steps=20, eta=1.0, sample_every=550, save_every=550, eval_every=1100,
        report=R4C,
    ),
    # For a few hundred images. A network of this size could memorize them, hence the dropout.
    "small": dict(
        size=32, width=32, blocks=1, dropout=0.2, batch=32, steps=4000,
        lr=1e-3, lr_decay=0.9995, ema=0.995,
        guidance=1.5, sample_steps=25, eta=1.0, sample_every=500, save_every=500,
    ),
}  # fmt: skip

OLDER = {"objective": "noise"}  # of checkpoints from before there was this flag

# How images are sampled: {flag: (default, type, help)}. sample.py has these flags as well.
SAMPLING = {
    "guidance": (1.0, number(float, 0), "how strongly images follow their class; 1: not amplified"),
    "sampler": ("ddim", str, "ddim, or ancestral: the chain of Ho et al., which takes all T steps"),
    "sample_steps": (50, number(int, 1), "steps of DDIM from noise to image"),
    "eta": (0.0, number(float, 0, 1.0001), "noise that DDIM adds; 1: as much as the chain"),
}


def parse_args(argv=None):
    """Command line -> (Namespace, set of the names of the flags that were typed)."""
    parser = new_parser(f"{SCRIPT}.py", __doc__)
    add = parser.groups["model"].add_argument
    share = number(float, 0, 1)
    widths = number(int, 4, 2**20)
    add("--width", type=widths, default=64, help="base channels, f in the drawing")
    add("--blocks", type=number(int, 1, 65), default=2, help="R in the drawing, at each resolution")
    add("--timesteps", type=number(int, 2, 10**6), default=1000, help="from image to noise, T")
    add(
        "--noise-schedule",
        choices=["cosine", "linear"],
        default="cosine",
        help="how abar_t falls from 1 to 0",
    )
    add(
        "--objective",
        choices=["v", "noise"],
        default="v",
        help="what the network predicts",
    )
    add = parser.groups["training"].add_argument
    add("--lr", type=number(float, 1e-12), default=2e-4, help="learning rate")
    words = "share of the values in a block that are set to 0 in training"
    add("--dropout", type=share, default=0.1, help=words)
    words = "share of images trained without their class, which guidance needs"
    add("--drop-label", type=share, default=0.1, help=words)
    add("--flip", action="store_true", help="mirror training images at random")
    add("--no-flip", dest="flip", action="store_false", help="leave them as they are")
    add("--balance", action="store_true", help="draw every class equally often")
    add = parser.groups["evaluation"].add_argument
    for name, (default, kind, words) in SAMPLING.items():
        add(f"--{name.replace('_', '-')}", type=kind, default=default, help=words)
    training.add_run_flags(parser, PRESETS)
    args, typed = training.parse(parser, PRESETS, SCRIPT, argv, OLDER)
    complete_sampling(typed, vars(args))  # fails early
    return args, typed


def complete_sampling(typed, flags):
    """The flags of SAMPLING as `denoise` takes them, a dict.

    typed: the names of flags that were asked for, instead of a default, a preset or what the
    network was trained with. Raises InputError if flags do not go together.
    """
    sampling = {name: flags[name] for name in SAMPLING}
    timesteps = flags["timesteps"]
    if sampling["sampler"] not in ("ddim", "ancestral"):
        raise InputError(f"no sampler '{sampling['sampler']}': use ddim or ancestral")
    if sampling["sampler"] == "ancestral":
        if "sample_steps" in typed or "eta" in typed:
            raise InputError(
                "--sample-steps and --eta do nothing with --sampler ancestral, which takes all "
                "steps: leave them out"
            )
        sampling["sample_steps"] = timesteps
    if "sample_steps" in typed and sampling["sample_steps"] > timesteps:
        raise InputError(
            f"--sample-steps {sampling['sample_steps']} is more than the {timesteps} steps of "
            "--timesteps"
        )
    sampling["sample_steps"] = min(sampling["sample_steps"], timesteps)
    if flags["drop_label"] == 0 and sampling["guidance"] != 1:
        raise InputError(
            f"--guidance {sampling['guidance']:g} needs a network that was also trained without "
            "the class (--drop-label)"
        )
    return sampling


# ------------------------------------------------------------------------------ the two processes


def alpha_bars(kind, timesteps):
    """abar_t, the share of an image's variance that is left after t steps.

    linear: step t replaces a share beta_t by noise. It grows linearly from 0.0001 to 0.02 (Ho et
    al.). If T is not 1,000, each step replaces more or less, so that abar_T stays about the same.
    cosine: abar_t falls like a squared cosine, which leaves more of small images in the middle of
    the way (Nichol and Dhariwal, equation 17).

    Returns float64 (timesteps + 1,), which begins with abar_0 = 1.
    """
    if kind == "linear":
        betas = torch.linspace(0.1 / timesteps, 20 / timesteps, timesteps, dtype=torch.float64)
    else:
        t = torch.arange(timesteps + 1).double() / timesteps
        left = ((t + 0.008) / 1.008 * pi / 2).cos().square()
        betas = 1 - left[1:] / left[:-1]
    alphas = 1 - betas.clamp(max=0.999)
    return F.pad(alphas.cumprod(0), (1, 0), value=1)


def posterior(bar, previous, x_0, x_t):
    """q(x_(t-1) | x_t, x_0), a normal distribution: its mean, and its variance, a number.

    bar, previous: abar_t and abar_(t-1), numbers. Ho et al., equations 6 and 7.
    """
    alpha = bar / previous  # 1 - beta_t
    mean = sqrt(previous) * (1 - alpha) * x_0 + sqrt(alpha) * (1 - previous) * x_t
    return mean / (1 - bar), (1 - previous) / (1 - bar) * (1 - alpha)


def ddim_step(bar, target, x_0, x_t, eta, noise):
    """From time t to any earlier time s in one step: x_s. Song et al., equations 12 and 16.

    bar, target: abar_t and abar_s, numbers. What x_t has besides x_0 is taken to be noise, and x_s
    gets as much of it as it should have. eta 1 replaces part of it by fresh noise, as much as the
    posterior has. eta 0 adds none, so that x_T determines the image.
    """
    eps = (x_t - sqrt(bar) * x_0) / sqrt(1 - bar)
    variance = eta**2 * (1 - target) / (1 - bar) * (1 - bar / target)
    direction = sqrt(max(1 - target - variance, 0)) * eps  # "pointing to x_t"
    return sqrt(target) * x_0 + direction + sqrt(variance) * noise


# ---------------------------------------------------------------------------------------- network


def norm(channels):
    """GroupNorm, if possible with 8 groups. BatchNorm would mix images of different t."""
    return nn.GroupNorm(gcd(8, channels), channels)


def zeroed(layer):
    """The layer with its weights set to 0.

    With it as its last layer a residual block is the identity at first, and the network predicts 0.
    """
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer


conv3x3 = partial(nn.Conv2d, kernel_size=3, padding=1)


class Attention(nn.Module):
    """x + attention between all H*W pixels, with heads of at least 64 channels, or one head.

    (N, C, H, W) -> (N, C, H, W).
    """

    def __init__(self, channels):
        super().__init__()
        self.heads = gcd(channels, max(1, channels // 64))  # must divide the channels
        self.norm = norm(channels)
        self.qkv = nn.Conv2d(channels, 3 * channels, 1)
        self.out = zeroed(nn.Conv2d(channels, channels, 1))

    def forward(self, x):
        qkv = self.qkv(self.norm(x)).flatten(2)  # (N, 3 C, H*W)
        qkv = qkv.unflatten(1, (3, self.heads, -1)).mT.transpose(0, 1)
        if x.device.type == "mps":
            # Attention of views can be wrong there (github.com/pytorch/pytorch/issues/181133).
            qkv = qkv.contiguous()
        q, k, v = qkv  # each (N, heads, H*W, C / heads)
        h = F.scaled_dot_product_attention(q, k, v)
        return x + self.out(h.mT.reshape(x.shape))


class Block(nn.Module):
    """Residual block: x (N, in, H, W), embedding (N, embedding_dim) -> (N, out, H, W)."""

    def __init__(self, in_channels, out_channels, attention, embedding_dim, dropout):
        super().__init__()
        self.first = nn.Sequential(norm(in_channels), nn.SiLU(), conv3x3(in_channels, out_channels))
        self.scale_shift = nn.Linear(embedding_dim, 2 * out_channels)
        self.norm = norm(out_channels)
        last = zeroed(conv3x3(out_channels, out_channels))
        self.second = nn.Sequential(nn.SiLU(), nn.Dropout(dropout), last)
        same = in_channels == out_channels
        self.shortcut = nn.Identity() if same else nn.Conv2d(in_channels, out_channels, 1)
        self.attention = Attention(out_channels) if attention else nn.Identity()

    def forward(self, x, embedding):
        scale, shift = self.scale_shift(embedding)[:, :, None, None].chunk(2, dim=1)
        h = self.norm(self.first(x)) * (1 + scale) + shift
        return self.attention(self.shortcut(x) + self.second(h))


class UNet(nn.Module):
    """x_t (N, channels, size, size), t int64 (N,), labels int64 (N,) -> v, or the noise in x_t.

    flags: a dict of this script's flags; class_counts: how many training images each class has. The
    labels are 0 .. classes - 1, and `classes` itself for "no class".
    """

    def __init__(self, flags, channels, class_counts):
        super().__init__()
        self.flags = flags
        self.objective = (OLDER | flags)["objective"]
        self.class_counts = class_counts
        self.classes = len(class_counts)
        size = flags["size"]
        self.image_shape = (channels, size, size)
        self.latent_dim = channels * size * size  # of the noise x_T
        bars = alpha_bars(flags["noise_schedule"], flags["timesteps"])
        self.bars = bars.tolist()
        # how much x_t has of x_0 and of eps, for each t
        mixture = torch.stack([bars, 1 - bars]).sqrt().float()  # (2, T + 1)
        self.register_buffer("mixture", mixture, persistent=False)
        # wavelengths from 2 pi to 20,000 pi steps, as in "Attention Is All You Need" (1706.03762)
        width = flags["width"]
        waves = width // 2
        frequencies = torch.exp(-log(10_000) * torch.arange(waves) / waves)
        frequencies *= 1000 / flags["timesteps"]
        self.register_buffer("frequencies", frequencies, persistent=False)
        dim = 4 * width  # of the embedding
        self.embed_time = nn.Sequential(nn.Linear(2 * waves, dim), nn.SiLU(), nn.Linear(dim, dim))
        self.embed_class = nn.Embedding(self.classes + 1, dim)

        levels = [(width, size <= 16)]  # channels and attention at size, size / 2, ..., 8 pixels
        while size > 8:
            size //= 2
            levels.append((2 * width, size <= 16))
        block = partial(Block, embedding_dim=dim, dropout=flags["dropout"])
        self.first = conv3x3(channels, width)
        self.down = nn.ModuleList()  # for each level its blocks
        self.up = nn.ModuleList()
        in_channels = width
        for out_channels, attention in levels:
            self.down.append(nn.ModuleList())
            for _ in range(flags["blocks"]):
                self.down[-1].append(block(in_channels, out_channels, attention))
                in_channels = out_channels
        self.halve = nn.ModuleList(conv3x3(c, c, stride=2) for c, _ in levels[:-1])
        self.middle = nn.ModuleList(
            [block(in_channels, in_channels, True), block(in_channels, in_channels, False)]
        )
        for out_channels, attention in reversed(levels):
            self.up.append(nn.ModuleList())
            for _ in range(flags["blocks"]):
                in_channels += out_channels  # from the block opposite
                self.up[-1].append(block(in_channels, out_channels, attention))
                in_channels = out_channels
        self.last = nn.Sequential(norm(width), nn.SiLU(), zeroed(conv3x3(width, channels)))

    def forward(self, x, t, labels):
        angles = t[:, None] * self.frequencies
        waves = torch.cat([angles.sin(), angles.cos()], dim=1)
        time = self.embed_time(waves)
        embedding = F.silu(time + self.embed_class(labels))  # (N, 4f)
        h = self.first(x)
        skips = []
        for level, blocks in enumerate(self.down):
            if level > 0:
                h = self.halve[level - 1](h)
            for block in blocks:
                h = block(h, embedding)
                skips.append(h)
        for block in self.middle:
            h = block(h, embedding)
        for blocks in self.up:
            h = F.interpolate(h, skips[-1].shape[2:])  # to the resolution of the block opposite
            for block in blocks:
                h = block(torch.cat([h, skips.pop()], dim=1), embedding)
        return self.last(h)


# ----------------------------------------------------------------------------------------- update


def unet_step(unet, optimizer, autocast, drop_label, flip, x_0, labels):
    """One update: minimize |v - predicted|^2 or |eps - predicted|^2, each image at a random t.

    Ho et al., algorithm 1. As in their code, a gradient longer than 1 is cut to that length.
    x_0: (N, C, H, W) in [-1, 1]; labels: int64 (N,). Returns the mean over all values, a tensor on
    the device. When eps is predicted, a network that answers 0 has a loss of 1.
    """
    batch = len(x_0)
    device = x_0.device
    if flip:
        x_0 = training.randomly_flipped(x_0)
    t = torch.randint(1, len(unet.bars), (batch,), device=device)  # 1 to T
    eps = torch.randn_like(x_0)
    signal, spread = unet.mixture[:, t, None, None, None]  # each (N, 1, 1, 1)
    x_t = signal * x_0 + spread * eps
    target = eps
    if unet.objective == "v":
        target = signal * eps - spread * x_0
    # The network also learns to predict without the class (Ho and Salimans, algorithm 1).
    dropped = torch.rand(batch, device=device) < drop_label
    labels = labels.masked_fill(dropped, unet.classes)
    with autocast():
        predicted = unet(x_t, t, labels)
    loss = F.mse_loss(predicted.float(), target)
    optimizer.zero_grad()
    loss.backward()
    nn.utils.clip_grad_norm_(unet.parameters(), 1.0)
    optimizer.step()
    return loss.detach()


# --------------------------------------------------------------------------------------- sampling


def predict_x_0(unet, x_t, t, labels, guidance):
    """The network's estimate of the x_0 in x_t. t: a number.

    Guidance pushes its prediction away from the one without the class:
    without + guidance * (with - without), Ho and Salimans, equation 6, whose w is guidance - 1.
    guidance 1 is the conditional model itself, 0 the unconditional one.
    """
    signal = sqrt(unet.bars[t])
    spread = sqrt(1 - unet.bars[t])
    t = torch.full_like(labels, t)
    if guidance == 1 or unet.classes == 1:  # one class: there is nothing to tell
        predicted = unet(x_t, t, labels)
    else:
        no_label = torch.full_like(labels, unet.classes)
        with_class, without = unet(
            torch.cat([x_t, x_t]), torch.cat([t, t]), torch.cat([labels, no_label])
        ).chunk(2)
        predicted = torch.lerp(without, with_class, guidance)
    if unet.objective == "v":
        return signal * x_t - spread * predicted
    return (x_t - spread * predicted) / signal


def evenly_spaced(start, end, count):
    """A list of `count` whole numbers from start to end."""
    return torch.linspace(start, end, count, dtype=torch.float64).round().int().tolist()


def fresh_noise(seeds, t, x):
    """Noise (N, C, H, W) like x for time t. An image's noise depends on its seed and t only."""
    noise = []
    for seed in seeds.tolist():
        generator = torch.Generator().manual_seed((2**31 + seed * 1_000_003 + t) % 2**32)
        noise.append(torch.randn(x.shape[1:], generator=generator))
    return torch.stack(noise).to(x.device)


@torch.no_grad()
def denoise(unet, z, labels, seeds, guidance, sampler, sample_steps, eta):
    """From noise to images: yields (t, x_t) for every time t on the way, the last one is (0, x_0).

    z: x_T (N, C, H, W), or the same as rows; labels: int64 (N,); seeds: int64 (N,), of the noise
    that is added on the way. guidance to eta: see SAMPLING. As in the code of Ho et al., each
    estimate of x_0 is cut to [-1, 1].
    """
    bars = unet.bars
    x = z.reshape(-1, *unet.image_shape).to(unet.mixture.device)
    labels = labels.to(x.device)
    times = evenly_spaced(len(bars) - 1, 0, sample_steps + 1)
    for t, s in pairwise(tqdm(times, "denoising", leave=False, disable=None)):
        yield t, x
        x_0 = predict_x_0(unet, x, t, labels, guidance).clamp(-1, 1)
        noise = 0.0
        if sampler == "ancestral" or eta > 0:
            noise = fresh_noise(seeds, t, x)
        if sampler == "ancestral":
            mean, variance = posterior(bars[t], bars[t - 1], x_0, x)
            x = mean + sqrt(variance) * noise
        else:
            x = ddim_step(bars[t], bars[s], x_0, x, eta, noise)
    yield 0, x


# ------------------------------------------------------------------------------- a trained model


def load_model(checkpoint, device="cpu", weights="ema"):
    """Checkpoint dict -> the trained network in eval mode.

    weights: "ema" (averaged, if there are any) or "plain".
    """
    data = checkpoint["data"]
    unet = UNet(checkpoint["flags"], data["channels"], data["counts"])
    states = checkpoint["models"]
    name = "ema" if weights == "ema" and "ema" in states else "unet"
    unet.load_state_dict(states[name])
    return unet.to(device, memory_format=datasets.layout(device)).eval()


def to_images(unet, z, labels, seeds, **asked):
    """Noise x_T as rows (N, latent_dim) -> uint8 (N, channels, size, size) on the CPU, in batches
    of 100.

    labels: int64 (N,); seeds: int64 (N,), of the noise that is added on the way. asked: flags of
    SAMPLING to use instead of the model's own. Raises InputError as complete_sampling does.
    """
    sampling = complete_sampling(asked, {**unet.flags, **asked})
    was_training = unet.training
    unet.eval()
    images = []
    for batch in zip(z.split(100), labels.split(100), seeds.split(100), strict=True):
        for _, x in denoise(unet, *batch, **sampling):
            x_0 = x  # the last one
        images.append(datasets.to_uint8(x_0).cpu())
    unet.train(was_training)
    return torch.cat(images)


def asked_labels(unet, n, seed, first=0):
    """The classes of the images that `generate` makes: int64 (n,), as frequent as in the data."""
    return training.random_labels(unet.class_counts, n, seed, first)


def generate(unet, n, seed=0, first=0, label=None, noise_seed=None, **sampling):
    """Images number first .. first + n - 1 of the sequence with this seed, uint8 on the CPU.

    label: the index of a class; None: the classes of asked_labels. noise_seed: of the noise that is
    added on the way; None: one that follows from the seed. sampling: flags of SAMPLING.
    """
    z = latents(n, unet.latent_dim, seed, first)
    labels = asked_labels(unet, n, seed, first) if label is None else torch.full((n,), label)
    if noise_seed is None:
        noise_seed = 10_007 * seed
    return to_images(unet, z, labels, noise_seed + torch.arange(first, first + n), **sampling)


WALKS = ("spherical", "linear")


def walk(unet, kind, rows, frames, seed=0, label=None, **sampling):
    """rows walks of `frames` images, each from one random noise to another, row after row.

    A row is of one class, `label` or the next one for every row. The noise that is added on the way
    is the same along a row. kind: one of WALKS; sampling: flags of SAMPLING.
    Returns uint8 (rows * frames, channels, size, size).
    """
    z = training.walks(rows, frames, unet.latent_dim, kind, seed)
    row = torch.arange(rows).repeat_interleave(frames)
    labels = row % unet.classes if label is None else torch.full_like(row, label)
    return to_images(unet, z, labels, row, **sampling)


def denoising(unet, rows, frames, seed=0):
    """From noise to image, a row for each of the first classes.

    Returns uint8 (rows * frames, channels, size, size) and the times t of the frames in a row.
    """
    z = latents(rows, unet.latent_dim, seed)
    row = torch.arange(rows)
    way = list(denoise(unet, z, row % unet.classes, row, **complete_sampling((), unet.flags)))
    chosen = evenly_spaced(0, len(way) - 1, frames)
    times, images = zip(*[way[k] for k in chosen], strict=True)
    images = torch.stack(images, dim=1).flatten(0, 1)  # row after row
    return datasets.to_uint8(images).cpu(), times


def guided(unet, strengths, columns, seed=0):
    """The same noise and classes with each strength of guidance, a row for each.

    Returns uint8 (len(strengths) * columns, channels, size, size). Raises InputError if the network
    was not trained both with and without the class.
    """
    if unet.classes == 1:
        raise InputError("there is nothing to guide: all images are of one class")
    z = latents(columns, unet.latent_dim, seed)
    column = torch.arange(columns)
    labels = column % unet.classes
    return torch.cat([to_images(unet, z, labels, column, guidance=g) for g in strengths])


# ------------------------------------------------------------------------------------------- main


def draw(run, denoiser, seed):
    """samples/<step>.png: a row for each class (at most 16), from the same noise each time."""
    run.wait()  # so that run.seconds counts training only
    if run.is_main:
        z, labels = training.class_rows(denoiser.classes, denoiser.latent_dim, seed)
        images = to_images(denoiser, z, labels, torch.arange(len(z)) % 8)
        picture = datasets.grid(images, columns=8)
        datasets.save_picture(picture, run.path / "samples" / f"{run.step:06d}.png")


def main(argv=None):
    args, typed = parse_args(argv)
    # On a CPU without AMX, a step in bf16 takes 1.4 times as long at 16 pixels and width 24. At 32
    # pixels, bf16 breaks even at width 32 and makes width 128 1.6 times as fast.
    bf16_needs = "amx_tile" if args.width < 64 else "avx512_bf16"
    device, args.precision = training.pick_device(args.device, args.precision, bf16_needs)
    autocast = partial(training.autocast, device, args.precision)
    args.size = args.size or datasets.default_size(args.data)
    data, held_out = datasets.load_parts(
        args.data, args.size, fit=args.fit, per_class=args.limit_per_class
    )
    if data.labels is None:  # all images are of one class
        labels = torch.zeros(len(data.images)).long()
        data = data._replace(labels=labels, classes=[data.name], note=f"{data.note}; no classes")
    batches = training.new_batches(args, typed, data, device, args.balance)  # sets args.batch
    per_epoch = batches.per_epoch  # steps
    total = args.steps or args.epochs * per_epoch
    sample_every = args.sample_every or max(100, per_epoch)
    save_every = args.save_every or max(100, per_epoch)

    # The seed fixes the weights and noise. The noise of the pictures has seeds of its own.
    torch.manual_seed(args.seed)
    unet = UNet(vars(args), data.images.shape[1], datasets.class_counts(data))
    if args.dry_run:
        images = torch.zeros(2, *unet.image_shape)
        ones = torch.ones(2).long()  # any times and classes will do
        training.describe(unet, images, ones, ones)
        return training.print_plan(args, data, total, per_epoch, device)
    models = {"unet": unet}
    denoiser = unet  # whose images are drawn and measured
    if args.ema > 0:
        denoiser = models["ema"] = copy.deepcopy(unet)
    for model in models.values():
        model.to(device, memory_format=datasets.layout(device))
    optimizer = torch.optim.Adam(unet.parameters(), args.lr, **training.adam_options(device))

    # On an NVIDIA GPU each update becomes a CUDA graph; elsewhere `captured` changes nothing.
    captured = partial(training.captured, device=device, no_graph=args.no_graph)
    step = captured(partial(unet_step, unet, optimizer, autocast, args.drop_label, args.flip))
    ema_step = captured(partial(training.update_ema, denoiser, unet))

    # Half of the held-out images choose best.pt. The final numbers are last.pt's, on both halves.
    report = PRESETS.get(args.preset, {}).get("report")
    eval_every = args.eval_every
    if report and eval_every is None:
        eval_every = max(100, total // 20)
    metrics = None
    if args.eval_images and (eval_every or report):
        reference = datasets.reference_images(data, held_out, args.eval_images)
        metrics = training.tool("metrics")  # None where metrics.py is missing
    if metrics:
        weights, _ = metrics.usable_dims(args.dims, args.weights)
        measured = {"dims": args.dims, "weights": weights, "device": device}

    optimizers = {"unet": optimizer}
    # Makes the run directory, or on --resume loads the checkpoint and goes on where it stopped.
    with training.start(args, SCRIPT, data, batches, models, optimizers, total, per_epoch) as run:
        if run.step == 0:
            run.save("last.pt")
            draw(run, denoiser, args.seed + 1)
            run.write_weights()
        while run.step < total and not run.should_stop():  # Ctrl-C, SIGTERM
            training.set_lr(optimizer, args.lr * args.lr_decay**run.step)
            x_0, labels = next(batches)
            loss = step(x_0, labels)
            if args.ema > 0:
                ema_step(training.ema_decay(args.ema, run.step, device))
            run.count(loss=loss)  # step += 1

            last = run.step == total
            scores = {}
            if metrics and eval_every and (last or run.every(eval_every)):
                run.wait()
                # the same noise each time, so that the curve shows the network only
                fake = generate(denoiser, len(reference.choose), args.seed + 2, noise_seed=0)
                scores = metrics.curve(reference.choose, fake, **measured)
                run.keep_best(scores, args.size, reference.choose)  # best.pt, if its FID is lowest
            # also at the end of an epoch, so that no row spans two epochs
            if last or run.every(args.log_every, eval_every, per_epoch):
                run.write_log(**scores)  # waits for the device; stops the run at NaN
            if last or run.every(sample_every):
                draw(run, denoiser, args.seed + 1)
                run.write_weights()  # histograms of every layer
            if run.every(args.keep_every):
                run.keep("unet")  # kept/<step>.pt: weights to make images with later
            if last or run.every(save_every):
                run.save("last.pt")
        if run.step < total or run.should_stop():
            run.save("last.pt")
            return run.goodbye()  # says how to resume
        run.done()  # from here on, Ctrl-C ends the program; --resume makes up for the rest
        if metrics and report:  # first the numbers: a plot that fails must not lose them
            fake = generate(denoiser, len(reference.judge), args.seed + 2)
            values = metrics.evaluate(
                reference.judge,
                fake,
                floor=reference.floor,
                real_words=reference.words,
                fake_words=f"images by {run.weights_words()}, latent seed {args.seed + 2}",
                **measured,
            )
            if unet.classes > 1:  # do the images show the class that was asked for?
                count = metrics.conditional_count(data, args.eval_images)
                fake = generate(denoiser, count, args.seed + 3)
                asked = asked_labels(denoiser, count, args.seed + 3)
                values += metrics.conditional(
                    data, held_out, fake, asked, eval_images=args.eval_images, **measured
                )
            metrics.write_result(run, values, PRESETS[args.preset])
        if plots := training.tool("report"):
            for path in plots.report(run.path, device=device):
                print(f"wrote {printable(path)}")
        return run.finish()  # says what to try next


if __name__ == "__main__":
    run_program(main)
