import subprocess
import sys

import pytest
from helpers.folders import is_root, place

from pipeline.errors import UsageError
from pipeline.sources.detection import LAYOUTS, read_source


def flat(root, **counts):
    """`root/CLASS/CLASS_N.jpg` for CLASS=count."""
    for name, count in counts.items():
        for number in range(count):
            place(root / name / f"{name}_{number:02d}.jpg")
    return root


def refused(root, message, **options):
    with pytest.raises(UsageError) as error:
        read_source(root, **options)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_a_missing_source(tmp_path):
    refused(tmp_path / "nowhere", f"source {tmp_path}/nowhere: it does not exist")


def test_a_file_as_source(tmp_path):
    refused(place(tmp_path / "train.zip"), f"source {tmp_path}/train.zip: it is a file")


def test_class_folders_are_what_is_left(tmp_path):
    assert read_source(flat(tmp_path, ant=1, bee=1)).layout == "folders"


@pytest.mark.parametrize("layout", [name for name in LAYOUTS if name != "folders"])
def test_a_layout_that_is_not_there(tmp_path, layout):
    refused(flat(tmp_path, ant=1, bee=1), str(tmp_path), layout=layout)


def test_a_layout_that_is_unknown(tmp_path):
    message = "--layout os is unknown; give auto, archives, kaggle, parquet, webdataset, folders"
    refused(flat(tmp_path, ant=1, bee=1), message, layout="os")


def test_the_options_of_the_validation_split_are_passed_on(tmp_path):
    source = read_source(flat(tmp_path, ant=20, bee=20), "folders", 0.25, 3)
    again = read_source(tmp_path, val_fraction=0.25, seed=4)
    assert [len(source.splits[split]) for split in ("train", "val")] == [30, 10]
    assert source.splits["val"] != again.splits["val"]


def test_a_link_to_nowhere_is_named(tmp_path):
    flat(tmp_path, ant=1, bee=1)
    (tmp_path / "ant" / "gone.jpg").symlink_to("nowhere")
    refused(tmp_path, f"cannot read {tmp_path}/ant/gone.jpg: No such file or directory;")


@pytest.mark.skipif(is_root(), reason="root may read anything")
@pytest.mark.parametrize("name", [".", "ILSVRC2012_img_train.tar"])
def test_unreadable_places(tmp_path, name):
    place(flat(tmp_path, ant=1, bee=1) / "ILSVRC2012_img_train.tar")
    (tmp_path / name).chmod(0)
    try:
        refused(tmp_path, "check its permissions")
    finally:
        (tmp_path / name).chmod(0o755)


def test_class_folders_need_none_of_the_heavy_libraries(tmp_path):
    flat(tmp_path, ant=1, bee=1)
    code = (
        "import sys; from pipeline import read_source; read_source(sys.argv[1]); "
        "print(*{'scipy', 'pyarrow', 'fsspec', 'torch'} & set(sys.modules))"
    )
    found = subprocess.run([sys.executable, "-c", code, tmp_path], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == ""
