"""dcgan.py: the report's networks, the losses, and training against a textbook loop."""

import contextlib
import copy
import functools

import numpy as np
import pytest
import torch
from conftest import shifted_plainly
from torch import nn

import datasets
import dcgan
import training
from sources import read_log
from training import read_checkpoint

pytestmark = pytest.mark.usefixtures("no_plots")


def count(network):
    return sum(p.numel() for p in network.parameters())


# --------------------------------------------------------------------------------------- networks


def test_networks_are_the_reports():
    generator = dcgan.Generator(64, 3, 100, 64)
    discriminator = dcgan.Discriminator(64, 3, 64)
    # R2: ConvTranspose z -> 8f -> 4f -> 2f -> f -> 3, and Conv the other way; 4x4, no biases
    z, f = 100, 64
    weights_g = 16 * (z * 8 * f + 8 * f * 4 * f + 4 * f * 2 * f + 2 * f * f + f * 3)
    weights_d = 16 * (3 * f + f * 2 * f + 2 * f * 4 * f + 4 * f * 8 * f + 8 * f)
    assert count(generator) == weights_g + 2 * (8 + 4 + 2 + 1) * f == 3_576_704
    assert count(discriminator) == weights_d + 2 * (2 + 4 + 8) * f == 2_765_568
    kinds = [type(layer) for layer in discriminator.layers]
    assert kinds[1] is nn.LeakyReLU and kinds[-1] is nn.Conv2d and kinds.count(nn.BatchNorm2d) == 3
    slopes = [getattr(layer, "negative_slope", 0.2) for layer in discriminator.layers]
    assert kinds.count(nn.LeakyReLU) == 4 and set(slopes) == {0.2}


@pytest.mark.parametrize("size", training.SIZES)
def test_every_size(size):
    for channels in (1, 3):
        images = dcgan.Generator(size, channels, 7, 2)(torch.randn(2, 7))
        assert images.shape == (2, channels, size, size)
        assert images.abs().max() <= 1
        assert dcgan.Discriminator(size, channels, 2)(images).shape == (2,)


def test_initial_weights():
    torch.manual_seed(0)
    for network in (dcgan.Generator(64, 3, 100, 32), dcgan.Discriminator(64, 3, 32)):
        network.apply(dcgan.init_weights)
        for layer in network.layers:
            if isinstance(layer, nn.BatchNorm2d):
                assert layer.weight.mean().item() == pytest.approx(1, abs=0.02)
                assert layer.weight.std().item() == pytest.approx(0.02, rel=0.4)
                assert not layer.bias.any()
            elif hasattr(layer, "weight"):
                assert layer.weight.std().item() == pytest.approx(0.02, rel=0.1)
                assert abs(layer.weight.mean()) < 0.002


def test_losses_are_the_equations():
    logits = torch.tensor([-3.0, -0.2, 0.0, 1.5], dtype=torch.float64)
    d = 1 / (1 + torch.exp(-logits))
    assert dcgan.loss_real(logits).item() == pytest.approx(-d.log().mean().item(), rel=1e-6)
    assert dcgan.loss_fake(logits).item() == pytest.approx(-(1 - d).log().mean().item(), rel=1e-6)
    extreme = torch.tensor([-1e4, 1e4], requires_grad=True)
    (dcgan.loss_real(extreme) + dcgan.loss_fake(extreme)).backward()
    assert extreme.grad.isfinite().all()


# --------------------------------------------------------------------------------------- training


@pytest.fixture
def train(here):
    """train(*flags): trains on 40 random images of 16x16. Returns args, log, checkpoint."""
    images = np.random.default_rng(0).integers(0, 256, (40, 16, 16, 3), dtype=np.uint8)
    np.savez("x.npz", images=images)
    common = "--data x.npz --size 16 --width 8 --latent-dim 12 --batch 8 --log-every 1 --out r"

    def run(*flags):
        argv = [*common.split(), "--device=cpu", "--precision=fp32", *flags]
        args, _ = dcgan.parse_args(argv)
        dcgan.main(argv)
        return args, read_log(datasets.Path("r/log.csv")), read_checkpoint("r")

    return run


def textbook(args):
    """The algorithm written plainly: probabilities, BCELoss, every gradient accumulated.

    Returns the losses of each step and three networks: generator, discriminator, average.
    """
    data = datasets.load(args.data, args.size)
    batches = datasets.Batches(data, args.batch, seed=args.seed)
    torch.manual_seed(args.seed)
    generator = dcgan.Generator(16, 3, 12, 8).apply(dcgan.init_weights)
    discriminator = dcgan.Discriminator(16, 3, 8).apply(dcgan.init_weights)
    average = copy.deepcopy(generator)
    optimizers = []
    for network in (generator, discriminator):
        optimizers.append(torch.optim.Adam(network.parameters(), betas=(args.beta1, 0.999)))
    opt_g, opt_d = optimizers
    bce = nn.BCELoss()
    ones, zeros = torch.ones(args.batch), torch.zeros(args.batch)
    drawn = 0
    losses = []
    for step in range(args.steps):
        opt_g.param_groups[0]["lr"] = (args.lr_g or args.lr) * args.lr_decay**step
        opt_d.param_groups[0]["lr"] = (args.lr_d or args.lr) * args.lr_decay**step
        sigma = max(args.noise * (args.noise_steps - step) / args.noise_steps, 0)

        def probability(images, sigma=sigma):
            images = images.to(memory_format=torch.channels_last)  # the order of the noise
            if args.shift:
                images = shifted_plainly(images)
            if sigma:
                images = images + torch.randn_like(images) * sigma
            return torch.sigmoid(discriminator.layers(images)).flatten()

        def fake_images():
            return generator.layers(torch.randn(args.batch, args.latent_dim)[:, :, None, None])

        for _ in range(args.d_steps):
            discriminator.zero_grad()
            rows, _ = batches.rows(drawn)
            drawn += 1
            d_real = bce(probability(data.images[rows].float() / 127.5 - 1), ones)
            d_fake = bce(probability(fake_images().detach()), zeros)
            d_real.backward()
            d_fake.backward()
            for p in discriminator.parameters():  # the gradient of an L2 term
                p.grad += args.weight_decay * p.detach()
            opt_d.step()
        for _ in range(args.g_steps):
            generator.zero_grad()
            g_loss = bce(probability(fake_images()), ones)
            g_loss.backward()
            for p in generator.parameters():
                p.grad += args.weight_decay * p.detach()
            opt_g.step()
        decay = min(args.ema, (1 + step) / (10 + step))
        with torch.no_grad():
            for ours, theirs in zip(average.parameters(), generator.parameters(), strict=True):
                ours.copy_(decay * ours + (1 - decay) * theirs)
            for ours, theirs in zip(average.buffers(), generator.buffers(), strict=True):
                ours.copy_(theirs)
        losses.append({"loss_d_real": d_real, "loss_d_fake": d_fake, "loss_g": g_loss})
        if args.noise:
            losses[-1]["noise"] = torch.tensor(sigma)
    return losses, {"generator": generator, "discriminator": discriminator, "ema": average}


@pytest.mark.parametrize(
    "flags",
    [
        "--steps=8",
        "--steps=4 --g-steps=2 --d-steps=3 --seed=3",
        "--steps=6 --noise=0.3 --noise-steps=4 --weight-decay=0.1 --beta1=0.3",
        "--steps=6 --ema=0.8 --lr-decay=0.9 --lr-g=1e-3 --lr-d=3e-3",
        "--steps=5 --shift --d-steps=2 --noise=0.1",
    ],
)
def test_training_is_the_textbook_loop(train, flags):
    """The program, with channels last and the fused optimizer, against the plain algorithm."""
    args, rows, checkpoint = train(*flags.split(), "--lr=2e-3")
    losses, networks = textbook(args)
    for row, wanted in zip(rows, losses, strict=True):
        assert list(row) == ["step", "epoch", "seconds", "img_per_s", *wanted]
        for name, value in wanted.items():
            assert float(row[name]) == pytest.approx(value.item(), rel=1e-3, abs=1e-4)
    assert ("ema" in checkpoint["models"]) == (args.ema > 0)
    for name, state in checkpoint["models"].items():
        for key, value in networks[name].state_dict().items():
            if name == "ema" and ("running" in key or "batches" in key):
                continue  # counted anew: see test_statistics_of_averaged_weights
            torch.testing.assert_close(state[key], value, rtol=2e-2, atol=2e-4)


def gradients(memory_format=torch.contiguous_format, autocast=contextlib.nullcontext):
    """The gradients of one update of each network, before Adam divides by their size."""
    torch.manual_seed(0)
    generator = dcgan.Generator(16, 3, 12, 8).apply(dcgan.init_weights)
    discriminator = dcgan.Discriminator(16, 3, 8).apply(dcgan.init_weights)
    networks = [network.to(memory_format=memory_format) for network in (generator, discriminator)]
    real = (torch.rand(8, 3, 16, 16) * 2 - 1).to(memory_format=memory_format)
    found = []
    for k, step in enumerate((dcgan.generator_step, dcgan.discriminator_step)):
        optimizer = torch.optim.SGD(networks[k].parameters(), lr=0)
        step(*networks, optimizer, autocast, (8, real)[k], None)
        found += [p.grad for p in networks[k].parameters()]
        if k == 0:  # the generator's update computes no gradients of the discriminator
            assert all(p.grad is None for p in networks[1].parameters())
    return found


def distance(ours, theirs):
    return ((ours - theirs).norm() / theirs.norm()).item()


def test_channels_last_gives_the_plain_gradients():
    for ours, theirs in zip(gradients(torch.channels_last), gradients(), strict=True):
        assert distance(ours, theirs) < 1e-4


def test_bf16_gives_nearly_the_plain_gradients():
    """bf16 keeps 8 bits, 0.4 % a rounding. Through a dozen layers the tolerance is 5 % of the whole
    gradient and 20 % of each tensor's: BatchNorm's offsets are sums in which most cancels."""
    bf16 = functools.partial(torch.autocast, "cpu", torch.bfloat16)
    ours, theirs = gradients(torch.channels_last, bf16), gradients()
    assert all(gradient.dtype == torch.float32 for gradient in ours)
    assert 0 < max(distance(a, b) for a, b in zip(ours, theirs, strict=True)) < 0.2
    assert distance(*(torch.cat([g.flatten() for g in side]) for side in (ours, theirs))) < 0.05


def test_rows_of_the_log(train):
    """An epoch is 5 batches of 8, and 2 batches make a step, so 2.5 steps an epoch."""
    _, rows, checkpoint = train("--d-steps=2", "--steps=11", "--log-every=6")
    assert [row["step"] for row in rows] == ["3", "5", "6", "8", "10", "11"]
    assert [float(row["epoch"]) for row in rows] == [1.2, 2, 2.4, 3.2, 4, 4.4]
    assert checkpoint["steps_per_epoch"] == 2.5 and checkpoint["drawn"] == 22
    for before, row in zip(rows, rows[1:], strict=False):
        seconds = float(row["seconds"]) - float(before["seconds"])
        images = 8 * (int(row["step"]) - int(before["step"]))
        assert images / float(row["img_per_s"]) == pytest.approx(seconds, abs=0.002)


def test_the_plan(here, capsys):
    """--d-steps makes an epoch shorter. The networks are those that train."""
    flags = "--data=shapes --size=16 --width=4 --batch=100 --epochs=3 --d-steps=2 --dry-run"
    dcgan.main(flags.split())
    out = capsys.readouterr().out
    assert "plan: 150 steps of 100 images, 50 " in out  # of 10,000
    generator = dcgan.Generator(16, 3, 100, 4, "nearest")
    assert f"Generator: {count(generator):,} parameters" in out
    assert f"Discriminator: {count(dcgan.Discriminator(16, 3, 4)):,} parameters" in out


def test_few_steps_are_said(tiny, capsys):
    """100 images and a batch of 32 give 3 steps an epoch. Whoever types --steps knows."""
    few = "--data=tiny.npz --size=16 --width=4 --latent-dim=4 --batch=32 --eval-images=0"
    line = "note: 6 steps are few; try --steps 3000\n"
    dcgan.main([*few.split(), "--epochs=2"])
    assert line in capsys.readouterr().err
    dcgan.main([*few.split(), "--steps=6"])
    assert "are few" not in capsys.readouterr().err


# ------------------------------------------------------------------------------- a trained model


def test_generate_and_walk():
    generator = dcgan.Generator(16, 3, 5, 4)
    generator(torch.randn(50, 5))  # moves the running statistics
    for images, z in (
        (dcgan.generate(generator, 4, seed=2, first=7), training.latents(4, 5, 2, 7)),
        (dcgan.walk(generator, "linear", 3, 4, seed=2), training.walks(3, 4, 5, "linear", 2)),
    ):
        assert generator.training
        wanted = datasets.to_uint8(copy.deepcopy(generator).eval()(z))
        assert (images.int() - wanted.int()).abs().max() <= 1


# ---------------------------------------------------------------------------------------- presets


def test_presets_are_the_reports():
    cats, _ = dcgan.parse_args(["--preset=cats"])
    stated = (cats.lr, cats.batch, cats.epochs, cats.width, cats.latent_dim)
    assert stated == (2e-4, 128, 50, 64, 100)
    long, _ = dcgan.parse_args(["--preset=cats-100k"])
    assert long.steps == 100_000 and long.lr_decay == 0.9999977
    assert 2e-4 * long.lr_decay**long.steps == pytest.approx(1.589e-4, rel=1e-3)
    noisy, _ = dcgan.parse_args(["--preset=food-noise"])
    assert noisy.noise > 0 and noisy.noise_steps < noisy.steps


@pytest.mark.parametrize(
    "name, switch",
    [(name, "flip") for name in ("dcgan", "cgan", "wgan_gp", "ddpm")]
    + [(name, "shift") for name in ("dcgan", "cgan")],
)
def test_switches_of_best_can_be_turned_off(name, switch):
    """A command that is printed says so."""
    script = training.load_script(name)
    best = script.PRESETS["best"]
    for words, on in ([], True), ([f"--no-{switch}"], False):
        args, _ = script.parse_args(["--preset=best", *words])
        assert getattr(args, switch) is on
        assert training.flag_words(training.changed_flags(args, best)) == words
    assert not getattr(script.parse_args([])[0], switch)


def test_best_says_that_the_number_of_the_report_is_context():
    cats = dcgan.PRESETS["cats"]["report"]
    best = dcgan.PRESETS["best"]["report"]
    assert best["FID"] == cats["FID"] == 132.7 and "context" not in cats["protocol"]
    assert best["protocol"].startswith("only context") and cats["protocol"] in best["protocol"]


def test_real_cats_train(real):
    cats = real("cats64.zip")
    flags = f"--preset cats --data {cats} --width 8 --steps 12 --eval-images 0 --out r"
    dcgan.main(flags.split())
    count = len(datasets.load(cats, 64).images)
    assert read_checkpoint("r")["steps_per_epoch"] == count // 128 == 182
