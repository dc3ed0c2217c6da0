"""Give each image of a split its class: from its folder, its name, ImageNet's label files or a table."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from pipeline.errors import UsageError
from pipeline.sources.base import Image, Label, Listing, SourceOptions
from pipeline.sources.classes import class_order, normal_form, normalized
from pipeline.sources.keys import stem_of
from pipeline.sources.labelers.devkit import DEVKIT
from pipeline.sources.labelers.imagenet import MAPPING, SOLUTION, WORDS, has_labels, read_labels
from pipeline.sources.labelers.labels import is_missing, to_classes
from pipeline.sources.labelers.splits import SPLITS, split_in, split_of_image
from pipeline.sources.labelers.tables import ANNOTATIONS, LabelTable, read_annotations, read_table
from pipeline.sources.labelers.wnids import WNID, wnid_in
from pipeline.sources.opening import ZIP
from pipeline.sources.parts import Part, at_and_above
from pipeline.sources.tree import Tree
from pipeline.storage.open import open_store

# Files that may lie in a source beside its images and are read where they are needed.
_LABEL_FILES = {MAPPING, SOLUTION, WORDS, ANNOTATIONS, "wnids.txt"}


@dataclass
class _Labeled:
    """Images of a source with the ids of their classes, and what they were found as."""

    images: dict[str, list[Image]] = field(default_factory=dict)
    origins: dict[str, str] = field(default_factory=dict)
    names: dict[str, str] = field(default_factory=dict)


def label(tree: Tree, parts: Mapping[str, Part], options: SourceOptions) -> Listing:
    """Label the images of each split.

    Args:
        tree: The source. Its images are consumed.
        parts: Split → its folders and files, from `parts_of`.
        options: `labels`, `path_column` and `label_column` are used.

    Raises:
        UsageError: Training or validation images without a label; label files or tables that are damaged,
            contradict the images or each other; see also
            `pipeline.sources.labelers.labels.to_classes`.
    """
    done = _Labeled()
    order = _label_own(tree, parts, done)
    table = _given_table(tree, options)
    if table and not any(part.folders for part in parts.values()):
        raise UsageError(
            f"--labels {table.place}: the images have labels of their own "
            f"({'; '.join(done.origins.values())}); leave the option out"
        )
    for split in SPLITS:
        if split in parts and parts[split].folders:
            _label_folders(tree, split, parts[split], table, options, done)
    for path in tree.others:
        known = path.rpartition("/")[2] in _LABEL_FILES or _is_devkit(path)
        if not (known or (table and tree.store.url_of(path) == table.place)):
            tree.left_out.add(path, "not an image")
    found = {str(image.label) for images in done.images.values() for image in images}
    layouts = {
        "images" if parts[split].folders else _layout(parts[split].labeled[0]) for split in done.images
    }
    return Listing(
        "+".join(sorted(layouts)),
        done.images,
        tuple(tree.containers),
        done.names,
        tuple(order if set(order) == found else class_order(found)),
        [f"{split}: {len(done.images[split]):,} images, {done.origins[split]}" for split in done.images],
        tree.left_out,
    )


def _layout(file: str) -> str:
    return "parquet" if file.lower().endswith(".parquet") else "webdataset"


def _is_devkit(path: str) -> bool:
    return any(name.startswith(DEVKIT) for name in path.split("/"))


def _label_own(tree: Tree, parts: Mapping[str, Part], done: _Labeled) -> list[str]:
    """Turn the labels that images have of their own into classes; return the classes in label order."""
    images: dict[str, list[Image]] = {}
    for split, part in parts.items():
        if not part.labeled:
            continue
        found = [image for file in part.labeled for image in tree.labeled.pop(file)]
        without = [image for image in found if is_missing(image.label)]
        if without and (split == "train" or len(without) < len(found)):
            url = tree.store.url_of(tree.containers[without[0].container].path)
            raise UsageError(
                f"{url}: {without[0].path} has no label; {len(without):,} of {len(found):,} {split} images "
                "have none: add labels or remove the images"
            )
        if without:
            for file in part.labeled:
                tree.left_out.add(file, f"{split} images without labels", len(without))
            continue
        images[split] = found
        several = "s" if len(part.labeled) > 1 else ""
        kind = (
            f"Parquet file{several}"
            if _layout(part.labeled[0]) == "parquet"
            else f"tar{several} with labels beside the images"
        )
        done.origins[split] = f"{len(part.labeled):,} {kind}"
    if not images:
        return []
    infos = to_classes(tree.store.url, images, tree.names, tree.classes)
    done.images |= images
    shown: dict[str, str] = {}
    if tree.classes is None and tree.store.is_file(MAPPING):
        shown, _ = read_labels(tree.store, [""], "", (), "", ())
    done.names |= {info.id: shown.get(info.id) or info.name for info in infos}
    return [info.id for info in infos]


def _given_table(tree: Tree, options: SourceOptions) -> LabelTable | None:
    if options.labels is None:
        return None
    store, name = tree.store, options.labels
    if not store.is_file(name):
        path = Path(name).absolute()
        if not path.is_file():
            raise UsageError(f"--labels {name}: no such file, neither in {store} nor here")
        store, name = open_store(path.parent), path.name
    return read_table(store, name, options.path_column, options.label_column)


def _label_folders(
    tree: Tree, split: str, part: Part, table: LabelTable | None, options: SourceOptions, done: _Labeled
) -> None:
    """Label the images of a split's folders: by the given table, or by class folder, and else one by one."""
    known = {str(image.label) for image in done.images.get("train", ())}
    if table is not None:
        images, origin = _by_table(tree, split, part, table), f"labels from {table.place}"
    else:
        classed, flat = _class_folders_of(tree, split, part, known)
        if options.layout != "classes" and options.splits is None:
            _refuse_splits(tree, split, part, classed)
        images = _by_folder(tree, split, classed) if classed else []
        origin = _class_folders(tree, classed) if classed else ""
        if flat:
            more, how = _label_flat(tree, split, flat, part, sorted(known), done.names, bool(classed))
            images += more
            origin = "; ".join(filter(None, (origin, how)))
    if images:
        done.images[split], done.origins[split] = images, origin
    if split == "train" and not done.names:
        found = {str(image.label) for image in images}
        done.names |= _names(tree, part, found)


def _by_table(tree: Tree, split: str, part: Part, table: LabelTable) -> list[Image]:
    """Label images by a table; a test split may have no labels."""
    labeled: list[Image] = []
    for folder in part.folders:
        label_of = partial(_listed_in, table, folder)
        labeled += _labeled(tree, tree.folders.pop(folder), label_of, f"no label in {table.place}")
    if not labeled and split != "test":
        raise UsageError(
            f"--labels {table.place}: none of its {len(table):,} rows names an image of "
            f"{part.root or tree.store}; name paths below the source, or file names"
        )
    return labeled


def _listed_in(table: LabelTable, folder: str, image: Image) -> str | None:
    """Return the class that a table gives an image, or None; negative numbers stand for none."""
    label = table.label_of(folder, image)
    return None if is_missing(label) else str(label)


def _class_folders_of(
    tree: Tree, split: str, part: Part, known: set[str]
) -> tuple[dict[str, str], list[str]]:
    """Tell class folders from folders of flat images.

    The class is the first part of the folders' paths that differs: `train/images/CLASS` is a folder around
    class folders. One folder alone is a class if it is a known one or named by a WNID, or, other than in
    "test", if no classes are known and nothing else says its labels.

    Returns:
        Folder → its class; and the flat folders.
    """
    paths = [path for path in part.folders.values() if path]
    depth = 0
    while paths and all(len(path) > depth for path in paths):
        names = {path[depth] for path in paths}
        if len(names) > 1 or {normal_form(name) for name in names} <= known:
            break
        depth += 1
    flat = [folder for folder, path in part.folders.items() if len(path) <= depth]
    one = [folder for folder in flat if part.folders[folder]]
    alone = len(flat) == len(part.folders)
    may_be_class = not known or all(WNID.fullmatch(part.folders[folder][0]) for folder in one)
    if one and alone and may_be_class and split != "test" and not _flat_labels(tree, one):
        return {folder: part.folders[folder][0] for folder in one}, [f for f in flat if f not in one]
    return {folder: path[depth] for folder, path in part.folders.items() if len(path) > depth}, flat


def _refuse_splits(tree: Tree, split: str, part: Part, classed: Mapping[str, str]) -> None:
    """Refuse class folders that may be splits, or folders around the classes.

    They are if their names contain different splits, if they hold folders of the same names, or if they hold
    folders named by WNIDs.
    """
    inside: dict[str, set[str]] = {}
    paths: dict[str, str] = {}  # class → path of its folder
    images = Counter[str]()
    for folder, name in classed.items():
        path = part.folders[folder]
        below = path[path.index(name) + 1 :]
        inside.setdefault(name, set()).add("".join(below[:1]))
        paths.setdefault(name, folder.removesuffix("/".join(("", *below))))
        images[name] += len(tree.folders[folder])
    if len(inside) < 2 or any(map(WNID.fullmatch, inside)):
        return
    below_first = next(iter(inside.values()))
    is_same = (
        len(below_first) > 1 and "" not in below_first and all(b == below_first for b in inside.values())
    )
    by_split = {found: name for name in inside if (found := split_in(name))}
    found_in = ", ".join(sorted(below_first)[:5])
    (most, _), (fewer, _), *_ = images.most_common()
    if len(by_split) > 1:
        most, fewer, *_ = (by_split[found] for found in SPLITS if found in by_split)
        why = "have names of splits"
    elif is_same:
        why = f"hold folders of the same names ({found_in})"
    elif all(map(WNID.fullmatch, set().union(*inside.values()))):
        raise UsageError(
            f"source {tree.store}: {paths[most]}/ and {paths[fewer]}/ were read as classes, but hold folders "
            f"named by WNIDs ({found_in}): if those are the classes, move them into one folder"
            f"{_confirmed(split, part, most, fewer)}"
        )
    else:
        return
    raise UsageError(
        f"source {tree.store}: {paths[most]}/ and {paths[fewer]}/ {why}: if they are splits, name them with "
        f"--splits train={paths[most]},val={paths[fewer]}{_confirmed(split, part, most, fewer)}"
    )


def _confirmed(split: str, part: Part, most: str, fewer: str) -> str:
    """Return how to say that the folders of a part are classes."""
    if part.root:
        root = part.root.rstrip("/")
        return f"; if {most} and {fewer} are classes, name all splits with --splits {split}={root}"
    return f"; if {most} and {fewer} are classes, give --layout classes"


def _flat_labels(tree: Tree, folders: Sequence[str]) -> str:
    """Return what says the labels of flat images: "annotations", "names", "label files" or ""."""
    above = list(at_and_above(folders[0]))
    if _annotations(tree, above):
        return "annotations"
    names = [image.path.rpartition("/")[2] for folder in folders for image in tree.folders[folder]]
    if all(map(wnid_in, names)):
        return "names"
    if all(map(split_of_image, names)) or any(has_labels(tree.store, folder) for folder in above):
        return "label files"
    return ""


def _annotations(tree: Tree, above: Sequence[str]) -> str | None:
    found = (f"{folder}/{ANNOTATIONS}".lstrip("/") for folder in above)
    return next((path for path in found if path in tree.others), None)


def _by_folder(tree: Tree, split: str, classed: Mapping[str, str]) -> list[Image]:
    ids = normalized(dict.fromkeys(classed.values()), f"{tree.store} ({split})")
    images: list[Image] = []
    places: dict[str, str] = {}  # class id → its first folder
    for folder, name in classed.items():
        found = tree.folders.pop(folder)
        other = places.setdefault(ids[name], folder)
        if tree.in_archive(folder) != tree.in_archive(other):
            raise UsageError(
                f"source {tree.store}: the class {ids[name]} is both in {other} and in {folder}, as if an "
                f"archive had been unpacked beside itself; remove one, or name one with --splits {split}=PATH"
            )
        for image in found:
            image.label = ids[name]
        images += found
    return images


def _class_folders(tree: Tree, classed: Mapping[str, str]) -> str:
    count = len(set(classed.values()))
    folder = next(iter(classed))
    several = "s" if count > 1 else ""
    if folder in tree.archives:
        above = folder.rpartition("/")[0]
        inside = f" in {above}" if above in tree.archives else ""
        kind = "zip" if folder.lower().endswith(ZIP) else "tar"
        return f"{count:,} {kind}{several}, one a class{inside}"
    archive = next((path for path in tree.archives if folder.startswith(f"{path}/")), "")
    return f"{count:,} class folder{several}{f' in {archive}' if archive else ''}"


def _label_flat(
    tree: Tree,
    split: str,
    folders: Sequence[str],
    part: Part,
    classes: Sequence[str],
    names: dict[str, str],
    beside_classes: bool,
) -> tuple[list[Image], str]:
    """Label images that are not in class folders; return those that have a label, and where it is from."""
    how, place = _flat_labels(tree, folders), part.root or str(tree.store)
    if len(folders) > 1 and part.root in tree.archives:
        place += f" and {len(folders) - 1:,} more"
    images = [image for folder in folders for image in tree.folders.pop(folder)]
    above = list(at_and_above(folders[0]))
    if how == "annotations" and (annotations := _annotations(tree, above)):
        table = read_annotations(tree.store, annotations)
        return _labeled(tree, images, partial(table.label_of, ""), f"not in {annotations}"), (
            f"flat, labels from {annotations}"
        )
    if how == "names":
        return _labeled(tree, images, lambda i: wnid_in(i.path.rpartition("/")[2]), ""), (
            f"flat in {place}, WNIDs in the file names"
        )
    if split == "test":
        return _labeled(tree, images, lambda _: None, "test images without labels"), ""
    if beside_classes and not how:
        return _labeled(tree, images, lambda _: None, "an image beside the class folders"), ""
    if split == "val":
        _refuse_unlabeled_folder(tree, part, folders[0], images[0], place, len(classes), how)
        wnids = [class_id for class_id in classes if WNID.fullmatch(class_id)]
        stems = [stem_of(image.path) for image in images]
        found, ids = read_labels(tree.store, above, "the training images", wnids, place, stems)
        for image, class_id in zip(images, ids, strict=True):
            image.label = class_id
        names |= {class_id: name for class_id, name in found.items() if class_id not in names}
        return images, f"flat in {place}, labels from ImageNet's label files"
    raise UsageError(
        f"source {tree.store}: {place} was read as flat images, but {images[0].path} and others have no "
        "label: put them into class folders, name a table with --labels FILE, name the files by WNID "
        "(n01440764_1.JPEG), or add KEY.cls members to tars"
    )


def _refuse_unlabeled_folder(
    tree: Tree, part: Part, folder: str, image: Image, place: str, classes: int, how: str
) -> None:
    """Refuse validation images without labels whose label file lies in an archive, or in one odd folder."""
    if tree.in_archive(folder):
        archive = next(at for at in reversed(list(at_and_above(folder))) if at in tree.archives)
        for above, held in tree.left_out.found.get("not an image", {}).items():
            file = next((name for name in held.names if name in (ANNOTATIONS, SOLUTION)), None)
            if file and archive in at_and_above(above):
                raise UsageError(
                    f"source {tree.store}: {place} was read as flat images, and {above}/{file} is not read "
                    "inside of an archive: unpack the archive"
                )
    if not how and part.folders[folder] and classes:
        raise UsageError(
            f"source {tree.store}: {place} was read as flat images, because {folder} is none of the "
            f"{classes:,} training classes, but {image.path} and others have no label: put them into class "
            "folders, or name a table with --labels FILE"
        )


def _labeled(
    tree: Tree, images: Sequence[Image], label_of: Callable[[Image], Label | None], why: str
) -> list[Image]:
    """Label images; leave out those without a label, with the reason `why`."""
    kept = []
    for image in images:
        image.label = label_of(image)
        if image.label is None:
            tree.left_out.add(tree.path_of(image), why)
        else:
            kept.append(image)
    return kept


def _names(tree: Tree, part: Part, classes: set[str]) -> dict[str, str]:
    """Return class id → name to show, from the label files above the split."""
    first = next(iter(part.folders))
    above = list(at_and_above(part.root.rstrip("/") or first))
    wnids = sorted(c for c in classes if WNID.fullmatch(c)) if all(map(WNID.fullmatch, classes)) else []
    found, _ = read_labels(tree.store, above, part.root or str(tree.store), wnids, "", ())
    return {class_id: name for class_id, name in found.items() if class_id in classes}
