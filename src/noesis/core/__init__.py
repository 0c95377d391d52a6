"""What every package stands on and what knows no stage: errors, configuration, files, console, signals."""
