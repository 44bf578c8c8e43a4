"""Text and instructions: named sources, cleaned and packed into windows of tokens."""

from shearfx.data.documents import Source, from_records, open_source
from shearfx.data.packing import IGNORED, Examples, hold_out, pack

__all__ = ["IGNORED", "Examples", "Source", "from_records", "hold_out", "open_source", "pack"]
