"""Renderer of pages: our templates filled with values, every text from data escaped."""

from __future__ import annotations

from typing import Any

from jinja2 import BytecodeCache, Environment, PackageLoader, select_autoescape
from jinja2.bccache import Bucket

from ccassets.pages.glossary import Glossary


class _CompiledTemplates(BytecodeCache):
    """Templates that this process compiled; an environment lives for one page, whose glossary it holds."""

    def __init__(self) -> None:
        self._bytecode: dict[str, bytes] = {}

    def load_bytecode(self, bucket: Bucket) -> None:
        if bucket.key in self._bytecode:
            bucket.bytecode_from_string(self._bytecode[bucket.key])

    def dump_bytecode(self, bucket: Bucket) -> None:
        self._bytecode[bucket.key] = bucket.bytecode_to_string()


_COMPILED_TEMPLATES = _CompiledTemplates()


def render(template: str, **values: Any) -> str:
    """Fill a template of `ccassets/pages/templates`; in it, `term(text)` explains a term, `glossary` lists them."""
    environment = Environment(
        loader=PackageLoader("ccassets.pages"),
        autoescape=select_autoescape(default=True),
        trim_blocks=True,
        lstrip_blocks=True,
        bytecode_cache=_COMPILED_TEMPLATES,
    )
    glossary = Glossary()
    environment.globals |= {"glossary": glossary, "term": glossary.term}
    return environment.get_template(template).render(**values)


def markdown_cell(text: str) -> str:
    """Escape a text for a cell of a Markdown table."""
    return text.replace("&", "&amp;").replace("<", "&lt;").replace("|", "\\|").replace("\n", " ")
