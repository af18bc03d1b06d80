"""One small file per data set: NAME, LICENCE, ORIGIN, `items()` and `documents(split, seed)`."""
