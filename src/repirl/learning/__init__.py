"""The algorithm without Lightning: what is learned from a batch of rollouts and experts, and how."""
