"""Preparing a folder of photographs: datasets.py against a plain loop over the same files with Pillow, alternating.

    python benchmarks/prepare.py [--images 2000] [--rounds 3] [--size 64] [--side 384]

The folder is made for the purpose: JPEGs of side x 3/4 side pixels with the spectrum of photographs. The loop opens,
converts, crops and resizes one file after the other, in a process for each core (two cores at work are not twice as
fast as one); ours uses every core and also writes the .npy, its fingerprint and the labels. Images a second and core,
the ratio, and the peak memory of a process that prepares the folder and of one that prepares ten copies of it.
"""

import argparse
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

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
import datasets

PEAK = "import resource, sys, datasets; datasets.load(sys.argv[1], int(sys.argv[2])); print(resource.getrusage(0)[2])"


def make_photographs(folder, count, side):
    """Noise with amplitudes that fall as 1 / frequency, like photographs' (Field 1987); 50 of them, and copies."""
    rng, shape = np.random.default_rng(0), (side * 3 // 4, side)
    frequency = np.hypot(*np.meshgrid(*(np.fft.fftfreq(n) for n in shape), indexing="ij")) + 1 / side
    for i in range(count):
        path = folder / f"class{i % 5}" / f"{i:06d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        if i < 50:
            noise = np.fft.fft2(rng.standard_normal((3, *shape))) / frequency
            image = np.fft.ifft2(noise).real
            image = 128 + 50 * image / image.std()
            Image.fromarray(image.clip(0, 255).astype(np.uint8).transpose(1, 2, 0)).save(path, quality=90)
        else:
            path.write_bytes((folder / f"class{i % 50 % 5}" / f"{i % 50:06d}.jpg").read_bytes())


def plain_loop(files, size):
    return [np.asarray(ImageOps.fit(Image.open(file).convert("RGB"), (size, size))) for file in files]


def main(args):
    cores = len(os.sched_getaffinity(0))
    with tempfile.TemporaryDirectory() as temporary, ProcessPoolExecutor(cores) as pool:
        os.chdir(temporary)
        folder = Path("photographs")
        make_photographs(folder, args.images, args.side)
        files = sorted(folder.resolve().rglob("*.jpg"))
        shares, sizes = [files[k::cores] for k in range(cores)], [args.size] * cores
        rates = {"ours": [], "loop": []}
        list(pool.map(plain_loop, [share[:9] for share in shares], sizes))  # so the processes are there
        for _ in range(args.rounds):
            start = time.perf_counter()
            rows = list(pool.map(plain_loop, shares, sizes))
            rates["loop"].append(len(files) / (time.perf_counter() - start) / cores)
            for path in Path("data").glob("photographs-*"):
                path.unlink()
            start = time.perf_counter()
            data = datasets.load(folder, args.size)
            rates["ours"].append(len(files) / (time.perf_counter() - start) / cores)
            for k in range(cores):  # the same pixels
                assert np.array_equal(data.images[k::cores].permute(0, 2, 3, 1), np.stack(rows[k]))
        ratios = [ours / loop for ours, loop in zip(rates["ours"], rates["loop"], strict=True)]
        print(
            f"{len(files)} JPEGs of {args.side}x{args.side * 3 // 4} to {args.size}x{args.size} on {cores} cores: ours "
            f"{statistics.median(rates['ours']):.0f} images a second and core, plain loops "
            f"{statistics.median(rates['loop']):.0f}; ratio {statistics.median(ratios):.2f} "
            f"({min(ratios):.2f} to {max(ratios):.2f}, {args.rounds} rounds)"
        )
        (tenfold := Path("tenfold")).mkdir()
        for k in range(10):
            for file in files:
                (tenfold / file.parent.name).mkdir(exist_ok=True)
                os.link(file, tenfold / file.parent.name / f"{k}-{file.name}")
        for each in folder, tenfold:
            for path in Path("data").glob("*-*"):
                path.unlink()
            command = [sys.executable, "-c", PEAK, str(each), str(args.size)]
            peak = subprocess.run(command, env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, check=True)
            print(f"peak memory for {len(list(each.rglob('*.jpg')))} images: {int(peak.stdout) / 1024:.0f} MB")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name, default in {"images": 2000, "rounds": 3, "size": 64, "side": 384}.items():
        parser.add_argument(f"--{name}", type=int, default=default, help=f"default {default}")
    main(parser.parse_args())
