"""Random-access data sets, views and augmentation, and the paired loader."""
