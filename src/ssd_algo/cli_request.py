"""`ssd-algo request`: a request to the platform's API, printed as JSON or sent."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import click

from ssd_algo.contract import api, requests
from ssd_algo.contract.container import read_hyperparameters
from ssd_algo.contract.hyperparameters import Hyperparameters
from ssd_algo.contract.requests import Request, Training
from ssd_algo.errors import NotAcceptable, UserError

_Command = Callable[..., Any]


@click.group()
def request() -> None:
    """Print a request to SageMaker's API as JSON, or send it with --send.

    What is printed is what `aws sagemaker create-... --cli-input-json` takes.
    """


def _options(*options: Callable[[_Command], _Command]) -> Callable[[_Command], _Command]:
    """Several options as one decorator."""

    def decorate(command: _Command) -> _Command:
        for option in reversed(options):
            command = option(command)
        return command

    return decorate


_NAME = click.option("--name", required=True, help="What it is called.")
_ROLE = click.option("--role", required=True, help="ARN of the execution role, see docs/operating.md.")
_INSTANCES = _options(
    click.option("--instance-type", required=True, help="As ml.g5.2xlarge."),
    click.option("--instances", type=click.IntRange(1), default=1, show_default=True),
)
_SENDING = _options(
    click.option("--send", is_flag=True, help="Send it, and print the ARN that comes back."),
    click.option("--region", help="Where to send it; without it, as the AWS CLI is configured."),
)
_TRAINING = _options(
    click.argument("image"),
    click.argument("hyperparameters", nargs=-1, metavar="[NAME=VALUE]..."),
    _NAME,
    _ROLE,
    click.option(
        "--data",
        required=True,
        help="s3:// prefix below which the channels lie: train and validation, with images also train_annotation and "
        "validation_annotation.",
    ),
    click.option("--output", required=True, help="s3:// prefix for the model."),
    _INSTANCES,
    click.option(
        "--content-type", type=click.Choice(requests.CONTENT_TYPES), default=Training.content_type, show_default=True
    ),
    click.option(
        "--input-mode", type=click.Choice(requests.INPUT_MODES), default=Training.input_mode, show_default=True
    ),
    click.option(
        "--hyperparameters",
        "file",
        type=click.Path(exists=True, dir_okay=False, path_type=Path),
        help="A hyperparameters.json, or a CreateTrainingJob request with them; what NAME=VALUE say counts more.",
    ),
    click.option("--model", help="s3:// address of a model.tar.gz to start from."),
    click.option("--spot", is_flag=True, help="On spare capacity, which costs less and may be taken back."),
    click.option(
        "--max-hours",
        type=click.IntRange(1, requests.LONGEST_HOURS),
        default=Training.max_hours,
        show_default=True,
        help="The longest that a job may run; with --spot it may also wait for as long.",
    ),
    click.option(
        "--volume-gb",
        type=click.IntRange(1),
        default=Training.volume_gb,
        show_default=True,
        help="Disk for data and scratch, on instances without disks of their own.",
    ),
    _SENDING,
)


@request.command()
@_TRAINING
@click.option("--checkpoints", help="s3:// prefix for checkpoints, from which a job of the same prefix goes on.")
def train(
    name: str, hyperparameters: tuple[str, ...], file: Path | None, send: bool, region: str | None, **training: Any
) -> None:
    """CreateTrainingJob: train with IMAGE and the hyperparameters NAME=VALUE."""
    given, job = _hyperparameters(file, hyperparameters), Training(**training)
    made = requests.training_job(name, job, given)
    _warn(requests.warnings(job) + Hyperparameters.parse(given).warnings())
    _print_or_send({"create_training_job": made}, send, region)


@request.command()
@_TRAINING
@click.option(
    "--range",
    "ranges",
    multiple=True,
    metavar="NAME=LOW:HIGH|NAME=VALUE,VALUE",
    help="What to tune; without it learning_rate, mini_batch_size, momentum and weight_decay, those of them that are "
    "not given.",
)
@click.option("--jobs", type=click.IntRange(1), default=20, show_default=True, help="Training jobs in all.")
@click.option("--parallel", type=click.IntRange(1), default=2, show_default=True, help="Training jobs at a time.")
def tune(
    name: str,
    hyperparameters: tuple[str, ...],
    file: Path | None,
    ranges: tuple[str, ...],
    jobs: int,
    parallel: int,
    send: bool,
    region: str | None,
    **training: Any,
) -> None:
    """CreateHyperParameterTuningJob: find the hyperparameters of the best validation:mAP.

    Those given as NAME=VALUE are the same in all jobs.
    """
    given, job = _hyperparameters(file, hyperparameters), Training(**training)
    tuned = requests.ranges_to_tune(given, requests.assignments(ranges))
    made = requests.tuning_job(name, job, given, tuned, jobs, parallel)
    _warn(requests.warnings(job) + Hyperparameters.parse(given).warnings() + requests.tuning_warnings(given, tuned))
    _print_or_send({"create_hyper_parameter_tuning_job": made}, send, region)


@request.command()
@click.argument("image")
@click.argument("environment", nargs=-1, metavar="[NAME=VALUE]...")
@_NAME
@_ROLE
@click.option("--model-data", required=True, help="s3:// address of a model.tar.gz.")
@_SENDING
def model(
    image: str, environment: tuple[str, ...], name: str, role: str, model_data: str, send: bool, region: str | None
) -> None:
    """CreateModel: serve with IMAGE, in an environment with NAME=VALUE, as SSD_ALGO_PRECISION=int8."""
    from ssd_algo.serving.settings import Settings

    variables = requests.assignments(environment)
    Settings.from_environment(variables)
    _print_or_send({"create_model": requests.model(name, image, role, model_data, variables)}, send, region)


@request.command()
@click.argument("model")
@_NAME
@_INSTANCES
@click.option(
    "--part",
    type=click.Choice(["config", "endpoint"]),
    help="An endpoint is two requests: which of them. With --send both, if none is named.",
)
@_SENDING
def endpoint(
    model: str, name: str, instance_type: str, instances: int, part: str | None, send: bool, region: str | None
) -> None:
    """CreateEndpointConfig and CreateEndpoint: answer requests with MODEL."""
    if part is None and not send:
        raise UserError(
            "an endpoint is two requests, and one at a time is printed; give --part config, then --part endpoint, or "
            "send both with --send."
        )
    both = {
        "create_endpoint_config": requests.endpoint_config(name, model, instance_type, instances),
        "create_endpoint": requests.endpoint(name),
    }
    chosen = {"config": ["create_endpoint_config"], "endpoint": ["create_endpoint"], None: list(both)}[part]
    _print_or_send({operation: both[operation] for operation in chosen}, send, region)


@request.command()
@click.argument("model")
@_NAME
@click.option("--data", required=True, help="s3:// prefix with images alone.")
@click.option("--output", required=True, help="s3:// prefix for the answers, an object for each image.")
@_INSTANCES
@click.option(
    "--max-payload-mb", type=click.IntRange(1, 100), default=6, show_default=True, help="Of the largest image."
)
@click.option("--accept", default="application/json", show_default=True, help="Form of the answers, docs/serving.md.")
@_SENDING
def transform(
    model: str,
    name: str,
    data: str,
    output: str,
    instance_type: str,
    instances: int,
    max_payload_mb: int,
    accept: str,
    send: bool,
    region: str | None,
) -> None:
    """CreateTransformJob: detect in all images below a prefix with MODEL."""
    from ssd_algo.serving import negotiation

    try:
        negotiation.accepted(accept, negotiation.JSON)
    except NotAcceptable as error:
        raise UserError(str(error)) from error
    made = requests.transform_job(name, model, data, output, instance_type, instances, max_payload_mb, accept)
    _print_or_send({"create_transform_job": made}, send, region)


def _hyperparameters(file: Path | None, texts: tuple[str, ...]) -> dict[str, str]:
    """Those of a file and of the command line, which counts more."""
    return (read_hyperparameters(file, "HyperParameters") if file else {}) | requests.assignments(texts)


def _warn(sentences: list[str]) -> None:
    for sentence in sentences:
        click.echo(f"warning: {sentence}", err=True)


def _print_or_send(made: Mapping[str, Request], send: bool, region: str | None) -> None:
    """Print the requests, or send them in their order and print what came to be."""
    for operation, body in made.items():
        click.echo(_sent(operation, body, region) if send else json.dumps(body, indent=1))


def _sent(operation: str, body: Request, region: str | None) -> str:
    """The ARN that a call of the API answers.

    Raises
    ------
    UserError
        When there are no credentials or no region, or the call is refused.
    """
    with api.told(operation):
        answer = getattr(api.client("sagemaker", region), operation)(**body)
    return str(next(value for key, value in answer.items() if key.endswith("Arn")))
