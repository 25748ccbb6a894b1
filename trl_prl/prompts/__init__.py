"""One way from a row of a data set to what a model sees, for every stage.

Imports from: nothing. Start with: `format.py` (the options), then `chat.py` (messages as token ids).
"""
