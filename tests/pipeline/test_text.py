"""Text that is shown holds nothing that a terminal obeys."""

import pytest

from pipeline.text import visible


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
