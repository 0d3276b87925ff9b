"""Files that people open: tables and grids of images."""
