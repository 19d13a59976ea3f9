"""Drawing episodes."""
