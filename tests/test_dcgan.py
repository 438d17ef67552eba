"""dcgan.py: the networks of the report, the losses, and one step against an independent textbook loop."""

import argparse
import contextlib
import copy
import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import datasets
import dcgan
import report
from datasets import Batches, Images


def test_networks_are_the_reports():
    generator, discriminator = dcgan.Generator(64, 3, 100, 64), dcgan.Discriminator(64, 3, 64)
    z, f = 100, 64  # R2: ConvTranspose (z->8f), (8f->4f), (4f->2f), (2f->f), (f->3); Conv mirrored, 4x4, no biases
    weights_g = 16 * (z * 8 * f + 8 * f * 4 * f + 4 * f * 2 * f + 2 * f * f + f * 3)
    weights_d = 16 * (3 * f + f * 2 * f + 2 * f * 4 * f + 4 * f * 8 * f + 8 * f)
    assert sum(p.numel() for p in generator.parameters()) == weights_g + 2 * (8 + 4 + 2 + 1) * f == 3_576_704
    assert sum(p.numel() for p in discriminator.parameters()) == weights_d + 2 * (2 + 4 + 8) * f == 2_765_568
    kinds = [type(layer) for layer in discriminator.layers]
    assert kinds[1] is nn.LeakyReLU and kinds[-1] is nn.Conv2d and kinds.count(nn.BatchNorm2d) == 3
    assert all(layer.negative_slope == 0.2 for layer in discriminator.layers if isinstance(layer, nn.LeakyReLU))


@pytest.mark.parametrize("size", [16, 32, 64, 128, 256])
@pytest.mark.parametrize("colours", [1, 3])
def test_every_size(size, colours):
    images = dcgan.Generator(size, colours, 7, 2)(torch.randn(2, 7))
    assert images.shape == (2, colours, size, size) and images.abs().max() <= 1
    assert dcgan.Discriminator(size, colours, 2)(images).shape == (2,)


def test_the_networks_of_r4():
    from torchvision.models import resnet18

    args = dcgan.parse_args(["--preset=cifar10-resnet"])
    generator, discriminator = dcgan.make_generator(args, 3), dcgan.make_discriminator(args, 3)
    size = sum(p.numel() for p in resnet18().parameters()) - 999 * 513  # one output instead of 1,000
    assert sum(p.numel() for p in discriminator.parameters()) == size
    ups = 16 * (100 * 256 + 256 * 128 + 128 * 64) + 2 * (256 + 128 + 64)
    assert sum(p.numel() for p in generator.parameters()) == ups + (64 * 8 * 8 + 1) * 3 * 32 * 32
    assert sum(isinstance(layer, nn.AvgPool2d) for layer in generator.modules()) == 1
    stated = dict(data="cifar10", batch=64, epochs=50, lr=5e-5, lr_d=2e-5, g_steps=2, arch="resnet18")
    assert {name: getattr(args, name) for name in stated} == stated and args.weight_decay > 0
    for size, colours in ((16, 1), (64, 3)):
        args.size, args.width = size, 2
        images = dcgan.make_generator(args, colours)(torch.randn(2, 100))
        assert images.shape == (2, colours, size, size) and images.abs().max() <= 1
        assert dcgan.make_discriminator(args, colours)(images).shape == (2,)


def test_r4a_trains_stops_and_goes_on(here, monkeypatch):
    monkeypatch.setattr(report, "report", lambda *_, **__: [])
    flags = "--preset=cifar10-resnet --data=shapes --width=4 --batch=8 --eval-images=0 --device=cpu".split()
    dcgan.main(dcgan.parse_args([*flags, "--steps=4", "--out=a"]))
    dcgan.main(dcgan.parse_args([*flags, "--steps=2", "--out=b"]))
    dcgan.main(dcgan.parse_args(["--resume=b", "--steps=4"]))
    a, b = (datasets.read_checkpoint(run) for run in "ab")
    assert all(torch.equal(v, b["networks"][n][k]) for n, state in a["networks"].items() for k, v in state.items())
    assert dcgan.generate(a, 3).shape == (3, 3, 32, 32)


def test_initial_weights():
    torch.manual_seed(0)
    for network in (dcgan.Generator(64, 3, 100, 32), dcgan.Discriminator(64, 3, 32)):
        network.apply(dcgan.init_weights)
        for layer in network.layers:
            if isinstance(layer, nn.BatchNorm2d):
                assert layer.weight.mean().item() == pytest.approx(1, abs=0.02) and not layer.bias.any()
            elif hasattr(layer, "weight"):
                assert layer.weight.std().item() == pytest.approx(0.02, rel=0.1) and abs(layer.weight.mean()) < 0.002


def test_losses_are_the_equations():
    logits = torch.tensor([-3.0, -0.2, 0.0, 1.5], dtype=torch.float64)
    d = 1 / (1 + torch.exp(-logits))
    assert dcgan.loss_real(logits).item() == pytest.approx(-d.log().mean().item(), rel=1e-6)
    assert dcgan.loss_fake(logits).item() == pytest.approx(-(1 - d).log().mean().item(), rel=1e-6)
    extreme = torch.tensor([-1e4, 1e4], requires_grad=True)
    (dcgan.loss_real(extreme) + dcgan.loss_fake(extreme)).backward()
    assert extreme.grad.isfinite().all()


# ------------------------------------------------------------------------------------------------- train step


def setting(memory_format=torch.contiguous_format, dtype=None, **flags):
    """Networks, optimisers and data of one small training, always the same."""
    args = argparse.Namespace(
        batch=8, latent_dim=12, lr=2e-3, lr_g=None, lr_d=None, lr_decay=1.0, g_steps=1, d_steps=1, noise=0.0,
        noise_steps=10, ema=0.0,
    )  # fmt: skip
    vars(args).update(flags)
    torch.manual_seed(0)
    generator = dcgan.Generator(16, 3, 12, 8).apply(dcgan.init_weights).to(memory_format=memory_format)
    discriminator = dcgan.Discriminator(16, 3, 8).apply(dcgan.init_weights).to(memory_format=memory_format)
    images = torch.randint(0, 256, (40, 3, 16, 16), dtype=torch.uint8)
    batches = Batches(Images(images, None, [], "", "", False, ""), 8, seed=1)
    fused = memory_format is torch.channels_last
    optimisers = [
        torch.optim.Adam(n.parameters(), args.lr, betas=(0.5, 0.999), fused=fused, foreach=False)
        for n in (generator, discriminator)
    ]
    average = copy.deepcopy(generator) if args.ema else None
    autocast = (lambda: torch.autocast("cpu", dtype)) if dtype else contextlib.nullcontext
    return args, batches, generator, discriminator, *optimisers, average, autocast


def textbook(args, batches, generator, discriminator, opt_g, opt_d, average, autocast, steps):
    """The algorithm written plainly: probabilities, BCELoss, every gradient accumulated. An independent reference."""
    bce, losses = nn.BCELoss(), []
    for step in range(steps):
        for optimiser in (opt_g, opt_d):
            optimiser.param_groups[0]["lr"] = args.lr * args.lr_decay**step
        sigma = max(args.noise * (args.noise_steps - step) / args.noise_steps, 0)

        def see(images, sigma=sigma):
            images = images + torch.randn_like(images) * sigma if sigma else images
            return torch.sigmoid(discriminator.layers(images)).flatten()

        for _ in range(args.d_steps):
            discriminator.zero_grad()
            real = batches.images[batches.rows(batches.drawn)[0]].float() / 127.5 - 1
            real = real.to(memory_format=torch.channels_last)  # noise is drawn in the order of the memory
            batches.drawn += 1
            real_loss = bce(see(real), torch.ones(args.batch))
            fake = generator.layers(torch.randn(args.batch, args.latent_dim).view(args.batch, -1, 1, 1))
            fake_loss = bce(see(fake.detach()), torch.zeros(args.batch))
            real_loss.backward()
            fake_loss.backward()
            opt_d.step()
        for _ in range(args.g_steps):
            generator.zero_grad()
            fake = generator.layers(torch.randn(args.batch, args.latent_dim).view(args.batch, -1, 1, 1))
            g_loss = bce(see(fake), torch.ones(args.batch))
            g_loss.backward()
            opt_g.step()
        if average is not None:
            with torch.no_grad():
                for ours, theirs in zip(average.parameters(), generator.parameters(), strict=True):
                    ours.copy_(args.ema * ours + (1 - args.ema) * theirs)
                average.layers[1].running_mean.copy_(generator.layers[1].running_mean)
        losses.append([real_loss.item(), fake_loss.item(), g_loss.item()])
    return torch.tensor(losses)


@pytest.mark.parametrize(
    "flags",
    [{}, dict(g_steps=2, d_steps=3), dict(noise=0.3, noise_steps=4), dict(ema=0.8, lr_decay=0.9)],
    ids=["plain", "steps", "noise", "ema and decay"],
)
def test_train_step_is_the_textbook_loop(flags):
    ours, theirs = setting(**flags), setting(**flags)
    torch.manual_seed(5)
    losses = torch.stack([dcgan.train_step(dcgan.schedule(step, ours[0]), *ours) for step in range(6)])
    torch.manual_seed(5)
    torch.testing.assert_close(losses, textbook(*theirs, steps=6), rtol=1e-3, atol=1e-4)
    for network, other in zip((ours[2], ours[3], ours[6]), (theirs[2], theirs[3], theirs[6]), strict=True):
        if network is not None:
            for p, q in zip(network.parameters(), other.parameters(), strict=True):
                torch.testing.assert_close(p, q, rtol=2e-2, atol=2e-4)
    if ours[6] is not None:
        torch.testing.assert_close(ours[6].layers[1].running_mean, ours[2].layers[1].running_mean, rtol=0, atol=0)


def gradients(ours):
    """The gradients of the first step, taken before Adam (which divides by their size) can change anything."""
    for optimiser in ours[4:6]:
        optimiser.step = lambda: None
    torch.manual_seed(5)
    dcgan.train_step(dcgan.schedule(0, ours[0]), *ours)
    return [p.grad for network in ours[2:4] for p in network.parameters()]


def relative(ours, theirs):
    return max(((a - b).norm() / b.norm()).item() for a, b in zip(ours, theirs, strict=True))


def test_channels_last_gives_the_plain_gradients():
    assert relative(gradients(setting(torch.channels_last)), gradients(setting())) < 1e-4


def test_bf16_gives_nearly_the_plain_gradients():
    """bf16 keeps 8 bits: 0.4 % a rounding. Through a dozen layers 5 % of the whole gradient is the tolerance, 20 % of
    each tensor's: BatchNorm's offsets are sums in which most cancels (12 % with AMX)."""
    pairs = gradients(setting(torch.channels_last, torch.bfloat16)), gradients(setting())
    assert all(p.dtype == torch.float32 for p in pairs[0])
    assert relative(*pairs) < 0.2
    assert relative(*([torch.cat([p.flatten() for p in of])] for of in pairs)) < 0.05


def test_twenty_steps_of_the_fast_and_the_plain_path():
    """Fused Adam, channels last against neither. Chaos grows rounding by a factor each step: losses to 1 %."""
    fast, plain = setting(torch.channels_last), setting()
    torch.manual_seed(5)
    a = torch.stack([dcgan.train_step(dcgan.schedule(step, fast[0]), *fast) for step in range(20)])
    torch.manual_seed(5)
    b = torch.stack([dcgan.train_step(dcgan.schedule(step, plain[0]), *plain) for step in range(20)])
    torch.testing.assert_close(a, b, rtol=1e-2, atol=1e-2)


def test_the_generators_update_leaves_the_discriminator_alone():
    ours = setting(g_steps=1)
    dcgan.train_step(dcgan.schedule(0, ours[0]), *ours)
    gradient = [p.grad.clone() for p in ours[3].parameters()]
    again = setting(g_steps=5)
    torch.manual_seed(0)
    fresh = [p.grad for p in again[3].parameters()]
    assert fresh == [None] * len(fresh) and all(g is not None for g in gradient)
    args, batches, generator, discriminator = ours[:4]
    discriminator.zero_grad()
    loss = dcgan.loss_real(discriminator(generator(torch.randn(8, 12))))
    loss.backward(inputs=list(generator.parameters()))
    part = [p.grad.clone() for p in generator.parameters()]
    assert all(p.grad is None for p in discriminator.parameters())
    assert all(g.norm() > 0 for g in part)


# ------------------------------------------------------------------------------------------------ interpolation


def test_slerp():
    a, b = torch.tensor([[3.0, 0.0]]), torch.tensor([[0.0, 3.0]])
    for t in (0.0, 0.25, 0.5, 1.0):  # in the plane the arc is known
        expected = torch.tensor([[3 * math.cos(t * math.pi / 2), 3 * math.sin(t * math.pi / 2)]])
        torch.testing.assert_close(datasets.slerp(a, b, t), expected)
    a, b = F.normalize(torch.randn(2, 5, 100, generator=torch.Generator().manual_seed(0)), dim=2)
    for t in (0.1, 0.5, 0.9):  # of equal length all the way, at an angle that grows evenly
        walk = datasets.slerp(a, b, t)
        torch.testing.assert_close(walk.norm(dim=1), torch.ones(5))
        torch.testing.assert_close(torch.acos((walk * a).sum(1)), t * torch.acos((a * b).sum(1)), rtol=1e-4, atol=1e-4)
    assert datasets.slerp(a, a, 0.5).isfinite().all() and datasets.slerp(a, -a, 0.5).isfinite().all()


# ------------------------------------------------------------------------------------------------------- presets


def test_presets_are_the_reports():
    cats = dcgan.parse_args(["--preset", "cats"])
    assert (cats.lr, cats.batch, cats.epochs, cats.width, cats.latent_dim) == (2e-4, 128, 50, 64, 100)
    long = dcgan.parse_args(["--preset", "cats-100k"])
    assert long.steps == 100_000 and long.lr_decay == 0.9999977
    assert 2e-4 * long.lr_decay**long.steps == pytest.approx(1.589e-4, rel=1e-3)
    noisy = dcgan.parse_args(["--preset", "food-noise"])
    assert noisy.noise > 0 and noisy.noise_steps < noisy.steps


def test_real_cats_train(real, monkeypatch):
    monkeypatch.setattr(report, "report", lambda *_, **__: [])
    data = datasets.load(real("cats64.zip"), 64)
    flags = f"--preset cats --data {real('cats64.zip')} --width 8 --steps 12 --eval-images 0 --log-every 4 --out r"
    dcgan.main(dcgan.parse_args(flags.split()))
    assert datasets.read_checkpoint("r")["steps_per_epoch"] == len(data.images) // 128 == 182
