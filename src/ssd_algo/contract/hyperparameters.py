"""The hyperparameters: one declared table, parsed from the strings that the platform sends."""

import difflib
import re
from typing import Annotated, Any, Literal, get_args, get_origin

import annotated_types
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError
from pydantic.config import JsonDict
from pydantic.fields import FieldInfo

from ssd_algo.errors import UserError

_BUILT_IN: JsonDict = {"origin": "built-in"}
_OURS: JsonDict = {"origin": "ssd-algo"}

# Names of the built-in that mean nothing here but are sent and kept; values are its defaults.
HIDDEN = {"_tuning_objective_metric": "", "_kvstore": "device", "_num_kv_servers": "auto", "_begin_epoch": "0"}


def _parse_steps(value: Any) -> Any:
    """`"33, 67"` to `(33, 67)`; empty string to `()`."""
    return tuple(part.strip() for part in value.split(",")) if str(value).strip() else ()


def _parse_pattern(value: Any) -> Any:
    """A regular expression, or none: the console sends `false` for none."""
    if str(value).strip().lower() in ("", "false"):
        return ""
    try:
        re.compile(value)
    except re.error as error:
        raise ValueError(str(error)) from error
    return value


Steps = Annotated[tuple[Annotated[int, Field(ge=1)], ...], BeforeValidator(_parse_steps)]
Pattern = Annotated[str, BeforeValidator(_parse_pattern)]
Number = Annotated[float, Field(allow_inf_nan=False)]


def _built_in(default: Any, meaning: str, **constraints: Any) -> Any:
    return Field(default, description=meaning, json_schema_extra=_BUILT_IN, **constraints)


def _ours(default: Any, meaning: str, **constraints: Any) -> Any:
    return Field(default, description=meaning, json_schema_extra=_OURS, **constraints)


class Hyperparameters(BaseModel):
    """All hyperparameters of a job, parsed and in range."""

    model_config = ConfigDict(extra="forbid", frozen=True, regex_engine="python-re")

    num_classes: int = _built_in(..., "Number of classes, background not counted.", ge=1)
    num_training_samples: int = _built_in(..., "Number of training images.", ge=1)
    base_network: Literal["vgg-16", "resnet-18", "resnet-34", "resnet-50", "resnet-101"] = _built_in(
        "vgg-16", "The backbone; the built-in knows vgg-16 and resnet-50."
    )
    use_pretrained_model: int = _built_in(
        1, "1: the backbone starts from ImageNet weights; 0: from scratch.", ge=0, le=1
    )
    epochs: int = _built_in(30, "Passes over the training data.", ge=1)
    mini_batch_size: int = _built_in(32, "Images a step, on one machine, over all its devices.", ge=1)
    learning_rate: Number = _built_in(0.001, "Initial learning rate.", gt=0, le=1)
    lr_scheduler_step: Steps = _built_in((), "Epochs after which the learning rate is reduced, as `33, 67`.")
    lr_scheduler_factor: Number = _built_in(0.1, "Factor of each reduction.", gt=0, lt=1)
    optimizer: Literal["sgd", "adam", "rmsprop", "adadelta"] = _built_in("sgd", "The optimizer.")
    momentum: Number = _built_in(0.9, "Momentum of sgd.", ge=0, le=1)
    weight_decay: Number = _built_in(0.0005, "Weight decay of sgd and rmsprop.", ge=0, lt=1)
    overlap_threshold: Number = _built_in(0.5, "IoU above which a detection counts as right.", gt=0, le=1)
    nms_threshold: Number = _built_in(
        0.45, "IoU above which the lower-scored of two detections is dropped.", gt=0, le=1
    )
    nms_topk: int = _built_in(400, "Most detections of an image, before suppression.", ge=1)
    image_shape: int = _built_in(
        300, "Side of the square that images are resized to; the built-in starts at 300.", ge=128
    )
    label_width: int = _built_in(350, "Numbers in the widest label; the data decides here.", ge=1)
    freeze_layer_pattern: Pattern = _built_in(
        "", "Parameters whose name this regular expression matches are not trained."
    )
    early_stopping: bool = _built_in(False, "Stop when the validation mAP no longer improves.")
    early_stopping_min_epochs: int = _built_in(10, "Epochs before early stopping may happen.", ge=1)
    early_stopping_patience: int = _built_in(5, "Epochs to wait for an improvement.", ge=1)
    early_stopping_tolerance: Number = _built_in(
        0.0, "Relative improvement of mAP below which an epoch counts as none.", ge=0, le=1
    )
    kv_store: Literal["device", "dist_sync", "dist_async"] = _built_in("device", "Gradient exchange between machines.")
    seed: int = _ours(0, "Seed of initial weights, data order and augmentation.", ge=0)

    @classmethod
    def parse(cls, provided: dict[str, str]) -> "Hyperparameters":
        """Parse the platform's strings.

        Raises
        ------
        UserError
            Naming every unknown, missing or wrong hyperparameter, its value and its rule.
        """
        named = {name: value for name, value in provided.items() if not name.startswith(("_", "sagemaker_"))}
        try:
            return cls.model_validate(named)
        except ValidationError as error:
            faults = list(dict.fromkeys(_sentence(str(fault["loc"][0]), provided) for fault in error.errors()))
            raise UserError("hyperparameters: " + "; ".join(faults) + ".") from error


def final_configuration(provided: dict[str, str], parsed: Hyperparameters) -> dict[str, str]:
    """Defaults merged with what was provided, all strings, as the built-in writes `hyperparams.json`.

    Integers stand there as such, also where `3.0` was given: every reader of the file expects them so.
    """
    defaults = {
        name: "" if field.is_required() or field.default == () else str(field.default)
        for name, field in Hyperparameters.model_fields.items()
    }
    given = {name: value for name, value in provided.items() if not name.startswith("sagemaker_")}
    integers = {name: str(value) for name, value in parsed if name in given and type(value) is int}
    return defaults | HIDDEN | given | integers


def _sentence(name: str, provided: dict[str, str]) -> str:
    """What is wrong with the hyperparameter `name`."""
    fields = Hyperparameters.model_fields
    if name not in fields:
        near = difflib.get_close_matches(name, fields, n=1)
        return f"{name} is unknown" + (f" (did you mean {near[0]}?)" if near else "")
    if name not in provided:
        return f"{name} is missing and must be {_rule(fields[name])}"
    return f'{name} is "{provided[name]}" and must be {_rule(fields[name])}'


def _rule(field: FieldInfo) -> str:
    """In words, which values a hyperparameter takes."""
    if get_origin(field.annotation) is Literal:
        return "one of " + ", ".join(get_args(field.annotation))
    if any(getattr(each, "func", None) is _parse_steps for each in field.metadata):
        return "epochs of at least 1 separated by commas, or empty"
    if field.annotation is str:
        return "a regular expression, or empty"
    if field.annotation is bool:
        return "True or False"
    kind = "an integer" if field.annotation is int else "a number"
    words = {
        annotated_types.Ge: "of at least",
        annotated_types.Gt: "above",
        annotated_types.Le: "at most",
        annotated_types.Lt: "below",
    }
    bounds = [
        f"{word} {getattr(each, type(each).__name__.lower())}"
        for each in field.metadata
        for constraint, word in words.items()
        if isinstance(each, constraint)
    ]
    return " ".join([kind, " and ".join(bounds)]).strip()
