"""Frameworks that ship with Bursar, written with `bursar.sdk` alone: its first readers, and examples to copy."""
