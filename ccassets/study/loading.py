"""Loading of study files: search by name, YAML with line numbers and limits, conversion to the typed model."""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from ccassets.errors import StudyError
from ccassets.files import YAML_LOADER, unreadable_reason
from ccassets.study.schema import Study, StudyConfig

STUDY_FILE = "defs.yaml"
COMPONENT_TYPE = "ccassets.FeatureDatabase"
SHIPPED_STUDIES = Path(__file__).parents[1] / "defs"

_PROBLEMS = {
    "extra_forbidden": "no such key; docs/study.md lists those there are",
    "missing": "this key is needed",
}

_MOST_BYTES = 4 << 20
_MOST_NODES = 100_000
_LONGEST_NUMBER = 1000
_TEXT_EXPECTED = {"string_type", "model_type"}
_NO_TEXTS = {
    "tag:yaml.org,2002:int": "a number",
    "tag:yaml.org,2002:float": "a number",
    "tag:yaml.org,2002:bool": "true or false",
    "tag:yaml.org,2002:null": "nothing",
    "tag:yaml.org,2002:timestamp": "a date",
}
_TEXT_TAG = "tag:yaml.org,2002:str"


def load_study(name_or_path: str | os.PathLike[str]) -> Study:
    """Load a study by name or by the path of its file.

    Args:
        name_or_path: The name of a study that ships or is one's own, the path of a `defs.yaml`, or
            that of the folder with one.

    Returns:
        The study, validated.

    Raises:
        StudyError: There is no such study, or its file has errors; the message names file, line and key of each.
    """
    path = find_study(name_or_path)
    return Study.from_config(_read_config(path), folder=path.parent.absolute())


def study_files() -> dict[str, Path]:
    """Every study file by the study's name, the user's first; they replace shipped studies of the same name."""
    own = own_studies_folder()
    shipped = _files_below(SHIPPED_STUDIES)
    files = _files_below(own) if own else {}
    return files | {name: path for name, path in shipped.items() if name not in files}


def load_studies() -> tuple[list[Study], list[StudyError]]:
    """Load every study that can be found by name; an error in one does not affect the others.

    Returns:
        The studies, and the errors of the files that are none; each names file, line and key.

    Raises:
        StudyError: `CCASSETS_STUDIES` names no folder.
    """
    studies, errors = [], []
    for path in study_files().values():
        try:
            studies.append(load_study(path))
        except StudyError as error:
            errors.append(error)
    return studies, errors


def require_new_name(name: str) -> None:
    """Check that a new study may have this name.

    Args:
        name: Its name: letters, digits and `_`.

    Raises:
        StudyError: The name cannot be a study's, or a study that ships has it.
    """
    if not re.fullmatch(r"[A-Za-z0-9_]{1,80}", name):
        raise StudyError(f"{name[:100]!r} cannot name a study: expected 1 to 80 letters, digits and _.")
    if (SHIPPED_STUDIES / name).is_dir():
        raise StudyError(f"{name!r} is the name of a study that ships, which yours would hide; choose another name.")


def _files_below(root: Path) -> dict[str, Path]:
    return {path.parent.name: path for path in sorted(root.glob(f"*/{STUDY_FILE}"))}


def own_studies_folder() -> Path | None:
    """Find the folder of one's own studies: `CCASSETS_STUDIES`, else `./studies`; None where there is no such folder.

    Raises:
        StudyError: `CCASSETS_STUDIES` names no folder.
    """
    named = os.environ.get("CCASSETS_STUDIES")
    folder = Path(named or "studies").expanduser().absolute()
    if folder.is_dir():
        return folder
    if named:
        raise StudyError(f"CCASSETS_STUDIES names {named}, which is not a folder. Correct the variable, or unset it.")
    return None


def find_study(name_or_path: str | os.PathLike[str]) -> Path:
    """Find the `defs.yaml` of a study by name, folder or path; raises `StudyError` with the names that are known."""
    known = study_files()
    text = os.fspath(name_or_path)
    if text in known:
        return known[text]
    path = Path(os.path.expanduser(text))  # noqa: PTH111 - to `Path`, ./~ is ~
    if path.is_dir():
        path = path / STUDY_FILE
    if path.is_file():
        return path.absolute()
    raise StudyError(
        f"There is no study {text!r}. Known studies: {', '.join(known) or 'none'}. "
        "Give one of these names or a path to a defs.yaml; your own studies are found under CCASSETS_STUDIES, or in "
        "./studies where that is not set."
    )


def command_argument(study: Study) -> str:
    """How commands are told this study: by its name, or by its folder where the name is unknown or of another."""
    folder, known = str(study.folder), {}
    with suppress(StudyError, OSError):  # There need not be a working directory any more.
        known = study_files()
        if study.folder.is_relative_to(Path.cwd()):
            folder = str(study.folder.relative_to(Path.cwd()))
    if study.name in known and known[study.name].parent.resolve() == study.folder.resolve():
        return study.name
    return shlex.quote(f"./{folder}" if folder in known or folder.startswith(("-", "~")) else folder)


def _read_config(path: Path) -> StudyConfig:
    root, data = _parse(path)
    repeated = [f"{path}:{key.start_mark.line + 1}: {key.value} stands here a second time" for key in _repeated(root)]
    if repeated:
        raise StudyError("\n".join(repeated))
    if not isinstance(data, dict) or data.get("type") != COMPONENT_TYPE:
        actual = data.get("type") if isinstance(data, dict) else type(data).__name__
        raise StudyError(f"{path}:1: a study starts with `type: {COMPONENT_TYPE}`; found {actual!r}")
    unknown = set(map(str, data)) - {"type", "attributes", "requirements", "post_processing"}
    if unknown:
        lines = [
            f"{path}:{_locate(root, [key])[0]}: {key}: a study's own keys stand under `attributes`" for key in unknown
        ]
        raise StudyError("\n".join(sorted(lines)))
    try:
        return StudyConfig.model_validate(data.get("attributes") or {})
    except ValidationError as error:
        lines = []
        for problem in error.errors():
            line, key = _locate(root, ["attributes", *problem["loc"]])
            what = _PROBLEMS.get(problem["type"], problem["msg"].removeprefix("Value error, "))
            what = _unquoted(root, ["attributes", *problem["loc"]], problem["type"]) or what
            lines.append(f"{path}:{line}: {key.removeprefix('attributes.')}: {what}")
        raise StudyError("\n".join(lines)) from error


def _parse(path: Path) -> tuple[yaml.Node | None, Any]:
    """Parse a YAML file into nodes and content; raises `StudyError` where it is none or too large for a study."""
    try:
        if reason := unreadable_reason(path):
            raise StudyError(f"{path} is not a study: {reason}")
        if path.stat().st_size > _MOST_BYTES:
            raise StudyError(f"{path} has more than {_MOST_BYTES} bytes, which is too large for a study")
        text = path.read_text(encoding="utf-8")
        try:
            return _compose(path, text, YAML_LOADER)
        except yaml.YAMLError:
            return _compose(path, text, yaml.SafeLoader)  # Its message shows the place in the text.
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        raise StudyError(f"{path} cannot be read: {error}. Line {line} is no UTF-8: save the file as UTF-8.") from error
    except OSError as error:
        raise StudyError(f"{path} cannot be read: {error}") from error
    except RecursionError as error:
        raise StudyError(f"{path}: lists and mappings are nested too deeply for a study") from error
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        raise StudyError(f"{path}:{mark.line + 1 if mark else 1}: this is not valid YAML: {error}") from error
    except ValueError as error:  # What looks like a date or a number, and is none.
        raise StudyError(f"{path}: a value cannot be read ({error}); put quotes around it if it is a text") from error


def _compose(path: Path, text: str, loader: type[yaml.SafeLoader]) -> tuple[yaml.Node | None, Any]:
    root = yaml.compose(text, Loader=loader)
    if root is not None and _expanded(root, {}) > _MOST_NODES:
        raise StudyError(f"{path}: its aliases (*name) stand for more than {_MOST_NODES} values; write them out")
    return root, yaml.load(text, loader)


def _expanded(node: yaml.Node, known: dict[int, int]) -> int:
    """The number of values in a node, aliases followed; raises `ValueError` for a number of too many digits."""
    if isinstance(node, yaml.ScalarNode) and node.tag != _TEXT_TAG and len(node.value) > _LONGEST_NUMBER:
        raise ValueError(f"a number of {len(node.value)} characters")
    if id(node) not in known:
        known[id(node)] = _MOST_NODES  # A node inside itself has no end.
        known[id(node)] = 1 + sum(_expanded(child, known) for _, child in _children(node).values())
    return known[id(node)]


def _locate(node: yaml.Node | None, location: Sequence[int | str]) -> tuple[int, str]:
    """The line of the deepest node on the path to a location, and the keys to it as the user wrote them.

    Tags of unions are left out: pydantic puts them into a location, and no file has them.
    """
    line = 1
    keys = []
    for step in location:
        inside = _children(node).get(str(step))
        if inside is not None:
            line, node = inside
        if inside is not None or step == location[-1]:
            keys.append(str(step))
    return line, ".".join(keys)


def _unquoted(root: yaml.Node | None, location: Sequence[int | str], problem: str) -> str | None:
    """A sentence on a value that YAML does not read as text; None if it is a text."""
    node = root
    for step in location:
        in_list = isinstance(node, yaml.SequenceNode)
        node = _children(node).get(str(step), (0, node))[1]
        if isinstance(node, yaml.ScalarNode) and node.tag in _NO_TEXTS and problem in _TEXT_EXPECTED:
            return f"YAML reads {node.value or 'an empty item'} as {_NO_TEXTS[node.tag]}, expected a text: quote it"
        if in_list and isinstance(node, yaml.MappingNode):
            keys = list(_children(node))
            if len(keys) == 1 and not keys[0].isidentifier():
                return f"YAML reads {keys[0]!r} before the colon as a key, expected a text: quote the whole of it"
    return None


def _children(node: yaml.Node | None) -> dict[str, tuple[int, yaml.Node]]:
    """Line and node of every direct child of a node, by key or number."""
    if isinstance(node, yaml.MappingNode):
        return {str(key.value): (key.start_mark.line + 1, value) for key, value in node.value}
    if isinstance(node, yaml.SequenceNode):
        return {str(number): (item.start_mark.line + 1, item) for number, item in enumerate(node.value)}
    return {}


def _repeated(root: yaml.Node | None) -> list[yaml.Node]:
    """Keys that a mapping has twice: YAML readers silently drop the first."""
    repeated, seen, pending = [], set(), [root]
    while pending:
        node = pending.pop()
        if id(node) in seen:  # An alias: the same node in another place.
            continue
        seen.add(id(node))
        pending += [child for _, child in _children(node).values()]
        if isinstance(node, yaml.MappingNode):
            keys: set[str] = set()
            for key, _ in node.value:
                if str(key.value) in keys:
                    repeated.append(key)
                keys.add(str(key.value))
    return repeated
