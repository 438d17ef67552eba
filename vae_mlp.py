# /// script
# requires-python = ">=3.10"
# dependencies = ["torch>=2.6", "torchvision", "numpy", "scipy", "pillow", "tqdm", "matplotlib"]
# ///
"""VAE: the smallest variational autoencoder. Both networks are three fully connected layers.

The encoder turns an image x into a normal distribution over latent vectors, q(z|x) =
N(mu, exp(logvar)). The decoder turns a latent vector into an image. Training asks for two things at
once. A z drawn from q(z|x) must give the image back, and q(z|x) must stay close to the prior
N(0, I), so that later a random z gives an image, too:

    image x (3, 64, 64) in [-1, 1]             z = mu + exp(logvar / 2) * eps, eps ~ N(0, I)
      | flatten                                  |
    (12288)                                    (latent_dim)
      | Linear, LeakyReLU 0.2                    | Linear, LeakyReLU 0.2
    (width)                                    (width)
      | Linear, LeakyReLU 0.2                    | Linear, LeakyReLU 0.2
    (width)                                    (width)
      | Linear                                   | Linear
    mu, logvar (latent_dim each)               (12288)
                                                 | sigmoid for values in [0, 1], tanh for [-1, 1]
    width 512, latent_dim 16                   image (3, 64, 64)

Kingma, Welling: Auto-Encoding Variational Bayes, 2014 (arXiv 1312.6114). Rezende, Mohamed,
Wierstra: Stochastic Backpropagation and Approximate Inference in Deep Generative Models, 2014
(arXiv 1401.4082).

Reports write "reconstruction + weight * KL" in units that differ by orders of magnitude. Here both
terms are nats of an image: summed over its D values and over the latents, then averaged over the
batch. The report of this script, R2, adds the sums of the cross-entropy and of the KL, so its
weight is 1 (the others are in cvae.py):

    loss = -log p(x|z) + kl_weight * KL(q(z|x) || N(0, I))

With kl_weight 1 this is a bound on -log p(x): minus the evidence lower bound, or ELBO.

    --likelihood bernoulli   cross-entropy of the values in [0, 1]
    --likelihood gaussian    half the squared error of the values in [-1, 1]: a normal density with
                             sigma = 1, without its constant. Divided by kl_weight, the loss is
                             the bound for sigma^2 = kl_weight
    --likelihood sigma       a normal density, sigma is learned (Rybkin et al. 2021, arXiv
                             2006.13202)

    python vae_mlp.py                                   # built-in shapes: 3 minutes on two cores
    python vae_mlp.py --data photos/ --size 64          # your own images: a folder, a zip, an .npz
    python sample.py runs/vae_mlp-shapes-1 --count 64 --to grid.png
    python metrics.py shapes runs/vae_mlp-shapes-1 --iwae 64    # how good is the model, in nats

The preset cats reproduces R2b, a student report (see README.md).
Time: 50 epochs of 23,000 cats take about 20 minutes on two older CPU cores.

If you copy this for coursework: take training.py, datasets.py and sources.py along (folders.py for
images in a folder, zip or tar; metrics.py and inception.py for FID; report.py and sample.py for
plots). What makes it a VAE is in `VAE`, `loss_terms` and `train_step`; change those. `main` is the
whole loop.
"""

import signal

if __name__ == "__main__":  # Ctrl-C during the imports is silent; run_program takes over later
    signal.signal(signal.SIGINT, signal.SIG_DFL)

import copy
import functools
import math
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

import datasets
import training
from datasets import from_uint8, to_uint8
from sources import new_parser, number, printable, run_program

SCRIPT = Path(__file__).stem

# A preset only sets defaults: a flag on the command line wins. "report" holds published numbers.
PRESETS = {
    "shapes": dict(  # what `python vae_mlp.py` alone runs: small enough for a laptop without a GPU
        data="shapes", size=32, latent_dim=16, epochs=40, ema=0.99, likelihood="sigma",
        # Above 1, because random latents must resemble those of images: otherwise shapes break.
        kl_weight=8.0, kl_warmup=500,
    ),
    "cats": dict(  # R2b. The learning rate and the batch are not stated there: ours
        data="cats64", size=64, width=512, latent_dim=16, batch=128, epochs=50, lr=1e-3,
        likelihood="bernoulli", kl_weight=1.0,
        report={
            "bound (nats)": 7036.5,
            "protocol": "R2: loss averaged over epoch 50, 29,843 training images; cross-entropy "
            "summed over values plus KL summed over latents (our reading)",
        },
    ),
    # R2b with more latents and a learned variance: see docs/results/best.md
    "best": dict(
        data="cats64", size=64, width=512, latent_dim=64, batch=128, epochs=50, lr=1e-3, ema=0.999,
        likelihood="sigma",
        report={"protocol": "R2's bound is that of another likelihood; no number"},
    ),
}  # fmt: skip

LIKELIHOODS = ["bernoulli", "gaussian", "sigma"]
TEST_COLUMNS = ("loss_recon_test", "loss_kl_test", "loss_bound_test", "mse_test")  # of log.csv


def parse_args(argv=None):
    """Command line -> (Namespace, set of the names of the flags that were typed)."""
    parser = new_parser(f"{SCRIPT}.py", __doc__)
    add = parser.groups["model"].add_argument
    whole = number(int, 1)
    count = number(int, 0)
    add("--width", type=whole, default=512, help="size of the hidden layers")
    add("--latent-dim", type=whole, default=16, help="length of z")
    add("--likelihood", choices=LIKELIHOODS, default="bernoulli", help="p(x|z)")
    add = parser.groups["training"].add_argument
    add("--lr", type=number(float, 1e-12), default=1e-3, help="learning rate")
    add("--kl-weight", type=number(float, 1e-9), default=1.0, help="factor on the KL term")
    add("--kl-warmup", type=count, default=0, help="steps over which that factor grows")
    add = parser.groups["evaluation"].add_argument
    add("--hold-out", type=count, default=0, help="test images, for data without a test split")
    training.add_run_flags(parser, PRESETS, any_size=True)
    return training.parse(parser, PRESETS, SCRIPT, argv)


# ---------------------------------------------------------------------------------------- network


class VAE(nn.Module):
    """Encoder and decoder of images (N, channels, size, size) in [-1, 1], of any size.

    likelihood and kl_weight are only carried along: the losses below read them.
    """

    def __init__(self, size, channels, latent_dim, width, likelihood, kl_weight):
        super().__init__()
        self.latent_dim = latent_dim
        self.likelihood = likelihood
        self.kl_weight = kl_weight
        values = channels * size * size  # D: 12288 at 64x64 in color
        self.encoder = nn.Sequential(
            nn.Flatten(),  # (N, D)
            nn.Linear(values, width),  # (N, 512)
            nn.LeakyReLU(0.2),
            nn.Linear(width, width),  # (N, 512)
            nn.LeakyReLU(0.2),
            nn.Linear(width, 2 * latent_dim),  # (N, 32): mu, then logvar
        )
        self.decoder = nn.Sequential(
            nn.Linear(latent_dim, width),  # (N, 512)
            nn.LeakyReLU(0.2),
            nn.Linear(width, width),  # (N, 512)
            nn.LeakyReLU(0.2),
            nn.Linear(width, values),  # (N, D)
            nn.Unflatten(1, (channels, size, size)),
        )
        self.log_sigma = nn.Parameter(torch.tensor(-1.0))  # only --likelihood sigma uses it

    def encode(self, images):
        """Images -> mu and logvar of q(z|x), both (N, latent_dim), in the type of the images."""
        return self.encoder(images).to(images.dtype).chunk(2, dim=1)

    def forward(self, images, eps):
        """Images and noise eps ~ N(0, I), (N, latent_dim) -> output of the decoder, mu, logvar.

        z = mu + sigma * eps is a draw from N(mu, sigma^2) that lets gradients through to mu and
        sigma: the reparameterization trick.
        """
        mu, logvar = self.encode(images)
        return self.decoder(mu + torch.exp(0.5 * logvar) * eps), mu, logvar


# ----------------------------------------------------------------------------------------- losses

# --- the same in vae_mlp.py and cvae.py (a test compares them): from here


def mean_image(output, likelihood):
    """Output of the decoder -> the mean of p(x|z), in [-1, 1].

    For bernoulli the mean of a value in [0, 1] is the sigmoid 1 / (1 + e^-a) = (1 + tanh(a/2)) / 2.
    """
    if likelihood == "bernoulli":
        return torch.tanh(output / 2)
    return torch.tanh(output)


def loss_terms(model, images, output, mu, logvar):
    """The terms of each image, float32 (4, N). The loss is made of the first two.

      -log p(x|z)            in nats; the docstring of this file says what each likelihood means
      KL(q(z|x) || N(0, I))  in nats
      bound                  minus the ELBO, in nats
      squared error          averaged over the D values of an image, which are in [-1, 1]

    images: (N, channels, size, size) in [-1, 1]; output, mu, logvar: what the model gives for them.
    """
    output = output.to(images.dtype)  # in bf16 the networks compute in it, but not these sums
    # to N(0, I): Kingma and Welling, appendix B
    kl = 0.5 * (mu.square() + logvar.exp() - 1 - logvar).sum(1)
    values = images[0].numel()  # D
    squared_error = (images - mean_image(output, model.likelihood)).square().flatten(1).sum(1)
    if model.likelihood == "bernoulli":
        target = (images + 1) / 2  # in [0, 1]
        nats = F.binary_cross_entropy_with_logits(output, target, reduction="none")
        nats = nats.flatten(1).sum(1)
        bound = nats + kl
    elif model.likelihood == "gaussian":
        nats = 0.5 * squared_error
        # the bound of the density that this loss stands for, with sigma^2 = kl_weight
        constant = 0.5 * math.log(2 * math.pi * model.kl_weight) * values
        bound = nats / model.kl_weight + constant + kl
    else:
        constant = (model.log_sigma + 0.5 * math.log(2 * math.pi)) * values
        nats = 0.5 * squared_error * torch.exp(-2 * model.log_sigma) + constant
        bound = nats + kl
    return torch.stack([nats, kl, bound.detach(), squared_error.detach() / values])


# --- the same in vae_mlp.py and cvae.py: to here


@torch.no_grad()
def importance_bound(vae, images, samples, generator):
    """-log p(x) in nats, estimated from above with `samples` draws from q(z|x): float64 (N,).

        -log( 1/K sum_k p(x|z_k) p(z_k) / q(z_k|x) )     Burda et al. 2016 (1509.00519), equation 8

    images: (N, C, H, W) in [-1, 1]. For K = 1 the mean is minus the ELBO; as K grows, the estimate
    falls to -log p(x) itself.
    """
    mu, logvar = vae.encode(images)
    log_ratios = []
    for _ in range(samples):
        eps = torch.randn(mu.shape, generator=generator).to(mu.device)
        z = mu + torch.exp(0.5 * logvar) * eps
        _, kl, bound, _ = loss_terms(vae, images, vae.decoder(z), mu, logvar)
        log_likelihood = kl - bound  # log p(x|z) with its constant, which the first term may lack
        # log p(z) - log q(z|x): the factors (2 pi)^(-d/2) cancel
        log_prior_ratio = 0.5 * (eps.square() + logvar - z.square()).sum(1)
        log_ratios.append((log_likelihood + log_prior_ratio).cpu().double())
    return math.log(samples) - torch.logsumexp(torch.stack(log_ratios), dim=0)


# ----------------------------------------------------------------------------------------- update


def train_step(vae, optimizer, autocast, images, kl_weight):
    """One update: minimize -log p(x|z) + kl_weight * KL, with one z for each image.

    images: (N, C, H, W) in [-1, 1]; kl_weight: tensor.
    Returns the means of loss_terms, four tensors on the device.
    """
    eps = torch.randn(len(images), vae.latent_dim, device=images.device)
    with autocast():
        output, mu, logvar = vae(images, eps)
    terms = loss_terms(vae, images, output, mu, logvar)
    reconstruction, kl, _, _ = terms
    optimizer.zero_grad()
    (reconstruction + kl_weight * kl).mean().backward()
    optimizer.step()
    return terms.detach().mean(1).unbind()


# ------------------------------------------------------------------------------- a trained model


def load_model(checkpoint, device="cpu", weights="ema"):
    """Checkpoint dict -> the trained VAE in eval mode, with `examples`: real images, uint8.

    weights: "ema" (averaged, if there are any) or "plain".
    """
    flags = checkpoint["flags"]
    sizes = (flags["size"], checkpoint["data"]["channels"], flags["latent_dim"], flags["width"])
    vae = VAE(*sizes, flags["likelihood"], flags["kl_weight"])
    states = checkpoint["models"]
    name = "ema" if weights == "ema" and "ema" in states else "vae"
    vae.load_state_dict(states[name])
    vae.examples = checkpoint["examples"]
    return vae.to(device).eval()


@torch.no_grad()
def to_images(vae, z):
    """Latents (N, latent_dim) -> uint8 (N, channels, size, size) on the CPU, 100 at a time.

    An image is the mean of p(x|z), not a noisy draw from it.
    """
    device = vae.log_sigma.device
    images = []
    for part in z.to(device).split(100):
        images.append(to_uint8(mean_image(vae.decoder(part), vae.likelihood)).cpu())
    return torch.cat(images)


@torch.no_grad()
def measure(vae, images):
    """uint8 images -> mu of q(z|x), float32 (N, latent_dim) on the CPU, and the means of loss_terms
    over the images: four floats. Each call draws the same noise."""
    device = vae.log_sigma.device
    generator = torch.Generator().manual_seed(0)
    latents = []
    terms = []
    for part in images.split(500):
        part = from_uint8(part.to(device))
        eps = torch.randn(len(part), vae.latent_dim, generator=generator).to(device)
        output, mu, logvar = vae(part, eps)
        latents.append(mu.cpu())
        terms.append(loss_terms(vae, part, output, mu, logvar).cpu().double())
    return torch.cat(latents), torch.cat(terms, dim=1).mean(1).tolist()


def generate(vae, n, seed=0, first=0):
    """Images number first .. first + n - 1 of the sequence with this seed, uint8 on the CPU."""
    return to_images(vae, training.latents(n, vae.latent_dim, seed, first))


WALKS = ("images",)


def walk(vae, kind, rows, frames, seed=0, images=None):
    """rows walks of `frames` images, each from one real image to another, row after row.

    A walk is a straight line between the mu of both. kind: one of WALKS. images: datasets.Images
    from which the ends are drawn; None: the examples in the checkpoint.
    Returns uint8 (rows * frames, channels, size, size).
    """
    examples = vae.examples if images is None else images.images
    order = datasets.shuffled(len(examples), seed)
    ends = examples[order[torch.arange(2 * rows) % len(order)]]
    z, _ = measure(vae, ends)
    t = torch.arange(frames)[:, None] / (frames - 1)
    z = torch.lerp(z[:rows, None], z[rows:, None], t)  # (rows, frames, latent_dim)
    return to_images(vae, z.flatten(0, 1))


def own_values(vae, data, samples=0):
    """What a VAE measures besides FID, on datasets.Images: arguments of metrics.autoencoder.

    samples: of the importance bound; 0 leaves it out.
    """
    mu, means = measure(vae, data.images)
    values = {"mu": mu, "means": means, "likelihood": vae.likelihood}
    if samples:
        generator = torch.Generator().manual_seed(0)
        bounds = []
        for part in data.images.split(100):
            part = from_uint8(part.to(vae.log_sigma.device))
            bounds.append(importance_bound(vae, part, samples, generator))
        values["samples"] = samples
        values["importance_bound"] = torch.cat(bounds).mean().item()
    return values


# ------------------------------------------------------------------------------------------- main


def draw(run, vae, seed):
    """samples/<step>.png: a grid of images from the same 64 latents each time.

    reconstructions/<step>.png: the examples, each with its reconstruction below.
    """
    run.wait()  # so that run.seconds counts training only
    if run.is_main:
        file = f"{run.step:06d}.png"
        picture = datasets.grid(generate(vae, 64, seed), columns=8)
        datasets.save_picture(picture, run.path / "samples" / file)
        z, _ = measure(vae, vae.examples)
        picture = datasets.pairs_grid(vae.examples, to_images(vae, z))
        datasets.save_picture(picture, run.path / "reconstructions" / file)


def main(argv=None):
    args, typed = parse_args(argv)
    device, args.precision = training.pick_device(args.device, args.precision)
    autocast = functools.partial(training.autocast, device, args.precision)
    args.size = args.size or datasets.default_size(args.data)
    data, held_out = datasets.load_parts(
        args.data, args.size, args.hold_out, args.fit, args.limit_per_class
    )
    batches = training.new_batches(args, typed, data, device)  # a small set lowers args.batch
    per_epoch = batches.per_epoch  # steps
    total = args.steps or args.epochs * per_epoch
    sample_every = args.sample_every or max(100, per_epoch)
    save_every = args.save_every or max(100, per_epoch)

    # The seed fixes the weights and latents. The latents of the pictures have seeds of their own.
    torch.manual_seed(args.seed)
    channels = data.images.shape[1]
    vae = VAE(args.size, channels, args.latent_dim, args.width, args.likelihood, args.kl_weight)
    if args.dry_run:
        eps = torch.zeros(2, args.latent_dim)
        training.describe(vae, from_uint8(data.images[:2]), eps)
        return training.print_plan(args, data, total, per_epoch, device)
    # 16 real images to reconstruct. The checkpoint holds them: it can walk between them by itself.
    pool, pool_words = datasets.measured_on(data, held_out)
    vae.examples = pool.images[datasets.shuffled(len(pool.images), args.seed)[:16]]
    vae.to(device)
    models = {"vae": vae}
    sampler = vae  # whose images are drawn and measured
    if args.ema > 0:
        sampler = models["ema"] = copy.deepcopy(vae)
    optimizer = torch.optim.Adam(vae.parameters(), args.lr, **training.adam_options(device))

    # On an NVIDIA GPU each update becomes a CUDA graph; elsewhere `captured` changes nothing.
    captured = functools.partial(training.captured, device=device, no_graph=args.no_graph)
    step = captured(functools.partial(train_step, vae, optimizer, autocast))
    if args.ema > 0:
        ema_step = captured(functools.partial(training.update_ema, sampler, vae))

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
    if held_out is None:
        print("nothing is held out: all losses are of training images (see --hold-out)")

    optimizers = {"vae": optimizer}
    extra = {"examples": vae.examples}
    # Makes the run directory, or on --resume loads the checkpoint and goes on where it stopped.
    with training.start(
        args, SCRIPT, data, batches, models, optimizers, total, per_epoch, extra
    ) as run:
        if run.step == 0:
            run.save("last.pt")
            draw(run, sampler, args.seed + 1)
            run.write_weights()
        while run.step < total and not run.should_stop():  # Ctrl-C, SIGTERM
            # Warm-up (Bowman et al. 2016, 1511.06349): with the full weight from the start, the KL
            # can switch latents off before the decoder has learned to use them. They stay off.
            warmup = min(1.0, (run.step + 1) / max(args.kl_warmup, 1))
            kl_weight = training.scalar(args.kl_weight * warmup, device)
            training.set_lr(optimizer, args.lr * args.lr_decay**run.step)
            images, _ = next(batches)
            reconstruction, kl, bound, mse = step(images, kl_weight)
            if args.ema > 0:
                ema_step(training.ema_decay(args.ema, run.step, device))
            run.count(loss_recon=reconstruction, loss_kl=kl, loss_bound=bound, mse=mse)

            last = run.step == total
            scores = {}
            if metrics and eval_every and (last or run.every(eval_every)):
                run.wait()
                fake = generate(sampler, len(reference.choose), args.seed + 2)
                scores = metrics.curve(reference.choose, fake, **measured)
                run.keep_best(scores, args.size, reference.choose)  # best.pt, if its FID is lowest
            # also at the end of an epoch, so that no row spans two epochs
            if last or run.every(args.log_every, eval_every, per_epoch):
                if held_out is not None and run.is_main:
                    run.wait()
                    _, means = measure(sampler, held_out.images[:500])
                    scores.update(zip(TEST_COLUMNS, means, strict=True))
                run.write_log(**scores)  # waits for the device; stops the run at NaN
            if last or run.every(sample_every):
                draw(run, sampler, args.seed + 1)
                run.write_weights()  # histograms of every layer
            if run.every(args.keep_every):
                run.keep("vae")  # kept/<step>.pt: weights to make images with later
            if last or run.every(save_every):
                run.save("last.pt")
        if run.step < total or run.should_stop():
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
            chosen = datasets.pick(pool, datasets.shuffled(len(pool.images), 1)[: args.eval_images])
            words = f"{len(chosen.images)} {pool_words} images of {pool.name}"
            values += metrics.autoencoder(**own_values(sampler, chosen), words=words)
            metrics.write_result(run, values, PRESETS[args.preset])
        if plots := training.tool("report"):
            for path in plots.report(run.path, device=device):
                print(f"wrote {printable(path)}")
        return run.finish()  # says what to try next


if __name__ == "__main__":
    run_program(main)
