"""How every benchmark prints a figure."""

import json


def figure(name: str, value: float, bar: float | None, better: str = "higher", unit: str = "") -> None:
    """One JSON line; `bar` is what the figure has to reach, None where nothing asks for it."""
    line = {"name": name, "value": round(value, 6), "unit": unit, "bar": bar, "better": better}
    print(json.dumps(line), flush=True)
