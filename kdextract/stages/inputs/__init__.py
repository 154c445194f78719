"""stages.inputs"""
