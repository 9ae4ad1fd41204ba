"""Weights and quotas on a real cluster: set by commands, felt by `bursar run`, shown by `role tree`, kept over a restart."""

from __future__ import annotations

from typing import Any


def test_a_limit_is_felt_at_once_and_kept_by_the_registry(cluster: Any) -> None:
    run = ("run", "--role", "limited/team", "--gpus", "2", "--wait", "2300ms", "--", "true")
    try:
        done = cluster.bursar("quota", "set", "--role", "limited", "--limit", "gpus:1")
        assert done.code == 0 and "gpus:1" in done.stdout
        waited = cluster.bursar(*run)
        assert waited.code == 124 and "limit" in waited.stderr, waited
        refused = cluster.bursar("quota", "set", "--role", "limited", "--guarantee", "gpus:2", "--limit", "gpus:1")
        assert refused.code == 1 and "above its limit" in refused.stderr and refused.stdout == ""
        (kept,) = cluster.bursar("quota", "ls", "-o", "json").json
        assert kept["quota"] == {"role": "limited", "guarantees": {}, "limits": {"gpus": 1000}}
    finally:
        assert cluster.bursar("quota", "rm", "limited").code == 0
    assert cluster.bursar(*run).code == 0
    assert cluster.bursar("quota", "rm", "limited").code == 3, "there is none any more"


def test_a_guarantee_is_kept_from_others(cluster: Any) -> None:
    try:
        assert cluster.bursar("quota", "set", "--role", "first", "--guarantee", "gpus:3").code == 0
        other = cluster.bursar("run", "--role", "other", "--gpus", "2", "--wait", "2300ms", "--", "true")
        assert other.code == 124 and "guarantee" in other.stderr, other
        assert cluster.bursar("run", "--role", "first", "--gpus", "4", "--", "true").code == 0
        too_much = cluster.bursar("quota", "set", "--role", "second", "--guarantee", "gpus:2")
        assert too_much.code == 1 and "the cluster has 4" in too_much.stderr
    finally:
        assert cluster.bursar("quota", "rm", "first").code == 0


def test_roles_with_a_weight_or_a_quota_are_in_the_tree(cluster: Any) -> None:
    try:
        assert cluster.bursar("weight", "set", "lab=2.5", "lab/vision=0.5").code == 0
        assert cluster.bursar("quota", "set", "--role", "lab/vision", "--limit", "gpus:2").code == 0
        (lab,) = [top for top in cluster.bursar("role", "tree", "-o", "json").json if top["role"] == "lab"]
        (vision,) = lab["children"]
        assert (lab["weight_milli"], vision["weight_milli"]) == (2500, 500)
        assert vision["limit_left"] == {"gpus": 2000} and lab["limit_left"] == {}
        lines = cluster.bursar("role", "tree").stdout.splitlines()
        assert any(line.startswith("  vision ") and "gpus:2" in line for line in lines)
        nothing = cluster.bursar("weight", "set", "lab=0", "other=2")
        assert nothing.code == 2 and "other" not in cluster.bursar("weight", "ls").stdout
    finally:
        assert cluster.bursar("quota", "rm", "lab/vision").code == 0
        assert cluster.bursar("weight", "reset", "lab", "lab/vision").code == 0
    assert "lab" not in cluster.bursar("role", "tree", "-o", "name").names
