import os

import numpy as np
import pytest
from helpers.buckets import upload
from helpers.damage import (
    INDEX,
    TAR,
    Backwards,
    change_manifest,
    check,
    first_key,
    listed,
    prepared,
    problems,
    relabeled,
    replace_tar,
    retar,
)
from helpers.folders import SIZE, encoded, members, place, times

from pipeline.errors import UsageError
from pipeline.storage.open import open_store
from pipeline.verification.dataset import verify
from pipeline.verification.shard import MOST_PROBLEMS, Problem

# Undamaged


@pytest.mark.parametrize("mode", ["whole", "whole_aspect", "whole_original"])
@pytest.mark.parametrize("fast", [False, True])
def test_an_undamaged_dataset_has_no_faults_and_is_left_as_it_is(request, mode, fast):
    folder = request.getfixturevalue(mode)
    before = times(folder)
    found = check(folder, fast=fast)
    assert (found.problems, found.notes) == ((), ())
    assert (found.shards, found.samples) == (8, 36)
    assert found.bytes == sum(path.stat().st_size for path in folder.rglob("*.tar"))
    assert times(folder) == before


def test_the_default_executor_finds_the_same_in_another_process_and_reports_progress(data):
    calls = []
    (data / TAR).unlink()
    assert problems(data) == {TAR: "missing"}
    found = verify(data, on_progress=lambda *counts: calls.append(counts))
    assert found.problems == (Problem(TAR, "missing"),)
    assert calls[-1] == (36, 36)
    assert calls == sorted(calls)


def test_progress_is_reported_by_shards_where_the_executor_knows_no_more(whole):
    calls = []
    check(whole, on_progress=lambda *counts: calls.append(counts))
    assert [done for done, _ in calls] == [4, 8, 12, 17, 22, 27, 32, 36, 36]
    assert {total for _, total in calls} == {36}


# Files


def test_no_finished_dataset_is_bad_usage(data):
    (data / "manifest.json").unlink()
    with pytest.raises(UsageError, match="not a prepared dataset"):
        check(data)


@pytest.mark.parametrize("names", [[TAR], [INDEX], [TAR, INDEX], ["mean_image.npy"], ["report.csv"]])
def test_deleted_files_are_named(data, names):
    for name in names:
        (data / name).unlink()
    found = problems(data)
    assert sorted(found) == sorted(names)
    assert all(what.startswith("missing") for what in found.values())


def test_a_folder_in_place_of_a_tar(data):
    (data / TAR).unlink()
    (data / TAR).mkdir()
    assert problems(data) == {TAR: "unreadable: Is a directory"}


@pytest.mark.parametrize(
    ("names", "faults", "what"),
    [
        (["train/x.tar", "train/x.idx", "test/a.tar", "b.tar", "train/._c.tar"], 5, "not in the manifest"),
        (["train/.writing-1-train-000001.tar"], 1, "not in the manifest"),
        ([".work/plan.json", ".writing-1-manifest.json"], 0, "delete it"),
        (["README.md", ".DS_Store"], 0, "not part of this dataset"),
    ],
)
def test_stray_files_are_faults_only_where_they_look_like_tars(data, names, faults, what):
    for name in names:
        place(data / name)
    found = check(data)
    assert (len(found.problems), len(found.notes)) == (faults, len(names) - faults)
    entries = (*found.problems, *found.notes)
    assert [one.place for one in entries] == sorted(name.removesuffix("/plan.json") for name in names)
    assert all(what in one.what for one in entries)


def test_many_stray_tars_are_counted(data):
    for number in range(MOST_PROBLEMS + 7):
        place(data / "train" / f"x-{number:03d}.tar")
    *listed, last = check(data).problems
    assert len(listed) == MOST_PROBLEMS
    assert last.what == "and 7 more problems"


def test_a_link_to_nowhere_is_reported_and_the_check_goes_on(data):
    (data / TAR).unlink()
    (data / TAR).symlink_to(data / "gone")
    assert problems(data)[TAR] == "missing"


def test_a_broken_shard_does_not_hide_another(data):
    replace_tar(data, TAR, b"no tar")
    (data / "train/train-000003.tar").unlink()
    retar(data, relabeled(b"0009"), "val/val-000002.tar")
    assert sorted(place.partition(".")[0] for place in problems(data)) == [
        "train/train-000001", "train/train-000003", "val/val-000002",
    ]  # fmt: skip


class Elsewhere(Backwards):
    """An executor whose workers have another current folder, as on a cluster."""

    def run(self, work, items, on_progress=None):
        os.chdir("/")
        return super().run(work, items, on_progress)


def test_a_folder_by_its_relative_path(data, monkeypatch):
    monkeypatch.chdir(data.parent)
    found = verify(data.name, executor=Elsewhere())
    assert (found.problems, found.samples) == ((), 36)


# Keys


def test_a_key_twice_in_a_shard(data):
    key = first_key(data)
    retar(data, lambda stored: [*stored, *stored[:2]], samples=6)
    found = problems(data)
    assert found.pop(TAR) == f"key {key} is twice in it"
    assert list(found) == ["manifest.json"]  # its statistics have fewer pixels


@pytest.mark.parametrize(("count", "more"), [(1, ""), (4, ", and 3 more keys")])
def test_keys_in_two_shards_are_one_fault_that_names_both(data, count, more):
    other = "val/val-000000.tar"
    shared = members(data / TAR)[: 2 * count]
    retar(data, lambda stored: shared + stored[2 * count :], other)
    found = problems(data)
    assert list(found) == [other]
    assert found[other] in {f"key {name[:-4]} is also in {TAR}{more}" for name, _ in shared[::2]}


# The manifest


def test_classes_without_training_samples(data):
    change_manifest(data, lambda m: m["classes"].append({"id": "dog", "name": "dog"}))
    assert problems(data) == {"train": "no samples of dog"}
    for path in data.glob("train/*.tar"):
        path.unlink()
    assert set(problems(data).values()) == {"missing"}  # the damaged shards may have had them


def test_no_training_split_and_no_split(data):
    change_manifest(data, lambda m: m["splits"].pop("train"))
    found = problems(data)
    assert found["manifest.json"] == "statistics: without a training split"
    assert TAR in found
    change_manifest(data, lambda m: m.update(splits={}))
    found = check(data)
    assert (found.shards, found.samples) == (0, 0)


@pytest.mark.parametrize(
    ("change", "what"),
    [
        (lambda m: m["classes"].append(m["classes"][0]), "lists the class ant twice"),
        (lambda m: m["splits"]["val"].append(listed(m, TAR)), f"lists the shard {TAR} twice"),
        (lambda m: m.update(label_width=0), "labels of 0 digits are too short for 3 classes"),
        (lambda m: m["settings"].update(max_megapixels="x"), "a limit of 'x' megapixels is no number"),
    ],
)
def test_a_manifest_that_contradicts_itself(data, change, what):
    change_manifest(data, change)
    assert any(what in problem.what for problem in check(data).problems if problem.place == "manifest.json")


# Statistics


def change_statistics(name, change):
    def apply(manifest):
        manifest["statistics"][name] = change(manifest["statistics"][name])

    return lambda folder: change_manifest(folder, apply)


def scaled(rows):
    return [[2 * x for x in row] for row in rows]


def uneven(rows):
    return [[rows[0][0], rows[0][1] + 1e-3, rows[0][2]], *rows[1:]]


@pytest.mark.parametrize(
    ("change", "what"),
    [
        (change_statistics("pixels", lambda n: n + 1), "the training images have 55,296"),
        (change_statistics("mean", lambda m: [m[0] + 300, *m[1:]]), "is not within 0..255"),
        (change_statistics("covariance", scaled), "are not the covariance's"),
        (change_statistics("covariance", uneven), "is not symmetric"),
        (change_statistics("eigenvalues", lambda v: [v[0] * (1 + 1e-6), *v[1:]]), "are not the covariance's"),
        (change_statistics("eigenvalues", lambda v: v[::-1]), "not the largest first"),
        (change_statistics("eigenvalues", lambda v: [*v[:2], -1.0]), "negative"),
        (change_statistics("eigenvectors", lambda rows: rows[::-1]), "are not the covariance's"),
        (change_statistics("eigenvectors", scaled), "not orthogonal and of length one"),
        (change_statistics("eigenvectors", lambda rows: [rows[0][:2], *rows[1:]]), "3 x 3"),
    ],
)
def test_a_changed_statistic(data, change, what):
    change(data)
    found = [problem for problem in check(data, fast=True).problems if problem.place == "manifest.json"]
    assert any(what in problem.what for problem in found)


def test_statistics_of_flat_images_hold(tmp_path):
    """All pixels have the same color, so all eigenvalues are zero."""
    root = tmp_path / "flat"
    for k, name in enumerate("abab"):
        place(root / "train" / name / f"{k}.jpg", encoded(np.full((SIZE, SIZE, 3), 99, np.uint8)))
    assert problems(prepared(root, tmp_path / "out")) == {}


def test_the_mean_image_must_have_the_mean(data):
    change_statistics("mean", lambda m: [m[0] + 1e-3, *m[1:]])(data)
    assert "but the manifest says" in problems(data)["mean_image.npy"]


@pytest.mark.parametrize(
    ("array", "what"),
    [
        (np.zeros((SIZE, SIZE, 3)), "float64 48x48x3; expected float32 48x48x3"),
        (np.zeros((), np.float32), "expected float32 48x48x3"),
        (np.full((SIZE, SIZE, 3), np.nan, np.float32), "its mean is nan nan nan"),
        (np.array([{}]), "no array: Object arrays cannot be loaded"),
    ],
)
def test_another_array_as_mean_image(data, array, what):
    np.save(data / "mean_image.npy", array)
    assert what in problems(data)["mean_image.npy"]


@pytest.mark.parametrize(
    ("report", "what"),
    [
        (b"", "not a report"),
        (b"a,b\n", "its columns are a, b; expected path, reason, action"),
        (b"path,reason,action\nx.jpg,broken\n", "row 2 has 2 columns instead of 3"),
        (b'path,reason,action\n"x.jpg,broken,skipped\n', "not a report"),
    ],
)
def test_a_report_that_is_none(data, report, what):
    (data / "report.csv").write_bytes(report)
    assert what in problems(data)["report.csv"]


# Buckets


def test_a_dataset_in_a_bucket(data, s3):
    bucket = open_store(f"{s3}/data")
    upload(data, bucket.url)
    found = check(bucket.url)
    assert (found.problems, found.notes, found.samples) == ((), (), 36)
    other = "val/val-000001.tar"
    retar(data, lambda stored: members(data / TAR)[:2] + stored[2:], other)
    for name in ("manifest.json", other, other.replace(".tar", ".idx")):
        bucket.write(name, (data / name).read_bytes())
    damaged = bytearray((data / "train/train-000002.tar").read_bytes())
    damaged[-1] ^= 1
    bucket.write("train/train-000002.tar", bytes(damaged))
    bucket.remove("val/val-000000.idx")
    bucket.remove("val/val-000002.tar")
    bucket.write("train/stray.tar", b"")
    found = check(bucket.url, fast=True).problems
    assert {problem.place for problem in found} == {
        *(other, "train/train-000002.tar", "val/val-000000.idx", "val/val-000002.tar", "train/stray.tar")
    }
    assert Problem(other, f"key {first_key(data)} is also in {TAR}") in found
