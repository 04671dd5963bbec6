"""From views to stored tiles, batches, and estimates of bytes, memory and time."""
