"""Small tasks with exact step values, their policies, and the trainings of the quickstart.

Imports from: every wing below. Start with: `planted.py`.
"""
