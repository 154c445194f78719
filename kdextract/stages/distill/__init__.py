"""stages.distill"""
