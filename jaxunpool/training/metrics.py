"""How good a segmentation is: SegNet's four numbers.

Badrinarayanan, Kendall and Cipolla, "SegNet", 2017, section 4: global accuracy, class average
accuracy, mean intersection over union, and the boundary F1 of Csurka, Larlus and Perronnin, "What
is a good evaluation measure for semantic segmentation?", 2013.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

IGNORED = 255  # in a map of classes: a pixel that has none and does not count
TOLERANCE = 1.0  # pixels; SegNet's 0.75 % of the diagonal would be less than one in a small scene


@dataclasses.dataclass(frozen=True)
class Scores:
    """All between 0 and 1; `iou` is that of each class, NaN for one that never occurs."""

    global_accuracy: float
    class_accuracy: float
    mean_iou: float
    boundary_f1: float
    iou: tuple[float, ...]


def evaluate(truth: np.ndarray, predicted: np.ndarray, classes: int) -> Scores:
    """All scores of a set of images.

    Args:
        truth: `[n, height, width]`, ints in `range(classes)`; others do not count.
        predicted: the same.
        classes: how many there are.

    Returns:
        Global accuracy, mean class accuracy and IoU over all pixels of the set; boundary F1 as the
        mean over images.
    """
    return scores(confusion_matrix(truth, predicted, classes), boundary_f1(truth, predicted))


def scores(confusion: np.ndarray, f1: float) -> Scores:
    """All scores, from the confusion of a set of images and its boundary F1."""
    return Scores(
        global_accuracy=global_accuracy(confusion),
        class_accuracy=class_accuracy(confusion),
        mean_iou=mean_iou(confusion),
        boundary_f1=f1,
        iou=tuple(map(float, iou(confusion))),
    )


def confusion_matrix(truth: np.ndarray, predicted: np.ndarray, classes: int) -> np.ndarray:
    """Counts of pixels, `[true class, predicted class]`, int64, of pixels that have a class."""
    known = truth < classes
    pairs = classes * truth[known].astype(np.int64) + predicted[known]
    return np.bincount(pairs, minlength=classes**2).reshape(classes, classes)


def global_accuracy(confusion: np.ndarray) -> float:
    """The share of pixels that are right."""
    return float(np.trace(confusion) / confusion.sum())


def class_accuracy(confusion: np.ndarray) -> float:
    """The mean, over the classes that occur, of the share of their pixels that are right."""
    occurring = confusion.sum(1) > 0
    return float((np.diag(confusion)[occurring] / confusion.sum(1)[occurring]).mean())


def iou(confusion: np.ndarray) -> np.ndarray:
    """Intersection over union of each class; NaN where neither truth nor prediction has it."""
    intersection = np.diag(confusion)
    union = confusion.sum(0) + confusion.sum(1) - intersection
    return np.divide(intersection, union, out=np.full(len(union), np.nan), where=union > 0)


def mean_iou(confusion: np.ndarray) -> float:
    """The mean IoU over the classes that occur."""
    return float(np.nanmean(iou(confusion)))


def boundary_f1(
    truth: Sequence[np.ndarray] | np.ndarray,
    predicted: Sequence[np.ndarray] | np.ndarray,
    tolerance: float = TOLERANCE,
) -> float:
    """How well outlines agree.

    Of each class of an image, precision is the share of the predicted outline that is within
    `tolerance` pixels of the true one, recall the share of the true outline that is within it of
    the predicted one; F1 is their harmonic mean, 0 if the class is not predicted at all. The result
    is the mean over the classes in the image's truth, then over images. Pixels that are `IGNORED`
    belong to no outline and make none.

    Args:
        truth: `[n, height, width]`, ints, or as many images of several sizes.
        predicted: the same.
        tolerance: in pixels.

    Returns:
        A number between 0 and 1.
    """
    found = [_image_f1(*pair, tolerance) for pair in zip(truth, predicted)]
    return float(np.mean([f1 for f1 in found if f1 is not None] or [np.nan]))


def _image_f1(truth: np.ndarray, predicted: np.ndarray, tolerance: float) -> float | None:
    """The mean over the image's classes; None if all of it is ignored."""
    known = truth != IGNORED
    classes = np.unique(truth[known])
    found = [_class_f1(truth == c, predicted == c, known, tolerance) for c in classes]
    return float(np.mean(found)) if found else None


def _class_f1(
    truth: np.ndarray, predicted: np.ndarray, known: np.ndarray, tolerance: float
) -> float:
    true_outline, predicted_outline = outline(truth, known), outline(predicted, known)
    if not true_outline.any() or not predicted_outline.any():
        return float(true_outline.any() == predicted_outline.any())
    precision = _share_near(predicted_outline, true_outline, tolerance)
    recall = _share_near(true_outline, predicted_outline, tolerance)
    return 2 * precision * recall / (precision + recall) if precision + recall else 0.0


def outline(mask: np.ndarray, known: np.ndarray) -> np.ndarray:
    """The known pixels of a mask that touch, by an edge, a known one outside it."""
    from scipy import ndimage

    return mask & known & ndimage.binary_dilation(~mask & known)


def _share_near(these: np.ndarray, those: np.ndarray, tolerance: float) -> float:
    """The share of `these` pixels that have one of `those` within the tolerance."""
    from scipy import ndimage

    return float((ndimage.distance_transform_edt(~those)[these] <= tolerance).mean())
