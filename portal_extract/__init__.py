"""RELION-ready particles and averages, streamed from the CryoET Data Portal."""
