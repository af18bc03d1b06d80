"""Several models on the same questions → one page: quality, speed, memory, cost, and who said what."""
