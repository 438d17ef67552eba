"""inception.py against pytorch-fid and torch-fidelity. Nothing downloads."""

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import datasets
import inception
from inception import DIMS, MissingWeights, features, load_weights, real_features
from sources import InputError

SHARED = Path(__file__).resolve().parent.parent.parent / "shared"
PARTIAL = SHARED / "weights" / "inception-2015-12-05-to-Mixed_6e.pth"


@pytest.fixture(autouse=True)
def offline(monkeypatch, tmp_path):
    """An empty torch hub folder, no network, and empty caches."""

    def fail(*_, **__):
        raise OSError("no network in tests\nsecond line")

    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    monkeypatch.setattr(torch.hub, "download_url_to_file", fail)
    monkeypatch.setattr(datasets, "DATA", tmp_path / "data")
    inception.download.cache_clear()
    inception._remembered.clear()


def images(n, size=20, channels=3, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(256, (n, channels, size, size), generator=generator).byte()


def assert_close(ours, theirs):
    assert np.abs(ours - theirs).max() < 1e-4 * np.abs(theirs).max()


# -------------------------------------------------------------------------------------- features


@pytest.mark.parametrize("channels, size", [(3, 64), (1, 40), (3, 320)])
def test_features_agree_with_pytorch_fid(oracle, random_weights, channels, size):
    pixels = images(2, size, channels)
    with torch.no_grad():
        theirs = oracle[0](pixels.expand(-1, 3, -1, -1).float() / 255)
    ours = features(pixels, DIMS, random_weights, batch=1)
    for dim, reference in zip(DIMS, theirs, strict=True):
        reference = reference.mean((2, 3)).numpy()
        assert reference.std() > 1e-3  # the random network is alive this deep
        assert ours[dim].shape == (2, dim) and ours[dim].dtype == np.float32
        assert_close(ours[dim], reference)


@pytest.mark.skipif(not PARTIAL.exists(), reason="the real weights are not next to the project")
def test_features_agree_with_pytorch_fid_on_the_real_weights(oracle, monkeypatch):
    theirs = pytest.importorskip("pytorch_fid.inception")
    state = {**oracle[1], **torch.load(PARTIAL, weights_only=True)}  # random after Mixed_6e
    monkeypatch.setattr(theirs, "load_state_dict_from_url", lambda *_, **__: state)
    network = theirs.InceptionV3([2]).eval()
    pixels = datasets.shapes(64, "test").images[:3]
    with torch.no_grad():
        reference = network(pixels.float() / 255)[0].mean((2, 3)).numpy()
    assert_close(features(pixels, (768,), PARTIAL)[768], reference)


def test_features_agree_with_torch_fidelity(random_weights, monkeypatch):
    """The same network behind another resize: torch-fidelity does it as TensorFlow 1 did (half a
    pixel off), and scales bytes to (x - 128) / 128. With our resize in its place the features are
    the same; with its own they differ by a few percent of their spread."""
    theirs = pytest.importorskip("torch_fidelity.feature_extractor_inceptionv3")
    dims = ["64", "768", "2048"]
    network = theirs.FeatureExtractorInceptionV3("inception", dims, str(random_weights))
    pixels = datasets.shapes(64, "test").images[:6]
    ours = features(pixels, (64, 768, 2048), random_weights)
    with_their_resize = network(pixels)

    def our_resize(x, **_):
        x = F.interpolate(x / 255, size=(299, 299), mode="bilinear", align_corners=False)
        return 128 * (2 * x - 1) + 128

    monkeypatch.setattr(theirs, "interpolate_bilinear_2d_like_tensorflow1x", our_resize)
    with_our_resize = network(pixels)
    for x, other, same in zip(ours.values(), with_their_resize, with_our_resize, strict=True):
        assert_close(x, same.numpy())
        difference = np.abs(x - other.numpy()).mean() / x.std(0).mean()
        assert 1e-3 < difference < 0.2


def test_only_the_stages_that_are_asked_for(random_weights):
    weights = load_weights(random_weights)
    assert list(inception.inception(192, weights)) == [64, 192]
    both = features(images(3), (64, 192), weights)
    alone = features(images(3), (64,), weights)
    assert list(alone) == [64] and np.allclose(both[64], alone[64], atol=1e-5)


def test_features_refuse_what_is_not_an_image(small_weights):
    for wrong in images(2).float(), images(2)[0], images(2).repeat(1, 2, 1, 1):
        with pytest.raises(InputError, match="uint8"):
            features(wrong, (64,), small_weights)


# --------------------------------------------------------------------------------------- weights


@pytest.mark.parametrize("content", ["text", "list", "half", "other", "layers"])
def test_broken_weights_are_one_line(tmp_path, content, oracle):
    path = tmp_path / "weights.pth"
    first = "Conv2d_1a_3x3.conv.weight"
    if content == "text":
        path.write_text("<html>not found</html>", encoding="utf-8")
    elif content == "half":
        torch.save(oracle[1], path)
        path.write_bytes(path.read_bytes()[:5000])
    else:
        wrong = {"list": [1, 2], "other": {first: torch.zeros(64, 3, 7, 7)}}
        wrong["layers"] = {**oracle[1], "Conv2d_2a_3x3.conv.weight": torch.zeros(1)}
        torch.save(wrong[content], path)
    with pytest.raises(MissingWeights) as error:
        features(images(2), (64,), path)
    assert path.name in str(error.value) and "\n" not in str(error.value)


def test_the_official_name_with_another_content_is_refused(tmp_path, small_weights):
    path = tmp_path / inception.OFFICIAL
    path.write_bytes(small_weights.read_bytes())
    with pytest.raises(MissingWeights, match="wrong sha256"):
        load_weights(path)


def test_absent_weights_say_where_to_get_and_put_them(tmp_path, capsys):
    for path, problem in (None, "no network in tests"), (tmp_path / "nothing.pth", "nothing.pth"):
        with pytest.raises(MissingWeights, match=problem) as error:
            load_weights(path)
        assert inception.URL in str(error.value) and str(tmp_path / "hub") in str(error.value)
        assert "\n" not in str(error.value)
    with pytest.raises(MissingWeights):
        load_weights()
    assert capsys.readouterr().err.count("downloading") == 1  # a program tries once


def test_partial_weights_serve_what_they_cover(small_weights):
    weights = load_weights(small_weights)
    inception.require(weights, 192)
    with pytest.raises(MissingWeights, match="lacks Mixed_5b, which 2048-d features need"):
        features(images(2), (2048,), weights)
    read, usable, reasons = inception.reachable((64, 768), small_weights)
    assert (read.name, usable, list(reasons)) == (weights.name, [64], [768])
    assert inception.reachable((64,), "nothing.pth")[:2] == ("nothing.pth", [])


# ----------------------------------------------------------------------- features of real images


def test_features_of_real_images_are_found_again(small_weights, monkeypatch, tmp_path):
    calls = []

    def counted(*args, **options):
        calls.append(args)
        return features(*args, **options)

    def from_new_program(*args):
        inception._remembered.clear()
        return real_features(*args, "cpu", "fp32", "features")[64]

    monkeypatch.setattr(inception, "features", counted)
    weights = load_weights(small_weights)
    first = real_features(images(4), (64,), weights, "cpu", "fp32", "features")
    assert real_features(images(4), (64,), weights, "cpu", "fp32", "features") is first
    assert np.array_equal(from_new_program(images(4), (64,), weights), first[64])
    assert len(calls) == 1
    [file] = (tmp_path / "data/features").iterdir()

    # nothing is taken for another
    from_new_program(images(4, seed=3), (64,), weights)
    from_new_program(images(4), (64, 192), weights)
    from_new_program(images(4), (64,), weights._replace(name="other"))
    from_new_program(images(4).reshape(4, 3, 10, 40), (64,), weights)
    real_features(images(4), (64,), weights, "cpu", "bf16", "features")
    assert len(calls) == 6 and len(list(file.parent.iterdir())) == 6

    for content in (b"", file.read_bytes()[:500]):  # a damaged file is made again
        file.write_bytes(content)
        assert np.array_equal(from_new_program(images(4), (64,), weights), first[64])
        assert len(file.read_bytes()) > 500
    assert len(calls) == 8


def test_what_cannot_be_saved_is_only_remembered(small_weights, monkeypatch, tmp_path):
    """Where data/features/ cannot be made, and where the features are not finite."""
    weights = load_weights(small_weights)
    nan = {64: np.full((4, 64), np.nan, np.float32)}
    with monkeypatch.context() as patch:
        patch.setattr(inception, "features", lambda *_, **__: nan)
        assert real_features(images(4), (64,), weights, "cpu", "fp32", "features") is nan
    assert not (tmp_path / "data").exists()
    (tmp_path / "data").write_text("a file")
    x = real_features(images(4, seed=1), (64,), weights, "cpu", "fp32", "features")[64]
    assert np.array_equal(x, features(images(4, seed=1), (64,), weights)[64])
