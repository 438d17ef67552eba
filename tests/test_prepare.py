"""What people's images are like: other depths than 8 bits, odd metadata, few or damaged files.

Each row of a table is one case. What is expected comes from numpy or from the file formats.
"""

import importlib
import io
import json
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import make_folder, picture
from PIL import Image, ImageCms, PngImagePlugin, TiffImagePlugin

import datasets
import sources
import training
from datasets import load
from sources import InputError

RAMP = np.arange(256).reshape(16, 16)
SCRIPTS = ["dcgan", "vae_mlp", "cvae", "gan_resnet", "cgan", "wgan_gp", "ddpm"]


def save(folder, **files):
    """Save images in a new folder. A name's last underscore stands for the dot."""
    folder.mkdir()
    for name, image in files.items():
        stem, suffix = name.rsplit("_", 1)
        path = folder / f"{stem}.{suffix}"
        if isinstance(image, bytes):
            path.write_bytes(image)
        else:
            image = image if isinstance(image, Image.Image) else Image.fromarray(image)
            image.save(path)
    return folder


def packed(image, kind="PNG", **options):
    """The bytes of an image file."""
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


# ------------------------------------------------------------------------------------- values


def floats(values):
    return np.asarray(values, np.float32)


def with_numbers_missing(values):
    values = floats(values)
    values[0, 1:4] = [np.nan, np.inf, -np.inf]
    return values


STRANGE = RAMP.copy()
STRANGE[0, 1:4] = [0, 255, 0]  # NaN black, infinity white, minus infinity black

# file name, values, expected pixels, what the line says
VALUES = {
    "float-0-1": ("a_tif", floats(RAMP / 255), RAMP, "1 image of floats, where 0 to 1 "),
    "float-0-255": ("a_tif", floats(RAMP), RAMP, "where 0 to 255 "),
    "float-0-0.9": ("a_tif", floats(RAMP / 255 * 0.9), RAMP * 0.9, "where 0 to 1 "),
    "float-hdr": ("a_tif", floats(RAMP / 255 * 3.5), RAMP, "where 0 to 3.5 "),
    "float-tiny": ("a_tif", floats(RAMP / 255 * 0.01), RAMP, "where 0 to 0.01 "),
    "float-signed": ("a_tif", floats(RAMP / 127.5 - 1), RAMP, "where -1 to 1 "),
    "float-16-bit": ("a_tif", floats(RAMP * 257), RAMP, "where 0 to 65535 "),
    "float-nan": ("a_tif", with_numbers_missing(RAMP / 255), STRANGE, "1 image with NaN"),
    "float-pfm": ("a_pfm", floats(RAMP / 255), RAMP, "where 0 to 1 "),
    "float-one-value": ("a_tif", floats(RAMP * 0 + 0.5), RAMP * 0 + 127.5, "from 128 to 128"),
    "float-huge": ("a_tif", floats((RAMP - 128.0) * 2e36), RAMP, "where -2.56e+38 to 2.54e+38 "),
    "int32": ("a_tif", RAMP.astype(np.int32), RAMP, "1 image of 32-bit numbers, where 0 to 255 "),
    "int32-negative": ("a_tif", RAMP.astype(np.int32) - 100, RAMP, "where -100 to 155 "),
    "int32-large": ("a_tif", (RAMP * 1000).astype(np.int32), RAMP, "where 0 to 255000 "),
    "int32-mask": ("a_tif", (RAMP > 99).astype(np.int32), (RAMP > 99) * 255, "where 0 to 1 "),
    "16-bit": ("a_png", (RAMP * 257).astype(np.uint16), RAMP, "16-bit numbers, where 0 to 65535"),
    "16-bit-low-byte": ("a_tif", (RAMP * 256 + 9).astype(np.uint16), RAMP, "0 to 65535"),
    "16-bit-big-endian": ("a_tif", (RAMP * 257).astype(">u2"), RAMP, "where 0 to 65535 "),
    "12-bit": ("a_png", (RAMP * 16).astype(np.uint16), RAMP, "where 0 to 4095 "),
    "10-bit": ("a_tif", (RAMP * 4).astype(np.uint16), RAMP, "where 0 to 1023 "),
    "8-bit-in-16": ("a_png", RAMP.astype(np.uint16), RAMP, "where 0 to 255 "),
    "thermal": ("a_png", (29000 + RAMP * 8).astype(np.uint16), RAMP, "where 29000 to 31040 "),
    "16-bit-pgm": ("a_pgm", (RAMP * 257).astype(np.uint16), RAMP, "where 0 to 65535 "),
    "8-bit": ("a_png", RAMP.astype(np.uint8), RAMP, ""),
    "1-bit": ("a_png", Image.fromarray(RAMP > 99), (RAMP > 99) * 255, ""),
    "1-bit-tiff": ("a_tif", Image.fromarray(RAMP > 99), (RAMP > 99) * 255, ""),
    "palette": ("a_png", Image.fromarray(RAMP.astype(np.uint8)).convert("P"), RAMP, ""),
    "one-color": ("a_png", Image.new("RGB", (16, 16), (3, 4, 9)), None, "from 3 to 9"),
    "12-bit-color": ("a_png", Image.new("RGB", (16, 16), (15, 0, 9)), None, "next to nothing"),
}


@pytest.mark.parametrize("case", VALUES)
def test_values(here, capsys, case):
    name, values, expected, words = VALUES[case]
    try:
        folder = save(here / "photos", **{name: values})
    except (OSError, KeyError, ValueError):
        pytest.skip("this Pillow cannot write such a file")
    pixels = load(folder, 16).images[0].numpy()
    said = capsys.readouterr().err
    if expected is not None:
        assert np.abs(pixels[0] - np.floor(np.asarray(expected, float))).max() <= 1
    if words:
        assert words in said and said.count("\n") <= 2
    if words and "1 image of" in said:
        assert f"; the first: {name.replace('_', '.')}\n" in said
    if words == "":
        assert not said


def test_black_images_are_said(here, capsys):
    black = Image.new("RGB", (16, 16), (15, 0, 9))
    load(save(here / "photos", a_png=black, b_png=RAMP.astype(np.uint8), c_png=black), 16)
    said = capsys.readouterr().err
    assert "2 images all but black; the first: a.png\n" in said and said.count("\n") == 1


def test_brightness_stays_comparable(here, capsys):
    """One scale for the whole set, each kind of number apart; images of 8 bits stay as they are."""
    folder = save(
        here / "mixed",
        a_tif=floats(RAMP / 255),
        b_tif=floats(RAMP / 255 * 0.2),
        c_png=RAMP.astype(np.uint8),
        d_png=(RAMP * 128).astype(np.uint16),
        e_png=(RAMP * 257).astype(np.uint16),
        f_png=np.stack([RAMP, RAMP, RAMP], -1).astype(np.uint8),
    )
    pixels = load(folder, 16).images[:, 0].numpy()
    for row, factor in enumerate([1, 0.2, 1, 0.5, 1, 1]):
        assert np.abs(pixels[row] - np.floor(RAMP * factor)).max() <= 1
    assert np.array_equal(pixels[2], RAMP) and np.array_equal(pixels[5], RAMP)
    said = capsys.readouterr().err
    assert "mixed-" in said and "2 images of floats" in said and "the first: a.tif" in said
    assert "2 images of 16-bit numbers" in said and "the first: d.png" in said
    assert load(folder, 16).images.shape == (6, 3, 16, 16)  # from the cache
    assert not capsys.readouterr().err
    datasets.say_once.cache_clear()  # another program: it says the same about the same data
    load(folder, 16)
    assert capsys.readouterr().err == said


def test_an_image_without_a_number_is_unreadable(here, capsys):
    folder = save(here / "x", a_tif=floats(RAMP * np.nan), b_tif=floats(RAMP / 255))
    assert np.array_equal(load(folder, 16).images[0, 0].numpy(), RAMP)
    assert "skipped 1 of 2 unreadable images; the first: a.tif" in capsys.readouterr().err


def test_other_color_spaces(here):
    red = Image.new("RGB", (16, 16), (200, 30, 40))
    to_lab = ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB"), "RGB", "LAB"
    lab = ImageCms.applyTransform(red, ImageCms.buildTransform(*to_lab))
    folder = save(
        here / "colors",
        cmyk_jpg=packed(red.convert("CMYK"), "JPEG", quality=100),
        cmyk_tif=red.convert("CMYK"),
        lab_tif=lab,
        rgb_png=red,
        ycbcr_tif=red.convert("YCbCr"),
    )
    pixels = load(folder, 16).images.float()
    assert len(pixels) == 5
    assert (pixels - torch.tensor([200.0, 30, 40])[:, None, None]).abs().max() <= 4


# ----------------------------------------------------------------------------------- metadata

CORNERS = np.zeros((16, 16, 3), np.uint8)  # four colors, no symmetry
CORNERS[:8, :8, 0] = 255
CORNERS[:8, 8:, 1] = 255
CORNERS[8:, :8, 2] = 255
STORED = {  # EXIF orientation -> how the upright image lies in the file
    1: CORNERS,
    2: CORNERS[:, ::-1],
    3: CORNERS[::-1, ::-1],
    4: CORNERS[::-1],
    5: CORNERS.transpose(1, 0, 2),
    6: np.rot90(CORNERS),
    7: CORNERS[::-1, ::-1].transpose(1, 0, 2),
    8: np.rot90(CORNERS, -1),
}


def exif_block(*tags):
    """EXIF of tags (number, type, count, four bytes), by hand: Pillow writes no nonsense."""
    body = b"".join(struct.pack(">HHI4s", *tag) for tag in tags)
    return b"MM\0*" + struct.pack(">IH", 8, len(tags)) + body + bytes(4)


def orientation(turn):
    return (274, 3, 1, struct.pack(">HH", turn, 0))


TEXT_RESOLUTION = (282, 2, 4, b"abc\0")  # XResolution, but text


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "TIFF", "JPEG", "16-bit", "palette"])
def test_every_orientation(here, kind):
    """Also where the rest of the EXIF is nonsense, and one numpy rotation for each."""
    files = {}
    for turn, stored in STORED.items():
        image = Image.fromarray(np.ascontiguousarray(stored))
        exif = b"Exif\0\0" + exif_block(orientation(turn), TEXT_RESOLUTION)
        if kind == "TIFF":
            tags = TiffImagePlugin.ImageFileDirectory_v2()
            tags[274] = turn
            files[f"{turn}_tif"] = packed(image, kind, tiffinfo=tags)
        elif kind == "16-bit":
            values = np.ascontiguousarray(stored[..., 0]).astype(np.uint16) * 257
            files[f"{turn}_png"] = packed(Image.fromarray(values), "PNG", exif=exif)
        elif kind == "palette":
            files[f"{turn}_png"] = packed(image.convert("P", dither=0), "PNG", exif=exif)
        else:
            options = {"lossless": True, "quality": 100}
            if kind == "JPEG":
                options = {"quality": 100, "subsampling": 0}
            files[f"{turn}_{kind.lower()}"] = packed(image, kind, exif=exif, **options)
    pixels = load(save(here / "photos", **files), 16).images.permute(0, 2, 3, 1).int()
    expected = torch.from_numpy(CORNERS[..., :1] if kind == "16-bit" else CORNERS).int()
    assert len(pixels) == 8
    assert (pixels - expected).abs().max() <= (4 if kind == "JPEG" else 0)


def chunk(name, data, good=True):
    checksum = zlib.crc32(name + data) if good else 12345
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", checksum)


def png(*chunks, last=False):
    """A PNG with more chunks, at its beginning or before its end."""
    data = packed(Image.fromarray(CORNERS))
    place = len(data) - 12 if last else 33
    return data[:place] + b"".join(chunks) + data[place:]


def jpeg(marker, data, image=CORNERS):
    """A JPEG with one more segment at its beginning."""
    file = packed(Image.fromarray(image), "JPEG", quality=100, subsampling=0)
    return file[:2] + struct.pack(">BBH", 255, marker, len(data) + 2) + data + file[2:]


BOMB = zlib.compress(bytes(5_000_000))
ITXT = b"XML:com.adobe.xmp\0\1\0\0\0" + BOMB
EXIF = b"Exif\0\0"
METADATA = {
    "zTXt bomb": png(chunk(b"zTXt", b"a\0\0" + BOMB)),
    "iTXt bomb": png(chunk(b"iTXt", ITXT)),
    "iTXt bomb at the end": png(chunk(b"iTXt", ITXT), last=True),
    "iCCP bomb": png(chunk(b"iCCP", b"a\0\0" + BOMB)),
    "iCCP garbage": png(chunk(b"iCCP", b"a\0\0garbage")),
    "iCCP of another method": png(chunk(b"iCCP", b"a\0\7garbage")),
    "tEXt with a wrong checksum": png(chunk(b"tEXt", b"a\0b", good=False)),
    "private chunk with a wrong checksum": png(chunk(b"prVt", b"abc", good=False)),
    "cHRM of five bytes": png(chunk(b"cHRM", b"12345")),
    "gAMA of one byte": png(chunk(b"gAMA", b"1")),
    "pHYs empty": png(chunk(b"pHYs", b"")),
    "eXIf garbage": png(chunk(b"eXIf", b"garbage")),
    "acTL garbage": png(chunk(b"acTL", b"12")),
    "fcTL garbage": png(chunk(b"fcTL", b"12")),
    "EXIF with text as resolution": jpeg(0xE1, EXIF + exif_block(orientation(1), TEXT_RESOLUTION)),
    "EXIF with text as orientation": jpeg(0xE1, EXIF + exif_block((274, 2, 4, b"up\0\0"))),
    "EXIF with orientation 99": jpeg(0xE1, EXIF + exif_block(orientation(99))),
    "EXIF with no orientation": jpeg(0xE1, EXIF + exif_block((274, 3, 0, b"\0\6\0\6"))),
    "EXIF truncated": jpeg(0xE1, (EXIF + exif_block(orientation(6)))[:20]),
    "EXIF of other bytes": jpeg(0xE1, EXIF + b"garbage" * 9),
    "EXIF empty": jpeg(0xE1, EXIF),
    "EXIF that points beyond": jpeg(0xE1, EXIF + exif_block((34665, 4, 1, b"\xff\xff\0\0"))),
    "XMP garbage": jpeg(0xE1, b"http://ns.adobe.com/xap/1.0/\0<x:xmpmeta \xff\0\xfe"),
    "ICC garbage": jpeg(0xE2, b"ICC_PROFILE\0\1\1garbage"),
    "ICC one of two parts": jpeg(0xE2, b"ICC_PROFILE\0\1\2garbage"),
    "MPF garbage": jpeg(0xE2, b"MPF\0garbage"),
    "Photoshop garbage": jpeg(0xED, b"Photoshop 3.0\x008BIM\3\xed\0\0\0\0\xff\xffab"),
    "comment of other bytes": jpeg(0xFE, b"\xff\xfe\0"),
}


@pytest.mark.parametrize("case", METADATA)
def test_metadata_never_costs_an_image(here, capsys, case):
    data = METADATA[case]
    suffix = "png" if data.startswith(b"\x89PNG") else "jpg"
    pixels = load(save(here / "photos", **{f"a_{suffix}": data}), 16).images[0].permute(1, 2, 0)
    difference = (pixels.int() - torch.from_numpy(CORNERS).int()).abs()
    assert difference.max() <= (0 if suffix == "png" else 4)
    assert not capsys.readouterr().err


def test_truncated_pixels_are_no_metadata(here, capsys):
    """An image that is cut off is unreadable, whatever its format. So is a PNG's damaged pixel."""
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    files = {"good_png": noise}
    for kind in ("JPEG", "PNG", "WEBP", "TIFF"):
        data = packed(Image.fromarray(noise), kind)
        files[f"{kind}_{kind.lower()}"] = data[: len(data) // 2]
    flipped = bytearray(packed(Image.fromarray(noise)))
    flipped[len(flipped) // 2] ^= 1
    files["flipped_png"] = bytes(flipped)
    assert len(load(save(here / "photos", **files), 64).images) == 1
    assert "skipped 5 of 6 unreadable images" in capsys.readouterr().err
    # a wrong color of a palette is found by its checksum alone
    palette = bytearray(packed(Image.fromarray(CORNERS).convert("P")))
    palette[palette.index(b"PLTE") + 5] ^= 1
    with pytest.raises(InputError, match="1 of 1 images cannot be read"):
        load(save(here / "palettes", a_png=bytes(palette)), 16)
    # Pillow's own reader is in place again
    assert PngImagePlugin.PngStream.__module__ == PngImagePlugin.__name__


# ---------------------------------------------------------------------------- odd images, counts


def test_sizes_without_pixels_and_without_end(here):
    header = struct.pack(">IIBBBBB", 30_000, 30_000, 8, 2, 0, 0, 0)
    bomb = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", b"") + chunk(b"IEND", b"")
    nothing = b"P6 0 5 255\n"

    def read(i):
        if i == 1:
            return Image.open(io.BytesIO(bomb))
        return Image.new("RGB", (0, 5)) if i == 0 else picture(7)

    source = sources.Source(["flat", "bomb", "good"], read, None, [], None)
    info = sources.prepare(source, 16, "out.npy", "set")
    assert info["shape"] == (1, 3, 16, 16)
    assert info["skipped"][0] == "flat: it is 0 pixels high or wide"
    assert info["skipped"][1].startswith("bomb: ") and "900000000 pixels" in info["skipped"][1]
    assert "skipped 2 of 3 unreadable images; the first: flat" in info["remarks"][-1]
    with pytest.raises(InputError, match="no images|cannot be read"):
        load(save(here / "flat", a_ppm=nothing, b_png=bomb), 16)


def test_of_several_images_in_a_file_the_first_is_used(here, capsys):
    red = Image.new("RGB", (16, 16), (200, 30, 40))
    more = {"save_all": True, "append_images": [Image.new("RGB", (16, 16), (10, 20, 220))]}
    good = packed(red, "GIF", **more)
    folder = save(
        here / "moving",
        animated_gif=good,
        animated_png=packed(red, "PNG", **more),
        animated_webp=packed(red, "WEBP", lossless=True, **more),
        pages_tif=packed(red, "TIFF", **more),
        plain_gif=packed(red, "GIF"),
        plain_tif=packed(red, "TIFF"),
    )
    (folder / "torn.gif").write_bytes(good[:-20])  # in its second image
    pixels = load(folder, 16).images.int()
    assert len(pixels) == 7
    assert (pixels - torch.tensor([200, 30, 40])[:, None, None]).abs().max() <= 4
    said = capsys.readouterr().err
    count = int(said.split(" images with several frames, of which only the first")[0].split()[-1])
    assert count in (4, 5) and "the first: animated.gif" in said and said.count("\n") == 1


@pytest.mark.parametrize(
    "total, damaged, good", [(60, 1, 1), (60, 5, 1), (60, 6, 0), (6, 5, 1), (5, 5, 0), (1, 1, 0)]
)
def test_a_handful_may_be_damaged(here, capsys, total, damaged, good):
    folder = make_folder(here / "photos", [f"{i:03d}.png" for i in range(total)], size=(4, 4))
    for i in range(damaged):
        (folder / f"{i:03d}.png").write_bytes(b"damaged")
    if good:
        assert len(load(folder, 8).images) == total - damaged
        words = f"skipped {damaged} of {total} unreadable images; the first: 000.png: damaged"
        assert words in capsys.readouterr().err
    else:
        words = "more than 5" if damaged < total else "all"
        words = f"^{damaged} of {total} images cannot be read, which is {words} "
        with pytest.raises(InputError, match=words):
            load(folder, 8)
        assert [path.suffix for path in (here / "data").iterdir()] == [".lock"]


def test_of_many_images_one_percent_may_be_damaged(here):
    good = Image.new("L", (8, 8), 200)

    def source(damaged):
        names = [str(i) for i in range(1000)]
        return sources.Source(names, lambda i: good if i >= damaged else None, None, [], None)

    assert len(sources.prepare(source(10), 8, "out.npy", "set")["skipped"]) == 10
    with pytest.raises(InputError, match="^11 of 1000 images cannot be read"):
        sources.prepare(source(11), 8, "out.npy", "set")


# ----------------------------------------------------------------------------------- small sets


def small_set(n, **arrays):
    rng = np.random.default_rng(0)
    labels = np.arange(n) % 2
    images = rng.integers(0, 256, (n, 16, 16, 3), dtype=np.uint8)
    np.savez("small.npz", images=images, labels=labels, **arrays)
    return ["--data", "small.npz", "--size", "16", "--device", "cpu"]


@pytest.mark.parametrize("script", SCRIPTS)
def test_sixty_photos(here, script, capsys):
    """The default of --batch gives way with a line. A number that was typed does not."""
    flags = small_set(60)
    main = importlib.import_module(script).main
    main([*flags, "--dry-run"])
    said = capsys.readouterr()
    assert "steps of 60 images" in said.out
    assert "note: training uses 60 images of 'small', so --batch is 60, not " in said.err
    assert said.err.count("\n") == 1
    main([*flags, "--dry-run", "--batch", "32"])
    assert "--batch" not in capsys.readouterr().err
    with pytest.raises(InputError, match="uses 60 images of 'small': --batch must not be more"):
        main([*flags, "--dry-run", "--batch", "61"])


def test_relatives_of_sixty_photos(here, capsys, monkeypatch):
    import cvae
    import dcgan

    flags = small_set(9, split=[0, 0, 0, 0, 0, 0, 1, 1, 1])
    dcgan.main([*flags, "--dry-run"])  # what is held out does not count
    assert "steps of 6 images" in capsys.readouterr().out
    flags = small_set(9)
    cvae.main([*flags, "--dry-run", "--hold-out", "3", "--balance"])
    assert "steps of 6 images" in capsys.readouterr().out
    with pytest.raises(InputError, match="uses 1 image of 'small', which is too few"):
        cvae.main([*flags, "--dry-run", "--hold-out", "8"])
    with pytest.raises(InputError, match="uses 1 image of 'small', which is too few"):
        dcgan.main([*small_set(1), "--dry-run"])
    dcgan.main([*small_set(2), "--dry-run"])
    assert "steps of 2 images" in capsys.readouterr().out
    for module in (training, datasets):
        monkeypatch.setattr(module, "WORLD", 3)
    dcgan.main([*small_set(61), "--dry-run"])  # each of three processes takes a third
    assert "so --batch is 20, not 128" in capsys.readouterr().err


def test_the_lowered_batch_stays_on_resume(here, no_plots, capsys):
    import dcgan

    flags = [*small_set(20), "--width", "4", "--latent-dim", "4", "--out", "run"]
    dcgan.main([*flags, "--steps", "1"])
    assert json.loads(Path("run/args.json").read_text())["flags"]["batch"] == 20
    capsys.readouterr()
    dcgan.main(["--resume", "run", "--steps", "2"])
    assert "--batch" not in capsys.readouterr().err
    assert training.read_checkpoint("run")["flags"]["batch"] == 20
    with pytest.raises(InputError, match="--batch was 20 in this run and cannot become 128"):
        dcgan.main(["--resume", "run", "--steps", "3", "--batch", "128"])


# -------------------------------------------------------------------------------------- caches


def changed(**values):
    """A damage to the .json: other values, or (None) fewer."""

    def damage(about, array):
        info = json.loads(about.read_text()) | values
        about.write_text(json.dumps({k: v for k, v in info.items() if v is not ...}))

    return damage


def cut(name, length):
    def damage(about, array):
        path = array if name == "array" else about
        path.write_bytes(path.read_bytes()[:length])

    return damage


def about_is(data):
    return lambda about, array: about.write_bytes(data)


def array_is(values):
    def damage(about, array):
        with open(array, "wb") as file:
            np.save(file, values, allow_pickle=True)

    return damage


CACHES = {
    "array truncated": cut("array", -5),
    "array cut in its header": cut("array", 40),
    "array empty": cut("array", 0),
    "array of garbage": lambda about, array: array.write_bytes(b"\x93NUMPY\1\0v\0{'descr': (((((("),
    "array is a zip": lambda about, array: np.savez(open(array, "wb"), a=np.zeros(3)),  # noqa: SIM115
    "array missing": lambda about, array: array.unlink(),
    "another number": array_is(np.zeros((5, 3, 16, 16), np.uint8)),
    "another size": array_is(np.zeros((6, 3, 8, 8), np.uint8)),
    "another type": array_is(np.zeros((6, 3, 16, 16), np.int8)),
    "objects": array_is(np.array([{}, []], object)),
    "json truncated": cut("json", 30),
    "json empty": cut("json", 0),
    "json not UTF-8": about_is(b'{"shape": "\xff\xfe"}'),
    "json a list": about_is(b"[1, 2]"),
    "json a number": about_is(b"7"),
    "json null": about_is(b"null"),
    "json nested": about_is(b"[" * 100_000),
    "json of NaN": about_is(b'{"shape": NaN, "stamp": NaN}'),
    "shape a text": changed(shape="6"),
    "shape missing": changed(shape=...),
    "stamp missing": changed(stamp=...),
    "labels missing": changed(labels=...),
    "labels too few": changed(labels=[0, 1]),
    "labels out of range": changed(labels=[0, 1, 0, 1, 0, 2]),
    "labels negative": changed(labels=[0, 1, 0, 1, 0, -1]),
    "labels huge": changed(labels=[0, 1, 0, 1, 0, 10**40]),
    "labels of text": changed(labels=["0", "1", "0", "1", "0", "1"]),
    "labels exchanged": changed(labels=[1, 1, 1, 0, 0, 0]),
    "labels fractions": changed(labels=[0, 1, 0, 1, 0, 0.5]),
    "labels nested": changed(labels=[[0], [1], 0, 1, 0, 1]),
    "labels a number": changed(labels=7),
    "labels empty": changed(labels=[]),
    "classes renamed": changed(classes=["a", "c"]),
    "classes missing": changed(classes=...),
    "classes too few": changed(classes=["a"]),
    "classes numbers": changed(classes=[1, 2]),
    "classes a text": changed(classes="ab"),
    "classes null": changed(classes=None),
    "split too short": changed(split=[0, 1]),
    "split of text": changed(split="train"),
    "split of others": changed(split=[0, 0, 0, 0, 0, 7]),
    "checksum missing": changed(checksum=...),
    "fingerprint missing": changed(fingerprint=...),
    "fingerprint a number": changed(fingerprint=3),
    "note missing": changed(note=...),
    "note null": changed(note=None),
}


@pytest.mark.parametrize("case", CACHES)
def test_a_damaged_cache_is_prepared_again(here, capsys, case):
    folder = make_folder(here / "set", [f"{c}/{i}.png" for c in "ab" for i in range(3)])
    before = load(folder, 16)
    about, array = (next((here / "data").glob(f"set-*-16{end}")) for end in (".json", ".npy"))
    pixels = before.images.clone()
    del before  # it is mapped from the file
    capsys.readouterr()
    CACHES[case](about, array)
    datasets.list_data()
    after = load(folder, 16)
    assert torch.equal(after.images, pixels) and after.labels.tolist() == [0, 0, 0, 1, 1, 1]
    assert after.classes == ["a", "b"] and not after.held_out
    said = capsys.readouterr().err
    assert "prepared again" in said and said.count("\n") == 1
    load(folder, 16)
    assert not capsys.readouterr().err


def test_a_folder_for_prepared_images_that_cannot_be(here):
    folder = make_folder(here / "set", ["a.png"])
    Path("data").write_text("a file")
    with pytest.raises(InputError, match="the folder data for prepared images cannot be written"):
        load(folder, 16)
    datasets.list_data()
    Path("data").unlink()
    Path("data").symlink_to(here / "nowhere" / "at" / "all")
    with pytest.raises(InputError, match="the folder data for prepared images cannot be written"):
        load(folder, 16)


@pytest.mark.parametrize(
    "flags, words",
    [
        (["--out", "used"], "'used' exists and is not empty"),
        (["--device", "abacus"], "no device 'abacus' here"),
        (["--weights", "none.pth", "--eval-every", "1"], "none.pth"),
        (["--resume", "used"], "no last.pt"),
    ],
)
def test_what_is_cheap_is_checked_before_the_preparation(here, monkeypatch, flags, words):
    import dcgan

    def prepare(*_):
        raise AssertionError("the images are prepared")

    monkeypatch.setattr(datasets, "prepare", prepare)
    make_folder(here / "used", ["notes.png"])
    data = [] if "--resume" in flags else ["--data", "used"]
    with pytest.raises(InputError, match=words):
        dcgan.main([*data, *flags])
