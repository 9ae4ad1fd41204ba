"""The master's allocator and the reference (`tests/master/reference`), side by side.

`duet` does everything twice and compares, `plays` are random clusters in which much happens, `choices` is what they choose from and `words` tells
what happened.
"""
