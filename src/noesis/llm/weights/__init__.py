"""A model's weights as files hold them: read, added to, rounded."""
