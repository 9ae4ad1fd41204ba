"""What is given as the name of a role."""

from __future__ import annotations

import pytest

from bursar.cli.options import read_role_name
from bursar.core.errors import InvalidText


@pytest.mark.parametrize("text", ["ml/**", "@gpu-users", "!ml", "=ml", "ml|eng", "(ml", "a&b"])
def test_what_reads_like_an_expression_is_no_name_unless_in_double_quotes(text: str) -> None:
    with pytest.raises(InvalidText) as caught:
        read_role_name(text)
    assert "reads like a role expression" in str(caught.value) and f"'\"{text}\"'" in str(caught.value)
    assert read_role_name(f'"{text}"') == text


@pytest.mark.parametrize("text", ["*", "ml", "eng/web", "a@b", "eng/.", ""])
def test_other_names_are_taken_as_they_are(text: str) -> None:
    assert read_role_name(text) == text
