"""The pure core: what to do next, given what was observed and the time."""
