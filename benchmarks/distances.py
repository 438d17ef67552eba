"""FID, KID, the collapse check and Inception's features: ours against common libraries, in turns.

    python benchmarks/distances.py
    python benchmarks/distances.py --rounds 3 --images 1000 10000 --only fid kid

FID, KID and collapse get random features, float32 (N, 2048), whose variances have as wide a range
as those of Inception's. Each library gets what it takes, and its time starts there: FID includes
means and covariances, KID has 100 subsets of 1,000. The collapse check has a counterpart in
torchmetrics only (all cosine similarities). `features` runs the network on images of 64x64 with
random weights. For each library the program prints the value, the median time, and how many times
ours it is.
"""

import signal

if __name__ == "__main__":  # Ctrl-C during the imports is silent; run_program takes over later
    signal.signal(signal.SIGINT, signal.SIG_DFL)

import contextlib
import io
import statistics
import sys
import time
from pathlib import Path

import numpy as np
import scipy.linalg
import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
import sides

import datasets
import inception
import metrics
import training
from sources import new_parser, number, run_program

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
    words = f"this benchmark needs the other libraries ({problem})"
    sys.exit(f"{words}: pip install -r requirements-dev.txt")


class Linalg:
    """scipy.linalg as pytorch-fid and clean-fid know it. SciPy 1.18 drops the parameter `disp` of
    sqrtm, whose result they discard."""

    @staticmethod
    def sqrtm(matrix, disp=True):
        root = scipy.linalg.sqrtm(matrix)
        return root if disp else (root, None)


fid_score.linalg = cleanfid.fid.linalg = Linalg


class Identity(torch.nn.Module):
    """For torchmetrics, which takes a network. Ours gets features already."""

    def __init__(self, dim):
        super().__init__()
        self.num_features = dim

    def forward(self, x):
        return x


def features(n, dim=2048):
    """Features of n real and n generated images with other means and scales: float32 (n, dim)
    twice."""
    rng = np.random.default_rng(0)
    scales = np.exp(-np.arange(dim) * 3 / dim) / dim**0.5
    mix = (rng.standard_normal((dim, dim)) * scales).astype(np.float32)
    real = np.abs(rng.standard_normal((n, dim), np.float32) @ mix.T)
    fake = rng.standard_normal((n, dim), np.float32) @ mix.T
    return real, np.abs(fake * np.float32(1.1) + np.float32(0.01))


# ------------------------------------------------------------ the same value, by each library


def fid_by_pytorch_fid(real, fake):
    moments = []
    for x in (real, fake):
        x = x.astype(np.float64)  # as its array of activations is
        moments += [np.mean(x, axis=0), np.cov(x, rowvar=False)]
    return fid_score.calculate_frechet_distance(*moments)


def fid_by_torch_fidelity(real, fake):
    metric = torch_fidelity.metric_fid
    moments = [metric.fid_features_to_statistics(torch.from_numpy(x)) for x in (real, fake)]
    return metric.fid_statistics_to_metric(*moments, verbose=False)[metric.KEY_METRIC_FID]


def by_torchmetrics(kind, real, fake):
    metric = kind(Identity(real.shape[1]))
    for x, is_real in ((real, True), (fake, False)):
        for part in torch.from_numpy(x).split(1000):
            metric.update(part, real=is_real)
    return metric.compute()


def fid_by_torchmetrics(real, fake):
    return by_torchmetrics(FrechetInceptionDistance, real, fake).item()


def kid_by_torchmetrics(real, fake):
    mean, _ = by_torchmetrics(KernelInceptionDistance, real, fake)
    return mean.item()


def kid_by_torch_fidelity(real, fake):
    metric = torch_fidelity.metric_kid
    values = metric.kid_features_to_metric(
        torch.from_numpy(real),
        torch.from_numpy(fake),
        kid_kernel="poly",
        kid_kernel_poly_degree=3,
        kid_kernel_poly_gamma=None,
        kid_kernel_poly_coef0=1,
        kid_subsets=100,
        kid_subset_size=1000,
        rng_seed=0,
        verbose=False,
    )
    return values[metric.KEY_METRIC_KID_MEAN]


def our_kid(real, fake):
    mean, _ = metrics.kid(real, fake)
    return mean


def our_collapse(x):
    count, _ = metrics.collapse(x)
    return count


def collapse_by_torchmetrics(x):
    cosine = torchmetrics.functional.pairwise_cosine_similarity
    return int((cosine(torch.from_numpy(x), zero_diagonal=True) > 0.9).sum())


FID = {
    "ours": metrics.fid,
    "pytorch-fid": fid_by_pytorch_fid,
    "clean-fid": cleanfid.fid.fid_from_feats,
    "torch-fidelity": fid_by_torch_fidelity,
    "torchmetrics": fid_by_torchmetrics,
}
KID = {
    "ours": our_kid,
    "clean-fid": cleanfid.fid.kernel_distance,
    "torch-fidelity": kid_by_torch_fidelity,
    "torchmetrics": kid_by_torchmetrics,
}
COLLAPSE = {"ours": our_collapse, "torchmetrics": collapse_by_torchmetrics}


def extractor(name, precision):
    """A function: the mean of the 2,048 features of 128 images, by our network or pytorch-fid's.

    Both have the same random weights.
    """
    images = datasets.shapes(64, "test").images[:128]
    torch.manual_seed(0)
    with contextlib.redirect_stdout(io.StringIO()):
        network = pytorch_fid._inception_v3(num_classes=1008, aux_logits=False, weights=None)
    state = network.state_dict()
    if name == "ours":
        weights = inception.Weights(state, "random")

        def extract():
            features = inception.features(images, (2048,), weights, precision=precision)
            return float(features[2048].mean())

        return extract
    pytorch_fid.load_state_dict_from_url = lambda *_, **__: state
    network = pytorch_fid.InceptionV3([3]).eval()

    @torch.no_grad()
    def extract():
        parts = [network(part.float() / 255)[0].mean((2, 3)) for part in images.split(32)]
        return torch.cat(parts).mean().item()

    return extract


def compare(title, ways, given, rounds):
    """Call each of `ways`, {name: function}, with the arguments `given` in every round."""
    times = {name: [] for name in ways}
    values = {}
    for _ in range(rounds):
        for name, way in ways.items():
            start = time.perf_counter()
            values[name] = way(*given)
            times[name].append(time.perf_counter() - start)
    print(title)
    for name in ways:
        ratios = [theirs / ours for theirs, ours in zip(times[name], times["ours"], strict=True)]
        spread = ""
        if rounds > 1 and name != "ours":
            spread = f" ({min(ratios):.1f} to {max(ratios):.1f})"
        seconds = statistics.median(times[name])
        ratio = statistics.median(ratios)
        print(f"    {name:15s}{values[name]:14.7g}{seconds:9.2f} s{ratio:8.1f} times{spread}")


def main(argv=None):
    parser = new_parser("distances.py", __doc__)
    add = parser.add_argument
    some = number(int, 1)
    kinds = ["fid", "kid", "collapse", "features"]
    add("--rounds", type=some, default=3, help="medians of so many [%(default)s]")
    add("--images", type=some, nargs="+", default=[1000, 10_000, 50_000], help="N of FID")
    add("--only", nargs="+", choices=kinds, default=kinds, help="[all]")
    args = parser.parse_args(argv)
    if "fid" in args.only:
        for n in args.images:
            compare(f"FID, N = {n:,}, d = 2,048", FID, features(n), args.rounds)
    if "kid" in args.only:
        title = "KID, N = 2,020, 100 subsets of 1,000"
        compare(title, KID, features(2020), args.rounds)
    if "collapse" in args.only:
        title = "pairs above 0.9 cosine, N = 2,020, d = 2,048"
        compare(title, COLLAPSE, features(2020)[:1], args.rounds)
        pixels = np.random.default_rng(0).standard_normal((2020, 3 * 64 * 64), np.float32)
        compare("the same of 64x64 pixels", COLLAPSE, [pixels], args.rounds)
    if "features" in args.only:
        _, best = training.pick_device("cpu")
        for precision in dict.fromkeys(["fp32", best]):
            title = f"features of 128 images, ours in {precision}, theirs in fp32"
            with contextlib.ExitStack() as stack:
                ways = {}
                for name in ("ours", "pytorch-fid"):
                    side = sides.Side(extractor, name, precision)
                    ways[name] = stack.enter_context(contextlib.closing(side)).turn
                compare(title, ways, [], args.rounds)


if __name__ == "__main__":
    run_program(main)
