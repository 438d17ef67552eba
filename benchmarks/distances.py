"""FID, KID, the collapse check and Inception's features: ours against the common libraries', alternating.

    python benchmarks/distances.py [--rounds 3] [--images 1000 10000 50000] [--only fid kid collapse features]

Random features, float32 (N, 2048), with the wide range of variances that Inception's have; each library is given what
it takes and begins there: FID with means and covariances included, KID with 100 subsets of 1,000. The collapse check
has a counterpart in torchmetrics alone (all cosine similarities). `features` runs the network on bytes of 64x64 with
random weights. Prints for each the value, the median time, and how many times ours it is.
"""

import argparse
import contextlib
import io
import statistics
import sys
import time
from pathlib import Path

import numpy as np
import scipy.linalg
import torch

sys.path[:0] = map(str, Path(__file__).resolve().parents[:2])
import sides

import datasets
import metrics

try:
    import cleanfid.fid
    import torch_fidelity.metric_fid
    import torch_fidelity.metric_kid
    import torchmetrics.functional
    from pytorch_fid import fid_score
    from pytorch_fid import inception as pytorch_fid
    from torchmetrics.image.fid import FrechetInceptionDistance
    from torchmetrics.image.kid import KernelInceptionDistance
except ImportError as problem:
    sys.exit(f"this benchmark needs the other libraries ({problem}): pip install -r requirements-dev.txt")


class Linalg:
    """scipy.linalg as pytorch-fid and clean-fid knew it: SciPy 1.18 drops sqrtm's `disp`, whose result they discard."""

    @staticmethod
    def sqrtm(matrix, disp=True):
        root = scipy.linalg.sqrtm(matrix)
        return root if disp else (root, None)


fid_score.linalg = cleanfid.fid.linalg = Linalg


class Identity(torch.nn.Module):
    """For torchmetrics, which takes a network: the features are there already."""

    def __init__(self, d):
        super().__init__()
        self.num_features = d

    def forward(self, x):
        return x


def features(n, d=2048):
    """Two sides (n, d), float32, of other means and scales."""
    rng = np.random.default_rng(0)
    mix = (rng.standard_normal((d, d)) * np.exp(-np.arange(d) * 3 / d) / d**0.5).astype(np.float32)
    real = np.abs(rng.standard_normal((n, d), np.float32) @ mix.T)
    return real, np.abs(rng.standard_normal((n, d), np.float32) @ mix.T * np.float32(1.1) + np.float32(0.01))


# ------------------------------------------------------------------------- the same thing, as each library does it


def fid_by_pytorch_fid(real, fake):
    def of(x):
        x = x.astype(np.float64)  # as its array of activations is
        return np.mean(x, axis=0), np.cov(x, rowvar=False)

    return fid_score.calculate_frechet_distance(*of(real), *of(fake))


def fid_by_torch_fidelity(real, fake):
    metric = torch_fidelity.metric_fid
    sides = [metric.fid_features_to_statistics(torch.from_numpy(x)) for x in (real, fake)]
    return metric.fid_statistics_to_metric(*sides, verbose=False)[metric.KEY_METRIC_FID]


def by_torchmetrics(kind, real, fake):
    metric = kind(Identity(real.shape[1]))
    for x, is_real in ((real, True), (fake, False)):
        for part in torch.from_numpy(x).split(1000):
            metric.update(part, real=is_real)
    return metric.compute()


def kid_by_torch_fidelity(real, fake):
    metric = torch_fidelity.metric_kid
    options = dict(kid_kernel="poly", kid_kernel_poly_degree=3, kid_kernel_poly_gamma=None, kid_kernel_poly_coef0=1)
    options |= dict(kid_subsets=100, kid_subset_size=1000, rng_seed=0, verbose=False)
    found = metric.kid_features_to_metric(torch.from_numpy(real), torch.from_numpy(fake), **options)
    return found[metric.KEY_METRIC_KID_MEAN]


def collapse_by_torchmetrics(x):
    close = torchmetrics.functional.pairwise_cosine_similarity(torch.from_numpy(x), zero_diagonal=True) > 0.9
    return int(close.sum())


FID = {
    "ours": metrics.fid,
    "pytorch-fid": fid_by_pytorch_fid,
    "clean-fid": cleanfid.fid.fid_from_feats,
    "torch-fidelity": fid_by_torch_fidelity,
    "torchmetrics": lambda *sides: by_torchmetrics(FrechetInceptionDistance, *sides).item(),
}
KID = {
    "ours": lambda *sides: metrics.kid(*sides)[0],
    "clean-fid": cleanfid.fid.kernel_distance,
    "torch-fidelity": kid_by_torch_fidelity,
    "torchmetrics": lambda *sides: by_torchmetrics(KernelInceptionDistance, *sides)[0].item(),
}
COLLAPSE = {"ours": lambda x: metrics.collapse(x)[0], "torchmetrics": collapse_by_torchmetrics}


def extractor(name, precision):
    """The mean of the 2,048 features of 128 images, by ours or pytorch-fid's network with the same random weights."""
    images = datasets.shapes(64, "test").images[:128]
    torch.manual_seed(0)
    with contextlib.redirect_stdout(io.StringIO()):
        state = pytorch_fid._inception_v3(num_classes=1008, aux_logits=False, weights=None).state_dict()
    if name == "ours":
        datasets.pick_device("cpu")
        weights = metrics.Weights(state, "random")
        return lambda: float(metrics.features(images, (2048,), weights, precision=precision)[2048].mean())
    pytorch_fid.load_state_dict_from_url = lambda *args, **kwargs: state
    network = pytorch_fid.InceptionV3([3]).eval()

    @torch.no_grad()
    def theirs():
        return torch.cat([network(part.float() / 255)[0].mean((2, 3)) for part in images.split(32)]).mean().item()

    return theirs


def compare(title, ways, given, rounds):
    times, values = {name: [] for name in ways}, {}
    for _ in range(rounds):
        for name, way in ways.items():
            start = time.perf_counter()
            values[name] = way(*given)
            times[name].append(time.perf_counter() - start)
    print(title)
    for name in ways:
        ratios = [theirs / ours for theirs, ours in zip(times[name], times["ours"], strict=True)]
        spread = f" ({min(ratios):.1f} to {max(ratios):.1f})" if rounds > 1 and name != "ours" else ""
        seconds = statistics.median(times[name])
        print(f"    {name:15s}{values[name]:14.7g}{seconds:9.2f} s{statistics.median(ratios):8.1f} times{spread}")


def main(args):
    if "fid" in args.only:
        for n in args.images:
            compare(f"FID, N = {n:,}, d = 2,048", FID, features(n), args.rounds)
    if "kid" in args.only:
        compare("KID, N = 2,020, 100 subsets of 1,000", KID, features(2020), args.rounds)
    if "collapse" in args.only:
        compare("pairs above 0.9 cosine, N = 2,020, d = 2,048", COLLAPSE, features(2020)[:1], args.rounds)
        pixels = np.random.default_rng(0).standard_normal((2020, 3 * 64 * 64), np.float32)
        compare("the same of 64x64 pixels", COLLAPSE, [pixels], args.rounds)
    if "features" in args.only:
        _, best = datasets.pick_device("cpu")
        for precision in dict.fromkeys(["fp32", best]):
            title = f"features of 128 images, ours in {precision}, theirs in fp32"
            with contextlib.ExitStack() as stack:
                ways = {}
                for name in "ours", "pytorch-fid":
                    side = stack.enter_context(contextlib.closing(sides.Side(extractor, name, precision)))
                    ways[name] = side.turn
                compare(title, ways, [], args.rounds)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3, help="medians of this many (default 3)")
    parser.add_argument("--images", type=int, nargs="+", default=[1000, 10_000, 50_000], help="N of FID")
    kinds = ["fid", "kid", "collapse", "features"]
    parser.add_argument("--only", nargs="+", choices=kinds, default=kinds)
    main(parser.parse_args())
