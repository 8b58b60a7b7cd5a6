"""Planner: memory, time and cost forecast, and the layout of GPUs chosen from it."""
