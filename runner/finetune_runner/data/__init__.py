"""From files to prepared splits: sources, containers, formats, checks, split."""
