"""The virtual clock: the same controller and cache cores, driven by an event heap and cost models."""
