"""LMCache's engine configuration and our section in it, as one typed object."""
