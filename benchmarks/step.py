"""Training throughput: a textbook loop against our step, script by script, in interleaved runs.

    python benchmarks/step.py                          # 64x64, the reports' networks: minutes
    python benchmarks/step.py --scripts dcgan --rounds 9 --steps 20    # on a GPU
    python benchmarks/step.py --ablation               # ours without each of its tricks

Textbook: our networks, trained as tutorials do it, from image files on disk. A DataLoader with two
workers reads an ImageFolder (Resize, ToTensor, Normalize). Everything is in fp32 and contiguous,
Adam runs in its plain loop, and every step calls `.item()` on every loss. In the GANs, the backward
pass of the generator's update also computes the discriminator's gradients, which nobody uses
(pytorch/examples). In wgan_gp, the critic's loss also runs back into the generator, and real,
generated and mixed images pass the critic one after the other (PyTorch-GAN).

Ours: the update functions of the script, with the batches, device and precision of its main. A step
of wgan_gp is 5 updates of the critic and 1 of the generator. Its images a second are those that the
critic sees as real.

Both sides take turns, so that a machine that slows down or speeds up does so for both. Each has a
process of its own, which is stopped while the other works. The ratio is taken in each round; its
median, lowest and highest value are printed. Warm-up steps of both sides come first.

The last column of the table compares the operations of our step with the device's own rate, that of
a large convolution (vae_mlp: a large matrix product) in the same precision.

--ablation takes one trick at a time out of our step, and these variants take turns with ours:
images decoded from files by the textbook's loader; tensors contiguous instead of channels last;
Adam in a loop over the weights; and where ours has them, fp32 instead of bf16, and no CUDA graphs.
"""

import signal

if __name__ == "__main__":  # Ctrl-C during the imports is silent; run_program takes over later
    signal.signal(signal.SIGINT, signal.SIG_DFL)

import argparse
import contextlib
import functools
import math
import platform
import statistics
import sys
import tempfile
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
import sides

import cgan
import cvae
import datasets
import dcgan
import ddpm
import gan_resnet
import training
import vae_mlp
import wgan_gp
from sources import new_parser, number, run_program

BATCH = {"vae_mlp": 128, "cvae": 128, "ddpm": 32}  # 64 for the others
WIDTH = {"vae_mlp": 512, "ddpm": 32}  # 64 for the others
BETAS = {"dcgan": (0.5, 0.999), "gan_resnet": (0.5, 0.999), "cgan": (0.5, 0.999)}
BETAS["wgan_gp"] = (0.0, 0.9)
LATENT_DIM = 100  # of the GANs
CLASSES = 5
CRITIC_STEPS = 5
TRICKS = ("data in memory", "channels last", "fused Adam", "bf16", "CUDA graph")


def parse_args(argv=None):
    parser = new_parser("step.py", __doc__)
    add = parser.add_argument
    some = number(int, 1)
    scripts = list(OURS)
    add("--scripts", nargs="+", choices=scripts, default=scripts, metavar="NAME", help="[all]")
    add("--rounds", type=some, default=5, help="turns of each side [%(default)s]")
    words = "steps in a turn [4]; if more than 2, vae_mlp takes 10 times as many, wgan_gp a quarter"
    add("--steps", type=some, default=4, help=words)
    add("--batch", type=some, help="[64; vae_mlp and cvae: 128, ddpm: 32]")
    add("--size", type=some, default=64, help="[%(default)s]")
    add("--width", type=some, help="[64; vae_mlp: 512, ddpm: 32]")
    add("--ablation", action="store_true", help="ours against ours without each of its tricks")
    add("--device", default="auto", help="auto, cpu, cuda, cuda:1 or mps [%(default)s]")
    add("--precision", choices=training.PRECISIONS, default="auto", help="of our side [auto]")
    return parser.parse_args(argv)


def processor():
    """The name of the CPU, where the system tells it."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def script_flags(args):
    """The Namespace of the script that is measured, and its defaults where we don't say."""
    given = [f"--{name}={getattr(args, name)}" for name in ("batch", "size", "width")]
    if args.script in GANS:
        given.append(f"--latent-dim={LATENT_DIM}")
    flags, _ = sys.modules[args.script].parse_args([*given, "--data=x"])
    return flags


def networks(args):
    """The networks of the script that is measured, always with the same weights."""
    torch.manual_seed(0)
    flags = script_flags(args)
    counts = [1000] * CLASSES
    if args.script == "dcgan":
        generator = dcgan.Generator(args.size, 3, LATENT_DIM, args.width)
        generator.apply(dcgan.init_weights)
        discriminator = dcgan.Discriminator(args.size, 3, args.width)
        return [generator, discriminator.apply(dcgan.init_weights)]
    if args.script == "gan_resnet":
        generator = gan_resnet.Generator(args.size, 3, [1000], LATENT_DIM, args.width)
        return [generator, gan_resnet.Discriminator(args.size, 3, 1)]
    if args.script == "cgan":
        sizes = (LATENT_DIM, args.width, flags.class_scale)
        generator = cgan.Generator(args.size, 3, counts, *sizes).apply(cgan.init_weights)
        kind = (flags.d_norm, flags.condition, flags.pooling)
        discriminator = cgan.Discriminator(args.size, 3, CLASSES, args.width, *kind)
        return [generator, discriminator.apply(cgan.init_weights)]
    if args.script == "wgan_gp":
        generator, critic = wgan_gp.make_networks(flags, 3)
        generator.scale = torch.tensor([0.0, 1.0])[:, None, None, None]
        return [generator, critic]
    if args.script == "ddpm":
        return [ddpm.UNet(vars(flags), 3, counts)]
    if args.script == "vae_mlp":
        return [vae_mlp.VAE(args.size, 3, 16, args.width, "bernoulli", 1.0)]
    return [cvae.CVAE(args.size, 3, counts, 256, args.width, "gaussian", 1.0)]


# ------------------------------------------------------------------------------- the textbook loops
# Each is a generator that trains one step each time it is asked.


def image_folder(args, folder, to_tensor):
    """A DataLoader with two workers, which decode the files of a folder at every step."""
    from torchvision import transforms
    from torchvision.datasets import ImageFolder

    files = ImageFolder(folder, transforms.Compose([transforms.Resize(args.size), *to_tensor]))
    options = {"shuffle": True, "num_workers": 2, "drop_last": True}
    return torch.utils.data.DataLoader(files, args.batch, **options)


def textbook(args, folder, device):
    from torchvision import transforms

    normalize = transforms.Normalize((0.5,) * 3, (0.5,) * 3)
    loader = image_folder(args, folder, [transforms.ToTensor(), normalize])
    models = [network.to(device) for network in networks(args)]
    return TEXTBOOK[args.script](loader, device, *models)


def plain_adam(network, lr, betas=(0.9, 0.999)):
    return torch.optim.Adam(network.parameters(), lr, betas, foreach=False, fused=False)


def textbook_dcgan(loader, device, generator, discriminator, classes=()):
    """After pytorch/examples dcgan/main.py, lines 190-260. classes: more input of both networks."""
    opt_d = plain_adam(discriminator, 2e-4, (0.5, 0.999))
    opt_g = plain_adam(generator, 2e-4, (0.5, 0.999))
    criterion = nn.BCEWithLogitsLoss()
    while True:
        for real, _ in loader:
            discriminator.zero_grad()
            real = real.to(device)
            label = torch.ones(len(real), device=device)
            loss_real = criterion(discriminator(real, *classes), label)
            loss_real.backward()
            z = torch.randn(len(real), LATENT_DIM, device=device)
            fake = generator(z, *classes)
            label.fill_(0)
            loss_fake = criterion(discriminator(fake.detach(), *classes), label)
            loss_fake.backward()
            opt_d.step()

            generator.zero_grad()
            label.fill_(1)
            loss_g = criterion(discriminator(fake, *classes), label)
            loss_g.backward()  # through the discriminator, whose gradients add up until zero_grad
            opt_g.step()
            yield loss_real.item(), loss_fake.item(), loss_g.item()


def textbook_gan_resnet(loader, device, generator, discriminator):
    """The loop of textbook_dcgan. All images are of one class, which these networks do not read."""
    return textbook_dcgan(loader, device, generator, discriminator, [None])


def textbook_cgan(loader, device, generator, discriminator):
    """The loop of textbook_dcgan with the losses of R0b: hinge, and the cross-entropy of the class
    on both kinds of images."""
    opt_d = plain_adam(discriminator, 2e-4, (0.5, 0.999))
    opt_g = plain_adam(generator, 2e-4, (0.5, 0.999))
    while True:
        for real, labels in loader:
            real, labels = real.to(device), labels.to(device)
            y = F.one_hot(labels, CLASSES).float()
            discriminator.zero_grad()
            score, logits = discriminator(real, y)
            loss_real = F.relu(1 - score).mean() + F.cross_entropy(logits, labels)
            loss_real.backward()
            fake = generator(torch.randn(len(real), LATENT_DIM, device=device), y)
            score, logits = discriminator(fake.detach(), y)
            loss_fake = F.relu(1 + score).mean() + F.cross_entropy(logits, labels)
            loss_fake.backward()
            opt_d.step()

            generator.zero_grad()
            score, logits = discriminator(fake, y)
            loss_g = F.cross_entropy(logits, labels) - score.mean()
            loss_g.backward()  # through the discriminator, whose gradients add up until zero_grad
            opt_g.step()
            yield loss_real.item(), loss_fake.item(), loss_g.item()


def textbook_wgan_gp(loader, device, generator, critic):
    """After PyTorch-GAN wgan_gp.py, with its penalty repaired: one epsilon for each image, and the
    norm over all values of the image."""
    for module in critic.modules():
        for name, child in list(module.named_children()):
            if isinstance(child, wgan_gp.LeakyReLU):
                setattr(module, name, nn.LeakyReLU(child.slope, inplace=True))
    opt_c = plain_adam(critic, 1e-4, (0.0, 0.9))
    opt_g = plain_adam(generator, 1e-4, (0.0, 0.9))
    updates = 0
    while True:
        for real, _ in loader:
            real = real.to(device)
            opt_c.zero_grad()
            fake = generator(torch.randn(len(real), LATENT_DIM, device=device))
            scores_real = critic(real)
            scores_fake = critic(fake)
            epsilon = torch.rand(len(real), 1, 1, 1, device=device)
            x = (epsilon * real.data + (1 - epsilon) * fake.data).requires_grad_(True)
            scores = critic(x)
            ones = torch.ones_like(scores)
            (slopes,) = torch.autograd.grad(scores, x, ones, create_graph=True, retain_graph=True)
            penalty = ((slopes.view(len(real), -1).norm(2, dim=1) - 1) ** 2).mean()
            loss_c = scores_fake.mean() - scores_real.mean() + 10 * penalty
            loss_c.backward()  # through the generator, too
            opt_c.step()
            updates += 1
            if updates % CRITIC_STEPS == 0:
                opt_g.zero_grad()
                z = torch.randn(len(real), LATENT_DIM, device=device)
                loss_g = -critic(generator(z)).mean()
                loss_g.backward()
                opt_g.step()
                yield loss_c.item(), loss_g.item(), penalty.item()


def textbook_ddpm(loader, device, unet):
    """Algorithm 1 of Ho et al., as tutorials write it."""
    optimizer = plain_adam(unet, 2e-4)
    signal, spread = unet.mixture[:, :, None, None, None]
    while True:
        for x, labels in loader:
            x, labels = x.to(device), labels.to(device)
            t = torch.randint(1, len(signal), (len(x),), device=device)
            noise = torch.randn_like(x)
            loss = F.mse_loss(unet(signal[t] * x + spread[t] * noise, t, labels), noise)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            yield (loss.item(),)


def textbook_vae(loader, device, model):
    """After pytorch/examples vae/main.py; for cvae.py with labels and the squared error of R0."""
    optimizer = plain_adam(model, 1e-3)
    while True:
        for x, labels in loader:
            x, labels = x.to(device), labels.to(device)
            eps = torch.randn(len(x), model.latent_dim, device=device)
            if isinstance(model, cvae.CVAE):
                output, mu, logvar = model(x, labels, eps)
                nats = F.mse_loss(torch.tanh(output), x, reduction="sum")
            else:
                output, mu, logvar = model(x, eps)
                output = torch.sigmoid(output)
                nats = F.binary_cross_entropy(output, (x + 1) / 2, reduction="sum")
            kl = -0.5 * torch.sum(1 + logvar - mu.pow(2) - logvar.exp())
            loss = nats + kl
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            yield loss.item(), nats.item(), kl.item()


TEXTBOOK = {
    "dcgan": textbook_dcgan,
    "gan_resnet": textbook_gan_resnet,
    "cgan": textbook_cgan,
    "vae_mlp": textbook_vae,
    "cvae": textbook_vae,
    "wgan_gp": textbook_wgan_gp,
    "ddpm": textbook_ddpm,
}

# ---------------------------------------------------------------------------------------- our loops
# The same, as the main of each script does it.


def ours(args, device, precision, without="", folder=None):
    """without: the trick to leave out, one of TRICKS."""
    flags = script_flags(args)
    if without == "data in memory":
        batches = from_files(args, folder, device)
    else:
        batches = datasets.Batches(some_images(args), args.batch, device)
    layout = datasets.layout(device)
    if without == "channels last":
        layout = torch.contiguous_format
        batches = contiguous(batches)
    adam = training.adam_options(device)
    if without == "fused Adam":
        adam |= {"fused": False, "foreach": False}
    models = []
    optimizers = []
    for model in networks(args):
        models.append(model.to(device, memory_format=layout))
        betas = BETAS.get(args.script, (0.9, 0.999))
        optimizers.append(torch.optim.Adam(model.parameters(), flags.lr, betas, **adam))
    if args.script == "wgan_gp":
        models[0].scale = models[0].scale.to(device)
    precision = "fp32" if without == "bf16" else precision
    autocast = functools.partial(training.autocast, device, precision)
    no_graph = without == "CUDA graph"
    captured = functools.partial(training.captured, device=device, no_graph=no_graph)
    return OURS[args.script](flags, batches, models, optimizers, autocast, captured)


def from_files(args, folder, device):
    """Batches like ours, which are decoded from files."""
    from torchvision import transforms

    loader = image_folder(args, folder, [transforms.PILToTensor()])
    while True:
        for images, labels in loader:
            images = datasets.from_uint8(images.to(device))
            yield images.contiguous(memory_format=datasets.layout(device)), labels.to(device)


def contiguous(batches):
    for images, labels in batches:
        yield images.contiguous(), labels


def our_dcgan(flags, batches, models, optimizers, autocast, captured):
    opt_g, opt_d = optimizers
    d_step = captured(functools.partial(dcgan.discriminator_step, *models, opt_d, autocast))
    g_step = functools.partial(dcgan.generator_step, *models, opt_g, autocast, flags.batch)
    g_step = captured(g_step)
    while True:
        real, _ = next(batches)
        d_step(real, None)
        yield g_step(None)


def our_gan_resnet(flags, batches, models, optimizers, autocast, captured):
    opt_g, opt_d = optimizers
    d_step = captured(functools.partial(gan_resnet.discriminator_step, *models, opt_d, autocast))
    g_step = functools.partial(gan_resnet.generator_step, *models, opt_g, autocast)
    g_step = captured(functools.partial(g_step, flags.similarity))
    while True:
        real, _ = next(batches)
        y = torch.ones(len(real), 1, device=real.device)
        d_step(real, y, None)
        yield g_step(real, y, None)


def our_cgan(flags, batches, models, optimizers, autocast, captured):
    opt_g, opt_d = optimizers
    d_step = captured(functools.partial(cgan.discriminator_step, *models, opt_d, autocast, flags))
    g_step = captured(functools.partial(cgan.generator_step, *models, opt_g, autocast, flags))
    while True:
        real, labels = next(batches)
        d_step(real, labels, None, take_r1=False)
        yield g_step(labels, None)


def our_wgan_gp(flags, batches, models, optimizers, autocast, captured):
    opt_g, opt_c = optimizers
    c_step = functools.partial(wgan_gp.critic_step, *models, opt_c, autocast, flags.penalty_weight)
    c_step = captured(c_step)
    g_step = functools.partial(wgan_gp.generator_step, *models, opt_g, autocast, flags.batch)
    g_step = captured(g_step)
    while True:
        for _ in range(CRITIC_STEPS):
            real, _ = next(batches)
            c_step(real, None, None, stage=0)
        yield g_step(None, None, stage=0)


def our_vae_mlp(flags, batches, models, optimizers, autocast, captured):
    step = captured(functools.partial(vae_mlp.train_step, *models, *optimizers, autocast))
    while True:
        images, _ = next(batches)
        yield step(images, training.scalar(flags.kl_weight, images.device))


def our_cvae(flags, batches, models, optimizers, autocast, captured):
    step = captured(functools.partial(cvae.train_step, *models, *optimizers, autocast))
    while True:
        images, labels = next(batches)
        yield step(images, labels, training.scalar(flags.kl_weight, images.device))


def our_ddpm(flags, batches, models, optimizers, autocast, captured):
    step = functools.partial(ddpm.unet_step, *models, *optimizers, autocast)
    step = captured(functools.partial(step, flags.drop_label, flags.flip))
    while True:
        yield step(*next(batches))


OURS = {
    "dcgan": our_dcgan,
    "gan_resnet": our_gan_resnet,
    "cgan": our_cgan,
    "vae_mlp": our_vae_mlp,
    "cvae": our_cvae,
    "wgan_gp": our_wgan_gp,
    "ddpm": our_ddpm,
}
GANS = ("dcgan", "gan_resnet", "cgan", "wgan_gp")

# ------------------------------------------------------------------------------------- measurements


def images_in(args):
    """Images in one step."""
    return args.batch * (CRITIC_STEPS if args.script == "wgan_gp" else 1)


def wait(device):
    if device.type != "cpu":
        getattr(torch, device.type).synchronize()


def rate(loop, args, device):
    """Images a second in one turn. Waits for the device at both ends."""
    wait(device)
    start = time.perf_counter()
    for _ in range(args.steps):
        next(loop)
    wait(device)
    return args.steps * images_in(args) / (time.perf_counter() - start)


class Operations(TorchDispatchMode):
    """Counts floating-point operations of convolutions and matrix products.

    With PyTorch's formulas; its FlopCounterMode also follows modules, and stumbles there over the
    second derivative of the gradient penalty.
    """

    count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        result = function(*args, **kwargs)
        formula = flop_registry.get(function._overloadpacket)
        if formula:
            self.count += formula(*args, **kwargs, out_val=result)
        return result


@torch.no_grad()
def device_rate(script, device, precision):
    """Floating-point operations a second of one large layer, forward: the best of five.

    On a GPU, where launching the layer takes as long as computing it, 50 times in a row.
    """
    if script == "vae_mlp":
        layer = nn.Linear(4096, 4096)
        x = torch.randn(2048, 4096)
        count = 2 * 2048 * 4096**2
        layout = torch.contiguous_format
    else:
        layer = nn.Conv2d(256, 256, 3, padding=1)
        x = torch.randn(32, 256, 32, 32)
        count = 2 * 32 * 32 * 32 * 256 * 256 * 9
        layout = torch.channels_last
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    layer = layer.to(device, dtype, memory_format=layout)
    x = x.to(device, dtype, memory_format=layout)
    repeats = 1 if device.type == "cpu" else 50
    times = []
    for _ in range(7):  # two to warm up
        wait(device)
        start = time.perf_counter()
        for _ in range(repeats):
            layer(x)
        wait(device)
        times.append((time.perf_counter() - start) / repeats)
    return count / min(times[2:])


def some_images(args):
    data = datasets.load("shapes", args.size)
    return datasets.pick(data, slice(max(2000, 4 * args.batch)))


def write_files(data, folder):
    """Images -> JPEG files in class folders, as ImageFolder wants them."""
    for name in data.classes:
        (folder / name).mkdir()
    for index, (image, label) in enumerate(zip(data.images, data.labels, strict=True)):
        path = folder / data.classes[label] / f"{index:05d}.jpg"
        datasets.grid(image[None]).save(path, quality=90)


def begin(kind, args, folder, device, precision):
    """In the process of a side, warmed up: a function that trains for a turn -> images a second.

    kind: "textbook", "ours", or "without " and one of TRICKS.
    """
    torch.backends.cudnn.benchmark = True  # as in pick_device; for the textbook, too
    if kind == "textbook":
        loop = textbook(args, folder, device)
    else:
        without = kind.removeprefix("ours").removeprefix("without ")
        loop = ours(args, device, precision, without, folder)
    for _ in range(2 if device.type == "cpu" else 20):
        next(loop)
    return functools.partial(rate, loop, args, device)


def turns(kinds, args, device, precision):
    """For every round the images a second of each kind. kinds: see `begin`."""
    size = f"batch {args.batch}, width {args.width}"
    print(f"{args.script}: {args.rounds} rounds of {args.steps} steps; {size}")
    rounds = []
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        write_files(some_images(args), Path(folder))
        processes = []
        for kind in kinds:
            process = sides.Side(begin, kind, args, folder, device, precision)
            processes.append(stack.enter_context(contextlib.closing(process)))
        for index in range(args.rounds):
            rates = [process.turn() for process in processes]
            rounds.append(rates)
            pairs = zip(kinds, rates, strict=True)
            words = ", ".join(f"{kind} {value:.1f}" for kind, value in pairs)
            print(f"round {index + 1}: {words} img/s", flush=True)
    return rounds


def ablate(args, device, precision):
    """One script: the cells of a table row, which share of our speed is left without each trick."""
    absent = {
        "channels last": args.script == "vae_mlp",
        "bf16": precision != "bf16",
        "CUDA graph": device.type != "cuda",
    }
    tricks = [trick for trick in TRICKS if not absent.get(trick)]
    rounds = turns(["ours", *(f"without {trick}" for trick in tricks)], args, device, precision)
    cells = [args.script, f"{statistics.median(rates[0] for rates in rounds):.1f}"]
    for trick in TRICKS:
        cell = "-"
        if trick in tricks:
            k = 1 + tricks.index(trick)
            cell = f"{statistics.median(rates[k] / rates[0] for rates in rounds):.2f}"
        cells.append(cell)
    return cells


def compare(args, device, precision):
    """One script: the median ratio, ours to textbook, and the cells of a table row."""
    rounds = turns(["textbook", "ours"], args, device, precision)
    with Operations() as operations:
        next(ours(args, device, precision, "CUDA graph"))
    plain = statistics.median(textbook for textbook, _ in rounds)
    fast = statistics.median(ours for _, ours in rounds)
    ratios = [ours / textbook for textbook, ours in rounds]
    ratio = statistics.median(ratios)
    spread = f"{min(ratios):.2f} to {max(ratios):.2f}"
    print(f"ratio {ratio:.2f} ({spread})")
    cost = operations.count / images_in(args)
    top = device_rate(args.script, device, precision)
    cells = [args.script, f"{plain:.1f}", f"{fast:.1f}", f"{ratio:.2f} ({spread})"]
    cells.append(f"{cost / 1e9:.2f}")
    cells.append(f"{fast * cost / 1e9:,.0f} of {top / 1e9:,.0f} ({fast * cost / top:.0%})")
    return ratio, cells


def measure(args):
    """Print the table. Returns {script: median ratio}, or {} with --ablation."""
    device, precision = training.pick_device(args.device, args.precision)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else processor()
    print(f"{name}, {torch.get_num_threads()} threads, torch {torch.__version__}")
    print(f"{args.size}x{args.size}; textbook: fp32, ours: {precision}")
    ratios = {}
    rows = [["script", "textbook, img/s", "ours, img/s", "ratio", "GFLOP an image"]]
    rows[0].append("GFLOP/s, ours and the device's")
    if args.ablation:
        rows = [["script", "ours, img/s", *(f"without {trick}" for trick in TRICKS)]]
    for script in args.scripts:
        chosen = argparse.Namespace(**vars(args), script=script)
        chosen.batch = args.batch or BATCH.get(script, 64)
        chosen.width = args.width or WIDTH.get(script, 64)
        if args.steps > 2 and script == "vae_mlp":
            chosen.steps = 10 * args.steps
        if args.steps > 2 and script == "wgan_gp":
            chosen.steps = math.ceil(args.steps / 4)
        if args.ablation:
            rows.append(ablate(chosen, device, precision))
        else:
            ratios[script], cells = compare(chosen, device, precision)
            rows.append(cells)
    rows.insert(1, ["---"] * len(rows[0]))
    print()
    for cells in rows:
        print(f"| {' | '.join(cells)} |")
    return ratios


def main(argv=None):
    measure(parse_args(argv))


if __name__ == "__main__":
    run_program(main)
