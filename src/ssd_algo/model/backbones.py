"""GluonCV's backbones as symbols, under the built-in algorithm's parameter names.

The names are the same in every process, however many networks it made: they come from a parameter's place in the
network, not from Gluon's counters.
"""

import json
import re
from typing import Any

import mxnet as mx
from gluoncv.model_zoo import resnetv1b
from gluoncv.model_zoo.ssd.vgg_atrous import VGGAtrousBase, vgg_spec

RESNETS = {
    "resnet-18": resnetv1b.resnet18_v1b,
    "resnet-34": resnetv1b.resnet34_v1b,
    "resnet-50": resnetv1b.resnet50_v1b,
    "resnet-101": resnetv1b.resnet101_v1b,
}

# A parameter's place in GluonCV's network -> the name that the built-in gives it.
_RESNET_NAMES = [
    (r"^conv1\.", "conv0_"),
    (r"^bn1\.", "bn0_"),
    (r"^layer(\d+)\.(\d+)\.downsample\.0\.", r"stage\1_unit<\2>_sc_"),
    (r"^layer(\d+)\.(\d+)\.downsample\.1\.", r"stage\1_unit<\2>_sc_bn_"),
    (r"^layer(\d+)\.(\d+)\.(conv|bn)(\d)\.", r"stage\1_unit<\2>_\3\4_"),
    (r"running_(mean|var)$", r"moving_\1"),
]


def features(base_network: str, data: mx.sym.Symbol) -> dict[str, mx.sym.Symbol]:
    """Feature maps of a backbone.

    Parameters
    ----------
    base_network : str
        `vgg-16`, `resnet-18`, `resnet-34`, `resnet-50` or `resnet-101`.
    data : symbol, float32 (B, 3, S, S)
        Normalised RGB.

    Returns
    -------
    dict of symbols by the built-in's name of the map
        Finest first: strides 8 and 16 (VGG: conv4_3, L2-normalised, and fc7), for ResNets also stride 32. The built-in
        names a ResNet's map by its last residual addition: `_plus12` ends the third stage of resnet-50.
    """
    if base_network == "vgg-16":
        return _vgg(data)
    return _resnet(base_network, data)


def parameter_shapes(base_network: str) -> dict[str, tuple[int, ...]]:
    """Shapes of a backbone's parameters and of BatchNorm's moving statistics, by the built-in's names."""
    group = mx.sym.Group(list(features(base_network, mx.sym.var("data")).values()))
    arguments, _, auxiliaries = group.infer_shape(data=(1, 3, 128, 128))
    shapes = dict(zip(group.list_arguments(), arguments, strict=True))
    shapes.update(zip(group.list_auxiliary_states(), auxiliaries, strict=True))
    del shapes["data"]
    return shapes


def gluon_names(base_network: str) -> tuple[dict[str, str], dict[str, str]]:
    """For each of the built-in's parameter names GluonCV's: by place in the network, and in older files."""
    block, rename = (
        (_vgg_block(), _vgg_name) if base_network == "vgg-16" else (_resnet_block(base_network), _resnet_name)
    )
    ours = parameter_shapes(base_network)
    named = {rename(place): (place, p.name) for place, p in block._collect_params_with_prefix().items()}
    kept = {name: names for name, names in named.items() if name in ours}
    return (
        {name: place for name, (place, _) in kept.items()},
        {name: older.removeprefix(block.prefix) for name, (_, older) in kept.items()},
    )


def _resnet_block(base_network: str) -> Any:
    return RESNETS[base_network](pretrained=False)


def _vgg_block() -> Any:
    return VGGAtrousBase(*vgg_spec[16], prefix="vgg_")


def _resnet(base_network: str, data: mx.sym.Symbol) -> dict[str, mx.sym.Symbol]:
    block = _resnet_block(base_network)
    x = block.maxpool(block.relu(block.bn1(block.conv1(data))))
    x = block.layer1(x)
    additions = len(block.layer1)
    maps = {}
    for stage in (block.layer2, block.layer3, block.layer4):
        x = stage(x)
        additions += len(stage)
        maps[f"_plus{additions - 1}"] = x
    return _renamed(maps, {p.name: _resnet_name(place) for place, p in block._collect_params_with_prefix().items()})


def _resnet_name(place: str) -> str:
    for pattern, replacement in _RESNET_NAMES:
        place = re.sub(pattern, replacement, place)
    return re.sub(r"<(\d+)>", lambda unit: str(int(unit[1]) + 1), place)


def _vgg(data: mx.sym.Symbol) -> dict[str, mx.sym.Symbol]:
    """VGG-16 with fc6 and fc7 as dilated convolutions (Liu et al. 2016, section 3.1)."""
    block = _vgg_block()
    halve = {"kernel": (2, 2), "stride": (2, 2), "pool_type": "max", "pooling_convention": "full"}
    x = data
    for index in range(4):
        x = block.stages[index](x)
        if index < 3:
            x = mx.sym.Pooling(x, name=f"pool{index + 1}", **halve)
    first = block.norm4(x)
    x = block.stages[4](mx.sym.Pooling(x, name="pool4", **halve))
    x = mx.sym.Pooling(x, name="pool5", kernel=(3, 3), stride=(1, 1), pad=(1, 1), pool_type="max")
    second = block.stages[5](x)
    return _renamed(
        {"relu4_3": first, "relu7": second},
        {p.name: _vgg_name(place) for place, p in block._collect_params_with_prefix().items()},
    )


def _vgg_name(place: str) -> str:
    if place == "norm4.scale":
        return "relu4_3_scale"
    match = re.fullmatch(r"stages\.(\d)\.(\d)\.(weight|bias)", place)
    if match is None:  # `init_scale`, which our graph does not use
        return place
    stage, layer, kind = int(match[1]), int(match[2]), match[3]
    if stage == 5:
        return f"fc{6 + layer // 2}_{kind}"
    return f"conv{stage + 1}_{layer // 2 + 1}_{kind}"


def _renamed(maps: dict[str, mx.sym.Symbol], names: dict[str, str]) -> dict[str, mx.sym.Symbol]:
    """The same maps with their parameters (the graph's variables) renamed; operators keep their names."""
    graph = json.loads(mx.sym.Group(list(maps.values())).tojson())
    for node in graph["nodes"]:
        if node["op"] == "null":
            node["name"] = names.get(node["name"], node["name"])
    group = mx.sym.load_json(json.dumps(graph))
    return dict(zip(maps, group, strict=True))
