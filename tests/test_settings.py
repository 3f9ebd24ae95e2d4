"""The environment of a server: the names that users know."""

import logging

import pytest

from ssd_algo.contract.container import available_cpus
from ssd_algo.errors import UserError
from ssd_algo.serving.settings import Settings


def test_defaults() -> None:
    settings = Settings.from_environment({})
    assert (settings.port, settings.precision, settings.workers) == (8080, "float32", 1)
    assert (settings.limits.requests, settings.limits.payload_mb, settings.limits.seconds) == (64, 25, 60)
    assert settings.cpus == settings.limits.decoders == available_cpus()
    assert (settings.default_accept, settings.log_level) == ("application/json", logging.INFO)


@pytest.mark.parametrize(
    ("environment", "field", "value"),
    [
        ({"SAGEMAKER_MODEL_SERVER_WORKERS": "3"}, "workers", 3),
        ({"MODEL_SERVER_WORKERS": "3"}, "workers", 3),
        ({"SAGEMAKER_GUNICORN_WORKERS": "3"}, "workers", 3),
        ({"SAGEMAKER_NUM_MODEL_WORKERS": "3"}, "workers", 3),
        ({"SAGEMAKER_MODEL_JOB_QUEUE_SIZE": "100"}, "limits.requests", 100),
        ({"SAGEMAKER_GUNICORN_THREADS": "20"}, "limits.requests", 20),
        ({"SAGEMAKER_MODEL_SERVER_TIMEOUT": "30"}, "limits.seconds", 30),
        ({"SAGEMAKER_MODEL_SERVER_TIMEOUT_SECONDS": "30", "MODEL_SERVER_TIMEOUT": "40"}, "limits.seconds", 30),
        ({"MODEL_SERVER_TIMEOUT": "40"}, "limits.seconds", 40),
        ({"SAGEMAKER_BATCH": "true"}, "limits.seconds", 600),
        ({"SAGEMAKER_BATCH": "true", "MODEL_SERVER_TIMEOUT": "90"}, "limits.seconds", 90),
        ({"SAGEMAKER_MAX_PAYLOAD_IN_MB": "6"}, "limits.payload_mb", 6),
        ({"SAGEMAKER_MAX_PAYLOAD_IN_MB": "0"}, "limits.payload_mb", 1024),
        ({"MAX_CONTENT_LENGTH": "6291456"}, "limits.payload_mb", 6),
        ({"MAX_CONTENT_LENGTH": "6291456", "SAGEMAKER_MAX_PAYLOAD_IN_MB": "7"}, "limits.payload_mb", 7),
        ({"SAGEMAKER_STARTUP_TIMEOUT": "90"}, "startup_seconds", 90),
        ({"SAGEMAKER_DEFAULT_INVOCATIONS_ACCEPT": "application/jsonlines"}, "default_accept", "application/jsonlines"),
        ({"SAGEMAKER_CONTAINER_LOG_LEVEL": "20"}, "log_level", 20),
        ({"SAGEMAKER_CONTAINER_LOG_LEVEL": "debug"}, "log_level", logging.DEBUG),
        ({"SSD_ALGO_PRECISION": "int8"}, "precision", "int8"),
        ({"SAGEMAKER_BIND_TO_PORT": "81"}, "port", 81),
    ],
)
def test_names(environment: dict[str, str], field: str, value: object) -> None:
    found: object = Settings.from_environment(environment)
    for part in field.split("."):
        found = getattr(found, part)
    assert found == value


@pytest.mark.parametrize(
    ("environment", "sentence"),
    [
        (
            {"SAGEMAKER_BIND_TO_PORT": "70000"},
            'SAGEMAKER_BIND_TO_PORT is "70000"; it must be a port from 1 to 65535.',
        ),
        (
            {"MODEL_SERVER_WORKERS": "two"},
            'MODEL_SERVER_WORKERS is "two"; it must be a whole number from 1 to 256.',
        ),
        (
            {"SSD_ALGO_PRECISION": "bfloat16"},
            'SSD_ALGO_PRECISION is "bfloat16"; it must be float32 or int8.',
        ),
        (
            {"SAGEMAKER_DEFAULT_INVOCATIONS_ACCEPT": "text/csv"},
            'SAGEMAKER_DEFAULT_INVOCATIONS_ACCEPT is "text/csv"; it must be application/json or application/jsonlines.',
        ),
        (
            {"SAGEMAKER_CONTAINER_LOG_LEVEL": "loud"},
            'SAGEMAKER_CONTAINER_LOG_LEVEL is "loud"; it must be a number, or one of CRITICAL, FATAL, ERROR, WARN, '
            "WARNING, INFO, DEBUG, NOTSET.",
        ),
    ],
)
def test_refusals(environment: dict[str, str], sentence: str) -> None:
    with pytest.raises(UserError) as caught:
        Settings.from_environment(environment)
    assert str(caught.value) == sentence
