"""Prints the commands of README.md, one a line, as they stand there."""

import re
from pathlib import Path

README = Path(__file__).parents[1] / "README.md"

for command in re.findall(r"^```sh\n(.+)\n```$", README.read_text(encoding="utf-8"), re.M):
    print(command)
