"""One's own labels: where they are, other tools' formats, splits, and how well they repeat."""
