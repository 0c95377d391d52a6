"""Tasks whose keys are computed, in both languages, from a fixed seed: `data/tribunal/kept/computed.*.jsonl`."""
