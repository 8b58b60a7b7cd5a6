"""Generation, metrics, intervals and comparisons: what baseline and evaluate share."""
