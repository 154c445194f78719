"""The engines that make images without data: inversion, structured noise, generators and the adversarial game.

A method (`methods`) is one file that sets one of these engines up; what several methods share belongs here. Nothing
here reads or writes artifacts, opens real data or depends on the names of methods.
"""
