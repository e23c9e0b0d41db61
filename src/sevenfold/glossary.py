"""What metrics mean, in a sentence each, for those who read a report and not the code."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Meaning:
    """term: the part of the metric's name that is explained. better: which values are good; None where neither is."""

    term: str
    text: str
    better: Literal["higher", "lower"] | None


TERMS: dict[str, tuple[str, Literal["higher", "lower"] | None]] = {
    "accuracy": ("share of labels or categories that are found", "higher"),
    "auroc": ("chance that an anomaly scores above a normal row; 0.5 is guessing", "higher"),
    "average_precision": (
        "mean share of anomalies among the rows that score highest, over all cuts; 1 is best",
        "higher",
    ),
    "bd_rate": ("change of bytes at equal quality, over the range that both curves share", "lower"),
    "boosting": ("how well gradient-boosted trees read the label from the code", "higher"),
    "boosting_with_raw": ("how well gradient-boosted trees read the label from code and raw values together", "higher"),
    "bpp": ("bits that a pixel takes, headers included", "lower"),
    "bytes_per_vector": ("memory that one row takes in the index", "lower"),
    "bytes_saved": ("share of bytes saved at equal quality against the reference", "higher"),
    "categories": ("share of hidden categories that are filled in right", "higher"),
    "continuity": ("share of true neighbours that stay neighbours in the code; 1 is best", "higher"),
    "error_reduction": ("share of the error of each column's mean that is avoided; 1 is best, 0 no better", "higher"),
    "explained_variance": ("share of the variance of the test rows that the code keeps; 1 is best", "higher"),
    "f1": ("balance of precision and recall; 1 is best", "higher"),
    "false_positive_rate": ("share of normal rows that are flagged", "lower"),
    "gain": ("decibels nearer to the clean image than the noisy one was", "higher"),
    "knn_accuracy": ("share of rows whose label is that of most of their nearest training codes", "higher"),
    "level_error": ("mean relative error of the noise level as it is estimated", "lower"),
    "mae": ("mean size of the error", "lower"),
    "ms_ssim": ("likeness of structure on several scales; 1 is identical", "higher"),
    "mse": ("mean squared error", "lower"),
    "overlap": ("share of the nearest rows that are nearest in the raw values too", "higher"),
    "precision": ("share of what is found that is right", "higher"),
    "precision_at_n": ("share of anomalies among the n rows that score highest, where there are n anomalies", "higher"),
    "probe": ("how well a linear model reads the label from the code", "higher"),
    "psnr": ("peak signal-to-noise ratio in decibels; 3 more halve the squared error", "higher"),
    "psnr_gain": ("decibels nearer to the clean image than the noisy one was", "higher"),
    "r2": ("share of the label's variance that is explained; 1 is best", "higher"),
    "recall": ("share of what should be found that is found", "higher"),
    "rmse": ("root of the mean squared error", "lower"),
    "skill": ("share of the error of a simple guess that is avoided; 1 is best, 0 no better than the guess", "higher"),
    "ssim": ("likeness of structure; 1 is identical", "higher"),
    "trustworthiness": ("share of neighbours in the code that are neighbours in truth; 1 is best", "higher"),
}
"""Term -> what it says, and which way is better."""

QUALIFIERS = {
    "blind": "noise level estimated from the image",
    "jpeg": "against JPEG",
    "known": "noise level told",
    "mar": "values missing by what another column holds",
    "mcar": "values missing by chance",
    "measured": "noise level estimated from the image",
    "own": "values missing as they do in the data",
}
"""What another word of a metric's name says."""


def explain(metric: str) -> Meaning | None:
    """Return what a metric means, by the longest known term in its name; None where there is none.

    The other words of its name, such as a noise level, stand behind the sentence.
    """
    words = metric.split("_")
    spans = [(i, j) for i in range(len(words)) for j in range(i + 1, len(words) + 1)]
    known = [(i, j) for i, j in spans if "_".join(words[i:j]) in TERMS]
    if not known:
        return None
    i, j = max(known, key=lambda span: (span[1] - span[0], -span[0]))
    term = "_".join(words[i:j])
    text, better = TERMS[term]
    rest = words[:i] + words[j:]
    plain = " ".join(word for word in rest if word not in QUALIFIERS)
    added = [QUALIFIERS[word] for word in rest if word in QUALIFIERS] + [plain] * bool(plain)
    return Meaning(term, f"{text} ({', '.join(added)})" if added else text, better)
