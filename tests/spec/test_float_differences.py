"""The list of budgets that the public release's floats change."""

from pathlib import Path

from reroute_spec.budget import budget
from reroute_spec.float_differences import (
    float_differences,
    preset_ratios,
    release_budget,
    to_markdown,
)

PAGE = Path(__file__).parents[2] / "spec/float-differences.md"


def test_the_page_is_what_the_generator_prints():
    assert PAGE.read_text("utf-8") == to_markdown(float_differences()), (
        "run: python -m reroute_spec.float_differences spec/float-differences.md"
    )


def test_the_known_difference_is_found():
    differences = {str(float(ratio)): rows for ratio, rows in float_differences().items()}
    assert differences["0.1392"][0] == (3125, 434, 435)


def test_no_difference_is_missed_by_looking_at_whole_products_only():
    for ratio, rows in float_differences(4096).items():
        differing = [n for n in range(1, 4097) if release_budget(ratio, n) != budget(ratio, n)]
        assert differing == [row[0] for row in rows]


def test_both_keep_a_row_where_the_floor_is_zero():
    smallest = preset_ratios()[-1]
    assert release_budget(smallest, 1) == budget(smallest, 1) == 1
