"""Who an expression covers, against a brute force that reads the rule and nothing else; what is written is read back."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bursar.core.errors import InvalidText
from bursar.core.role_expressions import (
    MAX_COST,
    MAX_DEPTH,
    MAX_LENGTH,
    MAX_NESTING,
    RoleExpression,
    group_name_problem,
    groups_problem,
    holder_covers,
    holder_of,
    parse_role_expression,
    plain_holder,
    quote_role,
    reached_groups,
    read_holder,
    role_expression,
    union,
)
from bursar.core.roles import role_problem

parse = parse_role_expression
NAMES = ["a", "b", "a@b", "ü"]
UNIVERSE = [path for size in (1, 2, 3) for path in map("/".join, product(NAMES, repeat=size))]


@dataclass(frozen=True)
class Sample:
    """An expression as a text, written carelessly, and the roles of the universe that it covers by the rule."""

    text: str
    #: 0: an atom, or in parentheses; 1: has `&` outside; 2: has `|` outside.
    tightness: int
    roles: frozenset[str]


paths = st.lists(st.sampled_from(NAMES), min_size=1, max_size=3).map("/".join)
spaces = st.sampled_from(["", " ", "  ", "\t", "\n "])
#: What the groups of these tests cover; `none` is unknown.
GROUPS = {"g": "a/b | =b", "h": "!a & @g", "i": '"a@b"/**'}


def descendants(role: str) -> frozenset[str]:
    return frozenset(other for other in UNIVERSE if other.split("/")[: role.count("/") + 1] == role.split("/"))


GROUP_ROLES = {
    "g": descendants("a/b") | {"b"},
    "h": (frozenset(UNIVERSE) - descendants("a")) & (descendants("a/b") | {"b"}),
    "i": descendants("a@b") - {"a@b"},
    "none": frozenset[str](),
}


@st.composite
def atoms(draw: st.DrawFn) -> Sample:
    if draw(st.integers(0, 4)) == 0:
        name = draw(st.sampled_from(sorted(GROUP_ROLES)))
        return Sample(f"@{name}", 0, GROUP_ROLES[name])
    role = draw(paths)
    quoted = '"' + role + '"' if not role.isascii() or "@" in role or draw(st.booleans()) else role
    match draw(st.sampled_from("re/")):
        case "r":
            return Sample(quoted, 0, descendants(role))
        case "e":
            return Sample(f"={quoted}", 0, frozenset({role}))
        case _:
            return Sample(f"{quoted}/**", 0, descendants(role) - {role})


def larger(smaller: st.SearchStrategy[Sample]) -> st.SearchStrategy[Sample]:
    @st.composite
    def combined(draw: st.DrawFn) -> Sample:
        def padded(text: str) -> str:
            return draw(spaces) + text + draw(spaces)

        def at_most(sample: Sample, tightness: int) -> str:
            return padded(sample.text if sample.tightness <= tightness else f"({padded(sample.text)})")

        kind = draw(st.sampled_from(["not", "and", "or", "parenthesis"]))
        first = draw(smaller)
        if kind == "not":
            return Sample("!" + at_most(first, 0), 0, frozenset(UNIVERSE) - first.roles)
        if kind == "parenthesis":
            return Sample(f"({padded(first.text)})", 0, first.roles)
        second = draw(smaller)
        if kind == "and":
            return Sample(at_most(first, 1) + "&" + at_most(second, 1), 1, first.roles & second.roles)
        return Sample(at_most(first, 2) + "|" + at_most(second, 2), 2, first.roles | second.roles)

    return combined()


samples = st.recursive(atoms(), larger, max_leaves=12)
KNOWN = {name: parse(text) for name, text in GROUPS.items()}


def covered(expression: RoleExpression, groups: Any = KNOWN) -> frozenset[str]:
    return frozenset(role for role in UNIVERSE if expression.covers(role, groups))


@given(samples)
def test_an_expression_covers_what_the_rule_says(sample: Sample) -> None:
    assert covered(parse(sample.text)) == sample.roles


@given(samples)
def test_the_canonical_text_is_read_back_as_the_same(sample: Sample) -> None:
    expression = parse(sample.text)
    again = parse(str(expression))
    assert again == expression and str(again) == str(expression)
    assert covered(again) == sample.roles


@given(st.lists(samples, min_size=1, max_size=5))
def test_a_union_covers_what_any_member_covers(members: list[Sample]) -> None:
    joined = union([parse(member.text) for member in members])
    assert covered(joined) == frozenset[str]().union(*(member.roles for member in members))


@given(samples)
def test_nothing_is_covered_where_no_role_can_be(sample: Sample) -> None:
    """The universe has a role of every case that an expression over these names tells apart, but for two: a role that
    is unlike all of them, and one below the deepest."""
    expression = parse(sample.text)
    outside = ["other", *(f"{role}/other" for role in UNIVERSE)]
    assert expression.covers_nothing(KNOWN) == (
        not sample.roles and not any(expression.covers(role, KNOWN) for role in outside)
    )


@given(samples)
def test_nothing_covers_everybody(sample: Sample) -> None:
    assert not parse(sample.text).covers("*", KNOWN)


@given(st.text(max_size=40))
def test_whatever_is_not_an_expression_is_refused_with_words(text: str) -> None:
    try:
        expression = parse(text)
    except InvalidText as error:
        assert error.detail.message.startswith("role expression") and error.detail.hint
    else:
        assert parse(str(expression)) == expression


@pytest.mark.parametrize(
    ("text", "canonical"),
    [
        ("ml", "ml"),
        (" ( ml ) ", "ml"),
        ("(ml/**|eng/backend/image-processing)&!ml/interns", "(ml/** | eng/backend/image-processing) & !ml/interns"),
        ("a|b&c|d", "a | b & c | d"),
        ("(a|b)&(c|d)", "(a | b) & (c | d)"),
        ("((a|b)|c)|a", "a | b | c"),
        ("!!a", "a"),
        ("! ( a | b )", "!(a | b)"),
        ("!(a)", "!a"),
        ("=a & !@g", "=a & !@g"),
        ('"a/b"', "a/b"),
        ('"a b"', None),
        ('"ü/ä"/**', '"ü/ä"/**'),
        (r'="x\"y\\z"', r'="x\"y\\z"'),
        ('"a/**"', '"a/**"'),
        ('"@g"', '"@g"'),
        ("a" * MAX_LENGTH, "a" * MAX_LENGTH),
        ("(" * MAX_DEPTH + "a" + ")" * MAX_DEPTH, "a"),
    ],
)
def test_canonical_texts(text: str, canonical: str | None) -> None:
    if canonical is None:
        with pytest.raises(InvalidText):
            parse(text)
    else:
        assert str(parse(text)) == canonical


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "it is empty, and names no role"),
        ("  ", "it is empty, and names no role"),
        ("ml &", "a role is expected at the end"),
        ("ml | | eng", "a role is expected at character 6, '| eng'"),
        ("ml eng", "an operator (& or |) or the end is expected at character 4, 'eng'"),
        ("(ml | eng", "an operator (& or |) or ')' is expected at the end"),
        ("ml)", "an operator (& or |) or the end is expected at character 3, ')'"),
        ("ml//a", "must not contain '//'; it stands at character 1"),
        ("**", "a role is expected at character 1"),
        ("/**", "must not"),
        ("ml/*", "there is no other '*' at character 4, '*'"),
        ("ml/***", "there is no other '*' at character 6, '*'"),
        ('"*"', "'*' is everybody"),
        ('"ml', "the quote is never closed, which begins at character 1"),
        ("a@b", "an operator (& or |) or the end is expected at character 2"),
        ("@", "the name of a role group is expected right after '@' at the end"),
        ("@ g", "the name of a role group is expected right after '@'"),
        ("=ml/**", "not both can be meant at character 2"),
        ("ml & !", "a role is expected at the end"),
        ("ml && eng", "a role is expected at character 5"),
        ("a" * (MAX_LENGTH + 1), "characters are too many"),
        ("(" * (MAX_DEPTH + 1) + "a" + ")" * (MAX_DEPTH + 1), "inside each other are too many"),
        ("!(" * 1000 + "a", "inside each other are too many"),
    ],
)
def test_refusals_say_what_and_where(text: str, said: str) -> None:
    with pytest.raises(InvalidText) as caught:
        parse(text)
    assert said in caught.value.detail.message
    assert caught.value.detail.hint
    assert len(caught.value.detail.message) < 400


def test_the_example_of_the_design() -> None:
    expression = parse("(ml/** | eng/backend/image-processing) & !ml/interns")
    covers = {
        role: expression.covers(role)
        for role in ("ml", "ml/train", "ml/interns", "ml/interns/x", "eng", "eng/backend/image-processing/a", "mlx")
    }
    assert [role for role, is_covered in covers.items() if is_covered] == ["ml/train", "eng/backend/image-processing/a"]


def test_groups_are_looked_up_when_asked() -> None:
    expression = parse("@g & !@out")
    assert not expression.covers("ml")
    assert expression.covers("ml/a", {"g": parse("ml")})
    assert not expression.covers("ml/a", {"g": parse("ml"), "out": parse("ml/a")})
    assert expression.covers("ml/a", {"g": parse("@h"), "h": parse("=ml/a")})
    assert reached_groups(expression, {"g": parse("@h | @i"), "h": parse("@i")}) == {"g", "out", "h", "i"}


def test_groups_that_name_each_other_in_circles_end() -> None:
    groups = {"g": parse("@h | a"), "h": parse("@g | b")}
    assert groups_problem(groups) == "role groups name each other in a circle: g → h → g"
    assert parse("@g").covers("a", groups) and parse("@g").covers("b", groups) and not parse("@g").covers("c", groups)
    assert groups_problem({"g": parse("a | @g")})


def test_groups_may_be_nested_only_so_deep() -> None:
    groups = {f"g{index}": parse(f"@g{index + 1}") for index in range(MAX_NESTING - 1)}
    groups[f"g{MAX_NESTING - 1}"] = parse("a")
    assert groups_problem(groups) is None and parse("@g0").covers("a", groups)
    deeper = groups | {"a": parse("@g0")}
    assert "deep" in str(groups_problem(deeper))
    assert "deep" in str(groups_problem({"z" if name == "a" else name: group for name, group in deeper.items()}))


def test_cost_counts_each_group_once() -> None:
    groups = {"g": parse("a | b | c"), "h": parse("@g | @g & x")}
    assert parse("a").cost() == 1
    assert parse("@g").cost(groups) == 1 + 4
    assert parse("@g | @h").cost(groups) == 3 + 4 + groups["h"].cost()
    large = union([role_expression(f"role{index}") for index in range(MAX_COST)])
    assert parse("@large").cost({"large": large}) > MAX_COST


@given(st.text(min_size=1, max_size=12).filter(lambda role: role != "*" and role_problem(role) is None))
def test_every_role_can_be_a_holder(role: str) -> None:
    holder = holder_of(role)
    assert plain_holder(holder) == role and holder_covers(holder, f"{role}/x") and str(read_holder(holder)) == holder
    assert parse(quote_role(role)) == role_expression(role)


def test_holders_that_earlier_versions_wrote() -> None:
    assert plain_holder("a@b") == "a@b"
    assert plain_holder("ml/**") is None
    with pytest.raises(InvalidText):
        read_holder("a |")


def test_names_of_groups() -> None:
    assert group_name_problem("gpu-users") is None
    for name in ("", "-a", "a/b", "a b", "x" * 64, "@a"):
        assert group_name_problem(name)
