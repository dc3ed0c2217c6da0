"""Text that is shown holds nothing that a terminal obeys."""

import pytest

from pipeline.text import number_of, visible


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("tench, Tinca tinca", None),
        ("日本語\u3000한국어 می\u200cخواهم 👩\u200d👩 e\u0301\u00a0", None),
        ("\x1b[2J\r\n\t\x7f\x9b", r"\x1b[2J\r\n\t\x7f\x9b"),
        ("\u202egpj.\u2066 \u200b\u2028\ufeff", r"\u202egpj.\u2066 \u200b\u2028\ufeff"),
        ("caf\udce9 \U0010fffd", r"caf\udce9 \U0010fffd"),
    ],
)
def test_what_a_terminal_obeys_is_escaped_and_letters_stay(text, shown):
    assert visible(text) == (text if shown is None else shown)


def test_one_is_singular():
    found = [number_of(count, "shard") for count in (0, 1, 2, 1000)]
    assert found == ["0 shards", "1 shard", "2 shards", "1,000 shards"]
