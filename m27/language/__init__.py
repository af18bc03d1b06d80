"""Messages ↔ ids: the vocabulary, the chat template, the output grammar and the processor."""
