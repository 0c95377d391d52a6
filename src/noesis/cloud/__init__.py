"""The pipeline on Modal.com."""
