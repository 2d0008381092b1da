"""Samples check what they read, share what is derived, and read blocks from disk."""

import h5py
import numpy as np
import pytest

from visionad_metrics import Samples, pixel_metrics
from visionad_metrics.samples import anomalous_pixels

NAMES = {
    "pixel_auroc": {},
    "pixel_ap": {},
    "pixel_f1max": {},
    "aupro": {},
    "aupro_005": {"metric": "aupro", "limit": 0.05},
    "aupimo": {"lower": 0.01, "upper": 0.3},
    "siou": {},
    "aupro_visionad": {},
}


@pytest.fixture
def masks(rng):
    masks = np.zeros((9, 24, 30), bool)
    for image in range(5):
        top, left = rng.integers(0, 20, 2)
        masks[image, top : top + 5, left : left + 6] = True
    return masks


@pytest.fixture
def maps(rng, masks):
    return (rng.normal(size=masks.shape) + masks).astype(np.float32)


def values(results):
    return {name: result.value for name, result in results.items()}


def test_several_metrics_share_one_sort(maps, masks, monkeypatch):
    from visionad_metrics import ranking

    sorts = []
    original = ranking._ascending_normal
    monkeypatch.setattr(
        ranking, "_ascending_normal", lambda *args: sorts.append(1) or original(*args)
    )
    together = pixel_metrics(maps, masks, NAMES)
    assert len(sorts) == 1
    for label, parameters in NAMES.items():
        alone = pixel_metrics(maps, masks, {label: parameters})
        assert values(alone)[label] == together[label].value


def test_names_may_be_a_list(maps, masks):
    assert values(pixel_metrics(maps, masks, ["aupro", "pixel_ap"])) == {
        name: value
        for name, value in values(pixel_metrics(maps, masks, NAMES)).items()
        if name in ("aupro", "pixel_ap")
    }


def test_blocks_do_not_show(maps, masks, monkeypatch):
    whole = values(pixel_metrics(maps, masks, NAMES))
    monkeypatch.setattr(Samples.__init__, "__defaults__", (None, None, None, None, None, 2 * 720))
    assert len(list(Samples(maps, masks).blocks())) == 5
    assert values(pixel_metrics(maps, masks, NAMES)) == pytest.approx(whole, abs=1e-15)


@pytest.mark.parametrize("form", ["hdf5", "memmap"])
def test_maps_on_disk_are_measured_in_blocks(maps, masks, tmp_path, form):
    if form == "hdf5":
        with h5py.File(tmp_path / "maps.h5", "w") as file:
            file["maps"], file["masks"] = maps, masks
        file = h5py.File(tmp_path / "maps.h5")
        on_disk = file["maps"], file["masks"]
    else:
        np.save(tmp_path / "maps.npy", maps)
        np.save(tmp_path / "masks.npy", masks)
        on_disk = (np.load(tmp_path / f"{name}.npy", mmap_mode="r") for name in ("maps", "masks"))
    assert values(pixel_metrics(*on_disk, NAMES)) == values(pixel_metrics(maps, masks, NAMES))


def test_places_of_anomalous_pixels(maps, masks):
    for block_pixels in (1, 720, 1500, 10**9):
        places = anomalous_pixels(Samples(maps, masks, block_pixels=block_pixels))
        np.testing.assert_array_equal(places, np.flatnonzero(masks))


def test_what_was_derived_is_kept(maps, masks):
    samples, calls = Samples(maps, masks), []

    def derive(given):
        calls.append(given)
        return "it"

    assert samples.once(derive) == samples.once(derive) == "it"
    assert calls == [samples]


def test_an_error_in_a_later_block_names_the_image(maps, masks):
    maps[7, 3, 4] = np.nan
    with pytest.raises(ValueError, match=r"1 of 720 values .* the first at \(7, 3, 4\)"):
        list(Samples(maps, masks, block_pixels=720).blocks())


def test_shapes_and_kinds_are_checked_before_anything_is_read(maps, masks):
    with pytest.raises(ValueError, match="maps and masks must have the same shape"):
        Samples(maps, masks[1:]).shape  # noqa: B018
    with pytest.raises(TypeError, match="maps must be integers or floats, got dtype bool"):
        Samples(masks, masks).shape  # noqa: B018
    with pytest.raises(TypeError, match=r"masks must be an array of shape \(N, H, W\), got None"):
        Samples(maps).shape  # noqa: B018


def test_torch_tensors_will_do(maps, masks):
    torch = pytest.importorskip("torch")
    tensors = torch.from_numpy(maps), torch.from_numpy(masks)
    assert values(pixel_metrics(*tensors, NAMES)) == values(pixel_metrics(maps, masks, NAMES))
