import hashlib
import shutil
import tarfile
from pathlib import Path

import pytest
from helpers.damage import (
    INDEX,
    TAR,
    Backwards,
    change_manifest,
    check,
    first_key,
    listed,
    problems,
    relabeled,
    replace_tar,
    retar,
    tar_of,
)
from helpers.folders import SIZE, draw_image, encoded, members, overwrite, place
from hypothesis import given, settings, strategies as st

from pipeline.errors import UsageError
from pipeline.verification.adopt import adopt
from pipeline.verification.shard import MOST_PROBLEMS, Problem

# Bytes


@pytest.fixture(scope="module")
def patched(whole, tmp_path_factory):
    """A function that verifies the dataset with other bytes in one file."""
    folder = Path(shutil.copytree(whole, tmp_path_factory.mktemp("patched") / "data"))

    def verify_with(name, content, **settings):
        original = (folder / name).read_bytes()
        (folder / name).write_bytes(content)
        try:
            return check(folder, **settings).problems
        finally:
            (folder / name).write_bytes(original)

    return verify_with


def draw_change(draw, folder, names):
    """Draw a file below the folder that matches a pattern; return its path and its bytes with one changed."""
    path = draw.draw(st.sampled_from(sorted(path for name in names for path in folder.rglob(name))))
    content = bytearray(path.read_bytes())
    at = draw.draw(st.integers(0, len(content) - 1), label="position")
    content[at] ^= draw.draw(st.integers(1, 255), label="flipped bits")
    return path.relative_to(folder).as_posix(), bytes(content)


@settings(max_examples=30)
@given(st.data())
def test_any_changed_byte_of_a_tar_an_index_or_the_mean_image_is_found(whole, patched, draw):
    name, content = draw_change(draw, whole, ["*.tar", "*.idx", "mean_image.npy"])
    found = patched(name, content, fast=draw.draw(st.booleans(), label="fast"))
    assert name in {problem.place for problem in found}
    assert all(problem.place.startswith(name) for problem in found)


@settings(max_examples=30)
@given(st.data())
def test_a_changed_byte_of_the_manifest_never_ends_in_a_traceback(whole, patched, draw):
    name, content = draw_change(draw, whole, ["manifest.json"])
    try:
        found = patched(name, content)
    except UsageError as error:
        found = str(error)
    assert isinstance(found, tuple) or "manifest.json: " in found


@settings(max_examples=30)
@given(st.data())
def test_any_truncation_is_found(whole, patched, draw):
    path = draw.draw(st.sampled_from(sorted(path for path in whole.rglob("*") if path.is_file())))
    content = path.read_bytes()
    cut = content[: draw.draw(st.integers(0, len(content) - 1), label="kept")]
    name = path.relative_to(whole).as_posix()
    try:
        found = {problem.place for problem in patched(name, cut, fast=True)}
    except UsageError as error:
        found = {"manifest.json"} if "manifest.json: " in str(error) else set()
    assert name in found or (path.suffix in (".json", ".csv") and cut.strip() == content.strip())


def test_a_wrong_size_checksum_and_number_of_samples(data):
    change_manifest(data, lambda m: listed(m, TAR).update(bytes=1, sha256="0" * 64, samples=6))
    content = (data / TAR).read_bytes()
    checksum = hashlib.sha256(content).hexdigest()
    assert check(data).problems == (
        Problem(TAR, f"{len(content):,} bytes, but the manifest says 1"),
        Problem(TAR, f"its SHA-256 is {checksum}, but the manifest says {'0' * 64}"),
        Problem(TAR, "5 samples, but the manifest says 6"),
    )


# A tar that agrees with its checksum


def with_image(change):
    """A change for `retar`: other bytes of the first image, `change(bytes)`."""
    return lambda stored: [(stored[0][0], change(stored[0][1])), *stored[1:]]


def image(pixels, kind="JPEG", **options):
    content = encoded(pixels, kind, **options)
    return with_image(lambda _: content)


NO_JPEG = "not a JPEG as the shard writer stores it"


@pytest.mark.parametrize(
    ("change", "suffix", "what"),
    [
        (relabeled(b"1"), "cls", "the label is '1'; expected 4 digits"),
        (relabeled(b"00\xb9\n"), "cls", "the label is '00\\xb9\\n'; expected 4 digits"),
        (relabeled(b"0003"), "cls", "the label is 3, but there are 3 classes"),
        (image(draw_image(1, SIZE, SIZE + 1), subsampling="4:2:0"), "jpg", "49x48 pixels; expected 48x48"),
        (image(draw_image(1), subsampling="4:4:4"), "jpg", "stored as YCbCr 444; expected YCbCr 420"),
        (image(draw_image(1), "PNG"), "jpg", NO_JPEG),
        (with_image(lambda jpeg: jpeg[:20] + b"\0\0" + jpeg[20:]), "jpg", "2 extraneous bytes"),
    ],
)
def test_a_label_or_an_image_of_another_form(data, change, suffix, what):
    retar(data, change)
    for fast in (False, True):
        found = problems(data, fast=fast)
        assert list(found) == [f"{TAR}/{first_key(data)}.{suffix}"]
        assert what in found[f"{TAR}/{first_key(data)}.{suffix}"]


def test_a_scan_that_does_not_decode_is_found_unless_fast(data):
    retar(data, with_image(lambda jpeg: jpeg[:-80]))
    assert problems(data, fast=True) == {}
    assert "does not decode" in problems(data)[f"{TAR}/{first_key(data)}.jpg"]


@pytest.mark.parametrize(
    ("mode", "change", "places", "what"),
    [
        (
            "aspect",
            image(draw_image(1, 50, 49), subsampling="4:2:0"),
            [".jpg"],
            "49x50 pixels; expected 48 on",
        ),
        ("aspect", image(draw_image(1, 48, 99), subsampling="4:2:0"), ["manifest.json"], "statistics: of "),
        ("original", image(draw_image(1, 33, 77), progressive=True), [], ""),
        ("original", with_image(lambda jpeg: jpeg[:-30]), [".jpg"], "does not decode"),
        ("original", image(draw_image(1)[:, :, 0]), [".jpg"], "decodes only after a repair: gray"),
    ],
)
def test_images_of_other_shapes_than_squares(request, tmp_path, mode, change, places, what):
    data = Path(shutil.copytree(request.getfixturevalue(f"whole_{mode}"), tmp_path / "data"))
    retar(data, change)
    found = problems(data)
    assert [place.replace(f"{TAR}/{first_key(data)}", "") for place in found] == places
    assert all(what in problem for problem in found.values())


@pytest.mark.parametrize(
    ("change", "members_found"),
    [
        (lambda jpg, cls: [cls, jpg], "{0}.cls, {0}.jpg"),
        (lambda jpg, cls: [jpg], "{0}.jpg"),
        (lambda jpg, cls: [jpg, cls, (jpg[0][:-4] + ".json", b"{}")], "{0}.jpg, {0}.cls, {0}.json"),
        (lambda jpg, cls: [jpg, cls, jpg, cls], "{0}.jpg, {0}.cls, {0}.jpg, {0}.cls"),
        (lambda jpg, cls: [(jpg[0][:-4] + ".JPG", jpg[1]), cls], "{0}.JPG, {0}.cls"),
    ],
)
def test_members_that_are_not_an_image_and_its_label(data, change, members_found):
    key = first_key(data)
    retar(data, lambda stored: change(*stored[:2]) + stored[2:])
    found = problems(data)
    assert found[f"{TAR}/{key}"] == f"its members are {members_found.format(key)}; expected KEY.jpg, KEY.cls"
    assert all(place.startswith((TAR, "manifest.json")) for place in found)


@pytest.mark.parametrize("key", ["a key", "k\u00e9y", "k\ty", "a/b", ""])
def test_a_key_that_an_index_or_a_loader_would_misread(data, key):
    retar(data, lambda stored: [(key + name[-4:], content) for name, content in stored[:2]] + stored[2:])
    assert "its members are" in check(data).problems[0].what


@pytest.mark.parametrize(
    ("kind", "pax", "what"),
    [
        (tarfile.USTAR_FORMAT, None, None),
        (tarfile.PAX_FORMAT, {"comment": "x"}, "behind a PAX, GNU or folder header at offset 0"),
        (tarfile.GNU_FORMAT, None, "its header at offset 0 is not USTAR's for a plain file"),
    ],
)
def test_headers_of_another_format_are_found(data, kind, pax, what):
    retar(data, lambda stored: stored, kind=kind, pax=pax)
    found = problems(data)
    assert found.get(f"{TAR}/{first_key(data)}.jpg") == what
    assert len(found) == (10 if what else 0)


@pytest.mark.parametrize(
    ("damage", "what"),
    [
        (lambda tar: tar[:-10240], "end mark is missing"),
        (lambda tar: tar[:3000], "truncated at offset 3,000"),
    ],
)
def test_an_archive_that_is_not_whole(data, damage, what):
    content = (data / TAR).read_bytes()
    at = content.rindex(b"ustar")
    end = -(-(at + 512 + 4) // 512) * 512  # the last member is a label: four bytes in one block
    replace_tar(data, TAR, damage(content[:end].ljust(end + 10240, b"\0")))
    found = problems(data)
    assert list(found) == [TAR]
    assert what in found[TAR]
    assert "samples before that were read" in found[TAR]


def test_many_faults_of_a_shard_are_counted(data):
    stored = [(f"k{k}.{extension}", b"?") for k in range(20) for extension in ("jpg", "cls")]
    retar(data, lambda _: stored, samples=20)
    found = check(data).problems
    assert len(found) == MOST_PROBLEMS + 1
    assert found[-1] == Problem(TAR, "and 20 more problems")


# Indexes


def test_an_index_with_one_wrong_number(data):
    index = (data / INDEX).read_text()
    offset = index.split("\n")[3].split()[1]
    (data / INDEX).write_text(index.replace(f" {offset} ", f" {int(offset) + 512} "))
    found = problems(data)
    assert list(found) == [INDEX]
    assert found[INDEX].startswith(f"not the tar's index: line 4 is 'jpg {int(offset) + 512} ")


@pytest.mark.parametrize(
    "change",
    [
        lambda index: index.replace("\n", "\r\n"),
        lambda index: index + "\n",
        lambda index: "\xff",
    ],
)
def test_an_index_that_differs_in_any_way(data, change):
    (data / INDEX).write_bytes(change((data / INDEX).read_text()).encode("latin-1"))
    assert list(problems(data)) == [INDEX]


# Tars of other tools

JSON = ("json", lambda label: b'{"width": 3, "label": %d, "text": "5"}' % label)
CLS = ("cls", lambda label: b"%d\n" % label)
KINDS = {
    "square": (JSON, {}),
    "equal shorter sides": (CLS, {"width": SIZE + 5}),
    "different shorter sides": (JSON, {"height": 77, "width": 52}),
}
EXTERNAL, EXTERNAL_INDEX = "train/00001.tar", "train/00001.idx"


def external_tar(path, first, label_member, **image_options):
    """Write a PAX tar as other tools do: six JPEGs and labels of three classes, with odd names."""
    stored = []
    for k in range(first, first + 6):
        stored += [
            (f"./some.folder/{k:05d}.jpeg", encoded(draw_image(k, **image_options))),
            (f"./some.folder/{k:05d}.{label_member[0]}", label_member[1](k % 3)),
        ]
    place(path, tar_of(stored, tarfile.PAX_FORMAT, {"mtime": "1.5"})[0])


@pytest.fixture(scope="module", params=KINDS)
def whole_adopted(request, tmp_path_factory):
    """Adopted datasets of three kinds. Read-only."""
    label_member, options = KINDS[request.param]
    root = tmp_path_factory.mktemp("external")
    for number in range(3):
        external_tar(root / "train" / f"{number:05d}.tar", 6 * number, label_member, **options)
    if "height" in options:  # a second shorter side, so images are scaled on loading
        external_tar(root / "train" / "00003.tar", 18, label_member, height=60, width=90)
    external_tar(root / "val" / "00000.tar", 100, label_member, **options)
    adopt(root, size=SIZE, executor=Backwards())
    return root


@pytest.fixture
def adopted(whole_adopted, tmp_path):
    """A copy of an adopted dataset that a test may damage."""
    return Path(shutil.copytree(whole_adopted, tmp_path / "data"))


one_kind = pytest.mark.parametrize("whole_adopted", ["square"], indirect=True)


@pytest.mark.parametrize("fast", [False, True])
def test_an_undamaged_adopted_dataset_has_no_faults(whole_adopted, fast):
    found = check(whole_adopted, fast=fast)
    assert (found.problems, found.notes) == ((), ())
    assert found.samples == sum(len(members(path)) // 2 for path in whole_adopted.rglob("*.tar"))


@one_kind
def test_a_changed_byte_of_an_adopted_tar_is_found(adopted):
    overwrite(adopted / EXTERNAL, 3000, b"damaged")
    assert "its SHA-256" in problems(adopted, fast=True)[EXTERNAL]


@one_kind
@pytest.mark.parametrize("name", [EXTERNAL, EXTERNAL_INDEX])
def test_a_deleted_file_of_an_adopted_dataset(adopted, name):
    (adopted / name).unlink()
    assert problems(adopted) == {name: "missing"}


@one_kind
def test_files_beside_adopted_tars_are_notes(adopted):
    place(adopted / "train" / "00099.tar")
    place(adopted / "train" / "00001_stats.json")
    found = check(adopted)
    assert found.problems == ()
    assert [note.place for note in found.notes] == ["train/00001_stats.json", "train/00099.tar"]


@pytest.mark.parametrize(
    ("extension", "offset", "size", "what"),
    [
        ("jpg", 0, 10**9, "which are not in the tar"),
        ("jpg", -(10**9), 0, "which are not in the tar"),
        ("cls", 0, -(10**6), "which are not in the tar"),
        ("jpg", 512, 0, "does not decode"),
        ("jpg", 0, -100, "does not decode"),
        ("cls", 0, 1, "do not end with a label"),
    ],
)
def test_an_index_that_points_elsewhere(adopted, extension, offset, size, what):
    index = (adopted / EXTERNAL_INDEX).read_text().split("\n")
    words = index[1].split()
    at = words.index(extension)
    words[at + 1], words[at + 2] = str(int(words[at + 1]) + offset), str(int(words[at + 2]) + size)
    index[1] = " ".join(words)
    (adopted / EXTERNAL_INDEX).write_text("\n".join(index))
    assert what in problems(adopted)[f"{EXTERNAL}/{words[at + 3]}"]


@one_kind
@pytest.mark.parametrize("content", [b"", b"v1.2 6\n", b"\xff", b"v1.2 1\njpg a b c cls 1 2 d\n"])
def test_an_adopted_tars_index_that_is_none(adopted, content):
    (adopted / EXTERNAL_INDEX).write_bytes(content)
    assert "not a complete v1.2 index" in problems(adopted)[EXTERNAL_INDEX]


@one_kind
def test_an_adopted_tars_index_that_lacks_samples_or_parts(adopted):
    index = (adopted / EXTERNAL_INDEX).read_text().split("\n")
    (adopted / EXTERNAL_INDEX).write_text("\n".join(["v1.2 5", *index[2:]]))
    assert problems(adopted)[EXTERNAL] == "5 samples, but the manifest says 6"
    (adopted / EXTERNAL_INDEX).write_text("\n".join(["v1.2 6", " ".join(index[1].split()[:4]), *index[2:]]))
    assert [what for what in problems(adopted).values() if "the index lists jpg for it" in what]


@one_kind
def test_an_adopted_label_that_is_no_class(adopted):
    change_manifest(adopted, lambda m: m["classes"].pop())
    found = check(adopted).problems
    assert {problem.what for problem in found} == {"the label is 2, but there are 2 classes"}
