"""The run directory as storage: manifest, stages, ledger, archive, metrics."""
