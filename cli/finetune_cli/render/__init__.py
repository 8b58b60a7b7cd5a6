"""What people see: live progress, tables, and JSON or YAML for machines."""
