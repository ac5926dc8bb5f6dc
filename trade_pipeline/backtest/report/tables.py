"""Tables and lists as html.

A `Cell` holds html: whoever makes one escapes what is in it.
Start at `html_table`; `figures` writes what stands in it.
"""

from collections.abc import Iterable
from html import escape

Cell = tuple[str, bool]  # escaped html, and whether it is a number


def html_table(id_: str, header: list[Cell], rows: list[tuple[bool, list[Cell]]]) -> str:
    """A table that scrolls inside itself; the first cell names its row, strong rows stand out.

    Args:
        id_: of the table element.
        header: a cell a column.
        rows: whether the row stands out, and its cells.
    """
    numeric = ("", ' class="number"')
    head = "".join(f'<th scope="col"{numeric[number]}>{text}</th>' for text, number in header)
    lines = []
    for strong, (first, *rest) in rows:
        cells = "".join(f"<td{numeric[number]}>{text}</td>" for text, number in rest)
        mark = ' class="policy"' if strong else ""
        lines.append(f'<tr{mark}><th scope="row">{first[0]}</th>{cells}</tr>')
    return (
        f'<div class="scroll" tabindex="0"><table id="{id_}">'
        f"<thead><tr>{head}</tr></thead>\n<tbody>" + "\n".join(lines) + "</tbody></table></div>"
    )


def html_list(lines: Iterable[str], kind: str) -> str:
    """Lines of plain text as a list of that class; nothing where there are none."""
    items = "".join(f"<li>{escape(line)}</li>" for line in lines)
    return f'<ul class="{kind}">{items}</ul>' if items else ""


def hint(text: str) -> str:
    """Plain text set small under a chart or table."""
    return f'<p class="hint">{escape(text)}</p>'
