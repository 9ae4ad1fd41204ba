from __future__ import annotations

from pathlib import Path

import pytest

from bursar.core.errors import BursarError, InvalidText
from bursar.core.flags import closest
from bursar.runtime.settings import Flag, FlagType, FlagValue, Settings, fail, load

FLAGS = (
    Flag("listen", FlagType.TEXT, "127.0.0.1:5050", "Where to listen.", metavar="HOST:PORT"),
    Flag(
        "filter-gpu-resources",
        FlagType.CHOICE,
        "true",
        "Who sees GPU agents.",
        choices=("true", "false"),
        runtime_settable=True,
        hints=(("strip", "'strip' does not exist yet"),),
    ),
    Flag("offer-timeout", FlagType.DURATION, 30_000, "How long an offer stands.", minimum=10),
    Flag("max-agent-ping-timeouts", FlagType.INT, 5, "How many.", minimum=1),
    Flag("excluded-names", FlagType.LIST, (), "Names."),
    Flag("insecure", FlagType.BOOL, False, "Do."),
)


def read(*argv: str, env: dict[str, str] | None = None) -> Settings:
    return load(FLAGS, argv, env or {}, "bursar-master", summary="A master.", version="1.2")


def test_defaults_are_there_and_know_it() -> None:
    settings = read()
    assert settings.text("listen") == "127.0.0.1:5050" and settings.source("listen") == "default"
    assert settings.number("offer-timeout") == 30_000
    assert settings.items("excluded-names") == () and settings.switch("insecure") is False


@pytest.mark.parametrize(
    ("argv", "name", "value"),
    [
        (["--offer-timeout=500ms"], "offer-timeout", 500),
        (["--offer-timeout", "10m"], "offer-timeout", 600_000),
        (["--offer_timeout", "1s"], "offer-timeout", 1000),
        (["--filter-gpu-resources=false"], "filter-gpu-resources", "false"),
        (["--filter-gpu-resources", "false"], "filter-gpu-resources", "false"),
        (["--no-filter-gpu-resources"], "filter-gpu-resources", "false"),
        (["--no_filter_gpu_resources"], "filter-gpu-resources", "false"),
        (["--filter-gpu-resources=false", "--filter-gpu-resources", "--listen=x"], "filter-gpu-resources", "true"),
        (["--insecure"], "insecure", True),
        (["--insecure", "--listen", "y"], "insecure", True),
        (["--no-insecure"], "insecure", False),
        (["--insecure=no"], "insecure", False),
        (["--excluded-names", "gpus, tpus,"], "excluded-names", ("gpus", "tpus")),
        (["--listen=a", "--listen=b"], "listen", "b"),
    ],
)
def test_command_line(argv: list[str], name: str, value: FlagValue) -> None:
    settings = read(*argv)
    assert settings.value(name) == value
    assert settings.source(name) == "command line"
    assert settings.parse(name, settings.format(name)) == value


def test_later_places_win(tmp_path: Path) -> None:
    file = tmp_path / "a file.toml"
    file.write_text(
        'offer-timeout = "1s"\nlisten = "file:1"\nmax_agent_ping_timeouts = 7\ninsecure = true\nexcluded-names = ["a", "b"]\n'
    )
    env = {"BURSAR_MASTER_OFFER_TIMEOUT": "2s", "BURSAR_MASTER_LISTEN": "env:1", "BURSAR_MASTER_CONFIG": str(file)}
    settings = read("--listen", "line:1", env=env)
    assert {name: (settings.value(name), settings.source(name)) for name in settings.flags if name != "config"} == {
        "listen": ("line:1", "command line"),
        "offer-timeout": (2000, "environment"),
        "max-agent-ping-timeouts": (7, "file"),
        "insecure": (True, "file"),
        "excluded-names": (("a", "b"), "file"),
        "filter-gpu-resources": ("true", "default"),
    }


@pytest.mark.parametrize(
    ("argv", "what"),
    [
        (["--ofer-timeout=1s"], "offer-timeout"),
        (["--nosuchthing"], "--help"),
        (["--offer-timeout=1"], "--offer-timeout: '1' is not a duration"),
        (["--offer-timeout=1ms"], "at least 10ms"),
        (["--offer-timeout"], "requires an argument"),
        (["--filter-gpu-resources=strip"], "'strip' does not exist yet"),
        (["--filter-gpu-resources=maybe"], "use one of: true, false"),
        (["--max-agent-ping-timeouts=0"], "at least 1"),
        (["--max-agent-ping-timeouts=1.5"], "whole number"),
        (["--insecure=maybe"], "neither true nor false"),
        (["--no-filter-gpu-resources=true"], "takes no value"),
        (["--no-listen"], "--no-listen is not a flag"),
        (["--off=1s"], "is not a flag"),
        (["stray"], "stray"),
        (["--config=/no/such/file"], "cannot read"),
    ],
)
def test_bad_input_says_what_and_what_to_do(argv: list[str], what: str) -> None:
    with pytest.raises(BursarError, match=what):
        read(*argv)


def test_bad_values_name_their_place(tmp_path: Path) -> None:
    with pytest.raises(InvalidText, match="BURSAR_MASTER_OFFER_TIMEOUT: 'x' is not a duration"):
        read(env={"BURSAR_MASTER_OFFER_TIMEOUT": "x"})
    for content, problem in {
        "offer-timeout = 10": r"c\.toml: offer-timeout: '10' is not a duration",
        "ofer-timeout = 10": "did you mean 'offer-timeout'",
        "offer-timeout = ": "is not TOML",
        "listen = {}": "of a kind that no flag has",
        'offer-timeout = "1s"\noffer_timeout = "1s"': "twice",
    }.items():
        (tmp_path / "c.toml").write_text(content)
        with pytest.raises(InvalidText, match=problem):
            read(f"--config={tmp_path / 'c.toml'}")


def test_an_unknown_variable_is_a_warning() -> None:
    settings = read(env={"BURSAR_MASTER_OFER_TIMEOUT": "1s", "BURSAR_MASTER": "127.0.0.1:5050", "BURSAR_AGENT_X": "1"})
    assert settings.number("offer-timeout") == 30_000
    (warning,) = settings.warnings
    assert "BURSAR_MASTER_OFER_TIMEOUT" in warning and "BURSAR_MASTER_OFFER_TIMEOUT" in warning


def test_help_lists_every_flag_with_its_default(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        read("--help")
    assert stop.value.code == 0
    text = capsys.readouterr().out
    for flag in FLAGS:
        assert f"--{flag.name}" in text
    assert "[default: 30s]" in text and "BURSAR_MASTER_" in text


def test_help_calls_a_command_by_its_name(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        load(FLAGS, ["--help"], {}, "bursar-agent", command="bursar-agent doctor")
    assert capsys.readouterr().out.startswith("Usage: bursar-agent doctor [OPTIONS]")


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        read("--version")
    assert stop.value.code == 0 and capsys.readouterr().out == "bursar-master 1.2\n"


def test_fail_is_usage_for_texts_and_refusal_for_the_rest(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        fail("bursar-master", InvalidText("this is wrong", "do that"))
    assert stop.value.code == 2 and capsys.readouterr().err == "bursar-master: this is wrong\n  do that\n"
    with pytest.raises(SystemExit) as stop:
        fail("bursar-master", BursarError("the port is taken"))
    assert stop.value.code == 1


def test_closest() -> None:
    assert closest("ofer-timeout", ["offer-timeout", "listen"]) == "offer-timeout"
    assert closest("zzz", ["offer-timeout"]) is None
