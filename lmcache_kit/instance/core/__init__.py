"""The cache without I/O: which tier holds what, what is evicted, who pinned it. A simulator drives the same objects."""
