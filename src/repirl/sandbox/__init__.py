"""Programs in a jail: runs what a model has written against tests. Knows nothing of training; docs/sandbox.md."""
