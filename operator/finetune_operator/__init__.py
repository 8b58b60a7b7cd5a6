"""The operator: observes FineTuneJobs, decides with pure functions, and acts on the cluster."""
