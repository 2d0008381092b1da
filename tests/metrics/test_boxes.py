"""Boxes of anomalies: which pixels they hold, what merges, and the cells between them."""

import sys

import numpy as np
import pytest

from visionad_metrics import pl
from visionad_metrics.boxes import given_runs, nearest_box
from visionad_metrics.boxes_compatible import by_region
from visionad_metrics.localisation_options import Options
from visionad_metrics.localisation_overlaps import find_boxes
from visionad_metrics.regions import find_runs
from visionad_metrics.samples import Samples


def boxes_of(mask, **options):
    """Boxes of one mask (H, W)."""
    mask = np.asarray(mask)
    runs = find_runs(Samples(np.zeros((1, *mask.shape)), mask[None]))
    return find_boxes(by_region(runs), mask.shape, Options(**options))


def boxes_given(*boxes, shape=(256, 256), **options):
    return find_boxes(given_runs([boxes], (1, *shape)), shape, Options(**options))


def window(box):
    """Edges (top, left, bottom, right) of what the box fills."""
    assert box.fill.all()
    (rows, columns) = box.window
    return rows.start, columns.start, rows.stop, columns.stop


def rectangle(top, left, bottom, right, shape=(256, 256)):
    mask = np.zeros(shape, bool)
    mask[top:bottom, left:right] = True
    return mask


class TestAxis:
    @pytest.mark.parametrize(
        ("pixels", "expected"),
        [
            # large enough: as it is
            ((100, 50, 140, 110), (100, 50, 140, 110)),
            # 40 rows stay; 4 columns, centre 52, become 32 = 256 / 8 from 52 - 16
            ((100, 50, 140, 54), (100, 36, 140, 68)),
            # one pixel, centre 100.5, sides 32: the interval [84.5, 116.5) holds the centres
            # 84.5 ... 115.5, so pixels 84 ... 115
            ((100, 100, 101, 101), (84, 84, 116, 116)),
            # centre 5.5: [-10.5, 21.5) is cut to pixels 0 ... 20
            ((5, 5, 6, 6), (0, 0, 21, 21)),
            # centre 255.5: [239.5, 271.5) is cut to pixels 239 ... 255
            ((255, 0, 256, 256), (239, 0, 256, 256)),
        ],
    )
    def test_pixels(self, pixels, expected):
        (box,) = boxes_of(rectangle(*pixels))
        assert window(box) == expected
        assert box.size == (expected[2] - expected[0]) * (expected[3] - expected[1])

    def test_each_side_grows_to_a_share_of_its_own_dimension(self):
        # least sides: 48 / 8 = 6 rows, 100 / 8 = 12.5 columns; the pixel's centre is (20.5, 30.5).
        # Rows: [17.5, 23.5) holds centres 17.5 ... 22.5; columns: [24.25, 36.75) 24.5 ... 36.5.
        (box,) = boxes_of(rectangle(20, 30, 21, 31, shape=(48, 100)))
        assert window(box) == (17, 24, 23, 37)
        (box,) = boxes_of(rectangle(20, 30, 21, 31, shape=(48, 100)), min_side=1 / 2)
        assert window(box) == (8, 5, 32, 55)  # 24 from 20.5 - 12 = 8.5, 50 from 30.5 - 25 = 5.5

    def test_corners_and_centre_are_not_cut(self):
        (box,) = boxes_of(rectangle(5, 100, 6, 140))
        # x: pixels 100 ... 139 reach from 99.5 to 139.5; y: 5 - 16 and 5 + 16
        assert box.corners.tolist() == [[99.5, -11], [139.5, -11], [139.5, 21], [99.5, 21]]
        assert box.centre.tolist() == [119.5, 5.0]
        assert box.sides.tolist() == [40.0, 32.0]

    def test_one_box_for_each_region_touching_diagonally_is_one(self):
        mask = rectangle(10, 10, 60, 60) | rectangle(60, 60, 100, 100) | rectangle(200, 5, 240, 45)
        assert [window(box) for box in boxes_of(mask)] == [(10, 10, 100, 100), (200, 5, 240, 45)]


class TestVisionad:
    def test_grown_side_is_32_pixels_and_clamped_to_the_image(self):
        (box,) = boxes_of(rectangle(100, 100, 101, 101), box="visionad")
        assert window(box) == (84, 84, 116, 116)
        # centre 5: from -11, cut to 0, to 21
        (box,) = boxes_of(rectangle(5, 5, 6, 6), box="visionad")
        assert window(box) == (0, 0, 21, 21)

    def test_leaves_out_its_last_row_and_column_but_not_the_region(self):
        # An L: column 50 of rows 100 ... 139, and row 139 of columns 50 ... 89. The slices hold
        # 39 * 39 = 1521 pixels; the region adds row 139, 40 pixels. The axis box has 40 * 40.
        mask = rectangle(100, 50, 140, 51) | rectangle(139, 50, 140, 90)
        (box,) = boxes_of(mask, box="visionad")
        assert box.size == 1561
        assert boxes_of(mask)[0].size == 1600
        assert box.mask((256, 256))[mask].all()

    def test_a_side_counts_as_one_pixel_less(self):
        # 32 pixels are a width of 31 < 32: it grows, to 32 from (100 + 131) / 2 - 16 = 99.5
        (box,) = boxes_of(rectangle(100, 100, 132, 132), box="visionad")
        assert box.size == 32 * 32 + 32 + 31  # pixels 99 ... 130, and the region's last ones
        assert boxes_of(rectangle(100, 100, 132, 132))[0].size == 1024


class TestRotated:
    @pytest.fixture(autouse=True)
    def _libraries(self):
        pytest.importorskip("cv2")

    @pytest.mark.parametrize(
        ("pixels", "size"),
        [
            ((100, 50, 161, 91), 2501),  # 41 x 61 pixels: sides 40 and 60, outline drawn
            ((100, 100, 101, 101), 1089),  # grown to 32 x 32: 33 x 33 pixels
            ((0, 0, 1, 1), 289),  # cut to 17 x 17 pixels
        ],
    )
    def test_sizes_of_the_package(self, pixels, size):
        (box,) = boxes_of(rectangle(*pixels), box="rotated")
        assert box.size == size

    def test_a_slanted_bar_gets_a_slanted_box(self):
        steps = np.arange(100)
        mask = np.zeros((256, 256), bool)
        mask[50 + steps, 50 + steps] = True
        (box,) = boxes_of(mask, box="rotated")
        # The diagonal of 99 steps is 140 long; the other side grows to 32.
        assert sorted(box.sides) == pytest.approx([32, 99 * 2**0.5])
        assert box.centre == pytest.approx([99.5, 99.5])
        assert box.size < 0.5 * boxes_of(mask)[0].size
        edges = np.linalg.norm(box.corners - np.roll(box.corners, 1, axis=0), axis=1)
        assert sorted(edges) == pytest.approx([32, 32, 99 * 2**0.5, 99 * 2**0.5])

    def test_corners_are_cut_to_whole_pixels_as_by_the_package(self):
        y, x = np.indices((256, 256)) - np.array([90, 120])[:, None, None]
        mask = (abs(3 * x + 5 * y) <= 120) & (abs(3 * y - 5 * x) <= 300)
        (box,) = boxes_of(mask, box="rotated")
        assert box.size == 4406  # the package 0.1.3; 4353 with rounded corners

    @pytest.mark.parametrize(
        ("pixels", "size"),
        [
            # 128 x 256: a lying bar grows to 128 / 8 = 16 rows (17 drawn), a standing one to
            # 256 / 8 = 32 columns (33 drawn)
            ((60, 50, 63, 151), 17 * 101),
            ((20, 100, 101, 103), 81 * 33),
        ],
    )
    def test_each_side_grows_to_a_share_of_the_dimension_along_it(self, pixels, size):
        (box,) = boxes_of(rectangle(*pixels, shape=(128, 256)), box="rotated")
        assert box.size == size

    @pytest.mark.parametrize("missing", ["cv2", "shapely"])
    def test_a_missing_library_is_named(self, monkeypatch, missing):
        monkeypatch.setitem(sys.modules, missing, None)
        mask = rectangle(10, 10, 30, 30) | rectangle(10, 40, 30, 60)
        with pytest.raises(
            ImportError, match=rf"need {missing}: pip install 'visionad-metrics\[rotated\]'"
        ):
            boxes_of(mask, box="rotated", merge=True)
        assert len(boxes_of(mask, box="axis", merge=True)) == 2  # needs neither


class TestMerging:
    @pytest.mark.parametrize("kind", ["axis", "rotated"])
    @pytest.mark.parametrize(("gap", "count"), [(1, 1), (2, 2), (40, 2)])
    def test_squares_merge_when_their_grown_boxes_overlap_by_a_third(self, kind, gap, count):
        # Grown to 32, boxes 20 + gap apart share 12 - gap columns of 32: 0.34 or 0.31.
        if kind == "rotated":
            pytest.importorskip("cv2")
            pytest.importorskip("shapely")
        mask = rectangle(100, 100, 120, 120) | rectangle(100, 120 + gap, 120, 140 + gap)
        assert len(boxes_of(mask, box=kind, merge=True)) == count
        assert len(boxes_of(mask, box=kind, merge=False)) == 2

    def test_the_regions_not_their_boxes_are_united(self):
        mask = rectangle(100, 100, 120, 120) | rectangle(100, 121, 120, 141)
        (box,) = boxes_of(mask, merge=True)
        assert window(box) == (94, 100, 126, 141)  # 41 columns as they are, 20 rows grown to 32

    def test_two_passes(self):
        # b overlaps a by 30 * 35 = 1050 of a's 2400 pixels: pass one makes ab = (24, 20, 104, 120).
        a, b = (24, 20, 84, 60), (54, 25, 104, 120)
        # c shares 10 * 40 = 400 of its 2560 pixels with b, but 40 * 40 = 1600 with ab: pass two.
        c = (0, 70, 64, 110)
        # d shares 8 of its 32 rows with a and ab, all with abc: there is no pass three.
        d = (0, 20, 32, 52)
        merged = boxes_given(a, b, c, d, merge=True)
        assert [window(box) for box in merged] == [(0, 20, 104, 120), (0, 20, 32, 52)]

    def test_the_smaller_box_has_the_smaller_sum_of_sides(self):
        # 32 x 100 = 3200 pixels, sum 132; 60 x 60 = 3600 pixels, sum 120. They share 32 * 35 =
        # 1120: 0.35 of the smaller area, yet 0.311 of the smaller by sum.
        pair = (0, 0, 32, 100), (0, 65, 60, 125)
        assert len(boxes_given(*pair, merge=True)) == 2
        assert len(boxes_given(*pair, merge=True, overlap_limit=0.31)) == 1

    def test_the_limit_itself_does_not_merge(self):
        pair = (0, 0, 60, 60), (40, 0, 100, 60)  # 20 of 60 rows
        assert len(boxes_given(*pair, merge=True)) == 2
        assert len(boxes_given(*pair, merge=True, overlap_limit=0.333)) == 1

    def test_images_stay_apart(self):
        runs = given_runs([[(0, 0, 50, 50)], [(0, 0, 50, 50)]], (2, 256, 256))
        assert [box.image for box in find_boxes(runs, (256, 256), Options(merge=True))] == [0, 1]

    def test_merged_groups_keep_the_order_of_their_first(self):
        far = (200, 200, 250, 250)
        found = boxes_given((0, 0, 50, 50), far, (10, 0, 60, 50), (100, 0, 150, 50), merge=True)
        assert [window(box) for box in found] == [(0, 0, 60, 50), far, (100, 0, 150, 50)]


class TestCells:
    def test_nearest_centre_the_first_on_ties(self):
        # Centres in columns 1 and 5 of one row: column 3 is as far from both.
        boxes = boxes_given((1, 1, 2, 2), (1, 5, 2, 6), shape=(3, 8))
        assert nearest_box(boxes, (3, 8)).tolist() == [[0, 0, 0, 0, 1, 1, 1, 1]] * 3

    @pytest.mark.parametrize(
        ("other", "nearest"),
        [
            ((3, 3), 1),  # 3^2 + 3^2 = 18 < 5^2, though 3 + 3 > 5
            ((4, 4), 0),  # 4^2 + 4^2 = 32 > 5^2, though max(4, 4) < 5
        ],
    )
    def test_distance_is_euclidean(self, other, nearest):
        row, column = other
        boxes = boxes_given((0, 5, 1, 6), (row, column, row + 1, column + 1), shape=(8, 8))
        assert nearest_box(boxes, (8, 8))[0, 0] == nearest

    def test_without_a_box(self):
        assert not nearest_box([], (2, 3)).any()


class TestGiven:
    maps = np.zeros((2, 256, 256))

    def test_agrees_with_the_masks_of_the_boxes(self, rng):
        maps = rng.normal(size=(3, 64, 40))
        masks = np.zeros(maps.shape, bool)
        masks[0, 5:9, 30:40] = masks[2, 0:20, 3:5] = masks[2, 50:64, 20:30] = True
        boxes = [[(5, 30, 9, 40)], [], np.array([[0, 3, 20, 5], [50, 20, 64, 30]])]
        for kind in ("axis", "visionad"):
            expected = pl(maps, masks, box=kind)
            found = pl(maps, None, boxes=boxes, box=kind)
            np.testing.assert_array_equal(found.ious, expected.ious)
            assert found.images.tolist() == [0, 2, 2]

    def test_they_may_overlap_and_stand_in_for_masks(self):
        boxes = [[], [(0, 0, 50, 50), (10, 10, 90, 90)]]
        found = pl(self.maps, np.ones(self.maps.shape), boxes=boxes)
        assert [window(box) for box in found.boxes] == [(0, 0, 50, 50), (10, 10, 90, 90)]

    def test_none_at_all_is_undefined(self):
        assert pl(self.maps, None, boxes=[[], []]).reason == "no box"

    @pytest.mark.parametrize(
        ("boxes", "message"),
        [
            ([[]], "boxes must have one entry per image: 2 images, 1 given"),
            ([[], None], r"boxes\[1\] must be a sequence of boxes, got None"),
            (
                [[], [(0, 0, 257, 5)]],
                r"boxes\[1\]\[0\] .* 0 <= top < bottom <= 256 .* got \(0, 0, 257, 5\)",
            ),
            ([[(0, 0, 4, 4), (4, 0, 4, 9)], []], r"boxes\[0\]\[1\] .* top < bottom"),
            ([[(0, -1, 4, 4)], []], r"boxes\[0\]\[0\] .* 0 <= left"),
            ([[(0, 0, 4, 4.5)], []], "whole pixels"),
            ([[(0, 0, 4, np.nan)], []], "whole pixels"),
            ([[(0, 0, 4)], []], r"\(top, left, bottom, right\)"),
            ([[("0", "0", "4", "4")], []], r"\(top, left, bottom, right\)"),
            ([(0, 0, 4, 4), []], r"boxes\[0\]\[0\] .* got 0"),
        ],
    )
    def test_errors_say_which_box(self, boxes, message):
        with pytest.raises(ValueError, match=message):
            pl(self.maps, None, boxes=boxes)
