"""How good representations and predictions are: recall, a linear probe, accuracy and F1, VQA scores, and a control.

The functions run on the host, on NumPy or JAX arrays. Recalls and VQA scores are in percent; accuracies and F1 scores
are fractions.
"""

from fedjax_mm.evaluate.classes import batch_means, classification, constant, linear_probe, precision_recall, vqa_score
from fedjax_mm.evaluate.retrieval import both_protocols, recall_sums, retrieval_folds, retrieval_recall, zero_shot

__all__ = [
    "batch_means",
    "both_protocols",
    "classification",
    "constant",
    "linear_probe",
    "precision_recall",
    "recall_sums",
    "retrieval_folds",
    "retrieval_recall",
    "vqa_score",
    "zero_shot",
]
