"""synthesis.structured_noise"""
