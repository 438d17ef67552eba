"""Preparing a folder of photographs: datasets.py against a plain loop with Pillow, in turns.

    python benchmarks/prepare.py --images 2000 --rounds 3 --size 64 --side 384

The folder is made for this: JPEGs of side x 3/4 side pixels with the spectrum of photographs. The
plain loop opens, converts, crops and resizes one file after the other, in a process for each core.
Ours uses every core, too, and also writes the .npy, its fingerprint and the labels. The program
prints images a second and core, the ratio, and the peak memory of a process that prepares the
folder and of one that prepares ten copies of it.
"""

import signal

if __name__ == "__main__":  # Ctrl-C during the imports is silent; run_program takes over later
    signal.signal(signal.SIGINT, signal.SIG_DFL)

import os
import statistics
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
import datasets
from sources import new_parser, number, run_program

ROOT = Path(datasets.__file__).parent
PEAK = """
import resource, sys, datasets
datasets.load(sys.argv[1], int(sys.argv[2]))
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


def make_photographs(folder, count, side):
    """Noise whose amplitudes fall as 1 / frequency, like those of photographs (Field 1987).

    50 of them, and copies.
    """
    rng = np.random.default_rng(0)
    shape = (side * 3 // 4, side)
    frequencies = np.meshgrid(*(np.fft.fftfreq(n) for n in shape), indexing="ij")
    frequency = np.hypot(*frequencies) + 1 / side
    for i in range(count):
        path = folder / f"class{i % 5}" / f"{i:06d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        if i < 50:
            noise = np.fft.fft2(rng.standard_normal((3, *shape))) / frequency
            image = np.fft.ifft2(noise).real
            image = 128 + 50 * image / image.std()
            pixels = image.clip(0, 255).astype(np.uint8).transpose(1, 2, 0)
            Image.fromarray(pixels).save(path, quality=90)
        else:
            original = folder / f"class{i % 50 % 5}" / f"{i % 50:06d}.jpg"
            path.write_bytes(original.read_bytes())


def plain_loop(files, size):
    images = []
    for file in files:
        with Image.open(file) as image:
            images.append(np.asarray(ImageOps.fit(image.convert("RGB"), (size, size))))
    return images


def forget_prepared():
    for path in Path("data").glob("*-*"):
        path.unlink()


def time_rounds(folder, files, size, rounds):
    """Images a second and core: [(ours, the plain loop) of each round]."""
    cores = len(os.sched_getaffinity(0))
    shares = [files[k::cores] for k in range(cores)]
    sizes = [size] * cores
    rates = []
    with ProcessPoolExecutor(cores) as pool:
        list(pool.map(plain_loop, [share[:9] for share in shares], sizes))  # starts the processes
        for _ in range(rounds):
            start = time.perf_counter()
            images = list(pool.map(plain_loop, shares, sizes))
            plain = len(files) / (time.perf_counter() - start) / cores
            forget_prepared()
            start = time.perf_counter()
            data = datasets.load(folder, size)
            ours = len(files) / (time.perf_counter() - start) / cores
            rates.append((ours, plain))
            for k in range(cores):  # the same pixels
                pixels = data.images[k::cores].permute(0, 2, 3, 1)
                assert np.array_equal(pixels, np.stack(images[k]))
    return rates


def print_peak(folder, size):
    """The peak memory of a process that prepares a folder."""
    forget_prepared()
    command = [sys.executable, "-c", PEAK, str(folder), str(size)]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, env=environment, capture_output=True, check=True)
    count = len(list(folder.rglob("*.jpg")))
    print(f"peak memory for {count} images: {int(done.stdout) / 1024:.0f} MB")


def main(argv=None):
    parser = new_parser("prepare.py", __doc__)
    for name, default in {"images": 2000, "rounds": 3, "size": 64, "side": 384}.items():
        parser.add_argument(f"--{name}", type=number(int, 1), default=default, help=f"[{default}]")
    args = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as temporary:
        os.chdir(temporary)
        folder = Path("photographs")
        make_photographs(folder, args.images, args.side)
        files = sorted(folder.resolve().rglob("*.jpg"))
        rates = time_rounds(folder, files, args.size, args.rounds)
        ours = statistics.median(ours for ours, _ in rates)
        plain = statistics.median(plain for _, plain in rates)
        ratios = [ours / plain for ours, plain in rates]
        spread = f"{min(ratios):.2f} to {max(ratios):.2f}, {args.rounds} rounds"
        print(f"{len(files)} JPEGs of {args.side}x{args.side * 3 // 4} to {args.size}x{args.size}")
        print(f"ours {ours:.0f} images a second and core, plain loops {plain:.0f};", end=" ")
        print(f"ratio {statistics.median(ratios):.2f} ({spread})")
        tenfold = Path("tenfold")
        for k in range(10):
            for file in files:
                copy = tenfold / file.parent.name / f"{k}-{file.name}"
                copy.parent.mkdir(parents=True, exist_ok=True)
                os.link(file, copy)
        print_peak(folder, args.size)
        print_peak(tenfold, args.size)


if __name__ == "__main__":
    run_program(main)
