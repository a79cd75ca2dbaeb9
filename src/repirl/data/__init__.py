"""Problems, expert trajectories, and the loaders that hand them to the modules."""
