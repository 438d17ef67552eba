"""ddpm.py: both processes against closed forms, the samplers, guidance, the network, the update."""

import contextlib
import math
import shutil

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

import datasets
import ddpm
import training
from ddpm import Attention, UNet, alpha_bars, ddim_step, denoise, generate, posterior, to_images
from sources import InputError, read_log
from training import latents, read_checkpoint

both_schedules = pytest.mark.parametrize("kind", ["linear", "cosine"])
both_objectives = pytest.mark.parametrize("objective", ["noise", "v"])
TINY = "--size=16 --blocks=1 --batch=8 --dropout=0 --device=cpu --precision=fp32 --eval-images=0"
TINY = TINY.split()


def network(*given, channels=3, classes=3):
    """A U-Net with weights that are nowhere 0, so that everything has an effect."""
    args, _ = ddpm.parse_args([*TINY, "--data=x", "--width=8", "--timesteps=50", *given])
    torch.manual_seed(0)
    unet = UNet(vars(args), channels, [10] * classes).eval()
    for parameter in unet.parameters():
        torch.nn.init.normal_(parameter, 0, 0.1)
    return unet


# ------------------------------------------------------------------------------ the two processes


def test_the_schedules_are_those_of_the_papers():
    linear = alpha_bars("linear", 1000)
    wanted = np.cumprod([1.0, *(1 - np.linspace(1e-4, 0.02, 1000))])
    np.testing.assert_allclose(linear, wanted, rtol=1e-9)
    assert alpha_bars("linear", 250)[-1].item() == pytest.approx(wanted[-1], rel=0.3)
    cosine = alpha_bars("cosine", 1000)
    f = [math.cos((t / 1000 + 0.008) / 1.008 * math.pi / 2) ** 2 for t in range(991)]
    np.testing.assert_allclose(cosine[:991], np.array(f) / f[0], rtol=1e-6)
    assert (1 - cosine[1:] / cosine[:-1]).max() <= 0.999 + 1e-12  # of all beta_t
    assert cosine[-1] < 1e-6


@both_schedules
def test_the_posterior_is_bayes_rule_and_ddim_with_eta_1(kind):
    """q(x_(t-1) | x_0) times q(x_t | x_(t-1)), two normal densities: their precisions add up."""
    bars = alpha_bars(kind, 100).tolist()
    x_0, x_t, noise = 0.3, 1.2, -0.7
    for t in range(1, 101):
        alpha, previous = bars[t] / bars[t - 1], bars[t - 1]
        mean, variance = posterior(bars[t], previous, x_0, x_t)
        x = ddim_step(bars[t], previous, x_0, x_t, 1.0, noise)
        assert x == pytest.approx(mean + math.sqrt(variance) * noise, rel=1e-7, abs=1e-9)
        if t == 1:
            assert mean == pytest.approx(x_0) and variance == 0
            continue
        precisions = np.array([1 / (1 - previous), alpha / (1 - alpha)])
        means = np.array([math.sqrt(previous) * x_0, x_t / math.sqrt(alpha)])
        assert variance == pytest.approx(1 / precisions.sum(), rel=1e-9)
        assert mean == pytest.approx(precisions @ means / precisions.sum(), rel=1e-9)


@both_schedules
@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
def test_a_ddim_step_keeps_the_distribution(kind, eta):
    """From x_t of x_0 to x_s of the same x_0: its mean, and its variance from two noises."""
    bars = alpha_bars(kind, 100).tolist()
    for t, s in ((100, 60), (60, 59), (40, 3), (5, 0)):
        x_t = math.sqrt(bars[t]) * 0.4
        mean = ddim_step(bars[t], bars[s], 0.4, x_t, eta, 0.0)
        assert mean == pytest.approx(math.sqrt(bars[s]) * 0.4, abs=1e-12)
        by_eps = ddim_step(bars[t], bars[s], 0.4, x_t + math.sqrt(1 - bars[t]), eta, 0.0) - mean
        by_noise = ddim_step(bars[t], bars[s], 0.4, x_t, eta, 1.0) - mean
        assert by_eps**2 + by_noise**2 == pytest.approx(1 - bars[s], rel=1e-9)
        assert (by_noise == 0) == (eta == 0 or s == 0)


class Ideal:
    """What a perfect network predicts for data N(mean, deviation^2): E(eps | x_t) or E(v | x_t).

    x_0, eps and v are linear in the normal variables x_0 and eps, and so is x_t. The prediction is
    the mean of the target, and the covariance of target and x_t over the variance of x_t times what
    x_t deviates from its mean.
    """

    classes = 1
    image_shape = (3, 16, 16)
    mixture = torch.empty(0)  # tells the device

    def __init__(self, kind, timesteps, mean, deviation, objective="noise"):
        self.bars = alpha_bars(kind, timesteps).tolist()
        self.mean, self.variance = mean, deviation**2
        self.objective = objective

    def __call__(self, x, t, labels):
        bar = self.bars[t[0]]
        signal, spread = math.sqrt(bar), math.sqrt(1 - bar)
        of_x_0, of_eps = {"noise": (0, 1), "v": (-spread, signal)}[self.objective]
        covariance = of_x_0 * signal * self.variance + of_eps * spread
        slope = covariance / (signal**2 * self.variance + spread**2)
        return of_x_0 * self.mean + slope * (x - signal * self.mean)


@both_schedules
@pytest.mark.parametrize(
    "objective, how",
    [
        ("noise", ("ancestral", 1000, 0)),
        ("noise", ("ddim", 400, 0)),
        ("noise", ("ddim", 1000, 1)),
        ("v", ("ddim", 400, 0)),
    ],
)
def test_the_samplers_draw_from_the_data(kind, objective, how):
    """With a perfect network. The deviation to 4 %: finite steps lose some of it."""
    seeds = torch.arange(50)
    ideal = Ideal(kind, 1000, 0.2, 0.15, objective)
    *_, (t, x_0) = denoise(ideal, latents(50, 768, 0), seeds, seeds, 1.0, *how)
    assert t == 0
    assert x_0.mean().item() == pytest.approx(0.2, abs=0.01)
    assert x_0.std().item() == pytest.approx(0.15, rel=0.04)


def test_clip():
    """x_0 ends within [-1, 1], though the network alone predicts values beyond."""
    ideal, seeds = Ideal("cosine", 100, 0.9, 0.5), torch.arange(4)
    *path, (_, x_0) = denoise(ideal, latents(4, 768, 0), seeds, seeds, 1.0, "ddim", 10, 0.0)
    t, x = path[-1]
    assert ddpm.predict_x_0(ideal, x, t, seeds, 1.0).abs().max() > 1
    assert x_0.abs().max() <= 1


class Told:
    """A network that predicts what it was told."""

    classes = 1

    def __init__(self, objective, bars, predicted):
        self.objective, self.bars, self.predicted = objective, bars, predicted

    def __call__(self, *_):
        return self.predicted


@pytest.mark.parametrize("objective, predicted", [("noise", 1.0), ("v", 0.2)])
def test_a_step_by_hand(objective, predicted):
    """abar 0.36 to 0.64, x_0 = 0.5, eps = 1: x_t = 0.6 * 0.5 + 0.8, v = 0.6 - 0.8 * 0.5."""
    unet = Told(objective, [1, 0.64, 0.36], torch.tensor([predicted]))
    x_0 = ddpm.predict_x_0(unet, torch.tensor([1.1]), 2, torch.tensor([0]), 1.0)
    assert x_0.item() == pytest.approx(0.5)
    x_s = ddim_step(0.36, 0.64, x_0, torch.tensor([1.1]), 0.0, 0.0)
    assert x_s.item() == pytest.approx(0.8 * 0.5 + 0.6)


@both_schedules
@both_objectives
def test_the_right_prediction_gives_x_0_back(kind, objective):
    """v as a rotation: x_t is x_0 turned towards eps by an angle, v is x_t turned by 90 degrees."""
    torch.manual_seed(0)
    x_0, eps, labels = torch.rand(2, 3, 4, 4), torch.randn(2, 3, 4, 4), torch.zeros(2).int()
    bars = alpha_bars(kind, 100).tolist()
    for t in range(1, 101):
        angle = math.acos(math.sqrt(bars[t]))
        x_t, v = (math.cos(a) * x_0 + math.sin(a) * eps for a in (angle, angle + math.pi / 2))
        unet = Told(objective, bars, {"noise": eps, "v": v}[objective])
        near = 2e-6 if objective == "v" else 2e-6 / math.sqrt(bars[t])  # which magnifies rounding
        estimate = ddpm.predict_x_0(unet, x_t, t, labels, 1.0)
        torch.testing.assert_close(estimate, x_0, rtol=0, atol=near)


# ------------------------------------------------------------------------------------ the network


@pytest.mark.parametrize("size, channels", [(16, 3), (32, 1), (64, 3)])
def test_shapes_and_what_the_prediction_depends_on(size, channels):
    unet = network(f"--size={size}", "--blocks=2", channels=channels)
    x, t = torch.randn(3, channels, size, size), torch.tensor([1, 25, 50])
    labels = torch.tensor([0, 1, 3])
    predicted = unet(x, t, labels)
    assert predicted.shape == x.shape
    torch.testing.assert_close(unet.frequencies, 20 * 10_000 ** (-torch.arange(4) / 4))  # T = 50
    attention = [isinstance(blocks[0].attention, Attention) for blocks in unet.down]
    assert attention == [size >> k <= 16 for k in range(len(unet.down))]
    assert size >> len(attention) == 4  # so the last resolution is 8
    for changed in ((x, t + 1, labels), (x, t, (labels + 1) % 4)):
        assert not torch.allclose(unet(*changed), predicted, atol=1e-3)
    alone = [unet(x[i : i + 1], t[i : i + 1], labels[i : i + 1]) for i in range(3)]
    torch.testing.assert_close(torch.cat(alone), predicted, rtol=1e-3, atol=1e-4)


def test_an_untrained_network_predicts_zero():
    """So the first loss is the mean square of the target; of eps, that is 1."""
    unet = UNet(network().flags, 3, [1, 1])
    predicted = unet(torch.randn(2, 3, 16, 16), torch.tensor([1, 50]), torch.tensor([0, 2]))
    assert (predicted == 0).all()


def test_attention_is_the_written_out_sum(monkeypatch):
    torch.manual_seed(0)
    layer, x = Attention(128), torch.randn(2, 128, 4, 4)
    torch.nn.init.normal_(layer.out.weight, 0, 0.1)
    q, k, v = layer.qkv(layer.norm(x)).flatten(2).chunk(3, dim=1)
    h = torch.zeros_like(v)
    for n in range(2):
        for head in (slice(0, 64), slice(64, 128)):
            for i in range(16):
                weights = torch.softmax((q[n, head, i] @ k[n, head]) / 8, dim=0)
                h[n, head, i] = v[n, head] @ weights
    wanted = x + layer.out(h.view(x.shape))
    torch.testing.assert_close(layer(x), wanted, rtol=1e-4, atol=1e-4)

    def attention(*qkv):
        assert all(tensor.is_contiguous() for tensor in qkv)  # what a Mac's GPU needs
        return original(*qkv)

    original = F.scaled_dot_product_attention
    monkeypatch.setattr(F, "scaled_dot_product_attention", attention)
    monkeypatch.setattr(torch.Tensor, "device", torch.device("mps"))
    torch.testing.assert_close(layer(x), wanted, rtol=1e-4, atol=1e-4)


def test_guidance():
    unet, x, labels = network(), torch.randn(4, 3, 16, 16), torch.tensor([0, 1, 2, 1])
    t = torch.full((4,), 20)
    signal, spread = math.sqrt(unet.bars[20]), math.sqrt(1 - unet.bars[20])
    given, without = unet(x, t, labels), unet(x, t, torch.full((4,), 3))
    for guidance, wanted in ((1.0, given), (0.0, without), (3.0, 3 * given - 2 * without)):
        x_0 = ddpm.predict_x_0(unet, x, 20, labels, guidance)
        torch.testing.assert_close(x_0, signal * x - spread * wanted, rtol=1e-4, atol=1e-4)
    one = network(classes=1)  # of one class there is nothing to tell
    x_0 = ddpm.predict_x_0(one, x, 20, labels * 0, 5.0)
    torch.testing.assert_close(x_0, signal * x - spread * one(x, t, labels * 0))


# ------------------------------------------------------------------------------------- the update


@pytest.mark.parametrize(
    "objective, drop_label, flip", [("noise", 0.5, True), ("noise", 0.0, False), ("v", 0.5, True)]
)
def test_the_update_is_algorithm_1(objective, drop_label, flip):
    # plain gradient descent: Adam would blow up rounding errors where a gradient is 0
    unet, reference = network("--objective", objective), network()
    optimizer, other = (torch.optim.SGD(net.parameters(), 0.01) for net in (unet, reference))
    constants = (unet, optimizer, contextlib.nullcontext, drop_label, flip)
    asked = []
    unet.register_forward_pre_hook(lambda _, given: asked.append(given))
    bars = alpha_bars("cosine", 50)
    x, labels = torch.rand(8, 3, 16, 16) * 2 - 1, torch.arange(8) % 3
    for step in range(3):
        torch.manual_seed(step)
        loss = ddpm.unet_step(*constants, x, labels)
        torch.manual_seed(step)
        mirrored = torch.rand(8) < 0.5 if flip else torch.zeros(8)
        t, eps, x_t = torch.randint(1, 51, (8,)), torch.randn_like(x), torch.empty_like(x)
        wanted_labels = torch.where(torch.rand(8) < drop_label, 3, labels)
        target = eps.clone()
        for i in range(8):  # one image after the other
            image = x[i][:, :, torch.arange(15, -1, -1)] if mirrored[i] else x[i]
            x_t[i] = bars[t[i]].sqrt() * image + (1 - bars[t[i]]).sqrt() * eps[i]
            if objective == "v":
                target[i] = bars[t[i]].sqrt() * eps[i] - (1 - bars[t[i]]).sqrt() * image
        torch.testing.assert_close(asked[-1], (x_t, t, wanted_labels))
        wanted = (target - reference(x_t, t, wanted_labels)).square().mean()
        other.zero_grad()
        wanted.backward()
        length = sum(p.grad.square().sum() for p in reference.parameters()).sqrt()
        for p in reference.parameters():
            p.grad /= max(length, 1)
        other.step()
        torch.testing.assert_close(loss, wanted.detach(), rtol=1e-4, atol=1e-5)
    for p, q in zip(unet.parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("amx", [True, False])
def test_small_networks_need_amx_for_bf16_on_a_cpu(tiny, amx, monkeypatch, capsys):
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: True, raising=False)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx, raising=False)
    for width in (24, 64):
        more = f"--data=tiny.npz --size=16 --blocks=1 --device=cpu --width={width} --dry-run"
        ddpm.main(more.split())
        assert f"on cpu in {'bf16' if amx or width == 64 else 'fp32'};" in capsys.readouterr().out


def test_data_without_classes(here, capsys):
    np.savez("x.npz", images=np.zeros((9, 16, 16), np.uint8))
    ddpm.main("--data=x.npz --size=16 --width=8 --blocks=1 --device=cpu --dry-run".split())
    assert "; no classes\n" in capsys.readouterr().out


def test_main_is_this_loop(tiny, no_plots):
    more = "--data=tiny.npz --width=8 --lr=0.01 --lr-decay=0.5 --ema=0.9 --steps=4 --out=r"
    ddpm.main([*TINY, *more.split()])
    checkpoint = read_checkpoint("r")
    torch.manual_seed(0)
    unet = UNet(checkpoint["flags"], 3, [34, 33, 33]).to(memory_format=torch.channels_last)
    ema = {name: p.clone() for name, p in unet.state_dict().items()}
    optimizer = torch.optim.Adam(unet.parameters(), fused=True)
    batches = datasets.Batches(datasets.load("tiny.npz", 16), 8)
    for step in range(4):
        optimizer.param_groups[0]["lr"] = 0.01 * 0.5**step
        constants = (unet, optimizer, contextlib.nullcontext, 0.1, False)
        ddpm.unet_step(*constants, *next(batches))
        decay = (1 + step) / (10 + step)  # less than 0.9
        ema = {name: decay * ema[name] + (1 - decay) * p for name, p in unet.state_dict().items()}
    torch.testing.assert_close(dict(checkpoint["models"]["ema"]), ema, rtol=1e-4, atol=1e-6)


# -------------------------------------------------------------------------------- a trained model


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The run directory of a small model of the built-in shapes."""
    folder = tmp_path_factory.mktemp("ddpm")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr("report.report", lambda *_, **__: [])
        more = "--width=16 --batch=32 --steps=120 --lr=2e-3 --ema=0.9 --timesteps=200 --out=r"
        how = "--noise-schedule=linear --sample-steps=10 --sample-every=1000"
        ddpm.main([*TINY, *more.split(), *how.split()])
    return folder / "r"


@pytest.fixture
def model(trained):
    return ddpm.load_model(read_checkpoint(trained))


def test_it_learns(trained):
    losses = [float(row["loss"]) for row in read_log(trained / "log.csv")]
    assert losses[0] > 0.3 and losses[-1] < 0.2


def test_the_picture_has_a_row_for_each_class(trained, model):
    z, seeds = latents(8, 768, 1).repeat(5, 1), torch.arange(8).repeat(5)
    images = to_images(model, z, torch.arange(5).repeat_interleave(8), seeds)
    picture = np.asarray(Image.open(trained / "samples/000120.png"))
    assert np.array_equal(picture, np.asarray(datasets.grid(images, 8)))


@pytest.mark.parametrize("sampling", [{"eta": 0.0}, {"eta": 1.0}, {"sampler": "ancestral"}])
def test_image_k_depends_on_seed_and_k_only(model, sampling):
    images = generate(model, 3, 4, **sampling)
    assert torch.equal(images, generate(model, 3, 4, **sampling))
    later = generate(model, 1, 4, first=2, **sampling)
    assert (images[2:].int() - later.int()).abs().max() <= 2
    same = torch.equal(images, generate(model, 3, 4, noise_seed=1, **sampling))
    assert same == (sampling == {"eta": 0.0})


def test_times(model, monkeypatch):
    asked, x, labels = [], torch.zeros(1, 3, 16, 16), torch.tensor([0])
    monkeypatch.setattr(ddpm, "predict_x_0", lambda _, x, t, *more: asked.append(t) or x)
    list(denoise(model, x, labels, labels, 1.0, "ddim", 5, 0.0))
    assert asked == [200, 160, 120, 80, 40]


def test_classes_and_guidance(model, monkeypatch):
    asked = []
    monkeypatch.setattr(ddpm, "predict_x_0", lambda *given: asked.append(given[3:]) or given[1])

    def all_asked(make, *given, **more):
        asked.clear()
        make(model, *given, **more)
        return torch.cat([labels for labels, _ in asked]).tolist(), {g for _, g in asked}

    one = {"sample_steps": 1}
    wanted = training.random_labels(model.class_counts, 130, 4).tolist()
    assert all_asked(generate, 130, 4, guidance=3.0, **one) == (wanted, {3.0})
    assert all_asked(generate, 130, 4, label=2, **one) == ([2] * 130, {2.0})
    assert all_asked(ddpm.walk, "linear", 6, 2, **one)[0] == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 0, 0]
    assert all_asked(ddpm.walk, "linear", 2, 2, label=3, **one)[0] == [3] * 4
    assert all_asked(ddpm.guided, (0.0, 4.0), 6) == ([0, 1, 2, 3, 4, 0] * 20, {0.0, 4.0})


def test_denoising_guided_and_walk(model):
    z, row = latents(3, 768, 0), torch.arange(3)
    images, times = ddpm.denoising(model, 3, 6)
    assert list(times) == [200, 160, 120, 80, 40, 0]
    assert torch.equal(images[::6], datasets.to_uint8(z.view(3, 3, 16, 16)))
    assert torch.equal(images[5::6], to_images(model, z, row, row))
    for strength, made in zip((1.0, 4.0), ddpm.guided(model, (1.0, 4.0), 3).split(3), strict=True):
        assert torch.equal(made, to_images(model, z, row, row, guidance=strength))
    images = ddpm.walk(model, "spherical", 2, 2, seed=1, eta=1.0)
    z, row = training.walks(2, 2, 768, "spherical", 1), torch.tensor([0, 0, 1, 1])
    assert torch.equal(images, to_images(model, z, row, row, eta=1.0))


@torch.no_grad()
def inverted(unet, x, labels):
    """Every step of DDIM with eta 0 backwards: from images to the noise that they come from.

    At time 0 there is no noise to predict, so the images pass for x_1.
    """
    for s in range(1, len(unet.bars) - 1):
        x_0 = ddpm.predict_x_0(unet, x, s, labels, 1.0)
        x = ddim_step(unet.bars[s], unet.bars[s + 1], x_0, x, 0.0, 0.0)
    return x


def test_ddim_is_invertible(model):
    """Images to noise and back, in 200 steps: to 2 % of the range on average."""
    data = datasets.load("shapes", 16)
    x, labels = datasets.from_uint8(data.images[:8]), data.labels[:8]
    noise = inverted(model, x, labels)
    assert 0.5 < noise.std() < 1.5
    errors = []
    for z in (noise, torch.randn_like(noise)):  # only the right noise brings the images back
        *_, (_, back) = denoise(model, z, labels, labels, 1.0, "ddim", 200, 0.0)
        errors.append((back - x).abs().mean())
    assert errors[0] < 0.04 and errors[1] > 5 * errors[0]


@pytest.mark.parametrize(
    "flags, words",
    [
        ({"sample_steps": 2000}, "more than the"),
        ({"sampler": "ancestral", "eta": 1.0}, "--eta do nothing"),
        ({"sampler": "ancestral", "sample_steps": 5}, "--sample-steps and"),
        ({"sampler": "euler"}, "no sampler 'euler'"),
        ({"guidance": 2.0}, "--drop-label"),
    ],
)
def test_sampling_flags_that_do_not_go_together(model, flags, words):
    drop = {"drop_label": 0.0 if "guidance" in flags else 0.1}
    typed = [f"--{name.replace('_', '-')}={value}" for name, value in {**flags, **drop}.items()]
    with pytest.raises(InputError, match=words):
        ddpm.parse_args(["--data=x", *typed])
    model.flags = {**model.flags, **drop}
    with pytest.raises(InputError, match=words):
        generate(model, 2, **flags)


def test_sample_steps_that_nobody_typed_are_limited(model):
    flags = {**model.flags, "sample_steps": 300}
    assert ddpm.complete_sampling((), flags)["sample_steps"] == 200


def test_runs_from_before_the_objective_predict_the_noise(trained, here, no_plots):
    shutil.copytree(trained, "r")
    checkpoint = read_checkpoint("r")
    assert checkpoint["flags"].pop("objective") == "v"  # the default
    torch.save(checkpoint, "r/last.pt")
    assert ddpm.load_model(checkpoint).objective == "noise"
    ddpm.main(["--resume", "r", "--steps", "121"])
    assert read_checkpoint("r")["flags"]["objective"] == "noise"
    with pytest.raises(InputError, match="--objective was noise in this run and cannot become v"):
        ddpm.main(["--resume", "r", "--objective", "v"])


def test_data_without_labels(here, no_plots):
    np.savez("x.npz", images=np.zeros((20, 16, 16, 1), np.uint8))
    more = "--data=x.npz --width=8 --steps=2 --sample-steps=2 --guidance=2 --balance --out=r"
    ddpm.main([*TINY, *more.split()])
    checkpoint = read_checkpoint("r")
    assert checkpoint["data"]["classes"] == ["x"] and checkpoint["data"]["counts"] == [20]
    model = ddpm.load_model(checkpoint)
    assert generate(model, 3).shape == (3, 1, 16, 16)
    with pytest.raises(InputError, match="one class"):
        ddpm.guided(model, (0.0, 1.0), 2)
