"""Text and instructions: named sources, cleaned and packed into windows of tokens."""

from shearfx.data.documents import Source, from_records, open_source
from shearfx.data.naming import distinct
from shearfx.data.packing import IGNORED, Examples, hold_out, pack
from shearfx.data.records import Kind

__all__ = ["IGNORED", "Examples", "Kind", "Source", "distinct", "from_records", "hold_out", "open_source", "pack"]
