from __future__ import annotations

from resless.errors import InputError


def test_a_message_is_one_line_whatever_is_named_in_it():
    assert str(InputError("no file a\nb.png,\r\nnor c\u2028d: take e")) == "no file a b.png, nor c d: take e"
