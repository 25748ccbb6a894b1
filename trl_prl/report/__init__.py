"""What a run leaves behind, and the page that shows it.

Imports from: `credit`, `steps`, `jobs`. Start with: `run_recorder.py` for what is written, `data.py` for what is read.
"""
