"""The extraction graph: 2D stacks and 3D pseudo-subtomograms."""
