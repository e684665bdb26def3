"""The study file: every key and its default, what is wrong with file and line, and the prompts it makes."""

from __future__ import annotations

import hashlib
import json
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import h5py
import pytest
import yaml

from ccassets.errors import StudyError
from ccassets.study.loading import command_argument, load_study, study_files
from ccassets.study.prompt_hash import texts_hash
from ccassets.study.schema import FolderConfig
from ccassets.study.storage import Store
from ccassets_tests.made_studies import DATA

SMALLEST = """\
type: ccassets.FeatureDatabase
attributes:
  dataset: {kind: folder, root: cells}
  encoder: {kind: conceptclip}
"""


def write(folder: Path, text: str) -> Path:
    """`text` as the study file of a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "defs.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def problem(folder: Path, text: str) -> str:
    """What loading `text` as a study says, with the file's path cut to its name."""
    path = write(folder, text)
    with pytest.raises(StudyError) as caught:
        load_study(path)
    return str(caught.value).replace(str(path), "defs.yaml")


def test_a_variable_is_replaced_wherever_a_text_or_a_path_stands(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("IMAGES", "cells")
    monkeypatch.setenv("CELL", "round {cell}")
    written = write(tmp_path / "one" / "cells", SMALLEST + "  vocabulary: {labels: {words: [round]}}\n")
    text = written.read_text().replace("root: cells", 'root: "{{ env.IMAGES }}", splits: ["{{env.IMAGES}}_1"]')
    filled = load_study(write(tmp_path / "two" / "cells", text.replace("[round]", '["a {{ env.CELL }} {{ x }}"]')))
    assert filled.dataset == FolderConfig(kind="folder", root=Path("cells"), splits=("cells_1",))
    assert filled.vocabulary.labels.words == ("a round {cell} {{ x }}",)


@pytest.mark.parametrize(
    ("written", "says"),
    [
        ("{{ env.NOT_SET }}", "the environment variable NOT_SET is not set"),
        ("{{ env.MY_TOKEN }}", "MY_TOKEN looks like a secret"),
        ("{{ env('A') }}", "expected {{ env.NAME }}, found {{ env('A') }}"),
    ],
)
def test_a_variable_that_cannot_be_used_is_named_with_its_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, written: str, says: str
) -> None:
    monkeypatch.setenv("MY_TOKEN", "hush")
    text = SMALLEST.replace("root: cells", f'root: "{written}"').replace(
        "{kind: folder, ", "\n    {kind: folder,\n    "
    )
    said = problem(tmp_path / "cells", text)
    assert said.startswith("defs.yaml:5: dataset.root: ")
    assert says in said
    assert "hush" not in said


# --- the file ----------------------------------------------------------------------------------------


def test_every_default_is_the_documented_one(tmp_path: Path) -> None:
    study = load_study(write(tmp_path / "cells", SMALLEST))

    assert study.model_dump(exclude={"name", "folder"}) == {
        "description": "",
        "owners": (),
        "dataset": {"kind": "folder", "root": Path("cells"), "classes": None, "splits": ("train", "val", "test")},
        "encoder": {
            "kind": "conceptclip",
            "weights": "JerrryNie/ConceptCLIP",
            "revision": "main",
            "seed": None,
            "architecture": None,
            "tokenizer": None,
            "dtype": "float32",
            "compiled": False,
            "tokens": True,
        },
        "vocabulary": {
            "labels": {"words": (), "templates": (), "ordinal": False},
            "concepts": {"words": (), "templates": ()},
            "custom": {},
        },
        "extraction": {
            "batch_size": 64,
            "rows_per_shard": 128,
            "limit": None,
            "on_bad_image": "error",
            "strict": False,
            "partitioned": None,
        },
        "storage": {"file": "conceptclip_features.h5", "keep_parts": True},
    }
    assert (study.name, study.folder) == ("cells", tmp_path / "cells")


def test_nothing_is_downloaded_unless_the_study_says_so(tmp_path: Path) -> None:
    text = SMALLEST.replace("{kind: folder, root: cells}", "{kind: medmnist, name: bloodmnist}")
    dataset = load_study(write(tmp_path / "cells", text)).dataset

    assert dataset.model_dump() == {
        "kind": "medmnist",
        "name": "bloodmnist",
        "size": 28,
        "root": None,
        "download": False,
        "splits": ("train", "val", "test"),
    }


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (SMALLEST + "  vocabluary: {}\n", "defs.yaml:5: vocabluary: no such key"),
        (SMALLEST + "  extraction:\n    batch_size: 4\n    shards: 3\n", "defs.yaml:7: extraction.shards: no such key"),
        (SMALLEST + "vocabulary: {}\n", "defs.yaml:5: vocabulary: a study's own keys stand under `attributes`"),
        (SMALLEST.replace("root: cells", "root: a, rooot: b"), "defs.yaml:3: dataset.rooot: no such key"),
        (SMALLEST.replace("kind: folder", "kind: foldr"), "defs.yaml:3: dataset: Input tag 'foldr'"),
        (SMALLEST + "  extraction: {limit: 0}\n", "defs.yaml:5: extraction.limit: Input should be greater"),
        (SMALLEST + "  storage: {file: a/b.h5}\n", "defs.yaml:5: storage.file: String should match"),
        (SMALLEST + "  description: [a]\n", "defs.yaml:5: description: Input should be a valid string"),
        (SMALLEST + "  description: a\n  description: b\n", "defs.yaml:6: description stands here a second time"),
        (SMALLEST + "  description: [\n", "defs.yaml:6: this is not valid YAML"),
        (SMALLEST.replace("FeatureDatabase", "Database"), "defs.yaml:1: a study starts with `type: ccassets.Feat"),
        ("", "defs.yaml:1: a study starts with `type: ccassets.FeatureDatabase`"),
        ("- 1\n", "defs.yaml:1: a study starts with `type: ccassets.FeatureDatabase`"),
        ("type: ccassets.FeatureDatabase\n", "defs.yaml:1: dataset: this key is needed"),
        (
            SMALLEST + "  description: !!python/object/apply:os.getcwd []\n",
            "defs.yaml:5: this is not valid YAML: could not determine a constructor",
        ),
    ],
)
def test_a_mistake_is_named_with_its_file_line_and_key(tmp_path: Path, text: str, expected: str) -> None:
    assert problem(tmp_path / "cells", text).startswith(expected)


def test_all_mistakes_are_named_at_once(tmp_path: Path) -> None:
    text = SMALLEST.replace("kind: conceptclip", "kind: conceptclip, dtype: int8") + "  colour: red\n"

    lines = problem(tmp_path / "cells", text).splitlines()

    assert [line.split(": ")[:2] for line in lines] == [["defs.yaml:4", "encoder.dtype"], ["defs.yaml:5", "colour"]]


def test_a_mistake_inside_a_list_is_named_with_its_own_line(tmp_path: Path) -> None:
    text = (
        SMALLEST
        + "  vocabulary:\n    concepts:\n      templates: ['a {}']\n      words:\n"
        + "        - nucleus\n        - {word: granule, levle: 2}\n"
    )

    assert problem(tmp_path / "cells", text).startswith("defs.yaml:10: vocabulary.concepts.words.1.levle: no such key")


def test_a_yaml_alias_is_no_repeated_key(tmp_path: Path) -> None:
    text = SMALLEST + "  vocabulary: {labels: &same {words: [a], templates: ['a {}']}, concepts: *same}\n"

    assert list(load_study(write(tmp_path / "cells", text)).vocabulary.templates()) == [
        "concept_prompts_t01",
        "label_prompts_t01",
    ]


def test_a_file_that_is_no_utf8_is_named(tmp_path: Path) -> None:
    path = write(tmp_path / "cells", SMALLEST)
    path.write_bytes(path.read_bytes() + b"  description: \xff\n")

    with pytest.raises(StudyError, match=r"defs\.yaml cannot be read: 'utf-8'.* Line 5 is no UTF-8"):
        load_study(path)


# --- rules -------------------------------------------------------------------------------------------


def changed(**sections: Any) -> str:
    """The smallest study with keys of some sections changed."""
    content = yaml.safe_load(SMALLEST)
    for name, keys in sections.items():
        content["attributes"].setdefault(name, {}).update(keys)
    return yaml.safe_dump(content)


@pytest.mark.parametrize("split", ["a/b", "a\\b", ".", "..", " train", "train ", "a...b", "a\nb", "a\0b", "", "   "])
def test_what_cannot_name_a_split_is_refused(tmp_path: Path, split: str) -> None:
    assert "dataset.splits" in problem(tmp_path / "cells", changed(dataset={"splits": ["train", split]}))


@pytest.mark.parametrize("splits", [[], ["train", "train"]])
def test_splits_are_at_least_one_and_each_named_once(tmp_path: Path, splits: list[str]) -> None:
    assert "dataset.splits" in problem(tmp_path / "cells", changed(dataset={"splits": splits}))


def test_any_other_split_name_is_one_manifest_file_of_its_own(tmp_path: Path) -> None:
    names = ["train", "fold 1", "fold-1", "病例", "test.é", ".hidden", "a%2Fb", "a:b*?", "CON", "x" * 60]
    study = load_study(write(tmp_path / "cells", changed(dataset={"splits": names})))

    paths = [Store.of(study, tmp_path).manifest(split) for split in study.splits]

    assert len(set(paths)) == len(names)
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")
        assert path.parent == tmp_path / "cells" / "manifest"


def test_a_shard_is_whole_batches(tmp_path: Path) -> None:
    text = changed(extraction={"batch_size": 48})

    assert problem(tmp_path / "cells", text).endswith(
        "extraction: rows_per_shard (128) must be a multiple of batch_size (48)"
    )
    study = load_study(write(tmp_path / "cells", changed(extraction={"batch_size": 48, "rows_per_shard": 96})))
    assert study.extraction.rows_per_shard == 96


def test_a_limited_study_has_a_database_of_its_own(tmp_path: Path) -> None:
    whole = load_study(write(tmp_path / "cells", changed(storage={"file": "my.features.hdf5"})))
    first = load_study(
        write(tmp_path / "cells", changed(storage={"file": "my.features.hdf5"}, extraction={"limit": 20}))
    )

    assert whole.database_file == "my.features.hdf5"
    assert first.database_file == "my.features.limit-20.hdf5"


@pytest.mark.parametrize(
    ("encoder", "says"),
    [
        ({"weights": "random", "tokenizer": "words"}, "weights: random needs a seed"),
        ({"weights": "random", "seed": 0}, "name a folder or hub id with `tokenizer`"),
        ({"weights": "here", "seed": 0}, "seed belongs to weights: random only"),
        ({"kind": "python", "target": "os.system"}, "encoder.target"),
    ],
)
def test_encoder_settings_that_do_not_belong_together_are_refused(
    tmp_path: Path, encoder: dict[str, Any], says: str
) -> None:
    content = yaml.safe_load(SMALLEST)
    content["attributes"]["encoder"] = {"kind": "conceptclip", **encoder}

    assert says in problem(tmp_path / "cells", yaml.safe_dump(content))


@pytest.mark.parametrize("name", ["blood-cells", "cells 2", "zellen.1", "zellkörper"])
def test_a_folder_that_cannot_name_a_study_is_refused(tmp_path: Path, name: str) -> None:
    path = write(tmp_path / name, SMALLEST)

    with pytest.raises(StudyError, match=f"The folder '{name}' cannot name a study"):
        load_study(path)


# --- vocabulary --------------------------------------------------------------------------------------

CONCEPTS = {"words": ["round nucleus", {"word": "圆核", "synonyms": ["rund"]}], "templates": ["a {}", "{} seen"]}


def test_templates_are_numbered_and_filled_with_words_and_synonyms_in_order(tmp_path: Path) -> None:
    vocabulary = {
        "concepts": CONCEPTS,
        "labels": {"words": ["x{}y"], "templates": ["a {} cell"]},
        "custom": {"free": ["a healthy cell", "{}"]},
    }
    templates = load_study(write(tmp_path / "cells", changed(vocabulary=vocabulary))).vocabulary.templates()

    assert {name: template.prompts for name, template in templates.items()} == {
        "concept_prompts_t01": ("a round nucleus", "a 圆核", "a rund"),
        "concept_prompts_t02": ("round nucleus seen", "圆核 seen", "rund seen"),
        "label_prompts_t01": ("a x{}y cell",),
        "free": ("a healthy cell", "{}"),
    }
    assert list(templates) == ["concept_prompts_t01", "concept_prompts_t02", "label_prompts_t01", "free"]
    for name, words in (("concept_prompts_t01", ("round nucleus", "圆核", "rund")), ("label_prompts_t01", ("x{}y",))):
        template = templates[name]
        inserted = [prompt[slice(*span)] for prompt, span in zip(template.prompts, template.subjects, strict=True)]
        assert inserted == list(words)
    assert templates["free"].subjects == ((0, 0), (0, 0))


@pytest.mark.parametrize(
    ("vocabulary", "says"),
    [
        ({"labels": {"words": ["a"], "templates": ["no slot"]}}, "a template has exactly one {}"),
        ({"labels": {"words": ["a"], "templates": ["{} and {}"]}}, "a template has exactly one {}"),
        ({"labels": {"templates": ["a {}"]}}, "labels has templates and no words"),
        ({"concepts": {"templates": ["a {}"]}}, "concepts has templates and no words"),
        ({"concepts": {"words": ["a", "b", "a"]}}, "found twice: ['a']"),
        ({"concepts": {"words": ["a", {"word": "b", "synonyms": ["a"]}]}}, "found twice: ['a']"),
        ({"concepts": {"words": ["a\0b"]}}, "has no NUL character"),
        ({"labels": {"words": [" "]}}, "a text is not blank"),
        ({"labels": {"words": [True]}}, "labels.words.0: YAML reads true as true or false, expected a text: quote it"),
        ({"labels": {"words": [None]}}, "YAML reads null as nothing, expected a text: quote it"),
        (
            {"labels": {"words": ["a"], "templates": ["a {}", "{}", "a {}"]}},
            "every template may stand once; found twice",
        ),
        ({"concepts": {"words": ["a", 5]}}, "concepts.words.1: YAML reads 5 as a number, expected a text: quote it"),
        ({"concepts": {"words": [0.5]}}, "YAML reads 0.5 as a number"),
        ({"concepts": {"words": [{"high N": "C ratio"}]}}, "YAML reads 'high N' before the colon as a key"),
        ({"custom": {"mine": [1]}}, "custom.mine.0: YAML reads 1 as a number"),
        ({"custom": {"label_prompts_t01": ["a"]}}, "this id belongs to the numbered templates"),
        ({"custom": {"mine": []}}, "mine: at least one prompt is needed"),
        ({"custom": {"a/b": ["a"]}}, "String should match pattern"),
    ],
)
def test_a_vocabulary_that_makes_no_sense_is_refused(tmp_path: Path, vocabulary: dict[str, Any], says: str) -> None:
    assert says in problem(tmp_path / "cells", changed(vocabulary=vocabulary))


def test_texts_hash_has_the_known_answers() -> None:
    assert texts_hash(["a"]) == "ffe9aaeaa2a2d5048174df0b80599ef0197ec024c4b051bc9860cff58ef7f9f3"
    assert texts_hash(["a"]) == hashlib.sha256(b"a\0").hexdigest()
    assert texts_hash([]) == "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
    assert texts_hash(["ab", "c"]) != texts_hash(["a", "bc"])
    assert texts_hash(["核"]) == hashlib.sha256(b"\xe6\xa0\xb8\0").hexdigest()


def test_bloodmnist_has_the_words_templates_and_prompts_of_the_original_file() -> None:
    vocabulary = load_study("bloodmnist").vocabulary
    with h5py.File(DATA / "legacy" / "legacy_good.h5") as file:
        assert list(vocabulary.labels.words) == json.loads(file.attrs["label_texts"])
        assert list(vocabulary.labels.templates) == json.loads(file.attrs["prompt_temp_for_labels"])
        assert list(vocabulary.concepts.texts) == json.loads(file.attrs["concept_texts"])
        assert list(vocabulary.concepts.templates) == json.loads(file.attrs["prompt_temp_for_concepts"])
        templates = vocabulary.templates()
        assert set(templates) == set(file["templates"])
        for name, template in templates.items():
            assert list(template.prompts) == [text.decode() for text in file["templates"][name]["texts"][:]]
            assert template.texts_hash == file["templates"][name].attrs["texts_hash"]


# --- finding -----------------------------------------------------------------------------------------


def test_an_unknown_study_lists_the_known_ones() -> None:
    with pytest.raises(StudyError) as caught:
        load_study("bloodmist")

    assert "There is no study 'bloodmist'. Known studies: bloodmnist, " in str(caught.value)
    assert "demo" in str(caught.value)
    assert "CCASSETS_STUDIES" in str(caught.value)


def test_a_study_is_found_by_name_by_folder_and_by_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "mine" / "cells", SMALLEST)
    monkeypatch.setenv("CCASSETS_STUDIES", str(tmp_path / "mine"))

    assert load_study("cells") == load_study(path.parent) == load_study(path)
    assert study_files()["cells"] == path
    monkeypatch.chdir(tmp_path)
    assert load_study("mine/cells") == load_study(path)


def test_studies_beside_one_are_found_where_no_folder_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "studies" / "cells", SMALLEST)
    monkeypatch.chdir(tmp_path)
    assert study_files()["cells"] == path
    write(tmp_path / "named" / "others", SMALLEST)
    monkeypatch.setenv("CCASSETS_STUDIES", "named")
    assert "others" in study_files()
    assert "cells" not in study_files()


def test_a_message_calls_a_study_by_what_a_command_finds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    study = load_study(write(tmp_path / "my project" / "cells", SMALLEST))
    (other_folder := tmp_path / "elsewhere").mkdir()
    monkeypatch.delenv("CCASSETS_STUDIES", raising=False)
    for folder, expected in (
        (tmp_path, "'my project/cells'"),
        (study.folder.parent, "cells"),
        (study.folder, "."),
        (other_folder, str(study.folder)),
    ):
        monkeypatch.chdir(folder)
        assert shlex.split(command_argument(study)) == shlex.split(shlex.quote(expected.strip("'")))
        assert load_study(*shlex.split(command_argument(study))) == study

    monkeypatch.setenv("CCASSETS_STUDIES", str(study.folder.parent))
    assert command_argument(study) == "cells"


@pytest.mark.parametrize("name", ["-x", "~", "it's", "demo"])
def test_what_a_message_calls_a_study_is_an_argument_that_commands_take(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    study = load_study(write(tmp_path / name / "cells", SMALLEST))
    [argument] = shlex.split(command_argument(study))
    assert not argument.startswith("-")
    assert load_study(argument) == study


def test_a_message_names_a_study_also_where_the_working_folder_is_gone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = load_study(write(tmp_path / "cells", SMALLEST))
    (gone := tmp_path / "gone").mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    assert command_argument(study) == str(study.folder)


def test_a_message_does_not_mean_another_study_of_the_same_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mine = load_study(write(tmp_path / "demo", SMALLEST))
    monkeypatch.delenv("CCASSETS_STUDIES", raising=False)
    monkeypatch.chdir(tmp_path)
    assert command_argument(mine) == "./demo"
    assert load_study("./demo") == mine != load_study("demo")


def test_a_folder_of_studies_that_is_not_there_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CCASSETS_STUDIES", str(tmp_path / "nowhere"))
    for name in ("demo", "unknown"):
        with pytest.raises(StudyError, match=r"CCASSETS_STUDIES names .*nowhere, which is not a folder\. Correct"):
            load_study(name)


def test_a_study_of_ones_own_wins_over_a_shipped_one_of_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path / "demo", SMALLEST)
    shipped = load_study("demo")
    monkeypatch.setenv("CCASSETS_STUDIES", str(tmp_path))

    assert shipped.dataset.kind == "phantom"
    assert load_study("demo").dataset.kind == "folder"


def test_relative_paths_start_at_the_studys_folder_and_a_tilde_at_the_home(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "me"))
    study = load_study(write(tmp_path / "cells", SMALLEST))

    assert study.resolve("pictures") == tmp_path / "cells" / "pictures"
    assert study.resolve("/data/pictures") == Path("/data/pictures")
    assert study.resolve("~/pictures") == tmp_path / "me" / "pictures"


def test_every_shipped_study_loads_without_torch_or_dagster() -> None:
    code = (
        "import sys, ccassets\n"
        "from ccassets.study.loading import study_files\n"
        "for name in study_files(): ccassets.load_study(name)\n"
        "heavy = {'torch', 'transformers', 'dagster', 'medmnist', 'sklearn', 'matplotlib'} & set(sys.modules)\n"
        "print(sorted(heavy), *study_files())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert done.stdout.startswith("[] bloodmnist")
    assert " demo" in done.stdout
