"""The hyperparameters: one declared table, parsed from the strings that the platform sends."""

import difflib
import re
from typing import Annotated, Any, Literal, get_args, get_origin

import annotated_types
from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, ValidationInfo
from pydantic.config import JsonDict
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails, PydanticCustomError

from ssd_algo.errors import UserError

_BUILT_IN: JsonDict = {"origin": "built-in"}
_OURS: JsonDict = {"origin": "ssd-algo"}

_OWN_RULE = "own_rule"  # the type of a fault whose message is our own sentence

# Who gives one of these has settled on the built-in's schedule, and keeps it.
_OLD_NOTEBOOKS = {"learning_rate", "lr_scheduler_step", "optimizer"}

# Learning rates of sgd in the recipe `modern` for 16 images a step; without BatchNorm less is borne.
_RATE_OF_RESNETS, _RATE_OF_VGG = 0.01, 0.002

_LONGEST = 900  # characters of all faults; the platform shows 1024 of a failure

# Names of the built-in that mean nothing here but are sent and kept; values are its defaults.
HIDDEN = {"_tuning_objective_metric": "", "_kvstore": "device", "_num_kv_servers": "auto", "_begin_epoch": "0"}


def _parse_steps(value: Any) -> Any:
    """`"33, 67"` to `(33, 67)`; empty string to `()`. As for the built-in, a comma too many does not matter."""
    return tuple(part.strip() for part in value.split(",") if part.strip())


def _ascending(steps: tuple[int, ...]) -> tuple[int, ...]:
    if list(steps) != sorted(set(steps)):
        raise ValueError("not ascending")
    return steps


def _parse_pattern(value: Any) -> Any:
    """A regular expression, or none: the console sends `false` for none."""
    if str(value).strip().lower() in ("", "false"):
        return ""
    try:
        re.compile(value)
    except (re.error, RecursionError, OverflowError) as error:
        raise ValueError(str(error)) from error
    return value


def _enough_for_gpus(size: int, info: ValidationInfo) -> int:
    gpus = (info.context or {}).get("gpus", 0)
    if size < gpus:
        text = "mini_batch_size is {size}, but this machine has {gpus} GPUs and each needs at least one image"
        raise PydanticCustomError(_OWN_RULE, text, {"size": size, "gpus": gpus})
    return size


def _enough_images(devices: str, info: ValidationInfo) -> str:
    number, size = int(devices.partition(":")[2] or 1), info.data.get("mini_batch_size", 0)
    if 0 < size < number:
        text = "devices is {devices}, but mini_batch_size is {size}, and each device needs at least one image"
        raise PydanticCustomError(_OWN_RULE, text, {"devices": devices, "size": size})
    return devices


_DEVICES = r"auto|cpu|(cpu|gpu):[1-9]\d?"

BatchSize = Annotated[int, AfterValidator(_enough_for_gpus)]
Steps = Annotated[tuple[Annotated[int, Field(ge=1)], ...], BeforeValidator(_parse_steps), AfterValidator(_ascending)]
Pattern = Annotated[str, BeforeValidator(_parse_pattern)]
Devices = Annotated[str, Field(pattern=f"^({_DEVICES})$"), AfterValidator(_enough_images)]
Number = Annotated[float, Field(allow_inf_nan=False)]


def _built_in(default: Any, meaning: str, **constraints: Any) -> Any:
    return Field(default, description=meaning, json_schema_extra=_BUILT_IN, **constraints)


def _ours(default: Any, meaning: str, **constraints: Any) -> Any:
    return Field(default, description=meaning, json_schema_extra=_OURS, **constraints)


class Hyperparameters(BaseModel):
    """All hyperparameters of a job, parsed and in range."""

    model_config = ConfigDict(extra="forbid", frozen=True, regex_engine="python-re")

    num_classes: int = _built_in(..., "Number of classes, background not counted.", ge=1, le=10_000)
    num_training_samples: int = _built_in(
        ..., "Number of training images; of a stream (Pipe mode) it makes the epoch.", ge=1
    )
    base_network: Literal["vgg-16", "resnet-18", "resnet-34", "resnet-50", "resnet-101"] = _built_in(
        "vgg-16", "The backbone; the built-in knows vgg-16 and resnet-50."
    )
    use_pretrained_model: int = _built_in(
        1,
        "1: the backbone starts from ImageNet weights, of the image or of a channel `pretrained`; 0: from scratch.",
        ge=0,
        le=1,
    )
    epochs: int = _built_in(30, "Passes over the training data.", ge=1, le=1_000_000)
    mini_batch_size: BatchSize = _built_in(32, "Images a step, on one machine, over all its devices.", ge=1, le=65_536)
    learning_rate: Number = _built_in(
        0.001,
        "Initial learning rate; in recipe `modern` the one after warm-up, where docs/recipe.md has another default.",
        gt=0,
        le=1,
    )
    lr_scheduler_step: Steps = _built_in((), "Epochs after which the learning rate is reduced, as `33, 67`.")
    lr_scheduler_factor: Number = _built_in(0.1, "Factor of each reduction.", gt=0, lt=1)
    optimizer: Literal["sgd", "adam", "rmsprop", "adadelta"] = _built_in("sgd", "The optimizer.")
    momentum: Number = _built_in(0.9, "Momentum of sgd.", ge=0, le=1)
    weight_decay: Number = _built_in(0.0005, "Weight decay of sgd and rmsprop.", ge=0, lt=1)
    overlap_threshold: Number = _built_in(0.5, "IoU above which a detection counts as right.", gt=0, le=1)
    nms_threshold: Number = _built_in(
        0.45, "IoU above which the lower-scored of two detections is dropped.", gt=0, le=1
    )
    nms_topk: int = _built_in(400, "Most detections of an image, before suppression.", ge=1, le=100_000)
    image_shape: int = _built_in(
        300, "Side of the square that images are resized to; the built-in starts at 300.", ge=128, le=4096
    )
    label_width: int = _built_in(
        350, "Numbers in the widest label; the data decides here, but for a stream (Pipe mode).", ge=1
    )
    freeze_layer_pattern: Pattern = _built_in(
        "", "Parameters whose name this regular expression matches are not trained."
    )
    early_stopping: bool = _built_in(False, "Stop when the validation mAP no longer improves.")
    early_stopping_min_epochs: int = _built_in(10, "Epochs before early stopping may happen.", ge=1)
    early_stopping_patience: int = _built_in(5, "Epochs to wait for an improvement.", ge=1)
    early_stopping_tolerance: Number = _built_in(
        0.0, "Relative improvement of mAP below which an epoch counts as none.", ge=0, le=1
    )
    kv_store: Literal["device", "dist_sync", "dist_async"] = _built_in(
        "device",
        "Gradient exchange between machines, see docs/scaling.md; with several, `device` is `dist_sync`.",
    )
    devices: Devices = _ours(
        "auto",
        "What to train on: all GPUs, or the CPU where there is none; `gpu:N` for the first N; `cpu` or, as N devices, "
        "`cpu:N`.",
    )
    recipe: Literal["builtin", "modern"] = _ours(
        "modern",
        "What docs/recipe.md explains; `builtin` trains as the built-in does, and is the default where learning_rate, "
        "lr_scheduler_step or optimizer is given.",
    )
    lr_scheduler: Literal["step", "cosine"] = _ours(
        "cosine",
        "How the learning rate falls: `cosine` all the time; `step` at lr_scheduler_step, which is the default of "
        "recipe `builtin` and where lr_scheduler_step is given.",
    )
    validate_every: int = _ours(1, "Epochs from one validation to the next; the last is always validated.", ge=1)
    checkpoint_minutes: Number = _ours(
        10.0,
        "Minutes from one checkpoint to the next within an epoch; there is one at each epoch's end too. Without a "
        "folder for checkpoints none is written.",
        gt=0,
    )
    transfer: bool = _ours(
        False,
        "True: the model of channel `model` may have other classes; those of the same name are carried over, the "
        "others are new.",
    )
    seed: int = _ours(
        0, "Seed of initial weights, data order and augmentation: same seed, same result on the CPU.", ge=0
    )
    max_bad_records: int = _ours(
        0,
        "Unreadable images that a channel may have; they are skipped with a warning. With more the job is refused.",
        ge=0,
    )
    augmentation: bool = _ours(
        True, "Random crops, zoom, mirroring and colours in training; False trains on whole, unchanged images."
    )
    spool_mb: int = _ours(
        4096,
        "Scratch disk (memory as long as there is room) for what a channel `train` in Pipe mode delivers ahead of "
        "training, in MB.",
        ge=1,
    )
    export_int8: Literal["auto", "0", "1"] = _ours(
        "auto",
        "Whether the model also holds an int8 network for faster serving on CPUs, see docs/serving.md; `auto`: if its "
        "validation mAP is lower by at most 0.005.",
    )
    cache_mb: int = _ours(
        0, "Memory for decoded training images, in MB; used when all fit. 0 decodes each image in each epoch.", ge=0
    )

    @classmethod
    def parse(cls, provided: dict[str, str], gpus: int = 0) -> "Hyperparameters":
        """Parse the platform's strings, for a machine with this number of GPUs.

        Raises
        ------
        UserError
            Naming every unknown, missing or wrong hyperparameter, its value and its rule.
        """
        named = {name: value for name, value in provided.items() if not name.startswith(("_", "sagemaker_"))}
        try:
            parsed = cls.model_validate(named, context={"gpus": gpus})
        except ValidationError as error:
            faults = {str(fault["loc"][0]): _sentence(fault, provided) for fault in error.errors()}
            raise UserError(_refusal(list(faults.values()))) from error
        return parsed._with_recipe()

    def _with_recipe(self) -> "Hyperparameters":
        """The same with what was not given and depends on what was."""
        given = self.model_fields_set
        decided: dict[str, Any] = {}
        if "recipe" not in given and given & _OLD_NOTEBOOKS:
            decided["recipe"] = "builtin"
        modern = decided.get("recipe", self.recipe) == "modern"
        if "lr_scheduler" not in given and (not modern or "lr_scheduler_step" in given):
            decided["lr_scheduler"] = "step"
        if "learning_rate" not in given and modern and self.optimizer == "sgd":
            decided["learning_rate"] = _modern_learning_rate(self.base_network, self.mini_batch_size)
        return self.model_copy(update=decided)

    def warnings(self) -> list[str]:
        """What is legal, but most likely not what was meant: a sentence each."""
        found = []
        late = [step for step in self.lr_scheduler_step if step >= self.epochs]
        if late:
            found.append(
                f"lr_scheduler_step has {', '.join(map(str, late))}, but training ends after {self.epochs} epochs: the "
                "learning rate is not reduced there."
            )
        if self.lr_scheduler == "cosine" and self.lr_scheduler_step:
            found.append("lr_scheduler_step has no effect, as lr_scheduler is cosine.")
        default_rate = type(self).model_fields["learning_rate"].default
        if self.optimizer == "adadelta" and (self.learning_rate != default_rate or self.lr_scheduler_step):
            found.append("learning_rate and its schedule have no effect, as optimizer is adadelta, which has none.")
        if self.early_stopping and self.early_stopping_min_epochs >= self.epochs:
            found.append(
                f"early_stopping_min_epochs is {self.early_stopping_min_epochs} and epochs {self.epochs}: training "
                "never stops early."
            )
        return found


def _modern_learning_rate(base_network: str, mini_batch_size: int) -> float:
    """In proportion to the images a step (Goyal et al. 2017, section 2.1) up to four times as many; VGG up to once."""
    rate, most = (_RATE_OF_VGG, 1) if base_network == "vgg-16" else (_RATE_OF_RESNETS, 4)
    return rate * min(mini_batch_size / 16, most)


def final_configuration(provided: dict[str, str], parsed: Hyperparameters) -> dict[str, str]:
    """Defaults merged with what was provided, all strings, as the built-in writes `hyperparams.json`.

    Integers stand there as such, also where `3.0` was given: every reader of the file expects them so.
    """
    defaults = {name: _as_string(value) for name, value in parsed}
    given = {name: value for name, value in provided.items() if not name.startswith("sagemaker_")}
    integers = {name: str(value) for name, value in parsed if name in given and type(value) is int}
    return defaults | HIDDEN | given | integers


def documentation() -> str:
    """The page docs/hyperparameters.md."""
    lines = []
    for name, field in Hyperparameters.model_fields.items():
        origin = field.json_schema_extra["origin"] if isinstance(field.json_schema_extra, dict) else ""
        default = "required" if field.is_required() else f"`{_as_string(field.default)}`"
        default = "empty" if default == "``" else default
        lines.append(f"| `{name}` | {default} | {_rule(field)} | {field.description} | {origin} |")
    return _PAGE.format(table="\n".join(lines), hidden=", ".join(f"`{name}`" for name in HIDDEN))


_PAGE = """# Hyperparameters

All values are strings in `hyperparameters.json`, as SageMaker writes them. A job with an unknown name, a missing
required value or a value out of its range is refused before anything is read; the sentence names all such faults at
once. Truth values are taken in any letter case; NaN and infinity are refused. `false` for `freeze_layer_pattern` means
none.

| name | default | value | meaning | origin |
| --- | --- | --- | --- | --- |
{table}

Names that SageMaker or the built-in algorithm add are accepted and change nothing:
{hidden},
any other name that starts with `_`, and `sagemaker_*`.

This page is made by `make docs` from `src/ssd_algo/contract/hyperparameters.py`.
"""


def _as_string(default: Any) -> str:
    return "" if default == () else str(default)


def _refusal(faults: list[str]) -> str:
    """All faults in one sentence, as far as the platform shows it."""
    kept = list(faults)
    while len("; ".join(kept)) > _LONGEST and len(kept) > 1:
        kept.pop()
    more = f"; and {len(faults) - len(kept)} more" if len(kept) < len(faults) else ""
    return f"hyperparameters: {'; '.join(kept)}{more}."


def _sentence(fault: ErrorDetails, provided: dict[str, str]) -> str:
    """What is wrong with a hyperparameter."""
    fields, name = Hyperparameters.model_fields, str(fault["loc"][0])
    if fault["type"] == _OWN_RULE:
        return fault["msg"]
    if name not in fields:
        near = difflib.get_close_matches(name, fields, n=1)
        return f"{_shortened(name)} is unknown" + (f" (did you mean {near[0]}?)" if near else "")
    if name not in provided:
        return f"{name} is missing and must be {_rule(fields[name])}"
    return f'{name} is "{_shortened(provided[name])}" and must be {_rule(fields[name])}'


def _shortened(text: str) -> str:
    return text if len(text) <= 60 else f"{text[:59]}…"


def _rule(field: FieldInfo) -> str:
    """In words, which values a hyperparameter takes."""
    if get_origin(field.annotation) is Literal:
        return "one of " + ", ".join(get_args(field.annotation))
    if any(getattr(each, "func", None) is _parse_steps for each in field.metadata):
        return "ascending epochs of at least 1 separated by commas, or empty"
    if any(getattr(each, "func", None) is _enough_images for each in field.metadata):
        return "auto, cpu, cpu:N or gpu:N with N from 1 to 99"
    if field.annotation is str:
        return "a regular expression, or empty"
    if field.annotation is bool:
        return "True or False"
    kind = "an integer" if field.annotation is int else "a number"
    bounds = {
        type(each): getattr(each, type(each).__name__.lower())
        for each in field.metadata
        if isinstance(each, annotated_types.Ge | annotated_types.Gt | annotated_types.Le | annotated_types.Lt)
    }
    if annotated_types.Ge in bounds and annotated_types.Le in bounds:
        return f"{kind} from {bounds[annotated_types.Ge]} to {bounds[annotated_types.Le]}"
    words = {
        annotated_types.Ge: "of at least",
        annotated_types.Gt: "above",
        annotated_types.Le: "at most",
        annotated_types.Lt: "below",
    }
    return f"{kind} {' and '.join(f'{words[bound]} {value}' for bound, value in bounds.items())}"
