"""Screening of the data sets: unreadable images, and source images that copy target images."""
