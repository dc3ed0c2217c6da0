import hashlib
import shutil
import tarfile
from pathlib import Path

import pytest
from helpers.damage import (
    INDEX,
    TAR,
    Here,
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
from helpers.folders import SIZE, draw_image, encoded, members, place
from hypothesis import given, strategies as st

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


@given(st.data())
def test_any_changed_byte_of_a_tar_an_index_or_the_mean_image_is_found(whole, patched, draw):
    name, content = draw_change(draw, whole, ["*.tar", "*.idx", "mean_image.npy"])
    found = patched(name, content, fast=draw.draw(st.booleans(), label="fast"))
    assert name in {problem.place for problem in found}
    assert all(problem.place.startswith(name) for problem in found)


@given(st.data())
def test_a_changed_byte_of_the_manifest_never_ends_in_a_traceback(whole, patched, draw):
    name, content = draw_change(draw, whole, ["manifest.json"])
    try:
        found = patched(name, content)
    except UsageError as error:
        found = str(error)
    assert isinstance(found, tuple) or "manifest.json: " in found


@given(st.data())
def test_any_truncation_is_found(whole, patched, draw):
    path = draw.draw(st.sampled_from(sorted(path for path in whole.rglob("*") if path.is_file())))
    content = path.read_bytes()
    cut = content[: draw.draw(st.integers(0, len(content) - 1), label="kept")]
    name = path.relative_to(whole).as_posix()
    try:
        found = {problem.place for problem in patched(name, cut)}
    except UsageError as error:
        found = {"manifest.json"} if "manifest.json: " in str(error) else set()
    assert name in found or (path.suffix in (".json", ".csv") and cut.strip() == content.strip())


def test_a_wrong_number_of_samples(data):
    change_manifest(data, lambda m: listed(m, TAR).update(samples=6))
    assert problems(data) == {TAR: "5 samples, but the manifest says 6"}


def test_a_wrong_size_and_checksum(data):
    change_manifest(data, lambda m: listed(m, TAR).update(bytes=1, sha256="0" * 64))
    size, checksum = check(data).problems
    assert size == Problem(TAR, f"{(data / TAR).stat().st_size:,} bytes, but the manifest says 1")
    content = hashlib.sha256((data / TAR).read_bytes()).hexdigest()
    assert checksum == Problem(TAR, f"its SHA-256 is {content}, but the manifest says {'0' * 64}")


# A tar that agrees with its checksum


def test_a_shard_written_again_with_the_same_members_has_no_faults(data):
    retar(data, lambda stored: stored)
    assert problems(data) == {}


@pytest.mark.parametrize(
    ("label", "what"),
    [
        (b"1", "the label is '1'; expected 4 digits"),
        (b"00001", "the label is '00001'; expected 4 digits"),
        (b"  01", "the label is '  01'; expected 4 digits"),
        (b"00\xb9\n", "the label is '00\\xb9\\n'; expected 4 digits"),
        (b"", "the label is ''; expected 4 digits"),
        (b"0003", "the label is 3, but there are 3 classes"),
    ],
)
def test_a_wrong_label(data, label, what):
    retar(data, relabeled(label))
    assert problems(data) == {f"{TAR}/{first_key(data)}.cls": what}


@pytest.mark.parametrize(
    ("change", "members_found"),
    [
        (lambda jpg, cls: [cls, jpg], "{0}.cls, {0}.jpg"),
        (lambda jpg, cls: [jpg], "{0}.jpg"),
        (lambda jpg, cls: [cls], "{0}.cls"),
        (lambda jpg, cls: [jpg, cls, (jpg[0][:-4] + ".json", b"{}")], "{0}.jpg, {0}.cls, {0}.json"),
        (lambda jpg, cls: [jpg, cls, jpg, cls], "{0}.jpg, {0}.cls, {0}.jpg, {0}.cls"),
        (lambda jpg, cls: [(jpg[0][:-4] + ".JPG", jpg[1]), cls], "{0}.JPG, {0}.cls"),
        (lambda jpg, cls: [(jpg[0][:-4] + ".x.jpg", jpg[1]), cls], "{0}.x.jpg, {0}.cls"),
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


def test_extension_headers_are_found(data):
    first = first_key(data)
    retar(data, lambda stored: stored, kind=tarfile.PAX_FORMAT, pax={"comment": "x"})
    found = problems(data)
    assert found.pop(f"{TAR}/{first}.jpg") == "behind a PAX, GNU or folder header at offset 0"
    assert len(found) == 2 * 5 - 1
    assert all("behind a PAX" in what for what in found.values())


def test_gnus_format_is_found(data):
    retar(data, lambda stored: stored, kind=tarfile.GNU_FORMAT)
    assert "is not USTAR's" in problems(data)[f"{TAR}/{first_key(data)}.jpg"]


@pytest.mark.parametrize(
    ("damage", "what"),
    [
        (lambda tar: tar[:-10240], "end mark is missing"),
        (lambda tar: tar[:3000], "truncated at offset 3,000"),
        (lambda tar: tar + tar, "after the end mark"),
        (lambda tar: b"x" + tar[1:], "damaged at offset 0"),
        (lambda tar: b"", "end mark is missing"),
        (lambda tar: b"\x1f\x8b" + bytes(5000), "damaged at offset 0"),
    ],
)
def test_an_archive_that_is_not_whole(data, damage, what):
    content = (data / TAR).read_bytes()
    at = content.rindex(b"ustar")
    end = -(-(at + 512 + 4) // 512) * 512  # the last member is a label: four bytes in one block
    content = content[:end].ljust(end + 10240, b"\0")
    replace_tar(data, TAR, damage(content))
    found = problems(data)
    assert list(found) == [TAR]
    assert what in found[TAR]
    assert "samples before that were read" in found[TAR]


def test_zeros_in_the_place_of_a_member_do_not_pass_as_an_end(data):
    content = bytearray((data / TAR).read_bytes())
    second = content.index(b"ustar", 512) - 257
    content[second : second + 512] = bytes(512)
    replace_tar(data, TAR, bytes(content))
    assert "after the end mark" in problems(data)[TAR]


# Images


def with_image(data):
    return lambda stored: [(stored[0][0], data), *stored[1:]]


def test_a_scan_that_does_not_decode_is_found_unless_fast(data):
    def cut(stored):
        return [(stored[0][0], stored[0][1][:-80]), *stored[1:]]

    retar(data, cut)
    found = problems(data)
    assert list(found) == [f"{TAR}/{first_key(data)}.jpg"]
    assert "does not decode" in found[f"{TAR}/{first_key(data)}.jpg"]
    assert problems(data, fast=True) == {}


@pytest.mark.parametrize("fast", [False, True])
@pytest.mark.parametrize(
    ("content", "what"),
    [
        (encoded(draw_image(1, SIZE, SIZE + 1), subsampling="4:2:0"), "49x48 pixels; expected 48x48"),
        (encoded(draw_image(1, 2 * SIZE, SIZE), subsampling="4:2:0"), "48x96 pixels; expected 48x48"),
        (encoded(draw_image(1), subsampling="4:4:4"), "stored as YCbCr 444; expected YCbCr 420"),
        (encoded(draw_image(1)[:, :, 0]), "stored as Gray Gray; expected YCbCr 420"),
        (encoded(draw_image(1), "PNG"), "not a JPEG as the shard writer stores it"),
        (b"text", "not a JPEG as the shard writer stores it"),
        (b"", "not a JPEG as the shard writer stores it"),
    ],
)
def test_an_image_of_another_form(data, content, what, fast):
    retar(data, with_image(content))
    found = problems(data, fast=fast)
    assert list(found) == [f"{TAR}/{first_key(data)}.jpg"]
    assert what in found[f"{TAR}/{first_key(data)}.jpg"]


def test_stray_bytes_that_preparation_would_have_removed_are_found(data):
    def stray(stored):
        jpeg = stored[0][1]
        return with_image(jpeg[:20] + b"\0\0" + jpeg[20:])(stored)

    retar(data, stray)
    assert "2 extraneous bytes" in problems(data)[f"{TAR}/{first_key(data)}.jpg"]


def test_the_shorter_side_is_checked_where_the_aspect_is_kept(whole_aspect, tmp_path):
    data = Path(shutil.copytree(whole_aspect, tmp_path / "data"))
    retar(data, with_image(encoded(draw_image(1, SIZE + 2, SIZE + 1), subsampling="4:2:0")))
    key = first_key(data)
    assert problems(data) == {f"{TAR}/{key}.jpg": "49x50 pixels; expected 48 on the shorter side"}
    retar(data, with_image(encoded(draw_image(1, SIZE, 99), subsampling="4:2:0")))
    assert list(problems(data)) == ["manifest.json"]  # its statistics have fewer pixels


def test_originals_may_have_any_size_and_sampling_but_must_decode(whole_original, tmp_path):
    data = Path(shutil.copytree(whole_original, tmp_path / "data"))
    retar(data, with_image(encoded(draw_image(1, 33, 77), subsampling="4:4:4", progressive=True)))
    assert problems(data) == {}
    retar(data, with_image(encoded(draw_image(1, 33, 77))[:-30]))
    assert "does not decode" in problems(data)[f"{TAR}/{first_key(data)}.jpg"]
    retar(data, with_image(encoded(draw_image(1)[:, :, 0])))
    assert "decodes only after a repair: gray" in problems(data)[f"{TAR}/{first_key(data)}.jpg"]


def test_many_faults_of_a_shard_are_counted(data):
    stored = [(f"k{k}.{extension}", b"?") for k in range(20) for extension in ("jpg", "cls")]
    retar(data, lambda _: stored, samples=20)
    found = check(data).problems
    assert len(found) == MOST_PROBLEMS + 1
    assert found[-1] == Problem(TAR, "and 20 more problems")


# Indexes


def test_the_index_of_another_shard(data):
    shutil.copy(data / "train/train-000002.idx", data / INDEX)
    found = problems(data)
    assert list(found) == [INDEX]
    assert "not the tar's index: line 2 is 'jpg 512 " in found[INDEX]


def test_an_index_of_the_right_form_with_one_wrong_number(data):
    index = (data / INDEX).read_text()
    lines = index.split("\n")
    offset = lines[3].split()[1]
    (data / INDEX).write_text(index.replace(f" {offset} ", f" {int(offset) + 512} "))
    assert problems(data)[INDEX].startswith(f"not the tar's index: line 4 is 'jpg {int(offset) + 512} ")


@pytest.mark.parametrize(
    "change",
    [
        lambda index: index.replace("v1.2", "v1.1"),
        lambda index: index.replace("\n", "\r\n"),
        lambda index: index.rstrip("\n"),
        lambda index: index + "\n",
        lambda index: index.replace(" ", "  ", 1),
        lambda index: "\n".join(index.split("\n")[:-2]),
        lambda index: "\xff",
        lambda index: "",
    ],
)
def test_an_index_that_differs_in_any_way(data, change):
    (data / INDEX).write_bytes(change((data / INDEX).read_text()).encode("latin-1"))
    assert list(problems(data)) == [INDEX]


# Tars of other tools


def external_tar(path, first, label_member, count=6, **image_options):
    """Write a PAX tar as other tools do: JPEGs and labels of three classes, with odd names."""
    stored = []
    for k in range(first, first + count):
        jpeg = encoded(draw_image(k, **image_options))
        stored += [
            (f"./some.folder/{k:05d}.jpeg", jpeg),
            (f"./some.folder/{k:05d}.{label_member[0]}", label_member[1](k % 3)),
        ]
    place(path, tar_of(stored, tarfile.PAX_FORMAT, {"mtime": "1.5"})[0])


JSON = ("json", lambda label: b'{"width": 3, "label": %d, "text": "5"}' % label)
CLS = ("cls", lambda label: b"%d\n" % label)


@pytest.fixture(params=[(JSON, {}), (CLS, {"width": SIZE + 5}), (JSON, {"height": 77, "width": 52})])
def adopted(request, tmp_path):
    """Adopted datasets of three kinds: square images, equal shorter sides, and different shorter sides."""
    label_member, options = request.param
    root = tmp_path / "external"
    for number in range(3):
        external_tar(root / "train" / f"{number:05d}.tar", 6 * number, label_member, **options)
    if "height" in options:  # a second shorter side, so images are scaled on loading
        external_tar(root / "train" / "00003.tar", 18, label_member, height=60, width=90)
    external_tar(root / "val" / "00000.tar", 100, label_member, **options)
    adopt(root, size=SIZE, executor=Here())
    return root


EXTERNAL, EXTERNAL_INDEX = "train/00001.tar", "train/00001.idx"


@pytest.mark.parametrize("fast", [False, True])
def test_an_undamaged_adopted_dataset_has_no_faults(adopted, fast):
    found = check(adopted, fast=fast)
    assert (found.problems, found.notes) == ((), ())
    assert found.samples == sum(len(members(path)) // 2 for path in adopted.rglob("*.tar"))


def test_a_changed_byte_of_an_adopted_tar_is_found(adopted):
    content = bytearray((adopted / EXTERNAL).read_bytes())
    content[len(content) // 2] ^= 1
    (adopted / EXTERNAL).write_bytes(content)
    assert "its SHA-256" in problems(adopted, fast=True)[EXTERNAL]


@pytest.mark.parametrize("name", [EXTERNAL, EXTERNAL_INDEX, "report.csv"])
def test_a_deleted_file_of_an_adopted_dataset(adopted, name):
    (adopted / name).unlink()
    assert problems(adopted) == {name: "missing"}


def test_files_beside_adopted_tars_are_notes(adopted):
    place(adopted / "train" / "00099.tar")
    place(adopted / "train" / "00001_stats.json")
    found = check(adopted)
    assert found.problems == ()
    assert [note.place for note in found.notes] == ["train/00001_stats.json", "train/00099.tar"]


def change_entry(folder, extension, offset=0, size=0):
    """Change the first image's or label's offset and size in an index, which stays well-formed."""
    index = (folder / EXTERNAL_INDEX).read_text().split("\n")
    words = index[1].split()
    at = words.index(extension)
    words[at + 1], words[at + 2] = str(int(words[at + 1]) + offset), str(int(words[at + 2]) + size)
    index[1] = " ".join(words)
    (folder / EXTERNAL_INDEX).write_text("\n".join(index))
    return f"{EXTERNAL}/{words[at + 3]}"


@pytest.mark.parametrize(
    ("extension", "offset", "size", "what"),
    [
        ("jpg", 10**9, 0, "which are not in the tar"),
        ("jpg", 0, 10**9, "which are not in the tar"),
        ("jpg", -(10**9), 0, "which are not in the tar"),
        ("cls", 0, -(10**6), "which are not in the tar"),
        ("jpg", 512, 0, "does not decode"),
        ("jpg", 0, -100, "does not decode"),
        ("cls", 0, 1, "do not end with a label"),
    ],
)
def test_an_index_that_points_elsewhere(adopted, extension, offset, size, what):
    place_changed = change_entry(adopted, extension, offset, size)
    assert what in problems(adopted)[place_changed]


@pytest.mark.parametrize(
    "content", [b"", b"v1.2 6\n", b"v1.1 0\n", b"\xff", b"v1.2 1\njpg a b c cls 1 2 d\n"]
)
def test_an_adopted_tars_index_that_is_none(adopted, content):
    (adopted / EXTERNAL_INDEX).write_bytes(content)
    assert "not a complete v1.2 index" in problems(adopted)[EXTERNAL_INDEX]


def test_an_adopted_tars_index_that_lacks_samples_or_parts(adopted):
    index = (adopted / EXTERNAL_INDEX).read_text().split("\n")
    (adopted / EXTERNAL_INDEX).write_text("\n".join(["v1.2 5", *index[2:]]))
    assert problems(adopted)[EXTERNAL] == "5 samples, but the manifest says 6"
    (adopted / EXTERNAL_INDEX).write_text("\n".join(["v1.2 6", " ".join(index[1].split()[:4]), *index[2:]]))
    assert [what for what in problems(adopted).values() if "the index lists jpg for it" in what]


def test_an_adopted_label_that_is_no_class(adopted):
    change_manifest(adopted, lambda m: m["classes"].pop())
    found = check(adopted).problems
    assert {problem.what for problem in found} == {"the label is 2, but there are 2 classes"}
