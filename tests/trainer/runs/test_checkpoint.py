"""Checkpoints: atomic writing, checks, and loading without running code."""

import errno
import os
import pickle
import resource
from dataclasses import replace

import pytest
import torch

from pipeline.errors import RunError, UsageError
from trainer.models.classifier import Classifier
from trainer.runs import checkpoint


def test_a_classifier_comes_back_as_it_was(tiny_classifier, tiny_checkpoint):
    content = checkpoint.load(tiny_checkpoint)
    again, notes = checkpoint.classifier_of(content, tiny_checkpoint)
    assert notes == []
    assert again.spec == tiny_classifier.spec
    mine, theirs = tiny_classifier.state_dict(), again.state_dict()
    assert list(mine) == list(theirs)
    assert all(torch.equal(mine[key], theirs[key]) for key in mine)
    x = torch.rand(2, 3, 64, 64) * 255
    with torch.no_grad():
        assert torch.equal(tiny_classifier.eval().classify(x), again.eval().classify(x))


def test_further_state_comes_back(tiny_classifier, tmp_path):
    state = {"progress": {"epoch": 3}, "ranks": [{"rng": torch.get_rng_state()}], "recipe": "a = 1"}
    checkpoint.save(tmp_path / "last.pt", tiny_classifier, **state)
    content = checkpoint.load(tmp_path / "last.pt")
    assert content["progress"] == {"epoch": 3}
    assert content["recipe"] == "a = 1"
    assert torch.equal(content["ranks"][0]["rng"], state["ranks"][0]["rng"])


class Attack:
    """Unpickling this creates a folder."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self):
        return os.mkdir, (self.path,)


@pytest.mark.parametrize(
    ("writer", "words"),
    [("torch", r"\(posix.mkdir\), which runs code"), ("pickle", "neither a torch file nor")],
)
def test_code_in_a_checkpoint_is_refused_and_not_run(tmp_path, writer, words):
    path, trace = tmp_path / "evil.pt", tmp_path / "was-here"
    content = {"format": 1, "model": Attack(str(trace))}
    if writer == "torch":
        torch.save(content, path)
    else:
        path.write_bytes(pickle.dumps(content))
    with pytest.raises(UsageError, match=words):
        checkpoint.load(path)
    assert not trace.exists()


@pytest.mark.parametrize("keep", [0.0, 0.5, 0.999])
def test_a_truncated_checkpoint_is_refused(tiny_checkpoint, keep):
    whole = tiny_checkpoint.read_bytes()
    tiny_checkpoint.write_bytes(whole[: int(len(whole) * keep)])
    with pytest.raises(UsageError, match="not a readable checkpoint"):
        checkpoint.load(tiny_checkpoint)


EMPTY_ZIP = b"PK\x05\x06" + bytes(18)


@pytest.mark.parametrize("content", [b"hello", b"PK\x03\x04" + bytes(100), EMPTY_ZIP])
def test_something_else_is_refused(tmp_path, content):
    path = tmp_path / "other.pt"
    path.write_bytes(content)
    with pytest.raises(UsageError, match=r"other\.pt: not a readable checkpoint"):
        checkpoint.load(path)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ({"format": None}, "not a checkpoint of this toolkit"),
        ([1, 2], "not a checkpoint of this toolkit"),
        ({"weight": torch.zeros(1)}, "not a checkpoint of this toolkit"),
        ({"format": 1}, "this release reads 2"),
        ({"format": "2"}, "this release reads 2"),
    ],
)
def test_a_file_of_another_program_or_format_is_refused(tmp_path, content, words):
    torch.save(content, tmp_path / "external.pt")
    with pytest.raises(UsageError, match=words):
        checkpoint.load(tmp_path / "external.pt")


def test_a_checkpoint_without_a_spec_is_refused(tmp_path):
    for spec in (None, {"arch": "alexnet"}, 3):
        with pytest.raises(UsageError, match=r"x\.pt: does not describe its network"):
            checkpoint.spec_of({"format": 2, "spec": spec}, tmp_path / "x.pt")


def test_weights_of_another_network_are_refused(tiny_classifier, tmp_path):
    narrow = Classifier(replace(tiny_classifier.spec, width=0.04))
    path = tmp_path / "x.pt"
    checkpoint.save(path, tiny_classifier)
    content = checkpoint.load(path) | {"model": narrow.state_dict()}
    with pytest.raises(UsageError, match="weights do not fit"):
        checkpoint.classifier_of(content, path)
    del content["model"]
    with pytest.raises(UsageError, match="weights do not fit"):
        checkpoint.classifier_of(content, path)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"arch": "alexnet"}, "arch alexnet_bn, here alexnet"),
        ({"width": 0.5}, r"width 0\.05, here 0\.5"),
        ({"crop": 65}, "crop 64, here 65"),
        ({"size": 256}, "size 72, here 256"),
        ({"classes": ("a", "b"), "names": ()}, "10 classes, here 2"),
        ({"mean_image": False}, "mean_image True, here False"),
        ({"std": (2.0, 2.0, 2.0)}, r"std \(1\.0, .*, here \(2\.0"),
    ],
)
def test_another_spec_is_refused_naming_the_difference(tiny_classifier, tiny_checkpoint, change, words):
    content = checkpoint.load(tiny_checkpoint)
    checkpoint.refuse_other_spec(content, tiny_classifier.spec, tiny_checkpoint)
    with pytest.raises(UsageError, match=words):
        checkpoint.refuse_other_spec(content, replace(tiny_classifier.spec, **change), tiny_checkpoint)


def test_another_class_is_refused_by_its_name(tiny_classifier, tiny_checkpoint):
    classes = list(tiny_classifier.spec.classes)
    was, classes[3] = classes[3], "walrus"
    with pytest.raises(UsageError, match=f"class 3 is '{was}', here 'walrus'"):
        checkpoint.refuse_other_spec(
            checkpoint.load(tiny_checkpoint),
            replace(tiny_classifier.spec, classes=tuple(classes)),
            tiny_checkpoint,
        )


def test_a_full_disk_is_a_run_error_and_leaves_the_old_file(tiny_classifier, tiny_checkpoint):
    before = tiny_checkpoint.read_bytes()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) // 2, hard))  # Python ignores SIGXFSZ
    try:
        with pytest.raises(RunError, match=r"tiny\.pt.*File too large"):
            checkpoint.save(tiny_checkpoint, tiny_classifier)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert tiny_checkpoint.read_bytes() == before
    assert [path.name for path in tiny_checkpoint.parent.iterdir()] == [tiny_checkpoint.name]


def test_an_old_checkpoint_that_stays_does_not_fail_the_new_one(tmp_path, monkeypatch):
    """Network file systems refuse to delete some files for a while, such as those that are open."""

    def busy(path, **_):
        raise OSError(errno.EBUSY, "Device or resource busy", path)

    monkeypatch.setattr(os, "unlink", busy)
    for steps in (1, 2, 3):
        checkpoint.write_last(tmp_path, {"format": checkpoint.FORMAT_VERSION, "steps": steps}, steps, keep=2)
    assert torch.load(tmp_path / "last.pt")["steps"] == 3


def test_find_prefers_the_best_checkpoint_of_a_run(tmp_path):
    with pytest.raises(UsageError, match=r"best\.pt or last\.pt"):
        checkpoint.find(tmp_path)
    (tmp_path / "last.pt").touch()
    assert checkpoint.find(tmp_path) == tmp_path / "last.pt"
    (tmp_path / "best.pt").touch()
    assert checkpoint.find(tmp_path) == tmp_path / "best.pt"
    assert checkpoint.find(tmp_path / "last.pt") == tmp_path / "last.pt"


def test_missing_checkpoints_are_named(tmp_path):
    with pytest.raises(UsageError, match="none: no such run"):
        checkpoint.find(tmp_path / "none")
    with pytest.raises(UsageError, match=r"none\.pt: no such checkpoint"):
        checkpoint.load(tmp_path / "none.pt")
