"""Zero-shot scores in the authors' form: probabilities of classes and annotations from words alone, nothing fitted."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from ccassets.analysis.calibration import apply_platt, apply_temperature, fit_platt, fit_temperature
from ccassets.analysis.metrics import DECIDED, Array, choose_thresholds
from ccassets.analysis.results import (
    RESULT_FILES,
    VAL,
    AnalysisResult,
    held_out_splits,
    measure_groups,
    measure_predictions,
    result_content,
    write_result,
)
from ccassets.analysis.samples import class_names, is_labelled, is_ordinal
from ccassets.analysis.scores import (
    FloatArray,
    Rule,
    Values,
    cosines,
    local_features,
    normalise,
    patch_cosines,
    require_tokens,
    row_range,
)
from ccassets.database.hdf5 import iter_blocks
from ccassets.database.reader import Database, as_list, open_database, template_ids
from ccassets.errors import AnalysisError, DatabaseError
from ccassets.progress import Progress, silent
from ccassets.study.storage import Store

TOP_PATCHES = 128
"""Number of patches that the authors' zero-shot score averages; all of them where an image has fewer."""

AUTHORS_ANNOTATION_POSITION = -1
"""The token of a prompt that the authors compare with patches: the last of 77, which is padding in short prompts."""

ALL_ROWS = "all"
"""Name of the measured rows where there is neither `val` nor `test`: nothing was fitted, so all of them count."""


@dataclass(frozen=True)
class Probabilities:
    """The two halves of a probability, kept as the float32 logits that they are made of.

    Attributes:
        global_logits: From whole images.
        local_logits: From patches, of the same shape; None where patches were not used.
        multilabel: Whether each class has a probability of its own (sigmoid) or they sum to 1 (softmax).
    """

    global_logits: FloatArray
    local_logits: FloatArray | None
    multilabel: bool

    @property
    def global_scores(self) -> FloatArray:
        """The probabilities from whole images, float32."""
        return self._probabilities(self.global_logits)

    @property
    def local_scores(self) -> FloatArray | None:
        """The probabilities from patches, float32; None without patches."""
        return None if self.local_logits is None else self._probabilities(self.local_logits)

    @property
    def scores(self) -> FloatArray:
        """The mean of the halves, float32; `global_scores` alone without patches."""
        local = self.local_scores
        return self.global_scores if local is None else np.asarray((self.global_scores + local) / 2, np.float32)

    @property
    def log_odds(self) -> npt.NDArray[np.float64]:
        """ln p − ln(1 − p) of every probability p, computed without p: the same order, but no ties at 0 and 1.

        A sigmoid of float32 is exactly 1 above 17, where a scale of 100 takes most cosines. Metrics read these.
        """
        logits = [half.astype(np.float64) for half in (self.global_logits, self.local_logits) if half is not None]
        halves = [self._log_probabilities(half) for half in logits]
        positive, negative = (np.logaddexp.reduce(parts) for parts in zip(*halves, strict=True))
        return np.asarray(np.clip(positive - negative, np.finfo(np.float64).min, np.finfo(np.float64).max))

    def _probabilities(self, logits: FloatArray) -> FloatArray:
        from scipy.special import expit, softmax

        probabilities: FloatArray = expit(logits) if self.multilabel else softmax(logits, axis=-1)
        return probabilities

    def _log_probabilities(self, logits: npt.NDArray[np.float64]) -> tuple[Any, Any]:
        """ln p and ln(1 − p)."""
        from scipy.special import log_expit, logsumexp

        if self.multilabel:
            return log_expit(logits), log_expit(-logits)
        total = logsumexp(logits, axis=-1, keepdims=True)
        others = np.empty_like(logits)
        for column in range(logits.shape[-1]):
            rest = logits.copy()
            rest[..., column] = -np.inf
            others[..., column] = logsumexp(rest, axis=-1)
        return logits - total, others - total


@dataclass(frozen=True)
class ZeroShot(Probabilities):
    """Zero-shot probabilities (n, C) of rows of a database, with how they were made.

    Attributes:
        words: The C label words.
        templates: Ids of the templates that were averaged.
        rule: Which tokens belonged to a word; None without patches.
        top: Number of patches that were averaged; None without patches.
        bias: What was added to the logits.
    """

    words: tuple[str, ...]
    templates: tuple[str, ...]
    rule: Rule | None
    top: int | None
    bias: float


def zero_shot_from_arrays(
    image_features: Values,
    image_tokens: Values,
    global_words: FloatArray,
    local_words: FloatArray,
    *,
    scale: float,
    concept_scale: float,
    top: int = TOP_PATCHES,
    multilabel: bool = False,
) -> Probabilities:
    """Compute the authors' zero-shot score of images for C words.

    The score is 0.5 · softmax(S · image · word) + 0.5 · softmax(mean of the `top` patches of C · patch · word), the
    patches chosen for each word; no bias. Source: `medical_image_diagnosis/utils.py` of JerrryNie/ConceptCLIP.

    Args:
        image_features: (n, D), any float dtype and length.
        image_tokens: (n, T, D), any float dtype and length.
        global_words: (C, D) for whole images, unit length.
        local_words: (C, D) for patches, unit length.
        scale: S, the exponential of the stored `logit_scale`.
        concept_scale: C, the exponential of the stored `concept_logit_scale`.
        top: Number of patches to average.
        multilabel: Use a sigmoid for both halves.

    Returns:
        Probabilities, (n, C) each.
    """
    whole = scale * cosines(image_features, global_words)
    local = concept_scale * top_mean(patch_cosines(image_tokens, local_words), top)
    return Probabilities(whole, local, multilabel)


def zero_shot(
    database: Database,
    *,
    split: str | None = None,
    rule: Rule | None = "span",
    words: str | Sequence[str] | None = None,
    templates: str | Sequence[str] | None = None,
    top: int = TOP_PATCHES,
    multilabel: bool | None = None,
    progress: Progress = silent,
) -> ZeroShot:
    """Compute the authors' zero-shot score of a database (`zero_shot_from_arrays`) in one pass over its patches.

    Args:
        database: The database.
        split: Score the rows of this split alone.
        rule: Which tokens belong to a word: "span", "authors" as they do it, or None to leave patches out, as an
            encoder without token features needs it (`has_local_scores`).
        words: Label words; by default all.
        templates: Ids of label templates; by default all.
        top: Number of patches to average.
        multilabel: Use a sigmoid; by default where the file has several labels an image.
        progress: Counts rows.

    Returns:
        Probabilities (n, C) of the rows, in file order.

    Raises:
        DatabaseError: The file lacks the scale, a word, a template or token features.
    """
    rows = row_range(database, split)
    names = tuple(template_ids(database, "label", templates))
    chosen = tuple(database.attributes.get("label_texts") or ()) if words is None else tuple(as_list(words))
    sigmoid = database.label_matrix is not None if multilabel is None else multilabel
    scale = _multiplier(database, "logit")
    bias = _sigmoid_bias(database) if sigmoid else 0.0
    global_words = database.label_features(chosen, names)
    shape = (rows.stop - rows.start, len(chosen))
    whole = np.empty(shape, np.float32)
    if rule is None:
        for first, block in iter_blocks(database.image_features, rows=rows):
            positions = slice(first - rows.start, first - rows.start + len(block))
            whole[positions] = scale * cosines(block, global_words) + bias
            progress(positions.stop, shape[0])
        return ZeroShot(whole, None, sigmoid, chosen, names, None, None, bias)
    tokens = require_tokens(database)
    local_words = local_features(database, chosen, kind="label", templates=names, rule=rule)
    concept_scale = _multiplier(database, "concept_logit")
    local = np.empty(shape, np.float32)
    for first, block in iter_blocks(tokens, rows=rows):
        positions = slice(first - rows.start, first - rows.start + len(block))
        part = zero_shot_from_arrays(
            np.asarray(database.image_features[first : first + len(block)]),
            block,
            global_words,
            local_words,
            scale=scale,
            concept_scale=concept_scale,
            top=top,
        )
        assert part.local_logits is not None
        whole[positions], local[positions] = part.global_logits + bias, part.local_logits
        progress(positions.stop, shape[0])
    return ZeroShot(whole, local, sigmoid, chosen, names, rule, min(top, database.token_count), bias)


def has_local_scores(database: Database) -> bool:
    """Tell whether a database holds what the local half of a zero-shot score needs.

    Args:
        database: The database.

    Returns:
        Whether it has token features of images and of label words, and their scale.
    """
    templates = [template for name, template in database.templates.items() if name.startswith("label_prompts_t")]
    return (
        database.image_token_features is not None
        and database.concept_logit_scale is not None
        and bool(templates)
        and all(t.text_token_features is not None and t.subject_span is not None for t in templates)
    )


def annotation_scores(
    image_features: Values,
    image_tokens: Values,
    text_features: Values,
    text_token_features: Values,
    *,
    scale: float,
    concept_scale: float,
    position: int = AUTHORS_ANNOTATION_POSITION,
) -> Probabilities:
    """Annotate images with concepts in the authors' form: a negative against a positive prompt for each concept.

    0.5 · softmax(S · image · text) + 0.5 · softmax(mean over all patches of C · patch · token), each over the two
    prompts. Source: `medical_concept_annotation/concept_annotation.py` of JerrryNie/ConceptCLIP.

    Args:
        image_features: (n, D).
        image_tokens: (n, T_img, D).
        text_features: (K, 2, D), the negative prompt first.
        text_token_features: (K, 2, T, D), of which only the token at `position` is read.
        scale: S, the exponential of the stored `logit_scale`.
        concept_scale: C, the exponential of the stored `concept_logit_scale`.
        position: The token of a prompt that is compared with patches.

    Returns:
        Probabilities, (K, n, 2) each.
    """
    concepts, _, dim = text_features.shape
    tokens = normalise(text_token_features[:, :, position].reshape(-1, dim))
    whole = cosines(image_features, normalise(text_features.reshape(-1, dim)))
    local = patch_cosines(image_tokens, tokens).mean(axis=1)

    def over_prompts(logits: FloatArray) -> FloatArray:
        return np.asarray(logits.reshape(len(image_features), concepts, 2).transpose(1, 0, 2))

    return Probabilities(over_prompts(scale * whole), over_prompts(concept_scale * local), multilabel=False)


def top_mean(patches: FloatArray, top: int) -> FloatArray:
    """Average the `top` highest patches for each word, (n, T, K) to (n, K); all of them where there are fewer."""
    count = patches.shape[1]
    if top >= count:
        return np.asarray(patches.mean(axis=1))
    by_word = np.ascontiguousarray(patches.transpose(0, 2, 1))
    by_word.partition(count - top, axis=2)
    return np.asarray(by_word[:, :, count - top :].mean(axis=2))


def _sigmoid_bias(database: Database) -> float:
    """The bias that the sigmoid was trained with, as SigLIP's; the authors use none of ConceptCLIP's."""
    return 0.0 if database.concept_logit_scale is not None else database.logit_bias or 0.0


def _multiplier(database: Database, name: Literal["logit", "concept_logit"]) -> float:
    multiplier: float | None = getattr(database, f"{name}_multiplier")
    if multiplier is None:
        raise DatabaseError(
            f"{database.path.name} has no attribute {name}_scale: its encoder has none, so these scores do not exist "
            "for it. Cosine scores do."
        )
    return multiplier


# --- the result of a study ---------------------------------------------------------------------------


def measure_zero_shot(database: Database, progress: Progress = silent) -> dict[str, Any]:
    """Measure the zero-shot score of a database: what the asset `zero_shot` writes.

    Patches are used where the database has what they need. The temperature, or in a multi-label set the threshold and
    the Platt scaling of every label, is chosen on `val`.

    Args:
        database: A database with labels.
        progress: Counts rows.

    Returns:
        JSON types. `splits` holds, for `val` and `test` or for `all` rows, every metric with its interval;
        `classes`, `words`, `templates`, `rule`, `patches`, `bias`, `temperature`, `thresholds` (of log-odds) and
        `platt` say how they were made; `chosen_on_val` names what was chosen or fitted on `val`, and the numbers of
        `val` itself that are too good for it; `database` is the digest of the database.

    Raises:
        AnalysisError: The database has no labels or no logit scale.
        DatabaseError: The database lacks label words or templates.
    """
    if not is_labelled(database):
        raise AnalysisError(f"{database.path.name} has no labels: there is nothing to measure zero-shot classes by.")
    if database.logit_multiplier is None:
        raise AnalysisError(f"{database.path.name} has no logit_scale: its encoder gives no zero-shot probabilities.")
    rule: Rule | None = "span" if has_local_scores(database) else None
    names = held_out_splits(database) or [ALL_ROWS]
    scores = {
        name: zero_shot(database, split=None if name == ALL_ROWS else name, rule=rule, progress=progress)
        for name in names
    }
    rows = {name: database.select(None if name == ALL_ROWS else name) for name in names}
    matrix = database.label_matrix
    labels = {name: chosen.labels if matrix is None else matrix[chosen.rows] for name, chosen in rows.items()}
    temperature = lines = thresholds = None
    if VAL in scores and matrix is None:
        temperature = fit_temperature(labels[VAL], scores[VAL].scores)
    elif VAL in scores:
        thresholds = choose_thresholds(labels[VAL], scores[VAL].log_odds)
        lines = fit_platt(labels[VAL], scores[VAL].log_odds)

    def calibrated(name: str) -> Array | None:
        if temperature is not None:
            return apply_temperature(scores[name].scores, temperature)
        return None if lines is None else apply_platt(scores[name].log_odds, lines)

    how = scores[names[0]]
    measures = {
        "classes": class_names(database),
        "words": how.words,
        "templates": how.templates,
        "rule": how.rule,
        "patches": how.top,
        "bias": how.bias,
        "temperature": temperature,
        "thresholds": thresholds,
        "platt": lines,
        "chosen_on_val": _chosen_on_val(VAL in scores, matrix is not None),
        "splits": {
            name: measure_predictions(
                labels[name],
                scores[name].scores,
                rows[name].groups,
                calibrated(name),
                ranks=scores[name].log_odds,
                thresholds=thresholds,
                ordinal=is_ordinal(database),
            )
            for name in names
        },
        "groups": measure_groups(
            labels,
            {name: scores[name].log_odds for name in names},
            {name: rows[name].groups for name in names},
            is_ordinal(database),
        ),
    }
    return result_content(database, measures)


def _chosen_on_val(has_val: bool, multilabel: bool) -> list[str]:
    """The keys of a result, joined by dots, whose values were chosen or fitted on val."""
    if not has_val:
        return []
    if not multilabel:
        return ["temperature", f"splits.{VAL}.calibrated"]
    decided = [f"{part}.{VAL}.{name}" for part in ("splits", "groups") for name in DECIDED]
    return ["thresholds", "platt", f"splits.{VAL}.calibrated", *decided]


def write_zero_shot(store: Store, progress: Progress = silent) -> AnalysisResult:
    """Measure the zero-shot score of a study's database (`measure_zero_shot`) and write `zero_shot.json`.

    Args:
        store: The store of the study.
        progress: Counts rows.

    Returns:
        The result; a database that does not allow the measurement has its `unavailable_reason`.

    Raises:
        DatabaseError: The database cannot be read.
        StorageError: The result cannot be written.
    """
    with open_database(store.database) as database:
        return write_result(
            store.analysis / RESULT_FILES["zero_shot"], database, lambda: measure_zero_shot(database, progress)
        )
