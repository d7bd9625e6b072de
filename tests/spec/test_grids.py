"""Which image, frame, row and column a visual row is: every cell of every grid, and what does not fit."""

from itertools import product

import pytest
from reroute_spec import RerouteError
from reroute_spec.grids import Grid, Place, in_prompt_order, place

LLAVA = Grid("image", 1, 24, 24)
SQUARES = [Grid("image", 1, side, side) for side in (1, 2, 6, 16, 24)]
MERGED = [Grid("image", 1, rows, columns) for rows, columns in product((1, 2, 5, 13), (1, 3, 8, 20))]
VIDEOS = [
    Grid("video", frames, rows, columns) for frames, rows, columns in product((2, 3, 7), (1, 4), (1, 6))
]


def cells(grids):
    """Every place in the order of its rows, by counting; None before the first frame of a grid with a class token."""
    found = []
    for image, grid in enumerate(grids):
        found += [None] * grid.leading
        for frame in range(grid.frames):
            for row in range(grid.rows):
                found += [Place(image, frame, row, column) for column in range(grid.columns)]
    return found


@pytest.mark.parametrize("grid", [*SQUARES, *MERGED, *VIDEOS, Grid("image", 1, 24, 24, leading=1)], ids=str)
def test_every_row_of_a_grid_has_its_cell(grid):
    assert [place([grid], index) for index in range(grid.size)] == cells([grid])


@pytest.mark.parametrize(
    "grids",
    [
        [LLAVA, LLAVA, LLAVA],
        [MERGED[3], MERGED[8], MERGED[0]],
        [VIDEOS[0], MERGED[5], VIDEOS[7], SQUARES[0]],
        [Grid("image", 1, 2, 3, leading=1), Grid("video", 2, 3, 2, leading=1)],
    ],
    ids=len,
)
def test_rows_of_several_images_and_videos_follow_each_other(grids):
    expected = cells(grids)
    assert len(expected) == sum(grid.size for grid in grids)
    assert [place(grids, index) for index in range(len(expected))] == expected


@pytest.mark.parametrize(
    ("ordinal", "row", "column"), [(0, 0, 0), (23, 0, 23), (24, 1, 0), (300, 12, 12), (575, 23, 23)]
)
def test_llavas_576_patches_are_a_square(ordinal, row, column):
    assert place([LLAVA], ordinal) == Place(0, 0, row, column)


def test_columns_are_not_rows():
    wide = Grid("image", 1, 2, 5)  # grid_thw (1, 4, 10), merged by 2
    assert place([wide], 5) == Place(0, 0, 1, 0)
    assert place([wide], 4) == Place(0, 0, 0, 4)


@pytest.mark.parametrize("index", [-1, 12, 100])
def test_a_row_that_there_is_not_is_refused(index):
    with pytest.raises(RerouteError, match=f"index: {index} of 12 rows"):
        place([Grid("image", 1, 3, 4)], index)


IMAGE, VIDEO, WORD = 7, 8, 1
TWO, SIX, CLIP = Grid("image", 1, 1, 2), Grid("image", 1, 2, 3), Grid("video", 2, 1, 2)


@pytest.mark.parametrize(
    ("ids", "media", "expected"),
    [
        ([[WORD, WORD]], {}, [[]]),
        ([[WORD, *[IMAGE] * 6, WORD]], {IMAGE: [SIX]}, [[SIX]]),
        ([[*[IMAGE] * 8]], {IMAGE: [TWO, SIX]}, [[TWO, SIX]]),  # they touch
        ([[VIDEO, VIDEO, WORD, VIDEO, VIDEO]], {VIDEO: [CLIP]}, [[CLIP]]),  # a timestamp within
        ([[*[VIDEO] * 4, IMAGE, IMAGE]], {IMAGE: [TWO], VIDEO: [CLIP]}, [[CLIP, TWO]]),
        ([[IMAGE, IMAGE], [WORD], [*[IMAGE] * 6]], {IMAGE: [TWO, SIX]}, [[TWO], [], [SIX]]),
        ([[IMAGE, IMAGE]], {IMAGE: [SIX]}, None),  # ends within
        ([[IMAGE, IMAGE]], {IMAGE: []}, None),
        ([[WORD]], {IMAGE: [TWO]}, None),  # shows it nowhere
    ],
)
def test_images_are_found_by_their_counts(ids, media, expected):
    assert in_prompt_order(ids, media) == expected
