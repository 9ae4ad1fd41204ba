"""One per machine: runs what the master decided, in containers pinned to exactly the granted devices.

`machine` decides, adapters do: `containers` (docker, process, simulated) and `devices` (nvml, simulated, none) are
reached through one small interface each, and every adapter passes the contract suite that its simulated twin passes.
"""
