"""How captions are compared with videos, one way per file: the last part of every CLIP model."""
