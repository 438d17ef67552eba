"""analysis.py: a look at a data set before anything is trained on it.

    python datasets.py food64 --stats            # counts, balance, channel moments, entropy floor
    python datasets.py food64 --svd svd.png      # how many dimensions the images take up

datasets.py calls these functions and prints or writes what they return. `images` are uint8
(N, C, H, W); `data` is a datasets.Images, of which images, labels, classes, name, note and
fingerprint are used. This file imports nothing of the collection.
"""

import io
import math

import torch

# ------------------------------------------------------------------------------------------ values


def entropy_floor(images):
    """The binary cross-entropy of the images with themselves, in nats per image.

    It is the mean over images of the sum of -p log p - (1 - p) log(1 - p) over their values
    p = byte / 255. The reconstruction term of a VAE with a Bernoulli likelihood cannot fall below.
    """
    counts = torch.zeros(256, dtype=torch.float64)  # how often each byte occurs
    for chunk in images.split(1024):
        counts += torch.bincount(chunk.flatten().int(), minlength=256)
    p = torch.arange(256, dtype=torch.float64) / 255
    entropies = torch.special.entr(p) + torch.special.entr(1 - p)
    return (counts @ entropies).item() / len(images)


def channel_moments(images):
    """Mean and standard deviation of each channel, for values in [0, 1]: two float64 (C,)."""
    sums = []
    for chunk in images.split(1024):
        values = chunk.float()
        means = [values.mean((0, 2, 3)), values.square().mean((0, 2, 3))]
        sums.append(torch.stack(means) * len(chunk))
    mean, mean_square = torch.stack(sums).double().sum(0) / len(images)
    variance = (mean_square - mean.square()).clamp(min=0)
    return mean / 255, variance.sqrt() / 255


def stats_text(data):
    """Counts, balance and channel moments of a data set, as lines of text."""
    n, channels, height, width = data.images.shape
    mean, std = channel_moments(data.images)
    means = " ".join(f"{value:.4f}" for value in mean)
    deviations = " ".join(f"{value:.4f}" for value in std)
    plural = "s" if channels > 1 else ""
    lines = [
        f"{data.name}: {n} images, {channels} channel{plural}, {height}x{width}, {data.note}; "
        f"fingerprint {data.fingerprint}",
        f"channel means {means}, standard deviations {deviations}",
        f"entropy floor {entropy_floor(data.images):.1f} nats per image: no cross-entropy summed "
        "over an image's values can be lower",
    ]
    if data.labels is None:
        return "\n".join([*lines, "no labels"])
    counts = torch.bincount(data.labels, minlength=len(data.classes)).tolist()
    for name, count in zip(data.classes, counts, strict=True):
        lines.append(f"  {name:24s} {count:7d}  {100 * count / n:5.1f} %")
    ratio = max(counts) / max(min(counts), 1)
    lines.append(f"balance: the largest class has {ratio:.2f} times as many images as the smallest")
    return "\n".join(lines)


# ----------------------------------------------------------------------------------------- classes


def jensen_shannon(p_counts, q_counts):
    """How far two class distributions are apart: Jensen-Shannon (distance, divergence) in nats.

    p_counts, q_counts: the numbers of images of each class. With m = (p + q) / 2 and the entropy H,
    the divergence is H(m) - (H(p) + H(q)) / 2, from 0 to ln 2 (Lin 1991). The distance is its
    square root, which is what scipy.spatial.distance.jensenshannon returns: do not mix them up.
    """
    p = torch.as_tensor(p_counts, dtype=torch.float64) / sum(p_counts)
    q = torch.as_tensor(q_counts, dtype=torch.float64) / sum(q_counts)
    divergence = entropy((p + q) / 2) - (entropy(p) + entropy(q)) / 2
    divergence = max(divergence, 0.0)  # rounding can give -1e-16
    return math.sqrt(divergence), divergence


def entropy(p):
    """The entropy of a distribution p (float64 (K,), sums to 1) in nats, as a float."""
    return torch.special.entr(p).sum().item()


# -------------------------------------------------------------------------------------- dimensions


def spectrum(images):
    """Singular values and centered energies of N images, both float64 (min(N, D),), falling.

    D = C * H * W. The singular values are those of the (N, D) matrix of values in [0, 1] as it is.
    The energies are the squared singular values after the mean image is subtracted: N times the
    variances of the principal components.

    Both come from the eigenvalues of a Gram matrix, X X^T or X^T X, whichever is smaller. In
    float64 that matrix is exact, because the values are whole numbers from 0 to 255. Squaring costs
    half of the digits, and enough are left: for 1,000 photographs every singular value agrees with
    a float64 decomposition of the matrix itself to 2e-13 of its size, in a tenth of the time. In
    float32 that decomposition is right to 7e-6, and still takes six times as long as this.
    2,700 images of 64x64 take 15 seconds on one processor core, the 10,100 of Food-101 minutes.
    """
    flat = images.flatten(1)
    n, dim = flat.shape
    matrix = flat if n <= dim else flat.T
    gram = torch.zeros(len(matrix), len(matrix), dtype=torch.float64)
    for columns in matrix.split(1024, dim=1):  # converted in chunks, to save memory
        columns = columns.double()
        gram += columns @ columns.T
    if n <= dim:  # X X^T: subtract the mean on both sides, (I - 1/N) X X^T (I - 1/N)
        mean = gram.mean(0)
        centered = gram - mean[:, None] - mean + mean.mean()
    else:  # X^T X - N mean mean^T
        total = flat.sum(0, dtype=torch.float64)
        centered = gram - torch.outer(total, total) / n
    squares = torch.linalg.eigvalsh(gram).flip(0)
    energies = torch.linalg.eigvalsh(centered).flip(0)
    # Anything smaller is a rounding error and becomes 0, as in matrix_rank.
    tolerance = squares[0] * len(gram) * torch.finfo(torch.float64).eps
    squares = squares.where(squares > tolerance, 0) / 255**2
    energies = energies.where(energies > tolerance, 0) / 255**2
    return squares.sqrt(), energies


def components(energies, share):
    """The smallest number of principal components with this share of the energy.

    energies: falling; share: in (0, 1].
    """
    cumulative = energies.cumsum(0)
    enough = share * cumulative[-1] * (1 - 1e-12)  # a rounding error must not ask for one more
    return int((cumulative < enough).sum()) + 1


def elbow(values):
    """The number of values before the elbow of a falling curve, at least 1.

    The elbow is the point farthest from the chord between the ends of the curve, after both axes
    are scaled to [0, 1] (Satopaa et al. 2011, "Kneedle", without its smoothing).
    """
    height = (values[0] - values[-1]).clamp(min=1e-300)
    curve = (values - values[-1]) / height
    chord = torch.linspace(1, 0, len(curve), dtype=curve.dtype)
    return max(int((chord - curve).argmax()), 1)


def spectrum_sample(data):
    """Choose the images for `spectrum`: 100 of each class, or 5,000 if there are no labels.

    Returns (images, what they are in words). The choice is random but always the same.
    """
    if data.labels is None:
        images = data.images[random_order(len(data.images))[:5000]]
        return images, f"{len(images)} images of {images[0].numel()} values"
    chosen = []
    for label in range(len(data.classes)):
        indices = (data.labels == label).nonzero()[:, 0]
        chosen.append(indices[random_order(len(indices))[:100]])
    up_to = "up to " if min(len(indices) for indices in chosen) < 100 else ""
    images = data.images[torch.cat(chosen)]
    words = f"{len(images)} images, {up_to}100 of each class, of {images[0].numel()} values"
    return images, words


def random_order(n):
    """The numbers from 0 to n - 1 in a random order that is always the same, int64 (n,)."""
    return torch.randperm(n, generator=torch.Generator().manual_seed(0))


def draw_spectrum(data):
    """Plot the singular values of a sample of the images and find their effective dimension.

    Returns (a PNG picture as bytes, one line of text). Raises ValueError if matplotlib is not
    installed, or if all images are equal.
    """
    try:  # here, because everything else in this file works without it
        from matplotlib.figure import Figure  # not pyplot: no window, no global state
    except ImportError:
        message = "--svd draws with matplotlib, which is not installed: pip install matplotlib"
        raise ValueError(message) from None
    images, words = spectrum_sample(data)
    values, energies = spectrum(images)
    if energies[0] == 0:
        raise ValueError(f"'{data.name}' holds no two different images: their dimension is 0")
    centered_values = energies.sqrt()
    centered_elbow = elbow(centered_values)
    counts = {percent: components(energies, percent / 100) for percent in (90, 95, 99)}

    figure = Figure(figsize=(8, 5), dpi=110, layout="constrained")
    axis = figure.subplots()
    # The wide curve lies under the narrow one: they differ in the first few values only.
    draw_curve(axis, values, "of the images as they are", "#9ecae1", 5)
    draw_curve(axis, centered_values, "of the images without their mean", "#d95f02", 1.4)
    label = f"elbow of the latter: {centered_elbow}"
    axis.axvline(centered_elbow, color="#222222", linewidth=1, linestyle=":", label=label)
    for (percent, count), style in zip(counts.items(), ("-", "--", "-."), strict=True):
        label = f"{percent} % of the centered energy: {count}"
        axis.axvline(count, color="#777777", linewidth=1, linestyle=style, label=label)
    axis.set_yscale("log")
    axis.set_xlabel("index")
    axis.set_ylabel("singular value (values in [0, 1])")
    axis.set_title(f"{data.name}: {words}", fontsize=11, parse_math=False)  # $ in a name stays $
    axis.spines[["top", "right"]].set_visible(False)
    axis.legend(frameon=False, fontsize=9)
    png = io.BytesIO()
    figure.savefig(png, format="png")

    shares = ", ".join(f"{count} components for {percent} %" for percent, count in counts.items())
    text = (
        f"effective dimension from {words}: {shares} of the centered energy; elbow of the centered "
        f"singular values after {centered_elbow}, of the uncentered after {elbow(values)}"
    )
    return png.getvalue(), text


def draw_curve(axis, values, label, color, width):
    """Plot the positive values against their index, from 1 on."""
    values = values[values > 0].numpy()
    axis.plot(range(1, len(values) + 1), values, color=color, linewidth=width, label=label)
