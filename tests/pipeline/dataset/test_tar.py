import io
import subprocess
import tarfile

import fsspec
import pytest
from helpers import folders
from helpers.imagenet_files import tar_bytes
from hypothesis import given, settings, strategies as st

from pipeline.dataset.tar import scan
from pipeline.errors import UsageError

FILES = [("a.jpg", b"first"), ("b/c.jpg", b"x" * 512), ("empty", b""), ("é.jpg", b"y" * 1000)]
FORMATS = [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT]


def listed(data, start=0, end=None):
    """(name, bytes) of every member that `scan` yields."""
    return [(m.name, data[m.offset : m.offset + m.size]) for m in scan(io.BytesIO(data), "x.tar", start, end)]


def refused(message, data, start=0, end=None):
    folders.refused(lambda: listed(data, start, end), message)


# Accepted


PREFIXED = [("d" * 100 + "/" + "x" * 90 + ".jpg", b"1"), ("z.jpg", b"4")]  # the prefix field of USTAR


@pytest.mark.parametrize("files", [FILES, PREFIXED])
def test_members_are_found_where_they_lie(files):
    for kind in FORMATS:
        assert listed(tar_bytes(files, format=kind)) == files


def test_a_pax_header_may_give_the_size():
    info = tarfile.TarInfo("big.jpg")
    info.pax_headers = {"size": "700", "mtime": "1.5"}
    data = info.tobuf(tarfile.PAX_FORMAT) + b"z" * 700 + bytes(324) + bytes(1024)
    assert listed(data) == [("big.jpg", b"z" * 700)]


def header(size, kind=tarfile.REGTYPE):
    """The header of a.jpg with any 12 bytes in the size field."""
    info = tarfile.TarInfo("a.jpg")
    info.type = kind
    block = bytearray(info.tobuf(tarfile.GNU_FORMAT))
    block[124:136] = size
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


def base_256(size):
    return b"\x80" + size.to_bytes(11, "big")


def test_sizes_in_base_256():
    assert listed(header(base_256(5)) + b"hello" + bytes(507) + bytes(1024)) == [("a.jpg", b"hello")]


def test_a_tar_inside_a_file():
    data = tar_bytes(FILES)
    assert listed(b"?" * 700 + data + b"junk", 700, 700 + len(data)) == FILES


def test_gnu_tar_s_own(tmp_path):
    (tmp_path / "d").mkdir()
    for name in ("a.jpg", "d/b.jpg", "d/" + "n" * 200):
        (tmp_path / name).write_bytes(name.encode())
    v7 = ["--format=v7", "--exclude=n*"]
    for options in ([], v7, ["--format=oldgnu"], ["--format=posix"], ["-b", "2048"]):
        tar = tmp_path / "x.tar"
        subprocess.run(["tar", *options, "-cf", tar, "-C", tmp_path, "./a.jpg", "./d"], check=True)
        with tarfile.open(tar) as reader:
            files = {m.name.removeprefix("./"): reader.extractfile(m).read() for m in reader if m.isfile()}
        assert dict(listed(tar.read_bytes())) == files
        assert len(files) == (2 if options == v7 else 3)
        tar.unlink()


def test_one_zero_block_ends_a_tar():
    data = tar_bytes(FILES[:1])
    assert listed(data[:1536]) == FILES[:1]


def test_the_file_may_be_used_between_members_and_come_from_fsspec():
    fsspec.filesystem("memory").pipe_file("/tars/x.tar", tar_bytes(FILES))
    names = []
    with fsspec.open("memory://tars/x.tar") as file:
        for member in scan(file, "x.tar"):
            names.append(member.name)
            file.seek(17)
    assert names == [name for name, _ in FILES]


# Damage


def test_every_truncation_is_an_error_and_says_where():
    data = tar_bytes(FILES, format=tarfile.USTAR_FORMAT)
    blocks = 2 + 2 + 1 + 3  # headers and data of FILES
    assert listed(data) == FILES
    for length in range(0, len(data), 256):
        if length >= (blocks + 1) * 512:
            assert listed(data[:length]) == FILES  # one zero block of the end mark remains
        else:
            refused(f"x.tar: truncated at offset {length:,}: ", data[:length])


def test_an_inner_tar_must_not_lead_out_of_its_place():
    data = tar_bytes([("b.jpg", b"2" * 9000)])
    refused("truncated at offset 5,100: member b.jpg needs 4,512 bytes more", b"?" * 100 + data, 100, 5100)


@pytest.mark.parametrize("at", [0, 3, 100, 149, 156, 257, 300])
def test_a_damaged_header_is_named_with_its_offset(at):
    data = bytearray(tar_bytes(FILES))
    data[1024 + at] ^= 0x55
    refused("x.tar: damaged at offset 1,024: no tar header (", bytes(data))


@pytest.mark.parametrize(
    "data", [b"<html>Sign in" * 100, b"\x1f\x8b" + bytes(range(256)) * 8, b"\xff" * 5000]
)
def test_what_is_no_tar(data):
    refused("x.tar: damaged at offset 0: no tar header", data)


def test_a_hole_in_a_download_is_no_end_mark():
    data = bytearray(tar_bytes(FILES))
    data[1024:1536] = bytes(512)
    refused("x.tar: damaged: data at offset 1,536, after the end mark at 1,024;", bytes(data))
    hole = tar_bytes(FILES[:2]) + bytes(2**21)
    refused(f"x.tar: damaged at offset 2,048: {len(hole) - 2048:,} bytes from there to the end", hole)


def test_a_second_tar_behind_the_first_is_not_lost():
    data = tar_bytes(FILES[:2])
    refused(f"data at offset {len(data):,}, after the end mark at 2,048", data + tar_bytes(FILES[2:]))


@pytest.mark.parametrize(
    "kind",
    [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE, tarfile.GNUTYPE_SPARSE, b"V"],
)
def test_members_that_are_no_plain_files(kind):
    info = tarfile.TarInfo("odd.jpg")
    info.type, info.linkname = kind, "a.jpg"
    data = tar_bytes(FILES[:1])[:1024] + info.tobuf(tarfile.GNU_FORMAT) + bytes(1024)
    refused("odd.jpg", data)
    refused("at offset 1,024", data)


LINKS = {
    "hard.jpg": (tarfile.LNKTYPE, "b/c.jpg", b"x" * 512),
    "b/soft.jpg": (tarfile.SYMTYPE, "../later.jpg", b"later"),
    "b/chain.jpg": (tarfile.SYMTYPE, "./soft.jpg", b"later"),
    "b/gone.jpg": (tarfile.SYMTYPE, "a.jpg", None),
    "out.jpg": (tarfile.SYMTYPE, "../a.jpg", None),
    "absolute.jpg": (tarfile.SYMTYPE, "/a.jpg", None),
    "circle.jpg": (tarfile.SYMTYPE, "turn.jpg", None),
    "turn.jpg": (tarfile.SYMTYPE, "circle.jpg", None),
}


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("before", [b"", bytes(1536)])
def test_links_have_the_data_of_the_member_that_they_lead_to(kind, before):
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=kind) as tar:
        for name, data in [*FILES, *LINKS.items(), ("later.jpg", b"later")]:
            info = tarfile.TarInfo(f"./{name}")
            if isinstance(data, tuple):
                info.type, info.linkname, data = *data[:2], b""
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    data = before + file.getvalue()
    found = list(scan(io.BytesIO(data), "x.tar", len(before), follow_links=True))
    assert [member.name for member in found] == [*(name for name, _ in FILES), "later.jpg", *LINKS]
    for member in found[-len(LINKS) :]:
        content = data[member.offset : member.offset + member.size] if member.offset >= 0 else None
        assert content == LINKS[member.name][2]


def test_a_sparse_file_of_gnu_tar(tmp_path):
    with (tmp_path / "holes.jpg").open("wb") as file:
        file.truncate(10**6)
    for options in ([], ["--format=posix"]):
        tar = tmp_path / "x.tar"
        subprocess.run(["tar", "-S", *options, "-cf", tar, "-C", tmp_path, "holes.jpg"], check=True)
        refused("sparse", tar.read_bytes())


def test_sizes_below_zero_and_beyond_reason():
    behind = bytes(4096)
    damaged = "damaged at offset 0: no tar header (a size of {:,} bytes)"
    refused(damaged.format(-1024), header(b"-2000\0".ljust(12)) + behind)
    refused(damaged.format(-1), header(b"\xff" * 12) + behind)
    refused("truncated at offset 4,608: member a.jpg needs", header(base_256(2**60)) + behind)
    for kind in (tarfile.GNUTYPE_LONGNAME, tarfile.XHDTYPE, tarfile.XGLTYPE):
        refused(damaged.format(2**60), header(base_256(2**60), kind) + behind)


def test_headers_that_only_announce_others():
    info = tarfile.TarInfo("a")
    info.type = tarfile.GNUTYPE_LONGNAME
    refused("damaged at offset 0", info.tobuf(tarfile.GNU_FORMAT) * 5000 + bytes(1024))


VALID = [tar_bytes([*FILES, ("l" * 150, b"1")], format=kind) for kind in FORMATS[1:]]


@settings(max_examples=60)
@given(
    st.sampled_from(VALID),
    st.lists(st.tuples(st.integers(0, 6000), st.integers(0, 255)), min_size=1, max_size=4),
    st.none() | st.integers(0, 12000),
)
def test_damaged_bytes_end_in_an_error_or_in_members_inside_the_file(data, changes, length):
    damaged = bytearray(data[:length])
    for at, value in changes:
        if at < len(damaged):
            damaged[at] = value
    found = []
    try:
        for member in scan(io.BytesIO(bytes(damaged)), "x.tar"):
            found.append(member)
    except UsageError:
        pass
    else:
        # Changed data and names are found by other checks; a missing member must be found here.
        assert len(found) == 5
    assert all(512 <= m.offset <= m.offset + m.size <= len(damaged) for m in found)


names = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), min_size=1, max_size=150)
plain = names.filter(lambda name: not name.endswith("/") and not name.startswith("./"))


@settings(max_examples=40)
@given(st.lists(st.tuples(plain, st.binary(max_size=1500)), max_size=8), st.sampled_from(FORMATS[1:]))
def test_whatever_tarfile_writes_is_read_back(files, kind):
    assert listed(tar_bytes(files, format=kind)) == files
