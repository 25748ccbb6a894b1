"""What resumable jobs over rows share: options, workers and engines, shards, manifests, progress.

Imports from: `generation`, `rewards` and what lies below. Start with: `runner.py`, then `config.py` and `manifest.py`.
"""
