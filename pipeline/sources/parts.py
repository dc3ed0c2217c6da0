"""Which folders, tars and Parquet files of a source belong to which split."""

import re
from collections.abc import Container, Iterator, Mapping
from dataclasses import dataclass, field

from pipeline.errors import UsageError
from pipeline.sources.base import Image, Layout
from pipeline.sources.labelers.splits import SPLITS, split_in, split_named, split_of_image, split_of_path
from pipeline.sources.labelers.wnids import WNID
from pipeline.sources.opening import PARQUET, TARS, ZIP
from pipeline.sources.tree import Tree

_NUMBER = re.compile("[0-9]+")


@dataclass
class Part:
    """The images of one split.

    Attributes:
        root: Folder or archive that the split was found as, for messages; "" is the source's root.
        folders: Folder → its path below `root`, in parts; archives that hold folders are not among them.
        labeled: Tars or Parquet files whose images have labels of their own.
    """

    root: str
    folders: dict[str, tuple[str, ...]] = field(default_factory=dict)
    labeled: list[str] = field(default_factory=list)


def parts_of(tree: Tree, layout: Layout, splits: Mapping[str, str] | None) -> dict[str, Part]:
    """Find the splits of a source.

    Args:
        tree: The source. Images of ImageNet's validation and test splits that lie beside its training
            images are moved to folders of their own.
        layout: "auto"; "images" (without files that have labels of their own); "webdataset" or "parquet"
            (such files alone); or "classes" (no folder's name is read as a split).
        splits: Split → path of its folder, archive or file; None finds the splits by their names.

    Raises:
        UsageError: A split is found twice, or images lie beside the splits; a path of `splits` holds no
            images.
    """
    _keep_kind(tree, layout)
    if splits is not None:
        return _named_parts(tree, splits)
    if layout == "classes":
        return {"train": Part("", {folder: _below(tree, folder, 0) for folder in tree.folders})}
    found: dict[str, dict[str, Part]] = {}  # split → key of a root → part
    strays: list[str] = []
    around = _around_splits(tree)
    for folder in tree.folders:
        split, key, root, depth = _placed(tree, folder, around)
        if split is None:
            strays.append(folder)
        else:
            part = found.setdefault(split, {}).setdefault(key, Part(root))
            part.folders[folder] = _below(tree, folder, depth)
    for file in tree.labeled:
        kind = _kind(file)
        found.setdefault(split_of_path(file), {}).setdefault(kind, Part(kind)).labeled.append(file)
    _place_strays(tree, strays, found)
    for split, roots in found.items():
        if len(roots) > 1:
            one, two, *_ = (part.root for part in roots.values())
            raise UsageError(
                f"source {tree.store}: the split {split} was found twice: {one} and {two}; choose one with "
                f"--splits {split}=FOLDER, or with --layout images, webdataset or parquet"
            )
    return {split: next(iter(found[split].values())) for split in SPLITS if split in found}


def _kind(file: str) -> str:
    return "Parquet files" if file.lower().endswith(PARQUET) else "WebDataset tars"


def _shown(folder: str) -> str:
    return f"{folder}/" if folder else "./"


def _keep_kind(tree: Tree, layout: Layout) -> None:
    """Leave out what the chosen layout does not read."""
    if layout in ("webdataset", "parquet"):
        for folder, images in tree.folders.items():
            tree.left_out.add(_shown(folder), f"not read with --layout {layout}", len(images))
        tree.folders.clear()
    for file in list(tree.labeled):
        is_parquet = file.lower().endswith(PARQUET)
        if layout in ("images", "classes") or layout == ("webdataset" if is_parquet else "parquet"):
            tree.left_out.add(file, f"not read with --layout {layout}")
            del tree.labeled[file]


def _named_parts(tree: Tree, splits: Mapping[str, str]) -> dict[str, Part]:
    parts: dict[str, Part] = {}
    split_at: dict[str, str] = {}  # root → its split
    for split, path in splits.items():
        if split not in SPLITS:
            raise UsageError(f"--splits {split}=…: no such split; the splits are {', '.join(SPLITS)}")
        root = path.strip("/").removeprefix("./")
        parts[split] = Part("" if root == "." else root)
        other = split_at.setdefault(parts[split].root, split)
        if other != split:
            raise UsageError(
                f"--splits {other}={splits[other]},{split}={path}: both name one folder; name another "
                "for one of them, or hold validation images out with --val-fraction"
            )
    # A path belongs to the split whose root is nearest above it: `train=.,val=val` are all but val, and val.
    for path in tree.folders | tree.labeled:
        nearest = next((split_at[at] for at in at_and_above(path) if at in split_at), None)
        if nearest is None:
            continue
        part = parts[nearest]
        if path in tree.labeled:
            part.labeled.append(path)
        if path in tree.folders:
            part.folders[path] = _below(tree, path, part.root.count("/") + 1 if part.root else 0)
    for split, part in parts.items():
        if part.folders and part.labeled:
            raise UsageError(
                f"source {tree.store}: {part.root or 'the root'} holds both images in folders and "
                f"{_kind(part.labeled[0])}; choose with --layout images, webdataset or parquet"
            )
        if not part.folders and not part.labeled:
            held = sorted({path.partition("/")[0] for path in (*tree.folders, *tree.labeled)})
            raise UsageError(
                f"source {tree.store}: --splits {split}={splits[split]} holds no images; images are in "
                f"{', '.join(held[:5]) or 'no folder'}"
            )
    chosen = {path for part in parts.values() for path in (*part.folders, *part.labeled)}
    for path, images in (tree.folders | tree.labeled).items():
        if path not in chosen:
            tree.left_out.add(_shown(path), "outside of --splits", len(images))
    return {split: parts[split] for split in SPLITS if split in parts}


def at_and_above(path: str) -> Iterator[str]:
    """Yield a path and all folders above it, up to the root ("")."""
    while path:
        yield path
        path = path.rpartition("/")[0]
    yield ""


def _around_splits(tree: Tree) -> set[str]:
    """Return the folders in which all folders' names contain splits, and not all the same one.

    `train.X1`, `train.X2` and `val.X` are splits; `train_station` beside `bus` is a class.
    """
    inside: dict[str, set[str | None]] = {}  # folder → splits that the names in it contain
    for path in {at for folder in tree.folders for at in at_and_above(folder) if at}:
        above, _, name = path.rpartition("/")
        inside.setdefault(above, set()).add(split_in(without_suffix(name)))
    return {above for above, splits in inside.items() if None not in splits and len(splits) > 1}


def _placed(tree: Tree, folder: str, around: Container[str]) -> tuple[str | None, str, str, int]:
    """Return a folder's split, a key and a name of the split's root, and the number of parts up to it.

    Folders whose names differ by their numbers alone (`train.X1`, `train.X2`) share a key.
    """
    parts = folder.split("/") if folder else []
    for depth in range(1, len(parts) + 1):
        at, above, name = "/".join(parts[:depth]), "/".join(parts[: depth - 1]), parts[depth - 1]
        if at not in tree.archives:
            if split := split_named(name):
                return split, at, f"{at}/", depth
            if above in around:
                return split_in(name), f"{above}/{_NUMBER.sub('*', name)}", f"{at}/", depth
            continue
        name = without_suffix(name)
        split = split_named(name) or (split_in(name) if _all_name_splits(tree, above) else None)
        if split:
            return split, f"{above}/*", at, depth
    return None, "", "", 0


def _all_name_splits(tree: Tree, above: str) -> bool:
    """Whether all archives in a folder name splits; `train_station.tar` beside `bus.tar` is a class."""
    beside = (path for path in tree.archives if path.rpartition("/")[0] == above)
    return all(split_in(path.rpartition("/")[2]) for path in beside)


def _below(tree: Tree, folder: str, depth: int) -> tuple[str, ...]:
    """Return the parts of a folder's path from `depth` on, without archives that hold folders alone."""
    parts = folder.split("/") if folder else []
    kept = []
    for n in range(depth, len(parts)):
        at = "/".join(parts[: n + 1])
        if at not in tree.archives:
            kept.append(parts[n])
        elif at in tree.folders:
            kept.append(without_suffix(parts[n]))
    return tuple(kept)


def without_suffix(name: str) -> str:
    """Return the name of an archive without its suffix."""
    suffix = next((s for s in (*TARS, ZIP) if name.lower().endswith(s)), "")
    return name[: len(name) - len(suffix)]


def _place_strays(tree: Tree, strays: list[str], found: dict[str, dict[str, Part]]) -> None:
    """Add folders without a split: to the splits that their images' names say, or as training data.

    Raises:
        UsageError: Images lie beside the splits.
    """
    without_splits = not found
    above = {path.rstrip("/*").rpartition("/")[0] for roots in found.values() for path in roots}
    above |= {folder.rpartition("/")[0] for folder in strays if folder}
    for folder in strays:
        if folder in above or len(strays) == 1:
            _move_named(tree, folder, found)
    rest = {folder: _below(tree, folder, 0) for folder in strays if folder in tree.folders}
    if rest and without_splits:
        found.setdefault("train", {})[""] = Part("", rest)
        return
    for folder in [folder for folder in rest if folder in above]:
        for image in tree.folders[folder]:
            tree.left_out.add(tree.path_of(image), "an image beside the splits")
        del rest[folder]
    if rest and "train" not in found and all(WNID.fullmatch(path[0]) for path in rest.values() if path):
        found["train"] = {"": Part("", rest)}
    elif rest:
        folder = next(iter(rest))
        split = min(found, key=SPLITS.index)
        part = next(iter(found[split].values()))
        root = part.root
        if part.labeled:
            layout = "parquet" if part.labeled[0].lower().endswith(PARQUET) else "webdataset"
            raise UsageError(
                f"source {tree.store}: {part.labeled[0]} was read as {root} of the split {split}, but "
                f"{folder or 'the root'} has {len(tree.folders[folder]):,} images of no split: choose with "
                f"--layout {layout} or --layout images, or name the splits with --splits train=PATH,val=PATH"
            )
        raise UsageError(
            f"source {tree.store}: {root} was read as the split {split}, but {folder} beside the splits has "
            f"{len(tree.folders[folder]):,} images: give --layout classes if {root} is a class, or name the "
            "splits with --splits train=FOLDER,val=FOLDER"
        )


def _move_named(tree: Tree, folder: str, found: dict[str, dict[str, Part]]) -> None:
    """Move images named like ImageNet's validation or test images to a folder of that split."""
    by_split: dict[str | None, list[Image]] = {}
    for image in tree.folders.pop(folder):
        by_split.setdefault(split_of_image(image.path.rpartition("/")[2]), []).append(image)
    for split, images in by_split.items():
        if split is None:
            tree.folders[folder] = images
        else:
            name = f"{folder}/ILSVRC2012_{split}_*".lstrip("/")
            tree.folders[name] = images
            found.setdefault(split, {})[name] = Part(name, {name: ()})
