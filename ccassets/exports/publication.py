"""Publication: a Hugging Face dataset folder with a card and Croissant metadata, made from what a database records."""

from __future__ import annotations

import json
import os
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ccassets.analysis.samples import class_names, database_concepts, row_classes
from ccassets.database.attributes import json_array, section
from ccassets.database.reader import Database
from ccassets.database.row_order import unverified_rows
from ccassets.database.sandbox import require_readable_rows
from ccassets.database.validation import validate_database
from ccassets.encoders.presets import preset_of
from ccassets.errors import AnalysisError
from ccassets.exports.exported_rows import ExportedRows
from ccassets.exports.tables import data_files_yaml, record_batch, write_split_files
from ccassets.files import digest_files, replacing_folder, storage_errors, write_text
from ccassets.findings import Finding
from ccassets.progress import Progress, silent

_PHANTOM = "phantom"
"""The kind of the data set and of the encoder that this package makes by itself."""
_PHANTOM_LICENSE = "mit"
"""What they come under: the licence of this package."""
_HUB_LICENSE = re.compile(r"(mit|apache-2\.0|cc0-1\.0|cc-by(-nc)?(-sa|-nd)?-[234]\.0|bsd-[23]-clause|odc-by)")


def publish(database: Database, folder: str | os.PathLike[str], progress: Progress = silent) -> None:
    """Write a folder that can be uploaded as a Hugging Face dataset: features by split, a card, `croissant.json`.

    The card says from the provenance which data set and licence the features are of, which encoder made them from which
    prompts, how many rows and classes each split has, what checks find now, and what is known to limit their use. No
    image is written.

    Args:
        database: A database whose study names the `license` of its data set.
        folder: The folder, new or empty.
        progress: Counts rows.

    Raises:
        AnalysisError: The database does not say the licence of its data set, or is remote.
        DatabaseError: The database cannot be read.
        StorageError: The folder is not empty, or cannot be written.
    """
    folder = Path(folder)
    if database.is_remote:
        raise AnalysisError(f"{database.path.name}: publish it where the file lies, or a copy of it.")
    require_readable_rows(database.path)
    license = _license(database)
    findings = validate_database(database.path)
    rows = ExportedRows(database)
    with storage_errors(folder), replacing_folder(folder) as partial:
        files = write_split_files(rows, partial / "data", progress)
        croissant = _croissant(database, rows, license, partial, files)
        write_text(partial / "croissant.json", json.dumps(croissant, indent=2, ensure_ascii=False) + "\n")
        write_text(partial / "README.md", _card(rows, license, files, findings))


def _license(database: Database) -> str:
    dataset = section(database.provenance, "dataset")
    license = dataset.get("license") or (_PHANTOM_LICENSE if _is_phantom(dataset) else None)
    if not license:
        raise AnalysisError(
            f"{database.path.name} does not say under which licence its data set may be published. Set `license` in "
            "the study's dataset section, such as `license: cc-by-4.0`, and build again; no image is encoded again."
        )
    return str(license)


def _title(database: Database) -> str:
    encoder, dataset = section(database.provenance, "encoder"), section(database.provenance, "dataset")
    images = "phantom cells" if _is_phantom(dataset) else dataset.get("name", database.path.stem)
    name = "the phantom encoder" if _is_phantom(encoder) else encoder.get("kind", "an unknown encoder")
    return f"Features of {images} by {name}"


def _is_phantom(facts: Mapping[str, Any]) -> bool:
    return facts.get("kind") == _PHANTOM


# --- card --------------------------------------------------------------------------------------------


def _card(rows: ExportedRows, license: str, files: Mapping[str, Sequence[Path]], findings: Sequence[Finding]) -> str:
    database = rows.database
    known = _HUB_LICENSE.fullmatch(license.lower())
    lines = [f"license: {license.lower()}"] if known else ["license: other", f"license_name: {json.dumps(license)}"]
    header = "\n".join([*lines, "tags: [embeddings, medical-imaging, ccassets, croissant]"])
    parts = (
        _about(database, license),
        _columns(rows),
        _counts(database),
        _words(database),
        _limits(database),
        _checks(findings),
    )
    body = "\n".join(line for part in parts for line in (*part, ""))
    return f"---\n{header}\n{data_files_yaml(files)}---\n# {_cell(_title(database))}\n\n{body}"


def _about(database: Database, license: str) -> Iterator[str]:
    encoder, dataset = section(database.provenance, "encoder"), section(database.provenance, "dataset")
    weights = str(section(encoder, "recorded").get("weights") or "not recorded")
    preset = preset_of(weights)
    gate = {True: "gated", False: "not gated", None: "gate not known"}[preset.gated if preset else None]
    terms = f"{(preset and preset.license) or 'not recorded'}, {gate}"
    digests = section(database.provenance, "digests")
    images = "generated phantoms, of no patient" if _is_phantom(dataset) else "a medical image data set"
    yield f"Image features of {images}, with scores on concepts. **The images are not part of it.**"
    yield ""
    yield "| | |"
    yield "|---|---|"
    version = f", version {dataset['version']}" if dataset.get("version") else ""
    kind = "" if dataset.get("kind") == dataset.get("name") else f" ({dataset.get('kind')})"
    source = f"{dataset.get('name')}{kind}{version}"
    yield f"| data set | {_cell(source)} |"
    yield f"| licence | {_cell(license)} |"
    yield f"| encoder | {_cell(encoder.get('kind'))}, weights {_cell(weights)} |"
    yield f"| identity of the encoder | `{_cell(encoder.get('identity'))}` |"
    yield f"| licence of the encoder | {_cell(_PHANTOM_LICENSE if _is_phantom(encoder) else terms)} |"
    yield f"| features | {len(database):,} rows of {database.dim} numbers, float16 |"
    yield f"| origin | {_cell((database.provenance or {}).get('origin'))} |"
    yield f"| made | {_cell(section(database.provenance, 'created').get('at'))} with ccassets |"
    yield f"| digest | `{_cell(digests.get('database', 'not recorded'))}` |"
    for split, digest in section(digests, "splits").items():
        yield f"| digest of {_cell(split)} | `{_cell(digest)}` |"
    yield ""
    yield "```python"
    yield "import datasets"
    yield ""
    yield 'rows = datasets.load_dataset("path/to/this/folder")'
    yield "```"
    yield ""
    yield "`croissant.json` describes every column and file."


def _columns(rows: ExportedRows) -> Iterator[str]:
    names = [name for name in rows.empty if name not in ("image_features", "concept_scores")]
    yield "## Columns"
    yield ""
    yield f"- {', '.join(f'`{name}`' for name in names)};"
    yield f"- `image_features`: {rows.database.dim} numbers, float16, of length 1;"
    if rows.concepts:
        yield "- a column for every concept, with its name: the cosine of the image and the concept."


def _counts(database: Database) -> Iterator[str]:
    classes = np.array(row_classes(database), object)
    groups = database.groups
    yield "## Splits"
    yield ""
    yield "| split | rows | groups | classes |"
    yield "|---|---|---|---|"
    for split, rows in database.splits.items():
        counts = Counter(classes[rows].tolist())
        shown = ", ".join(f"{_cell(name or 'no label')} {count:,}" for name, count in counts.most_common(30))
        group_count = "none" if groups is None else f"{len(set(groups[rows].tolist())):,}"
        yield f"| {_cell(split)} | {rows.stop - rows.start:,} | {group_count} | {shown} |"


def _words(database: Database) -> Iterator[str]:
    attributes = database.attributes
    yield "## Concepts and prompts"
    yield ""
    for kind, name in (("Concept", "prompt_temp_for_concepts"), ("Label", "prompt_temp_for_labels")):
        templates = attributes.get(name) or []
        yield f"{kind} prompts: {'; '.join(f'`{_cell(template)}`' for template in templates) or 'none'}."
        yield ""
    yield f"Label words: {', '.join(map(_cell, attributes.get('label_texts') or class_names(database))) or 'none'}."
    concepts = database_concepts(database)
    if concepts:
        yield ""
        yield "| concept | group | code | synonyms |"
        yield "|---|---|---|---|"
    for concept in concepts:
        cells = (concept.word, concept.group or "", concept.code or "", ", ".join(concept.synonyms))
        yield f"| {' | '.join(map(_cell, cells))} |"


def _limits(database: Database) -> Iterator[str]:
    provenance = section(database.provenance)
    dataset = section(provenance, "dataset")
    yield "## Intended use and limits"
    yield ""
    yield "For research on representations, retrieval and concept models. Not for diagnosis or treatment of patients."
    yield ""
    yield "- Features do not anonymise: anyone who has an image can find its row. Keys are names of files."
    yield "- Concept scores are cosines, not probabilities and not annotations."
    if _is_phantom(dataset):
        yield "- No number here says anything about medicine."
    if database.attributes.get("limit"):
        yield f"- At most {database.attributes['limit']} rows of each split were taken: it is not the whole data set."
    if provenance.get("origin") == "adopted":
        yield "- Rows were imported from an existing file."
    if unverified_rows(provenance, len(database)):
        yield "- For some rows, it was not verified that features and images are in the same order."
    for split in section(dataset, "splits"):
        for name in ("skipped", "blank"):
            if count := len(json_array(section(dataset, "splits", split).get(name))):
                yield f"- {count} images of {_cell(split)} could not be read and are {name}."
    repeated = _images_in_several_splits(database)
    yield f"- {repeated:,} images stand in more than one split." if repeated else "- No image stands in two splits."


def _images_in_several_splits(database: Database) -> int:
    if database.image_digest is None:
        return 0
    splits: dict[bytes, set[str]] = {}
    for digest, split in zip(database.image_digest, database.split.tolist(), strict=True):
        splits.setdefault(digest.tobytes(), set()).add(split)
    return sum(len(names) > 1 for names in splits.values())


def _checks(findings: Sequence[Finding]) -> Iterator[str]:
    yield "## Checks"
    yield ""
    yield f"`ccassets validate` has {len(findings) or 'no'} finding{'' if len(findings) == 1 else 's'}."
    for finding in findings:
        yield f"- {finding.severity} `{_cell(finding.check)}`: {_cell(finding.message)}"


def _cell(value: object) -> str:
    """A text of the file as Markdown shows it: on one line, and with nothing that ends a cell or begins a tag."""
    text = " ".join(str(value).split())
    return re.sub(r"([\\`*_\[\]<>|])", r"\\\1", text)


# --- Croissant ---------------------------------------------------------------------------------------


_CONTEXT = {
    "@language": "en",
    "@vocab": "https://schema.org/",
    "citeAs": "cr:citeAs",
    "column": "cr:column",
    "conformsTo": "dct:conformsTo",
    "cr": "http://mlcommons.org/croissant/",
    "data": {"@id": "cr:data", "@type": "@json"},
    "dataType": {"@id": "cr:dataType", "@type": "@vocab"},
    "dct": "http://purl.org/dc/terms/",
    "equivalentProperty": "cr:equivalentProperty",
    "examples": {"@id": "cr:examples", "@type": "@json"},
    "extract": "cr:extract",
    "field": "cr:field",
    "fileObject": "cr:fileObject",
    "fileProperty": "cr:fileProperty",
    "fileSet": "cr:fileSet",
    "format": "cr:format",
    "includes": "cr:includes",
    "isLiveDataset": "cr:isLiveDataset",
    "jsonPath": "cr:jsonPath",
    "key": "cr:key",
    "md5": "cr:md5",
    "parentField": "cr:parentField",
    "path": "cr:path",
    "rai": "http://mlcommons.org/croissant/RAI/",
    "recordSet": "cr:recordSet",
    "references": "cr:references",
    "regex": "cr:regex",
    "repeated": "cr:repeated",
    "replace": "cr:replace",
    "samplingRate": "cr:samplingRate",
    "sc": "https://schema.org/",
    "separator": "cr:separator",
    "source": "cr:source",
    "subField": "cr:subField",
    "transform": "cr:transform",
}
"""The context of the format, version 1.0, which readers expect as it is."""


def _croissant(
    database: Database, rows: ExportedRows, license: str, folder: Path, files: Mapping[str, Sequence[Path]]
) -> dict[str, Any]:
    schema = record_batch(rows.empty, rows.concepts).schema
    distribution, record_sets = [], []
    for split, paths in files.items():
        for path in paths:
            name = path.relative_to(folder).as_posix()
            distribution.append(
                {
                    "@type": "cr:FileObject",
                    "@id": name,
                    "name": path.name,
                    "contentUrl": name,
                    "encodingFormat": "application/x-parquet",
                    "sha256": digest_files(path),
                }
            )
            fields = [_field(f"{path.stem}/{number}", name, column) for number, column in enumerate(schema)]
            record_sets.append(
                {"@type": "cr:RecordSet", "@id": path.stem, "name": path.stem, "description": split, "field": fields}
            )
    return {
        "@context": _CONTEXT,
        "@type": "sc:Dataset",
        "conformsTo": "http://mlcommons.org/croissant/1.0",
        "name": re.sub(r"\W+", "-", _title(database)).strip("-"),
        "description": f"{_title(database)}: image features and concept scores, without the images.",
        "license": license,
        "url": "https://huggingface.co/datasets",
        "version": "1.0.0",
        "datePublished": str(section(database.provenance, "created").get("at", "1970-01-01"))[:10],
        "identifier": str(section(database.provenance, "digests").get("database", "")),
        "distribution": distribution,
        "recordSet": record_sets,
    }


def _field(identifier: str, file: str, column: Any) -> dict[str, Any]:
    text = str(column.type)
    is_list = text.startswith("fixed_size_list")
    number = "sc:Float" if "float" in text or "double" in text else "sc:Integer"
    return {
        "@type": "cr:Field",
        "@id": identifier,  # Without the name: readers take no blank in it.
        "name": column.name,
        "dataType": "sc:Text" if text == "string" else number,
        **({"repeated": True} if is_list else {}),
        "source": {"fileObject": {"@id": file}, "extract": {"column": column.name}},
    }
