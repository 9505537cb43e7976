"""Images and tables: poses, curves, the numbers in a terminal."""
