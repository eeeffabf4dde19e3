"""What runs measured, as figures, charts and tables."""
