"""The .rnl writer."""

from runnel.compiler.bundle.checksum import crc32c
from runnel.compiler.bundle.write import (
    ALIGNMENT,
    MANIFEST_KEYS,
    SCHEMA,
    SEGMENT_BYTES,
    manifest_text,
    program_hash,
    write_bundle,
)

__all__ = [
    "ALIGNMENT",
    "MANIFEST_KEYS",
    "SCHEMA",
    "SEGMENT_BYTES",
    "crc32c",
    "manifest_text",
    "program_hash",
    "write_bundle",
]
