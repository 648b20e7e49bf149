"""Source `digits`: scikit-learn's 1,797 handwritten digits, 8x8 pixels, 17 greys.

E. Alpaydin, C. Kaynak: Optical Recognition of Handwritten Digits, UCI Machine Learning Repository.
"""

from __future__ import annotations

import numpy as np

from tlx.config import DataConfig
from tlx.data.npz import ArrayExamples
from tlx.data.source import Splits


def load(config: DataConfig, name: str, training: bool = True) -> Splits:
    """Returns all digits as the training split, grey 0..16 scaled to 0..255; needs no network."""
    del config, name, training
    from sklearn.datasets import load_digits

    digits = load_digits()
    images = np.rint(digits.images * (255 / 16)).astype(np.uint8)
    labels = digits.target.astype(np.int32)
    return Splits(train=ArrayExamples(images, labels, tuple("0123456789"), "digits"))
