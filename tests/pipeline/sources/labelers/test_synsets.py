import io
import subprocess
import sys

import pytest
from helpers.imagenet_files import meta_mat
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.io import savemat

from pipeline.sources.labelers.devkit import Synset, read_synsets

CLASSES = {1: ("n02119789", "kit fox, Vulpes macrotis"), 2: ("n02100735", "English setter")}
PLAIN = meta_mat(CLASSES, compressed=False)


def with_byte(at, value):
    return PLAIN[:at] + bytes([value]) + PLAIN[at + 1 :]


@pytest.mark.parametrize("compressed", [False, True])
def test_the_rows_of_the_table(compressed):
    assert read_synsets(meta_mat(CLASSES, compressed)) == [
        Synset(1, "n02119789", "kit fox, Vulpes macrotis", 0),
        Synset(2, "n02100735", "English setter", 0),
        Synset(3, "n00000001", "entity", 2),
    ]


def test_names_beyond_ascii():
    found = read_synsets(meta_mat({1: ("n02119789", "café, Grüße"), 2: CLASSES[2]}))
    assert found[0].words == "café, Grüße"


@pytest.mark.parametrize("data", [b"", b"junk", bytes(5000), PLAIN[:1000], PLAIN[:200], b"<html>" * 500])
def test_what_is_no_such_file(data):
    with pytest.raises(ValueError, match=r"^\w+: .") as error:
        read_synsets(data)
    assert "\n" not in str(error.value)


def test_a_table_of_something_else():
    file = io.BytesIO()
    savemat(file, {"other": 1})
    with pytest.raises(ValueError, match="KeyError: 'synsets'"):
        read_synsets(file.getvalue())


# With each of these bytes SciPy 1.17.1's loadmat ends its process by a segmentation fault.
@pytest.mark.parametrize(("at", "value"), [(384, 122), (905, 255), (1288, 0), (1441, 255)])
def test_damage_that_crashes_scipy_is_an_error(at, value):
    with pytest.raises(ValueError, match=r"crashed SciPy|\w+Error: "):
        read_synsets(with_byte(at, value))


@settings(max_examples=10)
@given(st.integers(0, len(PLAIN) - 1), st.integers(0, 255))
def test_any_damage_ends_in_rows_or_one_line(at, value):
    try:
        read_synsets(with_byte(at, value))
    except ValueError as error:
        message = str(error)
    else:
        message = "read"
    assert message
    assert "\n" not in message


def test_scipy_stays_out_of_the_caller_s_process(tmp_path):
    (tmp_path / "meta.mat").write_bytes(PLAIN)
    code = (
        "import sys; from pathlib import Path; from pipeline.sources.labelers.devkit import read_synsets; "
        "read_synsets(Path(sys.argv[1]).read_bytes()); print('scipy' in sys.modules)"
    )
    command = [sys.executable, "-c", code, tmp_path / "meta.mat"]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip() == "False"
