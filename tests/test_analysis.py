"""analysis.py: each number against scipy, numpy, a loop, or data for which the answer is known."""

import io
import sys

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from numpy.testing import assert_allclose
from PIL import Image
from scipy.spatial.distance import jensenshannon

import analysis
import datasets


def random_images(n, channels, size):
    generator = torch.Generator().manual_seed(0)
    shape = (n, channels, size, size)
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)


def named(images, name="x", labels=None, classes=()):
    return datasets.Images(images, labels, list(classes), name, "f", False, "")


def test_entropy_floor_is_the_cross_entropy_of_the_images_with_themselves():
    images = random_images(1030, 3, 4)  # more than one chunk of 1,024
    images[0] = 0
    images[1] = 255
    p = images.double() / 255
    loss = F.binary_cross_entropy(p, p, reduction="sum")
    floor = analysis.entropy_floor(images)
    assert floor == pytest.approx(loss.item() / 1030, rel=1e-12)


def test_channel_moments_are_numpys():
    images = random_images(1030, 3, 4)
    images[:, 1] //= 9
    images[:, 2] = 7
    mean, std = analysis.channel_moments(images)
    values = images.numpy() / 255
    axes = (0, 2, 3)
    assert_allclose(mean, values.mean(axes), rtol=1e-6)
    assert_allclose(std, values.std(axes), rtol=1e-5, atol=1e-6)


# ------------------------------------------------------------------------------------------ classes


@pytest.mark.parametrize("zeros", [0, 3])
def test_jensen_shannon_is_scipys_distance_and_its_square(zeros):
    rng = np.random.default_rng(0)
    p_counts = rng.integers(1, 900, 27)
    q_counts = rng.integers(1, 90, 27)
    p_counts[:zeros] = 0
    p = p_counts / p_counts.sum()
    q = q_counts / q_counts.sum()
    m = (p + q) / 2
    expected = 0  # (KL(p, m) + KL(q, m)) / 2
    for distribution in (p, q):
        for a, b in zip(distribution, m, strict=True):
            if a > 0:
                expected += a * np.log(a / b) / 2
    distance, divergence = analysis.jensen_shannon(p_counts.tolist(), q_counts.tolist())
    assert divergence == pytest.approx(expected, rel=1e-9)
    assert distance == pytest.approx(jensenshannon(p, q), rel=1e-9)


def test_jensen_shannon_of_equal_disjoint_and_nearly_equal_classes():
    assert analysis.jensen_shannon([3, 0, 6], [1, 0, 2]) == (0, 0)
    p = [396_000_001, 397_000_000, 1_188_000_000]  # here rounding gives -1e-16
    q = [396_000_000, 397_000_000, 1_188_000_000]
    assert analysis.jensen_shannon(p, q) == (0, 0)
    distance, divergence = analysis.jensen_shannon([5, 0], [0, 7])
    assert divergence == pytest.approx(np.log(2), rel=1e-12)
    assert distance == pytest.approx(np.log(2) ** 0.5, rel=1e-12)
    p = [1000, 1001, 1002]
    q = [1002, 1000, 999]
    distance, divergence = analysis.jensen_shannon(p, q)
    assert divergence < 1e-6  # and yet it has its digits
    assert distance == pytest.approx(jensenshannon(p, q), rel=1e-5)


# --------------------------------------------------------------------------------------- dimensions


@pytest.mark.parametrize("n", [40, 300])  # fewer images than values, and more
def test_spectrum_agrees_with_a_decomposition_of_the_matrix(n):
    images = random_images(n, 3, 8)
    images[:, :, ::2] //= 4
    values, energies = analysis.spectrum(images)
    matrix = images.flatten(1).numpy() / 255
    expected = np.linalg.svd(matrix, compute_uv=False)
    assert_allclose(values, expected, rtol=1e-9)
    centered = matrix - matrix.mean(0)
    expected = np.linalg.svd(centered, compute_uv=False) ** 2
    assert_allclose(energies, expected, rtol=1e-9, atol=1e-9)


def test_dimensions_that_are_not_there_have_an_energy_of_exactly_zero():
    images = random_images(20, 1, 8).repeat(2, 1, 1, 1)  # 20 different ones
    values, energies = analysis.spectrum(images)
    assert (values > 0).sum() == 20
    assert (energies > 0).sum() == 19  # one dimension less without the mean
    assert (energies >= 0).all()


def equal_axes(n):
    """n images with the same variance along 20 axes and none along the others.

    Pixel j < 20 is 228 in one image and 28 in another. Every other value is 128.
    """
    images = torch.full((n, 1, 8, 8), 128, dtype=torch.uint8)
    for j in range(20):
        row, column = divmod(j, 8)
        images[2 * j, 0, row, column] = 228
        images[2 * j + 1, 0, row, column] = 28
    return images


@pytest.mark.parametrize("n", [50, 200])
def test_data_of_20_dimensions_have_20_components(n):
    values, energies = analysis.spectrum(equal_axes(n))
    variance = 2 * (100 / 255) ** 2
    assert energies[:20].tolist() == pytest.approx([variance] * 20)
    assert energies[20:].eq(0).all()
    assert values[21:].eq(0).all()
    assert analysis.components(energies, 0.9) == 18
    assert analysis.components(energies, 0.95) == 19
    assert analysis.components(energies, 0.99) == 20
    assert analysis.components(energies, 1) == 20
    assert analysis.elbow(energies.sqrt()) == 20


def test_components_of_equal_energies():
    assert analysis.components(torch.ones(1000), 0.5) == 500


@pytest.mark.parametrize("n", [100, 10_000])
def test_elbow_of_a_hyperbola(n):
    """1/k for k = 1 to n is as steep as its chord, -1/n, at k = sqrt(n), after k - 1 values."""
    curve = 1 / torch.arange(1, n + 1, dtype=torch.float64)
    assert analysis.elbow(curve) == n**0.5 - 1


def test_elbow_of_a_flat_line():
    assert analysis.elbow(torch.ones(5)) == 1


def test_the_sample_takes_equally_many_images_of_each_class():
    images = torch.zeros(900, 1, 8, 8, dtype=torch.uint8)
    images[700:] = 1
    labels = images[:, 0, 0, 0].long()
    data = named(images, "x", labels, ["a", "b"])
    sample, words = analysis.spectrum_sample(data)
    assert len(sample) == 200
    assert (sample[:, 0, 0, 0] == 1).sum() == 100
    assert words == "200 images, 100 of each class, of 64 values"
    data = named(images.repeat(6, 1, 1, 1))
    sample, words = analysis.spectrum_sample(data)
    assert len(sample) == 5000
    assert words == "5000 images of 64 values"


def test_a_name_with_dollars_is_drawn_as_it_is():
    """matplotlib would fail to read this name as a formula."""
    data = named(random_images(9, 1, 8), "$x^2$ $\\frac$")
    png, text = analysis.draw_spectrum(data)
    picture = np.asarray(Image.open(io.BytesIO(png)).convert("RGB"))
    assert picture.shape[1] > 500
    for color in ("9ecae1", "d95f02"):  # both curves are there
        rgb = np.frombuffer(bytes.fromhex(color), np.uint8)
        of_the_curve = (picture == rgb).all(2)
        assert of_the_curve.sum() > 20
    assert text.startswith("effective dimension from 9 images of 64 values: ")


# ------------------------------------------------------------------------------------- command line


@pytest.fixture
def unbalanced(here):
    """x.npz: 50 images of each of four classes, 40 of them for training, but 50 of class 0."""
    images = equal_axes(200).numpy()[:, 0]
    labels = np.arange(200) // 50
    test = np.arange(200) % 50 < 10
    test[:10] = False
    np.savez("x.npz", images=images, labels=labels, split=test.astype(int))


def test_svd_and_stats_on_the_command_line(unbalanced, capsys):
    datasets.main("x.npz --size 8 --split all --stats --svd plots/p.png".split())
    out = capsys.readouterr().out
    assert out.isascii()
    assert "x: 200 images, 1 channel, 8x8, " in out
    assert "\n  2                             50   25.0 %\n" in out
    assert "the largest class has 1.00 times as many" in out
    distance, divergence = analysis.jensen_shannon([50, 40, 40, 40], [0, 10, 10, 10])
    assert f"train and test: {distance:.4g} (nats, base e), divergence {divergence:.4g}\n" in out
    assert "200 images, up to 100 of each class, of 64 values: 18 components for 90 %" in out
    assert "19 components for 95 %, 20 components for 99 %" in out
    assert "singular values after 20" in out
    assert Image.open("plots/p.png").format == "PNG"


def test_an_empty_split_is_not_compared(here, capsys):
    images = equal_axes(40).numpy()[:, 0]
    np.savez("x.npz", images=images, labels=np.arange(40) // 20, split=[0] * 40)
    datasets.main("x.npz --size 8".split())
    out = capsys.readouterr().out
    assert "balance: " in out
    assert "Jensen" not in out


def test_what_svd_cannot_draw_is_one_line(unbalanced, here, monkeypatch):
    np.savez("same.npz", images=np.full((9, 8, 8), 7, np.uint8))
    with pytest.raises(datasets.InputError, match="no two different images"):
        datasets.main("same.npz --size 8 --svd q.png".split())
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)  # as if it were not installed
    with pytest.raises(datasets.InputError, match="pip install matplotlib"):
        datasets.main("x.npz --size 8 --svd q.png".split())
    assert not (here / "q.png").exists()
    assert not list(here.rglob("*.tmp"))
