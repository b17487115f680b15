"""What to do where a server, a program or a package that tests need is not to be had."""

from __future__ import annotations

import os
from typing import NoReturn

import pytest


def absent(what: object) -> NoReturn:
    """Skip the tests that need it; in continuous integration (``CI`` is set) fail them, so that none is missed."""
    if os.environ.get("CI"):
        pytest.fail(f"not here: {what}", pytrace=False)
    pytest.skip(f"not here: {what}")
