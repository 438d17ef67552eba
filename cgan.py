"""Conditional GAN: a generator that is told the class, and a discriminator that minds it.

As in dcgan.py a generator and a discriminator are trained against each other. The generator is also given the class y.
If it ignores y it must lose, so the discriminator has to judge the class, too, in one of two ways:

    --condition auxiliary    it has a second output, a guess of the class, and both networks want the guess to be right
                             (Odena, Olah, Shlens 2017, arXiv 1610.09585). With --class-from both the discriminator
                             learns it from real and generated pictures, as in that paper, and the two can agree on
                             classes that nobody else can see; with --class-from real it only learns what is true
    --condition projection   it is given y, and its score is <e(y), h(x)> + w h(x), with features h of the picture and
                             an embedding e of the class (Miyato, Koyama 2018, 1802.05637)

    z (256), embedding of y (128)                    picture (3, 64, 64)
      | Linear                                         | Conv 4x4 stride 2, LeakyReLU 0.2
    (8f, 4, 4)                                       (f, 32, 32)
      | ConvTranspose 4x4 stride 2                     |
    (4f, 8, 8)    BatchNorm of class y, ReLU         (2f, 16, 16)
      |                                                |
    (2f, 16, 16)  BatchNorm of class y, ReLU         (4f, 8, 8)
      |                                                |
    (f, 32, 32)   BatchNorm of class y, ReLU         (8f, 4, 4), averaged over the 4x4 places
      | ConvTranspose 4x4 stride 2                     | Linear, Linear
    picture (3, 64, 64), tanh                        score (1), class (5)          f = --width

In the generator the class chooses the gain and the offset of every BatchNorm (Dumoulin et al. 2017, 1610.07629).

    --d-norm spectral        the weight of every layer of the discriminator, as a matrix, is divided by its largest
                             singular value, which bounds the slope of the score (Miyato et al. 2018, 1802.05957)
    --d-norm batch           BatchNorm, as in dcgan.py
    --loss hinge             max(0, 1 - s) and max(0, 1 + s) for the scores s of real and generated pictures (Lim, Ye
                             2017, 1705.02894)
    --loss logistic          -log D and -log(1 - D) with D = 1 / (1 + e^-s), as in dcgan.py (Goodfellow et al. 2014)
    --arch resnet18          another pair: torchvision's ResNet-18 as the discriminator, which gets the class as one
                             more channel beside the picture's, and a generator that ends in pooling and a linear layer

    python cgan.py                                               # built-in shapes: about three minutes on two cores
    python cgan.py --data photos/ --size 64 --epochs 100         # your own pictures: sub-folders are the classes
    python cgan.py --load runs/cgan-shapes-1 --generate 64 --class star --to stars.png

Report rows: --preset animals is R0b, --preset cifar10-resnet is R4b.
Time: at width 64 and 64 pixels a step of one update each is 2.5 GFLOP an image, as in dcgan.py.

If you copy this for coursework: take datasets.py along (metrics.py and report.py if you want FID and plots). What makes
it a conditional GAN is in `Generator`, `Discriminator`, the losses and `train_step`; change those. The blocks marked
"shared" are plumbing and the same in every script.
"""

import argparse
import sys

R0 = {"protocol": "R0: 100 epochs of 13,500 images; pictures and loss curves, no number"}

# A preset only sets defaults: a flag on the command line wins. "report" holds the published numbers, never a flag.
PRESETS = {
    "shapes": dict(  # what `python cgan.py` alone runs: small enough for a laptop without a GPU
        data="shapes", size=32, width=24, latent_dim=64, batch=32, steps=2000, lr=1e-3, lr_d=5e-4, ema=0.99,
        class_scale=1 / 128, condition="projection", d_norm="batch", loss="logistic", sample_every=200, save_every=500,
    ),
    # R0b. Stated: networks, 2e-4, batch, epochs, R1, noise, unequal numbers of steps, a discriminator slower than the
    # generator. Ours: how much of each
    "animals": dict(
        data="animals", size=64, width=64, latent_dim=256, batch=128, epochs=100, lr=2e-4, lr_d=1e-4, g_steps=2,
        r1=1.0, noise=0.1, noise_steps=5000,
        report=R0,
    ),
    # What is left of R0's own list of missing pieces after the ablation in the README; augment pays after 50 epochs
    "best": dict(
        data="animals", size=64, width=64, latent_dim=128, batch=128, epochs=100, lr=5e-4, lr_d=2.5e-4, ema=0.995,
        class_scale=1 / 128, class_from="real", d_norm="batch", loss="logistic", augment=True,
        report=R0,
    ),
    # R4b. Stated: the networks in words, AdamW, rates, batch, epochs, two updates of the generator, a term of image
    # similarity. Ours: its weight, all sizes, torchvision's stem (made for 224 pixels), AdamW's usual momentum, decay
    "cifar10-resnet": dict(
        data="cifar10", size=32, arch="resnet18", width=64, latent_dim=100, batch=64, epochs=50, lr=5e-5, g_steps=2,
        loss="logistic", beta1=0.9, weight_decay=0.01, similarity=1.0,
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
    "latent_dim": (256, number(int, 1), "length of z"),
    "lr": (2e-4, number(float, 1e-12), "learning rate of both networks"),
    "lr_g": (None, number(float, 1e-12), "of the generator alone (default: --lr)"),
    "lr_d": (None, number(float, 1e-12), "of the discriminator alone (default: --lr)"),
    "g_steps": (1, number(int, 1), "generator updates in one step"),
    "d_steps": (1, number(int, 1), "discriminator updates in one step"),
    "beta1": (0.5, number(float, 0, 1), "Adam's momentum"),
    "weight_decay": (0.0, number(float, 0), "AdamW's: weights shrink by lr times this at every step"),
    "condition": ("auxiliary", ["auxiliary", "projection"], "how the discriminator of --arch dcgan uses the class"),
    "class_from": ("both", ["both", "real"], "pictures from which --condition auxiliary learns to tell the classes"),
    "class_scale": (
        1.0,
        number(float, 1e-12),
        "factor of the class's embedding in the generator, see there",
    ),
    "d_norm": ("spectral", ["spectral", "batch"], "of the discriminator of --arch dcgan"),
    "loss": ("hinge", ["hinge", "logistic"], "of real against generated: see below"),
    "r1": (0.0, number(float, 0), "weight of the penalty on the discriminator's slope at real pictures"),
    "r1_every": (16, number(int, 1), "it is taken at every so many updates, and counts so many times"),
    "noise": (0.0, number(float, 0), "standard deviation of the noise on what the discriminator sees"),
    "noise_steps": (10_000, number(int, 1), "the noise falls linearly to 0 over this many steps"),
    "similarity": (
        0.0,
        number(float, 0),
        "weight of the squared error to a real picture of the same class",
    ),
    "augment": (False, None, "show the discriminator changed pictures, real and generated ones alike"),
    "balance": (False, None, "draw every class equally often, however many images it has"),
    "class": (None, str, "with --load: make pictures of this class only"),
    "interpolate": (None, number(int, 2), "with --load: walk between random latents or classes in N pictures, 8 walks"),
    "interpolation": (
        "spherical",
        ["spherical", "linear", "classes"],
        "between latents, the class fixed, or between classes, the latent fixed",
    ),
}

# a use of --load: the flags that it reads
USED_WITH = {"generate": ["to", "class"], "interpolate": ["to", "class", "interpolation"]}

if __name__ == "__main__":  # before the slow imports: --help and typing errors answer at once
    ARGS = parse_args()

import copy

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils.parametrizations import spectral_norm

try:
    from datasets import Captured, InputError, Run, adam_kernel, channels, class_inputs, class_rows, describe, flags_of
    from datasets import grid, latents, layout, one_hot, run_program, save_picture, to_uint8, update_average  # isort: skip
    from datasets import use_generator, walks  # isort: skip
except ImportError as problem:
    sys.exit(print(f"cgan.py: error: needs our datasets.py beside it ({problem})", file=sys.stderr) or 2)

SCRIPT = "cgan"
EMBEDDING = 128  # length of a class's embedding; in --arch resnet18 also of the lifted latent

# ---------------------------------------------------------------------------------------------------- networks
# Pictures are (N, colours, size, size) in [-1, 1]. Classes y are float (N, classes): one-hot, or between two classes a
# mixture, whose embedding is then a mixture too.


class ConditionalBatchNorm(nn.Module):
    """BatchNorm with a gain and an offset for every class, both linear in its embedding."""

    def __init__(self, channels):
        super().__init__()
        self.norm = nn.BatchNorm2d(channels, affine=False)
        self.gain, self.offset = nn.Linear(EMBEDDING, channels), nn.Linear(EMBEDDING, channels)

    def forward(self, x, embedding):
        gain, offset = 1 + self.gain(embedding), self.offset(embedding)
        return torch.addcmul(offset[:, :, None, None], gain[:, :, None, None], self.norm(x))


class Generator(nn.Module):
    """z (N, latent_dim) and y -> pictures.

    class_scale multiplies the embedding. An embedding is 128 numbers that are the same for all pictures of a class.
    Adam moves each of the 128 weights behind a gain by about the learning rate, all in the direction that helps now, so
    at scale 1 the gain itself moves about 100 times as fast as that of a plain BatchNorm: every class runs after its
    best single picture, and z is forgotten. At scale 1/128 it moves as any other weight does.
    """

    def __init__(self, size, colours, classes, latent_dim, width, class_scale):
        super().__init__()
        counts = channels(size, width)  # at size 64, width 64: 512, 256, 128, 64
        pairs = list(zip(counts, counts[1:], strict=False))
        self.class_scale, self.embedding = class_scale, nn.Embedding(classes, EMBEDDING)
        self.first = nn.Linear(latent_dim + EMBEDDING, counts[0] * 16)
        self.ups = nn.ModuleList(nn.ConvTranspose2d(a, b, 4, 2, 1, bias=False) for a, b in pairs)  # side doubles
        self.norms = nn.ModuleList(ConditionalBatchNorm(b) for _, b in pairs)
        self.last = nn.ConvTranspose2d(counts[-1], colours, 4, 2, 1)

    def forward(self, z, y):
        embedding = self.class_scale * (y @ self.embedding.weight)
        h = self.first(torch.cat([z, embedding], dim=1)).unflatten(1, (-1, 4, 4))  # (N, 8f, 4, 4)
        for up, norm in zip(self.ups, self.norms, strict=True):
            h = F.relu(norm(up(h), embedding))
        return torch.tanh(self.last(h))


class Discriminator(nn.Module):
    """Pictures and y -> scores (N,), and logits of the class (N, classes), or None with --condition projection.

    norm: "spectral" divides each weight, as a matrix (outputs, all else), by its largest singular value. That bounds
    the slope of a layer, to 1 for the linear ones and to 2 for these convolutions: the score cannot run away. "batch"
    is DCGAN's BatchNorm in all layers but the first, by which a batch of too similar pictures is noticed.
    """

    def __init__(self, size, colours, classes, width, norm, condition):
        super().__init__()
        wrapped = spectral_norm if norm == "spectral" else nn.Identity()
        layers, before = [], colours
        for after in channels(size, width)[::-1]:  # at size 64, width 64: 64, 128, 256, 512
            layers += [wrapped(nn.Conv2d(before, after, 4, 2, 1))]  # side halves
            layers += [nn.BatchNorm2d(after)] if norm == "batch" and len(layers) > 1 else []
            layers += [nn.LeakyReLU(0.2, inplace=True)]
            before = after
        self.layers = nn.Sequential(*layers)  # (N, 8f, 4, 4)
        self.score = wrapped(nn.Linear(before, 1))
        self.label = wrapped(nn.Linear(before, classes, bias=condition == "auxiliary"))
        self.condition = condition

    def forward(self, images, y):
        h = self.layers(images).mean((2, 3))  # (N, 8f)
        score, label = self.score(h)[:, 0], self.label(h)
        if self.condition == "projection":
            return score + (label * y).sum(1), None
        return score, label


class PoolingGenerator(nn.Module):
    """R4: z and y are lifted by linear layers; transposed convolutions; average pooling; a linear layer; tanh."""

    def __init__(self, size, colours, classes, latent_dim, width):
        super().__init__()
        counts = channels(size, width)  # at size 32, width 64: 256, 128, 64
        self.lift_z, self.lift_y = nn.Linear(latent_dim, EMBEDDING), nn.Linear(classes, EMBEDDING)
        layers = [nn.Unflatten(1, (-1, 1, 1)), nn.ConvTranspose2d(2 * EMBEDDING, counts[0], 4, 1, 0, bias=False)]
        for before, after in zip(counts, counts[1:], strict=False):
            layers += [nn.BatchNorm2d(before), nn.ReLU(inplace=True)]
            layers += [nn.ConvTranspose2d(before, after, 4, 2, 1, bias=False)]  # to (N, f, size/2, size/2)
        layers += [nn.BatchNorm2d(counts[-1]), nn.ReLU(inplace=True), nn.AvgPool2d(2), nn.Flatten()]
        layers += [nn.Linear(counts[-1] * (size // 4) ** 2, colours * size**2), nn.Tanh()]
        self.layers = nn.Sequential(*layers, nn.Unflatten(1, (colours, size, size)))

    def forward(self, z, y):
        return self.layers(torch.cat([self.lift_z(z), self.lift_y(y)], dim=1))


class ResNetDiscriminator(nn.Module):
    """R4: torchvision's ResNet-18 (He et al. 2016, 1512.03385), not pretrained, with y as one more channel."""

    def __init__(self, size, colours, classes):
        super().__init__()
        from torchvision.models import resnet18

        self.lift = nn.Sequential(nn.Linear(classes, size**2), nn.Unflatten(1, (1, size, size)))
        self.resnet = resnet18(num_classes=1)
        self.resnet.conv1 = nn.Conv2d(colours + 1, 64, 7, 2, 3, bias=False)

    def forward(self, images, y):
        return self.resnet(torch.cat([images, self.lift(y)], dim=1))[:, 0], None


def init_weights(module):
    """Weights from N(0, 0.02), as in DCGAN. Those that spectral normalisation divides keep PyTorch's."""
    if isinstance(module, (nn.Conv2d, nn.ConvTranspose2d, nn.Linear)) and not hasattr(module, "parametrizations"):
        nn.init.normal_(module.weight, 0.0, 0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


def make_generator(args, colours, classes):
    """The generator that the flags ask for, with its first weights."""
    if args.arch == "resnet18":
        return PoolingGenerator(args.size, colours, classes, args.latent_dim, args.width)
    return Generator(args.size, colours, classes, args.latent_dim, args.width, args.class_scale).apply(init_weights)


def make_discriminator(args, colours, classes):
    """The discriminator that the flags ask for, with its first weights."""
    if args.arch == "resnet18":
        return ResNetDiscriminator(args.size, colours, classes)
    return Discriminator(args.size, colours, classes, args.width, args.d_norm, args.condition).apply(init_weights)


# ------------------------------------------------------------------------------------------------------ losses


def loss_d(scores, real, loss):
    """The discriminator's loss on pictures that are real, or on generated ones, averaged over the batch.

    hinge: max(0, 1 - s) and max(0, 1 + s): no gradient from pictures that it is sure of.
    logistic: -log D and -log(1 - D), where D = 1 / (1 + e^-s).
    """
    signed = scores.float() if real else -scores.float()
    return (F.relu(1 - signed) if loss == "hinge" else F.softplus(-signed)).mean()


def loss_g(scores, loss):
    """The generator's: -s for the hinge loss; else -log D ("non-saturating", Goodfellow et al., section 3)."""
    return (-scores.float() if loss == "hinge" else F.softplus(-scores.float())).mean()


def slope_at_real(discriminator, real, y):
    """R1 without its weight: E |grad score(x)|^2 at real pictures x (Mescheder et al. 2018, 1801.04406, equation 9).

    It damps the game near its solution: where generated pictures equal the real ones, a slope only pushes them away.
    real: (N, C, H, W) float32. Returns a float32 scalar that can be differentiated.
    """
    x = real.detach().requires_grad_()
    # A score depends on its own picture only, so the gradient of their sum holds the gradient of each. Without
    # autocast: squares of bf16 numbers lose too much.
    (gradient,) = torch.autograd.grad(discriminator(x, y)[0].sum(), x, create_graph=True)
    return gradient.square().sum((1, 2, 3)).mean()


def augmented(images):
    """Random brightness, saturation and contrast, a shift by up to an eighth of the side, and a grey square over a
    quarter of the picture: other ones for each picture (Zhao et al. 2020, 2006.10738).

    With few real pictures the discriminator learns them by heart. Changed at random they are many, and as generated
    ones are changed alike and the gradient passes through, the generator is not taught the changes.
    """
    n, _, side, _ = images.shape

    def drawn(low, high):
        return torch.rand(n, 1, 1, 1, device=images.device) * (high - low) + low

    images = images + drawn(-0.5, 0.5)
    grey = images.mean(1, keepdim=True)
    images = torch.lerp(grey, images, drawn(0, 2))
    mean = images.mean((1, 2, 3), keepdim=True)
    images = torch.lerp(mean, images, drawn(0.5, 1.5))

    # The shift: row i of the result is row i + shift of the picture, and 0, which is grey, outside of it.
    places = torch.arange(side, device=images.device)
    reach = side // 8
    for axis in (2, 3):
        source = places + torch.randint(-reach, reach + 1, (n, 1), device=images.device)  # (N, side)
        inside = ((source >= 0) & (source < side)).to(images.dtype)
        shape = (n, 1, side, 1) if axis == 2 else (n, 1, 1, side)
        index = source.clamp(0, side - 1).view(shape).expand_as(images)
        images = images.gather(axis, index) * inside.view(shape)

    # The square: half the side, its middle anywhere.
    def hidden(shape):
        offset = places - torch.randint(0, side, (n, 1), device=images.device) + side // 4
        return ((offset >= 0) & (offset < side // 2)).view(shape)

    return images * ~(hidden((n, 1, side, 1)) & hidden((n, 1, 1, side)))


# -------------------------------------------------------------------------------------------------- train step


def schedule(step, args):
    """What changes from step to step, which counts from 0: the factor of the learning rates, the deviation of the
    instance noise (Sonderby et al. 2016, 1610.04490), None once it has gone, and which of the step's updates of the
    discriminator take R1: one in r1_every."""
    updates = range(step * args.d_steps, (step + 1) * args.d_steps)
    return {
        "decay": args.lr_decay**step,
        "sigma": args.noise * max(0.0, 1 - step / args.noise_steps) or None,
        "r1": tuple(args.r1 > 0 and update % args.r1_every == 0 for update in updates),
    }


def train_step(now, args, batches, generator, discriminator, opt_g, opt_d, average, autocast):
    """One step: d_steps updates of the discriminator, then g_steps of the generator. now: what schedule() returns.

    Returns float32 on the device, in the order of losses_of(args), of the last update of each. Generated pictures have
    the classes of the batch, so every class is as frequent among them as among the real ones; fresh latents for every
    update. Nothing here waits for the device.
    """
    device = batches.device

    def seen(images):
        images = augmented(images) if args.augment else images
        return images if now["sigma"] is None else images + now["sigma"] * torch.randn_like(images)

    for optimiser, lr in ((opt_g, args.lr_g or args.lr), (opt_d, args.lr_d or args.lr)):
        for group in optimiser.param_groups:
            group["lr"] = lr * now["decay"]

    # Real and fake go through the discriminator separately, because BatchNorm takes statistics over a batch, and a
    # mixed batch would tell the two apart by them.
    r1 = torch.zeros((), device=device)
    for takes_r1 in now["r1"]:
        real, labels = next(batches)
        y = one_hot(labels, len(batches.classes))
        with autocast():
            with torch.no_grad():
                fake = generator(torch.randn(args.batch, args.latent_dim, device=device), y)
            on_real, class_real = discriminator(seen(real), y)
            on_fake, class_fake = discriminator(seen(fake.float()), y)
        d_real, d_fake = loss_d(on_real, True, args.loss), loss_d(on_fake, False, args.loss)
        total = d_real + d_fake
        if class_real is not None:  # the guess of the class; on both kinds of pictures it is Odena et al., equation 3
            of_real, of_fake = (F.cross_entropy(guess.float(), labels) for guess in (class_real, class_fake))
            total = total + of_real + (of_fake if args.class_from == "both" else 0)
        # R1 at every few updates only, and as many times as strong ("lazy": Karras et al. 2020, 1912.04958, appendix B)
        if takes_r1:
            slope = args.r1_every * slope_at_real(discriminator, seen(real), y)
            total = total + args.r1 / 2 * slope
            r1 += slope.detach() / args.d_steps
        opt_d.zero_grad()
        total.backward()
        opt_d.step()

    # The generator. `inputs=` leaves the discriminator's own gradients out, which nobody needs here.
    for _ in range(args.g_steps):
        with autocast():
            fake = generator(torch.randn(args.batch, args.latent_dim, device=device), y)
            on_fake, guess = discriminator(seen(fake.float()), y)
        g_loss = loss_g(on_fake, args.loss)
        total = g_loss
        if guess is not None:
            total = total + F.cross_entropy(guess.float(), labels)
        if args.similarity > 0:
            similarity = F.mse_loss(fake.float(), real)
            total = total + args.similarity * similarity
        opt_g.zero_grad()
        total.backward(inputs=list(generator.parameters()))
        opt_g.step()

    if average is not None:
        update_average(average, generator, args.ema)
    found = [d_real, d_fake, g_loss]
    found += [of_real, of_fake] if class_real is not None else []
    found += [r1] if args.r1 > 0 else []
    found += [similarity] if args.similarity > 0 else []
    return torch.stack(found).detach()


LOSSES = ("loss_d_real", "loss_d_fake", "loss_g")


def losses_of(args):
    """The columns of log.csv. class_real and class_fake: cross-entropies of the discriminator's guess, ln(classes) when
    it knows nothing. r1: E |grad score|^2; 0 where it was not taken and --r1-every times as much where it was, so that
    the mean over many steps is right. similarity: mean squared error between generated and real pictures."""
    guesses = args.arch == "dcgan" and args.condition == "auxiliary"
    return (*LOSSES, *("class_real", "class_fake") * guesses, *("r1",) * (args.r1 > 0),
            *("similarity",) * (args.similarity > 0))  # fmt: skip


# ------------------------------------------------------------------------------------------- using a checkpoint


def load_generator(checkpoint, device="cpu"):
    """Checkpoint dict -> the trained generator in eval mode: BatchNorm uses its running statistics, so that a picture
    depends on its own latent and class only and not on the others in its batch."""
    data = checkpoint["data"]
    generator = make_generator(flags_of(checkpoint, FLAGS), data["channels"], len(data["classes"]))
    generator.load_state_dict(checkpoint["networks"].get("ema") or checkpoint["networks"]["generator"])
    return generator.to(device, memory_format=layout(device)).eval()


@torch.no_grad()
def pictures(generator, z, y):
    """Latents and classes -> uint8 (N, colours, size, size) on the CPU, 100 at a time."""
    device = next(generator.parameters()).device
    parts = zip(z.split(100), y.split(100), strict=True)
    return torch.cat([to_uint8(generator(z.to(device), y.to(device))).cpu() for z, y in parts])


def generate(checkpoint, n, seed=0, device="cpu", label=None):
    """n pictures, uint8 (n, colours, size, size), the same for the same seed.

    label: the number of a class; None: classes as frequent as in the data, those of random_labels.
    """
    inputs = class_inputs(checkpoint["data"]["counts"], n, checkpoint["flags"]["latent_dim"], seed, label)
    return pictures(load_generator(checkpoint, device), *inputs)


def interpolate(checkpoint, rows, frames, kind="spherical", seed=0, device="cpu", label=None):
    """rows walks of `frames` pictures: uint8 (rows * frames, colours, size, size).

    kind "spherical" or "linear": between two random latents, in one class, which is `label` or the next for every row.
    kind "classes": between that class and the next, with one random latent.
    """
    classes = len(checkpoint["data"]["classes"])
    first = torch.arange(rows) % classes if label is None else torch.full((rows,), label)
    y = one_hot(first, classes).repeat_interleave(frames, 0)
    if kind == "classes":
        z = latents(rows, checkpoint["flags"]["latent_dim"], seed).repeat_interleave(frames, 0)
        other = one_hot((first + 1) % classes, classes).repeat_interleave(frames, 0)
        y = torch.lerp(y, other, torch.linspace(0, 1, frames).repeat(rows)[:, None])
    else:
        z = walks(rows, frames, checkpoint["flags"]["latent_dim"], kind, seed)
    return pictures(load_generator(checkpoint, device), z, y)


# -------------------------------------------------------------------------------------------------------- main


def main(args):
    if args.load:
        return use_generator(SCRIPT, args, generate, interpolate)
    idle = {"condition", "class_from", "class_scale", "d_norm"} if args.arch == "resnet18" else set()
    idle |= {"class_from"} if args.condition == "projection" else set()
    if idle := idle & set(args.explicit):
        other = "arch resnet18" if args.arch == "resnet18" else "condition projection"
        raise InputError(f"--{min(idle).replace('_', '-')} does nothing with --{other}: leave it out")
    if args.r1 > 0 and (args.arch == "resnet18" or args.d_norm == "batch"):
        why = "behind BatchNorm a score depends on the whole batch"
        raise InputError(f"--r1 {args.r1} goes with --arch dcgan --d-norm spectral ({why}): --r1 0 turns it off")
    run = Run(SCRIPT, args, FLAGS, PRESETS, losses_of, updates="d_steps")
    args, device, colours, classes = run.args, run.device, run.data.images.shape[1], len(run.data.classes)

    # The seed fixes weights and latents; the fixed latents of the pictures have a generator of their own.
    torch.manual_seed(args.seed)
    generator = make_generator(args, colours, classes)
    discriminator = make_discriminator(args, colours, classes)
    if args.dry_run:
        y = one_hot(torch.zeros(2, dtype=torch.int64), classes)
        describe(generator, torch.zeros(2, args.latent_dim), y)
        describe(discriminator, torch.zeros(2, colours, args.size, args.size), y)
        return run.plan()
    networks = {"generator": generator, "discriminator": discriminator}
    average = None
    if args.ema > 0:
        average = networks["ema"] = copy.deepcopy(generator)
    for network in networks.values():
        network.to(device, memory_format=layout(device))

    def adam(network, lr):
        # beta1 0.5: with Adam's usual 0.9 the game oscillates (see dcgan.py). Without decay AdamW is Adam
        return torch.optim.AdamW(
            network.parameters(), lr, (args.beta1, 0.999), weight_decay=args.weight_decay, **adam_kernel(device)
        )

    opt_g, opt_d = adam(generator, args.lr_g or args.lr), adam(discriminator, args.lr_d or args.lr)
    shown = generator if average is None else average  # whose pictures are shown and measured
    fixed = class_rows(classes, args.latent_dim, args.seed + 1)  # of the samples

    def pictures_now(z, y):
        images = pictures(shown.eval(), z, y)
        shown.train()
        return images

    def sample():
        save_picture(grid(pictures_now(*fixed), 8), run.path / "samples" / f"{run.step:06d}.png")

    def fakes(n):
        return pictures_now(*class_inputs(run.about["counts"], n, args.latent_dim, args.seed + 2))

    with run.opened(networks, {"generator": opt_g, "discriminator": opt_d}, sample, fakes):
        ours = generator, discriminator, opt_g, opt_d, average
        train = Captured(train_step, schedule, args, run.batches, *ours, run.autocast)
        for step in run.steps():
            run.record(train(step))
    run.finish(generate)


if __name__ == "__main__":
    run_program(f"{SCRIPT}.py", main, ARGS)
