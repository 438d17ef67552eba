# /// script
# requires-python = ">=3.10"
# dependencies = ["torch>=2.6", "torchvision", "numpy", "scipy", "pillow", "tqdm", "matplotlib"]
# ///
"""CVAE: a convolutional variational autoencoder that is told the class of each image.

As in vae_mlp.py, the encoder turns an image x into a normal distribution over latents, and the
decoder turns a latent into an image. The decoder must reproduce x, and the distribution must stay
close to N(0, I). Here both networks also get the class y, so z need not hold it: the same z with
another y gives another class in the same "style".

    image x (3, 64, 64)                              z (256), embedding of y (128)
      | Conv 4x4 stride 2, BatchNorm, ReLU             | Linear
    (f, 32, 32)                                      (8f, 4, 4)
      |                                                | ConvTranspose 4x4 stride 2, BatchNorm, ReLU
    (2f, 16, 16)                                     (4f, 8, 8)
      |                                                |
    (4f, 8, 8)                                       (2f, 16, 16)
      |                                                |
    (8f, 4, 4) flattened, embedding of y (128)       (f, 32, 32)
      | two Linear                                     | ConvTranspose 4x4 stride 2
    mu (256), logvar (256) of q(z|x,y)               image (3, 64, 64), tanh          f = --width

Sohn, Lee, Yan: Learning Structured Output Representation using Deep Conditional Generative Models,
NIPS 2015. Kingma, Welling: Auto-Encoding Variational Bayes, 2014 (arXiv 1312.6114).

Reports write "reconstruction + weight * KL" in units that differ by orders of magnitude. Here both
terms are in nats per image: the first is summed over the D values of an image, the second over the
latents, and both are averaged over the batch:

    loss = -log p(x|z,y) + kl_weight * KL(q(z|x,y) || N(0, I))

With kl_weight 1 this is a bound on -log p(x|y): minus the evidence lower bound, or ELBO.

    --likelihood bernoulli   cross-entropy of the values in [0, 1]
    --likelihood gaussian    half the squared error of the values in [-1, 1]: a normal density with
                             sigma = 1, without its constant. Divided by kl_weight, the loss is
                             the bound for sigma^2 = kl_weight
    --likelihood sigma       a normal density, sigma is learned (Rybkin et al. 2021, arXiv
                             2006.13202)

The losses of the reports, and what they are here, with D = 3 * 64 * 64 where nothing else is said:

    R0   mean squared error + 1.0 * mean of KL over 256 latents
             times D/2: gaussian with kl_weight D/512 = 24
    R1   mean squared error + 0.00025 * sum of KL
             times D/2: gaussian with kl_weight 0.000125 D = 1.536, or 0.128 for MNIST (D = 32 * 32)
    R2   sum of cross-entropy + sum of KL (see vae_mlp.py)
             bernoulli with kl_weight 1

    python cvae.py                                 # built-in shapes: two minutes on two cores
    python cvae.py --data photos/ --size 64        # your own images: sub-folders are the classes
    python sample.py runs/cvae-shapes-1 --class star --count 64 --to stars.png

Presets that reproduce the student reports (see README.md): animals is R0a; mnist, artbench64 and
artbench256 are R1b. mnist-classes is mnist with four times the weight of the KL: it obeys the class
better. Time: an epoch of 8,250 animals takes about two minutes on two older CPU cores, one of MNIST
four. On one core with AMX they take half a minute and one minute.

If you copy this for coursework: take training.py, datasets.py and sources.py along (folders.py for
images in a folder, zip or tar; metrics.py and inception.py for FID; report.py and sample.py for
plots). What makes it a CVAE is in `CVAE`, `loss_terms` and `train_step`; change those. `main` is
the whole loop.
"""

import signal

if __name__ == "__main__":  # Ctrl-C during the imports is silent; run_program takes over later
    signal.signal(signal.SIGINT, signal.SIG_DFL)

import contextlib
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
from sources import InputError, new_parser, number, printable, run_program

SCRIPT = Path(__file__).stem

# A preset only sets defaults: a flag on the command line wins. "report" holds published numbers.
R0A = {
    "squared error": 0.1136,
    "KL per latent (nats)": 0.0315,
    "protocol": "R0: training loss at the end of 80 epochs of 13,500 images; squared error "
    "averaged over values, KL over 256 latents (our reading)",
}
R1B = dict(  # R1b states the weight of the KL only. The rest is ours
    width=64, latent_dim=256, likelihood="gaussian",
    report={"protocol": "R1: pictures and GIFs, no number"},
)  # fmt: skip
# R1b trained on 1,000 paintings of each of ten styles. The training split has 5,000
ARTBENCH = dict(
    R1B, data="artbench10", epochs=100, lr=2e-4, limit_per_class=1000
)  # fmt: skip
ANIMALS = dict(data="animals", size=64, width=64, latent_dim=256, batch=128, epochs=80)
MNIST = dict(R1B, data="mnist", size=32, batch=128, epochs=20, lr=1e-3, ema=0.999)
PRESETS = {
    "shapes": dict(  # what `python cvae.py` alone runs: small enough for a laptop without a GPU
        data="shapes", size=32, width=32, latent_dim=32, batch=64, lr=1e-3, steps=1500, ema=0.99,
        likelihood="sigma", kl_warmup=300, sample_every=100, save_every=500,
    ),
    "animals": dict(  # R0a, which squashed images that are not square
        ANIMALS, lr=2e-4, likelihood="gaussian", kl_weight=24.0, fit="squash", report=R0A,
    ),
    # The networks of R0a, better: see docs/results/best.md
    "best": dict(
        ANIMALS, lr=1e-3, ema=0.999, likelihood="sigma", kl_weight=8.0, fit="squash",
        report=R0A | {"protocol": f"only context: R0 has other settings; {R0A['protocol']}"},
    ),
    "mnist": dict(MNIST, kl_weight=0.128),  # 0.00025 / 2 * 32 * 32
    "mnist-classes": dict(MNIST, kl_weight=0.512),  # the digits obey their class best
    # 0.00025 / 2 * 3 * 64 * 64, or 3 * 256 * 256
    "artbench64": dict(ARTBENCH, size=64, batch=128, kl_weight=1.536),
    "artbench256": dict(ARTBENCH, size=256, batch=64, kl_weight=24.576),
}  # fmt: skip

LIKELIHOODS = ["bernoulli", "gaussian", "sigma"]
EMBEDDING = 128  # length of the embedding of a class
TEST_COLUMNS = ("loss_recon_test", "loss_kl_test", "loss_bound_test", "mse_test")  # of log.csv


def parse_args(argv=None):
    """Command line -> (Namespace, set of the names of the flags that were typed)."""
    parser = new_parser(f"{SCRIPT}.py", __doc__)
    add = parser.groups["model"].add_argument
    whole = number(int, 1)
    count = number(int, 0)
    add("--width", type=whole, default=64, help="base channels, f in the drawing")
    add("--latent-dim", type=whole, default=256, help="length of z")
    add("--likelihood", choices=LIKELIHOODS, default="gaussian", help="p(x|z,y)")
    add = parser.groups["training"].add_argument
    add("--lr", type=number(float, 1e-12), default=2e-4, help="learning rate")
    add("--kl-weight", type=number(float, 1e-9), default=1.0, help="factor on the KL term")
    add("--kl-warmup", type=count, default=0, help="steps over which that factor grows")
    add("--balance", action="store_true", help="draw every class equally often")
    add = parser.groups["evaluation"].add_argument
    add("--hold-out", type=count, default=0, help="test images, for data without a test split")
    training.add_run_flags(parser, PRESETS)
    return training.parse(parser, PRESETS, SCRIPT, argv)


# ---------------------------------------------------------------------------------------- network


def convolutions(convolution, widths):
    """Layers from each width to the next: a 4x4 convolution of stride 2, BatchNorm, ReLU."""
    layers = []
    for in_channels, out_channels in zip(widths, widths[1:], strict=False):
        layers += [convolution(in_channels, out_channels, 4, 2, 1, bias=False)]
        layers += [nn.BatchNorm2d(out_channels), nn.ReLU(inplace=True)]
    return layers


class CVAE(nn.Module):
    """Encoder and decoder of images (N, channels, size, size) in [-1, 1] and their classes.

    labels: int64 (N,), or float (N, classes) for mixtures of classes. class_counts: how many images
    each class has in the data; only carried along, for `generate`. So are likelihood and kl_weight,
    for the losses below.
    """

    def __init__(self, size, channels, class_counts, latent_dim, width, likelihood, kl_weight):
        super().__init__()
        self.class_counts = class_counts
        self.classes = len(class_counts)
        self.latent_dim = latent_dim
        self.likelihood = likelihood
        self.kl_weight = kl_weight
        widths = training.layer_widths(size, width)  # at size 64, width 64: 512, 256, 128, 64
        features = widths[0] * 4 * 4  # 8192
        self.encoder = nn.Sequential(
            *convolutions(nn.Conv2d, [channels, *widths[::-1]]),  # the side: 32, 16, 8, 4
            nn.Flatten(),  # (N, 8192)
        )
        self.encoder_label = nn.Embedding(self.classes, EMBEDDING)
        self.decoder_label = nn.Embedding(self.classes, EMBEDDING)
        self.mu = nn.Linear(features + EMBEDDING, latent_dim)
        self.logvar = nn.Linear(features + EMBEDDING, latent_dim)
        self.decoder = nn.Sequential(
            nn.Linear(latent_dim + EMBEDDING, features),
            nn.Unflatten(1, (widths[0], 4, 4)),
            *convolutions(nn.ConvTranspose2d, widths),  # the side: 8, 16, 32
            nn.ConvTranspose2d(widths[-1], channels, 4, 2, 1),  # (N, channels, 64, 64)
        )
        self.log_sigma = nn.Parameter(torch.tensor(-1.0))  # only --likelihood sigma uses it

    def one_hot(self, labels):
        """Labels -> float (N, classes). Mixtures stay as they are."""
        if labels.dim() == 2:
            return labels
        return training.one_hot(labels, self.classes)

    def encode(self, images, labels):
        """Images and classes -> mu and logvar of q(z|x,y), both (N, latent_dim), float32."""
        embedding = self.one_hot(labels) @ self.encoder_label.weight
        features = torch.cat([self.encoder(images), embedding], dim=1)
        mu = self.mu(features).to(images.dtype)
        logvar = self.logvar(features).to(images.dtype)
        return mu, logvar

    def decode(self, z, labels):
        """Latents and classes -> (N, channels, size, size), before the last non-linearity."""
        embedding = self.one_hot(labels) @ self.decoder_label.weight
        return self.decoder(torch.cat([z, embedding], dim=1))

    def forward(self, images, labels, eps):
        """Images, classes and noise eps ~ N(0, I), (N, latent_dim) -> output of the decoder, mu,
        logvar.

        z = mu + sigma * eps is a draw from N(mu, sigma^2) that lets gradients through to mu and
        sigma: the reparameterization trick.
        """
        mu, logvar = self.encode(images, labels)
        return self.decode(mu + torch.exp(0.5 * logvar) * eps, labels), mu, logvar


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


# ----------------------------------------------------------------------------------------- update


def train_step(cvae, optimizer, autocast, images, labels, kl_weight):
    """One update: minimize -log p(x|z,y) + kl_weight * KL, with one z for each image.

    images: (N, C, H, W) in [-1, 1]; labels: int64 (N,); kl_weight: tensor.
    Returns the means of loss_terms, four tensors on the device.
    """
    eps = torch.randn(len(images), cvae.latent_dim, device=images.device)
    with autocast():
        output, mu, logvar = cvae(images, labels, eps)
    terms = loss_terms(cvae, images, output, mu, logvar)
    reconstruction, kl, _, _ = terms
    optimizer.zero_grad()
    (reconstruction + kl_weight * kl).mean().backward()
    optimizer.step()
    return terms.detach().mean(1).unbind()


# ------------------------------------------------------------------------------- a trained model


def load_model(checkpoint, device="cpu", weights="ema"):
    """Checkpoint dict -> the trained CVAE in eval mode, with `examples`: datasets.Images.

    weights: "ema" (averaged, if there are any) or "plain".
    """
    flags = checkpoint["flags"]
    data = checkpoint["data"]
    names = ("latent_dim", "width", "likelihood", "kl_weight")
    cvae = CVAE(
        flags["size"],
        data["channels"],
        data["counts"],
        *(flags[name] for name in names),
    )
    states = checkpoint["models"]
    name = "ema" if weights == "ema" and "ema" in states else "cvae"
    cvae.load_state_dict(states[name])
    images = checkpoint["examples"]
    labels = checkpoint["example_labels"]
    cvae.examples = datasets.Images(images, labels, data["classes"], data["name"], "", False, "")
    return cvae.to(device, memory_format=datasets.layout(device)).eval()


@contextlib.contextmanager
def evaluating(model):
    """A block in which the model is in eval mode: BatchNorm uses its running statistics, so that an
    image does not depend on the others in its batch. No gradients."""
    was_training = model.training
    model.eval()
    with torch.no_grad():
        yield
    model.train(was_training)


def to_images(cvae, z, labels):
    """Latents and classes -> uint8 (N, channels, size, size) on the CPU, 100 at a time.

    An image is the mean of p(x|z,y), not a noisy draw from it.
    """
    device = cvae.log_sigma.device
    pairs = zip(z.to(device).split(100), labels.to(device).split(100), strict=True)
    images = []
    with evaluating(cvae):
        for pair in pairs:
            images.append(to_uint8(mean_image(cvae.decode(*pair), cvae.likelihood)).cpu())
    return torch.cat(images)


def measure(cvae, data):
    """datasets.Images -> mu of q(z|x,y), float32 (N, latent_dim) on the CPU, and the means of
    loss_terms over the images: four floats. Each call draws the same noise."""
    device = cvae.log_sigma.device
    generator = torch.Generator().manual_seed(0)
    latents = []
    terms = []
    with evaluating(cvae):
        for images, labels in zip(data.images.split(200), data.labels.split(200), strict=True):
            images = from_uint8(images.to(device))
            eps = torch.randn(len(images), cvae.latent_dim, generator=generator).to(device)
            output, mu, logvar = cvae(images, labels.to(device), eps)
            latents.append(mu.cpu())
            terms.append(loss_terms(cvae, images, output, mu, logvar).cpu().double())
    return torch.cat(latents), torch.cat(terms, dim=1).mean(1).tolist()


def asked_labels(cvae, n, seed, first=0):
    """The classes that generate() draws: int64 (n,), each as likely as it is in the data."""
    return training.random_labels(cvae.class_counts, n, seed, first)


def generate(cvae, n, seed=0, first=0, label=None):
    """Images number first .. first + n - 1 of the sequence with this seed, uint8 on the CPU.

    label: the index of a class; None: those of asked_labels.
    """
    z = training.latents(n, cvae.latent_dim, seed, first)
    if label is None:
        return to_images(cvae, z, asked_labels(cvae, n, seed, first))
    return to_images(cvae, z, torch.full((n,), label))


WALKS = ("images",)


def walk(cvae, kind, rows, frames, seed=0, label=None, images=None):
    """rows walks of `frames` images, each from one real image to another, row after row.

    A walk is a straight line between the mu of both, and between their classes. kind: one of WALKS.
    images: datasets.Images from which the ends are drawn, with labels of the same classes; None:
    the examples in the checkpoint. Returns uint8 (rows * frames, channels, size, size).
    """
    if label is not None:
        raise InputError("a walk between images goes through their own classes: leave out --class")
    pool = images or cvae.examples
    if pool.classes != cvae.examples.classes:
        raise InputError(f"'{pool.name}' has other classes than the data of this model")
    order = datasets.shuffled(len(pool.images), seed)
    ends = datasets.pick(pool, order[torch.arange(2 * rows) % len(order)])
    z, _ = measure(cvae, ends)
    y = cvae.one_hot(ends.labels)
    t = torch.arange(frames)[:, None] / (frames - 1)
    z = torch.lerp(z[:rows, None], z[rows:, None], t)  # (rows, frames, latent_dim)
    y = torch.lerp(y[:rows, None], y[rows:, None], t)  # (rows, frames, classes)
    return to_images(cvae, z.flatten(0, 1), y.flatten(0, 1))


def as_every_class(cvae):
    """A table with eight rows: a real image, its reconstruction, and its latent decoded as every
    class (of many, the first 16).

    Returns uint8 (8 * columns, channels, size, size) and the number of columns.
    """
    examples = datasets.pick(cvae.examples, slice(8))
    z, _ = measure(cvae, examples)
    columns = [examples.images, to_images(cvae, z, examples.labels)]
    for label in range(min(cvae.classes, 16)):
        columns.append(to_images(cvae, z, torch.full((len(z),), label)))
    return torch.stack(columns, dim=1).flatten(0, 1), len(columns)


def own_values(cvae, data, samples=0):
    """What a CVAE measures besides FID, on datasets.Images with the classes of the model: arguments
    of metrics.autoencoder. samples: of the importance bound, which only vae_mlp.py has."""
    if samples:
        raise InputError(f"{SCRIPT}.py has no bound from importance samples: leave out --iwae")
    mu, means = measure(cvae, data)
    return {"mu": mu, "means": means, "likelihood": cvae.likelihood}


# ------------------------------------------------------------------------------------------- main


def choose_examples(data, seed):
    """Up to 16 of the datasets.Images: one of each class (of many, the first 16), then another of
    each, and so on."""
    order = datasets.shuffled(len(data.images), seed)
    labels = data.labels[order]
    of_classes = [order[labels == label] for label in labels.unique()]
    rows = nn.utils.rnn.pad_sequence(of_classes, padding_value=-1).flatten()
    return datasets.pick(data, rows[rows >= 0][:16])


def draw(run, cvae, seed):
    """samples/<step>.png: a row for each class, from the same eight latents each time.

    reconstructions/<step>.png: the examples, each with its reconstruction below.
    """
    run.wait()  # so that run.seconds counts training only
    if run.is_main:
        file = f"{run.step:06d}.png"
        z, labels = training.class_rows(cvae.classes, cvae.latent_dim, seed)
        picture = datasets.grid(to_images(cvae, z, labels), columns=8)
        datasets.save_picture(picture, run.path / "samples" / file)
        z, _ = measure(cvae, cvae.examples)
        copies = to_images(cvae, z, cvae.examples.labels)
        picture = datasets.pairs_grid(cvae.examples.images, copies)
        datasets.save_picture(picture, run.path / "reconstructions" / file)


def main(argv=None):
    args, typed = parse_args(argv)
    device, args.precision = training.pick_device(args.device, args.precision)
    autocast = functools.partial(training.autocast, device, args.precision)
    args.size = args.size or datasets.default_size(args.data)
    data, held_out = datasets.load_parts(
        args.data, args.size, args.hold_out, args.fit, args.limit_per_class
    )
    datasets.require_labels(data, args.data)
    batches = training.new_batches(args, typed, data, device, args.balance)  # sets args.batch
    per_epoch = batches.per_epoch  # steps
    total = args.steps or args.epochs * per_epoch
    sample_every = args.sample_every or max(100, per_epoch)
    save_every = args.save_every or max(100, per_epoch)

    # The seed fixes the weights and latents. The latents of the pictures have seeds of their own.
    torch.manual_seed(args.seed)
    counts = datasets.class_counts(data)
    sizes = (args.latent_dim, args.width)
    cvae = CVAE(args.size, data.images.shape[1], counts, *sizes, args.likelihood, args.kl_weight)
    if args.dry_run:
        eps = torch.zeros(2, args.latent_dim)
        training.describe(cvae, from_uint8(data.images[:2]), data.labels[:2], eps)
        return training.print_plan(args, data, total, per_epoch, device)
    # Real images to reconstruct. The checkpoint holds them: it can walk between them by itself.
    pool, pool_words = datasets.measured_on(data, held_out)
    cvae.examples = choose_examples(pool, args.seed)
    cvae.to(device, memory_format=datasets.layout(device))
    models = {"cvae": cvae}
    sampler = cvae  # whose images are drawn and measured
    if args.ema > 0:
        sampler = models["ema"] = copy.deepcopy(cvae)
    optimizer = torch.optim.Adam(cvae.parameters(), args.lr, **training.adam_options(device))

    # On an NVIDIA GPU each update becomes a CUDA graph; elsewhere `captured` changes nothing.
    captured = functools.partial(training.captured, device=device, no_graph=args.no_graph)
    step = captured(functools.partial(train_step, cvae, optimizer, autocast))
    if args.ema > 0:
        ema_step = captured(functools.partial(training.update_ema, sampler, cvae))
        rows = datasets.shuffled(len(data.images), args.seed)[:500]
        eps = training.latents(len(rows), args.latent_dim, args.seed + 4)
        ema_inputs = [datasets.from_uint8(data.images[rows]), data.labels[rows], eps]

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
    if held_out is None:
        print("nothing is held out: all losses are of training images (see --hold-out)")

    extra = {"examples": cvae.examples.images, "example_labels": cvae.examples.labels}
    # Makes the run directory, or on --resume loads the checkpoint and goes on where it stopped.
    with training.start(
        args, SCRIPT, data, batches, models, {"cvae": optimizer}, total, per_epoch, extra
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
            images, labels = next(batches)
            reconstruction, kl, bound, mse = step(images, labels, kl_weight)
            if args.ema > 0:
                ema_step(training.ema_decay(args.ema, run.step, device))
            run.count(loss_recon=reconstruction, loss_kl=kl, loss_bound=bound, mse=mse)

            last = run.step == total
            # also at the end of an epoch, so that no row spans two epochs
            logged = last or run.every(args.log_every, eval_every, per_epoch)
            tested = logged and held_out is not None  # a row with losses of held-out images
            used = run.every(
                eval_every,
                sample_every,
                save_every,
                args.keep_every,
            )
            # averaged weights need BatchNorm statistics of their own
            if args.ema > 0 and (last or used or tested):
                training.recount_statistics(sampler, ema_inputs)
            scores = {}
            if metrics and eval_every and (last or run.every(eval_every)):
                run.wait()
                fake = generate(sampler, len(reference.choose), args.seed + 2)
                scores = metrics.curve(
                    reference.choose, fake, **measured, real_words=reference.words
                )
                run.keep_best(scores, args.size, reference.choose)  # best.pt, if its FID is lowest
            if logged:
                if held_out is not None and run.is_main:
                    run.wait()
                    _, means = measure(sampler, datasets.pick(held_out, slice(500)))
                    scores.update(zip(TEST_COLUMNS, means, strict=True))
                run.write_log(**scores)  # waits for the device; stops the run at NaN
            if last or run.every(sample_every):
                draw(run, sampler, args.seed + 1)
                run.write_weights()  # histograms of every layer
            if run.every(args.keep_every):
                run.keep("cvae")  # kept/<step>.pt: weights to make images with later
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
                real_words=reference.words,
                fake_words=f"images by {run.weights_words()}, latent seed {args.seed + 2}",
                **measured,
            )
            chosen = datasets.pick(pool, datasets.shuffled(len(pool.images), 1)[: args.eval_images])
            words = f"{len(chosen.images)} {pool_words} images of {pool.name}"
            values += metrics.autoencoder(**own_values(sampler, chosen), words=words)
            # Does the model obey the class?
            count = metrics.conditional_count(data, args.eval_images)
            fake = generate(sampler, count, args.seed + 3)
            asked = asked_labels(sampler, count, args.seed + 3)
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
