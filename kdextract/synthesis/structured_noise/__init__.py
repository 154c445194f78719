"""Images from formulas, sorted by the class that the teacher predicts, and a pool of them."""
