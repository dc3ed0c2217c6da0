"""Build ImageNet's archives, Kaggle's tree, class folders and devkits from {train,val}/WNID/*.JPEG."""

import functools
import io
import tarfile

import numpy as np
from scipy.io import savemat

from helpers.folders import place
from pipeline.sharding.reader import read_samples
from pipeline.storage.open import open_store

META = "data/meta.mat"
TRUTH = "data/ILSVRC2012_validation_ground_truth.txt"
FIELDS = (
    "ILSVRC2012_ID",
    "WNID",
    "words",
    "gloss",
    "num_children",
    "children",
    "wordnet_height",
    "num_train_images",
)


def sample_tree(root, train=3, val=2, wnids=("n01440764", "n01443537", "n02105855")):
    """Write `root/{train,val}/WNID/*.JPEG` with names as in ImageNet; the files are no images."""
    number = 0
    for wnid in wnids:
        for k in range(train):
            place(root / "train" / wnid / f"{wnid}_{k * 37 + 5}.JPEG", f"{wnid} {k}".encode() * (k * 50 + 1))
        for _ in range(val):
            # Neighboring numbers belong to different classes, as in the real set.
            name = f"ILSVRC2012_val_{(number * 7) % 53 + 1:08d}.JPEG"
            place(root / "val" / wnid / name, f"{wnid} {number}".encode())
            number += 1
    return root


def named(wnid):
    """A class name with a comma, as most classes of ImageNet have."""
    return f"thing {int(wnid[1:])}, Res {wnid}"


def class_ids(tree):
    return sorted(folder.name for folder in (tree / "train").iterdir())


def val_labels(tree):
    """Stem → WNID of the validation images."""
    return {path.stem: path.parent.name for path in sorted(tree.glob("val/*/*.JPEG"))}


def tar_bytes(files, mode="w", pax=None, **options):
    """A tar of (name, bytes) members, each with the PAX headers `pax`."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode=mode, **options) as tar:
        for name, data in files:
            info = tarfile.TarInfo(name)
            info.size, info.pax_headers = len(data), pax or {}
            tar.addfile(info, io.BytesIO(data))
    return file.getvalue()


def folder_tar(paths):
    """A tar of files, named without their folders."""
    return tar_bytes([(path.name, path.read_bytes()) for path in sorted(paths, key=lambda path: path.name)])


def meta_mat(classes, compressed=True):
    """`meta.mat` of {ILSVRC2012_ID: (WNID, words)}, plus one synset that has two of them as children."""
    return _meta_mat(tuple(classes.items()), compressed)


@functools.cache  # the file holds the time, but equal classes shall give equal bytes
def _meta_mat(items, compressed):
    classes = dict(items)
    synsets = np.zeros((len(classes) + 1, 1), dtype=[(field, object) for field in FIELDS])
    for row, (number, (wnid, words)) in enumerate(classes.items()):
        synsets[row, 0] = (float(number), wnid, words, f"what {words} is", 0.0, np.zeros((1, 0)), 0.0, 1300.0)
    children = np.array([list(classes)[:2]], float)
    synsets[-1, 0] = (float(max(classes) + 1), "n00000001", "entity", "it is", 2.0, children, 9.0, 0.0)
    file = io.BytesIO()
    savemat(file, {"synsets": synsets}, do_compression=compressed)
    return file.getvalue()


def devkit_files(tree, classes=None, labels=None, lines=None):
    """(`meta.mat`, ground truth) of the devkit for a tree.

    ILSVRC2012 IDs descend in the order of the sorted WNIDs, so that a test notices if the two are confused.
    Images that the tree lacks have the last class.
    """
    wnids = classes or class_ids(tree)
    ids = {wnid: len(wnids) - index for index, wnid in enumerate(wnids)}
    labels = labels or val_labels(tree)
    count = lines or max(int(stem.rpartition("_")[2]) for stem in labels)
    numbers = [ids[labels.get(f"ILSVRC2012_val_{i:08d}", wnids[-1])] for i in range(1, count + 1)]
    truth = "".join(f"{number}\n" for number in numbers).encode()
    return meta_mat({number: (wnid, named(wnid)) for wnid, number in ids.items()}), truth


def write_devkit(root, tree, extracted=False, **options):
    """Write `root/ILSVRC2012_devkit_t12.tar.gz`, or the folder; `options` go to `devkit_files`."""
    meta, truth = devkit_files(tree, **options)
    folder = "ILSVRC2012_devkit_t12"
    if extracted:
        place(root / folder / META, meta)
        place(root / folder / TRUTH, truth)
        return root / folder
    files = [(f"{folder}/readme.txt", b"hello"), (f"{folder}/{META}", meta), (f"{folder}/{TRUTH}", truth)]
    return place(root / f"{folder}.tar.gz", tar_bytes(files, "w:gz"))


def write_solution(root, tree, labels=None):
    """Write Kaggle's `root/LOC_val_solution.csv`, with bounding boxes after the labels."""
    rows = [f"{stem},{wnid} 85 1 499 272 \n" for stem, wnid in reversed((labels or val_labels(tree)).items())]
    return place(root / "LOC_val_solution.csv", ("ImageId,PredictionString\n" + "".join(rows)).encode())


def write_mapping(root, tree):
    rows = "".join(f"{wnid} {named(wnid)}\n" for wnid in class_ids(tree))
    return place(root / "LOC_synset_mapping.txt", rows.encode())


def write_archives(root, tree, labels="devkit"):
    """The archives as downloaded, with `labels` "devkit", "extracted", "csv" or "" beside them."""
    inner = [(f"{wnid}.tar", folder_tar((tree / "train" / wnid).iterdir())) for wnid in class_ids(tree)]
    place(root / "ILSVRC2012_img_train.tar", tar_bytes(inner))
    place(root / "ILSVRC2012_img_val.tar", folder_tar(tree.glob("val/*/*.JPEG")))
    if labels in ("devkit", "extracted"):
        write_devkit(root, tree, extracted=labels == "extracted")
    if labels == "csv":
        write_solution(root, tree)
    return root


def write_kaggle(root, tree, base="ILSVRC/Data/CLS-LOC"):
    """Kaggle's tree, with its text files at the root."""
    for path in sorted(tree.glob("train/*/*.JPEG")):
        place(root / base / "train" / path.parent.name / path.name, path.read_bytes())
    for path in sorted(tree.glob("val/*/*.JPEG")):
        place(root / base / "val" / path.name, path.read_bytes())
    place(root / base / "test" / "ILSVRC2012_test_00000001.JPEG", b"unlabeled")
    write_mapping(root, tree)
    write_solution(root, tree)
    return root


def write_folders(root, tree):
    """Write class folders and Kaggle's mapping file of class names."""
    for path in sorted(tree.glob("*/*/*.JPEG")):
        place(root / path.relative_to(tree), path.read_bytes())
    write_mapping(root, tree)
    return root


def in_tree(tree):
    """Split → {(stem, WNID, bytes)} of a tree of class folders."""
    return {
        split: {(p.stem, p.parent.name, p.read_bytes()) for p in tree.glob(f"{split}/*/*")}
        for split in ("train", "val")
    }


def contents(source, scratch):
    """Split → {(key, WNID, bytes in the source)}; `scratch` is a folder for what must be spooled."""
    store = open_store(source.root)
    return {
        split: {
            (s.key, source.classes[s.label].id, data)
            for s, data in zip(samples, read_samples(store, source.containers, scratch, samples), strict=True)
        }
        for split, samples in source.splits.items()
    }
