"""One epoch over devices: optimizers, freezing, several contexts."""

import json
from collections.abc import Callable, Iterator
from dataclasses import replace

import mxnet as mx
import numpy as np
import pytest
from numpy.typing import NDArray

from ssd_algo.contract.hyperparameters import Hyperparameters
from ssd_algo.data.loader import Batch
from ssd_algo.model.network import build_network, constants, initial_parameters
from ssd_algo.training.peers import Peers
from ssd_algo.training.recipe import RECIPES
from ssd_algo.training.trainer import Trainer

NETWORK = build_network("resnet-18", 128, 3)


def start() -> dict[str, NDArray[np.float32]]:
    """Initial values, but for BatchNorm's variances: 4 keeps the activations small where they are frozen."""
    values = initial_parameters(NETWORK, 128, np.random.default_rng(0)) | constants(NETWORK)
    return {name: value * 4 if name.endswith("_moving_var") else value for name, value in values.items()}


def make(contexts: list[mx.Context], **hyperparameters: str) -> Trainer:
    least = {"num_classes": "3", "num_training_samples": "4", "mini_batch_size": "4", "image_shape": "128"}
    least |= {"recipe": "builtin"}
    return Trainer(NETWORK, start(), Hyperparameters.parse(least | hyperparameters), contexts, 2, Peers.alone())


def batch(weights: tuple[float, ...] = (1, 1, 1, 1)) -> Batch:
    """Noise images, one for each weight, with two boxes each."""
    generator = np.random.default_rng(1)
    low = generator.uniform(0, 0.5, (len(weights), 2, 2))
    return Batch(
        images=generator.integers(0, 256, (len(weights), 128, 128, 3), dtype=np.uint8),
        boxes=np.concatenate([low, low + 0.3], axis=2).astype(np.float32),
        classes=generator.integers(0, 3, (len(weights), 2)).astype(np.float32),
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


Step = Callable[[NDArray[np.float64]], NDArray[np.float64]]


@pytest.mark.parametrize(
    ("settings", "step"),
    [
        # Kingma and Ba 2015, algorithm 1, t = 1 with betas 0.9 and 0.999: both means over their corrections are g and g^2.
        ({"optimizer": "adam"}, lambda g: g / (np.abs(g) + 1e-8 / np.sqrt(0.001))),
        # Tieleman and Hinton 2012: a running mean of 0.1 of the first square.
        ({"optimizer": "rmsprop"}, lambda g: g / np.sqrt(0.1 * g**2 + 1e-8)),
        # Zeiler 2012, algorithm 1: no learning rate; no update has been made before.
        ({"optimizer": "adadelta"}, lambda g: np.sqrt(1e-5) / np.sqrt(0.1 * g**2 + 1e-5) * g / 0.001),
    ],
    ids=lambda value: value["optimizer"] if isinstance(value, dict) else "",
)
def test_the_first_step_of_every_optimizer(settings: dict[str, str], step: Step) -> None:
    """The gradient is what plain sgd goes along."""
    none = {"weight_decay": "0.0", "momentum": "0.0", "learning_rate": "0.001"}
    trainers = [make([mx.cpu()], **none | each) for each in ({"optimizer": "sgd"}, settings)]
    for trainer in trainers:
        trainer.train_epoch(0, [batch()])
    before = start()
    for name in ("conv0_weight", "stage3_unit1_conv1_weight"):
        plain, other = ((trainer.values()[name] - before[name]).astype(np.float64) for trainer in trainers)
        gradient = -plain / 0.001
        large = np.abs(gradient) > 0.5 * np.abs(gradient).max()  # the others are lost in the weight's rounding
        np.testing.assert_allclose(other[large], -0.001 * step(gradient[large]), rtol=2e-3)


@pytest.mark.parametrize("recipe", ["builtin", "modern"])
def test_vgg_from_scratch_learns_at_its_default_learning_rate(recipe: str) -> None:
    network = build_network("vgg-16", 128, 3)
    values = initial_parameters(network, 128, np.random.default_rng(0)) | constants(network)
    given = {"num_classes": "3", "num_training_samples": "4", "mini_batch_size": "16", "recipe": recipe}
    trainer = Trainer(network, values, Hyperparameters.parse(given), [mx.cpu()], 1, Peers.alone())
    losses = [trainer.train_epoch(epoch, [batch()]).cross_entropy for epoch in range(10)]
    assert np.isfinite(losses).all()
    assert losses[-1] < 0.8 * losses[0]


def test_momentum_and_weight_decay_are_used() -> None:
    """Each changes the second step's outcome; momentum 0 and weight decay 0 are legal."""
    outcomes = []
    for settings in ({}, {"momentum": "0.0"}, {"weight_decay": "0.0"}):
        trainer = make([mx.cpu()], **settings)
        trainer.train_epoch(0, [batch(), batch()])
        outcomes.append(trainer.values()["conv0_weight"])
    assert not (outcomes[0] == outcomes[1]).all()
    assert not (outcomes[0] == outcomes[2]).all()


@pytest.mark.parametrize(("recipe", "kind"), [("builtin", "last"), ("modern", "last"), ("modern", "averaged")])
def test_frozen_parameters_stay_bit_identical_and_others_move(recipe: str, kind: str) -> None:
    trainer = make([mx.cpu()], freeze_layer_pattern="^(conv0|bn0|stage1_|stage2_).*", recipe=recipe)
    trainer.train_epoch(0, [batch()] * 2)
    before, after = start(), trainer.values(kind)
    frozen = [name for name in before if name.startswith(("conv0", "bn0", "stage1_", "stage2_"))]
    assert len(frozen) == 5 + 4 * 5 + 5 * 5  # a convolution and a BatchNorm of 4 make 5; stage 2 has a shortcut too
    assert all((before[name] == after[name]).all() for name in frozen)
    moved = [name for name in before if name not in frozen and name not in constants(NETWORK)]
    # A few biases of maps that no box matched may stay, and without weight decay some more.
    assert sum(not (before[name] == after[name]).all() for name in moved) > 0.5 * len(moved)
    assert all((before[name] == after[name]).all() for name in constants(NETWORK))


def test_frozen_statistics_stay_and_the_rest_of_their_layer_moves() -> None:
    trainer = make([mx.cpu()], freeze_layer_pattern=".*_moving_")
    trainer.train_epoch(0, [batch()] * 2)
    before, after = start(), trainer.values()
    frozen = [name for name in before if "_moving_" in name]
    assert all((before[name] == after[name]).all() for name in frozen)
    assert not (before["stage2_unit1_bn1_gamma"] == after["stage2_unit1_bn1_gamma"]).all()


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


def test_twenty_steps_from_the_same_start_end_bit_identical() -> None:
    values = []
    for _ in range(2):
        trainer = make([mx.cpu()], recipe="modern", learning_rate="0.002")
        trainer.train_epoch(0, [batch()] * 20)
        values.append([trainer.values(kind) for kind in ("last", "averaged")])
    for one, two in zip(*values, strict=True):
        assert all((one[name] == two[name]).all() for name in one)
        assert all(np.isfinite(each).all() for each in one.values())


def test_a_step_reads_nothing_from_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """Over 50 steps only the losses are read: ten at a time, and none of the step just begun."""
    monkeypatch.setattr("ssd_algo.training.trainer._QUEUED_SECONDS", float("inf"))
    trainer = make([mx.cpu()], recipe="modern", mini_batch_size="1")
    trainer.train_epoch(0, [batch((1,))])
    reads: list[tuple[str, int]] = []
    begun = 0

    def counted(name: str) -> None:
        original = getattr(mx.nd.NDArray, name)

        def read(array: mx.nd.NDArray) -> object:
            reads.append((name, begun))
            return original(array)

        monkeypatch.setattr(mx.nd.NDArray, name, read)

    for name in ("asnumpy", "asscalar", "wait_to_read"):
        counted(name)

    def batches() -> Iterator[Batch]:
        nonlocal begun
        for _ in range(50):
            begun += 1
            yield batch((1,))

    trainer.train_epoch(1, batches())
    # Losses 1 to 10 after the eleventh step was begun, and so on; the last ten with the epoch's end.
    expected = [("asnumpy", step) for step in (11, 21, 31, 41, 50) for _ in range(10)]
    assert reads == expected


def test_the_average_follows_the_weights() -> None:
    trainer = make([mx.cpu()], recipe="modern", learning_rate="0.002", epochs="40")
    steps_an_epoch, total = 2, 80
    expected = start()["conv0_weight"].astype(np.float64)
    for step in range(12):
        trainer.train_epoch(step // steps_an_epoch, [batch()])
        if step % 5 == 0:
            rate = 1 - (1 - max(1 / (0.05 * total), 9 / (10 + step))) ** 5
            expected += rate * (trainer.values()["conv0_weight"] - expected)
    averaged = trainer.values("averaged")
    np.testing.assert_allclose(averaged["conv0_weight"], expected, atol=1e-6)
    assert not (averaged["conv0_weight"] == trainer.values()["conv0_weight"]).all()
    assert (averaged["bn0_moving_mean"] == trainer.values()["bn0_moving_mean"]).all()


def test_builtin_has_no_average() -> None:
    assert list(make([mx.cpu()]).engines()) == ["last"]
    assert list(make([mx.cpu()], recipe="modern").engines()) == ["last", "averaged"]


@pytest.mark.parametrize("contexts", [[mx.cpu(0)], [mx.cpu(0), mx.cpu(1)]], ids=["1", "2"])
def test_a_long_gradient_is_clipped(contexts: list[mx.Context], monkeypatch: pytest.MonkeyPatch) -> None:
    """Without momentum and decay the first step is as long as the learning rate times the longest gradient."""
    monkeypatch.setitem(RECIPES, "modern", replace(RECIPES["modern"], clipped_norm=0.5, warm_up=0))
    settings = {"momentum": "0.0", "weight_decay": "0.0", "learning_rate": "0.1"}
    trainer = make(contexts, recipe="modern", **settings)
    trainer.train_epoch(0, [batch()])
    before, after = start(), trainer.values()
    moved = [name for name in before if not name.endswith(("_moving_mean", "_moving_var"))]
    length = np.sqrt(sum(np.square((after[name] - before[name]).astype(np.float64)).sum() for name in moved))
    assert length == pytest.approx(0.1 * 0.5, rel=1e-3)


@pytest.mark.parametrize(("recipe", "kinds"), [("modern", {"weight"}), ("builtin", {"weight", "gamma"})])
def test_what_weight_decay_acts_on(recipe: str, kinds: set[str]) -> None:
    outcomes = []
    for decay in ("0.0", "0.5"):
        trainer = make([mx.cpu()], recipe=recipe, weight_decay=decay, learning_rate="0.01")
        trainer.train_epoch(0, [batch()])
        outcomes.append(trainer.values())
    differ = {name.split("_")[-1] for name in outcomes[0] if not (outcomes[0][name] == outcomes[1][name]).all()}
    assert differ == kinds


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


@pytest.mark.parametrize(
    ("optimizer", "contexts"),
    [
        ("sgd", [mx.cpu()]),
        ("adam", [mx.cpu(0), mx.cpu(1)]),
        ("rmsprop", [mx.cpu()]),
        ("adadelta", [mx.cpu()]),
    ],
    ids=["sgd", "adam on 2", "rmsprop", "adadelta"],
)
def test_a_restored_trainer_goes_on_to_the_same_bits(optimizer: str, contexts: list[mx.Context]) -> None:
    """In the middle of an epoch, with all that a JSON file would make of its state."""
    settings = {"optimizer": optimizer, "recipe": "modern", "learning_rate": "0.0005", "epochs": "3"}
    whole, first, second = (make(contexts, **settings) for _ in range(3))
    for epoch in range(2):
        result = whole.train_epoch(epoch, [batch(), batch((1, 1, 1, 0))])
    first.train_epoch(0, [batch(), batch((1, 1, 1, 0))])
    assert first.train_epoch(1, [batch()], pause=lambda: True) is None
    state, arrays = first.snapshot()
    second.restore(json.loads(json.dumps(state)), arrays)
    assert (second.so_far.epoch, second.so_far.batches) == (1, 1)
    resumed = second.train_epoch(1, [batch((1, 1, 1, 0))])
    assert result is not None
    assert resumed is not None
    assert replace(resumed, seconds=result.seconds) == result
    assert second.learning_rate == whole.learning_rate
    ours, theirs = second.snapshot()[1], whole.snapshot()[1]
    assert ours.keys() == theirs.keys()
    assert all((ours[name] == theirs[name]).all() for name in ours)


def test_statistics_of_all_devices_count() -> None:
    """After an epoch each device has the mean of what they had of their shares, and so have model and average."""
    trainer = make([mx.cpu(0), mx.cpu(1)], recipe="modern")
    assert trainer.train_epoch(0, [batch()], pause=lambda: True) is None
    mean = trainer._parameters["bn0_moving_mean"]
    first, second = (each.asnumpy() for each in mean.list_data())
    assert not (first == second).all()
    expected = np.mean([first, second], axis=0)
    assert (trainer.values()["bn0_moving_mean"] == expected).all()
    assert trainer.train_epoch(0, []) is not None
    for values in (trainer.values(), trainer.values("averaged")):
        assert (values["bn0_moving_mean"] == expected).all()
    assert all((each.asnumpy() == expected).all() for each in mean.list_data())
