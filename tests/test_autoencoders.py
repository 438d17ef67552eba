"""vae_mlp.py and cvae.py: the terms against torch.distributions, the bound, the gradients, the train step."""

import argparse
import contextlib
import copy
import importlib
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.distributions import Bernoulli, Independent, Normal, kl_divergence

import cvae
import datasets
import metrics
import vae_mlp
from datasets import Batches, Images

LIKELIHOODS = ("bernoulli", "gaussian", "sigma")
both = pytest.mark.parametrize("name", ["vae_mlp", "cvae"])
every_likelihood = pytest.mark.parametrize("likelihood", LIKELIHOODS)


def numbers(*shape, seed=0, low=-1.0, high=1.0):
    generator = torch.Generator().manual_seed(seed)
    return low + (high - low) * torch.rand(*shape, generator=generator, dtype=torch.float64)


def flags(**changes):
    known = dict(
        batch=8, size=16, width=8, latent_dim=6, lr=1e-3, lr_decay=1.0, likelihood="bernoulli", kl_weight=1.0,
        kl_warmup=0, ema=0.0,
    )  # fmt: skip
    return argparse.Namespace(**known | changes)


# ---------------------------------------------------------------------------------------------------- networks


def test_the_mlp_is_the_reports():
    vae = vae_mlp.VAE(64, 3, 16, 512)
    sizes = [12288, 512, 512, 2 * 16]  # R2b: 12288-512-512-(mu, logvar of 16), the decoder mirrored
    back = [16, 512, 512, 12288]
    count = sum(a * b + b for s in (sizes, back) for a, b in zip(s, s[1:], strict=False))
    assert sum(p.numel() for p in vae.parameters()) == count + 1 == 13_146_145  # and one sigma
    slopes = [layer.negative_slope for layer in vae.modules() if isinstance(layer, nn.LeakyReLU)]
    assert slopes == [0.2] * 4


def test_the_cvae_is_the_reports():
    model = cvae.CVAE(64, 3, 5, 256, 64)
    encoder = 16 * (3 * 64 + 64 * 128 + 128 * 256 + 256 * 512) + 2 * (64 + 128 + 256 + 512)
    heads = 2 * ((8192 + 128) * 256 + 256)
    decoder = (256 + 128) * 8192 + 8192 + 16 * (512 * 256 + 256 * 128 + 128 * 64 + 64 * 3) + 3 + 2 * (256 + 128 + 64)
    assert sum(p.numel() for p in model.parameters()) == encoder + heads + decoder + 2 * 5 * 128 + 1
    convolutions = [m for m in model.modules() if isinstance(m, (nn.Conv2d, nn.ConvTranspose2d))]
    assert all((m.kernel_size, m.stride, m.padding) == ((4, 4), (2, 2), (1, 1)) for m in convolutions)
    kinds = [type(layer) for layer in model.encoder]
    assert kinds == [nn.Conv2d, nn.BatchNorm2d, nn.ReLU] * 4 + [nn.Flatten]


@pytest.mark.parametrize("size", [16, 32, 64, 128, 256])
@pytest.mark.parametrize("colours", [1, 3])
def test_every_size(size, colours):
    x, y = torch.rand(2, colours, size, size), cvae.one_hot(torch.tensor([0, 2]), 3)
    output, mu, logvar = cvae.CVAE(size, colours, 3, 5, 2)(x, y, torch.randn(2, 5))
    assert output.shape == x.shape and mu.shape == logvar.shape == (2, 5)
    output, mu, logvar = vae_mlp.VAE(size + 1, colours, 5, 2)(F.pad(x, (0, 1, 0, 1)), torch.randn(2, 5))
    assert output.shape == (2, colours, size + 1, size + 1) and mu.shape == logvar.shape == (2, 5)


# -------------------------------------------------------------------------------------------------- the terms


def test_kl_is_that_of_torch():
    mu, logvar = numbers(50, 16, high=3.0), numbers(50, 16, seed=1, low=-4.0, high=2.0)
    q, prior = Normal(mu, (0.5 * logvar).exp()), Normal(torch.zeros_like(mu), torch.ones_like(mu))
    torch.testing.assert_close(vae_mlp.kl_to_prior(mu, logvar), kl_divergence(Independent(q, 1), Independent(prior, 1)))


@every_likelihood
def test_terms_are_densities(likelihood):
    """Reconstruction and bound from torch's distributions, value by value."""
    x, output = numbers(7, 3, 4, 4), numbers(7, 3, 4, 4, seed=1, low=-3.0, high=3.0)
    mu, logvar, log_sigma = numbers(7, 5, seed=2), numbers(7, 5, seed=3), torch.tensor(-0.7, dtype=torch.float64)
    args = flags(likelihood=likelihood, kl_weight=24.0)
    nats, kl, bound, square = vae_mlp.terms(output, mu, logvar, x, log_sigma, args)
    mean = torch.sigmoid(output) * 2 - 1 if likelihood == "bernoulli" else torch.tanh(output)
    torch.testing.assert_close(vae_mlp.mean_picture(output, likelihood), mean)
    torch.testing.assert_close(square, (x - mean).square().mean((1, 2, 3)))
    if likelihood == "bernoulli":  # E[log p(b)] for bits b that are 1 with the probability of the value in [0, 1]
        share, p = (x + 1) / 2, Bernoulli(logits=output)
        one, zero = p.log_prob(torch.ones_like(x)), p.log_prob(torch.zeros_like(x))
        expected = -(share * one + (1 - share) * zero).sum((1, 2, 3))
        torch.testing.assert_close(nats, expected)
    elif likelihood == "sigma":
        expected = -Normal(mean, log_sigma.exp()).log_prob(x).sum((1, 2, 3))
        torch.testing.assert_close(nats, expected)
    else:
        torch.testing.assert_close(nats, 0.5 * (x - mean).square().sum((1, 2, 3)))
        expected = -Normal(mean, math.sqrt(args.kl_weight)).log_prob(x).sum((1, 2, 3))
        # the loss is kl_weight times the bound, up to a constant
        gap = nats + args.kl_weight * kl - args.kl_weight * bound
        torch.testing.assert_close(gap, gap[:1].expand(7))
    torch.testing.assert_close(bound, expected + kl)


def test_the_three_reports_are_presets_in_one_unit():
    """Each report's loss is ours times one constant: the gradients point the same way."""
    x, output = numbers(5, 3, 64, 64), numbers(5, 3, 64, 64, seed=1)
    mu, logvar = numbers(5, 256, seed=2), numbers(5, 256, seed=3)
    square, kl_all = (x - torch.tanh(output)).square(), -0.5 * (1 + logvar - mu**2 - logvar.exp())
    theirs = {
        "animals": square.mean((1, 2, 3)) + 1.0 * kl_all.mean(1),  # R0: both averaged
        "artbench64": square.mean((1, 2, 3)) + 0.00025 * kl_all.sum(1),  # R1: one averaged, one summed
    }
    for preset, loss in theirs.items():
        args = cvae.parse_args(["--preset", preset])
        nats, kl, _, _ = cvae.terms(output, mu, logvar, x, None, args)
        torch.testing.assert_close(nats + args.kl_weight * kl, loss * (3 * 64 * 64 / 2))
    assert cvae.PRESETS["artbench256"]["kl_weight"] == pytest.approx(0.00025 * 3 * 256 * 256 / 2)
    # R1 on values in [0, 1] of 32x32 pixels
    args, halved = cvae.parse_args(["--preset", "mnist"]), (square[:, :1, :32, :32] / 4).mean((1, 2, 3))
    nats, kl, _, _ = cvae.terms(output[:, :1, :32, :32], mu, logvar, x[:, :1, :32, :32], None, args)
    torch.testing.assert_close(nats + args.kl_weight * kl, (halved + 0.00025 * kl_all.sum(1)) * (4 * 32 * 32 / 2))
    args = vae_mlp.parse_args(["--preset", "cats"])
    nats, kl, bound, _ = vae_mlp.terms(output, mu, logvar, x, None, args)
    r2 = F.binary_cross_entropy(torch.sigmoid(output), (x + 1) / 2, reduction="none").sum((1, 2, 3)) + kl_all.sum(1)
    torch.testing.assert_close(nats + args.kl_weight * kl, r2)
    torch.testing.assert_close(bound, r2)
    assert (args.width, args.latent_dim, args.epochs) == (512, 16, 50)
    args = cvae.parse_args(["--preset", "animals"])
    assert (args.lr, args.batch, args.epochs, args.latent_dim, args.width) == (2e-4, 128, 80, 256, 64)


# --------------------------------------------------------------------------------------------------- the bound


def test_importance_bound_in_a_model_of_known_likelihood():
    """x = W z + b + sigma n (probabilistic PCA): log p(x) is a normal density with covariance W W' + sigma^2.

    Where W has orthogonal columns the posterior is diagonal, p(x|z) p(z) / q(z|x) is p(x) for every z, and the estimate
    exact for any number of samples.
    """
    w, b, variance = 0.1 * torch.linalg.qr(numbers(12, 3))[0], numbers(12, seed=1, low=-0.3, high=0.3), 0.15**2
    x = 0.9 * numbers(20, 12, seed=2)
    posterior = 1 / (1 + 0.1**2 / variance)  # its variance: the columns of W have length 0.1
    model = argparse.Namespace(
        encode=lambda x: ((x.flatten(1) - b) @ w / variance * posterior, torch.full((20, 3), math.log(posterior))),
        decoder=lambda z: torch.atanh(z @ w.T + b).view(20, 3, 2, 2),
        log_sigma=torch.tensor(0.5 * math.log(variance), dtype=torch.float64),
    )  # fmt: skip
    total = w @ w.T + variance * torch.eye(12, dtype=torch.float64)
    expected = -torch.distributions.MultivariateNormal(b, total).log_prob(x)
    for samples in (1, 7):
        generator = torch.Generator().manual_seed(samples)
        found = vae_mlp.importance_bound(model, x.view(20, 3, 2, 2), samples, flags(likelihood="sigma"), generator)
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


@every_likelihood
def test_the_bound_lies_above_the_importance_weighted_one(likelihood):
    torch.manual_seed(0)
    args = flags(likelihood=likelihood, kl_weight=0.7 if likelihood == "gaussian" else 1.0)
    vae = vae_mlp.VAE(8, 1, 6, 32)
    with torch.no_grad():
        vae.decoder[0].weight *= 10  # a decoder that cares about z, and an encoder that does not know
    x = (torch.rand(40, 1, 1, 1) * 2 - 1).expand(-1, 1, 8, 8).contiguous()
    generator = torch.Generator().manual_seed(1)
    mean = [vae_mlp.importance_bound(vae, x, k, args, generator).mean() for k in (1, 8, 64, 512)]
    with torch.no_grad():
        bounds = [vae_mlp.terms(*vae(x, torch.randn(40, 6)), x, vae.log_sigma, args)[2].mean() for _ in range(200)]
    bound, noise = torch.stack(bounds).mean().item(), torch.stack(bounds).std().item()
    assert mean[0].item() == pytest.approx(bound, abs=4 * noise)  # one sample: the ELBO itself
    assert bound - 4 * noise / math.sqrt(200) > mean[1] > mean[2] > mean[3]


# ------------------------------------------------------------------------------------------------ the gradients


def small(name, **changes):
    """A tiny model of either script in float64, its inputs, and a function of the noise that gives its mean loss."""
    args = flags(**changes)
    torch.manual_seed(3)
    x = numbers(4, 1, 16, 16)
    if name == "vae_mlp":
        model, inputs = vae_mlp.VAE(16, 1, 3, 4).double(), (x,)
    else:
        model = cvae.CVAE(16, 1, 3, 3, 2).double().eval()
        inputs = (x, cvae.one_hot(torch.tensor([0, 1, 2, 0]), 3).double())
    script = importlib.import_module(name)

    def loss(eps):
        found = script.terms(*model(*inputs, eps), x, model.log_sigma, args)
        return (found[0] + args.kl_weight * found[1]).mean()

    return model, loss


@both
@every_likelihood
def test_reparameterised_gradients_are_finite_differences(name, likelihood):
    model, loss = small(name, likelihood=likelihood, kl_weight=2.0)
    eps = numbers(4, 3, seed=9)
    loss(eps).backward()
    for parameter, values in model.named_parameters():
        if values.grad is None:
            assert parameter == "log_sigma" and likelihood != "sigma"
            continue
        place, h = values.grad.abs().argmax(), 1e-6
        with torch.no_grad():
            values.view(-1)[place] += h
            above = loss(eps)
            values.view(-1)[place] -= 2 * h
            below = loss(eps)
            values.view(-1)[place] += h
        difference = ((above - below) / (2 * h)).item()
        assert values.grad.view(-1)[place].item() == pytest.approx(difference, rel=1e-4, abs=1e-6), parameter


# ---------------------------------------------------------------------------------------------------- the step


def setting(name, memory_format=torch.contiguous_format, dtype=None, **changes):
    """What a train step needs, always the same."""
    args = flags(**changes)
    torch.manual_seed(0)
    images = torch.randint(0, 256, (40, 3, 16, 16), dtype=torch.uint8)
    labels = torch.arange(40) % 3
    model = vae_mlp.VAE(16, 3, 6, 32) if name == "vae_mlp" else cvae.CVAE(16, 3, 3, 6, 8)
    model = model.to(memory_format=memory_format)
    batches = Batches(Images(images, labels, ["a", "b", "c"], "", "", False, ""), 8, seed=1)
    fused = memory_format is torch.channels_last
    optimiser = torch.optim.Adam(model.parameters(), args.lr, fused=fused, foreach=False)
    average = copy.deepcopy(model) if args.ema else None
    autocast = (lambda: torch.autocast("cpu", dtype)) if dtype else contextlib.nullcontext
    return args, batches, model, optimiser, average, autocast


def textbook(name, args, batches, model, optimiser, average, autocast, steps):
    """The algorithm written plainly, with probabilities, distributions and a loop over parameters."""
    losses = []
    for step in range(steps):
        optimiser.param_groups[0]["lr"] = args.lr * args.lr_decay**step
        rows = batches.rows(batches.drawn)[0]
        batches.drawn += 1
        x, labels = batches.images[rows].float() / 127.5 - 1, batches.labels[rows]
        noise = torch.randn(args.batch, args.latent_dim)
        if name == "vae_mlp":
            h = model.encoder(x)
            mu, logvar = h[:, : args.latent_dim], h[:, args.latent_dim :]
            output = model.decoder(mu + logvar.exp().sqrt() * noise)
        else:
            h = torch.cat([model.encoder(x), model.encoder_label(labels)], dim=1)
            mu, logvar = model.mu(h), model.logvar(h)
            z = torch.cat([mu + logvar.exp().sqrt() * noise, model.decoder_label(labels)], dim=1)
            output = model.decoder(z)
        q = Normal(mu, logvar.exp().sqrt())
        kl = kl_divergence(q, Normal(torch.zeros_like(mu), torch.ones_like(mu))).sum(1)
        if args.likelihood == "bernoulli":
            nats = F.binary_cross_entropy(torch.sigmoid(output), (x + 1) / 2, reduction="none").sum((1, 2, 3))
        elif args.likelihood == "gaussian":
            nats = (x - output.tanh()).square().sum((1, 2, 3)) / 2
        else:
            nats = -Normal(output.tanh(), model.log_sigma.exp()).log_prob(x).sum((1, 2, 3))
        ramp = min(1.0, (step + 1) / args.kl_warmup) if args.kl_warmup else 1.0
        model.zero_grad()
        (nats.mean() + ramp * args.kl_weight * kl.mean()).backward()
        optimiser.step()
        if average is not None:
            with torch.no_grad():
                for ours, theirs in zip(average.parameters(), model.parameters(), strict=True):
                    ours.copy_(args.ema * ours + (1 - args.ema) * theirs)
                for ours, theirs in zip(average.buffers(), model.buffers(), strict=True):
                    ours.copy_(theirs)
        losses.append([nats.mean().item(), kl.mean().item()])
    return torch.tensor(losses)


def train(name, ours, steps):
    script = importlib.import_module(name)
    torch.manual_seed(5)
    return torch.stack([script.train_step(script.schedule(step, ours[0]), *ours) for step in range(steps)])


@both
@pytest.mark.parametrize(
    "changes",
    [{}, dict(likelihood="gaussian", kl_weight=24.0, kl_warmup=4), dict(likelihood="sigma", ema=0.8, lr_decay=0.9)],
    ids=["plain", "gaussian and warm-up", "sigma, ema and decay"],
)
def test_train_step_is_the_textbook_loop(name, changes):
    ours, theirs = setting(name, **changes), setting(name, **changes)
    losses = train(name, ours, 6)
    torch.manual_seed(5)
    torch.testing.assert_close(losses[:, :2], textbook(name, *theirs, steps=6), rtol=1e-3, atol=1e-3)
    start = setting(name, **changes)
    for k in (2, 4) if ours[4] is not None else (2,):
        for p, q, first in zip(ours[k].parameters(), theirs[k].parameters(), start[k].parameters(), strict=True):
            # As a whole: where a gradient is nothing but rounding, Adam moves a weight as far as any other
            assert (p - q).norm() <= 0.03 * (q - first).norm()
    if ours[4] is not None:
        for average, other in zip(ours[4].buffers(), theirs[4].buffers(), strict=True):
            if average.is_floating_point():
                torch.testing.assert_close(average, other, rtol=1e-3, atol=1e-4)


def test_the_average_outlives_a_spike_of_batchnorms_statistics():
    """A variance that was huge for a moment, as in a run's first steps, leaves no trace in the averaged network."""
    ours = setting("cvae", ema=0.99)
    model, average = ours[2], ours[4]
    with torch.no_grad():
        for name, buffer in model.named_buffers():
            if "running_var" in name:
                buffer.fill_(1e9)
    train("cvae", ours, 1)
    for name, buffer in model.named_buffers():  # momentum 0.1: gone after 250 steps
        if "running_var" in name:
            buffer.fill_(1.0)
    train("cvae", ours, 1)
    assert all(b.max() < 100 for name, b in average.named_buffers() if "running_var" in name)


def gradients(name, ours):
    """The gradients of the first step, taken before Adam (which divides by their size) can change anything."""
    ours[3].step = lambda: None
    train(name, ours, 1)
    return [p.grad for p in ours[2].parameters() if p.grad is not None]


def relative(ours, theirs):
    return max(((a - b).norm() / b.norm()).item() for a, b in zip(ours, theirs, strict=True))


def test_channels_last_gives_the_plain_gradients():
    fast, plain = setting("cvae", torch.channels_last), setting("cvae")
    assert relative(gradients("cvae", fast), gradients("cvae", plain)) < 1e-4


@both
@every_likelihood
def test_bf16_gives_nearly_the_plain_gradients(name, likelihood):
    """bf16 keeps 8 bits: 0.4 % a rounding. Through a dozen layers 20 % of a tensor's norm is the tolerance."""
    changes = dict(likelihood=likelihood)
    half = gradients(name, setting(name, torch.channels_last, torch.bfloat16, **changes))
    assert all(p.dtype == torch.float32 for p in half)
    assert relative(half, gradients(name, setting(name, **changes))) < 0.2


@both
def test_twenty_steps_of_the_fast_and_the_plain_path(name):
    fast, plain = train(name, setting(name, torch.channels_last), 20), train(name, setting(name), 20)
    torch.testing.assert_close(fast, plain, rtol=1e-2, atol=1e-2)


# --------------------------------------------------------------------------------------------- using the model


def test_the_class_changes_the_picture_and_only_the_asked_one_is_made(here, capsys):
    rng = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (60, 16, 16, 3), dtype=torch.uint8, generator=rng).numpy()
    np.savez("few.npz", images=images, labels=np.repeat([0, 1, 2], [40, 15, 5]), classes=["cat", "dog", "lion"])
    cvae.main(cvae.parse_args("--data few.npz --size 16 --width 4 --batch 8 --steps 3 --device cpu --out r".split()))
    checkpoint = datasets.read_checkpoint("r")
    assert checkpoint["data"]["counts"] == [40, 15, 5]
    lion, dog = cvae.generate(checkpoint, 4, label=2), cvae.generate(checkpoint, 4, label=1)
    assert not torch.equal(lion, dog)
    cvae.main(cvae.parse_args("--load r --generate 4 --class lion --to lion.png".split()))
    assert torch.equal(torch.tensor(np.asarray(datasets.Image.open("lion.png"))[:16, :16]), lion[0].permute(1, 2, 0))
    labels = datasets.random_labels([40, 15, 5], 6000, seed=1)
    assert torch.bincount(labels).tolist() == pytest.approx([4000, 1500, 500], rel=0.08)
    rows, columns = cvae.as_every_class(checkpoint)
    assert columns == 5 and len(rows) == 8 * 5
    assert torch.equal(rows[0], checkpoint["examples"][0])
    own = 2 + checkpoint["example_labels"][0].item()
    assert torch.equal(rows[1], rows[own]) and not torch.equal(rows[1], rows[2 + (own - 1) % 3])
    for bad in ("--load r --generate 4 --class tiger", "--load r --interpolate 4 --to x.jpg"):
        with pytest.raises(datasets.InputError, match="tiger|give a .png"):
            cvae.main(cvae.parse_args(bad.split()))


def test_a_set_without_labels_is_refused(here):
    np.savez("plain.npz", images=np.zeros((20, 16, 16, 3), np.uint8))
    for more in ("", " --balance"):
        with pytest.raises(datasets.InputError, match="no labels"):
            cvae.main(cvae.parse_args(f"--data plain.npz --size 16 --batch 8{more}".split()))
    assert not (here / "runs").exists()


def test_walks_begin_and_end_at_reconstructions(here):
    vae_mlp.main(vae_mlp.parse_args("--width 16 --steps 2 --batch 8 --device cpu --out r".split()))
    checkpoint = datasets.read_checkpoint("r")
    walk = vae_mlp.interpolate(checkpoint, 2, 5, seed=3).unflatten(0, (2, 5))
    order = torch.randperm(16, generator=torch.Generator().manual_seed(3))[:4]
    vae, args = vae_mlp.load_vae(checkpoint)
    ends = vae_mlp.pictures(vae, vae_mlp.encode(vae, checkpoint["examples"][order]), args.likelihood)
    assert (torch.cat([walk[:, 0], walk[:, -1]]).int() - ends.int()).abs().max() <= 1
    vae_mlp.main(vae_mlp.parse_args("--load r --interpolate 4 --data shapes --to w.png".split()))
    assert datasets.Image.open("w.png").size == (4 * 34 - 2, 8 * 34 - 2)


def test_iwae_from_a_checkpoint(here, capsys):
    vae_mlp.main(vae_mlp.parse_args("--width 16 --steps 2 --batch 8 --device cpu --out r".split()))
    capsys.readouterr()
    vae_mlp.main(vae_mlp.parse_args("--load r --iwae 5 --eval-images 30".split()))
    out = capsys.readouterr().out
    assert "bound (5 samples)" in out and "30 held-out images of shapes" in out and "active latents" in out


# ------------------------------------------------------------------------------------------------- the metrics


def test_active_units():
    mu = torch.randn(5000, 6, generator=torch.Generator().manual_seed(0)) * torch.tensor([1, 0.5, 0.11, 0.09, 0.01, 0])
    assert metrics.active_units(mu + 3) == 3  # standard deviations above 0.1


def test_autoencoder_values():
    mu = torch.randn(300, 16, generator=torch.Generator().manual_seed(0)) + 1
    found = {v["name"]: v for v in metrics.autoencoder([7000.0, 8.0, 7008.0, 0.1], mu, "bernoulli", "some images")}
    assert found["KL per latent (nats)"]["value"] == 0.5 and found["bound (nats)"]["value"] == 7008
    cosines = [F.cosine_similarity(mu[i], mu[j], dim=0).item() for i in range(300) for j in range(300) if i != j]
    assert found["mean cosine of latents"]["value"] == pytest.approx(sum(cosines) / len(cosines), abs=1e-5)
    assert found["collapse (latents)"]["value"] == sum(c > 0.9 for c in cosines)
    assert "some images" in metrics.table(list(found.values()))


# ------------------------------------------------------------------------------------------------- real data


@pytest.mark.parametrize("name, file, preset", [("vae_mlp", "cats64.zip", "cats"), ("cvae", "animals5.zip", "animals")])
def test_real_images_train(here, real, name, file, preset, capsys):
    script = importlib.import_module(name)
    small = "--width 16 --steps 30 --batch 32 --eval-images 0 --log-every 30 --out r".split()
    script.main(script.parse_args(["--preset", preset, "--data", str(real(file)), *small]))
    checkpoint = datasets.read_checkpoint("r")
    images = checkpoint["examples"]
    assert (here / "r/samples/000030.png").exists() and (here / "r/reconstructions/000030.png").exists()
    if name == "cvae":
        assert checkpoint["data"]["classes"] == ["cat", "dog", "elephant", "horse", "lion"]
        assert checkpoint["example_labels"].tolist() == [i % 5 for i in range(16)]
    assert images.shape == (16, 3, 64, 64)
