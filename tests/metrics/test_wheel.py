"""What is installed with ``pip install visionad-metrics``."""

import configparser
import shutil
import subprocess
import sys
import zipfile
from email.parser import Parser
from pathlib import Path

import pytest

METRICS = Path(__file__).resolve().parents[2] / "metrics"


@pytest.mark.slow
def test_the_wheel_holds_the_package_and_nothing_else(tmp_path):
    source = tmp_path / "metrics"  # building leaves folders beside the source
    left_out = shutil.ignore_patterns("*.egg-info", "build", "dist", "__pycache__")
    shutil.copytree(METRICS, source, ignore=left_out)
    subprocess.run(
        [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation",
         "--no-index", str(source), "-w", str(tmp_path)],
        check=True,
    )  # fmt: skip
    (path,) = tmp_path.glob("visionad_metrics-*-py3-none-any.whl")
    with zipfile.ZipFile(path) as wheel:
        names = wheel.namelist()
        (about,) = {name.split("/")[0] for name in names if ".dist-info/" in name}
        metadata = Parser().parsestr(wheel.read(f"{about}/METADATA").decode())
        scripts = configparser.ConfigParser()
        scripts.read_string(wheel.read(f"{about}/entry_points.txt").decode())
    package = source / "visionad_metrics"
    written = [*package.rglob("*.py"), package / "py.typed"]
    assert {name for name in names if not name.startswith(about)} == {
        file.relative_to(source).as_posix() for file in written
    }
    assert any(name.endswith("/LICENSE") for name in names)
    assert dict(scripts["console_scripts"]) == {"visionad-metrics": "visionad_metrics.command:main"}
    assert "hdf5" in metadata.get_all("Provides-Extra")
    required = [line for line in metadata.get_all("Requires-Dist") if "extra ==" not in line]
    assert sorted(required) == ["numpy", "pillow", "scikit-image", "scipy", "tifffile"]
    assert metadata.get_payload().startswith("# visionad-metrics")
