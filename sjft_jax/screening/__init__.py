"""Unreadable images, perceptual hashes, and copies of the target's images in the source."""
