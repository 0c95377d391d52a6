"""Room on a card for another process: what this one holds and no longer needs is given back."""

from __future__ import annotations

import gc

from noesis.console import say


def leave_the_card() -> None:
    """Give the card's memory back, as far as a living process can; nothing where there is none."""
    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
        say(f"  the answering model has left the card: {torch.cuda.memory_allocated() / 2**30:.1f} GiB still held")
