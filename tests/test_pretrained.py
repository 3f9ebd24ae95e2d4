"""Weights made here, through each kind of file, by equality of the backbone's features.

GluonCV's files are compared with GluonCV's own forward pass. Files in torchvision's layout are compared with a forward
pass in NumPy, written from the definition of the layers (He et al. 2016; Simonyan and Zisserman 2015).
"""

import hashlib
import http.server
import os
import subprocess
import sys
import threading
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import mxnet as mx
import numpy as np
import pytest
from conftest import SMALL, Run, assert_refused, train
from gluoncv import model_zoo
from gluoncv.model_zoo import model_store
from gluoncv.model_zoo.ssd.vgg_atrous import vgg16_atrous_300
from numpy.lib.stride_tricks import sliding_window_view
from safetensors.numpy import save_file

from ssd_algo.errors import UserError
from ssd_algo.model import backbones, pretrained

SIDE = 64
Arrays = dict[str, np.ndarray]

# Blocks of each stage, and convolutions of a block.
RESNETS = {"resnet-18": ((2, 2, 2, 2), 2), "resnet-50": ((3, 4, 6, 3), 3)}
VGG_FILTERS = (64, 64, "M", 128, 128, "M", 256, 256, 256, "M", 512, 512, 512, "M", 512, 512, 512, "M")


def picture() -> np.ndarray:
    """A normalised image, (1, 3, 64, 64)."""
    return np.random.default_rng(0).normal(0, 1, (1, 3, SIDE, SIDE)).astype(np.float32)


def features(base_network: str, values: Arrays) -> list[np.ndarray]:
    """Our backbone's maps of the picture."""
    group = mx.sym.Group(list(backbones.features(base_network, mx.sym.var("data")).values()))
    executor = group.simple_bind(mx.cpu(), grad_req="null", data=(1, 3, SIDE, SIDE))
    shapes = backbones.parameter_shapes(base_network)
    whole = {name: np.full(shape, 20.0) for name, shape in shapes.items() if name.endswith("_scale")} | values
    assert whole.keys() == shapes.keys()
    for name, array in (executor.arg_dict | executor.aux_dict).items():
        if name != "data":
            array[:] = whole[name]
    return [each.asnumpy() for each in executor.forward(is_train=False, data=mx.nd.array(picture()))]


def equal(ours: list[np.ndarray], theirs: list[np.ndarray]) -> None:
    for one, two in zip(ours, theirs, strict=True):
        assert np.abs(two).max() > 0.01  # not nothing
        np.testing.assert_allclose(one, two, rtol=2e-3, atol=2e-4 * np.abs(two).max())


def randomise(net: Any) -> None:
    """Weights that keep signals alive, and BatchNorm statistics that are not 0 and 1."""
    net.initialize()
    side = 300 if hasattr(net, "extras") else 224
    net(mx.nd.zeros((1, 3, side, side)))
    generator = np.random.default_rng(1)
    for parameter in net.collect_params().values():
        if parameter.name.endswith(("init_scale", "normalize_scale")):
            continue
        parameter.set_data(mx.nd.array(draw(generator, parameter.name, parameter.shape)))


def draw(generator: np.random.Generator, name: str, shape: tuple[int, ...]) -> np.ndarray:
    if len(shape) > 1:
        value = generator.normal(0, np.sqrt(2 / np.prod(shape[1:])), shape)
    elif name.endswith(("running_var", "gamma")):
        value = generator.uniform(0.5, 1.5, shape)
    else:
        value = generator.normal(0, 0.1, shape)
    return value.astype(np.float32)


def save(net: Any, path: Path, older: bool) -> Path:
    """In the form of today, names by place, or in that of older files."""
    if older:
        net.collect_params().save(str(path), strip_prefix=net.prefix)
    else:
        net.save_parameters(str(path))
    return path


@pytest.mark.parametrize("base_network", sorted(backbones.RESNETS))
@pytest.mark.parametrize("older", [False, True], ids=["by place", "older file"])
def test_gluoncv_resnets(tmp_path: Path, base_network: str, older: bool) -> None:
    net = model_zoo.get_model(f"{base_network.replace('-', '')}_v1b", pretrained=False)
    randomise(net)
    path = save(net, tmp_path / "weights.params", older)
    x = net.maxpool(net.relu(net.bn1(net.conv1(mx.nd.array(picture())))))
    maps = []
    for stage in (net.layer1, net.layer2, net.layer3, net.layer4):
        x = stage(x)
        maps.append(x.asnumpy())
    equal(features(base_network, pretrained.load(path, base_network)), maps[1:])


@pytest.mark.parametrize("older", [False, True], ids=["by place", "older file"])
def test_gluoncv_reduced_vgg(tmp_path: Path, older: bool) -> None:
    net = vgg16_atrous_300()
    randomise(net)
    path = save(net, tmp_path / "weights.params", older)
    # VGGAtrousExtractor.hybrid_forward up to the extra layers, for which the picture is too small.
    x = mx.nd.array(picture()) * net.init_scale.data()
    for stage in net.stages[:4]:
        x = mx.nd.Pooling(x, kernel=(2, 2), stride=(2, 2), pool_type="max") if stage is not net.stages[0] else x
        x = stage(x)
    first = net.norm4(x)
    x = net.stages[4](mx.nd.Pooling(x, kernel=(2, 2), stride=(2, 2), pool_type="max"))
    second = net.stages[5](mx.nd.Pooling(x, kernel=(3, 3), stride=(1, 1), pad=(1, 1), pool_type="max"))
    equal(features("vgg-16", pretrained.load(path, "vgg-16")), [first.asnumpy(), second.asnumpy()])


def test_gluoncv_vgg_classifier_is_reduced(tmp_path: Path) -> None:
    """As the paper says: every fourth output, every third row and column."""
    net = model_zoo.get_model("vgg16", pretrained=False)
    randomise(net)
    path = tmp_path / "weights.params"
    net.save_parameters(str(path))
    values = pretrained.load(path, "vgg-16")
    arrays = {name: each.data().asnumpy() for name, each in net._collect_params_with_prefix().items()}
    full = arrays["features.31.weight"].reshape(4096, 512, 7, 7)
    assert values["fc6_weight"].shape == (1024, 512, 3, 3)
    for row, column in ((0, 0), (1, 2), (2, 1)):
        np.testing.assert_array_equal(values["fc6_weight"][5, 9, row, column], full[20, 9, 3 * row, 3 * column])
    np.testing.assert_array_equal(values["fc6_bias"], arrays["features.31.bias"][::4])
    np.testing.assert_array_equal(values["fc7_weight"][3, 7, 0, 0], arrays["features.33.weight"][12, 28])
    np.testing.assert_array_equal(values["conv1_1_weight"], arrays["features.0.weight"])
    np.testing.assert_array_equal(values["conv5_3_bias"], arrays["features.28.bias"])


def convolve(
    x: np.ndarray, weight: np.ndarray, bias: np.ndarray | None = None, stride: int = 1, pad: int = 0, dilation: int = 1
) -> np.ndarray:
    """Cross-correlation, (1, C, H, W) with (K, C, h, w)."""
    padded = np.pad(x[0], ((0, 0), (pad, pad), (pad, pad)))
    reach = dilation * (weight.shape[2] - 1) + 1
    windows = sliding_window_view(padded, (reach, reach), axis=(1, 2))[:, ::stride, ::stride, ::dilation, ::dilation]
    out = np.tensordot(weight, windows, axes=((1, 2, 3), (0, 3, 4)))
    return (out if bias is None else out + bias[:, None, None])[None]


def pool(x: np.ndarray, size: int, stride: int, pad: int = 0) -> np.ndarray:
    padded = np.pad(x, ((0, 0), (0, 0), (pad, pad), (pad, pad)), constant_values=-np.inf)
    return sliding_window_view(padded, (size, size), axis=(2, 3))[:, :, ::stride, ::stride].max(axis=(4, 5))


def relu(x: np.ndarray) -> np.ndarray:
    return np.maximum(x, 0)


def resnet_state(base_network: str) -> Arrays:
    """A state dict as torchvision's: random, complete with the classifier and BatchNorm's counters."""
    generator = np.random.default_rng(2)
    blocks, convolutions = RESNETS[base_network]
    expansion = 4 if convolutions == 3 else 1
    shapes: dict[str, tuple[int, ...]] = {"conv1.weight": (64, 3, 7, 7)}
    norms = {"bn1": 64}
    channels = 64
    for stage, count in enumerate(blocks, 1):
        width = 64 * 2 ** (stage - 1)
        for block in range(count):
            name, out = f"layer{stage}.{block}", width * expansion
            kernels = (
                ((channels, width, 1), (width, width, 3), (width, out, 1))
                if convolutions == 3
                else ((channels, width, 3), (width, out, 3))
            )
            for index, (before, after, size) in enumerate(kernels, 1):
                shapes[f"{name}.conv{index}.weight"] = (after, before, size, size)
                norms[f"{name}.bn{index}"] = after
            if block == 0 and (stage > 1 or channels != out):
                shapes[f"{name}.downsample.0.weight"] = (out, channels, 1, 1)
                norms[f"{name}.downsample.1"] = out
            channels = out
    state = {name: draw(generator, name, shape) for name, shape in shapes.items()}
    for name, size in norms.items():
        state[f"{name}.weight"] = draw(generator, "gamma", (size,))
        state[f"{name}.bias"] = draw(generator, "bias", (size,))
        state[f"{name}.running_mean"] = draw(generator, "mean", (size,))
        state[f"{name}.running_var"] = draw(generator, "running_var", (size,))
        state[f"{name}.num_batches_tracked"] = np.asarray(7, dtype=np.int64)
    return state | {"fc.weight": np.zeros((1000, channels), np.float32), "fc.bias": np.zeros(1000, np.float32)}


def resnet_forward(base_network: str, state: Arrays) -> list[np.ndarray]:
    """Maps of stages 2 to 4; the second convolution of a bottleneck has the stride, as in torchvision."""

    def norm(x: np.ndarray, name: str) -> np.ndarray:
        mean, variance = state[f"{name}.running_mean"], state[f"{name}.running_var"]
        scale = state[f"{name}.weight"] / np.sqrt(variance + 1e-5)
        return (x - mean[:, None, None]) * scale[:, None, None] + state[f"{name}.bias"][:, None, None]

    blocks, convolutions = RESNETS[base_network]
    x = pool(relu(norm(convolve(picture(), state["conv1.weight"], stride=2, pad=3), "bn1")), 3, 2, 1)
    maps = []
    for stage, count in enumerate(blocks, 1):
        for block in range(count):
            name, shortcut = f"layer{stage}.{block}", x
            stride = 2 if stage > 1 and block == 0 else 1
            with_stride = 2 if convolutions == 3 else 1
            for index in range(1, convolutions + 1):
                weight = state[f"{name}.conv{index}.weight"]
                step = stride if index == with_stride else 1
                x = norm(convolve(x, weight, stride=step, pad=weight.shape[2] // 2), f"{name}.bn{index}")
                x = relu(x) if index < convolutions else x
            if f"{name}.downsample.0.weight" in state:
                shortcut = convolve(shortcut, state[f"{name}.downsample.0.weight"], stride=stride)
                shortcut = norm(shortcut, f"{name}.downsample.1")
            x = relu(x + shortcut)
        maps.append(x)
    return maps[1:]


def vgg_state() -> Arrays:
    generator = np.random.default_rng(3)
    state: Arrays = {}
    channels, index = 3, 0
    for filters in VGG_FILTERS:
        if isinstance(filters, int):
            state[f"features.{index}.weight"] = draw(generator, "weight", (filters, channels, 3, 3))
            state[f"features.{index}.bias"] = draw(generator, "bias", (filters,))
            channels = filters
            index += 2
        else:
            index += 1
    for place, (out, inside) in ((0, (4096, 25088)), (3, (4096, 4096)), (6, (10, 4096))):
        state[f"classifier.{place}.weight"] = draw(generator, "weight", (out, inside))
        state[f"classifier.{place}.bias"] = draw(generator, "bias", (out,))
    return state


def vgg_forward(state: Arrays) -> list[np.ndarray]:
    """conv4_3, L2-normalised to 20 at each place, and fc7 as SSD has it."""
    x, index, first = picture(), 0, None
    pools = 0
    for filters in VGG_FILTERS:
        if isinstance(filters, int):
            x = relu(convolve(x, state[f"features.{index}.weight"], state[f"features.{index}.bias"], pad=1))
            index += 2
            continue
        pools += 1
        index += 1
        if pools == 4:
            first = 20 * x / np.sqrt((x**2).sum(axis=1, keepdims=True) + 1e-5)
        x = pool(x, 2, 2) if pools < 5 else pool(x, 3, 1, 1)
    fc6 = state["classifier.0.weight"].reshape(4096, 512, 7, 7)[::4, :, [0, 3, 6]][:, :, :, [0, 3, 6]]
    x = relu(convolve(x, fc6, state["classifier.0.bias"][::4], pad=6, dilation=6))
    fc7 = state["classifier.3.weight"][::4, ::4].reshape(1024, 1024, 1, 1)
    x = relu(convolve(x, fc7, state["classifier.3.bias"][::4]))
    assert first is not None
    return [first, x]


@pytest.mark.parametrize("base_network", sorted(RESNETS))
def test_torchvision_resnets(tmp_path: Path, base_network: str) -> None:
    state = resnet_state(base_network)
    save_file(state, tmp_path / "weights.safetensors")
    ours = features(base_network, pretrained.load(tmp_path / "weights.safetensors", base_network))
    equal(ours, resnet_forward(base_network, state))


def test_torchvision_vgg(tmp_path: Path) -> None:
    state = vgg_state()
    save_file(state, tmp_path / "weights.safetensors")
    equal(features("vgg-16", pretrained.load(tmp_path / "weights.safetensors", "vgg-16")), vgg_forward(state))


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        (lambda state: state.pop("layer1.0.conv1.weight"), "layer1.0.conv1.weight missing"),
        (
            lambda state: [state.pop(name) for name in list(state) if name.startswith("layer4")],
            # 5 convolutions and 5 norms of 4 arrays are 25.
            "layer4.0.bn1.bias, layer4.0.bn1.running_mean, layer4.0.bn1.running_var and 22 more missing",
        ),
        (lambda state: state.update(extra=np.zeros(3)), "extra not among its arrays"),
        (
            lambda state: state.update({"conv1.weight": np.zeros((64, 4, 7, 7), np.float32)}),
            "conv1.weight has the shape (64, 4, 7, 7), not (64, 3, 7, 7)",
        ),
        (
            lambda state: state.update({"bn1.bias": np.full(64, np.nan, np.float32)}),
            "bn1.bias is not finite",
        ),
        (
            lambda state: state.update({"bn1.bias": np.zeros(64, np.int8)}),
            "bn1.bias is of int8",
        ),
        (
            lambda state: [state.pop("bn1.bias"), state.update(b=np.zeros(3))],
            "bn1.bias missing; b not among its arrays",
        ),
    ],
)
def test_every_array_is_accounted_for(tmp_path: Path, change: Callable[[Arrays], object], fault: str) -> None:
    state = resnet_state("resnet-18")
    change(state)
    path = tmp_path / "weights.safetensors"
    save_file(state, path)
    with pytest.raises(UserError) as caught:
        pretrained.load(path, "resnet-18")
    assert str(caught.value) == (
        f"{path} does not hold the weights of resnet-18: {fault}. Give GluonCV's .params file or a .safetensors with "
        "torchvision's state dict of this network."
    )


def test_half_precision_and_parallel_training(tmp_path: Path) -> None:
    """Names of torch's DataParallel begin with `module.`."""
    state = resnet_state("resnet-18")
    half = {
        f"module.{name}": array.astype(np.float16) if array.dtype == np.float32 else array
        for name, array in state.items()
    }
    save_file(half, tmp_path / "half.safetensors")
    loaded = pretrained.load(tmp_path / "half.safetensors", "resnet-18")
    np.testing.assert_allclose(loaded["conv0_weight"], state["conv1.weight"], atol=1e-3)
    assert loaded["conv0_weight"].dtype == np.float32


def test_weights_of_another_network_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    save_file(resnet_state("resnet-18"), path)
    with pytest.raises(UserError, match=r" does not hold the weights of resnet-50: layer1\.0\.bn3\.bias, "):
        pretrained.load(path, "resnet-50")


@pytest.mark.parametrize("name", ["weights.params", "weights.safetensors"])
@pytest.mark.parametrize("content", [b"", b"no weights", b"\xff" * 100], ids=["empty", "text", "bytes"])
def test_damaged_files(tmp_path: Path, name: str, content: bytes) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(UserError) as caught:
        pretrained.load(path, "resnet-18")
    assert str(caught.value).startswith(f"{path} is damaged, no file of weights, or not in float32 or float16 (")
    assert str(caught.value).endswith("); give another one.")


def first_loss(run: Run) -> float:
    return float(run.out.split("train cross_entropy <loss>=(")[1].split(")")[0])


def test_a_job_with_weights_in_the_image_and_in_a_channel(base: Path, tmp_path: Path, shapes: Path) -> None:
    """Both say where the weights are from; the channel is taken before the image."""
    image = tmp_path / "image"
    image.mkdir()
    net = model_zoo.get_model("resnet18_v1b", pretrained=False)
    randomise(net)
    net.save_parameters(str(image / "resnet-18.params"))
    hyperparameters = SMALL | {"use_pretrained_model": "1"}
    run = train(base, hyperparameters, SSD_ALGO_PRETRAINED=str(image))
    assert run.code == 0, run.err
    assert "Start training from pretrained model 1.\n" in run.out
    loaded = f"Loaded pretrained model parameters. (100 arrays of resnet-18 from {image}/resnet-18.params)"
    assert loaded in run.out
    again = tmp_path / "again"
    (again / "input" / "data").mkdir(parents=True)
    for folder in shapes.iterdir():
        (again / "input" / "data" / folder.name).symlink_to(folder)
    channel = again / "input" / "data" / "pretrained"
    channel.mkdir()
    net.save_parameters(str(channel / "any-name.params"))
    same = train(again, hyperparameters, SSD_ALGO_PRETRAINED=str(tmp_path / "nowhere"))
    assert same.code == 0, same.err
    assert f"(100 arrays of resnet-18 from {channel}/any-name.params)" in same.out
    assert first_loss(same) == first_loss(run)
    scratch = train(base, SMALL)
    assert "Start training from pretrained model 0.\n" in scratch.out
    assert first_loss(scratch) != first_loss(run)


def test_no_weights_anywhere(base: Path, tmp_path: Path) -> None:
    run = train(base, SMALL | {"use_pretrained_model": "1"}, SSD_ALGO_PRETRAINED=str(tmp_path / "nowhere"))
    assert_refused(
        run,
        f"use_pretrained_model is 1, but there are no weights of resnet-18 in this image ({tmp_path}/nowhere/"
        "resnet-18.params); build the image with PRETRAINED=1, or give a .params or .safetensors file in a channel named "
        "pretrained, or set use_pretrained_model to 0.",
    )


def test_a_channel_with_several_files(base: Path, tmp_path: Path) -> None:
    channel = tmp_path / "pretrained"
    channel.mkdir()
    for name in ("a.params", "b.safetensors"):
        (channel / name).touch()
    with pytest.raises(UserError) as caught:
        pretrained.in_channel(channel)
    assert str(caught.value) == (
        f"{channel} of channel pretrained must hold one .params or .safetensors file; it holds a.params, b.safetensors."
    )


def test_a_channel_with_another_kind_of_file(base: Path, shapes: Path, tmp_path: Path) -> None:
    again = tmp_path / "again"
    (again / "input" / "data" / "pretrained" / "x.safetensors").mkdir(parents=True)
    for folder in shapes.iterdir():
        (again / "input" / "data" / folder.name).symlink_to(folder)
    channel = again / "input" / "data" / "pretrained"
    (channel / "resnet18.pth").write_bytes(b"x")
    sentence = f"{channel} of channel pretrained must hold one .params or .safetensors file; it holds resnet18.pth."
    assert_refused(train(again, SMALL | {"use_pretrained_model": "1"}), sentence)
    command = [sys.executable, "-m", "ssd_algo.cli", "check", "--num-classes", "3", str(channel.parent)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2
    assert f"  channel pretrained: {sentence}\n" in done.stdout


def test_a_channel_without_use_is_named(base: Path, shapes: Path, tmp_path: Path) -> None:
    again = tmp_path / "again"
    (again / "input" / "data" / "pretrained").mkdir(parents=True)
    for folder in shapes.iterdir():
        (again / "input" / "data" / folder.name).symlink_to(folder)
    (again / "input" / "data" / "pretrained" / "a.params").write_bytes(b"not looked at")
    run = train(again, SMALL)
    assert run.code == 0, run.err
    assert "Channel pretrained is not used: use_pretrained_model is 0, or there is a channel model." in run.out


@pytest.fixture
def model_zoo_server(tmp_path: Path) -> Iterator[str]:
    """A model zoo with the archives that are in the folder `zoo`."""
    folder = tmp_path / "zoo" / "gluon" / "models"
    folder.mkdir(parents=True)

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            content = (folder / self.path.rsplit("/", 1)[-1]).read_bytes()
            self.send_response(200)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()
        thread.join()


def fetch(folder: Path, repository: str) -> "subprocess.CompletedProcess[str]":
    variables = {"MXNET_GLUON_REPO": repository, "NO_PROXY": "127.0.0.1", "no_proxy": "127.0.0.1"}
    command = [sys.executable, "-m", "ssd_algo.cli", "fetch-weights", str(folder)]
    return subprocess.run(command, env=dict(os.environ) | variables, capture_output=True, text=True, timeout=300)


def archive(tmp_path: Path, name: str, content: bytes) -> None:
    with zipfile.ZipFile(tmp_path / "zoo" / "gluon" / "models" / f"{name}.zip", "w") as file:
        file.writestr(f"{name}.params", content)


def test_weights_of_all_backbones_are_fetched(
    tmp_path: Path, model_zoo_server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From a zoo of weights made here, whose checksums GluonCV is told."""
    names = {"vgg-16": "vgg16_atrous"} | {f"resnet-{depth}": f"resnet{depth}_v1b" for depth in (18, 34, 50, 101)}
    for name in names.values():
        net = vgg16_atrous_300() if name == "vgg16_atrous" else model_zoo.get_model(name, pretrained=False)
        net.initialize()
        side = 300 if name == "vgg16_atrous" else 32
        net(mx.nd.zeros((1, 3, side, side)))
        net.save_parameters(str(tmp_path / "made.params"))
        content = (tmp_path / "made.params").read_bytes()
        checksum = hashlib.sha1(content).hexdigest()
        monkeypatch.setitem(model_store._model_sha1, name, checksum)
        archive(tmp_path, f"{name}-{checksum[:8]}", content)
    monkeypatch.setenv("MXNET_GLUON_REPO", model_zoo_server)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    pretrained.fetch(tmp_path / "weights")
    assert sorted(path.name for path in (tmp_path / "weights").iterdir()) == sorted(f"{base}.params" for base in names)
    for base in names:
        assert pretrained.in_image(tmp_path / "weights", base) == tmp_path / "weights" / f"{base}.params"
        assert pretrained.load(tmp_path / "weights" / f"{base}.params", base)


def test_weights_with_a_wrong_checksum_end_the_build(tmp_path: Path, model_zoo_server: str) -> None:
    archive(tmp_path, "vgg16_atrous-4fa2e1ad", b"wrong")
    done = fetch(tmp_path / "weights", model_zoo_server)
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1] == (
        "ClientError: The weights of vgg-16 (vgg16_atrous of GluonCV's model zoo) cannot be fetched (ValueError: Downloaded "
        "file has different hash. Please try again.); build with PRETRAINED=0 to go without them."
    )
    assert list((tmp_path / "weights").iterdir()) == []


def test_weights_that_cannot_be_fetched_end_the_build(tmp_path: Path) -> None:
    done = fetch(tmp_path / "weights", "http://127.0.0.1:9/")  # nothing listens there
    assert done.returncode == 2
    last = done.stderr.splitlines()[-1]
    assert last.startswith(
        "ClientError: The weights of vgg-16 (vgg16_atrous of GluonCV's model zoo) cannot be fetched ("
    )
    assert last.endswith("); build with PRETRAINED=0 to go without them.")
