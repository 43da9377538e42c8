"""Features of pictures, texts and sounds, for `m3dist prepare`."""
