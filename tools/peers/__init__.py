"""What converters stream exactly: the same small models through runnel and its peers, against the offline model."""
