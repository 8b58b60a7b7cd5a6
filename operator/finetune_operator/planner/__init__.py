"""Forecasts and the plan that Planned freezes. Pure."""
