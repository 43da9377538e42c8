"""What names, ids and messages may do to a terminal: nothing. Their control characters are shown and not obeyed."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.text import Text


def printable(text: str) -> str:
    """Text without what a terminal would obey: control characters, as Python writes them."""
    return "".join(c if c == "\n" or c.isprintable() else ascii(c)[1:-1] for c in text)


def cells(*values: object) -> list[Text]:
    """A row of a table or its titles: text as it is, in which square brackets are no markup."""
    from rich.text import Text

    return [Text(printable(str(value))) for value in values]
