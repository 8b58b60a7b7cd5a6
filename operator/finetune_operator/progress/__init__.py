"""Live progress: an HTTPS endpoint that every replica serves, and bounded writes of what it hears into the status."""
