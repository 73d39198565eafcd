"""Making a CLIP from nothing: the language first, then the images."""
