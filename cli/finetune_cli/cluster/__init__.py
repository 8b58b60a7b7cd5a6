"""The verbs' other world: a cluster, reached as kubectl reaches it, under the caller's own name."""
