"""Command-line entry points; they parse, wire and run."""
