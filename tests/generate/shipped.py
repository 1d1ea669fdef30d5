"""Where the shipped decoder lies."""

from pathlib import Path

from runnel import models

VERSE = Path(models.__path__[0]) / "verse"
