"""HTTP: the engine behind OpenAI's API, with text, pictures and sounds in one answer."""
