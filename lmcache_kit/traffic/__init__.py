"""What is sent to a fleet: prompts known by the blocks that they share, where they come from, and where they go."""
