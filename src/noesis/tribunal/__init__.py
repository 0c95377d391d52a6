"""The Tribunal: three judges, their rubrics, the court and its rulings."""
