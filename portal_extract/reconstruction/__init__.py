"""Averages of particles: accumulation, symmetry, correction, FSC."""
