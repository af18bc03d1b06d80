"""Files → batches: packages, sources, hold-outs, documents, token shards, packed rows."""
