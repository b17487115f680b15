"""Files and links that several processes write at once."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from whence.files import point


def test_a_link_that_another_run_points_in_the_same_instant_is_no_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    link = tmp_path / "latest"
    link.symlink_to("an-earlier-run")

    def symlink(target: str, path: Path, *_: object) -> None:
        if not link.is_symlink():
            make("the-other-run", link)
        make(target, path)

    make = os.symlink
    monkeypatch.setattr(os, "symlink", symlink)
    point(link, "this-run")
    assert os.readlink(link) == "this-run"
    assert list(tmp_path.iterdir()) == [link]
