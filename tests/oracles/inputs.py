"""The inputs on which packages and built-ins are compared: pure functions of a seed, in numpy, so that both sides make the same."""

import numpy as np


def calibration():
    """Logits [500, 7] and labels [500]."""
    rng = np.random.default_rng(11)
    return 2.5 * rng.normal(size=(500, 7)), rng.integers(0, 7, 500)


def representations():
    """Three batches of a pair of layers: x [40, 12] and y [40, 20], related but not alike."""
    rng = np.random.default_rng(12)
    mix = rng.normal(size=(12, 20))
    made = []
    for _ in range(3):
        x = rng.normal(size=(40, 12))
        made.append((x.astype(np.float32), (x @ mix + 4.0 * rng.normal(size=(40, 20))).astype(np.float32)))
    return made


def network():
    """Weights and biases of a perceptron 6 -> 9 -> 4, with inputs [10, 6] and labels [10]."""
    rng = np.random.default_rng(13)
    weights = [rng.normal(size=shape).astype(np.float32) for shape in ((9, 6), (9,), (4, 9), (4,))]
    return weights, rng.normal(size=(10, 6)).astype(np.float32), rng.integers(0, 4, 10)
