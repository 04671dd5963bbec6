"""Command line: parse, call, report."""
