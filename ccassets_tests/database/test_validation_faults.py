"""One fault at a time in a good file: found by the check that is named for it, and by no other."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from ccassets.database.validation import CHECKS, validate_database
from ccassets_tests.database.made_files import study, write_database, write_image_part, write_template_part

T01 = "templates/concept_prompts_t01"
T03 = "templates/concept_prompts_t03"
FREE = "templates/free_text"


@dataclass(frozen=True)
class Fault:
    """`companions` are findings that the fault makes unavoidable: it breaks their rule as well."""

    name: str
    check: str
    inject: Callable[[h5py.File], Any]
    where: str = ""
    companions: tuple[str, ...] = ()
    file: str = "database"


def attribute(path: str, name: str, value: Any) -> Callable[[h5py.File], None]:
    def inject(file: h5py.File) -> None:
        file[path].attrs[name] = value

    return inject


def no_attribute(path: str, name: str) -> Callable[[h5py.File], None]:
    def inject(file: h5py.File) -> None:
        del file[path].attrs[name]

    return inject


def value(path: str, index: Any, new: Any) -> Callable[[h5py.File], None]:
    def inject(file: h5py.File) -> None:
        file[path][index] = new

    return inject


def deleted(path: str) -> Callable[[h5py.File], None]:
    def inject(file: h5py.File) -> None:
        del file[path]

    return inject


def replaced(path: str, change: Callable[[Any], Any], **options: Any) -> Callable[[h5py.File], None]:
    """The data set made anew from its changed values."""

    def inject(file: h5py.File) -> None:
        values = change(file[path][...])
        del file[path]
        file.create_dataset(path, data=values, **options)

    return inject


def provenance(change: Callable[[dict[str, Any]], Any]) -> Callable[[h5py.File], None]:
    def inject(file: h5py.File) -> None:
        content = json.loads(file.attrs["provenance"])
        change(content)
        file.attrs["provenance"] = json.dumps(content, ensure_ascii=False)

    return inject


def words(name: str, change: Callable[[list[str]], list[str]]) -> Callable[[h5py.File], None]:
    def inject(file: h5py.File) -> None:
        file.attrs[name] = json.dumps(change(json.loads(file.attrs[name])), ensure_ascii=False)

    return inject


def setting(*keys: str, to: Any) -> Callable[[h5py.File], None]:
    """A value of the provenance, by the keys that lead to it."""

    def change(content: dict[str, Any]) -> None:
        for key in keys[:-1]:
            content = content[key]
        content[keys[-1]] = to

    return provenance(change)


# --- faults of the more elaborate kind ----------------------------------------------------------------


def soft_link(file: h5py.File) -> None:
    file.move("ids", "numbers")
    file["ids"] = h5py.SoftLink("/numbers")


def external_link(file: h5py.File) -> None:
    del file["labels"]
    file["labels"] = h5py.ExternalLink("elsewhere.h5", "/labels")


def external_storage(file: h5py.File) -> None:
    rows = len(file["labels"])
    del file["labels"]
    file.create_dataset("labels", (rows,), "<i8", external=[("labels.bin", 0, 8 * rows)])


def virtual_dataset(file: h5py.File) -> None:
    layout = h5py.VirtualLayout(file["ids"].shape, "<i8")
    layout[:] = h5py.VirtualSource("other.h5", "ids", file["ids"].shape)
    del file["ids"]
    file.create_virtual_dataset("ids", layout)


def external_template(file: h5py.File) -> None:
    del file[FREE]
    file[FREE] = h5py.ExternalLink("elsewhere.h5", "/templates/free_text")


def group_for_dataset(file: h5py.File) -> None:
    del file["groups"]
    file.create_group("groups")


def dataset_for_template(file: h5py.File) -> None:
    del file[FREE]
    file[FREE] = np.zeros(3)


def enormous(name: str, *widths: int) -> Callable[[h5py.File], None]:
    def inject(file: h5py.File) -> None:
        dtype = file[name].dtype
        del file[name]
        file.create_dataset(name, (10**9, *widths), dtype, chunks=(64, *widths))

    return inject


def one_chunk(file: h5py.File) -> None:
    del file["ids"]
    file.create_dataset("ids", (20,), "<i8", chunks=(10**8,), maxshape=(None,))


def damaged_chunk(name: str, row: int, **options: Any) -> Callable[[h5py.File], None]:
    """A compressed data set with one chunk whose bytes are no longer what the filter can unpack."""

    def inject(file: h5py.File) -> None:
        values = file[name][...]
        del file[name]
        options_ = {"compression": "gzip", "chunks": (2, *values.shape[1:]), **options}
        dataset = file.create_dataset(name, data=values, **options_)
        start = (row - row % options_["chunks"][0], *(0 for _ in values.shape[1:]))
        dataset.id.write_direct_chunk(start, b"\x78\x9c damaged")

    return inject


def unknown_filter(name: str) -> Callable[[h5py.File], None]:
    def inject(file: h5py.File) -> None:
        values = file[name][...]
        del file[name]
        properties = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        properties.set_chunk(values.shape)
        properties.set_filter(32015, h5py.h5z.FLAG_OPTIONAL)
        space = h5py.h5s.create_simple(values.shape)
        kind = h5py.h5t.py_create(values.dtype, logical=True)
        dataset = h5py.h5d.create(file.id, name.encode(), kind, space, properties)
        dataset.write_direct_chunk((0,) * values.ndim, values.tobytes())

    return inject


def broken_text(path: str, row: int) -> Callable[[h5py.File], None]:
    def inject(file: h5py.File) -> None:
        texts = file[path][...]
        texts[row] = b"Bl\xe4schen"
        file[path][...] = texts

    return inject


def wider_template(file: h5py.File) -> None:
    for name in ("text_features", "text_token_features"):
        values = file[FREE][name][...]
        del file[FREE][name]
        file[FREE][name] = np.concatenate([values, np.zeros((*values.shape[:-1], 1), np.float32)], axis=-1)
    file[FREE].attrs["D"] = file[FREE].attrs["D"] + 1


def swapped_splits(file: h5py.File) -> None:
    names = file["split"][...]
    names[8], names[9] = names[9], names[8]
    file["split"][...] = names


def swapped_prompts(file: h5py.File) -> None:
    features = file[FREE]["text_features"][...]
    file[FREE]["text_features"][...] = features[::-1]


def rehashed_prompt(file: h5py.File) -> None:
    from ccassets.study.prompt_hash import texts_hash

    file[T01]["texts"][1] = "a cell with something else"
    file[T01].attrs["texts_hash"] = texts_hash([text.decode() for text in file[T01]["texts"][...]])


def stale_copy(file: h5py.File) -> None:
    file.copy(T03, file["templates"], "concept_prompts_t04")


def twin_picture(file: h5py.File) -> None:
    file["image_digest"][19] = file["image_digest"][0]


def twin_group(file: h5py.File) -> None:
    file["groups"][19] = file["groups"][0]


def twin_key(file: h5py.File) -> None:
    file["keys"][1] = file["keys"][0]


def last_digit(name: str, index: Any) -> Callable[[h5py.File], None]:
    def inject(file: h5py.File) -> None:
        old = file[name][index]
        file[name][index] = np.nextafter(old, np.float16(0))

    return inject


def digest_of_a_row(file: h5py.File) -> None:
    file["feature_digest"][4] = 0


def second_split(file: h5py.File) -> None:
    file["split"][6] = "val"


def matrix_value(file: h5py.File) -> None:
    file["label_matrix"][3, 1] = 2
    file["labels"][3] = 1


FAULTS = [
    # --- structure ------------------------------------------------------------------------------------
    Fault("no version", "version", no_attribute("/", "version")),
    Fault("another version", "version", attribute("/", "version", "2.0")),
    Fault("a profile of another name", "profile", attribute("/", "profile", "databse")),
    Fault("two splits in an image part", "profile", second_split, file="image-part"),
    Fault("templates in an image part", "profile", lambda file: file.create_group(T01), file="image-part"),
    Fault("two templates in a template part", "profile", lambda f: f.copy(T01, f, FREE), file="template-part"),
    Fault("images in a template part", "profile", lambda f: f.create_dataset("ids", data=[0]), file="template-part"),
    Fault("a time of another form", "created_at", attribute("/", "created_at", "2026-01-01T00:00:00Z")),
    Fault("a template without a time", "created_at", no_attribute(T01, "created_at"), T01),
    Fault("D is text", "attributes", attribute("/", "D", "12"), "@D"),
    Fault("D is a list", "attributes", attribute("/", "D", [12]), "@D"),
    Fault("K is a fraction", "attributes", attribute(FREE, "K", 2.5), "@K"),
    Fault("label words cut off", "attributes", attribute("/", "label_texts", '["basophil", "mono')),
    Fault("label words as an object", "attributes", attribute("/", "label_texts", '{"a": 1}')),
    Fault("concept words as an array", "attributes", attribute("/", "concept_texts", ["a", "b"])),
    Fault("an empty attribute", "attributes", attribute("/", "concepts", h5py.Empty("S1"))),
    *(
        Fault(f"no {name}", "datasets", deleted(name), f"/{name}")
        for name in (
            *("image_features", "image_token_features", "ids", "labels", "split"),
            *("keys", "image_digest", "feature_digest"),
        )
    ),
    Fault("no texts in a template", "datasets", deleted(f"{FREE}/texts"), f"{FREE}/texts"),
    Fault("no features in a template", "datasets", deleted(f"{FREE}/text_features")),
    Fault("a group for a data set", "datasets", group_for_dataset, "/groups"),
    Fault("a data set for a template", "datasets", dataset_for_template, FREE),
    Fault("a soft link", "self_contained", soft_link, "/ids"),
    Fault("an external link", "self_contained", external_link, "/labels"),
    Fault("external storage", "self_contained", external_storage, "/labels"),
    Fault("a virtual data set", "self_contained", virtual_dataset, "/ids"),
    Fault("a template elsewhere", "self_contained", external_template, FREE),
    Fault("labels in a damaged chunk", "unreadable", damaged_chunk("labels", 3), "/labels"),
    Fault("tokens under an unknown filter", "unreadable", unknown_filter("image_token_features")),
    Fault("ids under an unknown filter", "unreadable", unknown_filter("ids"), "/ids"),
    Fault("a thousand million labels", "declared_size", enormous("labels"), "/labels"),
    Fault("a thousand million tokens", "declared_size", enormous("image_token_features", 4, 12)),
    Fault("one enormous chunk", "declared_size", one_chunk),
    Fault("features of float32", "dtypes", replaced("image_features", np.float32), "/image_features"),
    Fault("tokens of float64", "dtypes", replaced("image_token_features", np.float64)),
    Fault("big-endian features", "dtypes", replaced("image_features", lambda v: v.astype(">f2"))),
    Fault("labels of float64", "dtypes", replaced("labels", np.float64), "/labels"),
    Fault("ids of int32", "dtypes", replaced("ids", np.int32), "/ids"),
    Fault("splits as numbers", "dtypes", replaced("split", lambda v: np.arange(len(v))), "/split"),
    Fault("text features of float64", "dtypes", replaced(f"{FREE}/text_features", np.float64)),
    Fault("token ids of int64", "dtypes", replaced(f"{FREE}/input_ids", np.int64)),
    Fault("splits of fixed length", "string_types", replaced("split", lambda v: v.astype("S5")), "/split"),
    Fault("prompts in ASCII", "string_types", replaced(f"{FREE}/texts", lambda v: v, dtype=h5py.string_dtype("ascii"))),
    Fault("a key in Latin-1", "utf8", broken_text("keys", 2), "/keys row 2"),
    Fault("an attribute in Latin-1", "utf8", attribute("/", "note", np.bytes_(b"Bl\xe4schen")), "/@note"),
    Fault("features of rank 3", "shapes", replaced("image_features", lambda v: v[:, None]), "/image_features"),
    Fault("labels of rank 2", "shapes", replaced("labels", lambda v: v[:, None]), "/labels"),
    Fault("one id for all", "shapes", replaced("ids", lambda v: v[0]), "/ids"),
    Fault("short digests", "shapes", replaced("image_digest", lambda v: v[:, :16]), "/image_digest"),
    Fault("labels without values", "shapes", replaced("labels", lambda v: h5py.Empty("<i8")), "/labels"),
    Fault("a key too few", "row_counts", replaced("keys", lambda v: v[:-1]), companions=()),
    Fault("a label too few", "row_counts", replaced("labels", lambda v: v[:-1]), companions=("torn_rows",)),
    Fault("an id too many", "row_counts", replaced("ids", lambda v: np.arange(21)), companions=("torn_rows",)),
    Fault("D of another width", "dimensions", attribute("/", "D", 13), "/image_features"),
    Fault("T_img of another number", "dimensions", attribute("/", "T_img", 9), "/image_token_features"),
    Fault("no T_img", "dimensions", no_attribute("/", "T_img"), "@T_img"),
    Fault("no D", "dimensions", no_attribute("/", "D"), "@D"),
    Fault("tokens that T_img denies", "dimensions", attribute("/", "T_img", -1), "/image_token_features"),
    Fault("another K", "template_shapes", attribute(FREE, "K", 3), FREE),
    Fault("another D of a template", "template_shapes", attribute(FREE, "D", 11), FREE),
    Fault("another T_txt", "template_shapes", attribute(FREE, "T_txt", -1), FREE),
    Fault("no T_txt", "template_shapes", no_attribute(FREE, "T_txt"), FREE),
    Fault("a prompt more than features", "template_shapes", replaced(f"{FREE}/text_features", lambda v: v[:-1])),
    Fault("a narrow mask", "template_shapes", replaced(f"{FREE}/input_ids", lambda v: v[:, :-1])),
    Fault("a template of another encoder", "template_dim", wider_template, FREE),
    # --- counts ---------------------------------------------------------------------------------------
    Fault("one wrong id", "ids", value("ids", 7, 70), "/ids row 7"),
    Fault("ids from 1", "ids", value("ids", slice(None), np.arange(1, 21)), "/ids rows 0-19"),
    Fault("a count too high", "split_counts", attribute("/", "split_counts", '{"train": 9, "val": 6, "test": 6}')),
    Fault("a split without a count", "split_counts", attribute("/", "split_counts", '{"train": 9, "val": 5}')),
    Fault("a count of no split", "split_counts", attribute("/", "split_counts", '{"train":9,"val":5,"test":6,"x":1}')),
    Fault("counts that are no JSON", "split_counts", attribute("/", "split_counts", "train: 9")),
    Fault("a negative count", "split_counts", attribute("/", "split_counts", '{"train": 9, "val": 5, "test": -6}')),
    Fault("no counts", "stopped_extraction", no_attribute("/", "split_counts")),
    Fault("rows out of order", "contiguous_splits", swapped_splits, "/split", ("group_in_two_splits",)),
    Fault("rows without a split", "torn_rows", value("split", slice(18, 20), ["", ""]), "rows 18-19",
          ("split_counts", "provenance_rows")),
    Fault("a label too high", "labels", value("labels", 2, 3), "/labels row 2"),
    Fault("a negative label", "labels", value("labels", slice(4, 7), -2), "/labels rows 4-6"),
    Fault("a missing label", "missing_labels", value("labels", 5, -1), "/labels row 5"),
    Fault("labels all zero", "labels_all_zero", value("labels", slice(None), 0), "/labels"),
    Fault("a 2 in the label matrix", "label_matrix", matrix_value, "row 3", file="matrix"),
    Fault("a label the matrix denies", "label_matrix", value("labels", 0, 2), "row 0", file="matrix"),
    Fault("a column too few", "label_matrix", replaced("label_matrix", lambda v: np.eye(2, dtype="u1")[[1, 0] * 10]),
          file="matrix"),
    Fault("an empty key", "keys", value("keys", 3, ""), "/keys row 3"),
    Fault("a key twice", "duplicate_keys", twin_key, "/keys"),
    # --- values ---------------------------------------------------------------------------------------
    Fault("NaN in a feature", "finite", value("image_features", (11, 0), np.nan), "/image_features row 11"),
    Fault("infinity in a feature", "finite", value("image_features", (11, 5), np.inf), "/image_features row 11"),
    Fault("minus infinity in a token", "finite", value("image_token_features", (3, 2, 1), -np.inf), "row 3"),
    Fault("negative NaN in a token", "finite", value("image_token_features", (19, 3, 11), -np.nan), "row 19"),
    Fault("NaN in a text feature", "finite", value(f"{FREE}/text_features", (1, 3), np.nan), f"{FREE}/text_features"),
    Fault("NaN in a text token", "finite", value(f"{FREE}/text_token_features", (0, 3, 2), np.nan)),
    Fault("zero features", "zero_rows", value("image_features", slice(4, 6), 0), "/image_features rows 4-5"),
    Fault("zero tokens of an image", "zero_rows", value("image_token_features", 12, 0), "row 12"),
    Fault("negative zeros", "zero_rows", value("image_token_features", 12, -0.0), "row 12"),
    Fault("zero text features", "zero_rows", value(f"{FREE}/text_features", 0, 0), f"{FREE}/text_features row 0"),
    Fault("one zero patch", "zero_tokens", value("image_token_features", (12, 3), 0), "row 12"),
    Fault("a feature of norm 2", "norms", lambda f: f["image_features"].__setitem__(1, f["image_features"][1] * 2)),
    Fault("a norm of 1.004", "norms",
          lambda f: f["image_features"].__setitem__(1, (f["image_features"][1] * 1.004)), "/image_features row 1"),
    Fault("a text norm of 0.99", "norms",
          lambda f: f[FREE]["text_features"].__setitem__(1, f[FREE]["text_features"][1] * 0.99), FREE),
    Fault("tokens in a damaged chunk", "unreadable_rows", damaged_chunk("image_token_features", 5), "rows 4-5"),
    Fault("features in a damaged chunk", "unreadable_rows", damaged_chunk("image_features", 19), "rows 18-19"),
    Fault("a scale that is NaN", "logit_parameters", attribute("/", "logit_scale", np.nan), "@logit_scale"),
    Fault("a bias that is text", "logit_parameters", attribute("/", "logit_bias", "-11"), "@logit_bias"),
    Fault("scales that are no logarithms", "logit_parameters", attribute("/", "logit_scale_space", "linear")),
    # --- texts ----------------------------------------------------------------------------------------
    Fault("a changed custom prompt", "texts_hash", value(f"{FREE}/texts", 0, "a healty cell"), FREE),
    Fault("a changed numbered prompt", "texts_hash", value(f"{T01}/texts", 0, "a cell"), T01, ("texts",)),
    Fault("another hash", "texts_hash", attribute(T01, "texts_hash", "0" * 64), T01),
    Fault("a hash in capitals", "texts_hash", lambda f: f[T01].attrs.modify("texts_hash", "E3B0" * 16), T01),
    Fault("no hash", "texts_hash", no_attribute(T01, "texts_hash"), T01),
    Fault("another prompt under its hash", "texts", rehashed_prompt, T01),
    Fault("another word in the list", "texts", words("label_texts", lambda w: [*w[:-1], "platelet"]), "label_prompts"),
    Fault("templates in another order", "texts", words("prompt_temp_for_labels", lambda t: t[::-1]), "label_prompts"),
    Fault("a template deleted", "missing_template", deleted(T03), "/templates"),
    Fault("all templates cleared", "missing_template", lambda f: [f["templates"].pop(t) for t in list(f["templates"])]),
    Fault("a template from before", "stale_template", stale_copy, "concept_prompts_t04"),
    Fault("a shorter template list", "stale_template", words("prompt_temp_for_concepts", lambda t: t[:-1]), T03),
    Fault("no label words", "vocabulary", no_attribute("/", "label_texts")),
    Fault("no concept templates", "vocabulary", no_attribute("/", "prompt_temp_for_concepts")),
    Fault("other concepts", "vocabulary", attribute("/", "concepts", '[{"word": "granules"}]'), "@concepts"),
    Fault("two prompts of the same tokens", "prompts_alike",
          lambda f: f[f"{T01}/input_ids"].__setitem__(1, f[f"{T01}/input_ids"][0]), T01),
    Fault("typographic quotes for ConceptCLIP", "prompt_cleaning",
          lambda f: (setting("encoder", "kind", to="conceptclip")(f), value(f"{FREE}/texts", 1, "a ‘sick’ cell")(f)),
          FREE, ("texts_hash", "encoder_identity")),
    Fault("a 2 in a mask", "attention_mask", value(f"{FREE}/attention_mask", (0, 0), 2), f"{FREE}/attention_mask"),
    Fault("a prompt without tokens", "attention_mask", value(f"{FREE}/attention_mask", 1, 0), FREE, ("spans",)),
    Fault("a span in the padding", "spans", value(f"{T01}/subject_span", 2, [1, 6]), "row 2"),
    Fault("a span beyond the tokens", "spans", value(f"{T01}/subject_span", 0, [1, 99]), "row 0"),
    Fault("a span backwards", "spans", value(f"{T01}/subject_span", 1, [3, 2]), "row 1"),
    Fault("a negative span", "spans", value(f"{T01}/subject_span", 1, [-1, 2]), "row 1"),
    # --- provenance -----------------------------------------------------------------------------------
    Fault("no provenance", "no_provenance", no_attribute("/", "provenance")),
    Fault("provenance cut off", "provenance", attribute("/", "provenance", '{"origin": "extr')),
    Fault("provenance as a list", "provenance", attribute("/", "provenance", "[]")),
    Fault("an unknown origin", "provenance", setting("origin", to="guessed")),
    Fault("no data set in the provenance", "provenance", provenance(lambda p: p.pop("dataset"))),
    Fault("encoder as text", "provenance", setting("encoder", to="CLIP")),
    Fault("another identity", "encoder_identity", setting("encoder", "identity", to="0" * 32)),
    Fault("no identity", "encoder_identity", provenance(lambda p: p["encoder"].pop("identity"))),
    Fault("an edited field of the encoder", "encoder_identity", setting("encoder", "dtype", to="float16")),
    Fault("other rows in the provenance", "provenance_rows", setting("dataset", "splits", "val", "rows", to=6)),
    Fault("a split the provenance lacks", "provenance_rows", provenance(lambda p: p["dataset"]["splits"].pop("val"))),
    Fault("a blank row of another split", "provenance_rows", setting("dataset", "splits", "val", "blank", to=[1]),
          companions=("blank_rows",)),
    Fault("a path of this machine", "private_details", setting("dataset", "root", to="/home/me/cells")),
    Fault("a token", "private_details", setting("extraction", "note", to="used hf_abcdefghijklmnopqrstuv")),
    Fault("random weights", "random_weights", setting("encoder", "recorded", "weights", to="random:0")),
    Fault("untrained weights", "random_weights", setting("encoder", "recorded", "untrained", to=True)),
    Fault("a limit", "limited", attribute("/", "limit", 9), "@limit"),
    Fault("rows adopted without a proof of their order", "unverified_order",
          setting("parts", to=[{"name": "a.h5", "rows": 3, "origin": "adopted", "order": "unverified"}])),
    Fault("a template adopted without a proof of its features", "unverified_order",
          setting("templates", to={"label_prompts_t01": {"origin": "adopted", "order": "unverified"}})),
    Fault("a skipped image", "skipped_rows",
          setting("dataset", "splits", "val", "skipped", to=[{"key": "/a.png", "reason": "cut off"}])),
    Fault("a blank image", "blank_rows", setting("dataset", "splits", "val", "blank", to=[10]), "row 10"),
    Fault("a picture in two splits", "image_in_two_splits", twin_picture),
    Fault("a patient in two splits", "group_in_two_splits", twin_group),
]  # fmt: skip

DEEP_FAULTS = [
    Fault("a last digit of a feature", "feature_digest", last_digit("image_features", (6, 3)), "row 6"),
    Fault("a last digit of a token", "feature_digest", last_digit("image_token_features", (19, 3, 11)), "row 19"),
    Fault("a stored feature digest", "feature_digest", digest_of_a_row, "row 4", ("rows_digest", "split_digest")),
    Fault("a stored image digest", "rows_digest", value("image_digest", 5, 9)),
    Fault("the digest of both", "rows_digest", attribute("/", "rows_digest", "00" * 16),
          companions=("attribute_digest",)),
    Fault("another scale", "attribute_digest", attribute("/", "logit_scale", 4.6), "@logit_scale"),
    Fault("another group of a concept", "attribute_digest",
          words("concepts", lambda concepts: [{**concept, "group": "nucleus"} for concept in concepts]), "@concepts"),
    Fault("another batch size in the record", "attribute_digest", setting("extraction", "batch_size", to=5),
          "@provenance"),
    Fault("an attribute gone", "attribute_digest", no_attribute("/", "logit_bias"), "@logit_bias"),
    Fault("prompts in another order", "template_digest", swapped_prompts, FREE),
    Fault("a last digit of a text token", "template_digest",
          lambda f: f[T01]["text_token_features"].__setitem__((0, 0, 0), 0.5), T01),
    Fault("another token id", "template_digest", value(f"{T01}/input_ids", (0, 0), 5000), T01),
    Fault("a template's digest", "template_digest", attribute(FREE, "digest", "00" * 16), FREE, ("database_digest",)),
    Fault("a corrected label", "split_digest", value("labels", 10, 0), "val"),
    Fault("a renamed key", "split_digest", value("keys", 19, "test/other.png"), "test"),
    Fault("another patient", "split_digest", value("groups", 19, "test patient 99"), "test"),
    Fault("a recorded split digest", "split_digest", setting("digests", "splits", "val", to="00" * 32), "val",
          ("database_digest", "attribute_digest")),
    Fault("the recorded database digest", "database_digest", setting("digests", "database", to="00" * 32),
          companions=("attribute_digest",)),
    Fault("a template removed with its string", "database_digest",
          lambda f: (deleted(T03)(f), words("prompt_temp_for_concepts", lambda t: t[:-1])(f)),
          companions=("attribute_digest",)),
]  # fmt: skip

STUDY_FAULTS = [
    Fault("another concept word", "study_vocabulary", words("concept_texts", lambda w: ["square nucleus", *w[1:]]),
          "@concept_texts", ("texts", "vocabulary")),
    Fault("another custom prompt", "study_vocabulary", value(f"{FREE}/texts", 1, "a sick cell"), FREE, ("texts_hash",)),
    Fault("a custom template more", "study_vocabulary", lambda f: f.copy(FREE, f["templates"], "other"), "/templates"),
    Fault("a custom template less", "study_vocabulary", deleted(FREE), FREE),
    Fault("a limit the study lacks", "study_limit", attribute("/", "limit", 9), "@limit", ("limited",)),
    Fault("another kind of encoder", "study_encoder", setting("encoder", "kind", to="conceptclip"),
          companions=("encoder_identity",)),
    Fault("a compiled encoder", "study_encoder", setting("encoder", "compiled", to=True),
          companions=("encoder_identity",)),
]  # fmt: skip


@pytest.fixture(scope="module")
def originals(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    folder = tmp_path_factory.mktemp("good")
    files = {
        "database": write_database(folder / "database.h5"),
        "matrix": write_database(folder / "matrix.h5", matrix=True),
        "image-part": write_image_part(folder / "image.h5"),
        "template-part": write_template_part(folder / "template.h5"),
    }
    return {name: path.read_bytes() for name, path in files.items()}


def check_fault(path: Path, fault: Fault, originals: dict[str, bytes], **arguments: Any) -> None:
    path.write_bytes(originals[fault.file])
    assert validate_database(path, **arguments) == []
    with h5py.File(path, "r+") as file:
        fault.inject(file)
    findings = validate_database(path, **arguments)
    assert {finding.check for finding in findings} - set(fault.companions) == {fault.check}, findings
    named = [finding for finding in findings if finding.check == fault.check]
    assert any(fault.where in finding.where for finding in named), named
    assert validate_database(path, **arguments, only={fault.check}) == named
    assert all(len(finding.message) < 600 for finding in findings)


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_a_fault_is_found_by_the_check_named_for_it(fault: Fault, originals: dict[str, bytes], tmp_path: Path) -> None:
    check_fault(tmp_path / "file.h5", fault, originals)


@pytest.mark.parametrize("fault", DEEP_FAULTS, ids=lambda fault: fault.name)
def test_a_changed_byte_is_found_by_its_digest(fault: Fault, originals: dict[str, bytes], tmp_path: Path) -> None:
    check_fault(tmp_path / "file.h5", fault, originals, deep=True)


@pytest.mark.parametrize("fault", STUDY_FAULTS, ids=lambda fault: fault.name)
def test_a_difference_from_the_study_is_named(fault: Fault, originals: dict[str, bytes], tmp_path: Path) -> None:
    check_fault(tmp_path / "file.h5", fault, originals, study=study())


def test_the_faults_cover_every_check() -> None:
    # The rest needs another study, or a file of the original scripts: test_validation.py and test_validation_legacy.py.
    tested_elsewhere = {"text_only", "doubled_rows", "vocabulary_unknown", "no_digests"}
    tested_elsewhere |= {"study_splits", "foreign_split", "study_tokens"}
    # These need a data set and an encoder: test_adoption.py.
    tested_elsewhere |= {check.name for check in CHECKS.values() if check.group == "adoption"}
    assert {fault.check for fault in (*FAULTS, *DEEP_FAULTS, *STUDY_FAULTS)} == set(CHECKS) - tested_elsewhere
