"""Pages: self-contained HTML from our templates; every text that came from data is escaped."""

from __future__ import annotations

from typing import Any

from jinja2 import Environment, PackageLoader, select_autoescape


def render(template: str, **values: Any) -> str:
    """A page of `ccassets/pages/templates` filled with values."""
    environment = Environment(
        loader=PackageLoader("ccassets.pages"),
        autoescape=select_autoescape(default=True),
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(template).render(**values)


def markdown_cell(text: str) -> str:
    """A text as it can stand in a cell of a Markdown table."""
    return text.replace("&", "&amp;").replace("<", "&lt;").replace("|", "\\|").replace("\n", " ")
