"""Estimates over samples and step values, with intervals and tests: numbers in, numbers out.

Imports from: `types` alone; no model, no trainer. Start with: `sampling_estimates.py`.
"""
