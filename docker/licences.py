"""One line for each package of the images, from the bills of materials that `docker buildx bake sbom` writes.

python docker/licences.py build/sbom
"""

import json
import sys
from pathlib import Path
from typing import Any


def licence(component: dict[str, Any]) -> str:
    """The licences of a component as its author states them: an SPDX expression, or the classifier's words."""
    stated = [
        entry.get("expression") or entry["license"].get("id") or entry["license"].get("name", "")
        for entry in component.get("licenses", [])
    ]
    short = {text.rpartition(":: ")[2] for text in stated if "\n" not in text and "declared license" not in text}
    if not short and any("declared license" in text for text in stated):
        return "see its licence file"
    return ", ".join(sorted(short))


def main() -> int:
    """Print name, version, licence and the flavours that have it."""
    packages: dict[tuple[str, str], tuple[str, list[str]]] = {}
    for file in sorted(Path(sys.argv[1]).glob("*.cdx.json")):
        for component in json.loads(file.read_text())["components"]:
            key = (component["name"], component["version"])
            packages.setdefault(key, (licence(component), []))[1].append(file.name.partition(".")[0])
    for (name, version), (text, flavours) in sorted(packages.items(), key=lambda item: item[0][0].lower()):
        print(f"{name:<28}{version:<14}{text or 'NOT STATED':<50}{' '.join(flavours)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
