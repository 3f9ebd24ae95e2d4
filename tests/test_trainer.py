"""One epoch over devices: optimizers, freezing, several contexts."""

import mxnet as mx
import numpy as np
import pytest
from numpy.typing import NDArray

from ssd_algo.contract.hyperparameters import Hyperparameters
from ssd_algo.data.loader import Batch
from ssd_algo.model.network import build_network, constants, initial_parameters
from ssd_algo.training.trainer import Trainer

NETWORK = build_network("resnet-18", 128, 3)


def start() -> dict[str, NDArray[np.float32]]:
    """Initial values, but for BatchNorm's variances: 4 keeps the activations small where they are frozen."""
    values = initial_parameters(NETWORK, 128, np.random.default_rng(0)) | constants(NETWORK)
    return {name: value * 4 if name.endswith("_moving_var") else value for name, value in values.items()}


def make(contexts: list[mx.Context], **hyperparameters: str) -> Trainer:
    least = {"num_classes": "3", "num_training_samples": "4", "mini_batch_size": "4", "image_shape": "128"}
    return Trainer(NETWORK, start(), Hyperparameters.parse(least | hyperparameters), contexts)


def batch(weights: tuple[float, ...] = (1, 1, 1, 1)) -> Batch:
    """Four noise images with two boxes each."""
    generator = np.random.default_rng(1)
    low = generator.uniform(0, 0.5, (4, 2, 2))
    return Batch(
        images=generator.integers(0, 256, (4, 128, 128, 3), dtype=np.uint8),
        boxes=np.concatenate([low, low + 0.3], axis=2).astype(np.float32),
        classes=generator.integers(0, 3, (4, 2)).astype(np.float32),
        weights=np.asarray(weights, dtype=np.float32),
    )


@pytest.mark.parametrize(
    "settings",
    [
        {"optimizer": "sgd", "learning_rate": "0.005"},
        {"optimizer": "adam", "learning_rate": "0.0005"},
        {"optimizer": "rmsprop", "learning_rate": "0.0005"},
        {"optimizer": "adadelta"},
    ],
    ids=lambda settings: settings["optimizer"],
)
def test_every_optimizer_lowers_the_loss(settings: dict[str, str]) -> None:
    trainer = make([mx.cpu()], **settings)
    losses = [
        result.cross_entropy + result.smooth_l1 for result in (trainer.train_epoch(0, [batch()]) for _ in range(12))
    ]
    assert losses[-1] < losses[0]


def test_momentum_and_weight_decay_are_used() -> None:
    """Each changes the second step's outcome; momentum 0 and weight decay 0 are legal."""
    outcomes = []
    for settings in ({}, {"momentum": "0.0"}, {"weight_decay": "0.0"}):
        trainer = make([mx.cpu()], **settings)
        trainer.train_epoch(0, [batch(), batch()])
        outcomes.append(trainer.values()["conv0_weight"])
    assert not (outcomes[0] == outcomes[1]).all()
    assert not (outcomes[0] == outcomes[2]).all()


def test_frozen_parameters_stay_bit_identical_and_others_move() -> None:
    trainer = make([mx.cpu()], freeze_layer_pattern="^(conv0|bn0|stage1_|stage2_).*")
    trainer.train_epoch(0, [batch()] * 2)
    before, after = start(), trainer.values()
    frozen = [name for name in before if name.startswith(("conv0", "bn0", "stage1_", "stage2_"))]
    assert len(frozen) == 5 + 4 * 5 + 5 * 5  # a convolution and a BatchNorm of 4 make 5; stage 2 has a shortcut too
    assert all((before[name] == after[name]).all() for name in frozen)
    moved = [name for name in before if name not in frozen and name not in constants(NETWORK)]
    # A few biases of maps that no box matched may stay.
    assert sum(not (before[name] == after[name]).all() for name in moved) > 0.9 * len(moved)
    assert all((before[name] == after[name]).all() for name in constants(NETWORK))


def test_frozen_batch_norm_in_the_middle_keeps_its_statistics() -> None:
    """Gradients pass through it to the layers below, which is when MXNet would update them."""
    trainer = make([mx.cpu()], freeze_layer_pattern="stage3_")
    trainer.train_epoch(0, [batch()] * 2)
    before, after = start(), trainer.values()
    frozen = [name for name in before if name.startswith("stage3_")]
    assert len(frozen) == 5 * 5
    assert all((before[name] == after[name]).all() for name in frozen)
    assert not (before["stage2_unit1_bn1_moving_mean"] == after["stage2_unit1_bn1_moving_mean"]).all()
    assert not (before["conv0_weight"] == after["conv0_weight"]).all()


def test_same_start_same_result() -> None:
    values = []
    for _ in range(2):
        trainer = make([mx.cpu()])
        trainer.train_epoch(0, [batch()] * 3)
        values.append(trainer.values())
    assert all((values[0][name] == values[1][name]).all() for name in values[0])


@pytest.mark.parametrize("contexts", [[mx.cpu(0), mx.cpu(1)], [mx.cpu(0), mx.cpu(1), mx.cpu(2)]], ids=["2", "3"])
def test_splitting_a_batch_over_devices_changes_nothing(contexts: list[mx.Context]) -> None:
    """With frozen BatchNorm statistics, which each device would else take of its own share."""
    outcomes = []
    for devices in ([mx.cpu()], contexts):
        trainer = make(devices, freeze_layer_pattern=".*bn.*", learning_rate="0.001")
        result = trainer.train_epoch(0, [batch()] * 2)
        outcomes.append((trainer.values(), result.cross_entropy, result.smooth_l1))
    (one, *losses), (several, *theirs) = outcomes
    assert theirs == pytest.approx(losses, rel=1e-4)
    for name in one:
        np.testing.assert_allclose(several[name], one[name], rtol=1e-3, atol=1e-5, err_msg=name)


def test_images_of_weight_zero_teach_nothing() -> None:
    """Where the filling images differ, parameters do not (BatchNorm's statistics frozen)."""
    outcomes = []
    for shift in (0, 1):
        filled = batch((1, 1, 0, 0))
        filled.images[2:] = np.roll(filled.images[2:], shift, axis=1)
        trainer = make([mx.cpu()], freeze_layer_pattern=".*bn.*")
        result = trainer.train_epoch(0, [filled])
        assert result.examples == 2
        outcomes.append(trainer.values())
    for name in outcomes[0]:
        np.testing.assert_allclose(outcomes[0][name], outcomes[1][name], rtol=1e-4, atol=1e-6, err_msg=name)
