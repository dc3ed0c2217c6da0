import pytest
from helpers.folders import flat, place, refused
from helpers.imagenet_files import (
    contents,
    in_tree,
    named,
    tar_bytes,
    val_labels,
    write_archives,
    write_devkit,
    write_mapping,
    write_solution,
)
from helpers.source_layouts import zip_bytes

from pipeline.dataset.manifest import ClassInfo
from pipeline.sources.base import Container, SourceOptions
from pipeline.sources.detection import read_source

pytestmark = pytest.mark.usefixtures("scipy_once")

TRAIN, VAL = "ILSVRC2012_img_train.tar", "ILSVRC2012_img_val.tar"
TRAIN_MD5, VAL_MD5 = "1d675b47d978889d74fa0da5fadfb00e", "29b22e2961454d5413ddabcf34fc5622"
KIT = "ILSVRC2012_devkit_t12.tar.gz"


@pytest.fixture
def root(tmp_path, tree):
    """ImageNet's archives with a devkit beside them."""
    return write_archives(tmp_path / "archives", tree)


# ImageNet's archives


def test_places_in_the_outer_archive(root, tree):
    source = read_source(root)
    assert source.containers == tuple(Container(name, (root / name).stat().st_size) for name in (TRAIN, VAL))
    first = source.splits["train"][0]
    assert (first.path, first.label, first.container) == ("n01440764.tar/n01440764_42.JPEG", 0, 0)
    assert {(s.path, s.container) for s in source.splits["val"]} == {
        (f"{stem}.JPEG", 1) for stem in val_labels(tree)
    }
    assert source.left_out.rows() == []


def test_names_come_from_the_mapping_else_from_the_devkit_else_they_are_wnids(root, tree):
    wnids = ("n01440764", "n01443537", "n02105855")
    assert read_source(root).classes == tuple(ClassInfo(wnid, named(wnid)) for wnid in wnids)
    place(root / "LOC_synset_mapping.txt", b"n01440764 tench\n")
    assert [c.name for c in read_source(root).classes] == ["tench", *wnids[1:]]
    (root / "LOC_synset_mapping.txt").unlink()
    (root / KIT).unlink()
    write_solution(root, tree)
    assert [c.name for c in read_source(root).classes] == list(wnids)


def test_training_alone_needs_no_labels(root):
    (root / VAL).unlink()
    assert read_source(root).classes[0].name == named("n01440764")
    (root / KIT).unlink()
    source = read_source(root)
    assert list(source.splits) == ["train"]
    assert len(source.containers) == 1
    split = read_source(root, SourceOptions(val_fraction=0.4)).splits
    assert [len(split["train"]), len(split["val"])] == [6, 3]
    assert read_source(root / TRAIN).splits == source.splits  # an archive is a source of its own


def test_dogs_of_task_3_and_archives_without_images_are_left_out(root, tree):
    inner = tar_bytes([("n01440764_99.JPEG", b"dog")])
    place(root / "ILSVRC2012_img_train_t3.tar", tar_bytes([("n01440764.tar", inner)]))
    place(root / "ILSVRC2012_bbox_train_v2.tar.gz", tar_bytes([("n01440764/1.xml", b"<a/>")], "w:gz"))
    source = read_source(root)
    assert len(source.splits["train"]) == 9
    assert {row.path for row in source.left_out.rows()} == {
        "ILSVRC2012_img_train_t3.tar",
        "ILSVRC2012_bbox_train_v2.tar.gz",
        "ILSVRC2012_bbox_train_v2.tar.gz/n01440764/1.xml",
    }


def test_labels_that_agree_and_labels_that_do_not(root, tree, tmp_path):
    write_solution(root, tree)
    assert contents(read_source(root), tmp_path) == in_tree(tree)
    labels = val_labels(tree)
    wrong = sorted(labels)[2:4]
    write_solution(root, tree, labels | dict.fromkeys(wrong, "n99999999"))
    message = f"{wrong[0]} is {labels[wrong[0]]} in the one and n99999999 in the other;"
    refused(lambda: read_source(root), "LOC_val_solution.csv disagree: ", message)


def test_a_devkit_of_other_classes(root, tree):
    labels = dict.fromkeys(val_labels(tree), "n01440764")
    write_devkit(root, tree, classes=["n01440764", "n09999999"], labels=labels)
    refused(
        lambda: read_source(root), f"{KIT} does not match", "it lacks n01443537 and 1 more of its classes;"
    )


def test_a_mapping_file_does_not_hide_a_damaged_devkit(root, tree):
    write_mapping(root, tree)
    place(root / KIT, b"junk")
    refused(lambda: read_source(root), f"{KIT}: cannot be unpacked")


# Any archive


@pytest.mark.parametrize("archive", ["set.tar", "set.zip"])
def test_debris_in_archives_is_no_image_and_no_class(tmp_path, archive):
    debris = [
        "ant/@eaDir/1.jpg/SYNOPHOTO_THUMB_S.jpg",
        "ant/._1.jpg",
        "top/__MACOSX/ant/1.jpg",
        "#recycle/1.jpg",
        "lost+found/1.jpg",
        "ant/Thumbs.db",
        ".git/x/1.jpg",
    ]
    members = [(name, b"x") for name in ("ant/1.jpg", "./bee/1.jpg", *debris)]
    place(tmp_path / archive, (tar_bytes if archive.endswith("tar") else zip_bytes)(members))
    source = read_source(tmp_path)
    assert [s.path for s in source.splits["train"]] == ["ant/1.jpg", "bee/1.jpg"]
    assert {(row.path, row.reason) for row in source.left_out.rows()} == {
        (f"{archive}/{name}", "made by a system or tool") for name in debris
    }


def test_other_members_are_left_out(tmp_path):
    ant = tar_bytes([("./1.JPEG", b"1"), ("notes.txt", b""), ("._1.JPEG", b"m"), ("sub/2.JPEG", b"2")])
    bee = tar_bytes([("3.JPEG", b"3")])
    outer = [("ant.tar", ant), ("./bee.tar", bee), ("README", b"x"), ("._ant.tar", b"m")]
    place(tmp_path / "set.tar", tar_bytes(outer))
    source = read_source(tmp_path)
    assert [c.id for c in source.classes] == ["ant", "bee"]
    assert [(s.path, s.label) for s in source.splits["train"]] == [
        ("ant.tar/1.JPEG", 0),
        ("ant.tar/sub/2.JPEG", 0),
        ("bee.tar/3.JPEG", 1),
    ]
    assert {row.path for row in source.left_out.rows()} == {
        f"set.tar/{name}" for name in ("README", "._ant.tar", "ant.tar/notes.txt", "ant.tar/._1.JPEG")
    }


def test_parts_of_one_set_are_one(tmp_path):
    for number in (1, 2):
        place(
            tmp_path / f"part{number}.tar", tar_bytes([(f"{c}/{number}.jpg", b"x") for c in ("ant", "bee")])
        )
    source = read_source(tmp_path)
    assert [c.id for c in source.classes] == ["ant", "bee"]
    assert len(source.splits["train"]) == 4


@pytest.mark.parametrize(
    ("name", "keep", "message", "md5"),
    [
        (TRAIN, -11000, "member n02105855.tar needs", TRAIN_MD5),
        (VAL, 1000, "the end mark is missing", VAL_MD5),
    ],
)
def test_a_truncated_archive(root, name, keep, message, md5):
    data = (root / name).read_bytes()[:keep]
    place(root / name, data)
    refused(lambda: read_source(root), f"{root / name}: truncated at offset {len(data):,}: {message}", md5)


def test_all_damaged_archives_are_named(tmp_path):
    for name in ("ant", "bee", "cat"):
        data = tar_bytes([(f"{name}_1.jpg", b"x" * 2000)])
        place(tmp_path / f"{name}.tar", data[:1000] if name != "bee" else data)
    refused(lambda: read_source(tmp_path), "ant.tar: truncated at", "and 1 more:", "cat.tar: truncated")


ONE = tar_bytes([("n01440764_1.JPEG", b"1")])


@pytest.mark.parametrize(
    ("members", "message"),
    [
        (
            [("n01440764.tar", ONE), ("n01443537.tar", b"<html>" * 500)],
            f"(in n01443537.tar): damaged at offset {512 + len(ONE) + 512:,}: no tar header",
        ),
        ([("n01440764.tar", ONE)] * 2, f"n01440764.tar at offset {1024 + len(ONE):,} is there twice"),
    ],
)
def test_damage_inside_of_a_tar(root, members, message):
    place(root / TRAIN, tar_bytes(members))
    refused(lambda: read_source(root), message)


def test_an_archive_beside_what_was_unpacked_from_it_is_refused(tmp_path):
    flat(tmp_path, ant=1, bee=1)
    place(tmp_path / "tree.tar", tar_bytes([("ant/ant_00.jpg", b"a"), ("bee/bee_00.jpg", b"b")]))
    refused(lambda: read_source(tmp_path), "the class ant is both in", "tree.tar", "--splits train=PATH")
    found = read_source(tmp_path, SourceOptions(splits={"train": "tree.tar"}))
    assert [s.container for s in found.splits["train"]] == [0, 0]


@pytest.mark.parametrize("damage", [lambda data: data[:100], lambda data: b"PK" + bytes(100)])
def test_a_damaged_zip(tmp_path, damage):
    path = place(tmp_path / "set.zip", damage(zip_bytes([("ant/1.jpg", b"x" * 500)])))
    refused(lambda: read_source(tmp_path), f"{path}: no complete zip file (")
