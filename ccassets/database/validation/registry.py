"""The checks by name: how severe each is, why it exists, and what to do when it finds something. No check runs here."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from types import MappingProxyType

from ccassets.findings import Severity

GROUPS: Mapping[str, str] = MappingProxyType(
    {
        "structure": "What has to be there, and in which form",
        "counts": "Rows: their numbers, splits and labels",
        "values": "The numbers themselves",
        "texts": "Templates and the words they are made of",
        "provenance": "Where the file comes from, and what should be known before it is used",
        "digests": "Bytes against what was recorded when they were written (`--deep`)",
        "study": "The file against a study (`--study`)",
        "adoption": "The file against the study's data set and encoder (`ccassets adopt`)",
    }
)
"""Groups of checks, each with its heading; a group is what runs together as one Dagster asset check."""


@dataclass(frozen=True)
class Check:
    """A named check: `reason` says what breaks where it fails, `advice` what to do about it."""

    name: str
    group: str
    severity: Severity
    reason: str
    advice: str


def _error(reason: str, *, advice: str) -> Callable[..., Check]:
    return partial(Check, severity="error", reason=reason, advice=advice)


def _warning(reason: str, *, advice: str) -> Callable[..., Check]:
    return partial(Check, severity="warning", reason=reason, advice=advice)


_REBUILD = "Build the database again; finished parts are reused."
_RESTORE = "Restore the file, or remove it and build again from the parts."
_ADOPT = "`ccassets adopt FILE STUDY --repair` keeps the right rows and lists the ones to extract again."
_ENCODE_ROWS = "Encode the rows again."
_ENCODE_TEMPLATE = "Encode the template again."

_TABLE: Mapping[str, Mapping[str, Callable[..., Check]]] = {
    "structure": {
        "version": _error(
            "The root attribute `version` names the format; in another version the same names may mean other things.",
            advice="Use the version of ccassets that wrote the file.",
        ),
        "profile": _error(
            "`profile` says whether a file is a database, an image part (rows of one split) or a template part.",
            advice="Remove the file and build again.",
        ),
        "text_only": _warning(
            "A text-only file holds templates and no images. Nothing is broken, but it is no feature database.",
            advice="Use its templates; extract images with a study.",
        ),
        "created_at": _warning(
            "`created_at` is local time as `YYYY-MM-DD HH:MM:SS`; other forms are not understood by older readers.",
            advice="None needed: no result depends on it.",
        ),
        "attributes": _error(
            "An attribute that readers decode (a number, a JSON list) is missing its type or its syntax.",
            advice="Restore the file from a copy, or build it again.",
        ),
        "datasets": _error(
            "Readers open these data sets by name; one that is missing stops them.",
            advice=_REBUILD,
        ),
        "self_contained": _error(
            "A link, or storage outside the file, makes readers open files that nobody named, or fail elsewhere.",
            advice="Ask the file's author for one with its bytes inside (`h5repack` copies them).",
        ),
        "unreadable": _error(
            "HDF5 cannot decode an object, or its filter is not installed: its content cannot be vouched for.",
            advice="Restore the file from a copy. For a missing filter, write the data without one (`h5repack -f "
            "NONE`).",
        ),
        "declared_size": _error(
            "A data set declares far more bytes than the file has, so most of its rows were never written.",
            advice=_REBUILD,
        ),
        "dtypes": _error(
            "Mapped readers and other languages rely on the exact little-endian dtypes of the format.",
            advice=_REBUILD,
        ),
        "string_types": _warning(
            "Strings are variable-length UTF-8. Fixed-length or ASCII ones read the same, but may have been cut.",
            advice="Compare the longest strings with their source; a new build writes the right type.",
        ),
        "utf8": _error(
            "A string that is not UTF-8 reads as something else on every machine.",
            advice="Find the encoding it was written in, or build again from the source.",
        ),
        "shapes": _error(
            "Every data set has a fixed rank, and some a fixed width; readers index by them.",
            advice=_REBUILD,
        ),
        "row_counts": _error(
            "All row data sets have the same length N: row i of each belongs to image i.",
            advice=_ADOPT,
        ),
        "dimensions": _error(
            "The attributes `D` and `T_img` equal the shapes; readers allocate by them.",
            advice=_REBUILD,
        ),
        "template_shapes": _error(
            "`K`, `D` and `T_txt` of a template equal its shapes, and its arrays agree: row k of each belongs to "
            "prompt k.",
            advice="Encode the template again (its asset alone is enough).",
        ),
        "template_dim": _error(
            "Cosines need text and image features of the same width: they must come from the same encoder.",
            advice="Encode the templates with the encoder of the images.",
        ),
    },
    "counts": {
        "ids": _error(
            "`ids` are 0 … N-1, each row's own number; joins by id meet the wrong row otherwise.",
            advice=_REBUILD,
        ),
        "split_counts": _error(
            "`split_counts` equals the rows of each split; readers and resumes trust it.",
            advice=_REBUILD,
        ),
        "stopped_extraction": _error(
            "`split_counts` is written once, after the last split. Without it the extraction was stopped, and rows "
            "may be missing however right the file looks.",
            advice=_ADOPT + " Do not resume with the original scripts: they append every row again.",
        ),
        "doubled_rows": _error(
            "A resume of the original scripts appended rows that were there already: they count twice in every "
            "result, and a split by row number separates copies of one image.",
            advice=_ADOPT,
        ),
        "torn_rows": _error(
            "A refused or interrupted batch left rows without their split, or data sets of unequal length: such "
            "rows belong to no known image.",
            advice=_ADOPT,
        ),
        "foreign_split": _error(
            "Rows of a split that the study does not declare, or that the last run of the original scripts did not "
            "write: two runs share one file.",
            advice="Declare the split in the study, or build a file without it.",
        ),
        "contiguous_splits": _error(
            "Rows stand split by split; a split in two places cannot be read as one range.",
            advice=_ADOPT,
        ),
        "labels": _error(
            "A label is a position in the label list; any other number names nothing.",
            advice="Correct the labels in the data set and build again: no image is encoded for it.",
        ),
        "missing_labels": _error(
            "-1 is what the original scripts write where no label was given; used as an index it means the last class.",
            advice="`ccassets adopt FILE STUDY --repair` takes the labels from the data set.",
        ),
        "labels_all_zero": _warning(
            "Every label is 0: either one class only, or a data set without labels, which the file cannot tell apart.",
            advice="Compare with the data set; `ccassets adopt FILE STUDY --repair` takes the labels from there.",
        ),
        "label_matrix": _error(
            "`label_matrix` holds 0 and 1, and `labels` its first set column (0 where none is set).",
            advice=_REBUILD,
        ),
        "keys": _error(
            "A key says where a row came from; without it no picture or search hit can be traced.",
            advice=_REBUILD,
        ),
        "duplicate_keys": _warning(
            "One key stands twice in a split: the same picture counts twice.",
            advice="Remove the repetition from the data set if it is not meant.",
        ),
    },
    "values": {
        "finite": _error(
            "NaN or infinity spreads into every mean, norm and cosine that meets it.",
            advice="Encode the rows again; with float16 compute, try float32.",
        ),
        "zero_rows": _error(
            "An all-zero row was allocated and never written, or its encoder failed; its cosine is undefined.",
            advice=_ENCODE_ROWS,
        ),
        "zero_tokens": _warning(
            "Single patch vectors that are all zero: unusual for a dense encoder, and without a cosine.",
            advice="Encode the rows again unless the encoder is known to do this.",
        ),
        "norms": _error(
            "Image and text features have unit length (1 ± 0.002): scores are dot products.",
            advice="Encode again with normalisation.",
        ),
        "unreadable_rows": _error(
            "Rows whose bytes cannot be read or unpacked are lost, whatever their neighbours say.",
            advice=_ADOPT,
        ),
        "logit_parameters": _error(
            "The four logit parameters are finite numbers, the scales natural logarithms: scores multiply by their "
            "exp.",
            advice="Store the model's parameters as they are.",
        ),
    },
    "texts": {
        "texts_hash": _error(
            "The stored prompts no longer give the stored hash: text was changed after its features were computed.",
            advice="Encode the template again; its features belong to the old text.",
        ),
        "texts": _error(
            "Prompt k of a numbered template is its template string with word k; concept rows are found by the word "
            "list.",
            advice="Encode the template again, or restore the lists it was made with.",
        ),
        "missing_template": _error(
            "The stored lists name a template that the file does not hold (the original `clear_all_templates` does "
            "this).",
            advice="Encode it: images are not needed for it.",
        ),
        "stale_template": _warning(
            "A numbered template beyond the stored list is left over from a longer one, and answers without complaint.",
            advice="Do not use it; the next build leaves it out.",
        ),
        "vocabulary": _error(
            "The word and template lists are what numbered templates are read by; `concepts` repeats the concept "
            "words.",
            advice=_REBUILD,
        ),
        "vocabulary_unknown": _warning(
            "A file of the original scripts without its lists: its prompts can be checked by their hash only.",
            advice="Keep the lists it was made with beside it, or adopt it with a study that has them.",
        ),
        "attention_mask": _error(
            "The mask is 1 for every token of a prompt and 0 for padding; each prompt has at least one token.",
            advice=_ENCODE_TEMPLATE,
        ),
        "spans": _error(
            "`subject_span` is where a word stands among its prompt's tokens; local text scores read exactly there.",
            advice=_ENCODE_TEMPLATE,
        ),
    },
    "provenance": {
        "no_provenance": _warning(
            "Nothing says which encoder and data set a file of the original scripts came from.",
            advice="`ccassets adopt FILE STUDY` records what is known.",
        ),
        "provenance": _error(
            "The provenance is one JSON object with the fields of the format; identity and resume read it.",
            advice=_REBUILD,
        ),
        "provenance_rows": _error(
            "The rows that the provenance records of each split are the rows of the file.",
            advice=_REBUILD,
        ),
        "encoder_identity": _error(
            "The identity is a digest of the encoder's recorded fields, and D and T_img are what they say: "
            "otherwise features of two encoders could be taken for one.",
            advice=_REBUILD,
        ),
        "private_details": _warning(
            "An absolute path or an access token in a file travels wherever the file goes.",
            advice="Revoke the token; build again without it.",
        ),
        "random_weights": _warning(
            "The encoder was not trained: numbers have the right form and no meaning.",
            advice="Use trained weights for anything but a trial.",
        ),
        "limited": _warning(
            "The study took only some rows of each split; results are not those of the data set.",
            advice="Remove `limit` from the study and build again.",
        ),
        "skipped_rows": _warning(
            "Images that could not be read were left out on request; the file is smaller than the data set.",
            advice="Repair the named images and build again.",
        ),
        "blank_rows": _warning(
            "Images that could not be read were replaced by mid-grey ones on request; these rows show nothing.",
            advice="Leave the rows out of every result, or repair the images and build again.",
        ),
        "image_in_two_splits": _warning(
            "Equal pictures in two splits: a test on one of them tests what was trained on.",
            advice="Remove one of each pair from the data set.",
        ),
        "group_in_two_splits": _warning(
            "One group (patient, slide) in two splits: a test on it is not independent.",
            advice="Cut the splits by group.",
        ),
    },
    "digests": {
        "no_digests": _warning(
            "The file records no digests, so later damage to its bytes cannot be seen.",
            advice="Adopt or rebuild the file: ours always have them.",
        ),
        "feature_digest": _error(
            "The bytes of a row are not the ones its encoder gave.",
            advice=_RESTORE,
        ),
        "rows_digest": _error(
            "The stored image or feature digests are not the ones that were written.",
            advice=_RESTORE,
        ),
        "attribute_digest": _error(
            "A root attribute (a word list, a logit parameter, the provenance) is not the one that was written.",
            advice=_RESTORE,
        ),
        "template_digest": _error(
            "The bytes of a template are not the ones its encoder gave.",
            advice=_ENCODE_TEMPLATE,
        ),
        "split_digest": _error(
            "Features, keys, labels or groups of a split were changed after the build.",
            advice="Build again; correct labels and keys in the data set, not in the file.",
        ),
        "database_digest": _error(
            "Splits, templates or word lists were changed after the build.",
            advice=_REBUILD,
        ),
    },
    "study": {
        "study_vocabulary": _error(
            "The file's words and templates are the study's: an equal file is taken as its result.",
            advice="Build the study, or validate against the one that the file was made with.",
        ),
        "study_splits": _error(
            "The file has every split of the study, in the study's order.",
            advice="Build the missing splits.",
        ),
        "study_tokens": _error(
            "The file stores token features where the study asks for them, and only there.",
            advice=_REBUILD,
        ),
        "study_limit": _error(
            "A file of some rows is not taken for the study's whole, nor the other way round.",
            advice="Give the study the same `limit`, or build it.",
        ),
        "study_encoder": _error(
            "The file's encoder is of the study's kind and dtype, and compiled if it says so.",
            advice=_REBUILD,
        ),
    },
    "adoption": {
        "encoder_card": _error(
            "D, T_img and the logit parameters of the file, and the identity where it records one, are those of the "
            "study's encoder: its features are taken for that encoder's.",
            advice="Adopt with a study whose encoder is the one that made the file. `--repair` cannot help here.",
        ),
        "data_set_rows": _error(
            "A row belongs to the image at its place in the split, so a split has as many rows as the data set images.",
            advice="Adopt with the data set as it was when the file was made, and change it afterwards. "
            "`--repair` keeps complete splits, and the beginning of the one in which an extraction was "
            "stopped.",
        ),
        "data_set_labels": _error(
            "Equal labels show that row and image belong together; one that differs puts the order of its split in "
            "doubt.",
            advice="If labels were corrected since, adopt with the old ones and correct them afterwards: no image "
            "is encoded for it. `--repair` leaves such a split out.",
        ),
        "equal_images": _error(
            "Rows that are said to show one picture have the same features (to the last digits).",
            advice="`--repair` leaves these rows out; the next build encodes their images.",
        ),
    },
}

CHECKS: Mapping[str, Check] = MappingProxyType(
    {name: check(name=name, group=group) for group, checks in _TABLE.items() for name, check in checks.items()}
)
"""Every check by name, in the order of its group."""


def checks_of(group: str) -> frozenset[str]:
    """The names of a group's checks."""
    return frozenset(check.name for check in CHECKS.values() if check.group == group)


def checks_page() -> str:
    """`docs/checks.md`: one table a group, one row a check."""
    lines = [
        "# Checks",
        "",
        "Validation reports everything it finds at once, each finding under the name of a check. An *error* means that",
        "the file must not be used as it is; a *warning* is something to know before it is used. `ccassets validate`",
        "exits with 1 when there is an error. Every finding says what was expected, what was found, and where.",
        "",
        "This page is generated from the registry of the validator.",
    ]
    for group, heading in GROUPS.items():
        lines += ["", f"## {heading}", "", f"Group `{group}`.", ""]
        lines += ["| check | severity | reason | what to do |", "|---|---|---|---|"]
        lines += [
            f"| `{check.name}` | {check.severity} | {check.reason} | {check.advice} |"
            for check in CHECKS.values()
            if check.group == group
        ]
    return "\n".join(lines) + "\n"
