"""Renderer of pages: our templates filled with values, every text from data escaped."""

from __future__ import annotations

from typing import Any

from jinja2 import Environment, PackageLoader, select_autoescape

from ccassets.pages.glossary import Glossary


def render(template: str, **values: Any) -> str:
    """Fill a template of `ccassets/pages/templates`; in it, `term(text)` explains a term, `glossary` lists them."""
    environment = Environment(
        loader=PackageLoader("ccassets.pages"),
        autoescape=select_autoescape(default=True),
        trim_blocks=True,
        lstrip_blocks=True,
    )
    glossary = Glossary()
    environment.globals |= {"glossary": glossary, "term": glossary.term}
    return environment.get_template(template).render(**values)


def markdown_cell(text: str) -> str:
    """Escape a text for a cell of a Markdown table."""
    return text.replace("&", "&amp;").replace("<", "&lt;").replace("|", "\\|").replace("\n", " ")
