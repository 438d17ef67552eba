"""metrics.py against pytorch-fid, torch-fidelity, pytorch-msssim, torchmetrics, scipy, closed forms
and brute force. Nothing downloads."""

import argparse
import functools
import json
import os
import re
import runpy
import sys
import types

import numpy as np
import pytest
import scipy.linalg
import scipy.spatial
import torch
import torch.nn.functional as F
from conftest import ROOT, make_folder, program

import datasets
import inception
import metrics
import training
from sources import InputError, run_program


@pytest.fixture(autouse=True)
def offline(monkeypatch, tmp_path):
    """An empty torch hub folder and no network: a test names the weights that it needs."""
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    monkeypatch.setattr(inception, "download", lambda: "no network in tests")
    monkeypatch.setattr(datasets, "DATA", tmp_path / "data")
    inception._remembered.clear()
    metrics._classifiers.clear()


@pytest.fixture
def pixel_features(monkeypatch):
    """The first pixels in place of Inception's features."""

    def features(images, dims, *_, **__):
        return {dim: images.flatten(1)[:, :dim] for dim in dims}

    monkeypatch.setattr(metrics, "features", features)
    monkeypatch.setattr(metrics, "real_features", features)


def images(n, size=20, channels=3, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(256, (n, channels, size, size), generator=generator).byte()


def samples(n, d, seed=0, scale=1.0, shift=0.0):
    """Correlated features. The eigenvalues of their covariance span orders of magnitude, as real
    ones do."""
    mix = np.random.default_rng(99).standard_normal((d, d)) * np.exp(-np.arange(d) * 6 / d)
    return np.random.default_rng(seed).standard_normal((n, d)) @ mix.T * scale + shift


def by_name(values):
    return {value["name"]: value for value in values}


# ------------------------------------------------------------------------------------------- FID


def svd_reference(x, y):
    """FID in another way: singular values of S1^(1/2) S2^(1/2), each root by eigendecomposition."""
    roots = []
    for features in x, y:
        values, vectors = np.linalg.eigh(np.cov(features, rowvar=False))
        roots.append(vectors * np.sqrt(values.clip(0)) @ vectors.T)
    trace = np.linalg.svd(roots[0] @ roots[1], compute_uv=False).sum()
    traces = sum(np.sum(root * root) for root in roots)
    return np.sum((x.mean(0) - y.mean(0)) ** 2) + traces - 2 * trace


def test_fid_agrees_with_pytorch_fid(monkeypatch):
    score = pytest.importorskip("pytorch_fid.fid_score")
    # SciPy 1.18 drops sqrtm's `disp`, which pytorch-fid passes for a result that it throws away.
    linalg = types.SimpleNamespace(sqrtm=lambda a, disp: (scipy.linalg.sqrtm(a), None))
    monkeypatch.setattr(score, "linalg", linalg)
    x = samples(2000, 64)
    y = samples(1500, 64, seed=1, scale=1.2, shift=0.1)
    gaussians = [x.mean(0), np.cov(x, rowvar=False), y.mean(0), np.cov(y, rowvar=False)]
    theirs = score.calculate_frechet_distance(*gaussians)
    assert metrics.fid(x, y) == pytest.approx(theirs, rel=1e-6)


@pytest.mark.parametrize("n, m", [(50, 30), (63, 200), (200, 20), (64, 64), (300, 65), (2, 2)])
def test_fid_agrees_with_the_svd_reference(n, m):
    x = samples(n, 64)
    y = samples(m, 64, seed=1, scale=1.3, shift=0.2)
    assert metrics.fid(x, y) == pytest.approx(svd_reference(x, y), rel=1e-6)
    assert metrics.fid(x, y) == pytest.approx(metrics.fid(y, x), rel=1e-8)
    assert 0 <= metrics.fid(x, x[::-1]) < 1e-9 * np.trace(np.cov(x, rowvar=False))


@pytest.mark.parametrize("n, more", [(9, 0), (20, 0.1)])  # fewer and more images than features
def test_fid_closed_form(n, more):
    """For commuting covariances: |mean1 - mean2|^2 + |deviation1 - deviation2|^2."""
    a = np.array([1, 2, 3, 0.5, 0, 0, 0, 0, 0, 0]) + more
    b = np.array([2, 2, 1, 3, 0, 0, 0, 0, 0, 0]) + 2 * more
    d = 10 if more else 4  # dimensions with any variance

    def exactly(n, mean, deviation):
        """n points with exactly this mean and this diagonal covariance."""
        noise = np.random.default_rng(0).standard_normal((n, d))
        noise, _ = np.linalg.qr(noise - noise.mean(0))
        points = noise * np.sqrt(n - 1) * deviation[:d]
        return np.pad(points, ((0, 0), (0, 10 - d))) + mean

    expected = np.sum((np.arange(10) - 1) ** 2) + np.sum((a - b) ** 2)
    distance = metrics.fid(exactly(n, np.arange(10), a), exactly(n + 3, np.ones(10), b))
    assert distance == pytest.approx(expected, rel=1e-10)


def test_fid_where_cholesky_fails():
    x = samples(300, 32)
    y = samples(300, 32, seed=1, shift=0.3)
    x[:, 5] = 0  # a dead feature: a covariance with a row of zeros
    with pytest.raises(np.linalg.LinAlgError):
        scipy.linalg.cholesky(np.cov(x, rowvar=False))
    for one, other in (x, y), (y, x):
        assert metrics.fid(one, other) == pytest.approx(svd_reference(x, y), rel=1e-6)
    y[:, 5] = 0
    alive = np.delete(x, 5, 1), np.delete(y, 5, 1)
    assert metrics.fid(x, y) == pytest.approx(metrics.fid(*alive), rel=1e-6)


def test_covariance_in_chunks():
    x = samples(9000, 5).astype(np.float32)
    ours = inception.covariance(x, x.mean(0, dtype=np.float64))
    assert np.allclose(ours, np.cov(x, rowvar=False, dtype=np.float64), rtol=1e-12)


@pytest.mark.parametrize("distance", [metrics.fid, metrics.kid, metrics.prdc, metrics.bootstrap])
def test_distances_refuse_bad_features(distance):
    good = samples(10, 4)
    broken = samples(10, 4)
    broken[3, 2] = np.nan
    for wrong, problem in (good[:1], "at least 2"), (good[:, :3], "not"), (broken, "not finite"):
        for pair in (good, wrong), (wrong, good):
            with pytest.raises(InputError, match=problem):
                distance(*pair)


def test_bf16_moves_fid_by_little(small_weights):
    """The network in bf16 (8 bits of mantissa) moves FID by less than 2 % of itself."""
    pixels = datasets.shapes(32, "test").images
    exact = {}
    rounded = {}
    for name, side in ("real", pixels[:40]), ("fake", pixels[40:80].flip(2) // 2):
        exact[name] = metrics.features(side, (192,), small_weights)[192]
        rounded[name] = metrics.features(side, (192,), small_weights, precision="bf16")[192]
    fid = metrics.fid(exact["real"], exact["fake"])
    assert not np.array_equal(exact["real"], rounded["real"])
    assert metrics.fid(rounded["real"], rounded["fake"]) == pytest.approx(fid, rel=0.02)
    assert metrics.fid(exact["real"], rounded["real"]) < 0.02 * fid


# ----------------------------------------------------------------------- KID and standard errors


def cubic(a, b):
    return (float(np.dot(a, b)) / len(a) + 1) ** 3


def brute_force_kid(x, y):
    between = np.mean([cubic(a, b) for a in x for b in y])
    within = 0
    for z in x, y:
        pairs = [(i, j) for i in range(len(z)) for j in range(len(z)) if i != j]
        within += np.mean([cubic(z[i], z[j]) for i, j in pairs])
    return within - 2 * between


def test_kid_agrees_with_brute_force():
    x = samples(30, 6)
    y = samples(30, 6, seed=1, shift=0.3)
    assert metrics.kid(x, y) == pytest.approx((brute_force_kid(x, y), 0), rel=1e-12)
    rows, columns = metrics.draw_subsets(30, 20, 5, 15, 3)
    assert rows.shape == (5, 15) and all(len(set(row)) == 15 for row in (*rows, *columns))
    values = [brute_force_kid(x[i], y[j]) for i, j in zip(rows, columns, strict=True)]
    ours = metrics.kid(x, y[:20], subsets=5, subset_size=15, seed=3)
    assert ours == pytest.approx((np.mean(values), np.std(values)), rel=1e-9)


def test_kid_agrees_with_torch_fidelity():
    theirs = pytest.importorskip("torch_fidelity.metric_kid")
    x = samples(400, 32)
    y = samples(300, 32, seed=1, shift=0.1)
    options = dict(kid_kernel="poly", kid_kernel_poly_degree=3, kid_kernel_poly_coef0=1)
    values = []
    for i, j in zip(*metrics.draw_subsets(400, 300, 20, 100, 0), strict=True):
        values.append(theirs.kernel_mmd(x[i], y[j], kid_kernel_poly_gamma=None, **options))
    ours = metrics.kid(x, y, subsets=20, subset_size=100, seed=0)
    assert ours == pytest.approx((np.mean(values), np.std(values)), rel=1e-9)


def test_kid_is_not_clamped_and_is_seeded():
    x = samples(300, 8)
    y = samples(300, 8, seed=1)
    values = [metrics.kid(x, y, subset_size=20, subsets=1, seed=seed)[0] for seed in range(20)]
    assert min(values) < 0 < max(values)
    assert metrics.kid(x, y, 5, 20, seed=1) == metrics.kid(x, y, 5, 20, seed=1)


def test_weighted_kernel_in_blocks():
    x = samples(4500, 3).astype(np.float32)
    weights = np.random.default_rng(0).random((2, 4500))
    whole = (x.astype(np.float64) @ x.astype(np.float64).T / 3 + 1) ** 3
    np.fill_diagonal(whole, 0)
    ours = metrics.weighted_kernel(x, x, weights, weights)
    assert ours == pytest.approx([w @ whole @ w for w in weights], rel=1e-10)


def test_bootstrap_agrees_with_loops():
    """Each resample written out: the images drawn, and all pairs of different images."""
    x = samples(25, 4)
    y = samples(30, 4, seed=1, shift=0.3)
    rng = np.random.default_rng(2)
    fids = []
    kids = []
    for _ in range(6):
        i = rng.integers(25, size=25)
        j = rng.integers(30, size=30)
        fids.append(svd_reference(x[i], y[j]))
        within = 0
        for rows, z in (i, x), (j, y):
            within += np.mean([cubic(z[a], z[b]) for a in rows for b in rows if a != b])
        kids.append(within - 2 * np.mean([cubic(x[a], y[b]) for a in i for b in j]))
    expected = np.std(fids, ddof=1), np.std(kids, ddof=1)
    assert metrics.bootstrap(x, y, resamples=6, seed=2) == pytest.approx(expected, rel=1e-6)
    with pytest.raises(InputError, match="at least 10 images"):
        metrics.bootstrap(x[:9], y)


def test_bootstrap_is_the_error_of_new_images():
    """Against the deviation over 200 independent pairs of sets."""
    pairs = []
    for seed in range(200):
        pairs.append((samples(150, 4, seed), samples(150, 4, 1000 + seed, shift=0.5)))
    truth = np.std([(metrics.fid(*pair), metrics.kid(*pair)[0]) for pair in pairs], axis=0)
    ours = np.mean([metrics.bootstrap(*pair, resamples=100) for pair in pairs[:4]], axis=0)
    assert ours == pytest.approx(truth, rel=0.3)


# -------------------------------------------------------------------------------------- collapse


def test_collapse_agrees_with_brute_force():
    x = images(30, 6)
    x[10:18] = x[0]
    x[12:20, :, 0] = 0
    x[20:25] = 90  # like the rest in [0, 1], opposite in [-1, 1]
    x[25:] = 160
    rows = (x.double().flatten(1) / 127.5 - 1).numpy()
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    count = sum(rows[i] @ rows[j] > 0.9 for i in range(30) for j in range(30) if i != j)
    assert 0 < count < 30 * 29
    assert metrics.collapse(x) == (count, 30 * 29)


def test_collapse_decides_in_float64():
    """Pairs closer to the threshold than float32 can tell."""
    cosines = 0.9 + np.arange(-300, 301) * 1e-9
    rows = np.stack([cosines, np.sqrt(1 - cosines**2)], 1)
    count = (rows[:, 0] / np.hypot(*rows.T) > 0.9).sum()
    among_themselves = 601 * 600  # all of these are similar
    x = np.concatenate([[[1.0, 0.0]], rows])
    assert metrics.collapse(x)[0] == among_themselves + 2 * count


def test_collapse_over_several_chunks():
    x = np.random.default_rng(0).standard_normal((2500, 3)).astype(np.float32)
    rows = x.astype(np.float64)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    assert metrics.collapse(x)[0] == (rows @ rows.T > 0.9).sum() - 2500
    assert metrics.collapse(np.zeros((4, 3))) == (0, 12)  # no direction: similar to nothing
    assert metrics.collapse(np.ones((4, 3))) == (12, 12)
    with pytest.raises(InputError, match="not finite"):
        metrics.collapse(np.array([[1.0], [np.inf]]))


# ------------------------------------------------------- precision, recall, density and coverage


@pytest.mark.parametrize("n, m, k", [(60, 45, 1), (60, 45, 3), (4200, 1100, 5)])
def test_prdc_agrees_with_scipy(n, m, k):
    real = samples(n, 3)
    fake = samples(m, 3, seed=1, scale=0.6, shift=0.2)

    def radii(x):  # the first neighbour is the row itself
        return scipy.spatial.cKDTree(x).query(x, k + 1)[0][:, k]

    distances = scipy.spatial.distance.cdist(real, fake)
    in_real = distances <= radii(real)[:, None]
    expected = {"precision": in_real.any(0).mean(), "density": in_real.sum() / k / m}
    expected |= {"recall": (distances <= radii(fake)).any(1).mean()}
    expected |= {"coverage": in_real.any(1).mean()}
    assert all(0 < expected[name] < 1 for name in ("precision", "recall", "coverage"))
    assert metrics.prdc(real, fake, k) == pytest.approx(expected, rel=1e-12)


def test_precision_and_recall_agree_with_torch_fidelity():
    theirs = pytest.importorskip("torch_fidelity.metric_prc")
    real = samples(60, 4)
    fake = samples(45, 4, seed=1, scale=0.6, shift=0.2)
    options = {"prc_neighborhood": 3, "prc_batch_size": 17, "save_cpu_ram": True, "verbose": False}
    other = theirs.prc_features_to_metric(torch.tensor(fake), torch.tensor(real), **options)
    ours = metrics.prdc(real, fake, 3)
    for name in "precision", "recall":
        assert 0 < ours[name] < 1 and ours[name] == pytest.approx(other[name])


def test_prdc_of_known_cases():
    x = np.random.default_rng(0).standard_normal((1100, 8))  # more than one chunk
    same = metrics.prdc(x, x)
    assert same.pop("density") == pytest.approx(1, abs=0.01) and set(same.values()) == {1.0}
    assert set(metrics.prdc(x, x + 100).values()) == {0.0}
    x[::2, 0] += 100  # two kinds; the generated images are good, but one kind is missing
    shares = metrics.prdc(x, np.concatenate([x[1::2], x[1::2] + 1e-3]))
    assert (shares["precision"], shares["recall"], shares["coverage"]) == (1, 0.5, 0.5)
    copies = np.repeat(x[:60], 20, axis=0)  # more copies than neighbours: all radii are 0
    shares = metrics.prdc(copies, copies)
    assert (shares["precision"], shares["recall"], shares["coverage"]) == (1, 1, 1)
    with pytest.raises(InputError, match="more than 5"):
        metrics.prdc(x[:5], x)


# ------------------------------------------------------------------------------ SSIM and MS-SSIM


def related(n, size, channels=3, noise=60):
    """Pairs of structured images, the second a noisy, darker version of the first: uint8 twice."""
    coarse = F.interpolate(images(n, 8, channels).float(), size, mode="bicubic").clamp(0, 255)
    other = torch.randn(coarse.shape, generator=torch.Generator().manual_seed(1))
    other = 0.7 * coarse + noise * other
    return coarse.byte(), other.clamp(0, 255).byte()


@pytest.mark.parametrize("channels, noise", [(3, 60), (1, 0)])
def test_ssim_agrees_with_pytorch_msssim(channels, noise):
    theirs = pytest.importorskip("pytorch_msssim")
    for ours, their_function, size in (
        (metrics.ssim, theirs.ssim, 192),
        (metrics.ssim, theirs.ssim, 40),
        (metrics.ms_ssim, theirs.ms_ssim, 192),
    ):
        a, b = related(3, size, channels, noise)
        expected = their_function(a.double(), b.double(), size_average=False)
        assert 0.01 < expected.min() and expected.max() < 0.99
        assert ours(a, b).numpy() == pytest.approx(expected.numpy(), abs=1e-6)


def test_ssim_agrees_with_torchmetrics():
    """Its windows reach beyond the image by reflection. Of SSIM we take the positions inside; of
    MS-SSIM with five scales it returns the mean over all, so we compare images so large that the
    rim hardly counts.
    """
    theirs = pytest.importorskip("torchmetrics.functional.image")
    options = {"data_range": 255.0, "reduction": "none"}
    a, b = related(3, 64, 3, noise=30)
    measure = theirs.structural_similarity_index_measure
    _, maps = measure(a.double(), b.double(), **options, return_full_image=True)
    expected = maps[:, :, 5:-5, 5:-5].mean((1, 2, 3))
    assert metrics.ssim(a, b).numpy() == pytest.approx(expected.numpy(), abs=1e-6)
    a, b = related(2, 512, 1, noise=30)
    measure = theirs.multiscale_structural_similarity_index_measure
    expected = measure(a.double(), b.double(), **options)
    assert metrics.ms_ssim(a, b).numpy() == pytest.approx(expected.numpy(), abs=2e-3)


@pytest.mark.parametrize("height, width, channels", [(64, 64, 3), (44, 51, 3), (47, 100, 1)])
def test_three_scales_are_those_of_torchmetrics(height, width, channels):
    """Report R3's measure: exponents and mirrored rim as there, also for opposites and copies."""
    theirs = pytest.importorskip("torchmetrics.functional.image")
    a, b = (x[..., :height, :width] for x in related(4, 100, channels, noise=30))
    a = torch.cat([a, a[:2]])
    b = torch.cat([b, 255 - a[:1], a[1:2]])
    expected = theirs.multiscale_structural_similarity_index_measure(
        a.double(), b.double(), data_range=255.0, betas=(0.0448, 0.2856, 0.3001), reduction="none"
    )
    assert 0.1 < expected[:4].min() and expected[:4].max() < 0.99
    ours = metrics.similarities(a, b)["ms-ssim-3"]
    assert ours.numpy() == pytest.approx(expected.numpy(), abs=1e-6)


def test_three_scales_only_where_torchmetrics_has_them():
    theirs = pytest.importorskip("torchmetrics.functional.image")
    a, b = related(2, 50)
    for height, width in (43, 50), (50, 43), (16, 16):
        x, y = (side[..., :height, :width] for side in (a, b))
        with pytest.raises(ValueError, match="must be larger"):
            theirs.multiscale_structural_similarity_index_measure(
                x.double(), y.double(), data_range=255.0, betas=(0.0448, 0.2856, 0.3001)
            )
        assert list(metrics.similarities(x, y)) == ["ms-ssim", "ssim"]


def brute_force_ssim(x, y, window):
    """One channel, one level: the means of the structure and of SSIM, position by position."""
    offsets = np.arange(window) - window // 2
    sigma = 1.5 * window / 11
    weights = np.exp(-(offsets[:, None] ** 2 + offsets**2) / (2 * sigma**2))
    weights /= weights.sum()
    structures = []
    ssims = []
    for i in range(x.shape[0] - window + 1):
        for j in range(x.shape[1] - window + 1):
            p = x[i : i + window, j : j + window]
            q = y[i : i + window, j : j + window]
            p_mean = (weights * p).sum()
            q_mean = (weights * q).sum()
            variances = (weights * ((p - p_mean) ** 2 + (q - q_mean) ** 2)).sum()
            covariance = (weights * (p - p_mean) * (q - q_mean)).sum()
            structures.append((2 * covariance + 58.5225) / (variances + 58.5225))
            luminance = (2 * p_mean * q_mean + 6.5025) / (p_mean**2 + q_mean**2 + 6.5025)
            ssims.append(luminance * structures[-1])
    return np.mean(structures), np.mean(ssims)


def brute_force_ms_ssim(x, y, sizes):
    """One channel."""
    weights = np.array([0.0448, 0.2856, 0.3001, 0.2363, 0.1333])[: len(sizes)]
    product = 1
    for level, window in enumerate(sizes):
        structure, full = brute_force_ssim(x, y, window)
        factor = full if level == len(sizes) - 1 else structure
        product *= max(factor, 0) ** (weights[level] * 1.0001 / weights.sum())
        h = x.shape[0] // 2 * 2
        w = x.shape[1] // 2 * 2
        halved = []
        for z in x, y:
            halved.append(z[:h, :w].reshape(h // 2, 2, w // 2, 2).mean((1, 3)))
        x, y = halved
    return product


SMALL = [
    (64, 64, [11, 11, 11, 7, 3]),
    (32, 35, [11, 11, 7, 3]),
    (16, 16, [11, 7, 3]),
    (8, 8, [7, 3]),
    (2, 2, [1]),
]


@pytest.mark.parametrize("height, width, sizes", SMALL)
def test_small_images_agree_with_brute_force(height, width, sizes):
    a, b = (side[:, :, :height, :width] for side in related(1, max(height, width), 2, noise=30))
    assert metrics.windows(height, width) == sizes
    channels = [(x.double().numpy(), y.double().numpy()) for x, y in zip(a[0], b[0], strict=True)]
    expected = np.mean([brute_force_ms_ssim(x, y, sizes) for x, y in channels])
    assert 0.1 < expected < 0.999
    assert metrics.ms_ssim(a, b).item() == pytest.approx(expected, abs=1e-9)
    expected = np.mean([brute_force_ssim(x, y, sizes[0])[1] for x, y in channels])
    assert metrics.ssim(a, b).item() == pytest.approx(expected, abs=1e-9)
    assert metrics.windows(176, 500) == [11] * 5


def test_ms_ssim_closed_forms_and_symmetry(monkeypatch):
    a, b = related(5, 64)
    whole = metrics.ms_ssim(a, b)
    assert torch.equal(metrics.ms_ssim(a, a), torch.ones(5, dtype=torch.float64))
    assert torch.allclose(whole, metrics.ms_ssim(b, a), rtol=1e-12)
    assert whole[3].item() == pytest.approx(metrics.ms_ssim(a[3:4], b[3:4]).item(), rel=1e-12)
    assert (
        metrics.ssim(a, 255 - a).max() < 0 and metrics.ms_ssim(a, 255 - a).max() == 0
    )  # opposites
    dark = torch.full((1, 3, 64, 64), 50).byte()
    bright = torch.full((1, 3, 64, 64), 200).byte()
    luminance = (2 * 50 * 200 + 6.5025) / (50**2 + 200**2 + 6.5025)  # all else is 1
    assert metrics.ssim(dark, bright).item() == pytest.approx(luminance, rel=1e-12)
    assert metrics.ms_ssim(dark, bright).item() == pytest.approx(luminance**0.1333, rel=1e-12)
    monkeypatch.setattr(metrics, "in_chunks", lambda images: images.split(2))
    assert torch.allclose(metrics.ms_ssim(a, b), whole, rtol=1e-12)
    assert torch.equal(metrics.ssim(a, a), torch.ones(5, dtype=torch.float64))


def test_means_over_pairs(monkeypatch):
    a, b = related(6, 24)
    every = torch.stack([metrics.ms_ssim(a, other.expand_as(a)) for other in b], 1)  # (6, 6)
    among = torch.stack([metrics.ms_ssim(a, other.expand_as(a)) for other in a], 1)
    mean, error = metrics.pair_similarities(a, b, pairs=3000)["ms-ssim"]
    assert mean == pytest.approx(every.mean().item(), abs=4 * error)
    assert error == pytest.approx(every.std().item() / 3000**0.5, rel=0.1)
    mean, error = metrics.pair_similarities(a, pairs=3000)["ms-ssim"]  # no image with itself
    assert mean == pytest.approx((among.sum().item() - 6) / 30, abs=4 * error)
    assert mean < among.mean() - 4 * error
    one, again, other = (metrics.pair_similarities(a, seed=seed) for seed in (0, 0, 1))
    assert one == again and all(one[name] != other[name] for name in ("ms-ssim", "ssim"))
    copies = a[:1].repeat(4, 1, 1, 1)
    assert metrics.pair_similarities(copies) == {"ms-ssim": (1, 0), "ssim": (1, 0)}
    for split in 100, 2:
        monkeypatch.setattr(metrics, "in_chunks", lambda images, n=split: images.split(n))
        means = metrics.mean_ms_ssim(a, b[:5])
        assert torch.allclose(means, every[:, :5].mean(1), rtol=1e-12)


def test_ms_ssim_refuses_what_does_not_pair():
    a = images(3)
    for wrong in a.float(), a[0], a[:, :1], a[..., :8]:
        for measure in metrics.ms_ssim, metrics.ssim, metrics.mean_ms_ssim:
            with pytest.raises(InputError, match="of one size"):
                measure(a, wrong)
    with pytest.raises(InputError, match="as many"):
        metrics.ms_ssim(a, a[:2])
    with pytest.raises(InputError, match="at least 2"):
        metrics.pair_similarities(a[:1])


# ---------------------------------------------------------------------------------- autoencoders


def test_autoencoder_values():
    scale = torch.tensor([1, 0.5, 0.11, 0.09, 0.01, 0])  # standard deviations; 0.1 is the limit
    mu = torch.randn(300, 6, generator=torch.Generator().manual_seed(0)) * scale + 1
    means = [7000.0, 9.0, 7009.0, 0.1]
    values = by_name(metrics.autoencoder(means, mu, "bernoulli", "some images"))
    assert metrics.active_units(mu) == values["active latents"]["value"] == 3
    assert values["active latents"]["pairs"] == 6 and values["bound (nats)"]["value"] == 7009
    assert values["KL per latent (nats)"]["value"] == 1.5
    cosines = F.cosine_similarity(mu[:, None].double(), mu.double(), dim=2)
    cosines = cosines[~torch.eye(300, dtype=torch.bool)]
    mean = cosines.mean().item()
    assert values["mean cosine of latents"]["value"] == pytest.approx(mean, abs=1e-9)
    assert values["collapse (latents)"]["value"] == (cosines > 0.9).sum() > 0
    assert all("some images" in value["protocol"] for value in values.values())
    more = metrics.autoencoder([1.0, 2.0, 3.0, 4.0], mu, "sigma", "images", 64, 2.5)
    assert more[3]["name"] == "bound (64 samples)" and more[3]["value"] == 2.5
    assert "64 importance samples" in more[3]["protocol"] and len(more) == len(values) + 1


# ---------------------------------------------------------------------------- conditional models


def test_obedience(small_weights, pixel_features):
    """Images of the class asked for are recognized; with the classes shuffled, none are."""
    train = datasets.pick(datasets.load("shapes", 16), slice(2000))
    test = datasets.load("shapes", 16, "test")
    held_out = datasets.pick(test, slice(1000, None))
    fake = test.images[:1000]
    asked = test.labels[:1000]
    options = {"dims": (64,), "weights": small_weights, "steps": 80, "eval_images": 500}
    state = torch.get_rng_state()
    good, back, *fids = metrics.conditional(train, held_out, fake, asked, **options)
    assert torch.equal(state, torch.get_rng_state())
    assert good["value"] > 0.55 and good["value"] == pytest.approx(good["real"], abs=0.06)
    assert back["value"] > 0.45 and "on 1000 held-out" in back["protocol"]
    assert [value["name"] for value in fids] == [f"FID-64 of {name}" for name in train.classes]
    assert all("100 generated images of the class against 100" in v["protocol"] for v in fids)
    bad, back, *others = metrics.conditional(train, held_out, fake, (asked + 1) % 5, **options)
    assert bad["value"] < 0.15 and back["value"] < 0.15 and bad["real"] == good["real"]
    assert sum(value["value"] for value in fids) < 0.5 * sum(value["value"] for value in others)


def test_what_the_classifier_sees(small_weights, pixel_features, monkeypatch):
    """Without held-out images, a tenth is hidden from it. Models share that of the real images."""
    seen = []
    tested = []

    def predict(_, images):
        tested.append(images)
        return torch.zeros(len(images), dtype=torch.int64)

    monkeypatch.setattr(metrics, "train_classifier", lambda images, *_: seen.append(images))
    monkeypatch.setattr(metrics, "predict", predict)
    train = datasets.pick(datasets.load("shapes", 16), slice(300))
    fake = train.images[:200].flip(3)
    options = {"dims": (64,), "weights": small_weights, "eval_images": 100}
    one = metrics.conditional(train, None, fake, train.labels[:200], **options)
    assert [len(images) for images in seen] == [270, 200]
    hidden = next(images for images in tested if len(images) == 30)
    both = torch.cat([seen[0], hidden]).flatten(1)
    assert len(both.unique(dim=0)) == len(train.images.flatten(1).unique(dim=0)) == 300
    assert "real images hidden from the classifier" in one[0]["protocol"]
    other = metrics.conditional(train, None, 255 - fake, train.labels[:200], **options)
    assert [value["real"] for value in one[2:]] == [value["real"] for value in other[2:]]
    assert len(seen) == 3
    relabelled = train._replace(labels=train.labels.flip(0))
    metrics.conditional(relabelled, None, fake, train.labels[:200], **options)
    assert len(seen) == 5


def test_classes_that_cannot_be_measured(small_weights, pixel_features):
    """A class of which nothing was generated has no FID; the others have one."""
    train = datasets.pick(datasets.load("shapes", 16), slice(300))
    zeros = torch.zeros(50, dtype=torch.int64)
    options = {"dims": (64,), "weights": small_weights, "steps": 2, "eval_images": 50}
    values = metrics.conditional(train, None, train.images[:50], zeros, **options)
    assert values[2]["value"] > 0
    assert all(v["value"] is None and "0 generated" in v["reason"] for v in values[3:])
    # grey images that were saved as PNG come back with three channels; and there are no weights
    grey = train._replace(images=train.images.float().mean(1, keepdim=True).byte())
    colour = grey.images[:60].expand(-1, 3, -1, -1)
    for held_out in None, grey:
        values = metrics.conditional(grey, held_out, colour, grey.labels[:60], steps=2)
        assert 0 <= values[0]["value"] <= 1 and values[2]["name"] == "FID of each class"


def test_the_classifier_mirrors_colour_only():
    """Bright on the left or on the right: in colour, mirrored at random, the two are the same."""
    labels = torch.arange(200) % 2
    grey = images(200, 16, 1) // 3
    grey[labels == 0, :, :, :8] += 100
    grey[labels == 1, :, :, 8:] += 100
    shares = []
    for channels in 1, 3:
        pixels = grey.expand(-1, channels, -1, -1)
        network = metrics.train_classifier(pixels, labels, 2, steps=25)
        shares.append(metrics.accuracy(network, pixels, labels))
    assert shares[0] > 0.95 and shares[1] < 0.8


# -------------------------------------------------------------------------------------- evaluate


def test_evaluate(small_weights):
    real = images(12)
    floor = images(12, seed=1)
    fake = images(10, seed=2) // 2
    options = {"dims": (64, 192), "weights": small_weights, "seed": 3, "fake_words": "dark images"}
    values = by_name(metrics.evaluate(real, fake, floor, **options))
    names = "FID-64 KID-64 collapse (features 64) FID-192 KID-192 collapse (features 192) "
    names += "precision-192 recall-192 density-192 coverage-192 MS-SSIM (generated, real) "
    names += "SSIM (generated, real) MS-SSIM (among generated) collapse (pixels)"
    assert " ".join(values) == names  # too small for three scales
    for value in values.values():
        assert "10 dark images against 12 real images" in value["protocol"]
        assert value["protocol"].isascii()
    json.dumps(values)  # plain values only

    def is_measured(name, generated, of_real, *keys):
        value = values[name]
        assert [value[key] for key in ("value", *keys)] == list(generated)
        assert [value[f"real{key}"] for key in ("", *(f"_{key}" for key in keys))] == list(of_real)

    x, y, z = (metrics.features(side, (64, 192), small_weights) for side in (real, fake, floor))
    for dim in 64, 192:
        a, b, c = x[dim], y[dim], z[dim]
        is_measured(f"FID-{dim}", [metrics.fid(a, b)], [metrics.fid(a, c)])
        is_measured(f"KID-{dim}", metrics.kid(a, b, seed=3), metrics.kid(a, c, seed=3), "std")
        name = f"collapse (features {dim})"
        is_measured(name, metrics.collapse(b), metrics.collapse(a), "pairs")
    among_real = metrics.prdc(x[192], z[192])
    for name, share in metrics.prdc(x[192], y[192]).items():
        is_measured(f"{name}-192", [share], [among_real[name]])
    for name, pair in ("generated, real", (real, fake)), ("among generated", (fake,)):
        ours = metrics.pair_similarities(*pair, seed=3)
        of_real = metrics.pair_similarities(real, seed=3)
        is_measured(f"MS-SSIM ({name})", ours["ms-ssim"], of_real["ms-ssim"], "error")
        if name == "generated, real":
            is_measured(f"SSIM ({name})", ours["ssim"], of_real["ssim"], "error")
    is_measured("collapse (pixels)", metrics.collapse(fake), metrics.collapse(real), "pairs")
    for name, words in {
        "FID-64": "another scale than the usual 2048-d FID",
        "KID-64": "subsets of 10, seed 3",
        "recall-192": "192-d FID Inception",
        "MS-SSIM (among generated)": "windows of 11 9 5 pixels",
        "SSIM (generated, real)": "Gaussian window of 11 pixels",
    }.items():
        assert words in values[name]["protocol"]


def test_curve_is_what_evaluate_measures(small_weights):
    real = images(12, 40)  # averaged down to 20x20
    fake = images(10, seed=2)
    weights = metrics.load_weights(small_weights)
    row = metrics.curve(real, fake, (64, 192, 768), weights, "cpu", "real images")
    assert list(row) == ["fid_64", "kid_64", "fid_192", "kid_192", "ms-ssim", "ssim"]
    values = metrics.evaluate(real, fake, dims=(64, 192), weights=weights)
    measured = {value["name"]: value["value"] for value in values}
    names = ["FID-64", "KID-64", "FID-192", "KID-192", "MS-SSIM (generated, real)"]
    names.append("SSIM (generated, real)")
    assert list(row.values()) == [measured[name] for name in names]
    assert list(metrics.curve(real[:, :1], fake, [], None)) == ["ms-ssim", "ssim"]


def test_three_scales_in_curve_and_evaluate():
    """Under the name that the presets of R3 put the report's number beside."""
    real = related(12, 44)[0]
    fake = related(10, 44)[1]
    name = "MS-SSIM, 3 scales (generated, real)"
    values = by_name(metrics.evaluate(real, fake, dims=(), seed=0))
    assert list(values)[:2] == ["MS-SSIM (generated, real)", name]
    ours = values[name]
    row = metrics.curve(real, fake, [], None)
    assert list(row) == ["ms-ssim", "ms-ssim-3", "ssim"] and row["ms-ssim-3"] == ours["value"]
    among_real = metrics.pair_similarities(real, seed=0)["ms-ssim-3"]
    assert (ours["real"], ours["real_error"]) == among_real and "TorchMetrics" in ours["protocol"]
    report = training.load_script("wgan_gp").PRESETS["small-gan"]["report"]
    line = metrics.table([ours], report).splitlines()[-1]
    assert line.startswith(f"{name}  0.") and line.endswith("  0.1339")


def test_usable_dims(small_weights, capsys):
    weights, usable = metrics.usable_dims((64, 192, 768, 2048), small_weights)
    assert (type(weights), usable) == (inception.Weights, [64, 192])
    [line] = capsys.readouterr().out.splitlines()
    assert line.startswith("not measured here: FID-768 and FID (small.pth")
    assert metrics.usable_dims((64,), small_weights)[1] == [64] and not capsys.readouterr().out
    assert metrics.usable_dims((768, 2048), None) == (None, [])  # nothing to be had: go on
    assert "could not download" in capsys.readouterr().out
    with pytest.raises(InputError, match="no Inception weights 'typo.pth'"):  # fail early
        metrics.usable_dims((64,), "typo.pth")


def test_standard_errors_on_request(small_weights):
    real = images(12)
    fake = images(10, seed=2)
    options = {"dims": (64,), "weights": small_weights}
    plain = metrics.evaluate(real, fake, **options)
    fid, kid, *_ = values = metrics.evaluate(real, fake, **options, resamples=5)
    x, y = (metrics.features(side, (64,), small_weights)[64] for side in (real, fake))
    fid_error, kid_error = metrics.bootstrap(x, y, 5)
    assert kid["std"] > 0
    assert (fid["se"], kid["se"]) == (fid_error, np.hypot(kid_error, kid["std"] / 10))
    assert "5 bootstrap resamples" in fid["protocol"] and "(se " in metrics.table(values)
    assert [v["value"] for v in values] == [v["value"] for v in plain] and "se" not in plain[0]


def test_constant_images_are_measured(small_weights):
    """No variance in pixels or features: each value is a number, or says why it is not."""
    black = torch.zeros(10, 3, 16, 16, dtype=torch.uint8)
    grey = black + 100
    for one, other in (black, grey), (grey, grey), (images(10, 16), black):
        for value in metrics.evaluate(one, other, dims=(64,), weights=small_weights, resamples=2):
            for key in ("value", "real", "se", "std", "error"):
                assert value.get(key) is None or np.isfinite(value[key]), (value["name"], key)


def test_evaluate_averages_real_images_down(small_weights):
    real = images(6, 40)
    floor = images(6, 40, seed=1)
    fake = images(5, seed=2)  # 20x20
    options = {"dims": (64,), "weights": small_weights}

    def halved(x):
        return x.unflatten(2, (20, 2)).unflatten(4, (20, 2)).float().mean((3, 5)).round().byte()

    small = metrics.evaluate(halved(real), fake, halved(floor), **options)
    values = metrics.evaluate(real, fake, floor, **options)
    for key in "value", "real":
        assert [value.get(key) for value in values] == [value.get(key) for value in small]
    lacking = [value for value in values if value["value"] is None]
    assert len(lacking) == 4 and "more than 5 images" in lacking[0]["reason"]
    for value in values:
        assert value in lacking or "6 real images averaged down to 20x20" in value["protocol"]
    assert "6 other real images averaged down to 20x20 against" in values[0]["protocol"]
    assert "averaged" not in str(small)
    for wrong in images(5, 80), images(5, 40)[..., :20]:
        with pytest.raises(InputError, match="larger ones") as error:
            metrics.evaluate(real, wrong, **options)
        assert "\n" not in str(error.value)


def test_evaluate_grey_next_to_colour(small_weights):
    grey = images(5, channels=1)
    colour = images(5, seed=1)
    options = {"dims": (64,), "weights": small_weights}
    one = metrics.evaluate(grey, colour, **options)
    other = metrics.evaluate(grey.repeat(1, 3, 1, 1), colour, **options)
    assert [v["value"] for v in one] == pytest.approx([v["value"] for v in other])


def test_evaluate_goes_on_without_weights(small_weights):
    for weights, lost in (small_weights, 2), (None, 4):
        values = metrics.evaluate(images(8), images(8, seed=1), dims=(64, 2048), weights=weights)
        missing = [value for value in values if value["value"] is None]
        assert len(missing) == lost and all("\n" not in value["reason"] for value in missing)
        assert values[-1]["name"] == "collapse (pixels)" and values[-1]["value"] == 0
        assert re.search("(?m)^(FID-64, KID-64, )?FID, KID: not measured", metrics.table(values))
    with pytest.raises(InputError, match="1 generated images: at least 2"):
        metrics.evaluate(images(8), images(1))


# ---------------------------------------------------------------------------------------- tables


def test_format_value_and_table():
    kid = {"name": "KID", "value": 0.0123, "std": 0.001, "se": 0.002, "protocol": "how"}
    kid |= {"real": 0.0004, "real_std": 0.0001}
    assert metrics.format_value(kid) == "12.30 +- 1.00 (se 2.00)"
    assert metrics.format_value(kid, "real") == "0.40 +- 0.10"
    assert metrics.title(kid) == "KID x 10^3"
    pairs = {"name": "collapse", "value": 1200, "pairs": 5000, "real": None, "protocol": "how"}
    assert metrics.format_value(pairs) == "1,200 of 5,000"
    assert metrics.format_value(pairs, "real") == metrics.format_value({}) == "-"
    similarity = {"name": "MS-SSIM", "value": 0.5, "error": 0.01, "real": 0.25, "protocol": "how"}
    similarity |= {"real_error": 0.02}
    table = metrics.table([similarity, pairs], {"MS-SSIM": 0.5, "protocol": "theirs"})
    assert table.splitlines() == [
        "how",
        "",
        "          value             real images       report",
        "MS-SSIM   0.5000 +- 0.0100  0.2500 +- 0.0200  0.5",
        "collapse  1,200 of 5,000    -",
    ]
    missing = metrics.table([{"name": "FID", "value": None, "reason": "why"}], {"FID": 110.56})
    lines = ["not measured here: why", "", "     value         real images  report"]
    assert missing.splitlines() == [*lines, "FID  not measured  -            110.56"]


def test_what_protocols_share_is_printed_once():
    """Each part once, and it can be put together again for every value."""
    network = "768 features (w.pth; fp32)"  # one part: brackets are not taken apart
    protocols = {
        "FID-768": [network, "60 images", "covariances N-1"],
        "KID-768": [network, "60 images", "one subset"],
        "recall-768": [network, "60 images"],
        "SSIM": ["a window", "60 images"],
        "accuracy": ["a classifier"],
    }
    common, special = metrics.folded([(name, "; ".join(p)) for name, p in protocols.items()])
    assert common == [
        "all but accuracy: 60 images",
        f"all but SSIM, accuracy: {network}",
    ]
    assert special == [
        "FID-768: covariances N-1",
        "KID-768: one subset",
        "SSIM: a window",
        "accuracy: a classifier",
    ]
    assert metrics.folded([("FID", "a; b"), ("KID", "a; b")]) == (["a; b"], [])
    assert metrics.folded([]) == ([], [])
    values = [metrics.measured(name, 0.5, "; ".join(words)) for name, words in protocols.items()]
    text = metrics.table(values)
    assert text.splitlines()[:2] == common and text.splitlines()[-4:] == special
    for part in {part for words in protocols.values() for part in words}:
        assert text.count(part) == 1


def test_few_images_are_said(here, capsys):
    datasets.say_once.cache_clear()
    metrics.evaluate(images(100), images(100, seed=1), dims=())
    assert capsys.readouterr().err == ""
    metrics.evaluate(images(100), images(99, seed=1), dims=())
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith("note: 99 generated and 100 real images are few: ")


def test_write_result(tmp_path, capsys):
    preset = {"batch": 64, "steps": 900, "report": {"FID": 110.56, "protocol": "2,020 images"}}
    defaults = {"batch": 128, "steps": None, "epochs": 50, "ema": 0.0, "out": None}
    values = [{"name": "FID", "value": 3.25, "real": None, "protocol": "how"}]
    run = types.SimpleNamespace(path=tmp_path, step=5, weights_words=lambda: "plain weights")
    for flags, changed, comparable in (
        ({}, "", True),
        ({"out": "elsewhere"}, "", True),
        ({"batch": 32, "ema": 0.5}, "--batch=32 --ema=0.5", True),
        ({"steps": 2}, "--steps=2", False),
    ):
        flags = defaults | {"preset": "food", "batch": 64, "steps": 900} | flags
        run.args = argparse.Namespace(**flags, defaults=defaults)
        metrics.write_result(run, values, preset)
        result = json.loads((tmp_path / "metrics.json").read_text(encoding="utf-8"))
        expected = {"values": values, "report": preset["report"], "weights": "plain weights"}
        assert result == {**expected, "changed": changed, "comparable": comparable, "step": 5}
        out = capsys.readouterr().out
        assert "3.25" in out
        assert ("not quite the preset food: " + changed in out) == bool(changed)
        assert ("  110.56\n" in out) == ("2,020 images" in out) == comparable
        assert ("do not compare with the report's" in out) != comparable


# ---------------------------------------------------------------------------------- command line


@pytest.fixture
def two_sets(here):
    """real.npz and fake.npz, 20 images of 16x16 each."""
    for name, seed in ("real", 0), ("fake", 1):
        np.savez(f"{name}.npz", images=images(20, 16, seed=seed).permute(0, 2, 3, 1).numpy())


@pytest.fixture
def run(small_weights, capsys):
    """run("real.npz fake.npz", ...) -> (stdout, stderr) of metrics.py, with the small weights."""

    def run(line, dims="--dims 64"):
        arguments = [*line.split(), "--weights", str(small_weights), *dims.split()]
        metrics.main(arguments)
        return capsys.readouterr()

    return run


def values_of(json_text):
    [fake] = json.loads(json_text)["fakes"]
    return fake["values"]


def test_two_data_sets(two_sets, run):
    out, _ = run("real.npz fake.npz --eval-images 8 --size 16 --floor --json")
    values = values_of(out)
    assert json.loads(out)["size"] == 16 and [v["name"] for v in values[:2]] == ["FID-64", "KID-64"]
    assert all(value["value"] is not None for value in values)
    assert values[0]["real"] > 1e-3  # the images of the floor are others
    assert "8 images of fake" in values[0]["protocol"]
    assert "8 images of real" in values[0]["protocol"]
    out, err = run("real.npz fake.npz --eval-images 30 --size 16", dims="")  # neither 768 nor 2048
    assert len(re.findall("(?m)^[FK]ID.*  not measured +-$", out)) == 4
    assert "collapse (pixels)" in out
    assert len(re.findall("(?m)^FID(-768)?, KID(-768)?: not measured here: ", out)) == 2
    assert err.count("has only 20 of the 30 images") == 2
    assert json.loads(run("real.npz fake.npz --eval-images 8 --json")[0])["size"] == 64


def test_floor_of_a_small_set(two_sets, run):
    """20 images: 10 real ones, 10 others for the floor, and 10 of the other side."""
    out, err = run("real.npz fake.npz --size 16 --floor --json")
    assert err.count("\n") == 2 and "real.npz has only 20 images: 10 on each side" in err
    assert "10 generated and 10 real images are few" in err
    values = by_name(values_of(out))
    assert values["FID-64"]["real"] > 1e-3 and values["collapse (pixels)"]["pairs"] == 90
    assert "10 images of fake" in values["FID-64"]["protocol"]
    assert "10 other real images against the same" in values["FID-64"]["protocol"]
    np.savez("few.npz", images=images(30, 16).permute(0, 2, 3, 1).numpy())
    _, err = run("real.npz few.npz --size 16 --eval-images 10 --floor")  # 20 are enough
    assert "has only" not in err


@pytest.mark.parametrize(
    "sizes, more, expected",
    [((96, 96), "", 96), ((128, 96), "", 96), ((96, 28), "", 64), ((96, 96), "--size 24", 24),
     ((28, 28), "", 64), ((600, 600), "", 512)],
)  # fmt: skip
def test_images_keep_their_own_size(here, sizes, more, expected, run, monkeypatch):
    """The smaller of both, but from 64 to 512. Whatever is resized is said in one line."""
    monkeypatch.setattr(metrics, "evaluate", lambda *args, **_: [measured_shapes(*args)])
    for name, size in zip(("real", "fake"), sizes, strict=True):
        np.savez(f"{name}.npz", images=images(3, size).permute(0, 2, 3, 1).numpy())
    out, err = run(f"real.npz fake.npz --eval-images 3 --json {more}")
    assert json.loads(out)["size"] == expected
    shape = [3, 3, expected, expected]
    assert values_of(out)[0]["shapes"] == [shape, shape]
    resized = not more and set(sizes) != {expected}
    line = f"compared at {expected} pixels (they have: real.npz {sizes[0]} and fake.npz {sizes[1]})"
    assert (line in err) == resized and err.count("\n") == resized


def measured_shapes(real, fake, floor):
    return {"shapes": [list(real.shape), list(fake.shape)]}


def test_the_size_of_most_images_counts(here, monkeypatch):
    """One thumbnail and one damaged file change nothing; shapes have any size."""
    folder = make_folder(here / "photos", [f"{i}.png" for i in range(8)], size=(120, 100))
    make_folder(folder, ["a.png"], size=(20, 20))
    (folder / "0.png").write_bytes(b"no image")
    sides = [metrics.Side("photos"), metrics.Side("shapes")]
    assert metrics.common_size(sides) == 100
    assert metrics.common_size([metrics.Side("shapes")] * 2) == 64


def save_statistics(path, x, **other):
    np.savez(path, **{"mu": x.mean(0), "sigma": np.cov(x, rowvar=False), **other})


def test_statistics_as_a_side(two_sets, run, small_weights):
    """FID as from the features themselves; all else is not measured."""
    x = samples(300, 64)
    y = samples(200, 64, seed=1) * 1.2
    save_statistics("x.npz", x)
    save_statistics("y.npz", y)
    expected = metrics.fid(x, y)
    for line in "x.npz y.npz", "y.npz x.npz":
        fid, rest = values_of(run(f"{line} --json")[0])
        assert fid["name"] == "FID-64" and fid["value"] == pytest.approx(expected, rel=1e-9)
        assert "statistics (mu, sigma) in x.npz" in fid["protocol"]
        assert rest["value"] is None and "hold no images" in rest["reason"]
    z = inception.features(datasets.load("fake.npz", 64).images, (64,), small_weights)[64]
    expected = frechet(x, z)
    for line in "x.npz fake.npz", "fake.npz x.npz":
        out, _ = run(f"{line} --eval-images 20 --json")
        fid, rest = values_of(out)
        assert fid["value"] == pytest.approx(expected, rel=1e-6)
        assert "20 images: " in fid["protocol"] and small_weights.name in fid["protocol"]
        assert rest["name"] == "all else"
    out, _ = run("x.npz fake.npz --floor")
    assert "\nall else  not measured  -\n" in out and "all else: not measured here: stat" in out
    save_statistics("w.npz", samples(300, 192))
    for line, words in (
        ("x.npz w.npz", "different numbers of features"),
        ("x.npz fake.npz --iwae 3", "--iwae needs"),
    ):
        with pytest.raises(InputError, match=words):
            run(line)


def frechet(x, y):
    """The distance with scipy's matrix square root."""
    s1, s2 = np.cov(x, rowvar=False), np.cov(y, rowvar=False)
    root = scipy.linalg.sqrtm(s1 @ s2).real
    return np.square(x.mean(0) - y.mean(0)).sum() + np.trace(s1 + s2 - 2 * root)


@pytest.mark.parametrize(
    "damage, words",
    [(dict(sigma=np.ones((3, 3))), "and sigma"), (dict(mu=np.ones((64, 64))), "mu "),
     (dict(mu=np.full(64, np.nan)), "no finite mu"), (dict(mu=np.ones(7)), "mu "),
     (dict(sigma=np.triu(np.ones((64, 64)))), "no covariance"),
     (dict(sigma=np.array(["x"])), "readable"), (dict(sigma=np.array([None])), "readable"),
     (dict(sigma=np.full((64, 64), np.inf)), "no covariance"), (dict(sigma=-np.eye(64)), "no cov"),
     (dict(sigma=1e300 * np.eye(64)), "no cov"), (dict(mu=np.full(64, 1e300)), "no finite mu"),
     (dict(sigma=1j * np.eye(64)), "real numbers")],
)  # fmt: skip
def test_damaged_statistics(two_sets, run, damage, words):
    save_statistics("x.npz", samples(300, 64), **damage)
    with pytest.raises(InputError, match=words) as error:
        run("x.npz fake.npz")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "line",
    ["few.npz fake.npz --floor", "one.npy fake.npz", "fake.npz one.npy",
     "few.npz fake.npz --bootstrap 5", "x.npz real.npz --iwae 3", "few.npz fake.npz y.npz"],
)  # fmt: skip
def test_what_is_wrong_is_said_alone_and_before_any_feature(
    two_sets, small_weights, monkeypatch, capsys, line
):
    """One line, also where there are remarks about the sides."""
    pixels = np.load("fake.npz")["images"]
    np.savez("few.npz", images=pixels[:3])
    np.save("one.npy", pixels[:1])
    save_statistics("x.npz", samples(300, 64))
    save_statistics("y.npz", samples(300, 768))  # the weights go up to 192
    monkeypatch.setattr(inception, "inception", None)
    monkeypatch.setattr(sys, "argv", ["metrics.py"])
    argv = [*line.split(), "--weights", str(small_weights), "--device", "cpu"]
    with pytest.raises(SystemExit) as stop:
        run_program(lambda: metrics.main(argv))
    assert stop.value.code == 2 and capsys.readouterr().err.count("\n") == 1


@pytest.mark.parametrize("state", [torch.zeros(3), [1], {3: 1}, "text", 7])
def test_weights_that_are_something_else(here, state, recwarn):
    torch.save(state, "w.pth")
    if isinstance(state, int):
        (here / "w.pth").write_text("no weights")
    with pytest.raises(InputError, match="is damaged or not the FID Inception") as error:
        inception.load_weights("w.pth")
    assert "weights_only`" not in str(error.value) and not recwarn


def test_sample_files_of_other_programs(two_sets, run):
    """guided-diffusion writes arr_0 (and arr_1, labels)."""
    pixels = np.load("fake.npz")["images"]
    np.savez("samples.npz", pixels, np.arange(20) % 3)
    np.save("samples.npy", pixels)
    results = []
    for name in ("fake.npz", "samples.npz", "samples.npy"):
        out, _ = run(f"real.npz {name} --size 16 --eval-images 8 --json")
        results.append([value["value"] for value in values_of(out)])
    assert results[0] == results[1] == results[2]


def test_all_sides_are_read_before_a_model_makes_images(two_sets, here, run, script):
    save(here / "r/last.pt", 7)
    script.generate = None
    (here / "empty").mkdir()
    (here / "bad.npz").write_bytes(b"PK\x03\x04 damaged")
    for line in "real.npz r empty", "real.npz r bad.npz", "r real.npz nosuch", "real.npz r r/x.pt":
        with pytest.raises(InputError) as error:
            run(f"{line} --size 16")
        assert "\n" not in str(error.value)


def test_names_in_tables_are_printable():
    value = {"name": "FID of \x1b[31m", "value": 1.5, "real": None, "protocol": "a\nb\udcff"}
    for text in metrics.table([value]), metrics.comparison([("x\r", [value]), ("y", [value])]):
        assert r"FID of \x1b[31m" in text and r"a\nb\udcff" in text
        assert all(character.isprintable() for line in text.split("\n") for character in line)


def test_the_real_side_is_the_test_split(here):
    pixels = np.arange(60, dtype=np.uint8)[:, None, None].repeat(16, 1).repeat(16, 2)
    labels = np.arange(60) % 3
    np.savez("split.npz", images=pixels, labels=labels, split=(np.arange(60) >= 30).astype(int))
    data = metrics.draw(metrics.Side("split.npz"), 20, 16, "test", 3)
    numbers = data.images[:, 0, 0, 0].long()
    assert (numbers >= 30).all() and torch.equal(data.labels, numbers % 3)
    assert "held-out test split" in data.note
    np.savez("whole.npz", images=pixels)
    assert "no held-out split" in metrics.draw(metrics.Side("whole.npz"), 20, 16, "test", 3).note


@pytest.fixture
def script(monkeypatch):
    """A stand-in for the script that made a model, which tools load by its name."""

    def generate(model, n, seed=0, first=0, label=None):
        return images(n, 16, seed=seed + 5)

    script = types.SimpleNamespace(generate=generate, load_model=lambda *_: torch.nn.Identity())
    monkeypatch.setattr(training, "load_script", lambda stem: script)
    return script


def save(path, step, script="dcgan", classes="", trained_on=None, fields=None, **flags):
    data = {"size": 16, "channels": 3, "classes": list(classes)}
    data["fingerprint"] = trained_on.fingerprint if trained_on else "0"
    checkpoint = {"format": 2, "script": script, "step": step, "data": data}
    path.parent.mkdir(exist_ok=True)
    flags = {"ema": 0.0, "size": 16, "seed": 0, **flags}
    torch.save({**checkpoint, "flags": flags, "models": {}, **(fields or {})}, path)


def test_a_run_and_its_checkpoints(two_sets, here, run, script):
    save(here / "r/last.pt", 7)
    for fake in "r", "r/last.pt":
        out, _ = run(f"real.npz {fake} --eval-images 6")
        assert "6 images by dcgan, plain weights at step 7" in out
    values = values_of(run("r r --eval-images 6 --json")[0])
    assert values[0]["value"] > 0  # two different samples of the same model
    with pytest.raises(InputError, match="disagree"):
        run("real.npz r --size 32")
    save(here / "r/best.pt", 7)  # the best is the last: one of them is measured
    assert "A:" not in run("real.npz r --eval-images 6")[0]
    save(here / "r/best.pt", 3)
    out, _ = run("real.npz r --eval-images 6 --json")
    names = [fake["fake"] for fake in json.loads(out)["fakes"]]
    assert names == ["r/best.pt", "r/last.pt"]
    for name in "only_best", "empty":
        (here / name).mkdir()
        (here / name / "args.json").write_text("{}")
    (here / "r/best.pt").rename(here / "only_best/best.pt")
    assert "at step 3" in run("real.npz only_best --eval-images 6")[0]
    with pytest.raises(InputError, match="without a checkpoint"):
        run("real.npz empty")


def test_several_sides_are_one_table(two_sets, here, run, script):
    save(here / "r/last.pt", 7)
    save(here / "r/best.pt", 3)
    out, _ = run("real.npz r fake.npz --eval-images 6 --floor")
    assert "A: r/best.pt: images by dcgan, plain weights at step 3" in out and "at step 7" in out
    assert "C: fake.npz: " in out and "6 images of the column against 6 images of real" in out
    table = {line.split()[0]: line.split() for line in out.splitlines() if line.startswith("FID")}
    one = values_of(run("real.npz r/last.pt --eval-images 6 --floor --json")[0])[0]
    assert table["FID-64"][2] == metrics.format_value(one)
    assert table["FID-64"][4:] == [metrics.format_value(one, "real")]
    np.savez("few.npz", images=images(4, 16).permute(0, 2, 3, 1).numpy())
    out, err = run("real.npz fake.npz few.npz --eval-images 6 --size 16")
    for letter, n in ("A", 6), ("B", 4):
        [line] = re.findall(f"(?m)^.*: {n} images of the column .*$", out)
        assert line.startswith(f"FID-64 ({letter}), KID-64 ({letter}), ")
    assert err.count("has only") == 1
    assert re.search(r"(?m)^precision-64 \(B\), recall-64 \(B\), .*: not measured here", out)
    with pytest.raises(InputError, match="no data set or path 'nosuch'"):
        run("real.npz fake.npz nosuch")


def test_a_checkpoint_that_cannot_be_opened(two_sets, here, run, script):
    save(here / "r/last.pt", 7)

    def load_model(*_):
        raise RuntimeError("size mismatch for layer.weight\nand more")

    script.load_model = load_model
    with pytest.raises(InputError, match="size mismatch") as error:
        run("real.npz r")
    assert "\n" not in str(error.value)
    torch.save({"script": "os", "format": 3}, here / "r/last.pt")
    with pytest.raises(InputError, match="not a checkpoint"):
        run("real.npz r")


def test_the_class_of_a_conditional_model(tiny, run, script, monkeypatch):
    """Is the class obeyed? Asked where both sides have the same classes."""
    asked = []

    def asked_labels(model, n, seed=0, first=0):
        asked.append((n, seed))
        return torch.arange(n) % 3

    script.asked_labels = asked_labels
    quick = functools.partial(metrics.conditional, steps=2)
    monkeypatch.setattr(metrics, "conditional", quick)
    save(tiny / "r/last.pt", 7, "cgan", "abc")
    values = by_name(values_of(run("tiny.npz r --eval-images 10 --json")[0]))
    assert "on 100 generated ones" in values["class accuracy"]["protocol"]
    assert "class accuracy, reverse" in values and "FID-64 of a" in values
    assert asked == [(10, 0), (100, 1)]
    assert "class" not in run("tiny.npz r --eval-images 10 --no-classes")[0].replace("classes", "")
    np.savez("xyz.npz", images=images(60, 16).permute(0, 2, 3, 1).numpy(), labels=np.arange(60) % 2)
    out, err = run("xyz.npz r --eval-images 10")
    assert "class accuracy" not in out and "different classes" in err


@pytest.fixture
def photos(here):
    """A folder of images that are not square, and x.npz with square ones."""
    names = [f"{c}/{i}.png" for c in "ab" for i in range(30)]
    np.savez("x.npz", images=images(20, 16).permute(0, 2, 3, 1).numpy())
    return make_folder(here / "photos", names, size=(24, 16))


def test_real_images_become_square_as_those_of_the_model(photos, here, run, script, monkeypatch):
    measured = []

    def evaluate(real, fake, *_, real_words, fake_words, **__):
        measured.extend([(real, real_words), (fake, fake_words)])
        return []

    monkeypatch.setattr(metrics, "evaluate", evaluate)
    squashed = datasets.load("photos", 16, fit="squash")
    save(here / "r/last.pt", 7, trained_on=squashed, fit="squash")
    save(here / "old/last.pt", 7, trained_on=datasets.load("photos", 16))  # without the flag
    for line, fit in (
        ("photos r", "squash"),
        ("photos r --fit squash", "squash"),
        ("photos old", "crop"),
        ("r photos", "squash"),
        ("photos photos --size 16", "crop"),
        ("photos x.npz --size 16 --fit pad", "pad"),
        ("x.npz photos --size 16 --fit pad", "pad"),
    ):
        measured.clear()
        run(f"{line} --eval-images 10 --no-classes")
        expected = datasets.load("photos", 16, fit=fit)
        pixels = {bytes(image) for image in expected.images.numpy()}
        of_photos = [(images, words) for images, words in measured if " photos " in words]
        assert len(of_photos) == line.count("photos")
        for images_of_one_side, words in of_photos:
            assert {bytes(image) for image in images_of_one_side.numpy()} <= pixels
            assert expected.note in words
    for line in ("photos r --fit crop", "photos r old", "r old", "photos old --fit pad"):
        with pytest.raises(InputError, match="--fit or the models disagree") as error:
            run(f"{line} --eval-images 10")
        assert "\n" not in str(error.value)
    with pytest.raises(InputError, match=r"--size or the models disagree \(16 and 32\)"):
        run("photos r --size 32")


def test_models_of_the_same_pixels_may_have_any_fit(photos, here, run, script):
    """Their images were square, so there was nothing to crop or squash."""
    for name, fit in (("a", "crop"), ("b", "squash")):
        save(here / f"{name}/last.pt", 7, trained_on=datasets.load("x.npz", 16, fit=fit), fit=fit)
    assert "B: b/last.pt" in run("x.npz a b --eval-images 8")[0]


def test_own_values_are_of_images_that_the_vae_was_trained_on(photos, here, run, script):
    """With --limit-per-class, not of any that it has never seen, with --hold-out, of those."""
    seen = []

    def own_values(model, data, samples=0):
        seen.append(data)
        mu = torch.randn(len(data.images), 4)
        values = {"means": [4.0, 2.0, 6.0, 0.5], "mu": mu, "likelihood": "sigma"}
        return {**values, "samples": samples, "importance_bound": None}

    script.own_values = own_values
    for fit, hold_out in (("squash", 0), ("crop", 10)):
        data = datasets.load("photos", 16, fit=fit)
        flags = {"fit": fit, "limit_per_class": 4, "hold_out": hold_out}
        save(here / "r/last.pt", 7, "vae", "ab", data, **flags)
        out, _ = run("photos r --eval-images 10")
        train, held_out = datasets.load_parts("photos", 16, hold_out, fit, 4)
        expected = train if held_out is None else held_out
        drawn = {bytes(image) for image in seen[-1].images.numpy()}
        assert drawn <= {bytes(image) for image in expected.images.numpy()}
        assert len(drawn) == min(10, len(expected.images)) == (10 if hold_out else 8)
        words = "10 held-out" if hold_out else "8 training (nothing is held out)"
        assert f"{words} images of photos" in out


def test_own_values_of_a_vae(tiny, run, script):
    """On the images that the script would take itself. --iwae goes to the script."""
    seen = []

    def own_values(model, data, samples=0):
        seen.append((data, samples))
        mu = torch.randn(len(data.images), 4)
        values = {"means": [4.0, 2.0, 6.0, 0.5], "mu": mu, "likelihood": "sigma"}
        return {**values, "samples": samples, "importance_bound": 5.5 if samples else None}

    save(tiny / "r/last.pt", 7, "vae", "abc", hold_out=30)
    with pytest.raises(InputError, match="--iwae needs"):
        run("tiny.npz r --iwae 5")
    script.own_values = own_values
    with pytest.raises(InputError, match="--iwae needs"):
        run("r r --iwae 5")
    values = by_name(values_of(run("tiny.npz r --eval-images 10 --iwae 5 --json")[0]))
    assert values["bound (5 samples)"]["value"] == 5.5 and values["bound (nats)"]["value"] == 6
    assert "10 given images of tiny" in values["KL (nats)"]["protocol"]
    [(data, samples)] = seen
    assert len(data.images) == len(data.labels) == 10 and samples == 5

    # the model's own data: only images that it held out
    save(tiny / "r/last.pt", 7, "vae", "abc", datasets.load("tiny.npz", 16), hold_out=30)
    out, _ = run("tiny.npz r --eval-images 10")
    assert "10 held-out images of tiny" in out and "samples)" not in out
    _, held_out = datasets.load_parts("tiny.npz", 16, 30)
    order = datasets.shuffled(30, 1)
    assert torch.equal(seen[1][0].images, held_out.images[order[:10]])

    script.asked_labels = lambda model, n, seed=0: torch.zeros(n, dtype=torch.int64)
    np.savez("xy.npz", images=images(60, 16).permute(0, 2, 3, 1).numpy(), labels=np.arange(60) % 2)
    out, err = run("xy.npz r --eval-images 10")
    assert "bound (nats)" not in out and "its bound is left out" in err


@pytest.fixture
def evaluated(monkeypatch):
    """What evaluate() was given, instead of its numbers: a list of (real, fake, floor)."""
    calls = []

    def evaluate(real, fake, floor, **_):
        calls.append((real, fake, floor))
        return [{"name": "FID-64", "value": 1.5, "real": None, "protocol": "how"}]

    monkeypatch.setattr(metrics, "evaluate", evaluate)
    return calls


def save_pixels(name, pixels, **arrays):
    np.savez(f"{name}.npz", images=pixels.permute(0, 2, 3, 1).numpy(), **arrays)


def contents(*sets):
    return [image.numpy().tobytes() for pixels in sets for image in pixels]


def test_best_is_measured_on_images_that_did_not_choose_it(here, run, script, evaluated):
    """In other orders, splits and numbers, too. All columns are measured on the same images."""
    pixels = images(30, 16)
    chosen = contents(pixels[:8])
    fields = {"chosen_on": datasets.image_hashes(pixels[:8])}
    save(here / "r/last.pt", 7)
    save(here / "r/best.pt", 3, fields=fields)
    order = torch.randperm(30, generator=torch.Generator().manual_seed(0))
    test = np.arange(30) % 2  # 4 of the 8, and 11 others
    save_pixels("plain", pixels)
    save_pixels("order", pixels[order])
    save_pixels("split", pixels, split=test)
    save_pixels("twice", torch.cat([pixels, pixels[:12]]))
    for name, count, others in (("plain", 8, 22), ("order", 8, 22), ("split", 4, 11)):
        out, err = run(f"{name}.npz r --eval-images 40 --size 16")
        assert (
            err.count(f"metrics.py: {count} images of {name} chose best.pt and are left out") == 1
        )
        assert "A: r/best.pt" in out and "B: r/last.pt" in out
        for real, _, _ in evaluated:
            assert len(real) == others and not set(contents(real)) & set(chosen)
        assert len(evaluated) == 2 and torch.equal(evaluated[0][0], evaluated[1][0])
        evaluated.clear()
    _, err = run("twice.npz r/best.pt --eval-images 13 --size 16 --floor")
    [(real, _, floor)] = evaluated
    assert "16 images of twice" in err and len(real) == len(floor) == 13
    assert not set(contents(real, floor)) & set(chosen)


def test_last_is_measured_on_all_images(two_sets, here, run, script, evaluated):
    """Also where best.pt is the same step, which is then left out itself, or is an older file."""
    hashes = datasets.image_hashes(datasets.load("real.npz", 16, "all").images[:8])
    save(here / "r/best.pt", 7, fields={"chosen_on": hashes})
    save(here / "r/last.pt", 7)
    save(here / "old/best.pt", 3)
    for fake in "r", "r/last.pt", "old/best.pt":
        _, err = run(f"real.npz {fake} --size 16")
        assert "chose" not in err and len(evaluated.pop()[0]) == 20


def test_the_images_that_chose_are_found_in_other_channels(here, run, script, evaluated):
    grey = images(10, 16, 1)
    coloured = images(2, 16, seed=1)  # one of these makes the whole set colour
    save_pixels("grey", grey)
    save_pixels("colour", torch.cat([grey.expand(-1, 3, -1, -1), coloured]))
    hashes = datasets.image_hashes(datasets.load("grey.npz", 16, "all").images[:6])
    save(here / "r/best.pt", 3, fields={"chosen_on": hashes})
    _, err = run("colour.npz r/best.pt --size 16")
    [(real, _, _)] = evaluated
    assert real.shape == (6, 3, 16, 16) and "6 images of colour chose best.pt" in err


def test_own_and_class_values_leave_out_what_chose_best(tiny, run, script, evaluated, monkeypatch):
    seen = {}

    def conditional(train, held_out, *_, **__):
        seen["class"] = contents(train.images)
        return []

    def own_values(model, data, samples=0):
        seen["own"] = contents(data.images)
        values = {"means": [4.0, 2.0, 6.0, 0.5], "mu": torch.randn(len(data.images), 4)}
        return {**values, "likelihood": "sigma", "samples": 0, "importance_bound": None}

    monkeypatch.setattr(metrics, "conditional", conditional)
    script.asked_labels = lambda model, n, seed=0: torch.arange(n) % 3
    script.own_values = own_values
    data = datasets.load("tiny.npz", 16)
    _, held_out = datasets.load_parts("tiny.npz", 16, 30)
    chosen = held_out.images[::2]
    fields = {"chosen_on": datasets.image_hashes(chosen)}
    save(tiny / "r/best.pt", 7, "vae", "abc", data, fields, hold_out=30)
    _, err = run("tiny.npz r --eval-images 100")
    assert sorted(seen["own"]) == sorted(contents(held_out.images[1::2]))
    assert len(seen["class"]) == 85 and not set(seen["class"]) & set(contents(chosen))
    assert err.count("15 images of tiny chose best.pt and are left out") == 1


def test_when_all_images_chose_best(two_sets, here, run, script, evaluated):
    hashes = datasets.image_hashes(datasets.load("real.npz", 16, "all").images)
    save(here / "r/best.pt", 3, fields={"chosen_on": hashes})
    with pytest.raises(InputError, match="all 20 images of real chose best.pt: measure last.pt"):
        run("real.npz r --size 16")
    save_statistics("x.npz", samples(300, 64))
    _, err = run("x.npz r --eval-images 4")
    assert "x.npz holds no images: some behind it may have chosen best.pt" in err
    assert not evaluated


@pytest.mark.parametrize(
    "wrong", [[1, 2], None, 7, "all", torch.zeros(3), torch.zeros(3, dtype=torch.int32)]
)
def test_damaged_hashes_are_one_line(two_sets, here, run, script, wrong):
    save(here / "r/best.pt", 3, fields={"chosen_on": wrong})
    with pytest.raises(InputError, match="its chosen_on makes no sense") as error:
        run("real.npz r")
    assert "\n" not in str(error.value)


def results_in(folder):
    """The files of results in a run directory: {name: what they hold}."""
    files = folder.glob("metrics-*.json")
    return {path.name: json.loads(path.read_text(encoding="utf-8")) for path in files}


def test_results_are_written_into_the_run(two_sets, here, run, script):
    for name, step in ("best.pt", 3), ("last.pt", 7), ("kept/000005.pt", 5):
        (here / "r" / name).parent.mkdir(parents=True, exist_ok=True)
        save(here / "r" / name, step)
    save(here / "elsewhere/last.pt", 9)  # no run directory: no args.json
    (here / "r/args.json").write_text("{}")
    line = "real.npz r r/kept/000005.pt fake.npz elsewhere --size 16 --eval-images 8 --json"
    out, _ = run(line)
    printed = {fake["fake"]: fake["values"] for fake in json.loads(out)["fakes"]}
    results = results_in(here / "r")
    assert len(printed) == 5 and len(results) == 3 and not results_in(here / "elsewhere")
    for name, file, step in (
        ("metrics-best-real.json", "best.pt", 3),
        ("metrics-last-real.json", "last.pt", 7),
        ("metrics-000005-real.json", "kept/000005.pt", 5),
    ):
        weights = f"plain weights at step {step}"
        expected = {"real": "real", "checkpoint": file.split("/")[-1], "step": step, "size": 16}
        expected |= {"weights": weights, "images": 8, "values": printed[f"r/{file}"]}
        assert results[name] == expected
        assert f"images by dcgan, {weights}" in results[name]["values"][0]["protocol"]
    out, _ = run("real.npz r --size 16 --eval-images 8")
    assert "8 images of the column against 8 images of real" in out  # in a table of columns
    assert results_in(here / "r") == results


def test_results_lie_in_the_run_from_within_it(two_sets, here, run, script, evaluated, monkeypatch):
    (here / "r/kept").mkdir(parents=True)
    save(here / "r/kept/7.pt", 7)
    (here / "r/args.json").write_text("{}")
    monkeypatch.chdir(here / "r/kept")
    run("../../real.npz 7.pt --size 16")
    assert list(results_in(here / "r")) == ["metrics-7-real.json"]
    (here / "r/kept/args.json").write_text("{}")  # a run directory of this name
    run("../../real.npz 7.pt --size 16")
    assert list(results_in(here / "r/kept")) == ["metrics-7-real.json"]


def test_a_page_that_lacks_new_results(two_sets, here, script, evaluated, capsys, monkeypatch):
    """One line per run says how its page gets them; none where there is no page."""
    (here / "a run").mkdir()
    for name, step in ("best.pt", 3), ("last.pt", 7):
        save(here / "a run" / name, step)
    (here / "a run/args.json").write_text("{}")
    argv = ["real.npz", "a run", "--size", "16", "--eval-images", "8"]
    metrics.main(argv)
    assert capsys.readouterr().err == ""
    (here / "a run/report.html").touch()
    with monkeypatch.context() as patch:
        patch.setattr(metrics, "__file__", str(here / "metrics.py"))  # no report.py next to it
        metrics.main(argv)
    assert capsys.readouterr().err == ""
    metrics.main(argv)
    command = f'python report.py "{here / "a run"}"'
    assert capsys.readouterr().err == f"metrics.py: {command} updates its page\n"


@pytest.mark.skipif(sys.platform == "win32", reason="names that Windows refuses")
def test_results_of_real_images_with_a_hostile_name(two_sets, here, run, script, evaluated):
    """The file's name is safe for every system; the data's name is inside."""
    save(here / "r/last.pt", 7)
    (here / "r/args.json").write_text("{}")
    for name in 'a:b*c?"<>|', "new\nline\x1b[31m", "x" * 200, "日本語" * 20, "..":
        os.rename("real.npz", f"{name}.npz")
        metrics.main([f"{name}.npz", "r", "--size", "16"])
        os.rename(f"{name}.npz", "real.npz")
    results = results_in(here / "r")
    assert len(results) == 5
    for name, result in results.items():
        assert len(name.encode()) < 240 and not set(name) & set('/\\:*?"<>|\n\x1b')
        assert result["values"][0]["value"] == 1.5
    assert 'a:b*c?"<>|' in [result["real"] for result in results.values()]


def test_results_that_cannot_be_written(two_sets, here, run, script, evaluated):
    """The numbers are printed all the same; one line says that they are not in the run."""
    save(here / "r/last.pt", 7)
    (here / "r/args.json").write_text("{}")
    (here / "r/metrics-last-real.json").mkdir()
    out, err = run("real.npz r --size 16 --eval-images 8")
    assert "FID-64" in out and "1.5" in out
    assert err.count("\n") == 1 and "metrics-last-real.json" in err
    assert {path.name for path in (here / "r").iterdir()} == {
        "last.pt", "args.json", "metrics-last-real.json"
    }  # fmt: skip


BAD = """

shapes
shapes shapes --eval-images 1
shapes shapes --eval-images many
shapes shapes --dims 100
shapes shapes --dim 64
shapes shapes --size 2
shapes shapes --bootstrap 1
shapes shapes --precision fp16
shapes shapes none.pt
shapes no-such-folder
no-such-set shapes
shapes shapes --device toaster
shapes shapes --device cuda:99
shapes shapes --weights none.pth
shapes shapes --dims 2048
shapes shapes --iwae 5
shapes shapes --seed -1
shapes shapes --seed 4294967296
shapes shapes --size 999999
shapes shapes --eval-images 999999999999999999999999999999
shapes shapes --bootstrap 99999999999
shapes pipe
pipe shapes
shapes shapes --weights pipe
shapes pipe.pt
shapes shapes --device=
shapes shapes --weights="""


@pytest.mark.parametrize("line", BAD.split("\n")[1:])
def test_bad_input_is_one_line(line, here, capsys, monkeypatch):
    """The file run as a program, in this process: exit code 2, one line on stderr, no output."""
    monkeypatch.setattr(sys, "argv", ["metrics.py", *line.split()])
    if hasattr(os, "mkfifo"):
        os.mkfifo("pipe")
        os.mkfifo("pipe.pt")
    with pytest.raises(SystemExit) as leaving:
        runpy.run_path(str(ROOT / "metrics.py"), run_name="__main__")
    out, err = capsys.readouterr()
    assert leaving.value.code == 2 and out == ""
    assert err.count("\n") == 1 and err.startswith("metrics.py: error: ")


@pytest.mark.skipif(sys.platform == "win32", reason="resource is POSIX")
def test_memory_does_not_grow_with_the_pairs():
    """8,000 against 8,000: one array of all pairs would be 512 MB."""
    code = """
import resource, numpy as np, metrics
x, y = (np.random.default_rng(seed).standard_normal((8000, 8)).astype("f") for seed in (0, 1))
metrics.prdc(x[:2000], y[:2000])  # what the libraries take at their first use
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
metrics.fid(x, y), metrics.kid(x, y, 3), metrics.bootstrap(x, y, 2)
metrics.collapse(x), metrics.prdc(x, y)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""
    result = program(ROOT, "-c", code)
    assert result.returncode == 0, result.stderr
    unit = 2**20 if sys.platform == "darwin" else 2**10
    assert int(result.stdout) / unit < 300  # MB; macOS counts bytes, Linux kilobytes
