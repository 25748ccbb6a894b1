"""The learned process reward: stepwise rows, the model, its trainer, loading and evaluation.

Imports from: `credit`, `metrics`, `steps`, `prompts`, `storage`, `generation`. Start with: `model.py` on
`scorer.py`, and `settings.py` for what travels with a verifier.
"""
