"""Predicts the device memory of a train step, for models and meshes that are not there."""

from tools.planning.cases import (
    AXES,
    Case,
    build_engine,
    comparable,
    parse_mesh,
    plan,
    read_case,
    read_model,
    read_shapes,
    virtual_devices,
)
from tools.planning.fit import GB, changes, suggestions, verdict

__all__ = [
    "AXES",
    "GB",
    "Case",
    "build_engine",
    "changes",
    "comparable",
    "parse_mesh",
    "plan",
    "read_case",
    "read_model",
    "read_shapes",
    "suggestions",
    "verdict",
    "virtual_devices",
]
