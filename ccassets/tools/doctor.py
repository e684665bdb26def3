"""Diagnoses of `ccassets doctor`: what would stop a build on this machine or slow it down, and what to do."""

from __future__ import annotations

import os
import platform
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from shutil import disk_usage
from typing import Literal

import numpy as np

from ccassets.analysis.results import unmeasured_classes
from ccassets.database.token_geometry import cropping_warning
from ccassets.datasets import open_dataset
from ccassets.datasets.dataset_contract import Dataset
from ccassets.datasets.huggingface import HuggingfaceDataset
from ccassets.datasets.image_files import first_few
from ccassets.datasets.labels import find_label_mismatch, find_similar_classes, require_words_for_labels
from ccassets.datasets.manifest import evenly_spaced_positions
from ccassets.datasets.medmnist import MedmnistDataset
from ccassets.datasets.revised_rows import source_dataset
from ccassets.encoders import encoder_files, inspect_encoder
from ccassets.encoders.encoder_contract import EncoderCard
from ccassets.encoders.open_clip_dual import text_repository
from ccassets.encoders.presets import preset_of
from ccassets.encoders.weights import find_download, find_folder, require_access
from ccassets.errors import CcassetsError, DatasetError, EncoderError, StorageError, StudyError
from ccassets.extraction.plan import expected_row_bytes, plan_study, row_bytes
from ccassets.extraction.sources import tokenize_prompts, unseen_share
from ccassets.files import DIGEST_CACHE, lock_file
from ccassets.progress import available_cores, silent
from ccassets.study.loading import load_studies
from ccassets.study.schema import ConceptClipConfig, OpenClipConfig, Study, TransformersConfig
from ccassets.study.storage import Store, has_records, home, storage_root
from ccassets.tools.offline_bundle import RECORD, changed_files

Level = Literal["ok", "warning", "problem"]

_QUICK_BYTES = 1 << 30
"""Weights of this size are hashed in a few seconds."""

_PAIR = (
    "Install both from one release and one index: `python -m pip install --upgrade torch torchvision`; on a machine "
    "without a GPU add `--index-url https://download.pytorch.org/whl/cpu`."
)


@dataclass(frozen=True)
class Diagnosis:
    """One line of the doctor.

    Attributes:
        what: The thing that was checked.
        level: `ok`, `warning`, or `problem`; only a problem stops a build.
        message: Its state.
        advice: What to do; empty when there is nothing to do.
    """

    what: str
    level: Level
    message: str
    advice: str = ""


def diagnose(
    study: Study | None = None,
    *,
    deep: bool = False,
    diagnose_home: Callable[[], Diagnosis],
    diagnose_records: Callable[[Study], Iterable[Diagnosis]],
) -> list[Diagnosis]:
    """Check libraries, device, home, storage and study files, and for a study everything that its build needs.

    Nothing is downloaded, encoded or changed. The hub is asked only about weights that are not on this machine.

    Args:
        study: The study whose data set, weights, memory, disk and records are checked.
        deep: Compute the digests of weights again also where that takes long.
        diagnose_home: Says whether Dagster can use the home; called when the home exists.
        diagnose_records: Says what Dagster's records hold of a study; called when the home exists.

    Returns:
        One diagnosis a line, in the order in which a person reads them.
    """
    machine = [*_libraries(), *_device(study), *_home(diagnose_home), *_study_files()]
    if study is None:
        return [*machine, _storage(None)]
    store = Store.of(study)
    data, dataset = _data(study, store)
    weights, card = _weights(study, store, deep)
    needed = _needed_bytes(study, store, dataset, card)
    return [
        *machine,
        *_bundle(study),
        data,
        *(_labels(study, dataset) if dataset else ()),
        *weights,
        *(_classes(study, dataset) if dataset else ()),
        *(_cropping(study, dataset, card) if dataset and card else ()),
        _memory(study, card),
        _storage(needed),
        *(diagnose_records(study) if _home_exists() else ()),
    ]


# --- the machine -------------------------------------------------------------------------------------


def _libraries() -> Iterator[Diagnosis]:
    names = ("ccassets", "dagster", "torch", "torchvision", "transformers", "huggingface-hub", "h5py")
    try:
        import torch  # noqa: F401
        import torchvision  # noqa: F401
    except (ImportError, OSError, RuntimeError) as error:
        pair = f"torch {version('torch')} and torchvision {version('torchvision')}"
        yield Diagnosis("libraries", "problem", f"{pair} cannot be imported together: {error}", _PAIR)
        return
    versions = ", ".join(f"{name} {version(name)}" for name in names)
    yield Diagnosis("libraries", "ok", f"Python {platform.python_version()}, {versions}")


def _device(study: Study | None) -> Iterator[Diagnosis]:
    try:
        import torch
    except (ImportError, OSError):
        return  # `_libraries` reports it.
    for number in range(torch.cuda.device_count()):
        free, total = torch.cuda.mem_get_info(number)
        message = f"cuda:{number}: {torch.cuda.get_device_name(number)}, {_size(free)} of {_size(total)} free"
        yield Diagnosis("device", "ok", message)
    if torch.cuda.is_available():
        return
    cpu = f"no GPU that torch can use; a CPU with {available_cores()} cores"
    if study is None or study.encoder.kind in {"phantom", "python"}:
        yield Diagnosis("device", "ok", cpu)
    elif torch.version.cuda:
        advice = (
            f"This torch was built for CUDA {torch.version.cuda}. If there is a GPU, check that `nvidia-smi` shows it."
        )
        yield Diagnosis("device", "warning", f"{cpu}. A large model takes seconds for each image", advice)
    else:
        advice = "This torch was built without CUDA. If there is a GPU, install the torch for it (https://pytorch.org)."
        yield Diagnosis("device", "warning", f"{cpu}. A large model takes seconds for each image", advice)


def _home(diagnose_home: Callable[[], Diagnosis]) -> Iterator[Diagnosis]:
    folder = home()
    reason = _why_not_writable(folder)
    if reason:
        advice = "Choose another folder with --home or CCASSETS_HOME, or correct its owner and mode."
        yield Diagnosis("home", "problem", f"{folder} {reason}", advice)
    elif not _home_exists():
        yield Diagnosis("home", "ok", f"{folder} will be created with our dagster.yaml")
    else:
        yield diagnose_home()


def _home_exists() -> bool:
    """Whether the home is writable and used by Dagster already."""
    return not _why_not_writable(home()) and has_records(home())


def _study_files() -> Iterator[Diagnosis]:
    try:
        studies, errors = load_studies()
    except StudyError as error:
        yield Diagnosis("studies", "problem", str(error))
        return
    if errors:
        yield Diagnosis(
            "studies", "problem", "\n".join(map(str, errors)), "Correct them; until then the UI leaves them out."
        )
    else:
        yield Diagnosis("studies", "ok", ", ".join(study.name for study in studies))


# --- what a study needs ------------------------------------------------------------------------------


def _data(study: Study, store: Store) -> tuple[Diagnosis, Dataset | None]:
    """Whether the data set can be read, and the data set; None instead when its rows are unknown."""
    dataset = open_dataset(study, store)
    try:
        source = source_dataset(dataset)
        if isinstance(source, MedmnistDataset):
            return _medmnist(source), dataset
        if isinstance(source, HuggingfaceDataset) and not source.downloaded:
            return Diagnosis("data set", "warning", f"{dataset.name} will be downloaded by the first build"), None
        dataset.fetch(silent)
        rows = ", ".join(f"{split} {len(dataset.rows(split)):,}" for split in study.splits[:10])
    except DatasetError as error:
        return Diagnosis("data set", "problem", str(error)), None
    more = f", and {len(study.splits) - 10} more splits" if len(study.splits) > 10 else ""
    return Diagnosis("data set", "ok", f"{dataset.name} is available: {rows}{more}"), dataset


def _labels(study: Study, dataset: Dataset) -> Iterator[Diagnosis]:
    """Whether label words and classes fit each other, as far as it is known before the images are read."""
    try:
        if not isinstance(source_dataset(dataset), MedmnistDataset):
            for split in study.splits:
                require_words_for_labels(study, dataset.classes, dataset.rows(split).labels)
        findings = [*find_label_mismatch(study, dataset.classes), *find_similar_classes(dataset.classes)]
    except DatasetError as error:
        yield Diagnosis("labels", "problem", str(error))
        return
    for finding in findings:
        yield Diagnosis("labels", "warning", finding.message)


def _bundle(study: Study) -> Iterator[Diagnosis]:
    """Whether the files of the bundle that holds a study are unchanged; nothing for a study outside a bundle."""
    folder = study.folder.parent
    if not (folder / RECORD).is_file():
        return
    try:
        changed = changed_files(folder)
    except StorageError as error:
        yield Diagnosis("bundle", "problem", str(error))
        return
    if changed:
        advice = "Copy the bundle again, or create it again with `ccassets bundle`."
        yield Diagnosis(
            "bundle", "problem", f"{len(changed)} files are missing or changed: {first_few(changed)}", advice
        )
    else:
        yield Diagnosis("bundle", "ok", "every file is unchanged")


def _medmnist(dataset: MedmnistDataset) -> Diagnosis:
    rows = sum(dataset.published_rows.values())
    if dataset.archive.is_file():
        return Diagnosis("data set", "ok", f"{dataset.name} is available: {rows:,} images in {dataset.archive}")
    missing = f"{dataset.archive} is missing"
    if dataset.config.download:
        message = f"{missing}; it will be downloaded by the first build"
        return Diagnosis("data set", "warning", message, f"The source is {dataset.url}.")
    advice = f"Set `download: true` under dataset, or download it from {dataset.url} to that path."
    return Diagnosis("data set", "problem", missing, advice)


def _weights(study: Study, store: Store, deep: bool) -> tuple[list[Diagnosis], EncoderCard | None]:
    """Whether weights and tokenizer fit, or can be downloaded; and the encoder's card if they are on this machine."""
    try:
        local, missing = without_downloads(study)
        if not missing:
            findings = tokenize_prompts(local)
            card = inspect_encoder(local, cache=store.cache if store.cache.is_dir() else None)
            advice = "If they are one thing, write it once."
            warnings = [Diagnosis("prompts", "warning", finding.message, advice) for finding in findings]
            return [_digests(local, store, card, deep), *warnings], card
    except (EncoderError, StorageError) as error:
        return [Diagnosis("weights", "problem", str(error))], None
    return [line for repo, revision in missing for line in _hub(repo, revision)], None


def _digests(study: Study, store: Store, card: EncoderCard, deep: bool) -> Diagnosis:
    """Whether the identity was computed from the files themselves, and not only from cached digests."""
    available = f"{study.encoder.kind} is available, identity {card.identity}"
    if study.encoder.kind == "python" or not store.cache.is_dir():
        return Diagnosis("weights", "ok", available)
    size = sum(file.stat().st_size for file in encoder_files(study).values())
    if size > _QUICK_BYTES and not deep:
        return Diagnosis("weights", "ok", f"{available}; `--deep` computes the digests of {_size(size)} again")
    actual = inspect_encoder(study).identity
    if actual == card.identity:
        return Diagnosis("weights", "ok", available)
    kept = store.cache / DIGEST_CACHE
    message = f"{kept} gives identity {card.identity}, the files themselves give {actual}"
    return Diagnosis("weights", "problem", message, f"Remove {kept}: it is made again.")


def _classes(study: Study, dataset: Dataset) -> Iterator[Diagnosis]:
    """The classes without images in val or test."""
    if not dataset.labelled or isinstance(source_dataset(dataset), MedmnistDataset):
        return  # Every class of MedMNIST is in every split.
    counts = {}
    for split in study.splits:
        rows = dataset.rows(split)
        members = rows.labels[:, None] == np.arange(len(dataset.classes))
        if rows.label_matrix is not None:
            members = rows.label_matrix > 0
        taken = evenly_spaced_positions(len(rows), study.extraction.limit or len(rows))
        counts[split] = members[taken].sum(axis=0)
    if sentences := unmeasured_classes(dataset.classes, counts):
        advice = "Move images of these classes to the splits without any, or leave the classes out."
        yield Diagnosis("classes", "warning", "; ".join(sentences), advice)


def _cropping(study: Study, dataset: Dataset, card: EncoderCard) -> Iterator[Diagnosis]:
    try:
        warning = cropping_warning(unseen_share(study, dataset, card))
    except (DatasetError, StorageError):
        return  # `_data` reports it.
    if warning:
        advice = "Crop or pad the pictures to squares yourself, if what lies at their borders matters."
        yield Diagnosis("cropping", "warning", warning, advice)


def without_downloads(study: Study) -> tuple[Study, list[tuple[str, str]]]:
    """The study with downloaded folders instead of hub ids, and the hub ids (with revision) not downloaded yet."""
    encoder = study.encoder
    if not isinstance(encoder, ConceptClipConfig | TransformersConfig | OpenClipConfig):
        return study, []
    references = [("weights", encoder.weights, encoder.revision)]
    if isinstance(encoder, ConceptClipConfig) and encoder.tokenizer:
        references.append(("tokenizer", encoder.tokenizer, "main"))
    if isinstance(encoder, OpenClipConfig) and encoder.text:
        references.append(("text", encoder.text, encoder.text_revision))
    folders, missing = {}, []
    for key, reference, revision in references:
        if reference == "random":
            continue
        folder = find_folder(reference, study) or find_download(reference, revision)
        if folder is None:
            missing.append((reference, revision))
            continue
        folders[key] = str(folder.path)
        if isinstance(encoder, OpenClipConfig) and key == "weights" and folder.commit and not encoder.text:
            repository = text_repository(folder.path)
            references += [("text", repository, encoder.text_revision)] if repository else []
    return study.model_copy(update={"encoder": encoder.model_copy(update=folders)}), missing


def _hub(repo: str, revision: str) -> Iterator[Diagnosis]:
    from huggingface_hub import get_token

    token = get_token()
    preset = preset_of(repo)
    missing = f"not set, and {repo} is gated" if preset and preset.gated else "not set; open models need none"
    yield Diagnosis("token", "ok", "set for the hub" if token else missing)
    try:
        require_access(repo, revision, token)
    except EncoderError as error:
        yield Diagnosis("weights", "problem", str(error))
    else:
        yield Diagnosis("weights", "ok", f"{repo} will be downloaded by the first build")


def _memory(study: Study, card: EncoderCard | None) -> Diagnosis:
    """The host's memory, compared with two shards and the model."""
    available = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if card is None:
        return Diagnosis("memory", "ok", _size(available))
    model = 4 * int(card.recorded.get("parameters", 0))
    needed = model + 2 * study.extraction.rows_per_shard * row_bytes(card)
    message = f"{_size(available)}; the model and two shards take {_size(needed)}"
    if needed < available:
        return Diagnosis("memory", "ok", message)
    return Diagnosis("memory", "warning", message, "Set a smaller extraction.rows_per_shard.")


def _needed_bytes(study: Study, store: Store, dataset: Dataset | None, card: EncoderCard | None) -> int | None:
    """Bytes of the parts and the database that a build will write; None when they are unknown."""
    try:
        plan = plan_study(study, store=store)
    except CcassetsError:  # Images or encoder have not been read yet: estimate from what is known.
        rows = _rows(study, dataset)
        row = _row_bytes(study, card)
        return None if rows is None or row is None else 2 * rows * row
    finished = not plan.to_encode and not plan.templates and store.database.is_file()
    return 0 if finished else plan.part_bytes + plan.database_bytes


def _rows(study: Study, dataset: Dataset | None) -> int | None:
    if dataset is None:
        return None
    source = source_dataset(dataset)
    if isinstance(source, MedmnistDataset):
        counts = [source.published_rows[split] for split in study.splits]
    else:
        counts = [len(dataset.rows(split)) for split in study.splits]
    limit = study.extraction.limit
    return sum(counts if limit is None else (min(limit, count) for count in counts))


def _row_bytes(study: Study, card: EncoderCard | None) -> int | None:
    if card is not None:
        return row_bytes(card)
    return expected_row_bytes(study)


def _storage(needed: int | None) -> Diagnosis:
    root = storage_root()
    reason = _why_not_writable(root)
    if reason:
        return Diagnosis("disk", "problem", f"{root} {reason}", "Set CCASSETS_STORAGE to another folder.")
    free = disk_usage(_nearest(root)).free
    if not needed:
        left = "" if needed is None else "; nothing left to write"
        return Diagnosis("disk", "ok", f"{_size(free)} free in {root}{left}")
    message = f"parts and database will take {_size(needed)} in {root}; {_size(free)} free"
    if needed <= free:
        return Diagnosis("disk", "ok", message)
    return Diagnosis("disk", "problem", message, "Free some space, or set CCASSETS_STORAGE to a larger disk.")


# --- folders and sizes -------------------------------------------------------------------------------


def _why_not_writable(folder: Path) -> str | None:
    """Why a folder cannot be created, written to or locked in; None if it can."""
    nearest = _nearest(folder)
    if not nearest.is_dir():
        return f"cannot be created: {nearest} is a file"
    if not os.access(nearest, os.W_OK | os.X_OK):
        return "is not writable" if nearest == folder else f"cannot be created: {nearest} is not writable"
    with suppress(OSError), tempfile.TemporaryFile(dir=nearest) as file:
        try:
            lock_file(file.fileno(), folder)
        except StorageError as error:
            return str(error).removeprefix(f"{folder} ")
    return None


def _nearest(folder: Path) -> Path:
    """The folder itself if it exists, else its nearest parent that does."""
    return next(path for path in (folder, *folder.parents) if path.exists())


def _size(count: int) -> str:
    return f"{count / 1e9:.1f} GB" if count >= 1e8 else f"{count / 1e6:.1f} MB"
