"""The stages of a run: names, order, and whose results each of them reads. Data alone."""

from __future__ import annotations

STAGES = (
    "export",
    "plan",
    "train",
    "choose",
    "judge",
    "merge",
    "gguf",
    "trial",
    "report",
)  # a trial makes no earlier stage stale
# whose results a stage reads; what they were is recorded with it
NEEDS = {
    "plan": ("export",),
    "train": ("export", "plan"),
    "choose": ("export", "train"),
    "judge": ("export", "choose"),
    "merge": ("choose",),
    "gguf": ("export", "merge"),
    "report": ("export", "train", "choose", "judge", "merge", "gguf"),
}
