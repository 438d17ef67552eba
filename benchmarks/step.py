"""Training throughput: the DCGAN loop of the textbook against dcgan.py's, in one interleaved run.

    python benchmarks/step.py                          # 64x64, width 64, batch 64: about two minutes on two cores
    python benchmarks/step.py --rounds 9 --steps 20    # on a GPU

Textbook: pytorch/examples dcgan with dcgan.py's networks, from image files on disk. An ImageFolder is read by a
DataLoader with two workers (Resize, ToTensor, Normalize); fp32, contiguous; Adam in its plain loop; three calls of
`.item()` a step; and the backward pass of the generator's step also computes the discriminator's gradients, which
nobody uses. Ours: dcgan.train_step with the device, precision and batches that dcgan.main takes.

The two take turns, so that a machine that slows down or speeds up does so for both. The ratio is taken round by round;
its median, smallest and largest value are printed. Warm-up steps of both come first and are not counted.
"""

import argparse
import platform
import statistics
import sys
import tempfile
import time
from pathlib import Path


def parse_args(argv=None):
    parser = argparse.ArgumentParser(prog="step.py", description="Images a second: textbook DCGAN loop against ours.")
    parser.error = lambda message: parser.exit(2, f"step.py: error: {message} (see --help)\n")
    parser.add_argument("--rounds", type=int, default=5, help="turns that each side gets [5]")
    parser.add_argument("--steps", type=int, default=4, help="steps in one turn [4]")
    parser.add_argument("--batch", type=int, default=64, help="[64]")
    parser.add_argument("--size", type=int, default=64, help="[64]")
    parser.add_argument("--width", type=int, default=64, help="[64]")
    parser.add_argument("--device", default="auto", help="[auto]")
    parser.add_argument("--precision", choices=["auto", "fp32", "bf16"], default="auto", help="of our side [auto]")
    args = parser.parse_args(argv)
    if min(args.rounds, args.steps, args.batch, args.width) < 1:
        parser.error("--rounds, --steps, --batch and --width must be at least 1")
    return args


if __name__ == "__main__":
    ARGS = parse_args()

import torch
from torch import nn

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
import datasets
import dcgan

LATENT = 100


def processor():
    """The name of the CPU, where the system tells it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def networks(args):
    torch.manual_seed(0)
    generator = dcgan.Generator(args.size, 3, LATENT, args.width).apply(dcgan.init_weights)
    return generator, dcgan.Discriminator(args.size, 3, args.width).apply(dcgan.init_weights)


def write_files(images, folder):
    """uint8 images -> JPEG files in one class folder, as ImageFolder wants them."""
    (folder / "all").mkdir()
    for index, image in enumerate(images):
        datasets.grid(image[None]).save(folder / "all" / f"{index:05d}.jpg", quality=90)


def textbook(args, folder, device):
    """A generator that trains one step each time it is asked. After pytorch/examples dcgan/main.py, lines 190-260."""
    from torchvision import transforms
    from torchvision.datasets import ImageFolder

    transform = transforms.Compose(
        [transforms.Resize(args.size), transforms.ToTensor(), transforms.Normalize((0.5,) * 3, (0.5,) * 3)]
    )
    loader = torch.utils.data.DataLoader(
        ImageFolder(folder, transform), args.batch, shuffle=True, num_workers=2, drop_last=True
    )
    generator, discriminator = (network.to(device) for network in networks(args))
    plain = dict(lr=2e-4, betas=(0.5, 0.999), foreach=False, fused=False)
    opt_d = torch.optim.Adam(discriminator.parameters(), **plain)
    opt_g = torch.optim.Adam(generator.parameters(), **plain)
    criterion = nn.BCEWithLogitsLoss()
    while True:
        for real, _ in loader:
            discriminator.zero_grad()
            real = real.to(device)
            label = torch.ones(len(real), device=device)
            loss_real = criterion(discriminator(real), label)
            loss_real.backward()
            fake = generator(torch.randn(len(real), LATENT, device=device))
            label.fill_(0)
            loss_fake = criterion(discriminator(fake.detach()), label)
            loss_fake.backward()
            opt_d.step()

            generator.zero_grad()
            label.fill_(1)
            loss_g = criterion(discriminator(fake), label)
            loss_g.backward()  # through the discriminator, whose gradients accumulate until its next zero_grad
            opt_g.step()
            yield loss_real.item(), loss_fake.item(), loss_g.item()


def ours(args, data, device, precision):
    """The same, as dcgan.main does it."""
    flags = dcgan.parse_args([f"--{name}={getattr(args, name)}" for name in ("batch", "size", "width")] + ["--ema=0"])
    batches = datasets.Batches(data, args.batch, device)
    generator, discriminator = (n.to(device, memory_format=torch.channels_last) for n in networks(args))
    options = dict(lr=flags.lr, betas=(0.5, 0.999), fused=device.type != "mps")
    opt_g = torch.optim.Adam(generator.parameters(), **options)
    opt_d = torch.optim.Adam(discriminator.parameters(), **options)

    def autocast():
        return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16")

    step = 0
    while True:
        yield dcgan.train_step(step, flags, batches, generator, discriminator, opt_g, opt_d, None, autocast)
        step += 1


def rate(side, args, device):
    """Images a second over one turn. Waits for the device at both ends."""

    def wait():
        if device.type != "cpu":
            getattr(torch, device.type).synchronize()

    wait()
    start = time.perf_counter()
    for _ in range(args.steps):
        next(side)
    wait()
    return args.steps * args.batch / (time.perf_counter() - start)


def main(args):
    """Prints the table; returns the median ratio, ours to textbook."""
    device, precision = datasets.pick_device(args.device, args.precision)
    data = datasets.load("shapes", args.size)
    data = data._replace(images=data.images[: max(2000, 4 * args.batch)])
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else processor()
    print(f"{name}, {torch.get_num_threads()} threads, torch {torch.__version__}; textbook: fp32, ours: {precision}")
    print(f"{args.rounds} rounds of {args.steps} steps; batch {args.batch}, size {args.size}, width {args.width}")
    with tempfile.TemporaryDirectory() as folder:
        write_files(data.images, Path(folder))
        sides = textbook(args, folder, device), ours(args, data, device, precision)
        for side in sides:
            for _ in range(2 if device.type == "cpu" else 20):
                next(side)
        rounds = []
        for number in range(args.rounds):
            rounds.append([rate(side, args, device) for side in sides])
            print(f"round {number + 1}: textbook {rounds[-1][0]:.1f}, ours {rounds[-1][1]:.1f} img/s", flush=True)
        sides[0].close()  # ends the loader's workers before their files go
    ratios = [b / a for a, b in rounds]
    median = statistics.median(ratios)
    print("median: textbook {:.1f}, ours {:.1f} img/s".format(*map(statistics.median, zip(*rounds, strict=True))))
    print(f"ratio {median:.2f} (from {min(ratios):.2f} to {max(ratios):.2f})")
    return median


if __name__ == "__main__":
    try:
        main(ARGS)
    except (datasets.InputError, OSError) as problem:
        print(f"step.py: error: {problem}", file=sys.stderr)
        sys.exit(2)
