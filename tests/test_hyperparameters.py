"""Every refusal by its whole message, every spelling that the platform sends."""

from pathlib import Path

import pytest

from ssd_algo.contract.hyperparameters import Hyperparameters, documentation, final_configuration
from ssd_algo.errors import UserError

LEAST = {"num_classes": "2", "num_training_samples": "10"}


def test_defaults_are_the_built_ins() -> None:
    parsed = Hyperparameters.parse(LEAST | {"recipe": "builtin"})
    assert parsed.model_dump() == {
        "num_classes": 2,
        "num_training_samples": 10,
        "base_network": "vgg-16",
        "use_pretrained_model": 1,
        "epochs": 30,
        "mini_batch_size": 32,
        "learning_rate": 0.001,
        "lr_scheduler_step": (),
        "lr_scheduler_factor": 0.1,
        "optimizer": "sgd",
        "momentum": 0.9,
        "weight_decay": 0.0005,
        "overlap_threshold": 0.5,
        "nms_threshold": 0.45,
        "nms_topk": 400,
        "image_shape": 300,
        "label_width": 350,
        "freeze_layer_pattern": "",
        "early_stopping": False,
        "early_stopping_min_epochs": 10,
        "early_stopping_patience": 5,
        "early_stopping_tolerance": 0.0,
        "kv_store": "device",
        "recipe": "builtin",
        "lr_scheduler": "step",
        "validate_every": 1,
        "devices": "auto",
        "checkpoint_minutes": 10.0,
        "transfer": False,
        "seed": 0,
        "max_bad_records": 0,
        "augmentation": True,
        "cache_mb": 0,
        "export_int8": "auto",
        "spool_mb": 4096,
    }


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("learning_rate", "1e-3", 0.001),
        ("learning_rate", "1", 1.0),
        ("lr_scheduler_step", "33, 67", (33, 67)),
        ("lr_scheduler_step", " ", ()),
        ("lr_scheduler_step", "33,67,", (33, 67)),
        ("early_stopping", "false", False),
        ("early_stopping", "True", True),
        ("early_stopping", "TRUE", True),
        ("freeze_layer_pattern", "false", ""),
        ("freeze_layer_pattern", "^(conv1_|conv2_).*", "^(conv1_|conv2_).*"),
        ("momentum", "0.0", 0.0),
        ("weight_decay", "0.0", 0.0),
        ("use_pretrained_model", "0", 0),
        ("image_shape", "128", 128),
        ("base_network", "resnet-101", "resnet-101"),
    ],
)
def test_spellings(name: str, text: str, value: object) -> None:
    assert getattr(Hyperparameters.parse(LEAST | {name: text}), name) == value


def test_names_of_the_platform_are_accepted() -> None:
    Hyperparameters.parse(LEAST | {"_tuning_objective_metric": "validation:mAP", "sagemaker_region": "eu-west-1"})


@pytest.mark.parametrize(
    ("name", "text", "rule"),
    [
        ("num_classes", "0", "an integer from 1 to 10000"),
        ("num_classes", "", "an integer from 1 to 10000"),
        ("mini_batch_size", "1.5", "an integer from 1 to 65536"),
        ("image_shape", "127", "an integer from 128 to 4096"),
        ("learning_rate", "0", "a number above 0 and at most 1"),
        ("learning_rate", "nan", "a number above 0 and at most 1"),
        ("learning_rate", "inf", "a number above 0 and at most 1"),
        ("weight_decay", "1", "a number of at least 0 and below 1"),
        ("momentum", "-0.1", "a number from 0 to 1"),
        ("use_pretrained_model", "2", "an integer from 0 to 1"),
        ("early_stopping", "maybe", "True or False"),
        ("optimizer", "lamb", "one of sgd, adam, rmsprop, adadelta"),
        ("base_network", "vgg16", "one of vgg-16, resnet-18, resnet-34, resnet-50, resnet-101"),
        ("lr_scheduler_step", "3,x", "ascending epochs of at least 1 separated by commas, or empty"),
        ("lr_scheduler_step", "6,3", "ascending epochs of at least 1 separated by commas, or empty"),
        ("lr_scheduler_step", "3,3", "ascending epochs of at least 1 separated by commas, or empty"),
        ("num_classes", "10001", "an integer from 1 to 10000"),
        ("mini_batch_size", "1" + "0" * 30, "an integer from 1 to 65536"),
        ("freeze_layer_pattern", "(" * 5000 + ")" * 5000, "a regular expression, or empty"),
        ("freeze_layer_pattern", "(conv", "a regular expression, or empty"),
    ],
)
def test_refusals(name: str, text: str, rule: str) -> None:
    with pytest.raises(UserError) as caught:
        Hyperparameters.parse(LEAST | {name: text})
    shown = text if len(text) <= 60 else f"{text[:59]}…"
    assert str(caught.value) == f'hyperparameters: {name} is "{shown}" and must be {rule}.'


@pytest.mark.parametrize(
    ("given", "recipe", "scheduler", "rate"),
    [
        # 0.002 and 0.01 for 16 images a step, in proportion up to 64.
        ({}, "modern", "cosine", 0.002),
        ({"mini_batch_size": "8"}, "modern", "cosine", 0.001),
        ({"base_network": "resnet-50"}, "modern", "cosine", 0.02),
        ({"base_network": "resnet-50", "mini_batch_size": "128"}, "modern", "cosine", 0.04),
        ({"lr_scheduler_factor": "0.5", "momentum": "0.8"}, "modern", "cosine", 0.002),
        ({"learning_rate": "0.001"}, "builtin", "step", 0.001),
        ({"lr_scheduler_step": "5"}, "builtin", "step", 0.001),
        ({"optimizer": "sgd"}, "builtin", "step", 0.001),
        ({"learning_rate": "0.1", "lr_scheduler": "cosine"}, "builtin", "cosine", 0.1),
        ({"learning_rate": "0.1", "recipe": "modern"}, "modern", "cosine", 0.1),
        ({"lr_scheduler_step": "5", "recipe": "modern"}, "modern", "step", 0.002),
        ({"optimizer": "adam", "recipe": "modern"}, "modern", "cosine", 0.001),
        ({"recipe": "builtin"}, "builtin", "step", 0.001),
    ],
)
def test_the_recipe_follows_from_what_is_given(given: dict[str, str], recipe: str, scheduler: str, rate: float) -> None:
    parsed = Hyperparameters.parse(LEAST | given)
    assert (parsed.recipe, parsed.lr_scheduler) == (recipe, scheduler)
    assert parsed.learning_rate == pytest.approx(rate)
    written = final_configuration(LEAST | given, parsed)
    assert (written["recipe"], written["lr_scheduler"]) == (recipe, scheduler)
    assert float(written["learning_rate"]) == parsed.learning_rate


def test_steps_beside_cosine_are_warned_of() -> None:
    parsed = Hyperparameters.parse(LEAST | {"lr_scheduler_step": "5", "lr_scheduler": "cosine"})
    assert parsed.warnings() == ["lr_scheduler_step has no effect, as lr_scheduler is cosine."]


def test_the_rate_of_adadelta_is_warned_of() -> None:
    parsed = Hyperparameters.parse(LEAST | {"optimizer": "adadelta", "learning_rate": "0.1"})
    assert parsed.warnings() == [
        "learning_rate and its schedule have no effect, as optimizer is adadelta, which has none."
    ]
    assert Hyperparameters.parse(LEAST | {"optimizer": "adadelta"}).warnings() == []


@pytest.mark.parametrize(
    ("base_network", "size", "rate"),
    [("resnet-50", "8", 0.005), ("resnet-50", "64", 0.04), ("resnet-50", "128", 0.04), ("vgg-16", "64", 0.002)],
)
def test_the_modern_rate_follows_the_batch(base_network: str, size: str, rate: float) -> None:
    parsed = Hyperparameters.parse(LEAST | {"base_network": base_network, "mini_batch_size": size})
    assert parsed.learning_rate == pytest.approx(rate)


def test_all_faults_are_named_at_once() -> None:
    with pytest.raises(UserError) as caught:
        Hyperparameters.parse({"num_classes": "x", "mini_batch_siz": "3", "zzz": "1"})
    assert str(caught.value) == (
        'hyperparameters: num_classes is "x" and must be an integer from 1 to 10000; num_training_samples is missing and '
        "must be an integer of at least 1; mini_batch_siz is unknown (did you mean mini_batch_size?); zzz is unknown."
    )


def test_final_configuration_is_the_built_ins_file() -> None:
    provided = LEAST | {
        "learning_rate": "1e-2",
        "epochs": "3.0",
        "_tuning_objective_metric": "validation:mAP",
        "sagemaker_job_name": "j",
    }
    assert final_configuration(provided, Hyperparameters.parse(provided)) == {
        "base_network": "vgg-16",
        "use_pretrained_model": "1",
        "num_classes": "2",
        "mini_batch_size": "32",
        "epochs": "3",
        "learning_rate": "1e-2",
        "lr_scheduler_step": "",
        "lr_scheduler_factor": "0.1",
        "optimizer": "sgd",
        "momentum": "0.9",
        "weight_decay": "0.0005",
        "overlap_threshold": "0.5",
        "nms_threshold": "0.45",
        "num_training_samples": "10",
        "image_shape": "300",
        "_tuning_objective_metric": "validation:mAP",
        "_kvstore": "device",
        "kv_store": "device",
        "_num_kv_servers": "auto",
        "label_width": "350",
        "freeze_layer_pattern": "",
        "nms_topk": "400",
        "early_stopping": "False",
        "early_stopping_min_epochs": "10",
        "early_stopping_patience": "5",
        "early_stopping_tolerance": "0.0",
        "_begin_epoch": "0",
        "recipe": "builtin",
        "lr_scheduler": "step",
        "validate_every": "1",
        "devices": "auto",
        "checkpoint_minutes": "10.0",
        "transfer": "False",
        "seed": "0",
        "max_bad_records": "0",
        "augmentation": "True",
        "cache_mb": "0",
        "export_int8": "auto",
        "spool_mb": "4096",
    }


@pytest.mark.parametrize(
    ("changed", "sentences"),
    [
        ({}, []),
        ({"epochs": "5", "lr_scheduler_step": "4"}, []),
        (
            {"epochs": "5", "lr_scheduler_step": "3, 5, 6"},
            [
                "lr_scheduler_step has 5, 6, but training ends after 5 epochs: the learning rate is not reduced there.",
            ],
        ),
        (
            {"epochs": "5", "early_stopping": "true", "early_stopping_min_epochs": "5"},
            ["early_stopping_min_epochs is 5 and epochs 5: training never stops early."],
        ),
    ],
)
def test_what_is_legal_but_hardly_meant(changed: dict[str, str], sentences: list[str]) -> None:
    assert Hyperparameters.parse(LEAST | changed).warnings() == sentences


def test_the_page_is_the_table() -> None:
    page = Path(__file__).parents[1] / "docs" / "hyperparameters.md"
    assert page.read_text() == documentation(), "run `make docs`"
