"""Guards that are models: public ones behind any endpoint of OpenAI's API, and a small one that Weir trains itself."""

from serving_bridge.guard_models.classifier import (
    Classifier,
    ClassifierError,
    coefficients,
    features,
    fitted,
    kernel_of,
)
from serving_bridge.guard_models.formats import FORMATS, Format, Said
from serving_bridge.guard_models.served import ServedGuard, served_guards

__all__ = [
    "FORMATS",
    "Classifier",
    "ClassifierError",
    "Format",
    "Said",
    "ServedGuard",
    "coefficients",
    "features",
    "fitted",
    "kernel_of",
    "served_guards",
]
