"""The checks by name: how severe each is, why it exists, and what to do when it finds something. No check runs here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
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
    """A named rule: `reason` says what breaks where it does not hold, `advice` what to do about it."""

    name: str
    severity: Severity
    group: str
    reason: str
    advice: str


_REBUILD = "Build the database again; finished parts are reused."
_ADOPT = "`ccassets adopt FILE STUDY --repair` keeps the right rows and lists the ones to extract again."

_CHECKS = (
    # --- structure ------------------------------------------------------------------------------------
    Check(
        "version",
        "error",
        "structure",
        "The root attribute `version` names the format; in another version the same names may mean other things.",
        "Use the version of ccassets that wrote the file.",
    ),
    Check(
        "profile",
        "error",
        "structure",
        "`profile` says whether a file is a database, an image part (rows of one split) or a template part.",
        "Remove the file and build again.",
    ),
    Check(
        "text_only",
        "warning",
        "structure",
        "A text-only file holds templates and no images. Nothing is broken, but it is no feature database.",
        "Use its templates; extract images with a study.",
    ),
    Check(
        "created_at",
        "warning",
        "structure",
        "`created_at` is local time as `YYYY-MM-DD HH:MM:SS`; other forms are not understood by older readers.",
        "None needed: no result depends on it.",
    ),
    Check(
        "attributes",
        "error",
        "structure",
        "An attribute that readers decode (a number, a JSON list) is missing its type or its syntax.",
        "Restore the file from a copy, or build it again.",
    ),
    Check(
        "datasets",
        "error",
        "structure",
        "Readers open these data sets by name; one that is missing stops them.",
        _REBUILD,
    ),
    Check(
        "self_contained",
        "error",
        "structure",
        "A link, or storage outside the file, makes readers open files that nobody named, or fail elsewhere.",
        "Ask the file's author for one with its bytes inside (`h5repack` copies them).",
    ),
    Check(
        "unreadable",
        "error",
        "structure",
        "HDF5 cannot decode an object, or its filter is not installed: its content cannot be vouched for.",
        "Restore the file from a copy. For a missing filter, write the data without one (`h5repack -f NONE`).",
    ),
    Check(
        "declared_size",
        "error",
        "structure",
        "A data set declares far more bytes than the file has, so most of its rows were never written.",
        _REBUILD,
    ),
    Check(
        "dtypes",
        "error",
        "structure",
        "Mapped readers and other languages rely on the exact little-endian dtypes of the format.",
        _REBUILD,
    ),
    Check(
        "string_types",
        "warning",
        "structure",
        "Strings are variable-length UTF-8. Fixed-length or ASCII ones read the same, but may have been cut.",
        "Compare the longest strings with their source; a new build writes the right type.",
    ),
    Check(
        "utf8",
        "error",
        "structure",
        "A string that is not UTF-8 reads as something else on every machine.",
        "Find the encoding it was written in, or build again from the source.",
    ),
    Check(
        "shapes",
        "error",
        "structure",
        "Every data set has a fixed rank, and some a fixed width; readers index by them.",
        _REBUILD,
    ),
    Check(
        "row_counts",
        "error",
        "structure",
        "All row data sets have the same length N: row i of each belongs to image i.",
        _ADOPT,
    ),
    Check(
        "dimensions",
        "error",
        "structure",
        "The attributes `D` and `T_img` equal the shapes; readers allocate by them.",
        _REBUILD,
    ),
    Check(
        "template_shapes",
        "error",
        "structure",
        "`K`, `D` and `T_txt` of a template equal its shapes, and its arrays agree: row k of each belongs to prompt k.",
        "Encode the template again (its asset alone is enough).",
    ),
    Check(
        "template_dim",
        "error",
        "structure",
        "Cosines need text and image features of the same width: they must come from the same encoder.",
        "Encode the templates with the encoder of the images.",
    ),
    # --- counts ---------------------------------------------------------------------------------------
    Check(
        "ids",
        "error",
        "counts",
        "`ids` are 0 … N-1, each row's own number; joins by id meet the wrong row otherwise.",
        _REBUILD,
    ),
    Check(
        "split_counts",
        "error",
        "counts",
        "`split_counts` equals the rows of each split; readers and resumes trust it.",
        _REBUILD,
    ),
    Check(
        "stopped_extraction",
        "error",
        "counts",
        "`split_counts` is written once, after the last split. Without it the extraction was stopped, "
        "and rows may be missing however right the file looks.",
        _ADOPT + " Do not resume with the original scripts: they append every row again.",
    ),
    Check(
        "doubled_rows",
        "error",
        "counts",
        "A resume of the original scripts appended rows that were there already: they count twice in every result, "
        "and a split by row number separates copies of one image.",
        _ADOPT,
    ),
    Check(
        "torn_rows",
        "error",
        "counts",
        "A refused or interrupted batch left rows without their split, or data sets of unequal length: "
        "such rows belong to no known image.",
        _ADOPT,
    ),
    Check(
        "foreign_split",
        "error",
        "counts",
        "Rows of a split that the study does not declare, or that the last run of the original scripts did not write: "
        "two runs share one file.",
        "Declare the split in the study, or build a file without it.",
    ),
    Check(
        "contiguous_splits",
        "error",
        "counts",
        "Rows stand split by split; a split in two places cannot be read as one range.",
        _ADOPT,
    ),
    Check(
        "labels",
        "error",
        "counts",
        "A label is a position in the label list; any other number names nothing.",
        "Correct the labels in the data set and build again: no image is encoded for it.",
    ),
    Check(
        "missing_labels",
        "error",
        "counts",
        "-1 is what the original scripts write where no label was given; used as an index it means the last class.",
        "`ccassets adopt FILE STUDY --repair` takes the labels from the data set.",
    ),
    Check(
        "labels_all_zero",
        "warning",
        "counts",
        "Every label is 0: either one class only, or a data set without labels, which the file cannot tell apart.",
        "Compare with the data set; `ccassets adopt FILE STUDY --repair` takes the labels from there.",
    ),
    Check(
        "label_matrix",
        "error",
        "counts",
        "`label_matrix` holds 0 and 1, and `labels` its first set column (0 where none is set).",
        _REBUILD,
    ),
    Check(
        "keys",
        "error",
        "counts",
        "A key says where a row came from; without it no picture or search hit can be traced.",
        _REBUILD,
    ),
    Check(
        "duplicate_keys",
        "warning",
        "counts",
        "One key stands twice in a split: the same picture counts twice.",
        "Remove the repetition from the data set if it is not meant.",
    ),
    # --- values ---------------------------------------------------------------------------------------
    Check(
        "finite",
        "error",
        "values",
        "NaN or infinity spreads into every mean, norm and cosine that meets it.",
        "Encode the rows again; with float16 compute, try float32.",
    ),
    Check(
        "zero_rows",
        "error",
        "values",
        "An all-zero row was allocated and never written, or its encoder failed; its cosine is undefined.",
        "Encode the rows again.",
    ),
    Check(
        "zero_tokens",
        "warning",
        "values",
        "Single patch vectors that are all zero: unusual for a dense encoder, and without a cosine.",
        "Encode the rows again unless the encoder is known to do this.",
    ),
    Check(
        "norms",
        "error",
        "values",
        "Image and text features have unit length (1 ± 0.002): scores are dot products.",
        "Encode again with normalisation.",
    ),
    Check(
        "unreadable_rows",
        "error",
        "values",
        "Rows whose bytes cannot be read or unpacked are lost, whatever their neighbours say.",
        _ADOPT,
    ),
    Check(
        "logit_parameters",
        "error",
        "values",
        "The four logit parameters are finite numbers, the scales natural logarithms: scores multiply by their exp.",
        "Store the model's parameters as they are.",
    ),
    # --- texts ----------------------------------------------------------------------------------------
    Check(
        "texts_hash",
        "error",
        "texts",
        "The stored prompts no longer give the stored hash: text was changed after its features were computed.",
        "Encode the template again; its features belong to the old text.",
    ),
    Check(
        "texts",
        "error",
        "texts",
        "Prompt k of a numbered template is its template string with word k; concept rows are found by the word list.",
        "Encode the template again, or restore the lists it was made with.",
    ),
    Check(
        "missing_template",
        "error",
        "texts",
        "The stored lists name a template that the file does not hold (the original `clear_all_templates` does this).",
        "Encode it: images are not needed for it.",
    ),
    Check(
        "stale_template",
        "warning",
        "texts",
        "A numbered template beyond the stored list is left over from a longer one, and answers without complaint.",
        "Do not use it; the next build leaves it out.",
    ),
    Check(
        "vocabulary",
        "error",
        "texts",
        "The word and template lists are what numbered templates are read by; `concepts` repeats the concept words.",
        _REBUILD,
    ),
    Check(
        "vocabulary_unknown",
        "warning",
        "texts",
        "A file of the original scripts without its lists: its prompts can be checked by their hash only.",
        "Keep the lists it was made with beside it, or adopt it with a study that has them.",
    ),
    Check(
        "attention_mask",
        "error",
        "texts",
        "The mask is 1 for every token of a prompt and 0 for padding; each prompt has at least one token.",
        "Encode the template again.",
    ),
    Check(
        "spans",
        "error",
        "texts",
        "`subject_span` is where a word stands among its prompt's tokens; local text scores read exactly there.",
        "Encode the template again.",
    ),
    # --- provenance -----------------------------------------------------------------------------------
    Check(
        "no_provenance",
        "warning",
        "provenance",
        "Nothing says which encoder and data set a file of the original scripts came from.",
        "`ccassets adopt FILE STUDY` records what is known.",
    ),
    Check(
        "provenance",
        "error",
        "provenance",
        "The provenance is one JSON object with the fields of the format; identity and resume read it.",
        _REBUILD,
    ),
    Check(
        "provenance_rows",
        "error",
        "provenance",
        "The rows that the provenance records of each split are the rows of the file.",
        _REBUILD,
    ),
    Check(
        "encoder_identity",
        "error",
        "provenance",
        "The identity is a digest of the encoder's recorded fields, and D and T_img are what they say: "
        "otherwise features of two encoders could be taken for one.",
        _REBUILD,
    ),
    Check(
        "private_details",
        "warning",
        "provenance",
        "An absolute path or an access token in a file travels wherever the file goes.",
        "Revoke the token; build again without it.",
    ),
    Check(
        "random_weights",
        "warning",
        "provenance",
        "The encoder was not trained: numbers have the right form and no meaning.",
        "Use trained weights for anything but a trial.",
    ),
    Check(
        "limited",
        "warning",
        "provenance",
        "The study took only some rows of each split; results are not those of the data set.",
        "Remove `limit` from the study and build again.",
    ),
    Check(
        "skipped_rows",
        "warning",
        "provenance",
        "Images that could not be read were left out on request; the file is smaller than the data set.",
        "Repair the named images and build again.",
    ),
    Check(
        "blank_rows",
        "warning",
        "provenance",
        "Images that could not be read were replaced by mid-grey ones on request; these rows show nothing.",
        "Leave the rows out of every result, or repair the images and build again.",
    ),
    Check(
        "image_in_two_splits",
        "warning",
        "provenance",
        "Equal pictures in two splits: a test on one of them tests what was trained on.",
        "Remove one of each pair from the data set.",
    ),
    Check(
        "group_in_two_splits",
        "warning",
        "provenance",
        "One group (patient, slide) in two splits: a test on it is not independent.",
        "Cut the splits by group.",
    ),
    # --- digests --------------------------------------------------------------------------------------
    Check(
        "no_digests",
        "warning",
        "digests",
        "The file records no digests, so later damage to its bytes cannot be seen.",
        "Adopt or rebuild the file: ours always have them.",
    ),
    Check(
        "feature_digest",
        "error",
        "digests",
        "The bytes of a row are not the ones its encoder gave.",
        "Restore the file, or remove it and build again from the parts.",
    ),
    Check(
        "rows_digest",
        "error",
        "digests",
        "The stored image or feature digests are not the ones that were written.",
        "Restore the file, or remove it and build again from the parts.",
    ),
    Check(
        "attribute_digest",
        "error",
        "digests",
        "A root attribute (a word list, a logit parameter, the provenance) is not the one that was written.",
        "Restore the file, or remove it and build again from the parts.",
    ),
    Check(
        "template_digest",
        "error",
        "digests",
        "The bytes of a template are not the ones its encoder gave.",
        "Encode the template again.",
    ),
    Check(
        "split_digest",
        "error",
        "digests",
        "Features, keys, labels or groups of a split were changed after the build.",
        "Build again; correct labels and keys in the data set, not in the file.",
    ),
    Check(
        "database_digest",
        "error",
        "digests",
        "Splits, templates or word lists were changed after the build.",
        _REBUILD,
    ),
    # --- study ----------------------------------------------------------------------------------------
    Check(
        "study_vocabulary",
        "error",
        "study",
        "The file's words and templates are the study's: an equal file is taken as its result.",
        "Build the study, or validate against the one that the file was made with.",
    ),
    Check(
        "study_splits",
        "error",
        "study",
        "The file has every split of the study, in the study's order.",
        "Build the missing splits.",
    ),
    Check(
        "study_tokens",
        "error",
        "study",
        "The file stores token features where the study asks for them, and only there.",
        _REBUILD,
    ),
    Check(
        "study_limit",
        "error",
        "study",
        "A file of some rows is not taken for the study's whole, nor the other way round.",
        "Give the study the same `limit`, or build it.",
    ),
    Check(
        "study_encoder",
        "error",
        "study",
        "The file's encoder is of the study's kind and dtype, and compiled if it says so.",
        _REBUILD,
    ),
    # --- adoption -------------------------------------------------------------------------------------
    Check(
        "encoder_card",
        "error",
        "adoption",
        "D, T_img and the logit parameters of the file, and the identity where it records one, are those of the "
        "study's encoder: its features are taken for that encoder's.",
        "Adopt with a study whose encoder is the one that made the file. `--repair` cannot help here.",
    ),
    Check(
        "data_set_rows",
        "error",
        "adoption",
        "A row belongs to the image at its place in the split, so a split has as many rows as the data set images.",
        "Adopt with the data set as it was when the file was made, and change it afterwards. `--repair` keeps complete "
        "splits, and the beginning of the one in which an extraction was stopped.",
    ),
    Check(
        "data_set_labels",
        "error",
        "adoption",
        "Equal labels show that row and image belong together; one that differs puts the order of its split in doubt.",
        "If labels were corrected since, adopt with the old ones and correct them afterwards: no image is encoded for "
        "it. `--repair` leaves such a split out.",
    ),
    Check(
        "equal_images",
        "error",
        "adoption",
        "Rows that are said to show one picture have the same features (to the last digits).",
        "`--repair` leaves these rows out; the next build encodes their images.",
    ),
)

CHECKS: Mapping[str, Check] = MappingProxyType({check.name: check for check in _CHECKS})
"""Every check by name, in the order of its group."""


def checks_page() -> str:
    """`docs/checks.md`: one table a group, one row a check."""
    lines = [
        "# Checks",
        "",
        "Validation reports everything it finds at once, each finding under the name of a check. An *error* means that",
        "the file must not be used as it is; a *warning* is something to know before it is used. `ccassets validate`",
        "exits with 1 when there is an error. Every finding says what was expected, what was found, and where.",
        "",
        "This page is written by `python -m ccassets.database.validation`.",
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
