"""stages.running"""
