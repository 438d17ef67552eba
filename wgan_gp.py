"""WGAN-GP: a generator against a critic that estimates how far generated pictures are from real ones.

The discriminator of a GAN answers "real or not?", and where it is sure, the generator learns nothing. A critic gives
each picture a score instead. Of all functions whose slope is nowhere above 1, take the one that scores real pictures
highest above generated ones: by that much, on average, the generated ones would have to be moved to become the real
ones (the Wasserstein distance). So the critic maximises the difference, a penalty holds its slope near 1, and the
generator follows the slope. The networks are those of DCGAN (dcgan.py), with a critic without BatchNorm:

    z (100)                                          picture (3, 64, 64)
      | ConvTranspose 4x4                              | Conv 4x4 stride 2, LeakyReLU 0.2
    (8f, 4, 4)    BatchNorm, ReLU                    (f, 32, 32)
      | ConvTranspose 4x4 stride 2                     | Conv 4x4 stride 2, LeakyReLU 0.2
    (4f, 8, 8)    BatchNorm, ReLU                    (2f, 16, 16)
      |                                                |
    (2f, 16, 16)  BatchNorm, ReLU                    (4f, 8, 8)
      |                                                |
    (f, 32, 32)   BatchNorm, ReLU                    (8f, 4, 4)
      |                                                | Conv 4x4
    (3, 64, 64)   tanh                               score (1)          f = --width

or the residual networks of the authors (--arch resnet). --stages 3 grows the first kind from 16 over 32 to 64 pixels.

Gulrajani et al.: Improved Training of Wasserstein GANs, 2017 (arXiv 1704.00028), algorithm 1; the distance is from
Arjovsky, Chintala, Bottou: Wasserstein GAN, 2017 (1701.07875); growing from Karras et al. 2018 (1710.10196).

    python wgan_gp.py                                            # built-in shapes: about three minutes on two cores
    python wgan_gp.py --data food64 --critic-steps 3             # or a folder, a zip, an .npz of your own
    python wgan_gp.py --load runs/wgan_gp-shapes-1 --generate 64 --to grid.png

Report rows (the README has the numbers): --preset large-gan, small-gan, no-noise-gan, multistep-critic and fade-in-gan
are R3a-e; --preset paper is the authors' own at 64 pixels. Time: at width 64 and 64 pixels the work is about 2.3 GFLOP
an image in an update of the critic, 1.0 in one of the generator; large-gan's is 16 times as much.

If you copy this for coursework: take datasets.py along (metrics.py and report.py if you want FID and plots). What makes
it a WGAN-GP is in `Critic`, `gradient_penalty` and `train_step`; change those. The blocks marked "shared" are plumbing
and the same in every script.
"""

import argparse
import sys

# A preset only sets defaults: a flag on the command line wins. "report" holds the published numbers, never a flag.
# The report (R3) states z, f, critic steps, normalisation, and whether there is noise. Rate, betas, batch and penalty
# are the paper's; the amount of noise, its decay and the lengths of the stages are ours. The report may have put noise
# on real images only, and calls its sigma a variance: ours is a standard deviation, on both.
FOOD = dict(
    data="food64", size=64, width=64, latent_dim=100, batch=64, steps=2_000_000, lr=1e-4, penalty_weight=10.0,
    critic_steps=1, noise_steps=1_000_000, log_every=200, sample_every=5000, save_every=5000, eval_every=15_000,
)  # fmt: skip
PROTOCOL = "R3: up to 2,000,000 steps on 98,937 images of Food-101; against 2,020 held-out ones; KID times 1,000 here"
PRESETS = {
    "shapes": dict(  # what `python wgan_gp.py` alone runs: small enough for a laptop without a GPU
        data="shapes", size=32, width=24, batch=32, steps=1000, lr=1e-3, critic_steps=3, ema=0.99, sample_every=100,
        save_every=500,
    ),
    "large-gan": dict(  # R3a
        FOOD, width=256, latent_dim=256, noise=0.1, normalize="channel",
        report={"protocol": "R3: stopped after 1,200,000 steps as failed; no number"},
    ),
    "small-gan": dict(  # R3b
        FOOD, noise=0.1,
        report={"FID": 110.56, "MS-SSIM (generated, real)": 0.1339, "KID": 83.9, "protocol": PROTOCOL},
    ),
    "no-noise-gan": dict(  # R3c
        FOOD,
        report={"FID": 106.88, "MS-SSIM (generated, real)": 0.1323, "KID": 79.7, "protocol": PROTOCOL},
    ),
    "multistep-critic": dict(  # R3d
        FOOD, noise=0.1, critic_steps=3,
        report={"FID": 108.09, "MS-SSIM (generated, real)": 0.1291, "KID": 81.7, "protocol": PROTOCOL},
    ),
    "fade-in-gan": dict(  # R3e: "little" noise
        FOOD, noise=0.02, stages=3, stage_steps=400_000,
        report={"FID": 101.45, "MS-SSIM (generated, real)": 0.1342, "KID": 66.4, "protocol": PROTOCOL},
    ),
    "paper": dict(  # the authors' gan_64x64.py
        FOOD, arch="resnet", latent_dim=128, steps=200_000, critic_steps=5, critic_norm="layer",
        report={"protocol": "Gulrajani et al. trained this on other data (LSUN, ImageNet at 64): no number for food"},
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
    "preset": (None, list(PRESETS), "the settings of a report; 'shapes' is what a run without --data uses"),
    "batch": (64, number(int, 2), "images in one update"),
    "arch": ("dcgan", ["dcgan", "resnet"], "the networks: DCGAN's, or the authors' residual ones"),
    "width": (64, number(int, 1), "base channel count, f in the drawing"),
    "latent_dim": (100, number(int, 1), "length of z"),
    "critic_norm": ("none", ["none", "layer"], "normalisation in the critic; BatchNorm is impossible: see Critic"),
    "normalize": ("tanh", ["tanh", "channel"], "pictures are learnt in [-1, 1] (the generator ends in tanh), or "
                  "with the mean and deviation of each channel made 0 and 1 (it ends linear)"),
    "lr": (1e-4, number(float, 1e-12), "learning rate of both networks"),
    "lr_g": (None, number(float, 1e-12), "of the generator alone (default: --lr)"),
    "lr_d": (None, number(float, 1e-12), "of the critic alone (default: --lr)"),
    "critic_steps": (1, number(int, 1), "critic updates in one step, each with a fresh batch (the paper: 5)"),
    "penalty_weight": (10.0, number(float, 0), "weight of the gradient penalty, lambda in the paper"),
    "noise": (0.0, number(float, 0), "standard deviation of the noise on what the critic sees, real and generated"),
    "noise_steps": (10_000, number(int, 1), "the noise falls linearly to 0 over this many steps"),
    "stages": (1, number(int, 1), "grow in so many stages: 3 trains at a quarter, at half, then at the full size"),
    "stage_steps": (20_000, number(int, 1), "steps in each stage but the last, which lasts to the end"),
    "fade_steps": (None, number(int, 1), "steps over which a new stage is blended in (default: half of a stage)"),
    "interpolate": (None, number(int, 2), "with --load: walk between random latents in N pictures, 8 walks"),
    "interpolation": ("spherical", ["spherical", "linear"], "how --interpolate walks"),
}  # fmt: skip

USED_WITH = {"generate": ["to"], "interpolate": ["to", "interpolation"]}  # a use of --load: the flags that it reads

if __name__ == "__main__":  # before the slow imports: --help and typing errors answer at once
    ARGS = parse_args()

import contextlib
import copy

import torch
import torch.nn.functional as F
from torch import nn

try:
    from datasets import Captured, InputError, Run, adam_kernel, channel_moments, channels, describe, flags_of, grid
    from datasets import latents, layout, run_program, save_picture, to_uint8, update_average, use_generator, walks  # isort: skip
except ImportError as problem:
    sys.exit(print(f"wgan_gp.py: error: needs our datasets.py beside it ({problem})", file=sys.stderr) or 2)

SCRIPT = "wgan_gp"

# ---------------------------------------------------------------------------------------------------- networks


def growth_at(step, args):
    """(stage, alpha) of a step: stages count from 0; alpha in (0, 1) is how far the newest layers are blended in, None
    when they are."""
    stage = min(step // args.stage_steps, args.stages - 1)
    fade_steps = args.fade_steps or max(1, args.stage_steps // 2)
    alpha = (step - stage * args.stage_steps + 1) / fade_steps
    return stage, alpha if stage and alpha < 1 else None


def blend(old, new, alpha):
    """From old (alpha 0) to new (1). alpha may be a tensor of one value."""
    return old + alpha * (new - old)


class LeakyReLU(nn.Module):
    """x where it is positive, slope * x elsewhere; as a product with constants, so that the penalty costs less.

    The gradient of the gradient's norm also runs back through the critic's forward pass, where it meets the second
    derivatives of the layers. Those of (leaky) ReLU are zero, but nn.LeakyReLU passes the zeros on as tensors, and
    every convolution below multiplies them. A product with a constant has no second derivative: autograd stops there.
    """

    def __init__(self, slope):
        super().__init__()
        self.slope = slope

    def forward(self, x):
        with torch.no_grad():
            slopes = torch.sign(x).clamp_(min=self.slope)  # 1 where x is positive: twice as fast as torch.where
        return x * slopes


class Generator(nn.Module):
    """z (N, latent_dim) -> pictures (N, colours, side, side): of the full size at the last stage, half of it before.

    tanh: whether they end in it.
    """

    def __init__(self, size, colours, latent_dim, width, stages, tanh):
        super().__init__()
        self.tanh = tanh
        counts = channels(size, width)  # at size 64, width 64: 512, 256, 128, 64
        blocks = [nn.ConvTranspose2d(latent_dim, counts[0], 4, 1, 0, bias=False)]  # (N, 8f, 4, 4)
        for before, after in zip(counts, counts[1:], strict=False):
            blocks += [nn.ConvTranspose2d(before, after, 4, 2, 1, bias=False)]  # side doubles, channels halve
        self.blocks = nn.ModuleList(
            nn.Sequential(conv, nn.BatchNorm2d(conv.out_channels), nn.ReLU(inplace=True)) for conv in blocks
        )
        # The layer that makes the picture, side doubles once more; one for each stage.
        self.to_picture = nn.ModuleList(nn.ConvTranspose2d(c, colours, 4, 2, 1) for c in counts[-stages:])

    def forward(self, z, stage=-1, alpha=None):
        stage %= len(self.to_picture)
        depth = len(self.blocks) - (len(self.to_picture) - 1 - stage)  # blocks in use
        after = z[:, :, None, None]
        for block in self.blocks[:depth]:
            before, after = after, block(after)
        picture = self.to_picture[stage](after)
        if alpha is not None:  # what the stage before would have made, with each pixel repeated, fades out
            old = F.interpolate(self.to_picture[stage - 1](before), scale_factor=2.0, mode="nearest")
            picture = blend(old, picture, alpha)
        return torch.tanh(picture) if self.tanh else picture


class Critic(nn.Module):
    """Pictures (N, colours, side, side) -> scores (N,), any real numbers.

    No BatchNorm: it would make the score of a picture depend on the others in its batch, and the penalty speaks of the
    slope at each picture by itself (the paper, section 4). norm "layer" is LayerNorm: over the values of one image.
    """

    def __init__(self, size, colours, width, stages, norm):
        super().__init__()
        counts = channels(size, width)[::-1]  # at size 64, width 64: 64, 128, 256, 512
        self.from_picture = nn.ModuleList(  # side halves; one for each stage, the last is that of the full size
            nn.Sequential(nn.Conv2d(colours, c, 4, 2, 1), LeakyReLU(0.2)) for c in counts[:stages][::-1]
        )
        self.blocks = nn.ModuleList(  # side halves, channels double
            nn.Sequential(nn.Conv2d(before, after, 4, 2, 1), *layer_norm(norm, after), LeakyReLU(0.2))
            for before, after in zip(counts, counts[1:], strict=False)
        )
        self.score = nn.Conv2d(counts[-1], 1, 4, 1, 0)  # (N, 1, 1, 1)

    def forward(self, images, stage=-1, alpha=None):
        stage %= len(self.from_picture)
        h = self.from_picture[stage](images)
        for k, block in enumerate(self.blocks[len(self.from_picture) - 1 - stage :]):
            h = block(h)
            if k == 0 and alpha is not None:  # what the stage before would have seen of the picture at half the size
                h = blend(self.from_picture[stage - 1](F.avg_pool2d(images, 2)), h, alpha)
        return in_fp32(self.score, h)[:, 0, 0, 0]


def layer_norm(norm, channels):
    """[] or [one group of all channels]: normalised over an image's values, scaled by channel (the authors' way)."""
    return [nn.GroupNorm(1, channels)] if norm == "layer" else []


def in_fp32(layer, h):
    """Scores may drift far from 0, as only differences count; the 8 bits of bf16 would not hold those."""
    with torch.autocast(h.device.type, enabled=False):
        return layer(h.to(layer.weight.dtype))


class Residual(nn.Module):
    """shortcut(x) + two 3x3 convolutions, each after norm and ReLU. resample: "up" doubles the side, "down" halves it.

    As in the authors' gan_64x64.py: up repeats pixels before the first convolution, down averages after the second.
    norm: channels -> list of layers.
    """

    def __init__(self, before, after, norm, resample):
        super().__init__()
        middle = after if resample == "up" else before
        relu = nn.ReLU() if resample == "up" else LeakyReLU(0.0)  # "down" is in the critic
        first = [*norm(before), relu, nn.Conv2d(before, middle, 3, 1, 1, bias=False)]
        second = [*norm(middle), relu, nn.Conv2d(middle, after, 3, 1, 1)]
        if resample == "up":
            first.insert(-1, change := nn.Upsample(scale_factor=2.0))
        else:
            second.append(change := nn.AvgPool2d(2))
        self.layers = nn.Sequential(*first, *second)
        self.shortcut = nn.Sequential(change, nn.Conv2d(before, after, 1))

    def forward(self, x):
        return self.shortcut(x) + self.layers(x)


class ResNetGenerator(nn.Module):
    """--arch resnet: z (N, latent_dim) -> pictures (N, colours, size, size). It does not grow."""

    def __init__(self, size, colours, latent_dim, width, tanh):
        super().__init__()
        counts = [width * min(8, size // 2**k) for k in range(2, size.bit_length())]  # at 64: 8f 8f 4f 2f f
        layers = [nn.Linear(latent_dim, counts[0] * 16), nn.Unflatten(1, (counts[0], 4, 4))]
        pairs = zip(counts, counts[1:], strict=False)
        layers += [Residual(before, after, lambda c: [nn.BatchNorm2d(c)], "up") for before, after in pairs]
        layers += [nn.BatchNorm2d(width), nn.ReLU(inplace=True), nn.Conv2d(width, colours, 3, 1, 1)]
        self.layers = nn.Sequential(*layers, nn.Tanh() if tanh else nn.Identity())

    def forward(self, z, stage=-1, alpha=None):
        return self.layers(z)


class ResNetCritic(nn.Module):
    """--arch resnet: pictures (N, colours, size, size) -> scores (N,)."""

    def __init__(self, size, colours, width, norm):
        super().__init__()
        counts = [width * min(8, size // 2**k) for k in range(2, size.bit_length())][::-1]  # at 64: f 2f 4f 8f 8f
        layers = [nn.Conv2d(colours, width, 3, 1, 1)]
        pairs = zip(counts, counts[1:], strict=False)
        layers += [Residual(before, after, lambda c: layer_norm(norm, c), "down") for before, after in pairs]
        self.layers, self.score = nn.Sequential(*layers, nn.Flatten()), nn.Linear(counts[-1] * 16, 1)

    def forward(self, images, stage=-1, alpha=None):
        return in_fp32(self.score, self.layers(images))[:, 0]


def init_weights(network):
    """Weights as the authors draw them; biases 0.

    DCGAN's networks: N(0, 0.02). The residual ones: uniform, of variance 2 / mean(fan in, fan out) in 3x3 convolutions,
    which come after ReLU, and half of it where there was none: linear layers, shortcuts, the critic's first.
    """
    first = network.layers[0] if isinstance(network, ResNetCritic) else None
    for module in network.modules():
        if not isinstance(module, (nn.Conv2d, nn.ConvTranspose2d, nn.Linear)):
            continue
        if isinstance(network, (Generator, Critic)):
            nn.init.normal_(module.weight, 0.0, 0.02)
        else:
            after_relu = getattr(module, "kernel_size", None) == (3, 3) and module is not first
            nn.init.xavier_uniform_(module.weight, 2**0.5 if after_relu else 1.0)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


def make_generator(args, colours):
    """The generator that the flags ask for."""
    tanh = args.normalize == "tanh"
    if args.arch == "resnet":
        return ResNetGenerator(args.size, colours, args.latent_dim, args.width, tanh)
    return Generator(args.size, colours, args.latent_dim, args.width, args.stages, tanh)


def build(args, colours):
    """Both networks that the flags ask for, with their first weights."""
    generator = make_generator(args, colours)
    if args.arch == "resnet":
        critic = ResNetCritic(args.size, colours, args.width, args.critic_norm)
    else:
        critic = Critic(args.size, colours, args.width, args.stages, args.critic_norm)
    for network in generator, critic:
        init_weights(network)
    return generator, critic


# ------------------------------------------------------------------------------------------------------ losses


def gradient_penalty(critic, real, fake, growth=(), autocast=contextlib.nullcontext):
    """E (|grad critic(x)| - 1)^2 at random points x between real and fake (the paper, equation 3).

    real, fake: (N, C, H, W) float32, without gradients. Returns two float32 scalars: the penalty, which can be
    differentiated, and E |grad critic(x)|.
    """
    # One epsilon for each image: every x lies on the straight line between one real and one generated picture. That is
    # where the best critic has slope 1 (the paper, proposition 1); elsewhere nothing is known about it.
    epsilon = torch.rand(len(real), 1, 1, 1, device=real.device, dtype=real.dtype)
    x = torch.lerp(fake, real, epsilon).requires_grad_()
    with autocast():
        scores = critic(x, *growth)
    # A score depends on its own picture only, so the gradient of their sum holds the gradient of each.
    # create_graph: the penalty is a function of this gradient, and training differentiates it again.
    (gradient,) = torch.autograd.grad(scores.sum(), x, create_graph=True)
    # The norm over all values of an image, in fp32 (x is, so its gradient is): squares of bf16 numbers lose too much.
    # A root has an infinite slope at 0, times 0 gives NaN; with 1e-12 inside, the slope is finite.
    norm = (gradient.square().sum((1, 2, 3)) + 1e-12).sqrt()
    return (norm - 1).square().mean(), norm.mean()


# -------------------------------------------------------------------------------------------------- train step


def schedule(step, args):
    """What changes from step to step, which counts from 0: the factor of the learning rates, the deviation of the
    instance noise (Sonderby et al. 2016, 1610.04490), None once it has gone, and the growth."""
    stage, alpha = growth_at(step, args)
    sigma = args.noise * max(0.0, 1 - step / args.noise_steps) or None
    return {"decay": args.lr_decay**step, "sigma": sigma, "stage": stage, "alpha": alpha}


def train_step(now, args, batches, generator, critic, opt_g, opt_c, average, scale, autocast):
    """One step: critic_steps updates of the critic, then one of the generator. now: what schedule() returns.

    scale: (2, colours, 1, 1), mean and deviation by which pictures in [-1, 1] are normalised.
    Returns float32 (5,) on the device, LOSSES of the last updates. Nothing here waits for the device.
    """
    device, growth = batches.device, (now["stage"], now["alpha"])
    shrink = 2 ** (args.stages - 1 - growth[0])

    def seen(images):
        return images if now["sigma"] is None else images + now["sigma"] * torch.randn_like(images)

    for optimiser, lr in ((opt_g, args.lr_g or args.lr), (opt_c, args.lr_d or args.lr)):
        for group in optimiser.param_groups:
            group["lr"] = lr * now["decay"]

    # The critic: minimise E critic(fake) - E critic(real) + penalty. Every update has a batch and latents of its own.
    for _ in range(args.critic_steps):
        real, _ = next(batches)
        real = (real - scale[0]) / scale[1]
        if shrink > 1:
            real = F.avg_pool2d(real, shrink)
        if now["alpha"] is not None:  # real pictures gain detail as generated ones do (Karras et al.)
            coarse = F.interpolate(F.avg_pool2d(real, 2), scale_factor=2.0, mode="nearest")
            real = blend(coarse, real, now["alpha"])
        with autocast(), torch.no_grad():
            fake = generator(torch.randn(args.batch, args.latent_dim, device=device), *growth)
        real, fake = seen(real), seen(fake.float())
        with autocast():  # in one batch: without BatchNorm the two do not see each other
            on_real, on_fake = critic(torch.cat([real, fake]), *growth).chunk(2)
        wasserstein = on_real.mean() - on_fake.mean()
        penalty, norm = gradient_penalty(critic, real, fake, growth, autocast)
        loss_critic = args.penalty_weight * penalty - wasserstein
        opt_c.zero_grad()
        loss_critic.backward()
        opt_c.step()

    # The generator: minimise -E critic(fake). `inputs=` leaves the critic's own gradients out, which nobody needs here.
    with autocast():
        fake = generator(torch.randn(args.batch, args.latent_dim, device=device), *growth)
        loss_g = -critic(seen(fake.float()), *growth).mean()
    opt_g.zero_grad()
    loss_g.backward(inputs=list(generator.parameters()))
    opt_g.step()

    if average is not None:
        update_average(average, generator, args.ema)
    return torch.stack([loss_critic, loss_g, wasserstein, penalty, norm]).detach()


# wasserstein: the critic's estimate of the distance, in units of its slope. It is the one loss of a GAN that falls as
# pictures get better (for the same critic: it cannot be compared between networks). gradient_norm should stay near 1.
LOSSES = ("loss_critic", "loss_g", "wasserstein", "penalty", "gradient_norm")


# ------------------------------------------------------------------------------------------- using a checkpoint


def load_generator(checkpoint, device="cpu"):
    """Checkpoint dict -> the trained generator in eval mode (BatchNorm uses its running statistics, so that a picture
    depends on its own latent only), the stage and alpha it was last trained with, and its scale."""
    args = flags_of(checkpoint, FLAGS)
    generator = make_generator(args, checkpoint["data"]["channels"])
    generator.load_state_dict(checkpoint["networks"].get("ema") or checkpoint["networks"]["generator"])
    generator.to(device, memory_format=layout(device)).eval()
    return generator, growth_at(max(checkpoint["step"] - 1, 0), args), checkpoint["scale"].to(device)


@torch.no_grad()
def pictures(generator, growth, scale, z):
    """Latents (N, latent_dim) -> uint8 (N, colours, side, side) on the CPU, 100 at a time."""
    made = []
    for part in z.split(100):
        made.append(to_uint8(generator(part.to(scale.device), *growth) * scale[1] + scale[0]).cpu())
    return torch.cat(made)


def generate(checkpoint, n, seed=0, device="cpu"):
    """n pictures, uint8 (n, colours, side, side), the same for the same seed. side: of the stage it was saved in."""
    return pictures(*load_generator(checkpoint, device), latents(n, checkpoint["flags"]["latent_dim"], seed))


def interpolate(checkpoint, rows, frames, kind="spherical", seed=0, device="cpu"):
    """rows walks of `frames` pictures, each between two random latents: uint8 (rows * frames, colours, side, side)."""
    z = walks(rows, frames, checkpoint["flags"]["latent_dim"], kind, seed)
    return pictures(*load_generator(checkpoint, device), z)


# -------------------------------------------------------------------------------------------------------- main


def main(args):
    if args.load:
        return use_generator(SCRIPT, args, generate, interpolate)
    if args.arch == "resnet" and args.stages > 1:
        raise InputError("--arch resnet does not grow: leave out --stages")
    if args.stages == 1 and args.resume is None and (idle := {"stage_steps", "fade_steps"} & set(args.explicit)):
        raise InputError(f"--{min(idle).replace('_', '-')} does nothing without --stages: leave it out")
    if (args.fade_steps or 0) > args.stage_steps:
        raise InputError(f"--fade-steps {args.fade_steps} is longer than a stage (--stage-steps {args.stage_steps})")
    run = Run(SCRIPT, args, FLAGS, PRESETS, LOSSES, updates="critic_steps")
    args, device, colours = run.args, run.device, run.data.images.shape[1]
    if args.size >> (args.stages - 1) < 8:
        raise InputError(f"--stages {args.stages} would begin below 8x8 pixels: {args.size}x{args.size} needs fewer")
    if args.stages > 1:
        ends = range(args.stage_steps, args.stages * args.stage_steps, args.stage_steps)
        growth = ", ".join(f"{args.size >> (args.stages - 1 - k)} pixels to step {end}" for k, end in enumerate(ends))
        print(f"grows: {growth}, then {args.size}" + ": this run ends before" * (run.total <= ends[-1]))

    # The seed fixes weights and latents; the fixed latents of the pictures have a generator of their own.
    torch.manual_seed(args.seed)
    generator, critic = build(args, colours)
    if args.dry_run:
        describe(generator, torch.zeros(2, args.latent_dim))
        describe(critic, torch.zeros(2, colours, args.size, args.size))
        return run.plan()
    networks = {"generator": generator, "critic": critic}
    average = None
    if args.ema > 0:
        average = networks["ema"] = copy.deepcopy(generator)
    for network in networks.values():
        network.to(device, memory_format=layout(device))
    moments = channel_moments(run.data.images) if args.normalize == "channel" else ([0.5] * colours, [0.5] * colours)
    mean, std = (torch.as_tensor(values).float()[:, None, None] for values in moments)
    scale = torch.stack([2 * mean - 1, 2 * std.clamp(min=1 / 255)]).to(device)  # of values in [-1, 1] instead of [0, 1]

    def adam(network, lr):
        # betas (0, 0.9): the paper's. Without momentum the critic follows a target that moves at every step
        return torch.optim.Adam(network.parameters(), lr, betas=(0.0, 0.9), **adam_kernel(device))

    opt_g, opt_c = adam(generator, args.lr_g or args.lr), adam(critic, args.lr_d or args.lr)
    shown = generator if average is None else average  # whose pictures are shown and measured
    fixed = latents(64, args.latent_dim, args.seed + 1)

    def pictures_now(z):
        images = pictures(shown.eval(), growth_at(max(run.step - 1, 0), args), scale, z)
        shown.train()
        return images

    def sample():
        images = pictures_now(fixed)
        repeat = args.size // images.shape[-1]  # in early stages: every pixel repeated, so that the pictures compare
        images = images.repeat_interleave(repeat, 2).repeat_interleave(repeat, 3)
        save_picture(grid(images, 8), run.path / "samples" / f"{run.step:06d}.png")

    def fakes(n):
        return pictures_now(latents(n, args.latent_dim, args.seed + 2))

    optimisers = {"generator": opt_g, "critic": opt_c}
    with run.opened(networks, optimisers, sample, fakes, extra={"scale": scale.cpu()}):
        ours = generator, critic, opt_g, opt_c, average
        train = Captured(train_step, schedule, args, run.batches, *ours, scale, run.autocast)
        for step in run.steps():
            run.record(train(step))
    run.finish(generate)


if __name__ == "__main__":
    run_program(f"{SCRIPT}.py", main, ARGS)
