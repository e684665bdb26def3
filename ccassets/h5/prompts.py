"""Words and templates as the original functions take them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from pydantic import ValidationError

from ccassets.h5.exceptions import ArgumentError
from ccassets.study.loading import SHIPPED_STUDIES, load_study
from ccassets.study.schema import Concept, ConceptWords, LabelWords, PromptTemplate, Vocabulary


@dataclass
class PromptConfig:
    """Label words and concept words, and the templates that each are put into, at their one `{}`."""

    label_texts: Sequence[str]
    label_templates: Sequence[str]
    concept_texts: Sequence[str]
    concept_templates: Sequence[str]

    def build_template_map(self) -> dict[str, list[str]]:
        """The prompts of every template by id: `concept_prompts_t01` … first, then `label_prompts_t01` ….

        Unlike the original: a template without exactly one `{}`, and a concept word that stands twice, are refused.
        """
        return {template.template_id: list(template.prompts) for template in self.templates()}

    def templates(self) -> list[PromptTemplate]:
        """The same with the place of the word in every prompt."""
        try:
            vocabulary = Vocabulary(
                labels=LabelWords(words=tuple(self.label_texts), templates=tuple(self.label_templates)),
                concepts=ConceptWords(
                    words=tuple(Concept(word=word) for word in self.concept_texts),
                    templates=tuple(self.concept_templates),
                ),
            )
        except ValidationError as error:
            problems = "; ".join(str(problem["msg"]) for problem in error.errors())
            raise ArgumentError(f"Words or templates cannot be used: {problems}.") from error
        return list(vocabulary.templates().values())

    @property
    def metadata(self) -> dict[str, list[str]]:
        """The four lists under the names of the root attributes they are stored in."""
        return {
            "label_texts": list(self.label_texts),
            "prompt_temp_for_labels": list(self.label_templates),
            "concept_texts": list(self.concept_texts),
            "prompt_temp_for_concepts": list(self.concept_templates),
        }


def get_bloodmnist_prompts() -> PromptConfig:
    """The words and templates of BloodMNIST, those of the study that ships."""
    vocabulary = load_study(SHIPPED_STUDIES / "bloodmnist").vocabulary
    return PromptConfig(
        label_texts=list(vocabulary.labels.words),
        label_templates=list(vocabulary.labels.templates),
        concept_texts=list(vocabulary.concepts.texts),
        concept_templates=list(vocabulary.concepts.templates),
    )
