"""``countgen export``: a picture's noise, and a script that draws it again without countgen."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro
from rich.console import Console


@dataclass(frozen=True)
class Export:
    """Take a picture along: write its noise and a short Diffusers script that draws it without countgen.

    The picture is a PNG file that countgen generate wrote. A count token becomes a textual-inversion file.

    Example: countgen export outputs/000.png
    """

    picture: Annotated[Path, tyro.conf.Positional]
    """A PNG file that countgen generate wrote."""
    out: Path | None = None
    """Folder for script and noise; by default one beside the picture, named as it is. Files of an earlier
    export are replaced."""
    json: bool = False
    """Print one JSON document instead of text."""

    def run(self, messages: Console) -> int:
        """Write the files and name them."""
        from countgen.export import export
        from countgen.files import shown
        from countgen.provenance import read

        made = read(self.picture)
        folder = self.out or self.picture.with_name(f"{self.picture.stem}-export")
        written = [shown(path) for path in export(made, folder)]
        if self.json:
            print(
                json.dumps({"picture": str(self.picture), "script": written[0], "files": written})
            )
        else:
            print("\n".join(written))
            messages.print(
                f"python {written[0]} draws the picture again, without countgen", markup=False
            )
        return 0
