"""What an object store's answer means: is it missing, taken, refused, or will it pass?

obstore has a class for some answers and a text for the rest; HTTP's status and the provider's error code stand in the
text. An answer that may be another one later ("passing") is worth a retry; every other one is final at once.
"""

from __future__ import annotations

import re
from typing import Literal, NamedTuple

from obstore import exceptions

Kind = Literal["missing", "exists", "changed", "empty", "refused", "passing"]

_STATUS = re.compile(r"status code: (\d{3}) ?([A-Za-z ]*)")
_CODE = re.compile(r"<Code>(\w+)</Code>")
_PASSING_STATUS = {408, 409, 425, 429, 500, 502, 503, 504}
_PASSING_CODES = {"RequestTimeout", "SlowDown", "InternalError", "ServiceUnavailable", "OperationAborted", "ServerBusy"}
_ADVICE = {
    "NoSuchBucket": "there is no such bucket; create it, or check its name, region and endpoint",
    "ContainerNotFound": "there is no such container; create it, or check its name and the account",
    "SignatureDoesNotMatch": "the secret key is not the one of this access key; check the credentials",
    "InvalidAccessKeyId": "the access key is unknown; check the credentials and the endpoint",
    "AuthenticationFailed": "the credentials are wrong, or this machine's clock is; check both",
    "RequestTimeTooSkewed": "this machine's clock differs from the server's by minutes; set the clock",
    "ExpiredToken": "the credentials have expired; renew them",
    "TokenRefreshRequired": "the credentials have expired; renew them",
    "AccessDenied": "access denied; check the credentials and what they may do",
    "PermanentRedirect": "the bucket is in another region; give it by AWS_REGION or --storage-options region=REGION",
    "AuthorizationHeaderMalformed": "the region is wrong; give it by AWS_REGION or --storage-options region=REGION",
    "InvalidBucketName": "is no name that a bucket can have",
    "QuotaExceeded": "the quota is exceeded; free space",
    "EntityTooLarge": "is larger than the server takes in one request",
}


class Failure(NamedTuple):
    """What kind of answer it was, and the reason for people."""

    kind: Kind
    reason: str
    is_explained: bool = True
    """False where the answer had no code (to HEAD), so that the reason is only what the status says."""


def client_errors() -> tuple[type[Exception], ...]:
    """What obstore raises; whatever else comes out of a request is no answer of a server."""
    return exceptions.BaseError, OSError, ValueError


def classify(error: Exception) -> Failure:
    """The meaning of what obstore raised."""
    text = str(error).partition("\n\nDebug source:")[0]
    code_match, status_match = _CODE.search(text), _STATUS.search(text)
    code = code_match[1] if code_match else ""
    status = int(status_match[1]) if status_match else 0
    if isinstance(error, exceptions.AlreadyExistsError):
        return Failure("exists", "exists already")
    if isinstance(error, exceptions.PreconditionError):
        return Failure("changed", "it was replaced while it was read")
    if code in _ADVICE:
        return Failure("refused", _ADVICE[code])
    if isinstance(error, FileNotFoundError) or status == 404:
        return Failure("missing", "No such file or directory")
    if status == 416:
        return Failure("empty", "the range is outside of the file")
    if status in _PASSING_STATUS or code in _PASSING_CODES:
        return Failure("passing", f"the server answers {status} {code or (status_match or ['', '', ''])[2]}".strip())
    if status in (401, 403) or isinstance(error, exceptions.PermissionDeniedError | exceptions.UnauthenticatedError):
        return Failure("refused", "access denied; check the credentials and what they may do", bool(code))
    if status:
        return Failure("refused", f"the server answers {status} {code or (status_match or ['', '', ''])[2]}".strip())
    return _without_answer(error, text)


def _without_answer(error: Exception, text: str) -> Failure:
    whole = str(error)
    if "169.254.169.254" in text or "metadata.google.internal" in text:
        return Failure(
            "refused",
            "no credentials; set them in the environment (AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, "
            "AWS_PROFILE with boto3, GOOGLE_APPLICATION_CREDENTIALS, AZURE_STORAGE_ACCOUNT_KEY), or, for a public "
            "bucket, --storage-options skip_signature=true",
        )
    if isinstance(error, exceptions.InvalidPathError):
        return Failure("refused", "is no name that an object can have")
    if "builder error" in text:
        return Failure("refused", "the endpoint is no URL that can be used; check it")
    if isinstance(error, exceptions.NotSupportedError) or "NotPartial" in whole:
        return Failure("refused", "this server does not serve ranges of a file; use one that does")
    if "dns error" in whole:
        return Failure("passing", "the server's name is unknown")
    if "Connection refused" in whole:
        return Failure("passing", "the server refuses the connection")
    if "timed out" in whole or "TimedOut" in whole:
        return Failure("passing", "the server does not answer in time")
    return Failure("passing", "the connection failed")
