"""Samples from prefixes, by a model in this process, vLLM or a server, and rollouts with their outcomes.

Imports from: `steps`, `credit`, `metrics`. Start with: `rollouts.py`.
"""
