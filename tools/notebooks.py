"""Bring notebooks/ into the form in which they are stored: no outputs, no counters, plain names of cells, so that diffs are small.

python tools/notebooks.py
"""

from __future__ import annotations

from pathlib import Path

import nbformat

FOLDER = Path(__file__).resolve().parents[1] / "notebooks"
KERNEL = {
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
}


def canonical(text: str) -> str:
    """The notebook ``text`` as it is stored; one that is none raises nbformat's ``ValidationError``."""
    book = nbformat.reads(text, as_version=4)
    book.metadata = nbformat.from_dict(KERNEL)
    book.nbformat_minor = 5
    for number, cell in enumerate(book.cells, 1):
        tags = cell.metadata.get("tags")
        cell.id = f"cell-{number:02d}"
        cell.metadata = nbformat.from_dict({"tags": tags} if tags else {})
        cell.source = cell.source.strip("\n")
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
    nbformat.validate(book)
    return str(nbformat.writes(book)) + "\n"


if __name__ == "__main__":
    for path in sorted(FOLDER.glob("*.ipynb")):
        path.write_text(canonical(path.read_text(encoding="utf-8")), encoding="utf-8")
