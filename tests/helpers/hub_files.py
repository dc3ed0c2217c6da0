"""Parquet files and WebDataset tars for the tests, written by pyarrow and webdataset themselves."""

import json

import pyarrow as pa
import pyarrow.parquet as pq
import webdataset

IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


def images(tree, split):
    """(class, path) of the files `tree/SPLIT/CLASS/*`, sorted."""
    return [(path.parent.name, path) for path in sorted((tree / split).glob("*/*"))]


def classes_of(tree):
    return sorted(folder.name for folder in (tree / "train").iterdir())


def table(rows, label_type=None, class_label=None, image="image", label="label"):
    """An Arrow table of rows (bytes, path, label), as Hugging Face's `datasets` writes it."""
    metadata = None
    if class_label is not None:
        features = {
            image: {"_type": "Image"},
            label: {"names": list(class_label), "_type": "ClassLabel"},
        }
        metadata = {"huggingface": json.dumps({"info": {"features": features}})}
    images = [None if data is path is None else {"bytes": data, "path": path} for data, path, _ in rows]
    columns = [pa.array(images, IMAGE), pa.array([given for _, _, given in rows], label_type)]
    return pa.table(columns, schema=pa.schema([(image, IMAGE), (label, columns[1].type)], metadata))


def write_parquet(path, rows, row_group=5, **options):
    """Write rows (bytes, path, label) as Parquet to `path`; `options` go to `table`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table(rows, **options), path, row_group_size=row_group)
    return path


def hub_name(path, class_id):
    """File name in the hub's ImageNet: STEM_WNID.SUFFIX."""
    return f"{path.stem}_{class_id}{path.suffix}"


def as_parquet(tree, out, files=2, name=hub_name, label=None, with_test=True, class_label=None):
    """Write `tree/{train,val}/CLASS/*` to `out/data/*.parquet` in the layout of the hub's ImageNet.

    Args:
        tree: folder of the splits' class folders.
        out: folder to write to.
        files: number of files of the training split.
        name: function (path, class) → `image.path`.
        label: function class → label; by default the class's index among the sorted classes.
        with_test: add a test split without labels.
        class_label: names of the labels for the metadata, or None.
    """
    number = {class_id: index for index, class_id in enumerate(classes_of(tree))}
    for split, count, word in (("train", files, "train"), ("val", 1, "validation")):
        rows = [
            (path.read_bytes(), name(path, class_id), label(class_id) if label else number[class_id])
            for class_id, path in images(tree, split)
        ]
        for part in range(count):
            file = out / "data" / f"{word}-{part:05d}-of-{count:05d}.parquet"
            write_parquet(file, rows[part::count], class_label=class_label)
    if with_test:
        rows = [(b"?", f"ILSVRC2012_test_{n:08d}.JPEG", -1) for n in range(1, 4)]
        write_parquet(out / "data" / "test-00000-of-00001.parquet", rows, class_label=class_label)
    return out


def as_webdataset(tree, out, kind="cls", per_tar=20, label=None, suffix=".tar"):
    """Write `tree/{train,val}/CLASS/*` to `out/imagenet-SPLIT-*.tar` with webdataset's ShardWriter.

    Args:
        tree: folder of the splits' class folders.
        out: folder to write to.
        kind: member of the label, "cls" (with .jpg) or "json" (with .jpeg).
        per_tar: number of samples per tar.
        label: function class → label; by default the class's index among the sorted classes.
        suffix: suffix of the tars; ".tar.gz" compresses.
    """
    out.mkdir(parents=True, exist_ok=True)
    number = {class_id: index for index, class_id in enumerate(classes_of(tree))}
    for split in ("train", "val"):
        pattern = f"{out}/imagenet-{split}-%06d{suffix}"
        with webdataset.ShardWriter(pattern, maxcount=per_tar, verbose=0) as writer:
            for class_id, path in images(tree, split):
                given = label(class_id) if label else number[class_id]
                sample = {"__key__": path.stem}
                if kind == "cls":
                    sample |= {"jpg": path.read_bytes(), "cls": str(given).encode()}
                else:
                    fields = {"filename": f"{class_id}/{path.name}", "label": given}
                    sample |= {"jpeg": path.read_bytes(), "json": json.dumps(fields).encode()}
                writer.write(sample)
    return out


def write_tar(path, samples):
    """Write WebDataset samples to `path` with webdataset's TarWriter."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with webdataset.TarWriter(str(path), encoder=False) as writer:
        for sample in samples:
            writer.write(sample)
    return path


def flattened(source):
    """(classes, split → sorted (key, label)) of a source: all that its shards depend on."""
    splits = {split: sorted((s.key, s.label) for s in rows) for split, rows in source.splits.items()}
    return source.classes, splits
