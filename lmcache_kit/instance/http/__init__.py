"""The users' side of an instance: OpenAI-style requests, generation, metrics."""
