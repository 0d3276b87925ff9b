"""The source images that each target image trains with: hardness, growth, subsets."""
