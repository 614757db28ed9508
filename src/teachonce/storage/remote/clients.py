"""One obstore client for each bucket and its settings, kept while the process lives.

Credentials are found as each provider's own tools find them: environment variables, a service account, the machine's
role; AWS profiles where boto3 is installed. obstore's own retries are off: ``retry`` has them all.
"""

from __future__ import annotations

import os
from datetime import timedelta
from functools import lru_cache
from typing import Any

from obstore import store
from obstore.exceptions import BaseError

from teachonce.errors import ConfigError, MissingExtraError
from teachonce.storage.remote.settings import Settings, read_settings

CONNECT_SECONDS = 10
_CLIENT_OPTIONS = frozenset(
    ("allow_http", "allow_invalid_certificates", "proxy_url", "proxy_ca_certificate", "proxy_excludes", "user_agent")
)


def connect(scheme: str, bucket: str) -> Any:
    """The client of a bucket (of a server, for http); raises ConfigError for settings that it does not know."""
    return _connect(scheme, bucket, read_settings(), os.getpid())


@lru_cache(64)
def _connect(scheme: str, bucket: str, settings: Settings, process: int) -> Any:
    # By process: a client's threads do not survive a fork.
    options: Any = dict(settings.options)
    client_options: Any = {key: options.pop(key) for key in _CLIENT_OPTIONS if key in options}
    client_options |= {
        "timeout": timedelta(seconds=settings.timeout_seconds),
        "connect_timeout": timedelta(seconds=CONNECT_SECONDS),
    }
    endpoint = options.get("endpoint") or os.environ.get("AWS_ENDPOINT_URL", "")
    if scheme == "http" or endpoint.startswith("http://"):
        client_options["allow_http"] = "true"  # as whoever gave such an address means
    shared: dict[str, Any] = {"client_options": client_options, "retry_config": {"max_retries": 0}}
    try:
        if scheme in ("http", "https"):
            return store.HTTPStore(f"{scheme}://{bucket}/", **shared)
        if scheme == "gs":
            return store.GCSStore(bucket, config=options, **shared)
        if scheme == "az":
            return store.AzureStore(bucket, config=options, **shared)
        return store.S3Store(bucket, config=options, credential_provider=_aws_profile(options), **shared)
    except (BaseError, ValueError, TypeError) as error:
        reason = str(error).partition("\n")[0]
        raise ConfigError(f"{scheme}://{bucket}: {reason}; check --storage-options and the environment") from error


def _aws_profile(options: dict[str, str]) -> Any:
    """Credentials of an AWS profile, where one is asked for or nothing else is there; None: obstore's own search."""
    if "access_key_id" in options or "AWS_ACCESS_KEY_ID" in os.environ or options.get("skip_signature") == "true":
        return None
    profile = os.environ.get("AWS_PROFILE")
    try:
        import boto3
        from obstore.auth.boto3 import Boto3CredentialProvider
    except ImportError as error:
        if profile is None:
            return None
        raise MissingExtraError(f"AWS_PROFILE={profile}: profiles need boto3; pip install boto3") from error
    try:
        session = boto3.session.Session()
        if profile is None and session.get_credentials() is None:
            return None
        return Boto3CredentialProvider(session)
    except Exception as error:  # botocore's: an unknown profile, a damaged file
        raise ConfigError(f"AWS_PROFILE={profile}: {error}") from error
