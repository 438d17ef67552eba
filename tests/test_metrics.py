"""metrics.py against pytorch-fid, torch-fidelity, pytorch-msssim, closed forms and brute force. Nothing downloads."""

import json
import runpy
import subprocess
import sys
import time
import types
from pathlib import Path

import numpy as np
import pytest
import scipy.linalg
import scipy.spatial
import torch

import datasets
import metrics
from datasets import InputError

ROOT = Path(__file__).resolve().parent.parent
PARTIAL = ROOT.parent / "shared" / "weights" / "inception-2015-12-05-to-Mixed_6e.pth"
needs_partial = pytest.mark.skipif(not PARTIAL.exists(), reason="the real Inception weights are not beside the project")


@pytest.fixture(autouse=True)
def no_download(monkeypatch, tmp_path):
    """An empty torch hub folder and no network: the weights that a test needs, it names."""
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    monkeypatch.setattr(metrics, "download", lambda: "no network in tests")
    monkeypatch.setattr(datasets, "DATA", tmp_path / "data")


def images(n, size=20, channels=3, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(256, (n, channels, size, size), generator=generator).byte()


def samples(n, d, seed=0, scale=1.0, shift=0.0):
    """Correlated features whose covariance has eigenvalues over some orders of magnitude, as real ones do."""
    mix = np.random.default_rng(99).standard_normal((d, d)) * np.exp(-np.arange(d) * 6 / d)
    return np.random.default_rng(seed).standard_normal((n, d)) @ mix.T * scale + shift


# -------------------------------------------------------------------------------------------------------- features


@pytest.mark.parametrize("channels, size", [(3, 64), (1, 40), (3, 320)])
def test_features_agree_with_pytorch_fid(oracle, random_weights, channels, size):
    pixels = images(2, size, channels)
    with torch.no_grad():
        theirs = oracle[0](pixels.expand(-1, 3, -1, -1).float() / 255)
    ours = metrics.features(pixels, metrics.DIMS, random_weights, batch=1)
    for dim, reference in zip(metrics.DIMS, theirs, strict=True):
        reference = reference.mean((2, 3)).numpy()
        assert reference.std() > 1e-3  # the random network is alive this deep
        assert ours[dim].shape == (2, dim) and ours[dim].dtype == np.float32
        assert np.abs(ours[dim] - reference).max() < 1e-4 * np.abs(reference).max()


def test_features_agree_with_torch_fidelity(random_weights, monkeypatch):
    """The same network behind another way of the pixels: torch-fidelity resizes as TensorFlow 1 did (half a pixel off)
    and scales bytes to (x - 128) / 128. With our way in place of it the features are the same; with its own they differ
    by a few percent of their spread."""
    theirs = pytest.importorskip("torch_fidelity.feature_extractor_inceptionv3")
    network = theirs.FeatureExtractorInceptionV3("inception", ["64", "768", "2048"], str(random_weights))
    pixels = datasets.shapes(64, "test").images[:6]
    ours, other = metrics.features(pixels, (64, 768, 2048), random_weights), network(pixels)

    def our_way(x, **options):
        x = 2 * torch.nn.functional.interpolate(x / 255, size=(299, 299), mode="bilinear", align_corners=False) - 1
        return 128 * x + 128

    monkeypatch.setattr(theirs, "interpolate_bilinear_2d_like_tensorflow1x", our_way)
    for found, apart, same in zip(ours.values(), other, network(pixels), strict=True):
        assert np.abs(found - same.numpy()).max() < 1e-4 * np.abs(found).max()
        difference = np.abs(found - apart.numpy()).mean() / found.std(0).mean()
        assert 1e-3 < difference < 0.2


def test_bf16_moves_fid_by_little(small_weights):
    """The network in bf16 (8 bits of mantissa): FID moves by less than 2 % of itself."""
    pixels = datasets.shapes(32, "test").images
    real, fake = pixels[:40], pixels[40:80].flip(2) // 2
    exact, rounded = (
        [metrics.features(side, (192,), small_weights, precision=precision)[192] for side in (real, fake)]
        for precision in ("fp32", "bf16")
    )
    assert not np.array_equal(exact[0], rounded[0])
    assert metrics.fid(*rounded) == pytest.approx(metrics.fid(*exact), rel=0.02)
    assert metrics.fid(exact[0], rounded[0]) < 0.02 * metrics.fid(*exact)


@needs_partial
def test_features_agree_with_pytorch_fid_on_the_real_weights(oracle):
    state = {**oracle[1], **torch.load(PARTIAL, weights_only=True)}  # the layers after Mixed_6e stay random
    inception = pytest.importorskip("pytorch_fid.inception")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(inception, "load_state_dict_from_url", lambda *args, **kwargs: state)
        network = inception.InceptionV3([2]).eval()
    pixels = datasets.shapes(64, "test").images[:3]
    with torch.no_grad():
        theirs = network(pixels.float() / 255)[0].mean((2, 3)).numpy()
    ours = metrics.features(pixels, (768,), PARTIAL)[768]
    assert np.abs(ours - theirs).max() < 1e-4 * np.abs(theirs).max()


def test_only_the_stages_that_are_asked_for(random_weights):
    weights = metrics.load_weights(random_weights)
    assert list(metrics.inception(192, weights)) == [64, 192]
    several = metrics.features(images(3), (64, 192), weights)
    alone = metrics.features(images(3), (64,), weights)
    assert list(alone) == [64] and np.allclose(several[64], alone[64], atol=1e-5)


def test_features_refuse_what_is_not_an_image(small_weights):
    for wrong in images(2).float(), images(2)[0], images(2).repeat(1, 2, 1, 1):
        with pytest.raises(InputError, match="uint8"):
            metrics.features(wrong, (64,), small_weights)


# --------------------------------------------------------------------------------------------------------- weights


@pytest.mark.parametrize("content", ["text", "list", "half", "other"])
def test_broken_weights_are_one_line(tmp_path, content, oracle):
    path = tmp_path / "weights.pth"
    key = "Conv2d_1a_3x3.conv.weight"
    if content == "text":
        path.write_text("<html>not found</html>", encoding="utf-8")
    elif content == "half":
        torch.save(oracle[1], path)
        path.write_bytes(path.read_bytes()[:5000])
    else:
        torch.save([1, 2] if content == "list" else {key: torch.zeros(64, 3, 7, 7)}, path)
    with pytest.raises(metrics.MissingWeights) as error:
        metrics.load_weights(path)
    assert str(path) in str(error.value) and "\n" not in str(error.value)


def test_official_name_with_another_content_is_refused(tmp_path, small_weights):
    path = tmp_path / metrics.OFFICIAL
    path.write_bytes(small_weights.read_bytes())
    with pytest.raises(metrics.MissingWeights, match="wrong sha256"):
        metrics.load_weights(path)


def test_absent_weights_say_where_to_get_and_put_them(tmp_path):
    for path in None, tmp_path / "nothing.pth":
        with pytest.raises(metrics.MissingWeights) as error:
            metrics.load_weights(path)
        assert metrics.URL in str(error.value) and str(tmp_path / "hub") in str(error.value)
        assert "\n" not in str(error.value)


def test_partial_weights_serve_what_they_cover(small_weights):
    weights = metrics.load_weights(small_weights)
    metrics.require(weights, 192)
    with pytest.raises(metrics.MissingWeights, match="lacks Mixed_5b, which 2048-d features need"):
        metrics.features(images(2), (2048,), weights)


# ------------------------------------------------------------------------------------------------------------- FID


def svd_reference(x, y):
    """FID by another way: the singular values of S1^(1/2) S2^(1/2), each root from an eigendecomposition."""
    roots = []
    for side in x, y:
        values, vectors = np.linalg.eigh(np.cov(side, rowvar=False))
        roots.append(vectors * np.sqrt(values.clip(0)) @ vectors.T)
    trace = np.linalg.svd(roots[0] @ roots[1], compute_uv=False).sum()
    return np.sum((x.mean(0) - y.mean(0)) ** 2) + sum(np.sum(r * r) for r in roots) - 2 * trace


def test_fid_agrees_with_pytorch_fid(monkeypatch):
    score = pytest.importorskip("pytorch_fid.fid_score")
    # SciPy 1.18 drops sqrtm's `disp`, which pytorch-fid passes to get a second result that it throws away.
    monkeypatch.setattr(score, "linalg", types.SimpleNamespace(sqrtm=lambda a, disp: (scipy.linalg.sqrtm(a), None)))
    x, y = samples(2000, 64), samples(1500, 64, seed=1, scale=1.2, shift=0.1)
    theirs = score.calculate_frechet_distance(x.mean(0), np.cov(x, rowvar=False), y.mean(0), np.cov(y, rowvar=False))
    assert metrics.fid(x, y) == pytest.approx(theirs, rel=1e-6)


@pytest.mark.parametrize("n, m", [(50, 50), (50, 30), (63, 200), (200, 20), (64, 64), (300, 65), (2, 2)])
def test_fid_agrees_with_the_svd_reference(n, m):
    x, y = samples(n, 64), samples(m, 64, seed=1, scale=1.3, shift=0.2)
    assert metrics.fid(x, y) == pytest.approx(svd_reference(x, y), rel=1e-6)


def exactly(n, mean, deviation):
    """n points with exactly this mean and this diagonal covariance."""
    noise = np.random.default_rng(0).standard_normal((n, len(mean)))
    noise, _ = np.linalg.qr(noise - noise.mean(0))
    return noise * np.sqrt(n - 1) * deviation + mean


@pytest.mark.parametrize("n", [9, 20])  # fewer and more images than features
def test_fid_closed_form(n):
    """For commuting covariances it is |mean1 - mean2|^2 + |deviation1 - deviation2|^2."""
    a, b = np.array([1, 2, 3, 0.5, 0, 0, 0, 0, 0, 0]), np.array([2, 2, 1, 3, 0, 0, 0, 0, 0, 0])
    if n > 10:
        a, b = a + 0.1, b + 0.2
    x = exactly(n, np.arange(10.0)[: 4 if n < 10 else 10], a[: 4 if n < 10 else 10])
    y = exactly(n + 3, np.ones(10)[: 4 if n < 10 else 10], b[: 4 if n < 10 else 10])
    if n < 10:  # four directions with variance in a space of ten
        x, y = np.pad(x, ((0, 0), (0, 6))), np.pad(y, ((0, 0), (0, 6)))
    expected = np.sum((x.mean(0) - y.mean(0)) ** 2) + np.sum((a - b) ** 2)
    assert metrics.fid(x, y) == pytest.approx(expected, rel=1e-10)


@pytest.mark.parametrize("n", [40, 500])
def test_fid_identical_and_swapped(n):
    x, y = samples(n, 64), samples(n, 64, seed=1, scale=1.1)
    assert 0 <= metrics.fid(x, x) < 1e-9 * np.trace(np.cov(x, rowvar=False))
    assert metrics.fid(x, y) == pytest.approx(metrics.fid(y, x), rel=1e-10)
    assert metrics.fid(x, x[::-1]) < 1e-9 * np.trace(np.cov(x, rowvar=False))


def test_fid_where_cholesky_fails():
    x, y = samples(300, 32), samples(300, 32, seed=1, shift=0.3)
    x[:, 5] = 0  # a dead feature: a covariance with a row of zeros
    with pytest.raises(np.linalg.LinAlgError):
        scipy.linalg.cholesky(np.cov(x, rowvar=False))
    for one, other in (x, y), (y, x):
        assert metrics.fid(one, other) == pytest.approx(svd_reference(x, y), rel=1e-6)
    y[:, 5] = 0
    assert metrics.fid(x, y) == pytest.approx(metrics.fid(np.delete(x, 5, 1), np.delete(y, 5, 1)), rel=1e-6)


def test_covariance_in_pieces():
    x = samples(9000, 5).astype(np.float32)
    mean = x.mean(0, dtype=np.float64)
    assert np.allclose(metrics.covariance(x, mean), np.cov(x, rowvar=False, dtype=np.float64), rtol=1e-12)


@pytest.mark.parametrize("distance", [metrics.fid, metrics.kid])
def test_distances_refuse_bad_features(distance):
    good, broken = samples(10, 4), samples(10, 4)
    broken[3, 2] = np.nan
    for wrong, message in (good[:1], "at least 2"), (good[:, :3], "same d"), (broken, "not finite"):
        for pair in (good, wrong), (wrong, good):
            with pytest.raises(InputError, match=message):
                distance(*pair)


# ------------------------------------------------------------------------------------------------------------- KID


def brute_force_kid(x, y):
    def k(a, b):
        return (float(np.dot(a, b)) / len(a) + 1) ** 3

    within = np.mean([k(x[i], x[j]) for i in range(len(x)) for j in range(len(x)) if i != j])
    within += np.mean([k(y[i], y[j]) for i in range(len(y)) for j in range(len(y)) if i != j])
    return within - 2 * np.mean([k(a, b) for a in x for b in y])


def test_kid_agrees_with_brute_force():
    x, y = samples(30, 6), samples(30, 6, seed=1, shift=0.3)
    mean, std = metrics.kid(x, y)
    assert mean == pytest.approx(brute_force_kid(x, y), rel=1e-12) and std == 0
    mean, std = metrics.kid(x, y[:20], subsets=5, seed=3)
    rows, columns = metrics.draw_subsets(30, 20, 5, 1000, 3)
    expected = [brute_force_kid(x[i], y[j]) for i, j in zip(rows, columns, strict=True)]
    assert rows.shape == (5, 20) and all(len(set(row)) == 20 for row in rows)
    assert mean == pytest.approx(np.mean(expected), rel=1e-12) and std == pytest.approx(np.std(expected), rel=1e-9)


def test_kid_agrees_with_torch_fidelity():
    theirs = pytest.importorskip("torch_fidelity.metric_kid")
    x, y = samples(400, 32), samples(300, 32, seed=1, shift=0.1)
    rows, columns = metrics.draw_subsets(400, 300, 20, 100, 0)
    options = dict(kid_kernel="poly", kid_kernel_poly_degree=3, kid_kernel_poly_gamma=None, kid_kernel_poly_coef0=1)
    values = [theirs.kernel_mmd(x[i], y[j], **options) for i, j in zip(rows, columns, strict=True)]
    ours = metrics.kid(x, y, subsets=20, subset_size=100, seed=0)
    assert ours == pytest.approx((np.mean(values), np.std(values)), rel=1e-9)


def test_kid_both_ways_agree():
    x, y = samples(90, 16).astype(np.float32), samples(70, 16, seed=1).astype(np.float32)
    subsets = metrics.draw_subsets(90, 70, 12, 40, 0)
    one, other = metrics.kid_gram(x, y, *subsets), metrics.kid_loop(x, y, *subsets)
    assert one.shape == (12,) and np.allclose(one, other, rtol=1e-9, atol=1e-12)


def test_bootstrap_agrees_with_loops():
    """Every resample written out: the images that were drawn, and the kernel of every pair of different images."""
    x, y = samples(25, 4), samples(30, 4, seed=1, shift=0.3)
    found = metrics.bootstrap(x, y, resamples=6, seed=2)
    rng, fids, kids = np.random.default_rng(2), [], []

    def k(p, q):
        return (p @ q / 4 + 1) ** 3

    for _ in range(6):
        i, j = rng.integers(25, size=25), rng.integers(30, size=30)
        fids.append(metrics.fid(x[i], y[j]))
        parts = []
        for rows, z in (i, x), (j, y):
            parts.append(np.mean([k(z[a], z[b]) for a in rows for b in rows if a != b]))
        kids.append(sum(parts) - 2 * np.mean([k(x[a], y[b]) for a in i for b in j]))
    assert found == pytest.approx((np.std(fids, ddof=1), np.std(kids, ddof=1)), rel=1e-9)


def test_bootstrap_is_the_error_of_new_images():
    """Against the deviation over 200 truly independent pairs of sets."""
    pairs = [(samples(150, 4, seed=k), samples(150, 4, seed=1000 + k, shift=0.5)) for k in range(200)]
    over_pairs = np.std([(metrics.fid(*pair), metrics.kid(*pair)[0]) for pair in pairs], axis=0)
    found = np.mean([metrics.bootstrap(*pair, resamples=100) for pair in pairs[:6]], axis=0)
    assert found == pytest.approx(over_pairs, rel=0.3)


def test_sums_of_the_kernel_in_pieces():
    x = samples(4500, 3).astype(np.float32)
    weights = np.random.default_rng(0).random((2, 4500))
    whole = metrics.kernel(x.astype(np.float64), x.astype(np.float64))
    np.fill_diagonal(whole, 0)
    found = metrics.weighted_kernel(x, x, weights, weights)
    assert found == pytest.approx([w @ whole @ w for w in weights], rel=1e-10)


def test_kid_is_not_clamped_and_is_seeded():
    x, y = samples(300, 8), samples(300, 8, seed=1)
    values = [metrics.kid(x, y, subset_size=20, subsets=1, seed=seed)[0] for seed in range(20)]
    assert min(values) < 0 < max(values)
    assert metrics.kid(x, y, subset_size=20, seed=1) == metrics.kid(x, y, subset_size=20, seed=1)


# -------------------------------------------------------------------------------------------------------- collapse


@pytest.mark.parametrize("kind", ["pixels", "features"])
def test_collapse_agrees_with_brute_force(kind):
    pixels = images(30, 6)
    pixels[10:18] = pixels[0]
    pixels[12:20, :, 0] = 0
    pixels[20:25], pixels[25:] = 90, 160  # alike in [0, 1], opposite in [-1, 1]
    x = pixels if kind == "pixels" else samples(30, 3) + 1
    rows = (pixels.double().flatten(1) / 127.5 - 1).numpy() if kind == "pixels" else x
    rows = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    expected = sum(rows[i] @ rows[j] > 0.9 for i in range(30) for j in range(30) if i != j)
    assert 0 < expected < 30 * 29
    assert metrics.collapse(x) == (expected, 30 * 29)


def test_collapse_decides_in_float64():
    """Pairs around the threshold, closer to it than float32 can tell."""
    steps = 0.9 + np.arange(-300, 301) * 1e-9
    x = np.concatenate([[[1.0, 0.0]], np.stack([steps, np.sqrt(1 - steps**2)], 1)])
    others = 601 * 600  # those are alike
    assert metrics.collapse(x)[0] == others + 2 * (x[1:, 0] / np.hypot(*x[1:].T) > 0.9).sum()


def test_collapse_over_several_pieces():
    x = np.random.default_rng(0).standard_normal((2500, 3)).astype(np.float32)
    rows = x.astype(np.float64) / np.linalg.norm(x.astype(np.float64), axis=1, keepdims=True)
    assert metrics.collapse(x)[0] == (rows @ rows.T > 0.9).sum() - 2500
    assert metrics.collapse(np.zeros((4, 3))) == (0, 12)  # no direction: similar to nothing
    assert metrics.collapse(np.ones((4, 3))) == (12, 12)


# -------------------------------------------------------------------------- precision, recall, density and coverage


def prdc_by_loops(real, fake, k):
    def reach(rows):
        return [sorted(np.linalg.norm(a - b) for j, b in enumerate(rows) if j != i)[k - 1] for i, a in enumerate(rows)]

    of_real, of_fake = reach(real), reach(fake)
    inside = [[np.linalg.norm(f - r) < of_real[i] for i, r in enumerate(real)] for f in fake]
    return {
        "precision": sum(any(row) for row in inside) / len(fake),
        "recall": sum(any(np.linalg.norm(f - r) < of_fake[j] for j, f in enumerate(fake)) for r in real) / len(real),
        "density": sum(map(sum, inside)) / (k * len(fake)),
        "coverage": sum(any(row[i] for row in inside) for i in range(len(real))) / len(real),
    }


@pytest.mark.parametrize("k", [1, 3, 5])
def test_prdc_agrees_with_loops(k):
    rng = np.random.default_rng(k)
    real, fake = rng.standard_normal((60, 4)), 0.6 * rng.standard_normal((45, 4)) + 1.2
    found = metrics.prdc(real, fake, k)
    assert found == pytest.approx(prdc_by_loops(real, fake, k), abs=1e-12)
    assert all(0 < found[name] < 1 for name in ("precision", "recall", "coverage"))


def test_prdc_in_pieces():
    real, fake = samples(4200, 3), samples(1100, 3, seed=1, shift=0.2)

    def reach(x):  # scipy's own neighbours; the first is the row itself
        return scipy.spatial.cKDTree(x).query(x, 6)[0][:, 5]

    distances = scipy.spatial.distance.cdist(real, fake)
    in_real, in_fake = distances <= reach(real)[:, None], distances <= reach(fake)
    expected = {"precision": in_real.any(0).mean(), "recall": in_fake.any(1).mean(),
                "density": in_real.sum() / 5 / 1100, "coverage": in_real.any(1).mean()}  # fmt: skip
    assert metrics.prdc(real, fake) == pytest.approx(expected, rel=1e-12)


def test_precision_and_recall_agree_with_torch_fidelity():
    rng, k = np.random.default_rng(0), 3
    real, fake = rng.standard_normal((60, 4)), 0.6 * rng.standard_normal((45, 4)) + 1.2
    found = metrics.prdc(real, fake, k)
    theirs = pytest.importorskip("torch_fidelity.metric_prc")
    options = {"prc_neighborhood": k, "prc_batch_size": 17, "save_cpu_ram": True, "verbose": False}
    other = theirs.prc_features_to_metric(torch.tensor(fake), torch.tensor(real), **options)
    assert other["precision"] == pytest.approx(found["precision"]) and other["recall"] == pytest.approx(found["recall"])


def test_prdc_of_known_cases():
    x = np.random.default_rng(0).standard_normal((1100, 8))  # more than two pieces
    same = metrics.prdc(x, x)
    assert same["precision"] == same["recall"] == same["coverage"] == 1 and same["density"] == pytest.approx(
        1, abs=0.01
    )
    assert set(metrics.prdc(x, x + 100).values()) == {0.0}
    x[::2, 0] += 100  # two kinds, and one of them is missing among the generated; what there is is good
    found = metrics.prdc(x, np.concatenate([x[1::2], x[1::2] + 1e-3]))
    assert found["precision"] == 1 and found["recall"] == found["coverage"] == 0.5
    copies = np.repeat(x[:60], 20, axis=0)  # more copies than neighbours: every ball has the radius 0
    found = metrics.prdc(copies, copies)
    assert found["precision"] == found["recall"] == found["coverage"] == 1
    with pytest.raises(InputError, match="more than 5"):
        metrics.prdc(x[:5], x)


# ---------------------------------------------------------------------------------------------- conditional models


def test_obedience(random_weights, monkeypatch):
    """Images of the class asked for are recognised; with the classes shuffled nothing is left, both ways."""
    monkeypatch.setattr(metrics, "features", lambda images, dims, *_, **__: {d: images.flatten(1)[:, :d] for d in dims})
    train, test = datasets.load("shapes", 16), datasets.load("shapes", 16, "test")
    train = train._replace(images=train.images[:3000], labels=train.labels[:3000])
    held_out = test._replace(images=test.images[1000:], labels=test.labels[1000:])
    fake, asked = test.images[:1000], test.labels[:1000]
    state, settings = (
        torch.get_rng_state(),
        {"dims": (64,), "weights": random_weights, "steps": 150, "eval_images": 500},
    )
    good, back, *of_classes = metrics.conditional(train, held_out, fake, asked, **settings)
    assert good["value"] > 0.55 and good["value"] == pytest.approx(good["real"], abs=0.06)
    assert back["value"] > 0.45 and "on 1000 held-out" in back["protocol"]
    assert torch.equal(state, torch.get_rng_state())
    assert [v["name"] for v in of_classes] == [f"FID-64 of {name}" for name in train.classes]
    assert all("; 100 generated images of the class against 100 real" in v["protocol"] for v in of_classes)
    bad, back, *others = metrics.conditional(train, held_out, fake, (asked + 1) % 5, **settings)
    assert bad["value"] < 0.15 and back["value"] < 0.15 and bad["real"] == good["real"]
    assert sum(v["value"] for v in of_classes) < 0.5 * sum(v["value"] for v in others)
    kept, *_ = metrics.conditional(train, None, fake[:99], asked[:99], **settings | {"steps": 2})
    assert "kept from the classifier" in kept["protocol"]


def test_a_class_without_images(random_weights, monkeypatch):
    """Nothing was generated of one class: its FID cannot be had, the rest can."""
    monkeypatch.setattr(metrics, "features", lambda images, dims, *_, **__: {d: images.flatten(1)[:, :d] for d in dims})
    train = datasets.load("shapes", 16)
    train = train._replace(images=train.images[:300], labels=train.labels[:300])
    zeros, settings = torch.zeros(50, dtype=torch.int64), {"dims": (64,), "weights": random_weights, "steps": 2}
    first, *others = metrics.conditional(train, None, train.images[:50], zeros, **settings, eval_images=50)[2:]
    assert first["value"] > 0 and all(v["value"] is None and "0 generated" in v["reason"] for v in others)


def test_a_grey_set_and_colour_pictures():
    """Grey pictures that were saved as PNG come back with three channels."""
    train = datasets.load("shapes", 16)
    grey = train._replace(images=train.images[:200].float().mean(1, keepdim=True).byte(), labels=train.labels[:200])
    values = metrics.conditional(grey, None, grey.images[:60].expand(-1, 3, -1, -1), grey.labels[:60], steps=2)
    assert 0 <= values[0]["value"] <= 1


# ------------------------------------------------------------------------------------------------- SSIM and MS-SSIM


def related(n, size, channels=3, noise=60):
    """Pairs of pictures with some structure, the second a noisy and darker version of the first: uint8 twice."""
    coarse = torch.nn.functional.interpolate(images(n, 8, channels).float(), size, mode="bicubic").clamp(0, 255)
    other = 0.7 * coarse + noise * torch.randn(coarse.shape, generator=torch.Generator().manual_seed(1))
    return coarse.byte(), other.clamp(0, 255).byte()


@pytest.mark.parametrize("channels, noise", [(3, 60), (1, 0)])
def test_ssim_agrees_with_pytorch_msssim(channels, noise):
    theirs = pytest.importorskip("pytorch_msssim")
    for size in 192, 40:
        a, b = related(3, size, channels, noise)
        expected = theirs.ssim(a.double(), b.double(), size_average=False)
        assert 0.01 < expected.min() and expected.max() < 0.99
        assert metrics.ssim(a, b).numpy() == pytest.approx(expected.numpy(), abs=1e-6)
    a, b = related(3, 192, channels, noise)
    expected = theirs.ms_ssim(a.double(), b.double(), size_average=False)
    assert 0.01 < expected.min() and expected.max() < 0.99
    assert metrics.ms_ssim(a, b).numpy() == pytest.approx(expected.numpy(), abs=1e-6)


@pytest.mark.parametrize("noise", [10, 60])
def test_ssim_agrees_with_torchmetrics(noise):
    """Its windows reach beyond the image by reflection; those are taken off (SSIM) or averaged too (MS-SSIM: compared
    on images so large that the rim weighs little)."""
    theirs = pytest.importorskip("torchmetrics.functional.image")
    a, b = related(3, 64, 3, noise)
    options = dict(data_range=255.0, reduction="none")
    full = theirs.structural_similarity_index_measure(a.double(), b.double(), **options, return_full_image=True)[1]
    # torchmetrics pads by 5 pixels and returns every position; ours are the windows that lie inside
    assert metrics.ssim(a, b).numpy() == pytest.approx(full[:, :, 5:-5, 5:-5].mean((1, 2, 3)).numpy(), abs=1e-6)
    a, b = related(2, 512, 1, noise)
    expected = theirs.multiscale_structural_similarity_index_measure(a.double(), b.double(), **options)
    assert metrics.ms_ssim(a, b).numpy() == pytest.approx(expected.numpy(), abs=2e-3)


def brute_force_ssim(x, y, window):
    """One channel, one level: the means of contrast-structure and of SSIM, one position after the other."""
    away = np.arange(window) - window // 2
    weights = np.exp(-(away[:, None] ** 2 + away**2) / (2 * (1.5 * window / 11) ** 2))
    weights /= weights.sum()
    structures, fulls = [], []
    for i in range(x.shape[0] - window + 1):
        for j in range(x.shape[1] - window + 1):
            p, q = x[i : i + window, j : j + window], y[i : i + window, j : j + window]
            p_mean, q_mean = (weights * p).sum(), (weights * q).sum()
            p_variance, q_variance = (weights * (p - p_mean) ** 2).sum(), (weights * (q - q_mean) ** 2).sum()
            covariance = (weights * (p - p_mean) * (q - q_mean)).sum()
            structures.append((2 * covariance + 58.5225) / (p_variance + q_variance + 58.5225))
            luminance = (2 * p_mean * q_mean + 6.5025) / (p_mean**2 + q_mean**2 + 6.5025)
            fulls.append(luminance * structures[-1])
    return np.mean(structures), np.mean(fulls)


@pytest.mark.parametrize(
    "height, width, sides",
    [(64, 64, [11, 11, 11, 7, 3]), (32, 35, [11, 11, 7, 3]), (16, 16, [11, 7, 3]), (8, 8, [7, 3]), (2, 2, [1])],
)
def test_ms_ssim_of_small_images_agrees_with_brute_force(height, width, sides):
    a, b = (side[:, :, :height, :width] for side in related(2, max(height, width), 2, noise=30))
    assert metrics.windows(height, width) == sides
    for n in range(2):
        found = []
        for channel in range(2):
            x, y, product = a[n, channel].double().numpy(), b[n, channel].double().numpy(), 1
            weights = np.array([0.0448, 0.2856, 0.3001, 0.2363, 0.1333])[: len(sides)]
            for level, window in enumerate(sides):
                factor = brute_force_ssim(x, y, window)[level == len(sides) - 1]
                product *= max(factor, 0) ** (weights[level] * 1.0001 / weights.sum())
                h, w = x.shape[0] // 2 * 2, x.shape[1] // 2 * 2
                x, y = ((s[:h:2, :w:2] + s[1:h:2, :w:2] + s[:h:2, 1:w:2] + s[1:h:2, 1:w:2]) / 4 for s in (x, y))
            found.append(product)
        assert 0.1 < np.mean(found) < 0.999
        assert metrics.ms_ssim(a[n : n + 1], b[n : n + 1]).item() == pytest.approx(np.mean(found), abs=1e-9)
    assert metrics.windows(176, 500) == [11] * 5


def test_ssim_closed_forms_and_symmetry(monkeypatch):
    a, b = related(5, 64)
    for measure in metrics.ssim, metrics.ms_ssim:
        assert torch.equal(measure(a, a), torch.ones(5, dtype=torch.float64))
        assert torch.allclose(measure(a, b), measure(b, a), rtol=1e-12)
        assert measure(a, b)[3].item() == pytest.approx(measure(a[3:4], b[3:4]).item(), rel=1e-12)
    dark, bright = torch.full((1, 3, 64, 64), 50).byte(), torch.full((1, 3, 64, 64), 200).byte()
    luminance = (2 * 50 * 200 + 6.5025) / (50**2 + 200**2 + 6.5025)  # no structure: every other term is 1
    assert metrics.ssim(dark, bright).item() == pytest.approx(luminance, rel=1e-12)
    assert metrics.ms_ssim(dark, bright).item() == pytest.approx(luminance**0.1333, rel=1e-12)
    assert metrics.ssim(a, 255 - a).max() < 0 and metrics.ms_ssim(a, 255 - a).max() == 0  # opposite structure
    whole = metrics.ms_ssim(a, b)
    monkeypatch.setattr(metrics, "pieces", lambda images: images.split(2))
    assert torch.allclose(metrics.ms_ssim(a, b), whole, rtol=1e-12)


def test_mean_and_pair_ms_ssim(monkeypatch):
    a, b = related(6, 24)
    every = torch.stack([metrics.ms_ssim(a, other.expand_as(a)) for other in b], 1)  # (6, 6)
    assert torch.allclose(metrics.mean_ms_ssim(a, b[:5]), every[:, :5].mean(1), rtol=1e-12)
    mean, error = metrics.pair_ms_ssim(a, b, pairs=3000)
    assert mean == pytest.approx(every.mean().item(), abs=4 * error)
    assert error == pytest.approx(every.std().item() / 3000**0.5, rel=0.1)
    among = torch.stack([metrics.ms_ssim(a, other.expand_as(a)) for other in a], 1)
    mean, error = metrics.pair_ms_ssim(a, pairs=3000)
    assert mean == pytest.approx((among.sum().item() - 6) / 30, abs=4 * error) and mean < among.mean() - 4 * error
    assert metrics.pair_ms_ssim(a) == metrics.pair_ms_ssim(a) != metrics.pair_ms_ssim(a, seed=1)
    assert metrics.pair_ms_ssim(a[:1].repeat(4, 1, 1, 1)) == (1, 0)
    monkeypatch.setattr(metrics, "pieces", lambda images: images.split(2))
    assert torch.allclose(metrics.mean_ms_ssim(a, b[:5]), every[:, :5].mean(1), rtol=1e-12)


def test_ssim_refuses_what_does_not_pair():
    a = images(3)
    for wrong in a.float(), a[0], a[:, :1], a[..., :8]:
        for measure in metrics.ssim, metrics.ms_ssim, metrics.mean_ms_ssim:
            with pytest.raises(InputError, match="of one size"):
                measure(a, wrong)
    with pytest.raises(InputError, match="as many"):
        metrics.ms_ssim(a, a[:2])
    with pytest.raises(InputError, match="at least 2"):
        metrics.pair_ms_ssim(a[:1])


# -------------------------------------------------------------------------------------------------------- evaluate


def test_evaluate(small_weights, monkeypatch):
    metrics._kept.clear()
    real, floor, fake = images(12), images(12, seed=1), images(10, seed=2) // 2
    values = metrics.evaluate(real, fake, floor, dims=(64, 192), weights=small_weights, fake_words="dark images")
    by_name = {value["name"]: value for value in values}
    assert list(by_name) == [
        "FID-64", "KID-64", "collapse (features 64)", "FID-192", "KID-192", "collapse (features 192)",
        "precision-192", "recall-192", "density-192", "coverage-192",
        "MS-SSIM (generated, real)", "MS-SSIM (among generated)", "collapse (pixels)",
    ]  # fmt: skip
    x, y, z = (metrics.features(side, (64,), small_weights)[64] for side in (real, fake, floor))
    assert by_name["FID-64"]["value"] == pytest.approx(metrics.fid(x, y), rel=1e-3)
    assert by_name["FID-64"]["real"] == pytest.approx(metrics.fid(x, z), rel=1e-3)
    assert by_name["FID-64"]["value"] > by_name["FID-64"]["real"]
    assert by_name["collapse (pixels)"]["pairs"] == 90 and by_name["collapse (pixels)"]["real_pairs"] == 132
    assert "subsets of 10" in by_name["KID-64"]["protocol"]
    x, y, z = (metrics.features(side, (192,), small_weights)[192] for side in (real, fake, floor))
    for (name, value), among in zip(metrics.prdc(x, y).items(), metrics.prdc(x, z).values(), strict=True):
        assert (by_name[f"{name}-192"]["value"], by_name[f"{name}-192"]["real"]) == (value, among)
        assert "192-d FID Inception" in by_name[f"{name}-192"]["protocol"]
    for name, pair in ("generated, real", (real, fake)), ("among generated", (fake,)):
        value = by_name[f"MS-SSIM ({name})"]
        assert (value["value"], value["error"]) == metrics.pair_ms_ssim(*pair)
        assert (value["real"], value["real_error"]) == metrics.pair_ms_ssim(real)
        assert "windows of 11 9 5 pixels" in value["protocol"]
    for value in values:
        assert "10 dark images against 12 real images" in value["protocol"] and value["protocol"].isascii()
    json.dumps(values)  # plain values only
    assert metrics.table(values).isascii() and "FID-64" in metrics.table(values)

    calls, extract = [], metrics.features
    monkeypatch.setattr(metrics, "features", lambda *args, **kwargs: calls.append(args[0]) or extract(*args, **kwargs))
    again = metrics.evaluate(real, fake, floor, dims=(64, 192), weights=small_weights, fake_words="dark images")
    assert len(calls) == 1 and calls[0] is fake  # the real sides were remembered
    assert again == values


def test_features_of_real_images_are_kept_on_disk(small_weights, monkeypatch, tmp_path):
    real, fake = images(12), images(10, seed=2)
    options = dict(dims=(64,), weights=small_weights)
    metrics._kept.clear()
    first = metrics.evaluate(real, fake, **options)
    (file,) = (tmp_path / "data/features").iterdir()
    calls, extract = [], metrics.features
    monkeypatch.setattr(metrics, "features", lambda *args, **kwargs: calls.append(args[0]) or extract(*args, **kwargs))
    metrics._kept.clear()  # as in another program
    assert metrics.evaluate(real, fake, **options) == first and len(calls) == 1 and calls[0] is fake
    metrics.evaluate(images(12, seed=3), fake, **options)
    metrics.evaluate(real, fake, dims=(192,), weights=small_weights)
    metrics.evaluate(real, fake, **options, precision="bf16")
    state, name = metrics.load_weights(small_weights)
    metrics.evaluate(real, fake, dims=(64,), weights=metrics.Weights(state, f"other {name}"))
    assert len(calls) == 9 and len(list((tmp_path / "data/features").iterdir())) == 5  # nothing was taken for another
    for content in (b"", file.read_bytes()[:500]):
        file.write_bytes(content)
        metrics._kept.clear()
        assert metrics.evaluate(real, fake, **options) == first
    assert len(calls) == 13 and len(file.read_bytes()) > 500  # damaged: made again


def test_standard_errors_on_request(small_weights):
    options = dict(dims=(64,), weights=small_weights)
    plain = metrics.evaluate(images(12), images(10, seed=2), **options)
    found = metrics.evaluate(images(12), images(10, seed=2), **options, resamples=5)
    x, y = (metrics.features(side, (64,), small_weights)[64] for side in (images(12), images(10, seed=2)))
    of_fid, of_kid = metrics.bootstrap(x, y, 5)
    expected = of_fid, np.hypot(of_kid, found[1]["std"] / 10)
    assert [v["se"] for v in found[:2]] == pytest.approx(expected, rel=1e-3) and found[1]["std"] > 0
    with pytest.raises(InputError, match="at least 10 images"):
        metrics.evaluate(images(9), images(12), **options, resamples=5)
    assert "5 bootstrap resamples" in found[0]["protocol"] and "(se " in metrics.table(found)
    assert [v["value"] for v in found] == [v["value"] for v in plain] and "se" not in plain[0]


def test_constant_images_are_measured(small_weights):
    """No variance anywhere, in pixels or features: every value is a number, or says why it is not."""
    black, grey = torch.zeros(10, 3, 16, 16, dtype=torch.uint8), torch.full((10, 3, 16, 16), 100, dtype=torch.uint8)
    for one, other in (black, grey), (grey, grey), (images(10, 16), black):
        for value in metrics.evaluate(one, other, dims=(64,), weights=small_weights, resamples=2):
            for key in ("value", "real", "se", "std", "error"):
                assert value.get(key) is None or np.isfinite(value[key]), (value["name"], key)


def test_evaluate_averages_real_images_down(small_weights):
    real, floor, fake = images(6, 40), images(6, 40, seed=1), images(5, 20, seed=2)
    options = dict(dims=(64,), weights=small_weights)

    def halved(x):
        return x.unflatten(2, (20, 2)).unflatten(4, (20, 2)).float().mean((3, 5)).round().byte()

    small = metrics.evaluate(halved(real), fake, halved(floor), **options)
    found = metrics.evaluate(real, fake, floor, **options)
    assert [v["value"] for v in found] == [v["value"] for v in small]
    assert [v.get("real") for v in found] == [v.get("real") for v in small]
    few = [v for v in found if v["value"] is None]
    assert [v["name"] for v in few] == [
        f"{name}-64" for name in ("precision", "recall", "density", "coverage")
    ] and "more than 5 images" in few[0]["reason"]
    assert all("6 real images averaged down to 20x20" in v["protocol"] for v in found if v not in few)
    assert "6 other real images averaged down to 20x20 against" in found[0]["protocol"]
    assert "averaged" not in str(small)
    whole = metrics.evaluate(real, images(5, 40), floor, **options)  # features of another size are not taken for these
    assert whole[0]["real"] != found[0]["real"]
    for wrong in images(5, 80), images(5, 40)[..., :20]:
        with pytest.raises(InputError, match="larger ones") as error:
            metrics.evaluate(real, wrong, **options)
        assert "\n" not in str(error.value)


def test_evaluate_grey_beside_colour(small_weights):
    grey, colour = images(5, channels=1), images(5, seed=1)
    one = metrics.evaluate(grey, colour, dims=(64,), weights=small_weights)
    other = metrics.evaluate(grey.repeat(1, 3, 1, 1), colour, dims=(64,), weights=small_weights)
    assert [v["value"] for v in one] == pytest.approx([v["value"] for v in other])


def test_table_and_log_columns():
    values = metrics.evaluate(images(5), images(5, seed=1), dims=())
    assert list(metrics.scores(values)) == ["ms-ssim"]
    line = next(v for v in metrics.table(values, {values[0]["name"]: 0.5}).splitlines())
    assert line.startswith("MS-SSIM (generated, real) 0.") and line.count(" +- 0.") == 2 and "(report: 0.5)" in line


def test_evaluate_goes_on_without_weights(small_weights):
    for weights, lost in (small_weights, 2), (None, 4):
        values = metrics.evaluate(images(8), images(8, seed=1), dims=(64, 2048), weights=weights)
        missing = [value for value in values if value["value"] is None]
        assert len(missing) == lost and all("\n" not in value["reason"] for value in missing)
        assert values[-1]["name"] == "collapse (pixels)" and values[-1]["value"] == 0
        assert "FID                       not measured here: " in metrics.table(values)
    with pytest.raises(InputError, match="1 generated images: at least 2"):
        metrics.evaluate(images(8), images(1))


# ---------------------------------------------------------------------------------------------------- command line


def run(*arguments):
    metrics.main(metrics.parse_args([str(argument) for argument in arguments]))


@pytest.fixture
def two_sets(tmp_path):
    for name, seed in ("real", 0), ("fake", 1):
        np.savez(tmp_path / f"{name}.npz", images=images(20, 16, seed=seed).permute(0, 2, 3, 1).numpy())
    return tmp_path / "real.npz", tmp_path / "fake.npz"


def test_command_line(two_sets, small_weights, capsys):
    run(*two_sets, "--eval-images", 8, "--dims", 64, "--weights", small_weights, "--size", 16, "--floor", "--json")
    out, _ = capsys.readouterr()
    result = json.loads(out)
    values = result["fakes"][0]["values"]
    assert result["size"] == 16 and [v["name"] for v in values][:2] == ["FID-64", "KID-64"]
    assert all(v["value"] is not None and v["real"] is not None for v in values)
    assert "8 images of fake" in values[0]["protocol"] and "8 images of real" in values[0]["protocol"]
    run(*two_sets, "--eval-images", 30, "--weights", small_weights, "--size", 16)  # neither 768 nor 2048 can be read
    out, err = capsys.readouterr()
    assert out.count("not measured") == 4 and "collapse (pixels)" in out
    assert "has only 20 of the 30 images" in err


def test_command_line_with_a_model(two_sets, tmp_path, small_weights, capsys, monkeypatch):
    model = types.ModuleType("dcgan")
    model.generate = lambda checkpoint, n, seed, device: images(n, 16, seed=seed + 5)
    monkeypatch.setitem(sys.modules, "dcgan", model)
    folder = tmp_path / "run"
    folder.mkdir()
    torch.save({"script": "dcgan", "format": 1, "flags": {"size": 16, "ema": 0.0}, "step": 7}, folder / "last.pt")
    options = ["--eval-images", 6, "--dims", 64, "--weights", small_weights]
    for fake in folder, folder / "last.pt":
        run(two_sets[0], fake, *options)
        assert "6 images by dcgan, plain weights at step 7" in capsys.readouterr().out
    run(folder, folder, *options, "--json")  # two different samples of the same model
    assert json.loads(capsys.readouterr().out)["fakes"][0]["values"][0]["value"] > 0
    with pytest.raises(InputError, match="disagree"):
        run(two_sets[0], folder, *options, "--size", 32)
    # a run has two checkpoints that count, unless they are the same
    torch.save({"script": "dcgan", "format": 1, "flags": {"size": 16, "ema": 0.0}, "step": 7}, folder / "best.pt")
    run(two_sets[0], folder, *options)
    assert "A:" not in capsys.readouterr().out
    torch.save({"script": "dcgan", "format": 1, "flags": {"size": 16, "ema": 0.0}, "step": 3}, folder / "best.pt")
    run(two_sets[0], folder, two_sets[1], *options, "--floor")
    out = capsys.readouterr().out
    assert f"A: {folder / 'best.pt'}: images by dcgan, plain weights at step 3" in out and "at step 7" in out
    assert "C: " in out and "6 images of the column against 6 images of real" in out
    table = [line.split() for line in out.splitlines() if line.startswith(("FID-64 ", "KID-64 x"))]
    run(two_sets[0], folder / "last.pt", *options, "--json")
    fid, kid = json.loads(capsys.readouterr().out)["fakes"][0]["values"][:2]
    assert table[0][2] == metrics.shown(fid) and table[1][4] == metrics.shown(kid)
    run(two_sets[0], folder / "last.pt", *options, "--json", "--floor")
    fid = json.loads(capsys.readouterr().out)["fakes"][0]["values"][0]
    assert table[0][4:] == [metrics.shown(fid, "real")] and "6 images by dcgan" in fid["protocol"]
    # a side with fewer images has a protocol of its own
    few = tmp_path / "few.npz"
    np.savez(few, images=images(4, 16).permute(0, 2, 3, 1).numpy())
    run(two_sets[0], two_sets[1], few, *options)
    out, err = capsys.readouterr()
    assert "FID-64 (A): " in out and "FID-64 (B): " in out and "4 images of the column" in out
    assert err.count("has only") == 1 and "precision-64 (B): not measured here" in out
    with pytest.raises(InputError, match="no data set or path 'nosuch'"):
        run(two_sets[0], two_sets[1], "nosuch", *options)
    assert capsys.readouterr().out == ""
    only_best, nothing = tmp_path / "only_best", tmp_path / "nothing"
    for each in only_best, nothing:
        each.mkdir()
        (each / "args.json").write_text("{}")
    (folder / "best.pt").rename(only_best / "best.pt")
    run(two_sets[0], only_best, *options)
    assert "images by dcgan, plain weights at step 3" in capsys.readouterr().out
    with pytest.raises(InputError, match="without a checkpoint"):
        run(two_sets[0], nothing, *options)
    run(two_sets[0], folder, *options)
    (only_best / "best.pt").rename(folder / "best.pt")
    capsys.readouterr()
    run(two_sets[0], folder, *options, "--json")
    assert [fake["fake"] for fake in json.loads(capsys.readouterr().out)["fakes"]] == [
        str(folder / "best.pt"), str(folder / "last.pt")]  # fmt: skip
    torch.save({"script": "os", "format": 1}, folder / "last.pt")
    with pytest.raises(InputError, match="not a checkpoint"):
        run(two_sets[0], folder, *options)


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["shapes"],
        ["shapes", "shapes", "--eval-images", "1"],
        ["shapes", "shapes", "--eval-images", "many"],
        ["shapes", "shapes", "--dims", "100"],
        ["shapes", "shapes", "--dim", "64"],
        ["shapes", "shapes", "--size", "2"],
        ["shapes", "shapes", "--bootstrap", "1"],
        ["shapes", "shapes", "none.pt"],
        ["shapes", "shapes", "--precision", "fp16"],
        ["shapes", "no-such-folder"],
        ["no-such-set", "shapes"],
        ["shapes", "none.pt"],
        ["shapes", "shapes", "--device", "toaster"],
        ["shapes", "shapes", "--device", "cuda:99"],
        ["shapes", "shapes", "--weights", "none.pth"],
        ["shapes", "shapes", "--dims", "2048"],
    ],
)
def test_bad_input_is_one_line(arguments, capsys, monkeypatch, tmp_path):
    """The file run as a program, in this process: exit code 2, one line on stderr, nothing on stdout."""
    monkeypatch.setattr(sys, "argv", ["metrics.py", *arguments])
    monkeypatch.setattr(torch.hub, "download_url_to_file", lambda *args, **kwargs: 1 / 0)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as leaving:
        runpy.run_path(str(ROOT / "metrics.py"), run_name="__main__")
    out, err = capsys.readouterr()
    errors = [line for line in err.splitlines() if "downloading" not in line]
    assert leaving.value.code == 2 and out == ""
    assert len(errors) == 1 and errors[0].startswith("metrics.py: error: ")


def test_help_needs_no_torch(monkeypatch, capsys):
    """--help must not wait for the imports: they fail here, and are never reached."""
    monkeypatch.setattr(sys, "argv", ["metrics.py", "--help"])
    for name in "numpy", "scipy", "scipy.linalg", "torch", "torchvision", "tqdm", "datasets":
        monkeypatch.setitem(sys.modules, name, None)
    start = time.perf_counter()
    with pytest.raises(SystemExit) as leaving:
        runpy.run_path(str(ROOT / "metrics.py"), run_name="__main__")
    assert leaving.value.code == 0 and time.perf_counter() - start < 0.3
    assert "--eval-images" in capsys.readouterr().out


@pytest.mark.skipif(sys.platform == "win32", reason="resource is POSIX")
def test_memory_does_not_grow_with_the_pairs():
    """8,000 against 8,000: one array of all pairs would be 512 MB."""
    code = """
import resource, sys, numpy as np, metrics
x, y = (np.random.default_rng(seed).standard_normal((8000, 8)).astype(np.float32) for seed in (0, 1))
metrics.prdc(x[:2000], y[:2000])  # what the libraries take at their first use
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
metrics.fid(x, y), metrics.kid(x, y, subsets=3), metrics.bootstrap(x, y, 2), metrics.collapse(x), metrics.prdc(x, y)
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / (2**20 if sys.platform == "darwin" else 2**10))
"""
    found = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert float(found.stdout) < 300  # MB; macOS counts bytes, Linux kilobytes


def test_the_classifier_mirrors_colour_only():
    """Bright on the left or on the right: grey pictures tell the two apart; mirrored ones, in colour, cannot."""
    labels = torch.arange(200) % 2
    images = torch.randint(0, 100, (200, 1, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    images[labels == 0, :, :, :8] += 100
    images[labels == 1, :, :, 8:] += 100
    found = {c: metrics.classifier(images.expand(-1, c, -1, -1), labels, 2, steps=40) for c in (1, 3)}
    right = {c: (predict(images.expand(-1, c, -1, -1)) == labels).float().mean() for c, predict in found.items()}
    assert right[1] > 0.95 and right[3] < 0.8
