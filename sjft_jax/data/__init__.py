"""Random-access data sets, views and augmentation, and the paired loader."""

import cv2

# The loader's threads each work on an image of their own; OpenCV's would compete with them.
cv2.setNumThreads(1)
