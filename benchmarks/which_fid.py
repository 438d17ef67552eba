"""How far does FID move when the protocol changes, and the images do not? Prints a Markdown table.

    python benchmarks/which_fid.py cats64.zip runs/dcgan-cats64-cats-1 [--dims 2048] [--weights FILE] [--images 1000]
    python benchmarks/which_fid.py food27.zip runs/wgan_gp-food27-small-gan-1 --quick      # with the rows of the split

REAL is a data set, FAKE a run or a checkpoint. Each row changes one thing in the first row's protocol.
"""

import argparse
import importlib
import io
import sys
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
import datasets
import metrics


def enlarged(images, **options):
    """uint8 images at 299x299, by another filter than the metric's: it then has nothing left to resize."""
    parts = [F.interpolate(part.float(), (299, 299), **options) for part in images.split(100)]
    return torch.cat([part.round().clamp(0, 255).byte() for part in parts])


def like_tensorflow(images):
    """As TensorFlow 1 did: pixel i of the result is taken at i * side / 299, half a pixel off."""
    side = images.shape[-1]
    at = torch.arange(299) * side / 299
    low = at.long()
    high, share = (low + 1).clamp(max=side - 1), (at - low).float()

    def lines(x):  # along the last dimension
        return x[..., low] * (1 - share) + x[..., high] * share

    parts = [lines(lines(part.float()).transpose(2, 3)).transpose(2, 3) for part in images.split(100)]
    return torch.cat([part.round().byte() for part in parts])


def untrained(weights):
    """The same network with random weights: He's for convolutions, and BatchNorm that changes nothing."""
    state = {}
    for name, value in weights.state.items():
        one = name.endswith(("bn.weight", "running_var"))
        state[name] = torch.nn.init.kaiming_normal_(value.clone()) if value.ndim > 1 else torch.full_like(value, one)
    return metrics.Weights(state, "random")


def jpeg(images, quality):
    def packed(image):
        Image.fromarray(image).save(buffer := io.BytesIO(), "JPEG", quality=quality)
        return np.asarray(Image.open(buffer))

    rows = np.stack([packed(image) for image in images.permute(0, 2, 3, 1).numpy()])
    return torch.from_numpy(rows).permute(0, 3, 1, 2)


def main(args):
    torch.manual_seed(0)
    checkpoint, n = datasets.read_checkpoint(args.fake), args.images
    weights, (device, precision) = metrics.load_weights(args.weights), datasets.pick_device()
    data = datasets.load(args.real, checkpoint["flags"]["size"])
    if len(data.images) < 2 * n:
        raise datasets.InputError(f"'{args.real}' has {len(data.images)} images: --images must be at most half of that")
    pool = data.images[datasets.shuffled(len(data.images), 0)].expand(-1, 3, -1, -1)
    fakes = importlib.import_module(checkpoint["script"]).generate(checkpoint, 3 * n, 0, device)
    fakes = fakes.expand(-1, 3, -1, -1)

    def of(images, dim=args.dims, precision="fp32", weights=weights):
        return metrics.features(images, (dim,), weights, device, precision)[dim]

    x, y = of(pool[: 2 * n]), of(fakes)
    first = metrics.fid(x[:n], y[:n])
    fid_error, _ = metrics.bootstrap(x[:n], y[:n], 50)
    name = metrics.named("FID", args.dims)
    print(f"| {n} generated against {n} real images, and | {name} |\n|---|---|", flush=True)

    def row(words, value):
        print(f"| {words} | {value:.3f} |", flush=True)

    row(f"nothing else (bootstrap standard error {fid_error:.3f})", first)
    row("the next latents", metrics.fid(x[:n], y[n : 2 * n]))
    row("other real images", metrics.fid(x[n:], y[:n]))
    for few in (n // 4, n // 2, 2 * n):
        row(f"{few} on each side", metrics.fid(x[:few], y[:few]))
    row(f"{3 * n} generated against {n} real", metrics.fid(x[:n], y))
    row(f"{n} real against {n} other real ones (the floor)", metrics.fid(x[:n], x[n:]))
    row(f"{n // 4} real against {n // 4} other real ones", metrics.fid(x[: n // 4], x[n : n + n // 4]))
    if data.held_out:
        held = datasets.load(args.real, checkpoint["flags"]["size"], "test").images
        z = of(held[datasets.shuffled(len(held), 0)[:n]].expand(-1, 3, -1, -1))
        row(f"{len(z)} real images that were held out of training, not {n} of training", metrics.fid(z, y[:n]))
        row(f"{n} real images of training against {len(z)} held-out ones (the floor)", metrics.fid(x[:n], z))
    if args.quick:
        return
    real, fake = pool[:n], fakes[:n]
    for words, options in {
        "resized to 299x299 by an antialiased bicubic filter": dict(mode="bicubic", antialias=True),
        "resized to the nearest pixel": dict(mode="nearest"),
    }.items():
        changed = of(enlarged(fake, **options))
        row(words, metrics.fid(of(enlarged(real, **options)), changed))
    row("resized to the nearest pixel, the generated ones only", metrics.fid(x[:n], changed))
    row("resized as TensorFlow 1 did", metrics.fid(of(like_tensorflow(real)), of(like_tensorflow(fake))))
    darker = torch.where(fake > 0, fake - (torch.rand(fake.shape) < 0.5).byte(), fake)
    row("generated values truncated to bytes, not rounded", metrics.fid(x[:n], of(darker)))
    for quality in (95, 75):
        row(f"generated images saved as JPEG of quality {quality}", metrics.fid(x[:n], of(jpeg(fake, quality))))
    if precision == "bf16":  # where the device computes in it: in software it would take hours
        rounded = of(fake, precision="bf16")
        row("the network in bf16", metrics.fid(of(real, precision="bf16"), rounded))
        row("the network in bf16, for the generated ones only", metrics.fid(x[:n], rounded))
    random = untrained(weights)
    row("other weights (random ones): another scale", metrics.fid(of(real, weights=random), of(fake, weights=random)))
    for dim in metrics.DIMS:
        if dim != args.dims:
            try:
                row(f"read at {dim} features: another scale", metrics.fid(of(real, dim), of(fake, dim)))
            except metrics.MissingWeights:
                print(f"| read at {dim} features | not measured: the weights stop before |")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("real", help="a data set, as for datasets.py")
    parser.add_argument("fake", help="a run or a checkpoint")
    parser.add_argument("--dims", type=int, default=2048, choices=metrics.DIMS)
    parser.add_argument("--weights", help="Inception weights")
    parser.add_argument("--quick", action="store_true", help="only the rows for which the network runs once an image")
    parser.add_argument("--images", type=int, default=1000, help="on each side (default 1000)")
    args = parser.parse_args()
    datasets.run_program("which_fid.py", main, args)
