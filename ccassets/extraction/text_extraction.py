"""Text extraction: every template is encoded once for an encoder identity, into a part of its own."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np

from ccassets.database.attributes import section
from ccassets.database.feature_digests import template_digest
from ccassets.database.reader import open_database
from ccassets.database.row_order import unverified_templates
from ccassets.database.writer import FileContent, TemplateContent, new_file
from ccassets.encoders import load_encoder
from ccassets.encoders.encoder_contract import Encoder, EncoderCard
from ccassets.encoders.spans import token_spans
from ccassets.errors import EncoderError, StudyError
from ccassets.extraction.parts import UNUSABLE
from ccassets.extraction.provenance import part_provenance
from ccassets.extraction.sources import identify_encoder, recorded_card
from ccassets.files import exclusive, reading_errors, remove_leftovers
from ccassets.study.schema import PromptTemplate, Study
from ccassets.study.storage import Store


@dataclass(frozen=True)
class StoredTemplate:
    """A template as its part holds it; `origin` is `extracted`, or `adopted` from an imported file.

    `unverified` says that adopted features were not compared with their prompts.
    """

    content: TemplateContent
    origin: str
    unverified: bool


@dataclass(frozen=True)
class TemplateExtraction:
    """A template after its extraction.

    Attributes:
        template_id: The template.
        part: The file that holds it.
        origin: `extracted` or `adopted`.
        digest: The template's digest (hex).
        prompts: Number of prompts.
        encoded: Number of prompts that were encoded now.
        seconds: Time of the encoding in seconds.
        cosine_to_database: How far the wording moved since the database was assembled: the mean cosine of the prompts
            to those that the database holds under the same id. None where it holds no such template, another number of
            prompts, or features of another encoder.
    """

    template_id: str
    part: Path
    origin: str
    digest: str
    prompts: int
    encoded: int
    seconds: float
    cosine_to_database: float | None


def extract_text(study: Study, *, store: Store | None = None, fresh: bool = False) -> list[TemplateExtraction]:
    """Encode every template of a study that no part holds.

    The encoder is loaded only when there is something to encode.

    Args:
        study: The study.
        store: Where the study's files lie, by default below `CCASSETS_STORAGE`.
        fresh: Encode all templates, also those that parts hold.

    Returns:
        The templates, in the order of the vocabulary.

    Raises:
        EncoderError: The encoder cannot be loaded, or gives features that are not finite.
        StorageError: The disk refuses.
    """
    store = store or Store.of(study)
    if not store.encoder_card.exists():
        identify_encoder(study, store=store)
    encoder = cache(lambda: load_encoder(study, cache=store.cache))
    return [
        extract_template(study, template_id, encoder=encoder, store=store, fresh=fresh)
        for template_id in study.vocabulary.templates()
    ]


def extract_template(
    study: Study,
    template_id: str,
    *,
    encoder: Callable[[], Encoder] | None = None,
    store: Store | None = None,
    fresh: bool = False,
) -> TemplateExtraction:
    """Encode one template, unless a part of the same encoder and prompts holds it.

    Args:
        study: The study; its encoder must have been identified.
        template_id: A template of the study's vocabulary.
        encoder: Gives the encoder, by default the study's own; called only when there is something to encode.
        store: Where the study's files lie, by default below `CCASSETS_STORAGE`.
        fresh: Encode the template also when a part holds it.

    Returns:
        The template.

    Raises:
        StudyError: The study has no such template.
        EncoderError: The encoder is not the identified one, or gives features that are not finite.
        StorageError: The disk refuses.
    """
    store = store or Store.of(study)
    card = recorded_card(study, store)
    template = study.vocabulary.templates().get(template_id)
    if template is None:
        raise StudyError(
            f"{study.name} has no template {template_id!r}; it has {', '.join(study.vocabulary.templates()) or 'none'}."
        )
    path = template_part(template, card, store)
    started = time.perf_counter()
    with exclusive(path.parent):
        remove_leftovers(path.parent)
        encoded = 0
        stored = None if fresh else stored_template(template, card, store)
        if stored is None:
            loaded = encoder() if encoder else load_encoder(study, cache=store.cache)
            require_identity(loaded, card)
            _write_part(path, study, template, loaded)
            encoded = len(template.prompts)
            stored = stored_template(template, card, store)
    if stored is None:
        raise EncoderError(f"{store.relative(path)} was written and cannot be read back: check the disk.")
    return TemplateExtraction(
        template_id=template_id,
        part=path,
        origin=stored.origin,
        digest=template_digest(stored.content),
        prompts=len(template.prompts),
        encoded=encoded,
        seconds=time.perf_counter() - started,
        cosine_to_database=_cosine_to_database(stored, template_id, card, store),
    )


def missing_templates(study: Study, card: EncoderCard, store: Store) -> list[str]:
    """The ids of the templates that no part holds under this encoder identity."""
    return [
        template_id
        for template_id, template in study.vocabulary.templates().items()
        if stored_template(template, card, store) is None
    ]


def template_part(template: PromptTemplate, card: EncoderCard, store: Store) -> Path:
    """The path of a template's part."""
    return store.template_parts(card.identity) / template_part_name(template)


def template_part_name(template: PromptTemplate) -> str:
    """The file name of a template's part: a digest of the prompts and of the positions of their words."""
    content = repr((template.prompts, template.subjects)).encode("utf-8", "surrogatepass")
    return f"{hashlib.sha256(content).hexdigest()[:32]}.h5"


def stored_template(template: PromptTemplate, card: EncoderCard, store: Store) -> StoredTemplate | None:
    """The template as its part holds it; None when there is no part, or a damaged one."""
    path = template_part(template, card, store)
    if not path.is_file():
        return None
    try:
        with reading_errors(path), open_database(path) as part:
            provenance = part.provenance or {}
            stored = next(iter(part.templates.values()))
            content = TemplateContent(
                texts=stored.texts,
                text_features=stored.text_features,
                text_token_features=stored.text_token_features,
                input_ids=stored.input_ids,
                attention_mask=stored.attention_mask,
                subject_span=stored.subject_span,
            )
            right = (
                section(provenance, "encoder").get("identity") == card.identity
                and tuple(content.texts) == template.prompts
                and stored.attributes.get("digest") == template_digest(content)
            )
    except (StopIteration, *UNUSABLE):
        return None
    unverified = bool(unverified_templates(provenance, [template.template_id]))
    return StoredTemplate(content, str(provenance.get("origin")), unverified) if right else None


def require_identity(encoder: Encoder, card: EncoderCard) -> None:
    """Refuse an encoder that is not the one whose card was recorded."""
    if encoder.card.identity != card.identity:
        raise EncoderError(
            f"The encoder that was loaded has identity {encoder.card.identity}, the recorded card says "
            f"{card.identity}: its weights or settings changed. Materialize the study's `encoder` again."
        )


def _cosine_to_database(stored: StoredTemplate, template_id: str, card: EncoderCard, store: Store) -> float | None:
    if not store.database.is_file():
        return None
    try:
        with open_database(store.database) as database:
            before = database.templates.get(template_id)
            identity = section(database.provenance, "encoder").get("identity")
            if before is None or identity != card.identity or len(before.texts) != len(stored.content.texts):
                return None
            return float((before.text_features * stored.content.text_features).sum(axis=1).mean())
    except UNUSABLE:
        return None


def _write_part(path: Path, study: Study, template: PromptTemplate, encoder: Encoder) -> None:
    started = time.perf_counter()
    encoded = encoder.encode_texts(list(template.prompts))
    for name, values in (("text_features", encoded.features), ("text_token_features", encoded.tokens)):
        if values is not None and not np.isfinite(values).all():
            raise EncoderError(f"{template.template_id}: the encoder gave {name} that are not finite.")
    # A tokenizer without offsets is fine where no text tokens are stored, which alone need the place of a word.
    placed = encoded.tokens is not None or encoded.offsets.any()
    subjects = template.subjects if placed else [(0, 0)] * len(template.prompts)
    content = TemplateContent(
        texts=template.prompts,
        text_features=encoded.features,
        text_token_features=encoded.tokens,
        input_ids=encoded.input_ids,
        attention_mask=encoded.attention_mask,
        subject_span=token_spans(encoded.offsets, encoded.attention_mask, subjects),
    )
    provenance = part_provenance(study, encoder, time.perf_counter() - started)
    with new_file(
        path,
        FileContent(
            profile="template-part",
            dim=encoder.card.dim,
            token_count=0,
            templates={template.template_id: content},
            attributes={"provenance": provenance},
        ),
    ):
        pass  # A template part has no rows.
