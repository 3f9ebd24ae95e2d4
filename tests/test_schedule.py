import pytest

from ssd_algo.contract.hyperparameters import Hyperparameters
from ssd_algo.training.schedule import learning_rate, should_stop


def parsed(**more: str) -> Hyperparameters:
    return Hyperparameters.parse({"num_classes": "1", "num_training_samples": "1"} | more)


def test_learning_rate_falls_after_each_step() -> None:
    hp = parsed(learning_rate="0.1", lr_scheduler_step="2, 4", lr_scheduler_factor="0.5")
    assert [learning_rate(hp, epoch) for epoch in range(6)] == pytest.approx([0.1, 0.1, 0.05, 0.05, 0.025, 0.025])


def test_no_early_stopping_unless_asked_for() -> None:
    assert not should_stop(parsed(), [0.5] * 100)


@pytest.mark.parametrize(
    ("scores", "stops"),
    [
        ([0.5, 0.4, 0.4], False),  # two epochs waited, but three are the least
        ([0.5, 0.4, 0.4, 0.4], True),
        ([0.5, 0.4, 0.6, 0.4], False),  # the improvement starts the waiting anew
        ([0.5, 0.4, 0.5, 0.5], True),  # the same is no improvement
        ([0.1, 0.2, 0.3, 0.4], False),
    ],
)
def test_early_stopping(scores: list[float], stops: bool) -> None:
    hp = parsed(early_stopping="true", early_stopping_min_epochs="4", early_stopping_patience="2")
    assert should_stop(hp, scores) == stops


def test_early_stopping_tolerance_is_relative_to_the_best() -> None:
    # 0.54 is 8 % better than 0.5, less than the tolerance of 10 %; 0.56 is 12 % better.
    hp = parsed(
        early_stopping="True",
        early_stopping_min_epochs="1",
        early_stopping_patience="1",
        early_stopping_tolerance="0.1",
    )
    assert should_stop(hp, [0.5, 0.54])
    assert not should_stop(hp, [0.5, 0.56])
