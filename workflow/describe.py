"""Write docs/algorithms/: a page per algorithm, from its docstring and its configurations.

python -m workflow.describe            write what has changed
python -m workflow.describe --check    only tell whether pages are as they should be
"""

from __future__ import annotations

import argparse
import ast
import json
import re
import sys
from pathlib import Path
from typing import Any

from tabulate import tabulate

from params.hyperparameters import registered_files
from params.reading import known_names, read_config, read_yaml
from stages.artifacts.files import remove
from workflow.fingerprint import update_text
from workflow.job import ROOT

FOLDER = Path("docs/algorithms")
VISIONAD = FOLDER / "visionad.yaml"
HEAD = "<!-- Written by `make docs` from {source} and params/algorithms/: do not edit. -->\n\n"
HEADINGS = {"Verified": "What was verified", "Note": "Differences from the paper and its code"}


def sections(docstring: str) -> dict[str, str]:
    """Split a docstring at numpy's underlined headings; what precedes them is ``""``."""
    parts = re.split(r"^(\w+)\n-{3,}\n", docstring, flags=re.MULTILINE)
    return {"": parts[0].strip()} | {
        name: text.strip() for name, text in zip(parts[1::2], parts[2::2], strict=True)
    }


def hyperparameters(source: str) -> list[tuple[str, str, str]]:
    """Name, default and comment of each field of ``Hyperparameters``, in the file's order."""
    lines = source.splitlines()
    found = []
    for node in ast.parse(source).body:
        if isinstance(node, ast.ClassDef) and node.name == "Hyperparameters":
            for field in node.body:
                if isinstance(field, ast.AnnAssign) and field.value is not None:
                    rest = lines[(field.end_lineno or field.lineno) - 1][field.end_col_offset :]
                    comment = rest.partition("#")[2].strip()
                    default = ast.unparse(field.value)
                    found.append((ast.unparse(field.target), default, comment))
    return found


def configurations(root: Path, algorithm: str) -> list[dict[str, Any]]:
    """Each YAML of an algorithm, and each of its variants, with all that it inherits."""
    folder = root / "params" / "algorithms"
    rows = []
    for name in known_names(folder):
        config = read_config(folder, name)
        if config["algorithm"] != algorithm:
            continue
        variants: dict[str, Any] = {}
        parent: str | None = name
        while parent is not None:
            data = read_yaml(folder / f"{parent}.yaml")
            variants = {**(data.get("variants") or {}), **variants}
            parent = data.get("extends")
        for variant in (None, *sorted(variants)):
            chosen = read_config(folder, name, variant)
            backbone = chosen.get("backbone") or ""
            rows.append(
                {
                    "configuration": f"`{name}`" + (f", {variant}" if variant else ""),
                    "backbone": backbone if isinstance(backbone, str) else " + ".join(backbone),
                    "layers": ", ".join(chosen.get("layers", [])),
                    "epochs": chosen.get("epochs", 1),
                    "batch": chosen.get("batch_size", 32),
                    "parameters": _inline(chosen.get("parameters", {})),
                }
            )
    return rows


def _inline(parameters: dict[str, Any]) -> str:
    # YAML's null and true, in JSON's one-line form: what one would write into the file.
    return ", ".join(f"{key}: {json.dumps(value)}" for key, value in parameters.items())


def page(root: Path, file: Path) -> str:
    """Render one algorithm's page."""
    source = file.read_text("utf-8")
    found = sections(ast.get_docstring(ast.parse(source)) or "")
    title, _, idea = found[""].partition("\n")
    name, _, subtitle = title.partition(": ")
    parts = [
        HEAD.format(source=f"algorithms/{file.name}"),
        f"# {name}\n\n",
        f"*{subtitle[:1].upper()}{subtitle[1:]}*\n\n" if subtitle else "",
        f"{idea.strip()}\n\n" if idea.strip() else "",
    ]
    for key, heading in HEADINGS.items():
        if key in found:
            parts.append(f"## {heading}\n\n{found[key]}\n\n")
    rows = hyperparameters(source)
    if rows:
        table = tabulate(
            [(f"`{one}`", f"`{default}`", comment) for one, default, comment in rows],
            headers=["hyperparameter", "default", ""],
            tablefmt="github",
        )
        parts.append(f"## Hyperparameters\n\n{table}\n\n")
    table = tabulate(configurations(root, file.stem), headers="keys", tablefmt="github")
    parts.append(
        "## Configurations\n\nThe first is the publication's; variants are what presets of that "
        f"name run.\n\n{table}\n"
    )
    return "".join(parts)


def beside_visionad(root: Path) -> str:
    """Render our publication values beside those of VisionAD's code, a section per row."""
    rows = read_yaml(root / VISIONAD)
    parts = [
        HEAD.format(source=VISIONAD.as_posix()),
        "# Parameters beside VisionAD's\n\nEvery row of the VisionAD paper's Table 2, with the "
        "publication values of our configuration (all hyperparameters, defaults among them) and "
        "those of VisionAD's code. Variants for a CPU are on the algorithms' own pages.\n",
    ]
    for name, row in rows.items():
        config = read_config(root / "params" / "algorithms", name)
        source = root / "algorithms" / f"{config['algorithm']}.py"
        defaults = {one: default for one, default, _ in hyperparameters(source.read_text("utf-8"))}
        values = {key: ast.literal_eval(value) for key, value in defaults.items()}
        backbone = config.get("backbone") or config.get("teacher") or "-"
        ours = {
            "": "ours",
            "epochs": config.get("epochs", 1),
            "batch": config.get("batch_size", 32),
            "backbone": backbone if isinstance(backbone, str) else ", ".join(backbone),
            "parameters": _inline({**values, **config.get("parameters", {})}),
        }
        table = tabulate(
            [ours, {"": "VisionAD", **row["visionad"]}],
            headers="keys",
            tablefmt="github",
            disable_numparse=True,
        )
        link = f"[{name}]({config['algorithm']}.md)"
        parts.append(f"\n## {link}\n\n{table}\n\n{row['difference']}\n")
    return "".join(parts)


def index(files: list[Path]) -> str:
    """Render the list of all algorithms."""
    rows = []
    for file in files:
        docstring = ast.get_docstring(ast.parse(file.read_text("utf-8"))) or ""
        name, _, subtitle = docstring.splitlines()[0].partition(": ")
        rows.append((f"[{file.stem}]({file.stem}.md)", name, subtitle.rstrip(".")))
    table = tabulate(rows, headers=["algorithm", "name", "idea"], tablefmt="github")
    head = HEAD.format(source="algorithms/")
    beside = "Their publication values beside VisionAD's: [parameters.md](parameters.md).\n"
    return f"{head}# Algorithms\n\n{table}\n\n{beside}"


def pages(root: Path) -> dict[Path, str]:
    """Render all pages, by path relative to the repository."""
    files = registered_files(root / "algorithms")
    rendered = {FOLDER / f"{file.stem}.md": page(root, file) for file in files}
    beside = {FOLDER / "parameters.md": beside_visionad(root)}
    return {FOLDER / "README.md": index(files), **beside, **rendered}


def main() -> None:
    """Write or check the pages."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--check", action="store_true", help="write nothing; fail if pages differ")
    arguments = parser.parse_args()
    wanted = pages(ROOT)
    there = {path.relative_to(ROOT) for path in (ROOT / FOLDER).glob("*.md")}
    if arguments.check:
        wrong = [
            str(path)
            for path in sorted(there | set(wanted))
            if path not in there or (ROOT / path).read_text("utf-8") != wanted.get(path)
        ]
        if wrong:
            sys.exit(f"error: not what the code says: {', '.join(wrong)}; run make docs")
        return
    for path, text in wanted.items():
        update_text(ROOT / path, text)
    for path in there - set(wanted):
        remove(ROOT / path)


if __name__ == "__main__":
    main()
