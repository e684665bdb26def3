"""Words and templates in the form of the original functions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from pydantic import ValidationError

from ccassets.database.reader import as_list
from ccassets.h5.exceptions import ArgumentError
from ccassets.study.loading import SHIPPED_STUDIES, load_study
from ccassets.study.schema import Concept, ConceptWords, LabelWords, PromptTemplate, Vocabulary


@dataclass
class PromptConfig:
    """Label words and concept words, and the templates of each; a word replaces the one `{}` of a template.

    Attributes:
        label_texts: Label words; a single text is a list of one, here and below.
        label_templates: Templates for label words.
        concept_texts: Concept words, each once.
        concept_templates: Templates for concept words.
    """

    label_texts: str | Sequence[str]
    label_templates: str | Sequence[str]
    concept_texts: str | Sequence[str]
    concept_templates: str | Sequence[str]

    def build_template_map(self) -> dict[str, list[str]]:
        """Fill every template with its words.

        Unlike the original: a template without exactly one `{}`, and a concept word that stands twice, are refused.

        Returns:
            The prompts by template id: `concept_prompts_t01` … first, then `label_prompts_t01` ….

        Raises:
            ArgumentError: Words or templates cannot be used.
        """
        return {template.template_id: list(template.prompts) for template in self.templates()}

    def templates(self) -> list[PromptTemplate]:
        """Fill every template with its words, and find the word in every prompt.

        Returns:
            The templates in the order of `build_template_map`, with prompts and the position of the word in each.

        Raises:
            ArgumentError: Words or templates cannot be used.
        """
        lists = self.metadata
        try:
            vocabulary = Vocabulary(
                labels=LabelWords(words=tuple(lists["label_texts"]), templates=tuple(lists["prompt_temp_for_labels"])),
                concepts=ConceptWords(
                    words=tuple(Concept(word=word) for word in lists["concept_texts"]),
                    templates=tuple(lists["prompt_temp_for_concepts"]),
                ),
            )
        except ValidationError as error:
            problems = "; ".join(str(problem["msg"]) for problem in error.errors())
            raise ArgumentError(f"Words or templates cannot be used: {problems}.") from error
        return list(vocabulary.templates().values())

    @property
    def metadata(self) -> dict[str, list[str]]:
        """The four lists by root attribute."""
        return {
            "label_texts": as_list(self.label_texts),
            "prompt_temp_for_labels": as_list(self.label_templates),
            "concept_texts": as_list(self.concept_texts),
            "prompt_temp_for_concepts": as_list(self.concept_templates),
        }


def get_bloodmnist_prompts() -> PromptConfig:
    """Read the words and templates of the shipped BloodMNIST study.

    Returns:
        The words and templates, to be passed to `store_prompt_features`.
    """
    vocabulary = load_study(SHIPPED_STUDIES / "bloodmnist").vocabulary
    return PromptConfig(
        label_texts=list(vocabulary.labels.words),
        label_templates=list(vocabulary.labels.templates),
        concept_texts=list(vocabulary.concepts.texts),
        concept_templates=list(vocabulary.concepts.templates),
    )
