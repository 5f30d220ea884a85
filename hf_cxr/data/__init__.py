"""From a collection to a prepared dataset, and from that to batches."""
