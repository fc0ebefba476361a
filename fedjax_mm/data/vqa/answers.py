"""Answers to compare: one spelling for each, what it is worth, and the list of those that a task knows."""

import re
from collections import Counter
from collections.abc import Iterable, Sequence

import numpy as np

ARTICLES = {"a", "an", "the"}
NUMBERS = {
    word: str(number) for number, word in enumerate("zero one two three four five six seven eight nine ten".split())
} | {"none": "0"}
PUNCTUATION = re.compile(r"""[;/\[\]"{}()=+\\_\-><@`,?!]|\.(?!\d)""")
THOUSANDS = re.compile(r"(?<=\d),(?=\d)")


def normalise(answer: str) -> str:
    """The answer as VQA compares it: lower case, no punctuation, no articles, number words as digits, single spaces.

    An answer that would be left empty ("A", the letter) stays. After the evaluation code of visualqa.org, without its
    table of misspelt contractions.
    """
    lower = answer.lower().strip()
    words = PUNCTUATION.sub(" ", THOUSANDS.sub("", lower)).split()
    return " ".join(NUMBERS.get(word, word) for word in words if word not in ARTICLES) or lower


def soft_scores(answers: Sequence[str]) -> dict[str, float]:
    """Normalised answer -> its score: 0.3, 0.6, 0.9, 1 where 1, 2, 3, more annotators gave it; 1 for an only answer.

    0.3 an annotator is VQA's accuracy, min(1, matches / 3), averaged over the ten sets of nine other annotators
    (Antol et al. 2015).
    """
    if len(answers) == 1:
        return {normalise(answers[0]): 1.0}
    return {answer: min(1.0, 0.3 * count) for answer, count in Counter(map(normalise, answers)).items()}


def vocabulary(scores: Iterable[dict[str, float]], most: int) -> tuple[str, ...]:
    """The `most` answers with the greatest total score (with one answer a question: the most frequent), best first."""
    total = Counter()
    for score in scores:
        total.update(score)
    return tuple(sorted(total, key=lambda answer: (-round(total[answer], 6), answer))[:most])


def targets(scores: Sequence[dict[str, float]], known: Sequence[str], width: int) -> np.ndarray:
    """The score of each known answer to each question, float32 [E, width]; 0 beyond the known ones."""
    place = {answer: number for number, answer in enumerate(known)}
    target = np.zeros((len(scores), width), np.float32)
    for row, score in zip(target, scores, strict=True):
        for answer, value in score.items():
            if answer in place:
                row[place[answer]] = value
    return target
