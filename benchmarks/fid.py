"""FID from features at d = 2048: ours against pytorch-fid's, alternating in one process. Prints times and ratios.

    python benchmarks/fid.py [--rounds 3]

The features are random, float32, with the wide range of variances that Inception's have. "distance" starts at means and
covariances, as pytorch-fid's calculate_frechet_distance does (below d images ours forms no covariance, so there it
starts at the features); "all" starts at the features on both sides. The same numbers come out where N is well above d;
below it pytorch-fid's matrix square root is the one that is off.
"""

import argparse
import statistics
import sys
import time
from pathlib import Path

import numpy as np
import scipy.linalg

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
import metrics

try:
    from pytorch_fid import fid_score
except ImportError:
    sys.exit("this benchmark needs pytorch-fid: pip install -r requirements-dev.txt")


class Linalg:
    """scipy.linalg as pytorch-fid knew it: SciPy 1.18 drops sqrtm's `disp`, whose other result it throws away."""

    @staticmethod
    def sqrtm(matrix, disp=True):
        root = scipy.linalg.sqrtm(matrix)
        return root if disp else (root, None)


fid_score.linalg = Linalg


def timed(function, *args):
    start = time.perf_counter()
    value = function(*args)
    return value, time.perf_counter() - start


def statistics_of(features):  # as pytorch-fid's calculate_activation_statistics does, from its float64 array
    features = features.astype(np.float64)
    return np.mean(features, axis=0), np.cov(features, rowvar=False)


def main(rounds):
    d = 2048
    rng = np.random.default_rng(0)
    mix = (rng.standard_normal((d, d)) * np.exp(-np.arange(d) * 3 / d)).astype(np.float32)
    for n in 1000, 10_000:
        real = rng.standard_normal((n, d), np.float32) @ mix.T
        fake = rng.standard_normal((n, d), np.float32) @ mix.T * np.float32(1.1) + np.float32(0.1)
        times = {"ours": [], "theirs": [], "ours, distance": [], "theirs, distance": []}
        for _ in range(rounds):
            ours, seconds = timed(metrics.fid, real, fake)
            times["ours"].append(seconds)
            (mean1, s1), first = timed(statistics_of, real)
            (mean2, s2), second = timed(statistics_of, fake)
            theirs, third = timed(fid_score.calculate_frechet_distance, mean1, s1, mean2, s2)
            times["theirs"].append(first + second + third)
            times["theirs, distance"].append(third)
            times["ours, distance"].append(timed(metrics.root_trace, s1, s2)[1] if n >= d else seconds)
        median = {key: statistics.median(values) for key, values in times.items()}
        print(
            f"N = {n}, d = {d}: ours {ours:.6f}, pytorch-fid {theirs:.6f}, relative difference {ours / theirs - 1:.1e}"
        )
        for what in "", ", distance":
            one, other = median["ours" + what], median["theirs" + what]
            print(
                f"    {what[2:] or 'all':10s}ours {one:6.2f} s   pytorch-fid {other:6.2f} s   {other / one:5.1f} times"
            )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3, help="medians of this many (default 3)")
    main(parser.parse_args().rounds)
