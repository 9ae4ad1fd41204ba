"""Why not?, asked of a real cluster: the same reason from every side, and its remedy works."""

from __future__ import annotations

import signal
from typing import Any


def test_a_run_that_waits_is_explained_from_every_side(cluster: Any) -> None:
    running = cluster.start(
        "run", "--gpus", "2", "--role", "eng", "--name", "hidden", "--capability", "NONE", "--", "true"
    )
    try:
        running.until_stderr("waiting:", 10)
        (framework,) = [f for f in cluster.ls("framework") if f["info"]["name"] == "hidden"]
        framework_id = framework["info"]["framework_id"]
        answer = cluster.bursar("explain", "framework", framework_id[:12], "-o", "json").json
        reasons = {refusal["reason"]: refusal for refusal in answer["refusals"]}
        hidden = reasons["HIDDEN_BY_RULE"]
        assert [obstacle["name"] for obstacle in hidden["obstacles"]] == ["filter-gpu-resources"]
        assert answer["pairs"] == answer["examined"] == sum(refusal["pairs"] for refusal in answer["refusals"])
        alone = cluster.bursar("explain", "framework", framework_id, "--agent", "node-gpu", "-o", "name")
        assert alone.stdout == "HIDDEN_BY_RULE\n"
        for question in (("role", "eng"), ("agent", "node-gpu")):
            text = cluster.bursar("explain", *question)
            assert text.code == 0 and "HIDDEN_BY_RULE in role eng" in text.stdout and framework_id in text.stdout, text
            assert "bursar flag set filter-gpu-resources false" in text.stdout
    finally:
        running.signal(signal.SIGINT)
        running.finish()


def test_what_cannot_be_explained_says_why(cluster: Any) -> None:
    for question, code in ((("agent", "nowhere"), 3), (("role", "no/such"), 3), (("framework", "nobody"), 3)):
        done = cluster.bursar("explain", *question)
        assert done.code == code and done.stdout == "" and "hint: " in done.stderr, done
