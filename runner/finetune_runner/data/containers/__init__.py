"""File types that hold rows: one module each, with EXTENSIONS and `read(path, name)`."""
