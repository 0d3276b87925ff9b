"""Filter banks, adaptive histograms, and describing a data set with them."""
