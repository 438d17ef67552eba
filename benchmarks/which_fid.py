"""How far does FID move if the protocol changes and the images stay? Prints a Markdown table.

    python benchmarks/which_fid.py cats64.zip runs/dcgan-cats64-cats-1 --dims 2048 --images 1000
    python benchmarks/which_fid.py food27.zip runs/wgan_gp-food27-small-gan-1 --quick

REAL is a data set, FAKE a run or a checkpoint. Each row changes one thing in the protocol of the
first row.
"""

import signal

if __name__ == "__main__":  # Ctrl-C during the imports is silent; run_program takes over later
    signal.signal(signal.SIGINT, signal.SIG_DFL)

import io
import sys
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
import datasets
import inception
import metrics
import training
from datasets import shuffled
from sources import InputError, new_parser, number, run_program


def enlarged(images, **options):
    """uint8 images at 299x299 by another filter than the metric's, which then has nothing to do."""
    parts = [F.interpolate(part.float(), (299, 299), **options) for part in images.split(100)]
    return torch.cat([part.round().clamp(0, 255).byte() for part in parts])


def like_tensorflow(images):
    """uint8 images at 299x299 as by TensorFlow 1: pixel i is taken at i * side / 299, which is half
    a pixel off."""
    side = images.shape[-1]
    position = torch.arange(299) * side / 299
    low = position.long()
    high = (low + 1).clamp(max=side - 1)
    share = position - low

    def along_last(x):
        return x[..., low] * (1 - share) + x[..., high] * share

    parts = []
    for part in images.split(100):
        columns = along_last(part.float()).transpose(2, 3)
        parts.append(along_last(columns).transpose(2, 3).round().byte())
    return torch.cat(parts)


def untrained(weights):
    """The same network with random weights: He's in convolutions, and BatchNorm changes nothing."""
    state = {}
    for name, value in weights.state.items():
        if value.ndim > 1:
            state[name] = torch.nn.init.kaiming_normal_(value.clone())
        else:
            one = name.endswith(("bn.weight", "running_var"))
            state[name] = torch.full_like(value, one)
    return inception.Weights(state, "random")


def jpeg(images, quality):
    """uint8 images (N, 3, H, W) after they were saved as JPEG."""
    result = []
    for image in images.permute(0, 2, 3, 1).numpy():
        file = io.BytesIO()
        Image.fromarray(image).save(file, "JPEG", quality=quality)
        result.append(np.asarray(Image.open(file)))
    return torch.from_numpy(np.stack(result)).permute(0, 3, 1, 2)


def truncated(images):
    """As if values had been cut off to bytes: half of the pixels are one level darker."""
    darker = (torch.rand(images.shape) < 0.5).byte()
    return torch.where(images > 0, images - darker, images)


def row(words, real, fake):
    """Print a row with the FID of two sets of features."""
    print(f"| {words} | {metrics.fid(real, fake):.3f} |", flush=True)


def count_rows(n, x, y):
    """Rows for other images and other numbers of them. x, y: features of 2 n real and 3 n
    generated images."""
    quarter = n // 4
    se, _ = metrics.bootstrap(x[:n], y[:n], 50)
    row(f"nothing else (bootstrap standard error {se:.3f})", x[:n], y[:n])
    row("the next latents", x[:n], y[n : 2 * n])
    row("other real images", x[n:], y[:n])
    for few in (quarter, n // 2, 2 * n):
        row(f"{few} on each side", x[:few], y[:few])
    row(f"{3 * n} generated against {n} real", x[:n], y)
    row(f"{n} real against {n} other real ones (the floor)", x[:n], x[n:])
    words = f"{quarter} real against {quarter} other real ones"
    row(words, x[:quarter], x[n : n + quarter])


def pixel_rows(of, real, fake):
    """Rows for other ways to resize and to store. of(images): their features."""
    x = of(real)
    bicubic = {"mode": "bicubic", "antialias": True}
    words = "resized to 299x299 by an antialiased bicubic filter"
    y = of(enlarged(fake, **bicubic))
    row(words, of(enlarged(real, **bicubic)), y)
    y = of(enlarged(fake, mode="nearest"))
    row("resized to the nearest pixel", of(enlarged(real, mode="nearest")), y)
    row("resized to the nearest pixel, the generated ones only", x, y)
    y = of(like_tensorflow(fake))
    row("resized as TensorFlow 1 did", of(like_tensorflow(real)), y)
    row("generated values truncated to bytes, not rounded", x, of(truncated(fake)))
    for quality in (95, 75):
        row(f"generated images saved as JPEG of quality {quality}", x, of(jpeg(fake, quality)))


def network_rows(of, real, fake, dims, weights, bf16):
    """Rows for another precision, other weights and other layers of the network."""
    if bf16:
        y = of(fake, precision="bf16")
        row("the network in bf16", of(real, precision="bf16"), y)
        row("the network in bf16, for the generated ones only", of(real), y)
    random = untrained(weights)
    words = "other weights (random ones): another scale"
    row(words, of(real, weights=random), of(fake, weights=random))
    for dim in inception.DIMS:
        if dim == dims:
            continue
        try:
            row(f"read at {dim} features: another scale", of(real, dim), of(fake, dim))
        except inception.MissingWeights:
            print(f"| read at {dim} features | not measured: the weights stop before |")


def main(argv=None):
    parser = new_parser("which_fid.py", __doc__)
    add = parser.add_argument
    add("real", metavar="REAL", help="a data set, as for datasets.py")
    add("fake", metavar="FAKE", help="a run directory or a checkpoint")
    add("--dims", type=int, default=2048, choices=inception.DIMS, help="features [%(default)s]")
    add("--weights", metavar="FILE", help="FID Inception weights")
    add("--quick", action="store_true", help="only rows that run the network once an image")
    add("--images", type=number(int, 10), default=1000, help="on each side [%(default)s]")
    args = parser.parse_args(argv)
    torch.manual_seed(0)
    n = args.images
    checkpoint = training.read_checkpoint(args.fake)
    weights = inception.load_weights(args.weights)
    device, precision = training.pick_device()
    size = checkpoint["flags"]["size"]
    fit = checkpoint["flags"]["fit"]
    data = datasets.load(args.real, size, fit=fit)
    if len(data.images) < 2 * n:
        count = len(data.images)
        raise InputError(f"'{args.real}' has {count} images: --images must be at most half of that")
    script, model = training.open_model(checkpoint, device)
    chosen = shuffled(len(data.images), 0)[: 2 * n]
    real = data.images[chosen].expand(-1, 3, -1, -1)
    fake = script.generate(model, 3 * n).expand(-1, 3, -1, -1)

    def of(images, dim=args.dims, precision="fp32", weights=weights):
        return inception.features(images, (dim,), weights, device, precision)[dim]

    x = of(real)
    y = of(fake)
    name = metrics.metric_name("FID", args.dims)
    print(f"| {n} generated against {n} real images, and | {name} |\n|---|---|", flush=True)
    count_rows(n, x, y)
    if data.held_out:
        test = datasets.load(args.real, size, "test", fit).images
        chosen = shuffled(len(test), 0)[:n]
        z = of(test[chosen].expand(-1, 3, -1, -1))
        words = f"{len(z)} real images that were held out of training, not {n} of training"
        row(words, z, y[:n])
        words = f"{n} real images of training against {len(z)} held-out ones (the floor)"
        row(words, x[:n], z)
    if not args.quick:
        pixel_rows(of, real[:n], fake[:n])
        # bf16 only where the device computes in it: in software it would take hours
        network_rows(of, real[:n], fake[:n], args.dims, weights, precision == "bf16")


if __name__ == "__main__":
    run_program(main)
