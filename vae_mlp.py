"""Variational autoencoder (VAE), the smallest one: both networks are three fully connected layers.

An encoder turns a picture x into a normal distribution over latent vectors, q(z|x) = N(mu, exp(logvar)); a decoder
turns a latent vector into a picture. Training asks for two things at once: the picture must come back from a z drawn
from q(z|x), and q(z|x) must stay close to the prior N(0, I), so that random latents make pictures afterwards:

    picture (3, 64, 64) in [-1, 1]                   z = mu + exp(logvar / 2) * eps, eps ~ N(0, I)   (latent_dim)
      | flatten                                        | Linear, LeakyReLU 0.2
    (12288)                                          (width)
      | Linear, LeakyReLU 0.2                          | Linear, LeakyReLU 0.2
    (width)                                          (width)
      | Linear, LeakyReLU 0.2                          | Linear
    (width)                                          (12288)
      | Linear                                         | sigmoid for values in [0, 1], or tanh for [-1, 1]
    mu, logvar (latent_dim each)                     picture (3, 64, 64)              width 512, latent_dim 16

Kingma, Welling: Auto-Encoding Variational Bayes, 2014 (arXiv 1312.6114); Rezende et al. 2014 (arXiv 1401.4082).

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

    python vae_mlp.py                                            # built-in shapes: two to three minutes on two cores
    python vae_mlp.py --data photos/ --size 64 --epochs 100      # your own pictures: a folder, a zip, an .npz
    python vae_mlp.py --load runs/vae_mlp-shapes-1 --generate 64 --to grid.png
    python vae_mlp.py --load runs/vae_mlp-shapes-1 --iwae 64     # how good is the model, in nats

Report row (the README has the numbers): --preset cats is R2b. Time: 50
epochs of 23,000 cats take about 20 minutes on two older CPU cores.

If you copy this for coursework: take datasets.py along (metrics.py and report.py if you want FID and plots). What makes
it a VAE is in `VAE`, the three losses and `train_step`; change those. The blocks marked "shared" are the same in every
script (the losses in both autoencoders).
"""

import argparse
import sys

# A preset only sets defaults: a flag on the command line wins. "report" holds the published numbers, never a flag.
PRESETS = {
    "shapes": dict(  # what `python vae_mlp.py` alone runs: small enough for a laptop without a GPU
        # a KL weight above 1: the latents of random samples must look like those of pictures, or shapes come out broken
        data="shapes", size=32, latent_dim=16, epochs=40, ema=0.99, likelihood="sigma", kl_weight=8.0, kl_warmup=500,
    ),
    "cats": dict(  # R2b. Rate and batch are not stated there: ours
        data="cats64", size=64, width=512, latent_dim=16, batch=128, epochs=50, lr=1e-3, likelihood="bernoulli",
        kl_weight=1.0,
        report={"bound (nats)": 7036.5, "protocol": "R2: loss averaged over epoch 50, 29,843 training "
                "images; cross-entropy summed over values plus KL summed over latents (our reading)"},
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
    "size": (None, number(int, 8, 1025), "side of the pictures in pixels (default: 32 for small images, else 64)"),
    "width": (512, number(int, 1), "length of the hidden layers"),
    "latent_dim": (16, number(int, 1), "length of z"),
    "lr": (1e-3, number(float, 1e-12), "learning rate"),
    "likelihood": ("bernoulli", ["bernoulli", "gaussian", "sigma"], "p(x|z): see below"),
    "kl_weight": (1.0, number(float, 1e-9), "weight of the KL in nats against the reconstruction in nats: see below"),
    "kl_warmup": (0, number(int, 0), "the weight of the KL grows linearly over this many steps"),
    "hold_out": (0, number(int, 0), "images kept out of training to measure on, for data without a test split"),
    "interpolate": (None, number(int, 2), "with --load: N pictures from one real image to another, 8 times"),
    "iwae": (0, number(int, 0), "importance samples of the bound on log p(x): at a preset's end, or with --load"),
}

USED_WITH = {  # a use of --load: the flags that it reads
    "generate": ["to"], "interpolate": ["to", "data"], "iwae": ["data", "eval_images"],
}  # fmt: skip

if __name__ == "__main__":  # before the slow imports: --help and typing errors answer at once
    ARGS = parse_args()

import copy
import math

import torch
import torch.nn.functional as F
from torch import nn

try:
    from datasets import Captured, InputError, Run, above, adam_kernel, beside, checkpoint_of, describe, flags_of
    from datasets import from_uint8, grid, latents, load_parts, measured_on, pick_device, run_program, save_picture  # isort: skip
    from datasets import shuffled, to_uint8, update_average, weights_used, write_pictures  # isort: skip
except ImportError as problem:
    sys.exit(print(f"vae_mlp.py: error: needs our datasets.py beside it ({problem})", file=sys.stderr) or 2)

SCRIPT = "vae_mlp"

# ---------------------------------------------------------------------------------------------------- network


class VAE(nn.Module):
    """Encoder and decoder. Pictures are (N, colours, size, size) in [-1, 1], of any size."""

    def __init__(self, size, colours, latent_dim, width):
        super().__init__()
        values = colours * size * size  # D: 12288 at 64x64 in colour
        self.encoder = nn.Sequential(
            nn.Flatten(),  # (N, D)
            nn.Linear(values, width),  # (N, 512)
            nn.LeakyReLU(0.2),
            nn.Linear(width, width),  # (N, 512)
            nn.LeakyReLU(0.2),
            nn.Linear(width, 2 * latent_dim),  # (N, 32): mu and logvar side by side
        )
        self.decoder = nn.Sequential(
            nn.Linear(latent_dim, width),  # (N, 512)
            nn.LeakyReLU(0.2),
            nn.Linear(width, width),  # (N, 512)
            nn.LeakyReLU(0.2),
            nn.Linear(width, values),  # (N, D)
            nn.Unflatten(1, (colours, size, size)),
        )
        self.log_sigma = nn.Parameter(torch.tensor(-1.0))  # of --likelihood sigma; the others leave it alone

    def encode(self, x):
        """Pictures -> mu and logvar of q(z|x), both (N, latent_dim), in the type of x."""
        return self.encoder(x).to(x.dtype).chunk(2, dim=1)

    def forward(self, x, eps):
        """Pictures and standard normal noise (N, latent_dim) -> decoder output, mu, logvar.

        z = mu + sigma * eps is a draw from N(mu, sigma^2) through which a gradient reaches mu and sigma: the
        reparameterisation trick.
        """
        mu, logvar = self.encode(x)
        return self.decoder(mu + torch.exp(0.5 * logvar) * eps), mu, logvar


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


@torch.no_grad()
def importance_bound(vae, x, samples, args, generator):
    """-log p(x) in nats, estimated from above with `samples` draws from q(z|x) for each picture: float64 (N,).

        -log( 1/K sum_k p(x|z_k) p(z_k) / q(z_k|x) )        Burda et al. 2016 (arXiv 1509.00519), equation 8

    For K = 1 its mean is minus the ELBO; for large K it falls to -log p(x) itself.
    """
    mu, logvar = vae.encode(x)
    logs = []
    for _ in range(samples):
        eps = torch.randn(mu.shape, generator=generator).to(mu.device)
        z = mu + torch.exp(0.5 * logvar) * eps
        # log p(x|z): the bound without its KL. log p(z) - log q(z|x): the factors (2 pi)^(-d/2) cancel.
        _, kl, bound, _ = terms(vae.decoder(z), mu, logvar, x, vae.log_sigma, args)
        log_ratio = 0.5 * (eps.square() + logvar - z.square()).sum(1)
        logs.append((kl - bound + log_ratio).cpu().double())
    return math.log(samples) - torch.logsumexp(torch.stack(logs), dim=0)


# -------------------------------------------------------------------------------------------------- train step


def schedule(step, args):
    """What changes from step to step, which counts from 0: the factor of the learning rate, and the KL's weight."""
    # Warm-up (Bowman et al. 2016, 1511.06349): a KL that weighs fully from the start can switch latents off before the
    # decoder has learnt to use them, and they stay off.
    return {"decay": args.lr_decay**step, "weight": args.kl_weight * min(1.0, (step + 1) / max(args.kl_warmup, 1))}


def train_step(now, args, batches, vae, optimiser, average, autocast):
    """One update: minimise -log p(x|z) + weight * KL, with one z for each picture.

    now: what schedule() returns. Returns float32 (4,) on the device, the means of `terms`. Nothing here waits for it.
    """
    for group in optimiser.param_groups:
        group["lr"] = args.lr * now["decay"]

    x, _ = next(batches)
    with autocast():
        output, mu, logvar = vae(x, torch.randn(args.batch, args.latent_dim, device=x.device))
    found = terms(output, mu, logvar, x, vae.log_sigma, args)
    optimiser.zero_grad()
    (found[0] + now["weight"] * found[1]).mean().backward()
    optimiser.step()

    if average is not None:
        update_average(average, vae, args.ema)
    return found.detach().mean(1)


# ------------------------------------------------------------------------------------------- using a checkpoint


def load_vae(checkpoint, device="cpu"):
    """Checkpoint dict -> the trained network (the averaged one if there is one), and the flags it was trained with."""
    args = flags_of(checkpoint, FLAGS)
    vae = VAE(args.size, checkpoint["data"]["channels"], args.latent_dim, args.width)
    vae.load_state_dict(checkpoint["networks"].get("ema") or checkpoint["networks"]["vae"])
    return vae.to(device).eval(), args


@torch.no_grad()
def pictures(vae, z, likelihood):
    """Latents (N, latent_dim) -> uint8 (N, colours, size, size) on the CPU: the mean of p(x|z), not a noisy draw."""
    device = vae.log_sigma.device
    return torch.cat([to_uint8(mean_picture(vae.decoder(part.to(device)), likelihood)).cpu() for part in z.split(100)])


@torch.no_grad()
def encode(vae, images):
    """uint8 images -> mu of q(z|x), float32 (N, latent_dim) on the CPU."""
    return torch.cat([vae.encode(from_uint8(part.to(vae.log_sigma.device)))[0].cpu() for part in images.split(100)])


def generate(checkpoint, n, seed=0, device="cpu"):
    """n pictures from z ~ N(0, I), uint8 (n, colours, size, size), the same for the same seed."""
    z = latents(n, checkpoint["flags"]["latent_dim"], seed)
    return pictures(load_vae(checkpoint, device)[0], z, checkpoint["flags"]["likelihood"])


def interpolate(checkpoint, rows, frames, kind="linear", seed=0, device="cpu", images=None):
    """rows walks of `frames` pictures from one real image to another, on the straight line between their mu.

    images: uint8, where the ends are drawn from; None: the examples that the checkpoint carries. kind: "linear" only.
    Returns uint8 (rows * frames, colours, size, size).
    """
    images = checkpoint["examples"] if images is None else images
    order = shuffled(len(images), seed)
    vae, args = load_vae(checkpoint, device)
    a, b = encode(vae, images[order[torch.arange(2 * rows) % len(order)]]).split(rows)
    z = torch.stack([torch.lerp(a, b, i / (frames - 1)) for i in range(frames)], dim=1)  # (rows, frames, latent_dim)
    return pictures(vae, z.flatten(0, 1), args.likelihood)


@torch.no_grad()
def measure(vae, images, args):
    """The means of `terms` over uint8 images, with latents that are the same at every call: a list of four floats."""
    generator, parts = torch.Generator().manual_seed(0), []
    for part in images.split(500):
        x = from_uint8(part.to(vae.log_sigma.device))
        eps = torch.randn(len(x), args.latent_dim, generator=generator).to(x.device)
        parts.append(terms(*vae(x, eps), x, vae.log_sigma, args).cpu().double())
    return torch.cat(parts, dim=1).mean(1).tolist()


def last_values(vae, args, metrics, pool, words):
    """What is measured besides FID and KID, in the form of metrics.evaluate, on up to --eval-images images of pool."""
    images = pool.images[shuffled(len(pool.images), 1)]
    images = images[: args.eval_images or 1000]
    if len(images) < 2:
        raise InputError(f"{len(images)} image of {pool.name}: at least 2 are needed, see --eval-images")
    words = f"{len(images)} {words} images of {pool.name}"
    values = metrics.autoencoder(measure(vae, images, args), encode(vae, images), args.likelihood, words)
    if args.iwae:
        generator, device = torch.Generator().manual_seed(0), vae.log_sigma.device
        parts = (from_uint8(part.to(device)) for part in images.split(100))
        found = torch.cat([importance_bound(vae, x, args.iwae, args, generator) for x in parts]).mean().item()
        how = f"-log p(x) from above with {args.iwae} importance samples (Burda et al. 2016), nats per image; {words}"
        values.insert(3, {"name": f"bound ({args.iwae} samples)", "value": found, "real": None, "protocol": how})
    return values


def use_checkpoint(args):
    """--load with --generate, --interpolate or --iwae."""
    checkpoint = checkpoint_of(SCRIPT, args.load)
    device, _ = pick_device(args.device)
    print(f"{SCRIPT}, {weights_used(checkpoint)}")
    if args.generate:
        write_pictures(generate(checkpoint, args.generate, args.seed, device), args.to or "generated.png")
        return
    flags, about, own = checkpoint["flags"], checkpoint["data"], "data" not in args.explicit
    if args.interpolate and own:
        images = checkpoint["examples"]
    else:  # the images of the run, or others that --data names
        source, count = (flags["data"], flags["hold_out"]) if own else (args.data, 0)
        pool, words = measured_on(*load_parts(source, flags["size"], count))
        images, channels = pool.images, about["channels"]
        if own and pool.fingerprint != about["fingerprint"]:
            raise InputError(f"'{source}' is not the data that this model was trained on (its fingerprint differs)")
        if images.shape[1] != channels:
            raise InputError(f"'{source}' has {images.shape[1]} channels, and this model was trained on {channels}")
    if args.interpolate:
        walks = interpolate(checkpoint, 8, args.interpolate, seed=args.seed, device=device, images=images)
        write_pictures(walks, args.to or "interpolation.png", columns=args.interpolate)
    elif (metrics := beside("metrics")) is not None:
        vae, trained = load_vae(checkpoint, device)
        trained.iwae, trained.eval_images = args.iwae, args.eval_images
        words = words if own else "given"
        print(metrics.table(last_values(vae, trained, metrics, pool, words)))


# -------------------------------------------------------------------------------------------------------- main


def main(args):
    if args.load:
        return use_checkpoint(args)
    run = Run(SCRIPT, args, FLAGS, PRESETS, LOSSES)
    args, data = run.args, run.data
    if args.iwae and "report" not in run.preset:
        raise InputError("--iwae goes with --load CHECKPOINT, or with a preset that ends with its report's numbers")

    # The seed fixes weights and latents; the fixed latents of the pictures have a generator of their own.
    torch.manual_seed(args.seed)
    vae = VAE(args.size, data.images.shape[1], args.latent_dim, args.width)
    if args.dry_run:
        describe(vae, from_uint8(data.images[:2]), torch.zeros(2, args.latent_dim))
        return run.plan()
    networks = {"vae": vae.to(run.device)}
    average = None
    if args.ema > 0:
        average = networks["ema"] = copy.deepcopy(vae)
    optimiser = torch.optim.Adam(vae.parameters(), args.lr, **adam_kernel(run.device))
    shown = vae if average is None else average  # whose pictures are shown and measured
    fixed = latents(64, args.latent_dim, args.seed + 1)
    # Real images whose reconstructions are shown. They are kept in the checkpoint, which can then interpolate alone.
    examples = measured_on(data, run.held_out)[0].images
    examples = examples[shuffled(len(examples), args.seed)[:16]]

    def sample():
        file = f"{run.step:06d}.png"
        save_picture(grid(pictures(shown, fixed, args.likelihood), 8), run.path / "samples" / file)
        back = pictures(shown, encode(shown, examples), args.likelihood)
        save_picture(above(examples, back), run.path / "reconstructions" / file)

    def fakes(n):
        z = latents(n, args.latent_dim, args.seed + 2)
        return pictures(shown, z, args.likelihood)

    held_out = run.held_out and run.held_out.images[:500]
    columns = [f"{name}_test" for name in LOSSES] if held_out is not None else []
    if held_out is None:
        print("no held-out images: reconstruction and KL are those of training images (--hold-out N keeps N apart)")

    def test():
        return dict(zip(columns, measure(shown, held_out, args), strict=True))

    extra = {"examples": examples}
    with run.opened(networks, {"vae": optimiser}, sample, fakes, columns, test if columns else None, extra):
        train = Captured(train_step, schedule, args, run.batches, vae, optimiser, average, run.autocast)
        for step in run.steps():
            run.record(train(step))
    run.finish(generate, lambda metrics: last_values(shown, args, metrics, *measured_on(data, run.held_out)))


if __name__ == "__main__":
    run_program(f"{SCRIPT}.py", main, ARGS)
