"""STAR tables and MRC files as RELION reads and writes them."""
