"""Errors by who must act.

    SsdAlgoError            never raised itself
    |-- UserError           the user can act: input, hyperparameters, disk, device; exit code 2, `ClientError: ...`
    |-- AlgorithmError      we must act; exit code 1, `AlgorithmError: ...`
    |-- RequestError        a request that cannot be answered; HTTP 400
        |-- UnsupportedMediaType   its content type is not one that is taken; HTTP 415
        |-- NotAcceptable          it wants an answer in a form that there is not; HTTP 406
        |-- TooLarge               its body is larger than is taken; HTTP 413
        |-- RequestTimeout         its body did not arrive in time; HTTP 408
        |-- NotReady               the model is still being loaded; HTTP 503
        |-- Busy                   there are too many others; HTTP 503, to be sent again

A message is one sentence that names what was wrong, where, which rule it breaks and what to do.
"""


class SsdAlgoError(Exception):
    """Base of every error that this package raises on purpose."""


class UserError(SsdAlgoError):
    """The user can act: wrong input, hyperparameters, a full disk, a device without memory."""

    exit_code = 2
    prefix = "ClientError"


class AlgorithmError(SsdAlgoError):
    """We must act: the job failed for a reason that is not the user's."""

    exit_code = 1
    prefix = "AlgorithmError"


class RequestError(SsdAlgoError):
    """The request cannot be answered; its sender can act."""

    http_status = 400


class UnsupportedMediaType(RequestError):
    """The request's content type is not one that is taken."""

    http_status = 415


class NotAcceptable(RequestError):
    """The request wants an answer in a form that there is not."""

    http_status = 406


class TooLarge(RequestError):
    """The request's body is larger than is taken."""

    http_status = 413


class RequestTimeout(RequestError):
    """The request's body did not arrive in time."""

    http_status = 408


class NotReady(RequestError):
    """The model is still being loaded."""

    http_status = 503


class Busy(RequestError):
    """There are too many others; to be sent again."""

    http_status = 503
