"""Every code block of the docs site runs: here, in the test that `RUN_ELSEWHERE` names, or not, for a reason."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

import numpy as np
import pytest
import yaml

from ccassets import load_study, open_database
from ccassets.analysis import concept_samples, fit_logistic, make_concept_model, save_model
from ccassets_tests.analysis.made_cells import cells, write_cells
from ccassets_tests.database.made_files import write_database
from ccassets_tests.database.range_server import serve
from ccassets_tests.documentation.page_blocks import (
    LISTINGS,
    NOT_RUN,
    PAGES,
    Block,
    blocks_of,
    run_shell,
    runnable_script,
    shell_lines,
)
from ccassets_tests.extraction.made_parts import build_in_storage
from ccassets_tests.house.source_tree import PACKAGE, ROOT
from ccassets_tests.made_studies import save_golden_weights, save_images, write_study

TESTS = ROOT / "ccassets_tests"

RUN_ELSEWHERE = {
    (
        "adopt.md",
        "python",
    ): "extraction/test_adoption.py::test_the_page_names_only_checks_there_are_and_its_example_runs",
    ("classifiers.md", "python"): "analysis/test_classifiers.py::test_the_code_of_the_page_runs",
    (
        "dagster.md",
        "python",
    ): "orchestration/test_component.py::test_the_page_works_as_it_stands_in_their_home_and_under_their_executor",
    ("encoders.md", "python"): "encoders/test_custom.py::test_the_pages_example_satisfies_the_contract",
    ("format.md", "python"): "documentation/test_format_page.py::test_the_reader_of_the_page_reads_our_files",
    ("format.zh.md", "python"): "documentation/test_format_page.py::test_the_reader_of_the_page_reads_our_files",
    ("h5.md", "python"): "h5/test_h5_page.py::test_the_example_of_the_page_runs",
    ("index.md", "python"): "documentation/test_readme.py::test_the_example_reads_a_database",
    ("own_data.md", "bash"): "documentation/test_own_data_page.py::test_the_page_works_as_it_stands",
    ("own_data.md", "python"): "documentation/test_own_data_page.py::test_the_page_works_as_it_stands",
}
"""By page and language: the test that runs these blocks."""

EXIT_CODES = {"encoders.md": {"ccassets certify": 1}, "search.md": {"ccassets duplicates": 1}}
"""By page and beginning of a line: its exit code where that is not 0."""

Replaced = Mapping[str, str]


# --- what a page takes for granted -------------------------------------------------------------------


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the home of somebody who built the demo, and the file of a study like it, `my_study`."""
    folder = tmp_path_factory.mktemp("built")
    (folder / "studies" / "my_study").mkdir(parents=True)
    shutil.copy(PACKAGE / "defs" / "demo" / "defs.yaml", folder / "studies" / "my_study")
    run_shell("ccassets build demo", folder)
    return folder


def database_of(folder: Path) -> Path:
    return folder / ".ccassets" / "storage" / "demo" / "conceptclip_features.h5"


@contextmanager
def with_images(folder: Path) -> Iterator[Replaced]:
    """Images, and BloodMNIST as if it were small: a study of that name, and a finished file of its features."""
    images = save_images(folder / "images")
    study = write_study(
        folder / "studies" / "bloodmnist", images=images, encoder=save_golden_weights(folder / "weights")
    )
    assembly = build_in_storage(study, folder / "elsewhere").assembly
    shutil.copy(assembly.path, folder / "old.h5")
    # A new study names the gated weights; here they are the phantom's.
    (folder / "venv").mkdir()
    (folder / "venv" / "bin").symlink_to(Path(sys.executable).parent)
    (folder / "venv" / ".installed").touch()
    phantom = "sed -i 's/kind: conceptclip .*/kind: phantom/' studies/cells/defs.yaml"
    yield {
        "ccassets doctor studies/cells": f"{phantom}\nccassets doctor studies/cells",
        "make ": f"CCASSETS_HOME=$PWD/.ccassets make -s -C {ROOT} VENV=$PWD/venv ",
        "--image-count 256 --compiled": "--image-count 8",
    }


@contextmanager
def with_files(folder: Path) -> Iterator[Replaced]:
    """The demo's database and classifier under the names that pages give to files."""
    for name in ("conceptclip_features.h5", "features.h5", "other_cohort.h5", "restored/conceptclip_features.h5"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).symlink_to(database_of(folder))
    shutil.copy(database_of(folder).parent / "analysis" / "model.json", folder)
    (folder / "docs" / "images").mkdir(parents=True)
    yield {
        "path/to/my_study": "studies/my_study",
        "/shared/studies/my_study": "demo",
        " my_study": " demo",
        "STUDY": "demo",
        "FILE": "conceptclip_features.h5",
        "/shared/ccassets": str(folder / ".ccassets" / "storage"),
        "https://data.example.org/conceptclip/": f"{folder}/",
        "srun apptainer run --nv --bind /shared ccassets.sif": "ccassets",
        "$SLURM_ARRAY_TASK_ID": "1",
    }


@contextmanager
def with_cohort(folder: Path) -> Iterator[Replaced]:
    """A stored classifier, and another cohort whose patients are known."""
    with open_database(write_cells(folder / "other_cohort.h5", cells(grouped=True).samples)) as database:
        save_model(make_concept_model(fit_logistic(concept_samples(database)), database), folder / "model.json")
    yield {" my_study": " demo"}


@contextmanager
def with_three_encoders(folder: Path) -> Iterator[Replaced]:
    """Databases of the same images by three encoders."""
    images, weights = save_images(folder / "images"), save_golden_weights(folder / "weights")
    encoders: dict[str, Any] = {
        "conceptclip": weights,
        "biomedclip": {"kind": "phantom"},
        "dinov2": {"kind": "conceptclip", "weights": str(weights), "dtype": "bfloat16"},
    }
    for name, encoder in encoders.items():
        study = write_study(folder / "studies" / name, images=images, encoder=encoder)
        shutil.copy(build_in_storage(study, folder / "elsewhere").assembly.path, folder / f"{name}.h5")
    yield {" my_study": " conceptclip"}


@contextmanager
def with_study_of_page(folder: Path) -> Iterator[Replaced]:
    """The first study of the page on data sets, with images where it says."""
    study = folder / "my_studies" / "cells"
    study.mkdir(parents=True)
    text = next(block.text for block in blocks_of("data.md") if block.language == "yaml")
    (study / "defs.yaml").write_text(text, encoding="utf-8")
    save_images(study / "cells")
    for path in [*study.glob("cells/*/blood"), *study.glob("cells/*/platelet")]:
        path.rename(path.with_name({"blood": "RBC", "platelet": "WBC"}[path.name]))
    for path in study.glob("cells/*/white"):
        shutil.rmtree(path)
    yield {}


@contextmanager
def with_explorer(folder: Path) -> Iterator[Replaced]:
    """The explorer of the demo, at the address that it prints, and a new study of it."""
    command = [sys.executable, "-m", "ccassets.cli", "explore", "demo", "--no-browser"]
    environment = {**os.environ, "CCASSETS_HOME": str(folder / ".ccassets")}
    with subprocess.Popen(command, cwd=folder, env=environment, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            address = process.stdout.readline().strip()
            selection = json.dumps({"rows": [3, 50], "name": "few_cells", "labels": {"3": "monocyte"}}).encode()
            headers = {"Content-Type": "application/json", "Origin": address.rstrip("/")}
            request = Request(f"{address}api/selection?format=study", selection, headers)
            with urlopen(request) as answer:
                (folder / "few_cells.zip").write_bytes(answer.read())
            yield {"http://127.0.0.1:40123/": address}
        finally:
            process.terminate()


@contextmanager
def with_server(folder: Path) -> Iterator[Replaced]:
    """A local server of the demo's database in the place of those in the network."""
    (folder / "served").mkdir()
    shutil.copy(database_of(folder), folder / "served")
    with serve(folder / "served") as server:
        yield {"https://data.example.org/conceptclip": server.url, "s3://bucket": server.url}


GIVEN: dict[str, Callable[[Path], Any]] = {
    "adopt.md": with_images,
    "classifiers.md": with_cohort,
    "compare.md": with_three_encoders,
    "contributing.md": with_images,
    "data.md": with_study_of_page,
    "encoders.md": with_images,
    "explorer.md": with_explorer,
    "index.md": with_images,
    "remote.md": with_server,
    "without_token.md": with_images,
}
"""By page: what it takes for granted; by default the built demo, and its files under the names of pages."""


# --- running -----------------------------------------------------------------------------------------


def run_python(block: Block, names: dict[str, Any], replaced: Replaced) -> None:
    text = block.text
    for before, after in replaced.items():
        text = text.replace(before, after)
    # Lines of the page, so that a traceback names them.
    exec(compile("\n" * block.line + text, block.page, "exec"), names)


def run_page(page: str, folder: Path, **names: Any) -> dict[str, Any]:
    """Run the blocks of a page in order, in a folder that has what the page takes for granted."""
    with GIVEN.get(page, with_files)(folder) as replaced:
        for block in blocks_of(page):
            if (page, block.language) in RUN_ELSEWHERE:
                continue
            if block.language == "bash":
                script = runnable_script(block, replaced, EXIT_CODES.get(page, {}))
                if script:
                    run_shell(script, folder)
            elif block.language == "python":
                run_python(block, names, replaced)
    return names


def runs_here(page: str) -> bool:
    """Whether a page has a block that is run here."""
    languages = {block.language for block in blocks_of(page) if block.language in {"bash", "python"}}
    scripts = [runnable_script(block) for block in blocks_of(page) if block.language == "bash"]
    languages -= set() if any(scripts) else {"bash"}
    return not page.endswith(".zh.md") and any((page, language) not in RUN_ELSEWHERE for language in languages)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("page", [page for page in PAGES if runs_here(page)])
def test_the_blocks_of_a_page_run(page: str, built: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = shutil.copytree(built, tmp_path / "folder")
    monkeypatch.chdir(folder)
    monkeypatch.delenv("CCASSETS_HOME")
    labels = np.arange(24) % 3
    names = {"path": database_of(folder), "labels": labels, "scores": np.eye(3)[labels], "groups": None}
    if page == "scores.md":
        run_scores(folder)
    else:
        run_page(page, folder, **names)


def run_scores(folder: Path) -> None:
    """The page on scores, whose last but one block is about a data set with several labels."""
    with with_files(folder):
        blocks = blocks_of("scores.md")
        several_labels = [block for block in blocks if "thresholds = " in block.text]
        names: dict[str, Any] = {}
        for block in blocks:
            if block not in several_labels:
                run_python(block, names, {})
        assert names["maps"].shape == (2, len(load_study("demo").vocabulary.concepts.texts), 144)
        write_database(folder / "several.h5", matrix=True)
        for block in [*blocks[:2], *several_labels]:
            run_python(block, names, {"conceptclip_features.h5": "several.h5"})


@pytest.mark.slow
def test_the_workspace_with_alerts_loads(tmp_path: Path) -> None:
    blocks = blocks_of("dagster.md")
    alerts = next(block for block in blocks if "mail_failures" in block.text)
    workspace = next(block for block in blocks if block.text.startswith("load_from:"))
    (tmp_path / "alerts.py").write_text(alerts.text, encoding="utf-8")
    (tmp_path / "workspace.yaml").write_text(workspace.text, encoding="utf-8")
    run_shell("DAGSTER_HOME=$PWD dagster definitions validate -w workspace.yaml", tmp_path)


# --- every block --------------------------------------------------------------------------------------

BASES: dict[str, dict[str, Any]] = {
    "columns": {"kind": "table", "file": "cells.csv", "splits": ["train"]},
    "dicom": {"kind": "folder", "root": "images"},
}
"""By key of a data set: the data set that a page shows it for."""

SECTIONS = {"dataset", "encoder", "vocabulary", "extraction", "storage"}
YAML_BLOCKS = [block for page in PAGES for block in blocks_of(page) if block.language == "yaml"]


@pytest.mark.parametrize("block", YAML_BLOCKS, ids=lambda block: f"{block.page}:{block.line}")
def test_every_study_and_every_section_of_one_is_valid(block: Block, tmp_path: Path) -> None:
    content = yaml.safe_load(textwrap.dedent(block.text))
    if "load_from" in content:
        return  # A workspace of Dagster: test_the_workspace_with_alerts_loads.
    for key in BASES.keys() & content.keys():
        content = {"dataset": {**BASES[key], key: content[key]}}
    if "type" not in content:
        assert content.keys() <= SECTIONS
        attributes = {"dataset": {"kind": "folder", "root": "images"}, "encoder": {"kind": "phantom"}, **content}
        content = {"type": "ccassets.FeatureDatabase", "attributes": attributes}
    (tmp_path / "page").mkdir()
    (tmp_path / "page" / "defs.yaml").write_text(yaml.safe_dump(content), encoding="utf-8")
    assert load_study(tmp_path / "page").name == "page"


@pytest.mark.parametrize("page", PAGES)
def test_every_block_says_its_language(page: str) -> None:
    languages = {block.language for block in blocks_of(page)}
    assert languages <= {"bash", "python", "yaml"} | LISTINGS


def without_comments(page: str) -> list[tuple[str, str]]:
    blocks = [block for block in blocks_of(page) if block.language not in LISTINGS]
    return [(block.language, re.sub(r"\s*# .*", "", block.text)) for block in blocks]


@pytest.mark.parametrize("page", [page for page in PAGES if page.endswith(".zh.md")])
def test_chinese_pages_have_the_code_of_the_english_ones(page: str) -> None:
    assert without_comments(page) == without_comments(page.replace(".zh", ""))


def test_tests_that_run_blocks_elsewhere_are_there() -> None:
    for (page, language), test in RUN_ELSEWHERE.items():
        file, _, name = test.partition("::")
        assert f"def {name}(" in (TESTS / file).read_text(encoding="utf-8"), test
        assert language in {block.language for block in blocks_of(page)}, page


def test_every_line_that_is_left_out_is_there_and_its_test_too() -> None:
    lines = [(block.page, line) for page in PAGES for block in blocks_of(page) for line in shell_lines(block)]
    for page, reasons in NOT_RUN.items():
        for beginning, reason in reasons.items():
            assert any(line.startswith(beginning) and page in {"*", of} for of, line in lines), (page, beginning)
            assert all((TESTS / path).is_file() for path in re.findall(r"\w+/\w+\.py", reason)), reason


def test_every_make_target_of_a_page_is_there() -> None:
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    lines = [line for page in PAGES for block in blocks_of(page) for line in shell_lines(block)]
    assert {line.split()[1] for line in lines if line.startswith("make ")} <= set(targets)
