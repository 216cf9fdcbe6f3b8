"""Core ops of blocked layouts. ``passes/layout.py`` makes them; no importer does."""
