"""The command line: runs, validates and approves the same YAML with or without a cluster."""
