"""Reading JSON Lines: the only reader of JSONL files, from users and from runs, and of models' JSON files."""

from __future__ import annotations

from noesis.core.jsonl.documents import fraction, read_json_file, whole_number
from noesis.core.jsonl.ids import UniqueIds, id_key, id_problem, same_id
from noesis.core.jsonl.lines import (
    MAX_RUN_FILE,
    Line,
    iter_intact_objects,
    iter_lines,
    iter_objects,
    jsonl_files,
    read_models,
    read_objects,
)
from noesis.core.jsonl.parse import BYTE_ORDER_MARK, MAX_LINE, LineError, parse_object

__all__ = [
    "BYTE_ORDER_MARK",
    "MAX_LINE",
    "MAX_RUN_FILE",
    "Line",
    "LineError",
    "UniqueIds",
    "fraction",
    "id_key",
    "id_problem",
    "iter_intact_objects",
    "iter_lines",
    "iter_objects",
    "jsonl_files",
    "parse_object",
    "read_json_file",
    "read_models",
    "read_objects",
    "same_id",
    "whole_number",
]
