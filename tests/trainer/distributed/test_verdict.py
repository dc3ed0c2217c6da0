"""What ended a run, as all of its processes come to know it."""

import pytest
from helpers.entries import fail_together

from pipeline.errors import RunError, ToolkitError, UsageError
from trainer.distributed.env import Processes, World
from trainer.distributed.failures import (
    FAILURE_FILE,
    LostPeerError,
    announce_failure,
    from_text,
    raise_together,
    record_failure,
    recorded_failure,
    to_text,
)
from trainer.distributed.launch import launch


@pytest.mark.parametrize("error", [UsageError("a: b"), RunError("x"), LostPeerError("gone")])
def test_an_error_outlives_its_text(error):
    again = from_text(to_text(error))
    assert type(again) is type(error)
    assert str(again) == str(error)
    assert from_text("ValueError: 3") is from_text("nothing") is None


def test_a_note_is_for_those_who_are_started_again(tmp_path, monkeypatch):
    monkeypatch.delenv(FAILURE_FILE, raising=False)
    record_failure(RunError("nobody asks"))
    assert recorded_failure() is None
    monkeypatch.setenv(FAILURE_FILE, str(tmp_path / "verdict"))
    assert recorded_failure() is None
    record_failure(UsageError("the input is bad"))
    noted = recorded_failure()
    assert isinstance(noted, UsageError)
    assert str(noted) == "the input is bad"


def test_alone_there_is_nobody_to_tell():
    announce_failure(RunError("x"), World())
    done = []
    raise_together(lambda: done.append(1), World())
    assert done == [1]

    def fail():
        raise UsageError("no")

    with pytest.raises(UsageError, match="no"):
        raise_together(fail, World())


def test_what_fails_in_one_process_is_raised_in_all(tmp_path):
    with pytest.raises(ToolkitError, match="process 1 cannot"):
        launch(Processes("cpu", 3, ""), fail_together, tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["0", "1", "2"]
    assert {path.read_text() for path in tmp_path.iterdir()} == {"UsageError: process 1 cannot"}
