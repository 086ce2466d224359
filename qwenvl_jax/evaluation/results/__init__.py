"""What is stored and computed of a sweep: answers, rows, figures with intervals, and results.json."""
