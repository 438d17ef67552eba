"""vae_mlp.py, and what cvae.py does in the same way: loss terms, bounds, gradients, training."""

import argparse
import contextlib
import functools
import math
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.distributions import Bernoulli, MultivariateNormal, Normal, kl_divergence

import cvae
import datasets
import metrics
import vae_mlp
from sources import read_log, run_program
from training import read_checkpoint

pytestmark = pytest.mark.usefixtures("no_plots")
TINY = "--data tiny.npz --size 16 --width 8 --latent-dim 6 --batch 8 --log-every 1 --out r"
TINY += " --device cpu --precision fp32"
TEST_COLUMNS = ("loss_recon_test", "loss_kl_test", "loss_bound_test", "mse_test")
MODEL = {vae_mlp: "vae", cvae: "cvae"}  # in checkpoints
both = pytest.mark.parametrize("script", [vae_mlp, cvae], ids=["vae_mlp", "cvae"])
every_likelihood = pytest.mark.parametrize("likelihood", ["bernoulli", "gaussian", "sigma"])


def uniform(*shape, seed=0, low=-1.0, high=1.0):
    generator = torch.Generator().manual_seed(seed)
    return low + (high - low) * torch.rand(*shape, generator=generator, dtype=torch.float64)


def network(script=vae_mlp, size=16, likelihood="sigma", kl_weight=1.0):
    """A small network with 6 latents, always the same."""
    torch.manual_seed(0)
    if script is vae_mlp:
        return vae_mlp.VAE(size, 3, 6, 8, likelihood, kl_weight)
    return cvae.CVAE(size, 3, [40, 15, 5], 6, 8, likelihood, kl_weight)


def plain(model, x, labels, noise):
    """What either network computes, written plainly: output, mu, logvar."""
    if isinstance(model, vae_mlp.VAE):
        mu, logvar = model.encoder(x).split(6, dim=1)
        return model.decoder(mu + logvar.exp().sqrt() * noise), mu, logvar
    features = torch.cat([model.encoder(x), model.encoder_label(labels)], dim=1)
    mu = model.mu(features)
    logvar = model.logvar(features)
    z = mu + logvar.exp().sqrt() * noise
    return model.decoder(torch.cat([z, model.decoder_label(labels)], dim=1)), mu, logvar


def train(script, flags):
    """Train on tiny.npz -> the flags, the rows of log.csv, the checkpoint."""
    flags = f"{TINY} {flags}".split()
    args, _ = script.parse_args(flags)
    script.main(flags)
    return args, read_log(Path("r/log.csv")), read_checkpoint("r")


# ---------------------------------------------------------------------------------------- network


def test_the_network_of_r2():
    vae = vae_mlp.VAE(64, 3, 16, 512, "bernoulli", 1.0)
    encoder = [12288, 512, 512, 2 * 16]  # mu and logvar of 16 latents; the decoder mirrors it
    decoder = [16, 512, 512, 12288]
    count = sum(a * b + b for s in (encoder, decoder) for a, b in zip(s, s[1:], strict=False))
    assert sum(p.numel() for p in vae.parameters()) == count + 1 == 13_146_145  # and one sigma
    slopes = [layer.negative_slope for layer in vae.modules() if isinstance(layer, nn.LeakyReLU)]
    assert slopes == [0.2] * 4
    images = torch.rand(2, 1, 17, 17)  # any size
    output, mu, logvar = vae_mlp.VAE(17, 1, 6, 8, "sigma", 1.0)(images, torch.randn(2, 6))
    assert output.shape == images.shape and mu.shape == logvar.shape == (2, 6)


# ----------------------------------------------------------------------------------------- losses


@every_likelihood
def test_terms_are_densities(likelihood):
    x = uniform(7, 3, 4, 4)
    output = uniform(7, 3, 4, 4, seed=1, low=-3.0, high=3.0)
    mu = uniform(7, 5, seed=2, high=3.0)
    logvar = uniform(7, 5, seed=3, low=-4.0)
    model = argparse.Namespace(likelihood=likelihood, kl_weight=24.0, log_sigma=torch.tensor(-0.7))
    nats, kl, bound, squared_error = vae_mlp.loss_terms(model, x, output, mu, logvar)
    q = Normal(mu, (0.5 * logvar).exp())
    torch.testing.assert_close(kl, kl_divergence(q, Normal(0.0, 1.0)).sum(1))
    mean = torch.sigmoid(output) * 2 - 1 if likelihood == "bernoulli" else torch.tanh(output)
    torch.testing.assert_close(vae_mlp.mean_image(output, likelihood), mean)
    torch.testing.assert_close(squared_error, (x - mean).square().mean((1, 2, 3)))
    if likelihood == "bernoulli":  # E[log p(bit)] of bits that are 1 with the value's probability
        share = (x + 1) / 2
        bit = Bernoulli(logits=output)
        one = share * bit.log_prob(torch.ones_like(x))
        exact = -one - (1 - share) * bit.log_prob(torch.zeros_like(x))
    else:
        sigma = math.exp(-0.7) if likelihood == "sigma" else math.sqrt(24)
        exact = -Normal(mean, sigma).log_prob(x)
    exact = exact.sum((1, 2, 3))
    torch.testing.assert_close(bound, exact + kl)
    wanted = 0.5 * (x - mean).square().sum((1, 2, 3)) if likelihood == "gaussian" else exact
    torch.testing.assert_close(nats, wanted)
    if likelihood == "gaussian":  # the loss is kl_weight times the bound, up to a constant
        constant = nats + 24 * kl - 24 * bound
        torch.testing.assert_close(constant, constant[:1].expand(7))
    half = output.bfloat16()  # as decoders give it in bf16. All else is computed in float32
    given = (mu.float(), logvar.float())
    terms = vae_mlp.loss_terms(model, x.float(), half, *given)
    assert torch.equal(terms, vae_mlp.loss_terms(model, x.float(), half.float(), *given))


def test_importance_bound_where_the_likelihood_is_known():
    """x = W z + b + sigma n (probabilistic PCA): x is normal with covariance W W' + sigma^2 I.

    If the columns of W are orthogonal, the posterior is diagonal. Then p(x|z) p(z) / q(z|x) is p(x)
    for every z, so the estimate is exact for any number of samples.
    """
    w = 0.1 * torch.linalg.qr(uniform(12, 3))[0]
    b = uniform(12, seed=1, low=-0.3, high=0.3)
    variance = 0.15**2
    x = 0.9 * uniform(20, 12, seed=2)
    posterior = 1 / (1 + 0.1**2 / variance)  # its variance: the columns of W have length 0.1
    logvar = torch.full((20, 3), math.log(posterior))
    model = argparse.Namespace(
        encode=lambda images: ((images.flatten(1) - b) @ w / variance * posterior, logvar),
        decoder=lambda z: torch.atanh(z @ w.T + b).view(20, 3, 2, 2),
        log_sigma=torch.tensor(0.5 * math.log(variance), dtype=torch.float64),
        likelihood="sigma",
    )
    covariance = w @ w.T + variance * torch.eye(12, dtype=torch.float64)
    for samples in (1, 7):
        generator = torch.Generator().manual_seed(samples)
        bound = vae_mlp.importance_bound(model, x.view(20, 3, 2, 2), samples, generator)
        expected = -MultivariateNormal(b, covariance).log_prob(x)
        torch.testing.assert_close(bound, expected, rtol=1e-5, atol=1e-5)


@every_likelihood
@torch.no_grad()
def test_more_samples_tighten_the_bound(likelihood):
    vae = network(size=8, likelihood=likelihood, kl_weight=0.7 if likelihood == "gaussian" else 1.0)
    vae.decoder[0].weight *= 10  # a decoder that needs z, and an encoder that does not know it
    vae.decoder[4].weight *= 3
    x = (torch.rand(40, 1, 1, 1) * 2 - 1).expand(-1, 3, 8, 8).contiguous()
    generator = torch.Generator().manual_seed(1)
    means = [vae_mlp.importance_bound(vae, x, k, generator).mean().item() for k in (1, 8, 64, 512)]
    draws = [vae_mlp.loss_terms(vae, x, *vae(x, torch.randn(40, 6)))[2].mean() for _ in range(200)]
    bound = torch.stack(draws).mean().item()
    noise = torch.stack(draws).std().item()
    assert means[0] == pytest.approx(bound, abs=4 * noise)  # one sample: the ELBO
    assert bound - 4 * noise / math.sqrt(200) > means[1] > means[2] > means[3]


@both
@every_likelihood
def test_gradients_are_finite_differences(script, likelihood):
    model = network(script, 16, likelihood, 2.0).double().eval()
    x = uniform(4, 3, 16, 16)
    eps = uniform(4, 6, seed=9)
    labels = (torch.eye(3, dtype=torch.float64)[[0, 1, 2, 0]],) if script is cvae else ()

    def loss():
        nats, kl, _, _ = script.loss_terms(model, x, *model(x, *labels, eps))
        return (nats + model.kl_weight * kl).mean()

    loss().backward()
    for name, parameter in model.named_parameters():
        if parameter.grad is None:
            assert name == "log_sigma" and likelihood != "sigma"
            continue
        place = parameter.grad.abs().argmax()
        with torch.no_grad():
            values = parameter.view(-1)
            values[place] += 1e-6
            higher = loss().item()
            values[place] -= 2e-6
            difference = (higher - loss().item()) / 2e-6
        assert parameter.grad.view(-1)[place].item() == pytest.approx(difference, rel=1e-4), name


# --------------------------------------------------------------------------------------- training


def textbook(script, args):
    """The algorithm written plainly, with distributions and Adam's plain loop over weights.

    Returns the losses of each step, the weights at the start, at the end and averaged, the network.
    """
    data, _ = datasets.load_parts("tiny.npz", 16, args.hold_out)
    balance = getattr(args, "balance", False)
    batches = datasets.Batches(data, 8, seed=args.seed, balance=balance)
    model = network(script, 16, args.likelihood, args.kl_weight)  # seed 0, as in `flags`
    start = [p.clone() for p in model.parameters()]
    average = [p.clone() for p in model.parameters()]
    optimizer = torch.optim.Adam(model.parameters(), foreach=False)
    losses = []
    for step in range(args.steps):
        optimizer.param_groups[0]["lr"] = args.lr * args.lr_decay**step
        rows, _ = batches.rows(step)
        x = data.images[rows].float() / 127.5 - 1
        output, mu, logvar = plain(model, x, data.labels[rows], torch.randn(8, 6))
        kl = kl_divergence(Normal(mu, logvar.exp().sqrt()), Normal(0.0, 1.0)).sum(1).mean()
        if args.likelihood == "bernoulli":
            nats = nn.BCELoss(reduction="none")(torch.sigmoid(output), (x + 1) / 2)
        elif args.likelihood == "gaussian":
            nats = (x - output.tanh()).square() / 2
        else:
            nats = -Normal(output.tanh(), model.log_sigma.exp()).log_prob(x)
        nats = nats.sum((1, 2, 3)).mean()
        ramp = min(1.0, (step + 1) / args.kl_warmup) if args.kl_warmup else 1.0
        model.zero_grad()
        (nats + ramp * args.kl_weight * kl).backward()
        optimizer.step()
        decay = min(args.ema, (1 + step) / (10 + step))
        with torch.no_grad():
            for ours, theirs in zip(average, model.parameters(), strict=True):
                ours.copy_(decay * ours + (1 - decay) * theirs)
        losses.append([nats.item(), kl.item()])
    return losses, start, [list(model.parameters()), average], model


@both
@pytest.mark.parametrize(
    "flags",
    [
        "--likelihood=bernoulli",
        "--likelihood=gaussian --kl-weight=24 --kl-warmup=4",
        "--likelihood=sigma --ema=0.8 --lr-decay=0.9 --hold-out=10",
    ],
)
def test_training_is_the_algorithm_written_plainly(tiny, script, flags):
    if script is cvae:
        flags += " --balance"
    args, rows, checkpoint = train(script, f"--steps 6 --sample-every 2 {flags}")
    losses, start, models, model = textbook(script, args)
    for row, (nats, kl) in zip(rows, losses, strict=True):
        assert float(row["loss_recon"]) == pytest.approx(nats, rel=1e-3)
        assert float(row["loss_kl"]) == pytest.approx(kl, rel=1e-3, abs=1e-3)
    assert list(checkpoint["models"]) == [MODEL[script], "ema"][: 1 + (args.ema > 0)]
    names = [name for name, _ in model.named_parameters()]
    for (kind, state), weights in zip(checkpoint["models"].items(), models, strict=False):
        for name, theirs, first in zip(names, weights, start, strict=True):
            # As a whole: where a gradient is mere rounding, Adam moves a weight as far as any other
            assert (state[name] - theirs).norm() <= 0.03 * (theirs - first).norm()
        if kind == "ema":  # its BatchNorm: see test_cvae.py
            continue
        for name, theirs in model.named_buffers():
            torch.testing.assert_close(state[name], theirs, rtol=1e-3, atol=1e-4)


@both
@every_likelihood
def test_channels_last_and_bf16_give_nearly_the_same_gradients(script, likelihood):
    """bf16 keeps 8 bits: 0.4 % in each rounding, some percent after a dozen layers."""

    def gradients(memory_format, autocast):
        model = network(script, 16, likelihood).to(memory_format=memory_format)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
        torch.manual_seed(5)
        images = (torch.rand(8, 3, 16, 16) * 2 - 1).to(memory_format=memory_format)
        labels = (torch.arange(8) % 3,) if script is cvae else ()
        losses = script.train_step(model, optimizer, autocast, images, *labels, torch.tensor(1.0))
        with autocast():
            _, *distribution = model(images, *labels, torch.zeros(8, 6))
        assert all(tensor.dtype == torch.float32 for tensor in (*losses, *distribution))
        return [p.grad for p in model.parameters() if p.grad is not None]

    fp32 = contextlib.nullcontext
    plain_path = gradients(torch.contiguous_format, fp32)
    channels_last = gradients(torch.channels_last, fp32)
    half = gradients(torch.channels_last, lambda: torch.autocast("cpu", torch.bfloat16))
    for a, b, c in zip(plain_path, channels_last, half, strict=True):
        assert (b - a).norm() < 1e-4 * a.norm()
        assert (c - a).norm() < 0.2 * a.norm() and c.dtype == torch.float32


@both
def test_what_is_measured_is_held_out(tiny, script, monkeypatch):
    images = np.broadcast_to(np.arange(100, dtype=np.uint8)[:, None, None, None], (100, 16, 16, 3))
    np.savez("tiny.npz", images=images, labels=np.arange(100) % 3, classes=["a", "b", "c"])
    monkeypatch.setattr(metrics, "evaluate", lambda *_, **__: [])
    monkeypatch.setattr(metrics, "conditional", lambda *_, **__: [])
    calls = []
    measure = script.measure
    monkeypatch.setattr(script, "measure", lambda *given: calls.append(given) or measure(*given))
    preset = "animals" if script is cvae else "cats"
    flags = "--steps 2 --log-every 2 --hold-out 20 --eval-images 8 --sample-every 9"
    _, rows, checkpoint = train(script, f"--preset {preset} {flags}")
    _, held_out = datasets.load_parts("tiny.npz", 16, 20)
    known = set(held_out.images[:, 0, 0, 0].tolist())
    counts = []
    for _, data in calls:
        images = data if script is vae_mlp else data.images
        assert set(images[:, 0, 0, 0].tolist()) <= known
        assert script is vae_mlp or torch.equal(images[:, 0, 0, 0] % 3, data.labels)
        counts.append(len(images))
    # the examples at the start, the row of the log, the examples at the end, the final values
    assert counts == [16, 20, 16, 8]
    _, means = measure(script.load_model(checkpoint), calls[1][1])
    assert [float(rows[0][name]) for name in TEST_COLUMNS] == pytest.approx(means)


@both
@pytest.mark.parametrize(
    "flags, words",
    [
        ("--hold-out 100", "to less than that"),
        ("--hold-out 1", "from 2"),
        ("--data shapes --hold-out 50", "a test split of its own"),
        ("--kl-weight 0", "a number of at least"),
        ("--likelihood laplace", "invalid choice"),
        ("--size 7", "--size"),
    ],
)
def test_bad_input(tiny, script, flags, words, capsys):
    with pytest.raises(SystemExit) as stop:
        run_program(functools.partial(script.main, f"{TINY} {flags}".split()))
    error = capsys.readouterr().err
    assert stop.value.code == 2 and error.count("\n") == 1 and words in error
    assert not (tiny / "r").exists()


# ------------------------------------------------------------------------------- a trained model


@both
def test_averaged_and_plain_weights(tiny, script):
    _, _, checkpoint = train(script, "--steps 3 --ema 0.9 --likelihood gaussian --kl-weight 3")
    states = checkpoint["models"]
    for weights, name in (("ema", "ema"), ("plain", MODEL[script]), ("ema", MODEL[script])):
        model = script.load_model(checkpoint, weights=weights)
        for key, value in model.state_dict().items():
            assert torch.equal(value, states[name][key])
        assert (model.likelihood, model.kl_weight, model.training) == ("gaussian", 3.0, False)
        if weights == "plain":
            del states["ema"]  # the last round: there are no averaged ones


@both
@torch.no_grad()
def test_own_values(script):
    """Against each image alone, with the same noise. The importance bound is tested above."""
    model = network(script).eval()
    images = torch.randint(0, 256, (5, 3, 16, 16), dtype=torch.uint8)
    labels = torch.tensor([0, 2, 1, 1, 0])
    data = datasets.Images(images, labels, ["a", "b", "c"], "", "", False, "")
    values = script.own_values(model, data)
    noise = torch.randn(5, 6, generator=torch.Generator().manual_seed(0))
    terms = []
    for i in range(5):
        x = images[i : i + 1].float() / 127.5 - 1
        output, mu, logvar = plain(model, x, labels[i : i + 1], noise[i])
        torch.testing.assert_close(values["mu"][i : i + 1], mu)
        mean = torch.tanh(output)
        nats = -Normal(mean, model.log_sigma.exp()).log_prob(x).sum()
        kl = kl_divergence(Normal(mu, logvar.exp().sqrt()), Normal(0.0, 1.0)).sum()
        terms.append(torch.stack([nats, kl, nats + kl, F.mse_loss(mean, x)]))
    assert values["means"] == pytest.approx(torch.stack(terms).mean(0).tolist(), rel=1e-5)
    assert "samples)" not in metrics.table(metrics.autoencoder(**values, words=""))


def test_the_importance_bound_is_one_of_its_own_values():
    vae = network()
    images = torch.randint(0, 256, (5, 3, 16, 16), dtype=torch.uint8)
    data = datasets.Images(images, None, [], "", "", False, "")
    values = vae_mlp.own_values(vae, data, samples=4)
    x = images.float() / 127.5 - 1
    bound = vae_mlp.importance_bound(vae, x, 4, torch.Generator().manual_seed(0)).mean().item()
    assert values["importance_bound"] == pytest.approx(bound)
    table = metrics.table(metrics.autoencoder(**values, words="some images"))
    assert "bound (4 samples)" in table and "active latents" in table and "some images" in table


def test_generate():
    vae = network()
    z = torch.randn(48, 6, generator=torch.Generator().manual_seed(3))[:40]
    images = vae_mlp.generate(vae, 40, seed=3)
    assert images.dtype == torch.uint8
    assert torch.equal(images.float(), ((torch.tanh(vae.decoder(z)) + 1) * 127.5).round())
    assert torch.equal(vae_mlp.generate(vae, 7, seed=3, first=20), images[20:27])
    assert not torch.equal(vae_mlp.generate(vae, 7, seed=4), images[:7])


@both
@torch.no_grad()
@pytest.mark.parametrize("given", [False, True])
def test_walks_are_lines_between_reconstructions(script, given):
    model = network(script).eval()
    images = torch.randint(0, 256, (20, 3, 16, 16), dtype=torch.uint8)
    labels = torch.arange(20) % 3
    pool = datasets.Images(images, labels, ["a", "b", "c"], "", "", False, "")
    examples = datasets.pick(pool, slice(16))
    model.examples = examples if script is cvae else examples.images
    walks = script.walk(model, "images", 2, 5, seed=3, images=pool if given else None)
    order = torch.randperm(20 if given else 16, generator=torch.Generator().manual_seed(3))[:4]
    _, inputs, _ = plain(model, images[order].float() / 127.5 - 1, labels[order], 0)
    if script is cvae:  # what the decoder gets
        inputs = torch.cat([inputs, model.decoder_label(labels[order])], dim=1)
    inputs = torch.stack([inputs[:2], (inputs[:2] + inputs[2:]) / 2, inputs[2:]], dim=1)
    expected = ((torch.tanh(model.decoder(inputs.flatten(0, 1))) + 1) * 127.5).unflatten(0, (2, 3))
    assert (walks.unflatten(0, (2, 5))[:, [0, 2, 4]] - expected).abs().max() <= 0.51


@both
def test_real_images_train(here, real, script):
    preset, file = ("animals", "animals5.zip") if script is cvae else ("cats", "cats64.zip")
    flags = f"--preset {preset} --width 8 --steps 10 --batch 32 --eval-images 0 --out r".split()
    script.main([*flags, "--data", str(real(file))])
    assert (here / "r/samples/000010.png").exists()
    assert (here / "r/reconstructions/000010.png").exists()
    assert read_checkpoint("r")["examples"].shape == (16, 3, 64, 64)
