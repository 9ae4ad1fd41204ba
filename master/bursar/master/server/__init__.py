"""gRPC around the machine: servicers decode, put an event into the inbox, and encode what comes back.

`hub` joins the machine's effects with streams and callers; one module per service does the rest, without a word about the domain.
"""
