"""FineTuneJob, one module per section of its spec."""
