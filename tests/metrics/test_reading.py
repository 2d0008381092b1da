"""Maps and masks from files, in every form that the command takes."""

import sys
from contextlib import ExitStack

import h5py
import numpy as np
import pytest
import tifffile
from PIL import Image

from visionad_metrics.reading import ReadingError, ResizedMaps, read_maps, read_masks
from visionad_metrics.reading.masks import find_masks

IDS = ["test/good/000", "test/scratch/000", "test/scratch/001"]


@pytest.fixture
def files():
    with ExitStack() as stack:
        yield stack


def write_mask(path, mask):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.asarray(mask, np.uint8)).save(path)


def write_map(path, one):
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".npy":
        np.save(path, one)
    elif path.suffix == ".png":
        Image.fromarray(one).save(path)
    else:
        tifffile.imwrite(path, one)


def mask_of(place, size=4):
    mask = np.zeros((size, size), np.uint8)
    mask[place] = 255
    return mask


class TestMaps:
    """Maps of each form are read as they were written."""

    @pytest.mark.parametrize("form", ["npy", "npz", "h5", "hdf5"])
    def test_array_files(self, tmp_path, files, rng, form):
        maps = rng.normal(size=(3, 4, 5))
        path = tmp_path / f"maps.{form}"
        more = {"ids": IDS, "scores": [3.0, 1.0, 2.0], "labels": [0, 1, 1]}
        if form == "npy":
            np.save(path, maps)
        elif form == "npz":
            np.savez(path, maps=maps, **more)
        else:
            with h5py.File(path, "w") as file:
                for name, values in {"maps": maps, **more}.items():
                    file[name] = values
        stored = read_maps(path, None, files)
        np.testing.assert_array_equal([stored.read(row) for row in range(3)], maps)
        np.testing.assert_array_equal(stored.maxima(), maps.max(axis=(1, 2)))
        if form == "npy":
            assert stored.ids is stored.scores is stored.labels is None
        else:
            assert stored.ids == IDS
            assert stored.scores.tolist() == [3, 1, 2]
            assert stored.labels.tolist() == [False, True, True]

    @pytest.mark.parametrize("suffix", [".tif", ".tiff", ".npy"])
    @pytest.mark.parametrize("dtype", ["float16", "float32", "float64", "uint8", "uint16"])
    def test_folder_keeps_values_and_dtype(self, tmp_path, files, rng, suffix, dtype):
        maps = (rng.normal(size=(3, 4, 5)) * 1000).clip(0, 255).astype(dtype)
        for one, array in zip(IDS, maps, strict=True):
            write_map(tmp_path / f"{one}{suffix}", array)
        (tmp_path / "test" / "good" / "notes.txt").write_text("no map")
        stored = read_maps(tmp_path, None, files)
        assert stored.ids == IDS
        read = [stored.read(row) for row in range(3)]
        np.testing.assert_array_equal(read, maps)
        assert {one.dtype for one in read} == {np.dtype(dtype)}

    @pytest.mark.parametrize("dtype", ["uint8", "uint16"])
    def test_folder_of_png_without_test(self, tmp_path, files, dtype):
        one = np.array([[0, 7], [200, np.iinfo(dtype).max]], dtype)
        write_map(tmp_path / "scratch" / "000.png", one)
        stored = read_maps(tmp_path, None, files)
        assert stored.ids == ["scratch/000"]
        np.testing.assert_array_equal(stored.read(0), one)

    def test_links_to_folders_are_followed(self, tmp_path, files):
        write_map(tmp_path / "elsewhere" / "000.npy", np.zeros((2, 2)))
        (tmp_path / "maps").mkdir()
        (tmp_path / "maps" / "good").symlink_to(tmp_path / "elsewhere")
        assert read_maps(tmp_path / "maps", None, files).ids == ["good/000"]

    def test_npy_stays_on_disk(self, tmp_path, files):
        path = tmp_path / "maps.npy"
        np.save(path, np.zeros((2, 2, 2)))
        stored = read_maps(path, None, files)
        np.lib.format.open_memmap(path, mode="r+")[1, 0, 0] = 5
        assert stored.read(1)[0, 0] == 5

    def test_resized_maps_slice_as_an_array_does(self, tmp_path, files, rng):
        path = tmp_path / "maps.npy"
        maps = rng.normal(size=(3, 4, 6))
        np.save(path, maps)
        stored = read_maps(path, None, files)
        same, half = ResizedMaps(stored, (4, 6)), ResizedMaps(stored, (2, 3))
        assert same.dtype == np.float64 and half.dtype == np.float32
        np.testing.assert_array_equal(same[1:9], maps[1:])
        assert half.shape == half[:].shape == (3, 2, 3)
        constant = np.full((1, 4, 6), 2.5)
        np.save(path, constant)
        assert (ResizedMaps(read_maps(path, None, files), (8, 7))[:] == 2.5).all()

    @pytest.mark.parametrize(
        ("arrays", "message"),
        [
            ({"maps": np.zeros((2, 3))}, r"must have shape \(N, H, W\), got \(2, 3\)"),
            ({"maps": np.zeros((0, 3, 3))}, "hold nothing"),
            ({"map": np.zeros((2, 3, 3))}, "no 'maps' in it; it holds map"),
            ({"maps": np.zeros((2, 3, 3)), "ids": ["a"]}, r"ids must have shape \(2,\)"),
            ({"maps": np.zeros((2, 3, 3)), "ids": ["a", "a"]}, "ids must be distinct"),
            ({"maps": np.zeros((2, 3, 3)), "scores": [1.0]}, r"scores must have shape \(2,\)"),
            ({"maps": np.zeros((2, 3, 3)), "scores": [1.0, np.nan]}, "scores must be finite"),
            ({"maps": np.zeros((2, 3, 3)), "labels": [0, 2]}, "labels must be bool or 0/1"),
            ({"maps": np.array([None])}, "allow_pickle"),
        ],
    )
    def test_wrong_arrays_name_the_file(self, tmp_path, files, arrays, message):
        np.savez(tmp_path / "m.npz", **arrays)
        with pytest.raises(ReadingError, match=rf"m\.npz: .*{message}"):
            read_maps(tmp_path / "m.npz", None, files)

    def test_values_that_are_no_map_name_the_image(self, tmp_path, files):
        maps = np.zeros((2, 2, 2))
        maps[1, 0, 1] = np.nan
        np.savez(tmp_path / "m.npz", maps=maps, ids=["good/a", "bad/b"])
        with pytest.raises(ReadingError, match=r"m\.npz: map bad/b must be finite.* at \(0, 1\)"):
            read_maps(tmp_path / "m.npz", None, files).maxima()
        np.save(tmp_path / "m.npy", maps > 0)
        with pytest.raises(ReadingError, match=r"map 0 must be integers or floats, got dtype bool"):
            read_maps(tmp_path / "m.npy", None, files).maxima()

    @pytest.mark.parametrize("name", ["m.npy", "m.npz", "m.h5", "f/good/0.png", "f/good/0.tif"])
    def test_damaged_files_are_named(self, tmp_path, files, name):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"PK\x03\x04 this is neither")
        with pytest.raises(ReadingError, match=path.name):
            read_maps(tmp_path / name.split("/")[0], None, files).read(0)

    @pytest.mark.parametrize(
        ("names", "message"),
        [
            ([], "no map there"),
            (["0.npy"], r"'0' should be \[test/\]<defect type>/<name>"),
            (["screw/test/good/0.npy"], "should be"),
            (["good/0.npy", "good/1.tiff"], "several formats: NumPy, TIFF"),
            (["good/0.tif", "good/0.tiff"], "two maps of one image"),
        ],
    )
    def test_folders_that_are_no_maps(self, tmp_path, files, names, message):
        for name in names:
            write_map(tmp_path / name, np.zeros((2, 2), np.float32))
        with pytest.raises(ReadingError, match=message):
            read_maps(tmp_path, None, files)

    @pytest.mark.parametrize("suffix", [".png", ".tif", ".npy"])
    def test_an_image_of_several_planes_is_no_map(self, tmp_path, files, suffix):
        write_map(tmp_path / "good" / f"0{suffix}", np.zeros((4, 5, 3), np.uint8))
        with pytest.raises(ReadingError, match=rf"0{suffix}: .*(one plane|shape \(H, W\))"):
            read_maps(tmp_path, None, files).read(0)

    def test_missing_or_unknown_files(self, tmp_path, files):
        with pytest.raises(ReadingError, match=r"none\.npy: no such file"):
            read_maps(tmp_path / "none.npy", None, files)
        (tmp_path / "maps.mat").touch()
        with pytest.raises(ReadingError, match=r"neither a folder nor \.npy, \.npz, \.h5"):
            read_maps(tmp_path / "maps.mat", None, files)

    def test_hdf5_without_h5py_says_what_to_install(self, tmp_path, files, monkeypatch):
        (tmp_path / "maps.h5").touch()
        monkeypatch.setitem(sys.modules, "h5py", None)
        with pytest.raises(ReadingError, match=r"pip install 'visionad-metrics\[hdf5\]'"):
            read_maps(tmp_path / "maps.h5", None, files)


class TestMasks:
    """Masks are found, binarised, resized and put in the order of the maps."""

    @pytest.fixture
    def maps(self, tmp_path, files):
        np.savez(tmp_path / "maps.npz", maps=np.zeros((3, 4, 4)), ids=IDS)
        return read_maps(tmp_path / "maps.npz", None, files)

    @pytest.mark.parametrize(
        "names", ["{}_mask.png", "{}.png", "{}.bmp", "{}_mask.tif", "{}/0.png"]
    )
    def test_folder(self, tmp_path, files, maps, names):
        for number, one in enumerate(["000", "001"]):
            write_mask(tmp_path / "truth" / "scratch" / names.format(one), mask_of(number))
        masks, defective = read_masks(tmp_path / "truth", maps, None, files)
        np.testing.assert_array_equal(masks, [mask_of([]) > 0, mask_of(0) > 0, mask_of(1) > 0])
        assert masks.dtype == defective.dtype == bool
        assert defective.tolist() == [False, True, True]

    def test_several_masks_of_an_image_are_united(self, tmp_path, files, maps):
        folder = tmp_path / "truth" / "scratch"
        write_mask(folder / "000" / "000.png", mask_of(0) // 255 * 234)
        write_mask(folder / "000" / "001.png", mask_of(2))
        write_mask(folder / "001.png", mask_of(1))
        masks, _ = read_masks(tmp_path / "truth", maps, None, files)
        assert masks[1].any(axis=1).tolist() == [True, False, True, False]

    @pytest.mark.parametrize("form", ["folder", "npy", "npz", "h5"])
    def test_grey_values_are_binarised_before_resizing(self, tmp_path, files, maps, form):
        stored = np.zeros((3, 4, 4), np.uint8)
        stored[1:, 0, 0] = 255  # no nearest neighbour takes it, an average would
        stored[1:, 3, 3] = 1  # taken, however dark
        path = tmp_path / f"masks.{form}"
        if form == "folder":
            for row, one in enumerate(["000", "001"], start=1):
                write_mask(path / "scratch" / f"{one}.png", stored[row])
        elif form == "npy":
            np.save(path, stored)
        elif form == "npz":
            np.savez(path, masks=stored)
        else:
            with h5py.File(path, "w") as file:
                file["masks"] = stored
        masks, defective = read_masks(path, maps, (2, 2), files)
        assert masks.tolist() == [[[False, False]] * 2, *[[[False, False], [False, True]]] * 2]
        assert defective.tolist() == [False, True, True]

    def test_a_defect_that_resizing_loses_is_still_one(self, tmp_path, files, maps):
        stored = np.zeros((3, 4, 4), bool)
        stored[2, 0, 0] = True
        np.save(tmp_path / "masks.npy", stored)
        masks, defective = read_masks(tmp_path / "masks.npy", maps, (2, 2), files)
        assert not masks.any()
        assert defective.tolist() == [False, False, True]

    def test_ids_of_both_files_are_matched(self, tmp_path, files, maps):
        stored = np.zeros((3, 4, 4), bool)
        stored[0] = True
        np.savez(tmp_path / "masks.npz", masks=stored, ids=[IDS[2], IDS[0], IDS[1]])
        _, defective = read_masks(tmp_path / "masks.npz", maps, None, files)
        assert defective.tolist() == [False, False, True]
        np.savez(tmp_path / "other.npz", masks=stored, ids=["x", *IDS[1:]])
        with pytest.raises(ReadingError, match=r"other\.npz: its ids .* e\.g\. test/good/000"):
            read_masks(tmp_path / "other.npz", maps, None, files)

    @pytest.mark.parametrize(
        ("masks", "message"),
        [
            (np.zeros((2, 4, 4)), "2 masks, but 3 maps"),
            (np.zeros((3, 4)), r"masks must have shape \(N, H, W\)"),
            (np.full((3, 4, 4), -1.0), "mask 0 must not be negative"),
            (np.full((3, 4, 4), np.nan), "mask 0 must be finite"),
            (np.full((3, 4, 4), "a"), "mask 0 must be integers or floats"),
        ],
    )
    def test_wrong_arrays(self, tmp_path, files, maps, masks, message):
        np.save(tmp_path / "masks.npy", masks)
        with pytest.raises(ReadingError, match=rf"masks\.npy: {message}"):
            read_masks(tmp_path / "masks.npy", maps, None, files)

    def test_file_without_masks(self, tmp_path, files, maps):
        with pytest.raises(ReadingError, match="no 'masks' in it; it holds maps, ids"):
            read_masks(maps.path, maps, None, files)

    def test_folder_lacks_a_mask(self, tmp_path, files, maps):
        write_mask(tmp_path / "truth" / "scratch" / "000.png", mask_of(0))
        with pytest.raises(
            ReadingError, match=r"no mask of test/scratch/001: .*truth/scratch/001_mask\.png"
        ):
            read_masks(tmp_path / "truth", maps, None, files)

    def test_folder_has_an_empty_mask(self, tmp_path, files, maps):
        for one in ("000", "001"):
            write_mask(tmp_path / "truth" / "scratch" / f"{one}.png", mask_of([]))
        with pytest.raises(ReadingError, match=r"000\.png: no anomalous pixel"):
            read_masks(tmp_path / "truth", maps, None, files)

    def test_several_sizes_need_one(self, tmp_path, files, maps):
        folder = tmp_path / "truth" / "scratch"
        write_mask(folder / "000.png", mask_of(0))
        write_mask(folder / "001.png", mask_of(0, size=8))
        with pytest.raises(ReadingError, match=r"several sizes \(4 x 4 in .*8 x 8 .*--size 256"):
            read_masks(tmp_path / "truth", maps, None, files)
        assert read_masks(tmp_path / "truth", maps, (6, 6), files)[0].shape == (3, 6, 6)

    def test_folder_needs_ids(self, tmp_path, files):
        np.save(tmp_path / "maps.npy", np.zeros((2, 4, 4)))
        maps = read_maps(tmp_path / "maps.npy", None, files)
        with pytest.raises(ReadingError, match=r"maps\.npy: without ids"):
            read_masks(tmp_path, maps, None, files)

    @pytest.mark.parametrize("one", ["good/0", "test/good/0", "ok/0", "Normal/0"])
    def test_good_images_have_none(self, tmp_path, one):
        assert find_masks(tmp_path, one) == []

    @pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "RGBA", "LA", "I;16"])
    def test_modes_of_mask_images(self, tmp_path, files, maps, mode):
        image = Image.fromarray(mask_of(0))
        image = (
            Image.fromarray(mask_of(0).astype(np.uint16)) if mode == "I;16" else image.convert(mode)
        )
        (tmp_path / "truth" / "scratch").mkdir(parents=True)
        for one in ("000", "001"):
            image.save(tmp_path / "truth" / "scratch" / f"{one}.png")
        masks, _ = read_masks(tmp_path / "truth", maps, None, files)
        np.testing.assert_array_equal(masks[1], mask_of(0) > 0)

    def test_a_palette_may_number_white_zero(self, tmp_path, files, maps):
        image = Image.fromarray((mask_of(0) == 0).astype(np.uint8), "P")
        image.putpalette([255, 255, 255, 0, 0, 0])
        (tmp_path / "truth" / "scratch").mkdir(parents=True)
        for one in ("000", "001"):
            image.save(tmp_path / "truth" / "scratch" / f"{one}.png")
        masks, _ = read_masks(tmp_path / "truth", maps, None, files)
        np.testing.assert_array_equal(masks[1], mask_of(0) > 0)
