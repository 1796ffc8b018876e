"""The cache with I/O: backends, codecs, threads and jobs around the core."""
