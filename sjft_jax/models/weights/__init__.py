"""Published weights: read from their files, converted to this package's parameter trees."""
