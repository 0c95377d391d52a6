"""Several runs side by side: a table of their figures with paired intervals, and behaviour by principle."""
