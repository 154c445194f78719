"""synthesis.statistics"""
