"""ddpm.py: the forward and backward processes against closed forms, the samplers, guidance, the network."""

import contextlib
import importlib
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import datasets
import ddpm
from datasets import Batches, Images, read_checkpoint
from ddpm import Attention, UNet, alpha_bars, ddim_step, denoise, guess_noise, invert, posterior

both_schedules = pytest.mark.parametrize("kind", ["linear", "cosine"])


def flags(*given):
    tiny = "--size=16 --width=8 --blocks=1 --batch=8 --timesteps=50 --sample-steps=10 --dropout=0 --data=x".split()
    return ddpm.parse_args([*tiny, *given])


def network(args, colours=3, classes=3):
    """With weights that are nowhere 0, so that everything has an effect."""
    torch.manual_seed(0)
    unet = UNet(args, colours, classes).eval()
    for p in unet.parameters():
        torch.nn.init.normal_(p, 0, 0.1)
    return unet


# ------------------------------------------------------------------------------------------------- the processes


def test_the_linear_schedule_is_that_of_the_paper():
    bars, left = alpha_bars("linear", 1000), 1.0
    for t, beta in enumerate(np.linspace(1e-4, 0.02, 1000), 1):
        left *= 1 - beta
        assert bars[t].item() == pytest.approx(left, rel=1e-9)
    assert bars[0] == 1 and 3.9e-5 < bars[1000] < 4.1e-5
    assert alpha_bars("linear", 250)[-1].item() == pytest.approx(bars[-1].item(), rel=0.3)  # the end is the same


def test_the_cosine_schedule_is_that_of_the_paper():
    bars = alpha_bars("cosine", 1000)
    for t in (1, 10, 500, 990):
        wanted = math.cos((t / 1000 + 0.008) / 1.008 * math.pi / 2) ** 2 / math.cos(0.008 / 1.008 * math.pi / 2) ** 2
        assert bars[t].item() == pytest.approx(wanted, rel=1e-6)
    betas = 1 - bars[1:] / bars[:-1]
    assert betas.max() <= 0.999 + 1e-12 and bars[-1] < 1e-6


@both_schedules
def test_many_small_steps_are_the_one_large_step(kind):
    """x_t = sqrt(1 - beta_t) x_(t-1) + sqrt(beta_t) z, step by step: its mean and its variance."""
    args = flags(f"--noise-schedule={kind}", "--timesteps=200")
    bars, unet = alpha_bars(kind, 200), UNet(args, 3, 2)
    scale, variance = 1.0, 0.0
    for t in range(1, 201):
        beta = 1 - (bars[t] / bars[t - 1]).item()
        scale, variance = math.sqrt(1 - beta) * scale, (1 - beta) * variance + beta
        assert unet.signal[t].item() == pytest.approx(scale, rel=1e-5, abs=1e-8)
        assert unet.spread[t].item() == pytest.approx(math.sqrt(variance), rel=1e-5)


@both_schedules
def test_the_posterior_is_bayes_rule(kind):
    """q(x_(t-1) | x_0) times q(x_t | x_(t-1)), two normal densities: precisions add up."""
    bars = alpha_bars(kind, 100)
    x_0, x_t = torch.tensor([0.3, -0.9], dtype=torch.float64), torch.tensor([1.2, 0.1], dtype=torch.float64)
    for t in range(2, 101):
        alpha, before = bars[t] / bars[t - 1], bars[t - 1]
        precision = 1 / (1 - before) + alpha / (1 - alpha)
        mean = (before.sqrt() * x_0 / (1 - before) + alpha.sqrt() * x_t / (1 - alpha)) / precision
        found, variance = posterior(bars, t, x_0, x_t)
        torch.testing.assert_close(found, mean, rtol=1e-9, atol=1e-12)
        assert variance == pytest.approx(1 / precision.item(), rel=1e-9)
    found, variance = posterior(bars, 1, x_0, x_t)
    torch.testing.assert_close(found, x_0)
    assert variance == 0


@both_schedules
def test_ddim_with_eta_1_is_the_ancestral_step(kind):
    bars = alpha_bars(kind, 100)
    x_0, x_t, noise = torch.randn(3, 5, dtype=torch.float64)
    for t in range(1, 101):
        mean, variance = posterior(bars, t, x_0, x_t)
        step = ddim_step(bars, t, t - 1, x_0, x_t, 1.0, noise)
        torch.testing.assert_close(step, mean + math.sqrt(variance) * noise, rtol=1e-7, atol=1e-9)


@both_schedules
@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
def test_a_ddim_step_keeps_the_distribution(kind, eta):
    """From x_t of x_0 to x_s of the same x_0: the right mean, and the right variance from two independent noises."""
    bars, x_0 = alpha_bars(kind, 100), torch.tensor(0.4, dtype=torch.float64)
    zero, one = torch.zeros((), dtype=torch.float64), torch.ones((), dtype=torch.float64)
    for t, s in ((100, 60), (60, 59), (40, 3), (5, 0)):
        mean = ddim_step(bars, t, s, x_0, bars[t].sqrt() * x_0, eta, zero)
        assert mean.item() == pytest.approx((bars[s].sqrt() * x_0).item(), abs=1e-12)
        by_eps = ddim_step(bars, t, s, x_0, bars[t].sqrt() * x_0 + (1 - bars[t]).sqrt(), eta, zero) - mean
        by_noise = ddim_step(bars, t, s, x_0, bars[t].sqrt() * x_0, eta, one) - mean
        assert (by_eps**2 + by_noise**2).item() == pytest.approx((1 - bars[s]).item(), rel=1e-9)
        assert (by_noise == 0) == (eta == 0 or s == 0)


class Ideal(torch.nn.Module):
    """What a perfect network answers for data N(mean, deviation^2): E(eps | x_t), which is linear in x_t."""

    classes = 1

    def __init__(self, args, mean, deviation):
        super().__init__()
        self.bars, self.mean, self.deviation = alpha_bars(args.noise_schedule, args.timesteps), mean, deviation

    def forward(self, x, t, y):
        bar = self.bars[t[0]].item()
        return math.sqrt(1 - bar) * (x - math.sqrt(bar) * self.mean) / (bar * self.deviation**2 + 1 - bar)


@both_schedules
@pytest.mark.parametrize("how", [["--sampler=ancestral"], ["--sample-steps=400"], ["--sample-steps=1000", "--eta=1"]])
def test_the_samplers_draw_from_the_data(kind, how):
    """With a perfect network. The deviation to 4 %: steps of a finite size lose some of it."""
    args = flags(f"--noise-schedule={kind}", "--timesteps=1000", *how)
    x = torch.randn(100, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    *_, x_0 = denoise(Ideal(args, 0.2, 0.15), x, torch.zeros(100).long(), args, range(100))
    assert x_0.mean().item() == pytest.approx(0.2, abs=0.01)
    assert x_0.std().item() == pytest.approx(0.15, rel=0.04)


# --------------------------------------------------------------------------------------------------- the network


@pytest.mark.parametrize("size, colours", [(16, 3), (32, 1), (64, 3)])
def test_shapes_and_what_the_guess_depends_on(size, colours):
    args = flags(f"--size={size}")
    unet = network(args, colours)
    x, t, y = torch.randn(3, colours, size, size), torch.tensor([1, 25, 50]), torch.tensor([0, 1, 3])
    guess = unet(x, t, y)
    assert guess.shape == x.shape
    attends = [isinstance(block[0].attention, Attention) for block in unet.down]
    assert attends == [side <= 16 for side in (size >> k for k in range(len(unet.down)))] and size >> len(attends) == 4
    for changed in ((x, t + 1, y), (x, t, (y + 1) % 4)):
        assert not torch.allclose(unet(*changed), guess, atol=1e-3)
    alone = torch.cat([unet(x[i : i + 1], t[i : i + 1], y[i : i + 1]) for i in range(3)])
    torch.testing.assert_close(alone, guess, rtol=1e-3, atol=1e-4)  # a picture does not depend on the others


def test_at_its_start_the_network_guesses_nothing():
    """So the first loss is E eps^2 = 1."""
    args = flags()
    unet = UNet(args, 3, 3)
    assert (unet(torch.randn(2, 3, 16, 16), torch.tensor([1, 50]), torch.tensor([0, 3])) == 0).all()


def test_attention_is_the_written_out_sum():
    torch.manual_seed(0)
    layer, x = Attention(128), torch.randn(2, 128, 4, 4)
    torch.nn.init.normal_(layer.out.weight, 0, 0.1)
    q, k, v = (F.conv2d(layer.norm(x), w, b).flatten(2) for w, b in
               zip(layer.qkv.weight.chunk(3), layer.qkv.bias.chunk(3), strict=True))  # fmt: skip
    found = torch.zeros_like(v)
    for n in range(2):
        for head in (slice(0, 64), slice(64, 128)):
            for i in range(16):
                weights = torch.softmax((q[n, head, i] @ k[n, head]) / 8, dim=0)
                found[n, head, i] = v[n, head] @ weights
    wanted = x + F.conv2d(found.view(x.shape), layer.out.weight, layer.out.bias)
    torch.testing.assert_close(layer(x), wanted, rtol=1e-4, atol=1e-4)


def test_guidance():
    args = flags()
    unet, x, y = network(args), torch.randn(4, 3, 16, 16), torch.tensor([0, 1, 2, 1])
    t, nobody = torch.full((4,), 20), torch.full((4,), 3)
    told, not_told = unet(x, t, y), unet(x, t, nobody)
    one = network(args, classes=1)
    assert torch.equal(guess_noise(one, x, 20, y * 0, 5.0), one(x, t, y * 0))  # of one class there is nothing to tell
    assert torch.equal(guess_noise(unet, x, 20, y, 1.0), told)  # guidance 1 is the conditional model
    torch.testing.assert_close(guess_noise(unet, x, 20, y, 0.0), not_told, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(guess_noise(unet, x, 20, y, 3.0), 3 * told - 2 * not_told, rtol=1e-4, atol=1e-4)


# -------------------------------------------------------------------------------------------------- the train step


def setting(*given):
    args = flags(*given)
    torch.manual_seed(3)
    images, labels = torch.randint(0, 256, (40, 3, 16, 16), dtype=torch.uint8), torch.arange(40) % 3
    batches = Batches(Images(images, labels, ["a", "b", "c"], "", "", False, ""), args.batch)
    unet = network(args).train()
    # plain gradient descent: Adam would blow up the rounding in the gradients of biases in front of a norm, which are 0
    return args, batches, unet, torch.optim.SGD(unet.parameters(), args.lr), None, contextlib.nullcontext


def test_train_step_is_algorithm_1():
    args, _, unet, optimiser, *_ = ours = setting("--drop-label=0.5", "--flip", "--lr=0.01", "--lr-decay=0.5")
    _, batches, other, other_optimiser, *_ = setting("--drop-label=0.5", "--flip", "--lr=0.01", "--lr-decay=0.5")
    bars = alpha_bars(args.noise_schedule, args.timesteps)
    for step in range(4):
        torch.manual_seed(step)
        loss = ddpm.train_step(ddpm.schedule(step, args), *ours)
        torch.manual_seed(step)
        x, labels = next(batches)
        mirrored = torch.rand(8, 1, 1, 1).flatten() < 0.5
        t, eps = torch.randint(1, 51, (8,)), torch.randn_like(x)
        dropped, wanted = torch.rand(8) < 0.5, 0.0
        for i in range(8):  # one picture after the other
            picture = x[i].flip(2) if mirrored[i] else x[i]
            noisy = (bars[t[i]].sqrt() * picture + (1 - bars[t[i]]).sqrt() * eps[i]).float()
            y = torch.tensor([3]) if dropped[i] else labels[i : i + 1]
            wanted = wanted + (eps[i] - other(noisy[None], t[i : i + 1], y)[0]).square().mean() / 8
        other_optimiser.param_groups[0]["lr"] = 0.01 * 0.5**step
        other.zero_grad()
        wanted.backward()
        other_optimiser.step()
        torch.testing.assert_close(loss[0], wanted.detach(), rtol=1e-3, atol=1e-4)
    for p, q in zip(unet.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-3, atol=1e-4)


# ------------------------------------------------------------------------------------------------ a trained model


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A small model of the built-in shapes, and its run directory."""
    folder = tmp_path_factory.mktemp("ddpm")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(importlib.import_module("report"), "report", lambda *_, **__: [])
        given = "--data=shapes --size=16 --width=16 --blocks=1 --batch=32 --steps=120 --lr=2e-3 --ema=0.9 --dropout=0"
        how = "--timesteps=200 --noise-schedule=linear --sample-steps=10 --sample-every=1000 --eval-images=0"
        ddpm.main(ddpm.parse_args(f"{given} {how} --device=cpu --precision=fp32 --out=r".split()))
    return folder / "r"


def test_it_learns(trained):
    table = np.genfromtxt(trained / "log.csv", delimiter=",", names=True)
    assert table["loss"][0] > 0.3 and table["loss"][-1] < 0.15


def test_ddim_without_noise_is_deterministic(trained):
    checkpoint = read_checkpoint(trained)
    first, again, other = (ddpm.generate(checkpoint, 6, seed, eta=0.0) for seed in (4, 4, 5))
    assert torch.equal(first, again) and not torch.equal(first, other)
    more = ddpm.generate(checkpoint, 9, 4, eta=0.0)[:6]  # the first pictures do not depend on how many there are
    assert (more.int() - first.int()).abs().max() <= 2
    few, more = ddpm.generate(checkpoint, 3, 4, eta=1.0), ddpm.generate(checkpoint, 5, 4, eta=1.0)
    assert (more[:3].int() - few.int()).abs().max() <= 2
    for settings in (dict(eta=1.0), dict(sampler="ancestral")):
        noisy, again = (ddpm.generate(checkpoint, 6, 4, **settings) for _ in "ab")
        assert torch.equal(noisy, again) and not torch.equal(noisy, first)


def test_ddim_is_invertible(trained):
    """Pictures to noise and back, at 200 steps: to 2 % of the range on average."""
    unet, args = ddpm.load_unet(read_checkpoint(trained), settings={"sample_steps": 200, "guidance": 1.0, "eta": 0.0})
    data = datasets.load("shapes", 16)
    x, y = datasets.from_uint8(data.images[:16]), data.labels[:16]
    noise = invert(unet, x, y, args)
    *_, back = denoise(unet, noise, y, args, range(16), clip=False)
    error = (back - x).abs().mean().item()
    assert error < 0.04, error
    assert 0.5 < noise.std().item() < 1.5
    *_, other = denoise(unet, torch.randn_like(noise), y, args, range(16), clip=False)
    assert (other - x).abs().mean().item() > 5 * error  # it is the noise that brings back the picture


def test_pictures_of_the_way(trained):
    checkpoint = read_checkpoint(trained)
    images, times = ddpm.denoising(checkpoint, rows=3, frames=6)
    assert images.shape == (18, 3, 16, 16) and times[0] == 200 and times[-1] == 0 and len(times) == 6
    assert images[0].float().std() > 60  # it begins as noise
    rows = ddpm.guided(checkpoint, strengths=(0.0, 1.0, 4.0), columns=5)
    assert rows.shape == (15, 3, 16, 16)
    settings = dict(guidance=1.0)
    walk = ddpm.interpolate(checkpoint, 2, 3, seed=1, **settings)
    assert walk.shape == (6, 3, 16, 16)


@pytest.mark.parametrize(
    "given, words",
    [
        ("--load RUN --generate 2 --sample-steps 201", "more than the 200 steps"),
        ("--sample-steps 2000", "more than the 1000 steps"),
        ("--sampler ancestral --eta 1", "--eta does nothing"),
        ("--load RUN --generate 2 --sampler ancestral --sample-steps 5", "--sample-steps does nothing"),
        ("--drop-label 0 --guidance 2", "--drop-label"),
        ("--load RUN --generate 2 --class star --guidance -1", "at least 0"),
    ],
)
def test_sampling_flags_that_do_not_go_together(trained, given, words, capsys, here):
    with pytest.raises(SystemExit) as stop:
        given = given.replace("RUN", str(trained)).split()
        datasets.run_program("ddpm.py", ddpm.main, ddpm.parse_args(given))
    error = capsys.readouterr().err
    assert stop.value.code == 2 and error.count("\n") == 1 and words in error, error


def test_data_without_labels(here, capsys):
    np.savez("x.npz", images=np.zeros((20, 16, 16, 1), np.uint8))
    given = "--data=x.npz --size=16 --width=8 --blocks=1 --batch=4 --steps=2 --sample-steps=2 --device=cpu --out=r"
    ddpm.main(ddpm.parse_args(given.split()))
    checkpoint = read_checkpoint("r")
    assert checkpoint["data"]["classes"] == ["x"] and checkpoint["data"]["counts"] == [20]
    assert ddpm.generate(checkpoint, 3).shape == (3, 1, 16, 16)
    assert "wrote" in capsys.readouterr().out
