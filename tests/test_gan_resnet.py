"""gan_resnet.py: the networks of the report, and training against a textbook loop."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torchvision.models import resnet18

import datasets
import gan_resnet
import training
from sources import InputError, read_log
from training import one_hot, read_checkpoint

pytestmark = pytest.mark.usefixtures("no_plots")


def count(network):
    return sum(p.numel() for p in network.parameters())


# --------------------------------------------------------------------------------------- networks


def test_the_networks_of_r4():
    generator = gan_resnet.Generator(32, 3, [5], 100, 64)
    ups = 16 * (100 * 256 + 256 * 128 + 128 * 64) + 2 * (256 + 128 + 64)
    last = (64 * 8 * 8 + 1) * 3 * 32 * 32
    assert count(generator) == ups + last
    lifted = gan_resnet.Generator(32, 3, [5] * 10, 100, 64)
    more = 101 * 128 + 11 * 128 + 16 * (256 - 100) * 256  # 256 lifted values, not 100
    assert count(lifted) == more + ups + last
    for network in (generator, lifted):
        assert sum(isinstance(layer, nn.AvgPool2d) for layer in network.modules()) == 1
    one_output = count(resnet18()) - 999 * 513  # instead of 1,000
    assert count(gan_resnet.Discriminator(32, 3, 1)) == one_output
    another_channel = 64 * 7 * 7 + 11 * 32 * 32  # and the lifted class
    assert count(gan_resnet.Discriminator(32, 3, 10)) == one_output + another_channel


@pytest.mark.parametrize("size", [16, 32, 64])
@pytest.mark.parametrize("classes", [1, 4])
def test_any_size_and_channels(size, classes):
    y = one_hot(torch.tensor([0, classes - 1, 0]), classes)
    for channels in (1, 3):
        generator = gan_resnet.Generator(size, channels, [9] * classes, 5, 2)
        images = generator(torch.randn(3, 5), y)
        assert images.shape == (3, channels, size, size)
        assert images.abs().max() <= 1
        discriminator = gan_resnet.Discriminator(size, channels, classes).eval()
        scores = discriminator(images, y)
        assert scores.shape == (3,)
        other = one_hot(torch.tensor([classes - 1, 0, 0]), classes)
        assert torch.equal(scores[:2], discriminator(images, other)[:2]) == (classes == 1)


@pytest.mark.parametrize("conditional", [True, False])
def test_losses_are_the_equations(conditional):
    logits = torch.tensor([-3.0, -0.2, 0.0, 1.5], dtype=torch.float64)
    d = 1 / (1 + torch.exp(-logits))
    loss = gan_resnet.loss_real(logits, conditional).item()
    assert loss == pytest.approx(-d.log().mean().item(), rel=1e-6)
    loss = gan_resnet.loss_fake(logits, conditional).item()
    assert loss == pytest.approx(-(1 - d).log().mean().item(), rel=1e-6)
    extreme = torch.tensor([-1e4, 1e4], requires_grad=True)
    sum(f(extreme, conditional) for f in (gan_resnet.loss_real, gan_resnet.loss_fake)).backward()
    assert extreme.grad.isfinite().all()


# --------------------------------------------------------------------------------------- training


@pytest.fixture
def train(here):
    """train(*flags): on 40 random images in four classes. Returns the checkpoint and the log."""
    images = np.random.default_rng(0).integers(0, 256, (40, 32, 32, 3), dtype=np.uint8)
    np.savez("x.npz", images=images, labels=np.arange(40) % 4, classes=["a", "b", "c", "d"])
    common = "--data=x.npz --size=32 --width=2 --latent-dim=5 --batch=8 --log-every=1 --device=cpu"

    def run(*flags, out="r"):
        gan_resnet.main([*common.split(), "--precision=fp32", *flags, "--out", out])
        return read_checkpoint(out), read_log(datasets.Path(out) / "log.csv")

    return run


@pytest.fixture
def float64(monkeypatch):
    """All in double precision: BatchNorm over 8 values, at ResNet-18's end, magnifies rounding."""
    draw = datasets.Batches.__next__

    def draw_double(batches):
        images, labels = draw(batches)
        return images.double(), labels

    monkeypatch.setattr(datasets.Batches, "__next__", draw_double)
    monkeypatch.setattr(torch.Tensor, "float", torch.Tensor.double)
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def textbook(args):
    """The algorithm written plainly. Returns the losses of each step, and both networks."""
    data = datasets.load("x.npz", 32)
    batches = datasets.Batches(data, 8, seed=args.seed)
    torch.manual_seed(args.seed)
    classes = 4 if args.conditional else 1
    generator = gan_resnet.Generator(32, 3, [10] * classes, 5, 2)
    discriminator = gan_resnet.Discriminator(32, 3, classes)
    opt_g = torch.optim.SGD(generator.parameters())
    opt_d = torch.optim.SGD(discriminator.parameters())
    bce = nn.BCELoss()
    ones = torch.ones(8)
    zeros = torch.zeros(8)
    drawn = 0
    losses = []
    for step in range(args.steps):
        sigma = args.noise * max(0, 1 - step / args.noise_steps)
        opt_g.param_groups[0]["lr"] = (args.lr_g or args.lr) * args.lr_decay**step
        opt_d.param_groups[0]["lr"] = (args.lr_d or args.lr) * args.lr_decay**step

        def probability(images, y, sigma=sigma):
            if sigma:
                images = images + sigma * torch.randn_like(images)
            return torch.sigmoid(discriminator(images, y))

        for _ in range(args.d_steps):
            rows, _ = batches.rows(drawn)
            drawn += 1
            x = data.images[rows].double() / 127.5 - 1
            x = x.to(memory_format=torch.channels_last)  # noise is drawn in the order of the memory
            y = F.one_hot(data.labels[rows] % classes, classes).double()
            d_real = bce(probability(x, y), ones)
            fake = generator(torch.randn(8, 5), y).detach()
            d_fake = bce(probability(fake, y), zeros)
            opt_d.zero_grad()
            (d_real + d_fake).backward()
            opt_d.step()
        for _ in range(args.g_steps):
            fake = generator(torch.randn(8, 5), y)
            g_loss = bce(probability(fake, y), ones)
            error = ((fake - x) ** 2).mean()
            opt_g.zero_grad()
            (g_loss + args.similarity * error).backward()
            opt_g.step()
        losses.append({"loss_d_real": d_real, "loss_d_fake": d_fake, "loss_g": g_loss})
        if args.similarity:
            losses[-1]["similarity"] = error
        if args.noise:
            losses[-1]["noise"] = torch.tensor(sigma)
    return losses, {"generator": generator, "discriminator": discriminator}


@pytest.mark.parametrize(
    "flags",
    [
        "--lr-g=0.002 --lr-d=0.001 --lr-decay=0.9 --g-steps=2 --noise=0.2 --noise-steps=2",
        "--lr=0.002 --d-steps=2 --conditional --similarity=0.7 --seed=3",
    ],
)
def test_training_is_the_textbook_loop(train, float64, flags, monkeypatch):
    """With plain gradient descent: Adam turns the rounding of a gradient near 0 into a step."""
    sgd = lambda parameters, lr, **_: torch.optim.SGD(parameters, lr)  # noqa: E731
    monkeypatch.setattr(torch.optim, "AdamW", sgd)
    flags = ["--steps=2", *flags.split()]
    checkpoint, rows = train(*flags)
    args, _ = gan_resnet.parse_args(["--data=x", *flags])
    losses, networks = textbook(args)
    for row, wanted in zip(rows, losses, strict=True):
        assert list(row) == ["step", "epoch", "seconds", "img_per_s", *wanted]
        for name, value in wanted.items():
            assert float(row[name]) == pytest.approx(value.item(), rel=1e-4)
    for name, network in networks.items():
        for key, parameter in network.named_parameters():
            ours = checkpoint["models"][name][key]
            torch.testing.assert_close(ours, parameter.data, rtol=1e-5, atol=1e-6)


def test_presets_are_the_reports_settings():
    stated = dict(data="cifar10", size=32, batch=64, epochs=50, g_steps=2, d_steps=1)
    plain, _ = gan_resnet.parse_args(["--preset=cifar10"])
    conditional, _ = gan_resnet.parse_args(["--preset=cifar10-conditional"])
    for args in (plain, conditional):
        assert {name: getattr(args, name) for name in stated} == stated
        assert args.weight_decay > 0
    assert (plain.lr, plain.lr_d, plain.conditional) == (5e-5, 2e-5, False)
    assert (conditional.lr, conditional.lr_d, conditional.conditional) == (5e-5, None, True)
    assert conditional.similarity > 0


def test_r4_gives_the_same_losses_twice(train):
    """The report could not reproduce itself."""
    logs = []
    for out in "ab":
        torch.manual_seed(ord(out))
        flags = ["--preset=cifar10-conditional", "--steps=3", "--eval-images=0", "--ema=0.5"]
        _, rows = train(*flags, out=out)
        logs.append([row | {"seconds": "", "img_per_s": ""} for row in rows])
    assert logs[0] == logs[1] and len(logs[0]) == 3


def test_r4b_trains_on_real_data(real):
    small = "--preset=cifar10-conditional --width=8 --batch=16 --steps=2 --eval-images=0 --out=r"
    gan_resnet.main([f"--data={real('cifar10-15k.zip')}", *small.split()])
    assert read_checkpoint("r")["step"] == 2


def test_what_goes_with_conditional(here):
    with pytest.raises(InputError, match="add --conditional"):
        gan_resnet.parse_args(["--data=x", "--similarity=1"])
    np.savez("x.npz", images=np.zeros((20, 16, 16, 3), np.uint8))
    with pytest.raises(InputError, match="no labels"):
        gan_resnet.main(["--data=x.npz", "--conditional"])


# ------------------------------------------------------------------------------- a trained model


def assert_close(ours, theirs):
    """Up to the rounding of a batch of another size."""
    assert (ours.int() - theirs.int()).abs().max() <= 1


def test_a_model_without_classes(train, capsys):
    """The classes of the data are not in the checkpoint, so no tool takes it for conditional."""
    checkpoint, _ = train("--steps=1")
    out = capsys.readouterr().out
    assert "4 classes: a 10, b 10, c 10, d 10" in out and "no classes" not in out
    assert "\nall images count as one class\n" in out
    assert checkpoint["data"]["classes"] == ["x"] and checkpoint["data"]["counts"] == [40]
    model = gan_resnet.load_model(checkpoint)
    z = training.latents(6, 5, 4)
    images = gan_resnet.generate(model, 6, 4)
    assert_close(images, datasets.to_uint8(model(z, None)))
    assert_close(gan_resnet.generate(model, 2, 4, first=3), images[3:5])
    assert gan_resnet.asked_labels(model, 3, 0).tolist() == [0] * 3
    z = training.walks(2, 3, 5, "linear", 4)
    assert_close(gan_resnet.walk(model, "linear", 2, 3, 4), datasets.to_uint8(model(z, None)))
    with pytest.raises(InputError, match="--conditional"):
        gan_resnet.walk(model, "classes", 2, 3)


def test_a_model_with_classes(train, monkeypatch):
    pictures = []
    monkeypatch.setattr(datasets, "grid", lambda images, columns: pictures.append(images))
    monkeypatch.setattr(datasets, "save_picture", lambda *_: None)
    checkpoint, _ = train("--steps=2", "--lr=0.01", "--conditional", "--ema=0.9")
    model = gan_resnet.load_model(checkpoint)

    def images_of(z, labels):
        return datasets.to_uint8(model(z, one_hot(torch.as_tensor(labels), 4)))

    eight = training.latents(8, 5, 1)  # the samples: a row for each class, the seed of the run + 1
    for row, label in zip(pictures[-1].split(8), range(4), strict=True):
        assert_close(row, images_of(eight, [label] * 8))
    z = training.latents(6, 5, 4)
    asked = gan_resnet.asked_labels(model, 6, 4)
    assert_close(gan_resnet.generate(model, 6, 4), images_of(z, asked))
    assert_close(gan_resnet.generate(model, 2, 4, first=3, label=2), images_of(z[3:5], [2, 2]))
    rows = gan_resnet.walk(model, "classes", 6, 3, 4).unflatten(0, (6, 3))
    assert_close(rows[:, 0], images_of(z, [0, 1, 2, 3, 0, 1]))
    assert_close(rows[:, 2], images_of(z, [1, 2, 3, 0, 1, 2]))
    z = training.walks(2, 3, 5, "spherical", 4)
    walk = gan_resnet.walk(model, "spherical", 2, 3, 4)
    assert_close(walk, images_of(z, [0, 0, 0, 1, 1, 1]))


def test_16_pixels_are_trained_in_fp32_on_a_cpu(tiny, monkeypatch, capsys):
    """Its bf16 gives wrong gradients there."""
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: True, raising=False)
    for size, precision in ((16, "fp32"), (32, "bf16")):
        gan_resnet.main(f"--data=tiny.npz --size={size} --width=4 --device=cpu --dry-run".split())
        assert f"on cpu in {precision};" in capsys.readouterr().out
    with pytest.raises(InputError, match="use --precision fp32"):
        gan_resnet.main("--data=tiny.npz --size=16 --device=cpu --precision=bf16 --dry-run".split())
