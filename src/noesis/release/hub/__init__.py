"""Publishing on the Hugging Face Hub: what the base's licence asks for, cards, and the upload."""
