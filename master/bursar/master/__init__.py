"""The first level: knows who may have how much, and offers it.

`machine` is the way in; `state` says what a cluster is; `ledger` is the only place where free, offered and allocated
change; `allocator` decides who is offered what; `records` is what outlives the process, `registry` where it is kept;
`server` is the gRPC around it.
"""
