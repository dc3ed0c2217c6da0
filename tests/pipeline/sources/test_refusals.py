"""Every refusal names what the source was read as, what is missing, an example, and the way on."""

import io
import tarfile
import unicodedata
import zipfile

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from helpers.folders import flat, place, refused
from helpers.imagenet_files import tar_bytes, write_archives, write_kaggle
from helpers.source_layouts import zip_bytes

from pipeline import read_source
from pipeline.sources.base import SourceOptions


def samples(*labels, ext="cls"):
    """Members of a WebDataset tar: an image and a label, or None, for each label."""
    for number, label in enumerate(labels):
        yield f"{number}.jpg", b"image"
        if label is not None:
            yield f"{number}.{ext}", label.encode()


def webdataset(root, *labels, ext="cls"):
    place(root / "train.tar", tar_bytes(list(samples(*labels, ext=ext))))


def nothing(root, tree):
    place(root / "backup" / "images.rar")


def unfinished(root, tree):
    flat(root / "train", ant=1, bee=1)
    place(root / ".work" / "plan.json", b"{}")


def one_class(root, tree):
    flat(root / "photos", ant=3)


def one_image(root, tree):
    place(root)


def a_document(root, tree):
    place(root, b"text")


def missing(root, tree):
    root.rmdir()


def split_twice(root, tree):
    for name in ("val", "validation", "train"):
        flat(root / name, ant=1, bee=1)


def two_kinds(root, tree):
    flat(root / "train", ant=1, bee=1)
    webdataset(root, "0", "1")


def class_called_train(root, tree):
    flat(root, train=2, bus=3)


def splits_of_other_names(root, tree):
    flat(root / "photos", ant=2, bee=2)
    flat(root / "held", ant=1, bee=1)


def unpacked_beside_itself(root, tree):
    flat(root / "train", n01440764=1, n01443537=1)
    place(root / "train" / "n01440764.tar", tar_bytes([("n01440764_1.JPEG", b"x")]))


def flat_images(root, tree):
    for number in range(3):
        place(root / f"{number}.jpg")


def kaggle_without_labels(root, tree):
    write_kaggle(root, tree)
    (root / "LOC_val_solution.csv").unlink()


def archives_without_labels(root, tree):
    write_archives(root, tree)
    next(root.glob("*devkit*")).unlink()


def stranger_in_val(root, tree):
    flat(root / "train", ant=1, bee=1)
    flat(root / "val", ant=1, wasp=2)


def unlabeled_val_in_a_folder(root, tree):
    flat(root / "train", ant=1, bee=1)
    flat(root / "val", images=2)


def tiny_imagenet_zipped(root, tree):
    names = [f"train/{wnid}/images/{wnid}_0.JPEG" for wnid in ("n01440764", "n01443537")]
    names += ["val/images/val_0.JPEG", "val/val_annotations.txt"]
    place(root / "tiny.zip", zip_bytes([(f"tiny/{name}", b"x") for name in names], zipfile.ZIP_STORED))


def folders(*paths):
    def write(root, tree):
        for path in paths:
            flat(root / path, ant=1, bee=1)

    return write


def wnids_in_parts(root, tree):
    flat(root / "train" / "part1", n01440764=1)
    flat(root / "train" / "part2", n01443537=1)


def tars_beside_folders(root, tree):
    webdataset(root, "0", "1")
    flat(root, ant=1)


def two_spellings(root, tree):
    for form in ("NFC", "NFD"):
        flat(root, **{unicodedata.normalize(form, "café"): 1})


def not_utf8(root, tree):
    flat(root, ant=1, bee=1)
    place(root / "ant" / "\udcff.jpg")


def truncated_tars(root, tree):
    for number in range(6):
        data = tar_bytes(list(samples("0", "1")))
        place(root / f"{number}.tar", data[: 3000 if number % 2 else len(data)])


def truncated_class_tar(root, tree):
    inner = tar_bytes([("n01440764_1.JPEG", b"x" * 2000)])[:2000]
    place(root / "ILSVRC2012_img_train.tar", tar_bytes([("n01440764.tar", inner)]))


def no_zip(root, tree):
    place(root / "train.zip", b"<html>")


def encrypted(root, tree):
    data = bytearray(zip_bytes([("ant/1.jpg", b"x")], zipfile.ZIP_STORED))
    data[data.index(b"PK\1\2") + 8] |= 1
    place(root / "train.zip", bytes(data))


def no_zstandard(root, tree):
    place(root / "images.tar.zst", b"x")


def device(root, tree):
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as tar:
        member = tarfile.TarInfo("ant/1.jpg")
        member.type = tarfile.CHRTYPE
        tar.addfile(member)
    place(root / "images.tar", file.getvalue())


def label_without_image(root, tree):
    place(root / "train.tar", tar_bytes([*samples("0", "1"), ("7.cls", b"1")]))


def labels_in_tars_of_their_own(*tars):
    def write(root, tree):
        for name in tars:
            suffix = "cls" if name.endswith("labels") else "jpg"
            place(root / f"{name}.tar", tar_bytes([(f"{n}.{suffix}", b"1") for n in range(2)]))

    return write


def parquet(root, **columns):
    pq.write_table(pa.table(columns), root / "train.parquet")


def names_contradict_labels(root, tree):
    members = [("n01440764_1.jpg", b"x"), ("n01440764_1.cls", b"0")]
    members += [("n01443537_1.jpg", b"x"), ("n01443537_1.cls", b"0")]
    place(root / "train.tar", tar_bytes(members))


def with_table(text):
    def write(root, tree):
        flat(root / "train", ant=1, bee=1)
        place(root / "t.csv", text)

    return write


def two_of_a_name(*rows, folders=("train", "test")):
    def write(root, tree):
        for folder, suffix in zip(folders, ("jpg", "png"), strict=True):
            place(root / folder / f"1.{suffix}")
        place(root / "t.csv", "\n".join(["path,label", *rows]).encode())

    return write


def own_labels_and_table(root, tree):
    webdataset(root, "0", "1")
    place(root / "t.csv", b"path,label\n0,a\n1,b\n")


def usual(root, tree):
    for split in ("train", "val"):
        flat(root / split, ant=1, bee=1)


TABLE = {"labels": "t.csv"}
REFUSALS = [
    (missing, {}, ["it does not exist", "name the folder"]),
    (one_image, {}, ["it is one image", "name the folder"]),
    (a_document, {}, ["it is a file", "name the folder"]),
    (nothing, {}, ["no images found", "not an image (backup/images.rar)", "expected image files in CLASS/"]),
    (unfinished, {}, ["an unfinished dataset", "name the images that it is made of"]),
    (one_class, {}, ["one class (photos)", "train: 3 images, 1 class folder", "--labels FILE"]),
    (split_twice, {}, ["the split val was found twice: val/ and validation/", "--splits val=FOLDER"]),
    (two_kinds, {}, ["train was found twice: train/ and WebDataset tars", "--layout images, webdataset"]),
    (class_called_train, {}, ["train/ was read as the split train, but bus", "--layout classes", "--splits"]),
    (
        splits_of_other_names,
        {},
        ["photos/ and held/", "(ant, bee)", "--splits train=photos,val=held", "--layout classes"],
    ),
    (
        folders("seg_train", "seg_test", "seg_pred"),
        {},
        [
            "seg_train/ and seg_test/ have names of splits",
            "--splits train=seg_train,val=",
            "--layout classes",
        ],
    ),
    (
        folders("dev/train", "dev/val"),
        {},
        ["dev/train/ and dev/val/ have names of splits", "--splits train=dev/train,val=dev/val", "val=dev"],
    ),
    (
        wnids_in_parts,
        {},
        ["train/part1/ and train/part2/ were read as classes", "n01440764", "one folder", "train=train"],
    ),
    (tars_beside_folders, {}, ["train.tar was read as WebDataset tars", "ant has 1", "--layout webdataset"]),
    (
        unlabeled_val_in_a_folder,
        {},
        ["val/ was read as flat images", "val/images is none of the 2", "images_00.jpg", "--labels FILE"],
    ),
    (tiny_imagenet_zipped, {}, ["tiny.zip/tiny/val/val_annotations.txt is not read", "unpack the archive"]),
    (folders("train/a", "train/b"), {}, ["train/b/ hold folders of the same", "(ant, bee)", "train=train"]),
    (
        unpacked_beside_itself,
        {},
        ["the class n01440764 is both in train/n01440764", "train/n01440764.tar", "remove one"],
    ),
    (flat_images, {}, ["read as flat images", "0.jpg", "no label", "--labels FILE"]),
    (
        kaggle_without_labels,
        {},
        [
            "Data/CLS-LOC/val/ was read as flat images",
            "no labels for its 6",
            "_val_0",
            "LOC_val_solution.csv",
        ],
    ),
    (
        archives_without_labels,
        {},
        ["ILSVRC2012_img_val.tar was read as flat images", "_val_0", "ILSVRC2012_devkit_t12.tar.gz"],
    ),
    (
        stranger_in_val,
        {},
        ["no training images for wasp, but 2 in val", "val/wasp/wasp_00.jpg", "2 class folders", "--classes"],
    ),
    (two_spellings, {}, [r"'cafe\u0301'", r"'caf\xe9'", "one name in two Unicode spellings", "merge"]),
    (not_utf8, {}, [r"\xff.jpg", "is not UTF-8; rename it"]),
    (
        truncated_tars,
        {"max_bad": 0.49},
        [
            "/1.tar: truncated at offset 3,000: the end mark",
            "/3.tar: truncated",
            "/5.tar: truncated",
            "damaged archives: 3 of 6",
            "--max-bad",
        ],
    ),
    (
        truncated_class_tar,
        {},
        ["ILSVRC2012_img_train.tar: (in n01440764.tar): truncated", "n01440764_1.JPEG needs", "its MD5 is"],
    ),
    (no_zip, {}, ["train.zip: no complete zip file", "download it again", "--max-bad"]),
    (encrypted, {}, ["train.zip: ant/1.jpg is encrypted", "unpack the archive"]),
    (no_zstandard, {}, ["images.tar.zst: reading it needs the package zstandard", "pip install"]),
    (device, {}, ["images.tar: member ant/1.jpg at offset 0 is", "a device", "tar --dereference"]),
    (
        lambda root, tree: webdataset(root, "0", "1", None),
        {},
        ["train.tar: 2.jpg has no label; 1 of 3 train images", "add labels or remove"],
    ),
    (label_without_image, {}, ["train.tar: 7 has a label and no image", "add images or remove the labels"]),
    (
        labels_in_tars_of_their_own("train-images", "train-labels", "val-images", "val-labels"),
        {},
        ["val-labels.tar: 0 has no image", "lies in", "train-labels.tar", "one tar"],
    ),
    (
        labels_in_tars_of_their_own("test-images", "train-images", "train-labels"),
        {},
        ["train-images.tar: the label of 0", "or in test-images.tar", "one tar"],
    ),
    *(
        (lambda root, tree, label=label: webdataset(root, label, "2"), {}, [f"0.jpg has the label {label}"])
        for label in ("7.5", "1e3", "nan")
    ),
    (
        lambda root, tree: webdataset(root, '{"label": [1, 2]}', ext="json"),
        {},
        ["train.tar: 0.json has the label [1, 2]; it must be a whole number or a string", "correct"],
    ),
    (
        lambda root, tree: webdataset(root, '{"caption": "an ant"}', ext="json"),
        {},
        ["train.tar was read as flat images, but 0.jpg", "no label", "KEY.cls"],
    ),
    (names_contradict_labels, {}, ["n01440764_1.jpg has label 0", "n01443537_1.jpg label 0", "correct"]),
    (
        lambda root, tree: parquet(root, image=[b"x"], caption=["an ant"]),
        {},
        ["train.parquet: read as Parquet, but it has no column label", "caption (string)", "rename"],
    ),
    (
        lambda root, tree: parquet(root, image=pa.array([{"bytes": None, "path": "1.jpg"}]), label=[0]),
        {},
        ["train.parquet: ", "no column image", "rename"],
    ),
    (own_labels_and_table, TABLE, ["have labels of their own (1 tar with labels", "leave the option out"]),
    (usual, {"labels": "no.csv"}, ["--labels no.csv: no such file, neither in"]),
    (usual, {"path_column": "image"}, ["--path-column names a column", "add --labels FILE"]),
    (
        with_table(b"a.jpg,x\nb.jpg,y\n"),
        TABLE,
        ["which column holds the paths?", "a.jpg, x", "--path-column"],
    ),
    (
        with_table(b"path,label\nz.jpg,x\n"),
        TABLE,
        ["none of its 1 rows names an image of train/", "name paths"],
    ),
    (
        with_table(b"path,label\na.jpg,x|y\nb.jpg,x\nc.jpg,y\n"),
        TABLE,
        ["a.jpg has several labels (x|y)", "one"],
    ),
    *(
        (
            two_of_a_name(row, folders=folders),
            TABLE,
            [*(f"{f}/1." for f in folders), "t.csv: 1", "--splits train=FOLDER"],
        )
        for row, folders in [("1,cat", ("train", "test")), ("1.jpg,cat", ("images", "masks"))]
    ),
    (
        two_of_a_name("a/x/1.jpg,cat", "b/x/1.jpg,dog", folders=("x", "y")),
        TABLE,
        ["x/1.jpg may be a/x/1.jpg or b/x/1.jpg", "the folder above"],
    ),
    (
        with_table(b"path,label\na.jpg,cat|dog\nb.jpg,cat\n"),
        TABLE,
        ["a.jpg has several labels (cat|dog)", "one"],
    ),
    (with_table(b"path,label\na.jpg,7.5\nb.jpg,2\n"), TABLE, ["a.jpg has the label 7.5", "whole numbers"]),
    (usual, {"splits": {"train": "trian"}}, ["train=trian holds no images; images are in train, val"]),
    (usual, {"classes": ("ant", "bea")}, ["--classes: bea is none of the 2 classes", "mean bee?"]),
    (
        usual,
        {"val_fraction": 0.1},
        ["--val-fraction 0.1", "has its own validation images", "leave the option"],
    ),
    (usual, {"layout": "parquet"}, ["no images found; left out", "not read with --layout parquet"]),
]


@pytest.mark.usefixtures("scipy_once")
@pytest.mark.parametrize(
    ("write", "options", "parts"), REFUSALS, ids=[f"{n} {r[0].__name__}" for n, r in enumerate(REFUSALS)]
)
def test_refusals_name_what_was_found_and_the_way_on(tmp_path, tree, write, options, parts):
    root = tmp_path / ("photo.jpg" if write is one_image else "text.doc" if write is a_document else "source")
    if write not in (one_image, a_document):
        root.mkdir()
    write(root, tree)
    refused(lambda: read_source(root, SourceOptions(**options)), *parts)


def test_of_damaged_tars_what_can_be_read_is_read_where_that_is_allowed(tmp_path, tree):
    truncated_tars(tmp_path, tree)
    place(tmp_path / "train.tgz", b"<html>")
    source = read_source(tmp_path, SourceOptions(max_bad=0.6))
    assert len(source.splits["train"]) == 3 * 2 + 3 * 1
    rows = {row.path: (row.reason.partition(": ")[2][:9], row.action) for row in source.left_out.rows()}
    damaged = {f"{number}.tar": ("truncated", "left out") for number in (1, 3, 5)}
    cut = {f"{number}.tar/1.jpg": ("", "left out") for number in (1, 3, 5)}  # its label is lost
    assert rows == damaged | cut | {"train.tgz": ("no comple", "left out")}
