"""`ssd-algo request`: what it prints against the API's own description, what it sends against moto's server."""

import io
import json
import os
import re
import socket
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
import botocore.session
import pytest
from botocore.model import ListShape, MapShape, Shape, StringShape, StructureShape
from botocore.validate import ParamValidator
from click.testing import CliRunner, Result
from conftest import ROOT, Run
from moto.server import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import make_server

from ssd_algo.cli import main
from ssd_algo.contract.hyperparameters import Hyperparameters

IMAGE = "123456789012.dkr.ecr.eu-west-1.amazonaws.com/ssd-algo:gpu"
ROLE = "arn:aws:iam::123456789012:role/ssd-algo"
GIVEN = ("num_classes=3", "num_training_samples=40")
COMMON = ("--role", ROLE, "--data", "s3://bucket/data", "--output", "s3://bucket/models")
TRAIN = ("train", IMAGE, *GIVEN, "--name", "one", *COMMON, "--instance-type", "ml.g5.2xlarge")
TUNE = ("tune", *TRAIN[1:])
MODEL = ("model", IMAGE, "--name", "birds", "--role", ROLE, "--model-data", "s3://bucket/one/output/model.tar.gz")
ENDPOINT = ("endpoint", "birds", "--name", "birds", "--instance-type", "ml.c5.2xlarge")
TRANSFORM = ("transform", "birds", "--name", "batch", *COMMON[2:], "--instance-type", "ml.c5.2xlarge")

EXAMPLES = ROOT / "examples" / "requests"
OPERATIONS = {
    "training-from-images": "CreateTrainingJob",
    "training-from-recordio": "CreateTrainingJob",
    "incremental-training": "CreateTrainingJob",
    "tuning": "CreateHyperParameterTuningJob",
    "model": "CreateModel",
    "endpoint-config": "CreateEndpointConfig",
    "endpoint": "CreateEndpoint",
    "batch-transform": "CreateTransformJob",
}
SERVICE = botocore.session.get_session().get_service_model("sagemaker")


def run(*arguments: str) -> Result:
    return CliRunner().invoke(main, ["request", *arguments])


def printed(*arguments: str) -> dict[str, Any]:
    done = run(*arguments)
    assert done.exit_code == 0, done.stderr
    return json.loads(done.stdout)


def faults(value: Any, shape: Shape, place: str = "") -> Iterator[str]:
    """What of a request breaks patterns, lengths, bounds or lists of values, which boto3 leaves to the service."""
    rules = shape.metadata
    if isinstance(shape, StructureShape):
        for name, each in value.items():
            yield from faults(each, shape.members[name], f"{place}.{name}")
    elif isinstance(shape, ListShape):
        for number, each in enumerate(value):
            yield from faults(each, shape.member, f"{place}[{number}]")
    elif isinstance(shape, MapShape):
        for name, each in value.items():
            yield from faults(name, shape.key, f"{place} name {name}")
            yield from faults(each, shape.value, f"{place}.{name}")
    elif isinstance(shape, StringShape):
        if "pattern" in rules and not re.fullmatch(rules["pattern"], value):
            yield f"{place}: {value} is not {rules['pattern']}"
        if shape.enum and value not in shape.enum:
            yield f"{place}: {value} is none of {shape.enum}"
    size = value if isinstance(value, int | float) else len(value)
    if not rules.get("min", size) <= size <= rules.get("max", size):
        yield f"{place}: {size} is out of bounds"


def assert_fits(request: dict[str, Any], operation: str) -> None:
    shape = SERVICE.operation_model(operation).input_shape
    assert not ParamValidator().validate(request, shape).has_errors(), ParamValidator().validate(request, shape)
    assert list(faults(request, shape)) == []


def test_the_examples_are_what_the_commands_print(tmp_path: Path) -> None:
    """Through the shell, as a person makes them."""
    script = tmp_path / "bin" / "ssd-algo"
    script.parent.mkdir()
    script.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m ssd_algo.cli "$@"\n')
    script.chmod(0o755)
    path = f"{script.parent}:{os.environ['PATH']}"
    command = ["sh", str(EXAMPLES / "make.sh")]
    done = subprocess.run(command, cwd=tmp_path, env=os.environ | {"PATH": path}, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    made = {each.name: each.read_text() for each in tmp_path.glob("*.json")}
    assert made == {each.name: each.read_text() for each in EXAMPLES.glob("*.json")}
    assert set(made) == {f"{name}.json" for name in OPERATIONS}


@pytest.mark.parametrize("name", OPERATIONS)
def test_the_examples_fit_the_api(name: str) -> None:
    assert_fits(json.loads((EXAMPLES / f"{name}.json").read_text()), OPERATIONS[name])


@pytest.mark.parametrize(
    ("arguments", "operation"),
    [
        ((*TRAIN, "--input-mode", "FastFile", "--content-type", "image/png", "--instances", "2"), "CreateTrainingJob"),
        ((*TRAIN, "--max-hours", "672", "--volume-gb", "200", "--checkpoints", "s3://bucket/c"), "CreateTrainingJob"),
        ((*TUNE, "--spot", "--range", "base_network=resnet-18,resnet-34"), "CreateHyperParameterTuningJob"),
        (MODEL, "CreateModel"),
        ((*TRANSFORM, "--instances", "3", "--max-payload-mb", "100"), "CreateTransformJob"),
    ],
)
def test_other_options_fit_the_api(arguments: tuple[str, ...], operation: str) -> None:
    assert_fits(printed(*arguments), operation)


def test_faults_are_seen() -> None:
    """The judge of the tests above finds what is wrong."""
    request = printed(*TRAIN) | {"RoleArn": "arn:aws:iam::1:role/x", "TrainingJobName": "a" * 64}
    request["ResourceConfig"]["InstanceType"] = "ml.g5"
    request["StoppingCondition"]["MaxRuntimeInSeconds"] = 0
    shape = SERVICE.operation_model("CreateTrainingJob").input_shape
    places = {fault.split(":")[0] for fault in faults(request, shape)}
    assert places == {
        ".RoleArn",
        ".TrainingJobName",
        ".ResourceConfig.InstanceType",
        ".StoppingCondition.MaxRuntimeInSeconds",
    }


def channels(request: dict[str, Any]) -> dict[str, tuple[str, str]]:
    """Address and content type of each channel."""
    return {
        each["ChannelName"]: (each["DataSource"]["S3DataSource"]["S3Uri"], each["ContentType"])
        for each in request["InputDataConfig"]
    }


def test_channels() -> None:
    """Each prefix ends in a slash: s3://bucket/data/train is the prefix of what is in train_annotation too."""
    image, record = "application/x-image", "application/x-recordio"
    assert channels(printed(*TRAIN)) == {
        "train": ("s3://bucket/data/train/", image),
        "validation": ("s3://bucket/data/validation/", image),
        "train_annotation": ("s3://bucket/data/train_annotation/", image),
        "validation_annotation": ("s3://bucket/data/validation_annotation/", image),
    }
    model = "s3://bucket/old/model.tar.gz"
    piped = printed(*TRAIN, "--content-type", record, "--input-mode", "Pipe", "--model", model)
    assert channels(piped) == {
        "train": ("s3://bucket/data/train/", record),
        "validation": ("s3://bucket/data/validation/", record),
        "model": (model, "application/x-sagemaker-model"),
    }
    assert piped["AlgorithmSpecification"]["TrainingInputMode"] == "Pipe"
    assert [each.get("InputMode") for each in piped["InputDataConfig"]] == [None, None, "File"]


def test_hyperparameters_of_a_file_and_of_arguments(tmp_path: Path) -> None:
    """As the platform wants them, all strings; arguments count more."""
    file = tmp_path / "hyperparameters.json"
    file.write_text(json.dumps({"num_classes": 3, "num_training_samples": "40", "epochs": 7, "learning_rate": 0.01}))
    arguments = [each for each in TRAIN if each not in GIVEN]
    request = printed(*arguments, "--hyperparameters", str(file), "epochs=9", "lr_scheduler_step=5, 7")
    assert request["HyperParameters"] == {
        "num_classes": "3",
        "num_training_samples": "40",
        "epochs": "9",
        "learning_rate": "0.01",
        "lr_scheduler_step": "5, 7",
    }


def test_hyperparameters_of_a_request(tmp_path: Path) -> None:
    """As a job of the built-in was made with."""
    path = tmp_path / "old.json"
    path.write_text(json.dumps({"TrainingJobName": "old", "HyperParameters": {"num_classes": "7", "epochs": "5"}}))
    made = printed(*TRAIN, "--hyperparameters", str(path))
    assert made["HyperParameters"] == {"num_classes": "3", "epochs": "5", "num_training_samples": "40"}
    assert made["TrainingJobName"] == "one"


def test_warnings_of_image_and_instance() -> None:
    """The API takes them, but the job would be another one, or refused."""
    old = "685385470294.dkr.ecr.eu-west-1.amazonaws.com/object-detection:1"
    done = run("train", old, *TRAIN[2:-1], "ml.p2.xlarge")
    assert done.exit_code == 0
    assert done.stderr == (
        f"warning: {old} has the name of the built-in algorithm's image; give the address of this one.\n"
        "warning: ml.p2.xlarge has GPUs that MXNet has no code for, which the GPU image refuses to train on; use an "
        "instance with a V100, T4, A100, A10G, L4 or L40S (P3, G4dn, P4d, G5, G6 or G6e).\n"
    )
    for type_, warned in (("ml.p5.48xlarge", True), ("ml.p5e.48xlarge", True), ("ml.p3dn.24xlarge", False)):
        for command in ("train", "tune"):
            assert ("has GPUs" in run(command, *TRAIN[1:-1], type_).stderr) == warned


def test_spot() -> None:
    request = printed(*TRAIN, "--spot", "--checkpoints", "s3://bucket/checkpoints/one", "--max-hours", "5")
    assert request["EnableManagedSpotTraining"] is True
    assert request["CheckpointConfig"] == {"S3Uri": "s3://bucket/checkpoints/one/"}
    assert request["StoppingCondition"] == {"MaxRuntimeInSeconds": 18000, "MaxWaitTimeInSeconds": 36000}
    assert "EnableManagedSpotTraining" not in printed(*TRAIN)


@pytest.mark.parametrize("name", ["training-from-images", "tuning"])
def test_the_metric_definitions_find_their_values_in_a_log(trained: Run, name: str) -> None:
    request = json.loads((EXAMPLES / f"{name}.json").read_text())
    specification = request.get("TrainingJobDefinition", request)["AlgorithmSpecification"]
    found = {each["Name"]: re.findall(each["Regex"], trained.out) for each in specification["MetricDefinitions"]}
    assert {each: len(values) for each, values in found.items()} == {
        "train:progress": 6,
        "train:smooth_l1": 6,
        "train:cross_entropy": 6,
        "train:throughput": 6,
        "validation:mAP": 6,
    }
    if name == "tuning":
        objective = request["HyperParameterTuningJobConfig"]["HyperParameterTuningJobObjective"]
        assert objective == {"Type": "Maximize", "MetricName": "validation:mAP"}


def tuned(request: dict[str, Any]) -> dict[str, tuple[str, ...]]:
    ranges = request["HyperParameterTuningJobConfig"]["ParameterRanges"]
    numbers = ranges.get("IntegerParameterRanges", []) + ranges.get("ContinuousParameterRanges", [])
    return {each["Name"]: (each["MinValue"], each["MaxValue"], each["ScalingType"]) for each in numbers} | {
        each["Name"]: tuple(each["Values"]) for each in ranges.get("CategoricalParameterRanges", [])
    }


def test_what_is_tuned() -> None:
    """Our own ranges without those of what is given or has no effect; or the wanted ones."""
    rate, size = ("0.0001", "0.05", "Logarithmic"), ("8", "32", "Auto")
    momentum, decay = ("0.8", "0.99", "ReverseLogarithmic"), ("0.00001", "0.01", "Logarithmic")
    request = printed(*TUNE, "recipe=modern")
    assert tuned(request) == {
        "learning_rate": rate,
        "mini_batch_size": size,
        "momentum": momentum,
        "weight_decay": decay,
    }
    for values in zip(*((low, high) for low, high, _ in tuned(request).values()), strict=True):
        static = request["TrainingJobDefinition"]["StaticHyperParameters"]
        Hyperparameters.parse(static | dict(zip(tuned(request), values, strict=True)))
    assert tuned(printed(*TUNE, "mini_batch_size=16", "momentum=0.9")) == {"learning_rate": rate, "weight_decay": decay}
    assert tuned(printed(*TUNE, "optimizer=adam")) == {"learning_rate": rate, "mini_batch_size": size}
    wanted = ("learning_rate=0.001:0.02", "weight_decay=0:0.1", "epochs=10:40", "optimizer=sgd, adam")
    options = [part for each in wanted for part in ("--range", each)]
    assert tuned(printed(*TUNE, *options)) == {
        "learning_rate": ("0.001", "0.02", "Logarithmic"),
        "weight_decay": ("0", "0.1", "Auto"),
        "epochs": ("10", "40", "Auto"),
        "optimizer": ("sgd", "adam"),
    }


def test_tuning_warns_of_the_recipe() -> None:
    """Whatever is tuned counts as given, and a given learning rate means the built-in's recipe."""
    sentence = (
        "warning: every job trains with recipe builtin, as {} tuned; give recipe=modern for warm-up, cosine and averaged "
        "weights, or recipe=builtin to keep it (docs/recipe.md).\n"
    )
    assert run(*TUNE).stderr == sentence.format("learning_rate is")
    both = run(*TUNE, "--range", "optimizer=sgd,adam", "--range", "learning_rate=0.001:0.01")
    assert both.stderr == sentence.format("optimizer and learning_rate are")
    for more in (["recipe=modern"], ["recipe=builtin"], ["learning_rate=0.01"], ["--range", "epochs=10:40"]):
        assert run(*TUNE, *more).stderr == ""


def test_warnings_of_hyperparameters() -> None:
    assert run(*TRAIN, "lr_scheduler_step=50", "epochs=40").stderr == (
        "warning: lr_scheduler_step has 50, but training ends after 40 epochs: the learning rate is not reduced there.\n"
    )


REFUSALS = [
    (
        (*TRAIN, "mini_batch_siz=8"),
        "hyperparameters: mini_batch_siz is unknown (did you mean mini_batch_size?).",
    ),
    (
        [each for each in TRAIN if each != GIVEN[0]],
        "hyperparameters: num_classes is missing and must be an integer from 1 to 10000.",
    ),
    ((*TRAIN, "epochs"), '"epochs" has no name and value; write it as NAME=VALUE.'),
    ((*TRAIN, "epochs=3", "epochs=4"), "epochs is given more than once; give it once."),
    (
        (*TRAIN, "--name", "one_two"),
        '--name is "one_two"; it must be at most 63 letters, digits and hyphens between them.',
    ),
    (
        (*TUNE, "--name", "a" * 33),
        f'--name is "{"a" * 33}"; it must be at most 32 letters, digits and hyphens between them.',
    ),
    (
        (*TRAIN, "--role", "ssd-algo"),
        '--role is "ssd-algo"; it must be the ARN of a role, as arn:aws:iam::123456789012:role/name.',
    ),
    ((*TRAIN, "--data", "bucket/data"), '--data is "bucket/data"; it must be an address as s3://bucket/prefix.'),
    ((*TRAIN, "--output", "s3:/bucket"), '--output is "s3:/bucket"; it must be an address as s3://bucket/prefix.'),
    (
        (*TRAIN, "--instance-type", "g5.2xlarge"),
        '--instance-type is "g5.2xlarge"; it must be a type of SageMaker\'s, as ml.g5.2xlarge.',
    ),
    (
        ("train", "ssd-algo:gpu", *TRAIN[2:]),
        'IMAGE is "ssd-algo:gpu"; it must be an image in ECR, as '
        "123456789012.dkr.ecr.eu-west-1.amazonaws.com/ssd-algo:gpu.",
    ),
    (
        (*TRAIN, "--model", "s3://bucket/models/"),
        '--model is "s3://bucket/models/"; it must be the address of an archive, as s3://bucket/prefix/model.tar.gz.',
    ),
    (
        (*TRAIN, "--spot"),
        "--spot needs --checkpoints s3://bucket/prefix; without checkpoints an interrupted job begins anew.",
    ),
    (
        (*TRAIN, "--input-mode", "Pipe"),
        "--input-mode Pipe needs --content-type application/x-recordio, as images and their annotations cannot be piped; "
        "use File or FastFile mode, or pack them with ssd-algo pack.",
    ),
    (
        (*TUNE, "--range", "learning_rte=0.1:0.2"),
        "hyperparameters: learning_rte is unknown (did you mean learning_rate?).",
    ),
    (
        (*TUNE, "--range", "learning_rate=0:0.2"),
        'hyperparameters: learning_rate is "0" and must be a number above 0 and at most 1.',
    ),
    (
        (*TUNE, "--range", "learning_rate=0.2:0.1"),
        "the range of learning_rate is 0.2:0.1; the first number must be the lower one.",
    ),
    (
        (*TUNE, "--range", "learning_rate=0.1"),
        "the range of learning_rate is 0.1; write LOW:HIGH, or two or more values as VALUE,VALUE.",
    ),
    (
        (*TUNE, "--range", "base_network=resnet-18:resnet-50"),
        "the range of base_network is resnet-18:resnet-50, but it is no number; list its values as VALUE,VALUE.",
    ),
    (
        (*TUNE, "momentum=0.9", "--range", "momentum=0.1:0.9"),
        "momentum has a range and the value 0.9; give one of them.",
    ),
    (
        (*TUNE, "learning_rate=0.1", "mini_batch_size=8", "momentum=0.9", "weight_decay=0.1"),
        "learning_rate, mini_batch_size, momentum, weight_decay are all given, so that nothing is left to tune; leave one "
        "out, or name others with --range.",
    ),
    (
        (*TUNE, "--jobs", "2", "--parallel", "3"),
        "--parallel is 3 and --jobs 2; no more jobs can run at a time than there are.",
    ),
    (
        (*MODEL, "SSD_ALGO_PRECISION=int4"),
        'SSD_ALGO_PRECISION is "int4"; it must be float32 or int8.',
    ),
    (
        (*MODEL, "a-b=1"),
        'a variable\'s name is "a-b"; it must be a name of letters, digits and underscores.',
    ),
    (
        ENDPOINT,
        "an endpoint is two requests, and one at a time is printed; give --part config, then --part endpoint, or send "
        "both with --send.",
    ),
    (
        (*TRANSFORM, "--accept", "text/csv"),
        "The answer can be application/json, with ;annotation=1 and ;names=1 if wanted, or application/jsonlines, but "
        "Accept is text/csv.",
    ),
]


@pytest.mark.parametrize(("arguments", "sentence"), REFUSALS)
def test_refusals(arguments: tuple[str, ...], sentence: str, away: None) -> None:
    """Before anything is printed or sent: there is nobody to send to, and nobody is missed."""
    for send in [()] if arguments is ENDPOINT else [(), ("--send",)]:
        done = run(*arguments, *send)
        assert (done.exit_code, done.stdout, done.stderr) == (2, "", f"ClientError: {sentence}\n")


def test_an_option_that_is_missing() -> None:
    done = run(*TRAIN[:4], "--name", "one")
    assert done.exit_code == 2
    assert done.stderr.splitlines()[-1] == "Error: Missing option '--role'."


@pytest.fixture
def away(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No credentials, no region, no configuration of the AWS CLI."""
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "credentials"))


class Recorded:
    """SageMaker as moto plays it, and the requests that came to it."""

    def __init__(self) -> None:
        self._app = DomainDispatcherApplication(create_backend_app)
        self.requests: list[tuple[str, str, Any]] = []

    def __call__(self, environ: dict[str, Any], start: Any) -> Any:
        body = environ["wsgi.input"].read(int(environ["CONTENT_LENGTH"]))
        if "HTTP_X_AMZ_TARGET" in environ:
            seen = (environ["HTTP_X_AMZ_TARGET"], environ["HTTP_AUTHORIZATION"], json.loads(body))
            self.requests.append(seen)
        return self._app(environ | {"wsgi.input": io.BytesIO(body)}, start)


@pytest.fixture
def sagemaker(away: None, monkeypatch: pytest.MonkeyPatch) -> Iterator[Recorded]:
    app = Recorded()
    server = make_server("127.0.0.1", 0, app, threaded=True)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    url = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    urllib.request.urlopen(f"{url}/moto-api/reset", data=b"").close()
    monkeypatch.setenv("AWS_ENDPOINT_URL_SAGEMAKER", url)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "testing")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "testing")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "eu-west-1")
    yield app
    server.shutdown()
    thread.join()
    server.server_close()


def test_what_is_sent_is_what_is_printed(sagemaker: Recorded) -> None:
    """Every command, signed for the region; an endpoint is two requests in their order."""
    arn = "arn:aws:sagemaker:eu-west-1:123456789012:"
    both = [printed(*ENDPOINT, "--part", part) for part in ("config", "endpoint")]
    expected: list[tuple[tuple[str, ...], list[tuple[str, dict[str, Any]]], str]] = [
        (TRAIN, [("CreateTrainingJob", printed(*TRAIN))], f"{arn}training-job/one\n"),
        (
            (*TUNE, "recipe=modern"),
            [("CreateHyperParameterTuningJob", printed(*TUNE, "recipe=modern"))],
            f"{arn}hyper-parameter-tuning-job/one\n",
        ),
        (MODEL, [("CreateModel", printed(*MODEL))], f"{arn}model/birds\n"),
        (
            ENDPOINT,
            [("CreateEndpointConfig", both[0]), ("CreateEndpoint", both[1])],
            f"{arn}endpoint-config/birds\n{arn}endpoint/birds\n",
        ),
        (TRANSFORM, [("CreateTransformJob", printed(*TRANSFORM))], f"{arn}transform-job/batch\n"),
    ]
    for arguments, requests, answer in expected:
        sagemaker.requests.clear()
        done = run(*arguments, "--send")
        assert (done.exit_code, done.stderr, done.stdout) == (0, "", answer)
        assert [(target, body) for target, _, body in sagemaker.requests] == [
            (f"SageMaker.{operation}", body) for operation, body in requests
        ]
        for _, authorization, _ in sagemaker.requests:
            signed = r"AWS4-HMAC-SHA256 Credential=testing/\d{8}/eu-west-1/sagemaker/aws4_request, .*Signature=\w{64}"
            assert re.fullmatch(signed, authorization)
    described = boto3.client("sagemaker").describe_training_job(TrainingJobName="one")
    assert described["HyperParameters"] == {"num_classes": "3", "num_training_samples": "40"}


def test_a_part_of_an_endpoint_and_another_region(sagemaker: Recorded) -> None:
    assert run(*MODEL, "--send", "--region", "us-west-2").exit_code == 0
    done = run(*ENDPOINT, "--part", "config", "--send", "--region", "us-west-2")
    assert done.stdout == "arn:aws:sagemaker:us-west-2:123456789012:endpoint-config/birds\n"
    assert [target for target, _, _ in sagemaker.requests] == [
        "SageMaker.CreateModel",
        "SageMaker.CreateEndpointConfig",
    ]
    assert all("/us-west-2/sagemaker/" in authorization for _, authorization, _ in sagemaker.requests)


def test_a_refusal_of_the_service(sagemaker: Recorded) -> None:
    done = run(*ENDPOINT, "--send")
    assert (done.exit_code, done.stdout) == (2, "")
    assert done.stderr == (
        "ClientError: SageMaker refused create_endpoint_config (ValidationException: Could not find model "
        "'arn:aws:sagemaker:eu-west-1:123456789012:model/birds'); mend that, or what the credentials allow "
        "(docs/operating.md).\n"
    )
    assert [target for target, _, _ in sagemaker.requests] == ["SageMaker.CreateEndpointConfig"]


def test_nowhere_to_send_to(away: None, monkeypatch: pytest.MonkeyPatch) -> None:
    assert run(*TRAIN, "--send").stderr == (
        "ClientError: there is no region to send to; give --region, or set AWS_DEFAULT_REGION.\n"
    )
    assert run(*TRAIN, "--send", "--region", "eu-west-1").stderr == (
        "ClientError: there are no credentials to send with; configure them as for the AWS CLI (aws configure, or "
        "AWS_PROFILE).\n"
    )
    with socket.socket() as silent:  # bound, but nobody listens
        silent.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        for name, value in (
            ("AWS_ENDPOINT_URL", url),
            ("AWS_MAX_ATTEMPTS", "1"),
            ("AWS_ACCESS_KEY_ID", "testing"),
            ("AWS_SECRET_ACCESS_KEY", "testing"),
            ("NO_PROXY", "127.0.0.1"),
        ):
            monkeypatch.setenv(name, value)
        assert run(*TRAIN, "--send", "--region", "eu-west-1").stderr == (
            f'ClientError: create_training_job was not sent (Could not connect to the endpoint URL: "{url}/"); check '
            "region, profile and network.\n"
        )
    monkeypatch.setenv("AWS_PROFILE", "nobody")
    done = run(*TRAIN, "--send", "--region", "eu-west-1")
    assert (done.exit_code, done.stdout) == (2, "")
    assert done.stderr == (
        "ClientError: create_training_job was not sent (The config profile (nobody) could not be found); check region, "
        "profile and network.\n"
    )


def policies() -> list[dict[str, Any]]:
    text = (ROOT / "docs" / "operating.md").read_text()
    return [json.loads(block) for block in re.findall(r"```json\n(.*?)```", text, re.DOTALL)]


def test_policies_can_be_copied() -> None:
    """They are JSON, every statement allows something to somebody, and every action is one."""
    assert len(policies()) >= 6
    services = {name: botocore.session.get_session().get_service_model(name) for name in ("ecr", "logs", "ec2", "kms")}
    services |= {"cloudwatch": botocore.session.get_session().get_service_model("cloudwatch"), "sagemaker": SERVICE}
    for policy in policies():
        assert policy["Version"] == "2012-10-17"
        for statement in policy["Statement"]:
            assert statement["Effect"] == "Allow"
            assert ("Resource" in statement) != ("Principal" in statement)
            for action in [statement["Action"]] if isinstance(statement["Action"], str) else statement["Action"]:
                service, name = action.split(":")
                if service in services:
                    assert name in services[service].operation_names, action
                else:
                    assert action in (
                        "sts:AssumeRole",
                        "iam:PassRole",
                        "s3:GetObject",
                        "s3:PutObject",
                        "s3:DeleteObject",
                        "s3:ListBucket",
                    )


def test_the_caller_may_send_every_request() -> None:
    allowed = {action for policy in policies() for statement in policy["Statement"] for action in statement["Action"]}
    assert {f"sagemaker:{operation}" for operation in OPERATIONS.values()} <= allowed
