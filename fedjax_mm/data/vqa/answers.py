"""Answers to compare: one spelling for each, what it is worth, and the list of those that a task knows."""

import re
from collections import Counter
from collections.abc import Iterable, Sequence

import numpy as np

ARTICLES = {"a", "an", "the"}
NUMBERS = {
    word: str(number) for number, word in enumerate("zero one two three four five six seven eight nine ten".split())
} | {"none": "0"}
MARKS = ';/[]"{}()=+\\_-><@`,?!'
THOUSANDS = re.compile(r"\d,\d")
PERIOD = re.compile(r"\.(?!\d)")


def normalise(answer: str) -> str:
    """Returns an answer as VQA compares it: lower case, no punctuation or articles, number words as digits.

    A punctuation mark becomes a space, but goes without one where it stands beside a space anywhere in the answer, or
    where the answer has a comma between two digits; a period goes without one unless a digit follows. An answer that
    would be left empty ("A", the letter) stays. This follows the evaluation code of visualqa.org, without its table of
    misspelt contractions.

    >>> normalise("The  two dogs!"), normalise("U.S.A."), normalise("1,000-2,000")
    ('2 dogs', 'usa', '10002000')
    """
    plain = answer.replace("\n", " ").replace("\t", " ").strip()
    thousands = THOUSANDS.search(plain)
    text = plain
    for mark in MARKS:
        beside = f"{mark} " in plain or f" {mark}" in plain
        text = text.replace(mark, "" if beside or thousands else " ")
    words = PERIOD.sub("", text).lower().split()
    kept = (NUMBERS.get(word, word) for word in words)
    return " ".join(word for word in kept if word not in ARTICLES) or plain.lower()


def soft_scores(answers: Sequence[str]) -> dict[str, float]:
    """Returns normalised answer -> its score: 0.3, 0.6, 0.9 or 1 if 1, 2, 3 or more annotators gave it.

    An only answer scores 1. 0.3 an annotator is VQA's accuracy, min(1, matches / 3), averaged over the ten sets of nine
    other annotators (Antol et al. 2015).

    >>> soft_scores(["yes", "Yes", "no"])
    {'yes': 0.6, 'no': 0.3}
    """
    if len(answers) == 1:
        return {normalise(answers[0]): 1.0}
    return {answer: min(1.0, 0.3 * count) for answer, count in Counter(map(normalise, answers)).items()}


def vocabulary(scores: Iterable[dict[str, float]], most: int) -> tuple[str, ...]:
    """Returns the `most` answers with the greatest total score, best first.

    With one answer a question these are the most frequent answers.
    """
    total = Counter()
    for score in scores:
        total.update(score)
    return tuple(sorted(total, key=lambda answer: (-round(total[answer], 6), answer))[:most])


def targets(scores: Sequence[dict[str, float]], known: Sequence[str], width: int) -> np.ndarray:
    """Returns the score of each known answer to each question, float32 [E, width]; 0 beyond the known ones."""
    place = {answer: number for number, answer in enumerate(known)}
    target = np.zeros((len(scores), width), np.float32)
    for row, score in zip(target, scores, strict=True):
        for answer, value in score.items():
            if answer in place:
                row[place[answer]] = value
    return target
