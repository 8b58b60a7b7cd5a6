"""What training minimises: one module per objective (base.py says what an objective is)."""
