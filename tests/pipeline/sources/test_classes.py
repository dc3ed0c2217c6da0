import pytest
from helpers.folders import place, refused

from pipeline.sources.classes import chosen_classes, read_class_list


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("c.txt", "cat\n\n# dogs\ndog, wolf\n", ("cat", "dog, wolf")),
        ("wnids.txt", "n02\nn01440764\n", ("n02", "n01440764")),
        (
            "LOC_synset_mapping.txt",
            "n01440764 tench, Tinca tinca\nn01443537 goldfish\n",
            ("n01440764", "n01443537"),
        ),
        ("c.csv", 'n01440764,tench\n"dog, wolf",x\n', ("n01440764", "dog, wolf")),
        ("c.tsv", "7\tseven\n3\tthree\n", ("7", "3")),
    ],
)
def test_lists_of_classes(tmp_path, name, text, expected):
    assert read_class_list(place(tmp_path / name, text.encode())) == expected


@pytest.mark.parametrize(
    ("data", "message"),
    [(b"", "holds no classes"), (b"a\nb\na\n", "names a twice"), (b"\xff\xfe", "not UTF-8 text")],
)
def test_bad_lists_of_classes(tmp_path, data, message):
    file = place(tmp_path / "c.txt", data)
    refused(lambda: read_class_list(file), f"--classes {file}: ", message)


NAMES = {"n1": "crane", "n2": "crane", "n3": "maillot", "n4": "maillot, tank suit", "n5": "tench, Tinca"}


@pytest.mark.parametrize(
    ("wanted", "both"), [("crane", "n1 and n2"), ("maillot", "n3 and n4"), ("n2", ""), ("tank", "")]
)
def test_a_name_of_two_classes_chooses_none(wanted, both):
    if both:
        message = f"{wanted} names two classes: {both}; give their ids"
        refused(lambda: chosen_classes(["tench", wanted], list(NAMES), NAMES), message)
    elif wanted in NAMES:
        assert chosen_classes(["n5", wanted], list(NAMES), NAMES) == ["n5", wanted]
    else:
        refused(lambda: chosen_classes(["tench", wanted], list(NAMES), NAMES), f"{wanted} is none of the 5")


def test_a_list_that_is_not_there(tmp_path):
    refused(lambda: read_class_list(tmp_path / "c.txt"), "No such file")
