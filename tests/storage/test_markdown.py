"""Names in cards and tables stay in their place, whatever is in them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from markdown import markdown

from trl_prl.storage.markdown import as_text, table


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("my-org/my_model", "my-org/my_model"),
        ("a|b\nc", r"a\|b c"),
        ("`x`", r"\`x\`"),
        ("<script>1 & 2</script>", "&lt;script&gt;1 &amp; 2&lt;/script&gt;"),
        ("23.3 [17.1, 29.6]", "23.3 [17.1, 29.6]"),
        ("[free](https://evil)", r"[free\](https://evil)"),
        (0.5, "0.5"),
    ],
)
def test_what_would_be_a_mark_is_escaped(value: object, text: str) -> None:
    assert as_text(value) == text


@given(st.lists(st.lists(st.text(max_size=20), min_size=2, max_size=2), min_size=1, max_size=5))
def test_a_table_has_its_cells_and_nothing_else(rows: list[list[str]]) -> None:
    page = markdown(table(("name", "value"), rows), extensions=["tables"])
    assert page.count("<td>") == 2 * len(rows)
    assert page.count("<tr>") == 1 + len(rows)
    for tag in ("<script", "<a ", "<code", "<img"):
        assert tag not in page
