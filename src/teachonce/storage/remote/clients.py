"""One obstore client for each bucket and its settings, kept while the process lives.

Credentials are found as each provider's own tools find them: environment variables, a service account, the machine's
role; AWS profiles where boto3 is installed. obstore's own retries are off, as ``retry`` has them all; only the parts of
a large upload have obstore's, since to repeat all of them for one would be a waste.
"""

from __future__ import annotations

import os
import re
import threading
import time
from datetime import UTC, timedelta
from functools import lru_cache
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from obstore import store
from obstore.exceptions import BaseError, UnknownConfigurationKeyError

from teachonce.errors import ConfigError, MissingExtraError, TeachonceError
from teachonce.storage.remote.failures import provider_failure
from teachonce.storage.remote.retry import FIRST_CONTACT_SECONDS, Pauses, has_answered, note_answer
from teachonce.storage.remote.settings import Settings, read_settings, retry_limit

CONNECT_SECONDS = 10.0
SMALL_BYTES = 4 << 20
"""Of a request that is over in a minute on any link that is worth having."""
_SMALL_SECONDS = 60.0
_CLIENT_OPTIONS = frozenset(
    ("allow_http", "allow_invalid_certificates", "proxy_url", "proxy_ca_certificate", "proxy_excludes", "user_agent")
)
_OWN_PREFIXES = {"s3": ("aws_",), "gs": ("google_",), "az": ("azure_",)}
_OWN_VARIABLES = ("AWS_", "GOOGLE_", "AZURE_")
_ENDPOINT_OPTIONS = ("endpoint", "endpoint_url", "aws_endpoint", "aws_endpoint_url", "azure_endpoint")
_ENDPOINT_VARIABLES = {
    "s3": ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_ENDPOINT"),
    "az": ("AZURE_STORAGE_ENDPOINT", "AZURE_ENDPOINT"),
}
_USUAL_OPTIONS = {
    "s3": ("endpoint", "region", "access_key_id", "skip_signature", "virtual_hosted_style_request"),
    "gs": ("service_account", "application_credentials", "skip_signature"),
    "az": ("endpoint", "account_name", "account_key", "sas_key", "skip_signature"),
    "http": ("timeout_seconds", "retry_seconds"),
    "https": ("timeout_seconds", "retry_seconds"),
}
_BUCKET = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{1,254}")
_AZURE_OWN = ("$web", "$root")
"""Containers that Azure names itself: of a static web site, and of an account."""

_PROVIDER = "aws-credentials"
"""As what has answered: a process whose parent had credentials is not configured wrongly."""


class Patience(NamedTuple):
    """How long a client waits for one request; ``connect`` has the usual one."""

    seconds: float
    """For all of it."""
    stall_seconds: float | None = None
    """Until an answer continues."""
    retry_seconds: float | None = None
    """For obstore's own retries; None: it has none."""


def patience(num_bytes: int, *, is_upload: bool = False, retry_seconds: float | None = None) -> Patience:
    """How long a request that moves so many bytes may take."""
    longest = read_settings().timeout_seconds
    if num_bytes <= SMALL_BYTES:
        return Patience(min(_SMALL_SECONDS, longest), None, retry_seconds)
    # Nothing is read while a body is sent.
    return Patience(longest, None if is_upload else min(_SMALL_SECONDS, longest), retry_seconds)


def connect(scheme: str, bucket: str, wait: Patience | None = None) -> Any:
    """The client of a bucket (of a server, for http); raises ConfigError for settings that it does not know."""
    environment = tuple(sorted((name, text) for name, text in os.environ.items() if name.startswith(_OWN_VARIABLES)))
    _check_process()
    return _connect(scheme, bucket, read_settings(), wait or patience(SMALL_BYTES + 1), environment)


@lru_cache(1)
def _first_process() -> int:
    return os.getpid()


def _check_process() -> None:
    if _first_process() != os.getpid():
        raise ConfigError(
            "a process forked from one that has read an object store cannot read object stores: obstore's "
            "threads do not survive a fork, so it would hang; start it with spawn "
            "(multiprocessing_context='spawn')"
        )


@lru_cache(256)
def _connect(
    scheme: str, bucket: str, settings: Settings, wait: Patience, environment: tuple[tuple[str, str], ...]
) -> Any:
    # ``environment`` is read by obstore and by boto3; it is an argument so that a change of it is another client.
    options = _own_options(scheme, dict(settings.options))
    client_options: Any = {key: options.pop(key) for key in _CLIENT_OPTIONS if key in options}
    client_options |= {
        "timeout": timedelta(seconds=wait.seconds),
        "connect_timeout": timedelta(seconds=min(CONNECT_SECONDS, wait.seconds)),
    }
    if wait.stall_seconds is not None:
        client_options["read_timeout"] = timedelta(seconds=wait.stall_seconds)
    retries: Any = {"max_retries": 0}
    if wait.retry_seconds is not None:
        retries = {"max_retries": 1000, "retry_timeout": timedelta(seconds=wait.retry_seconds)}
    shared: dict[str, Any] = {"client_options": client_options, "retry_config": retries}
    if scheme in ("http", "https"):
        client_options["allow_http"] = "true"  # as such an address implies
        return _make(scheme, bucket, lambda: store.HTTPStore(f"{scheme}://{bucket}/", **shared))
    if _BUCKET.fullmatch(bucket) is None and not (scheme == "az" and bucket in _AZURE_OWN):
        raise ConfigError(f"{scheme}://{bucket}: is not a valid bucket name; expected {scheme}://BUCKET/FOLDER")
    session = _aws_session(options, environment) if scheme == "s3" else None
    endpoint = _find_endpoint(scheme, options, session)
    if endpoint is not None:
        options["endpoint"] = endpoint
        if endpoint.startswith("http://"):
            client_options.setdefault("allow_http", "true")
    if scheme == "gs":
        return _make(scheme, bucket, lambda: store.GCSStore(bucket, config=options, **shared))
    if scheme == "az":
        return _make(scheme, bucket, lambda: store.AzureStore(bucket, config=options, **shared))
    shared["credential_provider"] = session and _SessionCredentials(session)
    return _make(scheme, bucket, lambda: store.S3Store(bucket, config=options, **shared))


def _make(scheme: str, bucket: str, build: Any) -> Any:
    try:
        return build()
    except UnknownConfigurationKeyError as error:
        key = re.search(r"'(.*?)'", str(error))
        raise ConfigError(
            f"--storage-options {key[1] if key else ''}: unknown for {scheme}://, expected keys such as "
            f"{', '.join(_USUAL_OPTIONS[scheme])}; docs/guide/object-stores.md lists them"
        ) from error
    except (BaseError, ValueError, TypeError) as error:
        reason = str(error).partition("\n")[0]
        raise ConfigError(
            f"{scheme}://{bucket}: {reason.rstrip('.')}; check --storage-options and the environment"
        ) from error


def _own_options(scheme: str, options: dict[str, str]) -> Any:
    """Without those that are said to be another provider's."""
    others = tuple(prefix for name, prefixes in _OWN_PREFIXES.items() if name != scheme for prefix in prefixes)
    return {key: value for key, value in options.items() if not key.startswith(others)}


def _find_endpoint(scheme: str, options: dict[str, str], session: Any) -> str | None:
    """The server's URL, where it is not the provider's own; raises ConfigError for what is none."""
    found = [(f"--storage-options {name}", options.pop(name)) for name in _ENDPOINT_OPTIONS if name in options]
    variables = _ENDPOINT_VARIABLES.get(scheme, ())
    found += [(name, os.environ[name]) for name in variables if os.environ.get(name)]
    if session is not None:
        configured = session._session.get_scoped_config().get("endpoint_url")
        found += [("endpoint_url of the AWS profile", configured)] if configured else []
    if not found:
        return None
    name, text = found[0]
    try:
        parts = urlsplit(text)
        is_url = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        is_url = False
    if not is_url:  # which obstore answers with a panic
        raise ConfigError(f"{name}={text}: expected a URL, such as http://127.0.0.1:9000 or https://s3.example.org")
    return text.rstrip("/")


def _aws_session(options: dict[str, str], environment: tuple[tuple[str, str], ...]) -> Any:
    """boto3's session, where a profile is requested or nothing else is there; None: obstore's own search."""
    has_keys = any(name.removeprefix("aws_") == "access_key_id" for name in options)
    if has_keys or "AWS_ACCESS_KEY_ID" in os.environ or options.get("skip_signature") == "true":
        return None
    profile = os.environ.get("AWS_PROFILE")
    try:
        import boto3  # noqa: F401, whether it is there
    except ImportError as error:
        if profile is None:
            return None
        raise MissingExtraError(f"AWS_PROFILE={profile}: profiles need boto3; pip install boto3") from error
    with _session_lock:
        return _open_session(profile, environment)


_session_lock = threading.Lock()
_WRONG_FILES = {"ProfileNotFound", "ConfigParseError", "ConfigNotFound", "PartialCredentialsError"}
"""Botocore's errors of what the user's files say; it is boto3's dependency, not ours."""


@lru_cache(16)
def _open_session(profile: str | None, environment: tuple[tuple[str, str], ...]) -> Any:
    """One for all clients, as what provides its credentials may be slow, or fail for a moment."""
    import boto3

    is_known = has_answered(_PROVIDER)
    where = "the AWS credentials" if profile is None else f"AWS_PROFILE={profile}"
    pauses = Pauses(where, retry_limit() if is_known else min(retry_limit(), FIRST_CONTACT_SECONDS))
    while True:
        began = time.monotonic()
        try:
            session = boto3.session.Session()
            found = session.get_credentials()
        except Exception as error:  # of the files, or of a program, a server or a login that the profile names
            if type(error).__name__ in _WRONG_FILES:
                text = f"AWS_PROFILE={profile}: {error}; check ~/.aws/config and ~/.aws/credentials"
                raise ConfigError(text) from error
            failure = provider_failure(type(error).__name__, str(error))
            if failure.kind != "passing" or not pauses.wait(failure.reason, began, first_contact=not is_known):
                raise TeachonceError(f"{where}: {failure.reason}; check ~/.aws/config and what it names") from error
        else:
            note_answer(_PROVIDER)
            return None if found is None else session


class _SessionCredentials:
    """What obstore asks for credentials: boto3's, for as long as they say that they hold.

    obstore's own provider says 30 minutes of all of them, and boto3 renews those that have 15 left: so some were used
    that had expired.
    """

    def __init__(self, session: Any) -> None:
        self.config = {} if session.region_name is None else {"region": session.region_name}
        self._credentials = session.get_credentials()

    def __call__(self) -> Any:
        found = self._credentials.get_frozen_credentials()
        # Of botocore's class of those that are renewed, which says it nowhere else; keys of a file hold for ever.
        expiry = getattr(self._credentials, "_expiry_time", None)
        return {
            "access_key_id": found.access_key,
            "secret_access_key": found.secret_key,
            "token": found.token,
            "expires_at": expiry and expiry.astimezone(UTC),
        }
