"""Prepare datasets, damage them, and collect the problems that `verify` finds."""

import hashlib
import io
import json
import tarfile

from helpers.folders import SIZE, members
from helpers.imagenet_files import tar_bytes
from helpers.inline import INLINE, InlineExecutor
from pipeline import Options, prepare, read_source
from pipeline.verification.dataset import verify

TAR, INDEX = "train/train-000001.tar", "train/train-000001.idx"


class Backwards(InlineExecutor):
    """Runs the last task first: an executor's results come in any order."""

    def run(self, work, items, on_progress=None):
        return super().run(work, items[::-1], on_progress)


def check(folder, **settings):
    return verify(folder, executor=Backwards(), **settings)


def problems(folder, **settings):
    """place → what, for a dataset with at most one problem per place."""
    found = check(folder, **settings).problems
    problems = {problem.place: problem.what for problem in found}
    assert len(problems) == len(found), found
    assert not any("\n" in what for what in problems.values())
    return problems


def prepared(source, out, **options):
    settings = Options(size=SIZE, shard_samples=5, **options)
    prepare(read_source(source), out, settings, executor=INLINE)
    return out


def tar_of(stored, kind=tarfile.USTAR_FORMAT, pax=None):
    """(tar, index) of members (name, bytes); the offsets in the index are those of Python's tarfile."""
    content = tar_bytes(stored, format=kind, pax=pax)
    samples = []
    last = None
    with tarfile.open(fileobj=io.BytesIO(content)) as archive:
        for info in archive:
            key, _, extension = info.name.partition(".")
            if key != last:
                samples.append([])
            samples[-1].append(f"{extension} {info.offset_data} {info.size} {info.name}")
            last = key
    lines = [f"v1.2 {len(samples)}", *map(" ".join, samples), ""]
    return content, "\n".join(lines).encode()


def change_manifest(folder, change):
    path = folder / "manifest.json"
    manifest = json.loads(path.read_text())
    change(manifest)
    path.write_text(json.dumps(manifest))


def listed(manifest, name):
    return next(s for shards in manifest["splits"].values() for s in shards if s["name"] == name)


def replace_tar(folder, name, content, index=None, samples=None):
    """Replace a tar and adapt its checksum, size and number of samples in the manifest."""
    (folder / name).write_bytes(content)
    if index is not None:
        (folder / name).with_suffix(".idx").write_bytes(index)
    found = {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    if samples is not None:
        found["samples"] = samples
    change_manifest(folder, lambda manifest: listed(manifest, name).update(found))


def retar(folder, change, name=TAR, samples=None, **tar):
    """Rewrite a shard with the members `change(members)`; index and manifest are adapted."""
    replace_tar(folder, name, *tar_of(change(members(folder / name)), **tar), samples)


def first_key(folder, name=TAR):
    return members(folder / name)[0][0].removesuffix(".jpg")


def relabeled(label):
    """A change for `retar` that gives the first sample another label."""
    return lambda stored: [stored[0], (stored[1][0], label), *stored[2:]]
