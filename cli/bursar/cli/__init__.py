"""The `bursar` command: one module per noun, all speaking to a cluster through the SDK.

`main.py` finds the command and turns every failure into words and an exit code; `output.py` knows tables, JSON and names.
"""
