"""Where a project comes from: the portal's API or RELION's STAR files."""
