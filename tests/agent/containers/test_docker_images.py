"""Pulling with Docker, from a registry on this machine: progress, one download for several, and why there is none."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterator
from typing import Any

import docker
import pytest
from tests.registry import Registry, a_registry

from bursar.agent.containers.docker_images import Layers, failure_of
from bursar.agent.containers.runtime import PullFailed
from bursar.core.images import PullFailure, PullProgress


@pytest.fixture
def registry(require: Any, tmp_path: Any, docker_image: str) -> Iterator[Registry]:
    with a_registry(require, tmp_path) as made:
        yield made


@pytest.fixture
async def runtime(make_bench: Any) -> AsyncIterator[Any]:
    async with make_bench("docker") as bench:
        yield await bench.open()


def lines(*triples: tuple[str, str, int]) -> Layers:
    layers = Layers()
    for layer, status, loaded in triples:
        detail = {"current": loaded, "total": 100} if status == "Downloading" else {}
        layers.hear({"id": layer, "status": status, "progressDetail": detail})
    return layers


def test_lines_of_the_engine_come_to_layers_and_bytes() -> None:
    layers = lines(("7", "Pulling from team/train", 0), ("", "Digest: sha256:1", 0))
    assert layers.progress() == PullProgress()
    layers = lines(("a", "Pulling fs layer", 0), ("b", "Already exists", 0), ("a", "Downloading", 40))
    assert layers.progress() == PullProgress(2, 1, 100, 40)
    layers = lines(("a", "Downloading", 40), ("a", "Download complete", 0), ("a", "Extracting", 3))
    assert layers.progress() == PullProgress(1, 0, 100, 100)
    assert lines(("a", "Downloading", 40), ("a", "Pull complete", 0)).progress() == PullProgress(1, 1, 100, 100)


@pytest.mark.parametrize(
    ("words", "failure"),
    [
        ("manifest for x:1 not found: manifest unknown: manifest unknown", PullFailure.IMAGE_NOT_FOUND),
        (
            "pull access denied for x, repository does not exist or may require 'docker login'",
            PullFailure.IMAGE_NOT_FOUND,
        ),
        ('Get "https://r/v2/": dial tcp: lookup r: no such host', PullFailure.REGISTRY_UNREACHABLE),
        ('Get "http://r/v2/": dial tcp 127.0.0.1:1: connect: connection refused', PullFailure.REGISTRY_UNREACHABLE),
        ("net/http: request canceled while waiting for connection (Client.Timeout)", PullFailure.REGISTRY_UNREACHABLE),
        ("no space left on device", PullFailure.OTHER),
        ("invalid reference format", PullFailure.OTHER),
    ],
)
def test_words_of_the_engine_come_to_a_reason(words: str, failure: PullFailure) -> None:
    assert failure_of(words) is failure


async def test_two_who_want_one_image_share_a_download(runtime: Any, registry: Registry) -> None:
    image = registry.push("team/train:1")
    seen: list[PullProgress] = []
    pulled = registry.pulls()
    await asyncio.gather(runtime.pull(image, seen.append), runtime.pull(image))
    assert registry.pulls() == pulled + 1, "one manifest was asked for"
    assert seen[-1].layers == seen[-1].layers_done == 1
    assert any(image in one.names and one.size_bytes > 1_000_000 for one in await runtime.images())


async def test_one_who_gives_up_leaves_the_other(runtime: Any, registry: Registry) -> None:
    image = registry.push("team/train:2")
    first = asyncio.create_task(runtime.pull(image))
    second = asyncio.create_task(runtime.pull(image))
    await asyncio.sleep(0)
    first.cancel()
    await second
    assert first.cancelled() and any(image in one.names for one in await runtime.images())


async def test_why_an_image_cannot_be_had(runtime: Any, registry: Registry) -> None:
    for image, failure in (
        (f"{registry.address}/team/nothing:1", PullFailure.IMAGE_NOT_FOUND),
        ("127.0.0.1:1/x:1", PullFailure.REGISTRY_UNREACHABLE),
        ("UPPER case;", PullFailure.OTHER),
    ):
        with pytest.raises(PullFailed) as failed:
            await runtime.pull(image)
        assert failed.value.failure is failure, failed.value.message
    with contextlib.closing(docker.from_env()) as client:
        assert not [one for one in client.images.list() if any("nothing" in tag for tag in one.tags)]
