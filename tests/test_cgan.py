"""cgan.py: class-conditional BatchNorm, spectral normalisation, R1, the losses and the step, against plain versions."""

import argparse
import contextlib
import copy
import csv
import functools
import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn

import cgan
import datasets
import metrics
import report
from cgan import ConditionalBatchNorm, augmented, loss_d, loss_g, make_discriminator, make_generator, slope_at_real
from datasets import one_hot

REPORT = report.report


@pytest.fixture(autouse=True)
def no_plots(monkeypatch):
    monkeypatch.setattr(report, "report", lambda *_, **__: [])


def flags(*given):
    return cgan.parse_args(["--data=x", "--size=16", "--width=3", "--latent-dim=5", *given])


def count(network):
    return sum(p.numel() for p in network.parameters())


# ---------------------------------------------------------------------------------------------------- networks


def test_the_networks_of_r0():
    args = cgan.parse_args(["--preset=animals"])
    generator, discriminator = make_generator(args, 3, 5), make_discriminator(args, 3, 5)
    ups = sum(16 * a * b + 2 * 129 * b for a, b in ((512, 256), (256, 128), (128, 64)))
    assert count(generator) == 5 * 128 + (256 + 128 + 1) * 8192 + ups + 16 * 64 * 3 + 3
    downs = sum(16 * a * b + b for a, b in ((3, 64), (64, 128), (128, 256), (256, 512)))
    assert count(discriminator) == downs + 513 * (1 + 5)


def test_the_networks_of_r4():
    from torchvision.models import resnet18

    args = cgan.parse_args(["--preset=cifar10-resnet"])
    generator, discriminator = make_generator(args, 3, 10), make_discriminator(args, 3, 10)
    more = 64 * 7 * 7 - 999 * 513 + 11 * 32 * 32  # a channel more, 1 output instead of 1,000, the lifted class
    assert count(discriminator) == count(resnet18()) + more
    ups = sum(16 * a * b + 2 * b for a, b in ((256, 256), (256, 128), (128, 64)))
    assert count(generator) == 101 * 128 + 11 * 128 + ups + (64 * 8 * 8 + 1) * 3 * 32 * 32
    assert sum(isinstance(layer, nn.AvgPool2d) for layer in generator.modules()) == 1


@pytest.mark.parametrize("size", [16, 32, 64])
@pytest.mark.parametrize(
    "arch, condition, norm",
    [("dcgan", "auxiliary", "spectral"), ("dcgan", "projection", "batch"), ("resnet18", "auxiliary", "spectral")],
)
def test_any_size_and_colour(size, arch, condition, norm):
    for colours in 1, 3:
        args = flags(f"--size={size}", f"--arch={arch}", f"--condition={condition}", f"--d-norm={norm}")
        y = one_hot(torch.tensor([0, 3, 1]), 4)
        pictures = make_generator(args, colours, 4)(torch.randn(3, 5), y)
        assert pictures.shape == (3, colours, size, size) and pictures.abs().max() <= 1
        score, label = make_discriminator(args, colours, 4)(pictures, y)
        assert score.shape == (3,) and (label is None) == ((arch, condition) != ("dcgan", "auxiliary"))
        assert label is None or label.shape == (3, 4)


@pytest.mark.parametrize("training", [True, False])
def test_conditional_batchnorm_with_equal_embeddings_is_batchnorm(training):
    torch.manual_seed(0)
    ours, theirs = ConditionalBatchNorm(6), nn.BatchNorm2d(6)
    embedding = torch.randn(cgan.EMBEDDING)
    with torch.no_grad():
        theirs.weight.copy_(1 + ours.gain(embedding))
        theirs.bias.copy_(ours.offset(embedding))
    x = 3 * torch.randn(8, 6, 5, 5) + 1
    ours(x, embedding.expand(8, -1)), theirs(x)  # moves the running statistics of both
    ours.train(training), theirs.train(training)
    torch.testing.assert_close(ours(x, embedding.expand(8, -1)), theirs(x), rtol=1e-5, atol=1e-5)
    others = torch.randn(8, cgan.EMBEDDING)  # one picture at a time, each with its own gain and offset
    normed = ours.norm(x)
    want = [normed[i] * (1 + ours.gain(e))[:, None, None] + ours.offset(e)[:, None, None] for i, e in enumerate(others)]
    torch.testing.assert_close(ours(x, others), torch.stack(want), rtol=1e-5, atol=1e-5)


def test_the_projection_is_an_inner_product_with_the_embedding_of_the_class():
    torch.manual_seed(0)
    discriminator = make_discriminator(flags("--condition=projection"), 3, 4).eval()
    x, labels = torch.randn(6, 3, 16, 16), torch.tensor([0, 1, 2, 3, 2, 1])
    h = discriminator.layers(x).mean((2, 3))
    table = discriminator.label.weight  # (classes, 8f): a row is a class
    want = discriminator.score(h)[:, 0] + torch.stack([table[c] @ h[i] for i, c in enumerate(labels)])
    torch.testing.assert_close(discriminator(x, one_hot(labels, 4))[0], want)


def test_spectral_normalisation_after_200_steps(here):
    """The largest singular value of every wrapped layer is within 5 % of 1: one power iteration a step keeps up."""
    np.savez("x.npz", images=np.random.default_rng(0).integers(0, 256, (64, 16, 16, 3), np.uint8), labels=[0, 1] * 32)
    where = ["--data=x.npz", "--size=16", "--width=8", "--batch=8", "--steps=200", "--lr=1e-3", "--out=r"]
    cgan.main(cgan.parse_args([*where, "--sample-every=1000", "--precision=fp32", "--device=cpu"]))
    discriminator = make_discriminator(argparse.Namespace(**datasets.read_checkpoint("r")["flags"]), 3, 2)
    discriminator.load_state_dict(datasets.read_checkpoint("r")["networks"]["discriminator"])
    wrapped = [m for m in discriminator.eval().modules() if hasattr(m, "parametrizations")]
    assert len(wrapped) == 4
    for layer in wrapped:
        assert torch.linalg.svdvals(layer.weight.flatten(1))[0].item() == pytest.approx(1, abs=0.05)
        before = torch.linalg.svdvals(layer.parametrizations.weight.original.flatten(1))[0].item()
        assert before != pytest.approx(1, abs=0.05) or layer is not wrapped[0]


# ------------------------------------------------------------------------------------------------------ losses


def test_losses():
    s = torch.tensor([-2.0, -0.5, 0.0, 0.7, 3.0])
    hinge = {True: [max(0, 1 - v) for v in s.tolist()], False: [max(0, 1 + v) for v in s.tolist()]}
    for real in True, False:
        assert loss_d(s, real, "hinge").item() == pytest.approx(sum(hinge[real]) / 5)
        want = F.binary_cross_entropy_with_logits(s, torch.full((5,), float(real)))
        assert loss_d(s, real, "logistic").item() == pytest.approx(want.item())
    assert loss_g(s, "hinge").item() == pytest.approx(-s.mean().item())
    want = F.binary_cross_entropy_with_logits(s, torch.ones(5))
    assert loss_g(s, "logistic").item() == pytest.approx(want.item())


class Polynomial(nn.Module):
    """score = <w, x> + c |x|^2 / 2, whose gradient is w + c x."""

    def __init__(self, size, c):
        super().__init__()
        self.w, self.c = nn.Parameter(torch.randn(size, dtype=torch.float64)), c

    def forward(self, x, y):
        x = x.flatten(1)
        return x @ self.w + self.c * x.square().sum(1) / 2, None


def test_r1_against_closed_forms():
    torch.manual_seed(0)
    x = torch.randn(7, 3, 4, 4, dtype=torch.float64)
    linear = Polynomial(48, 0.0)
    value = slope_at_real(linear, x, None)
    assert value.item() == pytest.approx(linear.w.square().sum().item())
    value.backward()
    torch.testing.assert_close(linear.w.grad, 2 * linear.w.detach())
    quadratic = Polynomial(48, 0.3)
    slope = quadratic.w + 0.3 * x.flatten(1)
    assert slope_at_real(quadratic, x, None).item() == pytest.approx(slope.square().sum(1).mean().item())


def test_r1_of_a_network_one_picture_at_a_time():
    torch.manual_seed(0)
    discriminator = make_discriminator(flags("--condition=projection"), 3, 4).double().eval()
    x, y = torch.randn(5, 3, 16, 16, dtype=torch.float64), one_hot(torch.tensor([0, 1, 2, 3, 0]), 4).double()
    squares = []
    for i in range(5):
        one = x[i : i + 1].clone().requires_grad_()
        discriminator(one, y[i : i + 1])[0].sum().backward()
        squares.append(one.grad.square().sum().item())
    assert slope_at_real(discriminator, x, y).item() == pytest.approx(sum(squares) / 5)


def test_augmentation():
    """Each picture is changed in its own way, by what the docstring says, and a gradient passes through."""
    torch.manual_seed(0)
    n, side = 400, 16
    x = torch.rand(n, 3, side, side) * 2 - 1
    x.requires_grad_()
    changed = augmented(x)
    assert changed.shape == x.shape
    zero = (changed == 0).all(1)  # hidden by the square, or shifted in from outside
    assert not zero.all((1, 2)).any()  # something is left of every picture
    assert 0.15 < zero.float().mean() < 0.45
    changed.sum().backward()
    assert (x.grad != 0).any() and x.grad.isfinite().all()

    # Of grey pictures of one value v, only brightness is left (saturation and contrast keep it): v - 0.5 to v + 0.5.
    plain = augmented(torch.full((n, 3, side, side), 10.0)).amax((1, 2, 3))
    assert 9.5 <= plain.min() < 9.55 and 10.45 < plain.max() <= 10.5
    # Of pictures with two halves of +-1 in all channels half the difference is the contrast: 0.5 to 1.5.
    halves = torch.ones(n, 3, side, side)
    halves[:, :, :, : side // 2] = -1
    changed = augmented(halves)
    contrast = (changed.amax((1, 2, 3)) - changed.amin((1, 2, 3))) / 2
    assert 0.5 <= contrast.min() < 0.52 and 1.48 < contrast.max() <= 1.5
    # Of one colour whose channels have the mean 0 saturation is its factor: 0 to 2, here times the contrast.
    changed = augmented(torch.tensor([6.0, 0.0, -6.0])[None, :, None, None].expand(n, 3, side, side))
    factor = (changed[:, 0] - changed[:, 2]).amax((1, 2)) / 12
    assert 0 <= factor.min() < 0.05 and 2.2 < factor.max() <= 3
    # The square fills side / 2 rows with zeros, where neither a shift nor the edge cuts it.
    zeros = (augmented(torch.full((n, 1, side, side), 10.0))[:, 0, 2:-2, 2:-2] == 0).any(2).sum(1)
    assert zeros.max() == side // 2

    # A single bright point on black shows the shift: it is found at most side / 8 away, at every distance.
    point = torch.zeros(n, 1, side, side)
    point[:, :, 8, 8] = 100.0
    found = augmented(point) - augmented(torch.zeros_like(point))
    places = [(image[0].abs() > 20).nonzero() for image in found]
    seen = {(int(p[0, 0]) - 8, int(p[0, 1]) - 8) for p in places if len(p)}
    assert seen == {(a, b) for a in range(-2, 3) for b in range(-2, 3)}


# -------------------------------------------------------------------------------------------------- train step


class Fixed:
    """Batches that repeat from a list."""

    def __init__(self, images, labels, classes, batch):
        self.device, self.classes, self.k = torch.device("cpu"), classes, 0
        self.images, self.labels, self.batch = images, labels, batch

    def __next__(self):
        rows = torch.arange(self.k, self.k + self.batch) % len(self.images)
        self.k += self.batch
        return self.images[rows], self.labels[rows]


def pair(args, seed=0):
    torch.manual_seed(seed)
    generator, discriminator = make_generator(args, 3, 3), make_discriminator(args, 3, 3)
    rates = args.lr_g or args.lr, args.lr_d or args.lr
    # not Adam, which turns the rounding of a gradient near 0 into a whole step
    optimisers = [torch.optim.SGD(n.parameters(), lr) for n, lr in zip((generator, discriminator), rates, strict=True)]
    return generator, discriminator, *optimisers


@pytest.mark.parametrize(
    "given",
    [
        "--noise=0.2 --noise-steps=4 --d-steps=2 --r1=3 --r1-every=3 --lr-d=0.02 --ema=0.5 --lr-decay=0.9",
        "--condition=projection --loss=logistic --d-norm=batch --class-scale=0.1 --g-steps=2",
        "--class-from=real --loss=logistic --d-norm=batch --d-steps=2",
        "--arch=resnet18 --loss=logistic --similarity=0.7 --g-steps=2 --lr=0.002 --size=32",
    ],
)
def test_train_step_is_the_algorithm_written_plainly(given, monkeypatch):
    """In float64: BatchNorm over the four values at ResNet-18's end would magnify the rounding of float32."""
    monkeypatch.setattr(torch.Tensor, "float", torch.Tensor.double)
    torch.set_default_dtype(torch.float64)
    try:
        compare_with_the_plain_algorithm(given)
    finally:
        torch.set_default_dtype(torch.float32)


def compare_with_the_plain_algorithm(given):
    args = flags("--batch=4", "--lr=0.05", *given.split())
    torch.manual_seed(3)
    images, labels = torch.rand(16, 3, args.size, args.size) * 2 - 1, torch.randint(3, (16,))

    ours = pair(args)
    average = copy.deepcopy(ours[0]) if args.ema else None
    batches = Fixed(images, labels, ["a", "b", "c"], 4)
    torch.manual_seed(7)
    logged = [
        cgan.train_step(cgan.schedule(k, args), args, batches, *ours, average, contextlib.nullcontext) for k in range(3)
    ]

    generator, discriminator, opt_g, opt_d = theirs = pair(args)
    mean = copy.deepcopy(generator)
    place = count = 0
    torch.manual_seed(7)
    for k in range(3):
        sigma = args.noise * max(0, 1 - k / args.noise_steps)
        for optimiser, lr in ((opt_g, args.lr), (opt_d, args.lr_d or args.lr)):
            optimiser.param_groups[0]["lr"] = lr * args.lr_decay**k
        taken = []
        for _ in range(args.d_steps):
            x, c = images[place : place + 4], labels[place : place + 4]
            place = (place + 4) % 16
            y = F.one_hot(c, 3).float()
            fake = generator(torch.randn(4, 5), y).detach()
            noisy = [v + sigma * torch.randn_like(v) if sigma else v for v in (x,)]
            real_score, real_class = discriminator(noisy[0], y)
            fake_score, fake_class = discriminator(fake + sigma * torch.randn_like(fake) if sigma else fake, y)
            if args.loss == "hinge":
                on_real, on_fake = (1 - real_score).clamp(min=0).mean(), (1 + fake_score).clamp(min=0).mean()
            else:
                on_real = -torch.log(torch.sigmoid(real_score)).mean()
                on_fake = -torch.log(1 - torch.sigmoid(fake_score)).mean()
            loss = on_real + on_fake
            if real_class is not None:
                guess = [-torch.log_softmax(v, 1)[range(4), c].mean() for v in (real_class, fake_class)]
                loss = loss + (guess[0] if args.class_from == "real" else guess[0] + guess[1])
            if args.r1 and count % args.r1_every == 0:
                at = (x + sigma * torch.randn_like(x)).requires_grad_()
                (slope,) = torch.autograd.grad(discriminator(at, y)[0].sum(), at, create_graph=True)
                square = slope.flatten(1).norm(dim=1).square().mean()
                loss = loss + args.r1_every * args.r1 / 2 * square
                taken.append(args.r1_every * square.item() / args.d_steps)
            count += 1
            opt_d.zero_grad()
            loss.backward()
            opt_d.step()
        for _ in range(args.g_steps):
            fake = generator(torch.randn(4, 5), y)
            score, guessed = discriminator(fake + sigma * torch.randn_like(fake) if sigma else fake, y)
            adversarial = -score.mean() if args.loss == "hinge" else -torch.log(torch.sigmoid(score)).mean()
            loss = adversarial
            if guessed is not None:
                loss = loss - torch.log_softmax(guessed, 1)[range(4), c].mean()
            if args.similarity:
                distance = ((fake - x) ** 2).mean()
                loss = loss + args.similarity * distance
            opt_g.zero_grad()
            loss.backward()
            opt_g.step()
        with torch.no_grad():
            for m, p in zip(mean.parameters(), generator.parameters(), strict=True):
                m.copy_(args.ema * m + (1 - args.ema) * p)
        want = {"loss_d_real": on_real, "loss_d_fake": on_fake, "loss_g": adversarial}
        if real_class is not None:
            want |= {"class_real": guess[0], "class_fake": guess[1]}
        want |= {"r1": torch.tensor(sum(taken))} if args.r1 else {}
        want |= {"similarity": distance} if args.similarity else {}
        assert list(want) == list(cgan.losses_of(args)) and not logged[k].requires_grad
        assert logged[k].tolist() == pytest.approx([v.item() for v in want.values()], abs=1e-6)
    for network, other in zip(ours[:2], theirs[:2], strict=True):
        for p, q in zip(network.parameters(), other.parameters(), strict=True):
            torch.testing.assert_close(p, q, rtol=1e-4, atol=1e-6)
    if args.ema:
        for p, q in zip(average.parameters(), mean.parameters(), strict=True):
            torch.testing.assert_close(p, q, rtol=1e-4, atol=1e-6)


def test_the_log_of_lazy_r1_has_the_right_mean():
    args = flags("--batch=4", "--r1=1", "--r1-every=4", "--lr=1e-12", "--noise=0")
    x, labels = torch.rand(4, 3, 16, 16) * 2 - 1, torch.tensor([0, 1, 2, 0])
    generator, discriminator, *optimisers = pair(args)
    for _ in range(30):  # until the power iteration has found the singular values
        discriminator(x, one_hot(labels, 3))
    batches = Fixed(x, labels, ["a", "b", "c"], 4)
    column = cgan.losses_of(args).index("r1")
    networks = generator, discriminator, *optimisers, None, contextlib.nullcontext
    rows = [cgan.train_step(cgan.schedule(k, args), args, batches, *networks)[column] for k in range(8)]
    want = slope_at_real(discriminator, x, one_hot(labels, 3)).item()
    assert sum(v.item() for v in rows) / 8 == pytest.approx(want, rel=1e-3)
    assert sum(v.item() != 0 for v in rows) == 2


def test_one_step_in_bf16_is_close_to_fp32():
    """Gradients of both networks after one step: relative to their size within 6 %, as bf16 has 8 bits."""
    found = []
    for dtype in torch.float32, torch.bfloat16:
        args = flags("--batch=16", "--width=16", "--r1=1", "--lr=1e-12")
        generator, discriminator, *optimisers = pair(args)
        torch.manual_seed(1)
        batches = Fixed(torch.rand(16, 3, 16, 16) * 2 - 1, torch.arange(16) % 3, ["a", "b", "c"], 16)
        cgan.train_step(cgan.schedule(0, args), args, batches, generator, discriminator, *optimisers, None,
                        lambda d=dtype: torch.autocast("cpu", torch.bfloat16, enabled=d == torch.bfloat16))  # fmt: skip
        found.append([torch.cat([p.grad.flatten() for p in n.parameters()]) for n in (generator, discriminator)])
    for exact, rough in zip(*found, strict=True):
        assert ((exact - rough).norm() / exact.norm()).item() < 0.06 and not torch.equal(exact, rough)


# ------------------------------------------------------------------------------------------------------ presets


def test_presets_are_the_reports_settings():
    stated = {
        "animals": dict(data="animals", size=64, width=64, latent_dim=256, batch=128, epochs=100, lr=2e-4,
                        condition="auxiliary", d_norm="spectral", loss="hinge", arch="dcgan"),
        "cifar10-resnet": dict(data="cifar10", size=32, batch=64, epochs=50, lr=5e-5, g_steps=2, arch="resnet18",
                               loss="logistic"),
    }  # fmt: skip
    for preset, values in stated.items():
        args = vars(cgan.parse_args([f"--preset={preset}"]))
        assert {name: args[name] for name in values} == values
    animals = cgan.parse_args(["--preset=animals"])
    assert animals.lr_d < animals.lr and animals.r1 > 0 and animals.noise > 0 and animals.g_steps != animals.d_steps
    resnet = cgan.parse_args(["--preset=cifar10-resnet"])
    assert resnet.weight_decay > 0 and resnet.similarity > 0


def test_r4b_gives_the_same_losses_twice(here, monkeypatch):
    """The report could not reproduce itself."""
    monkeypatch.setattr(report, "report", lambda *_, **__: [])
    rng = np.random.default_rng(0)
    np.savez("x.npz", images=rng.integers(0, 256, (64, 32, 32, 3), np.uint8), labels=np.arange(64) % 10)
    common = ["--preset=cifar10-resnet", "--data=x.npz", "--width=4", "--batch=8", "--steps=6", "--log-every=1"]
    tables = []
    for run in "a", "b":
        torch.manual_seed(ord(run))
        cgan.main(cgan.parse_args([*common, "--eval-images=0", "--device=cpu", f"--out={run}"]))
        with open(f"{run}/log.csv", encoding="utf-8", newline="") as file:
            tables.append([{k: v for k, v in row.items() if k not in ("seconds", "img_per_s")}
                           for row in csv.DictReader(file)])  # fmt: skip
    assert tables[0] == tables[1] and len(tables[0]) == 6 and "similarity" in tables[0][0]


# ------------------------------------------------------------------------------------------- using a checkpoint


@pytest.fixture
def trained(here):
    rng = np.random.default_rng(0)
    np.savez("x.npz", images=rng.integers(0, 256, (60, 16, 16, 3), np.uint8), labels=np.arange(60) % 3,
             classes=["a", "b", "c"])  # fmt: skip
    where = ["--data=x.npz", "--size=16", "--width=4", "--batch=8", "--steps=3", "--out=r", "--device=cpu"]
    cgan.main(cgan.parse_args(where))
    return datasets.read_checkpoint("r")


def test_walks_between_classes_and_latents(trained):
    walk = cgan.interpolate(trained, 3, 5, "classes", seed=1).unflatten(0, (3, 5))
    z = datasets.latents(3, 256, 1)
    network = cgan.load_generator(trained)
    for row, (first, last) in enumerate([(0, 1), (1, 2), (2, 0)]):
        ends = cgan.pictures(network, z[[row, row]], one_hot(torch.tensor([first, last]), 3))
        assert (walk[row, [0, 4]].int() - ends.int()).abs().max() <= 1
    half = cgan.pictures(network, z[:1], torch.tensor([[0.5, 0.5, 0.0]]))
    assert (walk[0, 2].int() - half[0].int()).abs().max() <= 1
    for kind in "spherical", "linear":
        latents = datasets.walks(2, 4, 256, kind, 1)
        same = cgan.pictures(network, latents, one_hot(torch.full((8,), 2), 3))
        assert (cgan.interpolate(trained, 2, 4, kind, 1, label=2).int() - same.int()).abs().max() <= 1


def test_generate_a_class(trained, capsys):
    args = ["--load=r", "--generate=4", "--class=b", "--to=b.png", "--seed=3"]
    cgan.main(cgan.parse_args(args))
    made = np.asarray(Image.open("b.png"))
    want = cgan.generate(trained, 4, 3, label=1)
    assert np.array_equal(made[:16, :16], want[0].permute(1, 2, 0).numpy())
    cgan.main(cgan.parse_args(["--load=r", "--interpolate=4", "--interpolation=classes", "--class=b", "--to=w.png"]))
    assert Image.open("w.png").size == (4 * 18 - 2, 8 * 18 - 2)
    walks = cgan.interpolate(trained, 8, 4, "classes", 0, label=1).unflatten(0, (8, 4))  # all from b to c
    z = datasets.latents(8, 256, 0)
    for place, label in ((0, 1), (3, 2)):
        want = cgan.pictures(cgan.load_generator(trained), z, one_hot(torch.full((8,), label), 3))
        assert (walks[:, place].int() - want.int()).abs().max() <= 1


def test_what_generate_was_asked_for(trained):
    """metrics.py relies on it: picture k of generate(.., n, seed) has the class random_labels(counts, n, seed)[k]."""
    asked = datasets.random_labels(trained["data"]["counts"], 9, 3)
    want = cgan.pictures(cgan.load_generator(trained), datasets.latents(9, 256, 3), one_hot(asked, 3))
    assert torch.equal(cgan.generate(trained, 9, 3), want) and len(asked.unique()) == 3


def test_metrics_on_the_command_line(trained, capsys, monkeypatch):
    """A labelled set against a conditional model: is the class obeyed? Not where the classes have other names."""
    monkeypatch.setattr(metrics, "conditional", functools.partial(metrics.conditional, steps=2))
    monkeypatch.setattr(metrics, "download", lambda: "no network")
    monkeypatch.setattr(metrics, "official_path", lambda: datasets.Path("absent.pth"))
    metrics.main(metrics.parse_args(["x.npz", "r", "--eval-images=20", "--size=16", "--json"]))
    names = {
        v["name"]: v["protocol"]
        for v in json.loads(capsys.readouterr().out)["fakes"][0]["values"]
        if v["value"] is not None
    }
    assert "on 60 generated ones" in names["class accuracy"] and "class accuracy, reverse" in names
    metrics.main(metrics.parse_args(["x.npz", "r", "--eval-images=20", "--size=16", "--no-classes"]))
    assert "class" not in capsys.readouterr().out
    np.savez("y.npz", images=np.zeros((60, 16, 16, 3), np.uint8), labels=np.arange(60) % 2, classes=["a", "b"])
    metrics.main(metrics.parse_args(["y.npz", "r", "--eval-images=20", "--size=16"]))
    out, err = capsys.readouterr()
    assert "class accuracy" not in out and "other classes" in err


def test_the_strip_shows_every_class(trained):
    REPORT("r")
    assert Image.open("r/strip.png").height > 3 * 3 * 16  # epochs, each with a row for each of three classes


@pytest.mark.parametrize(
    "images, flags, words",
    [
        (dict(), [], "no labels"),
        (dict(labels=np.full(20, 7), classes=["a", "b"]), [], "label"),
        (dict(labels=np.full(20, -1), classes=["a", "b"]), [], "label"),
        (dict(labels=np.arange(20) % 2), ["--arch=resnet18", "--d-norm=batch"], "--d-norm does nothing"),
        (dict(labels=np.arange(20) % 2), ["--arch=resnet18", "--class-from=real"], "--class-from does nothing"),
        (
            dict(labels=np.arange(20) % 2),
            ["--condition=projection", "--class-from=real"],
            "--class-from does nothing with --condition projection",
        ),
        (dict(labels=np.arange(20) % 2), ["--d-norm=batch", "--r1=1"], "--d-norm spectral"),
        (dict(labels=np.arange(20) % 2), ["--arch=resnet18", "--r1=1"], "--d-norm spectral"),
    ],
)
def test_what_a_conditional_model_cannot_use(here, capsys, images, flags, words):
    np.savez("x.npz", images=np.zeros((20, 16, 16, 3), np.uint8), **images)
    with pytest.raises(SystemExit) as stop:
        datasets.run_program("cgan.py", cgan.main, cgan.parse_args(["--data=x.npz", "--batch=4", "--size=16", *flags]))
    err = capsys.readouterr().err
    assert stop.value.code == 2 and err.count("\n") == 1 and words in err and not (here / "runs").exists()


def test_an_unknown_class_is_one_line(trained, capsys):
    with pytest.raises(SystemExit) as stop:
        given = ["--load=r", "--generate=2", "--class=zebra"]
        datasets.run_program("cgan.py", cgan.main, cgan.parse_args(given))
    err = capsys.readouterr().err
    assert stop.value.code == 2 and err.count("\n") == 1 and "this model knows a, b, c" in err


@pytest.mark.parametrize("preset, file", [("animals", "animals5.zip"), ("cifar10-resnet", "cifar10-15k.zip")])
def test_presets_train_on_real_data(real, preset, file, monkeypatch):
    monkeypatch.setattr(report, "report", lambda *_, **__: [])
    small = ["--width=8", "--batch=16", "--steps=2", "--eval-images=0"]
    cgan.main(cgan.parse_args([f"--preset={preset}", f"--data={real(file)}", *small, "--out=r"]))
    assert datasets.read_checkpoint("r")["step"] == 2
