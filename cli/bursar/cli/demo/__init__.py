"""The product's story on real processes, checked as it is told: `make demo`, or `python -m bursar.cli.demo`.

`story` is the list of scenes; `observer` a framework that holds its offers so that they can be looked at; `setting` chooses the
runtime and the devices that this machine has.
"""
