"""Documents made from several items: scenes, picture books, triples, soundscapes."""
