"""`write_report`: a run's folder in, report.md and report.html out. Reads nothing but the folder."""

from __future__ import annotations

import os
from pathlib import Path

from lifecycle.errors import UserError
from lifecycle.report.canvas import DARK, LIGHT
from lifecycle.report.pictures import draw
from lifecycle.report.read import read_run
from lifecycle.report.render import to_html, to_markdown
from lifecycle.report.sections import sections, title

PICTURES = "report"


def write_report(run_folder: Path | str) -> Path:
    """Write report.md (its pictures in `report/`) and report.html (whole in itself); returns the path of report.md.

    Works on a run that is not finished, too, and says what is missing. Raises UserError where there is no such folder.
    """
    folder = Path(run_folder)
    if not folder.is_dir():
        raise UserError(f"no run at {folder}: give the folder of a run, such as outputs/NAME")
    run = read_run(folder)
    light, dark = draw(run, LIGHT), draw(run, DARK)
    blocks, name = sections(run, list(light)), title(run)
    for picture, image in light.items():
        _write(folder / PICTURES / f"{picture}.png", image)
    _write(folder / "report.html", to_html(name, blocks, light, dark).encode())
    path = folder / "report.md"
    _write(path, to_markdown(name, blocks, PICTURES).encode())
    return path


def _write(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    aside.write_bytes(content)
    aside.replace(path)
