"""The names of `ccassets.analysis`: objects whatever is imported, and no heavy library with them."""

import json
import subprocess
import sys
from importlib import import_module
from pkgutil import iter_modules
from types import ModuleType

import ccassets.analysis


def test_no_name_is_that_of_a_module() -> None:
    modules = [module.name for module in iter_modules(ccassets.analysis.__path__)]
    for name in modules:
        import_module(f"ccassets.analysis.{name}")
    assert set(modules).isdisjoint(ccassets.analysis.__all__)
    objects = {name: getattr(ccassets.analysis, name) for name in ccassets.analysis.__all__}
    assert [name for name, value in objects.items() if isinstance(value, ModuleType)] == []


def test_importing_analyses_loads_no_heavy_library() -> None:
    code = "import json, sys, ccassets.analysis, ccassets.exports; print(json.dumps(sorted(sys.modules)))"
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    heavy = {"anndata", "dagster", "matplotlib", "pandas", "plotly", "scipy", "sklearn", "torch", "transformers"}
    assert heavy.isdisjoint(json.loads(printed))
