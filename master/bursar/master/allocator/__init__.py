"""Who is offered what: a function over the ledger, integers only, deterministic from its inputs.

`cycle` reads as the list of steps; `shares` is the order (hierarchical DRF), `visibility` who may see an agent, `demand` what a
framework can use of it, `filters` what was declined a moment ago, `carve` how a request is cut out of what there is. Every
step answers with resources or with a reason, so that "why not?" is answered by the code that decides.
"""
