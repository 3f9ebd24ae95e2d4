import pytest

from ssd_algo.contract.hyperparameters import Hyperparameters
from ssd_algo.training.schedule import averaging_rate, learning_rate, should_stop


def parsed(**more: str) -> Hyperparameters:
    return Hyperparameters.parse({"num_classes": "1", "num_training_samples": "1"} | more)


def test_learning_rate_falls_after_each_step() -> None:
    hp = parsed(learning_rate="0.1", lr_scheduler_step="2, 4", lr_scheduler_factor="0.5")
    rates = [learning_rate(hp, step, 3) for step in range(18)]
    assert rates == pytest.approx([0.1] * 6 + [0.05] * 6 + [0.025] * 6)


def test_modern_warms_up_and_falls_as_a_cosine() -> None:
    hp = parsed(recipe="modern", learning_rate="0.1", epochs="20")
    # 100 steps: 5 of warm-up at 1/6 ... 5/6, then half a wave over 94 intervals from 0.1 to a hundredth of it.
    rates = [learning_rate(hp, step, 5) for step in range(100)]
    assert rates[:6] == pytest.approx([0.1 / 6, 0.2 / 6, 0.3 / 6, 0.4 / 6, 0.5 / 6, 0.1])
    assert rates[5 + 47] == pytest.approx(0.1 * (0.01 + 0.99 / 2))
    assert rates[-1] == pytest.approx(0.001)
    assert rates[5:] == sorted(rates[5:], reverse=True)


def test_a_long_warm_up_ends_after_a_thousand_steps() -> None:
    hp = parsed(recipe="modern", learning_rate="0.1", epochs="100")
    assert learning_rate(hp, 999, 1000) == pytest.approx(0.1 * 1000 / 1001)
    assert learning_rate(hp, 1000, 1000) == pytest.approx(0.1)


def test_modern_with_steps() -> None:
    hp = parsed(recipe="modern", learning_rate="0.1", epochs="20", lr_scheduler_step="10")
    assert learning_rate(hp, 49, 5) == pytest.approx(0.1)
    assert learning_rate(hp, 50, 5) == pytest.approx(0.01)


def test_a_training_of_one_step_has_a_learning_rate() -> None:
    hp = parsed(recipe="modern", learning_rate="0.1", epochs="1")
    assert learning_rate(hp, 0, 1) == pytest.approx(0.1)


def test_the_average_looks_back_on_a_twentieth_of_the_training() -> None:
    hp = parsed(recipe="modern")
    # For five steps: 1 - (1 - rate) ** 5.
    assert averaging_rate(hp, 0, 1000) == pytest.approx(1 - 0.1**5)  # the first weights are all but forgotten
    assert averaging_rate(hp, 80, 1000) == pytest.approx(1 - 0.9**5)
    assert averaging_rate(hp, 900, 1000) == pytest.approx(1 - 0.98**5)
    assert averaging_rate(hp, 0, 1) == pytest.approx(1.0)


def test_no_early_stopping_unless_asked_for() -> None:
    assert not should_stop(parsed(), [0.5] * 100)


@pytest.mark.parametrize(
    ("scores", "stops"),
    [
        ([0.5, 0.4, 0.4], False),  # two epochs waited, but four are the least
        ([0.5, 0.4, 0.4, 0.4], True),
        ([0.5, 0.4, 0.6, 0.4], False),  # the improvement starts the waiting anew
        ([0.5, 0.4, 0.5, 0.5], True),  # the same is no improvement
        ([0.1, 0.2, 0.3, 0.4], False),
    ],
)
def test_early_stopping(scores: list[float], stops: bool) -> None:
    hp = parsed(early_stopping="true", early_stopping_min_epochs="4", early_stopping_patience="2")
    assert should_stop(hp, scores) == stops


@pytest.mark.parametrize(
    ("scores", "stops"),
    [
        ([0.5], False),  # after 3 epochs
        ([0.5, 0.4], True),  # 6 epochs, of which 3 brought nothing
        ([0.5, 0.6], False),
        ([0.5, 0.6, 0.6], True),
    ],
)
def test_epochs_without_validation_count_for_early_stopping(scores: list[float], stops: bool) -> None:
    given = {"early_stopping": "true", "early_stopping_min_epochs": "4", "early_stopping_patience": "2"}
    assert should_stop(parsed(validate_every="3", **given), scores) == stops


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
