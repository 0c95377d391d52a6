"""What is done to a run, from export to report; start reading at registry."""
