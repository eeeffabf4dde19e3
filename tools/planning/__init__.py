"""Predicts the memory of a train step, and what bounds a whole loop, for models and devices that are not there."""

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
from tools.planning.scale import Load, Plan, Sizes, plan_scale, sizes_of
from tools.planning.scale_inputs import MODELS, ScaleInputs, read_inputs
from tools.planning.scale_published import against_published
from tools.planning.scale_tables import Rows, all_tables, inputs_table

__all__ = [
    "AXES",
    "GB",
    "MODELS",
    "Case",
    "Load",
    "Plan",
    "Rows",
    "ScaleInputs",
    "Sizes",
    "against_published",
    "all_tables",
    "build_engine",
    "changes",
    "comparable",
    "inputs_table",
    "parse_mesh",
    "plan",
    "plan_scale",
    "read_case",
    "read_inputs",
    "read_model",
    "read_shapes",
    "sizes_of",
    "suggestions",
    "verdict",
    "virtual_devices",
]
