"""The original pipeline: encoding prompts and images into a growing file, batch by batch."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import h5py
import numpy as np

from ccassets.database.layout import IMAGE_FEATURES, IMAGE_TOKEN_FEATURES, LOGIT_PARAMETERS
from ccassets.encoders.encoder_contract import EncoderCard
from ccassets.encoders.runtime import TEXT_BATCH, fixed_arithmetic, to_host
from ccassets.encoders.spans import token_spans
from ccassets.errors import CcassetsError, DatasetError
from ccassets.extraction.provenance import encoder_provenance, libraries
from ccassets.h5.artifacts import ModelArtifacts
from ccassets.h5.batch_appending import append_batch
from ccassets.h5.exceptions import ArgumentError
from ccassets.h5.growing_file import (
    DEFAULT_DIM,
    DEFAULT_PATH,
    DEFAULT_TOKEN_COUNT,
    count_splits,
    create_row_datasets,
    cut_rows,
    open_growing,
    read_split_counts,
    write_split_counts,
)
from ccassets.h5.growing_provenance import read_provenance, write_provenance
from ccassets.h5.growing_templates import load_model_params, write_logit_parameters, write_template
from ccassets.h5.input_values import to_array
from ccassets.h5.loaders import batches, has_labels, require_order, row_count
from ccassets.h5.prompts import PromptConfig
from ccassets.study.schema import PromptTemplate

if TYPE_CHECKING:
    import torch

PathLike = str | os.PathLike[str]
Loaders = Mapping[str, Any] | Iterable[tuple[str, Any]]


@dataclass
class FeatureStoreSummary:
    """The result of `run_full_pipeline`.

    Attributes:
        text_templates: Stored prompts by template id.
        image_samples_appended: New rows by split.
        total_new_samples: New rows of all splits.
    """

    text_templates: dict[str, int]
    image_samples_appended: dict[str, int]
    total_new_samples: int


def run_full_pipeline(
    artifacts: ModelArtifacts,
    prompt_config: PromptConfig,
    loaders: Loaders,
    *,
    output_path: PathLike = DEFAULT_PATH,
    resume: bool = True,
    show_progress: bool = True,
    extra_metadata: Mapping[str, object] | None = None,
) -> FeatureStoreSummary:
    """Encode and store templates, then images: `store_prompt_features` and `encode_and_store_image_features`.

    Args:
        artifacts: The model with its processor and device.
        prompt_config: Words and templates.
        loaders: Loaders of (images, labels) batches by split, in the order of the rows.
        output_path: The growing file.
        resume: Continue after the stored rows; otherwise the stored rows of these splits are replaced.
        show_progress: Show a progress bar for every split.
        extra_metadata: Further root attributes, stored as JSON.

    Returns:
        The numbers of stored prompts and of new rows.

    Raises:
        ArgumentError: An argument does not fit the file (a `DatabaseError` and a `ValueError`).
        DatasetError: A loader failed; the rows before it are stored.
        DatabaseError: The file is not a growing file.
        StorageError: The file is open elsewhere, or the disk refuses.
    """
    templates = store_prompt_features(artifacts, prompt_config, output_path=output_path, extra_metadata=extra_metadata)
    appended = encode_and_store_image_features(
        artifacts,
        loaders,
        output_path=output_path,
        resume=resume,
        show_progress=show_progress,
        extra_metadata=extra_metadata,
    )
    return FeatureStoreSummary(templates, appended, sum(appended.values()))


# --- texts --------------------------------------------------------------------------------------------


def store_prompt_features(
    artifacts: ModelArtifacts,
    prompt_config: PromptConfig,
    *,
    output_path: PathLike = DEFAULT_PATH,
    extra_metadata: Mapping[str, object] | None = None,
) -> dict[str, int]:
    """Encode every template and store it with the word lists and the model's logit parameters.

    Unlike the original: the tokens (`input_ids`, `attention_mask`) are stored too, and of our own model the position
    of each word; prompts are encoded 32 at a time; a file with templates that these lists do not give, or with
    features of another model, is refused before anything is written.

    Args:
        artifacts: The model with its processor and device.
        prompt_config: Words and templates.
        output_path: The growing file; a new one takes D from the model.
        extra_metadata: Further root attributes, stored as JSON.

    Returns:
        The number of prompts, K, by template id.

    Raises:
        ArgumentError: Words, templates or model do not fit the file (a `DatabaseError` and a `ValueError`).
        DatabaseError: The file is not a growing file.
        StorageError: The file is open elsewhere, or the disk refuses.
    """
    encoded = ((template, _encode_template(artifacts, template)) for template in prompt_config.templates())
    first = next(encoded, None)
    dim = DEFAULT_DIM if first is None else first[1]["text_features"].shape[1]
    stored: dict[str, int] = {}
    metadata = {**prompt_config.metadata, **(extra_metadata or {})}
    token_count = _token_count(artifacts)
    with _open_growing(output_path, dim, token_count, metadata) as file:
        _require_model(file, artifacts)
        _require_no_other_templates(file, prompt_config.build_template_map())
        for template, arrays in [*([] if first is None else [first]), *encoded]:
            write_template(file, template.template_id, template.prompts, **arrays)
            stored[template.template_id] = len(template.prompts)
        _record_model(file, artifacts)
    return stored


def _encode_template(artifacts: ModelArtifacts, template: PromptTemplate) -> dict[str, Any]:
    inputs = artifacts.processor(text=list(template.prompts), return_tensors="pt", padding=True, truncation=True)
    ids = inputs["input_ids"].to(artifacts.device)
    with _evaluating(artifacts.model):
        parts = [_encode(artifacts.model, "text", batch) for batch in ids.split(TEXT_BATCH)]
    arrays: dict[str, Any] = {
        "text_features": np.concatenate([features for features, _ in parts]),
        "text_token_features": _joined([tokens for _, tokens in parts]),
        "input_ids": to_array(ids),
    }
    if "attention_mask" in inputs:
        arrays["attention_mask"] = to_array(inputs["attention_mask"])
        if "offset_mapping" in inputs:
            arrays["subject_span"] = token_spans(
                to_array(inputs["offset_mapping"]), arrays["attention_mask"], template.subjects
            )
    return arrays


def _joined(parts: list[Any]) -> Any:
    return None if any(part is None for part in parts) else np.concatenate(parts)


def _require_no_other_templates(file: h5py.File, templates: Mapping[str, Any]) -> None:
    others = [
        name
        for name in file["templates"]
        if name not in templates and name.startswith(("concept_prompts_t", "label_prompts_t"))
    ]
    if others:
        raise ArgumentError(
            f"{file.filename} holds templates that these lists do not give: {others}. Readers would "
            "return them beside the new ones; remove all with `clear_all_templates(path, confirm=True)` first."
        )


# --- images -------------------------------------------------------------------------------------------


def encode_and_store_image_features(
    artifacts: ModelArtifacts,
    split_loaders: Loaders | None = None,
    *,
    output_path: PathLike = DEFAULT_PATH,
    resume: bool = True,
    show_progress: bool = True,
    extra_metadata: Mapping[str, object] | None = None,
) -> dict[str, int]:
    """Encode and store the images of every split that are not stored yet.

    Unlike the original: `split_counts` is stored with every batch. So a stopped run continues at its first missing
    row, even in a file of the original scripts. It decodes no stored image again, and its batches are those of a run
    that was not stopped. `resume=False` removes the stored rows of these splits first instead of appending a second
    copy. Refused before anything is encoded: loaders that shuffle or drop rows, splits with more rows than their
    loader has, a file begun with another model. The notebook's form without `artifacts` took the model from the
    notebook's own variables: pass `ModelArtifacts(model, processor, device)`.

    Args:
        artifacts: The model with its processor and device.
        split_loaders: Loaders of (images, labels) batches by split, a mapping or the notebook's list of pairs, in the
            order of the rows. A loader without labels gives images alone, and 0 is stored.
        output_path: The growing file; one without rows takes D and T_img from the model.
        resume: Continue after the stored rows; otherwise the stored rows of these splits are replaced.
        show_progress: Show a progress bar for every split, and print the new rows.
        extra_metadata: Further root attributes, stored as JSON.

    Returns:
        Appended rows by split, for splits with any.

    Raises:
        ArgumentError: Loaders or model do not fit the file (a `DatabaseError` and a `ValueError`).
        DatasetError: A loader failed; the rows before it are stored.
        DatabaseError: The file is not a growing file.
        StorageError: The file is open elsewhere, or the disk refuses.
    """
    if split_loaders is None:
        raise ArgumentError(
            "expected encode_and_store_image_features(artifacts, split_loaders): a function in a module cannot "
            "see a notebook's model. Pass ModelArtifacts(model, processor, device) first."
        )
    loaders = _by_split(split_loaders)
    appended: dict[str, int] = {}
    with _open_growing(output_path, DEFAULT_DIM, DEFAULT_TOKEN_COUNT, extra_metadata) as file:
        _require_model(file, artifacts)
        if not resume:
            _remove_splits(file, loaders)
        _record_planned_rows(file, loaders)
        _record_model(file, artifacts)
        for split, loader in loaders.items():
            rows = _append_split(file, artifacts, split, loader, show_progress)
            if rows:
                appended[split] = rows
    if show_progress:
        total = sum(appended.values())
        print(f"Appended {total} samples to {output_path}." if total else "No new samples were appended.")
        for split, rows in appended.items():
            print(f"  - {split}: {rows}")
    return appended


def _by_split(split_loaders: Loaders) -> dict[str, Any]:
    pairs = list(split_loaders.items() if isinstance(split_loaders, Mapping) else split_loaders)
    loaders = dict(pairs)
    if len(loaders) < len(pairs):
        raise ArgumentError(f"Expected one loader a split, found {[split for split, _ in pairs]}.")
    for split, loader in pairs:
        require_order(split, loader)
    return loaders


def _append_split(file: h5py.File, artifacts: ModelArtifacts, split: str, loader: Any, show_progress: bool) -> int:
    recorded, total = read_split_counts(file).get(split, 0), row_count(loader)
    if recorded == total:
        if show_progress:
            print(f"Skip {split}: already stored {recorded}/{total} samples.")
        return 0
    labelled = has_labels(loader)
    end = recorded
    with _progress(split, recorded, total, show_progress) as advance:
        for first, images, labels in _with_loader_errors(batches(loader, recorded), split, file):
            end = max(end, first + len(images))
            done = max(0, recorded - first)
            if done >= len(images):
                continue
            features, tokens = _encode_images(artifacts, images)
            _set_sizes(file, features.shape[1], 0 if tokens is None else tokens.shape[1])
            append_batch(
                file,
                image_feats=features[done:],
                image_token_feats=None if tokens is None else tokens[done:],
                ids=None,
                split_names=split,
                labels=labels[done:] if labelled and labels is not None else None,
            )
            advance(len(images) - done)
    if total is None and end < read_split_counts(file).get(split, 0):
        raise ArgumentError(f"{file.filename} holds {recorded} rows of {split!r}; its loader gives {end}.")
    return read_split_counts(file).get(split, 0) - recorded


def _encode_images(artifacts: ModelArtifacts, images: Any) -> tuple[Any, Any]:
    inputs = artifacts.processor(images=images, return_tensors="pt", padding=True, truncation=True)
    with _evaluating(artifacts.model):
        features, tokens = _encode(artifacts.model, "image", inputs["pixel_values"].to(artifacts.device))
    if len(features) != len(images):
        raise ArgumentError(f"The model gave {len(features)} features for {len(images)} images.")
    return features, tokens


def _set_sizes(file: h5py.File, dim: int, token_count: int) -> None:
    """Give a file without rows the model's D and T_img; every later batch must have them."""
    sizes = file[IMAGE_FEATURES].shape[1], file[IMAGE_TOKEN_FEATURES].shape[1] if IMAGE_TOKEN_FEATURES in file else 0
    if sizes == (dim, token_count) or len(file[IMAGE_FEATURES]):
        return
    widths = {template["text_features"].shape[1] for template in file["templates"].values()}
    if widths - {dim}:
        raise ArgumentError(f"The templates of {file.filename} have D = {widths}; this model has {dim}.")
    create_row_datasets(file, dim, token_count)


def _record_planned_rows(file: h5py.File, loaders: Mapping[str, Any]) -> None:
    """Record the rows that every split has and will have, so that a stopped run can be told from a finished one.

    Refuses loaders whose rows cannot follow the stored ones.
    """
    counts = read_split_counts(file)
    provenance = read_provenance(file)
    totals = {split: row_count(loader) for split, loader in loaders.items()}
    _require_places(file, counts, totals)
    for split, total in totals.items():
        if total is None:
            continue
        provenance["dataset"]["splits"].setdefault(split, {})["planned"] = total
        if not total:
            counts.setdefault(split, 0)
    write_split_counts(file, counts)
    write_provenance(file, provenance, counts)


def _require_places(file: h5py.File, counts: Mapping[str, int], totals: Mapping[str, int | None]) -> None:
    """Refuse a loader with fewer rows than its split has, and one whose rows would not follow those of its split.

    A loader without a length may have nothing to add; its rows are checked when they arrive.
    """
    last = next((split for split in reversed(list(counts)) if counts[split]), None)
    for split, total in totals.items():
        stored = counts.get(split, 0)
        if total is None or total == stored:
            continue
        if stored > total:
            raise ArgumentError(
                f"{file.filename} holds {stored} rows of {split!r}; its loader has {total}. "
                "The data differ: give a new path, or resume=False to replace them."
            )
        if stored and split != last:
            raise ArgumentError(
                f"{file.filename}: {split!r} has {stored} of {total} rows, and rows of {last!r} follow them; the rows "
                "of a split stand together. Nothing was written. Give the loaders in the order of the file; if the "
                "data set grew, give a new path, or resume=False to replace these splits and those after them."
            )
        last = split


def _remove_splits(file: h5py.File, loaders: Mapping[str, Any]) -> None:
    counts = count_splits(file)
    names = list(counts)
    first = next((number for number, name in enumerate(names) if name in loaders), len(names))
    others = [name for name in names[first:] if name not in loaders]
    if others:
        raise ArgumentError(
            f"resume=False would remove the rows of {others} too, which follow in the file and have no loader here. "
            "Pass their loaders as well, or give a new path."
        )
    provenance = read_provenance(file)
    for split in loaders:
        provenance["dataset"]["splits"].pop(split, None)
    cut_rows(file, sum(counts[name] for name in names[:first]))
    write_provenance(file, provenance, read_split_counts(file))


def _with_loader_errors(items: Iterator[Any], split: str, file: h5py.File) -> Iterator[Any]:
    """Yield the same batches; an error of the data set is raised with the split and its stored rows."""
    while True:
        try:
            item = next(items)
        except StopIteration:
            return
        except CcassetsError:
            raise
        except Exception as error:
            raise DatasetError(
                f"The loader of {split!r} failed ({type(error).__name__}: {error}). "
                f"{read_split_counts(file).get(split, 0)} of its rows are stored; call again to continue."
            ) from error
        yield item


# --- the model ----------------------------------------------------------------------------------------


def _encode(model: Any, kind: str, inputs: torch.Tensor) -> tuple[Any, Any]:
    """Features (B, D) and token features (B, T, D) or None, as arrays; tokens projected where the model projects.

    Text tokens that the model does not project lie in another space than its features, and are not stored.
    """
    encode, project = getattr(model, f"encode_{kind}"), getattr(model, f"{kind}_proj", None)
    with fixed_arithmetic():
        features, tokens = encode(inputs, normalize=True)
        if tokens is not None and project is not None:
            tokens = project(tokens)
        elif kind == "text":
            tokens = None
        if tokens is not None:
            tokens = to_host(tokens) if kind == "image" else to_array(tokens)
        return to_array(features), tokens


@contextmanager
def _evaluating(model: Any) -> Iterator[None]:
    """Evaluation mode for a model in training mode, whose dropout would make features random."""
    training = bool(getattr(model, "training", False))
    if training:
        model.eval()
    try:
        yield
    finally:
        if training:
            model.train()


@contextmanager
def _open_growing(
    path: PathLike, dim: int, token_count: int, metadata: Mapping[str, object] | None
) -> Iterator[h5py.File]:
    """Open the growing file, or make a new one of these sizes; a refused call changes nothing.

    Nothing is stored before the first template or batch, so that a refusal before it has nothing to take back.
    """
    new = not Path(path).is_file() or not Path(path).stat().st_size
    with open_growing(path, dim if new else None, token_count if new else None, metadata) as file:
        try:
            yield file
        except ArgumentError:
            if file:
                file.discard()
                if new and not Path(path).stat().st_size:
                    Path(path).unlink()
            raise


def _card(artifacts: ModelArtifacts) -> EncoderCard | None:
    card = getattr(artifacts.model, "card", None)
    return card if isinstance(card, EncoderCard) else None


def _token_count(artifacts: ModelArtifacts) -> int:
    card = _card(artifacts)
    return DEFAULT_TOKEN_COUNT if card is None else card.token_count


def _logit_parameters(model: Any) -> dict[str, float]:
    values = {name: getattr(model, name, None) for name in LOGIT_PARAMETERS}
    return {name: float(to_array(value).reshape(-1)[0]) for name, value in values.items() if value is not None}


def _require_model(file: h5py.File, artifacts: ModelArtifacts) -> None:
    """Refuse a model whose identity or logit parameters differ from those of the file."""
    provenance = read_provenance(file)
    card = _card(artifacts)
    stored = {"identity": provenance["encoder"].get("identity"), **load_model_params(file)}
    given = {"identity": None if card is None else card.identity, **_logit_parameters(artifacts.model)}
    changed = {name: value for name, value in given.items() if stored.get(name) not in (None, value)}
    if changed:
        text = "; ".join(f"{name} was {stored[name]}, is {value}" for name, value in changed.items())
        raise ArgumentError(
            f"{file.filename} was begun with another model ({text}). Features of two models must not meet in one "
            "file: give a new path."
        )


def _record_model(file: h5py.File, artifacts: ModelArtifacts) -> None:
    write_logit_parameters(file, _logit_parameters(artifacts.model))
    provenance = read_provenance(file)
    card = _card(artifacts)
    if card is not None:
        provenance["encoder"] = encoder_provenance(card)
    provenance["extraction"]["model"] = type(artifacts.model).__name__
    provenance["libraries"] = libraries()
    write_provenance(file, provenance, read_split_counts(file))


@contextmanager
def _progress(split: str, recorded: int, total: int | None, show: bool) -> Iterator[Any]:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    shown = show and (console.is_terminal or console.is_jupyter)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, disable=not shown, transient=True) as progress:
        task = progress.add_task(f"{split} split", total=total, completed=recorded)
        yield lambda rows: progress.advance(task, rows)
