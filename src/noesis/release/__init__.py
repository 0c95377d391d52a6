"""From adapter to files that others can run: merge → GGUF → parity → model card."""
