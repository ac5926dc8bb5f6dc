"""Reads a page's data as its script does, written apart from what packs it."""

import base64
import json
import re

import numpy as np


def json_in(page, id_):
    return json.loads(re.search(rf'id="{id_}">(.*?)</script>', page, re.DOTALL).group(1))


def figures_in(page):
    return with_arrays(json_in(page, "figures"), json_in(page, "arrays"))


def data_in(page):
    return with_arrays(json_in(page, "data"), json_in(page, "arrays"))


def with_arrays(value, arrays):
    """The value, with numpy arrays for references to packed ones."""
    if isinstance(value, list):
        return [with_arrays(one, arrays) for one in value]
    if not isinstance(value, dict):
        return value
    if value.keys() == {"array"}:
        return unpacked(arrays[value["array"]])
    return {key: with_arrays(one, arrays) for key, one in value.items()}


def unpacked(packed):
    numbers = np.frombuffer(base64.b64decode(packed["bdata"]), "<" + packed["dtype"])
    if "step" not in packed:
        return numbers
    return (packed["offset"] + packed["step"] * numbers.astype(float)) / packed["scale"]


def own_text(page):
    """The page without plotly's script, which is full of words."""
    start = page.index("/**\n* plotly.js v")
    return page[:start] + page[page.index("</script>", start) :]
