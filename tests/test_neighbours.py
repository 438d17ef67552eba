"""neighbours.py: against loops, on a model that copies, and on real images that nobody copied."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

import datasets
import metrics
import neighbours
from neighbours import choose_real, compare, nearest, share_within
from sources import InputError


def blobs(n, seed, size=16):
    """Smooth random images: uint8 (n, 3, size, size)."""
    generator = torch.Generator().manual_seed(seed)
    low = torch.rand(n, 3, 4, 4, generator=generator)
    return (255 * torch.nn.functional.interpolate(low, size, mode="bilinear")).byte()


def data(images, name="photos"):
    return datasets.Images(images, None, [], name, "", False, "")


@pytest.mark.parametrize("own", [False, True])
@pytest.mark.parametrize("kind", ["features", "pixels"])
def test_nearest_against_a_loop(own, kind):
    train = torch.randn(1100, 5) if kind == "features" else blobs(1100, 0, 8)
    others = torch.randn(9, 5) if kind == "features" else blobs(9, 1, 8)
    x = train[200:209] if own else others
    distances, rows = nearest(x, train, 3, torch.arange(200, 209) if own else None)
    assert distances.shape == rows.shape == (9, 3) and distances.dtype == torch.float64
    for i in range(len(x)):
        pairs = []
        for j in range(len(train)):
            if not (own and j == 200 + i):
                difference = x[i].double() - train[j].double()
                scale = 1 if kind == "features" else 127.5
                pairs.append((float((difference / scale).square().sum() ** 0.5), j))
        expected, expected_rows = zip(*sorted(pairs)[:3], strict=True)
        assert distances[i].tolist() == pytest.approx(expected, rel=1e-5)
        assert rows[i].tolist() == list(expected_rows)


def test_a_copy_has_no_distance_and_nothing_is_its_own_neighbour():
    train = blobs(1500, 0)
    distances, rows = nearest(train[1000:1020], train)
    assert (distances == 0).all() and torch.equal(rows[:, 0], torch.arange(1000, 1020))
    distances, rows = nearest(train[1000:1020], train, 1, torch.arange(1000, 1020))
    assert (distances > 0.1).all() and (rows[:, 0] != torch.arange(1000, 1020)).all()
    double = torch.cat([train[:5], train[:5]])  # the same image twice is a neighbour
    distances, rows = nearest(double, double, 1, torch.arange(10))
    assert (distances == 0).all() and torch.equal(rows[:, 0], torch.arange(10).roll(5))
    with pytest.raises(InputError, match="too few"):
        nearest(train[:3], train[:3], 3, torch.arange(3))


def test_share_within():
    held_out = torch.arange(1, 60).double().flip(0)  # H = 59, so k = 3 and the limit is 3
    share, error = share_within(
        torch.tensor([0.0, 2.9, 3.0, 3.1, 50, 99, 99, 99, 99, 99]), held_out
    )
    assert share == 0.3
    assert error == pytest.approx((0.3 * 0.7 / 10 + 0.05 * 0.95 / 59) ** 0.5)
    assert share_within(torch.tensor([1.0, 1.1]), held_out[-19:])[0] == 0.5  # k = 1
    # ties at the limit, as between duplicates, count
    assert share_within(torch.zeros(4), torch.zeros(40))[0] == 1


def test_the_share_of_images_of_the_same_kind_is_k_in_h_plus_1():
    rng = torch.Generator().manual_seed(0)
    shares = []
    for _ in range(400):
        draws = torch.randn(139, generator=rng).double().exp()
        shares.append(share_within(draws[:100], draws[100:])[0])
    assert np.mean(shares) == pytest.approx(2 / 40, abs=4 * np.std(shares) / 20)  # H = 39, k = 2


@pytest.mark.parametrize("held_out", [None, 300])
def test_copies_and_new_images(held_out):
    real = blobs(900, 0)
    train, rest = (data(real), None) if held_out is None else (data(real[300:]), data(real[:300]))
    chosen = choose_real(train, rest, 150, 10**9)
    assert (len(chosen.held_out), len(chosen.others)) == (150, 150)
    assert (
        chosen.own is (held_out is None) and ("nothing is held out" in chosen.words) is chosen.own
    )
    copies = train.images[torch.randint(len(train.images), (100,))]
    slightly = (copies.int() + torch.randint(-3, 4, copies.shape)).clamp(0, 255).byte()
    new = blobs(100, 1)
    for generated, low, high in (
        (copies, 1, 1),
        (slightly, 1, 1),
        (new, 0, 0.12),
        (torch.cat([new[:80], copies[:20]]), 0.2, 0.3),  # one in five is copied
        (255 - 0 * new, 0, 0),  # like no real image
    ):
        [result] = compare(chosen, generated, (768,), None)
        assert result.value["name"] == "near training (pixels)"
        assert low <= result.value["value"] <= high
        assert 0.01 < result.value["real"] < 0.12
    with pytest.raises(InputError, match="differ in channels or size"):
        compare(chosen, new[:, :1], (768,), None)


def test_real_images_of_which(capsys):
    images = blobs(60, 0)
    marked = images[:, 0, 0, 0]
    chosen = choose_real(data(images[:40]), data(images[40:]), 1000, 30)
    assert len(chosen.train) == 30 and len(chosen.held_out) == 20 and len(chosen.others) == 0
    assert set(chosen.held_out[:, 0, 0, 0].tolist()) == set(marked[40:].tolist())
    assert "30 of the 40 training images of photos" in chosen.words
    chosen = choose_real(data(images), None, 20, 10**9)
    assert torch.equal(torch.cat([chosen.held_out, chosen.others]), chosen.train[:40])
    assert sorted(map(bytes, chosen.train.numpy())) == sorted(map(bytes, images.numpy()))
    with pytest.raises(InputError, match="18 held-out images are too few"):
        choose_real(data(images), data(images[:18]), 100, 100)


def test_features_and_the_picture(small_weights, here):
    train = blobs(60, 0)
    generated = torch.cat([blobs(15, 1), train[[7, 3]]])
    chosen = choose_real(data(train), None, 25, 10**9)
    results = compare(chosen, generated, (64,), small_weights)
    assert [result.name for result in results] == ["features 64", "pixels"]
    for result in results:
        assert (result.distances[15:, 0] == 0).all()
        assert torch.equal(chosen.train[result.rows[15:, 0]], train[[7, 3]])
    picture = np.asarray(neighbours.draw(generated, chosen.train, results))
    # 16 pixels become 96, and lines of 2 become 12; the copies come first, beside their originals
    copy = np.asarray(Image.fromarray(generated[15].permute(1, 2, 0).numpy()).resize((96, 96), 0))
    other = np.asarray(Image.fromarray(generated[16].permute(1, 2, 0).numpy()).resize((96, 96), 0))
    lefts = [24, 24 + 96 + 24, 24 + 96 + 24 + 3 * 108 - 12 + 24]
    copied = set()
    for top in (40, 148):
        tiles = [picture[top : top + 96, left : left + 96] for left in lefts]
        assert all((tile == tiles[0]).all() for tile in tiles)
        copied.add(tiles[0].tobytes())
    assert copied == {copy.tobytes(), other.tobytes()}
    assert picture.shape == (40 + 16 * 108 - 12 + 36, lefts[2] + 3 * 108 - 12 + 24, 3)


def test_metrics_with_neighbours(here, small_weights, capsys, monkeypatch):
    """A run that copies: its number, its line and its picture. Split and best.pt are respected."""
    real = blobs(100, 0)
    pixels = real.permute(0, 2, 3, 1).numpy()
    np.savez("photos.npz", images=pixels, split=(np.arange(100) >= 60).astype(int))
    np.savez("copies.npz", images=pixels[:30])
    np.savez("new.npz", images=blobs(30, 1).permute(0, 2, 3, 1).numpy())
    flags = f"--dims 64 --weights {small_weights} --size 16 --eval-images 20 --json --neighbours"
    for name, share in (("copies.npz", 1.0), ("new.npz", 0.05)):
        metrics.main(["photos.npz", name, *flags.split()])
        out, err = capsys.readouterr()
        values = {v["name"]: v for v in json.loads(out)["fakes"][0]["values"]}
        for kind in "features 64", "pixels":
            value = values[f"near training ({kind})"]
            assert value["value"] == pytest.approx(share, abs=0.2)
            assert value["real"] == pytest.approx(0.05, abs=0.2)
            assert "60 of the 60 training images of photos were searched" in value["protocol"]
            assert "20 held-out images set the limit, 20 others" in value["protocol"]
        assert not list(here.glob("*.png"))
    metrics.main(["photos.npz", "copies.npz", *flags.split()[:-2], "--neighbours", "50"])
    assert "50 of the 60 training images" in capsys.readouterr().out
    with pytest.raises(InputError, match="--neighbours needs training images"):
        np.savez("s.npz", mu=np.zeros(64), sigma=np.eye(64))
        metrics.main(["photos.npz", "s.npz", *flags.split()])
