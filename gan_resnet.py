# /// script
# requires-python = ">=3.10"
# dependencies = ["torch>=2.6", "torchvision", "numpy", "scipy", "pillow", "tqdm", "matplotlib"]
# ///
"""GAN with a ResNet-18 as discriminator, with or without classes.

It is trained like dcgan.py, but with other networks. The discriminator is torchvision's ResNet-18
(He et al. 2016, arXiv 1512.03385), not pretrained, with one output. The generator ends in average
pooling and a linear layer:

    z (100)                                        image (3, 32, 32)
      | ConvTranspose 4x4                            | Conv 7x7 stride 2, BatchNorm, ReLU
    (4f, 4, 4)    BatchNorm, ReLU                  (64, 16, 16)
      | ConvTranspose 4x4 stride 2                   | max pooling stride 2
    (2f, 8, 8)    BatchNorm, ReLU                  (64, 8, 8)
      |                                              | eight residual blocks of two 3x3 convolutions
    (f, 16, 16)   BatchNorm, ReLU                  (512, 1, 1)
      | average pooling 2x2, Linear                  | Linear
    image (3, 32, 32), tanh                        logit (1)          f = --width

--conditional gives both networks the class y, a one-hot vector that linear layers lift to a larger
dimension. For the generator, z and y become 128 numbers each, and the first layer gets all 256. For
the discriminator, y becomes one more channel of the image. --similarity then adds to the
generator's loss the squared error between a generated image and a real one of the same class.

    python gan_resnet.py                               # built-in shapes: 3 minutes on two cores
    python gan_resnet.py --data photos/ --conditional  # your own images: sub-folders are classes
    python sample.py runs/gan_resnet-shapes-1 --class ring --to rings.png

Presets that reproduce the student reports (see README.md): cifar10 is R4a, cifar10-conditional is
R4b. Time: R4a trains on 120 images a second on one CPU core that computes in bf16. 50 epochs of
CIFAR-10 take six hours there.

If you copy this for coursework: take training.py, datasets.py and sources.py along (folders.py for
images in a folder, zip or tar; metrics.py and inception.py for FID; report.py and sample.py for
plots). What makes it this GAN is in `Generator`, `Discriminator`, the losses and the two update
steps; change those. `main` is the whole loop.
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
from torchvision.models import resnet18

import datasets
import training
from sources import InputError, new_parser, number, printable, run_program

SCRIPT = Path(__file__).stem
LIFTED = 128  # what z and y are lifted to in the conditional generator

R4 = {"protocol": "R4: 50 epochs of CIFAR-10; pictures and loss curves, no number"}

# A preset only sets defaults: a flag on the command line wins. "report" holds published numbers.
PRESETS = {
    # What `python gan_resnet.py` alone runs. Without the noise and the strong similarity term, the
    # discriminator wins within 250 steps, and the generator makes nothing but colored noise.
    "shapes": dict(
        data="shapes", size=32, width=8, latent_dim=32, batch=32, steps=600, lr=1e-3, lr_d=1e-4,
        ema=0.99, conditional=True, similarity=10.0, noise=0.3, noise_steps=1000,
        sample_every=50, save_every=300,
    ),
    # R4a. Stated: the networks in words, AdamW, rates, batch, epochs, two updates of the generator.
    # Ours: all sizes, torchvision's stem (made for 224 pixels), AdamW's usual momentum and decay
    "cifar10": dict(
        data="cifar10", size=32, width=64, latent_dim=100, batch=64, epochs=50, lr=5e-5, lr_d=2e-5,
        g_steps=2, beta1=0.9, weight_decay=0.01,
        report=R4,
    ),
    # R4b. Also stated: z and y are lifted, and there is a term of image similarity. Ours: to how
    # many numbers, and the weight of that term
    "cifar10-conditional": dict(
        data="cifar10", size=32, width=64, latent_dim=100, batch=64, epochs=50, lr=5e-5,
        g_steps=2, beta1=0.9, weight_decay=0.01, conditional=True, similarity=1.0,
        report=R4,
    ),
}  # fmt: skip


def parse_args(argv=None):
    """Command line -> (Namespace, set of the names of the flags that were typed)."""
    parser = new_parser(f"{SCRIPT}.py", __doc__)
    add = parser.groups["model"].add_argument
    rate = number(float, 1e-12)
    whole = number(int, 1)
    add("--width", type=whole, default=64, help="base channels, f in the drawing")
    add("--latent-dim", type=whole, default=100, help="length of z")
    add("--conditional", action="store_true", help="give both networks the class")
    add = parser.groups["training"].add_argument
    add("--lr", type=rate, default=2e-4, help="learning rate of both networks")
    add("--lr-g", type=rate, help="that of the generator alone [--lr]")
    add("--lr-d", type=rate, help="that of the discriminator alone [--lr]")
    add("--g-steps", type=whole, default=1, help="generator updates per step")
    add("--d-steps", type=whole, default=1, help="discriminator updates per step")
    add("--beta1", type=number(float, 0, 1), default=0.5, help="beta1 of Adam (momentum)")
    add("--weight-decay", type=number(float, 0), default=0.0, help="that of AdamW")
    words = "weight of the squared error to a real image of the class"
    add("--similarity", type=number(float, 0), default=0.0, help=words)
    words = "standard deviation of noise on images"
    add("--noise", type=number(float, 0), default=0.0, help=words)
    words = "steps until the noise has faded to 0"
    add("--noise-steps", type=whole, default=10_000, help=words)
    training.add_run_flags(parser, PRESETS)
    args, typed = training.parse(parser, PRESETS, SCRIPT, argv)
    if args.similarity > 0 and not args.conditional:
        raise InputError("--similarity compares images of one class: add --conditional")
    return args, typed


# --------------------------------------------------------------------------------------- networks
# Images are (N, channels, size, size) in [-1, 1]. Classes y are float32 (N, classes): one-hot, or a
# mixture of two classes. Without --conditional all images are of one class, and y is not used.


class Generator(nn.Module):
    """z (N, latent_dim) and y (N, classes) -> images.

    class_counts: how many images each class has in the data.
    """

    def __init__(self, size, channels, class_counts, latent_dim, width):
        super().__init__()
        self.latent_dim = latent_dim
        self.class_counts = class_counts
        self.classes = len(class_counts)
        self.conditional = self.classes > 1
        in_channels = latent_dim
        if self.conditional:
            self.lift_z = nn.Linear(latent_dim, LIFTED)
            self.lift_y = nn.Linear(self.classes, LIFTED)
            in_channels = 2 * LIFTED
        widths = training.layer_widths(size, width)  # at size 32, width 64: 256, 128, 64
        layers = [nn.ConvTranspose2d(in_channels, widths[0], 4, 1, 0, bias=False)]  # (N, 4f, 4, 4)
        for in_channels, out_channels in pairwise(widths):
            layers += [nn.BatchNorm2d(in_channels), nn.ReLU(inplace=True)]
            # the side doubles, the channels halve
            layers += [nn.ConvTranspose2d(in_channels, out_channels, 4, 2, 1, bias=False)]
        layers += [nn.BatchNorm2d(widths[-1]), nn.ReLU(inplace=True)]  # (N, f, size / 2, size / 2)
        layers += [nn.AvgPool2d(2), nn.Flatten()]  # (N, f * (size / 4)^2)
        layers += [nn.Linear(widths[-1] * (size // 4) ** 2, channels * size**2), nn.Tanh()]
        self.layers = nn.Sequential(*layers, nn.Unflatten(1, (channels, size, size)))

    def forward(self, z, y):
        if self.conditional:
            z = torch.cat([self.lift_z(z), self.lift_y(y)], dim=1)  # (N, 2 * LIFTED)
        return self.layers(z[:, :, None, None])


class Discriminator(nn.Module):
    """Images and y -> logits (N,): the log odds that each is real."""

    def __init__(self, size, channels, classes):
        super().__init__()
        self.conditional = classes > 1
        in_channels = channels
        if self.conditional:
            image = nn.Unflatten(1, (1, size, size))
            self.lift_y = nn.Sequential(nn.Linear(classes, size**2), image)
            in_channels += 1
        self.resnet = resnet18(num_classes=1)
        if in_channels != 3:
            self.resnet.conv1 = nn.Conv2d(in_channels, 64, 7, 2, 3, bias=False)

    def forward(self, images, y):
        if self.conditional:
            images = torch.cat([images, self.lift_y(y)], dim=1)  # (N, channels + 1, size, size)
        return self.resnet(images)[:, 0]


# Both networks keep PyTorch's and torchvision's initial weights.

# ----------------------------------------------------------------------------------------- losses


def loss_real(logits, conditional):
    """-log D(x), averaged over the batch. See loss_fake for the two ways to write it."""
    logits = logits.float()
    if conditional:
        return F.softplus(-logits).mean()
    return F.binary_cross_entropy_with_logits(logits, torch.ones_like(logits))


def loss_fake(logits, conditional):
    """-log(1 - D(G(z))), averaged over the batch.

    softplus(l) = log(1 + e^l) and binary cross-entropy are the same function here, but they round
    the last bit differently. Each mode keeps its own, so that older runs can be reproduced exactly.
    """
    logits = logits.float()
    if conditional:
        return F.softplus(logits).mean()
    return F.binary_cross_entropy_with_logits(logits, torch.zeros_like(logits))


def add_noise(images, sigma):
    """Instance noise (Sonderby et al. 2016, 1610.04490). sigma: tensor, or None for no noise."""
    if sigma is None:
        return images
    return images + sigma * torch.randn_like(images)


# ---------------------------------------------------------------------------------------- updates


def discriminator_step(generator, discriminator, optimizer, autocast, real, y, sigma):
    """One update: minimize -log D(x) - log(1 - D(G(z))).

    real: (N, C, H, W) in [-1, 1]; y: their classes (N, classes), which the generated images get,
    too; sigma: of the noise on both kinds of images, or None. Returns both losses, tensors on the
    device.
    """
    # Real and generated images go through the discriminator separately. In a mixed batch, BatchNorm
    # would normalize both with shared statistics.
    with autocast():
        logits = discriminator(add_noise(real, sigma), y)
        d_real = loss_real(logits, discriminator.conditional)
        z = torch.randn(len(real), generator.latent_dim, device=real.device)
        with torch.no_grad():
            fake = generator(z, y)
        logits = discriminator(add_noise(fake, sigma), y)
        d_fake = loss_fake(logits, discriminator.conditional)
    optimizer.zero_grad()
    (d_real + d_fake).backward()
    optimizer.step()
    return d_real.detach(), d_fake.detach()


def generator_step(generator, discriminator, optimizer, autocast, weight, real, y, sigma):
    """One update with fresh latents: minimize -log D(G(z)) + weight * mean((G(z) - x)^2).

    Each generated image is compared with the real image x of the batch that has its class. weight:
    that of --similarity, 0 without. Returns both terms, the second one without its weight.
    """
    z = torch.randn(len(real), generator.latent_dim, device=real.device)
    with autocast():
        fake = generator(z, y)
        logits = discriminator(add_noise(fake, sigma), y)
        g_loss = loss_real(logits, discriminator.conditional)
    error = F.mse_loss(fake.float(), real)
    loss = g_loss + weight * error if weight > 0 else g_loss
    optimizer.zero_grad()
    # `inputs=` leaves the discriminator's own gradients out: they would be thrown away, and are a
    # quarter of the work of this update.
    loss.backward(inputs=list(generator.parameters()))
    optimizer.step()
    return g_loss.detach(), error.detach()


# ------------------------------------------------------------------------------- a trained model


def load_model(checkpoint, device="cpu", weights="ema"):
    """Checkpoint dict -> the trained generator in eval mode.

    In eval mode BatchNorm uses its running statistics, so an image depends on its own latent and
    class only and not on the others in its batch. weights: "ema" (averaged, if there are any) or
    "plain".
    """
    flags = checkpoint["flags"]
    data = checkpoint["data"]
    sizes = (flags["latent_dim"], flags["width"])
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
    if kind == "classes" and not generator.conditional:
        raise InputError("a walk between classes needs a model trained with --conditional")
    sizes = (generator.latent_dim, generator.classes)
    z, y = training.class_walks(rows, frames, *sizes, kind, seed, label)
    return training.to_images(generator, z, y)


# ------------------------------------------------------------------------------------------- main


def draw(run, generator, seed):
    """samples/<step>.png: a grid of images from the same latents each time.

    64 latents, or eight of them in a row for each class.
    """
    run.wait()  # so that run.seconds counts training only
    if not run.is_main:
        return
    if generator.conditional:
        z, labels = training.class_rows(generator.classes, generator.latent_dim, seed)
        images = training.to_images(generator, z, training.one_hot(labels, generator.classes))
    else:
        images = generate(generator, 64, seed)
    picture = datasets.grid(images, columns=8)
    datasets.save_picture(picture, run.path / "samples" / f"{run.step:06d}.png")


def main(argv=None):
    args, typed = parse_args(argv)
    # At 16 pixels the last stage of the ResNet gets a map of 1x1. On a CPU the gradient of a 3x3
    # convolution of stride 2 is wrong there in bf16 (torch 2.11 to 2.14).
    bf16_needs = None if args.size == 16 else "avx512_bf16"
    device, args.precision = training.pick_device(args.device, args.precision, bf16_needs)
    if (args.size, device.type, args.precision) == (16, "cpu", "bf16"):
        raise InputError("at 16 pixels bf16 gives wrong gradients on a CPU: use --precision fp32")
    autocast = functools.partial(training.autocast, device, args.precision)
    args.size = args.size or datasets.default_size(args.data)
    data, held_out = datasets.load_parts(
        args.data, args.size, fit=args.fit, per_class=args.limit_per_class
    )
    if args.conditional:
        datasets.require_labels(data, args.data)
    else:
        words = datasets.class_words(data.classes, datasets.class_counts(data))
        labels = torch.zeros(len(data.images), dtype=torch.int64)
        data = data._replace(labels=labels, classes=[data.name], note=f"{data.note}; {words}")
    batches = training.new_batches(args, typed, data, device)  # a small set lowers args.batch
    per_epoch = batches.per_epoch / args.d_steps  # steps, maybe not a whole number
    total = args.steps or max(1, round(args.epochs * per_epoch))
    sample_every = args.sample_every or max(100, round(per_epoch))
    save_every = args.save_every or max(100, round(per_epoch))

    # The seed fixes the weights and latents. The latents of the pictures have seeds of their own.
    torch.manual_seed(args.seed)
    channels = data.images.shape[1]
    counts = datasets.class_counts(data)
    generator = Generator(args.size, channels, counts, args.latent_dim, args.width)
    discriminator = Discriminator(args.size, channels, len(counts))
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

    adam = functools.partial(
        torch.optim.AdamW,
        betas=(args.beta1, 0.999),
        weight_decay=args.weight_decay,  # without it AdamW is Adam
        **training.adam_options(device),
    )
    lr_g = args.lr_g or args.lr
    lr_d = args.lr_d or args.lr
    opt_g = adam(generator.parameters(), lr_g)
    opt_d = adam(discriminator.parameters(), lr_d)

    # On an NVIDIA GPU each update becomes a CUDA graph; elsewhere `captured` changes nothing.
    networks = (generator, discriminator)
    captured = functools.partial(training.captured, device=device, no_graph=args.no_graph)
    d_step = captured(functools.partial(discriminator_step, *networks, opt_d, autocast))
    weight = args.similarity
    g_step = captured(functools.partial(generator_step, *networks, opt_g, autocast, weight))
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
            for _ in range(args.d_steps):
                real, labels = next(batches)
                y = training.one_hot(labels, len(counts))
                d_real, d_fake = d_step(real, y, sigma)
            for _ in range(args.g_steps):
                g_loss, similarity = g_step(real, y, sigma)
            if args.ema > 0:
                ema_step(training.ema_decay(args.ema, run.step, device))
            losses = {"loss_d_real": d_real, "loss_d_fake": d_fake, "loss_g": g_loss}
            if args.similarity > 0:
                losses["similarity"] = similarity
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
            if args.conditional:  # Is the class obeyed? Measured on more images, from another seed.
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
