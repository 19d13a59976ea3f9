"""Episodes: which they are, and how they reach the network."""
