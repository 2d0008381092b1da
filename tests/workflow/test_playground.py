"""The playground: its numbers are the pipeline's, and it leaves no trace."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from params.reading import ParamsError
from stages.artifacts.files import read_json
from stages.artifacts.maps import read_maps
from stages.viewing import Category
from tests.workflow.mini_repository import Repository, do, make_repository
from tests.workflow.running import succeeds
from tests.workflow.test_drafts import CELL, run_cell
from workflow.drafts import Draft, DraftError, draft, save
from workflow.playground import (
    WORKSHOP,
    _absolute,
    _datasets,
    _reason,
    _title,
    category,
    evaluate,
)

NAME = "folder/bolt"


@pytest.fixture
def repository(tmp_path: Path) -> Repository:
    return make_repository(tmp_path / "repository", ["bolt"])


@pytest.fixture(scope="module")
def bolt(tmp_path_factory: pytest.TempPathFactory) -> Category:
    """A category, for tests that leave its repository as it is."""
    folder = tmp_path_factory.mktemp("shared")
    repository = make_repository(folder / "repository", ["bolt"])
    repository.edit("presets/tiny.yaml", pipeline={"store_gb": 1})
    return category(NAME, root=repository.root)


def written(repository: Repository, name: str) -> dict[str, float]:
    """Values in the metrics' files."""
    values = {}
    for path in (repository.root / f"results/metrics/{name}/{NAME}/seed0").glob("*.json"):
        if path.stem != "provenance":
            (values[path.stem],) = (
                one["value"]
                for one in read_json(path)["values"]
                if one["primary"] and one["defect_type"] == "all"
            )
    return values


def files(folder: Path) -> set[Path]:
    return {path for path in folder.rglob("*") if path.is_file() and ".plan" not in path.parts}


def test_numbers_are_those_of_the_stages(
    repository: Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = files(repository.root)
    bolt = category(NAME, root=repository.root)
    assert dict(bolt.counts().groupby("split")["images"].sum()) == {"train": 12, "test": 12}
    result = evaluate("padim", bolt, threads=1)
    new = {path for path in files(repository.root) - before if "__pycache__" not in path.parts}
    assert not new, "the repository stays as it was"
    repository.write_plan(algorithms=["padim"])
    monkeypatch.chdir(repository.root)
    stages = (f"{stage}/padim/{NAME}/seed0" for stage in ("train", "predict", "evaluate"))
    do("index/folder/bolt", f"features/tiny/{NAME}", *stages)
    assert result.metrics == written(repository, "padim")
    assert set(result.metrics) == {"image_auroc", "pixel_auroc", "aupro", "pl"}
    maps = read_maps(Path(f"results/maps/padim/{NAME}/seed0.h5"), "mahalanobis")
    np.testing.assert_array_equal(result.maps, maps)


def test_draft_is_worth_what_its_saved_file_is(repository: Repository) -> None:
    repository.edit("presets/tiny.yaml", pipeline={"store_gb": 1})
    bolt = category(NAME, root=repository.root)
    made = draft(run_cell(CELL), parameters={"gain": 3.0})
    result = evaluate(made, bolt, threads=1)
    assert result.algorithm == "loud_pixels"
    assert 0 <= result.metrics["image_auroc"] <= 1
    with pytest.raises(ParamsError, match=r"no file .*loud_pixels\.yaml"):
        repository.plan(algorithms=["loud_pixels"])
    save(made, repository.root)
    plan = repository.plan(algorithms=["loud_pixels"])
    for stage in ("train", "predict", "evaluate"):
        job = f"{stage}/loud_pixels/{NAME}/seed0"
        assert job in plan.restorable, "what was computed here is taken over there"
    shutil.rmtree(repository.root / ".store")
    target = plan.jobs[job].outputs["provenance"]
    succeeds(repository.snakemake(target, config=("algorithms=[loud_pixels]",)))
    assert written(repository, "loud_pixels") == result.metrics


def test_draft_goes_before_a_file_of_its_name_and_leaves_it_alone(bolt: Category) -> None:
    made = draft(run_cell(CELL), name="random")
    source = (bolt.repository / "algorithms" / "random.py").read_text()
    loud, noise = evaluate(made, bolt), evaluate("random", bolt)
    assert loud.maps.std() != noise.maps.std()
    assert (bolt.repository / "algorithms" / "random.py").read_text() == source


def test_failure_shows_the_draft_s_line_and_what_it_printed(
    bolt: Category, capsys: pytest.CaptureFixture[str]
) -> None:
    text = CELL.replace("maps = SCALE", 'print("so far")\n        maps = helper() * SCALE')
    with pytest.raises(DraftError) as failed:
        evaluate(draft(run_cell(text)), bolt)
    assert "algorithms/loud_pixels.py" in str(failed.value)
    assert "NameError: name 'helper' is not defined" in str(failed.value)
    assert "so far" in capsys.readouterr().out


def test_prediction_that_is_none_is_named(bolt: Category) -> None:
    text = CELL.replace("maps = SCALE", "maps = torch.nan")
    with pytest.raises(DraftError, match="predict: .*not finite"):
        evaluate(draft(run_cell(text)), bolt)


def test_wrong_names_are_told(bolt: Category) -> None:
    with pytest.raises(ParamsError, match="no category screw; .*bolt"):
        category("folder/screw", root=bolt.repository)
    with pytest.raises(ParamsError, match="did you mean padim"):
        evaluate("padin", bolt)
    with pytest.raises(ParamsError, match="gian: unknown key; did you mean gain"):
        evaluate(draft(run_cell(CELL), parameters={"gian": 3.0}), bolt)


def test_edited_cell_is_read_anew(bolt: Category) -> None:
    made = draft(run_cell(CELL), parameters={"louder": 3.0})
    with pytest.raises(ParamsError, match="louder: unknown key"):
        evaluate(made, bolt)
    edited = made.source.replace("gain: float", "louder: float").replace('"images"', '"features"')
    with pytest.raises(ParamsError, match="reads features: give backbone and layers"):
        evaluate(Draft(made.name, edited, made.configuration), bolt)


def test_workshop_holds_links_only(bolt: Category) -> None:
    place = bolt.repository / WORKSHOP
    for link in ("stages", "metrics", "algorithms/padim.py", "params/algorithms/padim.yaml"):
        assert (place / link).is_symlink()
        assert (place / link).resolve() == (bolt.repository / link).resolve()


@pytest.mark.parametrize(
    ("needs", "listed", "expected"),
    [
        (["validation"], {"demo": "all"}, {"folder": ["bolt"]}),
        (["teacher"], {"demo": "all"}, {"demo": "all", "folder": ["bolt"]}),
        (["outside"], {"folder": "all"}, {"folder": "all"}),
        (["outside"], {"folder": ["nut"]}, {"folder": ["nut", "bolt"]}),
        (["outside"], {"folder": ["bolt", "nut"]}, {"folder": ["bolt", "nut"]}),
    ],
)
def test_who_sees_other_images_sees_those_of_the_run(
    needs: list[str], listed: dict[str, Any], expected: dict[str, Any]
) -> None:
    assert _datasets(listed, "folder", "bolt", needs) == expected


def test_folders_elsewhere_are_found_from_the_workshop(repository: Repository) -> None:
    made = _absolute(repository.root, {"preset": "tiny", "textures": "../dtd"})
    assert made["roots"] == {"folder": str(repository.images)}
    assert made["textures"] == str(repository.root.parent / "dtd")
    assert made["preset"] == "tiny"
    assert "pretraining_images" not in made


@pytest.mark.parametrize(
    ("message", "reason"),
    [
        ("AssertionError: maps/coin\nassert b'1' == b'2'\n  At index 0", "maps/coin"),
        ("AssertionError: \nNot equal\nmaps/coin\nMismatched: 3", "Not equal; maps/coin"),
        ("assert tensor(False)\n +  where tensor(False) = 0x7f", "assert tensor(False)"),
        ("ValueError: too few", "ValueError: too few"),
        ("", ""),
    ],
)
def test_failures_of_the_contract_are_said_in_a_line(message: str, reason: str) -> None:
    assert _reason(message) == reason


def test_contract_s_tests_are_named_without_the_draft() -> None:
    assert _title("test_the_batch[1-coin]", "coin") == "the batch (1)"
    assert _title("test_output[coin]", "coin") == "output"
