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

--arch resnet18 is another pair: torchvision's ResNet-18 as the discriminator (He et al. 2016, 1512.03385), and a
generator of transposed convolutions that ends in average pooling and a linear layer.

Radford, Metz, Chintala: Unsupervised Representation Learning with Deep Convolutional GANs, 2015 (arXiv 1511.06434);
the game is from Goodfellow et al.: Generative Adversarial Nets, 2014 (arXiv 1406.2661).

    python dcgan.py                                              # built-in shapes: two or three minutes on two cores
    python dcgan.py --data photos/ --size 64 --epochs 100        # your own pictures: a folder, a zip, an .npz
    python dcgan.py --load runs/dcgan-shapes-1 --generate 64 --to grid.png

Report rows (the README has the numbers): --preset cats is R2a, --preset cats-100k is R1a, --preset food-noise is R3f,
--preset cifar10-resnet is R4a.
Time: the work is 2.5 GFLOP an image at width 64; 50 epochs of 23,000 cats are 6 hours on two older CPU cores.

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
    # R4a. Stated: the networks in words, AdamW, rates, batch, epochs, two updates of the generator. Ours: their sizes,
    # the stem of torchvision (made for 224 pixels), AdamW's usual momentum and decay
    "cifar10-resnet": dict(
        data="cifar10", size=32, arch="resnet18", width=64, latent_dim=100, batch=64, epochs=50, lr=5e-5, lr_d=2e-5,
        g_steps=2, beta1=0.9, weight_decay=0.01,
        report={"protocol": "R4: 50 epochs of CIFAR-10; pictures and loss curves, no number"},
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
    "arch": ("dcgan", ["dcgan", "resnet18"], "which pair of networks: see below"),
    "width": (64, number(int, 1), "base channel count, f in the drawing"),
    "latent_dim": (100, number(int, 1), "length of z"),
    "lr": (2e-4, number(float, 1e-12), "learning rate of both networks"),
    "lr_g": (None, number(float, 1e-12), "of the generator alone (default: --lr)"),
    "lr_d": (None, number(float, 1e-12), "of the discriminator alone (default: --lr)"),
    "g_steps": (1, number(int, 1), "generator updates in one step"),
    "d_steps": (1, number(int, 1), "discriminator updates in one step"),
    "beta1": (0.5, number(float, 0, 1), "Adam's momentum"),
    "weight_decay": (0.0, number(float, 0), "AdamW's: weights shrink by lr times this at every step"),
    "noise": (0.0, number(float, 0), "standard deviation of the noise on what the discriminator sees"),
    "noise_steps": (10_000, number(int, 1), "the noise falls linearly to 0 over this many steps"),
    "interpolate": (None, number(int, 2), "with --load: walk between random latents in N pictures, 8 walks"),
    "interpolation": ("spherical", ["spherical", "linear"], "how --interpolate walks"),
}

USED_WITH = {"generate": ["to"], "interpolate": ["to", "interpolation"]}  # a use of --load: the flags that it reads

if __name__ == "__main__":  # before the slow imports: --help and typing errors answer at once
    ARGS = parse_args()

import copy

import torch
import torch.nn.functional as F
from torch import nn

try:
    from datasets import Captured, Run, adam_kernel, channels, describe, flags_of, grid, latents, layout, run_program
    from datasets import save_picture, to_uint8, update_average, use_generator, walks  # isort: skip
except ImportError as problem:
    sys.exit(print(f"dcgan.py: error: needs our datasets.py beside it ({problem})", file=sys.stderr) or 2)

SCRIPT = "dcgan"

# ---------------------------------------------------------------------------------------------------- networks


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


class PoolingGenerator(nn.Module):
    """R4: transposed convolutions, average pooling, a linear layer, tanh. Takes and returns what Generator does."""

    def __init__(self, size, colours, latent_dim, width):
        super().__init__()
        counts = channels(size, width)  # at size 32, width 64: 256, 128, 64
        layers = [nn.ConvTranspose2d(latent_dim, counts[0], 4, 1, 0, bias=False)]  # (N, 4f, 4, 4)
        for before, after in zip(counts, counts[1:], strict=False):
            layers += [nn.BatchNorm2d(before), nn.ReLU(inplace=True)]
            layers += [nn.ConvTranspose2d(before, after, 4, 2, 1, bias=False)]  # to (N, f, size/2, size/2)
        layers += [nn.BatchNorm2d(counts[-1]), nn.ReLU(inplace=True), nn.AvgPool2d(2), nn.Flatten()]
        layers += [nn.Linear(counts[-1] * (size // 4) ** 2, colours * size**2), nn.Tanh()]
        self.layers = nn.Sequential(*layers, nn.Unflatten(1, (colours, size, size)))

    def forward(self, z):
        return self.layers(z[:, :, None, None])


class ResNetDiscriminator(nn.Module):
    """R4: torchvision's ResNet-18, not pretrained, with one output. Takes and returns what Discriminator does."""

    def __init__(self, colours):
        super().__init__()
        from torchvision.models import resnet18

        self.resnet = resnet18(num_classes=1)
        if colours != 3:
            self.resnet.conv1 = nn.Conv2d(colours, 64, 7, 2, 3, bias=False)

    def forward(self, images):
        return self.resnet(images)[:, 0]


def make_generator(args, colours):
    """The generator that the flags ask for, with its first weights."""
    if args.arch == "resnet18":
        return PoolingGenerator(args.size, colours, args.latent_dim, args.width)
    return Generator(args.size, colours, args.latent_dim, args.width).apply(init_weights)


def make_discriminator(args, colours):
    """The discriminator that the flags ask for, with its first weights."""
    if args.arch == "resnet18":
        return ResNetDiscriminator(colours)
    return Discriminator(args.size, colours, args.width).apply(init_weights)


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


def schedule(step, args):
    """What changes from step to step, which counts from 0: the factor of the learning rates, and the deviation of the
    instance noise (Sonderby et al. 2016, 1610.04490), None once it has gone."""
    return {"decay": args.lr_decay**step, "sigma": args.noise * max(0.0, 1 - step / args.noise_steps) or None}


def train_step(now, args, batches, generator, discriminator, opt_g, opt_d, average, autocast):
    """One step: d_steps updates of the discriminator, then g_steps of the generator. now: what schedule() returns.

    Returns float32 (3,) on the device: loss_d_real, loss_d_fake, loss_g of the last update of each.
    Fresh latents for every update. Nothing here waits for the device.
    """
    device = batches.device

    def seen(images):
        return images if now["sigma"] is None else images + now["sigma"] * torch.randn_like(images)

    for optimiser, lr in ((opt_g, args.lr_g or args.lr), (opt_d, args.lr_d or args.lr)):
        for group in optimiser.param_groups:
            group["lr"] = lr * now["decay"]

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

    if average is not None:
        update_average(average, generator, args.ema)
    return torch.stack([d_real.detach(), d_fake.detach(), g_loss.detach()])


LOSSES = ("loss_d_real", "loss_d_fake", "loss_g")


# ------------------------------------------------------------------------------------------- using a checkpoint


def load_generator(checkpoint, device="cpu"):
    """Checkpoint dict -> the trained generator in eval mode: BatchNorm uses its running statistics, so that a picture
    depends on its own latent only and not on the others in its batch."""
    generator = make_generator(flags_of(checkpoint, FLAGS), checkpoint["data"]["channels"])
    generator.load_state_dict(checkpoint["networks"].get("ema") or checkpoint["networks"]["generator"])
    return generator.to(device, memory_format=layout(device)).eval()


@torch.no_grad()
def pictures(generator, z):
    """Latents (N, latent_dim) -> uint8 (N, colours, size, size) on the CPU, 100 at a time."""
    device = next(generator.parameters()).device
    return torch.cat([to_uint8(generator(part.to(device))).cpu() for part in z.split(100)])


def generate(checkpoint, n, seed=0, device="cpu"):
    """n pictures, uint8 (n, colours, size, size), the same for the same seed."""
    z = latents(n, checkpoint["flags"]["latent_dim"], seed)
    return pictures(load_generator(checkpoint, device), z)


def interpolate(checkpoint, rows, frames, kind="spherical", seed=0, device="cpu"):
    """rows walks of `frames` pictures, each between two random latents: uint8 (rows * frames, colours, size, size)."""
    z = walks(rows, frames, checkpoint["flags"]["latent_dim"], kind, seed)
    return pictures(load_generator(checkpoint, device), z)


# -------------------------------------------------------------------------------------------------------- main


def main(args):
    if args.load:
        return use_generator(SCRIPT, args, generate, interpolate)
    run = Run(SCRIPT, args, FLAGS, PRESETS, LOSSES, updates="d_steps")
    args, device, colours = run.args, run.device, run.data.images.shape[1]

    # The seed fixes weights and latents; the fixed latents of the pictures have a generator of their own.
    torch.manual_seed(args.seed)
    generator, discriminator = make_generator(args, colours), make_discriminator(args, colours)
    if args.dry_run:
        describe(generator, torch.zeros(2, args.latent_dim))
        describe(discriminator, torch.zeros(2, colours, args.size, args.size))
        return run.plan()
    networks = {"generator": generator, "discriminator": discriminator}
    average = None
    if args.ema > 0:
        average = networks["ema"] = copy.deepcopy(generator)
    for network in networks.values():
        network.to(device, memory_format=layout(device))

    def adam(network, lr):
        # beta1 0.5: with Adam's usual 0.9 the game oscillates (the paper, section 4). Without decay AdamW is Adam
        betas, decay = (args.beta1, 0.999), args.weight_decay
        return torch.optim.AdamW(network.parameters(), lr, betas, weight_decay=decay, **adam_kernel(device))

    opt_g, opt_d = adam(generator, args.lr_g or args.lr), adam(discriminator, args.lr_d or args.lr)
    shown = generator if average is None else average  # whose pictures are shown and measured
    fixed = latents(64, args.latent_dim, args.seed + 1)

    def pictures_now(z):
        images = pictures(shown.eval(), z)
        shown.train()
        return images

    def sample():
        save_picture(grid(pictures_now(fixed), 8), run.path / "samples" / f"{run.step:06d}.png")

    def fakes(n):
        return pictures_now(latents(n, args.latent_dim, args.seed + 2))

    with run.opened(networks, {"generator": opt_g, "discriminator": opt_d}, sample, fakes):
        ours = generator, discriminator, opt_g, opt_d, average
        train = Captured(train_step, schedule, args, run.batches, *ours, run.autocast)
        for step in run.steps():
            run.record(train(step))
    run.finish(generate)


if __name__ == "__main__":
    run_program(f"{SCRIPT}.py", main, ARGS)
