"""What lies in a source: folders of images (archives count as folders), images with labels, and the rest."""

from collections.abc import Iterator
from dataclasses import dataclass, field

import msgspec

from pipeline.dataset.manifest import FILE_NAME, ClassInfo
from pipeline.dataset.work import WORK
from pipeline.errors import UsageError
from pipeline.sources.base import FILE, Container, Image, is_image
from pipeline.sources.labelers.devkit import DEVKIT
from pipeline.sources.left_out import LeftOut, is_debris
from pipeline.sources.listers import archives, parquet
from pipeline.sources.listers.webdataset import unify
from pipeline.sources.opening import PARQUET, TARS, ZIP, reading
from pipeline.storage.base import ByteRange, File, Store

_RUN = "run.json"
# Archives of ImageNet's pages that hold no images of the classification task: dogs again, for task 3.
_TASK_3 = "ilsvrc2012_img_train_t3.tar"


@dataclass
class Tree:
    """Files of a source, by what they are.

    Attributes:
        store: The source.
        folders: Folder, in the source or in an archive → its images. An archive counts as a folder:
            `ILSVRC2012_img_train.tar/n01440764.tar`.
        labeled: Tar or Parquet file → its images, which have labels of their own.
        containers: Containers that the images refer to.
        archives: Archives among the folders, and the tars inside of them.
        others: Paths of all other files, among which tables of labels may be.
        tables: Path of a Parquet file without images → why it is read as none.
        names: Class names by label from the Parquet files' metadata, or None.
        classes: Classes of the dataset of this toolkit that the source is, in label order, or None.
        left_out: Files that are no part of the source.
    """

    store: Store
    folders: dict[str, list[Image]] = field(default_factory=dict)
    labeled: dict[str, list[Image]] = field(default_factory=dict)
    containers: list[Container] = field(default_factory=list)
    archives: set[str] = field(default_factory=set)
    others: list[str] = field(default_factory=list)
    tables: dict[str, str] = field(default_factory=dict)
    names: tuple[str, ...] | None = None
    classes: tuple[ClassInfo, ...] | None = None
    left_out: LeftOut = field(default_factory=LeftOut)

    def path_of(self, image: Image) -> str:
        """Return an image's path below the root, with its container in front."""
        inside = f"{self.containers[image.container].path}/" if image.container != FILE else ""
        return inside + image.path

    def in_archive(self, folder: str) -> bool:
        """Whether a folder lies in an archive, or is one."""
        parts = folder.split("/")
        return any("/".join(parts[:count]) in self.archives for count in range(1, len(parts) + 1))


def read_tree(store: Store, only: str | None = None, max_bad: float = 0) -> Tree:
    """List a source: its files, the members of its archives, and the rows of its Parquet files.

    Left out are debris of systems and tools, such as `.DS_Store` and `@eaDir`, and folders that hold a
    dataset or a run of this toolkit; the source itself may be a dataset.

    Args:
        store: The source.
        only: Path of the one file to read, or None for all.
        max_bad: Share of the archives, 0..1, that may be damaged.

    Raises:
        UsageError: The source is an unfinished dataset of this toolkit, a folder cannot be read, or too many
            archives are damaged: all of them are named.
        RunError: A file cannot be read.
    """
    tree = Tree(store, classes=_own_classes(store))
    if tree.classes is None and store.is_file(f"{WORK}/plan.json"):
        raise UsageError(
            f"source {store}: an unfinished dataset of this toolkit; name the images that it is made of, or "
            "first complete it, by the command that began it"
        )
    tars: list[File] = []
    tables: list[File] = []
    for file in _visible(tree, only):
        name = file.path.lower()
        if name.endswith((*TARS, ZIP)):
            tars.append(file)
        elif name.endswith(PARQUET):
            tables.append(file)
        elif is_image(name):
            folder = file.path.rpartition("/")[0]
            tree.folders.setdefault(folder, []).append(Image(file.path, file.size))
        else:
            tree.others.append(file.path)
    _add_archives(tree, tars, max_bad)
    _add_tables(tree, tables)
    return tree


def _visible(tree: Tree, only: str | None) -> Iterator[File]:
    """Yield the files that are neither debris nor part of a dataset or run of ours; record the others."""
    store, left_out = tree.store, tree.left_out
    if only is not None:
        yield File(only, store.size(only))
        return
    files, folders = store.walk()
    ours = {path.rpartition("/")[0] for path in folders if path.rpartition("/")[2] == WORK}
    for path, _ in files:
        folder, _, name = path.rpartition("/")
        if folder and (
            (name == _RUN and _is_run(store, path)) or (name == FILE_NAME and _is_dataset(store, path))
        ):
            ours.add(folder)
    ours.discard("")
    kinds: dict[str, str | None] = {"": None}  # folder → why its files are left out

    def kind_of(folder: str) -> str | None:
        if folder not in kinds:
            above, _, name = folder.rpartition("/")
            kinds[folder] = kind_of(above) or (
                "a dataset or run of this toolkit"
                if folder in ours
                else "made by a system or tool"
                if is_debris(name)
                else None
            )
        return kinds[folder]

    filled = {path.rpartition("/")[0] for path, _ in files} | set(ours)
    filled |= {above for folder in list(filled) for above in _above(folder)}
    for path in folders:
        above, _, name = path.rpartition("/")
        if name.startswith(".") and name != WORK:  # is not walked
            left_out.add(f"{path}/", kind_of(path) or "")
        elif path not in filled and (above in filled or not above) and kind_of(path) is None:
            left_out.add(f"{path}/", "a folder without files")
    files.reverse()
    while files:  # popping frees each file, so that a million files and images are never held together
        file = files.pop()
        folder, _, name = file.path.rpartition("/")
        reason = kind_of(folder) or ("made by a system or tool" if is_debris(name) else None)
        if reason is None and name.lower() == _TASK_3:
            reason = "images of ILSVRC's task 3"
        if reason is None:
            yield file
        elif not (folder == "" and name.startswith(WORK)):
            left_out.add(file.path, reason)


def _above(folder: str) -> Iterator[str]:
    while folder := folder.rpartition("/")[0]:
        yield folder


def _add_archives(tree: Tree, files: list[File], max_bad: float) -> None:
    """Add the members of tars and zips; of damaged ones, what lies before the damage."""
    damaged: dict[str, str] = {}
    pool = archives.LabelPool()
    for file in files:
        if file.path.rpartition("/")[2].startswith(DEVKIT):
            tree.others.append(file.path)
            continue
        container, number = Container(file.path, file.size), len(tree.containers)
        found = archives.read_archive(tree.store, container, number)
        if found.damage:
            damaged[file.path] = found.damage
        pool.add(found, tree.store.url_of(file.path))
        if found.folders or found.labeled:
            tree.containers.append(container)
        elif not found.labels and not found.damage:
            tree.left_out.add(file.path, "an archive without images")
        tree.archives |= found.archives
        tree.folders.update(found.folders)
        if found.labeled:
            tree.labeled[file.path] = found.labeled
        for path in found.others:
            tree.left_out.add(f"{file.path}/{path}", "not an image")
        for path in found.debris:
            tree.left_out.add(f"{file.path}/{path}", "made by a system or tool")
    if len(damaged) > max_bad * len(files):
        first, *others = (f"{tree.store.url_of(path)}: {damage}" for path, damage in damaged.items())
        more = f"; and {len(others):,} more: {'; '.join(others)}" if others else ""
        raise UsageError(
            f"{first}{more} (damaged archives: {len(damaged):,} of {len(files):,}; a larger --max-bad "
            "reads what lies before the damage)"
        )
    for path, damage in damaged.items():
        tree.left_out.add(path, f"what cannot be read of it: {damage}")
    pool.join(tree.folders, tree.labeled)
    unify(tree.store, tree.labeled)


def _add_tables(tree: Tree, files: list[File]) -> None:
    """Add the rows of Parquet files with images; a Parquet file without is a table like any other."""
    found = parquet.read_files(tree.store, files, len(tree.containers))
    tree.containers += found.containers
    tree.labeled |= found.labeled
    tree.names = found.names
    tree.tables = found.others
    tree.others += found.others


class _OwnManifest(msgspec.Struct):
    """Fields that tell a manifest.json of this toolkit from another file of that name."""

    classes: tuple[ClassInfo, ...]
    label_width: int


def _own_classes(store: Store, name: str = FILE_NAME) -> tuple[ClassInfo, ...] | None:
    """Return the classes, in label order, of a dataset that this toolkit wrote; None for other sources."""
    if not store.is_file(name):
        return None
    with reading(store.url_of(name), "file"):
        data = store.read(ByteRange(name))
    try:
        return msgspec.json.decode(data, type=_OwnManifest).classes
    except msgspec.ValidationError:
        return None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"{store.url_of(name)}: damaged ({error}); restore or remove it") from error


class _OwnRun(msgspec.Struct):
    """Fields that tell a run.json of this toolkit from another file of that name."""

    recipe: str
    dataset_sha256: str
    machine: dict[str, str]


def _is_run(store: Store, facts: str) -> bool:
    try:
        with reading(store.url_of(facts), "file"):
            data = store.read(ByteRange(facts))
        msgspec.json.decode(data, type=_OwnRun)
    except (UsageError, msgspec.DecodeError, UnicodeDecodeError):
        return False
    return True


def _is_dataset(store: Store, manifest: str) -> bool:
    try:
        return _own_classes(store, manifest) is not None
    except UsageError:
        return False
