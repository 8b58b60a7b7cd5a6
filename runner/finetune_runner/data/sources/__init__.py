"""Where files come from: one module per scheme family, with SCHEMES and `fetch(context, uri, secret_ref, folder)`."""
