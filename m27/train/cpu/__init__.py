"""Products in C++ for training on processors whose float16 arithmetic is faster than any other that torch uses."""
