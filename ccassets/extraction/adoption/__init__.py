"""Adoption: import of an existing feature file into a study; faulty rows are named, or left out."""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from ccassets.database.attributes import section
from ccassets.database.layout import IMAGE_FEATURES, LOGIT_PARAMETERS
from ccassets.database.reader import Database, open_database
from ccassets.database.row_order import has_unverified_order, unverified_templates
from ccassets.database.validation import CheckResults, run_checks
from ccassets.database.validation.finding_collector import FindingCollector, listed
from ccassets.datasets.dataset_contract import Dataset
from ccassets.datasets.manifest import Manifest
from ccassets.encoders import load_encoder, load_tokenizer
from ccassets.encoders.encoder_contract import Encoder, EncoderCard
from ccassets.errors import AdoptionError, DatasetError, EncoderError
from ccassets.extraction.adoption.adopted_parts import (
    AdoptedShard,
    Source,
    shards_to_take,
    write_images,
    write_templates,
)
from ccassets.extraction.adoption.order_sample import (
    BY_DIGEST,
    MOST_SAMPLED,
    UNVERIFIED,
    verify_order,
    verify_templates,
)
from ccassets.extraction.adoption.row_matching import BY_DIGEST as MATCHED_BY_DIGEST, Images, Ints, Match, match_rows
from ccassets.extraction.adoption.template_matching import MatchedTemplate, usable_templates, with_tokens
from ccassets.extraction.parts import RowIndex, held_rows
from ccassets.extraction.plan import ImagePlan, plan_study, row_bytes
from ccassets.extraction.sources import fetch_dataset, identify_encoder, read_images
from ccassets.extraction.text_extraction import stored_template
from ccassets.files import digest_files, exclusive, remove_leftovers, require_space
from ccassets.findings import Finding, has_errors
from ccassets.progress import Progress, silent
from ccassets.study.schema import Study
from ccassets.study.storage import Store

__all__ = ["AdoptedSplit", "Adoption", "adopt"]

_LOGIT_TOLERANCE = 1e-5
_WITHOUT_SAMPLE = "To adopt the rows as unverified, without encoding a sample of them, use `--no-sample`."


@dataclass(frozen=True, eq=False)
class AdoptedSplit:
    """A split after an adoption.

    Attributes:
        split: The split.
        rows: Number of rows of the split.
        taken: Number of rows that were imported.
        missing: (m,) int64, the rows that the next build encodes.
        missing_keys: The keys of these rows.
        order: The record of how the order of the imported rows was verified; None where none was imported.
    """

    split: str
    rows: int
    taken: int
    missing: Ints
    missing_keys: Sequence[str]
    order: Mapping[str, Any] | None


@dataclass(frozen=True, eq=False)
class Adoption:
    """The result of `adopt`: what was imported, and what is left to the next build.

    Attributes:
        splits: The splits.
        templates: Ids of the templates that were imported now.
        missing_templates: Ids of the templates that no part holds.
        matched_by: How rows were matched to images: by `image digest`, `position and label`, or `position`.
        sha256: SHA-256 (hex) of the file.
        findings: What the checks found in the file.
    """

    splits: Sequence[AdoptedSplit]
    templates: Sequence[str]
    missing_templates: Sequence[str]
    matched_by: str
    sha256: str
    findings: Sequence[Finding]


def adopt(
    file: str | os.PathLike[str],
    study: Study,
    *,
    repair: bool = False,
    sample: bool = True,
    before_sample: Callable[[int], None] = lambda images: None,
    store: Store | None = None,
    progress: Progress = silent,
) -> Adoption:
    """Import an existing feature file into a study.

    The features become parts under the identity of the study's encoder, where the next build finds them. The user
    states that the file was made with this encoder. Rows that parts already hold stay, and the file itself is never
    changed. For a file without intact image digests, up to 64 images of every split and up to 64 prompts of every
    template are encoded. A split or template is not imported if other features are nearer to one of these encodings
    than its own.

    Args:
        file: A file of the original scripts, or a database.
        study: The study; its images and encoder must be available.
        repair: Keep the rows and templates that are provably right, and leave the others to the next build; without it
            a single error refuses the file.
        sample: Encode the sample. Without it, or where the encoder cannot be loaded, rows and templates that nothing
            else proves are imported as unverified, which is a warning here and in every file that holds them.
        before_sample: Called with the images of the sample before the first is encoded.
        store: Where the study's files lie, by default below `CCASSETS_STORAGE`.
        progress: Called with the rows imported so far and the rows to import.

    Returns:
        What was imported, and what is missing.

    Raises:
        AdoptionError: The file is not an extraction of this study; it holds all findings.
        DatabaseError: The file cannot be read.
        DatasetError: The study's images cannot be read.
        EncoderError: The study's encoder is not available.
        StorageError: The disk is too small.
    """
    store = store or Store.of(study)
    path = Path(file)
    with open_database(path) as database:
        card = identify_encoder(study, store=store)
        dataset, manifests = _images(study, store)
        images = Images.of(manifests)
        results = run_checks(database, study, deep=True)
        adoption_findings = FindingCollector()
        _check_encoder(database, results, study, card, adoption_findings)
        match = match_rows(results, images, manifests, dataset, adoption_findings)
        _refuse_another_encoder(path.name, study, [*results.findings, *adoption_findings])
        sha256 = digest_files([path], cache=store.cache)
        index = held_rows(store, card.identity)
        if sample:
            index = index.without_unverified()  # These rows are imported again, now with a sample.
        proof = _Proof(study, store, dataset, images, results, sha256, sample, before_sample)
        row_of_image, orders = proof.verify(manifests, match, index, adoption_findings)
        templates, template_orders = proof.verify_templates(
            usable_templates(results, study, card), card, adoption_findings
        )
        findings = [*results.findings, *adoption_findings]
        _refuse(path.name, study, findings, repair, anything=bool((row_of_image >= 0).any() or templates))
        source = Source(
            name=path.name,
            size=path.stat().st_size,
            sha256=sha256,
            attributes=results.contents.attributes,
            matched_by=match.matched_by,
            repaired=has_errors(findings),
        )
        taken = _take_images(study, store, card, manifests, images, results, row_of_image, orders, source, progress)
        written = _take_templates(study, store, card, templates, source, template_orders)
    plan = plan_study(study, store=store)
    return Adoption(
        splits=[_adopted_split(*split, taken, orders) for split in zip(plan.images, manifests, strict=True)],
        templates=written,
        missing_templates=plan.templates,
        matched_by=match.matched_by,
        sha256=source.sha256,
        findings=findings,
    )


def _adopted_split(
    plan: ImagePlan, manifest: Manifest, shards: Sequence[AdoptedShard], orders: Mapping[str, Mapping[str, Any]]
) -> AdoptedSplit:
    taken = sum(len(shard) for shard in shards if shard.shard.split == manifest.split)
    missing = plan.missing
    return AdoptedSplit(
        split=plan.split,
        rows=plan.rows,
        taken=taken,
        missing=missing,
        missing_keys=[manifest.keys[row] for row in missing],
        order=orders[manifest.split] if taken else None,
    )


@dataclass(frozen=True, eq=False)
class _Proof:
    """The inputs for verifying the order of a file's rows, split by split, and its templates."""

    study: Study
    store: Store
    dataset: Dataset
    images: Images
    results: CheckResults
    sha256: str
    sample: bool
    before_sample: Callable[[int], None]

    def verify(
        self, manifests: Sequence[Manifest], match: Match, index: RowIndex, findings: FindingCollector
    ) -> tuple[Ints, dict[str, Mapping[str, Any]]]:
        """The matched rows that may be imported, since no part holds them and no sample refutes their split.

        Also return, for each split that has one, the record of its order.
        """
        row_of_image = np.full_like(match.row, -1)
        orders: dict[str, Mapping[str, Any]] = {}
        to_verify: dict[str, Ints] = {}
        for manifest in manifests:
            numbers = self.images.numbers[manifest.split]
            rows = np.flatnonzero((match.row[numbers] >= 0) & (index.find(manifest.image_digest) < 0))
            rows = rows[np.sort(np.unique(numbers[rows], return_index=True)[1])]  # Equal images once.
            if len(rows):
                to_verify[manifest.split] = rows
        if to_verify and not self._has_digests(match):
            if self.sample:
                self.before_sample(sum(min(len(rows), MOST_SAMPLED) for rows in to_verify.values()))
            if self._encoder is None:
                self._report_unverified(
                    f"/{IMAGE_FEATURES}", f"{sum(map(len, to_verify.values()))} rows", "their order", findings
                )
        for manifest in manifests:
            rows = to_verify.get(manifest.split, np.empty(0, np.int64))
            order: Mapping[str, Any] | None = None
            if len(rows):
                order = self._order(manifest, match, rows, findings)
            if order is not None:
                orders[manifest.split] = order
                numbers = self.images.numbers[manifest.split][rows]
                row_of_image[numbers] = match.row[numbers]
        for split in to_verify.keys() - orders.keys():  # Its images are not proven, even if another split has them.
            row_of_image[self.images.numbers[split][to_verify[split]]] = -1
        return row_of_image, orders

    def _order(
        self, manifest: Manifest, match: Match, rows: Ints, findings: FindingCollector
    ) -> Mapping[str, Any] | None:
        if self._has_digests(match):
            return BY_DIGEST
        if self._encoder is None:
            return UNVERIFIED
        with _naming_the_way_without():
            return verify_order(
                self._encoder,
                self.results.contents,
                self.images,
                manifest,
                self.dataset,
                match.row,
                rows,
                seed=list(hashlib.sha256(f"{self.sha256} {manifest.split}".encode()).digest()),
                batch_size=self.study.extraction.batch_size,
                findings=findings,
            )

    def verify_templates(
        self, templates: Mapping[str, MatchedTemplate], card: EncoderCard, findings: FindingCollector
    ) -> tuple[dict[str, MatchedTemplate], dict[str, Mapping[str, Any]]]:
        """The templates that may be imported, and the record of how each was verified."""
        contents = self.results.contents
        provenance = contents.provenance or {}
        is_bound = "encoder" in provenance and (contents.image_digest is not None or contents.kind == "template-part")
        unverified = unverified_templates(provenance, contents.templates)
        prompts = self.study.vocabulary.templates()
        orders: dict[str, Mapping[str, Any]] = {}
        to_verify = {}
        for name, template in templates.items():
            stored = stored_template(prompts[name], card, self.store)
            is_held = stored is not None and not stored.unverified
            if is_held or (is_bound and template.has_digest and template.file_id not in unverified):
                orders[name] = BY_DIGEST
            else:
                to_verify[name] = template
        if not to_verify:
            pass
        elif self._encoder is None:
            orders |= dict.fromkeys(to_verify, UNVERIFIED)
        else:
            with _naming_the_way_without():
                orders |= verify_templates(
                    self._encoder,
                    to_verify,
                    {name: template.prompts for name, template in prompts.items()},
                    seed=list(bytes.fromhex(self.sha256)),
                    batch_size=self.study.extraction.batch_size,
                    findings=findings,
                )
        unproven = [name for name, order in orders.items() if not order["verified_by"]]
        if unproven:
            self._report_unverified("/templates", listed(unproven), "their prompts", findings)
        return {name: templates[name] for name in orders}, orders

    def _has_digests(self, match: Match) -> bool:
        """Whether intact digests bind every row to its image, and no earlier adoption left the order open."""
        contents = self.results.contents
        bound = contents.feature_digest is not None and "rows_digest" in contents.attributes
        intact = bound and not any(finding.check == "rows_digest" for finding in self.results.findings)
        return match.matched_by == MATCHED_BY_DIGEST and intact and not has_unverified_order(contents.provenance or {})

    @cached_property
    def _loaded(self) -> tuple[Encoder | None, str]:
        """The encoder; None and the reason if it must not or cannot be run."""
        if not self.sample:
            return None, "the sample was left out"
        try:
            return load_encoder(self.study, cache=self.store.cache), ""
        except EncoderError as error:
            if error.transient:
                raise EncoderError(f"{error} {_WITHOUT_SAMPLE}", transient=True) from error
            return None, f"the encoder cannot be loaded ({error})"

    @property
    def _encoder(self) -> Encoder | None:
        return self._loaded[0]

    def _report_unverified(self, where: str, what: str, of: str, findings: FindingCollector) -> None:
        reason = self._loaded[1] or "the encoder has no token features of as many tokens"
        findings.add("unverified_order", where, f"expected a sample to prove {of}, found none for {what}: {reason}")


@contextmanager
def _naming_the_way_without() -> Iterator[None]:
    """Add to the error of an encoder that fails on the sample how to adopt without one."""
    try:
        yield
    except EncoderError as error:
        raise EncoderError(f"{error} {_WITHOUT_SAMPLE}", transient=error.transient) from error


def _images(study: Study, store: Store) -> tuple[Dataset, list[Manifest]]:
    """The study's data set and its manifests, read again: the digest of its image identifies a row."""
    try:
        dataset = fetch_dataset(study, store)
        return dataset, [read_images(study, split, store=store, dataset=dataset) for split in study.splits]
    except DatasetError as error:
        raise DatasetError(
            f"A file can only be adopted where the images of {study.name} can be read: its rows are found again by "
            f"the digests of their images, which the file does not have. Make the data set readable first. {error}"
        ) from error


def _check_encoder(
    database: Database, results: CheckResults, study: Study, card: EncoderCard, findings: FindingCollector
) -> None:
    """Compare what the file records of its encoder with the study's."""
    contents = results.contents
    identity = section(contents.provenance, "encoder").get("identity")
    if identity is not None and identity != card.identity:
        findings.add("encoder_card", "/@provenance", f"expected encoder identity {card.identity}, found {identity}")
    if identity is None and study.extraction.strict:
        findings.add(
            "encoder_card",
            "/@provenance",
            "expected the identity of a strict encoder, with batch size, device kind and library versions, found none",
        )
    expected, actual = {"D": card.dim}, {"D": database.dim}
    if IMAGE_FEATURES in contents.datasets:
        expected["T_img"], actual["T_img"] = card.token_count, database.token_count
    for name, value in expected.items():
        if actual[name] != value:
            findings.add("encoder_card", "/", f"expected {name} = {value}, the encoder's, found {actual[name]}")
    for name in LOGIT_PARAMETERS:
        value, stored = getattr(card, name), contents.attributes.get(name)
        if value is None or not isinstance(stored, (int, float)):
            continue
        if not math.isclose(stored, value, rel_tol=_LOGIT_TOLERANCE):
            findings.add("encoder_card", f"/@{name}", f"expected {value:.6g}, the encoder's, found {stored:.6g}")


def _refuse_another_encoder(name: str, study: Study, findings: Sequence[Finding]) -> None:
    if any(finding.check == "encoder_card" for finding in findings):
        raise AdoptionError(f"{name} was made with another encoder than that of {study.name}.", findings)


def _refuse(name: str, study: Study, findings: Sequence[Finding], repair: bool, *, anything: bool) -> None:
    if has_errors(findings) and not repair:
        raise AdoptionError(
            f"{name} is not a finished extraction of {study.name}; nothing was imported. "
            "`--repair` keeps what is provably right.",
            findings,
        )
    if not anything:
        raise AdoptionError(f"{name} holds nothing that is provably a result of {study.name}.", findings)


def _take_images(
    study: Study,
    store: Store,
    card: EncoderCard,
    manifests: Sequence[Manifest],
    images: Images,
    results: CheckResults,
    row_of_image: Ints,
    orders: Mapping[str, Mapping[str, Any]],
    source: Source,
    progress: Progress,
) -> list[AdoptedShard]:
    """Write image parts; the imported shards."""
    folder = store.image_parts(card.identity)
    with exclusive(folder):
        remove_leftovers(folder)
        index = held_rows(store, card.identity).without_unverified()
        # A part that vanished since the proof would leave its split without one.
        proven = [manifest for manifest in manifests if manifest.split in orders]
        shards = shards_to_take(study, proven, images.numbers, row_of_image, index)
        total = sum(map(len, shards))
        require_space(folder, total * row_bytes(card), f"Adopting {total} rows of {source.name}")
        write_images(folder, results.contents, shards, card, source, orders, progress)
    return shards


def _take_templates(
    study: Study,
    store: Store,
    card: EncoderCard,
    templates: Mapping[str, MatchedTemplate],
    source: Source,
    orders: Mapping[str, Mapping[str, Any]],
) -> list[str]:
    """Write template parts, with the tokens of their prompts where the encoder's tokenizer gives them."""
    tokenize = load_tokenizer(study)
    prompts = study.vocabulary.templates()
    contents = {name: template.content for name, template in templates.items()}
    if tokenize is not None:
        contents = {
            name: with_tokens(content, prompts[name], tokenize) if content.input_ids is None else content
            for name, content in contents.items()
        }
    folder = store.template_parts(card.identity)
    with exclusive(folder):
        remove_leftovers(folder)
        return write_templates(study, store, card, contents, replace(source, matched_by="prompts"), orders)
