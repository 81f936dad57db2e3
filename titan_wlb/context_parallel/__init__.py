"""Context parallelism: attention over documents that are sharded over the ranks of a CP group."""
