# /// script
# requires-python = ">=3.10"
# dependencies = ["torch>=2.6", "torchvision", "numpy", "scipy", "pillow", "tqdm", "matplotlib"]
# ///
"""Conditional GAN: a generator that is told the class, and a discriminator that checks it.

As in dcgan.py, a generator and a discriminator are trained against each other. Here the generator
is also given the class y. It must lose if it ignores y, so the discriminator judges the class, too,
in one of two ways:

    --condition auxiliary    It has a second output, a guess of the class, and both networks want
                             that guess to be right (Odena, Olah, Shlens 2017, arXiv 1610.09585).
                             With --class-from both, the discriminator learns the classes from real
                             and generated images, as in that paper. Then the two networks can
                             agree on classes that nobody else sees. With --class-from real, it
                             learns them from real images only.
    --condition projection   It is given y, and its score is <e(y), h(x)> + w h(x), where h(x) are
                             features of the image and e(y) is an embedding of the class (Miyato,
                             Koyama 2018, 1802.05637).

    z (256), embedding of y (128)                  image (3, 64, 64)
      | Linear                                       | Conv 4x4 stride 2, LeakyReLU 0.2
    (8f, 4, 4)                                     (f, 32, 32)
      | ConvTranspose 4x4 stride 2                   |
    (4f, 8, 8)    BatchNorm of class y, ReLU       (2f, 16, 16)
      |                                              |
    (2f, 16, 16)  BatchNorm of class y, ReLU       (4f, 8, 8)
      |                                              |
    (f, 32, 32)   BatchNorm of class y, ReLU       (8f, 4, 4), averaged over positions: (8f)
      | ConvTranspose 4x4 stride 2                   | Linear, Linear
    image (3, 64, 64), tanh                        score (1), class (5)          f = --width

In the generator, the class sets the gain and offset of every BatchNorm (Dumoulin, Shlens, Kudlur
2017, 1610.07629).

    --d-norm spectral   The weight of every layer of the discriminator, as a matrix, is divided by
                        its largest singular value. That bounds the slope of the score (Miyato,
                        Kataoka, Koyama, Yoshida 2018, 1802.05957).
    --d-norm batch      BatchNorm, as in dcgan.py.
    --pooling none      The discriminator does not average over the 4x4 positions. Its last layers
                        see all 128f features, so they can tell where a thing is, as in dcgan.py.
    --loss hinge        max(0, 1 - s) on the scores s of real images and max(0, 1 + s) on those of
                        generated ones (Lim, Ye 2017, 1705.02894).
    --loss logistic     -log D and -log(1 - D) with D = 1 / (1 + e^-s), as in dcgan.py (Goodfellow
                        et al. 2014, 1406.2661).

    python cgan.py                                        # built-in shapes: 3 minutes on two cores
    python cgan.py --data photos/ --size 64 --epochs 100  # your own images: sub-folders are classes
    python sample.py runs/cgan-shapes-1 --count 64 --class star --to stars.png

Presets: animals reproduces R0b, a student report (see README.md); best has better settings for
the same data. Time: at width 64 and 64 pixels, one update of each network costs 2.5 GFLOP per
image, as in dcgan.py.

If you copy this for coursework: take training.py, datasets.py and sources.py along (folders.py for
images in a folder, zip or tar; metrics.py and inception.py for FID; report.py and sample.py for
plots). What makes it a conditional GAN is in `Generator`, `Discriminator`, the losses and the two
update steps; change those. `main` is the whole loop.
"""

import signal

if __name__ == "__main__":  # Ctrl-C during the imports is silent; run_program takes over later
    signal.signal(signal.SIGINT, signal.SIG_DFL)

import copy
import functools
from itertools import pairwise
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils.parametrizations import spectral_norm

import datasets
import training
from sources import InputError, new_parser, number, printable, run_program

SCRIPT = Path(__file__).stem
EMBEDDING = 128  # length of the embedding of a class

R0 = {"protocol": "R0: 100 epochs of 13,500 images; pictures and loss curves, no number"}

# A preset only sets defaults: a flag on the command line wins. "report" holds published numbers.
PRESETS = {
    "shapes": dict(  # what `python cgan.py` alone runs: small enough for a laptop without a GPU
        data="shapes", size=32, width=24, latent_dim=64, batch=32, steps=4000, lr=2e-3, lr_d=1e-3,
        ema=0.998, class_scale=1 / 128, condition="projection", d_norm="batch", pooling="none",
        loss="logistic", upsample="nearest", sample_every=200, save_every=500,
    ),
    # R0b. Stated: networks, 2e-4, batch, epochs, R1, noise, unequal numbers of updates, a
    # discriminator slower than the generator. Ours: how much of each
    "animals": dict(
        data="animals", size=64, width=64, latent_dim=256, batch=128, epochs=100, lr=2e-4,
        lr_d=1e-4, g_steps=2, r1=1.0, noise=0.1, noise_steps=5000, fit="squash",
        report=R0,
    ),
    # The same images, and networks of the same size: see docs/results/best.md
    "best": dict(
        data="animals", size=64, width=64, latent_dim=128, batch=128, epochs=100, lr=5e-4,
        lr_d=2.5e-4, ema=0.999, class_scale=1 / 128, class_from="real", d_norm="batch",
        pooling="none", loss="logistic", upsample="nearest", flip=True, shift=True, fit="squash",
        report=R0,
    ),
}  # fmt: skip


def add_own_flags(parser):
    """The flags of this model."""
    add = parser.groups["model"].add_argument
    rate = number(float, 1e-12)
    whole = number(int, 1)
    weight = number(float, 0)
    add("--width", type=whole, default=64, help="base channels, f in the drawing")
    add("--latent-dim", type=whole, default=256, help="length of z")
    choices = ["auxiliary", "projection"]
    words = "how the discriminator uses the class"
    add("--condition", choices=choices, default="auxiliary", help=words)
    words = "images from which --condition auxiliary learns the classes"
    add("--class-from", choices=["both", "real"], default="both", help=words)
    words = "factor on the embedding in the generator, see `Generator`"
    add("--class-scale", type=rate, default=1.0, help=words)
    words = "normalization in the discriminator"
    add("--d-norm", choices=["spectral", "batch"], default="spectral", help=words)
    words = "over positions, before the discriminator's last layers"
    add("--pooling", choices=["mean", "none"], default="mean", help=words)
    choices = ["transposed", "nearest"]
    words = "how the generator doubles the side, see `Generator`"
    add("--upsample", choices=choices, default="transposed", help=words)
    add = parser.groups["training"].add_argument
    add("--lr", type=rate, default=2e-4, help="learning rate of both networks")
    add("--lr-g", type=rate, help="that of the generator alone [--lr]")
    add("--lr-d", type=rate, help="that of the discriminator alone [--lr]")
    add("--g-steps", type=whole, default=1, help="generator updates per step")
    add("--d-steps", type=whole, default=1, help="discriminator updates per step")
    add("--beta1", type=number(float, 0, 1), default=0.5, help="beta1 of Adam (momentum)")
    add("--weight-decay", type=weight, default=0.0, help="Adam's L2 term")
    words = "of real against generated images"
    add("--loss", choices=["hinge", "logistic"], default="hinge", help=words)
    words = "weight of the penalty on the slope at real images"
    add("--r1", type=weight, default=0.0, help=words)
    words = "take the penalty at every N-th update only, with N times the weight"
    add("--r1-every", type=whole, default=16, help=words)
    words = "standard deviation of noise on images"
    add("--noise", type=weight, default=0.0, help=words)
    words = "steps until the noise has faded to 0"
    add("--noise-steps", type=whole, default=10_000, help=words)
    add("--shift", action="store_true", help="show the discriminator randomly shifted images")
    add("--no-shift", dest="shift", action="store_false", help="show them as they are")
    words = "show the discriminator randomly colored, shifted and covered images"
    add("--augment", action="store_true", help=words)
    add("--flip", action="store_true", help="mirror training images at random")
    add("--no-flip", dest="flip", action="store_false", help="leave them as they are")
    add("--balance", action="store_true", help="draw every class equally often")


def parse_args(argv=None):
    """Command line -> (Namespace, set of the names of the flags that were typed)."""
    parser = new_parser(f"{SCRIPT}.py", __doc__)
    add_own_flags(parser)
    training.add_run_flags(parser, PRESETS)
    args, typed = training.parse(parser, PRESETS, SCRIPT, argv)
    if args.condition == "projection" and "class_from" in typed:
        raise InputError("--class-from does nothing with --condition projection: leave it out")
    if args.r1 > 0 and args.d_norm == "batch":
        why = "behind BatchNorm a score depends on the whole batch"
        raise InputError(f"--r1 {args.r1} needs --d-norm spectral ({why}): --r1 0 turns it off")
    return args, typed


# --------------------------------------------------------------------------------------- networks
# Images are (N, channels, size, size) in [-1, 1]. Classes y are float32 (N, classes): one-hot, or a
# mixture of two classes, whose embedding is then a mixture, too.


class ConditionalBatchNorm(nn.Module):
    """BatchNorm with a gain and an offset for every class, both linear in an embedding of its own.

    class_scale multiplies the embedding: see Generator.
    """

    def __init__(self, channels, classes, class_scale):
        super().__init__()
        self.class_scale = class_scale
        self.norm = nn.BatchNorm2d(channels, affine=False)
        self.embedding = nn.Embedding(classes, EMBEDDING)
        self.gain = nn.Linear(EMBEDDING, channels)
        self.offset = nn.Linear(EMBEDDING, channels)

    def forward(self, x, y):
        embedding = self.class_scale * (y @ self.embedding.weight)  # (N, EMBEDDING)
        gain = 1 + self.gain(embedding)  # (N, channels)
        offset = self.offset(embedding)
        return torch.addcmul(offset[..., None, None], gain[..., None, None], self.norm(x))


class Generator(nn.Module):
    """z (N, latent_dim) and y (N, classes) -> images.

    class_counts: how many images each class has in the data. class_scale multiplies all embeddings.
    upsample: what doubles the side. "transposed": a 4x4 transposed convolution. "nearest": every
    pixel repeated, then a 3x3 convolution, which makes no checkerboard.

    Why a scale? An embedding is 128 numbers that are the same for all images of a class. Adam moves
    each of the 128 weights behind a gain by about the learning rate, all in the direction that
    helps at this moment. At scale 1 the gain itself then moves about 100 times as fast as that of a
    plain BatchNorm: every class chases its best single image, and z is forgotten. At scale 1/128 it
    moves as any other weight does.
    """

    def __init__(
        self, size, channels, class_counts, latent_dim, width, class_scale, upsample="transposed"
    ):
        super().__init__()
        self.latent_dim = latent_dim
        self.class_counts = class_counts
        self.classes = len(class_counts)
        self.class_scale = class_scale
        self.embedding = nn.Embedding(self.classes, EMBEDDING)
        widths = training.layer_widths(size, width)  # at size 64, width 64: 512, 256, 128, 64
        self.first = nn.Linear(latent_dim + EMBEDDING, widths[0] * 16)
        up = functools.partial(nn.ConvTranspose2d, kernel_size=4, stride=2, padding=1)
        if upsample == "nearest":
            up = training.UpsampleConv2d
        self.ups = nn.ModuleList()
        self.norms = nn.ModuleList()
        for in_channels, out_channels in pairwise(widths):
            # the side doubles, the channels halve
            self.ups.append(up(in_channels, out_channels, bias=False))
            norm = ConditionalBatchNorm(out_channels, self.classes, class_scale)
            self.norms.append(norm)
        self.last = up(widths[-1], channels)

    def forward(self, z, y):
        embedding = self.class_scale * (y @ self.embedding.weight)  # (N, EMBEDDING)
        h = self.first(torch.cat([z, embedding], dim=1))
        h = h.unflatten(1, (-1, 4, 4))  # (N, 8f, 4, 4)
        for up, norm in zip(self.ups, self.norms, strict=True):
            h = F.relu(norm(up(h), y))
        return torch.tanh(self.last(h))  # (N, channels, size, size)


class Discriminator(nn.Module):
    """Images and y -> scores (N,), and logits of the class (N, classes), or None with projection.

    norm: "spectral" divides each weight, as a matrix (out_channels, all else), by its largest
    singular value. That bounds the slope of a layer, to 1 for the linear ones and to 2 for these
    convolutions, so the score cannot run away. "batch" is DCGAN's BatchNorm in all layers but the
    first. It notices a batch of images that are too similar.
    pooling: what becomes of the 4x4 positions. "mean" averages over them; "none" keeps them all.
    """

    def __init__(self, size, channels, classes, width, norm, condition, pooling="mean"):
        super().__init__()
        self.condition = condition
        self.pooling = pooling
        wrapped = spectral_norm if norm == "spectral" else nn.Identity()
        layers = []
        in_channels = channels
        for out_channels in training.layer_widths(size, width)[::-1]:  # 64, 128, 256, 512
            layers.append(wrapped(nn.Conv2d(in_channels, out_channels, 4, 2, 1)))  # half the side
            if norm == "batch" and len(layers) > 1:
                layers.append(nn.BatchNorm2d(out_channels))
            layers.append(nn.LeakyReLU(0.2, inplace=True))
            in_channels = out_channels
        self.layers = nn.Sequential(*layers)  # (N, 8f, 4, 4)
        if pooling == "none":
            in_channels *= 16
        self.score = wrapped(nn.Linear(in_channels, 1))
        # for the auxiliary guess its logits; for the projection row y of its weight is e(y)
        bias = condition == "auxiliary"
        self.class_layer = wrapped(nn.Linear(in_channels, classes, bias=bias))

    def forward(self, images, y):
        h = self.layers(images)
        h = h.mean((2, 3)) if self.pooling == "mean" else h.flatten(1)  # (N, 8f or 128f)
        score = self.score(h)[:, 0]
        class_logits = self.class_layer(h)
        if self.condition == "projection":
            return score + (class_logits * y).sum(1), None
        return score, class_logits


def init_weights(module):
    """Weights from N(0, 0.02), as in DCGAN. Those with spectral normalization keep PyTorch's."""
    if hasattr(module, "parametrizations"):
        return
    if isinstance(module, (nn.Conv2d, nn.ConvTranspose2d, nn.Linear)):
        nn.init.normal_(module.weight, 0.0, 0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


# ----------------------------------------------------------------------------------------- losses


def loss_d(scores, real, loss):
    """The discriminator's loss on real or on generated images, averaged over the batch.

    hinge: max(0, 1 - s) and max(0, 1 + s), no gradient from images that it is sure of.
    logistic: -log D and -log(1 - D), where D = 1 / (1 + e^-s).
    """
    scores = scores.float()
    signed = scores if real else -scores
    if loss == "hinge":
        return F.relu(1 - signed).mean()
    return F.softplus(-signed).mean()


def loss_g(scores, loss):
    """The generator's loss, averaged over the batch. hinge: -s. logistic: -log D, which is called
    "non-saturating" (Goodfellow et al., section 3)."""
    scores = scores.float()
    if loss == "hinge":
        return -scores.mean()
    return F.softplus(-scores).mean()


def class_loss(class_logits, labels):
    """Cross-entropy of the guess of the class, ln(classes) for one that knows nothing.

    0 where the discriminator does not guess (--condition projection).
    """
    if class_logits is None:
        return torch.zeros((), device=labels.device)
    return F.cross_entropy(class_logits.float(), labels)


def slope_at_real(discriminator, real, y):
    """R1 without its weight: E |grad score(x)|^2 at real images x.

    (Mescheder, Geiger, Nowozin 2018, 1801.04406, equation 9.) It damps the game near its solution:
    where generated images equal the real ones, a slope only pushes them away.
    real: (N, C, H, W) float32. Returns a float32 scalar that can be differentiated.
    """
    x = real.detach().requires_grad_()
    # A score depends on its own image only, so the gradient of their sum holds the gradient of
    # each. Without autocast, because squares of bf16 numbers lose too much.
    scores, _ = discriminator(x, y)
    (gradient,) = torch.autograd.grad(scores.sum(), x, create_graph=True)
    return gradient.square().sum((1, 2, 3)).mean()


def diff_augment(images):
    """All random changes of Zhao et al., other ones for each image: brightness, saturation,
    contrast, a shift, and a gray square over a quarter of the image. images: see training.shifted.
    """
    n, _, size, _ = images.shape
    device = images.device

    def uniform(low, high):
        values = torch.rand(n, 1, 1, 1, device=device)
        return values * (high - low) + low

    images = images + uniform(-0.5, 0.5)
    gray = images.mean(1, keepdim=True)
    images = torch.lerp(gray, images, uniform(0, 2))
    mean = images.mean((1, 2, 3), keepdim=True)
    images = torch.lerp(mean, images, uniform(0.5, 1.5))

    images = training.shifted(images)
    positions = torch.arange(size, device=device)

    # The square. Its side is half that of the image, its center is anywhere.
    def covered():
        center = torch.randint(0, size, (n, 1), device=device)
        offset = positions - center + size // 4
        return (offset >= 0) & (offset < size // 2)  # (N, size)

    rows = covered()[:, None, :, None]
    columns = covered()[:, None, None]
    return images * ~(rows & columns)


def as_seen(images, args, sigma):
    """Images as the discriminator sees them: augmented, with instance noise (Sonderby et al. 2016,
    1610.04490). sigma: tensor, or None for no noise."""
    if args.augment:
        images = diff_augment(images)
    elif args.shift:
        images = training.shifted(images)
    if sigma is None:
        return images
    return images + sigma * torch.randn_like(images)


# ---------------------------------------------------------------------------------------- updates


def discriminator_step(
    generator, discriminator, optimizer, autocast, args, real, labels, sigma, take_r1=False
):
    """One update of the discriminator. The generated images have the classes of the batch, so that
    every class is as frequent among them as among the real ones.

    real: (N, C, H, W) in [-1, 1]; labels: int64 (N,); sigma: of the noise, or None; take_r1:
    whether this update takes the penalty R1. Returns five tensors on the device: the losses of the
    score on real and on generated images, those of the class on both, and R1 without its weight.
    """
    y = training.one_hot(labels, generator.classes)
    z = torch.randn(len(real), generator.latent_dim, device=real.device)
    # Real and generated images go through the discriminator separately. In a mixed batch, BatchNorm
    # would normalize both with shared statistics.
    with autocast():
        with torch.no_grad():
            fake = generator(z, y).float()
        real_score, real_class = discriminator(as_seen(real, args, sigma), y)
        fake_score, fake_class = discriminator(as_seen(fake, args, sigma), y)
    d_real = loss_d(real_score, True, args.loss)
    d_fake = loss_d(fake_score, False, args.loss)
    class_real = class_loss(real_class, labels)
    class_fake = class_loss(fake_class, labels)
    loss = d_real + d_fake + class_real
    if args.class_from == "both":  # Odena et al., equation 3
        loss = loss + class_fake
    # At one update in r1_every only, and then r1_every times as strong: "lazy" (Karras et al. 2020,
    # 1912.04958, appendix B). So the mean of `slope` over many updates is right.
    slope = torch.zeros((), device=real.device)
    if take_r1:
        seen = as_seen(real, args, sigma)
        slope = args.r1_every * slope_at_real(discriminator, seen, y)
        loss = loss + args.r1 / 2 * slope
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    losses = (d_real, d_fake, class_real, class_fake, slope)
    return tuple(value.detach() for value in losses)


def generator_step(generator, discriminator, optimizer, autocast, args, labels, sigma):
    """One update with fresh latents: the images should pass for real, and show their class.

    Returns the loss of the score.
    """
    y = training.one_hot(labels, generator.classes)
    z = torch.randn(len(labels), generator.latent_dim, device=labels.device)
    with autocast():
        fake = generator(z, y).float()
        score, class_logits = discriminator(as_seen(fake, args, sigma), y)
    g_loss = loss_g(score, args.loss)
    loss = g_loss + class_loss(class_logits, labels)
    optimizer.zero_grad()
    # `inputs=` leaves the discriminator's own gradients out: they would be thrown away
    loss.backward(inputs=list(generator.parameters()))
    optimizer.step()
    return g_loss.detach()


# ------------------------------------------------------------------------------- a trained model


def load_model(checkpoint, device="cpu", weights="ema"):
    """Checkpoint dict -> the trained generator in eval mode.

    In eval mode BatchNorm uses its running statistics, so an image depends on its own latent and
    class only and not on the others in its batch. weights: "ema" (averaged, if there are any) or
    "plain".
    """
    flags = checkpoint["flags"]
    data = checkpoint["data"]
    upsample = flags.get("upsample", "transposed")  # checkpoints from before the flag have none
    sizes = (flags["latent_dim"], flags["width"], flags["class_scale"], upsample)
    generator = Generator(flags["size"], data["channels"], data["counts"], *sizes)
    states = checkpoint["models"]
    name = "ema" if weights == "ema" and "ema" in states else "generator"
    generator.load_state_dict(states[name])
    return generator.to(device, memory_format=datasets.layout(device)).eval()


def asked_labels(generator, n, seed, first=0):
    """The classes that generate() draws: int64 (n,), each as likely as it is in the data."""
    return training.random_labels(generator.class_counts, n, seed, first)


def generate(generator, n, seed=0, first=0, label=None):
    """Images number first .. first + n - 1 of the sequence with this seed, uint8 on the CPU.

    label: the index of a class; None: those of asked_labels.
    """
    z = training.latents(n, generator.latent_dim, seed, first)
    labels = asked_labels(generator, n, seed, first)
    if label is not None:
        labels = torch.full((n,), label)
    return training.to_images(generator, z, training.one_hot(labels, generator.classes))


WALKS = ("spherical", "linear", "classes")


def walk(generator, kind, rows, frames, seed=0, label=None):
    """rows walks of `frames` images, row after row: uint8 (rows * frames, channels, size, size).

    kind "spherical" or "linear": from one random latent to another, in one class. This is `label`,
    or another class for each row.
    kind "classes": from that class to the next, with one random latent.
    """
    sizes = (generator.latent_dim, generator.classes)
    z, y = training.class_walks(rows, frames, *sizes, kind, seed, label)
    return training.to_images(generator, z, y)


# ------------------------------------------------------------------------------------------- main


def draw(run, generator, seed):
    """samples/<step>.png: a row for each class, from the same eight latents each time."""
    run.wait()  # so that run.seconds counts training only
    if run.is_main:
        classes = generator.classes
        z, labels = training.class_rows(classes, generator.latent_dim, seed)
        images = training.to_images(generator, z, training.one_hot(labels, classes))
        picture = datasets.grid(images, columns=8)
        datasets.save_picture(picture, run.path / "samples" / f"{run.step:06d}.png")


def main(argv=None):
    args, typed = parse_args(argv)
    device, args.precision = training.pick_device(args.device, args.precision)
    autocast = functools.partial(training.autocast, device, args.precision)
    args.size = args.size or datasets.default_size(args.data)
    data, held_out = datasets.load_parts(
        args.data, args.size, fit=args.fit, per_class=args.limit_per_class
    )
    datasets.require_labels(data, args.data)
    batches = training.new_batches(args, typed, data, device, args.balance)  # sets args.batch
    per_epoch = batches.per_epoch / args.d_steps  # steps, maybe not a whole number
    total = args.steps or max(1, round(args.epochs * per_epoch))
    sample_every = args.sample_every or max(100, round(per_epoch))
    save_every = args.save_every or max(100, round(per_epoch))

    # The seed fixes the weights and latents. The latents of the pictures have seeds of their own.
    torch.manual_seed(args.seed)
    channels = data.images.shape[1]
    counts = datasets.class_counts(data)
    sizes = (args.latent_dim, args.width, args.class_scale, args.upsample)
    generator = Generator(args.size, channels, counts, *sizes).apply(init_weights)
    kind = (args.d_norm, args.condition, args.pooling)
    discriminator = Discriminator(args.size, channels, len(counts), args.width, *kind)
    discriminator.apply(init_weights)
    if args.dry_run:
        y = torch.zeros(2, len(counts))
        training.describe(generator, torch.zeros(2, args.latent_dim), y)
        training.describe(discriminator, torch.zeros(2, channels, args.size, args.size), y)
        return training.print_plan(args, data, total, per_epoch, device)
    models = {"generator": generator, "discriminator": discriminator}
    sampler = generator  # whose images are drawn and measured
    if args.ema > 0:
        sampler = models["ema"] = copy.deepcopy(generator)
    for model in models.values():
        model.to(device, memory_format=datasets.layout(device))

    # beta1 0.5: with Adam's usual 0.9 the game oscillates (see dcgan.py).
    adam = functools.partial(
        torch.optim.Adam,
        betas=(args.beta1, 0.999),
        weight_decay=args.weight_decay,
        **training.adam_options(device),
    )
    lr_g = args.lr_g or args.lr
    lr_d = args.lr_d or args.lr
    opt_g = adam(generator.parameters(), lr_g)
    opt_d = adam(discriminator.parameters(), lr_d)

    # On an NVIDIA GPU each update becomes a CUDA graph; elsewhere `captured` changes nothing.
    networks = (generator, discriminator)
    captured = functools.partial(training.captured, device=device, no_graph=args.no_graph)
    d_step = captured(functools.partial(discriminator_step, *networks, opt_d, autocast, args))
    g_step = captured(functools.partial(generator_step, *networks, opt_g, autocast, args))
    if args.ema > 0:
        ema_step = captured(functools.partial(training.update_ema, sampler, generator))
        ema_labels = training.random_labels(counts, 1000, args.seed + 4)
        ema_inputs = [
            training.latents(1000, args.latent_dim, args.seed + 4),
            training.one_hot(ema_labels, len(counts)),
        ]

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
        settings = {"dims": args.dims, "weights": weights, "device": device}
        measured = {**settings, "real_words": reference.words}

    optimizers = {"generator": opt_g, "discriminator": opt_d}
    # Makes the run directory, or on --resume loads the checkpoint and goes on where it stopped.
    with training.start(args, SCRIPT, data, batches, models, optimizers, total, per_epoch) as run:
        if run.step == 0:
            run.save("last.pt")
            draw(run, sampler, args.seed + 1)
            run.write_weights()
        while run.step < total and not run.should_stop():  # Ctrl-C, SIGTERM
            noise = args.noise * max(0.0, 1 - run.step / args.noise_steps)
            sigma = training.scalar(noise, device)
            training.set_lr(opt_g, lr_g * args.lr_decay**run.step)
            training.set_lr(opt_d, lr_d * args.lr_decay**run.step)
            r1 = torch.zeros((), device=device)  # the mean over the updates of this step
            for k in range(args.d_steps):
                real, labels = next(batches)
                if args.flip:
                    real = training.randomly_flipped(real)
                update = run.step * args.d_steps + k
                take_r1 = args.r1 > 0 and update % args.r1_every == 0
                *d_losses, slope = d_step(real, labels, sigma, take_r1=take_r1)
                r1 += slope / args.d_steps
            for _ in range(args.g_steps):
                g_loss = g_step(labels, sigma)
            if args.ema > 0:
                ema_step(training.ema_decay(args.ema, run.step, device))
            d_real, d_fake, class_real, class_fake = d_losses
            losses = {"loss_d_real": d_real, "loss_d_fake": d_fake, "loss_g": g_loss}
            if args.condition == "auxiliary":
                losses |= {"class_real": class_real, "class_fake": class_fake}
            if args.r1 > 0:
                losses["r1"] = r1
            run.count(**losses)  # step += 1

            last = run.step == total
            used = last or run.every(eval_every, sample_every, save_every, args.keep_every)
            if args.ema > 0 and used:  # averaged weights need BatchNorm statistics of their own
                training.recount_statistics(sampler, ema_inputs)
            scores = {}
            if metrics and eval_every and (last or run.every(eval_every)):
                run.wait()
                fake = generate(sampler, len(reference.choose), args.seed + 2)
                scores = metrics.curve(reference.choose, fake, **measured)
                run.keep_best(scores, args.size, reference.choose)  # best.pt, if its FID is lowest
            # also at the end of an epoch, so that no row spans two epochs
            if last or run.every(args.log_every, eval_every, per_epoch):
                if args.noise > 0:
                    scores["noise"] = noise
                run.write_log(**scores)  # waits for the device; stops the run at NaN
            if last or run.every(sample_every):
                draw(run, sampler, args.seed + 1)
                run.write_weights()  # histograms of every layer
            if run.every(args.keep_every):
                run.keep("generator")  # kept/<step>.pt: weights to make images with later
            if last or run.every(save_every):
                run.save("last.pt")
        if run.step < total or run.should_stop():
            if args.ema > 0:
                training.recount_statistics(sampler, ema_inputs)
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
            # Is the class obeyed? Measured on more images, from another seed.
            n = metrics.conditional_count(data, args.eval_images)
            fake = generate(sampler, n, args.seed + 3)
            asked = asked_labels(sampler, n, args.seed + 3)
            settings["eval_images"] = args.eval_images
            values += metrics.conditional(data, held_out, fake, asked, **settings)
            metrics.write_result(run, values, PRESETS[args.preset])
        if plots := training.tool("report"):
            for path in plots.report(run.path, device=device):
                print(f"wrote {printable(path)}")
        return run.finish()  # says what to try next


if __name__ == "__main__":
    run_program(main)
