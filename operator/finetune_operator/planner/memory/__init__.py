"""GPU memory by component, one file each. Bytes in, bytes out; docs/forecast.md has method and accuracy."""
