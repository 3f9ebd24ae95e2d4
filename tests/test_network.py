"""The networks: names, layouts, one graph whatever was built before."""

import re

import mxnet as mx
import numpy as np
import pytest

from ssd_algo.contract.hyperparameters import Hyperparameters
from ssd_algo.model import network
from ssd_algo.training.trainer import frozen_parameters

NETWORKS = ["vgg-16", "resnet-18", "resnet-34", "resnet-50", "resnet-101"]


# Feature maps: strides 8 and 16 (and 32 of a ResNet), then the extra layers as far as their maps do not vanish.
# 128: 16, 8, 4, 2; 256: 32, 16, 8, 4, 2; 300: 38, 19, 10, 5, 3, 1; 447: 56, 28, 14, 7, 5, 3; 512: 64 ... 2, 1.
# A cell has 4 anchors on the first and the last two maps, else 6.
@pytest.mark.parametrize("base_network", NETWORKS)
@pytest.mark.parametrize(
    ("image_shape", "anchors"),
    [
        (128, 16**2 * 4 + 8**2 * 6 + 4**2 * 4 + 2**2 * 4),
        (256, 32**2 * 4 + 16**2 * 6 + 8**2 * 6 + 4**2 * 4 + 2**2 * 4),
        (300, 8732),
        (447, 56**2 * 4 + 28**2 * 6 + 14**2 * 6 + 7**2 * 6 + 5**2 * 4 + 3**2 * 4),
        (512, 64**2 * 4 + 32**2 * 6 + 16**2 * 6 + 8**2 * 6 + 4**2 * 6 + 2**2 * 4 + 1 * 4),
    ],
)
def test_layout(base_network: str, image_shape: int, anchors: int) -> None:
    built = network.build_network(base_network, image_shape, num_classes=3)
    assert built.anchors.shape == (anchors, 4)
    assert built.anchors.dtype == np.float32
    _, shapes, _ = built.symbol.infer_shape(data=(2, 3, image_shape, image_shape))
    assert shapes == [(2, anchors, 4), (2, anchors, 4)]
    values = network.initial_parameters(built, image_shape, np.random.default_rng(0))
    assert {name: value.shape for name, value in values.items()} == network.parameter_shapes(built, image_shape)


def test_outputs_are_named_for_programs_that_cut_the_graph() -> None:
    assert network.build_network("resnet-18", 128, 3).symbol.list_outputs() == [
        "class_logits_output",
        "box_offsets_output",
    ]


def test_names_are_those_of_the_built_in() -> None:
    vgg = network.parameter_shapes(network.build_network("vgg-16", 300, 20), 300)
    assert vgg["conv1_1_weight"] == (64, 3, 3, 3)
    assert vgg["conv5_3_bias"] == (512,)
    assert vgg["relu4_3_scale"] == (1, 512, 1, 1)
    assert vgg["fc6_weight"] == (1024, 512, 3, 3)
    assert vgg["fc7_weight"] == (1024, 1024, 1, 1)
    assert vgg["multi_feat_2_conv_1x1_conv_weight"] == (256, 1024, 1, 1)
    assert vgg["multi_feat_5_conv_3x3_conv_weight"] == (256, 128, 3, 3)
    assert vgg["relu4_3_cls_pred_conv_weight"] == (4 * 21, 512, 3, 3)
    assert vgg["relu7_loc_pred_conv_bias"] == (6 * 4,)
    assert vgg["multi_feat_2_conv_3x3_relu_cls_pred_conv_weight"] == (6 * 21, 512, 3, 3)
    resnet = network.parameter_shapes(network.build_network("resnet-50", 512, 1), 512)
    assert resnet["conv0_weight"] == (64, 3, 7, 7)
    assert resnet["stage1_unit1_conv1_weight"] == (64, 64, 1, 1)
    assert resnet["stage1_unit1_sc_weight"] == (256, 64, 1, 1)
    assert resnet["stage4_unit3_bn3_moving_var"] == (2048,)
    assert resnet["_plus12_cls_pred_conv_weight"] == (6 * 2, 1024, 3, 3)  # where the third stage ends
    assert resnet["_plus15_loc_pred_conv_weight"] == (6 * 4, 2048, 3, 3)  # where the fourth does
    assert resnet["multi_feat_2_conv_1x1_conv_weight"] == (256, 2048, 1, 1)


@pytest.mark.parametrize("base_network", ["vgg-16", "resnet-18"])
def test_graph_does_not_depend_on_what_was_built_before(base_network: str) -> None:
    first = network.build_network(base_network, 128, 3).symbol.tojson()
    network.build_network("resnet-34", 128, 3)
    assert network.build_network(base_network, 128, 3).symbol.tojson() == first


def test_documented_freeze_pattern_does_what_it_says() -> None:
    built = network.build_network("vgg-16", 300, 20)
    layers = ["conv1_1", "conv1_2", "conv2_1", "conv2_2"]
    assert frozen_parameters("^(conv1_|conv2_).*", built) == {
        f"{layer}_{kind}" for layer in layers for kind in ("weight", "bias")
    }
    # re.match: from the start of the name, without ^ too.
    assert frozen_parameters("conv1_1_w", built) == {"conv1_1_weight"}
    assert frozen_parameters("1_1", built) == frozenset()
    assert frozen_parameters("", built) == frozenset()


def test_all_base_networks_of_the_hyperparameter_can_be_built() -> None:
    field = Hyperparameters.model_fields["base_network"]
    assert re.findall(r"'([a-z0-9-]+)'", str(field.annotation)) == NETWORKS


def test_initial_parameters_come_from_the_generator_alone() -> None:
    built = network.build_network("resnet-18", 128, 3)
    first = network.initial_parameters(built, 128, np.random.default_rng(1))
    mx.random.seed(5)
    np.random.seed(5)
    second = network.initial_parameters(built, 128, np.random.default_rng(1))
    assert all((first[name] == second[name]).all() for name in first)
    # He et al.: variance 2 / fan_in, of 3x3x128 = 1152 inputs; 147,456 draws have a standard error of 0.2 %.
    assert first["stage2_unit2_conv2_weight"].std() == pytest.approx((2 / 1152) ** 0.5, rel=0.02)


def test_normalisation_is_inside_the_graph() -> None:
    constants = network.constants(network.build_network("resnet-18", 128, 3))
    assert constants["data_mean"].ravel().tolist() == pytest.approx([123.675, 116.28, 103.53])
    assert constants["data_std"].ravel().tolist() == pytest.approx([58.395, 57.12, 57.375])
