"""Several adapters over one base in the same passes: `noesis train --seeds N` on a GPU."""
