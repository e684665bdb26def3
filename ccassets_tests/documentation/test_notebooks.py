"""The notebooks: they run as they are, and what they show in the repository is what they give.

`python -m ccassets_tests.documentation.test_notebooks` runs them and stores their outputs.
"""

from __future__ import annotations

import os
import re
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import nbformat
import pytest
from nbclient import NotebookClient

from ccassets.study.schema import Study
from ccassets_tests.extraction.made_parts import build
from ccassets_tests.h5.batches import LEGACY
from ccassets_tests.made_studies import edit_study

FOLDER = Path(__file__).parents[2] / "notebooks"
NAMES = ("1_generate_concept_features.ipynb", "2_access_database.ipynb", "3_use_other_tools.ipynb")


def run(name: str, replaced: Mapping[str, str] = MappingProxyType({})) -> Any:
    """A notebook, run with its outputs: what was printed as one text, and without what was told on stderr.

    `replaced` gives the beginnings of single lines and what is put in place of these lines.
    """
    notebook = nbformat.read(FOLDER / name, as_version=4)
    for beginning, line in replaced.items():
        cell = next(cell for cell in notebook.cells if f"\n{beginning}" in f"\n{cell.source}")
        cell.source = re.sub(rf"^{re.escape(beginning)}.*$", line, cell.source, flags=re.MULTILINE)
    client = NotebookClient(notebook, timeout=240, record_timing=False, resources={"metadata": {"path": str(FOLDER)}})
    client.execute()
    for cell in notebook.cells:
        if cell.cell_type == "code":
            printed = "".join(output.text for output in cell.outputs if output.get("name") == "stdout")
            results = [output for output in cell.outputs if output.output_type != "stream"]
            cell.outputs = [*([nbformat.v4.new_output("stream", text=printed)] if printed else []), *results]
    notebook.metadata.language_info = {"name": "python"}
    return notebook


def texts(cell: Any) -> list[str]:
    """What a code cell shows, as text: printed lines, results, and which of them are pictures."""
    shown = []
    for output in cell.get("outputs", ()):
        data = output.get("data", {})
        shown.append("picture" if "image/png" in data else output.get("text") or data.get("text/plain", ""))
    return shown


def without_numbers(text: str) -> str:
    """The text with every number the same: the last digits differ between processors."""
    return re.sub(r"\s+", " ", re.sub(r"-?\d+(?:\.\d+)?(?:e[+-]?\d+)?", "#", text))


@pytest.mark.slow
def test_the_notebooks_run_and_show_what_is_stored(home: Path) -> None:
    for name in NAMES:  # In this order, and in one home: what the first one built the second one reads.
        stored = nbformat.read(FOLDER / name, as_version=4)
        for before, after in zip(stored.cells, run(name).cells, strict=True):
            assert list(map(without_numbers, texts(before))) == list(map(without_numbers, texts(after))), before.source
    assert (home / "storage" / "demo" / "conceptclip_features.h5").is_file()

    printed = "".join(text for name in NAMES for cell in run(name).cells for text in texts(cell))
    assert "nothing: everything was up to date" in printed  # Where the demo is built, they run as well.


def slow(value: Any) -> Any:
    return pytest.param(value, marks=pytest.mark.slow)


def no_tokens(content: dict[str, Any]) -> None:
    content["encoder"]["tokens"] = False


def no_concepts(content: dict[str, Any]) -> None:
    content["vocabulary"]["concepts"] = {"words": [], "templates": []}


def no_vocabulary(content: dict[str, Any]) -> None:
    content["vocabulary"] = {"custom": {"sentences": ["a cell", "no cell"]}}


@pytest.mark.slow
@pytest.mark.parametrize("change", [None, no_vocabulary, no_tokens, no_concepts])
def test_the_notebooks_on_databases_run_on_that_of_another_study(
    study: Study, change: Callable[[dict[str, Any]], None] | None
) -> None:
    changed = study if change is None else edit_study(study, change)
    path = build(changed).path

    database = {"path = ": f"path = Path({str(path)!r})"}
    run(NAMES[1], {**database, "study = ": f"study = ccassets.load_study({str(study.folder)!r})"})
    run(NAMES[2], database)


@pytest.mark.parametrize(
    "name", ["legacy_no_labels", *map(slow, ("legacy_good", "legacy_no_labels_zero", "legacy_partial"))]
)
def test_the_notebooks_on_databases_run_on_a_file_of_the_original_scripts(name: str) -> None:
    database = {"path = ": f"path = Path({str(LEGACY / f'{name}.h5')!r})"}
    run(NAMES[1], {**database, "study = ": "study = None"})
    run(NAMES[2], database)


@pytest.mark.slow
def test_the_first_notebook_runs_on_the_images_of_another_study(study: Study) -> None:
    run(NAMES[0], {"study = ": f"study = ccassets.load_study({str(study.folder)!r})"})


@pytest.mark.parametrize("name", NAMES)
def test_stored_notebooks_are_whole_small_and_private(name: str) -> None:
    notebook = nbformat.read(FOLDER / name, as_version=4)
    nbformat.validate(notebook)
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    assert not any(output.output_type == "error" for cell in cells for output in cell.outputs)
    assert any("picture" in texts(cell) for cell in cells)
    content = (FOLDER / name).read_text(encoding="utf-8")
    assert len(content) < 600_000
    assert not re.search(r"[\"' ]/(home|root|tmp|Users)/|[A-Za-z]:\\\\|hf_[A-Za-z0-9]{16}", content)
    assert str(FOLDER.parent) not in content


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        os.environ["CCASSETS_HOME"] = folder
        for notebook_name in sys.argv[1:] or NAMES:
            nbformat.write(run(notebook_name), FOLDER / notebook_name)
