"""Sources of a study: the manifest of every split and the identity card of the encoder, read and recorded."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from ccassets.database.token_geometry import SIZED_IMAGES, mean_unseen_share, token_geometry
from ccassets.database.validation.text_rules import describe_alike_prompts
from ccassets.datasets import open_dataset
from ccassets.datasets.dataset_contract import Dataset
from ccassets.datasets.labels import find_label_mismatch, find_similar_classes, require_words_for_labels
from ccassets.datasets.manifest import (
    Manifest,
    evenly_spaced_positions,
    find_leaks,
    is_current,
    read_manifest,
    readable_again,
    source_digest,
)
from ccassets.datasets.revised_rows import RevisedDataset
from ccassets.encoders import inspect_encoder, load_tokenizer
from ccassets.encoders.encoder_contract import EncoderCard
from ccassets.errors import DatasetError, EncoderError, StudyError
from ccassets.files import drop_unchecked_digests, reading_refused, write_text
from ccassets.findings import Finding
from ccassets.progress import Progress, silent
from ccassets.study.loading import SHIPPED_STUDIES, STUDY_FILE, command_argument
from ccassets.study.schema import Study
from ccassets.study.storage import Store


def read_images(
    study: Study,
    split: str,
    *,
    store: Store | None = None,
    dataset: Dataset | None = None,
    progress: Progress = silent,
) -> Manifest:
    """Decode every image of a split once, and record its manifest.

    Images whose file fingerprint is that of the last manifest are not decoded again.

    Args:
        study: The study.
        split: A split of the study.
        store: Where the study's files lie, by default below `CCASSETS_STORAGE`.
        dataset: The study's data set, for a caller that reads several splits; by default it is fetched.
        progress: Called with the images read so far and the images of the split.

    Returns:
        The manifest, which is stored too.

    Raises:
        DatasetError: The data set is missing, images cannot be read (all of them are named), or there are labels
            without a label word.
        StudyError: The study's folder in the storage belongs to a study of the same name at another path.
    """
    store = store or Store.of(study)
    _record_study(study, store)
    dataset = dataset or fetch_dataset(study, store)
    path = store.manifest(split)
    previous = Manifest.load(path) if path.exists() else None
    manifest = read_manifest(
        dataset,
        split,
        limit=study.extraction.limit,
        on_bad_image=study.extraction.on_bad_image,
        previous=previous,
        progress=progress,
    )
    require_words_for_labels(study, manifest.classes, manifest.labels)
    manifest.save(path)
    return manifest


def fetch_dataset(study: Study, store: Store, progress: Progress = silent) -> Dataset:
    """Find or download the data set of a study, so that it can be read; `progress` counts bytes of a download."""
    dataset = open_dataset(study, store)
    dataset.fetch(progress)
    return dataset


def unseen_share(study: Study, dataset: Dataset, card: EncoderCard) -> float:
    """The mean share of a picture that the encoder never sees, from the sizes of at most 64 pictures; 0 if unknown."""

    def sizes() -> Iterator[tuple[int, int]]:
        for split in study.splits:
            limit = SIZED_IMAGES // len(study.splits) + 1
            for row in evenly_spaced_positions(len(dataset.rows(split)), limit).tolist():
                with suppress(DatasetError):  # Reading all images names the bad ones.
                    yield dataset.read(split, row).size

    return mean_unseen_share(token_geometry(card.declared()), sizes)


def changed_splits(study: Study, store: Store, splits: Sequence[str]) -> dict[str, str]:
    """The splits whose manifest is missing or out of date, with a digest of their source.

    File fingerprints decide; of the images only those are decoded that were skipped or blank. The digest changes with
    keys, labels, groups and files, and with the images that can be read again.
    """
    dataset = fetch_dataset(study, store)
    limit, on_bad_image = study.extraction.limit, study.extraction.on_bad_image
    changed = {}
    for split in splits:
        path = store.manifest(split)
        manifest = Manifest.load(path) if path.exists() else None
        if manifest is None or not is_current(manifest, dataset, limit=limit, on_bad_image=on_bad_image):
            changed[split] = source_digest(dataset, split, limit=limit)
        elif keys := readable_again(manifest, dataset):
            changed[split] = hashlib.sha256(repr((manifest.source, keys)).encode()).hexdigest()
    return changed


def current_identity(study: Study, store: Store, *, device: str | None = None, hf_token: str | None = None) -> str:
    """The identity of the encoder as it is now; files are hashed only if their fingerprint changed."""
    return inspect_encoder(study, cache=store.cache, device=device, hf_token=hf_token).identity


def find_source_problems(study: Study, store: Store) -> list[Finding]:
    """Problems of the recorded manifests: leaks, label words that are not the classes, corrections without effect."""
    manifests = [Manifest.load(store.manifest(split)) for split in study.splits if store.manifest(split).exists()]
    classes = manifests[0].classes if manifests else ()
    dataset = open_dataset(study, store)
    return [
        *find_leaks(manifests),
        *find_label_mismatch(study, classes),
        *find_similar_classes(classes),
        *(dataset.find_unneeded_overrides(manifests) if isinstance(dataset, RevisedDataset) else ()),
    ]


def recorded_manifest(study: Study, split: str, store: Store) -> Manifest:
    """The manifest that `read_images` stored; `DatasetError` when there is none, or one of another split or limit."""
    require_own_folder(study, store)
    path = store.manifest(split)
    if not path.exists():
        raise DatasetError(
            f"The images of split {split!r} of {study.name} have not been read yet. "
            f"Materialize `{study.name}/images` for {split!r} first, or run `ccassets build {command_argument(study)}`."
        )
    manifest = Manifest.load(path)
    if manifest.split != split:
        raise DatasetError(
            f"{path}: expected the manifest of split {split!r}, found that of {manifest.split!r}. Remove the file and "
            "read the images again."
        )
    if manifest.limit != study.extraction.limit:
        raise DatasetError(
            f"The images of split {split!r} of {study.name} were read with the limit {manifest.limit}, and the study "
            f"now says {study.extraction.limit}. Materialize `{study.name}/images` for {split!r} again."
        )
    return manifest


def require_own_folder(study: Study, store: Store) -> None:
    """Refuse a study whose folder in the storage holds the files of another one of the same name.

    Raises:
        StudyError: The files are those of a study at another path, which is still there.
    """
    try:
        record = json.loads(store.study_record.read_text(encoding="utf-8"))
        owner = (store.folder / (record["folder"] or SHIPPED_STUDIES / study.name)).resolve()
    except (OSError, ValueError, LookupError, TypeError) as error:
        if refusal := reading_refused(error, str(store.study_record)):
            raise refusal from error
        return  # Made by an older version, or damaged.
    if owner != study.folder.resolve() and (owner / STUDY_FILE).is_file():
        raise StudyError(
            f"{store.folder} holds the files of {owner / STUDY_FILE}, and {study.folder / STUDY_FILE} has the same "
            "name. Rename the folder of one of the two studies, or build it in another home (--home). If they are one "
            "study, remove the copy that you do not use."
        )


def _record_study(study: Study, store: Store) -> None:
    """Record whose files the study's folder in the storage holds; one that ships has no path of its own.

    The path is relative, so it stays right if both are moved together, and reveals less about the machine.
    """
    require_own_folder(study, store)
    folder, start = study.folder.resolve(), store.folder.resolve()
    ships = folder.is_relative_to(SHIPPED_STUDIES.resolve())
    text = json.dumps({"folder": None if ships else os.path.relpath(folder, start)})
    if not store.study_record.is_file() or store.study_record.read_bytes() != text.encode():
        write_text(store.study_record, text)


def identify_encoder(
    study: Study, *, store: Store | None = None, device: str | None = None, hf_token: str | None = None
) -> EncoderCard:
    """Find or fetch the files of a study's encoder, verify them, and record the identity card.

    The study's prompts are tokenized, so that one that the model cannot read stops a build before anything is encoded.

    Args:
        study: The study.
        store: Where the study's files lie, by default below `CCASSETS_STORAGE`.
        device: A torch device; it matters to a strict study alone.
        hf_token: The access token of the hub, by default `HF_TOKEN`.

    Returns:
        The card, which is stored too.

    Raises:
        EncoderError: Files are missing, gated, unreadable, or do not fit each other; a prompt is too long or has words
            that the tokenizer does not know.
        StudyError: The study's folder in the storage belongs to a study of the same name at another path.
    """
    store = store or Store.of(study)
    _record_study(study, store)
    tokenize_prompts(study, hf_token=hf_token)
    card = inspect_encoder(study, cache=store.cache, device=device, hf_token=hf_token)
    if card.identity != recorded_identity(store) and drop_unchecked_digests(store.cache):
        # An identity costs an extraction: it is taken from the weights, or from digests that carry their own.
        card = inspect_encoder(study, cache=store.cache, device=device, hf_token=hf_token)
    record = {"asked": request_digest(study), "splits": list(study.splits), "card": json.loads(card.to_json())}
    record["digest"] = _record_digest(record)
    write_text(store.encoder_card, json.dumps(record, indent=2, ensure_ascii=False))
    return card


def tokenize_prompts(study: Study, *, hf_token: str | None = None) -> list[Finding]:
    """Tokenize all prompts of a study; `EncoderError` names those that are too long or hold unknown words.

    Different prompts with the same tokens, in whichever templates, are a warning.
    """
    prompts = [prompt for template in study.vocabulary.templates().values() for prompt in template.prompts]
    tokenize = load_tokenizer(study, hf_token=hf_token) if prompts else None
    if tokenize is None:
        return []
    message = describe_alike_prompts(tokenize(prompts).input_ids, prompts)
    return [Finding("prompts_alike", "warning", message, "vocabulary")] if message else []


def recorded_identity(store: Store) -> str | None:
    """The identity of the last recorded card, whatever the study says now; None without one."""
    record = _read_record(store)
    return None if record is None else record.card.identity


def recorded_card(study: Study, store: Store) -> EncoderCard:
    """The card that `identify_encoder` stored.

    Raises `EncoderError` when there is none, or when the study's encoder section changed since.
    """
    require_own_folder(study, store)
    record = _read_record(store)
    if record is None:
        raise EncoderError(
            f"The encoder of {study.name} has not been identified yet. "
            f"Materialize `{study.name}/encoder` first, or run `ccassets build {command_argument(study)}`."
        )
    if record.request != request_digest(study):
        raise EncoderError(
            f"The encoder section of {study.name} changed since its encoder was identified. "
            f"Materialize `{study.name}/encoder` again, or run `ccassets build {command_argument(study)}`."
        )
    return record.card


@dataclass(frozen=True)
class EncoderRecord:
    """A recorded identity card, the digest of the encoder section that it was made for, and the study's splits then.

    A record of an older version has no splits.
    """

    request: str
    card: EncoderCard
    splits: Sequence[str] = ()


def load_encoder_record(store: Store) -> EncoderRecord:
    """Read the record of a study's encoder, checked against its own digests.

    Args:
        store: The study's files.

    Returns:
        The record.

    Raises:
        EncoderError: The record is missing or damaged.
        StorageError: The operating system refuses to read it now.
    """
    path = store.encoder_card
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        digest = record.pop("digest", None)  # Older records have none.
        if digest not in {None, _record_digest(record)}:
            raise ValueError("its digest is not the one of its content")
        card = EncoderCard.from_json(json.dumps(record["card"]))
        return EncoderRecord(record["asked"], card, tuple(record.get("splits", ())))
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise reading_refused(error, str(path)) or EncoderError(
            f"{path} is missing or damaged ({error}). Run `ccassets build {store.study} --plan`, which writes it again."
        ) from error


def _read_record(store: Store) -> EncoderRecord | None:
    """The record of the encoder; None when there is no readable one."""
    try:
        return load_encoder_record(store)
    except EncoderError:
        return None


def _record_digest(record: Mapping[str, Any]) -> str:
    """A digest of a record's content without its own digest, which reveals a damaged or edited file."""
    content = {name: value for name, value in record.items() if name != "digest"}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def request_digest(study: Study) -> str:
    """A digest of a study's encoder section, recorded instead of its paths and options, which are private."""
    batch_size = study.extraction.batch_size if study.extraction.strict else None
    return hashlib.sha256(f"{study.encoder.model_dump_json()}|{batch_size}".encode()).hexdigest()
