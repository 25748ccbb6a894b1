"""What lies on a disk or the Hub: one reader and one writer of rows, and files that appear whole or not at all.

Imports from: `types` alone. Start with: `row_sources.py`, then `files.py`.
"""
