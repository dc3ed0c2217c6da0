import dataclasses
import json

import pytest
from helpers.folders import refused

from pipeline import Dataset, verify
from pipeline.dataset.manifest import (
    ADOPTED,
    FILE_NAME,
    ClassInfo,
    ImageFormat,
    Manifest,
    Shard,
    SourceInfo,
    read_manifest,
    to_json,
    write_manifest,
)
from pipeline.images.statistics import Statistics
from pipeline.storage.open import open_store

MANIFEST = Manifest(
    format=2,
    image=ImageFormat(256, "square", 95),
    classes=(ClassInfo("n01440764", "tench"), ClassInfo("n02", 'été "quoted"')),
    label_width=4,
    splits={
        "train": (
            Shard("train/train-000000.tar", 3, 10240, "a" * 64),
            Shard("train/train-000001.tar", 4, 20480, "b" * 64),
        ),
        "val": (Shard("val/val-000000.tar", 2, 10240, "c" * 64),),
    },
    statistics=Statistics(
        pixels=7 * 65536,
        mean=(1 / 3, 0.1, 255.0),
        covariance=((1.0, 0.5, 1e-17), (0.5, 2.0, 0.25), (1e-17, 0.25, 3.0)),
        eigenvalues=(3.1, 2.1, 0.0),
        eigenvectors=((1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0)),
        measured_on="source",
    ),
    seed=2**62,
    source=SourceInfo("class-folders", "d" * 64),
    settings={"val_fraction": None, "shard_samples": 3, "max_megapixels": 100.0},
    versions={"numpy": "2.0"},
)


def raw():
    return json.loads(to_json(MANIFEST))


def test_the_file_is_plain_json_with_the_documented_fields(tmp_path):
    write_manifest(tmp_path, MANIFEST)
    text = (tmp_path / "manifest.json").read_text("utf-8")
    found = json.loads(text)
    assert list(found) == [
        "format",
        "image",
        "classes",
        "label_width",
        "splits",
        "statistics",
        "seed",
        "source",
        "settings",
        "versions",
        "mean_image_sha256",
        "duplicates",
    ]
    assert found["image"] == {"size": 256, "mode": "square", "quality": 95, "subsampling": "4:2:0"}
    assert found["classes"][0] == {"id": "n01440764", "name": "tench"}
    assert found["splits"]["train"][1] == {
        "name": "train/train-000001.tar",
        "samples": 4,
        "bytes": 20480,
        "sha256": "b" * 64,
    }
    assert found["statistics"]["mean"] == [1 / 3, 0.1, 255.0]
    assert text.startswith('{\n "format": 2,\n')
    assert text.endswith("}\n")


def test_adopted_tars_have_unknown_encoding_and_are_recognized(tmp_path):
    image = ImageFormat(256, "original", None, None)
    adopted = dataclasses.replace(MANIFEST, image=image, source=SourceInfo(ADOPTED, "d" * 64))
    write_manifest(tmp_path, adopted)
    found = read_manifest(tmp_path)
    assert found == adopted
    assert found.adopted
    assert not MANIFEST.adopted
    stored = json.loads((tmp_path / FILE_NAME).read_text())
    assert stored["image"] == {"size": 256, "mode": "original", "quality": None, "subsampling": None}
    assert stored["source"]["layout"] == "adopted"


def test_a_manifest_is_read_by_path_by_text_and_by_store(tmp_path):
    write_manifest(tmp_path, MANIFEST)
    for root in (tmp_path, str(tmp_path), f"file://{tmp_path}", open_store(tmp_path)):
        assert read_manifest(root) == MANIFEST
        assert to_json(read_manifest(root)) == to_json(MANIFEST)


def test_samples():
    assert (MANIFEST.samples("train"), MANIFEST.samples("val"), MANIFEST.samples("test")) == (7, 2, 0)


def test_no_dataset_and_an_unfinished_one(tmp_path):
    for folder in (tmp_path, tmp_path / "nowhere"):
        refused(lambda folder=folder: read_manifest(folder), f"{folder}: not a prepared dataset ")
    (tmp_path / ".work").mkdir()
    refused(lambda: read_manifest(tmp_path), f"{tmp_path}: preparation is unfinished", "run the same")


OTHERS = [raw() | {"format": version, "image": "changed since"} for version in (1, 3, "2", None)]


@pytest.mark.parametrize("found", [*OTHERS, {}, [], "manifest", None])
def test_another_format_version_and_other_json(tmp_path, found):
    (tmp_path / FILE_NAME).write_text(json.dumps(found))
    version = found.get("format") if isinstance(found, dict) else None
    refused(
        lambda: read_manifest(tmp_path),
        f"format version {version!r}, but this release reads 2",
        "`alexnet-prep",
    )


@pytest.mark.parametrize(
    ("layout", "remedy"),
    [
        ("images", "prepare the source again with `alexnet-prep shard`"),
        (ADOPTED, "with `alexnet-prep stats`"),
    ],
)
def test_an_earlier_format_names_the_way_on(tmp_path, layout, remedy):
    earlier = raw() | {"format": 1, "source": {"layout": layout, "fingerprint": "x"}}
    (tmp_path / FILE_NAME).write_text(json.dumps(earlier))
    refused(lambda: read_manifest(tmp_path), f"{tmp_path}/{FILE_NAME}: format version 1", remedy)


@pytest.mark.parametrize(
    "data",
    [b"", b"{", to_json(MANIFEST)[:-20], to_json(MANIFEST).replace(b"tench", b"\xff\xfe"), bytes(100)],
)
def test_damaged_json(tmp_path, data):
    (tmp_path / FILE_NAME).write_bytes(data)
    refused(lambda: read_manifest(tmp_path), "manifest.json: damaged ", "prepare the dataset again")


OUTSIDE = [
    "/etc/a.tar",
    "../a.tar",
    "train/../../a.tar",
    "./a.tar",
    "train//a.tar",
    "a\0b.tar",
    "c:a.tar",
    "a\\b.tar",
]


@pytest.mark.parametrize("name", [*OUTSIDE, "", "train/a.zip"])
def test_shards_outside_the_folder_are_refused_by_whoever_reads_it(tmp_path, name):
    change = raw()
    change["splits"]["val"][0]["name"] = name
    (tmp_path / FILE_NAME).write_text(json.dumps(change))
    for call in (read_manifest, Dataset.open, verify):
        refused(lambda call=call: call(tmp_path), f"{name!r} is no name of a tar below this folder")


OPTIONAL = {"format", "mean_image_sha256", "duplicates"}


@pytest.mark.parametrize("field", [name for name in raw() if name not in OPTIONAL])
def test_missing_and_mistyped_fields(tmp_path, field):
    unknown = [raw() | {field: raw()["image"] | {"mode": "Square"}}] if field == "image" else []
    for broken in ({k: v for k, v in raw().items() if k != field}, raw() | {field: 1.5}, *unknown):
        (tmp_path / FILE_NAME).write_text(json.dumps(broken))
        refused(lambda: read_manifest(tmp_path), "damaged ", field)
