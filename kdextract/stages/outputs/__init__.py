"""stages.outputs"""
