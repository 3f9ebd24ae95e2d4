"""Requests to the platform's API as plain JSON, as `aws sagemaker ... --cli-input-json` takes them."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ssd_algo.contract.gpus import THAT_WORK
from ssd_algo.contract.hyperparameters import Hyperparameters
from ssd_algo.contract.log_lines import METRIC_DEFINITIONS
from ssd_algo.errors import UserError

Request = dict[str, Any]

RECORDS = "application/x-recordio"
CONTENT_TYPES = ("application/x-image", "image/jpeg", "image/png", RECORDS)
INPUT_MODES = ("File", "FastFile", "Pipe")
LONGEST_HOURS = 28 * 24  # of a training job

_MODEL_TYPE = "application/x-sagemaker-model"
_OBJECTIVE = {"Type": "Maximize", "MetricName": "validation:mAP"}
_MOST_TRANSFERRED, _MOST_TRANSFORMS = 100, 16  # MB under way to an instance, requests; as /execution-parameters answers

# What the API takes, as far as it is known here; each with the rule in words.
_NAME = (r"[a-zA-Z0-9]([a-zA-Z0-9-]{0,61}[a-zA-Z0-9])?", "at most 63 letters, digits and hyphens between them")
_SHORT_NAME = (r"[a-zA-Z0-9]([a-zA-Z0-9-]{0,30}[a-zA-Z0-9])?", "at most 32 letters, digits and hyphens between them")
_ROLE = (
    r"arn:aws[a-z-]*:iam::\d{12}:role/[a-zA-Z0-9_+=,.@/-]{1,512}",
    "the ARN of a role, as arn:aws:iam::123456789012:role/name",
)
_IMAGE = (
    r"(?=.{1,255}$)\d{12}\.dkr[.-]ecr[a-z-]*\.[a-z0-9.-]+/[a-z0-9._/-]+(:[a-zA-Z0-9_.-]+)?(@sha256:[0-9a-f]{64})?",
    "an image in ECR, as 123456789012.dkr.ecr.eu-west-1.amazonaws.com/ssd-algo:gpu",
)
_INSTANCE = (r"ml\.[a-z0-9-]+\.[a-z0-9-]+", "a type of SageMaker's, as ml.g5.2xlarge")
_PREFIX = (r"(?=.{1,900}$)s3://[a-z0-9][a-z0-9.-]{1,61}[a-z0-9](/.*)?", "an address as s3://bucket/prefix")
_ARCHIVE = (
    r"(?=.{1,900}$)s3://[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]/(.*/)?model\.tar\.gz",
    "the address of an archive, as s3://bucket/prefix/model.tar.gz",
)
_VARIABLE = (r"[a-zA-Z_][a-zA-Z0-9_]{0,511}", "a name of letters, digits and underscores")

# Narrower than the built-in documents them: beyond, a training breaks or is wasted. With the optimizers that heed them.
_RANGES = {
    "learning_rate": ("0.0001:0.05", ("sgd", "adam", "rmsprop")),
    "mini_batch_size": ("8:32", ("sgd", "adam", "rmsprop", "adadelta")),
    "momentum": ("0.8:0.99", ("sgd",)),
    "weight_decay": ("0.00001:0.01", ("sgd", "rmsprop")),
}


@dataclass(frozen=True)
class Training:
    """What one training and the many of a tuning have in common.

    Attributes
    ----------
    image : str
        In ECR.
    role : str
        The ARN of the job's execution role.
    data : str
        The s3:// prefix that the channels lie below, by their names.
    output : str
        The s3:// prefix for models.
    instance_type : str
    instances : int
    content_type : str
        One of CONTENT_TYPES; with images there are channels of annotations too.
    input_mode : str
        One of INPUT_MODES.
    model : str or None
        The s3:// address of a model.tar.gz to start from.
    spot : bool
    checkpoints : str or None
        An s3:// prefix; of one training alone, as the jobs of a tuning might share it.
    max_hours : int
        The longest that a job may run.
    volume_gb : int
        Disk of instances that have none of their own.
    """

    image: str
    role: str
    data: str
    output: str
    instance_type: str
    instances: int = 1
    content_type: str = CONTENT_TYPES[0]
    input_mode: str = INPUT_MODES[0]
    model: str | None = None
    spot: bool = False
    checkpoints: str | None = None
    max_hours: int = 24
    volume_gb: int = 50


def training_job(name: str, training: Training, hyperparameters: Mapping[str, str]) -> Request:
    """CreateTrainingJob.

    Raises
    ------
    UserError
        When anything is wrong with an option or a hyperparameter.
    """
    Hyperparameters.parse(dict(hyperparameters))
    if training.spot and training.checkpoints is None:
        raise UserError(
            "--spot needs --checkpoints s3://bucket/prefix; without checkpoints an interrupted job begins anew."
        )
    return {
        "TrainingJobName": _checked("--name", name, _NAME),
        "HyperParameters": dict(hyperparameters),
        **_definition(training),
    }


def warnings(training: Training) -> list[str]:
    """Sentences on what the API takes, but the job would not come far with."""
    sentences = []
    if re.search(r"[./]object-detection(:|@|$)", training.image):
        sentences.append(
            f"{training.image} has the name of the built-in algorithm's image; give the address of this one."
        )
    family = training.instance_type.removeprefix("ml.").split(".")[0]
    if re.match("p(2|[5-9]|[1-9][0-9])", family):
        sentences.append(
            f"{training.instance_type} has GPUs that MXNet has no code for, which the GPU image refuses to train on; "
            f"use {THAT_WORK}."
        )
    return sentences


def tuning_job(
    name: str,
    training: Training,
    hyperparameters: Mapping[str, str],
    ranges: Mapping[str, str],
    jobs: int,
    parallel: int,
) -> Request:
    """CreateHyperParameterTuningJob, for the best validation mAP.

    Parameters
    ----------
    hyperparameters
        Those that all jobs have.
    ranges
        See `ranges_to_tune`.
    jobs, parallel : int
        How many in all, and at a time.

    Raises
    ------
    UserError
        When anything is wrong with an option, a hyperparameter or a range.
    """
    if parallel > jobs:
        raise UserError(f"--parallel is {parallel} and --jobs {jobs}; no more jobs can run at a time than there are.")
    return {
        "HyperParameterTuningJobName": _checked("--name", name, _SHORT_NAME),
        "HyperParameterTuningJobConfig": {
            "Strategy": "Bayesian",
            "HyperParameterTuningJobObjective": _OBJECTIVE,
            "ResourceLimits": {"MaxNumberOfTrainingJobs": jobs, "MaxParallelTrainingJobs": parallel},
            "ParameterRanges": _parameter_ranges(hyperparameters, ranges),
            "TrainingJobEarlyStoppingType": "Auto",
        },
        "TrainingJobDefinition": {"StaticHyperParameters": dict(hyperparameters), **_definition(training)},
    }


def ranges_to_tune(hyperparameters: Mapping[str, str], wanted: Mapping[str, str]) -> dict[str, str]:
    """The ranges of a tuning by name, `LOW:HIGH` or `VALUE,VALUE`: those wanted, else our own of what is not given.

    Raises
    ------
    UserError
        When a hyperparameter is wrong, or there is nothing to tune.
    """
    optimizer = Hyperparameters.parse(dict(hyperparameters)).optimizer
    own = {
        name: range_
        for name, (range_, optimizers) in _RANGES.items()
        if name not in hyperparameters and optimizer in optimizers
    }
    if not wanted and not own:
        raise UserError(
            f"{', '.join(_RANGES)} are all given, so that nothing is left to tune; leave one out, or name others with "
            "--range."
        )
    return dict(wanted or own)


def tuning_warnings(hyperparameters: Mapping[str, str], ranges: Mapping[str, str]) -> list[str]:
    """What is legal, but most likely not what was meant: a sentence each."""
    if "recipe" in hyperparameters or "recipe" in ranges:
        return []
    given = dict(hyperparameters)
    recipes = {name: Hyperparameters.parse({**given, name: _values(text)[0]}).recipe for name, text in ranges.items()}
    deciding = [name for name, recipe in recipes.items() if recipe != Hyperparameters.parse(given).recipe]
    if not deciding:
        return []
    return [
        f"every job trains with recipe builtin, as {' and '.join(deciding)} {'is' if len(deciding) == 1 else 'are'} "
        "tuned; give recipe=modern for warm-up, cosine and averaged weights, or recipe=builtin to keep it "
        "(docs/recipe.md)."
    ]


def model(name: str, image: str, role: str, model_data: str, environment: Mapping[str, str]) -> Request:
    """CreateModel.

    Parameters
    ----------
    model_data : str
        The s3:// address of a model.tar.gz.
    environment
        Of the server, docs/serving.md.

    Raises
    ------
    UserError
        When anything is wrong with an option or the name of a variable.
    """
    container = {
        "Image": _checked("IMAGE", image, _IMAGE),
        "ModelDataUrl": _checked("--model-data", model_data, _ARCHIVE),
    }
    variables = {_checked("a variable's name", each, _VARIABLE): value for each, value in environment.items()}
    return {
        "ModelName": _checked("--name", name, _NAME),
        "PrimaryContainer": container | ({"Environment": variables} if variables else {}),
        "ExecutionRoleArn": _checked("--role", role, _ROLE),
        "EnableNetworkIsolation": True,
    }


def endpoint_config(name: str, model_name: str, instance_type: str, instances: int) -> Request:
    """CreateEndpointConfig; the configuration is called as the endpoint is.

    Raises
    ------
    UserError
        When anything is wrong with an option.
    """
    return {
        "EndpointConfigName": _checked("--name", name, _NAME),
        "ProductionVariants": [
            {
                "VariantName": "AllTraffic",
                "ModelName": _checked("MODEL", model_name, _NAME),
                "InstanceType": _checked("--instance-type", instance_type, _INSTANCE),
                "InitialInstanceCount": instances,
            }
        ],
    }


def endpoint(name: str) -> Request:
    """CreateEndpoint over the configuration of the same name.

    Raises
    ------
    UserError
        When it is no name.
    """
    return {"EndpointName": _checked("--name", name, _NAME), "EndpointConfigName": name}


def transform_job(
    name: str,
    model_name: str,
    data: str,
    output: str,
    instance_type: str,
    instances: int,
    payload_mb: int,
    accept: str,
) -> Request:
    """CreateTransformJob over images, an object each.

    Parameters
    ----------
    data, output : str
        s3:// prefixes.
    payload_mb : int
        The largest image.
    accept : str
        The form of the answers.

    Raises
    ------
    UserError
        When anything is wrong with an option.
    """
    return {
        "TransformJobName": _checked("--name", name, _NAME),
        "ModelName": _checked("MODEL", model_name, _NAME),
        "BatchStrategy": "SingleRecord",
        "MaxPayloadInMB": payload_mb,
        "MaxConcurrentTransforms": min(_MOST_TRANSFERRED // payload_mb, _MOST_TRANSFORMS),
        "TransformInput": {
            "DataSource": {"S3DataSource": {"S3DataType": "S3Prefix", "S3Uri": _prefix("--data", data)}},
            "ContentType": CONTENT_TYPES[0],
            "SplitType": "None",
        },
        "TransformOutput": {"S3OutputPath": _output(output), "Accept": accept, "AssembleWith": "None"},
        "TransformResources": {
            "InstanceType": _checked("--instance-type", instance_type, _INSTANCE),
            "InstanceCount": instances,
        },
    }


def assignments(texts: Sequence[str]) -> dict[str, str]:
    """What arguments `NAME=VALUE` say.

    Raises
    ------
    UserError
        When one is none, or says a name again.
    """
    said: dict[str, str] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals or not name:
            raise UserError(f'"{text}" has no name and value; write it as NAME=VALUE.')
        if name in said:
            raise UserError(f"{name} is given more than once; give it once.")
        said[name] = value
    return said


def _definition(training: Training) -> Request:
    """What a training job and the definition of a tuning's jobs have in common."""
    seconds = training.max_hours * 3600
    request: Request = {
        "AlgorithmSpecification": {
            "TrainingImage": _checked("IMAGE", training.image, _IMAGE),
            "TrainingInputMode": training.input_mode,
            "MetricDefinitions": METRIC_DEFINITIONS,
        },
        "RoleArn": _checked("--role", training.role, _ROLE),
        "InputDataConfig": _channels(training),
        "OutputDataConfig": {"S3OutputPath": _output(training.output)},
        "ResourceConfig": {
            "InstanceType": _checked("--instance-type", training.instance_type, _INSTANCE),
            "InstanceCount": training.instances,
            "VolumeSizeInGB": training.volume_gb,
        },
        "StoppingCondition": {"MaxRuntimeInSeconds": seconds},
        "EnableNetworkIsolation": True,
    }
    if training.checkpoints is not None:
        request["CheckpointConfig"] = {"S3Uri": _prefix("--checkpoints", training.checkpoints)}
    if training.spot:
        request["EnableManagedSpotTraining"] = True
        request["StoppingCondition"]["MaxWaitTimeInSeconds"] = 2 * seconds
    return request


def _channels(training: Training) -> list[Request]:
    data, records = _prefix("--data", training.data), training.content_type == RECORDS
    if training.input_mode == "Pipe" and not records:
        raise UserError(
            f"--input-mode Pipe needs --content-type {RECORDS}, as images and their annotations cannot be piped; use "
            "File or FastFile mode, or pack them with ssd-algo pack."
        )
    names = ["train", "validation"] + ([] if records else ["train_annotation", "validation_annotation"])
    channels = [_channel(name, f"{data}{name}/", training.content_type) for name in names]
    if training.input_mode == "Pipe":
        channels[0]["ShuffleConfig"] = {"Seed": 0}
    if training.model is not None:
        address = _checked("--model", training.model, _ARCHIVE)
        channels.append(_channel("model", address, _MODEL_TYPE) | {"InputMode": "File"})
    return channels


def _channel(name: str, address: str, content_type: str) -> Request:
    source = {"S3DataType": "S3Prefix", "S3Uri": address, "S3DataDistributionType": "FullyReplicated"}
    return {"ChannelName": name, "DataSource": {"S3DataSource": source}, "ContentType": content_type}


def _parameter_ranges(hyperparameters: Mapping[str, str], ranges: Mapping[str, str]) -> Request:
    kinds: dict[str, list[Request]] = {
        "IntegerParameterRanges": [],
        "ContinuousParameterRanges": [],
        "CategoricalParameterRanges": [],
    }
    for name, text in ranges.items():
        if name in hyperparameters:
            raise UserError(f"{name} has a range and the value {hyperparameters[name]}; give one of them.")
        values = _values(text)
        for value in values:
            Hyperparameters.parse({**hyperparameters, name: value})
        if len(values) < 2 or len(set(values)) < len(values):
            raise UserError(f"the range of {name} is {text}; write LOW:HIGH, or two or more values as VALUE,VALUE.")
        if ":" in text:
            kind, range_ = _numbers(name, *values)
            kinds[kind].append(range_)
        else:
            kinds["CategoricalParameterRanges"].append({"Name": name, "Values": values})
    return {kind: found for kind, found in kinds.items() if found}


def _numbers(name: str, low: str, high: str) -> tuple[str, Request]:
    """The kind of a range from a number to another one, and the range."""
    field = Hyperparameters.model_fields.get(name)
    if field is None or field.annotation not in (int, float):
        raise UserError(f"the range of {name} is {low}:{high}, but it is no number; list its values as VALUE,VALUE.")
    if float(low) >= float(high):
        raise UserError(f"the range of {name} is {low}:{high}; the first number must be the lower one.")
    scale = "Auto"
    if name in ("learning_rate", "weight_decay") and float(low) > 0:
        scale = "Logarithmic"
    elif name == "momentum" and float(high) < 1:
        scale = "ReverseLogarithmic"
    kind = "IntegerParameterRanges" if field.annotation is int else "ContinuousParameterRanges"
    return kind, {"Name": name, "MinValue": low, "MaxValue": high, "ScalingType": scale}


def _values(text: str) -> list[str]:
    return [value.strip() for value in (text.split(":", 1) if ":" in text else text.split(","))]


def _output(address: str) -> str:
    return _checked("--output", address, _PREFIX).rstrip("/")


def _prefix(option: str, address: str) -> str:
    """A prefix to read from, with its last slash: without it that of `train` is that of `train_annotation` too."""
    return f"{_checked(option, address, _PREFIX).rstrip('/')}/"


def _checked(what: str, value: str, rule: tuple[str, str]) -> str:
    pattern, words = rule
    if not re.fullmatch(pattern, value):
        raise UserError(f'{what} is "{value}"; it must be {words}.')
    return value
