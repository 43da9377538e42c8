"""A hook of mkdocs: links to files of the repository that are no pages of the site.

They lead to the repository where mkdocs.yml names one (`repo_url`), and are plain text otherwise.
"""

from __future__ import annotations

import posixpath
import re
from typing import Any

_LINK = re.compile(r"(?<!!)\[([^\]]+)\]\((\.\./[^)\s#]+)(#[^)\s]*)?\)")


def on_page_markdown(markdown: str, page: Any, config: Any, files: Any) -> str:
    """Called by mkdocs with every page before it is rendered."""

    def outside(match: re.Match[str]) -> str:
        text, target, anchor = match.groups()
        path = posixpath.normpath(posixpath.join("docs", posixpath.dirname(page.file.src_uri), target))
        if path.startswith("docs/"):
            return match.group()
        base = (config.repo_url or "").rstrip("/")
        return f"[{text}]({base}/blob/main/{path}{anchor or ''})" if base else text

    return _LINK.sub(outside, markdown)
