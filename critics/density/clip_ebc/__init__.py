"""CLIP-EBC: counts in blocks, classified by CLIP's text encoder."""
