"""What stands in the way, in particular, and what would change it: one entry per reason of refusal.

`explain` asks the code that decides for the reason; here are the facts behind it, read from the same state. A step that is added to
the allocator's `consider` with a reason of its own needs one more entry in `words.WORDS`, and its facts in the module of its topic.
"""
