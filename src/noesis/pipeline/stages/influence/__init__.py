"""Which training example did it: `noesis influence RUN`, and the table of the report."""
