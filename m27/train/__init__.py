"""Training: batches → a checkpoint."""
