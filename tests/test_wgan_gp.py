"""wgan_gp.py: the penalty against closed forms, the step against algorithm 1 written plainly, growth, scale."""

import argparse
import copy
import itertools
import os

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn

import datasets
import metrics
import report
import wgan_gp
from wgan_gp import Critic, Generator, LeakyReLU, build, gradient_penalty, growth_at


def flags(*given):
    return wgan_gp.parse_args(["--data=x", *given])


def count(network):
    return sum(p.numel() for p in network.parameters())


def test_the_networks_have_the_sizes_that_the_report_states():
    for preset, generator_size, critic_size in (("large-gan", 52.44e6, 44.09e6), ("small-gan", 3.57e6, 2.76e6)):
        generator, critic = build(flags(f"--preset={preset}"), 3)
        assert count(generator) == pytest.approx(generator_size, rel=0.003)
        assert count(critic) == pytest.approx(critic_size, rel=0.003)


def test_the_residual_networks_count_as_the_authors_do():
    f, k = 64, 9

    def residual(a, b, middle, norm):  # the first convolution has no bias there
        return k * a * middle + k * middle * b + b + a * b + b + norm * 2 * (a + middle)

    generator, critic = build(flags("--preset=paper"), 3)
    ups, downs = [8 * f, 8 * f, 4 * f, 2 * f, f], [f, 2 * f, 4 * f, 8 * f, 8 * f]
    want = 129 * 16 * ups[0] + sum(residual(a, b, b, 1) for a, b in itertools.pairwise(ups)) + 2 * f + k * f * 3 + 3
    assert count(generator) == want
    want = k * 3 * f + f + sum(residual(a, b, a, 1) for a, b in itertools.pairwise(downs)) + 16 * downs[-1] + 1
    assert count(critic) == want


@pytest.mark.parametrize("size", [16, 32, 128])
@pytest.mark.parametrize("arch", ["dcgan", "resnet"])
def test_any_size_and_colour(size, arch):
    for colours in 1, 3:
        generator, critic = build(flags(f"--size={size}", "--width=2", f"--arch={arch}"), colours)
        pictures = generator(torch.randn(3, 100))
        assert pictures.shape == (3, colours, size, size) and pictures.abs().max() <= 1
        assert critic(pictures).shape == (3,)


@pytest.mark.parametrize("arch", ["dcgan", "resnet"])
@pytest.mark.parametrize("norm", ["none", "layer"])
def test_the_critic_scores_each_picture_by_itself(arch, norm):
    """No BatchNorm can get into it, and none of its layers mixes the pictures of a batch."""
    with pytest.raises(SystemExit):
        flags("--critic-norm=batch")
    torch.manual_seed(0)
    _, critic = build(flags("--size=16", "--width=4", f"--arch={arch}", f"--critic-norm={norm}"), 3)
    assert not any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in critic.modules())
    x = torch.randn(6, 3, 16, 16)
    torch.testing.assert_close(critic(x), torch.cat([critic(part) for part in x.split(1)]))


def test_layer_norm_is_over_all_values_of_an_image():
    x = torch.randn(4, 6, 5, 5)
    torch.testing.assert_close(wgan_gp.layer_norm("layer", 6)[0](x), F.layer_norm(x, x.shape[1:]))


# ------------------------------------------------------------------------------------------------------ penalty


def test_penalty_of_a_linear_critic():
    """critic(x) = w.x: the gradient is w everywhere, the penalty (|w| - 1)^2, its gradient 2 (|w| - 1) w / |w|."""
    critic = nn.Sequential(nn.Flatten(), nn.Linear(12, 1), nn.Flatten(0))
    w = critic[1].weight
    penalty, norm = gradient_penalty(critic, torch.randn(5, 3, 2, 2), torch.randn(5, 3, 2, 2))
    length = w.detach().norm()
    torch.testing.assert_close(norm, length)
    torch.testing.assert_close(penalty, (length - 1) ** 2)
    penalty.backward()
    torch.testing.assert_close(w.grad, 2 * (length - 1) * w.detach() / length)


def test_penalty_of_a_quadratic_critic():
    """critic(x) = x.Ax / 2 with A = A': the gradient at x is Ax. real = fake fixes the points."""
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


def test_penalty_against_one_picture_at_a_time():
    """The norm is over all values of an image: a loop with a backward pass for each image finds the same."""
    torch.manual_seed(0)
    critic, x = Critic(16, 3, 4, 1, "layer"), torch.randn(5, 3, 16, 16)
    penalty, norm = gradient_penalty(critic, x, x)
    norms = []
    for image in x:
        point = image[None].clone().requires_grad_()
        critic(point).backward()
        norms.append(point.grad.flatten().norm())
    norms = torch.stack(norms)
    torch.testing.assert_close(norm, norms.mean())
    torch.testing.assert_close(penalty, (norms - 1).square().mean())


def test_points_lie_between_real_and_fake_with_one_epsilon_an_image():
    seen = []

    def critic(x):
        seen.append(x.detach())
        return x.sum((1, 2, 3))

    real, fake = torch.randn(50, 3, 4, 4), torch.randn(50, 3, 4, 4)
    gradient_penalty(critic, real, fake)
    epsilon = ((seen[0] - fake) / (real - fake)).flatten(1)
    middle = epsilon.median(dim=1).values
    torch.testing.assert_close(epsilon, middle[:, None].expand_as(epsilon), atol=1e-3, rtol=0)
    assert 0 <= middle.min() < 0.2 and 0.8 < middle.max() <= 1 and len(middle.unique()) == 50


@pytest.mark.parametrize("norm", ["none", "layer"])
@pytest.mark.parametrize("arch", ["dcgan", "resnet"])
def test_double_backward_against_finite_differences(arch, norm):
    torch.manual_seed(0)
    _, critic = build(flags("--size=16", "--width=2", f"--arch={arch}", f"--critic-norm={norm}"), 1)
    critic.double()
    x = torch.randn(3, 1, 16, 16, dtype=torch.float64)

    def penalty():
        return gradient_penalty(critic, x, x)[0]

    critic.zero_grad()
    penalty().backward()
    checked = 0
    for parameter in critic.parameters():
        if parameter.grad is None:  # a bias before the score moves no slope
            continue
        with torch.no_grad():
            index = parameter.grad.abs().argmax().item()
            value = parameter.flatten()[index].item()
            sides = []
            for h in 1e-6, -1e-6:
                parameter.view(-1)[index] = value + h
                with torch.enable_grad():
                    sides.append(penalty().item())
            parameter.view(-1)[index] = value
        numeric = (sides[0] - sides[1]) / 2e-6
        assert parameter.grad.flatten()[index].item() == pytest.approx(numeric, rel=1e-4, abs=1e-7)
        checked += 1
    assert checked >= 3


def test_the_gradient_of_the_norm_at_zero_is_finite():
    critic = nn.Sequential(nn.Flatten(), nn.Linear(12, 1), nn.Flatten(0))
    nn.init.zeros_(critic[1].weight)
    penalty, norm = gradient_penalty(critic, torch.randn(5, 3, 2, 2), torch.randn(5, 3, 2, 2))
    penalty.backward()
    assert penalty.item() == pytest.approx(1, abs=1e-5) and norm < 1e-5 and critic[1].weight.grad.isfinite().all()


def test_leaky_relu_is_that_of_torch_in_values_and_both_gradients():
    x = torch.randn(4, 7, dtype=torch.float64)
    weight = torch.randn(7, 7, dtype=torch.float64)
    results = []
    for layer in LeakyReLU(0.2), nn.LeakyReLU(0.2):
        point, w = x.clone().requires_grad_(), weight.clone().requires_grad_()
        y = layer(layer(point @ w) @ w)
        (gradient,) = torch.autograd.grad(y.sum(), point, create_graph=True)
        gradient.square().sum().backward()
        results.append((y.detach(), gradient.detach(), w.grad))
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs)


# --------------------------------------------------------------------------------------------------------- step


def plain_step(step, args, batches, generator, critic, opt_g, opt_c, average, scale):
    """Algorithm 1 of the paper as it stands, with three passes of the critic and nothing left out."""
    sigma = max(0, args.noise * (1 - step / args.noise_steps))
    stage, alpha = growth = growth_at(step, args)
    for group in opt_g.param_groups:
        group["lr"] = args.lr_g or args.lr
    for group in opt_c.param_groups:
        group["lr"] = args.lr_d or args.lr

    def draw_fake():
        return generator(torch.randn(args.batch, args.latent_dim), *growth)

    def score(x):
        return critic(x, *growth)

    for _ in range(args.critic_steps):
        real = (next(batches)[0] - scale[0]) / scale[1]
        side = args.size // 2 ** (args.stages - 1 - stage)
        real = F.interpolate(real, (side, side), mode="area")
        coarse = F.interpolate(F.interpolate(real, (side // 2, side // 2), mode="area"), (side, side))
        real = (1 - alpha) * coarse + alpha * real if alpha else real
        fake = draw_fake().detach()
        if sigma:
            real = real + sigma * torch.randn_like(real)
            fake = fake + sigma * torch.randn_like(fake)
        loss = -(score(real).mean() - score(fake).mean())
        epsilon = torch.rand(args.batch, 1, 1, 1)
        points = (epsilon * real + (1 - epsilon) * fake).requires_grad_()
        slopes = torch.autograd.grad(score(points), points, torch.ones(args.batch), create_graph=True)[0]
        penalty = ((slopes.flatten(1).norm(dim=1) - 1) ** 2).mean()
        opt_c.zero_grad()
        (loss + args.penalty_weight * penalty).backward()
        opt_c.step()
    fake = draw_fake()
    loss_g = -score(fake + sigma * torch.randn_like(fake) if sigma else fake).mean()
    opt_g.zero_grad()
    loss_g.backward()
    opt_g.step()
    if average is not None:
        for ours, theirs in zip(average.parameters(), generator.parameters(), strict=True):
            ours.data = args.ema * ours.data + (1 - args.ema) * theirs.data
    return (loss + args.penalty_weight * penalty).item(), loss_g.item()


def parts(args, fused=True):
    """Batches, networks and optimisers of a small run, always the same."""
    images = datasets.load("shapes", args.size)
    images = images._replace(images=images.images[:64], labels=None)
    torch.manual_seed(0)
    # channels_last in both: the noise is drawn in the order of the memory
    networks = [network.to(memory_format=torch.channels_last) for network in build(args, 3)]
    optimisers = [torch.optim.Adam(n.parameters(), args.lr, betas=(0.0, 0.9), fused=fused) for n in networks]
    return datasets.Batches(images, args.batch, torch.device("cpu")), *networks, *optimisers


@pytest.mark.parametrize(
    "words",
    [
        "--arch dcgan --critic-steps 2 --noise 0.1 --lr-g 2e-4",
        "--arch resnet --critic-steps 2 --noise 0.1 --noise-steps 1 --lr-d 2e-4",
        "--stages 2 --stage-steps 1 --ema 0.5",  # the second step is the first of the second stage
        "--stages 2 --stage-steps 1 --fade-steps 1 --ema 0.5",
        "--stages 2 --stage-steps 8",  # in the first stage
    ],
)
@pytest.mark.parametrize("start", [0, 9])
def test_train_step_is_algorithm_1(words, start):
    args = flags("--size=16", "--width=4", "--batch=8", "--latent-dim=8", *words.split())
    scale = torch.stack([torch.tensor([0.1, 0.0, -0.2]), torch.tensor([0.5, 0.6, 0.7])])[:, :, None, None]
    ours, plain = parts(args), parts(args, fused=False)
    averages = [copy.deepcopy(side[1]) if args.ema else None for side in (ours, plain)]
    for module in plain[2].modules():  # torch's own layer in place of ours
        for name, child in list(module.named_children()):
            if isinstance(child, LeakyReLU):
                setattr(module, name, nn.LeakyReLU(child.slope))

    def autocast():
        return torch.autocast("cpu", torch.bfloat16, enabled=False)

    torch.manual_seed(1)
    for step in start, start + 1:
        found = wgan_gp.train_step(wgan_gp.schedule(step, args), args, *ours, averages[0], scale, autocast)
        assert found.shape == (len(wgan_gp.LOSSES),) and not found.requires_grad
    torch.manual_seed(1)
    for step in start, start + 1:
        losses = plain_step(step, args, *plain, averages[1], scale)
    assert found[:2].tolist() == pytest.approx(losses, rel=1e-3, abs=1e-4)
    assert found[0].item() == pytest.approx((10 * found[3] - found[2]).item(), rel=1e-4, abs=1e-6)
    for network, other, optimiser in zip(ours[1:3], plain[1:3], plain[3:5], strict=True):
        for (name, a), b in zip(network.named_parameters(), other.parameters(), strict=True):
            # Adam divides by the size of a gradient: where that is 0 but for rounding, as for a bias before BatchNorm,
            # rounding decides the sign of a whole step
            state = optimiser.state.get(b)
            if state is None or state["exp_avg_sq"].max() > 1e-10:
                assert ((a - b).abs() > 1e-5).float().mean() < 0.01, name
    if args.ema:
        for a, b in zip(averages[0].parameters(), averages[1].parameters(), strict=True):
            assert ((a - b).abs() > 1e-5).float().mean() < 0.01


def test_presets_are_the_reports():
    """REPORTS' table, and the values that are the paper's."""
    table = {  # z, f, critic steps, normalisation, stages, noise
        "large-gan": (256, 256, 1, "channel", 1, 0.1),
        "small-gan": (100, 64, 1, "tanh", 1, 0.1),
        "no-noise-gan": (100, 64, 1, "tanh", 1, 0.0),
        "multistep-critic": (100, 64, 3, "tanh", 1, 0.1),
        "fade-in-gan": (100, 64, 1, "tanh", 3, 0.02),
        "paper": (128, 64, 5, "tanh", 1, 0.0),
    }
    assert set(table) | {"shapes"} == set(wgan_gp.PRESETS)
    for name, want in table.items():
        args = flags(f"--preset={name}")
        found = (args.latent_dim, args.width, args.critic_steps, args.normalize, args.stages, args.noise)
        assert found == want and (args.lr, args.batch, args.penalty_weight, args.size) == (1e-4, 64, 10, 64)
        assert (args.arch, args.critic_norm) == (("resnet", "layer") if name == "paper" else ("dcgan", "none"))


@pytest.mark.parametrize("norm", ["none", "layer"])
def test_bf16_gradients_are_those_of_fp32_to_its_precision(norm):
    args = flags("--size=16", "--width=8", "--batch=16", f"--critic-norm={norm}")
    gradients = []
    for enabled in False, True:
        torch.manual_seed(0)
        _, critic = build(args, 3)
        real, fake = torch.rand(2, 16, 3, 16, 16) * 2 - 1
        torch.manual_seed(1)

        def autocast(enabled=enabled):
            return torch.autocast("cpu", torch.bfloat16, enabled=enabled)

        penalty, _ = gradient_penalty(critic, real, fake, (), autocast)
        assert penalty.dtype == torch.float32
        penalty.backward()
        gradients.append(torch.cat([p.grad.flatten() for p in critic.parameters() if p.grad is not None]))
    assert (gradients[0] - gradients[1]).norm() / gradients[0].norm() < 0.05


# ------------------------------------------------------------------------------------------------------- growth


def test_growth_at():
    args = argparse.Namespace(stages=3, stage_steps=8, fade_steps=None)  # half of a stage
    assert [growth_at(step, args) for step in (7, 8, 10, 11)] == [(0, None), (1, 0.25), (1, 0.75), (1, None)]
    args = argparse.Namespace(stages=3, stage_steps=10, fade_steps=4)
    found = [growth_at(step, args) for step in (0, 9, 10, 11, 13, 14, 19, 20, 23, 24, 1000)]
    one, two = (1, None), (2, None)
    assert found == [(0, None), (0, None), (1, 0.25), (1, 0.5), one, one, one, (2, 0.25), two, two, two]
    assert growth_at(10**6, argparse.Namespace(stages=1, stage_steps=10, fade_steps=4)) == (0, None)


def test_a_new_stage_begins_where_the_old_one_ended():
    """At alpha 0 the picture is the old one enlarged and the critic sees what it saw; at 1 the old layers rest."""
    torch.manual_seed(0)
    generator, critic = Generator(32, 3, 8, 2, 3, True).eval(), Critic(32, 3, 2, 3, "none")
    z = torch.randn(4, 8)
    for stage in 1, 2:
        small = generator(z, stage - 1)
        assert small.shape[-1] == 4 * 2**stage
        big = small.repeat_interleave(2, 2).repeat_interleave(2, 3)
        torch.testing.assert_close(generator(z, stage, 0.0), big)
        torch.testing.assert_close(critic(big, stage, 0.0), critic(small, stage - 1))
        half = (generator.to_picture[stage - 1].weight, critic.from_picture[stage - 1][0].weight)
        for alpha, moves in (0.5, True), (None, False):
            critic(generator(z, stage, alpha), stage, alpha).sum().backward()
            assert [p.grad is not None for p in half] == [moves, moves]
            for p in half:
                p.grad = None


def test_the_last_stage_is_the_network_without_growth():
    """Same weights, same pictures and scores, as with --stages 1."""
    torch.manual_seed(0)
    grown, plain = (Generator(32, 3, 8, 2, stages, True).eval() for stages in (3, 1))
    state = {k.replace("to_picture.2", "to_picture.0"): v for k, v in grown.state_dict().items()}
    plain.load_state_dict({k: v for k, v in state.items() if k in plain.state_dict()})
    plain.to_picture[0].load_state_dict(grown.to_picture[2].state_dict())
    z = torch.randn(4, 8)
    torch.testing.assert_close(grown(z, 2, 1.0), plain(z))
    grown, plain = (Critic(32, 3, 2, stages, "none") for stages in (3, 1))
    state = grown.state_dict()
    plain.load_state_dict({k: v for k, v in state.items() if not k.startswith("from_picture")}, strict=False)
    plain.from_picture[0].load_state_dict(grown.from_picture[2].state_dict())
    x = torch.randn(4, 3, 32, 32)
    torch.testing.assert_close(grown(x, 2, 1.0), plain(x))


def test_first_weights():
    torch.manual_seed(0)
    for network in build(flags("--width=16", "--size=64"), 3):
        assert all(p.std().item() == pytest.approx(0.02, rel=0.1) for p in network.parameters() if p.dim() > 1)
    generator, critic = build(flags("--preset=paper", "--width=16"), 3)
    assert generator.layers[0].weight.std().item() == pytest.approx((2 / (128 + 128 * 16)) ** 0.5, rel=0.05)
    assert critic.layers[0].weight.std().item() == pytest.approx((2 / ((3 + 16) * 9)) ** 0.5, rel=0.1)
    block = critic.layers[2]  # 32 -> 64 channels
    for layer, variance in (block.layers[-2], 4 / ((32 + 64) * 9)), (block.shortcut[1], 2 / (32 + 64)):
        assert layer.weight.std().item() == pytest.approx(variance**0.5, rel=0.05) and layer.bias.abs().max() == 0


@pytest.fixture
def growing(here, monkeypatch):
    """A function that trains for so many steps on 60 images of 32x32, in stages of 8, 16 and 32 pixels of 4 steps."""
    images = np.random.default_rng(0).integers(0, 256, (60, 32, 32, 3), dtype=np.uint8)
    np.savez(here / "tiny.npz", images=images)
    monkeypatch.setattr(report, "report", lambda *_, **__: [])
    words = "--data tiny.npz --size 32 --width 2 --batch 8 --device cpu --stages 3 --stage-steps 4 --fade-steps 2 "
    words += "--ema 0.9 --noise 0.1 --noise-steps 9"

    def train(steps, *more):
        start = ["--resume", "r"] if (here / "r").exists() else [*words.split(), "--out", "r"]
        args = wgan_gp.parse_args([*start, "--steps", str(steps), *more])
        datasets.run_program("wgan_gp.py", wgan_gp.main, args)

    return train


def test_every_stage_has_its_side_and_its_metrics(growing, monkeypatch):
    """Pictures, checkpoints and metrics in each stage; the FID of one stage does not stand in the next one's way."""
    sides, scores = [], iter([1.0, 5.0, 6.0, 7.0])
    monkeypatch.setattr(
        metrics, "evaluate", lambda real, fake, **_: sides.append((real.shape[-1], fake.shape[-1])) or []
    )
    monkeypatch.setattr(metrics, "scores", lambda _: {"fid_768": next(scores)})
    best = []
    for steps, side in (4, 8), (6, 16), (8, 16), (10, 32):
        growing(steps, "--eval-every", "4" if steps == 4 else "2", "--eval-images", "6")
        checkpoint = datasets.read_checkpoint("r")
        assert wgan_gp.generate(checkpoint, 3).shape == (3, 3, side, side)
        assert wgan_gp.interpolate(checkpoint, 2, 5).shape == (10, 3, side, side)
        with Image.open(f"r/samples/{steps:06d}.png") as picture:  # enlarged, so that all grids compare
            assert picture.size == (8 * 34 - 2, 8 * 34 - 2)
        best.append(datasets.read_checkpoint("r/best.pt")["step"])
    assert sides == [(32, 8), (32, 16), (32, 16), (32, 32)]  # evaluate averages the real ones down
    assert best == [4, 6, 6, 10]


def test_resume_is_exact_wherever_the_network_grows(growing):
    """In one go, and in pieces that end within a stage, at its end, and within the ramp."""
    for steps in 2, 4, 5, 8, 11:
        growing(steps)
    os.rename("r", "pieces")
    growing(11)
    ours, theirs = datasets.read_checkpoint("pieces"), datasets.read_checkpoint("r")
    assert torch.equal(ours["rng"]["cpu"], theirs["rng"]["cpu"]) and ours["drawn"] == theirs["drawn"]
    for name in "generator", "critic", "ema":
        for key, value in ours["networks"][name].items():
            assert torch.equal(value, theirs["networks"][name][key]), key
    for name in "generator", "critic":
        states = [checkpoint["optimisers"][name]["state"] for checkpoint in (ours, theirs)]
        assert states[0].keys() == states[1].keys()
        for index, state in states[0].items():
            assert all(torch.equal(value, states[1][index][key]) for key, value in state.items())


@pytest.mark.parametrize(
    "words, problem",
    [
        ("--arch resnet --stages 2", "does not grow"),
        ("--stage-steps 10", "--stage-steps does nothing without --stages"),
        ("--size 16 --stages 3", "below 8x8"),
        ("--stages 2 --stage-steps 10 --fade-steps 11", "is longer than a stage"),
        ("--penalty-weight -1", "is not a number of at least 0"),
        ("--critic-steps 0", "is not a whole number of at least 1"),
        ("--normalize batch", "invalid choice"),
    ],
)
def test_bad_input(here, capsys, words, problem):
    with pytest.raises(SystemExit) as stop:
        args = wgan_gp.parse_args(["--data", "shapes", "--batch", "8", "--steps", "1", "--width", "2", *words.split()])
        datasets.run_program("wgan_gp.py", wgan_gp.main, args)
    lines = capsys.readouterr().err.strip().splitlines()
    assert stop.value.code == 2 and len(lines) == 1 and problem in lines[0] and not os.path.exists("runs")


def test_channel_scale(growing):
    """--normalize channel: what the critic sees of the training set has mean 0 and deviation 1; pictures go back."""
    growing(1, "--normalize", "channel")
    scale = datasets.read_checkpoint("r")["scale"]
    data = datasets.load("tiny.npz", 32)
    seen = (datasets.from_uint8(data.images) - scale[0]) / scale[1]
    torch.testing.assert_close(seen.mean((0, 2, 3)), torch.zeros(3), atol=1e-4, rtol=0)
    torch.testing.assert_close(seen.std((0, 2, 3), correction=0), torch.ones(3), atol=1e-4, rtol=0)

    def network(z):  # a generator whose outputs are known
        return seen[: len(z)]

    found = wgan_gp.pictures(network, (), scale, torch.zeros(40, 1))
    assert torch.equal(found, data.images[:40])


@pytest.mark.parametrize("preset", [name for name in wgan_gp.PRESETS if name != "shapes"])
def test_presets_train_on_a_folder_zip_or_npz_in_place_of_the_name(here, monkeypatch, preset):
    """Two steps at a tenth of the width, at 64 pixels."""
    images = np.random.default_rng(0).integers(0, 256, (20, 64, 64, 3), dtype=np.uint8)
    np.savez("food.npz", images=images)
    monkeypatch.setattr(report, "report", lambda *_, **__: [])
    words = f"--preset {preset} --data food.npz --steps 2 --batch 4 --width 4 --eval-images 0 --out r"
    words += " --stage-steps 1" * (preset == "fade-in-gan")
    datasets.run_program("wgan_gp.py", wgan_gp.main, wgan_gp.parse_args(words.split()))
    assert datasets.read_checkpoint("r")["step"] == 2


def test_the_command_of_the_readme_without_the_data(here, monkeypatch, capsys):
    """python wgan_gp.py --data food64 --critic-steps 3, where Food-101 is neither there nor to be had."""

    def refuse(*_, **__):
        raise OSError("no network")

    monkeypatch.setattr("urllib.request.urlopen", refuse)
    args = wgan_gp.parse_args(["--data", "food64", "--critic-steps", "3"])
    assert args.critic_steps == 3
    with pytest.raises(SystemExit) as stop:
        datasets.run_program("wgan_gp.py", wgan_gp.main, args)
    lines = capsys.readouterr().err.strip().splitlines()
    assert stop.value.code == 2 and len(lines) == 1 and "data/downloads" in lines[0] and "food-101.tar.gz" in lines[0]
    assert not os.path.exists("runs")
