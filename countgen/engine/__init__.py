"""What is tried next, with what it is batched, and what it costs."""
