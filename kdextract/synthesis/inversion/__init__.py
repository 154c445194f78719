"""synthesis.inversion"""
