import numpy as np
import pytest
from helpers.damage import change_manifest, check, faults, prepared
from helpers.folders import SIZE, encoded, place


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
        (change_statistics("pixels", lambda n: n + 1), "the training pictures have 55,296"),
        (change_statistics("mean", lambda m: [m[0] + 300, *m[1:]]), "is not within 0..255"),
        (change_statistics("covariance", scaled), "are not the covariance's"),
        (change_statistics("covariance", uneven), "is not symmetric"),
        (change_statistics("covariance", lambda rows: rows[:2]), "3 x 3"),
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
    found = [fault for fault in check(data, fast=True).faults if fault.place == "manifest.json"]
    assert any(what in fault.what for fault in found)


def test_the_mean_image_must_have_the_mean(data):
    change_statistics("mean", lambda m: [m[0] + 1e-3, *m[1:]])(data)
    assert "but the manifest says" in faults(data)["mean_image.npy"]


def test_statistics_of_flat_pictures_hold(tmp_path):
    """No colour varies: eigenvalues are all zero."""
    root = tmp_path / "flat"
    for k, name in enumerate("abab"):
        place(root / "train" / name / f"{k}.jpg", encoded(np.full((SIZE, SIZE, 3), 99, np.uint8)))
    assert faults(prepared(root, tmp_path / "out")) == {}


@pytest.mark.parametrize(
    ("array", "what"),
    [
        (np.zeros((SIZE, SIZE, 3)), "float64 48x48x3; expected float32 48x48x3"),
        (np.zeros((3, SIZE, SIZE), np.float32), "float32 3x48x48"),
        (np.zeros((), np.float32), "expected float32 48x48x3"),
        (np.full((SIZE, SIZE, 3), np.nan, np.float32), "its mean is nan nan nan"),
        (np.array([{}]), "no array: Object arrays cannot be loaded"),
    ],
)
def test_another_array_as_mean_image(data, array, what):
    np.save(data / "mean_image.npy", array)
    assert what in faults(data)["mean_image.npy"]


def test_a_damaged_mean_image(data):
    (data / "mean_image.npy").write_bytes(b"\x93NUMPY")
    assert faults(data)["mean_image.npy"].startswith("no array")


@pytest.mark.parametrize(
    ("report", "what"),
    [
        (b"", "not a report"),
        (b"\xff\xfe", "not a report"),
        (b"a,b\n", "its columns are a, b; expected path, reason, action"),
        (b"path,reason,action\nx.jpg,broken\n", "row 2 has 2 columns instead of 3"),
        (b'path,reason,action\n"x.jpg,broken,skipped\n', "not a report"),
    ],
)
def test_a_report_that_is_none(data, report, what):
    (data / "report.csv").write_bytes(report)
    assert what in faults(data)["report.csv"]


def test_a_limit_that_is_no_number(data):
    change_manifest(data, lambda manifest: manifest["settings"].update(max_megapixels="x"))
    assert "a limit of 'x' megapixels is no number" in faults(data)["manifest.json"]


def test_a_shard_name_that_no_file_can_have(data):
    change_manifest(data, lambda manifest: manifest["splits"]["val"][0].update(name="val/a\0b.tar"))
    assert "is no name of a tar below this folder" in faults(data)["manifest.json"]
