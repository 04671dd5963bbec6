"""Contrast transfer function, dose weights, aberrations, whitening."""
