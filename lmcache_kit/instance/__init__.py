"""A serving instance: its cache core, its store, and the servers around them."""
