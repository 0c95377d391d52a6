"""Examples: record schema → validate → split → export; and the loss-mask view. Never imports torch or transformers."""
