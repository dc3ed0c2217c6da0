"""What is part of a source, and what is left out and reported."""

import shutil

import pytest
from helpers.folders import flat, place, write_source
from helpers.inline import INLINE

from pipeline import Options, prepare, read_report, read_source


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
    before = read_source(tmp_path).fingerprint()
    shutil.copytree(tiny_dataset.root, tmp_path / "shards")
    place(tmp_path / "unfinished" / ".work" / "plan.json")
    place(tmp_path / "unfinished" / "train" / "1.jpg")
    place(tmp_path / "runs" / "a" / "run.json", b"{}")
    place(tmp_path / "runs" / "a" / "kernels.png")
    assert read_source(tmp_path).fingerprint() == before
    assert set(left_out(tmp_path).values()) == {"a dataset or run of this toolkit"}


def test_links_to_nowhere_and_left_out_files_are_rows_of_the_report(tmp_path):
    """They are no reason to end the job: `max_bad` counts the images among them."""
    source = write_source(tmp_path / "source", train=3, val=1)
    link = next((source / "train").iterdir()) / "gone.jpg"
    link.symlink_to("nowhere")
    place(source / "notes.txt")
    prepare(read_source(source), tmp_path / "out", Options(size=48), executor=INLINE, max_bad=0.5)
    rows = {row["path"]: (row["action"], row["reason"]) for row in read_report(tmp_path / "out")}
    assert rows["notes.txt"] == ("left out", "not an image")
    action, reason = rows[link.relative_to(source).as_posix()]
    assert action == "skipped"
    assert "No such file" in reason
