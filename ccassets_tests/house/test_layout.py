"""Where files lie: few entries at the top of the package, and telling names that stand once."""

from __future__ import annotations

import re
import subprocess
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path

import pytest

from ccassets_tests.house.source_tree import PACKAGE, ROOT, python_files

MOST_ENTRIES = 20
SHARED_NAMES = {"__init__", "__main__", "conftest"}
ASSETS = PACKAGE / "orchestration" / "assets"
"""Its files are named like the keys of their assets, whatever other packages have."""


def repeated_names(files: Iterable[Path]) -> dict[str, list[Path]]:
    """Module names that stand in more than one folder, each with its files."""
    by_name = defaultdict(list)
    for path in files:
        by_name[path.stem].append(path)
    return {name: paths for name, paths in by_name.items() if len(paths) > 1 and name not in SHARED_NAMES}


def test_the_top_of_the_package_is_read_at_a_glance() -> None:
    entries = [path.name for path in PACKAGE.iterdir() if path.name != "__pycache__"]
    assert len(entries) <= MOST_ENTRIES, sorted(entries)


@pytest.mark.parametrize("folder", ["ccassets", "ccassets_tests"])
def test_no_module_name_stands_in_two_packages(folder: str) -> None:
    assert repeated_names(path for path in python_files(ROOT / folder) if path.parent != ASSETS) == {}


def test_a_name_in_two_folders_is_found(tmp_path: Path) -> None:
    files = [
        tmp_path / name for name in ("a/digests.py", "b/digests.py", "a/__init__.py", "b/__init__.py", "b/rows.py")
    ]
    assert repeated_names(files) == {"digests": files[:2]}


def test_contributing_names_files_that_exist() -> None:
    page = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    named = re.findall(r"`([\w./]+(?:/|\.(?:py|md|cfg|toml)))`", page)
    missing = [name for name in named if not any((root / name).exists() for root in (PACKAGE, ROOT))]
    assert len(named) > 20
    assert missing == []


def test_contributing_has_a_place_for_every_entry_of_the_package() -> None:
    page = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    table = page[page.index("| entry of") : page.index("Each module's first line")]
    entries = {path.name for path in PACKAGE.iterdir() if not path.name.startswith("__") and path.name != "py.typed"}
    assert {name for name in entries if not re.search(rf"`{name.removesuffix('.py')}[./`]", table)} == set()


def test_help_of_make_fits_a_screen() -> None:
    lines = subprocess.run(
        ["make", "-s", "help"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.splitlines()
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    assert [line.split()[1] for line in lines] == targets
    assert len(lines) <= 24
    assert max(map(len, lines)) <= 80
