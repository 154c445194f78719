"""A package with relative imports, like those of a research group."""
