"""The public API: what `ccassets` and its public packages give, and that pages and notebooks use nothing else."""

from __future__ import annotations

import ast
import inspect
import re
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from dataclasses import fields, is_dataclass
from functools import cached_property
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import nbformat
import numpy as np
import pytest

import ccassets
from ccassets import analysis
from ccassets.datasets import Manifest
from ccassets_tests.database.made_files import write_database
from ccassets_tests.house.source_tree import PACKAGE, ROOT, syntax_tree

PACKAGES = ("errors", "analysis", "datasets", "encoders", "extraction", "exports", "h5", "orchestration")
PUBLIC_MODULES = {"ccassets", *(f"ccassets.{name}" for name in PACKAGES)}
DEEP_IMPORT = ("ccassets.encoders.conceptclip", "load_checkpoint")
"""The one function that is imported from deeper."""
NAMED_BY_TOOLS = {"ccassets.definitions"}
"""Modules that a configuration names and nobody imports."""
NOT_LIGHT = {"dagster", "pandas", "plotly", "pydantic", "sklearn", "torch", "transformers"}

PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md"), *(ROOT / "notebooks").glob("*.ipynb")])


def public_names(module: str) -> set[str]:
    names = set(import_module(module).__all__)
    return names | {"FeatureDatabaseComponent"} if module == "ccassets" else names


def is_public(module: str, name: str) -> bool:
    """Whether a reader may write `from module import name`."""
    if (module, name) == DEEP_IMPORT or f"{module}.{name}" in PUBLIC_MODULES:
        return True
    return module in PUBLIC_MODULES and name in public_names(module)


def code_blocks(page: Path) -> list[str]:
    """The Python of a page or notebook, block by block; lines for IPython left out."""
    if page.suffix == ".ipynb":
        cells = nbformat.read(page, as_version=4).cells
        blocks = [cell.source for cell in cells if cell.cell_type == "code"]
    else:
        blocks = re.findall(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)
    return [re.sub(r"^\s*[%!].*$", "", block, flags=re.MULTILINE) for block in blocks]


def dotted_name(node: ast.expr) -> str | None:
    """The text of `a.b.c`; None for any other expression."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute) and (before := dotted_name(node.value)):
        return f"{before}.{node.attr}"
    return None


def internal_uses(code: str) -> Iterator[str]:
    """What a block of Python takes from inside of ccassets."""
    tree = ast.parse(code)
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] == "ccassets":
            names = [alias.name for alias in node.names]
            yield from (f"{node.module}.{name}" for name in names if not is_public(node.module or "", name))
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names if alias.name.partition(".")[0] == "ccassets"]
            yield from (name for name in names if name not in PUBLIC_MODULES)
        elif isinstance(node, ast.Attribute) and (name := dotted_name(node)):
            module, _, attribute = name.rpartition(".")
            if module in PUBLIC_MODULES and not is_public(module, attribute):
                yield name


def internal_mentions(text: str) -> Iterator[str]:
    """Dotted paths of modules in a text that are no public ones; file names like `ccassets.sif` are none."""
    for name in re.findall(r"(?<![\w./-])ccassets(?:\.[a-z_]\w*)+", text):
        steps = name.split(".")
        for end in range(2, len(steps) + 1):
            module = ".".join(steps[:end])
            if module in PUBLIC_MODULES | NAMED_BY_TOOLS | {DEEP_IMPORT[0]}:
                continue
            if hasattr(import_module(".".join(steps[: end - 1])), "__path__") and find_spec(module):
                yield name
            break


def test_help_shows_the_api_and_no_list_of_modules() -> None:
    code = "import ccassets; help(ccassets)"
    page = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert "PACKAGE CONTENTS" not in page
    assert "SUBMODULES" not in page
    assert [name for name in ccassets.__all__ if not re.search(rf"\b{name}\b", page) and name != "__version__"] == []
    assert "open_database(path" in page


def test_the_package_is_a_package_for_everybody_but_pydoc() -> None:
    assert [Path(folder) for folder in ccassets.__path__] == [PACKAGE]
    assert find_spec("ccassets.errors") is not None


def test_what_open_database_gives_is_a_database(tmp_path: Path) -> None:
    with ccassets.open_database(write_database(tmp_path / "features.h5")) as database:
        assert isinstance(database, ccassets.Database)
        assert isinstance(database.select(), ccassets.Selection)
        assert all(isinstance(template, ccassets.Template) for template in database.templates.values())


@pytest.mark.parametrize("module", sorted(PUBLIC_MODULES))
def test_every_public_name_is_there_and_explained(module: str) -> None:
    names = import_module(module).__all__
    assert len(names) == len(set(names))
    objects = {name: getattr(import_module(module), name) for name in names if name != "__version__"}
    definitions = {name: one for name, one in objects.items() if inspect.isclass(one) or inspect.isroutine(one)}
    # Of a class, its own: a dataclass without one has its signature, and others inherit that of their base.
    assert [name for name, one in definitions.items() if not one.__doc__ or one.__doc__.startswith(f"{name}(")] == []


def public_classes() -> Iterator[tuple[str, type]]:
    """Full name and object of every public class of ours."""
    for module in sorted(PUBLIC_MODULES):
        for name in import_module(module).__all__:
            value = getattr(import_module(module), name)
            if inspect.isclass(value) and value.__module__.startswith("ccassets."):
                yield f"{module}.{name}", value


def public_members(kind: type) -> Iterator[tuple[str, Any]]:
    """Name and attribute of every public member of a class, inherited ones of ours too."""
    for base in kind.__mro__:
        if base.__module__.startswith("ccassets."):
            yield from ((name, member) for name, member in vars(base).items() if not name.startswith("_"))


def public_callables() -> Iterator[tuple[str, Callable[..., object]]]:
    """Full name and object of every public function, and of every public method of a public class of ours."""
    for module in sorted(PUBLIC_MODULES):
        for name in import_module(module).__all__:
            value = getattr(import_module(module), name)
            if inspect.isfunction(value):
                yield f"{module}.{name}", inspect.unwrap(value)
    yield ".".join(DEEP_IMPORT), getattr(import_module(DEEP_IMPORT[0]), DEEP_IMPORT[1])
    for class_name, kind in public_classes():
        for method_name, member in public_members(kind):
            method = getattr(member, "__func__", member)
            if inspect.isfunction(method):
                yield f"{class_name}.{method_name}", inspect.unwrap(method)


def public_properties() -> Iterator[tuple[str, Callable[..., object]]]:
    """Full name and getter of every public property of a public class of ours, cached ones too."""
    for class_name, kind in public_classes():
        for name, member in public_members(kind):
            if isinstance(member, property) and member.fget:
                yield f"{class_name}.{name}", member.fget
            elif isinstance(member, cached_property):
                yield f"{class_name}.{name}", member.func


def raises_itself(function: Callable[..., object]) -> bool:
    """Whether the code of a function raises an exception of its own, not only what it calls."""
    tree = ast.parse(textwrap.dedent(inspect.getsource(function)))
    return any(isinstance(node, ast.Raise) and node.exc is not None for node in ast.walk(tree))


def missing_sections(function: Callable[..., object]) -> list[str]:
    """The sections that the docstring of a function or method, its own or inherited, lacks."""
    signature, text = inspect.signature(function), inspect.getdoc(function) or ""
    sections = ["Args:"] if set(signature.parameters) - {"self", "cls"} else []
    if str(signature.return_annotation) != "None":
        sections += ["Yields:" if "Iterator" in str(signature.return_annotation) else "Returns:"]
    sections += ["Raises:"] if raises_itself(function) else []
    return [section for section in sections if f"\n{section}\n" not in f"\n{text}\n"]


def test_public_functions_and_methods_explain_arguments_results_and_errors() -> None:
    unexplained = {name: missing_sections(function) for name, function in public_callables()}
    assert len(unexplained) > 200
    assert {name: sections for name, sections in unexplained.items() if sections} == {}


def test_public_properties_are_explained() -> None:
    """A property reads as an attribute: its sentence says what it is, with shape and dtype; errors have a section."""
    properties = dict(public_properties())
    assert len(properties) > 100
    texts = {name: inspect.getdoc(function) or "" for name, function in properties.items()}
    assert [name for name, text in texts.items() if "." not in text] == []
    assert [name for name, one in properties.items() if raises_itself(one) and "Raises:" not in texts[name]] == []


def parts_of(kind: type) -> set[str]:
    """The fields of a dataclass, or the parameters that another class is made with."""
    if is_dataclass(kind):
        return {field.name for field in fields(kind)}
    own = vars(kind).get("__init__")
    return set(inspect.signature(own).parameters) - {"self"} if inspect.isfunction(own) else set()


def test_public_classes_explain_what_they_are_made_of() -> None:
    unexplained = {}
    for name, kind in public_classes():
        if not getattr(kind, "_is_protocol", False):
            text = "".join(base.__doc__ or "" for base in kind.__mro__ if base.__module__.startswith("ccassets."))
            unexplained[name] = [part for part in parts_of(kind) if f"    {part}: " not in text]
    assert {name: parts for name, parts in unexplained.items() if parts} == {}


def takes_texts(function: Callable[..., object], annotation: str) -> bool:
    """Whether a parameter for paths takes texts as well; the annotation may be an alias of the function's module."""
    alias = getattr(sys.modules[function.__module__], annotation.partition(" | ")[0].partition("[")[0], None)
    return "str" in annotation or "str" in str(alias)


def test_a_path_may_be_a_text() -> None:
    refused = [
        f"{name}({parameter.name}: {parameter.annotation})"
        for name, function in public_callables()
        for parameter in inspect.signature(function).parameters.values()
        if "Path" in str(parameter.annotation) and not takes_texts(function, str(parameter.annotation))
    ]
    assert refused == []


def test_paths_that_are_texts_work(study: ccassets.Study, tmp_path: Path) -> None:
    path = str(write_database(tmp_path / "features.h5"))
    with ccassets.open_database(path) as database:
        assert len(database)
    assert ccassets.validate_database(path) == []
    assert ccassets.load_study(str(study.folder)) == study
    assert ccassets.Store.of(study, str(tmp_path)).root == tmp_path
    manifest = ccassets.read_images(study, "val")
    manifest.save(str(tmp_path / "val.parquet"))
    assert Manifest.load(str(tmp_path / "val.parquet")).digest == manifest.digest


def test_a_text_stands_for_a_list_of_one(tmp_path: Path) -> None:
    with ccassets.open_database(write_database(tmp_path / "features.h5")) as database:
        word, label, template = "granules", "monocyte", "concept_prompts_t02"
        assert np.array_equal(database.concept_features(word, template), database.concept_features([word], [template]))
        assert np.array_equal(analysis.concept_scores(database, word), analysis.concept_scores(database, [word]))
        assert np.array_equal(analysis.patch_scores(database, [0], word), analysis.patch_scores(database, [0], [word]))
        assert analysis.search(database, concepts=word) == analysis.search(database, concepts=[word])
        assert analysis.zero_shot(database, words=label, templates="label_prompts_t01").words == (label,)
        samples = analysis.concept_samples(database, word)
        assert samples.columns == samples.select(word).columns == (word,)


def test_the_component_is_the_type_that_a_study_names() -> None:
    assert ccassets.FeatureDatabase is ccassets.FeatureDatabaseComponent
    assert "FeatureDatabase" in dir(ccassets)
    assert "FeatureDatabaseComponent" not in dir(ccassets)
    with pytest.raises(AttributeError, match="no attribute 'feature_database'"):
        ccassets.feature_database  # noqa: B018


def test_type_checkers_see_what_the_package_gives() -> None:
    block = next(node for node in syntax_tree(PACKAGE / "__init__.py").body if isinstance(node, ast.If))
    seen = {
        alias.asname or alias.name: node.module
        for node in ast.walk(block)
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    assert set(seen) == public_names("ccassets") - {"CcassetsError", "__version__"}
    for name, module in seen.items():
        assert getattr(ccassets, name) is getattr(import_module(module or ""), name)


@pytest.mark.parametrize("use", ["", "ccassets.open_database(sys.argv[1]).image_features[0]"])
def test_reading_a_file_loads_neither_dagster_nor_an_encoder(tmp_path: Path, use: str) -> None:
    path = write_database(tmp_path / "features.h5")
    code = f"import sys, ccassets\n{use}\nprint(*sys.modules)"
    result = subprocess.run([sys.executable, "-c", code, path], capture_output=True, text=True, check=True)
    assert NOT_LIGHT.isdisjoint(result.stdout.split())


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_pages_and_notebooks_use_the_public_api_alone(page: Path) -> None:
    assert [name for block in code_blocks(page) for name in internal_uses(block)] == []


@pytest.mark.parametrize(
    "page", [page for page in PAGES if page.suffix == ".md" and page.name != "CHANGELOG.md"], ids=lambda path: path.name
)
def test_pages_name_no_internal_module(page: Path) -> None:
    assert sorted(internal_mentions(page.read_text(encoding="utf-8"))) == []


@pytest.mark.parametrize(
    "code",
    [
        "from ccassets.study.storage import Store",
        "from ccassets import study",
        "import ccassets.progress",
        "import ccassets\nccassets.study.loading.load_study('demo')",
        "from ccassets.encoders.conceptclip import PHANTOM",
        "from ccassets.h5 import growing_file",
        "import ccassets\nccassets.open('features.h5')",
    ],
)
def test_an_internal_use_is_found(code: str) -> None:
    assert list(internal_uses(code))


@pytest.mark.parametrize(
    "code",
    [
        "from ccassets import Store, h5, load_study",
        "from ccassets.encoders.conceptclip import load_checkpoint",
        "import ccassets.h5\nccassets.h5.finalize('features.h5')",
        "import ccassets\nccassets.open_database('features.h5').templates.keys()",
        "import numpy as np\nnp.linalg.norm([1.0])",
    ],
)
def test_a_public_use_passes(code: str) -> None:
    assert list(internal_uses(code)) == []


def test_an_internal_module_in_a_text_is_found() -> None:
    text = "Import `ccassets.study.storage`; the image is ccassets.sif, see ccassets.errors.CcassetsError."
    assert list(internal_mentions(text)) == ["ccassets.study.storage"]
