"""Process rewards for LLM fine-tuning on TRL."""
