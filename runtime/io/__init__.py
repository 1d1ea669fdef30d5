"""Sources and sinks of samples, named by URI."""

from runnel.runtime.io.uri import Sink, Source, open_sink, open_source
from runnel.runtime.io.wav import Audio, read_wav, write_wav

__all__ = ["Audio", "Sink", "Source", "open_sink", "open_source", "read_wav", "write_wav"]
