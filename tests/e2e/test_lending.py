"""What is reserved and idle is lent, on a real cluster: borrowed by `bursar run`, wanted back by whom it is kept for."""

from __future__ import annotations

from typing import Any

LIVES = ("sh", "-c", "echo up; trap 'echo told; exit 7' TERM; while :; do sleep 0.05; done")
BORROWER = ("--capability", "GPU_RESOURCES", "--capability", "REVOCABLE_RESOURCES")


def test_a_loan_from_its_offer_to_its_end(own_cluster: Any) -> None:
    cluster = own_cluster
    assert cluster.bursar("flag", "set", "preemption-notice", "500ms").code == 0
    (view,) = cluster.bursar("reserve", "--role", "owner", "--gpus", "4", "--lend", "-o", "json").json
    assert view["lend"]

    refused = cluster.bursar("run", "--role", "other", "--gpus", "2", "--wait", "1s", "--", "true")
    assert refused.code == 124 and "REVOCABLE_RESOURCES" in refused.stderr, refused
    borrower = cluster.start("run", "--role", "other", "--gpus", "2", *BORROWER, "--", *LIVES)
    borrower.until_stdout("up")
    (task,) = cluster.ls("task")
    assert task["revocable"]
    (lent,) = cluster.ls("reservation")
    assert lent["lend"], lent

    owner = cluster.start("run", "--role", "owner", "--gpus", "4", "--", "sh", "-c", "echo mine")
    done = borrower.finish()
    assert done.code == 7 and "told" in done.stdout and "revoked" in done.stderr, done
    kept = owner.finish()
    assert (kept.code, kept.stdout) == (0, "mine\n"), kept


def test_a_lend_is_withdrawn_and_bad_orders_are_explained(own_cluster: Any) -> None:
    cluster = own_cluster
    nothing = cluster.bursar("reservation", "lend", "--role", "owner")
    assert nothing.code == 3 and "owner" in nothing.stderr and "bursar reservation ls" in nothing.stderr, nothing
    assert cluster.bursar("reservation", "lend").code == 2, "nobody is named"
    assert cluster.bursar("reserve", "--role", "owner", "--gpus", "4").code == 0
    (lent,) = cluster.bursar("reservation", "lend", "--role", "owner", "-o", "json").json
    assert lent["lend"]
    borrower = cluster.start("run", "--role", "other", "--gpus", "4", *BORROWER, "--", *LIVES)
    borrower.until_stdout("up")
    assert cluster.bursar("flag", "set", "preemption-notice", "300ms").code == 0
    withdrawn = cluster.bursar("reservation", "lend", "--role", "owner", "--withdraw")
    assert withdrawn.code == 0 and "1 task(s) given notice" in withdrawn.stderr, withdrawn
    assert borrower.finish().code == 7
    (left,) = cluster.ls("reservation")
    assert not left["lend"]
