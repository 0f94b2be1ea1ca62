"""Runs of an experiment, a row a method: means and spreads over seeds, and how far methods differ.

What a run is and which settings decide it is known here; how a text or an image is measured is not.
"""
