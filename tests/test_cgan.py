"""cgan.py: conditional BatchNorm, spectral norm, R1, the losses and training, against plain
versions."""

import contextlib
import copy
import functools

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import shifted_plainly
from torch import nn

import cgan
import datasets
import metrics
import training
from cgan import loss_d, loss_g, slope_at_real
from sources import read_log, run_program
from training import one_hot, read_checkpoint

pytestmark = pytest.mark.usefixtures("no_plots")


def count(network):
    return sum(p.numel() for p in network.parameters())


def networks(size=16, channels=3, width=3, norm="spectral", condition="auxiliary"):
    """A generator and a discriminator for four classes, always the same."""
    torch.manual_seed(0)
    generator = cgan.Generator(size, channels, [4, 3, 2, 1], 5, width, 1.0)
    discriminator = cgan.Discriminator(size, channels, 4, width, norm, condition)
    return generator.apply(cgan.init_weights), discriminator.apply(cgan.init_weights)


# --------------------------------------------------------------------------------------- networks


def test_the_networks_of_r0():
    generator = cgan.Generator(64, 3, [2700] * 5, 256, 64, 1.0)
    ups = sum(16 * a * b + 2 * 129 * b for a, b in ((512, 256), (256, 128), (128, 64)))
    embeddings = 4 * 5 * 128  # one for the input, and one for each conditional BatchNorm
    assert count(generator) == embeddings + (256 + 128 + 1) * 8192 + ups + 16 * 64 * 3 + 3
    assert count(generator) == 6_027_651  # the report's
    discriminator = cgan.Discriminator(64, 3, 5, 64, "spectral", "auxiliary")
    downs = sum(16 * a * b + b for a, b in ((3, 64), (64, 128), (128, 256), (256, 512)))
    assert count(discriminator) == downs + 513 * (1 + 5)
    batch_norm = cgan.Discriminator(64, 3, 5, 64, "batch", "auxiliary")
    assert count(batch_norm) == count(discriminator) + 2 * (128 + 256 + 512)  # not in the first
    no_pooling = cgan.Discriminator(64, 3, 5, 64, "batch", "auxiliary", "none")
    assert count(no_pooling) == count(batch_norm) + 15 * 512 * (1 + 5)


def test_pooling_is_the_mean_of_what_no_pooling_reads():
    """With a sixteenth of the same weight at each of the 4x4 positions, both give the same."""
    torch.manual_seed(0)
    mean = cgan.Discriminator(16, 3, 4, 2, "spectral", "auxiliary", "mean").eval()
    none = cgan.Discriminator(16, 3, 4, 2, "batch", "auxiliary", "none").eval()
    none.layers = mean.layers
    with torch.no_grad():
        for name in ("score", "class_layer"):
            layer, wide = getattr(mean, name), getattr(none, name)
            wide.weight.copy_(layer.weight.repeat_interleave(16, 1) / 16)  # channel by channel
            wide.bias.copy_(layer.bias)
    images = torch.randn(3, 3, 16, 16)
    y = one_hot(torch.tensor([0, 3, 1]), 4)
    for ours, wanted in zip(none(images, y), mean(images, y), strict=True):
        torch.testing.assert_close(ours, wanted)


@pytest.mark.parametrize("size", [16, 32, 64])
@pytest.mark.parametrize("condition, norm", [("auxiliary", "spectral"), ("projection", "batch")])
def test_any_size_and_channels(size, condition, norm):
    y = one_hot(torch.tensor([0, 3, 1]), 4)
    for channels in (1, 3):
        generator, discriminator = networks(size, channels, 3, norm, condition)
        images = generator(torch.randn(3, 5), y)
        assert images.shape == (3, channels, size, size)
        assert images.abs().max() <= 1
        score, class_logits = discriminator(images, y)
        assert score.shape == (3,)
        if condition == "projection":
            assert class_logits is None
        else:
            assert class_logits.shape == (3, 4)


@pytest.mark.parametrize("training", [True, False])
def test_conditional_batchnorm_with_equal_embeddings_is_batchnorm(training):
    torch.manual_seed(0)
    ours = cgan.ConditionalBatchNorm(6, 8, 0.5)
    theirs = nn.BatchNorm2d(6)
    embedding = 0.5 * ours.embedding.weight[3]
    with torch.no_grad():
        theirs.weight.copy_(1 + ours.gain(embedding))
        theirs.bias.copy_(ours.offset(embedding))
    x = 3 * torch.randn(8, 6, 5, 5) + 1
    same = one_hot(torch.full((8,), 3), 8)
    assert ours(x, same).shape == theirs(x).shape  # moves the running statistics of both
    ours.train(training)
    theirs.train(training)
    torch.testing.assert_close(ours(x, same), theirs(x), rtol=1e-5, atol=1e-5)
    others = torch.eye(8)  # now each image has a gain and offset of its own
    wanted = []
    for image, e in zip(ours.norm(x), 0.5 * ours.embedding.weight, strict=True):
        wanted.append(image * (1 + ours.gain(e))[:, None, None] + ours.offset(e)[:, None, None])
    torch.testing.assert_close(ours(x, others), torch.stack(wanted), rtol=1e-5, atol=1e-5)


def test_the_class_scale_multiplies_all_embeddings():
    generator, _ = networks()
    scaled = cgan.Generator(16, 3, [4, 3, 2, 1], 5, 3, 0.25)
    scaled.load_state_dict(generator.state_dict())
    z, y = torch.randn(3, 5), one_hot(torch.tensor([0, 3, 1]), 4)
    assert not torch.equal(scaled(z, y), generator(z, y))
    with torch.no_grad():
        for module in generator.modules():
            if isinstance(module, nn.Embedding):
                module.weight *= 0.25
    torch.testing.assert_close(scaled(z, y), generator(z, y))


def test_the_projection_is_an_inner_product_with_the_embedding_of_the_class():
    _, discriminator = networks(condition="projection")
    x = torch.randn(6, 3, 16, 16)
    labels = torch.tensor([0, 1, 2, 3, 2, 1])
    discriminator.eval()
    features = discriminator.layers(x).mean((2, 3))
    table = discriminator.class_layer.weight  # (classes, 8f): a row is a class
    products = torch.stack([table[c] @ h for c, h in zip(labels, features, strict=True)])
    wanted = discriminator.score(features)[:, 0] + products
    torch.testing.assert_close(discriminator(x, one_hot(labels, 4))[0], wanted)
    assert discriminator.class_layer.bias is None


def test_spectral_normalization_after_200_steps(train):
    """The largest singular value of every wrapped layer is within 5 % of 1: one power iteration a
    step keeps up."""
    checkpoint, _ = train("--steps=200", "--width=8", "--lr=1e-3", "--log-every=100")
    discriminator = cgan.Discriminator(16, 3, 3, 8, "spectral", "auxiliary")
    discriminator.load_state_dict(checkpoint["models"]["discriminator"])
    wrapped = [m for m in discriminator.eval().modules() if hasattr(m, "parametrizations")]
    assert len(wrapped) == 4
    largest = [torch.linalg.svdvals(layer.weight.flatten(1))[0].item() for layer in wrapped]
    assert largest == pytest.approx([1] * 4, abs=0.05)
    originals = [layer.parametrizations.weight.original.flatten(1) for layer in wrapped]
    assert torch.linalg.svdvals(originals[0])[0].item() != pytest.approx(1, abs=0.05)


# ----------------------------------------------------------------------------------------- losses


def test_losses():
    s = torch.tensor([-2.0, -0.5, 0.0, 0.7, 3.0])
    hinge = {True: [max(0, 1 - v) for v in s.tolist()], False: [max(0, 1 + v) for v in s.tolist()]}
    for real in (True, False):
        assert loss_d(s, real, "hinge").item() == pytest.approx(sum(hinge[real]) / 5)
        wanted = F.binary_cross_entropy_with_logits(s, torch.full((5,), float(real)))
        assert loss_d(s, real, "logistic").item() == pytest.approx(wanted.item())
    assert loss_g(s, "hinge").item() == pytest.approx(-s.mean().item())
    wanted = F.binary_cross_entropy_with_logits(s, torch.ones(5))
    assert loss_g(s, "logistic").item() == pytest.approx(wanted.item())


class Polynomial(nn.Module):
    """score = <w, x> + c |x|^2 / 2, whose gradient is w + c x."""

    def __init__(self, size, c):
        super().__init__()
        self.w = nn.Parameter(torch.randn(size, dtype=torch.float64))
        self.c = c

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
    wanted = (quadratic.w + 0.3 * x.flatten(1)).square().sum(1).mean()
    assert slope_at_real(quadratic, x, None).item() == pytest.approx(wanted.item())


def test_r1_of_a_network_one_image_at_a_time():
    _, discriminator = networks(condition="projection")
    discriminator.double().eval()
    x = torch.randn(5, 3, 16, 16, dtype=torch.float64)
    y = one_hot(torch.tensor([0, 1, 2, 3, 0]), 4).double()
    squares = []
    for image, label in zip(x.split(1), y.split(1), strict=True):
        point = image.clone().requires_grad_()
        discriminator(point, label)[0].sum().backward()
        squares.append(point.grad.square().sum().item())
    assert slope_at_real(discriminator, x, y).item() == pytest.approx(sum(squares) / 5)


def test_augmentation():
    """Each image is changed in its own way, as the docstring says, and a gradient passes."""
    torch.manual_seed(0)
    n, size = 400, 16
    x = torch.rand(n, 3, size, size) * 2 - 1
    x.requires_grad_()
    changed = cgan.diff_augment(x)
    assert changed.shape == x.shape
    zero = (changed == 0).all(1)  # hidden by the square, or shifted in from outside
    assert not zero.all((1, 2)).any()  # something is left of every image
    assert 0.15 < zero.float().mean() < 0.45
    changed.sum().backward()
    assert (x.grad != 0).any() and x.grad.isfinite().all()

    # Of gray images of one value v only brightness is left, v - 0.5 to v + 0.5.
    plain = cgan.diff_augment(torch.full((n, 3, size, size), 10.0)).amax((1, 2, 3))
    assert 9.5 <= plain.min() < 9.55 and 10.45 < plain.max() <= 10.5
    # Of images with two halves of +-1 in all channels, half the difference is the contrast.
    halves = torch.ones(n, 3, size, size)
    halves[:, :, :, : size // 2] = -1
    changed = cgan.diff_augment(halves)
    contrast = (changed.amax((1, 2, 3)) - changed.amin((1, 2, 3))) / 2
    assert 0.5 <= contrast.min() < 0.52 and 1.48 < contrast.max() <= 1.5
    # Of one color whose channels have the mean 0, saturation (0 to 2) times contrast is a factor.
    color = torch.tensor([6.0, 0.0, -6.0])[None, :, None, None]
    changed = cgan.diff_augment(color.expand(n, 3, size, size))
    factor = (changed[:, 0] - changed[:, 2]).amax((1, 2)) / 12
    assert 0 <= factor.min() < 0.05 and 2.2 < factor.max() <= 3
    # The square fills size / 2 rows with zeros, where neither a shift nor the edge cuts it.
    gray = cgan.diff_augment(torch.full((n, 1, size, size), 10.0))
    rows = (gray[:, 0, 2:-2, 2:-2] == 0).any(2).sum(1)
    assert rows.max() == size // 2
    # One bright point shows the shift: every distance up to size / 8 occurs, and no other.
    point = torch.zeros(n, 1, size, size)
    point[:, :, 8, 8] = 100.0
    bright = (cgan.diff_augment(point) > 20).nonzero()
    shifts = {(row - 8, column - 8) for _, _, row, column in bright.tolist()}
    assert shifts == {(a, b) for a in range(-2, 3) for b in range(-2, 3)}


# --------------------------------------------------------------------------------------- training


@pytest.fixture
def train(here):
    """train(*flags): on 48 random images in three classes. Returns the checkpoint and the log."""
    images = np.random.default_rng(0).integers(0, 256, (48, 16, 16, 3), dtype=np.uint8)
    labels = [0] * 24 + [1] * 16 + [2] * 8
    np.savez("x.npz", images=images, labels=labels, classes=["a", "b", "c"])
    common = "--data=x.npz --size=16 --width=3 --latent-dim=5 --batch=8 --log-every=1 --out=r"

    def run(*flags):
        cgan.main([*common.split(), "--device=cpu", "--precision=fp32", *flags])
        return read_checkpoint("r"), read_log(datasets.Path("r/log.csv"))

    return run


def textbook(args):
    """The algorithm written plainly. Yields the losses of each step, and at the end three
    networks: generator, discriminator, average."""
    data = datasets.load("x.npz", 16)
    batches = datasets.Batches(data, 8, seed=args.seed, balance=args.balance)
    torch.manual_seed(args.seed)
    scale = args.class_scale
    generator = cgan.Generator(16, 3, [24, 16, 8], 5, 3, scale).apply(cgan.init_weights)
    kind = (args.d_norm, args.condition, args.pooling)
    discriminator = cgan.Discriminator(16, 3, 3, 3, *kind)
    discriminator.apply(cgan.init_weights)
    average = copy.deepcopy(generator)
    opt_g = torch.optim.SGD(generator.parameters())
    opt_d = torch.optim.SGD(discriminator.parameters())
    updates = 0
    for step in range(args.steps):
        sigma = args.noise * max(0, 1 - step / args.noise_steps)
        opt_g.param_groups[0]["lr"] = (args.lr_g or args.lr) * args.lr_decay**step
        opt_d.param_groups[0]["lr"] = (args.lr_d or args.lr) * args.lr_decay**step

        def seen(images, sigma=sigma):
            images = images.to(memory_format=torch.channels_last)  # the order of the noise
            if args.augment:
                images = cgan.diff_augment(images)
            if args.shift:
                images = shifted_plainly(images)
            return images + sigma * torch.randn_like(images) if sigma else images

        r1 = 0
        for _ in range(args.d_steps):
            rows, _ = batches.rows(updates)
            x = data.images[rows].float() / 127.5 - 1
            c = data.labels[rows]
            y = F.one_hot(c, 3).float()
            fake = generator(torch.randn(8, 5), y).detach()
            real_score, real_class = discriminator(seen(x), y)
            fake_score, fake_class = discriminator(seen(fake), y)
            if args.loss == "hinge":
                d_real = (1 - real_score).clamp(min=0).mean()
                d_fake = (1 + fake_score).clamp(min=0).mean()
            else:
                d_real = -torch.log(torch.sigmoid(real_score)).mean()
                d_fake = -torch.log(1 - torch.sigmoid(fake_score)).mean()
            loss = d_real + d_fake
            logged = {"loss_d_real": d_real, "loss_d_fake": d_fake, "loss_g": None}
            if args.condition == "auxiliary":
                logged["class_real"] = -torch.log_softmax(real_class, 1)[range(8), c].mean()
                logged["class_fake"] = -torch.log_softmax(fake_class, 1)[range(8), c].mean()
                loss = loss + logged["class_real"]
                if args.class_from == "both":
                    loss = loss + logged["class_fake"]
            if args.r1 and updates % args.r1_every == 0:
                at = seen(x).requires_grad_()
                score = discriminator(at, y)[0].sum()
                (slope,) = torch.autograd.grad(score, at, create_graph=True)
                square = slope.flatten(1).norm(dim=1).square().mean()
                loss = loss + args.r1_every * args.r1 / 2 * square
                r1 += args.r1_every * square.item() / args.d_steps
            updates += 1
            opt_d.zero_grad()
            loss.backward()
            opt_d.step()
        for _ in range(args.g_steps):
            score, guess = discriminator(seen(generator(torch.randn(8, 5), y)), y)
            loss = -score.mean() if args.loss == "hinge" else -torch.sigmoid(score).log().mean()
            logged["loss_g"] = loss
            if args.condition == "auxiliary":
                loss = loss - torch.log_softmax(guess, 1)[range(8), c].mean()
            opt_g.zero_grad()
            loss.backward()
            opt_g.step()
        decay = min(args.ema, (1 + step) / (10 + step))
        with torch.no_grad():
            for ours, theirs in zip(average.parameters(), generator.parameters(), strict=True):
                ours.copy_(decay * ours + (1 - decay) * theirs)
        if args.r1:
            logged["r1"] = r1
        yield {name: torch.as_tensor(value).item() for name, value in logged.items()}
    yield {"generator": generator, "discriminator": discriminator, "ema": average}


@pytest.mark.parametrize(
    "flags",
    [
        "--noise=0.2 --noise-steps=3 --d-steps=2 --r1=3 --r1-every=3 --ema=0.5",
        "--condition=projection --loss=logistic --d-norm=batch --class-scale=0.1 --g-steps=2",
        "--class-from=real --loss=logistic --d-norm=batch --d-steps=2 --balance --augment",
        "--condition=projection --r1=1 --r1-every=1 --lr-g=.1 --lr-d=.02 --lr-decay=0.9 --seed=2",
        "--pooling=none --shift --loss=logistic --d-norm=batch --class-from=real",
    ],
)
def test_training_is_the_algorithm_written_plainly(train, flags, monkeypatch):
    """With plain gradient descent: Adam turns the rounding of a gradient near 0 into a step."""
    sgd = lambda parameters, lr, **_: torch.optim.SGD(parameters, lr)  # noqa: E731
    monkeypatch.setattr(torch.optim, "Adam", sgd)
    flags = ["--steps=5", "--lr=0.05", *flags.split()]
    checkpoint, rows = train(*flags)
    args, _ = cgan.parse_args(["--data=x", *flags])
    *losses, models = textbook(args)
    columns = ["step", "epoch", "seconds", "img_per_s", *losses[0]]
    columns += ["noise"] if args.noise else []
    for step, (row, wanted) in enumerate(zip(rows, losses, strict=True)):
        assert list(row) == columns
        if args.noise:
            assert float(row["noise"]) == max(0, args.noise * (1 - step / args.noise_steps))
        for name, value in wanted.items():
            assert float(row[name]) == pytest.approx(value, rel=1e-4, abs=1e-5)
    assert list(checkpoint["models"]) == list(models)[: 2 + (args.ema > 0)]
    for name, state in checkpoint["models"].items():
        for key, parameter in models[name].named_parameters():
            torch.testing.assert_close(state[key], parameter.data, rtol=1e-3, atol=1e-5)


def test_one_update_in_bf16_is_close_to_fp32():
    """Gradients of both networks, relative to their size, within 6 %: bf16 has 8 bits."""
    args, _ = cgan.parse_args(["--data=x", "--r1=1"])
    torch.manual_seed(1)
    real = torch.rand(16, 3, 16, 16) * 2 - 1
    labels = torch.arange(16) % 4
    found = []
    bf16 = functools.partial(torch.autocast, "cpu", torch.bfloat16)
    for autocast in (contextlib.nullcontext, bf16):
        pair = networks(width=16)
        options = [torch.optim.SGD(network.parameters(), 0) for network in pair]
        torch.manual_seed(2)
        cgan.generator_step(*pair, options[0], autocast, args, labels, None)
        assert all(p.grad is None for p in pair[1].parameters())  # not computed
        cgan.discriminator_step(*pair, options[1], autocast, args, real, labels, None, take_r1=True)
        found.append([torch.cat([p.grad.flatten() for p in n.parameters()]) for n in pair])
    for exact, rough in zip(*found, strict=True):
        assert 0 < (exact - rough).norm() / exact.norm() < 0.06


def test_flags_reach_the_optimizers(train):
    checkpoint, _ = train("--beta1=0.3", "--weight-decay=0.2", "--steps=1")
    for optimizer in checkpoint["optimizers"].values():
        (group,) = optimizer["param_groups"]
        assert tuple(group["betas"]) == (0.3, 0.999) and group["weight_decay"] == 0.2


def test_presets_are_the_reports_settings():
    args, _ = cgan.parse_args(["--preset=animals"])
    stated = dict(
        data="animals", size=64, width=64, latent_dim=256, batch=128, epochs=100, lr=2e-4,
        condition="auxiliary", d_norm="spectral", loss="hinge",
    )  # fmt: skip
    assert {name: getattr(args, name) for name in stated} == stated
    assert args.lr_d < args.lr and args.lr_g is None
    assert args.r1 > 0 and args.noise > 0 and args.g_steps != args.d_steps


def test_what_the_final_numbers_are_of(train, monkeypatch):
    """best.pt is chosen on half of the held-out images. The numbers of last.pt are of them all."""
    arrays = np.load("x.npz")
    np.savez("x.npz", **arrays, split=(np.arange(48) % 4 == 3).astype(int))
    results = {
        "usable_dims": ("the weights", [768]),
        "curve": {"fid_768": 1.0},
        "evaluate": ["evaluated"],
        "conditional": ["obeyed"],
        "write_result": None,
    }
    calls = {}
    for name, result in results.items():

        def call(*args, name=name, result=result, **more):
            calls[name] = [*args, more]
            return result

        monkeypatch.setattr(metrics, name, call)
    flags = ["--preset=animals", "--steps=2", "--eval-every=2", "--eval-images=100"]
    checkpoint, _ = train(*flags)
    model = cgan.load_model(checkpoint)
    choose, of_curve, _ = calls["curve"]
    judge, fake, more = calls["evaluate"]
    bytes_of = {
        name: {image.numpy().tobytes() for image in images}
        for name, images in {
            "choose": choose,
            "judge": judge,
            "floor": more["floor"],
            "training": datasets.load("x.npz", 16).images,
            "held out": datasets.load("x.npz", 16, "test").images,
        }.items()
    }
    assert len(choose) == 6 and bytes_of["choose"] < bytes_of["held out"]
    assert len(judge) == len(fake) == 12 and bytes_of["judge"] == bytes_of["held out"]
    assert len(more["floor"]) == 12 and bytes_of["floor"] < bytes_of["training"]
    assert torch.equal(of_curve, cgan.generate(model, 6, 2))
    assert torch.equal(fake, cgan.generate(model, 12, 2))
    best = read_checkpoint("r/best.pt")
    assert torch.equal(best["chosen_on"], datasets.image_hashes(choose))
    assert "chosen_on" not in checkpoint
    train_data, test_data, many, asked, more = calls["conditional"]
    assert len(train_data.images) == 36 and len(test_data.images) == 12
    assert torch.equal(many, cgan.generate(model, len(many), 3))
    assert torch.equal(asked, cgan.asked_labels(model, len(many), 3))
    assert more["eval_images"] == 100 and more["weights"] == "the weights"
    assert calls["write_result"][1] == ["evaluated", "obeyed"]


def test_r0b_trains_on_real_data(real):
    small = "--preset=animals --width=8 --batch=16 --steps=2 --eval-images=0 --out=r"
    cgan.main([f"--data={real('animals5.zip')}", *small.split()])
    assert read_checkpoint("r")["step"] == 2


@pytest.mark.parametrize(
    "arrays, flags, words",
    [
        ({}, "", "no labels"),
        ({"labels": np.full(20, 7), "classes": ["a", "b"]}, "", "label"),
        ({"labels": np.full(20, -1), "classes": ["a", "b"]}, "", "label"),
        ({"labels": np.zeros(20, int)}, "", "one class"),
        ({"labels": np.arange(20) % 2}, "--condition=projection --class-from=real", "does nothing"),
        ({"labels": np.arange(20) % 2}, "--d-norm=batch --r1=1", "--d-norm spectral"),
        ({"labels": np.arange(20) % 2}, "--r1-every=0", "at least 1"),
    ],
)
def test_what_a_conditional_model_cannot_use(here, capsys, arrays, flags, words):
    images = np.random.default_rng(0).integers(0, 256, (20, 16, 16, 3), np.uint8)
    np.savez("x.npz", images=images, **arrays)
    argv = ["--data=x.npz", "--batch=4", "--size=16", *flags.split()]
    with pytest.raises(SystemExit) as stop:
        run_program(functools.partial(cgan.main, argv))
    error = capsys.readouterr().err
    assert stop.value.code == 2 and error.count("\n") == 1 and words in error
    assert not (here / "runs").exists()


# ------------------------------------------------------------------------------- a trained model


@pytest.fixture
def generator():
    """In eval mode, with the running statistics of some images."""
    generator, _ = networks()
    generator(torch.randn(60, 5), one_hot(torch.arange(60) % 4, 4))
    return generator.eval()


def images_of(generator, z, labels):
    return training.to_images(generator, z, one_hot(torch.as_tensor(labels), 4)).int()


def assert_close(ours, theirs):
    """Up to the rounding of a batch of another size."""
    assert (ours.int() - theirs).abs().max() <= 1


def test_generate_draws_classes_as_in_the_data(generator):
    asked = cgan.asked_labels(generator, 1000, 3)
    frequencies = torch.bincount(asked, minlength=4) / 1000
    torch.testing.assert_close(frequencies, torch.tensor([0.4, 0.3, 0.2, 0.1]), atol=0.04, rtol=0)
    z = training.latents(9, 5, 3)
    assert_close(cgan.generate(generator, 9, 3), images_of(generator, z, asked[:9]))
    assert_close(cgan.generate(generator, 4, 3, first=5), images_of(generator, z[5:], asked[5:9]))
    assert_close(cgan.generate(generator, 9, 3, label=1), images_of(generator, z, [1] * 9))


def test_walks_between_classes_and_latents(generator):
    z = training.latents(5, 5, 1)
    for label, firsts in ((None, [0, 1, 2, 3, 0]), (3, [3] * 5)):
        walk = cgan.walk(generator, "classes", 5, 3, seed=1, label=label).unflatten(0, (5, 3))
        lasts = (torch.tensor(firsts) + 1) % 4
        assert_close(walk[:, 0], images_of(generator, z, firsts))
        assert_close(walk[:, 2], images_of(generator, z, lasts))
        half = (one_hot(torch.tensor(firsts), 4) + one_hot(lasts, 4)) / 2
        assert_close(walk[:, 1], training.to_images(generator, z, half).int())
    for kind in ("spherical", "linear"):
        z = training.walks(5, 3, 5, kind, 1)
        rows = [0, 0, 0, 1, 1, 1, 2, 2, 2, 3, 3, 3, 0, 0, 0]  # another class for each
        assert_close(cgan.walk(generator, kind, 5, 3, seed=1), images_of(generator, z, rows))
        twos = cgan.walk(generator, kind, 5, 3, seed=1, label=2)
        assert_close(twos, images_of(generator, z, [2] * 15))
