"""Where files come from: one module per family of schemes, with SCHEMES and `list_source`."""
