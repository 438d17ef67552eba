"""Training throughput: the textbook's loop against ours, script by script, each in one interleaved run.

    python benchmarks/step.py                          # 64x64, the reports' networks: some minutes on two cores
    python benchmarks/step.py --scripts dcgan --rounds 9 --steps 20    # on a GPU
    python benchmarks/step.py --ablation               # what each trick gives: ours without it, beside ours

Textbook: our networks, trained as tutorials do it, from image files on disk. An ImageFolder is read by a DataLoader
with two workers (Resize, ToTensor, Normalize); fp32, contiguous; Adam in its plain loop; `.item()` of every loss at
every step; and in dcgan and cgan the backward pass of the generator's step also computes the discriminator's
gradients, which nobody uses (pytorch/examples). In wgan_gp the critic's loss runs back into the generator as well,
real, generated and mixed images pass the critic one after the other (PyTorch-GAN); one step is 5 updates of the critic
and 1 of the generator, and images are those that the critic saw as real. Ours: the script's train_step with the device,
precision and batches of its main.

The two take turns, so that a machine that slows down or speeds up does so for both; each in a process of its own, which
stands still while it is not its turn. The ratio is taken round by round; its median, smallest and largest value are
printed. Warm-up steps of both come first and are not counted.

The table at the end also says what an image costs in our step (floating-point operations of convolutions and matrix
products, as PyTorch counts them), and which share of the device's own rate that makes: of a large convolution for the
convolutional networks, of a large matrix product for vae_mlp, in the same precision.

--ablation takes one trick at a time out of ours, and these variants take turns with ours in the same way: images
decoded from files by the textbook's loader at every step; tensors contiguous instead of channels last; Adam weight by
weight in a loop instead of one kernel; on Linux, memory that goes back to the system when it is freed; and where ours
has them, oneDNN's convolutions instead of our own (processors with AMX), fp32 instead of bf16, and every operation
launched by itself instead of the captured step.
"""

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

BATCH = {"dcgan": 64, "cgan": 64, "vae_mlp": 128, "cvae": 128, "wgan_gp": 64, "ddpm": 32}
WIDTH = {"dcgan": 64, "cgan": 64, "vae_mlp": 512, "cvae": 64, "wgan_gp": 64, "ddpm": 32}


def parse_args(argv=None):
    parser = argparse.ArgumentParser(prog="step.py", description="Images a second: textbook loops against ours.")
    parser.error = lambda message: parser.exit(2, f"step.py: error: {message} (see --help)\n")
    parser.add_argument("--scripts", nargs="+", choices=list(BATCH), default=list(BATCH), help="[all]")
    parser.add_argument("--rounds", type=int, default=5, help="turns that each side gets [5]")
    parser.add_argument(
        "--steps",
        type=int,
        default=4,
        help="steps in one turn [4]; above 2: vae_mlp 10 times as many, wgan_gp a fourth",
    )
    parser.add_argument("--batch", type=int, help="[64; autoencoders: 128, ddpm: 32]")
    parser.add_argument("--size", type=int, default=64, help="[64]")
    parser.add_argument("--width", type=int, help="[64; vae_mlp: 512, ddpm: 32]")
    parser.add_argument("--ablation", action="store_true", help="ours without each of its tricks, beside ours")
    parser.add_argument("--device", default="auto", help="[auto]")
    parser.add_argument("--precision", choices=["auto", "fp32", "bf16"], default="auto", help="of our side [auto]")
    args = parser.parse_args(argv)
    if min(args.rounds, args.steps, args.batch or 1, args.width or 1) < 1:
        parser.error("--rounds, --steps, --batch and --width must be at least 1")
    return args


if __name__ == "__main__":
    ARGS = parse_args()

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

sys.path[:0] = map(str, Path(__file__).resolve().parents[:2])
import sides

import cgan
import cvae
import datasets
import dcgan
import ddpm
import vae_mlp
import wgan_gp

LATENT, CLASSES, CRITIC_STEPS = 100, 5, 5
TRICKS = "data in memory", "channels last", "fused Adam", "kept memory", "own convolutions", "bf16", "captured step"


def processor():
    """The name of the CPU, where the system tells it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def networks(args):
    """The networks of one script, always with the same weights."""
    torch.manual_seed(0)
    if args.script == "dcgan":
        generator = dcgan.Generator(args.size, 3, LATENT, args.width).apply(dcgan.init_weights)
        return generator, dcgan.Discriminator(args.size, 3, args.width).apply(dcgan.init_weights)
    if args.script == "wgan_gp":
        chosen = wgan_gp.parse_args([f"--size={args.size}", f"--width={args.width}", "--data=x"])
        return wgan_gp.build(chosen, 3)
    if args.script == "cgan":
        chosen = cgan.parse_args([f"--size={args.size}", f"--width={args.width}", f"--latent-dim={LATENT}", "--data=x"])
        return cgan.make_generator(chosen, 3, CLASSES), cgan.make_discriminator(chosen, 3, CLASSES)
    if args.script == "ddpm":
        return (ddpm.UNet(ddpm.parse_args([f"--size={args.size}", f"--width={args.width}", "--data=x"]), 3, CLASSES),)
    if args.script == "vae_mlp":
        return (vae_mlp.VAE(args.size, 3, 16, args.width),)
    return (cvae.CVAE(args.size, 3, CLASSES, 256, args.width),)


def write_files(data, folder):
    """Images -> JPEG files in class folders, as ImageFolder wants them."""
    for name in data.classes:
        (folder / name).mkdir()
    for index, (image, label) in enumerate(zip(data.images, data.labels, strict=True)):
        path = folder / data.classes[label] / f"{index:05d}.jpg"
        datasets.grid(image[None]).save(path, quality=90)


def textbook(args, folder, device):
    """A generator that trains one step each time it is asked."""
    from torchvision import transforms
    from torchvision.datasets import ImageFolder

    transform = transforms.Compose(
        [transforms.Resize(args.size), transforms.ToTensor(), transforms.Normalize((0.5,) * 3, (0.5,) * 3)]
    )
    loader = torch.utils.data.DataLoader(
        ImageFolder(folder, transform), args.batch, shuffle=True, num_workers=2, drop_last=True
    )
    models = [network.to(device) for network in networks(args)]
    train = {"dcgan": textbook_dcgan, "cgan": textbook_cgan, "wgan_gp": textbook_wgan_gp,
             "ddpm": textbook_ddpm}.get(args.script, textbook_vae)  # fmt: skip
    steps = train(loader, device, *models)
    while True:
        yield next(steps)


def plain_adam(network, **options):
    return torch.optim.Adam(network.parameters(), foreach=False, fused=False, **options)


def textbook_dcgan(loader, device, generator, discriminator):
    """After pytorch/examples dcgan/main.py, lines 190-260."""
    opt_d, opt_g = (plain_adam(n, lr=2e-4, betas=(0.5, 0.999)) for n in (discriminator, generator))
    criterion = nn.BCEWithLogitsLoss()
    while True:
        for real, _ in loader:
            discriminator.zero_grad()
            real = real.to(device)
            label = torch.ones(len(real), device=device)
            loss_real = criterion(discriminator(real), label)
            loss_real.backward()
            fake = generator(torch.randn(len(real), LATENT, device=device))
            label.fill_(0)
            loss_fake = criterion(discriminator(fake.detach()), label)
            loss_fake.backward()
            opt_d.step()

            generator.zero_grad()
            label.fill_(1)
            loss_g = criterion(discriminator(fake), label)
            loss_g.backward()  # through the discriminator, whose gradients accumulate until its next zero_grad
            opt_g.step()
            yield loss_real.item(), loss_fake.item(), loss_g.item()


def textbook_cgan(loader, device, generator, discriminator):
    """The loop of textbook_dcgan with the losses of R0b: hinge, and the cross-entropy of the class on both kinds."""
    opt_d, opt_g = (plain_adam(n, lr=2e-4, betas=(0.5, 0.999)) for n in (discriminator, generator))
    while True:
        for real, labels in loader:
            real, labels = real.to(device), labels.to(device)
            y = F.one_hot(labels, CLASSES).float()
            discriminator.zero_grad()
            score, label = discriminator(real, y)
            loss_real = F.relu(1 - score).mean() + F.cross_entropy(label, labels)
            loss_real.backward()
            fake = generator(torch.randn(len(real), LATENT, device=device), y)
            score, label = discriminator(fake.detach(), y)
            loss_fake = F.relu(1 + score).mean() + F.cross_entropy(label, labels)
            loss_fake.backward()
            opt_d.step()

            generator.zero_grad()
            score, label = discriminator(fake, y)
            loss_g = F.cross_entropy(label, labels) - score.mean()
            loss_g.backward()  # through the discriminator, whose gradients accumulate until its next zero_grad
            opt_g.step()
            yield loss_real.item(), loss_fake.item(), loss_g.item()


def textbook_wgan_gp(loader, device, generator, critic):
    """After PyTorch-GAN wgan_gp.py, its penalty mended: one epsilon an image, the norm over all its values."""
    for module in critic.modules():
        for name, child in list(module.named_children()):
            if isinstance(child, wgan_gp.LeakyReLU):
                setattr(module, name, nn.LeakyReLU(child.slope, inplace=True))
    opt_c, opt_g = (plain_adam(n, lr=1e-4, betas=(0.0, 0.9)) for n in (critic, generator))
    updates = 0
    while True:
        for real, _ in loader:
            real = real.to(device)
            opt_c.zero_grad()
            fake = generator(torch.randn(len(real), LATENT, device=device))
            on_real, on_fake = critic(real), critic(fake)
            epsilon = torch.rand(len(real), 1, 1, 1, device=device)
            x = (epsilon * real.data + (1 - epsilon) * fake.data).requires_grad_(True)
            scores = critic(x)
            (slopes,) = torch.autograd.grad(scores, x, torch.ones_like(scores), create_graph=True, retain_graph=True)
            penalty = ((slopes.view(len(real), -1).norm(2, dim=1) - 1) ** 2).mean()
            loss_c = on_fake.mean() - on_real.mean() + 10 * penalty
            loss_c.backward()  # through the generator too
            opt_c.step()
            updates += 1
            if updates % CRITIC_STEPS == 0:
                opt_g.zero_grad()
                loss_g = -critic(generator(torch.randn(len(real), LATENT, device=device))).mean()
                loss_g.backward()
                opt_g.step()
                yield loss_c.item(), loss_g.item(), penalty.item()


def textbook_ddpm(loader, device, model):
    """Algorithm 1 of Ho et al., as tutorials write it."""
    optimiser = plain_adam(model, lr=2e-4)
    while True:
        for x, labels in loader:
            x, labels = x.to(device), labels.to(device)
            t = torch.randint(1, len(model.signal), (len(x),), device=device)
            noise = torch.randn_like(x)
            loss = F.mse_loss(model(model.signal[t] * x + model.spread[t] * noise, t, labels), noise)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            yield (loss.item(),)


def textbook_vae(loader, device, model):
    """After pytorch/examples vae/main.py; for cvae.py with labels and the squared error of R0."""
    optimiser = plain_adam(model, lr=1e-3)
    while True:
        for x, labels in loader:
            x, labels = x.to(device), labels.to(device)
            if isinstance(model, cvae.CVAE):
                h = torch.cat([model.encoder(x), model.encoder_label(labels)], dim=1)
                mu, logvar = model.mu(h), model.logvar(h)
                z = mu + torch.randn_like(mu) * torch.exp(0.5 * logvar)
                output = torch.tanh(model.decoder(torch.cat([z, model.decoder_label(labels)], dim=1)))
                nats = F.mse_loss(output, x, reduction="sum")
            else:
                mu, logvar = model.encoder(x).chunk(2, dim=1)
                z = mu + torch.randn_like(mu) * torch.exp(0.5 * logvar)
                output = torch.sigmoid(model.decoder(z))
                nats = F.binary_cross_entropy(output, (x + 1) / 2, reduction="sum")
            kl = -0.5 * torch.sum(1 + logvar - mu.pow(2) - logvar.exp())
            loss = nats + kl
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            yield loss.item(), nats.item(), kl.item()


class Files(datasets.Batches):
    """Batches that come from image files through the textbook's loader, and are otherwise used as ours are."""

    def __init__(self, folder, data, batch, device):
        super().__init__(data, batch, device)
        from torchvision import transforms
        from torchvision.datasets import ImageFolder

        resize = transforms.Compose([transforms.Resize(data.images.shape[-1]), transforms.PILToTensor()])
        files = ImageFolder(folder, resize)
        self.loader = torch.utils.data.DataLoader(files, batch, shuffle=True, num_workers=2, drop_last=True)
        self.files = iter(())

    def draw(self):
        while (found := next(self.files, None)) is None:
            self.files = iter(self.loader)
        self.drawn += 1
        return torch.arange(self.batch, device=self.device), found[0].to(self.device)


class Contiguous(datasets.Batches):
    def __next__(self):
        images, labels = super().__next__()
        return images.contiguous(), labels


def ours(args, data, device, precision, without="", folder=None):
    """The same, as the script's main does it. without: the trick to leave out, a name of TRICKS."""
    script = sys.modules[args.script]
    own = {wgan_gp: [f"--critic-steps={CRITIC_STEPS}"], cgan: [f"--latent-dim={LATENT}"]}.get(script, [])
    given = [f"--{name}={getattr(args, name)}" for name in ("batch", "size", "width")]
    flags = script.parse_args([*given, *own, "--data=x"])
    flags.no_graph = without == "captured step"
    kinds = {"data in memory": functools.partial(Files, folder), "channels last": Contiguous}
    batches = kinds.get(without, datasets.Batches)(data, args.batch, device)
    memory = torch.contiguous_format if without == "channels last" else datasets.layout(device)
    models = [network.to(device, memory_format=memory) for network in networks(args)]
    betas = {dcgan: (0.5, 0.999), cgan: (0.5, 0.999), wgan_gp: (0.0, 0.9)}.get(script, (0.9, 0.999))
    kernel = datasets.adam_kernel(device)
    if without == "fused Adam":
        kernel |= {"fused": False, "foreach": False}
    optimisers = [torch.optim.Adam(m.parameters(), lr=flags.lr, betas=betas, **kernel) for m in models]
    more = [torch.tensor([0.0, 1.0], device=device)[:, None, None, None]] if script is wgan_gp else []  # its scale

    def autocast():
        return datasets.autocast(device, "fp32" if without == "bf16" else precision)

    train = datasets.Captured(
        script.train_step, script.schedule, flags, batches, *models, *optimisers, None, *more, autocast
    )
    step = 0
    while True:
        yield train(step)
        step += 1


def rate(side, args, device):
    """Images a second over one turn. Waits for the device at both ends."""

    def wait():
        if device.type != "cpu":
            getattr(torch, device.type).synchronize()

    wait()
    start = time.perf_counter()
    for _ in range(args.steps):
        next(side)
    wait()
    images = args.steps * args.batch * (CRITIC_STEPS if args.script == "wgan_gp" else 1)
    return images / (time.perf_counter() - start)


class Operations(TorchDispatchMode):
    """Counts floating-point operations. (PyTorch's FlopCounterMode, whose formulas these are, also follows modules, and
    stumbles there over the gradient penalty's second derivative.)"""

    count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        found = function(*args, **(kwargs or {}))
        if formula := flop_registry.get(function._overloadpacket):
            self.count += formula(*args, **(kwargs or {}), out_val=found)
        return found


def device_rate(script, device, precision):
    """Floating-point operations a second of one large layer, forward: the best of five."""
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    with torch.no_grad():
        if script == "vae_mlp":
            layer, x, count = nn.Linear(4096, 4096), torch.randn(2048, 4096), 2 * 2048 * 4096**2
        else:
            layer, x = nn.Conv2d(256, 256, 3, padding=1), torch.randn(32, 256, 32, 32)
            count = 2 * 32 * 32 * 32 * 256 * 256 * 9
        memory = torch.channels_last if x.dim() == 4 else torch.contiguous_format
        layer, x = layer.to(device, dtype, memory_format=memory), x.to(device, dtype, memory_format=memory)

        def seconds():
            layer(x)
            if device.type != "cpu":
                getattr(torch, device.type).synchronize()
            return time.perf_counter()

        times = [seconds() for _ in range(7)]
    return count / min(b - a for a, b in zip(times[1:], times[2:], strict=False))


def begin(kind, args, folder, device, precision):
    """In the process of a side, warmed up: a function that trains for a turn and returns its images a second.

    kind: "textbook", "ours", or "without " and one of TRICKS.
    """
    torch.backends.cudnn.benchmark = True  # as in Run; for the textbook too
    if kind == "textbook":
        side = textbook(args, folder, device)
    else:
        without = kind.removeprefix("ours").removeprefix("without ")
        datasets.keep_memory(device.type == "cpu" and without != "kept memory")  # as pick_device does
        if device.type == "cpu" and datasets.matrix_units() and without != "own convolutions":
            datasets.quick_convolutions()
        side = ours(args, some_images(args), device, precision, without, folder)
    for _ in range(2 if device.type == "cpu" else 20):
        next(side)
    return functools.partial(rate, side, args, device)


def turns(kinds, args, device, precision):
    """[[images a second of each kind] for every round]. kinds: see `begin`."""
    print(f"{args.script}: {args.rounds} rounds of {args.steps} steps; batch {args.batch}, width {args.width}")
    rounds = []
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        write_files(some_images(args), Path(folder))
        there = [
            stack.enter_context(contextlib.closing(sides.Side(begin, kind, args, folder, device, precision)))
            for kind in kinds
        ]
        for number in range(args.rounds):
            rounds.append([side.turn() for side in there])
            found = ", ".join(f"{kind} {value:.1f}" for kind, value in zip(kinds, rounds[-1], strict=True))
            print(f"round {number + 1}: {found} img/s", flush=True)
    return rounds


def some_images(args):
    data = datasets.load("shapes", args.size)
    rows = slice(max(2000, 4 * args.batch))
    return data._replace(images=data.images[rows], labels=data.labels[rows])


def ablate(args, device, precision):
    """One script: what is left of our speed without each of TRICKS that this device has. Returns a table's row."""
    there = {"bf16": precision == "bf16", "captured step": device.type == "cuda"}
    there |= {"channels last": args.script != "vae_mlp", "kept memory": device.type == "cpu"}
    amx = device.type == "cpu" and datasets.matrix_units()
    there["own convolutions"] = amx and there["bf16"] and there["channels last"]
    kinds = ["ours", *(f"without {trick}" for trick in TRICKS if there.get(trick, True))]
    rounds = turns(kinds, args, device, precision)
    shares = {kind: statistics.median(row[k] / row[0] for row in rounds) for k, kind in enumerate(kinds)}
    cells = [f"{shares[name]:.2f}" if (name := f"without {trick}") in shares else "-" for trick in TRICKS]
    return f"| {args.script} | {statistics.median(row[0] for row in rounds):.1f} | {' | '.join(cells)} |"


def compare(args, device, precision):
    """One script: prints its rounds and its ratio; returns the median ratio, ours to textbook, and a table's row."""
    rounds = turns(["textbook", "ours"], args, device, precision)
    with Operations() as operations:
        next(ours(args, some_images(args), device, precision, "captured step"))
    ratios = [b / a for a, b in rounds]
    median = statistics.median(ratios)
    plain, fast = map(statistics.median, zip(*rounds, strict=True))
    print(f"median: textbook {plain:.1f}, ours {fast:.1f} img/s")
    print(f"ratio {median:.2f} (from {min(ratios):.2f} to {max(ratios):.2f})")
    cost = operations.count / (args.batch * (CRITIC_STEPS if args.script == "wgan_gp" else 1))
    top = device_rate(args.script, device, precision)
    return median, (
        f"| {args.script} | {plain:.1f} | {fast:.1f} | {median:.2f} ({min(ratios):.2f} to {max(ratios):.2f}) | "
        f"{cost / 1e9:.2f} | {fast * cost / 1e9:,.0f} of {top / 1e9:,.0f} ({fast * cost / top:.0%}) |"
    )


def main(args):
    """Prints the table; returns {script: median ratio}."""
    device, precision = datasets.pick_device(args.device, args.precision)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else processor()
    print(f"{name}, {torch.get_num_threads()} threads, torch {torch.__version__}; textbook: fp32, ours: {precision}")
    print(f"{args.size}x{args.size}")
    found, table = {}, []
    for script in args.scripts:
        chosen = argparse.Namespace(**vars(args), script=script)
        chosen.batch, chosen.width = args.batch or BATCH[script], args.width or WIDTH[script]
        if args.steps > 2:
            chosen.steps = {"vae_mlp": args.steps * 10, "wgan_gp": math.ceil(args.steps / 4)}.get(script, args.steps)
        if args.ablation:
            table.append(ablate(chosen, device, precision))
        else:
            found[script], row = compare(chosen, device, precision)
            table.append(row)
    if args.ablation:
        print(f"\n| script | ours, img/s | {' | '.join(f'without {trick}' for trick in TRICKS)} |")
    else:
        print("\n| script | plain, img/s | ours, img/s | ratio | GFLOP an image | GFLOP/s, ours and the device's |")
    print("|" + "---|" * (table[0].count("|") - 1), *table, sep="\n")
    return found


if __name__ == "__main__":
    datasets.run_program("step.py", main, ARGS)
