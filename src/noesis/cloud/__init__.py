"""Modal.com: images, volume, secret and three functions that call the pipeline's stages. No logic of its own."""
