"""The memory forecast against published figures, and the page that shows it."""

from __future__ import annotations

import pytest

from tests.decide.forecast.accuracy import GROUPS, PAGE, Row, groups, left_out, median_error, page_with_table, rows

ALL = rows()


def test_rows_are_many_and_each_has_its_source_and_use() -> None:
    assert len(ALL) > 200
    assert len({row.name + row.source for row in ALL}) == len(ALL)
    assert {row.use for row in ALL} == {"calibration", "blind"}
    assert all(row.source and row.measured_gb > 0 for row in ALL)


MEASURED = {name: some for name, some in groups(ALL).items() if not name.endswith(GROUPS["bound"])}


@pytest.mark.parametrize(("name", "some"), MEASURED.items(), ids=MEASURED)
def test_the_median_error_is_at_most_ten_percent(name: str, some: list[Row]) -> None:
    assert median_error(some) <= 0.10, name


@pytest.mark.parametrize("row", [row for row in ALL if row.group == "bound"], ids=lambda row: row.name)
def test_tensors_never_need_more_than_an_allocator_has_reserved(row: Row) -> None:
    assert row.error < 0


@pytest.mark.parametrize("row", [row for row in ALL if row.group != "bound"], ids=lambda row: row.name)
def test_no_row_is_too_low_by_more_than_five_percent(row: Row) -> None:
    assert row.error >= -0.05


def test_what_is_in_no_row_has_a_reason() -> None:
    assert left_out()
    assert all(left_out().values())


def test_what_is_refused_is_beyond_the_largest_overestimate_of_these_rows() -> None:
    from finetune_operator.planner.fit import LARGEST_OVERESTIMATE

    assert max(row.error for row in ALL if row.group == "runner") <= LARGEST_OVERESTIMATE


def test_nothing_that_ran_in_parts_would_have_been_refused() -> None:
    """Of a sharded row what tensors need at least, over the margin, is below what was measured."""
    from finetune_operator.planner.fit import LARGEST_OVERESTIMATE

    for row in ALL:
        if row.group == "sharded" and "after loading" not in row.name:
            assert row.least_gb / (1 + LARGEST_OVERESTIMATE) <= row.measured_gb, row.name


def test_the_benchmarks_page_shows_what_is_computed() -> None:
    from benchmarks.forecast_error import RESULT, report

    assert RESULT.read_text(encoding="utf-8") == report(ALL), "run `python -m benchmarks.forecast_error`"


def test_the_page_shows_what_is_computed() -> None:
    text = PAGE.read_text(encoding="utf-8")
    assert page_with_table(text) == text, "run `python -m tests.decide.forecast.accuracy`"
