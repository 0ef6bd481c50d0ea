"""A comparison written out: a table for people, CSV, JSON, and a heat map as SVG."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Mapping
from html import escape
from typing import TextIO

from wvmonitor.outputs.scan_record import Failure, finite
from wvmonitor.scan.compare import Comparison
from wvmonitor.scan.text import visible

MatrixWriter = Callable[[Comparison, Mapping[str, Failure], TextIO], None]

_CELL = 46
_FONT = 'font-family="system-ui, sans-serif"'
_READABLE_ON_DARK = 0.6


def write_matrix(comparison: Comparison, _failures: Mapping[str, Failure], out: TextIO) -> None:
    """Numbered vectors, and the matrix of their cosines."""
    cosines = comparison.cosines
    what = "all parameters" if not comparison.components else ", ".join(comparison.components)
    print(f"cosine, {comparison.geometry}, {comparison.parameters} parameters ({what})", file=out)
    for i, label in enumerate(comparison.labels):
        print(f"[{i + 1}] {visible(label)}  ‖τ‖ {comparison.norms[i]:.3g}", file=out)
    width = max(7, len(f"[{len(comparison.labels)}]") + 1)
    numbers = [f"[{i + 1}]" for i in range(len(comparison.labels))]
    print(" " * width + "".join(n.rjust(width) for n in numbers), file=out)
    for number, row in zip(numbers, cosines, strict=True):
        cells = "".join(_shown(value).rjust(width) for value in row)
        print(number.ljust(width) + cells, file=out)


def write_csv(comparison: Comparison, _failures: Mapping[str, Failure], out: TextIO) -> None:
    """A header of labels, then a row for each vector."""
    writer = csv.writer(out, lineterminator="\n")
    labels = [visible(label) for label in comparison.labels]
    writer.writerow(["vector", *labels])
    for label, row in zip(labels, comparison.cosines, strict=True):
        values = [finite(float(value)) for value in row]
        writer.writerow([label, *("" if v is None else repr(v) for v in values)])


def write_json(comparison: Comparison, failures: Mapping[str, Failure], out: TextIO) -> None:
    """Labels, norms, cosines and inner products; null where a cosine does not exist."""
    document = {
        "schema_version": 1,
        "geometry": comparison.geometry,
        "components": list(comparison.components),
        "parameters": comparison.parameters,
        "labels": list(comparison.labels),
        "norms": [float(n) for n in comparison.norms],
        "cosines": [[finite(float(v)) for v in row] for row in comparison.cosines],
        "gram": [[float(v) for v in row] for row in comparison.gram],
        "errors": {k: {"type": f.type, "message": f.message} for k, f in failures.items()},
    }
    out.write(json.dumps(document, indent=1, allow_nan=False) + "\n")


def write_svg(comparison: Comparison, _failures: Mapping[str, Failure], out: TextIO) -> None:
    """A heat map: blue for −1, white for 0, red for +1, with the numbers in its cells."""
    labels = [visible(label) for label in comparison.labels]
    count = len(labels)
    margin = 20 + 7 * min(48, max(map(len, labels), default=0))
    width, height = margin + count * _CELL + 20, 60 + count * _CELL + 20
    out.write(
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" '
        f'height="{height}" role="img" {_FONT} font-size="12">\n'
        f"<title>Cosines between {count} weight vectors ({comparison.geometry})</title>\n"
        f'<rect width="{width}" height="{height}" fill="#ffffff"/>\n'
    )
    for i, label in enumerate(labels):
        middle = _CELL * (i + 0.5)
        short = label if len(label) <= 46 else f"…{label[-45:]}"
        out.write(
            f'<text x="{margin - 8}" y="{60 + middle + 4}" text-anchor="end" fill="#222222">'
            f"<title>{escape(label)}</title>{escape(short)} [{i + 1}]</text>\n"
            f'<text x="{margin + middle}" y="50" text-anchor="middle" fill="#222222">'
            f"[{i + 1}]</text>\n"
        )
    for i, row in enumerate(comparison.cosines):
        for j, value in enumerate(row):
            x, y, number = margin + j * _CELL, 60 + i * _CELL, finite(float(value))
            colour = "#dddddd" if number is None else _colour(number)
            dark = number is not None and abs(number) > _READABLE_ON_DARK
            out.write(
                f'<rect x="{x}" y="{y}" width="{_CELL}" height="{_CELL}" fill="{colour}" '
                'stroke="#ffffff"/>'
                f'<text x="{x + _CELL / 2}" y="{y + _CELL / 2 + 4}" text-anchor="middle" '
                f'fill="{"#ffffff" if dark else "#222222"}">{_shown(number)}</text>\n'
            )
    out.write("</svg>\n")


MATRIX_WRITERS: Mapping[str, MatrixWriter] = {
    "table": write_matrix,
    "csv": write_csv,
    "json": write_json,
    "svg": write_svg,
}


def _shown(value: float | None) -> str:
    number = None if value is None else finite(float(value))
    return "–" if number is None else f"{number:.2f}".replace("-0.00", "0.00")


def _colour(cosine: float) -> str:
    strength = min(1.0, abs(cosine))
    end = (178, 24, 43) if cosine > 0 else (33, 102, 172)
    return "#" + "".join(f"{round(255 + (c - 255) * strength):02x}" for c in end)
