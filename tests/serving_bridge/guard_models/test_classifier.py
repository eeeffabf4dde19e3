"""The small guard against scipy's optimum, its file, and texts of any kind."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import save_file
from scipy import optimize

from serving_bridge.guard_models import Classifier, ClassifierError, features, fitted

TEXTS = ["brew doom", "doom now", "doom and gloom", "cake", "two cakes", "a story", "time", "numbers"]
LABELS = [True, True, True, False, False, False, False, False]


def test_the_weights_are_scipys_optimum() -> None:
    penalty = 0.05
    places = sorted({place for text in TEXTS for place in features(text)})
    design = np.zeros((len(TEXTS), len(places) + 1))
    design[:, -1] = 1.0
    for row, text in enumerate(TEXTS):
        for place, value in features(text).items():
            design[row, places.index(place)] = value
    labels = np.array(LABELS, float)
    weight = np.where(labels > 0, 0.5 / labels.mean(), 0.5 / (1 - labels.mean()))

    def loss(theta: np.ndarray) -> tuple[float, np.ndarray]:
        odds = design @ theta
        value = np.sum(weight * (np.logaddexp(0, odds) - labels * odds)) + penalty / 2 * theta @ theta
        gradient = design.T @ (weight * (1 / (1 + np.exp(-odds)) - labels)) + penalty * theta
        return float(value), gradient

    start = np.zeros(design.shape[1])
    wanted = optimize.minimize(loss, start, jac=True, method="L-BFGS-B", options={"gtol": 1e-10, "ftol": 0.0}).x
    weights, bias = fitted(TEXTS, LABELS, penalty=penalty)
    np.testing.assert_allclose(weights[places], wanted[:-1], atol=1e-5)
    assert bias == pytest.approx(wanted[-1], abs=1e-5)


def test_a_file_keeps_it(tmp_path: Path) -> None:
    weights, bias = fitted(TEXTS, LABELS, penalty=0.05)
    classifier = Classifier(weights, bias, 0.6)
    classifier.write(tmp_path / "guard.safetensors")
    found = Classifier.read(tmp_path / "guard.safetensors")
    np.testing.assert_array_equal(found.weights, weights)
    assert (found.bias, found.threshold) == (bias, 0.6)
    assert found.is_unsafe("doom")
    assert not found.is_unsafe("cake")


def test_files_that_hold_none_are_told(tmp_path: Path) -> None:
    path = tmp_path / "guard.safetensors"
    with pytest.raises(ClassifierError, match="no guard"):
        Classifier.read(path)
    path.write_bytes(b"\x80\x04junk")
    with pytest.raises(ClassifierError, match="no guard"):
        Classifier.read(path)
    bad = np.zeros(1 << 16, np.float32)
    for tensors, metadata in (
        ({"weights": np.zeros(3, np.float32)}, {"format": "weir-guard-1", "bias": "0", "threshold": "0.5"}),
        ({"weights": bad}, {"format": "other", "bias": "0", "threshold": "0.5"}),
        ({"weights": bad}, {"format": "weir-guard-1", "bias": "nan", "threshold": "0.5"}),
        ({"weights": bad}, {"format": "weir-guard-1", "bias": "0"}),
        ({"weights": bad + np.inf}, {"format": "weir-guard-1", "bias": "0", "threshold": "0.5"}),
    ):
        save_file(tensors, path, metadata=metadata)
        with pytest.raises(ClassifierError, match="no guard"):
            Classifier.read(path)


def test_a_folder_is_no_guard(tmp_path: Path) -> None:
    with pytest.raises(ClassifierError, match=r"is no file: expected the guard that .* wrote"):
        Classifier.read(tmp_path)


def test_one_kind_of_text_is_not_enough() -> None:
    with pytest.raises(ClassifierError, match="both kinds"):
        fitted(["a", "b"], [True, True], penalty=1.0)


@settings(max_examples=60, deadline=None)
@given(st.text(max_size=200))
def test_any_text_has_features_of_length_one_or_none(text: str) -> None:
    found = features(text)
    assert not found or sum(value * value for value in found.values()) == pytest.approx(1.0)
    assert 0 <= Classifier(np.ones(1 << 16, np.float32), 0.0, 0.5).probability(text) <= 1
