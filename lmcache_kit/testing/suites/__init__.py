"""One conformance suite per kind of plugin."""
