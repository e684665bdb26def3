"""A study in somebody else's Dagster project: the component of their `defs/` folder."""

from __future__ import annotations

import sys
import traceback
from collections.abc import Iterator
from pathlib import Path

import dagster as dg
import pytest

from ccassets.resources import EncoderResource, StoreResource
from ccassets.study import Study


@pytest.fixture
def project(tmp_path: Path, study: Study, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A project of somebody else's: `theirs/defs/cells/defs.yaml` and an asset of their own downstream of it."""
    root = tmp_path / "project"
    folder = root / "theirs" / "defs" / "cells"
    folder.mkdir(parents=True)
    (root / "theirs" / "__init__.py").write_text("")
    (root / "pyproject.toml").write_text(
        '[tool.dg]\ndirectory_type = "project"\n[tool.dg.project]\nroot_module = "theirs"\n'
    )
    text = (study.folder / "defs.yaml").read_text(encoding="utf-8")
    (folder / "defs.yaml").write_text(text, encoding="utf-8")
    (root / "theirs" / "defs" / "assets.py").write_text(
        "import dagster as dg\n@dg.asset(deps=[dg.AssetKey(['cells', 'feature_database'])])\ndef theirs(): ...\n"
    )
    (root / "theirs" / "defs" / "resources.py").write_text(
        "import dagster as dg\n"
        "@dg.definitions\n"
        "def resources():\n"
        "    from ccassets.resources import EncoderResource, StoreResource\n"
        "    return dg.Definitions(resources={'store': StoreResource(), 'encoder': EncoderResource()})\n"
    )
    monkeypatch.syspath_prepend(str(root))
    yield root
    for name in [name for name in sys.modules if name.partition(".")[0] == "theirs"]:
        del sys.modules[name]


def test_a_study_loads_from_a_foreign_defs_folder(project: Path) -> None:
    definitions = dg.load_from_defs_folder(path_within_project=project / "theirs")
    dg.Definitions.validate_loadable(definitions)
    keys = {key.to_user_string() for key in definitions.resolve_asset_graph().materializable_asset_keys}
    assert {"theirs", "cells/images", "cells/feature_database"} <= keys


def test_a_wrong_key_is_named_with_file_and_line(project: Path) -> None:
    path = project / "theirs" / "defs" / "cells" / "defs.yaml"
    text = path.read_text(encoding="utf-8").replace("batch_size:", "batchsize:")
    path.write_text(text, encoding="utf-8")
    line = next(number for number, row in enumerate(text.splitlines(), 1) if "batchsize" in row)
    with pytest.raises(Exception, match="cells") as caught:
        dg.load_from_defs_folder(path_within_project=project / "theirs")
    shown = "".join(traceback.format_exception(caught.value))
    assert f"defs.yaml:{line}" in shown
    assert "batchsize" in shown


def test_a_foreign_store_is_used(study: Study, tmp_path: Path) -> None:
    store = StoreResource(root=str(tmp_path / "elsewhere"))
    assert store.of(study).database == tmp_path / "elsewhere" / "cells" / "conceptclip_features.h5"
    assert EncoderResource().device is None
