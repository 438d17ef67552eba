# /// script
# requires-python = ">=3.10"
# dependencies = ["torch>=2.6", "torchvision", "numpy", "scipy", "pillow", "tqdm", "matplotlib"]
# ///
"""DCGAN: a generator and a discriminator, both convolutional, trained against each other.

The generator turns a latent vector z ~ N(0, I) into an image. The discriminator says how likely an
image is to be real. The discriminator learns to tell real images from generated ones, and the
generator learns to make images that pass for real:

    z (100)                                      image (3, 64, 64)
      | ConvTranspose 4x4                          | Conv 4x4 stride 2, LeakyReLU 0.2
    (8f, 4, 4)    BatchNorm, ReLU                (f, 32, 32)
      | ConvTranspose 4x4 stride 2                 | Conv 4x4 stride 2, BatchNorm, LeakyReLU 0.2
    (4f, 8, 8)    BatchNorm, ReLU                (2f, 16, 16)
      |                                            |
    (2f, 16, 16)  BatchNorm, ReLU                (4f, 8, 8)
      |                                            |
    (f, 32, 32)   BatchNorm, ReLU                (8f, 4, 4)
      |                                            | Conv 4x4
    (3, 64, 64)   tanh                           logit (1)          f = --width

Radford, Metz, Chintala: Unsupervised Representation Learning with Deep Convolutional GANs, 2015
(arXiv 1511.06434). The game is from Goodfellow et al.: Generative Adversarial Nets, 2014
(arXiv 1406.2661).

    python dcgan.py                                        # built-in shapes: 3 minutes on two cores
    python dcgan.py --data photos/ --size 64 --epochs 100  # your own images: a folder, a zip, .npz
    python sample.py runs/dcgan-shapes-1 --count 64 --to grid.png

Presets that reproduce the student reports (see README.md): cats is R2a, cats-100k is R1a,
food-noise is R3f. Time: a step costs 2.5 GFLOP per image at 64 pixels and width 64. 50 epochs of
23,000 cats take 6 hours on two older CPU cores.

If you copy this for coursework: take training.py, datasets.py and sources.py along (folders.py for
images in a folder, zip or tar; metrics.py and inception.py for FID; report.py and sample.py for
plots). What makes it a DCGAN is in `Generator`, `Discriminator`, the two losses and the two update
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

import datasets
import training
from sources import new_parser, number, printable, run_program

SCRIPT = Path(__file__).stem

R2 = {
    "FID": 132.7,
    "collapse (pixels)": 2412,
    "protocol": "R2: 50 epochs of 29,843 cat faces; 1,000 real against 1,000 generated images, "
    "2048-d Inception features; pairs of 1,000 samples of cosine > 0.9",
}

# A preset only sets defaults: a flag on the command line wins. "report" holds published numbers.
PRESETS = {
    "shapes": dict(  # what `python dcgan.py` alone runs: small enough for a laptop without a GPU
        data="shapes", size=32, width=24, batch=32, steps=5000, lr=1e-3, lr_d=5e-4, ema=0.998,
        upsample="nearest", sample_every=250, save_every=500,
    ),
    "cats": dict(  # R2a. z and f are not stated there: 100 and 64 as in the paper
        data="cats64", size=64, width=64, latent_dim=100, batch=128, epochs=50, lr=2e-4,
        report=R2,
    ),
    # The same images and networks, better: see docs/results/best.md. --no-shift is faster at first
    "best": dict(
        data="cats64", size=64, width=64, latent_dim=100, batch=128, epochs=50,
        lr=5e-4, lr_d=2.5e-4, ema=0.999, upsample="nearest", flip=True, shift=True,
        report=R2 | {"protocol": f"only context, because R2 has other settings; {R2['protocol']}"},
    ),
    # R1a: 100 epochs of 1,000 steps. lr_decay is applied per step; per epoch it would do nothing.
    "cats-100k": dict(
        data="cats64", size=64, width=64, latent_dim=100, batch=128, steps=100_000, lr=2e-4,
        lr_decay=0.9999977, sample_every=1000, save_every=5000,
        report={
            "protocol": "R1: 100,000 steps, about 15,000 cat faces; FID and SSIM as curves, "
            "no final number",
        },
    ),
    "food-noise": dict(  # R3f, our reading: the report gives no architecture
        data="food64", size=64, width=64, latent_dim=100, batch=64, steps=200_000, lr=2e-4,
        noise=0.1, noise_steps=100_000, sample_every=2000, save_every=5000, eval_images=2020,
        report={"protocol": "R3: plain GAN with decaying noise, abandoned for its cost; no number"},
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
    add("--weight-decay", type=number(float, 0), default=0.0, help="Adam's L2 term")
    sigma = number(float, 0)
    add(
        "--noise",
        type=sigma,
        default=0.0,
        help="standard deviation of noise on images",
    )
    add(
        "--noise-steps",
        type=whole,
        default=10_000,
        help="steps until the noise has faded to 0",
    )
    add("--flip", action="store_true", help="mirror training images at random")
    add("--no-flip", dest="flip", action="store_false", help="leave them as they are")
    add("--shift", action="store_true", help="show the discriminator randomly shifted images")
    add("--no-shift", dest="shift", action="store_false", help="show them as they are")
    training.add_run_flags(parser, PRESETS)
    return training.parse(parser, PRESETS, SCRIPT, argv)


# --------------------------------------------------------------------------------------- networks


class Generator(nn.Module):
    """z (N, latent_dim) -> images (N, channels, size, size) in [-1, 1].

    upsample: what doubles the side. "transposed": a 4x4 transposed convolution, as in the paper.
    "nearest": every pixel repeated, then a 3x3 convolution, which makes no checkerboard.
    """

    def __init__(self, size, channels, latent_dim, width, upsample="transposed"):
        super().__init__()
        self.latent_dim = latent_dim
        up = functools.partial(nn.ConvTranspose2d, kernel_size=4, stride=2, padding=1)
        if upsample == "nearest":
            up = training.UpsampleConv2d
        widths = training.layer_widths(size, width)  # at size 64, width 64: 512, 256, 128, 64
        layers = [nn.ConvTranspose2d(latent_dim, widths[0], 4, 1, 0, bias=False)]  # (N, 8f, 4, 4)
        for in_channels, out_channels in pairwise(widths):
            layers += [nn.BatchNorm2d(in_channels), nn.ReLU(inplace=True)]
            # the side doubles, the channels halve
            layers += [up(in_channels, out_channels, bias=False)]
        layers += [nn.BatchNorm2d(widths[-1]), nn.ReLU(inplace=True)]
        layers += [up(widths[-1], channels, bias=False)]
        self.layers = nn.Sequential(*layers, nn.Tanh())  # (N, channels, size, size)

    def forward(self, z):
        return self.layers(z[:, :, None, None])


class Discriminator(nn.Module):
    """Images (N, channels, size, size) -> logits (N,): the log odds that each is real.

    No BatchNorm in the first layer, so that it sees how bright the images are, and none in the
    last (the paper).
    """

    def __init__(self, size, channels, width):
        super().__init__()
        widths = training.layer_widths(size, width)[::-1]  # at size 64, width 64: 64, 128, 256, 512
        layers = [nn.Conv2d(channels, widths[0], 4, 2, 1, bias=False)]
        layers += [nn.LeakyReLU(0.2, inplace=True)]
        for in_channels, out_channels in pairwise(widths):
            # the side halves, the channels double
            layers += [nn.Conv2d(in_channels, out_channels, 4, 2, 1, bias=False)]
            layers += [nn.BatchNorm2d(out_channels), nn.LeakyReLU(0.2, inplace=True)]
        layers += [nn.Conv2d(widths[-1], 1, 4, 1, 0, bias=False)]  # (N, 1, 1, 1)
        self.layers = nn.Sequential(*layers)

    def forward(self, images):
        return self.layers(images)[:, 0, 0, 0]


def init_weights(module):
    """Weights from N(0, 0.02), as in the paper; BatchNorm's gain from N(1, 0.02)."""
    if isinstance(module, (nn.Conv2d, nn.ConvTranspose2d)):
        nn.init.normal_(module.weight, 0.0, 0.02)
    elif isinstance(module, nn.BatchNorm2d):
        nn.init.normal_(module.weight, 1.0, 0.02)
        nn.init.zeros_(module.bias)


# ----------------------------------------------------------------------------------------- losses


def loss_real(logits):
    """-log D(x), averaged over the batch.

    From logits, because log(sigmoid(l)) itself is -inf where the sigmoid rounds to 0.
    """
    logits = logits.float()
    return F.binary_cross_entropy_with_logits(logits, torch.ones_like(logits))


def loss_fake(logits):
    """-log(1 - D(G(z))), averaged over the batch."""
    logits = logits.float()
    return F.binary_cross_entropy_with_logits(logits, torch.zeros_like(logits))


# The generator minimizes loss_real of its images, -log D(G(z)), instead of log(1 - D(G(z))): the
# "non-saturating" loss (Goodfellow et al., section 3). It has the same fixed point, but a strong
# gradient where the discriminator is sure.


def as_seen(images, shift, sigma):
    """Images as the discriminator sees them: with `shift` each shifted at random, and with instance
    noise (Sonderby et al. 2016, 1610.04490). sigma: tensor, or None for no noise."""
    if shift:
        images = training.shifted(images)
    if sigma is None:
        return images
    return images + sigma * torch.randn_like(images)


# ---------------------------------------------------------------------------------------- updates


def discriminator_step(generator, discriminator, optimizer, autocast, real, sigma, shift=False):
    """One update: minimize -log D(x) - log(1 - D(G(z))).

    real: (N, C, H, W) in [-1, 1]; shift, sigma: see as_seen, for both kinds of images.
    Returns both losses, tensors on the device.
    """
    # Real and generated images go through the discriminator separately. In a mixed batch, BatchNorm
    # would normalize both with shared statistics.
    with autocast():
        d_real = loss_real(discriminator(as_seen(real, shift, sigma)))
        z = torch.randn(len(real), generator.latent_dim, device=real.device)
        with torch.no_grad():
            fake = generator(z)
        d_fake = loss_fake(discriminator(as_seen(fake, shift, sigma)))
    optimizer.zero_grad()
    (d_real + d_fake).backward()
    optimizer.step()
    return d_real.detach(), d_fake.detach()


def generator_step(generator, discriminator, optimizer, autocast, batch, sigma, shift=False):
    """One update with fresh latents: minimize -log D(G(z)). Returns the loss."""
    device = next(generator.parameters()).device
    z = torch.randn(batch, generator.latent_dim, device=device)
    with autocast():
        fake = generator(z)
        loss = loss_real(discriminator(as_seen(fake, shift, sigma)))
    optimizer.zero_grad()
    # `inputs=` leaves the discriminator's own gradients out: they would be thrown away, and are a
    # quarter of the work of this update.
    loss.backward(inputs=list(generator.parameters()))
    optimizer.step()
    return loss.detach()


# ------------------------------------------------------------------------------- a trained model


def load_model(checkpoint, device="cpu", weights="ema"):
    """Checkpoint dict -> the trained generator in eval mode.

    In eval mode BatchNorm uses its running statistics, so an image depends on its own latent only
    and not on the others in its batch. weights: "ema" (averaged, if there are any) or "plain".
    """
    flags = checkpoint["flags"]
    channels = checkpoint["data"]["channels"]
    upsample = flags.get("upsample", "transposed")  # checkpoints from before the flag have none
    generator = Generator(flags["size"], channels, flags["latent_dim"], flags["width"], upsample)
    states = checkpoint["models"]
    name = "ema" if weights == "ema" and "ema" in states else "generator"
    generator.load_state_dict(states[name])
    return generator.to(device, memory_format=datasets.layout(device)).eval()


def generate(generator, n, seed=0, first=0):
    """Images number first .. first + n - 1 of the sequence with this seed, uint8 on the CPU."""
    return training.to_images(generator, training.latents(n, generator.latent_dim, seed, first))


WALKS = ("spherical", "linear")


def walk(generator, kind, rows, frames, seed=0):
    """rows walks of `frames` images, each from one random latent to another, row after row.

    kind: one of WALKS. Returns uint8 (rows * frames, channels, size, size).
    """
    z = training.walks(rows, frames, generator.latent_dim, kind, seed)
    return training.to_images(generator, z)


# ------------------------------------------------------------------------------------------- main


def draw(run, generator, seed):
    """samples/<step>.png: a grid of images from the same 64 latents each time."""
    run.wait()  # so that run.seconds counts training only
    if run.is_main:
        picture = datasets.grid(generate(generator, 64, seed), columns=8)
        datasets.save_picture(picture, run.path / "samples" / f"{run.step:06d}.png")


def main(argv=None):
    args, typed = parse_args(argv)
    device, args.precision = training.pick_device(args.device, args.precision)
    autocast = functools.partial(training.autocast, device, args.precision)
    args.size = args.size or datasets.default_size(args.data)
    data, held_out = datasets.load_parts(
        args.data, args.size, fit=args.fit, per_class=args.limit_per_class
    )
    batches = training.new_batches(args, typed, data, device)  # a small set lowers args.batch
    per_epoch = batches.per_epoch / args.d_steps  # steps, maybe not a whole number
    total = args.steps or max(1, round(args.epochs * per_epoch))
    sample_every = args.sample_every or max(100, round(per_epoch))
    save_every = args.save_every or max(100, round(per_epoch))

    # The seed fixes the weights and latents. The latents of the pictures have seeds of their own.
    torch.manual_seed(args.seed)
    channels = data.images.shape[1]
    generator = Generator(args.size, channels, args.latent_dim, args.width, args.upsample)
    generator.apply(init_weights)
    discriminator = Discriminator(args.size, channels, args.width).apply(init_weights)
    if args.dry_run:
        training.describe(generator, torch.zeros(2, args.latent_dim))
        training.describe(discriminator, torch.zeros(2, channels, args.size, args.size))
        return training.print_plan(args, data, total, per_epoch, device)
    models = {"generator": generator, "discriminator": discriminator}
    sampler = generator  # whose images are drawn and measured
    if args.ema > 0:
        sampler = models["ema"] = copy.deepcopy(generator)
    for model in models.values():
        model.to(device, memory_format=datasets.layout(device))

    # beta1 0.5: with Adam's usual 0.9 the game oscillates (the paper, section 4).
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
    captured = functools.partial(training.captured, device=device, no_graph=args.no_graph)
    networks = (generator, discriminator)
    d_step = captured(
        functools.partial(discriminator_step, *networks, opt_d, autocast, shift=args.shift)
    )
    g_step = captured(
        functools.partial(generator_step, *networks, opt_g, autocast, args.batch, shift=args.shift)
    )
    if args.ema > 0:
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
                real, _ = next(batches)
                if args.flip:
                    real = training.randomly_flipped(real)
                d_real, d_fake = d_step(real, sigma)
            for _ in range(args.g_steps):
                g_loss = g_step(sigma)
            if args.ema > 0:
                ema_step(training.ema_decay(args.ema, run.step, device))
            run.count(loss_d_real=d_real, loss_d_fake=d_fake, loss_g=g_loss)  # step += 1

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
            metrics.write_result(run, values, PRESETS[args.preset])
        if plots := training.tool("report"):
            for path in plots.report(run.path, device=device):
                print(f"wrote {printable(path)}")
        return run.finish()  # says what to try next


if __name__ == "__main__":
    run_program(main)
