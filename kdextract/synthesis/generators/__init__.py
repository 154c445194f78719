"""Networks that make images: those that a game trains and forgets, and those that are kept as artifacts."""
