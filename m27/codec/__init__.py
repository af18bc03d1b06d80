"""Codecs: media ↔ codes. Knows nothing of language models or of any other room of the package."""
