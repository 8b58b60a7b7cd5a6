"""The executor without a cluster: objects as JSON files, stages as local processes."""
