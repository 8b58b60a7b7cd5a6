"""One module per verb. `main` finds them by their file names and imports only the one that was typed."""
