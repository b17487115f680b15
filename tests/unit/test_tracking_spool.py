"""What could not be delivered is kept in order, survives crashes, and is handed over exactly once."""

import os
from pathlib import Path

import pytest

from whence.tracking.spool import Call, Spool


class Down(Exception):
    pass


def spool_with(root: Path, *names: str) -> Spool:
    spool = Spool.create(root, "train", {"stage": "train"})
    for name in names:
        spool.append(Call(name, {"value": name}))
    return spool


def abandoned_names(root: Path) -> list[str]:
    with Spool.abandoned(root) as spools:
        return [call.name for spool in spools for call in spool.pending()]


def test_calls_arrive_in_order_with_their_arguments_and_leave_nothing_behind(tmp_path: Path) -> None:
    spool = spool_with(tmp_path, "a", "b")
    spool.append(Call("c", {"loss": float("nan"), "text": "ä\n\u2028"}))
    arrived: list[Call] = []
    assert spool.deliver(arrived.append) == 3
    assert [call.name for call in arrived] == ["a", "b", "c"]
    assert arrived[0].arguments == {"value": "a"}
    assert arrived[2].arguments["loss"] != arrived[2].arguments["loss"]
    assert arrived[2].arguments["text"] == "ä\n\u2028"
    assert not list(tmp_path.iterdir())


def test_a_broken_delivery_goes_on_where_it_stopped(tmp_path: Path) -> None:
    spool = spool_with(tmp_path, "a", "b", "c")
    arrived: list[str] = []

    def send(call: Call) -> None:
        if call.name == "b" and "b down" not in arrived:
            arrived.append("b down")
            raise Down
        arrived.append(call.name)

    with pytest.raises(Down):
        spool.deliver(send)
    spool.append(Call("d", {}))
    spool.deliver(send)
    assert arrived == ["a", "b down", "b", "c", "d"]


def test_a_call_keeps_its_key_over_attempts(tmp_path: Path) -> None:
    call = Call("model", {})
    spool = spool_with(tmp_path)
    spool.append(call)
    assert [pending.key for pending in spool.pending()] == [call.key]
    assert Call("model", {}).key != call.key


def test_files_and_folders_are_kept_even_when_the_originals_go(tmp_path: Path) -> None:
    file, folder = tmp_path / "plot.png", tmp_path / "model"
    file.write_bytes(b"png")
    (folder / "sub").mkdir(parents=True)
    (folder / "sub" / "weights").write_bytes(b"123")
    spool = Spool.create(tmp_path / "spool", "train", {})
    spool.append(Call("artifact", {}, file))
    spool.append(Call("artifact", {}, folder))
    file.unlink()
    (folder / "sub" / "weights").unlink()

    found: dict[str, bytes] = {}

    def send(call: Call) -> None:
        assert call.path is not None
        inside = [call.path] if call.path.is_file() else [path for path in call.path.rglob("*") if path.is_file()]
        found.update({path.relative_to(call.path.parent).as_posix(): path.read_bytes() for path in inside})

    spool.deliver(send)
    assert found == {"plot.png": b"png", "model/sub/weights": b"123"}


def test_a_line_torn_by_a_crash_is_not_a_call(tmp_path: Path) -> None:
    spool = spool_with(tmp_path, "a")
    with open(spool.folder / "calls.jsonl", "a") as stream:
        stream.write('{"name": "b", "argum')
    assert [call.name for call in spool.pending()] == ["a"]


def test_the_spool_of_a_living_writer_is_left_alone_until_the_writer_ends(tmp_path: Path) -> None:
    spool = spool_with(tmp_path, "a")
    assert abandoned_names(tmp_path) == []
    spool.close()
    assert abandoned_names(tmp_path) == ["a"]
    with Spool.abandoned(tmp_path) as mine, Spool.abandoned(tmp_path) as others:
        assert (len(mine), len(others)) == (1, 0), "two uploads at once do not share a spool"


def test_the_spool_of_a_killed_writer_is_taken_over(tmp_path: Path) -> None:
    child = os.fork()
    if child == 0:
        spool_with(tmp_path, "a", "b")
        os.kill(os.getpid(), 9)
    os.waitpid(child, 0)
    assert abandoned_names(tmp_path) == ["a", "b"]


def test_folders_that_are_no_spool_are_ignored(tmp_path: Path) -> None:
    (tmp_path / "half-made").mkdir()
    (tmp_path / "half-made" / "lock").touch()
    (tmp_path / "other").mkdir()
    assert abandoned_names(tmp_path) == []
    assert abandoned_names(tmp_path / "absent") == []
