"""`python -m bursar.cli.demo`."""

from bursar.runtime.program import run

run("bursar.cli.demo.story")
