"""The release, apart from the package itself, so that each part can name it."""

from __future__ import annotations

__version__ = "0.1.0"
