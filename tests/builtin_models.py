"""Models as the built-in algorithm leaves them: its training symbols, node by node, with random weights.

What is known of them: the symbol of one that was published (resnet-50), and the public code that it descends from.
"""

import json
from pathlib import Path
from typing import Any

import mxnet as mx
import numpy as np

VARIANCES = (0.1, 0.1, 0.2, 0.2)
FEW, MANY = (1, 2, 0.5), (1, 2, 0.5, 3, 1 / 3)
SMALL_SIZES = [(0.1, 0.141421), (0.2, 0.272029), (0.37, 0.44699), (0.54, 0.619193), (0.71, 0.790443), (0.88, 0.961249)]
LARGE_SIZES = [
    (0.07, 0.10247),
    (0.15, 0.212132),
    (0.3, 0.367423),
    (0.45, 0.519615),
    (0.6, 0.67082),
    (0.75, 0.821584),
    (0.9, 0.972111),
]


def training_symbol(base_network: str, image_shape: int, num_classes: int, nms_topk: int = 400) -> mx.sym.Symbol:
    """Heads `cls_prob`, `loc_loss`, `cls_label` and `det_out`."""
    logits, offsets, anchors = _predictions(base_network, image_shape, num_classes)
    target = mx.sym.contrib.MultiBoxTarget(
        anchors,
        mx.sym.var("label"),
        logits,
        overlap_threshold=0.5,
        ignore_label=-1,
        negative_mining_ratio=3,
        minimum_negative_samples=0,
        negative_mining_thresh=0.5,
        variances=VARIANCES,
        name="multibox_target",
    )
    scores = mx.sym.SoftmaxOutput(
        logits,
        target[2],
        ignore_label=-1,
        use_ignore=True,
        grad_scale=1.0,
        multi_output=True,
        normalization="valid",
        name="cls_prob",
    )
    distance = mx.sym.smooth_l1(target[1] * (offsets - target[0]), scalar=1.0, name="loc_loss_")
    return mx.sym.Group(
        [
            scores,
            mx.sym.MakeLoss(distance, grad_scale=1.0, normalization="valid", name="loc_loss"),
            mx.sym.MakeLoss(target[2], grad_scale=0, name="cls_label"),
            mx.sym.MakeLoss(_detection(scores, offsets, anchors, nms_topk, False), grad_scale=0, name="det_out"),
        ]
    )


def deployed_symbol(base_network: str, image_shape: int, num_classes: int, nms_topk: int = 400) -> mx.sym.Symbol:
    """What the public deployment script makes, by default with suppression across classes."""
    logits, offsets, anchors = _predictions(base_network, image_shape, num_classes)
    scores = mx.sym.softmax(logits, axis=1, name="cls_prob")
    return _detection(scores, offsets, anchors, nms_topk, True)


def _detection(
    scores: mx.sym.Symbol, offsets: mx.sym.Symbol, anchors: mx.sym.Symbol, nms_topk: int, across_classes: bool
) -> mx.sym.Symbol:
    return mx.sym.contrib.MultiBoxDetection(
        scores,
        offsets,
        anchors,
        nms_threshold=0.45,
        force_suppress=across_classes,
        variances=VARIANCES,
        nms_topk=nms_topk,
        name="detection",
    )


def _predictions(base_network: str, image_shape: int, num_classes: int) -> tuple[mx.sym.Symbol, ...]:
    """Logits (B, C + 1, A), offsets (B, A x 4) and anchors (1, A, 4)."""
    with mx.name.NameManager():
        data = mx.sym.var("data")
        if base_network == "resnet-50":
            maps, steps = _resnet(data), None
            extras = [(512, 2, 1), (256, 2, 1), (256, 2, 1), (128, 2, 1)]
        elif image_shape < 448:
            maps, extras = _vgg(data), [(512, 2, 1), (256, 2, 1), (256, 1, 0), (256, 1, 0)]
            steps = [each / 300 for each in (8, 16, 32, 64, 100, 300)] if image_shape == 300 else None
        else:
            maps = _vgg(data)
            extras = [(512, 2, 1), (256, 2, 1), (256, 2, 1), (256, 2, 1), (256, 1, 1)]
            steps = [each / 512 for each in (8, 16, 32, 64, 128, 256, 512)] if image_shape == 512 else None
        for number, (filters, stride, pad) in enumerate(extras, 2):
            x = _conv_relu(maps[-1], f"multi_feat_{number}_conv_1x1", filters // 2, 1, 1, 0)
            maps.append(_conv_relu(x, f"multi_feat_{number}_conv_3x3", filters, 3, stride, pad))
        is_large_vgg = base_network == "vgg-16" and image_shape >= 448
        sizes = LARGE_SIZES if is_large_vgg else SMALL_SIZES
        logits, offsets, anchors = [], [], []
        for index, each in enumerate(maps):
            name = each.name
            if base_network == "vgg-16" and index == 0:
                each = mx.sym.L2Normalization(each, mode="channel", name=f"{name}_norm")
                each = mx.sym.broadcast_mul(mx.sym.var(f"{name}_scale", shape=(1, 512, 1, 1)), each)
            ratios = FEW if index in (0, len(maps) - 2, len(maps) - 1) else MANY
            per_cell = len(ratios) + 1
            offsets.append(_head(each, f"{name}_loc_pred_conv", per_cell * 4))
            logits.append(_head(each, f"{name}_cls_pred_conv", per_cell * (num_classes + 1)))
            step = (steps[index],) * 2 if steps else (-1.0, -1.0)
            prior = mx.sym.contrib.MultiBoxPrior(
                each, sizes=sizes[index], ratios=ratios, clip=False, steps=step, name=f"{name}_anchors"
            )
            anchors.append(mx.sym.Flatten(prior))
        rows = mx.sym.Reshape(mx.sym.Concat(*logits, dim=1), shape=(0, -1, num_classes + 1))
        return (
            mx.sym.transpose(rows, axes=(0, 2, 1), name="multibox_cls_pred"),
            mx.sym.Concat(*offsets, dim=1, name="multibox_loc_pred"),
            mx.sym.Reshape(mx.sym.Concat(*anchors, dim=1), shape=(0, -1, 4), name="multibox_anchors"),
        )


def _head(x: mx.sym.Symbol, name: str, filters: int) -> mx.sym.Symbol:
    bias = mx.sym.var(f"{name}_bias", init=mx.init.Constant(0.0), attr={"__lr_mult__": "2.0"})
    x = mx.sym.Convolution(x, bias=bias, kernel=(3, 3), stride=(1, 1), pad=(1, 1), num_filter=filters, name=name)
    return mx.sym.Flatten(mx.sym.transpose(x, axes=(0, 2, 3, 1)))


def _conv_relu(
    x: mx.sym.Symbol, name: str, filters: int, kernel: int, stride: int, pad: int, dilate: int = 1, conv: str = "_conv"
) -> mx.sym.Symbol:
    square = {"kernel": (kernel,) * 2, "stride": (stride,) * 2, "pad": (pad,) * 2, "dilate": (dilate,) * 2}
    x = mx.sym.Convolution(x, num_filter=filters, name=f"{name}{conv}", **square)
    return mx.sym.Activation(x, act_type="relu", name=f"{name}_relu")


def _resnet(data: mx.sym.Symbol) -> list[mx.sym.Symbol]:
    """ResNet-50 with pre-activation (He et al. 2016b), as data.mxnet.io has it."""
    x = _batch_norm(mx.sym.identity(data, name="id"), "bn_data", fix_gamma=True)
    x = _plain(x, "conv0", 64, 7, 2, 3)
    x = mx.sym.Activation(_batch_norm(x, "bn0"), act_type="relu", name="relu0")
    x = mx.sym.Pooling(x, kernel=(3, 3), stride=(2, 2), pad=(1, 1), pool_type="max", name="pooling0")
    maps, additions = [], 0
    for stage, units in enumerate((3, 4, 6, 3), 1):
        for unit in range(1, units + 1):
            stride = 2 if unit == 1 and stage > 1 else 1
            x = _unit(x, f"stage{stage}_unit{unit}", 128 * 2**stage, stride, unit == 1, f"_plus{additions}")
            additions += 1
        maps.append(x)
    return maps[2:]


def _unit(x: mx.sym.Symbol, name: str, filters: int, stride: int, is_first: bool, addition: str) -> mx.sym.Symbol:
    first = mx.sym.Activation(_batch_norm(x, f"{name}_bn1"), act_type="relu", name=f"{name}_relu1")
    y = _plain(first, f"{name}_conv1", filters // 4, 1, 1, 0)
    y = mx.sym.Activation(_batch_norm(y, f"{name}_bn2"), act_type="relu", name=f"{name}_relu2")
    y = _plain(y, f"{name}_conv2", filters // 4, 3, stride, 1)
    y = mx.sym.Activation(_batch_norm(y, f"{name}_bn3"), act_type="relu", name=f"{name}_relu3")
    y = _plain(y, f"{name}_conv3", filters, 1, 1, 0)
    shortcut = _plain(first, f"{name}_sc", filters, 1, stride, 0) if is_first else x
    return mx.sym.elemwise_add(y, shortcut, name=addition)


def _plain(x: mx.sym.Symbol, name: str, filters: int, kernel: int, stride: int, pad: int) -> mx.sym.Symbol:
    square = {"kernel": (kernel,) * 2, "stride": (stride,) * 2, "pad": (pad,) * 2}
    return mx.sym.Convolution(x, num_filter=filters, no_bias=True, workspace=256, name=name, **square)


def _batch_norm(x: mx.sym.Symbol, name: str, fix_gamma: bool = False) -> mx.sym.Symbol:
    return mx.sym.BatchNorm(x, fix_gamma=fix_gamma, eps=2e-5, momentum=0.9, name=name)


def _vgg(data: mx.sym.Symbol) -> list[mx.sym.Symbol]:
    """VGG-16 with fc6 and fc7 as dilated convolutions (Liu et al. 2016)."""
    x, first = data, None
    for stage, (filters, layers) in enumerate(((64, 2), (128, 2), (256, 3), (512, 3), (512, 3)), 1):
        for layer in range(1, layers + 1):
            x = mx.sym.Convolution(x, kernel=(3, 3), pad=(1, 1), num_filter=filters, name=f"conv{stage}_{layer}")
            x = mx.sym.Activation(x, act_type="relu", name=f"relu{stage}_{layer}")
        if stage == 4:
            first = x
        pool: dict[str, Any] = {"kernel": (2, 2), "stride": (2, 2)}
        if stage == 3:
            pool["pooling_convention"] = "full"
        if stage == 5:
            pool = {"kernel": (3, 3), "stride": (1, 1), "pad": (1, 1)}
        x = mx.sym.Pooling(x, pool_type="max", name=f"pool{stage}", **pool)
    x = mx.sym.Convolution(x, kernel=(3, 3), pad=(6, 6), dilate=(6, 6), num_filter=1024, name="fc6")
    x = mx.sym.Activation(x, act_type="relu", name="relu6")
    x = mx.sym.Convolution(x, kernel=(1, 1), num_filter=1024, name="fc7")
    return [first, mx.sym.Activation(x, act_type="relu", name="relu7")]


def random_parameters(
    symbol: mx.sym.Symbol, image_shape: int, generator: np.random.Generator, input_mean: float
) -> dict[str, mx.nd.NDArray]:
    """By the names of the parameter file; a BatchNorm on the input has seen values of this mean."""
    shapes = {"data": (1, 3, image_shape, image_shape)}
    if "label" in symbol.list_arguments():
        shapes["label"] = (1, 1, 5)
    arguments, _, auxiliaries = symbol.infer_shape(**shapes)
    parameters = {}
    for name, shape in zip(symbol.list_arguments(), arguments, strict=True):
        if name in ("data", "label"):
            continue
        if name.endswith("_pred_conv_weight"):
            # Such that scores are neither all alike nor all 1: a VGG's maps are as large as its input.
            value = generator.normal(0, 0.002 if "bn_data_gamma" in symbol.list_arguments() else 0.0003, shape)
        elif name.endswith("_pred_conv_bias"):
            value = generator.normal(0, 1, shape)
        elif name.endswith("_weight"):
            value = generator.normal(0, np.sqrt(2 / np.prod(shape[1:])), shape)
        elif name.endswith("_gamma"):
            value = generator.uniform(0.5, 1, shape)
        elif name.endswith("_scale"):
            value = np.full(shape, 20.0)
        else:
            value = generator.normal(0, 0.05, shape)
        parameters[f"arg:{name}"] = mx.nd.array(value)
    for name, shape in zip(symbol.list_auxiliary_states(), auxiliaries, strict=True):
        value = np.full(shape, 1.0) if name.endswith("_var") else np.zeros(shape)
        if name == "bn_data_moving_mean":
            value = np.full(shape, input_mean)
        if name == "bn_data_moving_var":
            value = np.full(shape, 4000.0)
        parameters[f"aux:{name}"] = mx.nd.array(value)
    return parameters


def save(
    directory: Path,
    symbol: mx.sym.Symbol,
    parameters: dict[str, mx.nd.NDArray],
    base_network: str,
    image_shape: int,
    num_classes: int,
    prefix: str = "model_algo_1",
) -> None:
    """The files of its archive: everything in `hyperparams.json` is a string, and older ones lack `nms_topk`."""
    directory.mkdir(parents=True, exist_ok=True)
    (directory / f"{prefix}-symbol.json").write_text(symbol.tojson())
    mx.nd.save(str(directory / f"{prefix}-0000.params"), parameters)
    hyperparameters = {
        "base_network": base_network,
        "num_classes": str(num_classes),
        "image_shape": str(image_shape),
        "nms_threshold": "0.45",
        "_kvstore": "device",
        "kv_store": "device",
    }
    (directory / "hyperparams.json").write_text(json.dumps(hyperparameters))


def detections(
    symbol: mx.sym.Symbol, parameters: dict[str, mx.nd.NDArray], data: np.ndarray, output: str
) -> np.ndarray:
    """What MXNet gives for an output of the symbol itself, (B, A, 6)."""
    shapes = {"data": data.shape}
    if "label" in symbol.list_arguments():
        shapes["label"] = (len(data), 1, 5)
    executor = symbol.simple_bind(mx.cpu(), grad_req="null", **shapes)
    split = {kind: {n.split(":")[1]: a for n, a in parameters.items() if n.startswith(kind)} for kind in ("arg", "aux")}
    executor.copy_params_from(split["arg"], split["aux"])
    given = {"data": mx.nd.array(data)}
    if "label" in shapes:
        given["label"] = mx.nd.zeros(shapes["label"]) - 1
    outputs = executor.forward(is_train=False, **given)
    return outputs[symbol.list_outputs().index(output)].asnumpy()
