"""wgan_gp.py: the penalty against closed forms, training against algorithm 1 written plainly,
growth, normalization."""

import argparse
import contextlib
import copy
import csv
import functools
from itertools import pairwise

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn

import datasets
import metrics
import training
import wgan_gp
from sources import run_program
from training import read_checkpoint
from wgan_gp import Critic, Generator, LeakyReLU, growth_at

pytestmark = pytest.mark.usefixtures("no_plots")


def flags(*words):
    return wgan_gp.parse_args(["--data=x", *words])[0]


def make_networks(args, channels=3):
    """The same networks at every call with the same flags."""
    torch.manual_seed(0)
    return wgan_gp.make_networks(args, channels)


def gradient_penalty(critic, real, fake):
    return wgan_gp.gradient_penalty(critic, real, fake, contextlib.nullcontext)


def count(network):
    return sum(p.numel() for p in network.parameters())


@pytest.fixture
def train(here):
    """A function that trains on 60 random images of 32x32, or goes on with that: its checkpoint."""
    images = np.random.default_rng(0).integers(0, 256, (60, 32, 32, 3), dtype=np.uint8)
    np.savez("x.npz", images=images)
    common = "--data x.npz --width 2 --batch 8 --latent-dim 8 --device cpu --precision fp32 --out r"

    def run(*words, start=common):
        wgan_gp.main([*start.split(), *words])
        return read_checkpoint("r")

    return run


# --------------------------------------------------------------------------------------- networks


def test_the_networks_have_the_sizes_that_the_report_states():
    sizes = {"large-gan": (52.44e6, 44.09e6), "small-gan": (3.57e6, 2.76e6)}
    for preset, reported in sizes.items():
        networks = make_networks(flags(f"--preset={preset}"))
        assert [count(network) for network in networks] == pytest.approx(reported, rel=0.003)


def test_the_residual_networks_count_as_the_authors_do():
    f = 64

    def residual(a, b, middle):  # the first convolution has no bias; two norms
        return 9 * a * middle + 9 * middle * b + b + a * b + b + 2 * (a + middle)

    generator, critic = make_networks(flags("--preset=paper"))
    ups = [8 * f, 8 * f, 4 * f, 2 * f, f]
    blocks = sum(residual(a, b, b) for a, b in pairwise(ups))
    assert count(generator) == 129 * 16 * 8 * f + blocks + 2 * f + 9 * f * 3 + 3
    blocks = sum(residual(a, b, a) for a, b in pairwise(ups[::-1]))
    assert count(critic) == 9 * 3 * f + f + blocks + 16 * 8 * f + 1


@pytest.mark.parametrize("size", [16, 32, 128])
@pytest.mark.parametrize("arch", ["dcgan", "resnet"])
@pytest.mark.parametrize("channels", [1, 3])
def test_any_size_and_channels(size, arch, channels):
    words = (f"--size={size}", "--width=2", f"--arch={arch}")
    generator, critic = make_networks(flags(*words), channels)
    z = torch.randn(3, 100)
    images = generator(z)
    assert images.shape == (3, channels, size, size)
    assert critic(images).shape == (3,)
    linear, _ = make_networks(flags(*words, "--normalize=channel"), channels)
    torch.testing.assert_close(images, linear(z).tanh())


@pytest.mark.parametrize("arch", ["dcgan", "resnet"])
@pytest.mark.parametrize("norm", ["none", "layer"])
def test_the_critic_scores_each_image_by_itself(arch, norm):
    args = flags("--size=16", "--width=4", f"--arch={arch}", f"--critic-norm={norm}")
    _, critic = make_networks(args)
    kinds = [type(module) for module in critic.modules()]
    assert nn.BatchNorm2d not in kinds
    assert (nn.GroupNorm in kinds) == (norm == "layer")
    x = torch.randn(6, 3, 16, 16)
    torch.testing.assert_close(critic(x), torch.cat([critic(image) for image in x.split(1)]))


def test_layer_norm_is_over_all_values_of_an_image():
    x = torch.randn(4, 6, 5, 5)
    (layer,) = wgan_gp.norm_layers("layer", 6)
    torch.testing.assert_close(layer(x), F.layer_norm(x, x.shape[1:]))


def test_first_weights():
    for network in make_networks(flags("--width=16", "--size=64")):
        for p in network.parameters():
            assert p.dim() == 1 or p.std().item() == pytest.approx(0.02, rel=0.1)
    generator, critic = make_networks(flags("--preset=paper", "--width=16"))
    block = critic.layers[2]  # 32 -> 64 channels
    variances = {
        generator.layers[0]: 2 / (128 + 128 * 16),
        critic.layers[0]: 2 / ((3 + 16) * 9),
        block.layers[-2]: 4 / ((32 + 64) * 9),  # after ReLU
        block.shortcut[1]: 2 / (32 + 64),
    }
    for layer, variance in variances.items():
        assert layer.weight.std().item() == pytest.approx(variance**0.5, rel=0.1)
        assert not layer.bias.any()


# ---------------------------------------------------------------------------------------- penalty


def linear_critic():
    critic = nn.Sequential(nn.Flatten(), nn.Linear(12, 1), nn.Flatten(0))
    return critic, critic[1].weight


def test_penalty_of_a_linear_critic():
    """critic(x) = w.x has the gradient w, so the penalty is (|w| - 1)^2, and its gradient
    2 (|w| - 1) w / |w|."""
    critic, w = linear_critic()
    penalty, norm = gradient_penalty(critic, *torch.randn(2, 5, 3, 2, 2))
    length = w.detach().norm()
    torch.testing.assert_close(norm, length)
    torch.testing.assert_close(penalty, (length - 1) ** 2)
    penalty.backward()
    torch.testing.assert_close(w.grad, 2 * (length - 1) * w.detach() / length)


def test_penalty_of_a_quadratic_critic():
    """critic(x) = x.Ax / 2 with A = A' has the gradient Ax. real = fake fixes the points."""
    torch.manual_seed(0)
    a = torch.randn(12, 12)
    a = nn.Parameter(a + a.T)
    x = torch.randn(5, 3, 2, 2)
    flat = x.flatten(1)

    def critic(images):
        v = images.flatten(1)
        return 0.5 * (v @ a * v).sum(1)

    penalty, norm = gradient_penalty(critic, x, x)
    penalty.backward()
    slopes = flat @ a.detach()
    lengths = slopes.norm(dim=1, keepdim=True)
    torch.testing.assert_close(norm, lengths.mean())
    torch.testing.assert_close(penalty, (lengths - 1).square().mean())
    outer = torch.einsum("ni,nj->ij", 2 * (lengths - 1) / lengths * slopes, flat) / len(x)
    torch.testing.assert_close(a.grad, (outer + outer.T) / 2, rtol=1e-4, atol=1e-4)


def test_points_lie_between_real_and_fake_with_one_epsilon_an_image():
    points = []

    def critic(x):
        points.append(x.detach())
        return x.sum((1, 2, 3))

    real, fake = torch.randn(2, 50, 3, 4, 4)
    gradient_penalty(critic, real, fake)
    epsilon = ((points[0] - fake) / (real - fake)).flatten(1)
    middle = epsilon.median(dim=1).values
    torch.testing.assert_close(epsilon, middle[:, None].expand_as(epsilon), atol=1e-3, rtol=0)
    assert 0 <= middle.min() < 0.2 < 0.8 < middle.max() <= 1
    assert len(middle.unique()) == 50


@pytest.mark.parametrize("norm", ["none", "layer"])
@pytest.mark.parametrize("arch", ["dcgan", "resnet"])
def test_double_backward_against_finite_differences(arch, norm):
    args = flags("--size=16", "--width=2", f"--arch={arch}", f"--critic-norm={norm}")
    _, critic = make_networks(args, channels=1)
    critic.double()
    x = torch.randn(3, 1, 16, 16, dtype=torch.float64)
    gradient_penalty(critic, x, x)[0].backward()
    # a bias before the score moves no slope
    parameters = [p for p in critic.parameters() if p.grad is not None]
    assert len(parameters) >= 3
    for parameter in parameters:
        index = parameter.grad.abs().argmax()
        values = parameter.data.view(-1)
        penalties = []
        for h in (1e-6, -2e-6):
            values[index] += h
            penalties.append(gradient_penalty(critic, x, x)[0].item())
        values[index] += 1e-6
        numeric = (penalties[0] - penalties[1]) / 2e-6
        exact = parameter.grad.view(-1)[index].item()
        assert exact == pytest.approx(numeric, rel=1e-4, abs=1e-7)


def test_the_gradient_of_the_norm_at_zero_is_finite():
    critic, w = linear_critic()
    nn.init.zeros_(w)
    penalty, norm = gradient_penalty(critic, *torch.randn(2, 5, 3, 2, 2))
    penalty.backward()
    assert penalty.item() == pytest.approx(1, abs=1e-5)
    assert norm < 1e-5
    assert w.grad.isfinite().all()


def test_leaky_relu_is_that_of_torch_in_values_and_both_gradients():
    x = torch.randn(4, 7, dtype=torch.float64)
    weight = torch.randn(7, 7, dtype=torch.float64)
    results = []
    for layer in (LeakyReLU(0.2), nn.LeakyReLU(0.2)):
        point = x.clone().requires_grad_()
        w = weight.clone().requires_grad_()
        y = layer(layer(point @ w) @ w)
        (gradient,) = torch.autograd.grad(y.sum(), point, create_graph=True)
        gradient.square().sum().backward()
        results.append((y.detach(), gradient.detach(), w.grad))
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("norm", ["none", "layer"])
def test_bf16_gradients_are_those_of_fp32_to_its_precision(norm):
    gradients = []
    for enabled in (False, True):
        _, critic = make_networks(flags("--size=16", "--width=8", f"--critic-norm={norm}"))
        real, fake = torch.rand(2, 16, 3, 16, 16) * 2 - 1
        autocast = functools.partial(torch.autocast, "cpu", torch.bfloat16, enabled=enabled)
        penalty, _ = wgan_gp.gradient_penalty(critic, real, fake, autocast)
        assert penalty.dtype == torch.float32
        penalty.backward()
        grads = [p.grad.flatten() for p in critic.parameters() if p.grad is not None]
        gradients.append(torch.cat(grads))
    assert (gradients[0] - gradients[1]).norm() / gradients[0].norm() < 0.05


# --------------------------------------------------------------------------------------- training


def noisy(images, sigma):
    return images + sigma * torch.randn_like(images) if sigma else images


def textbook(args, steps):
    """Algorithm 1 of the paper as it stands: three passes of the critic, nothing left out.

    Returns the networks, Adam's state of each of their parameters, and the last losses.
    """
    data = datasets.load("x.npz", args.size)
    images = datasets.from_uint8(data.images)
    mean, std = 0, 1
    if args.normalize == "channel":
        mean = images.mean((0, 2, 3), keepdim=True)
        std = images.std((0, 2, 3), correction=0, keepdim=True)
    batches = datasets.Batches(data, args.batch)
    with pytest.MonkeyPatch.context() as patch:  # torch's own layer in place of ours
        patch.setattr(wgan_gp, "LeakyReLU", nn.LeakyReLU)
        generator, critic = make_networks(args)
    for network in (generator, critic):  # noise is drawn in the order of the memory
        network.to(memory_format=torch.channels_last)
    ema = copy.deepcopy(generator)
    opt_g = torch.optim.Adam(generator.parameters(), betas=(0.0, 0.9), foreach=False)
    opt_c = torch.optim.Adam(critic.parameters(), betas=(0.0, 0.9), foreach=False)
    for step in range(steps):
        opt_g.param_groups[0]["lr"] = (args.lr_g or args.lr) * args.lr_decay**step
        opt_c.param_groups[0]["lr"] = (args.lr_d or args.lr) * args.lr_decay**step
        sigma = max(0, args.noise * (args.noise_steps - step) / args.noise_steps)
        stage, alpha = growth = growth_at(step, args)
        side = args.size // 2 ** (args.stages - 1 - stage)
        for _ in range(args.critic_steps):
            real = F.interpolate((next(batches)[0] - mean) / std, (side, side), mode="area")
            if alpha:
                coarse = F.interpolate(real, (side // 2, side // 2), mode="area")
                real = (1 - alpha) * F.interpolate(coarse, (side, side)) + alpha * real
            fake = generator(torch.randn(args.batch, args.latent_dim), *growth).detach()
            real = noisy(real, sigma)
            fake = noisy(fake, sigma)
            loss = critic(fake, *growth).mean() - critic(real, *growth).mean()
            epsilon = torch.rand(args.batch, 1, 1, 1)
            points = (epsilon * real + (1 - epsilon) * fake).requires_grad_()
            total = critic(points, *growth).sum()
            (slopes,) = torch.autograd.grad(total, points, create_graph=True)
            lengths = slopes.flatten(1).norm(dim=1)
            penalty = ((lengths - 1) ** 2).mean()
            opt_c.zero_grad()
            (loss + args.penalty_weight * penalty).backward()
            opt_c.step()
        fake = generator(torch.randn(args.batch, args.latent_dim), *growth)
        loss_g = -critic(noisy(fake, sigma), *growth).mean()
        opt_g.zero_grad()
        loss_g.backward()
        opt_g.step()
        decay = min(args.ema, (1 + step) / (10 + step))
        for ours, theirs in zip(ema.parameters(), generator.parameters(), strict=True):
            ours.data = decay * ours.data + (1 - decay) * theirs.data
    losses = {"loss_critic": loss + args.penalty_weight * penalty, "loss_g": loss_g}
    losses |= {"wasserstein": -loss, "penalty": penalty, "gradient_norm": lengths.mean()}
    models = {"generator": generator, "critic": critic, "ema": ema}
    return models, opt_g.state | opt_c.state, losses


@pytest.mark.parametrize(
    "words",
    [
        "--critic-steps 2 --noise 0.1 --noise-steps 3 --lr-g 2e-4 --ema 0.5",
        "--arch resnet --noise 0.1 --lr-d 2e-4 --normalize channel --penalty-weight 5",
        "--stages 2 --stage-steps 2 --lr-decay 0.8 --ema 0.5",  # without a fade
        "--stages 3 --stage-steps 2 --fade-steps 2 --ema 0.5 --noise 0.1 --normalize channel",
    ],
)
def test_training_is_algorithm_1(train, words):
    words = ["--size=32", "--steps=5", "--log-every=1", *words.split()]
    checkpoint = train(*words)
    args = flags("--width=2", "--batch=8", "--latent-dim=8", *words)
    models, moments, losses = textbook(args, steps=5)
    with open("r/log.csv", newline="") as file:
        *_, row = csv.DictReader(file)
    for name, loss in losses.items():
        assert float(row[name]) == pytest.approx(loss.item(), rel=1e-3, abs=1e-4)
    for name, state in checkpoint["models"].items():
        for key, parameter in models[name].named_parameters():
            # Adam divides by the size of a gradient. Where that is 0 but for rounding, as for a
            # bias before BatchNorm, rounding decides the sign of a whole step.
            if parameter not in moments or moments[parameter]["exp_avg_sq"].max() > 1e-10:
                assert ((state[key] - parameter).abs() > 1e-5).float().mean() < 0.01, key


# ----------------------------------------------------------------------------------------- growth


def test_growth_at():
    args = argparse.Namespace(stages=3, stage_steps=8, fade_steps=None)  # half of a stage
    growth = [growth_at(step, args) for step in (7, 8, 10, 11)]
    assert growth == [(0, None), (1, 0.25), (1, 0.75), (1, None)]
    args = argparse.Namespace(stages=3, stage_steps=10, fade_steps=4)
    growth = [growth_at(step, args) for step in (0, 9, 10, 11, 13, 19, 20, 23, 1000)]
    assert [stage for stage, _ in growth] == [0, 0, 1, 1, 1, 1, 2, 2, 2]
    assert [alpha for _, alpha in growth] == [None, None, 0.25, 0.5, None, None, 0.25, None, None]


def test_a_new_stage_begins_where_the_old_one_ended():
    """At alpha 0 the image is the old one enlarged, and the critic sees it at half the size. After
    the fade the old layers rest."""
    torch.manual_seed(0)
    generator = Generator(32, 3, 8, 2, 3, True).eval()
    critic = Critic(32, 3, 2, 3, "none")
    z = torch.randn(4, 8)
    for stage in (1, 2):
        small = generator(z, stage - 1)
        assert small.shape[-1] == 4 * 2**stage
        large = small.repeat_interleave(2, 2).repeat_interleave(2, 3)
        torch.testing.assert_close(generator(z, stage, 0.0), large)
        x = torch.rand_like(large)
        halved = F.interpolate(x, scale_factor=0.5, mode="area")
        torch.testing.assert_close(critic(x, stage, 0.0), critic(halved, stage - 1))
        old = [generator.to_image[stage - 1].weight, critic.from_image[stage - 1][0].weight]
        for alpha in (0.5, None):
            critic(generator(z, stage, alpha), stage, alpha).sum().backward()
            assert all((p.grad is not None) == (alpha is not None) for p in old)
            generator.zero_grad()
            critic.zero_grad()


def test_the_last_stage_is_the_network_without_growth():
    torch.manual_seed(0)
    generators = [Generator(32, 3, 8, 2, stages, True).eval() for stages in (3, 1)]
    critics = [Critic(32, 3, 2, stages, "none") for stages in (3, 1)]
    z = torch.randn(4, 8)
    images = torch.randn(4, 3, 32, 32)
    for (grown, plain), x in ((generators, z), (critics, images)):
        state = {k.replace("_image.2", "_image.0"): v for k, v in grown.state_dict().items()}
        plain.load_state_dict(state, strict=False)
        torch.testing.assert_close(grown(x, 2, 1.0), plain(x))


GROWING = "--size 32 --stages 3 --stage-steps 4 --fade-steps 2 --ema 0.9 --noise 0.1"
GROWING = [*GROWING.split(), "--noise-steps=9"]
RESUME = "--resume=r"


def test_every_stage_has_its_size_and_its_best(train, monkeypatch, capsys):
    """Pictures, checkpoints and metrics in each stage. The FID of one stage does not count in the
    next."""
    sizes = []
    fids = iter([2.0, 1.0, 5.0, 6.0, 6.0, 7.0])

    def curve(real, fake, **_):
        sizes.append((real.shape[-1], fake.shape[-1]))
        return {"fid_768": next(fids)}

    monkeypatch.setattr(metrics, "usable_dims", lambda *_: (None, []))
    monkeypatch.setattr(metrics, "curve", curve)
    checkpoint = train(*GROWING, "--steps=4", "--eval-every=2", "--eval-images=6")
    best = []
    for steps, size in {4: 8, 5: 16, 8: 16, 10: 32}.items():  # a fade in step 5
        if steps > 4:
            checkpoint = train(f"--steps={steps}", start=RESUME)
        model = wgan_gp.load_model(checkpoint)
        assert wgan_gp.walk(model, "linear", 2, 5).shape == (10, 3, size, size)
        image = wgan_gp.generate(model, 1, seed=1)[0].permute(1, 2, 0).numpy()
        with Image.open(f"r/samples/{steps:06d}.png") as picture:  # enlarged to the full size
            assert picture.size == (8 * 34 - 2, 8 * 34 - 2)
            enlarged = image.repeat(32 // size, 0).repeat(32 // size, 1)
            assert np.array_equal(np.asarray(picture)[:32, :32], enlarged)
        best.append(read_checkpoint("r/best.pt")["step"])
    # the real ones are averaged down by metrics.py
    assert sizes == [(32, 8)] * 2 + [(32, 16)] * 3 + [(32, 32)]
    assert best == [4, 5, 5, 10]
    output = capsys.readouterr().out
    assert "step 4: the images grow to 16" in output
    assert output.count("this run ends before its last stage") == 3


def test_resume_is_exact_wherever_the_network_grows(train, here):
    """In one go, and in pieces that end within a stage, at its end, and within a fade."""
    train(*GROWING, "--steps=2")
    for steps in (4, 5, 8, 11):
        ours = train(f"--steps={steps}", start=RESUME)
    (here / "r").rename("pieces")
    theirs = train(*GROWING, "--steps=11")
    assert ours["drawn"] == theirs["drawn"]
    assert torch.equal(ours["rng"]["cpu"], theirs["rng"]["cpu"])
    for part in ("models", "optimizers"):
        torch.testing.assert_close(ours[part], theirs[part], rtol=0, atol=0)


def test_a_model_in_a_fade_makes_the_images_that_were_drawn(train):
    """In step 5 of GROWING the second stage is half blended in."""
    checkpoint = train(*GROWING, "--steps=5")
    model = wgan_gp.load_model(checkpoint)
    assert (model.stage, model.alpha) == (1, 0.5)
    z = training.latents(1, 8, seed=1)
    image = datasets.to_uint8(model(z, 1, 0.5).detach())
    assert torch.equal(wgan_gp.generate(model, 1, seed=1), image)
    assert not torch.equal(image, datasets.to_uint8(model(z, 1).detach()))


# ---------------------------------------------------------------------------- flags, data, presets


@pytest.mark.parametrize(
    "words, problem",
    [
        ("--arch resnet --stages 2", "does not grow"),
        ("--arch resnet --upsample nearest", "leave out --upsample"),
        ("--stage-steps 10", "--stage-steps does nothing without --stages"),
        ("--size 16 --stages 3", "below 8x8"),
        ("--stages 2 --stage-steps 10 --fade-steps 11", "longer than a stage"),
        ("--penalty-weight -1", "is not a number of at least 0"),
        ("--critic-steps 0", "is not a whole number of at least 1"),
        ("--normalize batch", "invalid choice"),
        ("--critic-norm batch", "invalid choice"),
    ],
)
def test_bad_input(here, capsys, words, problem):
    with pytest.raises(SystemExit) as stop:
        run_program(lambda: wgan_gp.main(["--batch=8", "--steps=1", *words.split()]))
    (line,) = capsys.readouterr().err.splitlines()
    assert stop.value.code == 2
    assert problem in line
    assert not (here / "runs").exists()


def test_normalize_channel(train):
    """The critic sees each channel of the training set with mean 0 and deviation 1, and images go
    back."""
    mean, std = train("--size=32", "--steps=1", "--normalize=channel")["scale"]
    data = datasets.load("x.npz", 32)
    seen = (datasets.from_uint8(data.images) - mean) / std
    assert seen.mean((0, 2, 3)).abs().max() < 1e-4
    assert (seen.std((0, 2, 3), correction=0) - 1).abs().max() < 1e-4

    known = nn.Identity()  # a generator whose outputs are known
    known.forward = lambda z, stage, alpha: seen[: len(z)]
    known.scale = torch.stack([mean, std])
    known.stage = known.alpha = None
    assert torch.equal(wgan_gp.to_images(known, torch.zeros(40, 1)), data.images[:40])


def test_a_constant_channel_does_not_divide_by_zero():
    scale = wgan_gp.normalization(torch.zeros(4, 3, 8, 8, dtype=torch.uint8), "channel")
    assert torch.equal(scale[:, 0, 0, 0], torch.tensor([-1.0, 2 / 255]))


def test_presets_are_the_reports():
    """R3's table, and the values that are the paper's."""
    table = {  # z, f, critic steps, normalization, stages, noise
        "large-gan": (256, 256, 1, "channel", 1, 0.1),
        "small-gan": (100, 64, 1, "tanh", 1, 0.1),
        "no-noise-gan": (100, 64, 1, "tanh", 1, 0.0),
        "multistep-critic": (100, 64, 3, "tanh", 1, 0.1),
        "fade-in-gan": (100, 64, 1, "tanh", 3, 0.02),
        "paper": (128, 64, 5, "tanh", 1, 0.0),
    }
    assert {*table, "shapes", "best"} == set(wgan_gp.PRESETS)
    names = ("latent_dim", "width", "critic_steps", "normalize", "stages", "noise")
    for name, wanted in table.items():
        args = flags(f"--preset={name}")
        assert tuple(getattr(args, flag) for flag in names) == wanted
        assert (args.lr, args.batch, args.penalty_weight, args.size) == (1e-4, 64, 10, 64)
        networks = ("resnet", "layer") if name == "paper" else ("dcgan", "none")
        assert (args.arch, args.critic_norm) == networks
    best, small = flags("--preset=best"), flags("--preset=small-gan")
    assert [getattr(best, flag) for flag in names[:5]] == [getattr(small, f) for f in names[:5]]


@pytest.mark.parametrize("preset", [name for name in wgan_gp.PRESETS if name != "shapes"])
def test_presets_train_on_data_of_your_own(train, preset):
    """Two steps at a small width, at 64 pixels."""
    words = [f"--preset={preset}", "--steps=2", "--width=4", "--batch=4", "--eval-images=0"]
    if preset == "fade-in-gan":
        words += ["--stage-steps=1"]
    assert train(*words)["step"] == 2
