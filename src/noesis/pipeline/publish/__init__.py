"""`noesis push`: which files of a run are published, whether they may be, and the push itself."""
