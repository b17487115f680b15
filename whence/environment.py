"""Environment variables: set for a while, made fit for use, and which of them hold for the network."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from urllib.request import getproxies

from whence.errors import SECRET_NAME, ConfigError, scrub

# Whose variable names the file of the authorities that are trusted; of several the first that is set.
AUTHORITIES = {
    "MLflow": ("MLFLOW_TRACKING_SERVER_CERT_PATH", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"),
    "S3": ("AWS_CA_BUNDLE", "REQUESTS_CA_BUNDLE"),
    "the hub": ("SSL_CERT_FILE",),
    "Kubeflow": ("SSL_CERT_FILE", "REQUESTS_CA_BUNDLE"),
}
NOT_READ = {"MLFLOW_TRACKING_URI": "tracking.uri", "MLFLOW_EXPERIMENT_NAME": "tracking.experiment"}


@contextmanager
def environment(values: Mapping[str, str]) -> Iterator[None]:
    """Set variables, and afterwards put back what was there."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def strip_secrets() -> None:
    """Take white space from the ends of tokens and keys: Secrets often end in a line break, which headers refuse."""
    for name, value in os.environ.items():
        if re.search(rf"{SECRET_NAME}|ACCESS_KEY_ID|USERNAME", name) and value != value.strip():
            os.environ[name] = value.strip()


def authorities(who: str) -> str | None:
    """The file of the authorities that ``who`` trusts, where a variable names one.

    Raises:
        ConfigError: the variable names no file.
    """
    variable = _first_set(AUTHORITIES[who])
    if variable is None:
        return None
    if not Path(os.environ[variable]).exists():
        raise ConfigError(f"{variable}: names {os.environ[variable]}, which is not there", hint="correct or unset it")
    return os.environ[variable]


def settings_of_the_network() -> str:
    """Which variables hold for proxies and certificates, and which are not read; empty where none is set.

    Raises:
        ConfigError: one names a file that is not there, or no address.
    """
    words, proxies = [], getproxies()
    if shown := [f"{scheme} by {scrub(url)}" for scheme, url in sorted(proxies.items()) if scheme in ("http", "https")]:
        direct = f", but for NO_PROXY {proxies['no']}" if proxies.get("no") else ""
        words.append(f"proxies {', '.join(shown)}{direct}")
    words += [f"{who} trusts {_first_set(names)}" for who, names in AUTHORITIES.items() if authorities(who)]
    mirror = os.environ.get("HF_ENDPOINT", "https://")
    if not mirror.startswith(("http://", "https://")):
        raise ConfigError(f"HF_ENDPOINT: {mirror} is no address", hint="write it with http:// or https:// before it")
    words += [f"{name} is not read: {setting} wins" for name, setting in NOT_READ.items() if os.environ.get(name)]
    return "; ".join(words)


def _first_set(names: tuple[str, ...]) -> str | None:
    return next((name for name in names if os.environ.get(name)), None)
