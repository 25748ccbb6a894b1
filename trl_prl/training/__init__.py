"""The trainers on TRL's side, their configurations, the callbacks and what they log.

Imports from: every wing below. Start with: `process_grpo_trainer.py`.
"""
