"""Parquet files and WebDataset tars for the tests, written by pyarrow and webdataset themselves."""

import json

import pyarrow as pa
import pyarrow.parquet as pq
import webdataset

IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


def images(tree, split):
    """(path, class, label) of the files `tree/SPLIT/CLASS/*`, sorted; labels count the sorted classes."""
    classes = sorted(folder.name for folder in (tree / "train").iterdir())
    paths = sorted((tree / split).glob("*/*"))
    return [(path, path.parent.name, classes.index(path.parent.name)) for path in paths]


def write_parquet(path, rows, row_group=5, class_label=None):
    """Write rows (bytes, path, label) as Parquet to `path`, as Hugging Face's `datasets` does.

    Args:
        path: file to write.
        rows: bytes, path and label of each image; bytes and path may be None.
        row_group: rows in a row group.
        class_label: names of the labels for the metadata, or None.
    """
    metadata = None
    if class_label is not None:
        label = {"names": list(class_label), "_type": "ClassLabel"}
        features = {"image": {"_type": "Image"}, "label": label}
        metadata = {"huggingface": json.dumps({"info": {"features": features}})}
    images = [None if data is path is None else {"bytes": data, "path": path} for data, path, _ in rows]
    columns = [pa.array(images, IMAGE), pa.array([given for _, _, given in rows])]
    schema = pa.schema([("image", IMAGE), ("label", columns[1].type)], metadata)
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns, schema=schema), path, row_group_size=row_group)
    return path


def hub_name(path, class_id):
    """File name in the hub's ImageNet: STEM_WNID.SUFFIX."""
    return f"{path.stem}_{class_id}{path.suffix}"


def as_parquet(tree, out, name=hub_name, class_label=None):
    """Write `tree/{train,val}/CLASS/*` to `out/data/*.parquet` in the layout of the hub's ImageNet.

    There are two files of training images, one of validation images, and one of a test split without labels.

    Args:
        tree: folder of the splits' class folders.
        out: folder to write to.
        name: function (path, class) → `image.path`.
        class_label: names of the labels for the metadata, or None.
    """
    for split, count, word in (("train", 2, "train"), ("val", 1, "validation")):
        rows = [(path.read_bytes(), name(path, wnid), label) for path, wnid, label in images(tree, split)]
        for part in range(count):
            file = out / "data" / f"{word}-{part:05d}-of-{count:05d}.parquet"
            write_parquet(file, rows[part::count], class_label=class_label)
    rows = [(b"?", f"ILSVRC2012_test_{n:08d}.JPEG", -1) for n in range(1, 4)]
    write_parquet(out / "data" / "test-00000-of-00001.parquet", rows, class_label=class_label)
    return out


def as_webdataset(tree, out, kind="cls", per_tar=20, suffix=".tar"):
    """Write `tree/{train,val}/CLASS/*` to `out/imagenet-SPLIT-*.tar` with webdataset's ShardWriter.

    Args:
        tree: folder of the splits' class folders.
        out: folder to write to.
        kind: member of the label, "cls" (with .jpg) or "json" (with .jpeg).
        per_tar: number of samples per tar.
        suffix: suffix of the tars; ".tar.gz" compresses.
    """
    out.mkdir(parents=True, exist_ok=True)
    for split in ("train", "val"):
        pattern = f"{out}/imagenet-{split}-%06d{suffix}"
        with webdataset.ShardWriter(pattern, maxcount=per_tar, verbose=0) as writer:
            for path, wnid, label in images(tree, split):
                sample = {"__key__": path.stem}
                if kind == "cls":
                    sample |= {"jpg": path.read_bytes(), "cls": str(label).encode()}
                else:
                    fields = {"filename": f"{wnid}/{path.name}", "label": label}
                    sample |= {"jpeg": path.read_bytes(), "json": json.dumps(fields).encode()}
                writer.write(sample)
    return out


def write_tar(path, samples):
    """Write WebDataset samples to `path` with webdataset's TarWriter."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with webdataset.TarWriter(str(path)) as writer:
        for sample in samples:
            writer.write(sample)
    return path
