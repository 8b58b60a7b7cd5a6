"""Forecasts without a run: model, data and pools from files and options."""
