"""`kdx benchmark`: a suite of teachers, students, methods, budgets and seeds, run through the ordinary commands."""
