"""The functions of training.py that need no script. What all scripts promise: test_scripts.py."""

import copy
import math
import os
import sys

import numpy as np
import pytest
import torch
from scipy import stats
from torch import nn

import training
from sources import InputError, new_parser, number
from training import read_checkpoint

PRESETS = {
    "shapes": {"size": 32, "steps": 70, "lr": 1e-3, "lr_d": 5e-4},
    "cats": {"data": "cats64", "epochs": 50, "steps": 900, "lr": 2e-4, "report": {"FID": 132.7}},
}


def parse(*argv, presets=PRESETS):
    parser = new_parser("mygan.py", "A title.\n\nThe rest.\n\n    python mygan.py  # alone\n")
    parser.add_argument("--lr", type=number(float, 0), default=0.1)
    parser.add_argument("--lr-d", type=number(float, 0))
    training.add_run_flags(parser, presets)
    return training.parse(parser, presets, "mygan", list(argv))


# ------------------------------------------------------------------------------------------ flags


def test_defaults_preset_command_line():
    args, typed = parse()
    assert typed == set() and args.preset == "shapes"
    assert (args.steps, args.lr, args.lr_d, args.epochs, args.batch) == (70, 1e-3, 5e-4, 50, 128)
    args, typed = parse("--preset", "cats", "--batch", "8")
    assert typed == {"preset", "batch"}
    assert (args.data, args.steps, args.batch, args.lr_d) == ("cats64", 900, 8, None)
    args, _ = parse("--data", "photos")
    assert (args.preset, args.steps, args.lr) == (None, None, 0.1)
    args, typed = parse("--lr", "0.1", "--data", "photos")  # typed, although it is the default
    assert typed == {"lr", "data"}


def test_a_typed_length_or_rate_wins_over_the_preset():
    assert parse("--epochs", "3")[0].steps is None
    args, _ = parse("--epochs", "3", "--steps", "5")
    assert (args.epochs, args.steps) == (3, 5)
    assert parse("--lr", "0.5")[0].lr_d is None
    assert parse("--lr", "0.5", "--lr-d", "0.25")[0].lr_d == 0.25


def test_help_in_groups(capsys):
    with pytest.raises(SystemExit) as stop:
        parse("--help")
    out = capsys.readouterr().out
    words = " ".join(out.split())
    assert stop.value.code == 0
    assert out.endswith("examples:\n  # alone\n  python mygan.py\n\nMore at the top of mygan.py.\n")
    plain = "Without --data or --preset, the defaults are those of --preset shapes: --size=32"
    assert f"A title. {plain} --steps=70 --lr=0.001 --lr-d=0.0005 options:" in words
    for line in (
        "--data NAME|PATH a folder", "images in an update [128]", "[shapes] --size {16,32,64",
        "0: all [0]", "of all randomness [0]", "0: none [0.0]", "at each step [1.0]",
        "[768 2048] --weights FILE", "of defaults: shapes, cats [shapes for --data shapes]",
    ):  # fmt: skip
        assert line in words
    groups = ["\ndata:", "\ntraining:", "\nrun:", "\nevaluation:", "\nexamples:"]
    assert groups == sorted(groups, key=out.index)


def test_changed_flags():
    preset = {"lr": 0.2, "lr_d": 0.5, "batch": 32, "data": "cats64", "steps": 9, "report": {}}

    def changed(*argv):
        args, _ = parse("--preset=p", *argv, presets={"p": preset})
        return training.flag_words(training.changed_flags(args, preset))

    assert changed() == []
    # how a run is watched, and where, makes no other run of it
    assert changed("--out=x", "--log-every=7", "--eval-every=3", "--device=cpu", "--no-graph") == []
    assert changed("--lr=0.1", "--batch=64") == ["--lr=0.1", "--batch=64"]
    assert changed("--ema=0.5", "--seed=2") == ["--seed=2", "--ema=0.5"]  # those of no preset, too
    assert changed("--lr-d=0.25") == ["--lr-d=0.25"]
    assert changed("--dims", "64", "768") == ["--dims", "64", "768"]
    # the length counts in the unit that is in force
    assert changed("--steps=3") == changed("--steps=3", "--epochs=2") == ["--steps=3"]
    assert changed("--epochs=50") == ["--epochs=50"]  # the default, but the preset has steps
    # so does the rate that is typed, even where it is the preset's: its lr_d no longer counts
    assert changed("--lr=0.2") == ["--lr=0.2"]
    assert changed("--lr=0.2", "--lr-d=0.5") == []


def test_what_hides_the_number_of_a_report():
    presets = {"p": {"data": "cats64", "size": 64, "epochs": 50}}
    for flag, hidden in (
        ("--steps=2", True),
        ("--epochs=49", True),
        ("--data=./cats64", True),
        ("--size=32", True),
        ("--eval-images=500", True),
        ("--batch=8", False),
        ("--seed=1", False),
    ):
        args, _ = parse("--preset=p", flag, presets=presets)
        changed = training.changed_flags(args, presets["p"])
        assert bool(changed.keys() & training.COMPARABLE) == hidden


# ----------------------------------------------------------------------------------------- device


def test_pick_device(monkeypatch, capsys):
    cpu = torch.device("cpu")
    supported = "_is_avx512_bf16_supported"
    for native in (True, False):
        monkeypatch.setattr(torch.cpu, supported, lambda native=native: native, raising=False)
        assert training.pick_device("cpu") == (cpu, "bf16" if native else "fp32")
        assert training.pick_device("cpu", "fp32") == (cpu, "fp32")
        assert training.pick_device("cpu", "bf16") == (cpu, "bf16")
        assert ("no bf16 in hardware" in capsys.readouterr().err) is not native
    monkeypatch.setattr(torch.cpu, supported, lambda: True, raising=False)
    for amx in (True, False):
        monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda amx=amx: amx, raising=False)
        assert training.pick_device("cpu") == (cpu, "bf16")
        wanted = (cpu, "bf16" if amx else "fp32")
        assert training.pick_device("cpu", bf16_needs="amx_tile") == wanted
        assert training.pick_device("cpu", bf16_needs=None) == (cpu, "fp32")
        for precision in ("fp32", "bf16"):  # whoever asks, gets it
            assert training.pick_device("cpu", precision, "amx_tile") == (cpu, precision)
            assert training.pick_device("cpu", precision, None) == (cpu, precision)
    assert not capsys.readouterr().err
    monkeypatch.delattr(torch.cpu, "_is_amx_tile_supported")  # a torch that does not tell
    assert training.pick_device("cpu", bf16_needs="amx_tile") == (cpu, "fp32")
    for name in ("tpu", "cuda:77", "meta", ""):
        with pytest.raises(InputError, match="use --device auto, cpu"):
            training.pick_device(name)


def test_autocast():
    x = torch.ones(2, 2)
    with training.autocast(x.device, "fp32"):
        assert (x @ x).dtype == torch.float32
    with training.autocast(x.device, "bf16"):
        assert (x @ x).dtype == torch.bfloat16


def test_what_a_mac_is_spared():
    """Adam's single kernel is not on every Mac; layout() is tested with datasets.py."""
    assert training.adam_options(torch.device("mps")) == {"fused": False, "capturable": False}
    assert training.adam_options(torch.device("cuda")) == {"fused": True, "capturable": True}


def test_set_lr_and_scalar():
    optimizer = torch.optim.Adam([nn.Parameter(torch.zeros(1))], lr=0.5)
    training.set_lr(optimizer, 0.25)
    assert optimizer.param_groups[0]["lr"] == 0.25
    tensor = optimizer.param_groups[0]["lr"] = torch.tensor(1.0)
    training.set_lr(optimizer, 0.125)
    assert optimizer.param_groups[0]["lr"] is tensor and tensor == 0.125
    cpu = torch.device("cpu")
    assert training.scalar(0.0, cpu) is None and training.scalar(0, cpu) is None
    value = training.scalar(0.1, cpu)
    assert value.shape == () and value.dtype == torch.float32 and value == np.float32(0.1)


# ----------------------------------------------------------------------------------------- models


@pytest.mark.parametrize("count, size", [(200, 100), (201, 67), (60, 60)])
def test_recounted_statistics(count, size):
    """Against means and variances of batches, computed by hand. No batch is of one image alone."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(2, 3, 1), nn.BatchNorm2d(3), nn.Conv2d(3, 4, 1)).eval()
    model(torch.randn(7, 2, 5, 5))
    model[1].running_mean.fill_(9)  # of other weights
    x = torch.randn(count, 2, 5, 5) * 2 + 1
    training.recount_statistics(model, [x])
    batches = [model[0](part).transpose(0, 1).flatten(1) for part in x.split(size)]
    means = torch.stack([batch.mean(1) for batch in batches])
    variances = torch.stack([batch.var(1) for batch in batches])
    torch.testing.assert_close(model[1].running_mean, means.mean(0))
    torch.testing.assert_close(model[1].running_var, variances.mean(0))
    assert not model.training


@pytest.mark.parametrize("bias", [True, False])
def test_upsampling_and_convolution_in_one(bias):
    """The same images and gradients as nn.Upsample and nn.Conv2d, which has the kernel reversed."""
    torch.manual_seed(0)
    layer = training.UpsampleConv2d(5, 3, bias=bias).double()
    kernel = layer.weight.detach().flip(2, 3).transpose(0, 1).clone().requires_grad_()
    x = torch.randn(2, 5, 6, 4, dtype=torch.float64, requires_grad=True)
    expected = torch.conv2d(nn.Upsample(scale_factor=2)(x), kernel, layer.bias, padding=1)
    images = layer(x)
    assert images.shape == (2, 3, 12, 8)
    torch.testing.assert_close(images, expected)
    weights = torch.randn_like(images)
    ours = torch.autograd.grad((images * weights).sum(), [x, layer.weight])
    x_gradient, kernel_gradient = torch.autograd.grad((expected * weights).sum(), [x, kernel])
    torch.testing.assert_close(ours[0], x_gradient)
    torch.testing.assert_close(ours[1], kernel_gradient.flip(2, 3).transpose(0, 1))
    assert "spread" not in layer.state_dict()


def test_randomly_flipped():
    torch.manual_seed(0)
    images = torch.randn(400, 1, 2, 3)
    result = training.randomly_flipped(images)
    same = (result == images).flatten(1).all(1)
    mirrored = (result == images[..., [2, 1, 0]]).flatten(1).all(1)
    assert torch.equal(same, ~mirrored)
    assert 160 < same.sum() < 240  # 4 standard deviations


def test_shifted():
    """One bright point goes to every place up to an eighth of the side away, and to no other."""
    torch.manual_seed(0)
    point = torch.zeros(400, 1, 16, 16)
    point[:, :, 8, 5] = 1.0
    places = training.shifted(point).nonzero()[:, 2:]
    assert len(places) == 400
    assert {tuple(place) for place in places.tolist()} == {
        (row, column) for row in range(6, 11) for column in range(3, 8)
    }


def test_update_ema():
    """Against a loop over all values; buffers are copied."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    ema = copy.deepcopy(model)
    expected = [p.detach().clone() for p in ema.parameters()]
    for step in range(3):
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter))
        model(torch.randn(8, 3))
        training.update_ema(ema, model, training.ema_decay(0.2, step, "cpu"))
        decay = [0.1, 2 / 11, 0.2][step]  # 3 / 12 is more than 0.2
        expected = [
            decay * old + (1 - decay) * new.detach()
            for old, new in zip(expected, model.parameters(), strict=True)
        ]
    for average, value in zip(ema.parameters(), expected, strict=True):
        torch.testing.assert_close(average, value)
    for ours, theirs in zip(ema.buffers(), model.buffers(), strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize("latent_dim", [1, 3, 100])
def test_latent_k_depends_on_the_seed_and_k_only(latent_dim):
    many = training.latents(3000, latent_dim, seed=7)
    assert torch.equal(many[:5], training.latents(5, latent_dim, 7))
    for first in (1, 15, 16, 17, 1023, 1024, 2500):
        assert torch.equal(many[first : first + 40], training.latents(40, latent_dim, 7, first))
    assert not torch.equal(many[:5], training.latents(5, latent_dim, 8))
    assert stats.kstest(many.flatten().numpy(), "norm").pvalue > 1e-3


def test_slerp():
    """On a plane: equal angles on the circle; lengths are interpolated at the ends."""
    a = torch.tensor([[1.0, 0.0]], dtype=torch.float64)
    b = torch.tensor([[math.cos(1.2), math.sin(1.2)]], dtype=torch.float64)
    for t in (0.0, 0.25, 0.5, 1.0):
        expected = torch.tensor([[math.cos(1.2 * t), math.sin(1.2 * t)]], dtype=torch.float64)
        torch.testing.assert_close(training.slerp(a, b, t), expected)
    torch.testing.assert_close(training.slerp(a, 3 * b, 1.0), 3 * b)
    assert training.slerp(a, a, 0.5).isfinite().all()


def test_walks():
    linear = training.walks(3, 5, 4, "linear", seed=1).view(3, 5, 4)
    arc = training.walks(3, 5, 4, "spherical", seed=1).view(3, 5, 4)
    torch.testing.assert_close(linear[:, [0, 4]], arc[:, [0, 4]])
    torch.testing.assert_close(linear[:, 2], (linear[:, 0] + linear[:, 4]) / 2)
    assert (arc[:, 2].norm(dim=1) > linear[:, 2].norm(dim=1)).all()
    assert training.walks(2, 3, 1, "spherical", seed=0).isfinite().all()  # a line has no arcs


def test_one_hot_and_class_rows():
    labels = torch.tensor([2, 0, 1])
    assert torch.equal(training.one_hot(labels, 4), nn.functional.one_hot(labels, 4).float())
    z, labels = training.class_rows(3, 5, seed=2)
    assert labels.tolist() == [0] * 8 + [1] * 8 + [2] * 8
    assert torch.equal(z[:8], z[8:16]) and torch.equal(z[:8], training.latents(8, 5, 2))
    assert len(training.class_rows(40, 5, seed=2)[1]) == 16 * 8


def test_random_labels_are_as_frequent_as_in_the_data():
    counts = [100, 0, 300, 600]
    labels = training.random_labels(counts, 20_000, seed=3)
    found = torch.bincount(labels, minlength=4)
    assert found[1] == 0
    expected = np.array([2000, 6000, 12_000])
    assert stats.chisquare(found[[0, 2, 3]].numpy(), expected).pvalue > 1e-3
    assert torch.equal(labels[70:90], training.random_labels(counts, 20, 3, first=70))


@pytest.mark.parametrize(
    "size, widths", [(16, [20, 10]), (64, [80, 40, 20, 10]), (256, [80, 80, 80, 40, 20, 10])]
)
def test_layer_widths(size, widths):
    assert training.layer_widths(size, 10) == widths


def test_describe(capsys):
    model = nn.Sequential(nn.Conv2d(3, 5, 3, bias=False), nn.Sequential(nn.ReLU(), nn.Flatten()))
    training.describe(model, torch.zeros(2, 3, 4, 4))
    out = capsys.readouterr().out.split("\n")
    assert out[0] == "Sequential: 135 parameters"
    assert [line.split("(")[0].strip() for line in out[1:-1]] == [
        "input",
        "Conv2d",
        "ReLU",
        "Flatten",
    ]
    assert out[-2].endswith("(20,)")


def test_weight_histograms():
    """Against numpy. Norms, biases and the average are left out; equal weights are one bin."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(30, 20), nn.BatchNorm1d(20), nn.Linear(20, 2))
    nn.init.constant_(model[2].weight, 0.5)
    rows = training.weight_histograms({"net": model, "ema": model}, step=7)
    assert [(row["network"], row["layer"]) for row in rows] == [
        ("net", "0.weight"),
        ("net", "2.weight"),
    ]
    weights = model[0].weight.detach().numpy().ravel()
    counts, edges = np.histogram(weights, 50)
    row = rows[0]
    assert row["step"] == 7 and (row["low"], row["high"]) == (edges[0], edges[-1])
    theirs = np.array(row["counts"].split(), dtype=int)
    assert theirs.sum() == 600 and np.abs(theirs.cumsum() - counts.cumsum()).max() <= 1
    assert rows[1]["counts"].split()[0] == "40"


# ---------------------------------------------------------------------------------- files of a run


@pytest.mark.parametrize(
    "content, words",
    [
        (b"", "damaged"),
        (b"PK\x03\x04", "damaged"),
        ([1, 2], "not a checkpoint"),
        ({"script": 3, "format": 2}, "not a checkpoint"),
        ({"script": "dcgan", "format": 3}, "not a checkpoint"),
        ({"script": "dcgan", "format": 1}, "first edition"),
        ({"script": "dcgan", "format": 2, "x": object}, "damaged or no checkpoint"),
    ],
)
def test_read_checkpoint_refuses_in_one_line(tmp_path, content, words):
    path = tmp_path / "last.pt"
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        torch.save(content, path)
    for where in (path, tmp_path):
        with pytest.raises(InputError, match=words) as error:
            read_checkpoint(where)
        assert "\n" not in str(error.value)


def test_a_checkpoint_runs_no_code(tmp_path):
    """A pickle that would call a function is refused, and nothing is called."""
    torch.save(
        {"script": "dcgan", "format": 2, "x": Evil(str(tmp_path / "evil"))}, tmp_path / "last.pt"
    )
    with pytest.raises(InputError, match="damaged or no checkpoint"):
        read_checkpoint(tmp_path)
    assert not (tmp_path / "evil").exists()


class Evil:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (self.path,)


def test_load_script_takes_files_beside_training_only(tmp_path, monkeypatch):
    for stem in ("nosuch", "../dcgan", "json", ""):
        with pytest.raises(InputError, match="copy it next to"):
            training.load_script(stem)
    (tmp_path / "dcgan.py").write_text("raise SystemExit('the wrong file')")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    assert training.load_script("dcgan").SCRIPT == "dcgan"


def test_tools_that_are_missing_cost_one_line(monkeypatch, capsys):
    assert training.tool("metrics").__name__ == "metrics"
    assert training.tool("nosuch") is None
    assert capsys.readouterr().err.startswith("nosuch.py is not used: ")
    monkeypatch.setattr(training, "RANK", 1)
    assert training.tool("metrics") is None and capsys.readouterr().err == ""


def test_tensorboard_is_optional(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(InputError, match="pip install tensorboard"):
        training.tensorboard_writer()
