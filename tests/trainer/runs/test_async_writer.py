"""Checkpoints written in the background: content, number kept, and full disks."""

import errno
import os
import threading

import pytest
import torch

from pipeline.errors import RunError
from trainer.runs import checkpoint
from trainer.runs.async_writer import AsyncCheckpointer


@pytest.fixture
def warnings():
    return []


def content(value: float) -> dict[str, object]:
    return {"format": checkpoint.FORMAT_VERSION, "weights": torch.full((3,), value), "list": [torch.ones(1)]}


def go_on() -> None:
    """The folder is this process's own."""


def full(*_: object) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def weights(path) -> float:
    return checkpoint.load(path)["weights"][0].item()


def test_later_updates_do_not_reach_what_is_being_written(tmp_path, warnings, monkeypatch):
    """The file is written after the weights have changed."""
    changed, write = threading.Event(), checkpoint.write_last

    def late(*arguments):
        changed.wait(60)
        write(*arguments)

    monkeypatch.setattr(checkpoint, "write_last", late)
    given = content(1.0)
    with AsyncCheckpointer(tmp_path, 2, warnings.append, go_on) as checkpointer:
        checkpointer.last(given, 10)
        given["weights"].fill_(2.0)
        given["list"][0].fill_(2.0)
        assert not (tmp_path / "last.pt").exists()  # the caller did not wait
        changed.set()
    saved = checkpoint.load(tmp_path / "last.pt")
    assert saved["weights"].tolist() == [1.0, 1.0, 1.0]
    assert saved["list"][0].item() == 1.0
    assert warnings == []


@pytest.mark.parametrize("links", [True, False])
@pytest.mark.parametrize("keep", [1, 2, 3])
def test_the_newest_stay(tmp_path, warnings, monkeypatch, keep, links):
    if not links:
        monkeypatch.setattr(os, "link", full)
    with AsyncCheckpointer(tmp_path, keep, warnings.append, go_on) as checkpointer:
        for steps in (5, 90, 1000, 123456789):
            checkpointer.last(content(steps), steps)
    names = [path.name for path in checkpoint.steps_of(tmp_path)]
    all_names = ["step-123456789.pt", "step-00001000.pt", "step-00000090.pt", "step-00000005.pt"]
    assert names == (all_names[:keep] if keep > 1 else [])
    assert weights(tmp_path / "last.pt") == 123456789
    if keep > 1:
        assert weights(tmp_path / names[0]) == 123456789
        assert (tmp_path / names[0]).samefile(tmp_path / "last.pt") == links
    assert len(list(tmp_path.iterdir())) == 1 + len(names)


def test_the_best_is_written_before_the_last(tmp_path, warnings, monkeypatch):
    order, write = [], checkpoint.write

    def noted(path, what):
        order.append(path.name)
        write(path, what)

    monkeypatch.setattr(checkpoint, "write", noted)
    with AsyncCheckpointer(tmp_path, 2, warnings.append, go_on) as checkpointer:
        checkpointer.best(content(7.0))
        checkpointer.last(content(8.0), 8)
        checkpointer.last(content(9.0), 9)
    assert order == ["best.pt", "step-00000008.pt", "step-00000009.pt"]
    assert weights(tmp_path / "best.pt") == 7.0


def test_a_full_disk_keeps_the_one_before_and_warns(tmp_path, warnings, monkeypatch):
    with AsyncCheckpointer(tmp_path, 2, warnings.append, go_on) as checkpointer:
        checkpointer.last(content(1.0), 1)
        checkpointer.finish()
        with monkeypatch.context() as patch:
            patch.setattr(
                os, "fsync", lambda _: (_ for _ in ()).throw(OSError(28, "No space left on device"))
            )
            checkpointer.last(content(2.0), 2)
            checkpointer._wait()
        assert weights(tmp_path / "last.pt") == 1.0
        assert len(warnings) == 1
        assert "No space left on device" in warnings[0]
        assert "training goes on, and the checkpoint before it is kept" in warnings[0]
        checkpointer.last(content(3.0), 3)
    assert weights(tmp_path / "last.pt") == 3.0
    assert not list(tmp_path.glob(".writing-*"))


def test_what_cannot_be_written_in_the_end_is_an_error(tmp_path, warnings):
    with AsyncCheckpointer(tmp_path / "no such folder", 2, warnings.append, go_on) as checkpointer:
        checkpointer.last(content(1.0), 1)
        with pytest.raises(RunError, match="cannot write"):
            checkpointer.finish()
