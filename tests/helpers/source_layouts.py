"""Writers of the layouts that people have, each from a tree of class folders {train,val}/WNID/*.JPEG."""

import zipfile
from functools import partial

from helpers.folders import place
from helpers.hub_files import as_parquet, as_webdataset, hub_name
from helpers.imagenet_files import (
    class_ids,
    folder_tar,
    tar_bytes,
    write_archives,
    write_devkit,
    write_folders,
    write_kaggle,
    write_mapping,
    write_solution,
)

TRAIN, VAL = "ILSVRC2012_img_train.tar", "ILSVRC2012_img_val.tar"


def _copy(root, paths, name_of):
    for path in paths:
        place(root / name_of(path), path.read_bytes())


def _class_tars(folder, tree):
    for wnid in class_ids(tree):
        place(folder / f"{wnid}.tar", folder_tar((tree / "train" / wnid).iterdir()))


def _folders(root, tree, split, name):
    _copy(root, tree.glob(f"{split}/*/*"), lambda path: f"{name}/{path.parent.name}/{path.name}")


def _flat(root, tree, split, name):
    _copy(root, tree.glob(f"{split}/*/*"), lambda path: f"{name}/{path.name}")


def _named_splits(root, tree, train, val):
    _folders(root, tree, "train", train)
    _folders(root, tree, "val", val)


def _train_folders_val_tar(root, tree):
    _folders(root, tree, "train", "train")
    place(root / VAL, folder_tar(tree.glob("val/*/*")))
    write_devkit(root, tree)


def _train_tar(root, tree, val):
    write_archives(root, tree)
    (root / VAL).unlink()
    val(root, tree, "val", "val")


def _class_tars_beside(root, tree, folder, val):
    _class_tars(root / folder, tree)
    val(root, tree)


def _val_tar(root, tree):
    place(root / VAL, folder_tar(tree.glob("val/*/*")))
    write_solution(root, tree)


def _val_flat(root, tree):
    _flat(root, tree, "val", "val")
    write_devkit(root, tree, extracted=True)


def _class_folder_members(tree, split):
    return [(f"{p.parent.name}/{p.name}", p.read_bytes()) for p in sorted(tree.glob(f"{split}/*/*"))]


def _one_archive(root, tree, name, mode="w", inside="images/"):
    members = [
        (f"{inside}{split}/{name}", data)
        for split in ("train", "val")
        for name, data in _class_folder_members(tree, split)
    ]
    place(root / name, tar_bytes(members, mode) if "tar" in name or "tgz" in name else zip_bytes(members))


def _archive_a_split(root, tree, suffix, mode):
    for split in ("train", "val"):
        members = _class_folder_members(tree, split)
        place(root / f"{split}{suffix}", zip_bytes(members) if suffix == ".zip" else tar_bytes(members, mode))


def zip_bytes(members, compression=zipfile.ZIP_DEFLATED):
    """A zip of (name, bytes) members."""
    import io

    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", compression) as archive:
        for name, data in members:
            archive.writestr(name, data)
    return file.getvalue()


def _hub_flat(root, tree, packed):
    for split, word in (("train", "train"), ("val", "validation")):
        members = [(hub_name(p, p.parent.name), p.read_bytes()) for p in sorted(tree.glob(f"{split}/*/*"))]
        if packed:
            place(root / f"{word}_images.tar.gz", tar_bytes(members, "w:gz"))
        else:
            for name, data in members:
                place(root / word / name, data)


def _tiny_imagenet(root, tree):
    """Tiny ImageNet as it unpacks: WNID/images/ for training, annotations for validation."""
    root = root / "tiny-imagenet-200"
    _copy(root, tree.glob("train/*/*"), lambda path: f"train/{path.parent.name}/images/{path.name}")
    _flat(root, tree, "val", "val/images")
    rows = [f"{p.name}\t{p.parent.name}\t0\t0\t62\t62\n" for p in sorted(tree.glob("val/*/*"))]
    place(root / "val" / "val_annotations.txt", "".join(rows).encode())
    for wnid in class_ids(tree):
        place(root / "train" / wnid / f"{wnid}_boxes.txt", b"box")
    place(root / "wnids.txt", "\n".join(reversed(class_ids(tree))).encode())
    place(root / "test" / "images" / "test_0.JPEG", b"unlabeled")


def _img2dataset(root, tree):
    as_webdataset(tree, root)
    as_table = as_parquet  # the metadata that img2dataset writes beside its tars have no images
    del as_table
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.table({"url": ["http://a"], "key": ["0"]}), root / "imagenet-train-000000.parquet")


def _labels_behind_images(root, tree):
    """Tars of all images, then all labels; and a tar of images beside one of labels."""
    classes = class_ids(tree)
    for split in ("train", "val"):
        paths = sorted(tree.glob(f"{split}/*/*"))
        images = [(f"{p.stem}.jpg", p.read_bytes()) for p in paths]
        labels = [(f"{p.stem}.cls", f"{classes.index(p.parent.name)}.0".encode()) for p in paths]
        if split == "train":
            place(root / "train.tar", tar_bytes(images + labels))
        else:
            place(root / "val-images.tar", tar_bytes(images))
            place(root / "val-labels.tar", tar_bytes(labels))


def _table(root, tree):
    """Flat images of meaningless folders; nothing but a table says the classes."""
    rows = ["image,species"]
    for split in ("train", "val"):
        _flat(root, tree, split, f"{split}/photos")
        rows += [f"{split}/photos/{p.name},{p.parent.name}" for p in tree.glob(f"{split}/*/*")]
    place(root / "species.csv", "\n".join(rows).encode())


def _debris(root, tree):
    write_folders(root, tree)
    first = next(tree.glob("train/*/*"))
    for name in (
        "train/.DS_Store",
        "lost+found/x.jpg",
        f"train/{first.parent.name}/@eaDir/{first.name}/SYNOPHOTO_THUMB_S.jpg",
        f"train/{first.parent.name}/Thumbs.db",
        "train/.ipynb_checkpoints/a.jpg",
        f"train/{first.parent.name}/._{first.name}",
        "__MACOSX/train/a/1.jpg",
        "#recycle/a.jpg",
        "$RECYCLE.BIN/a.jpg",
        ".git/a.jpg",
        "desktop.ini",
    ):
        place(root / name, first.read_bytes())
    (root / "train" / "empty").mkdir()


WRITERS = {
    "folders": write_folders,
    "folders Train, Validation": partial(_named_splits, train="Train", val="Validation"),
    "folders training, dev": partial(_named_splits, train="training", val="dev"),
    "folders TRAIN, valid": partial(_named_splits, train="TRAIN", val="valid"),
    "folders below images": partial(_named_splits, train="images/train", val="images/val"),
    "kaggle": write_kaggle,
    "archives": write_archives,
    "archives, extracted devkit": partial(write_archives, labels="extracted"),
    "archives, CSV": partial(write_archives, labels="csv"),
    "train folders, val tar": _train_folders_val_tar,
    "train tar, val folders": partial(_train_tar, val=_folders),
    "train tar, flat val": partial(_train_tar, val=_flat),
    "class tars in train, val tar": partial(_class_tars_beside, folder="train", val=_val_tar),
    "class tars in train, flat val": partial(_class_tars_beside, folder="train", val=_val_flat),
    "class tars in root, val tar": partial(_class_tars_beside, folder=".", val=_val_tar),
    "images.tar": partial(_one_archive, name="images.tar"),
    "images.tar.gz": partial(_one_archive, name="images.tar.gz", mode="w:gz", inside=""),
    "images.tar.xz": partial(_one_archive, name="images.tar.xz", mode="w:xz"),
    "images.zip": partial(_one_archive, name="images.zip"),
    "train.tar, val.tar": partial(_archive_a_split, suffix=".tar", mode="w"),
    "train.tgz, val.tgz": partial(_archive_a_split, suffix=".tgz", mode="w:gz"),
    "train.zip, val.zip": partial(_archive_a_split, suffix=".zip", mode=""),
    "hub's flat tars": partial(_hub_flat, packed=True),
    "hub's flat files": partial(_hub_flat, packed=False),
    "tiny imagenet": _tiny_imagenet,
    "debris": _debris,
    "parquet": lambda root, tree: as_parquet(tree, root),
    "webdataset": lambda root, tree: as_webdataset(tree, root, per_tar=3),
    "webdataset, .tgz": lambda root, tree: as_webdataset(tree, root, suffix=".tgz"),
    "webdataset, JSON, .tar.gz": lambda root, tree: as_webdataset(tree, root, "json", suffix=".tar.gz"),
    "img2dataset": _img2dataset,
    "webdataset, labels behind": _labels_behind_images,
}
"""Name of a layout → function (root, tree) that writes it; docs/formats.md lists them."""
TABLE = _table


def write_layout(name, root, tree):
    """Write a layout with the mapping file of class names."""
    root.mkdir(parents=True, exist_ok=True)
    WRITERS[name](root, tree)
    write_mapping(root, tree)
    return root
