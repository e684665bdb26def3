"""Pages of the docs site that are made when it is built: reference, pages of the repository, notebooks, `llms.txt`.

MkDocs calls the functions `on_…`.
"""

from __future__ import annotations

import ast
import html
import json
import posixpath
import re
from collections.abc import Iterator
from importlib import import_module
from itertools import pairwise
from pathlib import Path
from typing import Any

import typer
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.nav import Navigation
from mkdocs.structure.pages import Page
from pydantic import BaseModel

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("analysis", "datasets", "encoders", "exports", "extraction", "h5", "orchestration")
COPIED = {
    "index.md": "README.md",
    "index.zh.md": "README.zh.md",
    "changelog.md": "CHANGELOG.md",
    "contributing.md": "CONTRIBUTING.md",
    "benchmark_results.md": "benchmarks/RESULTS.md",
    "phantom_encoder.md": "ccassets/encoders/phantom/README.md",
}
"""By page of the site: the file of the repository that it shows."""
NOTEBOOKS = {f"notebooks/{path.stem}.md": f"notebooks/{path.name}" for path in (ROOT / "notebooks").glob("*.ipynb")}

_pages: list[Page] = []
"""The pages of the site in the order of its navigation."""


# --- reference ---------------------------------------------------------------------------------------


def api_page(module: str) -> str:
    """Every public name of a module, with its docstring."""
    names = import_module(module).__all__
    lines = [f"# {module}", "", import_module(module).__doc__ or "", ""]
    return "\n".join([*lines, *(f"::: {module}.{name}\n" for name in names)])


def errors_page() -> str:
    """The tree of the exceptions, and each of them."""
    tree = (import_module("ccassets.errors").__doc__ or "").partition("\n\n")[2].strip()
    page = api_page("ccassets.errors").replace(tree, f"```text\n{tree}\n```")
    return page.replace("# ccassets.errors", "# Errors\n\nPython finds them in `ccassets.errors`.", 1)


def _cell(text: str) -> str:
    """A text for a cell of a table; outside of code, nothing in it is markup."""
    parts = re.split(r"(`[^`]*`)", " ".join(text.split()))
    return "".join(part if part.startswith("`") else part.replace("|", "\\|").replace("<", "&lt;") for part in parts)


def _table(header: str, rows: list[tuple[str, ...]]) -> Iterator[str]:
    yield f"| {header} |"
    yield "|" + "---|" * (header.count("|") + 1)
    yield from (f"| {' | '.join(_cell(cell) for cell in row)} |" for row in rows)
    yield ""


def study_sections() -> dict[str, type[BaseModel]]:
    """The models of a study file by the path of their keys; of a data set or encoder, one model a kind."""
    from ccassets.study import schema

    datasets = (
        schema.FolderConfig,
        schema.TableConfig,
        schema.HuggingfaceConfig,
        schema.MedmnistConfig,
        schema.PhantomDatasetConfig,
    )
    encoders = (
        schema.ConceptClipConfig,
        schema.TransformersConfig,
        schema.OpenClipConfig,
        schema.PythonEncoderConfig,
        schema.PhantomEncoderConfig,
    )

    def kind(model: type[BaseModel]) -> str:
        return str(model.model_fields["kind"].annotation.__args__[0])  # type: ignore[union-attr]

    return {
        "attributes": schema.StudyConfig,
        **{f"dataset, kind {kind(model)}": model for model in datasets},
        "dataset.columns, of a table": schema.TableColumns,
        "dataset.dicom": schema.DicomConfig,
        **{f"encoder, kind {kind(model)}": model for model in encoders},
        "vocabulary": schema.Vocabulary,
        "vocabulary.labels": schema.LabelWords,
        "vocabulary.concepts": schema.ConceptWords,
        "vocabulary.concepts.words, each": schema.Concept,
        "extraction": schema.ExtractionConfig,
        "storage": schema.StorageConfig,
    }


def _key_descriptions() -> dict[str, dict[str, str]]:
    """By section: the docstring under each of its keys."""
    tree = ast.parse((ROOT / "ccassets" / "study" / "schema.py").read_text(encoding="utf-8"))
    descriptions: dict[str, dict[str, str]] = {}
    for section in (node for node in tree.body if isinstance(node, ast.ClassDef)):
        descriptions[section.name] = {
            key.target.id: text.value.value
            for key, text in pairwise(section.body)
            if isinstance(key, ast.AnnAssign) and isinstance(key.target, ast.Name)
            if isinstance(text, ast.Expr) and isinstance(text.value, ast.Constant)
        }
    return descriptions


def study_keys_page() -> str:
    """Every key of every section of a study file: what it takes, its default, what it means."""
    lines = ["# Study keys", "", "Every key of a study file, from the model that reads it. [A study](../study.md) has"]
    lines += ["an example; [data sets](../data.md) and [encoders](../encoders.md) explain theirs.", ""]
    texts = _key_descriptions()
    for title, model in study_sections().items():
        descriptions: dict[str, str] = {}
        for base in reversed(model.__mro__):
            descriptions |= texts.get(base.__name__, {})
        rows = []
        for name, field in model.model_fields.items():
            nested = isinstance(field.default, BaseModel)
            default = "" if field.is_required() else "a section" if nested else f"`{_as_yaml(field.default)}`"
            rows.append((f"`{name}`", default or "**required**", descriptions.get(name, "")))
        lines += [f"## {title}", "", _first_paragraph(model.__doc__), "", *_table("key | default | meaning", rows)]
    return "\n".join(lines)


def _as_yaml(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False).strip('"') or '""'


def _first_paragraph(text: str | None) -> str:
    return " ".join((text or "").split("\n\n")[0].split())


def commands() -> dict[str, Any]:
    """The commands of the program by name."""
    from ccassets.cli import app

    return typer.main.get_command(app).commands  # type: ignore[attr-defined, no-any-return]


def commands_page() -> str:
    """Every command with its arguments and options."""
    lines = ["# Commands", "", "Every command of `ccassets`, with what `ccassets COMMAND --help` says about it.", ""]
    lines += ["Exit codes: 0: done; 1: findings or a failure; 2: wrong use or unreadable input.", ""]
    for name, command in commands().items():
        context = command.make_context(name, [], resilient_parsing=True)
        usage = " ".join(command.collect_usage_pieces(context))
        records = [parameter.get_help_record(context) for parameter in command.params]
        rows = [(f"`{record[0]}`", record[1]) for record in records if record]
        lines += [f"## {name}", "", f"```text\nccassets {name} {usage}\n```", "", command.help or "", ""]
        lines += _table("argument or option | meaning", rows)
    return "\n".join(lines)


# --- notebooks ---------------------------------------------------------------------------------------


def notebook_page(path: Path) -> str:
    """A notebook as Markdown: its texts, its code, and of its outputs the texts and pictures."""
    lines = []
    for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
        source = "".join(cell["source"])
        if cell["cell_type"] == "markdown":
            lines += [source, ""]
            continue
        lines += [f"```python\n{source}\n```", ""]
        for output in cell["outputs"]:
            data = output.get("data", {"text/plain": output.get("text", "")})
            if "image/png" in data:
                lines += [f"![What the cell draws](data:image/png;base64,{''.join(data['image/png']).strip()})", ""]
            elif text := "".join(data.get("text/plain", "")).strip():
                lines += [f"```text\n{text}\n```", ""]
    return "\n".join(lines)


# --- MkDocs ------------------------------------------------------------------------------------------


def generated_pages() -> dict[str, str]:
    """Every page that is made here, by its path in the site."""
    return {
        **{page: (ROOT / source).read_text(encoding="utf-8") for page, source in COPIED.items()},
        **{page: notebook_page(ROOT / source) for page, source in NOTEBOOKS.items()},
        "reference/ccassets.md": api_page("ccassets"),
        **{f"reference/{name}.md": api_page(f"ccassets.{name}") for name in PACKAGES},
        "reference/errors.md": errors_page(),
        "reference/study_keys.md": study_keys_page(),
        "reference/commands.md": commands_page(),
    }


def on_files(files: Files, config: MkDocsConfig) -> Files:
    for path, content in generated_pages().items():
        files.append(File.generated(config, path, content=content))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Let links between files of the repository lead to their pages, and set lists off as MkDocs needs them."""
    path = page.file.src_uri
    source = COPIED.get(path) or NOTEBOOKS.get(path) or f"docs/{path}"
    pages = {target: page for page, target in (COPIED | NOTEBOOKS).items()}

    def link(match: re.Match[str]) -> str:
        target, hash_, anchor = match[1].partition("#")
        if not target or ":" in target:
            return match[0]
        in_repository = posixpath.normpath(posixpath.join(posixpath.dirname(source), target))
        in_site = pages.get(in_repository, in_repository.removeprefix("docs/"))
        return f"]({posixpath.relpath(in_site, posixpath.dirname(path))}{hash_}{anchor})"

    if not path.startswith("reference/"):
        markdown = re.sub(r"\]\(([^)\s]+)\)", link, markdown)
    return re.sub(r"^(?!\s*[-*|#>]|\s*\d+\. |\s*$)(.+)\n(?=[-*] |\d+\. )", r"\1\n\n", markdown, flags=re.MULTILINE)


def on_nav(nav: Navigation, config: MkDocsConfig, files: Files) -> None:
    _pages[:] = nav.pages


def on_post_build(config: MkDocsConfig) -> None:
    """Write `llms.txt`: what the project is, and a line about every page."""
    lines = [f"# {config.site_name}", "", f"> {config.site_description}", "", "## Pages", ""]
    for page in _pages:
        paragraph = re.search(r"<p>(.*?)</p>", page.content or "", re.DOTALL)
        text = html.unescape(re.sub(r"<[^>]+>", "", paragraph[1])) if paragraph else ""
        sentence = re.split(r"(?<=[.。])\s|。", " ".join(text.split()))[0].rstrip(".:")
        lines.append(f"- [{page.title}]({page.url}): {sentence}")
    (Path(config.site_dir) / "llms.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
