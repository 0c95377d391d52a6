"""What `noesis serve` and `noesis chat` take from a run and its project: files, a judge, examples to keep."""
