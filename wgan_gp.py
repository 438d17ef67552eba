# /// script
# requires-python = ">=3.10"
# dependencies = ["torch>=2.6", "torchvision", "numpy", "scipy", "pillow", "tqdm", "matplotlib"]
# ///
"""WGAN-GP: a generator, and a critic that estimates how far its images are from real ones.

The discriminator of a GAN answers "real or not?", and where it is sure, the generator learns
nothing. A critic gives each image a score instead. Of all 1-Lipschitz functions (the norm of their
gradient is nowhere above 1), take the one that scores real images highest above generated ones. The
difference of the mean scores is the Wasserstein distance: how far, on average, the generated images
would have to move to become the real ones. So the critic maximizes the difference while a penalty
keeps the norm of its gradient near 1, and the generator follows that gradient. The networks are
those of dcgan.py, but the critic has no BatchNorm:

    z (100)                                      image (3, 64, 64)
      | ConvTranspose 4x4                          | Conv 4x4 stride 2, LeakyReLU 0.2
    (8f, 4, 4)    BatchNorm, ReLU                (f, 32, 32)
      | ConvTranspose 4x4 stride 2                 | Conv 4x4 stride 2, LeakyReLU 0.2
    (4f, 8, 8)    BatchNorm, ReLU                (2f, 16, 16)
      |                                            |
    (2f, 16, 16)  BatchNorm, ReLU                (4f, 8, 8)
      |                                            |
    (f, 32, 32)   BatchNorm, ReLU                (8f, 4, 4)
      |                                            | Conv 4x4
    (3, 64, 64)   tanh                           score (1)          f = --width

--arch resnet uses the authors' residual networks instead. With --stages 3, the networks drawn above
grow from 16 to 32 to 64 pixels.

Gulrajani et al.: Improved Training of Wasserstein GANs, 2017 (arXiv 1704.00028), algorithm 1. The
distance is from Arjovsky, Chintala, Bottou: Wasserstein GAN, 2017 (arXiv 1701.07875). Growing is
from Karras et al.: Progressive Growing of GANs, 2018 (arXiv 1710.10196).

    python wgan_gp.py                                 # built-in shapes: 3 minutes on two cores
    python wgan_gp.py --data food64 --critic-steps 3  # or your own images: a folder, a zip, .npz
    python sample.py runs/wgan_gp-shapes-1 --count 64 --to grid.png

Presets that reproduce the student reports (see README.md): large-gan, small-gan, no-noise-gan,
multistep-critic and fade-in-gan are R3a to R3e. paper is the authors' own model at 64 pixels.
Time: at width 64 and 64 pixels the work is 2.3 GFLOP an image in an update of the critic, and 1.0
in one of the generator. large-gan takes 16 times as much.

If you copy this for coursework: take training.py, datasets.py and sources.py along (folders.py for
images in a folder, zip or tar; metrics.py and inception.py for FID; report.py and sample.py for
plots; analysis.py for --normalize channel). What makes it a WGAN-GP is in `Critic`,
`gradient_penalty` and the two update steps; change those. `main` is the whole loop.
"""

import signal

if __name__ == "__main__":  # Ctrl-C during the imports is silent; run_program takes over later
    signal.signal(signal.SIGINT, signal.SIG_DFL)

import argparse
import copy
import functools
from itertools import pairwise
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

import datasets
import training
from sources import InputError, new_parser, number, printable, run_program

SCRIPT = Path(__file__).stem

# R3 states z, f, the critic steps, the normalization, and whether there is noise. The learning
# rate, Adam's betas, the batch and the penalty are the paper's. How much noise, how it decays and
# how long the stages last are our choice. The report may have put noise on real images only, and
# it calls its sigma a variance; ours is a standard deviation, on both kinds of images.
FOOD = dict(
    data="food64", size=64, width=64, latent_dim=100, batch=64, steps=2_000_000, lr=1e-4,
    penalty_weight=10.0, critic_steps=1, noise_steps=1_000_000, eval_images=2020,
    log_every=200, sample_every=5000, save_every=5000, eval_every=15_000,
)  # fmt: skip
PROTOCOL = "R3: up to 2,000,000 steps on 98,937 images, against 2,020 held-out ones; KID x 1,000"
SSIM = "MS-SSIM, 3 scales (generated, real)"

# A preset only sets defaults: a flag on the command line wins. "report" holds published numbers.
PRESETS = {
    "shapes": dict(  # what `python wgan_gp.py` alone runs: small enough for a laptop without a GPU
        data="shapes", size=32, width=24, batch=32, steps=4000, lr=4e-3, ema=0.998,
        upsample="nearest", sample_every=200, save_every=500,
    ),
    "large-gan": FOOD | dict(  # R3a
        width=256, latent_dim=256, noise=0.1, normalize="channel",
        report={"protocol": "R3: stopped after 1,200,000 steps as failed; no number"},
    ),
    "small-gan": FOOD | dict(  # R3b
        noise=0.1,
        report={"FID": 110.56, SSIM: 0.1339, "KID": 83.9, "protocol": PROTOCOL},
    ),
    "no-noise-gan": FOOD | dict(  # R3c
        report={"FID": 106.88, SSIM: 0.1323, "KID": 79.7, "protocol": PROTOCOL},
    ),
    "multistep-critic": FOOD | dict(  # R3d
        noise=0.1, critic_steps=3,
        report={"FID": 108.09, SSIM: 0.1291, "KID": 81.7, "protocol": PROTOCOL},
    ),
    "fade-in-gan": FOOD | dict(  # R3e: "little" noise
        noise=0.02, stages=3, stage_steps=400_000,
        report={"FID": 101.45, SSIM: 0.1342, "KID": 66.4, "protocol": PROTOCOL},
    ),
    # The networks of small-gan, better: see docs/results/best.md. About 50 epochs
    "best": dict(
        data="food64", size=64, width=64, latent_dim=100, batch=64, steps=10_000, lr=5e-4,
        critic_steps=1, ema=0.999, upsample="nearest", flip=True, eval_images=2020,
        report={"protocol": "R3's lowest FID is 101.45 (fade-in-gan); this is none of its systems"},
    ),
    "paper": FOOD | dict(  # the authors' gan_64x64.py
        arch="resnet", latent_dim=128, steps=200_000, critic_steps=5, critic_norm="layer",
        report={"protocol": "Gulrajani et al. trained it on LSUN and ImageNet: no number for food"},
    ),
}  # fmt: skip


def parse_args(argv=None):
    """Command line -> (Namespace, set of the names of the flags that were typed)."""
    parser = new_parser(f"{SCRIPT}.py", __doc__)
    add = parser.groups["model"].add_argument
    rate = number(float, 1e-12)
    whole = number(int, 1)
    amount = number(float, 0)
    add("--arch", choices=["dcgan", "resnet"], default="dcgan", help="the networks")
    add("--width", type=whole, default=64, help="base channels, f in the drawing")
    add("--latent-dim", type=whole, default=100, help="length of z")
    add("--critic-norm", choices=["none", "layer"], default="none", help="norm in the critic")
    about = "learn images in [-1, 1], or with mean 0 and deviation 1 in each channel [%(default)s]"
    add("--normalize", choices=["tanh", "channel"], default="tanh", help=about)
    choices = ["transposed", "nearest"]
    words = "how the generator doubles the side, see `Generator`"
    add("--upsample", choices=choices, default="transposed", help=words)
    add = parser.groups["training"].add_argument
    add("--lr", type=rate, default=1e-4, help="learning rate of both networks")
    add("--lr-g", type=rate, help="that of the generator alone [--lr]")
    add("--lr-d", type=rate, help="that of the critic alone [--lr]")
    add("--critic-steps", type=whole, default=1, help="critic updates per step")
    add("--penalty-weight", type=amount, default=10.0, help="lambda in the paper")
    add("--noise", type=amount, default=0.0, help="standard deviation of noise on images")
    add("--noise-steps", type=whole, default=10_000, help="steps until it has faded to 0")
    add("--stages", type=whole, default=1, help="3: grow from a quarter of the size")
    add("--stage-steps", type=whole, default=20_000, help="steps in a stage")
    add("--fade-steps", type=whole, help="steps that blend a new stage in [half of a stage]")
    add("--flip", action="store_true", help="mirror training images at random")
    add("--no-flip", dest="flip", action="store_false", help="leave them as they are")
    training.add_run_flags(parser, PRESETS)
    parser.set_defaults(batch=64)
    return training.parse(parser, PRESETS, SCRIPT, argv)


# ----------------------------------------------------------------------------------------- growth


def check_growth(args, typed):
    """Raise InputError if flags about the networks and their growth do not fit together."""
    unused = sorted(typed & {"stage_steps", "fade_steps"})
    if args.stages == 1 and unused:
        flag = unused[0].replace("_", "-")
        raise InputError(f"--{flag} does nothing without --stages: leave it out")
    if args.stages > 1 and args.arch == "resnet":
        raise InputError("--arch resnet does not grow: leave out --stages")
    if args.arch == "resnet" and "upsample" in typed:
        raise InputError("--arch resnet always repeats pixels: leave out --upsample")
    if args.fade_steps and args.fade_steps > args.stage_steps:
        lengths = f"--fade-steps {args.fade_steps}, --stage-steps {args.stage_steps}"
        raise InputError(f"the fade is longer than a stage ({lengths})")
    if size_at(0, args) < 8:
        raise InputError(f"--stages {args.stages} would begin below 8x8 pixels: use fewer")


def size_at(stage, args):
    """Side of the images in a stage, in pixels: --size in the last one, half of it before, ..."""
    return args.size >> (args.stages - 1 - stage)


def growth_at(step, args):
    """(stage, alpha) of a step. Stages and steps count from 0.

    alpha in (0, 1) says how far the newest layers are blended in. It is None when nothing is
    blended: in stage 0, and after --fade-steps of any other.
    """
    stage = min(step // args.stage_steps, args.stages - 1)
    fade_steps = args.fade_steps or max(1, args.stage_steps // 2)
    alpha = (step - stage * args.stage_steps + 1) / fade_steps
    if stage == 0 or alpha >= 1:
        return stage, None
    return stage, alpha


def blend(old, new, alpha):
    """From old (alpha 0) to new (alpha 1). alpha: a number, or a tensor of no dimensions."""
    return old + alpha * (new - old)


# --------------------------------------------------------------------------------------- networks


class LeakyReLU(nn.Module):
    """x where it is positive, slope * x elsewhere, as a product with constants.

    This makes the penalty cheaper. Its gradient also runs back through the critic's forward pass,
    where it meets the second derivatives of the layers. Those of (leaky) ReLU are zero, but
    nn.LeakyReLU passes the zeros on as tensors, and every convolution below multiplies them. A
    product with a constant has no second derivative, so autograd stops there.
    """

    def __init__(self, slope):
        super().__init__()
        self.slope = slope

    def forward(self, x):
        with torch.no_grad():
            # 1 where x is positive. Twice as fast as torch.where.
            slopes = torch.sign(x).clamp_(min=self.slope)
        return x * slopes


def norm_layers(norm, channels):
    """A list of one normalization layer, or an empty one. norm: "batch", "layer" or "none".

    "layer" is LayerNorm as the authors use it: over all values of one image, with a scale and an
    offset for each channel.
    """
    if norm == "batch":
        return [nn.BatchNorm2d(channels)]
    if norm == "layer":
        return [nn.GroupNorm(1, channels)]
    return []


class Generator(nn.Module):
    """z (N, latent_dim) -> images (N, channels, side, side).

    The side is the full size in the last stage, half of it in the one before, and so on. With
    `tanh` the images end in tanh. load_model and main also set three attributes, which sampling
    needs: `stage` and `alpha` (see growth_at) and `scale` (see normalization).

    upsample: what doubles the side. "transposed": a 4x4 transposed convolution. "nearest": every
    pixel repeated, then a 3x3 convolution, which makes no checkerboard.
    """

    def __init__(self, size, channels, latent_dim, width, stages, tanh, upsample="transposed"):
        super().__init__()
        self.latent_dim = latent_dim
        self.tanh = tanh
        widths = training.layer_widths(size, width)  # at size 64, width 64: 512, 256, 128, 64
        up = functools.partial(nn.ConvTranspose2d, kernel_size=4, stride=2, padding=1)
        if upsample == "nearest":
            up = training.UpsampleConv2d
        layers = [nn.ConvTranspose2d(latent_dim, widths[0], 4, 1, 0, bias=False)]  # (N, 8f, 4, 4)
        for in_channels, out_channels in pairwise(widths):
            # the side doubles, the channels halve
            layers += [up(in_channels, out_channels, bias=False)]
        self.blocks = nn.ModuleList()
        for layer in layers:
            norm = nn.BatchNorm2d(layer.out_channels)
            self.blocks.append(nn.Sequential(layer, norm, nn.ReLU(inplace=True)))
        # The layer that makes the image, of twice the side. Each stage has one of its own.
        self.to_image = nn.ModuleList()
        for in_channels in widths[-stages:]:
            self.to_image.append(up(in_channels, channels))

    def forward(self, z, stage=0, alpha=None):
        unused = len(self.to_image) - 1 - stage  # blocks that later stages add
        *blocks, newest = self.blocks[: len(self.blocks) - unused]
        h = z[:, :, None, None]
        for block in blocks:
            h = block(h)
        images = self.to_image[stage](newest(h))
        if alpha is not None:  # what the stage before would have made, with every pixel repeated
            old = F.interpolate(self.to_image[stage - 1](h), scale_factor=2.0, mode="nearest")
            images = blend(old, images, alpha)
        return torch.tanh(images) if self.tanh else images


class Critic(nn.Module):
    """Images (N, channels, side, side) -> scores (N,), any real numbers.

    No BatchNorm: it would make the score of an image depend on the others in its batch, but the
    penalty is about the slope at each image by itself (the paper, section 4).
    """

    def __init__(self, size, channels, width, stages, norm):
        super().__init__()
        widths = training.layer_widths(size, width)[::-1]  # at size 64, width 64: 64, 128, 256, 512
        # The first layer halves the side. Each stage has its own; the last takes full-size images.
        self.from_image = nn.ModuleList()
        for out_channels in reversed(widths[:stages]):
            layer = nn.Conv2d(channels, out_channels, 4, 2, 1)
            self.from_image.append(nn.Sequential(layer, LeakyReLU(0.2)))
        self.blocks = nn.ModuleList()
        for in_channels, out_channels in pairwise(widths):
            # the side halves, the channels double
            layers = [nn.Conv2d(in_channels, out_channels, 4, 2, 1)]
            layers += [*norm_layers(norm, out_channels), LeakyReLU(0.2)]
            self.blocks.append(nn.Sequential(*layers))
        self.score = nn.Conv2d(widths[-1], 1, 4, 1, 0)  # (N, 1, 1, 1)

    def forward(self, images, stage=0, alpha=None):
        unused = len(self.from_image) - 1 - stage  # blocks that later stages add
        blocks = self.blocks[unused:]
        h = self.from_image[stage](images)
        if alpha is not None:  # what the stage before would have seen of the images at half size
            h = blocks[0](h)
            blocks = blocks[1:]
            old = self.from_image[stage - 1](F.avg_pool2d(images, 2))
            h = blend(old, h, alpha)
        for block in blocks:
            h = block(h)
        return in_fp32(self.score, h)[:, 0, 0, 0]


def in_fp32(layer, h):
    """layer(h) without autocast, for scores. They may drift far from 0, because only differences
    count, and the 8 bits of bf16 would not resolve those."""
    with torch.autocast(h.device.type, enabled=False):
        return layer(h.to(layer.weight.dtype))


class Residual(nn.Module):
    """shortcut(x) + two 3x3 convolutions, each after norm and ReLU.

    As in the authors' gan_64x64.py. resample "up" doubles the side: pixels are repeated before the
    first convolution. "down" halves it: pixels are averaged after the second.
    """

    def __init__(self, in_channels, out_channels, norm, resample):
        super().__init__()
        if resample == "up":  # in the generator
            middle = out_channels
            relu = nn.ReLU()
            up = [nn.Upsample(scale_factor=2.0)]
            down = []
        else:  # in the critic
            middle = in_channels
            relu = LeakyReLU(0.0)
            up = []
            down = [nn.AvgPool2d(2)]
        first = nn.Conv2d(in_channels, middle, 3, 1, 1, bias=False)
        second = nn.Conv2d(middle, out_channels, 3, 1, 1)
        layers = [*norm_layers(norm, in_channels), relu, *up, first]
        layers += [*norm_layers(norm, middle), relu, second, *down]
        self.layers = nn.Sequential(*layers)
        self.shortcut = nn.Sequential(*up, *down, nn.Conv2d(in_channels, out_channels, 1))

    def forward(self, x):
        return self.shortcut(x) + self.layers(x)


class ResNetGenerator(nn.Module):
    """--arch resnet: z (N, latent_dim) -> images (N, channels, size, size). It does not grow."""

    def __init__(self, size, channels, latent_dim, width, tanh):
        super().__init__()
        self.latent_dim = latent_dim
        widths = training.layer_widths(2 * size, width)  # from 4x4 to the full size
        layers = [nn.Linear(latent_dim, widths[0] * 16)]
        layers += [nn.Unflatten(1, (widths[0], 4, 4))]  # (N, 8f, 4, 4)
        for in_channels, out_channels in pairwise(widths):
            layers += [Residual(in_channels, out_channels, "batch", "up")]
        layers += [nn.BatchNorm2d(width), nn.ReLU(inplace=True)]
        layers += [nn.Conv2d(width, channels, 3, 1, 1)]  # (N, channels, size, size)
        if tanh:
            layers += [nn.Tanh()]
        self.layers = nn.Sequential(*layers)

    def forward(self, z, stage=0, alpha=None):
        return self.layers(z)


class ResNetCritic(nn.Module):
    """--arch resnet: images (N, channels, size, size) -> scores (N,)."""

    def __init__(self, size, channels, width, norm):
        super().__init__()
        widths = training.layer_widths(2 * size, width)[::-1]
        layers = [nn.Conv2d(channels, width, 3, 1, 1)]
        for in_channels, out_channels in pairwise(widths):
            layers += [Residual(in_channels, out_channels, norm, "down")]
        self.layers = nn.Sequential(*layers, nn.Flatten())  # (N, 8f * 4 * 4)
        self.score = nn.Linear(widths[-1] * 16, 1)

    def forward(self, images, stage=0, alpha=None):
        return in_fp32(self.score, self.layers(images))[:, 0]


def init_weights(network):
    """Draw the first weights as the authors do. Biases are 0.

    The networks of DCGAN: N(0, 0.02). The residual ones: uniform, with variance
    2 / mean(fan in, fan out) in 3x3 convolutions, which come after ReLU. Where no ReLU comes
    before, half of it: in linear layers, shortcuts, and the critic's first layer.
    """
    first = network.layers[0] if isinstance(network, ResNetCritic) else None
    for module in network.modules():
        if not isinstance(module, (nn.Conv2d, nn.ConvTranspose2d, nn.Linear)):
            continue
        if isinstance(network, (Generator, Critic)):
            nn.init.normal_(module.weight, 0.0, 0.02)
        else:
            after_relu = getattr(module, "kernel_size", None) == (3, 3) and module is not first
            nn.init.xavier_uniform_(module.weight, gain=2**0.5 if after_relu else 1.0)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


def make_generator(args, channels):
    """The generator that the flags ask for."""
    tanh = args.normalize == "tanh"
    if args.arch == "resnet":
        return ResNetGenerator(args.size, channels, args.latent_dim, args.width, tanh)
    sizes = (args.size, channels, args.latent_dim, args.width, args.stages)
    upsample = getattr(args, "upsample", "transposed")  # checkpoints from before the flag have none
    return Generator(*sizes, tanh, upsample)


def make_networks(args, channels):
    """The generator and the critic that the flags ask for, with their first weights."""
    generator = make_generator(args, channels)
    if args.arch == "resnet":
        critic = ResNetCritic(args.size, channels, args.width, args.critic_norm)
    else:
        critic = Critic(args.size, channels, args.width, args.stages, args.critic_norm)
    init_weights(generator)
    init_weights(critic)
    return generator, critic


# ----------------------------------------------------------------------------------------- losses


def gradient_penalty(score, real, fake, autocast):
    """E (|grad score(x)| - 1)^2 at random points x between real and fake (the paper, equation 3).

    score: images -> scores (N,). real, fake: (N, C, H, W) float32, without gradients. Returns two
    float32 tensors of no dimensions: the penalty, which can be differentiated, and
    E |grad score(x)|.
    """
    # One epsilon for each image: x lies on the straight line between a real and a generated image.
    # There the best critic has slope 1 (the paper, proposition 1). Elsewhere nothing is known.
    epsilon = torch.rand(len(real), 1, 1, 1, device=real.device, dtype=real.dtype)
    x = torch.lerp(fake, real, epsilon).requires_grad_()
    with autocast():
        scores = score(x)
    # A score depends on its own image only, so the gradient of the sum holds all gradients.
    # create_graph: the penalty is a function of this gradient, and training differentiates it.
    (gradient,) = torch.autograd.grad(scores.sum(), x, create_graph=True)
    # The norm is over all values of an image, and in fp32 like x: squares of bf16 numbers lose too
    # much. At 0 a root has infinite slope, and infinity times 0 is NaN: hence the 1e-12.
    norm = (gradient.square().sum((1, 2, 3)) + 1e-12).sqrt()
    return (norm - 1).square().mean(), norm.mean()


def add_noise(images, sigma):
    """Instance noise (Sonderby et al. 2016, 1610.04490). sigma: tensor, or None for no noise."""
    if sigma is None:
        return images
    return images + sigma * torch.randn_like(images)


# ---------------------------------------------------------------------------------------- updates


def normalization(images, normalize):
    """Mean and deviation of each channel, by which images in [-1, 1] are normalized: (2, C, 1, 1).

    images: the training set, uint8 (N, C, H, W). --normalize tanh leaves images as they are.
    """
    moments = torch.full((2, images.shape[1]), 0.5)  # of values in [0, 1]
    if normalize == "channel":
        moments = torch.stack(datasets.channel_moments(images)).float()
    mean, std = moments
    # at least one of 256 levels, because a channel may be constant
    return torch.stack([2 * mean - 1, 2 * std.clamp(min=1 / 255)])[:, :, None, None]


def as_generated(real, scale, side, alpha):
    """Real images in [-1, 1] -> normalized by scale, and of as many pixels as the generated ones.

    While new layers are blended in, real images gain detail as generated ones do (Karras et al.).
    """
    mean, std = scale
    images = (real - mean) / std
    factor = real.shape[-1] // side
    if factor > 1:
        images = F.avg_pool2d(images, factor)
    if alpha is not None:
        coarse = F.interpolate(F.avg_pool2d(images, 2), scale_factor=2.0, mode="nearest")
        images = blend(coarse, images, alpha)
    return images


def critic_step(generator, critic, optimizer, autocast, penalty_weight, real, alpha, sigma, stage):
    """One update: minimize E critic(fake) - E critic(real) + penalty_weight * penalty.

    real: (N, C, size, size) in [-1, 1]. stage, alpha: of growth_at, alpha as a tensor or None;
    sigma: of the noise on both kinds of images, or None. Returns four tensors on the device: the
    loss, the estimated Wasserstein distance, the penalty, and the mean norm of the gradient.
    """
    score = functools.partial(critic, stage=stage, alpha=alpha)
    z = torch.randn(len(real), generator.latent_dim, device=real.device)
    with autocast(), torch.no_grad():
        fake = generator(z, stage, alpha).float()
    real = as_generated(real, generator.scale, fake.shape[-1], alpha)
    real = add_noise(real, sigma)
    fake = add_noise(fake, sigma)
    with autocast():  # in one batch: without BatchNorm the two do not see each other
        scores_real, scores_fake = score(torch.cat([real, fake])).chunk(2)
    wasserstein = scores_real.mean() - scores_fake.mean()
    penalty, norm = gradient_penalty(score, real, fake, autocast)
    loss = penalty_weight * penalty - wasserstein
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    return loss.detach(), wasserstein.detach(), penalty.detach(), norm.detach()


def generator_step(generator, critic, optimizer, autocast, batch, alpha, sigma, stage):
    """One update with fresh latents: minimize -E critic(fake). Returns the loss."""
    z = torch.randn(batch, generator.latent_dim, device=generator.scale.device)
    with autocast():
        fake = generator(z, stage, alpha).float()
        loss = -critic(add_noise(fake, sigma), stage, alpha).mean()
    optimizer.zero_grad()
    # `inputs=` leaves the critic's own gradients out: they would be thrown away.
    loss.backward(inputs=list(generator.parameters()))
    optimizer.step()
    return loss.detach()


# ------------------------------------------------------------------------------- a trained model


def load_model(checkpoint, device="cpu", weights="ema"):
    """Checkpoint dict -> the trained generator in eval mode, in the stage it was saved in.

    In eval mode BatchNorm uses its running statistics, so an image depends on its own latent only
    and not on the others in its batch. weights: "ema" (averaged, if there are any) or "plain".
    """
    args = argparse.Namespace(**checkpoint["flags"])
    generator = make_generator(args, checkpoint["data"]["channels"])
    states = checkpoint["models"]
    name = "ema" if weights == "ema" and "ema" in states else "generator"
    generator.load_state_dict(states[name])
    generator.scale = checkpoint["scale"].to(device)
    generator.stage, generator.alpha = growth_at(max(checkpoint["step"] - 1, 0), args)
    return generator.to(device, memory_format=datasets.layout(device)).eval()


@torch.no_grad()
def to_images(generator, z):
    """Latents (N, latent_dim) -> uint8 (N, channels, side, side) on the CPU, 100 at a time.

    generator.stage, .alpha: how far it has grown, see growth_at. generator.scale: see
    normalization.
    """
    mean, std = generator.scale
    was_training = generator.training
    generator.eval()
    parts = []
    for part in z.split(100):
        images = generator(part.to(mean.device), generator.stage, generator.alpha)
        parts.append(datasets.to_uint8(images * std + mean).cpu())
    generator.train(was_training)
    return torch.cat(parts)


def generate(generator, n, seed=0, first=0):
    """Images number first .. first + n - 1 of the sequence with this seed, uint8 on the CPU."""
    return to_images(generator, training.latents(n, generator.latent_dim, seed, first))


WALKS = ("spherical", "linear")


def walk(generator, kind, rows, frames, seed=0):
    """rows walks of `frames` images, each from one random latent to another, row after row.

    kind: one of WALKS. Returns uint8 (rows * frames, channels, side, side).
    """
    return to_images(generator, training.walks(rows, frames, generator.latent_dim, kind, seed))


# ------------------------------------------------------------------------------------------- main


def draw(run, generator, seed, size):
    """samples/<step>.png: a grid of images from the same 64 latents each time."""
    run.wait()  # so that run.seconds counts training only
    if run.is_main:
        images = generate(generator, 64, seed)
        # in early stages every pixel is repeated, so that all pictures have the same size
        images = F.interpolate(images, size, mode="nearest")
        picture = datasets.grid(images, columns=8)
        datasets.save_picture(picture, run.path / "samples" / f"{run.step:06d}.png")


def main(argv=None):
    args, typed = parse_args(argv)
    device, args.precision = training.pick_device(args.device, args.precision)
    autocast = functools.partial(training.autocast, device, args.precision)
    args.size = args.size or datasets.default_size(args.data)
    check_growth(args, typed)
    data, held_out = datasets.load_parts(
        args.data, args.size, fit=args.fit, per_class=args.limit_per_class
    )
    batches = training.new_batches(args, typed, data, device)  # a small set lowers args.batch
    per_epoch = batches.per_epoch / args.critic_steps  # steps, maybe not a whole number
    total = args.steps or max(1, round(args.epochs * per_epoch))
    sample_every = args.sample_every or max(100, round(per_epoch))
    save_every = args.save_every or max(100, round(per_epoch))
    if args.stages > 1:
        steps = f"{args.stages} stages of {args.stage_steps} steps"
        print(f"grows from {size_at(0, args)} to {args.size} pixels in {steps}")
        if total <= (args.stages - 1) * args.stage_steps:
            print("note: this run ends before its last stage")

    # The seed fixes the weights and latents. The latents of the pictures have seeds of their own.
    torch.manual_seed(args.seed)
    channels = data.images.shape[1]
    generator, critic = make_networks(args, channels)
    if args.dry_run:
        images = torch.zeros(2, channels, args.size, args.size)
        training.describe(generator, torch.zeros(2, args.latent_dim), args.stages - 1)
        training.describe(critic, images, args.stages - 1)
        return training.print_plan(args, data, total, per_epoch, device)
    scale = normalization(data.images, args.normalize)
    generator.scale = scale.to(device)
    models = {"generator": generator, "critic": critic}
    sampler = generator  # whose images are drawn and measured
    if args.ema > 0:
        sampler = models["ema"] = copy.deepcopy(generator)
    for model in models.values():
        model.to(device, memory_format=datasets.layout(device))

    # The paper's betas. Without momentum the critic follows a target that moves at every step.
    adam = functools.partial(torch.optim.Adam, betas=(0.0, 0.9), **training.adam_options(device))
    lr_g = args.lr_g or args.lr
    lr_d = args.lr_d or args.lr
    opt_g = adam(generator.parameters(), lr_g)
    opt_c = adam(critic.parameters(), lr_d)

    # On an NVIDIA GPU each update becomes a CUDA graph; elsewhere `captured` changes nothing.
    networks = (generator, critic)
    captured = functools.partial(training.captured, device=device, no_graph=args.no_graph)
    c_step = captured(
        functools.partial(critic_step, *networks, opt_c, autocast, args.penalty_weight)
    )
    g_step = captured(functools.partial(generator_step, *networks, opt_g, autocast, args.batch))
    ema_step = captured(functools.partial(training.update_ema, sampler, generator))
    ema_inputs = [training.latents(1000, args.latent_dim, args.seed + 4)]

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
        measured["real_words"] = reference.words

    optimizers = {"generator": opt_g, "critic": opt_c}
    # Makes the run directory, or on --resume loads the checkpoint and goes on where it stopped.
    with training.start(
        args, SCRIPT, data, batches, models, optimizers, total, per_epoch, {"scale": scale}
    ) as run:
        sampler.stage, sampler.alpha = growth_at(max(run.step - 1, 0), args)  # as last trained
        if run.step == 0:
            run.save("last.pt")
            draw(run, sampler, args.seed + 1, args.size)
            run.write_weights()
        while run.step < total and not run.should_stop():  # Ctrl-C, SIGTERM
            # Each stage starts with layers that nobody has trained: alpha blends them in.
            stage, alpha = growth_at(run.step, args)
            if stage > sampler.stage:
                run.bar.write(f"step {run.step}: the images grow to {size_at(stage, args)} pixels")
            if alpha is not None:
                alpha = training.scalar(alpha, device)
            sampler.stage = stage
            sampler.alpha = alpha
            noise = args.noise * max(0.0, 1 - run.step / args.noise_steps)
            sigma = training.scalar(noise, device)
            training.set_lr(opt_g, lr_g * args.lr_decay**run.step)
            training.set_lr(opt_c, lr_d * args.lr_decay**run.step)
            # tensors by position, constants by keyword: see training.captured
            for _ in range(args.critic_steps):
                real, _ = next(batches)
                if args.flip:
                    real = training.randomly_flipped(real)
                c_loss, wasserstein, penalty, norm = c_step(real, alpha, sigma, stage=stage)
            g_loss = g_step(alpha, sigma, stage=stage)
            if args.ema > 0:
                ema_step(training.ema_decay(args.ema, run.step, device))
            # wasserstein is the critic's estimate of the distance, in units of its slope. It is the
            # one loss of a GAN that falls as images get better, but it cannot be compared across
            # networks. gradient_norm should stay near 1.
            slope = {"penalty": penalty, "gradient_norm": norm}
            run.count(loss_critic=c_loss, loss_g=g_loss, wasserstein=wasserstein, **slope)

            last = run.step == total
            used = last or run.every(eval_every, sample_every, save_every, args.keep_every)
            if args.ema > 0 and used:  # averaged weights need BatchNorm statistics of their own
                training.recount_statistics(sampler, ema_inputs, sampler.stage, sampler.alpha)
            scores = {}
            if metrics and eval_every and (last or run.every(eval_every)):
                run.wait()
                fake = generate(sampler, len(reference.choose), args.seed + 2)
                size = fake.shape[-1]  # of this stage; the real images are averaged down to it
                scores = metrics.curve(reference.choose, fake, **measured)
                run.keep_best(scores, size, reference.choose)  # best.pt, if its FID is lowest
            # also at the end of an epoch, so that no row spans two epochs
            if last or run.every(args.log_every, eval_every, per_epoch):
                if args.noise > 0:
                    scores["noise"] = noise
                run.write_log(**scores)  # waits for the device; stops the run at NaN
            if last or run.every(sample_every):
                draw(run, sampler, args.seed + 1, args.size)
                run.write_weights()  # histograms of every layer
            if run.every(args.keep_every):
                run.keep("generator")  # kept/<step>.pt: weights to make images with later
            if last or run.every(save_every):
                run.save("last.pt")
        if run.step < total or run.should_stop():
            if args.ema > 0:
                training.recount_statistics(sampler, ema_inputs, sampler.stage, sampler.alpha)
            run.save("last.pt")
            return run.goodbye()  # says how to resume
        run.done()  # from here on, Ctrl-C ends the program; --resume makes up for the rest
        if metrics and report:  # first the numbers: a plot that fails must not lose them
            fake = generate(sampler, len(reference.judge), args.seed + 2)
            values = metrics.evaluate(
                reference.judge,
                fake,
                floor=reference.floor,
                fake_words=f"images by {run.weights_words()}, latent seed {args.seed + 2}",
                **measured,
            )
            metrics.write_result(run, values, PRESETS[args.preset])
        if plots := training.tool("report"):
            for path in plots.report(run.path, device=device):
                print(f"wrote {printable(path)}")
        return run.finish()  # says what to try next


if __name__ == "__main__":
    run_program(main)
