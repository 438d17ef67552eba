"""cvae.py: its network, the losses of the reports, and what the class does.

What it has in common with vae_mlp.py is tested in test_vae_mlp.py.
"""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import ROOT
from torch import nn

import cvae
import datasets
import training
import vae_mlp
from sources import InputError
from training import read_checkpoint

pytestmark = pytest.mark.usefixtures("no_plots")
TINY = "--data tiny.npz --size 16 --width 4 --batch 8 --device cpu --precision fp32 --out r".split()


def network(size=16, channels=3):
    torch.manual_seed(0)
    return cvae.CVAE(size, channels, [40, 15, 5], 6, 4, "gaussian", 1.0)


def some_images(labels, classes="abc"):
    """Random datasets.Images, one for each label."""
    generator = torch.Generator().manual_seed(1)
    shape = (len(labels), 3, 16, 16)
    images = torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)
    return datasets.Images(images, labels, list(classes), "some", "", False, "")


def test_the_network_of_r0():
    model = cvae.CVAE(64, 3, [1] * 5, 256, 64, "gaussian", 24.0)
    widths = (3, 64, 128, 256, 512)
    encoder = sum(16 * a * b + 2 * b for a, b in zip(widths, widths[1:], strict=False))
    heads = 2 * (8192 + 128 + 1) * 256
    decoder = (256 + 128 + 1) * 8192 + 2 * (256 + 128 + 64)
    decoder += 16 * (512 * 256 + 256 * 128 + 128 * 64 + 64 * 3) + 3
    count = encoder + heads + decoder + 2 * 5 * 128 + 1
    assert sum(p.numel() for p in model.parameters()) == count
    for layer in model.modules():
        if isinstance(layer, (nn.Conv2d, nn.ConvTranspose2d)):
            assert (layer.kernel_size, layer.stride, layer.padding) == ((4, 4), (2, 2), (1, 1))
    kinds = [type(layer) for layer in model.encoder]
    assert kinds == [nn.Conv2d, nn.BatchNorm2d, nn.ReLU] * 4 + [nn.Flatten]


@pytest.mark.parametrize("size", [16, 32, 64, 128, 256])
@pytest.mark.parametrize("channels", [1, 3])
def test_every_size(size, channels):
    images = torch.rand(2, channels, size, size)
    output, mu, logvar = network(size, channels)(images, torch.tensor([0, 2]), torch.randn(2, 6))
    assert output.shape == images.shape and mu.shape == logvar.shape == (2, 6)


def test_the_loss_terms_are_those_of_vae_mlp():
    blocks = []
    for name in ("cvae.py", "vae_mlp.py"):
        _, block, _ = (ROOT / name).read_text(encoding="utf-8").split("# --- the same in")
        blocks.append(block)
    assert blocks[0] == blocks[1] and "def loss_terms" in blocks[0]


def test_the_losses_of_the_reports_in_one_unit():
    """Each is ours times a constant."""
    generator = torch.Generator().manual_seed(0)
    x, output = torch.rand(2, 5, 3, 64, 64, generator=generator, dtype=torch.float64) * 2 - 1
    mu, logvar = torch.rand(2, 5, 256, generator=generator, dtype=torch.float64)
    square = (x - torch.tanh(output)).square()
    kl = -0.5 * (1 + logvar - mu**2 - logvar.exp())

    def assert_same(preset, theirs, size=64, channels=3, script=cvae):
        args, _ = script.parse_args(["--preset", preset])
        part = (slice(None), slice(channels), slice(size), slice(size))
        nats, our_kl, _, _ = cvae.loss_terms(args, x[part], output[part], mu, logvar)
        torch.testing.assert_close(nats + args.kl_weight * our_kl, theirs)
        return args

    half = 3 * 64 * 64 / 2
    args = assert_same("animals", half * (square.mean((1, 2, 3)) + 1.0 * kl.mean(1)))  # R0
    settings = (args.lr, args.batch, args.epochs, args.latent_dim, args.width)
    assert settings == (2e-4, 128, 80, 256, 64)
    assert_same("artbench64", half * (square.mean((1, 2, 3)) + 0.00025 * kl.sum(1)))  # R1
    digits = square[:, :1, :32, :32].mean((1, 2, 3))
    assert_same("mnist", 32 * 32 / 2 * (digits + 0.00025 * kl.sum(1)), 32, 1)
    args, _ = cvae.parse_args(["--preset", "artbench256"])
    assert args.kl_weight == pytest.approx(0.00025 * 3 * 256 * 256 / 2)
    bits = F.binary_cross_entropy(torch.sigmoid(output), (x + 1) / 2, reduction="none")
    args = assert_same("cats", bits.sum((1, 2, 3)) + kl.sum(1), script=vae_mlp)  # R2
    assert (args.width, args.latent_dim, args.epochs, args.size) == (512, 16, 50, 64)


def test_pictures_leave_batchnorm_in_training_mode(tiny):
    """Without --ema the network in training makes the pictures. Its statistics must move on."""
    cvae.main([*TINY, "--steps", "1", "--sample-every", "1"])
    before = read_checkpoint("r")["models"]["cvae"]["encoder.1.running_mean"]
    cvae.main(["--resume", "r", "--steps", "2"])
    after = read_checkpoint("r")["models"]["cvae"]["encoder.1.running_mean"]
    assert not torch.equal(before, after)


def test_statistics_of_averaged_weights(tiny):
    """Those of training images that go through the averaged network, not copies of the trained."""
    cvae.main([*TINY, "--steps", "5", "--ema", "0.9"])
    checkpoint = read_checkpoint("r")
    states = checkpoint["models"]
    data = datasets.load("tiny.npz", 16)
    seed = checkpoint["flags"]["seed"]
    rows = datasets.shuffled(len(data.images), seed)  # all of the 100 images, which are one batch
    eps = training.latents(len(rows), checkpoint["flags"]["latent_dim"], seed + 4)
    _, model = training.open_model(checkpoint)
    for layer in model.modules():
        if isinstance(layer, torch.nn.BatchNorm2d):
            layer.momentum = 1.0  # its statistics are those of the last batch
    model.train()
    with torch.no_grad():
        model(datasets.from_uint8(data.images[rows]), data.labels[rows], eps)
    names = [name for name in states["ema"] if "running" in name]
    assert names
    for name in names:
        expected = model.state_dict()[name]
        torch.testing.assert_close(states["ema"][name], expected, rtol=1e-4, atol=1e-5)
        assert not torch.allclose(states["cvae"][name], expected, rtol=1e-2)


@pytest.mark.parametrize("more", [[], ["--balance"]])
def test_data_without_labels_are_refused(here, more):
    np.savez("tiny.npz", images=np.zeros((20, 16, 16, 3), np.uint8))
    with pytest.raises(InputError, match="no labels"):
        cvae.main([*TINY, *more])
    assert not (here / "r").exists()


@pytest.mark.parametrize(
    "counts, turns", [([40, 15, 1], [0, 1, 2, 0, 1, 0, 1]), ([2] * 20, range(16))]
)
def test_examples_are_of_one_class_after_the_other(counts, turns):
    labels = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))
    data = some_images(labels, range(len(counts)))
    examples = cvae.choose_examples(data, seed=4)
    assert examples.labels.tolist()[: len(turns)] == list(turns)
    assert len({image.numpy().tobytes() for image in examples.images}) == 16
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(4)).tolist()
    first = next(row for row in order if labels[row] == 1)
    assert torch.equal(examples.images[1], data.images[first])


@torch.no_grad()
def test_generate():
    model = network()
    images = cvae.generate(model, 40, seed=3)
    labels = cvae.asked_labels(model, 40, seed=3)
    assert images.dtype == torch.uint8 and model.training  # as it was
    z = torch.randn(48, 6, generator=torch.Generator().manual_seed(3))[:40]
    output = model.eval().decoder(torch.cat([z, model.decoder_label(labels)], dim=1))
    assert torch.equal(images.float(), ((torch.tanh(output) + 1) * 127.5).round())
    assert torch.equal(cvae.generate(model, 7, seed=3, first=20), images[20:27])
    of_one = cvae.generate(model, 40, seed=3, label=1)
    for image, same, label in zip(images, of_one, labels, strict=True):
        assert torch.equal(image, same) == (label == 1)
    many = torch.bincount(cvae.asked_labels(model, 6000, seed=1)).tolist()
    assert many == pytest.approx([4000, 1500, 500], rel=0.08)


def test_walks_that_are_refused():
    model = network()
    model.examples = some_images(torch.arange(16) % 3)
    for words, given in (
        ("other classes", {"images": model.examples._replace(classes=["a", "b", "d"])}),
        ("other classes", {"images": model.examples._replace(classes=[], labels=None)}),
        ("leave out --class", {"label": 1}),
    ):
        with pytest.raises(InputError, match=words):
            cvae.walk(model, "images", 2, 5, **given)
    with pytest.raises(InputError, match="leave out --iwae"):
        cvae.own_values(model, model.examples, samples=4)


def test_as_every_class(tiny):
    cvae.main([*TINY, "--steps", "2"])
    checkpoint = read_checkpoint("r")
    images, columns = cvae.as_every_class(cvae.load_model(checkpoint))
    assert columns == 5 and len(images) == 8 * 5
    table = images.unflatten(0, (8, 5))
    assert torch.equal(table[:, 0], checkpoint["examples"][:8])
    for row, label in zip(table, checkpoint["example_labels"], strict=False):
        assert torch.equal(row[1], row[2 + label])
        assert not torch.equal(row[1], row[2 + (label + 1) % 3])
