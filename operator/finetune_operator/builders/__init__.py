"""Builders: the Kubernetes objects of a job, as plain values made from what was decided."""
