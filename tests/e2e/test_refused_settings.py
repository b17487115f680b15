"""A pipeline that cannot work says why within seconds, whichever of its processes finds out."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path

import pytest

from whence.cli import main


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("factors.modules=[gate_projection]", ["factors.modules", "gate_projection", "gate_proj"]),
        ("training.learning_rates=1", ["training.learning_rates", "training.learning_rate"]),
        ("inspection.layer=9", ["inspection.layer", "9"]),
        ("tracking.uri=http://127.0.0.1:9", ["tracking.uri", "127.0.0.1:9"]),
        ("models.base.name=/nowhere/model", ["models.base.name", "/nowhere/model"]),
    ],
)
def test_bad_settings_are_refused_before_any_work(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    setting: str,
    words: list[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("whence.cli.pipelines.warm_processes", nullcontext)  # for tasks, which there are none of
    with pytest.raises(SystemExit) as refused:
        main(["run", "--profile", "demo", "--set", setting])
    assert refused.value.code == 1
    captured = capsys.readouterr()
    printed = captured.out + captured.err
    assert all(word in printed for word in words), printed
    assert "Traceback" not in printed
