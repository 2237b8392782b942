"""`write_report`: a run's folder in, report.md and report.html out. Reads nothing but the folder."""

from __future__ import annotations

from pathlib import Path

from lifecycle.errors import UserError
from lifecycle.report.page.canvas import DARK, LIGHT
from lifecycle.report.page.render import to_html, to_markdown
from lifecycle.report.run.plots import draw
from lifecycle.report.run.run_data import read_run
from lifecycle.report.run.sections import sections, title
from lifecycle.system import atomic

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
        atomic.write(folder / PICTURES / f"{picture}.png", image)
    atomic.write(folder / "report.html", to_html(name, blocks, light, dark))
    path = folder / "report.md"
    atomic.write(path, to_markdown(name, blocks, PICTURES))
    return path
