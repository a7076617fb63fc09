"""One file a format: what a published data set holds on disk, as labelled images."""
