"""Images from formulas, sorted by the class that the teacher gives them, and a pool of them."""
