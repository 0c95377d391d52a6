"""What differs from machine to machine: its folders, and the streams that a process is given."""
