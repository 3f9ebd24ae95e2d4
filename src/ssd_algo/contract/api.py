"""Calls of the platform's API; boto3 is imported when one is made."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from ssd_algo.errors import UserError


def client(service: str, region: str | None) -> Any:
    """boto3's client; within `told`, as region and profile may be wrong."""
    import boto3

    return boto3.Session(region_name=region).client(service)


@contextmanager
def told(operation: str) -> Iterator[None]:
    """Tell what boto3 raises in a sentence.

    Raises
    ------
    UserError
        When there are no credentials or no region, or the call is refused.
    """
    from botocore.exceptions import BotoCoreError, ClientError, NoCredentialsError, NoRegionError

    try:
        yield
    except NoRegionError as error:
        raise UserError("there is no region to send to; give --region, or set AWS_DEFAULT_REGION.") from error
    except NoCredentialsError as error:
        raise UserError(
            "there are no credentials to send with; configure them as for the AWS CLI (aws configure, or AWS_PROFILE)."
        ) from error
    except ClientError as error:
        fault = error.response["Error"]
        raise UserError(
            f"SageMaker refused {operation} ({fault['Code']}: {fault['Message'].rstrip('.')}); mend that, or what the "
            "credentials allow (docs/operating.md)."
        ) from error
    except (BotoCoreError, ValueError) as error:  # ValueError: an endpoint or a region that makes no address
        raise UserError(
            f"{operation} was not sent ({str(error).rstrip('.')}); check region, profile and network."
        ) from error
