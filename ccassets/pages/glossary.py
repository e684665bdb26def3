"""The terms that pages explain: a link where one stands, and a list of the terms in use at the foot."""

from __future__ import annotations

from markupsafe import Markup

TERMS = {
    "95 % interval": (
        "A range that holds the true value in about 95 of 100 such studies; few images or patients make it wide. It "
        "comes from a formula or from a bootstrap: the value computed again on images drawn anew."
    ),
    "accuracy": "The share of images whose predicted class is their label.",
    "ANEC": "Accuracy at a number of effective concepts (NEC): ANEC-5 with 5 a class, ANEC-avg the mean from 5 to 30.",
    "association of classes with concepts": (
        "The classifier of ConceptCLIP’s authors: each class is one mixture of concepts, and an image goes to the "
        "class whose mixture it is nearest to."
    ),
    "AUC": (
        "Area under the ROC curve: how often an image of a class scores above one of the rest. 50 % is chance; it "
        "needs no threshold. Of several classes the mean."
    ),
    "AUROC": "The same as AUC, of one concept or class: 0.5 is chance, 1 is perfect.",
    "average precision": (
        "The mean, over the images of a class or with a concept, of the share of right ones among all that score at "
        "least as high. By chance it is their share of all images."
    ),
    "balanced accuracy": "The mean of the classes’ recall, so that a rare class counts as much as a frequent one.",
    "base rate": "The share of images that show a concept: what precision would be by chance.",
    "C": "The inverse strength of the penalty on a classifier’s weights: small values keep weights small.",
    "chosen on val": (
        "A setting was chosen, or a correction fitted, so that this number or the loss behind it is best on val. On "
        "val itself the number is therefore a little too good; on test it is fair."
    ),
    "concept classifier": (
        "A classifier that sees an image through its scores on named concepts alone (a concept bottleneck): logistic "
        "regression, whose weights can be read."
    ),
    "confident learning": (
        "A way to find wrong labels: classifiers that were fitted without an image predict it, and each class’s "
        "usual confidence says which disagreements count."
    ),
    "cosine": "How alike two lists of numbers are in direction: 1 the same, 0 unrelated, −1 opposite.",
    "decision tree": "A classifier of yes-or-no questions about single concept scores.",
    "digest": "A fingerprint of content: equal digests mean equal bytes.",
    "ECE": (
        "Expected calibration error: how far stated probabilities lie from the share that is right, on average; 0 is "
        "perfect."
    ),
    "encoder": "The model that turns an image, or a text, into numbers (features).",
    "Holm": "A correction of p-values for the number of comparisons, so that one of many is not called real by luck.",
    "kappa": (
        "Cohen’s kappa with quadratic weights, for grades: agreement beyond chance, where far grades count more; 1 "
        "is perfect, 0 is chance."
    ),
    "leakage": (
        "What scores tell a linear classifier about the class beyond the concepts that they are named after, in bits "
        "(three bits tell eight classes apart)."
    ),
    "linear probe": (
        "The same classifier on all numbers of the encoder, not on concepts: what is lost by concepts alone."
    ),
    "log loss": "The mean of −ln of the probability of what is right: 0 is perfect, and confident errors cost most.",
    "log-odds": "ln p − ln(1 − p) of a probability p.",
    "macro-F1": (
        "The mean over classes of F1, the harmonic mean of precision and recall; a rare class counts as any other."
    ),
    "MCC": "Matthews correlation of labels and predictions: 0 for guesses, 1 for right answers.",
    "NEC": "Number of effective concepts: how many concepts have a weight, on average, for a class.",
    "off-domain phrases": (
        "As many phrases that have nothing to do with the images in place of the concepts. If they do as well, the "
        "accuracy does not come from what concepts mean."
    ),
    "p": "How often chance alone would give a difference this large between methods that are equally good.",
    "Platt scaling": "A correction of each label’s probabilities by a line of their log-odds, fitted on val.",
    "pointing game": "How often the highest patch of a heat map lies in the part that the concept is about.",
    "precision at 20": "The share of the 20 images with the highest scores that show the concept.",
    "principal components": "The directions in which the images’ features differ most.",
    "random directions": (
        "Random directions of the feature space in place of the concepts. If they do as well, the accuracy does not "
        "come from what concepts mean."
    ),
    "recall": "The share of the images of a class that are predicted as that class.",
    "reliability": "Whether images that are predicted with 80 % are right in 80 of 100 cases.",
    "retrieval of concepts": "Whether the images that score highest on a concept are those that show it.",
    "sensitivity": (
        "The share of a class’s images that are found, at the threshold where 90 % of the rest are left out."
    ),
    "span": "The rule that a word’s own tokens are those between its first and its last letter in the prompt.",
    "sparse": "A classifier that may use few concepts for each class, by an elastic net.",
    "standard deviation": (
        "The usual distance from the mean: two of three values lie within one, if they are bell-shaped."
    ),
    "temperature": (
        "A correction of all probabilities by one factor of their logarithms, fitted on val; above 1 it softens."
    ),
    "threshold": "The score from which an image is said to have a label.",
    "without class names": "The concepts without those that name a class: they might give the answer away.",
    "zero-shot": (
        "Classes told apart by their words alone: the class whose prompts an image is nearest to. Nothing is fitted."
    ),
}
"""Terms that a reader of a page may not know, by their names on the page."""

_NAMES = {name.casefold(): name for name in TERMS}


def anchor(name: str) -> str:
    """The address of a term in the list."""
    return "term-" + "-".join("".join(c if c.isalnum() else " " for c in name.casefold()).split())


class Glossary:
    """The terms of one page: those that were linked are the ones to list."""

    def __init__(self) -> None:
        self._used: set[str] = set()

    def term(self, shown: str, name: str | None = None) -> str:
        """Show a text as a link to the term of that name, whose explanation is its tooltip; other texts as they are."""
        known = _NAMES.get((name or shown).casefold())
        if known is None:
            return shown
        self._used.add(known)
        link = Markup('<a class="term" href="#{}" title="{}">{}</a>')
        return link.format(anchor(known), TERMS[known], shown)

    @property
    def entries(self) -> list[tuple[str, str, str]]:
        """Address, name and explanation of the terms in use."""
        return [(anchor(name), name, text) for name, text in TERMS.items() if name in self._used]
