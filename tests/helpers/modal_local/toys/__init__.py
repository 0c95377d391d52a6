"""An app and stages without torch, to try the control plane with, and whole runs of them."""
