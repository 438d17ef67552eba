"""Conditional variational autoencoder (CVAE): convolutional, and told the class of the picture.

As in vae_mlp.py, an encoder turns a picture x into a normal distribution over latents, q(z|x,y) = N(mu, exp(logvar)),
and a decoder turns a latent into a picture; the picture must come back, and q must stay close to N(0, I). Here both are
also given the class y, so that z need not hold it: the same z with another y is another class in the same "style".

    picture (3, 64, 64)                              z (256), embedding of y (128)
      | Conv 4x4 stride 2, BatchNorm, ReLU             | Linear
    (f, 32, 32)                                      (8f, 4, 4)
      |                                                | ConvTranspose 4x4 stride 2, BatchNorm, ReLU
    (2f, 16, 16)                                     (4f, 8, 8)
      |                                                |
    (4f, 8, 8)                                       (2f, 16, 16)
      |                                                |
    (8f, 4, 4), flattened; embedding of y (128)      (f, 32, 32)
      | two Linear                                     | ConvTranspose 4x4 stride 2
    mu (256), logvar (256)                           picture (3, 64, 64), tanh          f = --width

Sohn, Lee, Yan: Learning Structured Output Representation using Deep Conditional Generative Models, NIPS 2015;
Kingma, Welling: Auto-Encoding Variational Bayes, 2014 (arXiv 1312.6114).

The weight of the KL. Reports write "reconstruction + weight * KL" in units that differ by orders of magnitude. Here
both terms are nats per picture, summed over its D values and over the latents, and averaged over the batch:

    loss = -log p(x|z) + kl_weight * KL(q(z|x) || N(0, I))       kl_weight 1: minus the evidence lower bound (ELBO)

    --likelihood bernoulli   cross-entropy of the values in [0, 1]
    --likelihood gaussian    half the squared error of the values in [-1, 1]: a normal density with sigma = 1, without
                             its constant. Divided by kl_weight, the loss is the bound of sigma^2 = kl_weight
    --likelihood sigma       a normal density with a sigma that is learnt (Rybkin et al. 2021, arXiv 2006.13202)

    R2   sum of cross-entropy + sum of KL                        bernoulli, kl_weight 1
    R0   mean squared error + 1.0 * mean of KL over 256 latents  times D/2: gaussian, D/512 = 24 at D = 3x64x64
    R1   mean squared error + 0.00025 * sum of KL                times D/2: gaussian, 0.000125 D = 1.536 at D = 3x64x64
         the same on values in [0, 1], as MNIST is usually read  times 4 D/2: 0.0005 D = 0.512 at D = 32x32

    python cvae.py                                               # built-in shapes: about two minutes on two cores
    python cvae.py --data photos/ --size 64 --epochs 80          # your own pictures: sub-folders are the classes
    python cvae.py --load runs/cvae-shapes-1 --generate 64 --class star --to stars.png

Report rows (the README has the numbers): --preset animals is R0a; mnist, artbench64 and artbench256 are R1b.
Time: an epoch of 8,250 animals takes about two minutes on two older CPU cores, one of MNIST four;
on one core with AMX half a minute and one.

If you copy this for coursework: take datasets.py along (metrics.py and report.py if you want FID and plots). What makes
it a CVAE is in `CVAE`, the losses and `train_step`; change those. The blocks marked "shared" are the same in every
script (the losses in both autoencoders).
"""

import argparse
import sys

# A preset only sets defaults: a flag on the command line wins. "report" holds the published numbers, never a flag.
PRESETS = {
    "shapes": dict(  # what `python cvae.py` alone runs: small enough for a laptop without a GPU
        data="shapes", size=32, width=32, latent_dim=32, batch=64, lr=1e-3, steps=1500, ema=0.99, likelihood="sigma",
        kl_warmup=300, sample_every=100, save_every=500,
    ),
    "animals": dict(  # R0a
        data="animals", size=64, width=64, latent_dim=256, batch=128, epochs=80, lr=2e-4, likelihood="gaussian",
        kl_weight=24.0,
        report={"squared error": 0.1136, "KL per latent (nats)": 0.0315, "protocol": "R0: training loss at the end "
                "of 80 epochs of 13,500 images; squared error averaged over values, KL over 256 latents (our reading)"},
    ),
    "mnist": dict(  # R1b: only the weight of the KL is stated. Here of values in [0, 1], see above; the rest is ours
        data="mnist", size=32, width=64, latent_dim=256, batch=128, epochs=20, lr=1e-3, ema=0.999,
        likelihood="gaussian", kl_weight=0.512,
        report={"protocol": "R1: pictures and GIFs, no number"},
    ),
    "artbench64": dict(  # R1b: 0.00025 / 2 * 3 * 64 * 64; the rest is ours
        data="artbench10", size=64, width=64, latent_dim=256, batch=128, epochs=100, lr=2e-4, likelihood="gaussian",
        kl_weight=1.536,
        report={"protocol": "R1: pictures and GIFs, no number"},
    ),
    "artbench256": dict(  # R1b: 0.00025 / 2 * 3 * 256 * 256
        data="artbench10", size=256, width=64, latent_dim=256, batch=64, epochs=100, lr=2e-4, likelihood="gaussian",
        kl_weight=24.576,
        report={"protocol": "R1: pictures and GIFs, no number"},
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
    "width": (64, number(int, 1), "base channel count, f in the drawing"),
    "latent_dim": (256, number(int, 1), "length of z"),
    "lr": (2e-4, number(float, 1e-12), "learning rate"),
    "likelihood": ("gaussian", ["bernoulli", "gaussian", "sigma"], "p(x|z,y): see below"),
    "kl_weight": (1.0, number(float, 1e-9), "weight of the KL in nats against the reconstruction in nats: see below"),
    "kl_warmup": (0, number(int, 0), "the weight of the KL grows linearly over this many steps"),
    "balance": (False, None, "draw every class equally often, however many images it has"),
    "hold_out": (0, number(int, 0), "images kept out of training to measure on, for data without a test split"),
    "class": (None, str, "with --generate: make pictures of this class only"),
    "interpolate": (
        None,
        number(int, 2),
        "with --load: N pictures from a real image and its class to another, 8 times",
    ),
}

USED_WITH = {"generate": ["to", "class"], "interpolate": ["to"]}  # a use of --load: the flags that it reads

if __name__ == "__main__":  # before the slow imports: --help and typing errors answer at once
    ARGS = parse_args()

import copy
import math

import torch
import torch.nn.functional as F
from torch import nn

try:
    from datasets import Captured, Run, above, adam_kernel, channels, class_inputs, class_rows, describe, flags_of
    from datasets import from_uint8, grid, layout, measured_on, one_hot, run_program, save_picture, shuffled  # isort: skip
    from datasets import to_uint8, update_average, use_generator  # isort: skip
except ImportError as problem:
    sys.exit(print(f"cvae.py: error: needs our datasets.py beside it ({problem})", file=sys.stderr) or 2)

SCRIPT = "cvae"
EMBEDDING = 128  # length of a class's embedding

# ---------------------------------------------------------------------------------------------------- network


class CVAE(nn.Module):
    """Encoder and decoder. Pictures are (N, colours, size, size) in [-1, 1]; classes y are float (N, classes), one-hot
    or, between two classes, a mixture."""

    def __init__(self, size, colours, classes, latent_dim, width):
        super().__init__()
        counts = channels(size, width)[::-1]  # at size 64, width 64: 64, 128, 256, 512
        layers, before = [], colours
        for after in counts:  # side halves: 32, 16, 8, 4
            layers += [nn.Conv2d(before, after, 4, 2, 1, bias=False), nn.BatchNorm2d(after), nn.ReLU(inplace=True)]
            before = after
        self.encoder = nn.Sequential(*layers, nn.Flatten())  # (N, 8192)
        self.encoder_label, self.decoder_label = nn.Embedding(classes, EMBEDDING), nn.Embedding(classes, EMBEDDING)
        self.mu = nn.Linear(counts[-1] * 16 + EMBEDDING, latent_dim)
        self.logvar = nn.Linear(counts[-1] * 16 + EMBEDDING, latent_dim)

        layers = [nn.Linear(latent_dim + EMBEDDING, counts[-1] * 16), nn.Unflatten(1, (counts[-1], 4, 4))]
        for before, after in zip(counts[:0:-1], counts[-2::-1], strict=True):  # side doubles: 8, 16, 32
            layers += [nn.ConvTranspose2d(before, after, 4, 2, 1, bias=False), nn.BatchNorm2d(after)]
            layers += [nn.ReLU(inplace=True)]
        self.decoder = nn.Sequential(*layers, nn.ConvTranspose2d(counts[0], colours, 4, 2, 1))  # (N, colours, 64, 64)
        self.log_sigma = nn.Parameter(torch.tensor(-1.0))  # of --likelihood sigma; the others leave it alone

    def encode(self, x, y):
        """Pictures and classes -> mu and logvar of q(z|x,y), both (N, latent_dim), in the type of x."""
        h = torch.cat([self.encoder(x).to(x.dtype), y @ self.encoder_label.weight], dim=1)
        return self.mu(h).to(x.dtype), self.logvar(h).to(x.dtype)

    def decode(self, z, y):
        """Latents and classes -> (N, colours, size, size), before the last non-linearity."""
        return self.decoder(torch.cat([z, y @ self.decoder_label.weight], dim=1))

    def forward(self, x, y, eps):
        """-> decoder output, mu, logvar, for z = mu + sigma * eps: a draw from N(mu, sigma^2) through which a gradient
        reaches mu and sigma (the reparameterisation trick). eps: standard normal noise (N, latent_dim)."""
        mu, logvar = self.encode(x, y)
        return self.decode(mu + torch.exp(0.5 * logvar) * eps, y), mu, logvar


# ------------------------------------------------------------------------------------------------------ losses


# --- shared: losses of the autoencoders ---
def kl_to_prior(mu, logvar):
    """KL(N(mu, exp(logvar)) || N(0, I)) in nats: (N, latent_dim) twice -> (N,). Kingma and Welling, appendix B."""
    return 0.5 * (mu.square() + logvar.exp() - 1 - logvar).sum(1)


def mean_picture(output, likelihood):
    """Decoder output -> the mean of p(x|z), in [-1, 1]. The logistic function 1 / (1 + e^-a) is (1 + tanh(a/2)) / 2."""
    return torch.tanh(output / 2 if likelihood == "bernoulli" else output)


def terms(output, mu, logvar, x, log_sigma, args):
    """The four terms of every picture x in [-1, 1], float32 (4, N): what each likelihood means stands at the top.

    reconstruction and KL in nats, the bound (minus the ELBO) in nats, and the mean squared error over the D values.
    """
    output = output.to(x.dtype)  # with --precision bf16 the networks compute in it, the sums below do not
    kl, size = kl_to_prior(mu, logvar), x[0].numel()
    square = (x - mean_picture(output, args.likelihood)).square().flatten(1).sum(1)
    if args.likelihood == "bernoulli":
        nats = F.binary_cross_entropy_with_logits(output, (x + 1) / 2, reduction="none").flatten(1).sum(1)
        bound = nats + kl
    elif args.likelihood == "gaussian":  # the bound is that of the sigma^2 = kl_weight that the loss stands for
        nats = 0.5 * square
        bound = nats / args.kl_weight + 0.5 * math.log(2 * math.pi * args.kl_weight) * size + kl
    else:
        nats = 0.5 * square * torch.exp(-2 * log_sigma) + (log_sigma + 0.5 * math.log(2 * math.pi)) * size
        bound = nats + kl
    return torch.stack([nats, kl, bound.detach(), square.detach() / size])  # the loss is made of the first two


# --- end shared ---

LOSSES = ("loss_recon", "loss_kl", "loss_bound", "mse")  # the means of `terms`

# -------------------------------------------------------------------------------------------------- train step


def schedule(step, args):
    """What changes from step to step, which counts from 0: the factor of the learning rate, and the KL's weight with
    its warm-up (why: see vae_mlp.py)."""
    return {"decay": args.lr_decay**step, "weight": args.kl_weight * min(1.0, (step + 1) / max(args.kl_warmup, 1))}


def train_step(now, args, batches, cvae, optimiser, average, autocast):
    """One update: minimise -log p(x|z,y) + weight * KL, with one z for each picture.

    now: what schedule() returns. Returns float32 (4,) on the device, the means of `terms`. Nothing here waits for it.
    """
    for group in optimiser.param_groups:
        group["lr"] = args.lr * now["decay"]

    x, labels = next(batches)
    y = one_hot(labels, cvae.encoder_label.num_embeddings)
    eps = torch.randn(args.batch, args.latent_dim, device=x.device)
    with autocast():
        output, mu, logvar = cvae(x, y, eps)
    found = terms(output, mu, logvar, x, cvae.log_sigma, args)
    optimiser.zero_grad()
    (found[0] + now["weight"] * found[1]).mean().backward()
    optimiser.step()

    if average is not None:
        update_average(average, cvae, args.ema)
    return found.detach().mean(1)


# ------------------------------------------------------------------------------------------- using a checkpoint


def load_cvae(checkpoint, device="cpu"):
    """Checkpoint dict -> the trained network in eval mode (the averaged one if there is one), and its flags."""
    args, data = flags_of(checkpoint, FLAGS), checkpoint["data"]
    cvae = CVAE(args.size, data["channels"], len(data["classes"]), args.latent_dim, args.width)
    cvae.load_state_dict(checkpoint["networks"].get("ema") or checkpoint["networks"]["cvae"])
    return cvae.to(device, memory_format=layout(device)).eval(), args


@torch.no_grad()
def pictures(cvae, z, y, likelihood):
    """Latents and classes -> uint8 (N, colours, size, size) on the CPU: the mean of p(x|z,y), not a noisy draw."""
    device, made = cvae.log_sigma.device, []
    for part_z, part_y in zip(z.split(100), y.split(100), strict=True):
        made.append(to_uint8(mean_picture(cvae.decode(part_z.to(device), part_y.to(device)), likelihood)).cpu())
    return torch.cat(made)


@torch.no_grad()
def encode(cvae, images, y):
    """uint8 images and their classes -> mu of q(z|x,y), float32 (N, latent_dim) on the CPU."""
    device = cvae.log_sigma.device
    parts = zip(images.split(100), y.split(100), strict=True)
    return torch.cat([cvae.encode(from_uint8(x.to(device)), part.to(device))[0].cpu() for x, part in parts])


def generate(checkpoint, n, seed=0, device="cpu", label=None):
    """n pictures of random z ~ N(0, I), uint8 (n, colours, size, size), the same for the same seed.

    label: the number of a class; None: classes as frequent as in the data, those of random_labels.
    """
    cvae, args = load_cvae(checkpoint, device)
    z, y = class_inputs(checkpoint["data"]["counts"], n, args.latent_dim, seed, label)
    return pictures(cvae, z, y, args.likelihood)


def interpolate(checkpoint, rows, frames, kind="linear", seed=0, device="cpu"):
    """rows walks of `frames` pictures from one real image to another, on the straight line between their mu and their
    classes. Between the examples that the checkpoint carries; kind: "linear" only.
    Returns uint8 (rows * frames, colours, size, size)."""
    cvae, args = load_cvae(checkpoint, device)
    images, y = checkpoint["examples"], one_hot(checkpoint["example_labels"], len(checkpoint["data"]["classes"]))
    order = shuffled(len(images), seed)
    chosen = order[torch.arange(2 * rows) % len(order)]
    both = torch.cat([encode(cvae, images[chosen], y[chosen]), y[chosen]], dim=1)  # (2 rows, latent_dim + classes)
    a, b = both.split(rows)
    walk = torch.stack([torch.lerp(a, b, i / (frames - 1)) for i in range(frames)], dim=1).flatten(0, 1)
    return pictures(cvae, walk[:, : args.latent_dim], walk[:, args.latent_dim :], args.likelihood)


def as_every_class(checkpoint, device="cpu"):
    """Rows of: a real image, its reconstruction, and its latent decoded as every class (of many, the first 16).

    Returns uint8 (rows * columns, colours, size, size), and the number of columns.
    """
    cvae, args = load_cvae(checkpoint, device)
    classes = len(checkpoint["data"]["classes"])
    images, labels = checkpoint["examples"][:8], checkpoint["example_labels"][:8]
    z = encode(cvae, images, one_hot(labels, classes))
    asked = torch.cat([labels[:, None], torch.arange(min(classes, 16)).expand(len(labels), -1)], dim=1)
    made = pictures(
        cvae, z.repeat_interleave(asked.shape[1], 0), one_hot(asked.flatten(), classes), args.likelihood
    ).unflatten(0, asked.shape)
    rows = torch.cat([images[:, None], made], dim=1)
    return rows.flatten(0, 1), rows.shape[1]


@torch.no_grad()
def measure(cvae, images, labels, args):
    """The means of `terms` over uint8 images, with latents that are the same at every call: a list of four floats."""
    generator, parts, device = torch.Generator().manual_seed(0), [], cvae.log_sigma.device
    y = one_hot(labels, cvae.encoder_label.num_embeddings)
    for part, part_y in zip(images.split(200), y.split(200), strict=True):
        x = from_uint8(part.to(device))
        eps = torch.randn(len(x), args.latent_dim, generator=generator).to(device)
        parts.append(terms(*cvae(x, part_y.to(device), eps), x, cvae.log_sigma, args).cpu().double())
    return torch.cat(parts, dim=1).mean(1).tolist()


def last_values(cvae, run, metrics):
    """What is measured besides FID and KID, in the form of metrics.evaluate, on up to --eval-images images."""
    args, (pool, words) = run.args, measured_on(run.data, run.held_out)
    rows = shuffled(len(pool.images), 1)[: args.eval_images]
    images, labels = pool.images[rows], pool.labels[rows]
    words = f"{len(images)} {words} images of {pool.name}"
    mu = encode(cvae, images, one_hot(labels, len(pool.classes)))
    return metrics.autoencoder(measure(cvae, images, labels, args), mu, args.likelihood, words)


# -------------------------------------------------------------------------------------------------------- main


def main(args):
    if args.load:
        return use_generator(SCRIPT, args, generate, interpolate)
    run = Run(SCRIPT, args, FLAGS, PRESETS, LOSSES)
    args, data = run.args, run.data
    classes = len(data.classes)

    # The seed fixes weights and latents; the fixed latents of the pictures have a generator of their own.
    torch.manual_seed(args.seed)
    cvae = CVAE(args.size, data.images.shape[1], classes, args.latent_dim, args.width)
    if args.dry_run:
        y = one_hot(torch.zeros(2, dtype=torch.int64), classes)
        describe(cvae, from_uint8(data.images[:2]), y, torch.zeros(2, args.latent_dim))
        return run.plan()
    networks = {"cvae": cvae.to(run.device, memory_format=layout(run.device))}
    average = None
    if args.ema > 0:
        average = networks["ema"] = copy.deepcopy(cvae)
    optimiser = torch.optim.Adam(cvae.parameters(), args.lr, **adam_kernel(run.device))
    shown = cvae if average is None else average  # whose pictures are shown and measured

    fixed = class_rows(classes, args.latent_dim, args.seed + 1)  # of the samples
    # Real images whose reconstructions are shown, of one class after the other. They are kept in the checkpoint.
    pool, _ = measured_on(data, run.held_out)
    order = shuffled(len(pool.images), args.seed).tolist()
    labels = pool.labels.tolist()
    of_class = [[i for i in order if labels[i] == c][:16] for c in sorted(set(labels))[:16]]
    chosen = [members[k] for k in range(16) for members in of_class if k < len(members)][:16]
    examples, example_labels = pool.images[chosen], pool.labels[chosen]
    example_y = one_hot(example_labels, classes)

    def sample():
        shown.eval()  # BatchNorm's running statistics: a picture does not depend on the others in its batch
        file = f"{run.step:06d}.png"
        save_picture(grid(pictures(shown, *fixed, args.likelihood), 8), run.path / "samples" / file)
        back = pictures(shown, encode(shown, examples, example_y), example_y, args.likelihood)
        save_picture(above(examples, back), run.path / "reconstructions" / file)
        shown.train()

    def fakes(n):
        z, y = class_inputs(run.about["counts"], n, args.latent_dim, args.seed + 2)
        made = pictures(shown.eval(), z, y, args.likelihood)
        shown.train()
        return made

    columns = [f"{name}_test" for name in LOSSES] if run.held_out else []
    if not columns:
        print("no held-out images: reconstruction and KL are those of training images (--hold-out N keeps N apart)")

    def test():
        found = measure(shown.eval(), run.held_out.images[:500], run.held_out.labels[:500], args)
        shown.train()
        return dict(zip(columns, found, strict=True))

    extra = {"examples": examples, "example_labels": example_labels}
    with run.opened(networks, {"cvae": optimiser}, sample, fakes, columns, test if columns else None, extra):
        train = Captured(train_step, schedule, args, run.batches, cvae, optimiser, average, run.autocast)
        for step in run.steps():
            run.record(train(step))
    run.finish(generate, lambda metrics: last_values(shown.eval(), run, metrics))


if __name__ == "__main__":
    run_program(f"{SCRIPT}.py", main, ARGS)
