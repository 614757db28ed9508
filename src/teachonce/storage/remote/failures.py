"""What an object store's answer means: is it missing, taken, refused, or will it pass?

obstore has a class for some answers and a text for the rest; HTTP's status and the provider's error code stand in the
text. An answer that may be another one later ("passing") is worth a retry; every other one is final at once.
"""

from __future__ import annotations

import re
from typing import Literal, NamedTuple

from obstore import exceptions

Kind = Literal["missing", "exists", "changed", "empty", "refused", "no ranges", "passing", "unidentified"]
"""Unidentified: no credentials were found. The service of a machine that gives them may be busy, but not at first."""

_STATUS = re.compile(r"status code: (\d{3}) ?([A-Za-z ]*)")
_CODE = re.compile(r"<Code>(\w+)</Code>")
_PASSING_STATUS = {408, 409, 425, 429, 500, 502, 503, 504}
_PASSING_CODES = {
    *("RequestTimeout", "SlowDown", "InternalError", "ServiceUnavailable", "OperationAborted", "ServerBusy"),
    # What was sent did not arrive as it was; an upload in parts whose completion was done, and whose answer was lost.
    *("IncompleteBody", "BadDigest", "XAmzContentSHA256Mismatch", "XAmzContentChecksumMismatch", "Md5Mismatch"),
    "NoSuchUpload",
}
_OF_ONE_OBJECT = {
    "AccessDenied",
    "AuthorizationFailure",
    "AuthorizationPermissionMismatch",
    "QuotaExceeded",
    "EntityTooLarge",
}
"""Codes that say nothing of other objects of the bucket."""
_ADVICE = {
    "NoSuchBucket": "there is no such bucket; create it, or check its name, region and endpoint",
    "ContainerNotFound": "there is no such container; create it, or check its name and the account",
    "SignatureDoesNotMatch": "the secret key does not belong to this access key; check the credentials",
    "InvalidAccessKeyId": "the access key is unknown; check the credentials and the endpoint",
    "AuthenticationFailed": "the credentials or this machine's clock are wrong; check both",
    "RequestTimeTooSkewed": "this machine's clock differs from the server's by minutes; set the clock",
    "ExpiredToken": "the credentials have expired; renew them",
    "TokenRefreshRequired": "the credentials have expired; renew them",
    "InvalidToken": "the session token is not valid; renew the credentials",
    "InvalidClientTokenId": "the access key is unknown; check the credentials and the endpoint",
    "AccountIsDisabled": "the account is disabled; check the account",
    "AllAccessDisabled": "the bucket is disabled; check the account",
    "AccessDenied": "access denied; check the credentials and their permissions",
    "AuthorizationFailure": "the credentials are wrong, or do not allow this; check them",
    "AuthorizationPermissionMismatch": "access denied; check the credentials and their permissions",
    "PermanentRedirect": "the bucket is in another region; set it with AWS_REGION or --storage-options region=REGION",
    "AuthorizationHeaderMalformed": "the region is wrong; set it with AWS_REGION or --storage-options region=REGION",
    "InvalidBucketName": "is not a valid bucket name",
    "QuotaExceeded": "the quota is exceeded; free space",
    "EntityTooLarge": "is larger than the server accepts in one request",
}

_NO_CREDENTIALS = (
    "no credentials; set them in the environment (AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, AWS_PROFILE with boto3, "
    "GOOGLE_APPLICATION_CREDENTIALS, AZURE_STORAGE_ACCOUNT_KEY), or, for a public bucket, "
    "--storage-options skip_signature=true"
)

_BUSY = "it is busy or out of order; run the same command again later"
_PROVIDER = re.compile(r"External AWS credential provider: (\w+): (.*)")
_EXPIRED_LOGINS = {"UnauthorizedSSOTokenError", "SSOTokenLoadError", "TokenRetrievalError", "LoginRefreshRequired"}
"""Botocore's errors of a login that only its user can renew."""
_METADATA_SERVICES = (
    "169.254.169.254",
    "169.254.170.",
    "/latest/api/token",
    "/metadata/identity",
    "metadata.google.internal",
)
"""Of the machines of clouds, which are asked for credentials where nothing else has any."""


class Failure(NamedTuple):
    """What kind of answer it was, and the reason for people."""

    kind: Kind
    reason: str
    is_explained: bool = True
    """False where the answer had no code (to HEAD), so that the reason is only what the status says."""
    is_general: bool = False
    """Whether it would be the same for every object of the bucket."""

    is_answer: bool = False
    """Whether a server is there that answers, and may answer otherwise later."""
    advice: str = "check the endpoint and the network"
    """What to do where it has not passed."""

    @property
    def may_be_missing(self) -> bool:
        """Denied without a word: what a bucket that may be read but not listed answers of what it does not have."""
        return not self.is_explained and self.reason == _ADVICE["AccessDenied"]


def client_errors() -> tuple[type[Exception], ...]:
    """What obstore raises; whatever else comes out of a request is no answer of a server."""
    return exceptions.BaseError, OSError, ValueError


def classify(error: Exception) -> Failure:
    """The meaning of what obstore raised."""
    text = str(error).partition("\n\nDebug source:")[0]
    code_match, status_match = _CODE.search(text), _STATUS.search(text)
    code = code_match[1] if code_match else ""
    status = int(status_match[1]) if status_match else 0
    if any(sign in text for sign in _METADATA_SERVICES):
        return Failure("unidentified", _NO_CREDENTIALS, is_general=True)
    if provider_match := _PROVIDER.search(text):
        return provider_failure(*provider_match.groups())
    if code in _PASSING_CODES:
        return Failure("passing", f"the server responded {status} {code}", is_answer=True, advice=_BUSY)
    if isinstance(error, exceptions.AlreadyExistsError):
        return Failure("exists", "exists already", is_answer=True)
    if isinstance(error, exceptions.PreconditionError):
        return Failure("changed", "it was replaced while it was read")
    if code in _ADVICE:
        return Failure("refused", _ADVICE[code], is_general=code not in _OF_ONE_OBJECT)
    if isinstance(error, FileNotFoundError) or status == 404:
        return Failure("missing", "No such file or directory")
    if status == 416:
        return Failure("empty", "the range is outside of the file")
    answer = f"the server answers {status} {code or (status_match[2] if status_match else '')}".strip()
    if status in _PASSING_STATUS:
        return Failure("passing", answer, is_answer=True, advice=_BUSY)
    if status in (401, 403) or isinstance(error, exceptions.PermissionDeniedError | exceptions.UnauthenticatedError):
        return Failure("refused", _ADVICE["AccessDenied"], bool(code))
    if status:
        return Failure("refused", answer, bool(code))
    if "redirect without LOCATION" in text:
        return _refused(_ADVICE["PermanentRedirect"])
    return _without_answer(error)


def provider_failure(kind: str, reason: str) -> Failure:
    """The meaning of what a provider of credentials raised: ``kind`` is the class's name."""
    reason = " ".join(reason.split()).rstrip(".")
    if kind in _EXPIRED_LOGINS:
        return _refused(f"no credentials: {reason}; log in again")
    return Failure("passing", f"no credentials: {reason}", is_general=True, advice="check what provides them")


def _without_answer(error: Exception) -> Failure:
    whole = str(error)
    if isinstance(error, exceptions.InvalidPathError):
        return Failure("refused", "is not a valid object name")
    if "builder error" in whole:
        return _refused("the endpoint is not a valid URL; check it")
    if isinstance(error, exceptions.NotSupportedError) or "NotPartial" in whole:
        return Failure("no ranges", "this server does not support range requests; use one that does")
    if "InvalidContentType" in whole:
        return _refused("the server does not use TLS; if it is yours, give its endpoint as http://")
    if "InvalidCertificate" in whole or "UnknownIssuer" in whole:
        return _refused(
            "the server's certificate is not trusted; install its CA certificate, or, if the server is yours, "
            "--storage-options allow_invalid_certificates=true"
        )
    if "dns error" in whole:
        return Failure("passing", "the server's name cannot be resolved")
    if "Connection refused" in whole:
        return Failure("passing", "the server refused the connection")
    if "timed out" in whole or "TimedOut" in whole or "kind: Timeout" in whole:
        return Failure("passing", "the server did not respond in time")
    return Failure("passing", "the connection failed")


def _refused(reason: str) -> Failure:
    return Failure("refused", reason, is_general=True)
