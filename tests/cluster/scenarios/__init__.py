"""Stories of FineTuneJobs on a real control plane with the real operator; pods are played or run as processes."""
