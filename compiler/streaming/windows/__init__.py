"""Window mode: what the offline model gives on the last W frames, every H frames, with what windows share computed
once. A file in rules/ is registered by being here."""
