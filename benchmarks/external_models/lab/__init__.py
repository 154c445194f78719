"""A laboratory's package."""
