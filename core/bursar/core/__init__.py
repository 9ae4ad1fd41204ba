"""Pure values that every program of Bursar agrees on.

Nothing in here knows of a clock, a socket, a disk, a protobuf message or a random source. `messages` mirrors
`proto/bursar/v1` message by message (same names, same fields): these are what the machines speak, in the programs
as in the simulation.
"""
