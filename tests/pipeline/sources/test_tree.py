"""What is part of a source, and what is left out and reported."""

import shutil
import sys
import tarfile
from functools import partial

import pytest
from helpers.folders import draw_image, encoded, flat, place, refused, write_source
from helpers.inline import INLINE
from PIL import Image, features

from pipeline import Options, prepare, read_report, read_source
from pipeline.errors import RunError
from pipeline.sources.base import IMAGE_SUFFIXES


def left_out(root):
    return {row.path: row.reason for row in read_source(root).left_out.rows()}


@pytest.mark.parametrize(
    "name",
    [
        ".DS_Store",
        "train/ant/._ant_00.jpg",
        "train/ant/Thumbs.db",
        "train/ant/@eaDir/ant_00.jpg/SYNOPHOTO_THUMB_S.jpg",
        "train/.ipynb_checkpoints/",
        "lost+found/1.jpg",
        "__MACOSX/train/ant/1.jpg",
        "#recycle/1.jpg",
        "$RECYCLE.BIN/1.jpg",
        ".git/",
    ],
)
def test_what_systems_and_tools_leave_behind_is_left_out(tmp_path, name):
    flat(tmp_path / "train", ant=2, bee=2)
    place(tmp_path / f"{name}x.jpg" if name.endswith("/") else tmp_path / name)
    assert len(read_source(tmp_path).splits["train"]) == 4
    assert left_out(tmp_path) == {name: "made by a system or tool"}


def test_folders_without_images_are_no_classes(tmp_path):
    flat(tmp_path / "train", ant=1, bee=1)
    place(tmp_path / "train" / "cat" / "notes.txt")
    (tmp_path / "train" / "dog" / "deep").mkdir(parents=True)
    assert [c.id for c in read_source(tmp_path).classes] == ["ant", "bee"]
    assert left_out(tmp_path) == {
        "train/cat/notes.txt": "not an image",
        "train/dog/": "a folder without files",
    }


def test_many_files_of_a_folder_are_one_row(tmp_path):
    flat(tmp_path, ant=1, bee=1)
    for number in range(1001):
        place(tmp_path / "boxes" / f"{number}.xml")
    assert left_out(tmp_path) == {"boxes/": "not an image (1,001 files)"}
    assert read_source(tmp_path).left_out.notes() == [
        "left out 1,001 files: not an image (such as boxes/0.xml)"
    ]


def test_datasets_and_runs_inside_of_a_source_are_no_part_of_it(tmp_path, tiny_dataset):
    flat(tmp_path, ant=1, bee=1)
    place(tmp_path / "ant" / "run.json", b"{}")  # of another program
    before = read_source(tmp_path).fingerprint()
    shutil.copytree(tiny_dataset.root, tmp_path / "shards")
    place(tmp_path / "unfinished" / ".work" / "plan.json")
    place(tmp_path / "unfinished" / "train" / "1.jpg")
    place(tmp_path / "runs" / "a" / "run.json", b'{"recipe": "demo", "dataset_sha256": "", "machine": {}}')
    place(tmp_path / "runs" / "a" / "kernels.png")
    assert read_source(tmp_path).fingerprint() == before
    found = left_out(tmp_path)
    assert found.pop("ant/run.json") == "not an image"
    assert set(found.values()) == {"a dataset or run of this toolkit"}
    assert not any(".work" in path for path in left_out(tmp_path))  # as the first of a job's slices sees OUT


FIRST = "train/ant/of_0.Avif"
LINKS = {"val/bee/soft.jpeg": f"../../{FIRST}", "val/bee/soft_to_soft.tif": "soft.jpeg"}
DEAD = {"train/bee/gone.jpg": "nowhere", "train/bee/circle.jpg": "circle.jpg"}


def write_files_of_any_kind(folder):
    """Write class folders with any content under any suffix, links, and files that are bad.

    Returns:
        Path of each file that the report shall name → the start of its reason.
    """
    write_source(folder, train=2, val=2, classes=("ant", "bee"))
    reasons = {}
    kinds = [
        "PNG",
        "GIF",
        "JPEG",
        "WEBP",
        "BMP",
        "TIFF",
        "PPM",
        *(["AVIF"] if features.check("avif") else []),
    ]
    for number, suffix in enumerate(sorted(IMAGE_SUFFIXES)):
        kind = kinds[number % len(kinds)]
        name = f"train/ant/of_{number}{suffix.upper() if number % 2 else suffix.title()}"
        frames = {"save_all": True, "append_images": [Image.new("RGB", (48, 48))]} if kind == "GIF" else {}
        place(folder / name, encoded(Image.fromarray(draw_image(90 + number)), kind, **frames))
        reasons |= {} if kind == "JPEG" else {name: f"{kind} ("}
    (folder / "val" / "bee" / "hard.gif").hardlink_to(folder / FIRST)
    for link, target in (LINKS | DEAD).items():
        (folder / link).symlink_to(target)
    place(folder / "train" / "bee" / "empty.bmp", b"")
    place(folder / "train" / "bee" / "phone.heic", b"\0\0\0\x18ftypheic\0\0\0\0mif1heic")
    place(folder / "train" / "bee" / "text.png", b"not an image")
    place(folder / "train" / "bee" / "notes.txt")
    return (
        reasons
        | dict.fromkeys(["val/bee/hard.gif", *LINKS], "PNG (")
        | {
            "train/bee/empty.bmp": "empty file",
            "train/bee/phone.heic": "reading HEIC needs the package pillow-heif, which is not installed",
            "train/bee/text.png": "not an image in a known format",
            "train/bee/notes.txt": "not an image",
        }
    )


@pytest.mark.parametrize("packed", ["", "all.tar", "all.tar.gz"])
def test_files_are_taken_by_content_and_what_cannot_be_read_is_a_row_of_the_report(
    tmp_path, monkeypatch, packed
):
    """Links are read where they lead to a file or member; `max_bad` counts the images among the rest."""
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    source = tmp_path / "source"
    reasons = write_files_of_any_kind(tmp_path / "files" if packed else source)
    dead = ["unreadable file: No such file", "unreadable file: Too many levels of symbolic links"]
    if packed:
        place(source / packed, b"").unlink()
        with tarfile.open(source / packed, "w:gz" if packed.endswith("gz") else "w") as tar:
            tar.add(tmp_path / "files", "")
        dead = ["unreadable file: a link to what is not in the archive"] * 2
    reasons |= dict(zip(DEAD, dead, strict=True))
    call = partial(prepare, read_source(source), tmp_path / "out", Options(size=48), executor=INLINE)
    images = 8 + len(IMAGE_SUFFIXES) + 3 + 5
    refused(lambda: call(max_bad=4 / images), f"5 of {images} images", error=RunError)
    manifest = call(max_bad=5 / images)
    assert (manifest.samples("train"), manifest.samples("val")) == (4 + len(IMAGE_SUFFIXES), 4 + 3)
    rows = {row["path"]: row for row in read_report(tmp_path / "out") if row["action"] != "kept"}
    expected = {f"{packed}/{path}".lstrip("/"): reason for path, reason in reasons.items()}
    assert rows.keys() == expected.keys()
    for path, reason in expected.items():
        assert rows[path]["reason"].startswith(reason)
    assert manifest.duplicates.in_train == {"val": 3}  # the links to a training image
